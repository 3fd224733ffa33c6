package state

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// TestABucketIsNeverOverdrawn: processes take from one bucket at the same time; each update sees the one before.
func TestABucketIsNeverOverdrawn(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	var g errgroup.Group
	for w := range 8 {
		g.Go(func() error {
			for i := range 25 {
				err := s.UpdateBucket(ctx, "shop", func(now time.Time, b *work.Bucket) {
					if b.At.After(now) {
						panic("the clock went back")
					}
					if b.Leases == nil {
						b.Leases = map[string]work.BucketLease{}
					}
					b.Level--
					b.At = now
					b.Leases[fmt.Sprintf("%d/%d", w, i)] = work.BucketLease{Points: 1, Until: now.Add(time.Minute)}
				})
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	require.NoError(t, g.Wait())
	shops, err := s.Shops(ctx)
	require.NoError(t, err)
	require.Len(t, shops, 1)
	require.InDelta(t, -200, shops[0].Bucket.Level, 0)
	require.Len(t, shops[0].Bucket.Leases, 200)
}

// TestAShopThatAnswersAgain gets its products spread over a minute, however late they were due.
func TestAShopThatAnswersAgain(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	var rows []work.Parked
	for i := range 200 {
		rows = append(rows, work.Parked{
			ProductID: fmt.Sprint(i), Shop: "s", Reason: reasonShopDead, Due: time.Now().Add(2 * time.Hour),
		})
	}
	require.NoError(t, s.SetShopDead(ctx, "s", "402", true, time.Now().Add(time.Minute)))
	since := health(t, s, "s").DeadSince
	require.WithinDuration(t, time.Now(), since, 5*time.Second)
	require.NoError(t, s.Park(ctx, append(rows, work.Parked{ProductID: "x", Shop: "s", Reason: "RETRY", Due: time.Now().Add(2 * time.Hour)})))
	require.NoError(t, s.SetShopDead(ctx, "s", "still 402", true, time.Now().Add(time.Minute)))
	h := health(t, s, "s")
	require.WithinDuration(t, since, h.DeadSince, time.Second, "dead since the first refusal")
	require.Equal(t, "still 402", h.Reason)
	require.WithinDuration(t, time.Now().Add(time.Minute), h.NextProbe, 5*time.Second)

	require.NoError(t, s.SetShopDead(ctx, "s", "", false, time.Time{}))
	require.True(t, health(t, s, "s").DeadSince.IsZero())
	n := `SELECT count(*) FROM parked WHERE due <= clock_timestamp() + $1::interval`
	require.Equal(t, 200, count(t, s, n, time.Minute))
	require.Less(t, count(t, s, n, 20*time.Second), 150)
}

func health(t *testing.T, s *Store, shop string) work.ShopHealth {
	t.Helper()
	shops, err := s.Shops(t.Context())
	require.NoError(t, err)
	for _, h := range shops {
		if h.Shop == shop {
			return h
		}
	}
	return work.ShopHealth{}
}

// live puts n products on sale in a shop.
func live(t *testing.T, s *Store, shop string, n int) {
	t.Helper()
	exec(t, s, `INSERT INTO products (product_id, shop, shopify_id) SELECT 'p' || i, $1, 'gid' FROM generate_series(1, $2::int) i`, shop, n)
}

func requests(effect work.Effect, from, to int) (reqs []work.GuardRequest) {
	for i := from; i < to; i++ {
		reqs = append(reqs, work.GuardRequest{ProductID: fmt.Sprintf("p%d", i+1), Effect: effect})
	}
	return reqs
}

var limits = work.GuardLimits{Window: 10 * time.Minute, Share: 0.20, Floor: 50}

// TestTheGuardCountsOverAllWorkers: ten workers take one product after the other off sale. 200 of 1,000 pass, no
// matter who asks, and the rest is held.
func TestTheGuardCountsOverAllWorkers(t *testing.T) {
	s := newStore(t)
	live(t, s, "s", 1000)
	var g errgroup.Group
	passed := make([]int, 10)
	for w := range passed {
		g.Go(func() error {
			for i := range 50 {
				reqs := requests(work.EffectOffSale, w*50+i, w*50+i+1)
				held, err := s.Guard(context.WithoutCancel(t.Context()), "s", reqs, limits)
				if err != nil {
					return err
				}
				if !held[reqs[0]] {
					passed[w]++
					exec(t, s, `UPDATE products SET off_sale = true WHERE product_id = $1`, reqs[0].ProductID)
				}
			}
			return nil
		})
	}
	require.NoError(t, g.Wait())
	sum := 0
	for _, n := range passed {
		sum += n
	}
	require.Equal(t, 200, sum)
	holds, err := s.Holds(t.Context())
	require.NoError(t, err)
	require.Len(t, holds, 1)
	h := holds[0]
	require.Equal(t, []any{"s", work.EffectOffSale, 300, 1000, 200}, []any{h.Shop, h.Effect, h.Products, h.Live, h.Threshold})
	require.Len(t, h.Examples, 5)
}

// TestTheGuardsBounds: the floor protects small shops' daily work, the same product counts once, other shops and
// effects do not count along, and what is older than the window is forgotten.
func TestTheGuardsBounds(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	live(t, s, "s", 60)
	ask := func(shop string, reqs []work.GuardRequest) int {
		held, err := s.Guard(ctx, shop, reqs, limits)
		require.NoError(t, err)
		return len(held)
	}
	require.Zero(t, ask("s", requests(work.EffectOffSale, 0, 50)))
	require.Zero(t, ask("s", requests(work.EffectOffSale, 0, 50)), "asked again")
	require.Zero(t, ask("other", requests(work.EffectOffSale, 50, 60)))
	require.Zero(t, ask("s", requests(work.EffectZeroPrice, 50, 60)))
	exec(t, s, `UPDATE guard_products SET at = at - interval '10 minutes' WHERE product_id IN ('p1', 'p2')`)
	require.Zero(t, ask("s", requests(work.EffectOffSale, 50, 52)))
	mixed := append(requests(work.EffectOffSale, 52, 54), requests(work.EffectZeroPrice, 52, 54)...)
	require.Equal(t, 2, ask("s", mixed))
	require.Equal(t, 1, ask("s", requests(work.EffectOffSale, 0, 1)), "while a hold stands, all of its kind join it")
}

// TestAHoldIsReleased: what was held goes, uncounted; the next incident is caught anew.
func TestAHoldIsReleased(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	live(t, s, "s", 100)
	all := requests(work.EffectZeroPrice, 0, 80)
	held, err := s.Guard(ctx, "s", all, limits)
	require.NoError(t, err)
	require.Len(t, held, 80)
	require.NoError(t, s.Park(ctx, []work.Parked{
		{ProductID: "p1", Shop: "s", Reason: reasonHeld}, {ProductID: "p90", Shop: "s", Reason: "RETRY", Due: time.Now().Add(time.Hour)},
	}))
	require.Empty(t, pullAll(t, s, "s"), "held products are not read again in a circle")
	require.ErrorIs(t, s.ReleaseHold(ctx, "s", work.EffectOffSale), ErrNoHold)
	require.NoError(t, s.ReleaseHold(ctx, "s", work.EffectZeroPrice))
	require.Len(t, pullAll(t, s, "s"), 1)
	held, err = s.Guard(ctx, "s", all, limits)
	require.NoError(t, err)
	require.Empty(t, held)
	held, err = s.Guard(ctx, "s", all, limits)
	require.NoError(t, err)
	require.Empty(t, held, "a retry of a released push passes as well")
	holds, err := s.Holds(ctx)
	require.NoError(t, err)
	require.Empty(t, holds)
	held, err = s.Guard(ctx, "s", requests(work.EffectZeroPrice, 80, 140), limits)
	require.NoError(t, err)
	require.Len(t, held, 60)
	exec(t, s, `UPDATE guard_products SET free_until = clock_timestamp() - interval '1 s', at = at - interval '1 hour' WHERE NOT held`)
	held, err = s.Guard(ctx, "s", all[:1], limits)
	require.NoError(t, err)
	require.Len(t, held, 1, "freedom ends")
}

// TestAHoldThatEndsDuringASettlementHoldsNothing: the release makes due what is parked, and what is parked right behind
// it would wait for the next recheck, an hour.
func TestAHoldThatEndsDuringASettlementHoldsNothing(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	f := own(t, s, work.StagePush, "w", 1)
	live(t, s, "s", 100)
	held, err := s.Guard(ctx, "s", requests(work.EffectZeroPrice, 0, 80), limits)
	require.NoError(t, err)
	require.Len(t, held, 80)
	settle := func(id string) error {
		return s.Settle(ctx, work.Settlement{Fences: f, Park: []work.Parked{{ProductID: id, Shop: "s", Reason: reasonHeld}}})
	}
	require.NoError(t, settle("p1"))
	require.Empty(t, pullAll(t, s, "s"))

	// One whose settlement began before the release: whoever comes second sees what the first has done.
	tx, err := s.pool.Begin(ctx)
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	_, err = tx.Exec(ctx, `SELECT FROM guards WHERE shop = 's' FOR NO KEY UPDATE`)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- settle("p2") }()
	require.Eventually(t, func() bool {
		var waits bool
		require.NoError(t, s.pool.QueryRow(ctx, `SELECT count(*) > 0 FROM pg_locks WHERE NOT granted`).Scan(&waits))
		return waits
	}, 10*time.Second, 10*time.Millisecond, "a settlement waits for the end of the hold")
	require.NoError(t, tx.Rollback(ctx))
	require.NoError(t, <-done)

	require.NoError(t, s.ReleaseHold(ctx, "s", work.EffectZeroPrice))
	require.NoError(t, settle("p3"))
	due := map[string]bool{}
	for _, row := range pullAll(t, s, "s") {
		due[row.ProductID] = true
	}
	require.Equal(t, map[string]bool{"p1": true, "p2": true, "p3": true}, due)
}

// TestWhatWasRejectedDuringItsSettlementIsDropped: the reject cancels what is parked, and what is parked right behind it
// would be pushed and counted anew: the next of them would go off sale that a person has just refused.
func TestWhatWasRejectedDuringItsSettlementIsDropped(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	f := own(t, s, work.StagePush, "w", 1)
	live(t, s, "s", 200)
	guard := func(reqs []work.GuardRequest) (n int) {
		held, err := s.Guard(ctx, "s", reqs, limits)
		require.NoError(t, err)
		return len(held)
	}
	// p1 is free of another effect since yesterday's hold, p2 is counted for it, p3 is held for it, p4 is released of it.
	require.Equal(t, 80, guard(requests(work.EffectZeroPrice, 80, 160)))
	exec(t, s, `UPDATE guard_products SET product_id = 'p1' WHERE product_id = 'p80'`)
	require.NoError(t, s.ReleaseHold(ctx, "s", work.EffectZeroPrice))
	require.Zero(t, guard(requests(work.EffectZeroPrice, 1, 3)))
	require.Equal(t, 80, guard(requests(work.EffectOffSale, 0, 80)))
	exec(t, s, `INSERT INTO campaigns (id) VALUES ('c/1')`)
	exec(t, s, `INSERT INTO guards (shop, effect, held_since) VALUES ('s', 'OTHER', now())`)
	exec(t, s, `INSERT INTO guard_products (shop, effect, product_id, at, held) VALUES ('s', 'OTHER', 'p3', now(), true)`)
	exec(t, s, `INSERT INTO guard_products (shop, effect, product_id, at, free_until)
		VALUES ('s', 'OTHER', 'p4', now(), now() + interval '24 hours')`)

	require.NoError(t, s.TakeIn(ctx, work.TakeIn{Fences: f, Batches: []event.Batch{{ID: "b"}}}))
	require.NoError(t, s.RejectHold(ctx, "s", work.EffectOffSale))
	st := work.Settlement{Fences: f}
	for _, id := range []string{"p0", "p1", "p2", "p3", "p4"} {
		st.Items = append(st.Items, work.Item{BatchID: "b", ProductID: id, Shop: "s", Status: work.ItemHeld})
		st.Park = append(st.Park, work.Parked{ProductID: id, Shop: "s", Reason: reasonHeld})
	}
	st.Park = append(st.Park, work.Parked{ProductID: "p0", Shop: "s", Reason: "FANOUT", Campaign: 1})
	require.NoError(t, s.Settle(ctx, st))

	due := map[string]string{}
	for _, row := range pullAll(t, s, "s") {
		due[row.ProductID] = row.Reason
	}
	require.Equal(t, map[string]string{"p0": "FANOUT", "p4": reasonRetry}, due, "what another wants stands")
	require.Equal(t, 1, count(t, s, `SELECT count(*) FROM parked WHERE product_id = 'p3' AND reason = 'HELD'`))
	require.Equal(t, 3, count(t, s, `SELECT count(*) FROM parked`))
	require.Equal(t, 3, count(t, s, `SELECT count(*) FROM batch_items WHERE status = 'CANCELLED' AND reason = 'REJECTED'
		AND product_id IN ('p0', 'p1', 'p2') AND processed_at IS NOT NULL`))
	require.Equal(t, 2, count(t, s, `SELECT count(*) FROM batch_items WHERE status = 'HELD'`))
}

// TestAHoldIsRejected: what was held is dropped and said to be cancelled; what another hold has caught goes on waiting.
func TestAHoldIsRejected(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	f := own(t, s, work.StagePush, "w", 1)
	both := append(requests(work.EffectOffSale, 0, 60), requests(work.EffectZeroPrice, 50, 110)...)
	held, err := s.Guard(ctx, "s", both, limits)
	require.NoError(t, err)
	require.Len(t, held, 120)
	require.NoError(t, s.TakeIn(ctx, work.TakeIn{Fences: f, Batches: []event.Batch{{ID: "b"}}}))
	require.NoError(t, s.Settle(ctx, work.Settlement{
		Fences: f, Items: []work.Item{
			{BatchID: "b", ProductID: "p1", Shop: "s", Status: work.ItemHeld},
			{BatchID: "b", ProductID: "p1", Shop: "z", Status: work.ItemHeld},
			{BatchID: "b", ProductID: "p100", Shop: "s", Status: work.ItemHeld},
		},
		Park: []work.Parked{
			{ProductID: "p1", Shop: "s", Reason: reasonHeld},
			{ProductID: "p55", Shop: "s", Reason: reasonHeld},
			{ProductID: "p100", Shop: "s", Reason: reasonHeld},
		},
	}))
	require.NoError(t, s.RejectHold(ctx, "s", work.EffectOffSale))
	require.Equal(t, 2, count(t, s, `SELECT count(*) FROM parked WHERE product_id IN ('p55', 'p100')`))
	require.Equal(t, 2, count(t, s, `SELECT count(*) FROM parked`))
	items, err := s.Items(ctx, "b", ItemFilter{Statuses: []work.ItemStatus{work.ItemCancelled}})
	require.NoError(t, err)
	require.Len(t, items, 1)
	require.Equal(t, []string{"p1", "s", "REJECTED"}, []string{items[0].ProductID, items[0].Shop, items[0].Reason})
	holds, err := s.Holds(ctx)
	require.NoError(t, err)
	require.Len(t, holds, 1)
}

// TestTheGuardIsQuickWhateverItHasCounted: each call counted all that it had in its window, and the shop's live products,
// while it kept every other worker's call waiting.
func TestTheGuardIsQuickWhateverItHasCounted(t *testing.T) {
	s := newStore(t)
	live(t, s, "s", 100_000)
	exec(t, s, `INSERT INTO guards (shop, effect, counted) VALUES ('s', 'off_sale', 15000)`)
	exec(t, s, `INSERT INTO guard_products (shop, effect, product_id, at) SELECT 's', 'off_sale', 'p' || i, now() FROM generate_series(1000, 15999) i`)
	exec(t, s, `VACUUM ANALYZE products, guard_products`)
	best := time.Hour
	for i := range 10 {
		start := time.Now()
		held, err := s.Guard(t.Context(), "s", requests(work.EffectOffSale, 250+50*i, 300+50*i), limits)
		require.NoError(t, err)
		require.Empty(t, held)
		best = min(best, time.Since(start))
	}
	t.Logf("a call in %s", best)
	require.Less(t, best, 50*time.Millisecond, "5 ms on a calm machine; it was 150")
	require.Equal(t, 15500, count(t, s, `SELECT counted FROM guards`))
	require.Equal(t, 15500, count(t, s, `SELECT count(*) FROM guard_products`))
	held, err := s.Guard(t.Context(), "s", requests(work.EffectOffSale, 20_000, 24_501), limits)
	require.NoError(t, err)
	require.Len(t, held, 4501, "one more than a fifth of the shop")
}

// TestALargeHoldEndsInPieces, and what it has held is let go, or dropped, to the last.
func TestALargeHoldEndsInPieces(t *testing.T) {
	for _, release := range []bool{true, false} {
		s := newStore(t)
		n := cancelPiece + 10
		live(t, s, "s", n)
		held, err := s.Guard(t.Context(), "s", requests(work.EffectOffSale, 0, n), limits)
		require.NoError(t, err)
		require.Len(t, held, n)
		exec(t, s, `INSERT INTO parked (product_id, shop, partition, lane, due, generation, reason)
			SELECT 'p' || i, 's', 0, 2, now() + interval '1 hour', i, 'HELD' FROM generate_series(1, $1::int) i`, n)
		if release {
			require.NoError(t, s.ReleaseHold(t.Context(), "s", work.EffectOffSale))
			require.Equal(t, n, count(t, s, `SELECT count(*) FROM parked WHERE reason = 'RETRY' AND due <= clock_timestamp()`))
			held, err = s.Guard(t.Context(), "s", requests(work.EffectOffSale, 0, n), limits)
			require.NoError(t, err)
			require.Empty(t, held)
		} else {
			require.NoError(t, s.RejectHold(t.Context(), "s", work.EffectOffSale))
			require.Zero(t, count(t, s, `SELECT count(*) FROM parked`))
		}
		require.Zero(t, count(t, s, `SELECT counted FROM guards`))
		holds, err := s.Holds(t.Context())
		require.NoError(t, err)
		require.Empty(t, holds)
	}
}

// TestAHeldItemIsNotWrittenAgain when the next read says the same: a hold of a million products is read every hour.
func TestAHeldItemIsNotWrittenAgain(t *testing.T) {
	s := newStore(t)
	f := own(t, s, work.StagePush, "w", 1)
	item := work.Item{BatchID: "b", ProductID: "p", Shop: "s", Status: work.ItemHeld, Message: "held"}
	settle := func() (version int) {
		require.NoError(t, s.Settle(t.Context(), work.Settlement{Fences: f, Items: []work.Item{item}}))
		return count(t, s, `SELECT xmin::text::bigint FROM batch_items`)
	}
	first := settle()
	require.Equal(t, first, settle())
	item.Status = work.ItemProcessing
	require.NotEqual(t, first, settle())
}

// TestOneWorkerOfAllProbesADeadShop: each of them had its own probe, every minute.
func TestOneWorkerOfAllProbesADeadShop(t *testing.T) {
	s := newStore(t)
	ctx := context.WithoutCancel(t.Context())
	next := time.Now().Add(time.Minute)
	mine, err := s.ClaimProbe(ctx, "s", next)
	require.NoError(t, err)
	require.False(t, mine, "nobody says that it is dead")
	require.NoError(t, s.SetShopDead(ctx, "s", "402", true, time.Now()))
	var g errgroup.Group
	claimed := make([]bool, 8)
	for i := range claimed {
		g.Go(func() (err error) { claimed[i], err = s.ClaimProbe(ctx, "s", next); return err })
	}
	require.NoError(t, g.Wait())
	n := 0
	for _, c := range claimed {
		if c {
			n++
		}
	}
	require.Equal(t, 1, n)
	require.WithinDuration(t, next, health(t, s, "s").NextProbe, 5*time.Second)
	require.NoError(t, s.SetShopDead(ctx, "s", "", false, time.Time{}))
	mine, err = s.ClaimProbe(ctx, "s", next)
	require.NoError(t, err)
	require.False(t, mine)
}
