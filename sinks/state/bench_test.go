package state

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

func benchStore(b *testing.B) *Store {
	b.Helper()
	s, err := Open(b.Context(), Config{URL: embeddedtest.NewDatabase(b, embeddedtest.Postgres(b))})
	require.NoError(b, err)
	b.Cleanup(s.Close)
	require.NoError(b, s.Migrate(b.Context()))
	return s
}

// flood are n parked products of a campaign over ten partitions, 990 of 1,000 of shops that take nothing now.
func flood(from, n int) []work.Parked {
	out := make([]work.Parked, n)
	for i := range out {
		shop := "busy"
		if (from+i)%100 == 0 {
			shop = fmt.Sprintf("shop%d", (from+i)/100%50)
		}
		out[i] = work.Parked{
			ProductID: fmt.Sprintf("product-%09d", from+i), Shop: shop, Partition: int32((from + i) % 10),
			Lane: work.LaneCampaign, Reason: "SNAPSHOT", Changes: 1, FirstCommit: time.Now(), LastCommit: time.Now(),
		}
	}
	return out
}

// BenchmarkPark parks products of a campaign, 5,000 a call.
func BenchmarkPark(b *testing.B) {
	s := benchStore(b)
	n := 0
	for b.Loop() {
		require.NoError(b, s.Park(b.Context(), flood(n, 5000)))
		n += 5000
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "products/s")
}

// BenchmarkSettle settles 100 products with an item and two outbox rows each, in one round trip, from one and from
// eight goroutines, each with a partition of its own.
func BenchmarkSettle(b *testing.B) {
	s := benchStore(b)
	ctx := b.Context()
	f := own(b, s, work.StagePush, "w", 64)
	settle := func(part, round int) error {
		t := work.Settlement{Fences: f[part : part+1], Positions: map[int32]int64{int32(part): int64(round)}}
		var ids []string
		for i := range 100 {
			id := fmt.Sprintf("%d-%d-%d", part, round%100, i)
			ids = append(ids, id)
			t.Products = append(t.Products, work.Settled{Known: work.Known{
				ProductID: id, Shop: "s", ShopifyID: "gid://shopify/Product/1", Shadow: []byte(`{"title":"a8f5f167f44f4964e6c998dee827110c"}`),
				Snapshot: snapshot(10, 20), DocumentHash: "a8f5f167f44f4964e6c998dee827110c", LastStatus: event.Success,
			}})
			t.Items = append(t.Items, work.Item{BatchID: "b", ProductID: id, Shop: "s", Status: work.ItemSuccess, Payload: "{}"})
			t.Outbox = append(t.Outbox, records(id, id)...)
		}
		if _, err := s.Load(ctx, ids); err != nil {
			return err
		}
		return s.Settle(ctx, t)
	}
	b.Run("goroutines=1", func(b *testing.B) {
		n := 0
		for b.Loop() {
			require.NoError(b, settle(0, n))
			n++
		}
		b.ReportMetric(float64(n*100)/b.Elapsed().Seconds(), "products/s")
	})
	b.Run("goroutines=8", func(b *testing.B) {
		done := make(chan error)
		n := 0
		for b.Loop() {
			for w := range 8 {
				go func() { done <- settle(w, n) }()
			}
			for range 8 {
				require.NoError(b, <-done)
			}
			n++
		}
		b.ReportMetric(float64(n*800)/b.Elapsed().Seconds(), "products/s")
	})
}
