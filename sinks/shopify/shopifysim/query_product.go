package shopifysim

import (
	"cmp"
	"slices"
	"strings"
)

func productQueries() fields {
	return fields{
		"product": func(x *execution, _ any, a arguments) (any, error) { return x.products[idOf("Product", a["id"])], nil },
		"productByHandle": func(x *execution, _ any, a arguments) (any, error) {
			return x.products[x.handles[input(a).text("handle")]], nil
		},
		"productByIdentifier": func(x *execution, _ any, a arguments) (any, error) {
			id, err := x.identified("Product", input(a).object("identifier"))
			if err != nil {
				return nil, err
			}
			return x.products[id], nil
		},
		"products": func(x *execution, _ any, a arguments) (any, error) { return page(a, x.foundProducts(a)) },
		"productsCount": func(x *execution, _ any, a arguments) (any, error) {
			return limited(len(x.foundProducts(a)), a), nil
		},
		"productVariant": func(x *execution, _ any, a arguments) (any, error) {
			return x.variants[idOf("ProductVariant", a["id"])], nil
		},
		"productVariantByIdentifier": func(x *execution, _ any, a arguments) (any, error) {
			id, err := x.identified("ProductVariant", input(a).object("identifier"))
			if err != nil {
				return nil, err
			}
			return x.variants[id], nil
		},
		"productVariants": func(x *execution, _ any, a arguments) (any, error) { return page(a, x.foundVariants(a)) },
		// The count ignores its filter: Shopify does, and only warns.
		"productVariantsCount": func(x *execution, _ any, a arguments) (any, error) { return limited(len(x.variants), a), nil },
		"productOperation":     productOperation,
	}
}

// limited renders a count that stops at the limit argument.
func limited(n int, a arguments) record {
	if limit, ok := a["limit"].(int64); ok && int64(n) > limit {
		return record{"count": limit, "precision": "AT_LEAST"}
	}
	return exactly(n)
}

// identified resolves an identifier input to a number; 0 where nothing has it.
func (x *execution) identified(kind string, in input) (int64, error) {
	switch {
	case in.given("id"):
		return idOf(kind, in["id"]), nil
	case in.given("handle"):
		return x.handles[in.text("handle")], nil
	case in.given("customId"):
		c := in.object("customId")
		d := x.definition(ownerTypes[kind], namespaceOf(c), c.text("key"))
		if d == nil || d.kind != "id" {
			return 0, coded("NOT_FOUND", "Metafield definition of type 'id' is required when using custom ids.")
		}
		return x.unique[uniqueKey(kind, namespaceOf(c), c.text("key"), c.text("value"))], nil
	default:
		return 0, nil
	}
}

// foundProducts lists the products of a search, sorted.
func (x *execution) foundProducts(a arguments) []any {
	text, _ := a["query"].(string)
	var list []*product
	if sku, ok := exactSKU(text); ok {
		list = x.productsOfSKU(sku)
	} else {
		q := parseQuery(text)
		list = make([]*product, 0, len(x.order))
		for _, id := range x.order {
			p := x.products[id]
			if strings.TrimSpace(text) == "" || q.matches(func(t term) bool { return x.holdsProduct(p, t) }) {
				list = append(list, p)
			}
		}
	}
	sortProducts(list, a["sortKey"])
	return nodes(list)
}

// exactSKU recognises a search for one SKU, which an index answers.
func exactSKU(text string) (string, bool) {
	q := parseQuery(text)
	if len(q) != 1 || len(q[0]) != 1 || q[0][0].field != "sku" || q[0][0].not || strings.HasSuffix(q[0][0].value, "*") {
		return "", false
	}
	return q[0][0].value, true
}

// productsOfSKU finds products by SKU through the index, which is exact in case; Shopify's search is not, so other
// spellings are looked for when there is no exact one.
func (x *execution) productsOfSKU(sku string) []*product {
	var list []*product
	for _, id := range x.variantsOfSKU(sku) {
		if p := x.variants[id].product; !slices.Contains(list, p) {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b *product) int { return cmp.Compare(a.id, b.id) })
	return list
}

func (x *execution) variantsOfSKU(sku string) []int64 {
	if ids := x.skus[sku]; len(ids) > 0 {
		return ids
	}
	var out []int64
	for have, ids := range x.skus {
		if strings.EqualFold(have, sku) {
			out = append(out, ids...)
		}
	}
	slices.Sort(out)
	return out
}

func sortProducts(list []*product, key any) {
	by := func(less func(a, b *product) int) {
		slices.SortStableFunc(list, func(a, b *product) int { return cmp.Or(less(a, b), cmp.Compare(a.id, b.id)) })
	}
	switch key {
	case "TITLE":
		by(func(a, b *product) int { return strings.Compare(strings.ToLower(a.title), strings.ToLower(b.title)) })
	case "VENDOR":
		by(func(a, b *product) int { return strings.Compare(strings.ToLower(a.vendor), strings.ToLower(b.vendor)) })
	case "PRODUCT_TYPE":
		by(func(a, b *product) int { return strings.Compare(strings.ToLower(a.kind), strings.ToLower(b.kind)) })
	case "UPDATED_AT":
		by(func(a, b *product) int { return a.updatedAt.Compare(b.updatedAt) })
	case "CREATED_AT":
		by(func(a, b *product) int { return a.createdAt.Compare(b.createdAt) })
	case "INVENTORY_TOTAL":
		by(func(a, b *product) int { return cmp.Compare(a.totalInventory(), b.totalInventory()) })
	}
}

// foundVariants lists the variants of a search in the order of their products and positions.
func (x *execution) foundVariants(a arguments) []any {
	text, _ := a["query"].(string)
	if sku, ok := exactSKU(text); ok {
		ids := slices.Clone(x.variantsOfSKU(sku))
		slices.Sort(ids)
		out := make([]any, len(ids))
		for i, id := range ids {
			out[i] = x.variants[id]
		}
		return out
	}
	q := parseQuery(text)
	var list []*variant
	for _, v := range x.variants {
		if strings.TrimSpace(text) == "" || q.matches(func(t term) bool { return x.holdsVariant(v, t) }) {
			list = append(list, v)
		}
	}
	slices.SortFunc(list, func(a, b *variant) int { return cmp.Compare(a.id, b.id) })
	return nodes(list)
}

func inventoryQueries() fields {
	return fields{
		"inventoryItem": func(x *execution, _ any, a arguments) (any, error) {
			return x.items[idOf("InventoryItem", a["id"])], nil
		},
		"inventoryItems": func(x *execution, _ any, a arguments) (any, error) {
			text, _ := a["query"].(string)
			q := parseQuery(text)
			var list []*inventoryItem
			for _, t := range x.items {
				if strings.TrimSpace(text) == "" || q.matches(func(c term) bool { return x.holdsItem(t, c) }) {
					list = append(list, t)
				}
			}
			slices.SortFunc(list, func(a, b *inventoryItem) int { return cmp.Compare(a.id, b.id) })
			return page(a, nodes(list))
		},
		"inventoryLevel": func(x *execution, _ any, a arguments) (any, error) {
			id, _ := a["id"].(string)
			return x.levelByGID(id), nil
		},
	}
}
