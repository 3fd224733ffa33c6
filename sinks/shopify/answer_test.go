package shopify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/event"
	documents "github.com/shelfwire/shelfwire/schemas/shopify"
	"github.com/shelfwire/shelfwire/schemas/work"
	"github.com/shelfwire/shelfwire/sinks/shopify/cost"
)

func TestAnswersAreSortedByTheTable(t *testing.T) {
	cost := `"extensions":{"cost":{"requestedQueryCost":862,"actualQueryCost":null,"throttleStatus":{"maximumAvailable":4000.0,"currentlyAvailable":572,"restoreRate":200.0}}}`
	for name, c := range map[string]struct {
		status int
		body   string
		want   failure
	}{
		"throttled":       {200, `{"errors":[{"message":"Throttled","extensions":{"code":"THROTTLED"}}],` + cost + `}`, failure{category: event.APILimit}},
		"too dear":        {200, `{"errors":[{"message":"cost","extensions":{"code":"MAX_COST_EXCEEDED","cost":1200,"maxCost":1000}}]}`, failure{category: event.Validation, final: true, unexecuted: true}},
		"invalid":         {200, `{"errors":[{"message":"v","extensions":{"code":"INVALID_VARIABLE"}}]}`, failure{category: event.Validation, final: true, unexecuted: true}},
		"scope":           {200, `{"data":{"m0":null},"errors":[{"message":"Access denied","path":["m0"],"extensions":{"code":"ACCESS_DENIED","requiredAccess":"write_products"}}]}`, failure{category: event.ShopifyError, dead: true}},
		"internal":        {200, `{"errors":[{"message":"Internal error.","extensions":{"code":"INTERNAL_SERVER_ERROR"}}]}`, failure{category: event.ShopifyError, counts: true, unanswered: true}},
		"inactive":        {200, `{"errors":[{"message":"no","extensions":{"code":"SHOP_INACTIVE"}}]}`, failure{category: event.ShopifyError, dead: true}},
		"text for errors": {200, `{"errors":"[API] Invalid API key"}`, failure{category: event.Unknown, counts: true, unanswered: true}},
		"strange code":    {200, `{"errors":[{"message":"?","extensions":{"code":"MARTIAN"}}]}`, failure{category: event.Unknown, counts: true, unanswered: true}},
		"html":            {200, `<html>hello</html>`, failure{category: event.Unknown, counts: true, unanswered: true}},
		"cut":             {200, `{"data":{"m0":{"product`, failure{category: event.Unknown, counts: true, unanswered: true}},
		"empty object":    {200, `{}`, failure{category: event.Unknown, counts: true, unanswered: true}},
		"errors a number": {200, `{"errors":3}`, failure{category: event.Unknown, counts: true, unanswered: true}},
		"429":             {429, `{}`, failure{category: event.APILimit, retryAfter: time.Second}},
		"430":             {430, ``, failure{category: event.APILimit, retryAfter: time.Second}},
		"402":             {402, ``, failure{category: event.ShopifyError, dead: true}},
		"530":             {530, ``, failure{category: event.ShopifyError, counts: true, unanswered: true}},
		"413":             {413, ``, failure{category: event.Unknown, counts: true, unexecuted: true}},
		"418":             {418, ``, failure{category: event.Unknown, counts: true, unanswered: true}},
	} {
		t.Run(name, func(t *testing.T) {
			a := readAnswer(c.status, http.Header{}, []byte(c.body))
			require.NotNil(t, a.whole)
			require.NotEmpty(t, a.whole.message)
			got := *a.whole
			got.message, got.field = "", ""
			require.Equal(t, c.want, got)
		})
	}
	a := readAnswer(200, http.Header{}, []byte(`{"errors":[{"message":"Throttled","extensions":{"code":"THROTTLED"}}],`+cost+`}`))
	require.InDelta(t, 572, a.status.Available, 0.1)
	require.InDelta(t, 200, a.status.Restore, 0.1)
	h := http.Header{}
	h.Set("Retry-After", "4.0")
	require.Equal(t, 4*time.Second, readAnswer(429, h, nil).whole.retryAfter)
}

func TestAProblemOfOneAliasLeavesTheOthers(t *testing.T) {
	a := readAnswer(200, http.Header{}, []byte(
		`{"data":{"m0":{"userErrors":[]},"m1":null},"errors":[{"message":"boom","path":["m1"],"extensions":{"code":"INTERNAL_SERVER_ERROR"}}]}`))
	require.Nil(t, a.whole)
	require.NotNil(t, a.fields["m0"])
	require.True(t, a.problems["m1"].unanswered)
}

func TestTransportErrors(t *testing.T) {
	for _, c := range []struct {
		err        error
		unanswered bool
	}{
		{&net.DNSError{Err: "no such host", Name: "acme"}, false},
		{&net.OpError{Op: "dial", Err: errors.New("connection refused")}, false},
		{&net.OpError{Op: "read", Err: errors.New("connection reset")}, true},
		{context.DeadlineExceeded, true},
		{io.ErrUnexpectedEOF, true},
	} {
		f := classifyTransport(c.err)
		require.Equal(t, event.Network, f.category)
		require.Equal(t, c.unanswered, f.unanswered, "%v", c.err)
	}
}

func TestUserErrors(t *testing.T) {
	for _, c := range []struct {
		root, code, message string
		category            event.Category
		final, reread       bool
	}{
		{"productSet", "HANDLE_NOT_UNIQUE", "Handle 'x' already in use. Please provide a new handle.", event.Duplicate, true, false},
		{"productUpdate", "", "Handle 'x' already in use. Please provide a new handle.", event.Duplicate, true, false},
		{"productSet", "DUPLICATED_METAFIELD_VALUE", "taken", event.Duplicate, true, true},
		{"productUpdate", "", "Product does not exist", event.Validation, true, true},
		{"productVariantsBulkUpdate", "PRODUCT_VARIANT_DOES_NOT_EXIST", "no", event.Validation, true, true},
		{"productVariantsBulkUpdate", "GREATER_THAN_OR_EQUAL_TO", "Price must be greater", event.Validation, true, false},
		{"productVariantsBulkCreate", "", "Another operation already in progress. Please wait until current one is finished.", event.ShopifyError, false, false},
		{"productSet", "", "Daily variant creation limit reached. Please try again later.", event.APILimit, false, false},
		{"inventorySetQuantities", "IDEMPOTENCY_CONCURRENT_REQUEST", "wait", event.ShopifyError, false, false},
	} {
		f := classifyUser(c.root, userError{code: c.code, message: c.message, field: []string{"input", "x"}})
		require.Equal(t, c.category, f.category, c.message)
		require.Equal(t, c.final, f.final, c.message)
		require.Equal(t, c.reread, f.reread, c.message)
		require.Equal(t, "input.x", f.field)
	}
}

func FuzzReadAnswer(f *testing.F) {
	f.Add(200, `{"data":{"m0":{"product":{"id":"gid://shopify/Product/1","options":[{"optionValues":[null]}],"variants":{"nodes":[1,null,{}]}},"userErrors":[{"field":["input","quantities","0"],"message":"x","code":"Y"}]}}}`)
	f.Add(200, `{"data":{"m0":[]},"errors":[{"path":[1,"m0"],"extensions":[]}]}`)
	f.Add(200, `{"data":null,"errors":[{"path":["m0"]}],"extensions":{"cost":{"throttleStatus":null}}}`)
	f.Add(503, `<html>`)
	f.Fuzz(func(t *testing.T, status int, body string) {
		a := readAnswer(status, http.Header{}, []byte(body))
		doc := &document.Document{Eligible: true, Title: document.Of("T")}
		doc.Options = document.Of([]document.Option{{Name: "Size", Values: []string{"S"}}})
		doc.Variants = document.Of([]document.Variant{{Key: "k", Options: []string{"S"}, FirstPrice: "1"}})
		p := work.Plan{Push: work.Push{ProductID: "1", Shop: "a", Document: doc}}
		for _, payload := range a.fields {
			// A creation, a read and a level take whatever it is.
			j := newJob(Plan(p.Push))
			j.planRead(nil)
			d := &delivery{}
			for _, o := range j.todo.ops {
				d.settle(t.Context(), item{op: o, jobs: []*job{j}}, payload, nil)
			}
			j.next()
			r := j.result()
			if r.Status == event.Success && r.ShopifyID == "" {
				t.Fatal("a success without a product")
			}
			reading := &reading{doc: doc, old: newShadow("x"), set: &settings{}}
			reading.take(payload)
			reading.shadow()
			(&catalogReader{set: &settings{}}).variant(payload)
		}
	})
}

func TestStockCostsWhatItIsPlannedAt(t *testing.T) {
	rows := make([]ownedRow, 250)
	i := stockItem(available, rows)
	require.NoError(t, i.op.err)
	require.Equal(t, stockMutationPoints, i.op.points)
	require.Equal(t, 30, stockPoints(append(make([]stockRow, 251), stockRow{name: onHand})))
}

func TestEveryDocumentHasAPrice(t *testing.T) {
	all, err := templates()
	require.NoError(t, err)
	for _, name := range documents.Names() {
		points, err := price(name, map[string]any{})
		require.NoError(t, err, name)
		require.Positive(t, points)
		require.NotContains(t, all[name].body, "mutation")
	}
}

func TestComposedRequestsKeepAbsentAndNullApart(t *testing.T) {
	query, variables, err := compose([]*op{
		newOp("productUpdate", map[string]any{"product": map[string]any{"id": "x"}, "images": 1, "withImages": false}),
		stockItem(available, []ownedRow{{stockRow: stockRow{item: "i", location: "l"}}}).op,
	})
	require.NoError(t, err)
	require.Contains(t, query, "m0: productUpdate(product: $product_0, media: $media_0)")
	require.NotContains(t, variables, "media_0")
	row := object(list(object(variables["input_1"])["quantities"])[0])
	from, there := row["changeFromQuantity"]
	require.True(t, there)
	require.Nil(t, from)
}

func TestDecimalMarks(t *testing.T) {
	for _, pair := range [][2]string{{"12.5", "12.50"}, {"0", "0.00"}, {"007.10", "7.1"}, {"100", "100.000"}} {
		require.Equal(t, markDecimal(pair[0]), markDecimal(pair[1]))
	}
	require.NotEqual(t, markDecimal("10"), markDecimal("1"))
	require.NotEqual(t, markDecimal("0.1"), markDecimal("0.01"))
}

func TestARequestStaysBelowTheCap(t *testing.T) {
	var jobs []*job
	for i := range 200 {
		j := &job{bad: map[level]bool{}}
		o := newOp("tagsAdd", map[string]any{"id": fmt.Sprint(i), "tags": []any{"a"}})
		o.heavy = i%4 == 0
		j.todo.ops = []*op{o, o}
		jobs = append(jobs, j)
	}
	n := 0
	for _, r := range pack(jobs, 50, 8) {
		require.LessOrEqual(t, r.points, 1000)
		require.LessOrEqual(t, len(r.items), 50)
		require.LessOrEqual(t, r.heavy, 8)
		n += len(r.items)
	}
	require.Equal(t, 400, n)
}

func TestDocumentsThatNoShopTakes(t *testing.T) {
	base := func() *document.Document {
		return &document.Document{
			Eligible: true, Title: document.Of("T"),
			Options:  document.Of([]document.Option{{Name: "Size", Values: []string{"S", "M"}}}),
			Variants: document.Of([]document.Variant{{Key: "k", Options: []string{"S"}, Price: document.Of("1.00")}}),
		}
	}
	for field, change := range map[string]func(d *document.Document){
		"title":                  func(d *document.Document) { d.Title = document.Of(strings.Repeat("x", 300)) },
		"options":                func(d *document.Document) { d.Options = document.Field[[]document.Option]{} },
		"options[0].name":        func(d *document.Document) { d.Options.Value[0].Name = "A / B" },
		"variants":               func(d *document.Document) { d.Variants.Value = nil },
		"variants[0].price":      func(d *document.Document) { d.Variants.Value[0].Price = document.Of("NaN") },
		"variants[0].firstPrice": func(d *document.Document) { d.Variants.Value[0].Price = document.Field[string]{} },
		"variants[0].options[0]": func(d *document.Document) { d.Variants.Value[0].Options = []string{"XL"} },
		"variants[0].stock[0].quantity": func(d *document.Document) {
			d.Variants.Value[0].Stock = document.Of([]document.Level{{Location: "a", Quantity: -1}})
		},
		"variants[1].options": func(d *document.Document) {
			d.Variants.Value = append(d.Variants.Value, document.Variant{Key: "l", Options: []string{"S"}, FirstPrice: "1"})
		},
		"variants[1].key": func(d *document.Document) {
			d.Variants.Value = append(d.Variants.Value, document.Variant{Key: "k", Options: []string{"M"}, FirstPrice: "1"})
		},
		"images[0].url": func(d *document.Document) { d.Images = document.Of([]document.Image{{URL: "no url"}}) },
	} {
		d := base()
		change(d)
		k := knowledge{sure: true}
		got := decide(work.Push{ProductID: "1", Document: d}, k)
		require.NotNil(t, got.refused, field)
		require.Equal(t, field, got.refused.field)
	}
}

func TestACreationWithMoreLevelsThanOneRequestTakesLeavesThemToTheNextRound(t *testing.T) {
	var levels []document.Level
	for i := range 26 {
		levels = append(levels, document.Level{Location: fmt.Sprintf("L%d", i), Quantity: 1})
	}
	doc := &document.Document{Eligible: true, Title: document.Of("Wide")}
	rows, columns := document.Option{Name: "Size"}, document.Option{Name: "Colour"}
	for i := range 25 {
		columns.Values = append(columns.Values, fmt.Sprint(i))
	}
	var nodes []any
	var variants []document.Variant
	for i := range 80 {
		rows.Values = append(rows.Values, fmt.Sprint(i))
		for j := range 25 {
			title := fmt.Sprintf("%d / %d", i, j)
			variants = append(variants, document.Variant{
				Key: title, Options: []string{fmt.Sprint(i), fmt.Sprint(j)}, Price: document.Of("1.00"), Stock: document.Of(levels),
			})
			nodes = append(nodes, map[string]any{"id": "v" + title, "title": title, "inventoryItem": map[string]any{"id": "i" + title}})
		}
	}
	doc.Options, doc.Variants = document.Of([]document.Option{rows, columns}), document.Of(variants)
	push := work.Push{ProductID: "1", Document: doc}
	o, _ := creation(push)
	for _, v := range list(object(o.vars["input"])["variants"]) {
		require.NotContains(t, v, "inventoryQuantities")
	}
	s := newShadow("")
	o.done(s, map[string]any{"product": map[string]any{"id": "p", "variants": map[string]any{"nodes": nodes}}})
	require.Len(t, decide(push, knowledge{shadow: s, sure: true}).rows, 52_000)

	doc.Variants.Value = doc.Variants.Value[:1]
	o, _ = creation(push)
	require.Contains(t, list(object(o.vars["input"])["variants"])[0], "inventoryQuantities")
}

func TestTheLargestReadsStayBelowTheCap(t *testing.T) {
	set := &settings{locations: map[string]string{}, publications: map[string]string{}}
	for i := range 200 {
		set.locations[fmt.Sprint(i)] = fmt.Sprint(i)
	}
	for i := range 250 {
		set.publications[fmt.Sprint(i)] = fmt.Sprint(i)
	}
	doc := &document.Document{Eligible: true, Images: document.Of([]document.Image{}), Publications: document.Of([]string{})}
	for i := range 250 {
		doc.Metafields.Value = append(doc.Metafields.Value, document.Metafield{Namespace: "pim", Key: fmt.Sprint(i)})
	}
	doc.Metafields.Owned = true
	for i := range 2048 {
		doc.Variants.Value = append(doc.Variants.Value, document.Variant{
			Key: fmt.Sprint(i), Metafields: doc.Metafields, Stock: document.Of([]document.Level{}),
		})
	}
	doc.Variants.Owned = true
	r := &reading{doc: doc, old: newShadow("gid://shopify/Product/1"), set: set}
	o := r.op("gid://shopify/Product/1")
	require.NoError(t, o.err)
	require.LessOrEqual(t, o.points, cost.MaxPerRequest)
	require.Equal(t, 200, o.vars["levels"], "an item may be stocked at every location")

	c := &catalogReader{set: set, shop: &shop{cfg: ShopConfig{Namespace: "shelfwire", Key: "product_id"}}}
	for _, o := range []*op{
		newOp("catalog", c.vars(map[string]any{"first": catalogProducts, "variants": catalogVariants}, "")),
		newOp("catalogVariants", c.vars(map[string]any{"id": "gid://shopify/Product/1", "variants": catalogRest}, "after")),
	} {
		require.NoError(t, o.err)
		require.LessOrEqual(t, o.points, cost.MaxPerRequest, o.document)
		require.Equal(t, 200, o.vars["levels"])
		t.Logf("%s costs %d points", o.document, o.points)
	}
}

func TestAnUnknownOutcomeOutweighsEveryOtherFailure(t *testing.T) {
	for _, first := range []*failure{unsent("no points"), {category: event.Validation, final: true}, {category: event.APILimit}} {
		j := &job{known: knowledge{sure: true}, shadow: newShadow("gid://shopify/Product/1")}
		j.fail(first)
		j.fail(&failure{category: event.ShopifyError, unanswered: true})
		require.True(t, j.result().Unanswered, "the intent must stand")
		j.fail(first)
		require.True(t, j.result().Unanswered)
	}
}
