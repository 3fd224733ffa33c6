package state

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"pgregory.net/rapid"

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
	require.NoError(t, s.Processing(ctx, push, items[:1]))
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
		rows, err := s.Pull(ctx, []int32{0, 1, 2, 3}, nil, 5)
		require.NoError(t, err)
		require.Len(t, rows, 1)
		require.Equal(t, "p", rows[0].ProductID)
		require.NoError(t, s.Settle(ctx, work.Settlement{Fences: push, Items: []work.Item{failed},
			Unpark: []work.ParkedRef{{ProductID: "p", Shop: "s", Generation: rows[0].Generation}}}))
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
			{ProductID: "waits", Lane: work.LaneCampaign}, {ProductID: "shared", Lane: work.LaneCampaign}, {ProductID: "live", Lane: work.LaneContent},
		},
	}))
	require.NoError(t, s.Processing(ctx, push, []work.Item{item("b", "flies", "")}))
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

// batchModel is what the topics hold of one batch, and how far it was processed.
type batchModel struct {
	id string
	// records are the products at each offset, by partition of catalog.changes; fanout those of one fan-out record.
	records [2][]string
	fanout  []string
	pages   int // of the fan-out taken in; beyond the last product it is done
	taken   [2]int
	ann     bool
	open    map[[2]string]bool // (product, shop) with an unsettled item; product without a shop before its split
	known   map[string]bool    // products with an item
	done    int                // completions seen
	round   int
	failed  map[[2]string]bool
}

func (m *batchModel) complete() bool {
	return m.ann && m.taken[0] == len(m.records[0]) && m.taken[1] == len(m.records[1]) &&
		(len(m.fanout) == 0 || m.pages > len(m.fanout)) && len(m.open) == 0
}

// TestCompletionAgainstAModel: take-ins, fan-out pages, redeliveries, lagging partitions, settlements, announcements
// and retries in any order. A batch must never complete too early, always in the end, and once for each round.
func TestCompletionAgainstAModel(t *testing.T) {
	s := newStore(t)
	ctx := context.Background()
	run := 0
	rapid.Check(t, func(t *rapid.T) {
		exec(t, s, `TRUNCATE leases, batches, batch_items, outbox, parked`)
		run++
		push, expand := own(t, s, work.StagePush, "w", 2), own(t, s, work.StageExpand, "w", 1)
		announce := own(t, s, work.StageBatches, "w", 1)
		m := &batchModel{id: fmt.Sprintf("b%d", run), open: map[[2]string]bool{}, known: map[string]bool{}, failed: map[[2]string]bool{}, round: 1}
		product := rapid.SampledFrom([]string{"a", "b", "c", "d", "e"})
		for p := range m.records { // products of one partition are never in the other
			for range rapid.IntRange(0, 4).Draw(t, "records") {
				m.records[p] = append(m.records[p], fmt.Sprintf("%d%s", p, product.Draw(t, "product")))
			}
		}
		for range rapid.IntRange(0, 3).Draw(t, "fan-out") {
			m.fanout = append(m.fanout, "0"+product.Draw(t, "product"))
		}
		ev := event.Batch{Type: event.BatchAnnounced, ID: m.id, Changes: map[int32]int64{}, Fanouts: map[int32]int64{}}
		for p := range m.records {
			if n := len(m.records[p]); n > 0 {
				ev.Changes[int32(p)] = int64(n - 1)
			}
		}
		if len(m.fanout) > 0 {
			ev.Fanouts[0] = 0
		}
		item := func(product string) []work.Item {
			if !m.known[product] {
				m.known[product] = true
				m.open[[2]string{product, ""}] = true
			}
			return []work.Item{{BatchID: m.id, ProductID: product}}
		}
		takeIn := func(p int, from int) {
			if from >= len(m.records[p]) {
				return
			}
			require.NoError(t, s.TakeIn(ctx, work.TakeIn{
				Fences: push[p : p+1], Batches: []event.Batch{{ID: m.id}}, Items: item(m.records[p][from]),
				TakenIn: map[int32]int64{int32(p): int64(from + 1)},
			}))
			m.taken[p] = max(m.taken[p], from+1)
		}
		page := func() {
			if m.pages > len(m.fanout) || len(m.fanout) == 0 {
				return
			}
			in := work.TakeIn{Fences: expand, Batches: []event.Batch{{ID: m.id}}}
			if m.pages == len(m.fanout) {
				in.Positions = map[int32]int64{0: 1}
			} else {
				in.Items = item(m.fanout[m.pages])
				in.Cursors = map[int32]string{0: m.fanout[m.pages]}
			}
			require.NoError(t, s.TakeIn(ctx, in))
			m.pages++
		}
		settle := func(k [2]string, st work.ItemStatus, shops []string) {
			set := work.Settlement{Fences: push[:1]}
			delete(m.open, k)
			if k[1] == "" && len(shops) > 0 {
				set.SplitItems = []work.Item{{BatchID: m.id, ProductID: k[0]}}
			} else {
				shops = []string{k[1]}
			}
			for _, shop := range shops {
				set.Items = append(set.Items, work.Item{BatchID: m.id, ProductID: k[0], Shop: shop, Status: st})
				if !settled(st) {
					m.open[[2]string{k[0], shop}] = true
				}
				if st == work.ItemFailed {
					m.failed[[2]string{k[0], shop}] = true
				}
			}
			require.NoError(t, s.Settle(ctx, set))
		}
		complete := func(callers int) {
			var g errgroup.Group
			ended := make([][]event.Batch, callers)
			for i := range callers {
				g.Go(func() (err error) { ended[i], err = s.Complete(ctx); return err })
			}
			require.NoError(t, g.Wait())
			all := slices.Concat(ended...)
			want := 0
			if m.complete() && m.done < m.round {
				want = 1
				m.done++
			}
			require.Len(t, all, want, "%+v", m)
			for _, b := range all {
				require.Equal(t, m.round, b.Round)
			}
		}
		pick := func() ([2]string, bool) {
			keys := slices.SortedFunc(maps.Keys(m.open), func(a, b [2]string) int { return slices.Compare(a[:], b[:]) })
			if len(keys) == 0 {
				return [2]string{}, false
			}
			return keys[rapid.IntRange(0, len(keys)-1).Draw(t, "item")], true
		}
		statuses := rapid.SampledFrom([]work.ItemStatus{work.ItemSuccess, work.ItemFailed, work.ItemSkipped, work.ItemRetrying, work.ItemHeld, work.ItemProcessing})
		for range rapid.IntRange(0, 40).Draw(t, "steps") {
			switch rapid.IntRange(0, 7).Draw(t, "step") {
			case 0:
				takeIn(0, m.taken[0])
			case 1:
				takeIn(1, m.taken[1])
			case 2: // delivered again
				p := rapid.IntRange(0, 1).Draw(t, "partition")
				if m.taken[p] > 0 {
					takeIn(p, rapid.IntRange(0, m.taken[p]-1).Draw(t, "from"))
				}
			case 3:
				page()
			case 4, 5:
				if k, ok := pick(); ok {
					shops := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"s1", "s2"}), 0, 2, rapid.ID[string]).Draw(t, "shops")
					settle(k, statuses.Draw(t, "status"), shops)
				}
			case 6:
				require.NoError(t, s.Announce(ctx, announce, []event.Batch{ev}, nil))
				m.ann = true
			case 7:
				again, err := s.RetryBatch(ctx, m.id, 100, 2)
				if len(m.known) == 0 && !m.ann {
					if m.pages == 0 { // nothing was seen of the batch yet
						require.ErrorIs(t, err, ErrNoBatch)
					}
					break
				}
				require.NoError(t, err)
				require.Equal(t, len(m.failed), again.Items)
				if len(m.failed) > 0 && m.done == m.round {
					m.round++
				}
				for k := range m.failed {
					m.open[k] = true
				}
				clear(m.failed)
			}
			complete(rapid.IntRange(1, 2).Draw(t, "callers"))
		}
		// The end: what lags catches up, and everything settles.
		require.NoError(t, s.Announce(ctx, announce, []event.Batch{ev}, nil))
		m.ann = true
		for p := range m.records {
			for m.taken[p] < len(m.records[p]) {
				takeIn(p, m.taken[p])
				complete(1)
			}
		}
		for len(m.fanout) > 0 && m.pages <= len(m.fanout) {
			page()
			complete(1)
		}
		for _, k := range slices.Collect(maps.Keys(m.open)) {
			settle(k, work.ItemSuccess, []string{"s1"})
			complete(2)
		}
		complete(1)
		require.Equal(t, m.round, m.done, "complete in the end")
		events := batchEvents(t, s, m.id)
		ends := len(events)
		for _, e := range events {
			if e == event.BatchOpened {
				ends--
			}
		}
		require.Equal(t, m.round, ends, "once for each round: %v", events)
		require.LessOrEqual(t, len(events)-ends, 1)
	})
}
