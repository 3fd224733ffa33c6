package shopifysim_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const setQuantitiesDoc = `mutation($in: InventorySetQuantitiesInput!, $key: String!) {
	inventorySetQuantities(input: $in) @idempotent(key: $key) { inventoryAdjustmentGroup { changes { name delta } } userErrors { code field message } }
}`

// row is a row of inventorySetQuantities; from nil writes blindly.
func (b *bench) row(variant, location int, n int, from any) vars {
	return vars{
		"inventoryItemId": b.shop.Products()[0].Variants[variant].InventoryItemID,
		"locationId":      b.shop.Locations()[location].ID, "quantity": n, "changeFromQuantity": from,
	}
}

func (b *bench) quantities(name string, rows ...any) vars {
	return vars{"key": b.key(), "in": vars{"name": name, "reason": "correction", "quantities": rows}}
}

func (b *bench) stock(variant int, name string) int64 {
	return b.shop.Products()[0].Variants[variant].Levels[0].Quantities[name]
}

func TestSetQuantitiesComparesAndIsAtomic(t *testing.T) {
	b := newBench(t)
	b.newTee("Tee")
	b.ok(setQuantitiesDoc, b.quantities("available", b.row(0, 0, 9, 5), b.row(1, 0, 1, nil)))
	require.EqualValues(t, 9, b.stock(0, "available"))
	errs := b.refused(setQuantitiesDoc, b.quantities("available", b.row(0, 0, 2, 9), b.row(1, 0, 2, 7)), "CHANGE_FROM_QUANTITY_STALE")
	require.Equal(t, []any{"input", "quantities", "1", "changeFromQuantity"}, dig(errs[0], "field"))
	require.EqualValues(t, 9, b.stock(0, "available"), "one bad row fails all")
}

func TestSetQuantitiesMustSayWhatItChangesFrom(t *testing.T) {
	b := newBench(t)
	b.newTee("Tee")
	row := b.row(0, 0, 1, nil)
	delete(row, "changeFromQuantity")
	a := b.post(setQuantitiesDoc, b.quantities("available", row))
	require.Equal(t, "INVALID_FIELD_ARGUMENTS", dig(a.Errors[0], "extensions", "code"))
	require.Equal(t, "InventoryQuantityInput must include the following argument: changeFromQuantity.", a.Errors[0]["message"])
	row["compareQuantity"] = 1
	a = b.post(setQuantitiesDoc, b.quantities("available", row))
	require.Equal(t, "INVALID_VARIABLE", dig(a.Errors[0], "extensions", "code"), "the field of older versions is gone")
}

func TestSetQuantitiesNeedsAnIdempotencyKey(t *testing.T) {
	b := newBench(t)
	b.newTee("Tee")
	in := b.quantities("available", b.row(0, 0, 1, nil))["in"]
	a := b.post(`mutation($in: InventorySetQuantitiesInput!) { inventorySetQuantities(input: $in) { userErrors { code } } }`, vars{"in": in})
	require.Equal(t, "BAD_REQUEST", dig(a.Errors[0], "extensions", "code"))
	require.Equal(t, "The @idempotent directive is required for this mutation but was not provided.", a.Errors[0]["message"])
	require.EqualValues(t, 10, dig(a.Extensions, "cost", "requestedQueryCost"))
}

func TestIdempotencyKeysAreRememberedForADay(t *testing.T) {
	b := newBench(t)
	b.newTee("Tee")
	v := b.quantities("available", b.row(0, 0, 9, 5))
	first := b.ok(setQuantitiesDoc, v)
	require.Equal(t, first, b.ok(setQuantitiesDoc, v), "a repeat is answered as before and changes nothing")
	other := b.quantities("available", b.row(0, 0, 8, 9))
	other["key"] = v["key"]
	b.refused(setQuantitiesDoc, other, "IDEMPOTENCY_KEY_PARAMETER_MISMATCH")
	require.EqualValues(t, 9, b.stock(0, "available"))
	b.now = b.now.Add(25 * time.Hour)
	b.ok(setQuantitiesDoc, other)
	require.EqualValues(t, 8, b.stock(0, "available"))
}

func TestOnHandIsTheSumAndMovesAvailable(t *testing.T) {
	b := newBench(t)
	b.newTee("Tee")
	out := b.ok(`mutation($in: InventoryAdjustQuantitiesInput!, $key: String!) { inventoryAdjustQuantities(input: $in) @idempotent(key: $key) { inventoryAdjustmentGroup { changes { name delta } } userErrors { code field message } } }`,
		vars{"key": b.key(), "in": vars{"name": "damaged", "reason": "damaged", "changes": []any{vars{
			"inventoryItemId": b.shop.Products()[0].Variants[0].InventoryItemID, "locationId": b.shop.Locations()[0].ID, "delta": 2, "changeFromQuantity": nil,
		}}}})
	require.Len(t, dig(out, "inventoryAdjustmentGroup", "changes"), 2)
	require.EqualValues(t, 7, b.stock(0, "on_hand"))
	b.ok(setQuantitiesDoc, b.quantities("on_hand", b.row(0, 0, 10, 7)))
	require.EqualValues(t, 8, b.stock(0, "available"))
	require.EqualValues(t, 2, b.stock(0, "damaged"))
}

func TestSetQuantitiesRefusals(t *testing.T) {
	b := newBench(t)
	b.newTee("Tee")
	unknownItem, unknownPlace := b.row(0, 0, 1, nil), b.row(0, 0, 1, nil)
	unknownItem["inventoryItemId"] = "gid://shopify/InventoryItem/1"
	unknownPlace["locationId"] = "gid://shopify/Location/1"
	b.refused(setQuantitiesDoc, b.quantities("available", unknownItem), "INVALID_INVENTORY_ITEM")
	b.refused(setQuantitiesDoc, b.quantities("available", unknownPlace), "INVALID_LOCATION")
	b.refused(setQuantitiesDoc, b.quantities("damaged", b.row(0, 0, 1, nil)), "INVALID_NAME")
	b.refused(setQuantitiesDoc, b.quantities("on_hand", b.row(0, 0, -1, nil)), "INVALID_QUANTITY_NEGATIVE")
	b.refused(setQuantitiesDoc, b.quantities("available", b.row(0, 0, 1_000_000_001, nil)), "INVALID_QUANTITY_TOO_HIGH")
	b.refused(setQuantitiesDoc, b.quantities("available", b.row(0, 0, -1_000_000_001, nil)), "INVALID_QUANTITY_TOO_LOW")
	b.refused(setQuantitiesDoc, b.quantities("available", b.row(0, 0, 1, nil), b.row(0, 0, 2, nil)),
		"NO_DUPLICATE_INVENTORY_ITEM_ID_GROUP_ID_PAIR", "NO_DUPLICATE_INVENTORY_ITEM_ID_GROUP_ID_PAIR")
	bad := b.quantities("available", b.row(0, 0, 1, nil))
	bad["in"].(vars)["reason"] = "because"
	b.refused(setQuantitiesDoc, bad, "INVALID_REASON")
	bad = b.quantities("available", b.row(0, 0, 1, nil))
	bad["in"].(vars)["referenceDocumentUri"] = "no uri"
	b.refused(setQuantitiesDoc, bad, "INVALID_REFERENCE_DOCUMENT")
	require.EqualValues(t, 5, b.stock(0, "available"))
}

func TestInventoryActivateStocksAnItemAtALocation(t *testing.T) {
	b := newBench(t)
	b.newTee("Tee")
	const doc = `mutation($i: ID!, $l: ID!, $n: Int, $key: String!) { inventoryActivate(inventoryItemId: $i, locationId: $l, available: $n) @idempotent(key: $key) { inventoryLevel { id isActive quantities(names: ["available"]) { quantity } } userErrors { field message } } }`
	item := b.shop.Products()[0].Variants[0].InventoryItemID
	v := vars{"i": item, "l": b.shop.Locations()[1].ID, "n": 4, "key": b.key()}
	out := b.ok(doc, v)
	require.EqualValues(t, 4, dig(out, "inventoryLevel", "quantities", 0, "quantity"))
	require.Contains(t, dig(out, "inventoryLevel", "id"), "?inventory_item_id=")
	v["key"] = b.key()
	require.NotEmpty(t, b.do(doc, v)["userErrors"], "an active level takes no first quantity")
	bad := b.do(doc, vars{"i": "gid://shopify/InventoryItem/999999999999999", "l": v["l"], "key": b.key()})
	require.Equal(t, "The product couldn't be stocked at Annex because the product was deleted.", dig(bad, "userErrors", 0, "message"))
}
