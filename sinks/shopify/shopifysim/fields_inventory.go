package shopifysim

import (
	"slices"
	"strconv"
)

func inventoryTypes() map[string]fields {
	return map[string]fields{"InventoryItem": itemFields(), "InventoryLevel": levelFields()}
}

func itemFields() fields {
	return fields{
		"id":                   get(func(t *inventoryItem) any { return gid("InventoryItem", t.id) }),
		"legacyResourceId":     get(func(t *inventoryItem) any { return strconv.FormatInt(t.id, 10) }),
		"sku":                  get(func(t *inventoryItem) any { return t.sku }),
		"tracked":              get(func(t *inventoryItem) any { return t.tracked }),
		"trackedEditable":      get(func(*inventoryItem) any { return record{"locked": false, "reason": nil} }),
		"requiresShipping":     get(func(t *inventoryItem) any { return t.requiresShipping }),
		"countryCodeOfOrigin":  get(func(t *inventoryItem) any { return t.country }),
		"provinceCodeOfOrigin": get(func(t *inventoryItem) any { return t.province }),
		"harmonizedSystemCode": get(func(t *inventoryItem) any { return t.harmonizedCode }),
		"createdAt":            get(func(t *inventoryItem) any { return t.createdAt }),
		"updatedAt":            get(func(t *inventoryItem) any { return t.updatedAt }),
		"variant":              get(func(t *inventoryItem) any { return t.variant }),
		"variants": with(func(_ *execution, t *inventoryItem, a arguments) (any, error) {
			return page(a, []any{t.variant})
		}),
		"unitCost": with(func(x *execution, t *inventoryItem, _ arguments) (any, error) {
			if t.cost == nil {
				return nil, nil
			}
			return x.moneyV2(*t.cost), nil
		}),
		"measurement": get(func(t *inventoryItem) any {
			return record{
				"id":     gid("InventoryItemMeasurement", t.id),
				"weight": record{"value": t.weight, "unit": t.weightUnit},
			}
		}),
		"locationsCount": get(func(t *inventoryItem) any { return exactly(len(t.activeLevels(false))) }),
		"duplicateSkuCount": with(func(x *execution, t *inventoryItem, _ arguments) (any, error) {
			if t.sku == nil {
				return 0, nil
			}
			return max(0, len(x.skus[*t.sku])-1), nil
		}),
		"inventoryLevel": with(func(x *execution, t *inventoryItem, a arguments) (any, error) {
			inactive, _ := a["includeInactive"].(bool)
			l := t.level(x.location(a["locationId"]))
			if l == nil || !l.active && !inactive {
				return nil, nil
			}
			return l, nil
		}),
		"inventoryLevels": with(func(x *execution, t *inventoryItem, a arguments) (any, error) {
			inactive, _ := a["includeInactive"].(bool)
			return page(a, x.foundLevels(t.activeLevels(inactive), a))
		}),
	}
}

// activeLevels lists the item's levels; inactive ones only where asked.
func (t *inventoryItem) activeLevels(inactive bool) []*level {
	var out []*level
	for _, l := range t.levels {
		if l.active || inactive {
			out = append(out, l)
		}
	}
	return out
}

// quantityNames are the states of stock that a level counts. on_hand is their sum without incoming.
var quantityNames = []string{
	"available", "on_hand", "committed", "reserved", "damaged", "safety_stock", "quality_control", "incoming",
}

// onHand are the states whose sum is on_hand.
var onHand = []string{"available", "committed", "reserved", "damaged", "safety_stock", "quality_control"}

// quantity returns one state of a level.
func (l *level) quantity(name string) int64 {
	if name != "on_hand" {
		return l.quantities[name]
	}
	var sum int64
	for _, n := range onHand {
		sum += l.quantities[n]
	}
	return sum
}

func levelFields() fields {
	return fields{
		"id":                get(func(l *level) any { return levelGID(l.id, l.item.id) }),
		"item":              get(func(l *level) any { return l.item }),
		"location":          get(func(l *level) any { return l.location }),
		"isActive":          get(func(l *level) any { return l.active }),
		"canDeactivate":     get(func(l *level) any { return l.quantity("on_hand") == 0 && l.quantities["incoming"] == 0 }),
		"deactivationAlert": get(func(*level) any { return nil }),
		"createdAt":         get(func(l *level) any { return l.createdAt }),
		"updatedAt":         get(func(l *level) any { return l.updatedAt }),
		"quantities": with(func(_ *execution, l *level, a arguments) (any, error) {
			out := []any{}
			for _, name := range texts(a["names"]) {
				if !slices.Contains(quantityNames, name) {
					return nil, coded("INVALID_FIELD_ARGUMENTS", "The specified quantity name '"+name+"' is invalid.")
				}
				q := record{
					"id": levelGID(l.id, l.item.id) + "&name=" + name, "name": name, "quantity": l.quantity(name), "updatedAt": nil,
				}
				if at, ok := l.changed[name]; ok {
					q["updatedAt"] = at
				}
				out = append(out, q)
			}
			return out, nil
		}),
	}
}
