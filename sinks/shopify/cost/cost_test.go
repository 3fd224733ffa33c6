package cost_test

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vektah/gqlparser/v2/ast"
	"github.com/vektah/gqlparser/v2/parser"

	"github.com/shelfwire/shelfwire/schemas/admin"
	"github.com/shelfwire/shelfwire/sinks/shopify/cost"
	"github.com/shelfwire/shelfwire/sinks/shopify/internal/recordings"
)

// answer is what costs are computed from, and held against, in a recorded response.
type answer struct {
	Data       map[string]any
	Extensions struct {
		Cost *struct {
			RequestedQueryCost float64
			ActualQueryCost    *float64
		}
	}
}

type share struct{ exact, all int }

func TestRequestedEqualsWhatRealShopsCharged(t *testing.T) {
	schema, err := admin.Schema()
	require.NoError(t, err)
	byRoot := map[string]*share{}
	var domain, all, actual share
	changed := 0
	for _, r := range recordings.Read(t) {
		var response answer
		if json.Unmarshal(r.Response, &response) != nil || response.Extensions.Cost == nil {
			continue
		}
		charged := response.Extensions.Cost
		doc, err := parser.ParseQuery(&ast.Source{Input: r.Query})
		require.NoError(t, err)
		op := doc.Operations[0]
		got, err := cost.Requested(schema, doc, op, r.Variables)
		if err != nil {
			continue // a selection of an older version that the current schema no longer has
		}
		names := roots(op)
		exact := got == int(charged.RequestedQueryCost)
		if !exact && slices.Equal(names, []string{"metafieldsSet"}) {
			changed++ // recorded before 2026-09-15, when the charge by owners began
			continue
		}
		count(&all, exact)
		if inDomain(names) {
			count(&domain, exact)
		}
		key := strings.Join(names, "+")
		if byRoot[key] == nil {
			byRoot[key] = &share{}
		}
		count(byRoot[key], exact)
		if !exact {
			t.Logf("differs: %s %s %s: computed %d, charged %v", r.File, r.Step, key, got, charged.RequestedQueryCost)
		}
		if charged.ActualQueryCost != nil {
			a, err := cost.Actual(schema, doc, op, r.Variables, response.Data)
			require.NoError(t, err)
			require.LessOrEqual(t, a, got)
			count(&actual, a == int(*charged.ActualQueryCost))
		}
	}
	for _, key := range sortedKeys(byRoot) {
		t.Logf("%4d of %4d exact: %s", byRoot[key].exact, byRoot[key].all, key)
	}
	t.Logf("all: %d of %d exact; product, inventory and metafield domain: %d of %d; actual cost: %d of %d; rule changed since: %d",
		all.exact, all.all, domain.exact, domain.all, actual.exact, actual.all, changed)
	require.GreaterOrEqual(t, all.share(), 0.98)
	require.GreaterOrEqual(t, domain.share(), 0.99)
}

func (s share) share() float64 { return float64(s.exact) / float64(s.all) }

func count(s *share, exact bool) {
	s.all++
	if exact {
		s.exact++
	}
}

func sortedKeys(m map[string]*share) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b string) int { return cmp.Or(cmp.Compare(m[b].all, m[a].all), cmp.Compare(a, b)) })
	return keys
}

func roots(op *ast.OperationDefinition) []string {
	var out []string
	for _, s := range op.SelectionSet {
		if f, ok := s.(*ast.Field); ok {
			out = append(out, f.Name)
		}
	}
	return out
}

func inDomain(names []string) bool {
	for _, n := range names {
		if strings.HasPrefix(n, "product") || strings.HasPrefix(n, "inventory") || strings.HasPrefix(n, "metafield") {
			return true
		}
	}
	return false
}

// points computes the requested cost of a document.
func points(t *testing.T, document string, variables map[string]any) int {
	t.Helper()
	schema, err := admin.Schema()
	require.NoError(t, err)
	doc, err := parser.ParseQuery(&ast.Source{Input: document})
	require.NoError(t, err)
	got, err := cost.Requested(schema, doc, doc.Operations[0], variables)
	require.NoError(t, err)
	return got
}

type vars = map[string]any

func repeat(n int, v vars) []any {
	out := make([]any, n)
	for i := range out {
		out[i] = v
	}
	return out
}

func TestConnectionsCostTheLogarithmOfTheirPage(t *testing.T) {
	for first, want := range map[int]int{1: 3, 2: 3, 3: 4, 5: 5, 10: 6, 20: 7, 50: 9, 100: 11, 250: 13, 2000: 13} {
		require.Equal(t, want, points(t, `query($n: Int!) { products(first: $n) { nodes { id } } }`, vars{"n": first}), "first %d", first)
	}
	require.Equal(t, 2, points(t, `{ products { nodes { id } } }`, nil), "no page size: refused, and charged without nodes")
}

func TestProductSetChargesByInput(t *testing.T) {
	const doc = `mutation($in: ProductSetInput!) { productSet(input: $in) { product { id } userErrors { code } } }`
	require.Equal(t, 10, points(t, doc, vars{"in": vars{"title": "t"}}))
	require.Equal(t, 310, points(t, doc, vars{"in": vars{"variants": repeat(1499, vars{})}}))
	require.Equal(t, 420, points(t, doc, vars{"in": vars{"variants": repeat(2049, vars{})}}))
	// 10 + 3·(0.2 + 0.6 + 2·0.4) + 5·0.4 + 2·1.9 = 20.6
	variant := vars{"file": vars{"id": "x"}, "metafields": repeat(2, vars{})}
	require.Equal(t, 21, points(t, doc, vars{"in": vars{
		"variants": repeat(3, variant), "metafields": repeat(5, vars{}), "files": repeat(2, vars{}),
	}}))
}

func TestVariantsBulkAndProductUpdateChargeByInput(t *testing.T) {
	require.Equal(t, 60, points(t, `mutation($v: [ProductVariantsBulkInput!]!) { productVariantsBulkUpdate(productId: "gid://shopify/Product/1", variants: $v) { userErrors { code } } }`,
		vars{"v": repeat(250, vars{})}))
	require.Equal(t, 14, points(t, `mutation($p: ProductUpdateInput!, $m: [CreateMediaInput!]) { productUpdate(product: $p, media: $m) { userErrors { message } } }`,
		vars{"p": vars{"metafields": repeat(1, vars{})}, "m": repeat(2, vars{})}))
}

func TestMetafieldsSetChargesByDistinctOwner(t *testing.T) {
	const doc = `mutation($m: [MetafieldsSetInput!]!) { metafieldsSet(metafields: $m) { userErrors { code } } }`
	owners := func(ids ...string) vars {
		var list []any
		for _, id := range ids {
			list = append(list, vars{"ownerId": "gid://shopify/" + id})
		}
		return vars{"m": list}
	}
	require.Equal(t, 14, points(t, doc, owners("Product/1", "Product/1")))
	require.Equal(t, 20, points(t, doc, owners("Product/1", "Product/2", "ProductVariant/1")))
	require.Equal(t, 11, points(t, doc, owners("Shop/1")))
	require.Equal(t, 10, points(t, doc, owners("Location/1")))
}

func TestAliasesAddUpAndQuantitiesAreFlat(t *testing.T) {
	const set = `inventorySetQuantities(input: $in) @idempotent(key: "k") { userErrors { code } }`
	v := vars{"in": vars{"quantities": repeat(250, vars{})}}
	require.Equal(t, 10, points(t, `mutation($in: InventorySetQuantitiesInput!) { `+set+` }`, v))
	require.Equal(t, 20, points(t, `mutation($in: InventorySetQuantitiesInput!) { a: `+set+` b: `+set+` }`, v))
}

func TestCountsAndValueObjects(t *testing.T) {
	require.Equal(t, 10, points(t, `{ productsCount { count } }`, nil))
	require.Equal(t, 2, points(t, `{ product(id: "gid://shopify/Product/1") { variantsCount { count } } }`, nil))
	require.Equal(t, 2, points(t, `{ product(id: "gid://shopify/Product/1") { priceRangeV2 { minVariantPrice { amount } } } }`, nil))
	require.Equal(t, 2, points(t, `{ location(id: "gid://shopify/Location/1") { hasUnfulfilledOrders address { city } } }`, nil))
	require.Equal(t, 1, points(t, `query($s: Boolean!) { product(id: "gid://shopify/Product/1") @skip(if: $s) { seo { title } } }`, vars{"s": true}))
}
