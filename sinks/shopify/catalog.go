package shopify

import (
	"context"
	"fmt"
	"time"

	"github.com/shelfwire/shelfwire/schemas/work"
)

// ShopProduct is a product as a shop has it, for the audit: read by queries of its own and not by the planner's code.
type ShopProduct struct {
	// ProductID is the source's id, from our metafield; empty for a product that is not ours.
	ProductID       string
	ID              string // gid
	Handle          string
	Status          string // ACTIVE, DRAFT, ARCHIVED, UNLISTED
	Title           string
	DescriptionHTML string
	Vendor          string
	ProductType     string
	SEOTitle        string
	SEODescription  string
	Tags            []string
	Options         []ShopOption
	Variants        []ShopVariant
	// Metafields are the first 250 of the product, by "namespace.key".
	Metafields map[string]ShopMetafield
	Images     []ShopImage // the first 20
	// Publications are the names of the channels that the product is published to.
	Publications []string
}

// ShopOption is an option with the values that variants have, in the shop's order.
type ShopOption struct {
	Name   string
	Values []string
}

// ShopVariant is one variant. Cleared texts and amounts are empty.
type ShopVariant struct {
	ID string // gid
	// Key is the document's key; empty for a variant that is not ours.
	Key              string
	Options          []string
	SKU              string
	Barcode          string
	Price            string
	CompareAtPrice   string
	Cost             string
	Policy           string
	Taxable          bool
	Tracked          bool
	RequiresShipping bool
	WeightGrams      float64
	Levels           []ShopLevel
}

// ShopLevel is the stock at one location.
type ShopLevel struct {
	Location  string // name
	Available int
	OnHand    int
}

// ShopMetafield is a metafield's type and value.
type ShopMetafield struct{ Type, Value string }

// ShopImage is a medium of a product.
type ShopImage struct {
	ID     string // gid
	Alt    string
	Status string // READY, PROCESSING, FAILED, UPLOADED
	URL    string // of the shop's copy; empty until it is processed
}

// Pages of the catalog: 10 products with 20 variants each; the variants beyond are read by
// product.
const (
	catalogProducts = 10
	catalogVariants = 20
	catalogRest     = 100
)

// ReadCatalog reads all products of a shop that carry our custom id and yields them one by one, until yield returns
// false. It pays from the shared budget in the lowest lane and keeps one page in memory.
func (s *Shops) ReadCatalog(ctx context.Context, shop string, yield func(ShopProduct) bool) error {
	sh := s.shops[shop]
	if sh == nil {
		return fmt.Errorf("read the catalog: no shop %q is configured", shop)
	}
	set, f := s.learnSettings(ctx, sh, work.LaneCampaign, true)
	for attempt := 2; f != nil && !f.final && attempt <= catalogAttempts && pause(ctx, 100*time.Millisecond<<attempt); attempt++ {
		set, f = s.learnSettings(ctx, sh, work.LaneCampaign, true)
	}
	if f != nil {
		return fmt.Errorf("read the catalog of %s: %w", shop, f)
	}
	r := &catalogReader{shops: s, shop: sh, set: set}
	after := ""
	for page := 1; ; page++ {
		fields, f := r.query(ctx, newOp("catalog", r.vars(map[string]any{"first": catalogProducts, "variants": catalogVariants}, after)))
		if f != nil {
			return fmt.Errorf("read page %d of the catalog of %s: %w", page, shop, f)
		}
		for _, n := range list(fields["nodes"]) {
			node := object(n)
			if text(object(node["custom"])["value"]) == "" {
				continue
			}
			p, f := r.product(ctx, node)
			if f != nil {
				return fmt.Errorf("read product %s of %s: %w", text(node["id"]), shop, f)
			}
			if !yield(p) {
				return nil
			}
		}
		info := object(fields["pageInfo"])
		next := text(info["endCursor"])
		if !truth(info["hasNextPage"]) || next == "" || next == after {
			return nil
		}
		after = next
	}
}

type catalogReader struct {
	shops *Shops
	shop  *shop
	set   *settings
}

// vars completes the variables that both queries of the catalog take.
func (r *catalogReader) vars(vars map[string]any, after string) map[string]any {
	vars["namespace"], vars["variantKey"] = r.shop.cfg.Namespace, variantKey
	vars["levels"] = max(1, min(maxInputRows, len(r.set.locations)))
	if after != "" {
		vars["after"] = after
	}
	if _, all := vars["first"]; all {
		vars["key"], vars["metafields"] = r.shop.cfg.Key, maxInputRows
		vars["publications"] = max(1, min(50, len(r.set.publications)))
	}
	return vars
}

// catalogAttempts is how often a page is asked for. A catalog has thousands of pages: one that fails now and then must
// not end the reading.
const catalogAttempts = 6

func (r *catalogReader) query(ctx context.Context, o *op) (map[string]any, *failure) {
	for attempt := 1; ; attempt++ {
		fields, f := r.shops.query(ctx, r.shop, work.LaneCampaign, []*op{o})
		switch {
		case f == nil:
			return fields[0], nil
		case f.final || attempt == catalogAttempts || !pause(ctx, 100*time.Millisecond<<attempt):
			return nil, f
		}
	}
}

func (r *catalogReader) product(ctx context.Context, node map[string]any) (ShopProduct, *failure) {
	p := ShopProduct{
		ProductID: text(object(node["custom"])["value"]), ID: text(node["id"]), Handle: text(node["handle"]),
		Status: text(node["status"]), Title: text(node["title"]), DescriptionHTML: text(node["descriptionHtml"]),
		Vendor: text(node["vendor"]), ProductType: text(node["productType"]), SEOTitle: text(object(node["seo"])["title"]),
		SEODescription: text(object(node["seo"])["description"]), Metafields: map[string]ShopMetafield{},
	}
	for _, t := range list(node["tags"]) {
		p.Tags = append(p.Tags, text(t))
	}
	for _, o := range list(node["options"]) {
		option := ShopOption{Name: text(object(o)["name"])}
		for _, v := range list(object(o)["values"]) {
			option.Values = append(option.Values, text(v))
		}
		p.Options = append(p.Options, option)
	}
	for _, m := range list(object(node["metafields"])["nodes"]) {
		field := object(m)
		p.Metafields[text(field["namespace"])+"."+text(field["key"])] = ShopMetafield{text(field["type"]), text(field["value"])}
	}
	for _, m := range list(object(node["media"])["nodes"]) {
		medium := object(m)
		p.Images = append(p.Images, ShopImage{
			ID: text(medium["id"]), Alt: text(medium["alt"]), Status: text(medium["status"]), URL: text(object(medium["image"])["url"]),
		})
	}
	for _, n := range list(object(node["resourcePublicationsV2"])["nodes"]) {
		if name := r.set.channels[text(object(object(n)["publication"])["id"])]; name != "" && truth(object(n)["isPublished"]) {
			p.Publications = append(p.Publications, name)
		}
	}
	return p, r.variants(ctx, &p, object(node["variants"]))
}

// variants takes the first page of a product's variants and reads the others.
func (r *catalogReader) variants(ctx context.Context, p *ShopProduct, page map[string]any) *failure {
	after := ""
	for {
		for _, n := range list(page["nodes"]) {
			p.Variants = append(p.Variants, r.variant(object(n)))
		}
		info := object(page["pageInfo"])
		next := text(info["endCursor"])
		if !truth(info["hasNextPage"]) || next == "" || next == after {
			return nil
		}
		after = next
		fields, f := r.query(ctx, newOp("catalogVariants", r.vars(map[string]any{"id": p.ID, "variants": catalogRest}, after)))
		if f != nil {
			return f
		}
		page = object(fields["variants"]) // empty where the product was deleted meanwhile
	}
}

func (r *catalogReader) variant(node map[string]any) ShopVariant {
	item := object(node["inventoryItem"])
	weight := object(object(item["measurement"])["weight"])
	v := ShopVariant{
		ID: text(node["id"]), Key: text(object(node["ours"])["value"]), SKU: text(item["sku"]), Barcode: text(node["barcode"]),
		Price: text(node["price"]), CompareAtPrice: text(node["compareAtPrice"]), Cost: text(object(item["unitCost"])["amount"]),
		Policy: text(node["inventoryPolicy"]), Taxable: truth(node["taxable"]), Tracked: truth(item["tracked"]),
		RequiresShipping: truth(item["requiresShipping"]), WeightGrams: grams(number(weight["value"]), text(weight["unit"])),
	}
	for _, o := range list(node["selectedOptions"]) {
		v.Options = append(v.Options, text(object(o)["value"]))
	}
	for _, n := range list(object(item["inventoryLevels"])["nodes"]) {
		level := ShopLevel{Location: r.set.names[text(object(object(n)["location"])["id"])]}
		for _, q := range list(object(n)["quantities"]) {
			amount := int(number(object(q)["quantity"]))
			switch text(object(q)["name"]) {
			case available:
				level.Available = amount
			case onHand:
				level.OnHand = amount
			}
		}
		v.Levels = append(v.Levels, level)
	}
	return v
}
