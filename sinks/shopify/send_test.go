package shopify_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
	"github.com/shelfwire/shelfwire/sinks/shopify"
)

func TestACreationIsOneProductSetAndOnePublish(t *testing.T) {
	w := newWorld(t)
	w.mustPush("1", shirt(3))
	sent := mutations(w.wire.take())
	require.Len(t, sent, 3)
	require.Equal(t, []string{"metafieldDefinitionCreate"}, sent[0].roots)
	require.Equal(t, []string{"productSet"}, sent[1].roots)
	require.Equal(t, []string{"publishablePublish"}, sent[2].roots)
	requireEqual(t, shirt(3), w.product("1"))
	require.Len(t, w.shop.Products(), 1)
}

func TestTenPricesOfOneProductAreOneMutation(t *testing.T) {
	w := newWorld(t)
	doc := shirt(10)
	w.mustPush("1", doc)
	w.wire.take()
	for i := range doc.Variants.Value {
		doc.Variants.Value[i].Price = document.Of(fmt.Sprintf("%d.00", 20+i))
	}
	p := w.plan("1", doc)
	require.Equal(t, work.LaneLive, p.Lane)
	require.Equal(t, "price of 10 variants", p.Words)
	require.Equal(t, 12, p.Points)
	r := w.send(p)[0]
	require.Equal(t, event.Success, r.Status)
	require.InDelta(t, 12, r.PointsRequested, 0.01)
	sent := w.wire.take()
	require.Len(t, sent, 1)
	require.Equal(t, []string{"productVariantsBulkUpdate"}, sent[0].roots)
	requireEqual(t, doc, w.product("1"))
}

func TestTenProductsOfOneShopAreOneRequest(t *testing.T) {
	w := newWorld(t)
	var plans []work.Plan
	for i := range 10 {
		w.mustPush(fmt.Sprint(i), shirt(2))
		doc := shirt(2)
		doc.Title = document.Of("New shirt")
		doc.Variants.Value[0].Stock = document.Of([]document.Level{{Location: "Main", Quantity: 99}})
		plans = append(plans, w.plan(fmt.Sprint(i), doc))
	}
	w.wire.take()
	total := 0.0
	for _, r := range w.send(plans...) {
		require.Equal(t, event.Success, r.Status)
		total += r.PointsRequested
	}
	sent := w.wire.take()
	require.Len(t, sent, 1)
	require.Len(t, sent[0].roots, 11, "ten titles and one inventorySetQuantities")
	require.InDelta(t, 110, total, 0.01)
	for i := range 10 {
		require.Equal(t, "New shirt", w.product(fmt.Sprint(i)).Title)
	}
}

func TestSwitchedOffPartsAreLeftAlone(t *testing.T) {
	w := newWorld(t)
	doc := shirt(1)
	doc.Variants.Value[0].Price = document.Field[string]{}
	doc.Variants.Value[0].FirstPrice = "7.00"
	doc.Variants.Value[0].Stock = document.Field[[]document.Level]{}
	w.mustPush("1", doc)
	require.Equal(t, "7.00", w.product("1").Variants[0].Price)
	doc.Variants.Value[0].FirstPrice = "9.00"
	require.True(t, w.plan("1", doc).Nothing)
	doc.Variants.Value[0].Price = document.Of("9.00")
	w.mustPush("1", doc)
	require.Equal(t, "9.00", w.product("1").Variants[0].Price)
	doc.Variants.Value[0].Price = document.Field[string]{}
	p := w.plan("1", doc)
	require.True(t, p.Nothing)
	require.NotNil(t, p.Result.Shadow, "the price is not ours any more")
	w.settle(p.Result)
	doc.Variants.Value[0].Price = document.Of("9.00")
	require.False(t, w.plan("1", doc).Nothing, "switched on again means one catch-up")
}

func TestEdges(t *testing.T) {
	w := newWorld(t)
	off := shirt(1)
	off.Eligible, off.Reason = false, "NOT_APPROVED"
	p := w.plan("1", off)
	require.True(t, p.Nothing)
	require.Equal(t, event.Skipped, p.Result.Status)
	require.Equal(t, "NOT_APPROVED", p.Result.Reason)

	w.mustPush("1", shirt(1))
	p = w.plan("1", off)
	require.Equal(t, []work.Effect{work.EffectOffSale}, p.Effects)
	r := w.send(p)[0]
	require.Equal(t, event.Success, r.Status)
	require.Equal(t, "NOT_APPROVED", r.Reason)
	require.True(t, r.OffSale)
	require.Equal(t, "DRAFT", w.product("1").Status)
	p = w.plan("1", off)
	require.True(t, p.Nothing)
	require.Equal(t, "NOT_APPROVED", p.Result.Reason)

	w.mustPush("1", shirt(1))
	require.Equal(t, "ACTIVE", w.product("1").Status)
	require.False(t, w.known["1"].OffSale)

	known := w.known["1"]
	known.ProductID = "1"
	r = w.send(shopify.Plan(work.Push{ProductID: "1", Shop: testShop, Moved: true, Known: known}))[0]
	require.Equal(t, event.Success, r.Status)
	require.Equal(t, "DRAFT", w.product("1").Status)
	known = w.known["1"]
	r = w.send(shopify.Plan(work.Push{ProductID: "1", Shop: testShop, Gone: true, Known: known}))[0]
	require.Equal(t, event.Success, r.Status)
	require.Equal(t, "ARCHIVED", w.product("1").Status)
	p = shopify.Plan(work.Push{ProductID: "1", Shop: testShop, Gone: true, Known: w.known["1"]})
	require.True(t, p.Nothing)
	p = shopify.Plan(work.Push{ProductID: "2", Shop: testShop, Gone: true})
	require.True(t, p.Nothing)
	require.Equal(t, shopify.ReasonNoRow, p.Result.Reason)
}

func TestAPriceOfZeroIsAnEffect(t *testing.T) {
	w := newWorld(t)
	doc := shirt(2)
	w.mustPush("1", doc)
	doc.Variants.Value[1].Price = document.Of("0.00")
	require.Equal(t, []work.Effect{work.EffectZeroPrice}, w.plan("1", doc).Effects)
}

func TestAMerchantsOwnThingsStay(t *testing.T) {
	w := newWorld(t)
	doc := shirt(2)
	w.mustPush("1", doc)
	id := w.known["1"].ShopifyID
	w.api(`mutation($id: ID!) { tagsAdd(id: $id, tags: ["handpicked"]) { userErrors { message } } }`, map[string]any{"id": id})
	w.api(`mutation($m: [MetafieldsSetInput!]!) { metafieldsSet(metafields: $m) { userErrors { message } } }`,
		map[string]any{"m": []any{map[string]any{"ownerId": id, "namespace": "merchant", "key": "note", "type": "single_line_text_field", "value": "mine"}}})
	w.api(`mutation($p: ProductUpdateInput!, $m: [CreateMediaInput!]) { productUpdate(product: $p, media: $m) { userErrors { message } } }`,
		map[string]any{"p": map[string]any{"id": id}, "m": []any{map[string]any{"originalSource": "https://merchant.example.com/own.jpg", "mediaContentType": "IMAGE"}}})

	doc.Title = document.Of("Better shirt")
	doc.Tags = document.Of([]string{"winter"})
	doc.Metafields = document.Of([]document.Metafield{})
	doc.Images = document.Of([]document.Image{{URL: "https://img.example.com/front.jpg", Alt: "from the front"}, {URL: "https://img.example.com/side.jpg"}})
	doc.Options.Value[0] = document.Option{Name: "Fit", Values: []string{"S0", "Large"}}
	doc.Variants.Value[1].Options = []string{"Large"}
	doc.Variants.Value[0].Price = document.Of("33.00")
	w.mustPush("1", doc)
	// New structure: another option, by productSet.
	doc.Options = document.Of([]document.Option{{Name: "Fit", Values: []string{"Large", "S0"}}, {Name: "Colour", Values: []string{"red"}}})
	doc.Variants.Value[0].Options = []string{"S0", "red"}
	doc.Variants.Value[1].Options = []string{"Large", "red"}
	w.mustPush("1", doc)

	p := w.product("1")
	requireEqual(t, doc, p)
	require.Contains(t, p.Tags, "handpicked")
	require.NotContains(t, p.Tags, "summer")
	by := map[string]string{}
	for _, m := range p.Metafields {
		by[m.Namespace+"."+m.Key] = m.Value
	}
	require.Equal(t, "mine", by["merchant.note"])
	require.Equal(t, "1", by["shelfwire.product_id"])
	require.NotContains(t, by, "pim.material")
	own := 0
	for _, m := range p.Media {
		if m.Source == "https://merchant.example.com/own.jpg" {
			own++
		}
	}
	require.Equal(t, 1, own)
}

func TestVariantsAreAddedRenamedAndRemovedById(t *testing.T) {
	w := newWorld(t)
	doc := shirt(3)
	w.mustPush("1", doc)
	before := map[string]string{}
	for _, v := range w.product("1").Variants {
		before[v.Values[0]] = v.ID
	}
	doc.Options.Value[0].Values = []string{"S0", "Medium", "S3"}
	doc.Variants.Value[1].Options = []string{"Medium"} // renamed
	doc.Variants.Value[2] = document.Variant{          // S2 is gone, S3 new
		Key: "v3", Options: []string{"S3"}, Price: document.Of("5.00"), Stock: document.Of([]document.Level{{Location: "Outlet", Quantity: 3}}),
	}
	w.wire.take()
	w.mustPush("1", doc)
	sent := mutations(w.wire.take())
	require.Len(t, sent, 1)
	require.Equal(t, []string{"productOptionUpdate", "productVariantsBulkDelete", "productVariantsBulkCreate"}, sent[0].roots)
	p := w.product("1")
	requireEqual(t, doc, p)
	for _, v := range p.Variants {
		if v.Values[0] == "Medium" {
			require.Equal(t, before["S1"], v.ID)
		}
	}
}

func TestAProductDeletedInTheShopIsCreatedAgain(t *testing.T) {
	w := newWorld(t)
	doc := shirt(2)
	w.mustPush("1", doc)
	old := w.known["1"].ShopifyID
	w.api(`mutation($id: ID!) { productDelete(input: {id: $id}) { userErrors { message } } }`, map[string]any{"id": old})
	doc.Title = document.Of("Back again")
	w.mustPush("1", doc)
	require.NotEqual(t, old, w.known["1"].ShopifyID)
	requireEqual(t, doc, w.product("1"))
	require.Len(t, w.shop.Products(), 1)
}

func TestAnEmptyStateIsRebuiltFromTheShop(t *testing.T) {
	w := newWorld(t)
	doc := shirt(3)
	w.mustPush("1", doc)
	w.wire.take()
	w.known = map[string]work.Known{}
	r := w.push("1", doc)
	require.Equal(t, event.Skipped, r.Status, "%s %s: %s\n%s", r.Category, r.Reason, r.Message, r.Sent)
	require.Equal(t, shopify.ReasonUnchanged, r.Reason)
	require.Empty(t, mutations(w.wire.take()))
	require.True(t, w.plan("1", doc).Nothing)
	require.Len(t, w.shop.Products(), 1)
}

func TestATakenHandleNamesItsOwner(t *testing.T) {
	w := newWorld(t)
	first := shirt(1)
	first.Handle = document.Of("the-shirt")
	w.mustPush("1", first)
	second := shirt(1)
	second.Handle = document.Of("the-shirt")
	r := w.push("2", second)
	require.Equal(t, event.Failed, r.Status)
	require.Equal(t, event.Duplicate, r.Category)
	require.Contains(t, r.Message, w.known["1"].ShopifyID)
	require.Len(t, w.shop.Products(), 1)
}

func TestOneBadLevelDoesNotHoldTheOthers(t *testing.T) {
	w := newWorld(t)
	var plans []work.Plan
	docs := map[string]*document.Document{}
	for i := range 12 {
		id := fmt.Sprint(i)
		doc := shirt(1)
		w.mustPush(id, doc)
		doc.Variants.Value[0].Stock = document.Of([]document.Level{{Location: "Main", Quantity: 77}})
		docs[id] = doc
	}
	// Product 7 is gone from the shop; a sale has moved the level of product 3.
	w.api(`mutation($id: ID!) { productDelete(input: {id: $id}) { userErrors { message } } }`, map[string]any{"id": w.known["7"].ShopifyID})
	item := w.product("3").Variants[0].InventoryItemID
	w.api(`mutation($i: InventorySetQuantitiesInput!) { inventorySetQuantities(input: $i) @idempotent(key: "sale") { userErrors { message } } }`,
		map[string]any{"i": map[string]any{"name": "available", "reason": "correction", "quantities": []any{
			map[string]any{"inventoryItemId": item, "locationId": w.shop.Locations()[0].ID, "quantity": 1, "changeFromQuantity": 5},
		}}})
	for i := range 12 {
		plans = append(plans, w.plan(fmt.Sprint(i), docs[fmt.Sprint(i)]))
	}
	for _, r := range w.send(plans...) {
		require.Equal(t, event.Success, r.Status, "%s %s: %s\n%s", r.Category, r.Reason, r.Message, r.Sent)
	}
	for id, doc := range docs {
		requireEqual(t, doc, w.product(id))
	}
	require.Len(t, w.shop.Products(), 12)
}

func TestAnUnknownLocationFailsOnlyItsProduct(t *testing.T) {
	w := newWorld(t)
	bad := shirt(1)
	bad.Variants.Value[0].Stock = document.Of([]document.Level{{Location: "Moon", Quantity: 1}})
	results := w.send(w.plan("1", shirt(1)), w.plan("2", bad))
	require.Equal(t, event.Success, results[0].Status)
	require.Equal(t, event.Failed, results[1].Status)
	require.Equal(t, event.Validation, results[1].Category)
	require.Contains(t, results[1].Message, `"Moon"`)
	require.Contains(t, results[1].Message, `"Outlet"`)
}
