package shopifysim

import "strconv"

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
			for _, p := range c.products {
				if p == id {
					return true, nil
				}
			}
			return false, nil
		}),
	}
}

func collectionQueries() fields {
	return fields{
		"collection": func(x *execution, _ any, a arguments) (any, error) {
			return x.store.collections[idOf("Collection", a["id"])], nil
		},
		"collections": func(x *execution, _ any, a arguments) (any, error) {
			list := make([]any, len(x.collOrder))
			for i, id := range x.collOrder {
				list[i] = x.store.collections[id]
			}
			return page(a, list)
		},
		"collectionsCount": func(x *execution, _ any, _ arguments) (any, error) { return exactly(len(x.collOrder)), nil },
	}
}
