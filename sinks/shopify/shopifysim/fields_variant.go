package shopifysim

import (
	"slices"
	"strconv"
	"strings"
)

func variantTypes() map[string]fields {
	return map[string]fields{"ProductVariant": merged(variantFields(), ownedMetafields())}
}

func variantFields() fields {
	return fields{
		"id":                     get(func(v *variant) any { return gid("ProductVariant", v.id) }),
		"legacyResourceId":       get(func(v *variant) any { return strconv.FormatInt(v.id, 10) }),
		"product":                get(func(v *variant) any { return v.product }),
		"title":                  get(func(v *variant) any { return v.title() }),
		"displayName":            get(func(v *variant) any { return v.product.title + " - " + v.title() }),
		"sku":                    get(func(v *variant) any { return v.item.sku }),
		"barcode":                get(func(v *variant) any { return v.barcode }),
		"price":                  get(func(v *variant) any { return v.price }),
		"compareAtPrice":         get(func(v *variant) any { return v.compareAt }),
		"position":               get(func(v *variant) any { return slices.Index(v.product.variants, v) + 1 }),
		"inventoryPolicy":        get(func(v *variant) any { return v.policy }),
		"inventoryQuantity":      get(func(v *variant) any { return v.available() }),
		"sellableOnlineQuantity": get(func(v *variant) any { return v.available() }),
		"inventoryItem":          get(func(v *variant) any { return v.item }),
		"taxable":                get(func(v *variant) any { return v.taxable }),
		"taxCode":                get(func(v *variant) any { return v.taxCode }),
		"showUnitPrice":          get(func(v *variant) any { return v.showUnitPrice }),
		"requiresComponents":     get(func(v *variant) any { return v.requiresComponents }),
		"createdAt":              get(func(v *variant) any { return v.createdAt }),
		"updatedAt":              get(func(v *variant) any { return v.updatedAt }),
		"defaultCursor":          get(func(v *variant) any { return cursor(v) }),
		"availableForSale": get(func(v *variant) any {
			return v.product.status == "ACTIVE" && (!v.item.tracked || v.policy == "CONTINUE" || v.available() > 0)
		}),
		"selectedOptions": get(func(v *variant) any {
			out := make([]any, len(v.values))
			for i, w := range v.values {
				out[i] = record{"name": v.product.options[i].name, "value": w.name, "optionValue": w}
			}
			return out
		}),
		"media": with(func(x *execution, v *variant, a arguments) (any, error) {
			list := []any{}
			for _, id := range v.media {
				if m := x.media[id]; m != nil {
					list = append(list, m)
				}
			}
			return page(a, list)
		}),
		"image": with(func(x *execution, v *variant, _ arguments) (any, error) {
			for _, id := range v.media {
				if m := x.media[id]; m != nil {
					return x.image(m), nil
				}
			}
			return nil, nil
		}),
		"publishedOnPublication": with(func(x *execution, v *variant, a arguments) (any, error) {
			id := idOf("Publication", a["publicationId"])
			at, ok := v.product.publications[id]
			return ok && !at.After(x.now) && !v.unpublished[id], nil
		}),
	}
}

// title joins the variant's option values.
func (v *variant) title() string {
	names := make([]string, len(v.values))
	for i, w := range v.values {
		names[i] = w.name
	}
	return strings.Join(names, " / ")
}

// available sums what may be sold, over all active levels.
func (v *variant) available() int64 {
	var total int64
	for _, l := range v.item.levels {
		if l.active {
			total += l.quantities["available"]
		}
	}
	return total
}
