package shopify_test

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
	"github.com/shelfwire/shelfwire/sinks/shopify/shopifysim"
)

// crashed pushes as a worker that is killed before it has settled: the shop may have been written to, and the state
// knows nothing but the intents.
func (w *world) crashed(id string, doc *document.Document) {
	w.t.Helper()
	w.intents = nil
	w.client.Send(w.t.Context(), testShop, []work.Plan{w.plan(id, doc)}, w.intend)
	w.open(id)
}

// open adds the intents of the last Send to those that stand open.
func (w *world) open(id string) {
	k := w.known[id]
	for _, in := range w.intents {
		if slices.Contains(in.ProductIDs, id) {
			k.Intents = append(slices.Clone(k.Intents), in)
		}
	}
	w.known[id] = k
}

// flight is how long a request may be on its way.
const flight = 2 * time.Minute

// pushed pushes and settles as the stage does: an unanswered request's intent stays, and one that may still land too.
func (w *world) pushed(id string, doc *document.Document) work.Result {
	w.t.Helper()
	before := w.known[id].Intents
	r := w.push(id, doc)
	k := w.known[id]
	if !r.Unanswered {
		k.Intents = nil
		before = slices.DeleteFunc(slices.Clone(before), func(i work.Intent) bool { return time.Since(i.At) > flight })
	}
	k.Intents = append(slices.Clone(before), k.Intents...)
	w.known[id] = k
	return r
}

// mine is what of a product is not the merchant's.
func mine(list []string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return strings.HasPrefix(s, "own") })
}

func TestLostAnswersAndKillsLeaveNothingBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// rapid asks a *testing.T for its deadline, which a bubble does not allow.
		rapid.Check(struct{ testing.TB }{t}, func(rt *rapid.T) {
			w, id := newWorld(t), "1"
			var images []document.Image
			edits := 0
			for range rapid.IntRange(1, 4).Draw(rt, "steps") {
				doc := stocked(anyDocument(rt, images))
				if doc.Images.Owned {
					images = doc.Images.Value
				}
				kind := rapid.SampledFrom([]shopifysim.FaultKind{
					shopifysim.Healthy, shopifysim.LostResponse, shopifysim.LostRequest, shopifysim.Late, shopifysim.HangExecuted,
					shopifysim.InternalError, shopifysim.Truncated,
				}).Draw(rt, "fault")
				if kind != shopifysim.Healthy {
					w.shop.Inject(shopifysim.Fault{Kind: kind, Skip: rapid.IntRange(0, 3).Draw(rt, "skip")})
				}
				if rapid.Bool().Draw(rt, "killed") {
					w.crashed(id, doc)
				} else {
					w.pushed(id, doc)
				}
				w.shop.ClearInjected()
				// A creation that lands late is a productSet by custom id: Shopify replaces the lists that it carries.
				creating := slices.ContainsFunc(w.known[id].Intents, func(i work.Intent) bool { return strings.HasPrefix(i.Mutation, "productSet") })
				if w.known[id].ShopifyID != "" && !creating && rapid.Bool().Draw(rt, "merchant") {
					w.merchant(w.known[id].ShopifyID, edits)
					edits++
				}
				<-time.After(time.Duration(rapid.IntRange(0, 10).Draw(rt, "seconds")) * time.Second)
			}
			last := stocked(anyDocument(rt, images))
			last.Tags.Owned, last.Metafields.Owned, last.Images.Owned, last.Publications.Owned = true, true, true, true
			r := w.pushed(id, last)
			if r.Status == event.Retrying { // something late has landed between its read and its write
				r = w.pushed(id, last)
			}
			require.Contains(rt, []event.Status{event.Success, event.Skipped}, r.Status, "%s %s\n%s", r.Field, r.Message, r.Sent)
			<-time.After(flight + time.Second)
			r = w.pushed(id, last)
			require.Contains(rt, []event.Status{event.Success, event.Skipped}, r.Status, "%s %s\n%s", r.Field, r.Message, r.Sent)
			require.Empty(rt, w.known[id].Intents)
			require.True(rt, w.plan(id, last).Nothing, "%s", w.plan(id, last).Words)
			require.Len(rt, w.shop.Products(), 1)
			p := w.product(id)
			requireEqual(rt, last, p)
			require.ElementsMatch(rt, last.Tags.Value, mine(p.Tags), "tags")
			require.ElementsMatch(rt, last.Publications.Value, slices.Collect(maps.Keys(p.Publications)), "publications")
			requireOnly(rt, last.Metafields, p.Metafields)
			for _, v := range last.Variants.Value {
				got := variantOf(p, v.Options)
				if v.Metafields.Owned {
					requireOnly(rt, v.Metafields, got.Metafields)
				}
				requireNoOtherStock(rt, v, got)
			}
			requireMerchants(rt, p, edits)
		})
	})
}

// stocked makes all stock the document's: levels that it has stopped owning are not looked at again.
func stocked(doc *document.Document) *document.Document {
	for i := range doc.Variants.Value {
		if v := &doc.Variants.Value[i]; !v.Stock.Owned {
			v.Stock = document.Of([]document.Level{})
		}
	}
	return doc
}

func variantOf(p shopifysim.Product, options []string) shopifysim.Variant {
	i := slices.IndexFunc(p.Variants, func(v shopifysim.Variant) bool { return slices.Equal(v.Values, options) })
	return p.Variants[i]
}

// requireOnly holds that no metafield of ours is there beside the wanted ones.
func requireOnly(t checker, want document.Field[[]document.Metafield], have []shopifysim.Metafield) {
	t.Helper()
	var names, found []string
	for _, m := range want.Value {
		if !m.Value.Null {
			names = append(names, m.Key)
		}
	}
	for _, m := range have {
		if m.Namespace == "pim" {
			found = append(found, m.Key)
		}
	}
	require.ElementsMatch(t, names, found, "metafields")
}

func requireNoOtherStock(t checker, want document.Variant, have shopifysim.Variant) {
	t.Helper()
	for _, l := range have.Levels {
		if !slices.ContainsFunc(want.Stock.Value, func(w document.Level) bool { return w.Location == l.Location }) {
			require.Zero(t, l.Quantities["available"], "stock at %s, which the document does not name", l.Location)
		}
	}
}
