package shopify_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
	"github.com/shelfwire/shelfwire/sinks/shopify"
	"github.com/shelfwire/shelfwire/sinks/shopify/shopifysim"
)

// uploads numbers images, as a URL is an image's identity.
var uploads int

// anyDocument draws a document. Keys of variants come from a small set, so that documents of one product share some
// and trade options with each other; images are those of the document before in any order, some left out, some new.
func anyDocument(t *rapid.T, images []document.Image) *document.Document {
	d := &document.Document{Eligible: true}
	d.Title = document.Of(rapid.SampledFrom([]string{"Shirt", "Better shirt", "Größe & Ärmel"}).Draw(t, "title"))
	d.DescriptionHTML = anyField(t, "description", rapid.SampledFrom([]string{"", "<p>one</p>", strings.Repeat("<b>long</b>", 20)}))
	d.Vendor = anyField(t, "vendor", rapid.SampledFrom([]string{"Acme", "Other"}))
	if rapid.Bool().Draw(t, "seo") {
		d.SEO = document.Of(document.SEO{Title: anyField(t, "seo title", rapid.SampledFrom([]string{"a", "b"}))})
	}
	d.Tags = anyField(t, "tags", rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "c", "d"}), 0, 3, rapid.ID))
	d.Metafields = anyField(t, "metafields", anyMetafields())
	d.Publications = anyField(t, "publications",
		rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"Online Store", "Point of Sale"}), 0, 2, rapid.ID))
	if rapid.Bool().Draw(t, "images") {
		kept := []document.Image{}
		for _, i := range images {
			if rapid.IntRange(0, 3).Draw(t, "keep image") > 0 {
				i.Alt = rapid.SampledFrom([]string{i.Alt, "alt"}).Draw(t, "alt")
				kept = append(kept, i)
			}
		}
		for range rapid.IntRange(0, 2).Draw(t, "more images") {
			uploads++
			u := fmt.Sprintf("https://img.example.com/%d.jpg", uploads)
			kept = append(kept, document.Image{URL: u})
		}
		d.Images = document.Of(rapid.Permutation(kept).Draw(t, "order of images"))
	}
	anyVariants(t, d)
	return d
}

func anyField[T any](t *rapid.T, name string, g *rapid.Generator[T]) document.Field[T] {
	switch rapid.IntRange(0, 5).Draw(t, name+" owned") {
	case 0:
		return document.Field[T]{}
	case 1:
		return document.Cleared[T]()
	}
	return document.Of(g.Draw(t, name))
}

func anyMetafields() *rapid.Generator[[]document.Metafield] {
	return rapid.Custom(func(t *rapid.T) []document.Metafield {
		var out []document.Metafield
		for _, key := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"one", "two", "three"}), 0, 3, rapid.ID).Draw(t, "keys") {
			m := document.Metafield{Namespace: "pim", Key: key, Type: "single_line_text_field"}
			m.Value = document.Of(rapid.SampledFrom([]string{"x", "y"}).Draw(t, "value"))
			if rapid.IntRange(0, 5).Draw(t, "null") == 0 {
				m.Value = document.Cleared[string]()
			}
			out = append(out, m)
		}
		return out
	})
}

func anyVariants(t *rapid.T, d *document.Document) {
	var options []document.Option
	for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"Size", "Colour", "Fit"}), 1, 2, rapid.ID).Draw(t, "options") {
		options = append(options, document.Option{Name: name, Values: rapid.SliceOfNDistinct(
			rapid.SampledFrom([]string{"a", "b", "c", "d"}), 1, 3, rapid.ID).Draw(t, "values")})
	}
	var tuples [][]string
	for _, v := range options[0].Values {
		if len(options) == 1 {
			tuples = append(tuples, []string{v})
			continue
		}
		for _, w := range options[1].Values {
			tuples = append(tuples, []string{v, w})
		}
	}
	tuples = rapid.Permutation(tuples).Draw(t, "tuples")
	keys := rapid.Permutation([]string{"k1", "k2", "k3", "k4", "k5", "k6", "k7", "k8", "k9"}).Draw(t, "keys")
	var variants []document.Variant
	for i := range rapid.IntRange(1, min(5, len(tuples))).Draw(t, "variants") {
		v := document.Variant{Key: keys[i], Options: tuples[i], FirstPrice: "3.00"}
		if rapid.IntRange(0, 4).Draw(t, "priced") > 0 {
			v.Price = document.Of(rapid.SampledFrom([]string{"10.00", "12.50"}).Draw(t, "price"))
		}
		v.CompareAtPrice = anyField(t, "compare", rapid.Just("20.00"))
		v.SKU = anyField(t, "sku", rapid.SampledFrom([]string{"A", "B"}))
		v.Barcode = anyField(t, "barcode", rapid.SampledFrom([]string{"123", "456"}))
		v.Policy = anyField(t, "policy", rapid.SampledFrom([]string{"DENY", "CONTINUE"}))
		v.WeightGrams = anyField(t, "weight", rapid.SampledFrom([]float64{0, 250, 1500}))
		v.Cost = anyField(t, "cost", rapid.SampledFrom([]string{"1.00", "2.00"}))
		v.Metafields = anyField(t, "variant metafields", anyMetafields())
		if rapid.Bool().Draw(t, "stocked") {
			level := document.Level{Location: "Main", Quantity: rapid.IntRange(0, 9).Draw(t, "quantity")}
			level.Name = rapid.SampledFrom([]string{"", "on_hand"}).Draw(t, "name")
			levels := []document.Level{level}
			if rapid.Bool().Draw(t, "outlet") {
				levels = append(levels, document.Level{Location: "Outlet", Quantity: rapid.IntRange(0, 9).Draw(t, "quantity")})
			}
			v.Stock = document.Of(levels)
		}
		variants = append(variants, v)
	}
	d.Options, d.Variants = document.Of(options), document.Of(variants)
}

// merchant edits things that are nobody else's.
func (w *world) merchant(id string, n int) {
	w.api(`mutation($id: ID!, $t: [String!]!) { tagsAdd(id: $id, tags: $t) { userErrors { message } } }`,
		map[string]any{"id": id, "t": []any{fmt.Sprintf("own%d", n)}})
	w.api(`mutation($m: [MetafieldsSetInput!]!) { metafieldsSet(metafields: $m) { userErrors { message } } }`,
		map[string]any{"m": []any{map[string]any{
			"ownerId": id, "namespace": "merchant", "key": fmt.Sprintf("note%d", n), "type": "single_line_text_field", "value": "mine",
		}}})
	w.api(`mutation($p: ProductUpdateInput!, $m: [CreateMediaInput!]) { productUpdate(product: $p, media: $m) { userErrors { message } } }`,
		map[string]any{"p": map[string]any{"id": id}, "m": []any{map[string]any{
			"originalSource": fmt.Sprintf("https://merchant.example.com/own%d.jpg", n), "mediaContentType": "IMAGE",
		}}})
}

// requireMerchants holds that all that the merchant has put on a product is still there, once.
func requireMerchants(t checker, p shopifysim.Product, edits int) {
	t.Helper()
	for n := range edits {
		require.Contains(t, p.Tags, fmt.Sprintf("own%d", n), "the merchant's tags")
		found := 0
		for _, m := range p.Media {
			if m.Source == fmt.Sprintf("https://merchant.example.com/own%d.jpg", n) {
				found++
			}
		}
		for _, m := range p.Metafields {
			if m.Namespace == "merchant" && m.Key == fmt.Sprintf("note%d", n) {
				found++
			}
		}
		require.Equal(t, 2, found, "the merchant's image and metafield")
	}
}

func TestTheShopEqualsTheDocumentWhateverItWas(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t)
		var images []document.Image
		edits := 0
		orphans := map[string]bool{} // images that nobody can know to be ours
		for step := range rapid.IntRange(2, 6).Draw(rt, "steps") {
			doc := anyDocument(rt, images)
			if doc.Images.Owned {
				images = doc.Images.Value
			}
			if rapid.IntRange(0, 5).Draw(rt, "forget") == 0 {
				w.known = map[string]work.Known{}
				if step > 0 {
					for _, p := range w.shop.Products() {
						for _, m := range p.Media {
							orphans[m.Source] = true
						}
					}
				}
			}
			for _, i := range doc.Images.Value {
				delete(orphans, i.URL)
			}
			if rapid.IntRange(0, 5).Draw(rt, "off sale") == 0 {
				off := *doc
				off.Eligible, off.Reason = false, "NOT_APPROVED"
				w.push("1", &off)
			}
			r := w.push("1", doc)
			ok := r.Status == event.Success || r.Status == event.Skipped
			require.True(rt, ok, "%s %s %s: %s\nsent %s", r.Status, r.Category, r.Field, r.Message, r.Sent)
			again := w.plan("1", doc)
			require.True(rt, again.Nothing, "a second plan: %s", again.Words)
			p := w.product("1")
			p.Media = slices.DeleteFunc(p.Media, func(m shopifysim.Media) bool {
				return orphans[m.Source] && !strings.Contains(m.Source, "merchant")
			})
			requireEqual(rt, doc, p)
			requireMerchants(rt, p, edits)
			require.Len(rt, w.shop.Products(), 1)
			if rapid.Bool().Draw(rt, "merchant") {
				w.merchant(w.known["1"].ShopifyID, edits)
				edits++
			}
		}
	})
}

func TestPlanIsPureAndExplained(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		doc := anyDocument(rt, nil)
		push := work.Push{ProductID: "1", Shop: testShop, Document: doc}
		a, b := shopify.Plan(push), shopify.Plan(push)
		require.Equal(rt, a.Words, b.Words)
		require.Equal(rt, a.Points, b.Points)
		require.False(rt, a.Nothing)
		require.NotEmpty(rt, a.Words)
		require.Positive(rt, a.Points)
	})
}
