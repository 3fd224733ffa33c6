package shopifysim

import (
	"slices"
	"strconv"
	"strings"
)

func collectionTypes() map[string]fields {
	return map[string]fields{"Collection": merged(collectionFields(), publishedFields(), ownedMetafields())}
}

func collectionFields() fields {
	return fields{
		"id":               get(func(c *collection) any { return gid("Collection", c.id) }),
		"legacyResourceId": get(func(c *collection) any { return strconv.FormatInt(c.id, 10) }),
		"title":            get(func(c *collection) any { return c.title }),
		"handle":           get(func(c *collection) any { return c.handle }),
		"descriptionHtml":  get(func(c *collection) any { return c.descriptionHTML }),
		"description":      get(func(c *collection) any { return plainText(c.descriptionHTML) }),
		"updatedAt":        get(func(c *collection) any { return c.updatedAt }),
		"productsCount":    get(func(c *collection) any { return exactly(len(c.products)) }),
		"sortOrder":        get(func(*collection) any { return "BEST_SELLING" }),
		"ruleSet":          get(func(*collection) any { return nil }),
		"products": with(func(x *execution, c *collection, a arguments) (any, error) {
			list := make([]any, len(c.products))
			for i, id := range c.products {
				list[i] = x.products[id]
			}
			return page(a, list)
		}),
		"hasProduct": with(func(_ *execution, c *collection, a arguments) (any, error) {
			id := idOf("Product", a["id"])
			return slices.Contains(c.products, id), nil
		}),
	}
}

func collectionQueries() fields {
	return fields{
		"collection": func(x *execution, _ any, a arguments) (any, error) {
			return x.collections[idOf("Collection", a["id"])], nil
		},
		"collections": func(x *execution, _ any, a arguments) (any, error) {
			return page(a, x.foundCollections(a))
		},
		"collectionsCount": func(x *execution, _ any, a arguments) (any, error) {
			return limited(len(x.foundCollections(a)), a), nil
		},
		"collectionByHandle": func(x *execution, _ any, a arguments) (any, error) {
			return x.collectionByHandle(input(a).text("handle")), nil
		},
		"collectionByIdentifier": func(x *execution, _ any, a arguments) (any, error) {
			in := input(a).object("identifier")
			if in.given("customId") {
				return nil, notImplemented("collections by custom id")
			}
			if in.given("handle") {
				return x.collectionByHandle(in.text("handle")), nil
			}
			return x.collections[idOf("Collection", in["id"])], nil
		},
	}
}

func (x *execution) collectionByHandle(handle string) *collection {
	for _, c := range x.collections {
		if c.handle == handle {
			return c
		}
	}
	return nil
}

// foundCollections lists the collections of a search, sorted.
func (x *execution) foundCollections(a arguments) []any {
	text, _ := a["query"].(string)
	q := parseQuery(text)
	var list []*collection
	for _, id := range x.collOrder {
		c := x.collections[id]
		if strings.TrimSpace(text) == "" || q.matches(func(t term) bool { return x.holdsCollection(c, t) }) {
			list = append(list, c)
		}
	}
	switch a["sortKey"] {
	case "TITLE":
		slices.SortStableFunc(list, func(a, b *collection) int { return strings.Compare(strings.ToLower(a.title), strings.ToLower(b.title)) })
	case "UPDATED_AT":
		slices.SortStableFunc(list, func(a, b *collection) int { return a.updatedAt.Compare(b.updatedAt) })
	}
	return nodes(list)
}

func (x *execution) holdsCollection(c *collection, t term) bool {
	switch t.field {
	case "", "title":
		return hasWord(c.title, t.value)
	case "handle":
		return equal(c.handle, t.value)
	case "id":
		return compareNumber(c.id, t)
	case "collection_type":
		return equal("custom", t.value)
	case "product_id":
		return slices.ContainsFunc(c.products, func(id int64) bool { return compareNumber(id, t) })
	case "updated_at":
		return compareTime(c.updatedAt, x.now, t)
	default:
		return !t.not
	}
}
