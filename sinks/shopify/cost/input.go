package cost

import "strings"

// Points that do not depend on the document.
const (
	mutationPoints   = 10
	connectionPoints = 2
	rootCountPoints  = 10
)

// free are the value objects that Shopify does not charge for (measured on recordings; SEO, alike, costs 1).
var free = map[string]bool{
	"MoneyV2": true, "MoneyBag": true, "ShopAddress": true, "LocationAddress": true, "InventoryItemMeasurement": true,
	"Weight": true, "EditableProperty": true, "CurrencyFormats": true, "PageInfo": true,
	"CollectionRuleSet": true, "CollectionRule": true,
}

// dear are scalar or count fields that cost points of their own, because Shopify computes them by a query.
var dear = map[string]float64{
	"Location.hasUnfulfilledOrders": 1, "Publication.includedProductsCount": 10, "Blog.articlesCount": 10,
	"Article.commentsCount": 10,
}

// Input weights in points per element, from the complexity notes in Shopify's schema descriptions and its changelogs.
const (
	// PerVariant and PerVariantMetafield are what callers split lists of new variants by.
	PerVariant          = 0.2
	perVariantFile      = 0.6
	PerVariantMetafield = 0.4
	perProductMetafield = 0.4
	perProductFile      = 1.9
)

// fixed are mutations whose base is not 10.
var fixed = map[string]float64{
	"productCreateMedia": 20, "fileCreate": 20, "deliveryProfileUpdate": 100, "deliveryProfileCreate": 100, "flowTriggerReceive": 1,
}

// ownerWeights are what metafieldsSet charges for each distinct owner (since 2026-09-15, all versions). Owner types
// that are not listed cost nothing.
var ownerWeights = map[string]float64{
	"Order": 10, "Product": 4, "ProductVariant": 2, "Collection": 1, "Customer": 1, "Shop": 1,
}

// inputPoints returns a mutation's fixed and input points, unrounded.
func inputPoints(mutation string, args map[string]any) float64 {
	points := float64(mutationPoints)
	if base, ok := fixed[mutation]; ok {
		points = base
	}
	switch mutation {
	case "productSet":
		points += productPoints(object(args["input"]), true)
	case "productCreate", "productUpdate":
		in := object(args["product"])
		if in == nil {
			in = object(args["input"])
		}
		points += productPoints(in, false)
		points += perProductFile * float64(len(list(args["media"])))
	case "productVariantsBulkCreate", "productVariantsBulkUpdate":
		points += variantPoints(list(args["variants"]))
		points += perProductFile * float64(len(list(args["media"])))
	case "metafieldsSet":
		points += ownerPoints(list(args["metafields"]))
	}
	return points
}

// productPoints charges a product input; its variants and files only where the mutation takes them.
func productPoints(in map[string]any, deep bool) float64 {
	points := perProductMetafield * float64(len(list(in["metafields"])))
	if deep {
		points += perProductFile * float64(len(list(in["files"])))
		points += variantPoints(list(in["variants"]))
	}
	return points
}

func variantPoints(variants []any) float64 {
	points := PerVariant * float64(len(variants))
	for _, v := range variants {
		in := object(v)
		points += PerVariantMetafield * float64(len(list(in["metafields"])))
		if in["file"] != nil {
			points += perVariantFile
		}
	}
	return points
}

// ownerPoints charges metafieldsSet once for each distinct owner.
func ownerPoints(metafields []any) float64 {
	points := 0.0
	seen := map[string]bool{}
	for _, m := range metafields {
		id, _ := object(m)["ownerId"].(string)
		if id == "" || seen[id] {
			continue
		}
		seen[id] = true
		if kind, ok := strings.CutPrefix(id, "gid://shopify/"); ok {
			kind, _, _ = strings.Cut(kind, "/")
			points += ownerWeights[kind]
		}
	}
	return points
}

func object(v any) map[string]any {
	m, _ := v.(map[string]any)
	return m
}

// list reads a list value; a single value given for a list counts as one, as GraphQL coerces it.
func list(v any) []any {
	switch v := v.(type) {
	case nil:
		return nil
	case []any:
		return v
	default:
		return []any{v}
	}
}
