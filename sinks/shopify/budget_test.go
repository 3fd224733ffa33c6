package shopify_test

import (
	"context"
	"fmt"
	"sync"
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

func TestTwoProcessesUseAStandardShopWithoutBeingThrottled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim, err := shopifysim.New(shopifysim.Config{
			Latency: shopifysim.Latency{Min: 50 * time.Millisecond, Max: 300 * time.Millisecond},
			Shops:   []shopifysim.ShopConfig{{Domain: "acme.myshopify.com", Locations: []string{"Main"}, Publications: []string{"Online Store"}}},
		})
		require.NoError(t, err)
		defer func() { require.NoError(t, sim.Close()) }()
		store := &buckets{}
		const perProcess = 60
		var wg sync.WaitGroup
		start := time.Now()
		for process := range 2 {
			client, err := shopify.New(shopify.Config{
				Shops: map[string]shopify.ShopConfig{testShop: {
					URL: "https://acme.myshopify.com", Token: func(context.Context) (string, error) { return "any", nil },
				}},
				Budget: store, Holder: fmt.Sprint("process", process), RoundTripper: &wire{t: t, next: sim.RoundTripper()},
			})
			require.NoError(t, err)
			wg.Go(func() {
				for batch := range perProcess / 10 {
					var plans []work.Plan
					for i := range 10 {
						id := fmt.Sprintf("%d-%d-%d", process, batch, i)
						plans = append(plans, shopify.Plan(work.Push{ProductID: id, Shop: testShop, Document: shirt(3)}))
					}
					for _, r := range client.Send(t.Context(), testShop, plans, func(context.Context, []work.Intent) error { return nil }) {
						if r.Status != event.Success {
							t.Errorf("%s %s", r.Category, r.Message)
						}
					}
				}
			})
		}
		wg.Wait()
		shop := sim.Shop("acme")
		require.Len(t, shop.Products(), 2*perProcess)
		require.Zero(t, shop.Stats().Throttled)
		took := time.Since(start).Seconds()
		points := float64(shop.Stats().PointsUsed)
		t.Logf("%.0f points in %.1f s", points, took)
		// 2,000 stood in the bucket; the rest is restored at 100 a second, of which little may be left lying.
		require.LessOrEqual(t, took, (points-2000)/100*1.15+10)
	})
}

func BenchmarkPlanTenVariants(b *testing.B) {
	w := newWorld(b)
	doc := shirt(10)
	w.push("1", doc)
	known := w.known["1"]
	known.ProductID = "1"
	next := shirt(10)
	next.Variants.Value[3].Price = document.Of("99.00")
	b.ReportAllocs()
	for b.Loop() {
		shopify.Plan(work.Push{ProductID: "1", Shop: testShop, Document: next, Known: known})
	}
}
