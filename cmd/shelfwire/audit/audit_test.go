package audit

import (
	"context"
	"encoding/json"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/document"
)

const wanted = `{"eligible":true,"title":"Shirt","handle":"shirt","tags":["summer"],
 "options":[{"name":"Size","values":["S","M"]}],
 "variants":[
  {"key":"1","options":["S"],"sku":"A","price":"12.50","stock":[{"location":"Berlin","quantity":5}]},
  {"key":"2","options":["M"],"sku":"B","price":"13","compareAtPrice":null}],
 "metafields":[{"namespace":"shelfwire","key":"care","type":"single_line_text_field","value":"wash cold"}]}`

type fixed struct {
	rows  []document.Row
	shops map[string][]Product
}

func (f fixed) ProductIDs(_ context.Context, after string, n int) (ids []string, err error) {
	for _, r := range f.rows {
		if r.ProductID > after && len(ids) < n && !slices.Contains(ids, r.ProductID) {
			ids = append(ids, r.ProductID)
		}
	}
	return ids, nil
}

func (f fixed) Documents(_ context.Context, ids []string) (rows []document.Row, err error) {
	for _, r := range f.rows {
		if slices.Contains(ids, r.ProductID) {
			rows = append(rows, r)
		}
	}
	return rows, nil
}

func (f fixed) Names() []string { return []string{"main"} }

func (f fixed) Products(_ context.Context, shop string, yield func(Product) bool) error {
	for _, p := range f.shops[shop] {
		if !yield(p) {
			break
		}
	}
	return nil
}

func same() Product {
	return Product{
		ID: "gid://1", ProductID: "p1", Status: "ACTIVE", Title: "Shirt", Handle: "shirt", Tags: []string{"Summer", "merchant"},
		Options: []document.Option{{Name: "Size"}},
		Variants: []Variant{
			{Options: []string{"S"}, SKU: "A", Price: "12.5", Levels: map[string]map[string]int{"Berlin": {"available": 5}}},
			{Options: []string{"M"}, SKU: "B", Price: "13.00"},
		},
		Metafields: map[string]string{"shelfwire.care": "wash cold"},
	}
}

func audit(t *testing.T, doc string, products ...Product) *Report {
	t.Helper()
	r, err := Run(t.Context(), fixed{
		rows:  []document.Row{{ProductID: "p1", Shop: "main", Document: json.RawMessage(doc)}},
		shops: map[string][]Product{"main": products},
	}, fixed{shops: map[string][]Product{"main": products}}, nil)
	require.NoError(t, err)
	return r
}

func TestEqualIsClean(t *testing.T) {
	r := audit(t, wanted, same(), Product{ID: "gid://9", Status: "ACTIVE", Title: "the merchant's own"})
	require.Empty(t, r.Drifts)
	require.True(t, r.Clean())
	require.Equal(t, 1, r.Products)
	require.Equal(t, 2, r.Variants)
	require.Equal(t, 2, r.Prices)
	require.Equal(t, 1, r.Levels)
	require.Equal(t, 1, r.Foreign)
}

func TestNothingComparedIsNotClean(t *testing.T) {
	require.False(t, (&Report{}).Clean())
}

// One thing is altered at a time, and each is reported, alone and by its kind.
func TestEachAlterationIsReported(t *testing.T) {
	for name, tt := range map[string]struct {
		alter func(*Product)
		kind  Kind
	}{
		"price":           {func(p *Product) { p.Variants[0].Price = "12.51" }, Price},
		"level":           {func(p *Product) { p.Variants[0].Levels["Berlin"]["available"] = 4 }, Stock},
		"level missing":   {func(p *Product) { p.Variants[0].Levels = nil }, Stock},
		"tag":             {func(p *Product) { p.Tags = []string{"merchant"} }, Tag},
		"variant missing": {func(p *Product) { p.Variants = p.Variants[:1] }, VariantMissing},
		"variant extra":   {func(p *Product) { p.Variants = append(p.Variants, Variant{Options: []string{"XL"}}) }, VariantExtra},
		"compare-at":      {func(p *Product) { p.Variants[1].CompareAtPrice = "20" }, Price},
		"title":           {func(p *Product) { p.Title = "Shirts" }, Field},
		"sku":             {func(p *Product) { p.Variants[1].SKU = "" }, VariantField},
		"metafield":       {func(p *Product) { p.Metafields["shelfwire.care"] = "" }, MetafieldDiff},
		"draft":           {func(p *Product) { p.Status = "DRAFT" }, OffSale},
		"option":          {func(p *Product) { p.Options[0].Name = "Colour" }, Options},
	} {
		t.Run(name, func(t *testing.T) {
			p := same()
			tt.alter(&p)
			r := audit(t, wanted, p)
			require.Len(t, r.Drifts, 1)
			require.Equal(t, tt.kind, r.Drifts[0].Kind)
			require.False(t, r.Clean())
		})
	}
}

func TestPresenceAndEligibility(t *testing.T) {
	require.Equal(t, Missing, audit(t, wanted).Drifts[0].Kind)
	twice := audit(t, wanted, same(), same())
	require.Equal(t, Duplicate, twice.Drifts[0].Kind)
	revoked := `{"eligible":false,"reason":"NOT_APPROVED"}`
	require.Equal(t, OnSale, audit(t, revoked, same()).Drifts[0].Kind)
	draft := same()
	draft.Status = "DRAFT"
	require.Empty(t, audit(t, revoked, draft).Drifts)
	gone := same()
	gone.ProductID = "p0"
	r := audit(t, revoked, gone)
	require.Equal(t, OnSale, r.Drifts[0].Kind, "a product that the source does not have")
}

// What people wanted is told apart, and an audit that finds nothing else is clean.
func TestWhatIsWantedIsNoDrift(t *testing.T) {
	p := same()
	p.Title, p.Variants[0].Price = "Shirts", "1"
	r := audit(t, wanted, p)
	require.Len(t, r.Drifts, 2)
	r.Excluded = r.SetAside(func(d Drift) bool { return d.ProductID == "p0" })
	require.Len(t, r.Drifts, 2)
	require.Empty(t, r.Excluded)
	require.False(t, r.Clean())
	r.Excluded = r.SetAside(func(d Drift) bool { return d.Shop == "main" && d.ProductID == "p1" })
	require.Len(t, r.Excluded, 2)
	require.True(t, r.Clean())
}

func TestMoney(t *testing.T) {
	require.True(t, sameMoney("12.50", "12.5"))
	require.True(t, sameMoney("0.00", "0"))
	require.True(t, sameMoney("007", "7.0"))
	require.False(t, sameMoney("100", "1"))
	require.False(t, sameMoney("", "0"))
}
