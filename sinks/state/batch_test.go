package state

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// TestABatchIsListedWithItsCounts walks one batch from its first record to its summary.
func TestABatchIsListedWithItsCounts(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	push, announce := own(t, s, work.StagePush, "w", 1), own(t, s, work.StageBatches, "w", 1)
	committed := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	b := event.Batch{Type: event.BatchAnnounced, ID: "b", Kind: event.KindTransaction, Name: "Spring Sale", Admin: "ann", XID: 42, CommitLSN: 7, CommitTime: committed, Rows: 9, Changes: map[int32]int64{0: 4}}
	var items []work.Item
	for i := range 6 {
		items = append(items, work.Item{BatchID: "b", ProductID: fmt.Sprintf("p%d", i), XID: 42})
	}
	require.NoError(t, s.TakeIn(ctx, work.TakeIn{Fences: push, Batches: []event.Batch{b}, Items: items, TakenIn: map[int32]int64{0: 5}}))
	got, err := s.Batch(ctx, "b")
	require.NoError(t, err)
	require.Equal(t, BatchPending, got.Status)
	require.NoError(t, s.Settle(ctx, inHand(push, items[0])))
	got, err = s.Batch(ctx, "b")
	require.NoError(t, err)
	require.Equal(t, BatchProcessing, got.Status)
	require.Positive(t, got.Duration(time.Now()))

	for i := range items {
		items[i].Status = []work.ItemStatus{work.ItemSuccess, work.ItemFailed, work.ItemFailed, work.ItemFailed, work.ItemSkipped, work.ItemSuccess}[i]
		if items[i].Status == work.ItemFailed {
			items[i].Category, items[i].Message = []event.Category{event.Validation, event.Network, event.Validation}[i-1], fmt.Sprintf("m%d", i)
		}
	}
	require.NoError(t, s.Settle(ctx, work.Settlement{Fences: push, Items: items}))
	none, err := s.Complete(ctx)
	require.NoError(t, err)
	require.Empty(t, none, "not announced yet")
	require.NoError(t, s.Announce(ctx, announce, []event.Batch{b, {Type: event.BatchOpened, ID: "not an announcement"}}, map[int32]int64{0: 3}))
	ended, err := s.Complete(ctx)
	require.NoError(t, err)
	require.Len(t, ended, 1)
	want := event.Batch{
		Type: event.BatchCompleted, ID: "b", Kind: b.Kind, Name: b.Name, Admin: b.Admin, XID: 42, CommitLSN: 7, CommitTime: committed, Rows: 9,
		Round: 1, Status: "COMPLETED", Total: 6, Succeeded: 2, Failed: 3, Skipped: 1, Errors: map[string]int{"VALIDATION": 2, "NETWORK": 1}, At: ended[0].At,
	}
	require.Equal(t, want, ended[0])
	require.Equal(t, []string{event.BatchOpened, event.BatchCompleted}, batchEvents(t, s, "b"))

	list, err := s.Batches(ctx, BatchFilter{Statuses: []BatchStatus{BatchCompleted}, Kind: b.Kind, Admin: "ann", Name: "spring", XID: 42})
	require.NoError(t, err)
	require.Len(t, list, 1)
	require.Equal(t, []BatchErrors{
		{Category: event.Validation, Count: 2, ProductID: "p1", Message: "m1"}, {Category: event.Network, Count: 1, ProductID: "p2", Message: "m2"},
	}, list[0].Errors)
	rate, ok := list[0].SuccessRate()
	require.True(t, ok)
	require.InDelta(t, 0.4, rate, 1e-9)
	list, err = s.Batches(ctx, BatchFilter{Before: &list[0]})
	require.NoError(t, err)
	require.Empty(t, list)
	_, err = s.Batch(ctx, "x")
	require.ErrorIs(t, err, ErrNoBatch)
	page, err := s.Items(ctx, "b", ItemFilter{Statuses: []work.ItemStatus{work.ItemFailed}, Limit: 2})
	require.NoError(t, err)
	require.Len(t, page, 2)
	page, err = s.Items(ctx, "b", ItemFilter{Statuses: []work.ItemStatus{work.ItemFailed}, After: &page[1]})
	require.NoError(t, err)
	require.Len(t, page, 1)
}

// batchEvents are the types of the batch's events in the outbox, in order.
func batchEvents(t require.TestingT, s *Store, id string) (types []string) {
	rows, err := s.pool.Query(context.Background(), `SELECT value FROM outbox WHERE key = $1 ORDER BY id`, []byte(id))
	require.NoError(t, err)
	values, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	require.NoError(t, err)
	for _, v := range values {
		var b event.Batch
		require.NoError(t, json.Unmarshal(v, &b))
		types = append(types, b.Type)
	}
	return types
}

// TestALateSuccessCorrectsAFailedBatch without a second announcement.
func TestALateSuccessCorrectsAFailedBatch(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	push, announce := own(t, s, work.StagePush, "w", 1), own(t, s, work.StageBatches, "w", 1)
	item := work.Item{BatchID: "b", ProductID: "p", Shop: "s", Status: work.ItemFailed}
	require.NoError(t, s.Announce(ctx, announce, []event.Batch{{Type: event.BatchAnnounced, ID: "b"}}, nil))
	require.NoError(t, s.Settle(ctx, work.Settlement{Fences: push, Items: []work.Item{item}}))
	ended, err := s.Complete(ctx)
	require.NoError(t, err)
	require.Equal(t, event.BatchFailed, ended[0].Type)
	item.Status = work.ItemSuccess
	require.NoError(t, s.Settle(ctx, work.Settlement{Fences: push, Items: []work.Item{item}}))
	b, err := s.Batch(ctx, "b")
	require.NoError(t, err)
	require.Equal(t, []any{BatchCompleted, 1, 0}, []any{b.Status, b.Succeeded, b.Failed})
	ended, err = s.Complete(ctx)
	require.NoError(t, err)
	require.Empty(t, ended)
}

// TestARetryIsANewRound, up to the limit.
func TestARetryIsANewRound(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	push, announce := own(t, s, work.StagePush, "w", 4), own(t, s, work.StageBatches, "w", 1)
	failed := work.Item{BatchID: "b", ProductID: "p", Shop: "s", Status: work.ItemFailed, Category: event.Validation}
	require.NoError(t, s.Announce(ctx, announce, []event.Batch{{Type: event.BatchAnnounced, ID: "b"}}, nil))
	require.NoError(t, s.Settle(ctx, work.Settlement{Fences: push, Items: []work.Item{failed, {BatchID: "b", ProductID: "q", Shop: "s", Status: work.ItemSuccess}}}))
	for round := 1; ; round++ {
		ended, err := s.Complete(ctx)
		require.NoError(t, err)
		require.Len(t, ended, 1)
		require.Equal(t, round, ended[0].Round)
		again, err := s.RetryBatch(ctx, "b", 2, 4)
		require.NoError(t, err)
		if round == 3 {
			require.Equal(t, Retried{OverLimit: 1, Round: 3}, again)
			break
		}
		require.Equal(t, Retried{Items: 1, Round: round + 1}, again)
		none, err := s.Complete(ctx)
		require.NoError(t, err)
		require.Empty(t, none)
		rows, err := pull(s, []int32{0, 1, 2, 3}, nil, 5)
		require.NoError(t, err)
		require.Len(t, rows, 1)
		require.Equal(t, "p", rows[0].ProductID)
		require.NoError(t, s.Settle(ctx, work.Settlement{
			Fences: push, Items: []work.Item{failed},
			Unpark: []work.ParkedRef{{ProductID: "p", Shop: "s", Generation: rows[0].Generation}},
		}))
	}
	_, err := s.RetryBatch(ctx, "none", 1, 1)
	require.ErrorIs(t, err, ErrNoBatch)
}

// TestACancelledBatchStopsWhatWaits and ends when what is in hand has ended.
func TestACancelledBatchStopsWhatWaits(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	push, announce := own(t, s, work.StagePush, "w", 1), own(t, s, work.StageBatches, "w", 1)
	item := func(batch, product string, st work.ItemStatus) work.Item {
		return work.Item{BatchID: batch, ProductID: product, Status: st}
	}
	require.NoError(t, s.TakeIn(ctx, work.TakeIn{
		Fences: push, Batches: []event.Batch{{ID: "b"}, {ID: "other"}},
		Items: []work.Item{item("b", "waits", ""), item("b", "flies", ""), item("b", "shared", ""), item("other", "shared", ""), item("b", "live", "")},
		Parked: []work.Parked{
			{ProductID: "waits", Lane: work.LaneCampaign, CampaignID: "b"},
			{ProductID: "live", Lane: work.LaneContent},
			{ProductID: "shared", Lane: work.LaneCampaign, CampaignID: "b"},
			{ProductID: "shared", Lane: work.LaneCampaign, CampaignID: "other"},
		},
	}))
	require.NoError(t, s.Settle(ctx, inHand(push, item("b", "flies", ""))))
	require.NoError(t, s.CancelBatch(ctx, "b"))
	require.NoError(t, s.TakeIn(ctx, work.TakeIn{Fences: push, Items: []work.Item{item("b", "late", "")}}))
	require.NoError(t, s.Announce(ctx, announce, []event.Batch{{Type: event.BatchAnnounced, ID: "b"}}, nil))
	require.Equal(t, 2, count(t, s, `SELECT count(*) FROM parked WHERE product_id <> 'waits'`))
	require.Equal(t, 2, count(t, s, `SELECT count(*) FROM parked`))
	none, err := s.Complete(ctx)
	require.NoError(t, err)
	require.Empty(t, none)
	require.NoError(t, s.Settle(ctx, work.Settlement{Fences: push, Items: []work.Item{item("b", "flies", work.ItemRetrying)}}))
	ended, err := s.Complete(ctx)
	require.NoError(t, err)
	require.Len(t, ended, 1)
	require.Equal(t, []any{event.BatchCancelled, 5, 5}, []any{ended[0].Type, ended[0].Total, ended[0].Cancelled})
	require.ErrorIs(t, s.CancelBatch(ctx, "b"), ErrBatchEnded)
}

// A batch that capture had to give up is no success, whatever became of the items that it has; a person's retry takes it
// as it is.
func TestABatchThatWasGivenUpFails(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	push, announce := own(t, s, work.StagePush, "w", 1), own(t, s, work.StageBatches, "w", 1)
	item := work.Item{BatchID: "b", ProductID: "p", XID: 42}
	require.NoError(t, s.TakeIn(ctx, work.TakeIn{Fences: push, Batches: []event.Batch{{ID: "b"}}, Items: []work.Item{item}, TakenIn: map[int32]int64{0: 5}}))
	item.Status = work.ItemSuccess
	require.NoError(t, s.Settle(ctx, work.Settlement{Fences: push, Items: []work.Item{item}}))
	b := event.Batch{Type: event.BatchAnnounced, ID: "b", Kind: event.KindTransaction, Rows: 9, Changes: map[int32]int64{0: 4}, Reason: "not whole: the slot is gone; what is missing comes in snapshot-1"}
	require.NoError(t, s.Announce(ctx, announce, []event.Batch{b}, map[int32]int64{0: 3}))
	ended, err := s.Complete(ctx)
	require.NoError(t, err)
	require.Len(t, ended, 1)
	require.Equal(t, event.BatchFailed, ended[0].Type)
	require.Equal(t, "FAILED", ended[0].Status)
	require.Equal(t, b.Reason, ended[0].Reason)
	got, err := s.Batch(ctx, "b")
	require.NoError(t, err)
	require.Equal(t, BatchFailed, got.Status)
	require.Equal(t, b.Reason, got.Reason)
	require.Equal(t, 1, got.Succeeded)
}

// A batch of which a fan-out could not be expanded fails, though all that was seen of it has succeeded, and whether it was
// announced before or after.
func TestABatchWithAFanoutThatCannotBeExpandedFails(t *testing.T) {
	for _, announcedFirst := range []bool{false, true} {
		s := newStore(t)
		ctx := t.Context()
		push, expand, announce := own(t, s, work.StagePush, "w", 1), own(t, s, work.StageExpand, "w", 1), own(t, s, work.StageBatches, "w", 1)
		b := event.Batch{Type: event.BatchAnnounced, ID: "b", Kind: event.KindTransaction, Changes: map[int32]int64{0: 4}, Fanouts: map[int32]int64{0: 1}}
		tell := func() { require.NoError(t, s.Announce(ctx, announce, []event.Batch{b}, map[int32]int64{0: 1})) }
		if announcedFirst {
			tell()
		}
		item := work.Item{BatchID: "b", ProductID: "p", Shop: "s", Status: work.ItemSuccess}
		require.NoError(t, s.TakeIn(ctx, work.TakeIn{Fences: push, Batches: []event.Batch{b}, Items: []work.Item{item}, TakenIn: map[int32]int64{0: 5}}))
		require.NoError(t, s.Settle(ctx, work.Settlement{Fences: push, Items: []work.Item{item}}))
		for i, reason := range []string{"first", "second"} {
			require.NoError(t, s.TakeIn(ctx, work.TakeIn{
				Fences: expand, Batches: []event.Batch{b}, Spoilt: map[string]string{"b": reason}, Positions: map[int32]int64{0: int64(i) + 1},
			}))
		}
		if !announcedFirst {
			tell()
		}
		ended, err := s.Complete(ctx)
		require.NoError(t, err)
		require.Len(t, ended, 1)
		require.Equal(t, event.BatchFailed, ended[0].Type)
		require.Equal(t, "first", ended[0].Reason)
		require.Equal(t, 1, ended[0].Succeeded)
		late := work.Item{BatchID: "b", ProductID: "q", Shop: "s", Status: work.ItemSuccess}
		require.NoError(t, s.Settle(ctx, work.Settlement{Fences: push, Items: []work.Item{late}}))
		got, err := s.Batch(ctx, "b")
		require.NoError(t, err)
		require.Equal(t, BatchFailed, got.Status, "a late success does not bring what was given up")
	}
}
