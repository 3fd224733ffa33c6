package shopifysim

import (
	"slices"
	"time"
)

// Product is what a shop holds of one product, for audits that must not go through the API that they judge.
type Product struct {
	ID              string               `json:"id"`
	Title           string               `json:"title"`
	Handle          string               `json:"handle"`
	DescriptionHTML string               `json:"description_html"`
	Vendor          string               `json:"vendor"`
	ProductType     string               `json:"product_type"`
	Status          string               `json:"status"`
	Tags            []string             `json:"tags"`
	Category        string               `json:"category"`
	TemplateSuffix  string               `json:"template_suffix"`
	SEOTitle        string               `json:"seo_title"`
	SEODescription  string               `json:"seo_description"`
	Options         []Option             `json:"options"`
	Variants        []Variant            `json:"variants"`
	Media           []Media              `json:"media"`
	Metafields      []Metafield          `json:"metafields"`
	Collections     []string             `json:"collections"`  // global ids
	Publications    map[string]time.Time `json:"publications"` // publication name to publish date
	CreatedAt       time.Time            `json:"created_at"`
	UpdatedAt       time.Time            `json:"updated_at"`
}

// Option is a product option with its values in order.
type Option struct {
	ID     string        `json:"id"`
	Name   string        `json:"name"`
	Values []OptionValue `json:"values"`
}

// OptionValue is one value of an option.
type OptionValue struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// Variant is one variant. Absent texts are empty.
type Variant struct {
	ID              string      `json:"id"`
	InventoryItemID string      `json:"inventory_item_id"`
	Title           string      `json:"title"`
	Values          []string    `json:"values"` // one for each option, in order
	SKU             string      `json:"sku"`
	Barcode         string      `json:"barcode"`
	Price           string      `json:"price"`
	CompareAtPrice  string      `json:"compare_at_price"`
	Cost            string      `json:"cost"`
	InventoryPolicy string      `json:"inventory_policy"`
	Taxable         bool        `json:"taxable"`
	Tracked         bool        `json:"tracked"`
	Shipping        bool        `json:"requires_shipping"`
	Weight          float64     `json:"weight"`
	WeightUnit      string      `json:"weight_unit"`
	Media           []string    `json:"media"` // global ids
	Metafields      []Metafield `json:"metafields"`
	Levels          []Level     `json:"levels"`
}

// Level is the stock of a variant at a location, by quantity name, on_hand included.
type Level struct {
	LocationID string           `json:"location_id"`
	Location   string           `json:"location"`
	Active     bool             `json:"active"`
	Quantities map[string]int64 `json:"quantities"`
}

// Media is a file of a product.
type Media struct {
	ID     string `json:"id"`
	Alt    string `json:"alt"`
	Source string `json:"source"`
	Status string `json:"status"`
}

// Metafield is a metafield of a product or variant.
type Metafield struct {
	Namespace string `json:"namespace"`
	Key       string `json:"key"`
	Type      string `json:"type"`
	Value     string `json:"value"`
}

// Named is a location or publication.
type Named struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// Products returns a copy of all products, in the order of their creation.
func (s *Shop) Products() []Product {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Product, 0, len(s.store.order))
	for _, id := range s.store.order {
		out = append(out, s.store.dump(s.store.products[id]))
	}
	return out
}

// Product returns one product by its global id; false where there is none.
func (s *Shop) Product(id string) (Product, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.store.products[idOf("Product", id)]
	if p == nil {
		return Product{}, false
	}
	return s.store.dump(p), true
}

// Locations returns the shop's locations.
func (s *Shop) Locations() []Named {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Named, len(s.store.locations))
	for i, l := range s.store.locations {
		out[i] = Named{gid("Location", l.id), l.name}
	}
	return out
}

// Publications returns the shop's publications.
func (s *Shop) Publications() []Named {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Named, len(s.store.channels))
	for i, p := range s.store.channels {
		out[i] = Named{gid("Publication", p.id), p.name}
	}
	return out
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func (s *store) dump(p *product) Product {
	out := Product{
		ID: gid("Product", p.id), Title: p.title, Handle: p.handle, DescriptionHTML: p.descriptionHTML, Vendor: p.vendor,
		ProductType: p.kind, Status: p.status, Tags: slices.Clone(p.tags), Category: text(p.category),
		TemplateSuffix: text(p.templateSuffix), SEOTitle: text(p.seoTitle), SEODescription: text(p.seoDescription),
		Metafields: dumpMetafields(p.metafields), Publications: map[string]time.Time{}, CreatedAt: p.createdAt, UpdatedAt: p.updatedAt,
	}
	for _, o := range p.options {
		d := Option{ID: gid("ProductOption", o.id), Name: o.name}
		for _, v := range o.values {
			d.Values = append(d.Values, OptionValue{gid("ProductOptionValue", v.id), v.name})
		}
		out.Options = append(out.Options, d)
	}
	for _, v := range p.variants {
		out.Variants = append(out.Variants, s.dumpVariant(v))
	}
	for _, m := range p.media {
		out.Media = append(out.Media, Media{gid(m.kind, m.id), m.alt, m.source, m.status})
	}
	for _, id := range s.collOrder {
		if slices.Contains(s.collections[id].products, p.id) {
			out.Collections = append(out.Collections, gid("Collection", id))
		}
	}
	for _, c := range s.channels {
		if at, ok := p.publications[c.id]; ok {
			out.Publications[c.name] = at
		}
	}
	return out
}

func (s *store) dumpVariant(v *variant) Variant {
	out := Variant{
		ID: gid("ProductVariant", v.id), InventoryItemID: gid("InventoryItem", v.item.id), Title: v.title(), SKU: text(v.item.sku),
		Barcode: text(v.barcode), Price: v.price, CompareAtPrice: text(v.compareAt), Cost: text(v.item.cost),
		InventoryPolicy: v.policy, Taxable: v.taxable, Tracked: v.item.tracked, Shipping: v.item.requiresShipping,
		Weight: v.item.weight, WeightUnit: v.item.weightUnit, Metafields: dumpMetafields(v.metafields),
	}
	for _, w := range v.values {
		out.Values = append(out.Values, w.name)
	}
	for _, id := range v.media {
		if m := s.media[id]; m != nil {
			out.Media = append(out.Media, gid(m.kind, m.id))
		}
	}
	for _, l := range v.item.levels {
		d := Level{gid("Location", l.location.id), l.location.name, l.active, map[string]int64{}}
		for _, name := range quantityNames {
			d.Quantities[name] = l.quantity(name)
		}
		out.Levels = append(out.Levels, d)
	}
	return out
}

func dumpMetafields(list []*metafield) []Metafield {
	var out []Metafield
	for _, m := range list {
		out = append(out, Metafield{m.namespace, m.key, m.kind, m.value})
	}
	return out
}
