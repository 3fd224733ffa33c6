package shopifysim_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func (b *bench) defineCustomID(owner string) {
	b.t.Helper()
	b.ok(`mutation($d: MetafieldDefinitionInput!) { metafieldDefinitionCreate(definition: $d) { createdDefinition { id } userErrors { code field message } } }`,
		vars{"d": vars{"name": "Source", "namespace": "shelfwire", "key": "id", "type": "id", "ownerType": owner}})
}

func custom(value string) vars {
	return vars{"customId": vars{"namespace": "shelfwire", "key": "id", "value": value}}
}

func withCustom(in vars, value string) vars {
	in["metafields"] = []any{vars{"namespace": "shelfwire", "key": "id", "type": "id", "value": value}}
	return in
}

func TestProductSetByCustomIDCreatesOnceAndThenUpdates(t *testing.T) {
	b := newBench(t)
	b.defineCustomID("PRODUCT")
	first := b.ok(productSetDoc, vars{"id": custom("42"), "in": withCustom(b.tee("Tee"), "42")})
	again := b.ok(productSetDoc, vars{"id": custom("42"), "in": withCustom(vars{"title": "Tee 2"}, "42")})
	require.Equal(t, dig(first, "product", "id"), dig(again, "product", "id"))
	require.Equal(t, "tee", dig(again, "product", "handle"), "a new title leaves the handle alone")
	require.Len(t, b.shop.Products(), 1)
	found := b.do(`query($i: ProductIdentifierInput!) { productByIdentifier(identifier: $i) { id } }`, vars{"i": custom("42")})
	require.Equal(t, dig(first, "product", "id"), found["id"])
}

func TestProductSetByCustomIDNeedsTheDefinition(t *testing.T) {
	b := newBench(t)
	a := b.post(productSetDoc, vars{"id": custom("42"), "in": withCustom(b.tee("Tee"), "42")})
	require.Equal(t, "NOT_FOUND", dig(a.Errors[0], "extensions", "code"))
	require.Equal(t, "Metafield definition of type 'id' is required when using custom ids.", a.Errors[0]["message"])
	require.Empty(t, b.shop.Products())
}

func TestProductSetByCustomIDNeedsTheMetafieldInTheInput(t *testing.T) {
	b := newBench(t)
	b.defineCustomID("PRODUCT")
	b.refused(productSetDoc, vars{"id": custom("42"), "in": b.tee("Tee")}, "METAFIELD_MISMATCH")
	b.refused(productSetDoc, vars{"id": custom("42"), "in": withCustom(b.tee("Tee"), "43")}, "METAFIELD_MISMATCH")
}

func TestProductSetRefusesACustomIDThatAnotherProductHas(t *testing.T) {
	b := newBench(t)
	b.defineCustomID("PRODUCT")
	b.ok(productSetDoc, vars{"id": custom("42"), "in": withCustom(b.tee("Tee"), "42")})
	b.refused(productSetDoc, vars{"in": withCustom(b.tee("Other"), "42")}, "CAPABILITY_VIOLATION")
}

func TestProductSetIdentifierExcludesTheInputID(t *testing.T) {
	b := newBench(t)
	p := b.newTee("Tee")
	errs := b.refused(productSetDoc, vars{"id": vars{"id": p["id"]}, "in": vars{"id": p["id"], "title": "x"}}, "ID_NOT_ALLOWED")
	require.Equal(t, []any{"input"}, dig(errs[0], "field"))
}

func TestProductSetByHandleNeedsTheSameHandleInTheInput(t *testing.T) {
	b := newBench(t)
	b.newTee("Tee")
	b.refused(productSetDoc, vars{"id": vars{"handle": "tee"}, "in": vars{"title": "x"}}, "MISSING_FIELD_REQUIRED")
	b.refused(productSetDoc, vars{"id": vars{"handle": "tee"}, "in": vars{"title": "x", "handle": "other"}}, "INPUT_MISMATCH")
	b.ok(productSetDoc, vars{"id": vars{"handle": "tee"}, "in": vars{"title": "x", "handle": "tee"}})
	require.Len(t, b.shop.Products(), 1)
}

func TestProductSetDeletesWhatAListOmitsAndKeepsWhatIsNotGiven(t *testing.T) {
	b := newBench(t)
	in := b.tee("Tee")
	in["tags"] = []any{"summer"}
	in["files"] = []any{vars{"originalSource": "https://img.example/a.jpg"}, vars{"originalSource": "https://img.example/b.jpg"}}
	in["metafields"] = []any{
		vars{"namespace": "spec", "key": "fabric", "type": "single_line_text_field", "value": "wool"},
		vars{"namespace": "spec", "key": "care", "type": "single_line_text_field", "value": "cold"},
	}
	p := dig(b.ok(productSetDoc, vars{"in": in}), "product")
	before := b.shop.Products()[0]

	b.ok(productSetDoc, vars{"id": vars{"id": dig(p, "id")}, "in": vars{
		"metafields":     []any{vars{"namespace": "spec", "key": "fabric", "type": "single_line_text_field", "value": "silk"}},
		"files":          []any{vars{"id": before.Media[1].ID}},
		"productOptions": []any{vars{"name": "Size", "values": []any{vars{"name": "M"}}}},
		"variants":       []any{vars{"optionValues": []any{vars{"optionName": "Size", "name": "M"}}, "price": "12"}},
	}})
	after := b.shop.Products()[0]
	require.Equal(t, []string{"summer"}, after.Tags, "a field that is not given stays")
	require.Len(t, after.Metafields, 1)
	require.Equal(t, "silk", after.Metafields[0].Value)
	require.Len(t, after.Media, 1)
	require.Equal(t, before.Media[1].ID, after.Media[0].ID, "a file by id is kept, not fetched again")
	require.Len(t, after.Variants, 1)
	require.Equal(t, before.Variants[1].ID, after.Variants[0].ID, "a variant is recognised by its option values")
	require.Equal(t, "12.00", after.Variants[0].Price)
	require.EqualValues(t, 7, after.Variants[0].Levels[0].Quantities["available"])
}

func TestProductSetUploadsASourceWithoutIDAgain(t *testing.T) {
	b := newBench(t)
	in := b.tee("Tee")
	in["files"] = []any{vars{"originalSource": "https://img.example/a.jpg"}}
	p := dig(b.ok(productSetDoc, vars{"in": in}), "product")
	before := b.shop.Products()[0].Media[0].ID
	b.ok(productSetDoc, vars{"id": vars{"id": dig(p, "id")}, "in": vars{"files": in["files"]}})
	require.NotEqual(t, before, b.shop.Products()[0].Media[0].ID)
}

func TestProductSetOptionsAndVariantsGoTogether(t *testing.T) {
	b := newBench(t)
	p := b.newTee("Tee")
	in := b.tee("Tee")
	id := vars{"id": p["id"]}
	b.refused(productSetDoc, vars{"id": id, "in": vars{"productOptions": in["productOptions"]}}, "VARIANTS_INPUT_MISSING")
	b.refused(productSetDoc, vars{"id": id, "in": vars{"variants": in["variants"]}}, "PRODUCT_OPTIONS_INPUT_MISSING")
}

func TestProductSetRenamesOptionsAndValuesByID(t *testing.T) {
	b := newBench(t)
	p := b.newTee("Tee")
	before := b.shop.Products()[0]
	o := before.Options[0]
	b.ok(productSetDoc, vars{"id": vars{"id": p["id"]}, "in": vars{
		"productOptions": []any{vars{"id": o.ID, "name": "Fit", "values": []any{vars{"id": o.Values[0].ID, "name": "Small"}, vars{"id": o.Values[1].ID, "name": "Medium"}}}},
		"variants": []any{
			vars{"id": before.Variants[0].ID, "optionValues": []any{vars{"optionName": "Fit", "name": "Small"}}},
			vars{"id": before.Variants[1].ID, "optionValues": []any{vars{"optionName": "Fit", "name": "Medium"}}},
		},
	}})
	after := b.shop.Products()[0]
	require.Equal(t, o.ID, after.Options[0].ID)
	require.Equal(t, "Fit", after.Options[0].Name)
	require.Equal(t, []string{"Small"}, after.Variants[0].Values)
	require.Equal(t, before.Variants[0].ID, after.Variants[0].ID)
}

func TestProductSetRefusals(t *testing.T) {
	b := newBench(t)
	loc := b.shop.Locations()[0].ID
	value := func(option, name string) []any { return []any{vars{"optionName": option, "name": name}} }
	many := make([]any, 101)
	for i := range many {
		many[i] = vars{"name": fmt.Sprint("v", i)}
	}
	sizes := []any{vars{"name": "Size", "values": []any{vars{"name": "S"}, vars{"name": "M"}}}}
	for name, c := range map[string]struct {
		in   vars
		code any
	}{
		"blank title":        {vars{"title": " "}, nil},
		"long title":         {vars{"title": strings.Repeat("x", 256)}, nil},
		"four options":       {vars{"title": "t", "productOptions": []any{vars{"name": "a"}, vars{"name": "b"}, vars{"name": "c"}, vars{"name": "d"}}}, "OPTIONS_OVER_LIMIT"},
		"101 values":         {vars{"title": "t", "productOptions": []any{vars{"name": "Size", "values": many}}}, "OPTION_VALUES_OVER_LIMIT"},
		"no values":          {vars{"title": "t", "productOptions": []any{vars{"name": "Size", "values": []any{}}}}, "OPTION_VALUES_MISSING"},
		"reserved name":      {vars{"title": "t", "productOptions": []any{vars{"name": "X / Y", "values": []any{vars{"name": "1"}}}}}, "INVALID_INPUT"},
		"same option twice":  {vars{"title": "t", "productOptions": []any{sizes[0], sizes[0]}}, "DUPLICATED_OPTION_NAME"},
		"same value twice":   {vars{"title": "t", "productOptions": []any{vars{"name": "Size", "values": []any{vars{"name": "S"}, vars{"name": "S"}}}}}, "DUPLICATED_OPTION_VALUE"},
		"unknown option":     {vars{"title": "t", "productOptions": sizes, "variants": []any{vars{"optionValues": value("Color", "S")}}}, "OPTION_DOES_NOT_EXIST"},
		"unknown value":      {vars{"title": "t", "productOptions": sizes, "variants": []any{vars{"optionValues": value("Size", "XL")}}}, "OPTION_VALUE_DOES_NOT_EXIST"},
		"same variant twice": {vars{"title": "t", "productOptions": sizes, "variants": []any{vars{"optionValues": value("Size", "S")}, vars{"optionValues": value("Size", "S")}}}, "INVALID_VARIANT"},
		"unknown variant":    {vars{"title": "t", "productOptions": sizes, "variants": []any{vars{"id": "gid://shopify/ProductVariant/1", "optionValues": value("Size", "S")}}}, "PRODUCT_VARIANT_DOES_NOT_EXIST"},
		"negative price":     {vars{"title": "t", "productOptions": sizes, "variants": []any{vars{"price": "-1", "optionValues": value("Size", "S")}}}, "INVALID_VARIANT"},
		"unknown location":   {vars{"title": "t", "productOptions": sizes, "variants": []any{vars{"optionValues": value("Size", "S"), "inventoryQuantities": []any{vars{"locationId": "gid://shopify/Location/1", "name": "available", "quantity": 1}}}}}, "NOT_FOUND"},
		"unknown quantity":   {vars{"title": "t", "productOptions": sizes, "variants": []any{vars{"optionValues": value("Size", "S"), "inventoryQuantities": []any{vars{"locationId": loc, "name": "damaged", "quantity": 1}}}}}, "INVALID_INPUT"},
		"no image address":   {vars{"title": "t", "files": []any{vars{"originalSource": "not a url"}}}, "INVALID_INPUT"},
		"bad metafield":      {vars{"title": "t", "metafields": []any{vars{"namespace": "spec", "key": "width", "type": "number_integer", "value": "wide"}}}, "INVALID_METAFIELD"},
	} {
		t.Run(name, func(t *testing.T) {
			out := b.do(productSetDoc, vars{"in": c.in})
			require.Nil(t, out["product"])
			require.Equal(t, c.code, dig(out, "userErrors", 0, "code"), "%v", out["userErrors"])
		})
	}
	require.Empty(t, b.shop.Products(), "what is refused leaves nothing")
}

func TestHandlesAreNormalisedNumberedAndRefusedWhenTaken(t *testing.T) {
	b := newBench(t)
	require.Equal(t, "tee", b.newTee("Tee")["handle"])
	require.Equal(t, "tee-1", b.newTee("Tee")["handle"], "a generated handle is numbered")
	in := b.tee("Odd")
	in["handle"] = "  Another Weird/Handle 300 % "
	require.Equal(t, "another-weird-handle-300", dig(b.ok(productSetDoc, vars{"in": in}), "product", "handle"))
	in = b.tee("Third")
	in["handle"] = "Tee"
	errs := b.refused(productSetDoc, vars{"in": in}, nil)
	require.Equal(t, []any{"input", "handle"}, dig(errs[0], "field"))
	require.Equal(t, "Handle 'Tee' already in use. Please provide a new handle.", dig(errs[0], "message"))
}

func TestProductSetOnUpdateSetsQuantitiesOnlyWhereStocked(t *testing.T) {
	b := newBench(t)
	p := b.newTee("Tee")
	in := b.tee("Tee")
	for _, v := range in["variants"].([]any) {
		v.(vars)["inventoryQuantities"] = []any{vars{"locationId": b.shop.Locations()[1].ID, "name": "available", "quantity": 1}}
	}
	out := b.do(productSetDoc, vars{"id": vars{"id": p["id"]}, "in": in})
	require.NotEmpty(t, out["userErrors"])
	require.EqualValues(t, 5, b.shop.Products()[0].Variants[0].Levels[0].Quantities["available"])
}

func TestNewVariantsAreUntrackedUnlessTheInputSaysSo(t *testing.T) {
	b := newBench(t)
	b.ok(productSetDoc, vars{"in": vars{"title": "Plain"}})
	v := b.shop.Products()[0].Variants[0]
	require.False(t, v.Tracked)
	require.Equal(t, "0.00", v.Price)
	require.Equal(t, "Default Title", v.Title)
	require.Equal(t, "DENY", v.InventoryPolicy)
	require.Len(t, v.Levels, 1, "stocked at the primary location")
	require.Empty(t, b.shop.Products()[0].Publications, "created unpublished")
}

func TestProductSetAsynchronouslyAnswersAnOperation(t *testing.T) {
	b := newBench(t)
	out := b.ok(`mutation($in: ProductSetInput!) { productSet(input: $in, synchronous: false) { product { id } productSetOperation { id status } userErrors { code } } }`, vars{"in": vars{"title": "Later"}})
	require.Nil(t, out["product"])
	require.Equal(t, "CREATED", dig(out, "productSetOperation", "status"))
	op := b.do(`query($id: ID!) { productOperation(id: $id) { status product { title } ... on ProductSetOperation { userErrors { code } } } }`, vars{"id": dig(out, "productSetOperation", "id")})
	require.Equal(t, "COMPLETE", op["status"])
	require.Equal(t, "Later", dig(op, "product", "title"))
}

const updateDoc = `mutation($p: ProductUpdateInput!, $media: [CreateMediaInput!]) {
	productUpdate(product: $p, media: $media) { product { id title tags handle } userErrors { field message } }
}`

func TestProductUpdateChangesOnlyWhatItNames(t *testing.T) {
	b := newBench(t)
	p := b.newTee("Tee")
	b.ok(updateDoc, vars{"p": vars{"id": p["id"], "tags": []any{" Red ", "red", "RED", " big   sale "}, "seo": vars{"title": "S"}}})
	b.ok(updateDoc, vars{"p": vars{"id": p["id"], "title": "New", "status": "DRAFT", "descriptionHtml": "<b>x</b>"}})
	got := b.shop.Products()[0]
	require.Equal(t, []string{"big   sale", "Red"}, got.Tags)
	require.Equal(t, "New", got.Title)
	require.Equal(t, "DRAFT", got.Status)
	require.Equal(t, "S", got.SEOTitle)
	require.Len(t, got.Variants, 2)
}

func TestProductUpdateMediaIsAppended(t *testing.T) {
	b := newBench(t)
	p := b.newTee("Tee")
	image := func(n string) []any {
		return []any{vars{"originalSource": "https://img.example/" + n, "mediaContentType": "IMAGE", "alt": n}}
	}
	b.ok(updateDoc, vars{"p": vars{"id": p["id"]}, "media": image("a.jpg")})
	b.ok(updateDoc, vars{"p": vars{"id": p["id"]}, "media": image("b.jpg")})
	require.Len(t, b.shop.Products()[0].Media, 2)
	out := b.do(updateDoc, vars{"p": vars{"id": p["id"]}, "media": []any{vars{"originalSource": "x", "mediaContentType": "IMAGE"}}})
	require.Equal(t, []any{"media", "0", "originalSource"}, dig(out, "userErrors", 0, "field"))
}

func TestProductUpdateOfAMissingProduct(t *testing.T) {
	b := newBench(t)
	out := b.do(updateDoc, vars{"p": vars{"id": "gid://shopify/Product/1", "title": "x"}})
	require.Equal(t, "Product does not exist", dig(out, "userErrors", 0, "message"))
	require.Equal(t, []any{"id"}, dig(out, "userErrors", 0, "field"))
}

func TestProductUpdateByCustomID(t *testing.T) {
	b := newBench(t)
	b.defineCustomID("PRODUCT")
	b.ok(productSetDoc, vars{"id": custom("42"), "in": withCustom(b.tee("Tee"), "42")})
	b.ok(`mutation($i: ProductUpdateIdentifiers, $p: ProductUpdateInput!) { productUpdate(identifier: $i, product: $p) { product { id } userErrors { message } } }`,
		vars{"i": custom("42"), "p": vars{"title": "Renamed"}})
	require.Equal(t, "Renamed", b.shop.Products()[0].Title)
}

func TestProductDelete(t *testing.T) {
	b := newBench(t)
	b.defineCustomID("PRODUCT")
	out := b.ok(productSetDoc, vars{"id": custom("42"), "in": withCustom(b.tee("Tee"), "42")})
	const doc = `mutation($in: ProductDeleteInput!) { productDelete(input: $in) { deletedProductId userErrors { field message } } }`
	b.ok(doc, vars{"in": vars{"id": dig(out, "product", "id")}})
	require.Empty(t, b.shop.Products())
	gone := b.do(doc, vars{"in": vars{"id": dig(out, "product", "id")}})
	require.Equal(t, "Product does not exist", dig(gone, "userErrors", 0, "message"))
	b.ok(productSetDoc, vars{"id": custom("42"), "in": withCustom(b.tee("Tee"), "42")}) // its custom id is free again
}

func TestTagsAddAndRemoveIgnoreCaseAndSplitAtCommas(t *testing.T) {
	b := newBench(t)
	p := b.newTee("Tee")
	const add = `mutation($id: ID!, $tags: [String!]!) { tagsAdd(id: $id, tags: $tags) { node { ... on Product { tags } } userErrors { message } } }`
	const remove = `mutation($id: ID!, $tags: [String!]!) { tagsRemove(id: $id, tags: $tags) { node { ... on Product { tags } } userErrors { message } } }`
	require.Equal(t, []any{"blue", "green", "Red"}, dig(b.ok(add, vars{"id": p["id"], "tags": []any{"Red", "blue, green"}}), "node", "tags"))
	require.Equal(t, []any{"blue", "green", "Red"}, dig(b.ok(add, vars{"id": p["id"], "tags": []any{"red"}}), "node", "tags"))
	require.Equal(t, []any{"blue", "green"}, dig(b.ok(remove, vars{"id": p["id"], "tags": "RED"}), "node", "tags"))
}

func TestPublishAndUnpublish(t *testing.T) {
	b := newBench(t)
	p := b.newTee("Tee")
	pub := b.shop.Publications()[1].ID
	const publish = `mutation($id: ID!, $in: [PublicationInput!]!) { publishablePublish(id: $id, input: $in) { publishable { publishedOnPublication(publicationId: "%s") resourcePublicationsCount { count } } userErrors { field message } } }`
	out := b.ok(fmt.Sprintf(publish, pub), vars{"id": p["id"], "in": []any{vars{"publicationId": pub}}})
	require.Equal(t, true, dig(out, "publishable", "publishedOnPublication"))
	require.Contains(t, b.shop.Products()[0].Publications, "Point of Sale")
	bad := b.do(fmt.Sprintf(publish, pub), vars{"id": p["id"], "in": []any{vars{"publicationId": "gid://shopify/Publication/1"}}})
	require.Equal(t, []any{"input", "0", "publicationId"}, dig(bad, "userErrors", 0, "field"))
	b.ok(`mutation($id: ID!, $in: [PublicationInput!]!) { publishableUnpublish(id: $id, input: $in) { userErrors { field message } } }`,
		vars{"id": p["id"], "in": []any{vars{"publicationId": pub}}})
	require.Empty(t, b.shop.Products()[0].Publications)
	a := b.post(fmt.Sprintf(publish, pub), vars{"id": "gid://shopify/Product/1", "in": []any{vars{"publicationId": pub}}})
	require.Equal(t, "RESOURCE_NOT_FOUND", dig(a.Errors[0], "extensions", "code"))
}

func TestFileUpdateRemovesReferencesFromProductAndVariants(t *testing.T) {
	b := newBench(t)
	in := b.tee("Tee")
	in["files"] = []any{vars{"originalSource": "https://img.example/a.jpg", "alt": "front"}}
	in["variants"].([]any)[0].(vars)["file"] = vars{"originalSource": "https://img.example/a.jpg"}
	p := dig(b.ok(productSetDoc, vars{"in": in}), "product")
	got := b.shop.Products()[0]
	require.Len(t, got.Media, 1)
	require.Equal(t, []string{got.Media[0].ID}, got.Variants[0].Media)
	const doc = `mutation($f: [FileUpdateInput!]!) { fileUpdate(files: $f) { files { id alt } userErrors { code field message } } }`
	b.ok(doc, vars{"f": []any{vars{"id": got.Media[0].ID, "alt": "back", "referencesToRemove": []any{dig(p, "id")}}}})
	got = b.shop.Products()[0]
	require.Empty(t, got.Media)
	require.Empty(t, got.Variants[0].Media)
	b.refused(doc, vars{"f": []any{vars{"id": "gid://shopify/MediaImage/1", "alt": "x"}}}, "FILE_DOES_NOT_EXIST")
}

func TestFailingImageIsAcceptedAndFails(t *testing.T) {
	b := newBench(t)
	in := b.tee("Tee")
	in["files"] = []any{vars{"originalSource": "https://img.invalid/a.jpg"}}
	b.ok(productSetDoc, vars{"in": in})
	require.Equal(t, "FAILED", b.shop.Products()[0].Media[0].Status)
}

func TestReorderMediaMovesOneAfterTheOther(t *testing.T) {
	b := newBench(t)
	in := b.tee("Tee")
	in["files"] = []any{
		vars{"originalSource": "https://img.example/a.jpg"}, vars{"originalSource": "https://img.example/b.jpg"}, vars{"originalSource": "https://img.example/c.jpg"},
	}
	p := dig(b.ok(productSetDoc, vars{"in": in}), "product")
	m := b.shop.Products()[0].Media
	const doc = `mutation($id: ID!, $m: [MoveInput!]!) { productReorderMedia(id: $id, moves: $m) { job { done } mediaUserErrors { code field } userErrors { field } } }`
	b.ok(doc, vars{"id": dig(p, "id"), "m": []any{vars{"id": m[2].ID, "newPosition": "0"}, vars{"id": m[0].ID, "newPosition": 2}}})
	got := b.shop.Products()[0].Media
	require.Equal(t, []string{m[2].ID, m[1].ID, m[0].ID}, []string{got[0].ID, got[1].ID, got[2].ID})
	out := b.do(doc, vars{"id": dig(p, "id"), "m": []any{vars{"id": "gid://shopify/MediaImage/1", "newPosition": "0"}}})
	require.Equal(t, "MEDIA_DOES_NOT_EXIST", dig(out, "mediaUserErrors", 0, "code"))
}
