package shopifysim

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

func productTypes() map[string]fields {
	return map[string]fields{
		"Product":            merged(productFields(), productListFields(), publishedFields(), ownedMetafields()),
		"ProductOption":      optionFields(),
		"ProductOptionValue": optionValueFields(),
	}
}

func productFields() fields {
	return fields{
		"id":                     get(func(p *product) any { return gid("Product", p.id) }),
		"legacyResourceId":       get(func(p *product) any { return strconv.FormatInt(p.id, 10) }),
		"title":                  get(func(p *product) any { return p.title }),
		"handle":                 get(func(p *product) any { return p.handle }),
		"descriptionHtml":        get(func(p *product) any { return p.descriptionHTML }),
		"bodyHtml":               get(func(p *product) any { return p.descriptionHTML }),
		"description":            with(productDescription),
		"vendor":                 get(func(p *product) any { return p.vendor }),
		"productType":            get(func(p *product) any { return p.kind }),
		"status":                 get(func(p *product) any { return p.status }),
		"tags":                   get(func(p *product) any { return nodes(p.tags) }),
		"templateSuffix":         get(func(p *product) any { return p.templateSuffix }),
		"giftCardTemplateSuffix": get(func(p *product) any { return p.giftCardTemplateSuffix }),
		"isGiftCard":             get(func(p *product) any { return p.giftCard }),
		"requiresSellingPlan":    get(func(p *product) any { return p.requiresSellingPlan }),
		"createdAt":              get(func(p *product) any { return p.createdAt }),
		"updatedAt":              get(func(p *product) any { return p.updatedAt }),
		"publishedAt":            get(func(p *product) any { return p.publishedAt }),
		"seo": get(func(p *product) any {
			return record{"title": p.seoTitle, "description": p.seoDescription}
		}),
		"category": get(func(p *product) any {
			if p.category == nil {
				return nil
			}
			return record{"id": *p.category}
		}),
		"hasOnlyDefaultVariant": get(func(p *product) any { return p.onlyDefault() }),
		"hasOutOfStockVariants": get(func(p *product) any {
			return slices.ContainsFunc(p.variants, func(v *variant) bool { return v.item.tracked && v.available() <= 0 })
		}),
		"hasVariantsThatRequiresComponents": get(func(p *product) any {
			return slices.ContainsFunc(p.variants, func(v *variant) bool { return v.requiresComponents })
		}),
		"tracksInventory": get(func(p *product) any {
			return slices.ContainsFunc(p.variants, func(v *variant) bool { return v.item.tracked })
		}),
		"totalInventory":      get(func(p *product) any { return p.totalInventory() }),
		"totalVariants":       get(func(p *product) any { return len(p.variants) }),
		"variantsCount":       get(func(p *product) any { return exactly(len(p.variants)) }),
		"mediaCount":          get(func(p *product) any { return exactly(len(p.media)) }),
		"priceRangeV2":        with(func(x *execution, p *product, _ arguments) (any, error) { return x.priceRange(p), nil }),
		"combinedListingRole": get(func(*product) any { return nil }),
		"onlineStoreUrl":      get(func(*product) any { return nil }),
		"defaultCursor":       get(func(p *product) any { return cursor(p) }),
	}
}

// productListFields are the lists below a product.
func productListFields() fields {
	return fields{
		"options": with(func(x *execution, p *product, a arguments) (any, error) {
			x.focus = p
			list := nodes(p.options)
			if n, ok := a["first"].(int64); ok {
				list = list[:min(int64(len(list)), max(n, 0))]
			}
			return list, nil
		}),
		"variants": with(func(_ *execution, p *product, a arguments) (any, error) {
			return pageUpTo(a, nodes(p.variants), maxVariantsPage)
		}),
		"media": with(func(_ *execution, p *product, a arguments) (any, error) { return page(a, nodes(p.media)) }),
		"featuredMedia": get(func(p *product) any {
			if len(p.media) == 0 {
				return nil
			}
			return p.media[0]
		}),
		"featuredImage": with(func(x *execution, p *product, _ arguments) (any, error) {
			for _, m := range p.media {
				if m.kind == "MediaImage" {
					return x.image(m), nil
				}
			}
			return nil, nil
		}),
		"images": with(func(x *execution, p *product, a arguments) (any, error) {
			var list []any
			for _, m := range p.media {
				if r := x.image(m); r != nil {
					list = append(list, r)
				}
			}
			return page(a, list)
		}),
		"collections": with(func(x *execution, p *product, a arguments) (any, error) {
			var list []any
			for _, id := range x.collOrder {
				if c := x.collections[id]; slices.Contains(c.products, p.id) {
					list = append(list, c)
				}
			}
			return page(a, list)
		}),
		"inCollection": with(func(x *execution, p *product, a arguments) (any, error) {
			c := x.collections[idOf("Collection", a["id"])]
			return c != nil && slices.Contains(c.products, p.id), nil
		}),
	}
}

func productDescription(_ *execution, p *product, a arguments) (any, error) {
	s := plainText(p.descriptionHTML)
	if n, ok := a["truncateAt"].(int64); ok {
		if r := []rune(s); int64(len(r)) > n && n >= 0 {
			s = string(r[:n])
		}
	}
	return s, nil
}

// exactly renders a Count.
func exactly(n int) record { return record{"count": n, "precision": "EXACT"} }

// onlyDefault says whether the product has nothing but the variant that every product starts with.
func (p *product) onlyDefault() bool {
	return len(p.variants) == 1 && len(p.options) == 1 && p.options[0].name == defaultOption &&
		len(p.options[0].values) == 1 && p.options[0].values[0].name == defaultValue
}

func (p *product) totalInventory() int64 {
	var total int64
	for _, v := range p.variants {
		if v.item.tracked {
			total += v.available()
		}
	}
	return total
}

func (x *execution) priceRange(p *product) record {
	prices := make([]string, 0, len(p.variants))
	for _, v := range p.variants {
		prices = append(prices, v.price)
	}
	if len(prices) == 0 {
		prices = append(prices, "0.00")
	}
	slices.SortFunc(prices, compareDecimals)
	return record{"minVariantPrice": x.moneyV2(prices[0]), "maxVariantPrice": x.moneyV2(prices[len(prices)-1])}
}

// compareDecimals orders prices, which all have two places.
func compareDecimals(a, b string) int {
	if len(a) != len(b) && !negative(a) && !negative(b) {
		return len(a) - len(b)
	}
	return strings.Compare(a, b)
}

func optionFields() fields {
	return fields{
		"id":              get(func(o *option) any { return gid("ProductOption", o.id) }),
		"name":            get(func(o *option) any { return o.name }),
		"linkedMetafield": get(func(*option) any { return nil }),
		"position": with(func(x *execution, o *option, _ arguments) (any, error) {
			p := x.productOfOption(o.id)
			if p == nil {
				return nil, notFound(gid("ProductOption", o.id))
			}
			return slices.IndexFunc(p.options, func(e *option) bool { return e.id == o.id }) + 1, nil
		}),
		"optionValues": get(func(o *option) any { return nodes(o.values) }),
		"values": with(func(x *execution, o *option, _ arguments) (any, error) {
			out := []any{}
			for _, v := range o.values {
				if x.hasVariants(v) {
					out = append(out, v.name)
				}
			}
			return out, nil
		}),
	}
}

func optionValueFields() fields {
	return fields{
		"id":                   get(func(v *optionValue) any { return gid("ProductOptionValue", v.id) }),
		"name":                 get(func(v *optionValue) any { return v.name }),
		"linkedMetafieldValue": get(func(*optionValue) any { return nil }),
		"swatch":               get(func(*optionValue) any { return nil }),
		"hasVariants": with(func(x *execution, v *optionValue, _ arguments) (any, error) {
			return x.hasVariants(v), nil
		}),
	}
}

// productOfOption finds the product that has an option; only field resolvers ask, so a scan is quick enough.
func (x *execution) productOfOption(id int64) *product {
	if x.focus != nil && slices.ContainsFunc(x.focus.options, func(o *option) bool { return o.id == id }) {
		return x.focus
	}
	for _, p := range x.products {
		if slices.ContainsFunc(p.options, func(o *option) bool { return o.id == id }) {
			x.focus = p
			return p
		}
	}
	return nil
}

func (x *execution) hasVariants(v *optionValue) bool {
	uses := func(p *product) bool {
		return slices.ContainsFunc(p.variants, func(w *variant) bool { return slices.Contains(w.values, v) })
	}
	owns := func(p *product) bool {
		return slices.ContainsFunc(p.options, func(o *option) bool { return slices.Contains(o.values, v) })
	}
	if x.focus != nil && owns(x.focus) {
		return uses(x.focus)
	}
	for _, p := range x.products {
		if owns(p) {
			x.focus = p
			return uses(p)
		}
	}
	return false
}

// publishedFields are those of Publishable, for products and collections.
func publishedFields() fields {
	return fields{
		"publishedOnPublication": func(x *execution, self any, a arguments) (any, error) {
			at, ok := publicationsOf(self)[idOf("Publication", a["publicationId"])]
			return ok && !at.After(x.now), nil
		},
		"publishedOnCurrentPublication": func(x *execution, self any, _ arguments) (any, error) {
			at, ok := publicationsOf(self)[x.channels[0].id]
			return ok && !at.After(x.now), nil
		},
		"resourcePublications":   resourcePublications,
		"resourcePublicationsV2": resourcePublications,
		"unpublishedPublications": func(x *execution, self any, a arguments) (any, error) {
			var list []any
			for _, c := range x.channels {
				if _, ok := publicationsOf(self)[c.id]; !ok {
					list = append(list, c)
				}
			}
			return page(a, list)
		},
		"resourcePublicationsCount": func(x *execution, self any, a arguments) (any, error) {
			return exactly(len(x.publishedTo(self, a))), nil
		},
		"availablePublicationsCount": func(x *execution, _ any, _ arguments) (any, error) {
			return exactly(len(x.channels)), nil
		},
	}
}

func publicationsOf(self any) map[int64]time.Time {
	switch v := self.(type) {
	case *product:
		return v.publications
	case *collection:
		return v.publications
	default:
		return nil
	}
}

func resourcePublications(x *execution, self any, a arguments) (any, error) {
	return page(a, x.publishedTo(self, a))
}

// publishedTo lists where a resource is published, in the order of the shop's publications.
func (x *execution) publishedTo(self any, a arguments) []any {
	only, _ := a["onlyPublished"].(bool)
	list := []any{}
	for _, c := range x.channels {
		at, ok := publicationsOf(self)[c.id]
		now := ok && !at.After(x.now)
		if ok && (now || !only) {
			list = append(list, record{"publication": c, "publishDate": at, "isPublished": now, "publishable": self})
		}
	}
	return list
}
