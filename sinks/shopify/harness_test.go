package shopify_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vektah/gqlparser/v2"
	"github.com/vektah/gqlparser/v2/ast"
	"github.com/vektah/gqlparser/v2/validator/rules"

	"github.com/shelfwire/shelfwire/schemas/admin"
	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
	"github.com/shelfwire/shelfwire/sinks/shopify"
	"github.com/shelfwire/shelfwire/sinks/shopify/cost"
	"github.com/shelfwire/shelfwire/sinks/shopify/shopifysim"
)

// buckets is a budget store in memory.
type buckets struct {
	mu sync.Mutex
	by map[string]*work.Bucket
}

func (b *buckets) UpdateBucket(_ context.Context, shop string, f func(now time.Time, b *work.Bucket)) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.by == nil {
		b.by = map[string]*work.Bucket{}
	}
	if b.by[shop] == nil {
		b.by[shop] = &work.Bucket{}
	}
	f(time.Now(), b.by[shop])
	return nil
}

// wire passes requests on and keeps them: each is checked against the schema, and its predicted cost against what the
// simulator charges.
type wire struct {
	t    testing.TB
	next http.RoundTripper

	mu       sync.Mutex
	requests []sentRequest
}

type sentRequest struct {
	query     string
	variables map[string]any
	roots     []string
	mutation  bool
}

func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	var in struct {
		Query     string
		Variables map[string]any
	}
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, err
	}
	schema, err := admin.Schema()
	if err != nil {
		return nil, err
	}
	doc, problems := gqlparser.LoadQueryWithRules(schema, in.Query, rules.NewDefaultRules())
	if problems != nil {
		w.t.Errorf("a request is not valid: %v\n%s", problems, in.Query)
		return nil, problems
	}
	s := sentRequest{query: in.Query, variables: in.Variables, mutation: doc.Operations[0].Operation == ast.Mutation}
	for _, sel := range doc.Operations[0].SelectionSet {
		s.roots = append(s.roots, sel.(*ast.Field).Name)
	}
	w.mu.Lock()
	w.requests = append(w.requests, s)
	w.mu.Unlock()
	predicted, err := cost.Requested(schema, doc, doc.Operations[0], in.Variables)
	if err != nil {
		return nil, err
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	resp, err := w.next.RoundTrip(r)
	if err == nil && resp.StatusCode == http.StatusOK {
		w.compare(resp, predicted)
	}
	return resp, err
}

// compare holds the predicted cost against what the answer says.
func (w *wire) compare(resp *http.Response, predicted int) {
	raw, err := io.ReadAll(resp.Body)
	resp.Body = io.NopCloser(bytes.NewReader(raw))
	var out struct {
		Extensions struct {
			Cost *struct{ RequestedQueryCost float64 }
		}
	}
	if err == nil && json.Unmarshal(raw, &out) == nil && out.Extensions.Cost != nil {
		if int(out.Extensions.Cost.RequestedQueryCost) != predicted {
			w.t.Errorf("predicted %d points, charged %v", predicted, out.Extensions.Cost.RequestedQueryCost)
		}
	}
}

// take returns the requests since the last take.
func (w *wire) take() []sentRequest {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.requests
	w.requests = nil
	return out
}

func mutations(requests []sentRequest) []sentRequest {
	return slices.DeleteFunc(slices.Clone(requests), func(r sentRequest) bool { return !r.mutation })
}

// world is a shop, a client and what the state would know.
type world struct {
	t       testing.TB
	sim     *shopifysim.Simulator
	shop    *shopifysim.Shop
	client  *shopify.Shops
	wire    *wire
	known   map[string]work.Known
	intents []work.Intent
	// points sums what the client says it has requested.
	points int
}

const testShop = "acme"

func newWorld(tb testing.TB, change ...func(*shopify.Config)) *world {
	tb.Helper()
	return newWorldOf(tb, []string{"Main", "Outlet"}, change...)
}

// newWorldOf is a world whose shop has these locations.
func newWorldOf(tb testing.TB, locations []string, change ...func(*shopify.Config)) *world {
	tb.Helper()
	sim, err := shopifysim.New(shopifysim.Config{Shops: []shopifysim.ShopConfig{{
		Domain: "acme.myshopify.com", Token: "secret", Plan: shopifysim.Plus,
		Locations: locations, Publications: []string{"Online Store", "Point of Sale"},
	}}})
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, sim.Close()) })
	w := &world{t: tb, sim: sim, shop: sim.Shop("acme"), known: map[string]work.Known{}}
	w.wire = &wire{t: tb, next: sim.RoundTripper()}
	cfg := shopify.Config{
		Shops: map[string]shopify.ShopConfig{testShop: {
			URL: "https://acme.myshopify.com", Token: func(context.Context) (string, error) { return "secret", nil },
		}},
		Budget: &buckets{}, Holder: "test", RoundTripper: w.wire,
		Observe: func(e shopify.Exchange) {
			w.points += e.Requested
			if e.Held > 0 && int(e.Held) != e.Requested {
				tb.Errorf("%v: predicted %d points, the shop held back %v", e.Fields, e.Requested, e.Held)
			}
		},
	}
	for _, f := range change {
		f(&cfg)
	}
	w.client, err = shopify.New(cfg)
	require.NoError(tb, err)
	return w
}

func (w *world) intend(_ context.Context, in []work.Intent) error {
	w.intents = append(w.intents, in...)
	return nil
}

func (w *world) plan(id string, doc *document.Document) work.Plan {
	known := w.known[id]
	known.ProductID, known.Shop = id, testShop
	return shopify.Plan(work.Push{ProductID: id, Shop: testShop, Document: doc, Known: known})
}

// send plans and sends, and settles as the stage would.
func (w *world) send(plans ...work.Plan) []work.Result {
	w.t.Helper()
	w.intents = nil
	results := w.client.Send(w.t.Context(), testShop, plans, w.intend)
	require.Len(w.t, results, len(plans))
	for i, r := range results {
		require.Equal(w.t, plans[i].Push.ProductID, r.ProductID)
		w.settle(r)
	}
	return results
}

func (w *world) settle(r work.Result) {
	k := w.known[r.ProductID]
	if r.Shadow != nil {
		k.Shadow = r.Shadow
	}
	k.ShopifyID, k.OffSale, k.LastStatus = r.ShopifyID, r.OffSale, r.Status
	k.Intents = nil
	if r.Unanswered {
		for _, in := range w.intents {
			if slices.Contains(in.ProductIDs, r.ProductID) {
				k.Intents = append(k.Intents, in)
			}
		}
	}
	w.known[r.ProductID] = k
}

func (w *world) push(id string, doc *document.Document) work.Result {
	w.t.Helper()
	return w.send(w.plan(id, doc))[0]
}

// mustPush pushes and expects success, and that nothing is left to do.
func (w *world) mustPush(id string, doc *document.Document) work.Result {
	w.t.Helper()
	r := w.push(id, doc)
	require.Equal(w.t, event.Success, r.Status, "%s %s %s: %s", r.Category, r.Reason, r.Field, r.Message)
	again := w.plan(id, doc)
	require.True(w.t, again.Nothing, "a second plan: %s", again.Words)
	require.Equal(w.t, shopify.ReasonUnchanged, again.Result.Reason)
	return r
}

func (w *world) product(id string) shopifysim.Product {
	w.t.Helper()
	p, ok := w.shop.Product(w.known[id].ShopifyID)
	require.True(w.t, ok, "product %s (%s) is not in the shop", id, w.known[id].ShopifyID)
	return p
}

// api sends a mutation as a merchant's hand would, past the client.
func (w *world) api(query string, variables map[string]any) map[string]any {
	w.t.Helper()
	body, err := json.Marshal(map[string]any{"query": query, "variables": variables})
	require.NoError(w.t, err)
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost,
		"https://acme.myshopify.com/admin/api/2026-10/graphql.json", bytes.NewReader(body))
	require.NoError(w.t, err)
	req.Header.Set("X-Shopify-Access-Token", "secret")
	resp, err := w.sim.RoundTripper().RoundTrip(req)
	require.NoError(w.t, err)
	defer func() { require.NoError(w.t, resp.Body.Close()) }()
	raw, err := io.ReadAll(resp.Body)
	require.NoError(w.t, err)
	var out map[string]any
	require.NoError(w.t, json.Unmarshal(raw, &out))
	require.NotContains(w.t, out, "errors", "%s", raw)
	require.NotContains(w.t, string(raw), `"message"`, "%s", raw)
	data, _ := out["data"].(map[string]any)
	return data
}

// shirt is a document with n variants of the option Size.
func shirt(n int) *document.Document {
	d := &document.Document{
		Eligible: true, Title: document.Of("Shirt"), DescriptionHTML: document.Of("<p>A shirt</p>"),
		Vendor: document.Of("Acme"), ProductType: document.Of("Shirts"),
		Tags: document.Of([]string{"summer", "cotton"}),
		Metafields: document.Of([]document.Metafield{
			{Namespace: "pim", Key: "material", Type: "single_line_text_field", Value: document.Of("cotton")},
		}),
		Images:       document.Of([]document.Image{{URL: "https://img.example.com/front.jpg", Alt: "front"}, {URL: "https://img.example.com/back.jpg"}}),
		Publications: document.Of([]string{"Online Store"}),
	}
	option := document.Option{Name: "Size"}
	var variants []document.Variant
	for i := range n {
		size := fmt.Sprintf("S%d", i)
		option.Values = append(option.Values, size)
		variants = append(variants, document.Variant{
			Key: fmt.Sprintf("v%d", i), Options: []string{size}, SKU: document.Of("SKU-" + size),
			Price: document.Of(fmt.Sprintf("%d.50", 10+i)), Policy: document.Of("DENY"),
			Stock: document.Of([]document.Level{{Location: "Main", Quantity: 5 + i}}),
		})
	}
	d.Options, d.Variants = document.Of([]document.Option{option}), document.Of(variants)
	return d
}

// requireEqual holds a product in the shop against its document, by fields that the document owns.
func requireEqual(t checker, doc *document.Document, p shopifysim.Product) {
	t.Helper()
	for _, f := range []struct {
		name string
		want document.Field[string]
		have string
	}{
		{"title", doc.Title, p.Title},
		{"descriptionHtml", doc.DescriptionHTML, p.DescriptionHTML},
		{"vendor", doc.Vendor, p.Vendor},
		{"productType", doc.ProductType, p.ProductType},
		{"seo.title", doc.SEO.Value.Title, p.SEOTitle},
		{"seo.description", doc.SEO.Value.Description, p.SEODescription},
	} {
		if f.want.Owned {
			require.Equal(t, f.want.Value, f.have, f.name)
		}
	}
	require.Equal(t, "ACTIVE", p.Status)
	for _, tag := range doc.Tags.Value {
		require.True(t, slices.ContainsFunc(p.Tags, func(s string) bool { return strings.EqualFold(s, tag) }), "tag %s in %v", tag, p.Tags)
	}
	requireMetafields(t, doc.Metafields, p.Metafields)
	for _, name := range doc.Publications.Value {
		require.Contains(t, p.Publications, name)
	}
	if doc.Images.Owned {
		var want, have []string
		for _, i := range doc.Images.Value {
			want = append(want, i.URL+"|"+i.Alt)
		}
		for _, m := range p.Media {
			if !strings.Contains(m.Source, "merchant") {
				have = append(have, m.Source+"|"+m.Alt)
			}
		}
		require.Equal(t, want, have, "images")
	}
	if doc.Variants.Owned {
		requireVariants(t, doc, p)
	}
}

func requireVariants(t checker, doc *document.Document, p shopifysim.Product) {
	t.Helper()
	require.Len(t, p.Options, len(doc.Options.Value))
	used := make([]map[string]bool, len(p.Options))
	have := map[string]shopifysim.Variant{}
	for i := range used {
		used[i] = map[string]bool{}
	}
	for _, v := range p.Variants {
		have[strings.Join(v.Values, "/")] = v
		for i, value := range v.Values {
			used[i][value] = true
		}
	}
	require.Len(t, p.Variants, len(doc.Variants.Value), "variants %v", slices.Sorted(maps.Keys(have)))
	for i, o := range doc.Options.Value {
		require.Equal(t, o.Name, p.Options[i].Name)
		var want, names []string
		for _, v := range o.Values {
			if used[i][v] {
				want = append(want, v)
			}
		}
		for _, v := range p.Options[i].Values {
			if used[i][v.Name] {
				names = append(names, v.Name)
			}
		}
		require.Equal(t, want, names, "values of the option %s", o.Name)
	}
	for _, v := range doc.Variants.Value {
		got, ok := have[strings.Join(v.Options, "/")]
		require.True(t, ok, "variant %v is missing", v.Options)
		requireVariant(t, v, got)
	}
}

func requireVariant(t checker, v document.Variant, got shopifysim.Variant) {
	t.Helper()
	if price, ok := v.Price.Get(); ok {
		require.Equal(t, price, got.Price, "price of %s", v.Key)
	} else if v.FirstPrice != "" {
		require.NotEqual(t, "0.00", got.Price)
	}
	if v.CompareAtPrice.Owned {
		require.Equal(t, v.CompareAtPrice.Value, got.CompareAtPrice, "compareAtPrice of %s", v.Key)
	}
	if v.SKU.Owned {
		require.Equal(t, v.SKU.Value, got.SKU, "sku of %s", v.Key)
	}
	if v.Barcode.Owned {
		require.Equal(t, v.Barcode.Value, got.Barcode, "barcode of %s", v.Key)
	}
	if p, ok := v.Policy.Get(); ok {
		require.Equal(t, p, got.InventoryPolicy)
	}
	requireMetafields(t, v.Metafields, got.Metafields)
	for _, l := range v.Stock.Value {
		name := l.Name
		if name == "" {
			name = "available"
		}
		require.True(t, got.Tracked)
		found := false
		for _, level := range got.Levels {
			if level.Location == l.Location {
				found = true
				require.Equal(t, int64(l.Quantity), level.Quantities[name], "%s of %s at %s", name, v.Key, l.Location)
			}
		}
		require.True(t, found, "no level of %s at %s", v.Key, l.Location)
	}
}

func requireMetafields(t checker, want document.Field[[]document.Metafield], have []shopifysim.Metafield) {
	t.Helper()
	by := map[string]string{}
	for _, m := range have {
		by[m.Namespace+"."+m.Key] = m.Value
	}
	for _, m := range want.Value {
		if value, ok := m.Value.Get(); ok {
			require.Equal(t, value, by[m.Namespace+"."+m.Key], "metafield %s.%s", m.Namespace, m.Key)
		} else {
			require.NotContains(t, by, m.Namespace+"."+m.Key)
		}
	}
}

// checker is what *testing.T and *rapid.T have in common.
type checker interface {
	require.TestingT
	Helper()
}
