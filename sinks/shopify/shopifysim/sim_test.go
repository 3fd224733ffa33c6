package shopifysim_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/sinks/shopify/shopifysim"
)

const (
	domain = "acme.myshopify.com"
	token  = "shpat_test"
)

// bench is one shop with a clock that stands still until it is moved.
type bench struct {
	t    testing.TB
	sim  *shopifysim.Simulator
	shop *shopifysim.Shop
	now  time.Time
	keys int

	domain string
}

func newBench(tb testing.TB, change ...func(*shopifysim.Config)) *bench {
	tb.Helper()
	b := &bench{t: tb, now: time.Date(2026, 11, 2, 9, 0, 0, 0, time.UTC)}
	cfg := shopifysim.Config{
		Now: func() time.Time { return b.now },
		Shops: []shopifysim.ShopConfig{{
			Domain: domain, Token: token, Locations: []string{"Main", "Annex"}, Publications: []string{"Online Store", "Point of Sale"},
		}},
	}
	for _, c := range change {
		c(&cfg)
	}
	sim, err := shopifysim.New(cfg)
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, sim.Close()) })
	b.sim, b.shop, b.domain = sim, sim.Shop(domain), domain
	return b
}

// answer is a decoded answer.
type answer struct {
	Data       map[string]any
	Errors     []map[string]any
	Extensions map[string]any
	status     int
	header     http.Header
	raw        []byte
}

func (b *bench) post(query string, variables map[string]any) answer {
	b.t.Helper()
	a, err := b.try(query, variables)
	require.NoError(b.t, err)
	return a
}

func (b *bench) try(query string, variables map[string]any) (answer, error) {
	b.t.Helper()
	body, err := json.Marshal(map[string]any{"query": query, "variables": variables})
	require.NoError(b.t, err)
	r, err := http.NewRequestWithContext(b.t.Context(), http.MethodPost, "https://"+b.domain+"/admin/api/2026-10/graphql.json", bytes.NewReader(body))
	require.NoError(b.t, err)
	r.Header.Set("X-Shopify-Access-Token", token)
	res, err := b.sim.Client().Do(r)
	if err != nil {
		return answer{}, err
	}
	defer func() { require.NoError(b.t, res.Body.Close()) }()
	var buf bytes.Buffer
	_, err = buf.ReadFrom(res.Body)
	require.NoError(b.t, err)
	a := answer{status: res.StatusCode, header: res.Header, raw: buf.Bytes()}
	_ = json.Unmarshal(buf.Bytes(), &a) // some answers are no JSON on purpose
	return a, nil
}

// do posts and gives back a root field's object; no top-level errors are expected. It waits for points first.
func (b *bench) do(query string, variables map[string]any) map[string]any {
	b.t.Helper()
	b.now = b.now.Add(time.Minute)
	a := b.post(query, variables)
	require.Empty(b.t, a.Errors, string(a.raw))
	require.Len(b.t, a.Data, 1)
	for _, v := range a.Data {
		m, _ := v.(map[string]any)
		return m
	}
	return nil
}

// ok is do for a mutation that must have no user errors.
func (b *bench) ok(query string, variables map[string]any) map[string]any {
	b.t.Helper()
	out := b.do(query, variables)
	require.Empty(b.t, out["userErrors"])
	return out
}

// refused is do for a mutation that must fail with these codes; it returns the errors.
func (b *bench) refused(query string, variables map[string]any, codes ...any) []any {
	b.t.Helper()
	out := b.do(query, variables)
	errs, _ := out["userErrors"].([]any)
	var got []any
	for _, e := range errs {
		got = append(got, e.(map[string]any)["code"])
	}
	require.Equal(b.t, codes, got, "%v", errs)
	return errs
}

func (b *bench) key() string {
	b.keys++
	return fmt.Sprintf("00000000-0000-5000-8000-%012d", b.keys)
}

// dig follows a path of names and indexes.
func dig(v any, path ...any) any {
	for _, p := range path {
		switch p := p.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[p]
		case int:
			l, _ := v.([]any)
			if p >= len(l) {
				return nil
			}
			v = l[p]
		}
	}
	return v
}

type vars = map[string]any

const productSetDoc = `mutation Set($id: ProductSetIdentifiers, $in: ProductSetInput!) {
	productSet(identifier: $id, input: $in) {
		product {
			id handle status tags
			options { id name position optionValues { id name } }
			variants(first: 10) { nodes { id title sku price inventoryQuantity inventoryItem { id tracked } } }
			metafields(first: 10) { nodes { namespace key type value } }
		}
		userErrors { code field message }
	}
}`

// tee is a product with one option of two values, stocked at the main location.
func (b *bench) tee(title string) vars {
	loc := b.shop.Locations()[0].ID
	variant := func(size, sku string, n int) vars {
		return vars{
			"optionValues": []any{vars{"optionName": "Size", "name": size}}, "price": "10.00", "sku": sku,
			"inventoryItem":       vars{"tracked": true},
			"inventoryQuantities": []any{vars{"locationId": loc, "name": "available", "quantity": n}},
		}
	}
	return vars{
		"title":          title,
		"productOptions": []any{vars{"name": "Size", "values": []any{vars{"name": "S"}, vars{"name": "M"}}}},
		"variants":       []any{variant("S", title+"-S", 5), variant("M", title+"-M", 7)},
	}
}

func (b *bench) newTee(title string) map[string]any {
	b.t.Helper()
	return dig(b.ok(productSetDoc, vars{"in": b.tee(title)}), "product").(map[string]any)
}

func TestProductSetCreatesAndReads(t *testing.T) {
	b := newBench(t)
	p := b.newTee("Tee")
	require.Equal(t, "tee", p["handle"])
	require.Equal(t, "ACTIVE", p["status"])
	require.Equal(t, "S", dig(p, "variants", "nodes", 0, "title"))
	require.EqualValues(t, 7, dig(p, "variants", "nodes", 1, "inventoryQuantity"))
	require.Equal(t, "M", dig(p, "options", 0, "optionValues", 1, "name"))

	got := b.do(`query($id: ID!) { product(id: $id) { title totalInventory variants(first: 2, after: null) { pageInfo { hasNextPage endCursor } edges { node { sku } } } } }`, vars{"id": p["id"]})
	require.EqualValues(t, 12, got["totalInventory"])
	require.Equal(t, "Tee-S", dig(got, "variants", "edges", 0, "node", "sku"))
}
