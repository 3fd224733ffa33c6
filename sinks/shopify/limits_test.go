package shopify_test

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
	"github.com/shelfwire/shelfwire/sinks/shopify/shopifysim"
)

func pim(n int, value string) []document.Metafield {
	var out []document.Metafield
	for i := range n {
		out = append(out, document.Metafield{
			Namespace: "pim", Key: fmt.Sprintf("f%s%d", value, i), Type: "single_line_text_field", Value: document.Of(value),
		})
	}
	return out
}

// wide is a document of rows × columns variants over two options.
func wide(rows, columns int) *document.Document {
	d := shirt(1)
	a, b := document.Option{Name: "Size"}, document.Option{Name: "Colour"}
	for j := range columns {
		b.Values = append(b.Values, fmt.Sprintf("C%d", j))
	}
	var variants []document.Variant
	for i := range rows {
		a.Values = append(a.Values, fmt.Sprintf("R%d", i))
		for j := range columns {
			variants = append(variants, document.Variant{
				Key: fmt.Sprintf("w%d-%d", i, j), Options: []string{a.Values[i], b.Values[j]}, Price: document.Of("5.00"),
			})
		}
	}
	d.Options, d.Variants = document.Of([]document.Option{a, b}), document.Of(variants)
	return d
}

func TestAsManyMetafieldsAsTheContractAllows(t *testing.T) {
	w := newWorld(t)
	doc := shirt(1)
	doc.Metafields = document.Of(pim(250, "a"))
	doc.Variants.Value[0].Metafields = document.Of(pim(250, "a"))
	w.mustPush("1", doc)
	requireEqual(t, doc, w.product("1"))
	// All are others now, and a read looks for both.
	doc.Metafields = document.Of(pim(250, "b"))
	doc.Variants.Value[0].Metafields = document.Of(pim(250, "b"))
	k := w.known["1"]
	k.Intents = []work.Intent{{Key: "lost"}}
	w.known["1"] = k
	w.mustPush("1", doc)
	requireEqual(t, doc, w.product("1"))
}

func TestDearVariantsAreCreatedInSeveralSteps(t *testing.T) {
	w := newWorld(t)
	doc := shirt(1)
	w.mustPush("1", doc)
	doc = shirt(60)
	for i := range doc.Variants.Value {
		doc.Variants.Value[i].Metafields = document.Of(pim(50, "m"))
	}
	w.mustPush("1", doc)
	requireEqual(t, doc, w.product("1"))
}

func TestALargeNewStructureFits(t *testing.T) {
	w := newWorld(t)
	w.mustPush("1", shirt(1))
	doc := wide(80, 25)
	w.mustPush("1", doc)
	requireEqual(t, doc, w.product("1"))
}

func TestAMerchantsPictureWithALongerNameIsNotOurs(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		t.Helper()
		doc := shirt(1)
		doc.Images = document.Of([]document.Image{})
		w.mustPush("1", doc)
		w.api(`mutation($p: ProductUpdateInput!, $m: [CreateMediaInput!]) { productUpdate(product: $p, media: $m) { userErrors { message } } }`,
			map[string]any{"p": map[string]any{"id": w.known["1"].ShopifyID}, "m": []any{map[string]any{
				"originalSource": "https://merchant.example.com/red_shoe_from_above.jpg", "mediaContentType": "IMAGE", "alt": "by hand",
			}}})
		doc.Images = document.Of([]document.Image{{URL: "https://img.example.com/red.jpg", Alt: "ours"}})
		w.shop.Inject(shopifysim.Fault{Kind: shopifysim.LostRequest, Field: "productUpdate"})
		w.pushed("1", doc)
		w.pushed("1", doc)
		doc.Images = document.Of([]document.Image{})
		w.mustPush("1", doc)
		p := w.product("1")
		require.Len(t, p.Media, 1)
		require.Equal(t, "by hand", p.Media[0].Alt)
	})
}

func TestOurOwnIdentityIsNobodysMetafield(t *testing.T) {
	w := newWorld(t)
	for name, change := range map[string]func(d *document.Document){
		"product": func(d *document.Document) {
			d.Metafields = document.Of([]document.Metafield{{Namespace: "shelfwire", Key: "product_id", Type: "id", Value: document.Of("7")}})
		},
		"cleared": func(d *document.Document) {
			d.Metafields = document.Of([]document.Metafield{{Namespace: "shelfwire", Key: "product_id", Type: "id", Value: document.Cleared[string]()}})
		},
		"variant": func(d *document.Document) {
			d.Variants.Value[0].Metafields = document.Of([]document.Metafield{
				{Namespace: "shelfwire", Key: "variant_key", Type: "single_line_text_field", Value: document.Of("7")},
			})
		},
	} {
		doc := shirt(1)
		w.mustPush(name, doc)
		change(doc)
		r := w.push(name, doc)
		require.Equal(t, event.Failed, r.Status, name)
		require.Equal(t, event.Validation, r.Category)
		require.Contains(t, r.Field, "metafields")
	}
}

func TestADailyLimitOfVariantsHoldsOnlyWhatMakesVariants(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		t.Helper()
		w.mustPush("1", shirt(1))
		priced := shirt(1)
		priced.Variants.Value[0].Price = document.Of("99.00")
		w.shop.Inject(shopifysim.Fault{Kind: shopifysim.DailyVariants, Field: "productSet", Count: 99})
		start := time.Now()
		r := w.send(w.plan("2", shirt(1)), w.plan("1", priced))
		require.Less(t, time.Since(start), time.Minute)
		require.Equal(t, event.Retrying, r[0].Status)
		require.Equal(t, event.APILimit, r[0].Category)
		require.Equal(t, time.Hour, r[0].RetryAfter)
		require.False(t, r[0].Counts)
		if r[1].Status != event.Success {
			require.Equal(t, event.Retrying, r[1].Status)
			require.Less(t, r[1].RetryAfter, time.Minute)
			w.mustPush("1", priced)
		}
		r = w.send(w.plan("3", shirt(1)), w.plan("1", priced))
		require.Equal(t, event.APILimit, r[0].Category, "it is not asked again at once")
		require.NotEqual(t, event.Retrying, r[1].Status)
		w.shop.ClearInjected()
		<-time.After(time.Hour)
		w.mustPush("2", shirt(1))
		require.Len(t, w.shop.Products(), 2)
	})
}

func TestALongWaitIsLeftToTheCaller(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		t.Helper()
		w.mustPush("1", shirt(1))
		doc := shirt(1)
		doc.Title = document.Of("Later")
		w.wire.next = &answering{
			w: w, next: w.wire.next, field: "productUpdate", times: 1, status: http.StatusTooManyRequests,
			header: http.Header{"Retry-After": {"600"}}, body: `{}`,
		}
		start := time.Now()
		r := w.push("1", doc)
		require.Less(t, time.Since(start), time.Minute, "the lease of its products is held so long")
		require.Equal(t, event.APILimit, r.Category)
		require.Equal(t, 10*time.Minute, r.RetryAfter)
		w.mustPush("1", doc)
	})
}

func TestStockStaysKnownThroughADoubtWhileOffSale(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		t.Helper()
		doc := shirt(1)
		doc.Variants.Value[0].Stock = document.Of([]document.Level{{Location: "Main", Quantity: 5}, {Location: "Outlet", Quantity: 4}})
		w.mustPush("1", doc)
		w.shop.Inject(shopifysim.Fault{Kind: shopifysim.LostResponse, Field: "productUpdate"})
		off := &document.Document{Reason: "NOT_APPROVED"}
		w.pushed("1", off)
		w.pushed("1", off)
		doc.Variants.Value[0].Stock = document.Of([]document.Level{{Location: "Main", Quantity: 5}})
		w.pushed("1", doc)
		requireNoOtherStock(t, doc.Variants.Value[0], w.product("1").Variants[0])
	})
}
