package shopify_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
	"github.com/shelfwire/shelfwire/sinks/shopify/shopifysim"
)

// partial lets the simulator execute a request without one of its root fields, and answers for that one with an error.
type partial struct {
	w     *world
	next  http.RoundTripper
	field string
	// path says whether the error names the alias.
	path    bool
	code    string
	message string
	times   int
}

func (p *partial) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	sent := p.w.wire.requests[len(p.w.wire.requests)-1]
	at := slices.Index(sent.roots, p.field)
	if at < 0 || p.times == 0 {
		return p.next.RoundTrip(r)
	}
	p.times--
	alias := "m" + string(rune('0'+at))
	// The field stays in the document and is skipped, so that all others keep their aliases.
	var in map[string]any
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, err
	}
	in["query"] = string(bytes.Replace([]byte(sent.query), []byte(alias+": "+p.field), []byte(alias+"x: "+p.field), 1))
	in["query"] = skipped(in["query"].(string), alias+"x: "+p.field)
	changed, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(changed)), int64(len(changed))
	resp, err := p.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	var out map[string]any
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
		return nil, err
	}
	delete(out, "extensions") // the cost is not what was sent
	data, _ := out["data"].(map[string]any)
	data[alias] = nil
	e := map[string]any{"message": p.message, "extensions": map[string]any{"code": p.code}}
	if p.path {
		e["path"] = []any{alias}
	}
	out["errors"] = []any{e}
	raw, err := json.Marshal(out)
	resp.Body = io.NopCloser(bytes.NewReader(raw))
	return resp, err
}

// skipped puts @skip(if: true) behind the arguments of a root field.
func skipped(query, field string) string {
	at := bytes.Index([]byte(query), []byte(field)) + len(field)
	depth := 0
	for i := at; i < len(query); i++ {
		switch query[i] {
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				return query[:i+1] + " @skip(if: true)" + query[i+1:]
			}
		}
	}
	return query
}

func TestAPartlyExecutedRequestIsNeitherForgottenNorRepeated(t *testing.T) {
	for name, c := range map[string]struct {
		code, message string
		path          bool
		category      event.Category
		dead          bool
	}{
		"a scope is missing":   {"ACCESS_DENIED", "Access denied for publishablePublish field.", true, event.ShopifyError, true},
		"throttled on the way": {"THROTTLED", "Throttled", false, event.APILimit, false},
		"throttled at a field": {"THROTTLED", "Throttled", true, event.APILimit, false},
		"an internal error":    {"INTERNAL_SERVER_ERROR", "Internal error.", false, event.ShopifyError, false},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				t.Helper()
				pictured, published := shirt(1), shirt(1)
				w.mustPush("1", pictured)
				w.mustPush("2", published)
				pictured.Images.Value = append(pictured.Images.Value, document.Image{URL: "https://img.example.com/new.jpg"})
				published.Publications = document.Of([]string{"Online Store", "Point of Sale"})
				p := &partial{w: w, next: w.wire.next, field: "publishablePublish", path: c.path, code: c.code, message: c.message, times: 1}
				w.wire.next = p
				r := w.send(w.plan("1", pictured), w.plan("2", published))
				require.Zero(t, p.times)
				require.Equal(t, event.Success, r[0].Status, r[0].Message)
				require.True(t, w.plan("1", pictured).Nothing, "what was done is known")
				require.Equal(t, event.Retrying, r[1].Status)
				require.Equal(t, c.category, r[1].Category)
				require.Equal(t, c.dead, r[1].ShopDead)
				w.mustPush("2", published)
				requireEqual(t, pictured, w.product("1"))
				requireEqual(t, published, w.product("2"))
			})
		})
	}
}

// answering gives one prepared answer to the first request with a root field, and executes nothing.
type answering struct {
	w     *world
	next  http.RoundTripper
	field string
	body  string
	times int
	// status and header default to a 200 without any.
	status int
	header http.Header
}

func (a *answering) RoundTrip(r *http.Request) (*http.Response, error) {
	if sent := a.w.wire.requests[len(a.w.wire.requests)-1]; a.times == 0 || !slices.Contains(sent.roots, a.field) {
		return a.next.RoundTrip(r)
	}
	a.times--
	return &http.Response{StatusCode: cmp.Or(a.status, http.StatusOK), Header: a.header.Clone(), Body: io.NopCloser(bytes.NewReader([]byte(a.body)))}, nil
}

func TestAPassingRefusalOfStockIsNotSplit(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		t.Helper()
		var plans []work.Plan
		for _, id := range []string{"1", "2", "3", "4"} {
			w.mustPush(id, shirt(1))
			doc := shirt(1)
			doc.Variants.Value[0].Stock = document.Of([]document.Level{{Location: "Main", Quantity: 50}})
			plans = append(plans, w.plan(id, doc))
		}
		w.wire.take()
		w.wire.next = &answering{w: w, next: w.wire.next, field: "inventorySetQuantities", times: 99, body: `{"data":{"m0":{"userErrors":[{"field":null,
			"message":"This request is currently inProgress, please try again.","code":"IDEMPOTENCY_CONCURRENT_REQUEST"}]}}}`}
		for _, r := range w.send(plans...) {
			require.Equal(t, event.Retrying, r.Status)
			require.Equal(t, event.ShopifyError, r.Category)
		}
		require.Len(t, w.wire.take(), 1, "splitting does not help against what passes by itself")
	})
}

func TestAVariantDeletedInTheShopIsFoundByItsMetafield(t *testing.T) {
	w := newWorld(t)
	doc := shirt(2)
	for i := range doc.Variants.Value {
		doc.Variants.Value[i].Metafields = document.Of([]document.Metafield{
			{Namespace: "pim", Key: "fit", Type: "single_line_text_field", Value: document.Of("slim")},
		})
	}
	w.mustPush("1", doc)
	w.api(`mutation($p: ID!, $v: [ID!]!) { productVariantsBulkDelete(productId: $p, variantsIds: $v) { userErrors { message } } }`,
		map[string]any{"p": w.known["1"].ShopifyID, "v": []any{w.product("1").Variants[1].ID}})
	doc.Variants.Value[1].Metafields.Value[0].Value = document.Of("wide")
	w.mustPush("1", doc)
	requireEqual(t, doc, w.product("1"))
}

func TestTagsOfALostRequestAreNotOursForEver(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		t.Helper()
		doc := shirt(1)
		w.mustPush("1", doc)
		doc.Tags = document.Of([]string{"summer", "cotton", "sale"})
		w.shop.Inject(shopifysim.Fault{Kind: shopifysim.LostResponse, Field: "tagsAdd"})
		w.pushed("1", doc)
		doc.Tags = document.Of([]string{"summer", "cotton"})
		w.pushed("1", doc)
		require.NotContains(t, w.product("1").Tags, "sale")
		<-time.After(2 * flight)
		w.pushed("1", doc) // no request is in flight any more
		w.settle(w.plan("1", doc).Result)
		// A merchant now gives the tag a meaning of his own.
		w.api(`mutation($id: ID!) { tagsAdd(id: $id, tags: ["sale"]) { userErrors { message } } }`, map[string]any{"id": w.known["1"].ShopifyID})
		doc.Title = document.Of("Lost again")
		w.shop.Inject(shopifysim.Fault{Kind: shopifysim.LostResponse, Field: "productUpdate"})
		w.pushed("1", doc)
		w.pushed("1", doc)
		require.Contains(t, w.product("1").Tags, "sale")
	})
}

func TestALevelThatLeftTheDocumentIsTheMerchants(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		t.Helper()
		doc := shirt(1)
		doc.Variants.Value[0].Stock = document.Of([]document.Level{{Location: "Main", Quantity: 5}, {Location: "Outlet", Quantity: 4}})
		w.mustPush("1", doc)
		doc.Variants.Value[0].Stock = document.Of([]document.Level{{Location: "Main", Quantity: 5}})
		w.mustPush("1", doc)
		level := func() int64 {
			for _, l := range w.product("1").Variants[0].Levels {
				if l.Location == "Outlet" {
					return l.Quantities["available"]
				}
			}
			return -1
		}
		require.Zero(t, level())
		w.api(`mutation($i: InventorySetQuantitiesInput!) { inventorySetQuantities(input: $i) @idempotent(key: "own") { userErrors { message } } }`,
			map[string]any{"i": map[string]any{"name": "available", "reason": "correction", "quantities": []any{map[string]any{
				"inventoryItemId": w.product("1").Variants[0].InventoryItemID, "locationId": w.shop.Locations()[1].ID,
				"quantity": 9, "changeFromQuantity": 0,
			}}}})
		doc.Title = document.Of("Lost")
		w.shop.Inject(shopifysim.Fault{Kind: shopifysim.LostResponse, Field: "productUpdate"})
		w.pushed("1", doc)
		w.pushed("1", doc)
		require.Equal(t, int64(9), level())
	})
}

func TestAPriceThatRoundsToZeroIsAnEffect(t *testing.T) {
	w := newWorld(t)
	doc := shirt(2)
	w.mustPush("1", doc)
	doc.Variants.Value[1].Price = document.Of("0.004")
	require.Equal(t, []work.Effect{work.EffectZeroPrice}, w.plan("1", doc).Effects)
}

// renaming changes what the shop says its locations and channels are called.
type renaming struct {
	w    *world
	next http.RoundTripper
	as   func(text string) string
}

func (n *renaming) RoundTrip(r *http.Request) (*http.Response, error) {
	sent := n.w.wire.requests[len(n.w.wire.requests)-1]
	resp, err := n.next.RoundTrip(r)
	if err != nil || n.as == nil || !slices.Contains(sent.roots, "locations") && !slices.Contains(sent.roots, "publications") {
		return resp, err
	}
	raw, err := io.ReadAll(resp.Body)
	resp.Body = io.NopCloser(bytes.NewReader([]byte(n.as(string(raw)))))
	return resp, err
}

func TestALocationThatWasReplacedIsFoundAgain(t *testing.T) {
	for name, as := range map[string]func(w *world) *strings.Replacer{
		"by a new one": func(w *world) *strings.Replacer {
			return strings.NewReplacer(w.shop.Locations()[0].ID, "gid://shopify/Location/77")
		},
		"by another one": func(*world) *strings.Replacer {
			return strings.NewReplacer(`"Main"`, `"Outlet"`, `"Outlet"`, `"Main"`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				t.Helper()
				change := &renaming{w: w, next: w.wire.next, as: as(w).Replace}
				w.wire.next = change
				doc := shirt(1)
				doc.Variants.Value[0].Stock = document.Of([]document.Level{})
				w.mustPush("1", doc)
				change.as = nil // what was said until now has been changed by the merchant
				<-time.After(time.Hour)
				doc.Variants.Value[0].Stock = document.Of([]document.Level{{Location: "Main", Quantity: 50}})
				w.mustPush("1", doc)
				requireEqual(t, doc, w.product("1"))
			})
		})
	}
	t.Run("a moment ago", func(t *testing.T) {
		bubble(t, func(t *testing.T, w *world) {
			t.Helper()
			change := &renaming{w: w, next: w.wire.next, as: strings.NewReplacer(w.shop.Locations()[0].ID, "gid://shopify/Location/77").Replace}
			w.wire.next = change
			doc := shirt(1)
			doc.Variants.Value[0].Stock = document.Of([]document.Level{})
			w.mustPush("1", doc)
			change.as = nil
			<-time.After(2 * time.Minute)
			doc.Variants.Value[0].Stock = document.Of([]document.Level{{Location: "Main", Quantity: 50}})
			w.mustPush("1", doc)
			w.mustPush("2", doc)
			requireEqual(t, doc, w.product("1"))
		})
	})
}

func TestADefinitionThatWasDeletedIsMadeAgain(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		t.Helper()
		w.mustPush("1", shirt(1))
		w.wire.next = &answering{w: w, next: w.wire.next, field: "productByIdentifier", times: 1, body: `{"data":{"m0":null},"errors":[{
			"message":"Metafield definition of type 'id' is required when using custom ids.","path":["m0"],"extensions":{"code":"NOT_FOUND"}}]}`}
		w.wire.take()
		r := w.push("2", shirt(1))
		require.Equal(t, event.Retrying, r.Status, "nothing is created while nothing can be found")
		require.Empty(t, mutations(w.wire.take()))
		w.mustPush("2", shirt(1))
		require.Equal(t, []string{"metafieldDefinitionCreate"}, mutations(w.wire.take())[0].roots)
	})
}

func TestWhatIsNoLongerThereNeedNotBeTakenAway(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		t.Helper()
		change := &renaming{w: w, next: w.wire.next}
		w.wire.next = change
		doc := shirt(1)
		doc.Publications = document.Of([]string{"Online Store", "Point of Sale"})
		doc.Variants.Value[0].Stock = document.Of([]document.Level{{Location: "Main", Quantity: 5}, {Location: "Outlet", Quantity: 4}})
		w.mustPush("1", doc)
		// The outlet is closed and the channel uninstalled, in the shop and in the source.
		change.as = strings.NewReplacer(`"Outlet"`, `"Other"`, `"Point of Sale"`, `"Other"`).Replace
		<-time.After(time.Hour)
		doc.Title = document.Of("Last stock")
		doc.Publications = document.Of([]string{"Online Store"})
		doc.Variants.Value[0].Stock = document.Of([]document.Level{{Location: "Main", Quantity: 9}})
		w.mustPush("1", doc)
		require.Equal(t, "Last stock", w.product("1").Title)
	})
}
