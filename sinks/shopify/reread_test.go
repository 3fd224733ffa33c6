package shopify_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/sinks/shopify/shopifysim"
)

// restructured is a document that needs a read before it can be sent: it has an option more.
func restructured(doc *document.Document) *document.Document {
	doc.Options.Value = append(doc.Options.Value, document.Option{Name: "Colour", Values: []string{"red"}})
	for i := range doc.Variants.Value {
		doc.Variants.Value[i].Options = append(doc.Variants.Value[i].Options, "red")
	}
	return doc
}

func TestAFailedReadForgetsNothing(t *testing.T) {
	for _, kind := range []shopifysim.FaultKind{shopifysim.Unavailable, shopifysim.LostResponse, shopifysim.Unauthorized} {
		t.Run(string(kind), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				t.Helper()
				w.mustPush("1", shirt(2))
				before := w.known["1"]
				w.shop.Inject(shopifysim.Fault{Kind: kind, Field: "product"})
				r := w.push("1", restructured(shirt(2)))
				require.Equal(t, event.Retrying, r.Status)
				require.Equal(t, before.ShopifyID, r.ShopifyID, "the state must not think that the product is gone")
				require.Nil(t, r.Shadow)
				last := restructured(shirt(2))
				last.Tags = document.Of([]string{"cotton"})
				w.mustPush("1", last)
				require.Equal(t, []string{"cotton"}, w.product("1").Tags)
			})
		})
	}
}
