package pipeline

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// followWorld is a topic, the leases of its partitions, and what was made of its records.
type followWorld struct {
	mu      sync.Mutex
	ends    []int64 // records of each partition
	leases  []work.Lease
	handled [][]int64 // offsets by partition, in the order in which they became durable
	busy    map[string]int
	side    int
}

func newFollowWorld(partitions int, records int64) *followWorld {
	w := &followWorld{handled: make([][]int64, partitions), busy: map[string]int{}, side: 1}
	for p := range partitions {
		w.ends = append(w.ends, records)
		w.leases = append(w.leases, work.Lease{Fence: work.Fence{Stage: work.StageExpand, Partition: int32(p)}})
	}
	return w
}

func (w *followWorld) Renew(_ context.Context, _ work.Stage, owner string, _ int32, ttl time.Duration) ([]work.Lease, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []work.Lease
	for i := range w.leases {
		l := &w.leases[i]
		if time.Now().After(l.Expires) {
			l.Owner, l.Wanted = owner, false
			l.Epoch++
		}
		if l.Owner == owner {
			l.Expires = time.Now().Add(ttl)
			out = append(out, *l)
		}
	}
	return out, nil
}

func (w *followWorld) Release(_ context.Context, fences []work.Fence) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range fences {
		if f.Partition == work.AllPartitions {
			continue
		}
		if l := &w.leases[f.Partition]; l.Fence == f {
			l.Expires = time.Time{}
		}
	}
	return nil
}

// durable makes a record durable under a fence.
func (w *followWorld) durable(f work.Fence, offset int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := &w.leases[f.Partition]
	if l.Fence != f || time.Now().After(l.Expires) {
		return work.ErrLeaseLost
	}
	w.handled[f.Partition] = append(w.handled[f.Partition], offset)
	l.Position = offset + 1
	return nil
}

func (w *followWorld) enter(owner string, by int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.busy[owner] += by
	if w.busy[owner] > w.side {
		panic(fmt.Sprintf("%d handled at once", w.busy[owner]))
	}
}

func (w *followWorld) done() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.ends {
		if w.leases[i].Position < w.ends[i] {
			return false
		}
	}
	return true
}

// followReader reads the world's topic, a few records of one partition at a time.
type followReader struct {
	w    *followWorld
	mu   sync.Mutex
	next map[int32]int64
	most int
}

func (r *followReader) Add(partition int32, offset int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next[partition] = offset
}

func (r *followReader) Remove(partition int32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.next, partition)
}

func (r *followReader) Poll(ctx context.Context, _ int) ([]event.Record, error) {
	for {
		r.mu.Lock()
		for p, at := range r.next { // in any order
			if at >= r.w.ends[p] {
				continue
			}
			var recs []event.Record
			for ; at < r.w.ends[p] && len(recs) < r.most; at++ {
				recs = append(recs, event.Record{Partition: p, Offset: at})
			}
			r.next[p] = at
			r.mu.Unlock()
			return recs, nil
		}
		r.mu.Unlock()
		if !sleep(ctx, 50*time.Millisecond) {
			return nil, ctx.Err()
		}
	}
}

// follow starts a worker whose handling of a record takes as long as took says.
func (w *followWorld) follow(t *testing.T, owner string, most int, took func(work.Lease, int64) time.Duration) (f *follower, stop func()) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	f = &follower{
		keeper: &leaseKeeper{
			store: w, stage: work.StageExpand, partitions: int32(len(w.ends)), cfg: LeaseConfig{Owner: owner}.withDefaults(), log: log,
		},
		reader: &followReader{w: w, next: map[int32]int64{}, most: most}, log: log, side: w.side,
		handle: func(ctx context.Context, l work.Lease, recs []event.Record) error {
			w.enter(owner, 1)
			defer w.enter(owner, -1)
			for i := range recs {
				if !sleep(ctx, took(l, recs[i].Offset)) {
					return ctx.Err()
				}
				if err := w.durable(l.Fence, recs[i].Offset); err != nil {
					return err
				}
			}
			return nil
		},
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.run(ctx) }()
	return f, sync.OnceFunc(func() {
		cancel()
		require.NoError(t, <-done)
	})
}

// One record that takes an hour holds up nothing but what comes after it in its own partition.
func TestALongRecordHoldsUpNoOtherPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newFollowWorld(3, 10_000)
		w.side = 2
		_, stop := w.follow(t, "a", 1000, func(l work.Lease, _ int64) time.Duration {
			if l.Partition == 0 {
				return time.Hour
			}
			return time.Millisecond
		})
		time.Sleep(time.Minute)
		w.mu.Lock()
		require.Empty(t, w.handled[0])
		require.Len(t, w.handled[1], 10_000)
		require.Len(t, w.handled[2], 10_000)
		w.mu.Unlock()
		stop()
	})
}

// A partition that another worker waits for is given back while one of its records is handled, however long that takes.
func TestAWantedPartitionIsGivenBackInTheMiddleOfARecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newFollowWorld(1, 5)
		_, stop := w.follow(t, "a", 1000, func(work.Lease, int64) time.Duration { return time.Hour })
		time.Sleep(time.Minute)
		w.mu.Lock()
		w.leases[0].Wanted = true
		w.mu.Unlock()
		time.Sleep(4 * time.Second) // a renewal
		w.mu.Lock()
		free := time.Now().After(w.leases[0].Expires) || w.leases[0].Epoch > 1
		w.mu.Unlock()
		require.True(t, free)
		stop()
	})
}

// A partition that is not handled for long takes no more memory than a bounded queue.
func TestRecordsThatWaitAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newFollowWorld(2, 1_000_000)
		f, stop := w.follow(t, "a", 1000, func(work.Lease, int64) time.Duration { return time.Hour })
		time.Sleep(time.Minute)
		stop()
		for _, p := range f.held {
			require.LessOrEqual(t, len(p.queue), followQueue+2000)
			require.NotEmpty(t, p.queue)
		}
	})
}

// Whatever becomes of the leases, each record is made durable once and in its order.
func TestFollowersHandleEachRecordOnceInOrder(t *testing.T) {
	for seed := range uint64(60) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			w := newFollowWorld(1+rnd.IntN(4), int64(1+rnd.IntN(6000)))
			w.side = 1 + rnd.IntN(3)
			var mu sync.Mutex
			pace := rand.New(rand.NewPCG(seed, 2))
			took := func(work.Lease, int64) time.Duration {
				mu.Lock()
				defer mu.Unlock()
				if pace.IntN(200) == 0 {
					return time.Duration(pace.IntN(40)) * time.Second
				}
				return time.Duration(pace.IntN(5)) * time.Millisecond
			}
			var stops []func()
			for i := range 1 + rnd.IntN(2) {
				_, stop := w.follow(t, fmt.Sprint(seed, i), 1+rnd.IntN(1500), took)
				stops = append(stops, stop)
			}
			for i := 0; !w.done(); i++ {
				time.Sleep(time.Duration(rnd.IntN(20_000)) * time.Millisecond)
				require.Less(t, i, 20_000, "seed %d", seed)
				w.mu.Lock()
				switch l := &w.leases[rnd.IntN(len(w.leases))]; rnd.IntN(8) {
				case 0:
					l.Wanted = true
				case 1: // lost
					l.Expires = time.Time{}
				}
				w.mu.Unlock()
				if rnd.IntN(10) == 0 {
					k := rnd.IntN(len(stops))
					stops[k]()
					_, stops[k] = w.follow(t, fmt.Sprint(seed, "again", i), 1+rnd.IntN(1500), took)
				}
			}
			for _, stop := range stops {
				stop()
			}
			for p, got := range w.handled {
				require.Len(t, got, int(w.ends[p]), "seed %d", seed)
				for i, offset := range got {
					require.EqualValues(t, i, offset, "seed %d", seed)
				}
			}
		})
	}
}
