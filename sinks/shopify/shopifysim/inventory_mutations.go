package shopifysim

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
)

func inventoryMutations() fields {
	return fields{
		"inventorySetQuantities":       inventorySetQuantities,
		"inventoryAdjustQuantities":    inventoryAdjustQuantities,
		"inventorySetOnHandQuantities": inventorySetOnHand,
		"inventoryActivate":            inventoryActivate,
		"inventoryItemUpdate":          inventoryItemUpdate,
		"locationAdd":                  locationAdd,
	}
}

// set changes one quantity of a level; setting on_hand moves available by the same difference.
func (l *level) set(name string, n int64, now time.Time) (delta int64) {
	delta = n - l.quantity(name)
	l.adjust(name, delta, now)
	return delta
}

// adjust adds to one quantity of a level.
func (l *level) adjust(name string, delta int64, now time.Time) {
	if name == "on_hand" {
		name = "available"
	}
	l.quantities[name] += delta
	l.changed[name] = now
	l.updatedAt = now
	l.item.updatedAt = now
}

// idempotent is what is remembered of a key.
type idempotent struct {
	hash   string
	answer any
	at     time.Time
}

// keyLife is how long Shopify remembers a key.
const keyLife = 24 * time.Hour

// once runs a mutation under its @idempotent key: the same key with the same arguments answers what it answered
// before, with other ones an error. Without a key the mutation is refused.
func (x *execution) once(name string, a arguments, run func() (any, error)) (any, error) {
	if !x.keyed || x.key == "" {
		return nil, coded("BAD_REQUEST", "The @idempotent directive is required for this mutation but was not provided.")
	}
	for len(x.keyOrder) > 0 && x.now.Sub(x.keys[x.keyOrder[0]].at) > keyLife {
		delete(x.keys, x.keyOrder[0])
		x.keyOrder = x.keyOrder[1:]
	}
	body, err := json.Marshal(a)
	if err != nil {
		return nil, fmt.Errorf("hash the arguments of %s: %w", name, err)
	}
	sum := sha256.Sum256(append([]byte(name+"\x00"), body...))
	hash := hex.EncodeToString(sum[:])
	if old, ok := x.keys[x.key]; ok {
		if old.hash == hash {
			return old.answer, nil
		}
		var errs userErrors
		errs.add("IDEMPOTENCY_KEY_PARAMETER_MISMATCH", "The same idempotency key cannot be used with different operation parameters.")
		return x.payload(errs, record{"inventoryAdjustmentGroup": nil, "inventoryLevel": nil})
	}
	answer, err := run()
	if err != nil {
		return nil, err
	}
	x.keyOrder = append(x.keyOrder, x.key)
	x.keys[x.key] = idempotent{hash: hash, answer: answer, at: x.now}
	return answer, nil
}

// reasons that inventory changes may give.
var reasons = []string{
	"correction", "cycle_count_available", "damaged", "movement_canceled", "movement_created", "movement_received",
	"movement_updated", "other", "promotion", "quality_control", "received", "reservation_created", "reservation_deleted",
	"reservation_updated", "restock", "safety_stock", "shrinkage",
}

// Bounds of any quantity.
const (
	highest = 1_000_000_000
	lowest  = -1_000_000_000
)

// change is one row of a quantity mutation after its checks.
type change struct {
	level *level
	name  string
	delta int64
}

func inventorySetQuantities(x *execution, _ any, a arguments) (any, error) {
	in := input(a).object("input")
	for _, q := range in.objects("quantities") {
		if !q.has("changeFromQuantity") {
			return nil, coded("INVALID_FIELD_ARGUMENTS", "InventoryQuantityInput must include the following argument: changeFromQuantity.")
		}
	}
	return x.once("inventorySetQuantities", a, func() (any, error) {
		var errs userErrors
		name := in.text("name")
		if name != "available" && name != "on_hand" {
			errs.add("INVALID_NAME", "The quantity name must be either 'available' or 'on_hand'.", "input", "name")
		}
		x.checkReason(in, &errs)
		rows := in.objects("quantities")
		checkPairs(rows, &errs)
		var changes []change
		for i, q := range rows {
			if c, ok := x.setRow(name, q, []any{"input", "quantities", i}, &errs); ok {
				changes = append(changes, c)
			}
		}
		return x.applyChanges(in, changes, errs)
	})
}

func (x *execution) checkReason(in input, errs *userErrors) {
	if !slices.Contains(reasons, in.text("reason")) {
		errs.add("INVALID_REASON", fmt.Sprintf("The specified reason is invalid. Valid values are: %s.", strings.Join(reasons, ", ")), "input", "reason")
	}
	if ref := in.text("referenceDocumentUri"); ref != "" {
		if u, err := url.Parse(ref); err != nil || u.Scheme == "" {
			errs.add("INVALID_REFERENCE_DOCUMENT", "The specified reference document is invalid.", "input", "referenceDocumentUri")
		}
	}
}

// checkPairs refuses a pair of item and location that stands in more than one row; every such row is named.
func checkPairs(rows []input, errs *userErrors) {
	count := map[[2]string]int{}
	key := func(q input) [2]string { return [2]string{q.text("inventoryItemId"), q.text("locationId")} }
	for _, q := range rows {
		count[key(q)]++
	}
	for i, q := range rows {
		if count[key(q)] > 1 {
			errs.add("NO_DUPLICATE_INVENTORY_ITEM_ID_GROUP_ID_PAIR", "The combination of inventoryItemId and locationId must be unique.",
				"input", "quantities", i, "locationId")
		}
	}
}

// setRow checks one row of inventorySetQuantities.
func (x *execution) setRow(name string, q input, path []any, errs *userErrors) (change, bool) {
	n, _ := q["quantity"].(int64)
	before := len(*errs)
	switch {
	case n > highest:
		errs.add("INVALID_QUANTITY_TOO_HIGH", "The quantity can't be higher than 1,000,000,000.", at(path, "quantity")...)
	case n < lowest:
		errs.add("INVALID_QUANTITY_TOO_LOW", "The quantity can't be lower than -1,000,000,000.", at(path, "quantity")...)
	case n < 0 && name == "on_hand":
		errs.add("INVALID_QUANTITY_NEGATIVE", "The quantity can't be negative.", at(path, "quantity")...)
	}
	l := x.changedLevel(q, path, errs)
	if l == nil || len(*errs) > before {
		return change{}, false
	}
	if from, ok := q["changeFromQuantity"].(int64); ok && from != l.quantity(name) {
		errs.add("CHANGE_FROM_QUANTITY_STALE", "The specified compare quantity does not match the current quantity.", at(path, "changeFromQuantity")...)
		return change{}, false
	}
	return change{level: l, name: name, delta: n - l.quantity(name)}, true
}

// changedLevel finds the level that a row is about. An item that was never stocked at the location gets a level, as
// Shopify does since 2026-10 (ITEM_NOT_STOCKED_AT_LOCATION is gone); it becomes the item's only when the call succeeds.
func (x *execution) changedLevel(q input, path []any, errs *userErrors) *level {
	t := x.items[idOf("InventoryItem", q["inventoryItemId"])]
	if t == nil {
		errs.add("INVALID_INVENTORY_ITEM", "The specified inventory item could not be found.", at(path, "inventoryItemId")...)
	} else if t.variant.requiresComponents {
		errs.add("NON_MUTABLE_INVENTORY_ITEM", "The specified inventory item is not allowed to be adjusted via API.", at(path, "inventoryItemId")...)
		t = nil
	}
	l := x.location(q["locationId"])
	if l == nil || !l.active {
		errs.add("INVALID_LOCATION", "The specified location could not be found.", at(path, "locationId")...)
		return nil
	}
	if t == nil {
		return nil
	}
	if v := t.level(l); v != nil {
		return v
	}
	return &level{
		id: x.ids.take(), item: t, location: l, quantities: map[string]int64{}, changed: map[string]time.Time{}, createdAt: x.now, updatedAt: x.now,
	}
}

// applyChanges applies all rows, or none when there is an error, and renders the adjustment group: first the named
// quantity of each row, then on_hand, which follows.
func (x *execution) applyChanges(in input, changes []change, errs userErrors) (any, error) {
	if len(errs) > 0 {
		return x.payload(errs, record{"inventoryAdjustmentGroup": nil})
	}
	var named, total []any
	for _, c := range changes {
		if own := c.level.item.level(c.level.location); own != nil {
			c.level = own
		} else {
			c.level.item.levels = append(c.level.item.levels, c.level)
		}
		c.level.active = true
		if c.delta == 0 {
			continue
		}
		c.level.adjust(c.name, c.delta, x.now)
		row := func(name string) record {
			return record{
				"name": name, "delta": c.delta, "quantityAfterChange": nil, "ledgerDocumentUri": nil,
				"item": c.level.item, "location": c.level.location,
			}
		}
		name := c.name
		if name == "on_hand" {
			name = "available"
		}
		named = append(named, row(name))
		if name != "incoming" {
			total = append(total, row("on_hand"))
		}
	}
	if len(named) == 0 {
		return x.payload(nil, record{"inventoryAdjustmentGroup": nil})
	}
	return x.payload(nil, record{"inventoryAdjustmentGroup": record{
		"id": gid("InventoryAdjustmentGroup", x.ids.take()), "createdAt": x.now, "reason": in.text("reason"),
		"referenceDocumentUri": in.optional("referenceDocumentUri"), "app": nil, "staffMember": nil,
		"changes": append(named, total...),
	}})
}

// adjustable are the quantities that inventoryAdjustQuantities may change.
var adjustable = []string{"available", "damaged", "incoming", "quality_control", "reserved", "safety_stock"}

func inventoryAdjustQuantities(x *execution, _ any, a arguments) (any, error) {
	in := input(a).object("input")
	for _, c := range in.objects("changes") {
		if !c.has("changeFromQuantity") {
			return nil, coded("INVALID_FIELD_ARGUMENTS", "InventoryChangeInput must include the following argument: changeFromQuantity.")
		}
	}
	return x.once("inventoryAdjustQuantities", a, func() (any, error) {
		var errs userErrors
		name := in.text("name")
		if !slices.Contains(adjustable, name) {
			errs.add("INVALID_QUANTITY_NAME", "The specified quantity name is invalid. Valid values are: "+strings.Join(adjustable, ", ")+".", "input", "name")
			return x.applyChanges(in, nil, errs)
		}
		x.checkReason(in, &errs)
		var changes []change
		for i, c := range in.objects("changes") {
			path := []any{"input", "changes", i}
			l := x.changedLevel(c, path, &errs)
			if l == nil {
				continue
			}
			delta, _ := c["delta"].(int64)
			if from, ok := c["changeFromQuantity"].(int64); ok && from != l.quantity(name) {
				errs.add("CHANGE_FROM_QUANTITY_STALE", "The specified compare quantity does not match the current quantity.", at(path, "changeFromQuantity")...)
				continue
			}
			switch after := l.quantity(name) + delta; {
			case after > highest:
				errs.add("INVALID_QUANTITY_TOO_HIGH", "The quantity can't be higher than 1,000,000,000.", at(path, "delta")...)
			case after < lowest:
				errs.add("INVALID_QUANTITY_TOO_LOW", "The quantity can't be lower than -1,000,000,000.", at(path, "delta")...)
			}
			changes = append(changes, change{level: l, name: name, delta: delta})
		}
		return x.applyChanges(in, changes, errs)
	})
}

func inventorySetOnHand(x *execution, _ any, a arguments) (any, error) {
	in := input(a).object("input")
	return x.once("inventorySetOnHandQuantities", a, func() (any, error) {
		var errs userErrors
		x.checkReason(in, &errs)
		var changes []change
		for i, q := range in.objects("setQuantities") {
			if c, ok := x.setRow("on_hand", q, []any{"input", "setQuantities", i}, &errs); ok {
				changes = append(changes, c)
			}
		}
		return x.applyChanges(in, changes, errs)
	})
}

func inventoryActivate(x *execution, _ any, a arguments) (any, error) {
	return x.once("inventoryActivate", a, func() (any, error) {
		var errs userErrors
		in := input(a)
		l := x.location(a["locationId"])
		t := x.items[idOf("InventoryItem", a["inventoryItemId"])]
		switch {
		case l == nil || !l.active:
			errs.add("", "The product couldn't be stocked because the location wasn't found.", "locationId")
		case t == nil:
			errs.add("", "The product couldn't be stocked at "+l.name+" because the product was deleted.", "inventoryItemId")
		case in.given("available") && in.given("onHand"):
			errs.add("", "Cannot set both available and on hand.", "available")
		}
		if len(errs) > 0 {
			return x.payload(errs, record{"inventoryLevel": nil})
		}
		if old := t.level(l); old != nil && old.active && (in.given("available") || in.given("onHand")) {
			errs.add("", "Not allowed to set available quantity when the item is already active at the location.", "available")
			return x.payload(errs, record{"inventoryLevel": nil})
		}
		v := x.stock(t, l)
		if n, ok := in["available"].(int64); ok {
			v.set("available", n, x.now)
		}
		if n, ok := in["onHand"].(int64); ok {
			v.set("on_hand", n, x.now)
		}
		return x.payload(nil, record{"inventoryLevel": v})
	})
}

func inventoryItemUpdate(x *execution, _ any, a arguments) (any, error) {
	var errs userErrors
	t := x.items[idOf("InventoryItem", a["id"])]
	if t == nil {
		errs.add("", "The product couldn't be updated because it does not exist.", "id")
		return x.payload(errs, record{"inventoryItem": nil})
	}
	x.unindexSKU(t.variant)
	x.applyItem(t, input(a).object("input"))
	x.indexSKU(t.variant)
	return x.payload(nil, record{"inventoryItem": t})
}

func locationAdd(x *execution, _ any, a arguments) (any, error) {
	var errs userErrors
	in := input(a).object("input")
	name := strings.TrimSpace(in.text("name"))
	switch {
	case name == "":
		errs.add("BLANK", "Add a location name", "input", "name")
	case slices.ContainsFunc(x.locations, func(l *location) bool { return l.name == name }):
		errs.add("TAKEN", "You already have a location with this name", "input", "name")
	case len(x.locations) >= maxLocations:
		errs.add("INVALID", "Location limit reached", "input")
	}
	if len(errs) > 0 {
		return x.payload(errs, record{"location": nil})
	}
	online, _ := in["fulfillsOnlineOrders"].(bool)
	return x.payload(nil, record{"location": x.addLocation(name, in.object("address"), online)})
}
