package state

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"pgregory.net/rapid"

	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// itemKey is a product in a shop; the shop is empty before the item is split.
type itemKey struct{ product, shop string }

// batchModel is what the topics hold of one batch, how far it was processed, and the state that must agree.
type batchModel struct {
	t        *rapid.T
	s        *Store
	id       string
	push     []work.Fence
	expand   []work.Fence
	announce []work.Fence
	// records are the products at each offset, by partition of catalog.changes; fanout those of one fan-out record.
	records [2][]string
	fanout  []string

	pages  int // of the fan-out taken in; it is done beyond its last product
	taken  [2]int
	ann    bool
	open   map[itemKey]bool // unsettled; true for what is in hand
	failed map[itemKey]bool
	known  map[string]bool // products with an item
	ended  int             // completions seen
	round  int
	// cancelled: a person has cancelled this round.
	cancelled bool
}

func newBatchModel(t *rapid.T, s *Store, id string) *batchModel {
	m := &batchModel{
		t: t, s: s, id: id, round: 1, open: map[itemKey]bool{}, failed: map[itemKey]bool{}, known: map[string]bool{},
		push: own(t, s, work.StagePush, "w", 2), expand: own(t, s, work.StageExpand, "w", 1),
		announce: own(t, s, work.StageBatches, "w", 1),
	}
	product := rapid.SampledFrom([]string{"a", "b", "c", "d", "e"})
	for p := range m.records { // products of one partition are never in the other
		for range rapid.IntRange(0, 4).Draw(t, "records") {
			m.records[p] = append(m.records[p], fmt.Sprintf("%d%s", p, product.Draw(t, "product")))
		}
	}
	for range rapid.IntRange(0, 3).Draw(t, "fan-out") {
		m.fanout = append(m.fanout, "0"+product.Draw(t, "product"))
	}
	return m
}

func (m *batchModel) item(product string) []work.Item {
	if !m.known[product] {
		m.known[product] = true
		if !m.cancelled { // else it begins as cancelled
			m.open[itemKey{product, ""}] = false
		}
	}
	return []work.Item{{BatchID: m.id, ProductID: product}}
}

// takeIn takes the record of a partition at an offset in, for the first time or again.
func (m *batchModel) takeIn(p, offset int) {
	if offset < 0 || offset >= len(m.records[p]) {
		return
	}
	require.NoError(m.t, m.s.TakeIn(context.Background(), work.TakeIn{
		Fences: m.push[p : p+1], Batches: []event.Batch{{ID: m.id}}, Items: m.item(m.records[p][offset]),
		TakenIn: map[int32]int64{int32(p): int64(offset + 1)},
	}))
	m.taken[p] = max(m.taken[p], offset+1)
}

// page takes the next page of the fan-out in: a product each, and the position with an empty last one.
func (m *batchModel) page() {
	if len(m.fanout) == 0 || m.pages > len(m.fanout) {
		return
	}
	in := work.TakeIn{Fences: m.expand, Batches: []event.Batch{{ID: m.id}}}
	if m.pages == len(m.fanout) {
		in.Positions = map[int32]int64{0: 1}
	} else {
		in.Items = m.item(m.fanout[m.pages])
		in.Cursors = map[int32]string{0: m.fanout[m.pages]}
	}
	require.NoError(m.t, m.s.TakeIn(context.Background(), in))
	m.pages++
}

// settle gives an item a status; one without a shop is split over shops, unless there are none.
func (m *batchModel) settle(k itemKey, st work.ItemStatus, shops []string) {
	set := work.Settlement{Fences: m.push[:1]}
	delete(m.open, k)
	if k.shop == "" && len(shops) > 0 {
		set.SplitItems = []work.Item{{BatchID: m.id, ProductID: k.product}}
	} else {
		shops = []string{k.shop}
	}
	for _, shop := range shops {
		set.Items = append(set.Items, work.Item{BatchID: m.id, ProductID: k.product, Shop: shop, Status: st})
		if !settled(st) && !m.cancelled { // else what has ended without a result is cancelled
			m.open[itemKey{k.product, shop}] = st == work.ItemProcessing
		}
		if st == work.ItemFailed {
			m.failed[itemKey{k.product, shop}] = true
		}
	}
	require.NoError(m.t, m.s.Settle(context.Background(), set))
}

func (m *batchModel) doAnnounce() {
	ev := event.Batch{Type: event.BatchAnnounced, ID: m.id, Changes: map[int32]int64{}, Fanouts: map[int32]int64{}}
	for p := range m.records {
		if n := len(m.records[p]); n > 0 {
			ev.Changes[int32(p)] = int64(n - 1)
		}
	}
	if len(m.fanout) > 0 {
		ev.Fanouts[0] = 0
	}
	require.NoError(m.t, m.s.Announce(context.Background(), m.announce, []event.Batch{ev}, nil))
	m.ann = true
}

// retry is a person's; the batch must be there.
func (m *batchModel) retry() {
	got, err := m.s.RetryBatch(context.Background(), m.id, 100, 2)
	if len(m.known) == 0 && m.pages == 0 && !m.ann {
		require.ErrorIs(m.t, err, ErrNoBatch)
		return
	}
	if m.cancelled && m.ended < m.round {
		require.ErrorIs(m.t, err, ErrBatchCancelling)
		return
	}
	require.NoError(m.t, err)
	require.Equal(m.t, len(m.failed), got.Items)
	if len(m.failed) == 0 {
		return
	}
	if m.ended == m.round {
		m.round++
	}
	m.cancelled = false
	for k := range m.failed {
		m.open[k] = false
	}
	clear(m.failed)
}

// cancel is a person's: what waits is cancelled, and what is in hand is settled as it ends.
func (m *batchModel) cancel() {
	err := m.s.CancelBatch(context.Background(), m.id)
	switch {
	case len(m.known) == 0 && m.pages == 0 && !m.ann:
		require.ErrorIs(m.t, err, ErrNoBatch)
		return
	case m.ended == m.round:
		require.ErrorIs(m.t, err, ErrBatchEnded)
		return
	}
	require.NoError(m.t, err)
	m.cancelled = true
	m.sweep()
}

// sweep is what becomes of what waits in a batch that is cancelled.
func (m *batchModel) sweep() {
	maps.DeleteFunc(m.open, func(_ itemKey, inHand bool) bool { return m.cancelled && !inHand })
}

// complete asks from several workers at once: the batch ends for one of them if it is complete, else for none.
func (m *batchModel) complete(callers int) {
	var g errgroup.Group
	ended := make([][]event.Batch, callers)
	for i := range callers {
		g.Go(func() (err error) { ended[i], err = m.s.Complete(context.Background()); return err })
	}
	require.NoError(m.t, g.Wait())
	all := slices.Concat(ended...)
	want := 0
	if m.isComplete() && m.ended < m.round {
		want = 1
		m.ended++
	}
	require.Len(m.t, all, want, "%+v", m)
	for _, b := range all {
		require.Equal(m.t, m.round, b.Round)
		require.Equal(m.t, m.cancelled, b.Status == string(BatchCancelled), b.Status)
	}
}

func (m *batchModel) isComplete() bool {
	return m.ann && m.taken[0] == len(m.records[0]) && m.taken[1] == len(m.records[1]) &&
		(len(m.fanout) == 0 || m.pages > len(m.fanout)) && len(m.open) == 0
}

func (m *batchModel) openItems() []itemKey {
	return slices.SortedFunc(maps.Keys(m.open), func(a, b itemKey) int {
		return slices.Compare([]string{a.product, a.shop}, []string{b.product, b.shop})
	})
}

var (
	anyStatus = rapid.SampledFrom([]work.ItemStatus{
		work.ItemSuccess, work.ItemFailed, work.ItemSkipped, work.ItemRetrying, work.ItemHeld, work.ItemProcessing,
	})
	anyShops = rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"s1", "s2"}), 0, 2, rapid.ID[string])
)

func (m *batchModel) step() {
	switch rapid.IntRange(0, 8).Draw(m.t, "step") {
	case 0:
		m.takeIn(0, m.taken[0])
	case 1:
		m.takeIn(1, m.taken[1])
	case 2: // delivered again
		p := rapid.IntRange(0, 1).Draw(m.t, "partition")
		m.takeIn(p, rapid.IntRange(-1, m.taken[p]-1).Draw(m.t, "offset"))
	case 3:
		m.page()
	case 4, 5:
		if open := m.openItems(); len(open) > 0 {
			m.settle(rapid.SampledFrom(open).Draw(m.t, "item"), anyStatus.Draw(m.t, "status"), anyShops.Draw(m.t, "shops"))
		}
	case 6:
		m.doAnnounce()
	case 7:
		m.retry()
	case 8:
		m.cancel()
	}
}

// finish lets what lags catch up, and everything settle.
func (m *batchModel) finish() {
	m.doAnnounce()
	for p := range m.records {
		for m.taken[p] < len(m.records[p]) {
			m.takeIn(p, m.taken[p])
			m.complete(1)
		}
	}
	for len(m.fanout) > 0 && m.pages <= len(m.fanout) {
		m.page()
		m.complete(1)
	}
	for _, k := range m.openItems() {
		m.settle(k, work.ItemSuccess, []string{"s1"})
		m.complete(2)
	}
	m.complete(1)
}

// TestCompletionAgainstAModel: take-ins, fan-out pages, redeliveries, lagging partitions, settlements, announcements,
// retries and cancels in any order. A batch must never complete too early, always in the end, and once for each round.
func TestCompletionAgainstAModel(t *testing.T) {
	s := newStore(t)
	run := 0
	rapid.Check(t, func(t *rapid.T) {
		exec(t, s, `TRUNCATE leases, batches, batch_items, outbox, parked, campaigns`)
		run++
		m := newBatchModel(t, s, fmt.Sprintf("b%d", run))
		for range rapid.IntRange(0, 40).Draw(t, "steps") {
			m.step()
			m.complete(rapid.IntRange(1, 2).Draw(t, "callers"))
		}
		m.finish()
		require.Equal(t, m.round, m.ended, "complete in the end")
		ends := 0
		events := batchEvents(t, s, m.id)
		for _, e := range events {
			if e != event.BatchOpened {
				ends++
			}
		}
		require.Equal(t, m.round, ends, "once for each round: %v", events)
		require.LessOrEqual(t, len(events)-ends, 1, "opened once")
	})
}
