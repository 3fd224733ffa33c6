// Package audit compares what the shops have with what the source says they shall have. It shares no code with the
// planner: it asks the source for every product by its own SQL, reads the shops' catalogs, and compares field by
// field, so that a mistake of the planner shows as drift and not as agreement.
package audit

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/shelfwire/shelfwire/schemas/document"
)

// Kind is what differs.
type Kind string

// The kinds of drift.
const (
	Missing        Kind = "MISSING"         // eligible, and the shop has none
	Duplicate      Kind = "DUPLICATE"       // the shop has more than one for one product of the source
	OnSale         Kind = "ON_SALE"         // not eligible or gone from the source, and yet ACTIVE
	OffSale        Kind = "OFF_SALE"        // eligible, and not ACTIVE
	Field          Kind = "FIELD"           // title, description, vendor, type, handle, SEO
	Tag            Kind = "TAG"             // an owned tag is missing
	Options        Kind = "OPTIONS"         //
	VariantMissing Kind = "VARIANT_MISSING" //
	VariantExtra   Kind = "VARIANT_EXTRA"   //
	VariantField   Kind = "VARIANT_FIELD"   // SKU, barcode
	Price          Kind = "PRICE"           // price or compare-at price
	Stock          Kind = "STOCK"           //
	MetafieldDiff  Kind = "METAFIELD"       //
	Publication    Kind = "PUBLICATION"     // not published where it should be
)

// Drift is one difference.
type Drift struct {
	Shop      string `json:"shop"`
	ProductID string `json:"product_id"`
	Kind      Kind   `json:"kind"`
	// Field names what differs: "title", "variant 17 price", "variant 17 stock at Berlin".
	Field string `json:"field"`
	Want  string `json:"want"`
	Have  string `json:"have"`
}

// Report is the result of an audit. Drifts may be many; the counts say how much was compared at all.
type Report struct {
	Shops    int     `json:"shops"`
	Products int     `json:"products"` // (product, shop) pairs compared
	Variants int     `json:"variants"`
	Prices   int     `json:"prices"`
	Levels   int     `json:"levels"`
	Foreign  int     `json:"foreign"` // products of the shops that are not ours; left alone
	Drifts   []Drift `json:"drifts"`
	// Excluded and Cancelled are differences that people wanted: of products that they keep from being pushed, and of
	// those whose push they have cancelled. They are no drift.
	Excluded  []Drift `json:"excluded"`
	Cancelled []Drift `json:"cancelled"`
}

// SetAside takes those of Drifts out that somebody wanted, and returns them.
func (r *Report) SetAside(wanted func(Drift) bool) []Drift {
	aside, left := []Drift{}, []Drift{}
	for _, d := range r.Drifts {
		if wanted(d) {
			aside = append(aside, d)
			continue
		}
		left = append(left, d)
	}
	r.Drifts = left
	return aside
}

// Clean reports whether something was compared and nothing differed. An audit that compares nothing proves nothing.
func (r *Report) Clean() bool { return r.Products > 0 && r.Prices > 0 && len(r.Drifts) == 0 }

// Product is a product as a shop has it.
type Product struct {
	ID string
	// ProductID is the source's id; empty for a product that is not ours.
	ProductID       string
	Status          string // ACTIVE, DRAFT, ARCHIVED, UNLISTED
	Title           string
	DescriptionHTML string
	Vendor          string
	ProductType     string
	Handle          string
	SEOTitle        string
	SEODescription  string
	Tags            []string
	Options         []document.Option
	Variants        []Variant
	Metafields      map[string]string // "namespace.key" to value
	Publications    []string          // names of the publications it is published to
}

// Variant is a variant as a shop has it.
type Variant struct {
	ID string
	// Key is the document's key of the variant; empty for one that is not ours.
	Key            string
	Options        []string
	SKU            string
	Barcode        string
	Price          string
	CompareAtPrice string // empty for none
	// Levels are by location name, then by quantity name.
	Levels map[string]map[string]int
}

// Source says what the shops shall have; connectors/postgres stands behind it.
type Source interface {
	// ProductIDs returns at most n ids after the given one, in ascending byte order.
	ProductIDs(ctx context.Context, after string, n int) ([]string, error)
	Documents(ctx context.Context, ids []string) ([]document.Row, error)
}

// Shops reads what the shops have; sinks/shopify stands behind it.
type Shops interface {
	Names() []string
	// Products calls yield for every product of a shop until it returns false.
	Products(ctx context.Context, shop string, yield func(Product) bool) error
}

// Run audits all shops. only narrows it to some products; nil means all.
func Run(ctx context.Context, source Source, shops Shops, only []string) (*Report, error) {
	r := &Report{Drifts: []Drift{}, Excluded: []Drift{}, Cancelled: []Drift{}}
	catalogs := map[string]map[string]*Product{}
	for _, shop := range shops.Names() {
		r.Shops++
		cat, err := r.catalog(ctx, shops, shop, only)
		if err != nil {
			return nil, err // it names the shop
		}
		catalogs[shop] = cat
	}
	if err := r.source(ctx, source, catalogs, only); err != nil {
		return nil, err
	}
	for shop, cat := range catalogs { // what is left belongs to nothing in the source
		for id, p := range cat {
			r.offSale(shop, id, p, "gone from the source")
		}
	}
	slices.SortFunc(r.Drifts, func(a, b Drift) int {
		return cmp.Or(cmp.Compare(a.Shop, b.Shop), cmp.Compare(a.ProductID, b.ProductID), cmp.Compare(a.Field, b.Field))
	})
	return r, nil
}

func (r *Report) catalog(ctx context.Context, shops Shops, shop string, only []string) (map[string]*Product, error) {
	cat := map[string]*Product{}
	err := shops.Products(ctx, shop, func(p Product) bool {
		switch {
		case p.ProductID == "":
			r.Foreign++
		case only != nil && !slices.Contains(only, p.ProductID):
		case cat[p.ProductID] != nil:
			r.drift(shop, p.ProductID, Duplicate, "product", cat[p.ProductID].ID, p.ID)
		default:
			cat[p.ProductID] = &p
		}
		return true
	})
	return cat, err
}

// source goes through all products of the source, a page at a time, and takes what it compares out of the catalogs.
func (r *Report) source(ctx context.Context, source Source, catalogs map[string]map[string]*Product, only []string) error {
	const page = 500
	for after := ""; ; {
		ids := only
		if only == nil {
			var err error
			if ids, err = source.ProductIDs(ctx, after, page); err != nil {
				return fmt.Errorf("list the products of the source: %w", err)
			}
		}
		if len(ids) == 0 {
			return nil
		}
		rows, err := source.Documents(ctx, ids)
		if err != nil {
			return fmt.Errorf("read documents: %w", err)
		}
		for _, row := range rows {
			cat, ok := catalogs[row.Shop]
			if !ok {
				continue // no shop, or one that is not audited
			}
			d, err := document.Parse(row.Document)
			if err != nil {
				r.drift(row.Shop, row.ProductID, Field, "document", "a valid document", err.Error())
			} else {
				r.product(row.Shop, row.ProductID, &d, cat[row.ProductID])
			}
			delete(cat, row.ProductID)
		}
		if only != nil {
			return nil
		}
		after = ids[len(ids)-1]
	}
}

func (r *Report) drift(shop, product string, kind Kind, field, want, have string) {
	r.Drifts = append(r.Drifts, Drift{Shop: shop, ProductID: product, Kind: kind, Field: field, Want: want, Have: have})
}

func (r *Report) offSale(shop, id string, p *Product, why string) {
	r.Products++
	if p.Status == "ACTIVE" {
		r.drift(shop, id, OnSale, "status", "not ACTIVE: "+why, p.Status)
	}
}

// product compares one product in one shop.
func (r *Report) product(shop, id string, d *document.Document, p *Product) {
	switch {
	case p == nil && !d.Eligible:
		return
	case p == nil:
		r.Products++
		r.drift(shop, id, Missing, "product", "in the shop", "absent")
		return
	case !d.Eligible:
		r.offSale(shop, id, p, d.Reason)
		return
	}
	r.Products++
	if p.Status != "ACTIVE" {
		r.drift(shop, id, OffSale, "status", "ACTIVE", p.Status)
	}
	c := comparison{r: r, shop: shop, id: id}
	c.text("title", d.Title, p.Title)
	c.text("description", d.DescriptionHTML, p.DescriptionHTML)
	c.text("vendor", d.Vendor, p.Vendor)
	c.text("product type", d.ProductType, p.ProductType)
	c.text("handle", d.Handle, p.Handle)
	if seo, ok := d.SEO.Get(); ok {
		c.text("SEO title", seo.Title, p.SEOTitle)
		c.text("SEO description", seo.Description, p.SEODescription)
	}
	tags, _ := d.Tags.Get()
	for _, tag := range tags {
		if !slices.ContainsFunc(p.Tags, func(t string) bool { return strings.EqualFold(t, tag) }) {
			r.drift(shop, id, Tag, "tag", tag, strings.Join(p.Tags, ", "))
		}
	}
	channels, _ := d.Publications.Get()
	for _, ch := range channels {
		if !slices.Contains(p.Publications, ch) {
			r.drift(shop, id, Publication, "publication", ch, strings.Join(p.Publications, ", "))
		}
	}
	c.metafields(d, p)
	c.options(d, p)
	c.variants(d, p)
}

// comparison is one product in one shop.
type comparison struct {
	r        *Report
	shop, id string
}

func (c comparison) text(field string, want document.Field[string], have string) {
	if want.Owned && want.Value != have {
		c.r.drift(c.shop, c.id, Field, field, want.Value, have)
	}
}

func (c comparison) metafields(d *document.Document, p *Product) {
	fields, _ := d.Metafields.Get()
	for _, m := range fields {
		key := m.Namespace + "." + m.Key
		have, ok := p.Metafields[key]
		want, present := m.Value.Get()
		if ok != present || have != want {
			c.r.drift(c.shop, c.id, MetafieldDiff, "metafield "+key, want, have)
		}
	}
}

func (c comparison) options(d *document.Document, p *Product) {
	want, ok := d.Options.Get()
	if !ok {
		return
	}
	names := func(os []document.Option) string {
		out := make([]string, len(os))
		for i, o := range os {
			out[i] = o.Name
		}
		return strings.Join(out, " / ")
	}
	if names(want) != names(p.Options) {
		c.r.drift(c.shop, c.id, Options, "options", names(want), names(p.Options))
	}
}

// variants are matched by their option values, which the shop keeps unique.
func (c comparison) variants(d *document.Document, p *Product) {
	want, ok := d.Variants.Get()
	if !ok {
		return
	}
	have := map[string]*Variant{}
	for i := range p.Variants {
		have[strings.Join(p.Variants[i].Options, "\x00")] = &p.Variants[i]
	}
	for i := range want {
		key := strings.Join(want[i].Options, "\x00")
		v := have[key]
		delete(have, key)
		c.r.Variants++
		if v == nil {
			c.r.drift(c.shop, c.id, VariantMissing, "variant "+want[i].Key, strings.Join(want[i].Options, " / "), "absent")
			continue
		}
		c.variant(&want[i], v)
	}
	for _, key := range slices.Sorted(maps.Keys(have)) {
		c.r.drift(c.shop, c.id, VariantExtra, "variant", "absent", strings.ReplaceAll(key, "\x00", " / "))
	}
}

func (c comparison) variant(want *document.Variant, have *Variant) {
	name := "variant " + want.Key + " "
	for _, f := range []struct {
		field string
		want  document.Field[string]
		have  string
	}{{"SKU", want.SKU, have.SKU}, {"barcode", want.Barcode, have.Barcode}} {
		if f.want.Owned && f.want.Value != f.have {
			c.r.drift(c.shop, c.id, VariantField, name+f.field, f.want.Value, f.have)
		}
	}
	if want.Price.Owned {
		c.r.Prices++
		if !sameMoney(want.Price.Value, have.Price) {
			c.r.drift(c.shop, c.id, Price, name+"price", want.Price.Value, have.Price)
		}
	} else if sameMoney(have.Price, "0") && !sameMoney(string(want.FirstPrice), "0") {
		c.r.drift(c.shop, c.id, Price, name+"price", "not 0", have.Price)
	}
	if want.CompareAtPrice.Owned && !sameMoney(want.CompareAtPrice.Value, have.CompareAtPrice) {
		c.r.drift(c.shop, c.id, Price, name+"compare-at price", want.CompareAtPrice.Value, have.CompareAtPrice)
	}
	levels, _ := want.Stock.Get()
	for _, l := range levels {
		c.r.Levels++
		quantity := cmp.Or(l.Name, "available")
		have, stocked := have.Levels[l.Location][quantity]
		if !stocked || have != l.Quantity {
			c.r.drift(c.shop, c.id, Stock, name+"stock at "+l.Location, fmt.Sprint(l.Quantity), fmt.Sprint(have))
		}
	}
}

// sameMoney compares decimals by value: "12.5" is "12.50", and nothing is only nothing.
func sameMoney(a, b string) bool {
	if a == "" || b == "" {
		return a == b
	}
	return canonical(a) == canonical(b)
}

func canonical(s string) string {
	if strings.Contains(s, ".") {
		s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
	}
	if s = strings.TrimLeft(s, "0"); s == "" || s[0] == '.' {
		s = "0" + s
	}
	return s
}
