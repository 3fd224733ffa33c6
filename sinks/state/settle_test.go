package state

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// TestOneSettlementCarriesEverything: what is written comes back as it was.
func TestOneSettlementCarriesEverything(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	f := own(t, s, work.StagePush, "w", 2)
	committed := time.Date(2026, 5, 4, 3, 2, 1, 123456000, time.UTC)
	require.NoError(t, s.TakeIn(ctx, work.TakeIn{
		Fences:  f,
		Batches: []event.Batch{{ID: "b1", Kind: event.KindTransaction, Name: "Summer", Admin: "ann", XID: 77, CommitLSN: 0x16B374D848, CommitTime: committed}},
		Items:   []work.Item{{BatchID: "b1", ProductID: "p1", XID: 77}, {BatchID: "b1", ProductID: "p2", XID: 77}},
		TakenIn: map[int32]int64{0: 3, 1: 4},
	}))
	require.NoError(t, s.Intend(ctx, f, []work.Intent{
		{Key: "k1", Shop: "s1", ProductIDs: []string{"p1", "p2"}, Mutation: "productSet"},
		{Key: "k2", Shop: "s1", ProductIDs: []string{"p1"}, Mutation: "metafieldsSet"},
	}))
	l, err := s.Load(ctx, []string{"p1", "p2", "p3"})
	require.NoError(t, err)
	require.Len(t, l.Known, 2, "a creation that was begun is known by its intent")
	require.Len(t, l.Items, 2)
	require.WithinDuration(t, time.Now(), l.Known[0].Intents[0].At, 5*time.Second)
	require.Equal(t, []string{l.Known[0].ProductID}, l.Known[0].Intents[0].ProductIDs)

	known := work.Known{
		ProductID: "p1", Shop: "s1", ShopifyID: "gid://shopify/Product/1", Shadow: json.RawMessage(`{"z": 1,  "a":"\u0000"}`),
		Snapshot: snapshot(70, 80), DocumentHash: "abc", OffSale: true, LastStatus: event.Success, LastReason: "x", Attempt: 2,
	}
	item := work.Item{
		BatchID: "b1", ProductID: "p1", Shop: "s1", XID: 77, Status: work.ItemFailed, Category: event.Validation, Reason: "R",
		Message: "bad\x00 answer \xff", Field: "title", ShopifyID: "gid://shopify/Product/1", VariantIDs: []string{`v"1`, "v2"},
		Attempt: 3, Payload: "{}", ProcessedAt: committed,
	}
	require.NoError(t, s.Settle(ctx, work.Settlement{
		Fences:   f,
		Products: []work.Settled{{Known: known, Attempted: true}, {Known: work.Known{ProductID: "p1", Snapshot: snapshot(70, 80)}}},
		Items:    []work.Item{item}, SplitItems: []work.Item{{BatchID: "b1", ProductID: "p1"}},
		Intents: []work.Intent{{Key: "k1", Shop: "s1", ProductIDs: []string{"p1"}}}, Outbox: records("p1"), Positions: map[int32]int64{0: 2},
		Park: []work.Parked{{ProductID: "p1", Shop: "s1", Partition: 1, Lane: work.LaneRetry, Reason: "RETRY", Attempt: 1, XIDs: []change.XID{5}, Changes: 2, FirstCommit: committed, LastCommit: committed}},
	}))
	l, err = s.Load(ctx, []string{"p1"})
	require.NoError(t, err)
	require.Empty(t, l.Items)
	require.Len(t, l.Known, 2)
	require.Equal(t, work.Known{ProductID: "p1", Snapshot: snapshot(70, 80)}, l.Known[0])
	require.Len(t, l.Known[1].Intents, 1)
	require.Equal(t, "k2", l.Known[1].Intents[0].Key)
	got := l.Known[1]
	got.Intents = nil
	require.Equal(t, known, got)
	items, err := s.Items(ctx, "b1", ItemFilter{})
	require.NoError(t, err)
	item.Message = "bad answer \uFFFD"
	require.Equal(t, []work.Item{item, {BatchID: "b1", ProductID: "p2", XID: 77, Status: work.ItemPending, VariantIDs: []string{}}}, items)

	known.Shadow = nil
	require.NoError(t, s.Settle(ctx, work.Settlement{Fences: f, Products: []work.Settled{{Known: known}}}))
	page, err := s.KnownProducts(ctx, "", "", 10)
	require.NoError(t, err)
	require.Len(t, page, 1, "without the product's own record")
	require.JSONEq(t, `{"z": 1, "a": "\u0000"}`, string(page[0].Shadow), "nil leaves the old one")
	require.NoError(t, s.Settle(ctx, work.Settlement{Fences: f, Forget: []work.Known{known}}))
	page, err = s.KnownProducts(ctx, "s1", "", 10)
	require.NoError(t, err)
	require.Empty(t, page)
}

// TestASettledItemStaysSettled, but for what a shop really did.
func TestASettledItemStaysSettled(t *testing.T) {
	s := newStore(t)
	f := own(t, s, work.StagePush, "w", 1)
	all := []work.ItemStatus{
		work.ItemPending, work.ItemProcessing, work.ItemRetrying, work.ItemHeld, work.ItemSuccess, work.ItemFailed,
		work.ItemSkipped, work.ItemCancelled,
	}
	corrects := map[[2]work.ItemStatus]bool{
		{work.ItemFailed, work.ItemSuccess}: true, {work.ItemCancelled, work.ItemSuccess}: true, {work.ItemFailed, work.ItemSkipped}: true,
	}
	for _, from := range all {
		for _, to := range all {
			it := work.Item{BatchID: "b", ProductID: fmt.Sprintf("%s-%s", from, to), Shop: "s", Status: from}
			require.NoError(t, s.Settle(t.Context(), work.Settlement{Fences: f, Items: []work.Item{it}}))
			it.Status = to
			require.NoError(t, s.Settle(t.Context(), work.Settlement{Fences: f, Items: []work.Item{it}}))
			want := to
			if settled(from) && !corrects[[2]work.ItemStatus{from, to}] {
				want = from
			}
			n := count(t, s, `SELECT count(*) FROM batch_items WHERE product_id = $1 AND status = $2`, it.ProductID, string(want))
			require.Equal(t, 1, n, "%s then %s", from, to)
		}
	}
}

func settled(st work.ItemStatus) bool {
	switch st {
	case work.ItemSuccess, work.ItemFailed, work.ItemSkipped, work.ItemCancelled:
		return true
	default:
		return false
	}
}

// TestARedeliveredRecordDoesNotReopenItsItem: it has been split over shops and settled meanwhile.
func TestARedeliveredRecordDoesNotReopenItsItem(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	f := own(t, s, work.StagePush, "w", 1)
	in := work.TakeIn{Fences: f, Batches: []event.Batch{{ID: "b"}}, Items: []work.Item{{BatchID: "b", ProductID: "p"}}}
	require.NoError(t, s.TakeIn(ctx, in))
	require.NoError(t, s.Settle(ctx, work.Settlement{
		Fences: f, SplitItems: []work.Item{{BatchID: "b", ProductID: "p"}},
		Items: []work.Item{
			{BatchID: "b", ProductID: "p", Shop: "s1", Status: work.ItemSuccess},
			{BatchID: "b", ProductID: "p", Shop: "s2", Status: work.ItemProcessing},
		},
	}))
	require.NoError(t, s.TakeIn(ctx, in))
	b, err := s.Batch(ctx, "b")
	require.NoError(t, err)
	require.Equal(t, []int{2, 1, 1}, []int{b.Total, b.Succeeded, b.Processing})
	require.Equal(t, BatchProcessing, b.Status)
	require.Equal(t, 1, count(t, s, `SELECT count(*) FROM outbox`), "opened once")
}

// TestSettlementsAndCampaignsDoNotDeadlock: campaigns park the same products that settlements of several workers
// unpark and park, in any order.
func TestSettlementsAndCampaignsDoNotDeadlock(t *testing.T) {
	s := newStore(t)
	f := own(t, s, work.StagePush, "w", 4)
	products := make([]string, 40)
	for i := range products {
		products[i] = fmt.Sprintf("p%02d", i)
	}
	done := make(chan error, 6)
	for w := range cap(done) {
		go func() {
			ctx := context.Background()
			for i := range 30 {
				var parked []work.Parked
				for j := range products {
					p := (j*(w+1)*7 + i) % len(products)
					parked = append(parked, work.Parked{ProductID: products[p], Partition: int32(p % 4), Reason: "RETRY", Changes: 1})
				}
				if w%2 == 0 {
					if err := s.Park(ctx, parked); err != nil {
						done <- err
						return
					}
					continue
				}
				l, err := s.Load(ctx, products)
				if err == nil {
					half := len(l.Parked) / 2
					err = s.Settle(ctx, work.Settlement{Fences: f[w%4 : w%4+1], Unpark: l.Parked[half:], Park: parked[:len(parked)/2]})
				}
				if err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range cap(done) {
		require.NoError(t, <-done)
	}
}
