package pipeline

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// ledger is a state that counts settlements, takes its time for each, and refuses some.
type ledger struct {
	*world
	d       time.Duration
	settles atomic.Int64
	refuse  func(work.Settlement) error
}

func (l *ledger) Settle(ctx context.Context, s work.Settlement) error {
	l.settles.Add(1)
	time.Sleep(l.d) // in the bubble
	if l.refuse != nil {
		if err := l.refuse(s); err != nil {
			return err
		}
	}
	return l.world.Settle(ctx, s)
}

func (l *ledger) run(change func(*PushConfig)) (stop func()) {
	p := l.worker("a", change)
	p.parts.Fenced = l
	stop = l.start(p)
	l.wait(time.Second)
	return stop
}

func TestSettlementsOfManyShopsShareATransaction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &ledger{world: newWorld(t), d: 10 * time.Millisecond}
		stop := l.run(func(*PushConfig) {})
		for i := range 5000 {
			id := fmt.Sprintf("p%d", i)
			l.put(id, "1", fmt.Sprintf("shop%d", i%50))
			l.change(id, 100)
		}
		l.wait(30 * time.Second)
		require.Len(t, l.sent, 5000)
		require.LessOrEqual(t, l.settles.Load(), int64(50), "one round trip for 100 settled products")
		stop()
	})
}

func TestALostLeaseTakesNoOtherPartitionAlong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.leases = 4
		lost := int32(-1)
		l := &ledger{world: w, refuse: func(s work.Settlement) error {
			if slices.ContainsFunc(s.Fences, func(f work.Fence) bool { return f.Partition == lost }) {
				return work.ErrLeaseLost
			}
			return nil
		}}
		stop := l.run(func(c *PushConfig) { c.Partitions = 4 })
		w.mu.Lock()
		for i := range 100 {
			w.records = append(w.records, event.Record{
				Partition: int32(i % 4), Offset: int64(i), Key: fmt.Appendf(nil, "p%d", i), Timestamp: time.Now(),
			})
		}
		lost = 3
		w.mu.Unlock()
		for i := range 100 {
			w.put(fmt.Sprintf("p%d", i), "1", "north")
		}
		w.change("last", 100) // partition 0, and it wakes the reader
		w.wait(1500 * time.Millisecond)
		for i := range 100 {
			_, settled := w.known[[2]string{fmt.Sprintf("p%d", i), "north"}]
			require.Equal(t, i%4 != 3, settled, "p%d", i)
		}
		require.Equal(t, int64(101), w.positions[0])
		stop()
	})
}

// dataError is how the state refuses a value.
type dataError struct{}

func (dataError) Error() string    { return "value out of range" }
func (dataError) SQLState() string { return "22003" }

// One product whose result the state cannot take must neither hold up nor undo those that are settled with it.
func TestAResultThatTheStateRefusesStandsInNobodysWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &ledger{world: newWorld(t), refuse: func(s work.Settlement) error {
			for _, p := range s.Products {
				if p.ProductID == "p3" && p.LastStatus == event.Success {
					return fmt.Errorf("settle: %w", dataError{})
				}
			}
			return nil
		}}
		stop := l.run(func(*PushConfig) {})
		for i := range 10 {
			id := fmt.Sprintf("p%d", i)
			l.put(id, "1", "north")
			l.change(id, 100, event.Header{Key: event.HeaderBatch, Value: []byte("b1")})
		}
		l.wait(time.Second)
		require.Len(t, l.sent, 10)
		for i := range 10 {
			want := work.ItemSuccess
			if i == 3 {
				want = work.ItemFailed
			}
			require.Equal(t, want, l.items[[3]string{"b1", fmt.Sprintf("p%d", i), "north"}].Status)
		}
		require.Contains(t, l.items[[3]string{"b1", "p3", "north"}].Message, "value out of range")
		require.Equal(t, int64(10), l.position)
		l.wait(time.Minute)
		require.Len(t, l.sent, 10, "it is not sent again and again")
		stop()
	})
}

// A product of several shops is finished by the last of them, also when each of its results is settled alone.
func TestARefusedResultOfOneShopLeavesNoOffsetOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &ledger{world: newWorld(t), d: 10 * time.Millisecond, refuse: func(s work.Settlement) error {
			for _, p := range s.Products {
				if p.ProductID == "p3" && p.Shop == "south" && p.LastStatus == event.Success {
					return fmt.Errorf("settle: %w", dataError{})
				}
			}
			return nil
		}}
		stop := l.run(func(*PushConfig) {})
		for i := range 10 {
			id := fmt.Sprintf("p%d", i)
			l.put(id, "1", "north", "south", "west")
			l.change(id, 100, event.Header{Key: event.HeaderBatch, Value: []byte("b1")})
		}
		l.wait(time.Minute)
		require.Len(t, l.sent, 30)
		require.Equal(t, work.ItemFailed, l.items[[3]string{"b1", "p3", "south"}].Status)
		require.Equal(t, work.ItemSuccess, l.items[[3]string{"b1", "p3", "north"}].Status)
		require.Equal(t, work.ItemSuccess, l.items[[3]string{"b1", "p4", "south"}].Status)
		for i := range 10 {
			_, own := l.known[[2]string{fmt.Sprintf("p%d", i), ""}]
			require.True(t, own, "the record of p%d itself", i)
		}
		require.Equal(t, int64(10), l.position)
		stop()
	})
}

// Big documents make small settlements: all of them would be one parameter of one statement.
func TestASettlementIsBoundedByTheBytesOfItsDocuments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &ledger{world: newWorld(t), d: time.Second}
		var mu sync.Mutex
		var most int
		l.refuse = func(s work.Settlement) error {
			var size int
			for _, r := range s.Outbox {
				if r.Topic == "catalog."+event.Documents {
					size += len(r.Value)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			most = max(most, size)
			return nil
		}
		stop := l.run(func(*PushConfig) {})
		big := json.RawMessage(`{"eligible":true,"title":"t","descriptionHtml":"` + strings.Repeat("x", 500_000) + `"}`)
		for i := range 50 {
			id := fmt.Sprintf("p%d", i)
			l.mu.Lock()
			l.docs[id] = nil
			for _, shop := range []string{"north", "south", "east", "west"} {
				l.docs[id] = append(l.docs[id], document.Row{ProductID: id, Shop: shop, Document: big})
			}
			l.mu.Unlock()
			l.change(id, 100)
		}
		l.wait(2 * time.Minute)
		require.Len(t, l.sent, 200)
		require.Equal(t, int64(50), l.position)
		mu.Lock()
		defer mu.Unlock()
		require.Greater(t, most, 6<<20, "and they are still settled together")
		require.LessOrEqual(t, most, 33<<20)
		stop()
	})
}

// One group may be too big by itself, and a document be too big by itself.
func TestASingleGroupAboveTheBoundIsSplit(t *testing.T) {
	f := finished{}
	for _, mib := range []int{10, 10, 10, 10, 40, 1, 1} {
		f.jobs = append(f.jobs, &job{push: work.Push{Raw: make([]byte, mib<<20)}})
	}
	f.jobs = append(f.jobs, &job{same: true, push: work.Push{Raw: make([]byte, 100<<20)}})
	var got [][]int
	for piece := range f.pieces() {
		var sizes []int
		for _, j := range piece.jobs {
			sizes = append(sizes, len(j.push.Raw)>>20)
		}
		got = append(got, sizes)
	}
	require.Equal(t, [][]int{{10, 10, 10}, {10}, {40}, {1, 1, 100}}, got)
}

// What a reader finds done already needs none of the places that were kept for it.
func TestProductsThatWereSeenBeforeLeaveNoPlacesTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPaced(t, nil)
		p, stop := w.run(func(*PushConfig) {})
		for i := range 50 {
			w.edit(fmt.Sprintf("p%d", i), "1", "north")
		}
		w.wait(2 * time.Second)
		for range 20 { // 1,000 records, all of them seen
			for i := range 50 {
				w.change(fmt.Sprintf("p%d", i), 100)
			}
			w.wait(time.Second)
		}
		require.Equal(t, int64(1000), p.Stats().SeenBefore.Load())
		p.lines.mu.Lock()
		require.Empty(t, p.lines.of)
		require.Zero(t, p.lines.taken)
		p.lines.mu.Unlock()
		stop()
	})
}

// brokenRelease is a state that cannot give leases back for a while.
type brokenRelease struct {
	*world
	broken atomic.Bool
}

func (b *brokenRelease) Release(ctx context.Context, fences []work.Fence) error {
	if b.broken.Load() {
		return fmt.Errorf("connection refused")
	}
	return b.world.Release(ctx, fences)
}

func TestALeaseThatCouldNotBeGivenBackIsGivenBackLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		b := &brokenRelease{world: w}
		b.broken.Store(true)
		p := w.worker("a", func(*PushConfig) {})
		p.parts.Leases = b
		stop := w.start(p)
		w.wait(time.Second)
		w.mu.Lock()
		w.wanted = true
		w.mu.Unlock()
		w.wait(10 * time.Second)
		require.Equal(t, "a", w.owner)
		b.broken.Store(false)
		w.wait(7 * time.Second)
		require.False(t, w.wanted)
		w.put("p1", "1", "north")
		w.change("p1", 100)
		w.wait(5 * time.Second)
		require.Equal(t, 1, strings.Count(strings.Join(w.sent, " "), "p1"), "taken again, and pushed")
		stop()
	})
}
