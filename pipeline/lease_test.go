package pipeline

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// countedLeases counts renewals.
type countedLeases struct{ renewed atomic.Int64 }

func (c *countedLeases) Renew(_ context.Context, stage work.Stage, owner string, _ int32, _ time.Duration) ([]work.Lease, error) {
	return []work.Lease{{Fence: work.Fence{Stage: stage, Owner: owner, Epoch: 1}, Position: c.renewed.Add(1)}}, nil
}

func (c *countedLeases) Release(context.Context, []work.Fence) error { return nil }

func TestALeaseIsRenewedWhileItsHolderIsBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &countedLeases{}
		k := &leaseKeeper{
			store: store, stage: work.StageExpand, partitions: 1, cfg: LeaseConfig{Owner: "a"}.withDefaults(),
			log: slog.New(slog.DiscardHandler),
		}
		ctx, cancel := context.WithCancel(t.Context())
		held, done := make(chan []heldLease), make(chan error)
		go func() { done <- k.run(ctx, held) }()
		<-held
		time.Sleep(2 * time.Minute) // one page
		require.Greater(t, store.renewed.Load(), int64(30))
		got := <-held
		require.Greater(t, got[0].Position, int64(30), "the newest renewal")
		require.Greater(t, time.Until(got[0].until), 25*time.Second)
		cancel()
		require.NoError(t, <-done)
	})
}

func TestAPollThatWasReadAheadIsNotTakenAfterItsPartitionBeginsAnew(t *testing.T) {
	var a readAhead
	stale := func(offset int64) bool { return a.stale(&event.Record{Offset: offset}) }
	a.begin(0, 100)
	require.False(t, stale(100))
	require.False(t, stale(105))
	a.begin(0, 103) // the lease was lost and won again; the poll after 105 is on its way
	require.True(t, stale(107))
	require.True(t, stale(108))
	require.False(t, stale(105))
	require.False(t, stale(107), "the same record, in order now")
	a.begin(0, 200) // another worker has gone on
	require.False(t, stale(109), "its own offset tells")
	a.begin(0, 90)
	a.begin(0, 95)
	require.True(t, stale(110))
	require.False(t, stale(97))
	require.False(t, stale(110))
}

// lateLeases is a state that carries out what reaches it half a second later, whether the caller waits or not.
type lateLeases struct {
	mu       sync.Mutex
	owner    string
	released int
}

func (l *lateLeases) Renew(ctx context.Context, stage work.Stage, owner string, n int32, ttl time.Duration) ([]work.Lease, error) {
	done := make(chan []work.Lease, 1)
	go func() {
		time.Sleep(500 * time.Millisecond) // in the bubble
		l.mu.Lock()
		defer l.mu.Unlock()
		l.owner = owner
		var out []work.Lease
		for p := range n {
			out = append(out, work.Lease{Fence: work.Fence{Stage: stage, Partition: p, Owner: owner, Epoch: 1}, Expires: time.Now().Add(ttl)})
		}
		done <- out
	}()
	select {
	case out := <-done:
		return out, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *lateLeases) Release(_ context.Context, fences []work.Fence) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.owner = ""
	for _, f := range fences {
		if f.Partition != work.AllPartitions {
			l.released++
		}
	}
	return nil
}

// noRecords is a topic without records, and everything else that a stage needs and does not use here.
type noRecords struct{ loadTables }

func (noRecords) Add(int32, int64) {}
func (noRecords) Remove(int32)     {}
func (noRecords) Close()           {}
func (noRecords) Poll(ctx context.Context, _ int) ([]event.Record, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}
func (noRecords) Migrate(context.Context) error { return nil }
func (noRecords) Begin(context.Context, string, [16]byte) (map[int32]int64, error) {
	return nil, nil
}

func (noRecords) TopicID(context.Context, string) ([16]byte, error)             { return [16]byte{1}, nil }
func (noRecords) StartOffsets(context.Context, string) (map[int32]int64, error) { return nil, nil }
func (noRecords) SavePosition(context.Context, []work.Fence, map[int32]int64, string) error {
	return nil
}

// A renewal that is on its way when a stage is told to stop must not take the leases again that the stage gives back:
// nobody would hold them until they end.
func TestNoRenewalOutlivesTheReleaseOfAStop(t *testing.T) {
	cfg := LeaseConfig{Owner: "a"}
	log := slog.New(slog.DiscardHandler)
	for name, stage := range map[string]func(l leaseStore) func(context.Context) error{
		"push": func(l leaseStore) func(context.Context) error {
			w := newWorld(t)
			p := w.worker("a", func(c *PushConfig) { c.Partitions = 3 })
			p.parts.Leases, p.parts.Reader = l, noRecords{}
			return p.Run
		},
		"follow": func(l leaseStore) func(context.Context) error {
			f := follower{
				keeper: &leaseKeeper{store: l, stage: work.StageExpand, partitions: 3, cfg: cfg.withDefaults(), log: log},
				reader: noRecords{}, log: log,
			}
			return f.run
		},
		"load": func(l leaseStore) func(context.Context) error {
			topics := []LoadTopic{{Kind: "changes", Name: "changes", Partitions: 3, Open: func() (LoadReader, error) { return noRecords{}, nil }}}
			return NewLoad(LoadConfig{Lease: cfg}, topics, l, noRecords{}, noRecords{}, noRecords{}, log).Run
		},
	} {
		for _, at := range []time.Duration{100 * time.Millisecond, 3100 * time.Millisecond, 4 * time.Second} {
			t.Run(fmt.Sprint(name, " after ", at), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					l := &lateLeases{}
					ctx, cancel := context.WithCancel(t.Context())
					done := make(chan error)
					run := stage(l)
					go func() { done <- run(ctx) }()
					time.Sleep(at)
					cancel()
					stopped := time.Now()
					require.NoError(t, <-done)
					require.LessOrEqual(t, time.Since(stopped), 3*time.Second)
					time.Sleep(time.Minute)
					require.Empty(t, l.owner)
					require.Equal(t, 3, l.released)
				})
			})
		}
	}
}
