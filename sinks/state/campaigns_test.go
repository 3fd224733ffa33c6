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

// TestACancelTakesNoOtherCampaignsProductAlong: a product that a fan-out has parked is healed as well, and replayed; the
// cancel of the fan-out lost it for all three.
func TestACancelTakesNoOtherCampaignsProductAlong(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	f := own(t, s, work.StageExpand, "w", 1)
	park := func(campaign string) work.Parked {
		return work.Parked{ProductID: "p", Lane: work.LaneCampaign, Reason: "X", CampaignID: campaign}
	}
	require.NoError(t, s.TakeIn(ctx, work.TakeIn{
		Fences: f, Batches: []event.Batch{{ID: "b"}}, Items: []work.Item{{BatchID: "b", ProductID: "p"}}, Parked: []work.Parked{park("b")},
	}))
	require.NoError(t, s.Park(ctx, []work.Parked{park("heal/1"), {ProductID: "p", Lane: work.LaneRetry, Reason: "RETRY"}}))
	require.NoError(t, s.CancelCampaign(ctx, "b"))
	l, err := s.Load(ctx, []string{"p"})
	require.NoError(t, err)
	require.Len(t, l.Parked, 2)
	require.Empty(t, l.Items)
	require.NoError(t, s.CancelCampaign(ctx, "heal/1"))
	rows, err := pull(s, []int32{0}, nil, 9)
	require.NoError(t, err)
	require.Len(t, rows, 1)
	require.Equal(t, "RETRY", rows[0].Reason)
	require.ErrorIs(t, s.CancelCampaign(ctx, "none"), ErrNoCampaign)
	_, err = s.Complete(ctx)
	require.NoError(t, err)
	require.ErrorIs(t, s.CancelCampaign(ctx, "heal/1"), ErrCampaignEnded)
}

// TestACampaignDoesNotEndWhileProductsAreParkedInIt: what ends it does not see rows that are not committed yet.
func TestACampaignDoesNotEndWhileProductsAreParkedInIt(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	exec(t, s, `INSERT INTO campaigns (id) VALUES ('heal/1')`)
	// The row of another holds the parking up in its middle.
	tx, err := s.pool.Begin(ctx)
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	_, err = tx.Exec(ctx, `INSERT INTO parked (product_id, shop, campaign, partition, lane, due, generation, reason)
		VALUES ('p2', '', 1, 0, 3, now(), 0, 'X')`)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() {
		done <- s.Park(ctx, []work.Parked{
			{ProductID: "p1", Lane: work.LaneCampaign, Reason: "X", CampaignID: "heal/1"},
			{ProductID: "p2", Lane: work.LaneCampaign, Reason: "X", CampaignID: "heal/1"},
		})
	}()
	require.Eventually(t, func() bool {
		var waits bool
		require.NoError(t, s.pool.QueryRow(ctx, `SELECT count(*) > 0 FROM pg_locks WHERE NOT granted`).Scan(&waits))
		return waits
	}, 10*time.Second, 10*time.Millisecond)
	require.NoError(t, s.sweep(ctx))
	require.Equal(t, 1, count(t, s, `SELECT count(*) FROM campaigns WHERE ended_at IS NOT NULL`), "nothing of it is seen")
	require.NoError(t, tx.Rollback(ctx))
	require.NoError(t, <-done)
	require.NoError(t, s.sweep(ctx))
	require.Equal(t, 1, count(t, s, `SELECT count(*) FROM campaigns WHERE ended_at IS NULL AND total = 2`))
}

// TestACancelledFanoutParksNothingMore: its pages go on coming, and so do its products from the shops that had no room.
func TestACancelledFanoutParksNothingMore(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	expand, push := own(t, s, work.StageExpand, "w", 1), own(t, s, work.StagePush, "w", 1)
	page := func(id string) {
		require.NoError(t, s.TakeIn(ctx, work.TakeIn{
			Fences: expand, Batches: []event.Batch{{ID: "b"}}, Items: []work.Item{{BatchID: "b", ProductID: id}},
			Parked: []work.Parked{{ProductID: id, Lane: work.LaneCampaign, Reason: "FANOUT", CampaignID: "b"}},
		}))
	}
	page("p1")
	rows, err := pull(s, []int32{0}, nil, 9)
	require.NoError(t, err)
	require.Len(t, rows, 1)
	require.NoError(t, s.CancelBatch(ctx, "b"))
	page("p2")
	require.NoError(t, s.Settle(ctx, work.Settlement{Fences: push, Park: []work.Parked{
		{ProductID: "p1", Shop: "s", Lane: work.LaneCampaign, Reason: "SHOP_BUSY", Campaign: rows[0].Campaign},
	}}))
	require.Zero(t, count(t, s, `SELECT count(*) FROM parked`))
	require.Equal(t, 2, count(t, s, `SELECT count(*) FROM batch_items WHERE status = 'CANCELLED'`))

	// Cancelled before it has parked anything.
	require.NoError(t, s.TakeIn(ctx, work.TakeIn{Fences: expand, Batches: []event.Batch{{ID: "b2"}}}))
	require.NoError(t, s.CancelBatch(ctx, "b2"))
	require.NoError(t, s.TakeIn(ctx, work.TakeIn{Fences: expand, Parked: []work.Parked{{ProductID: "q", CampaignID: "b2"}}}))
	require.Zero(t, count(t, s, `SELECT count(*) FROM parked`))
}

// TestACancelForgetsNothingThatMayHaveReachedAShop: what is in hand, was sent without an answer, or may still land late,
// is looked at again, for no campaign.
func TestACancelForgetsNothingThatMayHaveReachedAShop(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	f := own(t, s, work.StagePush, "w", 1)
	in := work.TakeIn{Fences: f, Batches: []event.Batch{{ID: "b"}}}
	for _, id := range []string{"waits", "flies", "asked", "late"} {
		in.Items = append(in.Items, work.Item{BatchID: "b", ProductID: id})
		in.Parked = append(in.Parked, work.Parked{ProductID: id, Shop: "s", Lane: work.LaneCampaign, Reason: "FANOUT", CampaignID: "b"})
	}
	in.Parked[3].Reason, in.Parked[3].Due = "LATE_REQUEST", time.Now().Add(time.Hour)
	require.NoError(t, s.TakeIn(ctx, in))
	seen, err := s.Load(ctx, []string{"flies"})
	require.NoError(t, err)
	require.NoError(t, s.Settle(ctx, inHand(f, work.Item{BatchID: "b", ProductID: "flies"})))
	require.NoError(t, s.Intend(ctx, f, []work.Intent{{Key: "k", Shop: "s", ProductIDs: []string{"asked"}, Mutation: "m"}}))
	require.NoError(t, s.Park(ctx, []work.Parked{{ProductID: "asked", Shop: "s", Lane: work.LaneLive, Reason: "RETRY", Changes: 1}}))
	require.NoError(t, s.CancelBatch(ctx, "b"))
	require.Equal(t, 3, count(t, s, `SELECT count(*) FROM parked WHERE campaign = 0 AND product_id IN ('flies', 'asked', 'late')`))
	require.Equal(t, 3, count(t, s, `SELECT count(*) FROM parked`))
	require.Equal(t, 1, count(t, s, `SELECT count(*) FROM parked WHERE due > clock_timestamp() + interval '50 min'`), "and not too early")
	require.NoError(t, s.Settle(ctx, work.Settlement{Fences: f, Unpark: seen.Parked}), "the push that has it in hand settles it")
	require.Equal(t, 2, count(t, s, `SELECT count(*) FROM parked`))
}

// TestAPushThatBeganBeforeACancelHearsOfIt: its rows tell the campaign's number also when the cancel has dropped them, and
// what it splits of the batch is cancelled.
func TestAPushThatBeganBeforeACancelHearsOfIt(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	f := own(t, s, work.StagePush, "w", 1)
	var in work.TakeIn
	in.Fences, in.Batches = f, []event.Batch{{ID: "b"}, {ID: "other"}}
	for _, batch := range []string{"b", "other"} {
		in.Items = append(in.Items, work.Item{BatchID: batch, ProductID: "p"})
		in.Parked = append(in.Parked, work.Parked{ProductID: "p", Lane: work.LaneCampaign, Reason: "FANOUT", CampaignID: batch})
	}
	require.NoError(t, s.TakeIn(ctx, in))
	seen, err := s.Load(ctx, []string{"p"})
	require.NoError(t, err)
	require.Len(t, seen.Parked, 2)
	asked := []int64{seen.Parked[0].Campaign, seen.Parked[1].Campaign}
	gone, err := s.Cancelled(ctx, asked)
	require.NoError(t, err)
	require.Empty(t, gone)
	require.NoError(t, s.CancelBatch(ctx, "b"))
	gone, err = s.Cancelled(ctx, asked)
	require.NoError(t, err)
	require.Len(t, gone, 1)
	require.Equal(t, 1, count(t, s, fmt.Sprintf(`SELECT count(*) FROM campaigns WHERE id = 'b' AND no = %d`, gone[0])))
	require.NoError(t, s.Settle(ctx, work.Settlement{
		Fences: f, SplitItems: in.Items[:1], Items: []work.Item{{BatchID: "b", ProductID: "p", Shop: "s", Status: work.ItemProcessing}},
	}))
	require.Equal(t, 1, count(t, s, `SELECT count(*) FROM batch_items WHERE batch_id = 'b' AND shop = 's' AND status = 'CANCELLED'`))
}

// TestWhatACancelHasLeftBehindIsKnown until the product is settled in the shop again.
func TestWhatACancelHasLeftBehindIsKnown(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	f := own(t, s, work.StagePush, "w", 1)
	in := work.TakeIn{Fences: f, Batches: []event.Batch{{ID: "b"}, {ID: "other"}}}
	for _, id := range []string{"new", "known", "pushed"} {
		in.Items = append(in.Items, work.Item{BatchID: "b", ProductID: id})
	}
	in.Items = append(in.Items, work.Item{BatchID: "other", ProductID: "open"})
	require.NoError(t, s.TakeIn(ctx, in))
	settled := func(id string) work.Settlement {
		return work.Settlement{Fences: f, Products: []work.Settled{{Known: work.Known{ProductID: id, Shop: "s"}}}}
	}
	require.NoError(t, s.Settle(ctx, settled("known")))
	require.NoError(t, s.Settle(ctx, work.Settlement{
		Fences: f, SplitItems: in.Items[1:2], Items: []work.Item{{BatchID: "b", ProductID: "known", Shop: "s", Status: work.ItemPending}},
	}))
	require.NoError(t, s.CancelBatch(ctx, "b"))
	require.NoError(t, s.Settle(ctx, settled("pushed")))
	got, err := s.CancelledProducts(ctx, [][2]string{
		{"new", "s"}, {"known", "s"}, {"known", "elsewhere"}, {"pushed", "s"}, {"open", "s"}, {"none", "s"},
	})
	require.NoError(t, err)
	require.Equal(t, map[[2]string]bool{{"new", "s"}: true, {"known", "s"}: true}, got)
}

// TestACancelHoldsNoSettlementUp: 60,000 items in one statement kept their rows locked for seconds.
func TestACancelHoldsNoSettlementUp(t *testing.T) {
	s := newStore(t)
	f := own(t, s, work.StagePush, "w", 1)
	exec(t, s, `INSERT INTO batches (id, opened_at) VALUES ('b', now())`)
	exec(t, s, `INSERT INTO campaigns (id) VALUES ('b')`)
	exec(t, s, `INSERT INTO batch_items (batch_id, product_id, shop, status) SELECT 'b', 'p' || i, 's', 'PENDING' FROM generate_series(100000, 160000) i`)
	exec(t, s, `INSERT INTO parked (product_id, shop, campaign, partition, lane, due, generation, reason)
		SELECT 'p' || i, 's', 1, 0, 3, now(), i, 'FANOUT' FROM generate_series(100000, 160000) i`)
	var g errgroup.Group
	done := make(chan struct{})
	g.Go(func() error { defer close(done); return s.CancelBatch(context.WithoutCancel(t.Context()), "b") })
	worst := time.Duration(0)
	for i := 0; ; i++ {
		select {
		case <-done:
			require.NoError(t, g.Wait())
			require.Less(t, worst, time.Second)
			t.Logf("%d settlements, the slowest in %s", i, worst)
			require.Zero(t, count(t, s, `SELECT count(*) FROM parked`))
			require.Equal(t, 60001, count(t, s, `SELECT count(*) FROM batch_items WHERE status IN ('CANCELLED', 'SUCCESS')`))
			return
		default:
		}
		start := time.Now()
		id := fmt.Sprintf("p%d", 100000+i*997%60000)
		require.NoError(t, s.Settle(t.Context(), work.Settlement{
			Fences: f, Items: []work.Item{{BatchID: "b", ProductID: id, Shop: "s", Status: work.ItemSuccess}},
		}))
		worst = max(worst, time.Since(start))
	}
}

// TestACancelThatWasCutShortIsCarriedOn by whoever looks for complete batches.
func TestACancelThatWasCutShortIsCarriedOn(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	f := own(t, s, work.StagePush, "w", 1)
	require.NoError(t, s.TakeIn(ctx, work.TakeIn{
		Fences: f, Batches: []event.Batch{{ID: "b"}}, Items: []work.Item{{BatchID: "b", ProductID: "p"}},
		Parked: []work.Parked{{ProductID: "p", Lane: work.LaneCampaign, CampaignID: "b"}},
	}))
	require.NoError(t, s.Announce(ctx, own(t, s, work.StageBatches, "w", 1), []event.Batch{{Type: event.BatchAnnounced, ID: "b"}}, nil))
	exec(t, s, `UPDATE batches SET cancelling = true`)
	exec(t, s, `UPDATE campaigns SET cancelled = true`)
	rows, err := pull(s, []int32{0}, nil, 9)
	require.NoError(t, err)
	require.Empty(t, rows, "nobody pulls it")
	_, err = s.RetryBatch(ctx, "b", 3, 1)
	require.ErrorIs(t, err, ErrBatchCancelling)
	ended, err := s.Complete(ctx)
	require.NoError(t, err)
	require.Len(t, ended, 1)
	require.Equal(t, event.BatchCancelled, ended[0].Type)
	require.Zero(t, count(t, s, `SELECT count(*) FROM parked`))
	_, err = s.Complete(ctx)
	require.NoError(t, err)
	c, err := s.Campaign(ctx, "b")
	require.NoError(t, err)
	require.False(t, c.EndedAt.IsZero())
}

// TestACampaignsProgress: of a replay by what waits, of a batch by its items; a rate that leaves pauses out.
func TestACampaignsProgress(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	f := own(t, s, work.StagePush, "w", 1)
	var rows []work.Parked
	for i := range 100 {
		rows = append(rows, work.Parked{ProductID: fmt.Sprintf("p%02d", i), Lane: work.LaneCampaign, Reason: "REPLAY", CampaignID: "replay/1"})
	}
	require.NoError(t, s.Park(ctx, rows))
	require.NoError(t, s.Park(ctx, rows[:50]), "what waits already is not counted twice")
	exec(t, s, `UPDATE campaigns SET created_at = created_at - interval '2 h', rate_from = rate_from - interval '100 s'`)
	look := func() Campaign {
		c, err := s.Campaign(ctx, "replay/1")
		require.NoError(t, err)
		return c
	}
	settle := func(n int) {
		got, err := pull(s, []int32{0}, nil, n)
		require.NoError(t, err)
		require.Len(t, got, n)
		var refs []work.ParkedRef
		for _, r := range got {
			refs = append(refs, work.ParkedRef{ProductID: r.ProductID, Generation: r.Generation})
		}
		require.NoError(t, s.Settle(ctx, work.Settlement{Fences: f, Unpark: refs}))
	}
	settle(20)
	c := look()
	require.Equal(t, []any{int64(100), int64(20), int64(80), "replay"}, []any{c.Total, c.Done, c.Parked, c.Kind})
	require.InDelta(t, 0.2, c.Rate, 0.02)
	eta, ok := c.ETA()
	require.True(t, ok)
	require.InDelta(t, 400, eta.Seconds(), 40)

	_, err := s.Pause(ctx, PauseCampaign("replay/1"), "ada")
	require.NoError(t, err)
	_, ok = new(look()).ETA()
	require.False(t, ok, "what stands has no end")
	_, err = s.Resume(ctx, PauseCampaign("replay/1"))
	require.NoError(t, err)
	exec(t, s, `UPDATE campaigns SET rate_from = rate_from - interval '10 s'`)
	settle(20)
	require.InDelta(t, 2, look().Rate, 0.2, "since it was resumed")
	settle(60)
	_, err = s.Complete(ctx)
	require.NoError(t, err)
	c = look()
	require.False(t, c.EndedAt.IsZero())
	require.Equal(t, []any{int64(100), int64(100), int64(0)}, []any{c.Total, c.Done, c.Parked})
	open, err := s.Campaigns(ctx, CampaignFilter{Open: true})
	require.NoError(t, err)
	require.Empty(t, open)
	require.NoError(t, s.Park(ctx, rows[:1]))
	require.True(t, look().EndedAt.IsZero(), "who parks in it opens it again")
	_, err = s.Pause(ctx, PauseCampaign("none"), "")
	require.ErrorIs(t, err, ErrNoCampaign)
}

// TestExcludedProductsAreToldToThePush, and pushed when they are included again.
func TestExcludedProductsAreToldToThePush(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	for _, shop := range []string{"", "s"} {
		news, err := s.Exclude(ctx, "p", shop, "ada")
		require.NoError(t, err)
		require.True(t, news)
	}
	news, err := s.Exclude(ctx, "p", "s", "bob")
	require.NoError(t, err)
	require.False(t, news)
	l, err := s.Load(ctx, []string{"p", "q"})
	require.NoError(t, err)
	require.ElementsMatch(t, []work.Exclusion{{ProductID: "p"}, {ProductID: "p", Shop: "s"}}, l.Excluded)
	list, err := s.Excluded(ctx)
	require.NoError(t, err)
	require.Len(t, list, 2)
	require.Equal(t, "ada", list[1].By)
	require.NoError(t, s.Include(ctx, "p", "s", 4))
	require.ErrorIs(t, s.Include(ctx, "p", "s", 4), ErrNotExcluded)
	rows, err := pull(s, []int32{0, 1, 2, 3}, nil, 9)
	require.NoError(t, err)
	require.Len(t, rows, 1)
	require.Equal(t, []string{"p", "s", reasonIncluded}, []string{rows[0].ProductID, rows[0].Shop, rows[0].Reason})
	l, err = s.Load(ctx, []string{"p"})
	require.NoError(t, err)
	require.Len(t, l.Excluded, 1)
}

// TestAPieceOfACancelReadsNoMoreThanItTakes: the pieces together are one walk, and not one for each of them.
func TestAPieceOfACancelReadsNoMoreThanItTakes(t *testing.T) {
	s := newStore(t)
	exec(t, s, `INSERT INTO batches (id, cancelling) VALUES ('b', true)`)
	exec(t, s, `INSERT INTO campaigns (id, cancelled) VALUES ('b', true)`)
	exec(t, s, `INSERT INTO batch_items (batch_id, product_id, shop, status) SELECT 'b', 'p' || i, 's', 'PENDING' FROM generate_series(100000, 120000) i`)
	fill(t, s, 1, 20_000, 3)
	const piece = 100 // a row: looked up, locked, written into the table and three indexes
	require.Less(t, explain(t, s, sweepItemsSQL, "b", "p110000", "s", piece), 40*piece)
	require.Less(t, explain(t, s, sweepParkedSQL, int64(1), "b", piece, int16(work.LaneRetry)), 60*piece)
}
