package shopifysim_test

import (
	"maps"
	"testing"

	"github.com/stretchr/testify/require"
)

const (
	bulkCreateDoc = `mutation($p: ID!, $v: [ProductVariantsBulkInput!]!, $s: ProductVariantsBulkCreateStrategy) {
		productVariantsBulkCreate(productId: $p, variants: $v, strategy: $s) { productVariants { id title } userErrors { code field message } }
	}`
	bulkUpdateDoc = `mutation($p: ID!, $v: [ProductVariantsBulkInput!]!, $partial: Boolean) {
		productVariantsBulkUpdate(productId: $p, variants: $v, allowPartialUpdates: $partial) { productVariants { id price } userErrors { code field message } }
	}`
	bulkDeleteDoc = `mutation($p: ID!, $v: [ID!]!) { productVariantsBulkDelete(productId: $p, variantsIds: $v) { product { id } userErrors { code field message } } }`
)

func size(name string) []any { return []any{vars{"optionName": "Size", "name": name}} }

func TestVariantsBulkCreateAddsValuesAndRefusesWhatExists(t *testing.T) {
	b := newBench(t)
	p := b.newTee("Tee")
	b.ok(bulkCreateDoc, vars{"p": p["id"], "v": []any{vars{
		"optionValues": size("L"), "price": "11.5", "inventoryItem": vars{"sku": "L", "tracked": true},
		"inventoryQuantities": []any{vars{"locationId": b.shop.Locations()[1].ID, "availableQuantity": 3}},
	}}})
	got := b.shop.Products()[0]
	require.Len(t, got.Variants, 3)
	require.Equal(t, "11.50", got.Variants[2].Price)
	require.Equal(t, "L", got.Variants[2].SKU)
	require.Equal(t, "Annex", got.Variants[2].Levels[0].Location)
	require.Len(t, got.Options[0].Values, 3)

	b.refused(bulkCreateDoc, vars{"p": p["id"], "v": []any{vars{"optionValues": size("L")}}}, "VARIANT_ALREADY_EXISTS_CHANGE_OPTION_VALUE")
	b.refused(bulkCreateDoc, vars{"p": p["id"], "v": []any{vars{"optionValues": []any{}}}}, "NEED_TO_ADD_OPTION_VALUES")
	b.refused(bulkCreateDoc, vars{"p": "gid://shopify/Product/1", "v": []any{vars{"optionValues": size("L")}}}, "PRODUCT_DOES_NOT_EXIST")
	b.refused(bulkCreateDoc, vars{"p": p["id"], "v": []any{vars{"optionValues": size("XL"), "price": "-1"}}}, "NEGATIVE_PRICE_VALUE")
	b.refused(bulkCreateDoc, vars{"p": p["id"], "v": []any{vars{"optionValues": size("XL"), "id": b.shop.Products()[0].Variants[0].ID}}}, "NO_KEY_ON_CREATE")
	require.Len(t, b.shop.Products()[0].Options[0].Values, 3, "what is refused adds no values")
}

func TestVariantsBulkCreateReplacesTheDefaultVariantUnlessItIsPreserved(t *testing.T) {
	b := newBench(t)
	plain := func() string {
		return dig(b.ok(productSetDoc, vars{"in": vars{"title": "Plain"}}), "product", "id").(string)
	}
	in := []any{vars{"optionValues": []any{vars{"optionName": "Title", "name": "One"}}}}
	b.ok(bulkCreateDoc, vars{"p": plain(), "v": in})
	require.Len(t, b.shop.Products()[0].Variants, 1)
	require.Equal(t, "One", b.shop.Products()[0].Variants[0].Title)
	b.ok(bulkCreateDoc, vars{"p": plain(), "v": in, "s": "PRESERVE_STANDALONE_VARIANT"})
	require.Len(t, b.shop.Products()[1].Variants, 2)
}

func TestVariantsBulkUpdateIsAllOrNothing(t *testing.T) {
	b := newBench(t)
	p := b.newTee("Tee")
	v := b.shop.Products()[0].Variants
	b.ok(bulkUpdateDoc, vars{"p": p["id"], "v": []any{
		vars{"id": v[0].ID, "price": "9.9", "compareAtPrice": "20"}, vars{"id": v[1].ID, "inventoryItem": vars{"sku": "new"}},
	}})
	got := b.shop.Products()[0].Variants
	require.Equal(t, "9.90", got[0].Price)
	require.Equal(t, "20.00", got[0].CompareAtPrice)
	require.Equal(t, "new", got[1].SKU)
	require.Equal(t, "10.00", got[1].Price)

	bad := []any{vars{"id": v[0].ID, "price": "1"}, vars{"id": "gid://shopify/ProductVariant/1", "price": "1"}}
	errs := b.refused(bulkUpdateDoc, vars{"p": p["id"], "v": bad}, "PRODUCT_VARIANT_DOES_NOT_EXIST")
	require.Equal(t, []any{"variants", "1", "id"}, dig(errs[0], "field"))
	require.Equal(t, "9.90", b.shop.Products()[0].Variants[0].Price)

	out := b.do(bulkUpdateDoc, vars{"p": p["id"], "v": bad, "partial": true})
	require.Len(t, out["userErrors"], 1)
	require.Equal(t, "1.00", b.shop.Products()[0].Variants[0].Price)
}

func TestVariantsBulkUpdateRefusals(t *testing.T) {
	b := newBench(t)
	p := b.newTee("Tee")
	v := b.shop.Products()[0].Variants
	one := func(in vars) vars { return vars{"p": p["id"], "v": []any{in}} }
	b.refused(bulkUpdateDoc, one(vars{"price": "1"}), "PRODUCT_VARIANT_ID_MISSING")
	b.refused(bulkUpdateDoc, one(vars{"id": v[0].ID, "optionValues": size("M")}), "VARIANT_ALREADY_EXISTS")
	b.refused(bulkUpdateDoc, one(vars{"id": v[0].ID, "price": "-1"}), "NEGATIVE_PRICE_VALUE")
	b.refused(bulkUpdateDoc, one(vars{"id": v[0].ID, "mediaId": "gid://shopify/MediaImage/1"}), "MUST_BE_FOR_THIS_PRODUCT")
	b.refused(bulkUpdateDoc, one(vars{"id": v[0].ID, "inventoryQuantities": []any{vars{"locationId": b.shop.Locations()[0].ID, "availableQuantity": 1}}}),
		"NO_INVENTORY_QUANTITIES_ON_VARIANTS_UPDATE")
	a := b.post(bulkUpdateDoc, one(vars{"id": v[0].ID, "sku": "x"}))
	require.Equal(t, "INVALID_VARIABLE", dig(a.Errors[0], "extensions", "code"), "sku is no field of it: inventoryItem.sku is")
}

func TestVariantsBulkUpdateClearsAComparePriceWithNull(t *testing.T) {
	b := newBench(t)
	p := b.newTee("Tee")
	id := b.shop.Products()[0].Variants[0].ID
	b.ok(bulkUpdateDoc, vars{"p": p["id"], "v": []any{vars{"id": id, "compareAtPrice": "20"}}})
	b.ok(bulkUpdateDoc, vars{"p": p["id"], "v": []any{vars{"id": id, "price": "5"}}})
	require.Equal(t, "20.00", b.shop.Products()[0].Variants[0].CompareAtPrice)
	b.ok(bulkUpdateDoc, vars{"p": p["id"], "v": []any{vars{"id": id, "compareAtPrice": nil}}})
	require.Empty(t, b.shop.Products()[0].Variants[0].CompareAtPrice)
}

func TestVariantsBulkDelete(t *testing.T) {
	b := newBench(t)
	p := b.newTee("Tee")
	v := b.shop.Products()[0].Variants
	b.refused(bulkDeleteDoc, vars{"p": p["id"], "v": []any{v[0].ID, v[1].ID}}, "CANNOT_DELETE_LAST_VARIANT")
	b.refused(bulkDeleteDoc, vars{"p": p["id"], "v": []any{"gid://shopify/ProductVariant/1"}}, "AT_LEAST_ONE_VARIANT_DOES_NOT_BELONG_TO_THE_PRODUCT")
	b.ok(bulkDeleteDoc, vars{"p": p["id"], "v": []any{v[0].ID}})
	require.Len(t, b.shop.Products()[0].Variants, 1)
	require.Nil(t, b.do(`query($id: ID!) { productVariant(id: $id) { id } }`, vars{"id": v[0].ID}))
}

func TestOptionUpdateRenamesInPlaceAndMovesNothing(t *testing.T) {
	b := newBench(t)
	p := b.newTee("Tee")
	before := b.shop.Products()[0]
	const doc = `mutation($p: ID!, $o: OptionUpdateInput!, $add: [OptionValueCreateInput!], $up: [OptionValueUpdateInput!], $del: [ID!], $s: ProductOptionUpdateVariantStrategy) {
		productOptionUpdate(productId: $p, option: $o, optionValuesToAdd: $add, optionValuesToUpdate: $up, optionValuesToDelete: $del, variantStrategy: $s) {
			product { id } userErrors { code field message } } }`
	o := before.Options[0]
	b.ok(doc, vars{
		"p": p["id"], "o": vars{"id": o.ID, "name": "Fit"}, "up": []any{vars{"id": o.Values[0].ID, "name": "Small"}}, "add": []any{vars{"name": "L"}},
	})
	got := b.shop.Products()[0]
	require.Equal(t, "Fit", got.Options[0].Name)
	require.Equal(t, []string{"Small"}, got.Variants[0].Values)
	require.Equal(t, before.Variants[0].ID, got.Variants[0].ID)
	require.Len(t, got.Variants, 2, "LEAVE_AS_IS makes no variants")
	b.refused(doc, vars{"p": p["id"], "o": vars{"id": o.ID}, "del": []any{o.Values[1].ID}}, "OPTION_VALUE_HAS_VARIANTS")
	b.refused(doc, vars{"p": p["id"], "o": vars{"id": o.ID}, "add": []any{vars{"name": "M"}}}, "OPTION_VALUE_ALREADY_EXISTS")
	b.refused(doc, vars{"p": p["id"], "o": vars{"id": o.ID, "name": "A / B"}}, "INVALID_NAME")
	b.refused(doc, vars{"p": p["id"], "o": vars{"id": "gid://shopify/ProductOption/1"}}, "OPTION_DOES_NOT_EXIST")
	b.ok(doc, vars{"p": p["id"], "o": vars{"id": o.ID}, "del": []any{o.Values[1].ID}, "s": "MANAGE"})
	require.Len(t, b.shop.Products()[0].Variants, 1)
}

func TestOptionsCreateDeleteReorder(t *testing.T) {
	b := newBench(t)
	p := b.newTee("Tee")
	const create = `mutation($p: ID!, $o: [OptionCreateInput!]!, $s: ProductOptionCreateVariantStrategy) { productOptionsCreate(productId: $p, options: $o, variantStrategy: $s) { userErrors { code field message } } }`
	b.ok(create, vars{"p": p["id"], "o": []any{vars{"name": "Color", "values": []any{vars{"name": "Red"}, vars{"name": "Blue"}}}}})
	require.Equal(t, []string{"S", "Red"}, b.shop.Products()[0].Variants[0].Values, "what exists takes the first value")
	b.refused(create, vars{"p": p["id"], "o": []any{vars{"name": "Color", "values": []any{vars{"name": "x"}}}}}, "OPTION_ALREADY_EXISTS")
	b.ok(`mutation($p: ID!, $o: [OptionReorderInput!]!) { productOptionsReorder(productId: $p, options: $o) { userErrors { code message } } }`,
		vars{"p": p["id"], "o": []any{vars{"name": "Color"}, vars{"name": "Size", "values": []any{vars{"name": "M"}, vars{"name": "S"}}}}})
	got := b.shop.Products()[0]
	require.Equal(t, "Color", got.Options[0].Name)
	require.Equal(t, []string{"Red", "M"}, got.Variants[0].Values)
	const del = `mutation($p: ID!, $o: [ID!]!, $s: ProductOptionDeleteStrategy) { productOptionsDelete(productId: $p, options: $o, strategy: $s) { deletedOptionsIds userErrors { code message } } }`
	b.refused(del, vars{"p": p["id"], "o": []any{got.Options[0].ID}}, "CANNOT_DELETE_OPTION_WITH_MULTIPLE_VALUES")
	b.ok(del, vars{"p": p["id"], "o": []any{got.Options[0].ID}, "s": "NON_DESTRUCTIVE"})
	require.Len(t, b.shop.Products()[0].Options, 1)
}

const metafieldsSetDoc = `mutation($m: [MetafieldsSetInput!]!) { metafieldsSet(metafields: $m) { metafields { value compareDigest } userErrors { code field message elementIndex } } }`

func TestMetafieldsSetComparesDigestsAndIsAtomic(t *testing.T) {
	b := newBench(t)
	p := b.newTee("Tee")
	m := func(value string, more ...vars) vars {
		in := vars{"ownerId": p["id"], "namespace": "spec", "key": "fabric", "type": "single_line_text_field", "value": value}
		for _, x := range more {
			maps.Copy(in, x)
		}
		return in
	}
	first := b.ok(metafieldsSetDoc, vars{"m": []any{m("wool", vars{"compareDigest": nil})}})
	digest := dig(first, "metafields", 0, "compareDigest")
	b.refused(metafieldsSetDoc, vars{"m": []any{m("silk", vars{"compareDigest": nil})}}, "STALE_OBJECT")
	b.ok(metafieldsSetDoc, vars{"m": []any{m("silk", vars{"compareDigest": digest})}})
	b.refused(metafieldsSetDoc, vars{"m": []any{m("wool", vars{"compareDigest": digest})}}, "STALE_OBJECT")
	b.ok(metafieldsSetDoc, vars{"m": []any{m("silk", vars{"compareDigest": digest})}}) // an identical value is no change
	b.refused(metafieldsSetDoc, vars{"m": []any{m("wool", vars{"compareDigest": "x"})}}, "INVALID_COMPARE_DIGEST")
	b.ok(metafieldsSetDoc, vars{"m": []any{m("linen")}}) // without a digest nothing is compared

	errs := b.refused(metafieldsSetDoc, vars{"m": []any{m("cotton"), m("x", vars{"key": "width", "type": "number_integer"})}}, "INVALID_VALUE")
	require.Equal(t, []any{"metafields", "1", "value"}, dig(errs[0], "field"))
	require.EqualValues(t, 1, dig(errs[0], "elementIndex"))
	require.Equal(t, "linen", b.shop.Products()[0].Metafields[0].Value)

	many := make([]any, 26)
	for i := range many {
		many[i] = m("x")
	}
	b.refused(metafieldsSetDoc, vars{"m": many}, "LESS_THAN_OR_EQUAL_TO")
	b.refused(metafieldsSetDoc, vars{"m": []any{m("x", vars{"ownerId": "gid://shopify/Product/1"})}}, "INVALID")
}

func TestMetafieldsSetTakesTheTypeOfTheDefinition(t *testing.T) {
	b := newBench(t)
	p := b.newTee("Tee")
	b.ok(`mutation($d: MetafieldDefinitionInput!) { metafieldDefinitionCreate(definition: $d) { userErrors { code } } }`,
		vars{"d": vars{"name": "Width", "namespace": "spec", "key": "width", "type": "number_integer", "ownerType": "PRODUCT"}})
	in := vars{"ownerId": p["id"], "namespace": "spec", "key": "width", "value": "3"}
	b.ok(metafieldsSetDoc, vars{"m": []any{in}})
	require.Equal(t, "number_integer", b.shop.Products()[0].Metafields[0].Type)
	in["type"] = "single_line_text_field"
	b.refused(metafieldsSetDoc, vars{"m": []any{in}}, "INVALID_TYPE")
}

func TestMetafieldDefinitionsOfTypeIDAreUniqueAndTakenOnce(t *testing.T) {
	b := newBench(t)
	b.defineCustomID("PRODUCT")
	const doc = `mutation($d: MetafieldDefinitionInput!) { metafieldDefinitionCreate(definition: $d) { createdDefinition { id } userErrors { code } } }`
	def := vars{"name": "Source", "namespace": "shelfwire", "key": "id", "type": "id", "ownerType": "PRODUCT"}
	b.refused(doc, vars{"d": def}, "TAKEN")
	def["ownerType"], def["capabilities"] = "PRODUCTVARIANT", vars{"uniqueValues": vars{"enabled": false}}
	b.refused(doc, vars{"d": def}, "CAPABILITY_REQUIRED_BUT_DISABLED")
}

func TestMetafieldsDeleteAnswersNullForWhatIsNotThere(t *testing.T) {
	b := newBench(t)
	p := b.newTee("Tee")
	b.ok(metafieldsSetDoc, vars{"m": []any{vars{"ownerId": p["id"], "namespace": "spec", "key": "fabric", "type": "single_line_text_field", "value": "x"}}})
	id := func(key string) vars { return vars{"ownerId": p["id"], "namespace": "spec", "key": key} }
	out := b.ok(`mutation($m: [MetafieldIdentifierInput!]!) { metafieldsDelete(metafields: $m) { deletedMetafields { key } userErrors { message } } }`,
		vars{"m": []any{id("fabric"), id("none")}})
	require.Equal(t, []any{map[string]any{"key": "fabric"}, nil}, out["deletedMetafields"])
	require.Empty(t, b.shop.Products()[0].Metafields)
}
