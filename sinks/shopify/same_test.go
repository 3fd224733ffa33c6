package shopify_test

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
	"github.com/shelfwire/shelfwire/sinks/shopify"
)

// evaluate plans a document with its text, as a push does, and settles a plan of nothing.
func (w *world) evaluate(id string, doc *document.Document, raw json.RawMessage) work.Plan {
	w.t.Helper()
	known := w.known[id]
	known.ProductID, known.Shop = id, testShop
	p := shopify.Plan(work.Push{ProductID: id, Shop: testShop, Document: doc, Raw: raw, Known: known})
	if p.Nothing {
		w.settle(p.Result)
		k := w.known[id]
		k.LastReason = p.Result.Reason
		w.known[id] = k
	}
	return p
}

func (w *world) same(id string, raw json.RawMessage) bool {
	k := w.known[id]
	return shopify.Same(&k, raw)
}

func TestADocumentThatWasComparedNeedsNoParsing(t *testing.T) {
	w := newWorld(t)
	doc, raw := shirt(1), json.RawMessage(`{"the": "text"}`)
	require.False(t, w.same("1", raw), "nothing is known")
	w.mustPush("1", doc)
	require.False(t, w.same("1", raw), "pushed, and not compared")
	require.True(t, w.evaluate("1", doc, raw).Nothing)
	require.True(t, w.same("1", raw))
	require.False(t, w.same("1", json.RawMessage(`{"the": "other"}`)))

	p := w.evaluate("1", doc, raw)
	require.Nil(t, p.Result.Shadow, "what is marked already is not written again")
	require.True(t, w.same("1", raw))

	for name, change := range map[string]func(*work.Known){
		"a request without an answer": func(k *work.Known) { k.Intents = []work.Intent{{Key: "k"}} },
		"an attempt that counts":      func(k *work.Known) { k.Attempt = 1 },
		"another outcome":             func(k *work.Known) { k.LastStatus = event.Held },
		"another reason":              func(k *work.Known) { k.LastReason = "EXCLUDED" },
		"a shadow that was given up":  func(k *work.Known) { k.Shadow = nil },
	} {
		k := w.known["1"]
		change(&k)
		require.False(t, shopify.Same(&k, raw), name)
	}

	other := shirt(1)
	other.Variants.Value[0].Price = document.Of("99.00")
	w.push("1", other)
	k := w.known["1"]
	k.LastStatus, k.LastReason = event.Skipped, shopify.ReasonUnchanged // whatever came after
	require.False(t, shopify.Same(&k, raw), "what was sent has taken the mark away")
}

// Whatever was pushed and compared in whatever order: a text that needs no parsing would be skipped after it, too.
func TestSameForetellsThePlan(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t)
		docs := []*document.Document{anyDocument(rt, nil), anyDocument(rt, nil)}
		raws := []json.RawMessage{json.RawMessage(`"a"`), json.RawMessage(`"b"`)}
		for range rapid.IntRange(2, 8).Draw(rt, "steps") {
			i := rapid.IntRange(0, 1).Draw(rt, "document")
			if p := w.evaluate("1", docs[i], raws[i]); !p.Nothing {
				w.send(p)
			}
			for i := range docs {
				if !w.same("1", raws[i]) {
					continue
				}
				k := w.known["1"]
				p := shopify.Plan(work.Push{ProductID: "1", Shop: testShop, Document: docs[i], Raw: raws[i], Known: k})
				require.True(rt, p.Nothing, "%s", p.Words)
				require.Equal(rt, shopify.ReasonUnchanged, p.Result.Reason)
				require.Nil(rt, p.Result.Shadow)
			}
		}
	})
}
