package shopify_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
	"github.com/shelfwire/shelfwire/sinks/shopify"
	"github.com/shelfwire/shelfwire/sinks/shopify/shopifysim"
)

// bubble runs f in fake time with a world of its own.
func bubble(t *testing.T, f func(t *testing.T, w *world), change ...func(*shopify.Config)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, newWorld(t, change...)) })
}

func TestEachFaultIsClassified(t *testing.T) {
	for _, c := range []struct {
		kind       shopifysim.FaultKind
		category   event.Category
		dead       bool
		unanswered bool
	}{
		{shopifysim.ServerError, event.ShopifyError, false, true},
		{shopifysim.BadGateway, event.ShopifyError, false, true},
		{shopifysim.GatewayTimeout, event.ShopifyError, false, true},
		{shopifysim.InternalError, event.ShopifyError, false, true},
		{shopifysim.InternalRefused, event.ShopifyError, false, true},
		{shopifysim.LostResponse, event.Network, false, true},
		{shopifysim.LostRequest, event.Network, false, true},
		{shopifysim.Late, event.Network, false, true},
		{shopifysim.Hang, event.Network, false, true},
		{shopifysim.HangExecuted, event.Network, false, true},
		{shopifysim.Garbage, event.Unknown, false, true},
		{shopifysim.Unauthorized, event.ShopifyError, true, false},
		{shopifysim.PaymentRequired, event.ShopifyError, true, false},
		{shopifysim.Forbidden, event.ShopifyError, true, false},
		{shopifysim.NotFound, event.ShopifyError, true, false},
		{shopifysim.Locked, event.ShopifyError, true, false},
		{shopifysim.Redirect, event.ShopifyError, true, false},
	} {
		t.Run(string(c.kind), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				t.Helper()
				w.mustPush("1", shirt(2))
				doc := shirt(2)
				doc.Title = document.Of("Changed")
				w.shop.Inject(shopifysim.Fault{Kind: c.kind, Field: "productUpdate"})
				start := time.Now()
				r := w.push("1", doc)
				require.Equal(t, event.Retrying, r.Status, r.Message)
				require.Equal(t, c.category, r.Category, r.Message)
				require.Equal(t, c.dead, r.ShopDead)
				require.Equal(t, c.unanswered, r.Unanswered)
				require.NotEmpty(t, r.Message)
				require.NotContains(t, r.Message, "secret")
				require.LessOrEqual(t, time.Since(start), 16*time.Second)
				<-time.After(10 * time.Second) // what is late has landed
				// The next attempt reads first when it has to, and ends right.
				r = w.push("1", doc)
				require.Contains(t, []event.Status{event.Success, event.Skipped}, r.Status, r.Message)
				require.Equal(t, "Changed", w.product("1").Title)
				require.True(t, w.plan("1", doc).Nothing)
			})
		})
	}
}

func TestALostCreationIsNeverDoubled(t *testing.T) {
	for _, kind := range []shopifysim.FaultKind{
		shopifysim.LostResponse, shopifysim.LostRequest, shopifysim.HangExecuted, shopifysim.GatewayTimeout,
		shopifysim.InternalError, shopifysim.Truncated, shopifysim.Garbage, shopifysim.Late,
	} {
		t.Run(string(kind), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				t.Helper()
				doc := shirt(3)
				w.shop.Inject(shopifysim.Fault{Kind: kind, Field: "productSet"})
				r := w.push("1", doc)
				require.Equal(t, event.Retrying, r.Status)
				require.True(t, r.Unanswered)
				require.NotEmpty(t, w.known["1"].Intents)
				// The document has moved on meanwhile: a variant and an image are others.
				doc.Options.Value[0].Values[2] = "XL"
				doc.Variants.Value[2].Options = []string{"XL"}
				doc.Images.Value[1].URL = "https://img.example.com/other.jpg"
				r = w.push("1", doc)
				require.Equal(t, event.Success, r.Status, "%s %s", r.Message, r.Sent)
				<-time.After(10 * time.Second)
				require.Len(t, w.shop.Products(), 1)
				if kind == shopifysim.Late { // the old creation has landed on top: the check after the flight time finds it
					k := w.known["1"]
					k.Intents = []work.Intent{{Key: "late"}}
					w.known["1"] = k
					w.push("1", doc)
				}
				requireEqual(t, doc, w.product("1"))
			})
		})
	}
}

func TestADoubtStandsUntilTheShopIsRead(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		t.Helper()
		w.shop.Inject(shopifysim.Fault{Kind: shopifysim.LostResponse, Field: "productSet"})
		r := w.push("1", shirt(1))
		require.True(t, r.Unanswered)
		intents := w.known["1"].Intents
		w.shop.Inject(shopifysim.Fault{Kind: shopifysim.Unavailable, Field: "productByIdentifier"})
		r = w.push("1", shirt(1))
		require.Equal(t, event.Retrying, r.Status)
		require.True(t, r.Unanswered)
		k := w.known["1"]
		k.Intents = intents
		w.known["1"] = k
		bad := shirt(1)
		bad.Title = document.Of("")
		p := w.plan("1", bad)
		require.True(t, p.Nothing)
		require.Equal(t, event.Validation, p.Result.Category)
		require.True(t, p.Result.Unanswered)
		r = w.push("1", shirt(1))
		require.Equal(t, event.Success, r.Status, "what was left was the publishing: %s", r.Message)
		require.False(t, r.Unanswered)
		require.Len(t, w.shop.Products(), 1)
	})
}

func TestThrottlingIsWaitedForAndDoesNotCount(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		t.Helper()
		w.mustPush("1", shirt(1))
		doc := shirt(1)
		doc.Title = document.Of("Changed")
		w.shop.Inject(shopifysim.Fault{Kind: shopifysim.Throttle, Field: "productUpdate", Count: 3})
		r := w.push("1", doc)
		require.Equal(t, event.Success, r.Status, r.Message)
		require.Len(t, w.intents, 4, "the lease is asked before each attempt, however long it has waited")
		for _, i := range w.intents {
			require.Equal(t, w.intents[0].Key, i.Key, "nothing was executed: one key for all attempts")
		}
	})
}

func TestALimitThatStaysIsLeftToTheCaller(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		t.Helper()
		w.mustPush("1", shirt(1))
		doc := shirt(1)
		doc.Title = document.Of("Changed")
		w.shop.SetHealth(shopifysim.TooMany)
		r := w.push("1", doc)
		require.Equal(t, event.Retrying, r.Status)
		require.Equal(t, event.APILimit, r.Category)
		require.False(t, r.Counts)
		require.False(t, r.Unanswered)
	})
}

func TestNothingGoesOutWithoutIntent(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		t.Helper()
		w.mustPush("1", shirt(1))
		w.wire.take()
		doc := shirt(1)
		doc.Title = document.Of("Changed")
		fenced := errors.New("the lease is another's")
		r := w.client.Send(t.Context(), testShop, []work.Plan{w.plan("1", doc)}, func(context.Context, []work.Intent) error { return fenced })[0]
		require.Equal(t, event.Retrying, r.Status)
		require.False(t, r.Unanswered)
		require.Contains(t, r.Message, fenced.Error())
		require.Empty(t, w.wire.take())
	})
}

func TestADeadShopFailsAllItsProductsAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		t.Helper()
		w.shop.SetHealth(shopifysim.Unauthorized)
		var plans []work.Plan
		for i := range 5 {
			plans = append(plans, w.plan(fmt.Sprint(i), shirt(1)))
		}
		for _, r := range w.send(plans...) {
			require.True(t, r.ShopDead)
			require.False(t, r.Counts)
		}
		require.Error(t, w.client.Probe(t.Context(), testShop))
		w.shop.SetHealth(shopifysim.Healthy)
		require.NoError(t, w.client.Probe(t.Context(), testShop))
	})
}

func TestAPoisonProductDoesNotTakeTheOthersWithIt(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		t.Helper()
		var plans []work.Plan
		for i := range 8 {
			doc := shirt(1)
			if i == 5 {
				doc.Metafields.Value[0].Type = "no_such_type"
			}
			plans = append(plans, w.plan(fmt.Sprint(i), doc))
		}
		for i, r := range w.send(plans...) {
			if i == 5 {
				require.Equal(t, event.Failed, r.Status)
				require.Equal(t, event.Validation, r.Category)
				continue
			}
			require.Equal(t, event.Success, r.Status, r.Message)
		}
	})
}

func TestAnInvalidRequestIsSplitToTheProductThatBreaksIt(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		t.Helper()
		var plans []work.Plan
		for i := range 9 {
			w.mustPush(fmt.Sprint(i), shirt(1))
		}
		for i := range 9 {
			doc := shirt(1)
			doc.Variants.Value[0].Price = document.Of("21.00")
			doc.Variants.Value[0].Stock = document.Of([]document.Level{{Location: "Main", Quantity: 50 + i}})
			plans = append(plans, w.plan(fmt.Sprint(i), doc))
		}
		// The whole request is refused whenever product 4 is in it.
		poison := w.known["4"].ShopifyID
		w.wire.next = refusing{w.wire.next, poison}
		for i, r := range w.send(plans...) {
			if i == 4 {
				require.Equal(t, event.Failed, r.Status)
				require.Equal(t, event.Validation, r.Category)
				continue
			}
			require.Equal(t, event.Success, r.Status, "%d: %s", i, r.Message)
			require.Equal(t, "21.00", w.product(fmt.Sprint(i)).Variants[0].Price)
		}
	})
}

func TestAMovedLevelWaitsForTheShopsSales(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		t.Helper()
		doc := shirt(1)
		w.mustPush("1", doc)
		w.api(`mutation($i: InventorySetQuantitiesInput!) { inventorySetQuantities(input: $i) @idempotent(key: "sale") { userErrors { message } } }`,
			map[string]any{"i": map[string]any{"name": "available", "reason": "correction", "quantities": []any{map[string]any{
				"inventoryItemId": w.product("1").Variants[0].InventoryItemID, "locationId": w.shop.Locations()[0].ID,
				"quantity": 4, "changeFromQuantity": 5,
			}}}})
		doc.Variants.Value[0].Stock = document.Of([]document.Level{{Location: "Main", Quantity: 30}})
		r := w.push("1", doc)
		require.Equal(t, event.Retrying, r.Status)
		require.Equal(t, "STOCK_MOVED", r.Reason)
		require.Equal(t, time.Minute, r.RetryAfter)
		require.False(t, r.Counts)
		w.mustPush("1", doc)
		requireEqual(t, doc, w.product("1"))
	}, func(c *shopify.Config) { c.StaleWait = time.Minute })
}

// refusing answers INVALID_VARIABLE to every mutation that mentions a text.
type refusing struct {
	next http.RoundTripper
	text string
}

func (f refusing) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	if !bytes.Contains(body, []byte(f.text)) {
		r.Body = io.NopCloser(bytes.NewReader(body))
		return f.next.RoundTrip(r)
	}
	answer := `{"errors":[{"message":"Variable $variants_0 is invalid","extensions":{"code":"INVALID_VARIABLE","problems":[{"path":["variants",0,"price"],"explanation":"no"}]}}]}`
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(answer))}, nil
}
