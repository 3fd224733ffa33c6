package pipeline_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/pipeline"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
	"github.com/shelfwire/shelfwire/sinks/state"
)

// envFanout is how many products one row concerns in TestAFanoutThroughKills; 20,000 where it is not set.
const envFanout = "SHELFWIRE_TEST_FANOUT"

// fanoutOf makes so many products in ten categories below category 1, nine of them below category 2 as well.
const fanoutOf = `
INSERT INTO catalog.categories (id, parent_id, depth, name) VALUES (1, NULL, 0, 'all'), (2, 1, 1, 'most');
INSERT INTO catalog.categories (id, parent_id, depth, name) SELECT 10 + i, CASE i WHEN 0 THEN 1 ELSE 2 END, 2, 'c' FROM generate_series(0, 9) i;
INSERT INTO catalog.price_rules (id, category_id, name, percent) VALUES (1, 1, 'all', -10);
`

// killing is a fan-out that workers expand while they are killed and stopped at its pages.
type killing struct {
	*middleRig
	rng *rand.Rand

	mu     sync.Mutex
	left   int // misfortunes to come
	kinds  map[string]int
	heap   uint64 // the most that was in use at a page
	deaths chan struct{}
}

// doomed is the state as a worker sees it that may be killed or stopped at any page.
type doomed struct {
	*state.Store
	k     *killing
	owner string
	kill  context.CancelFunc
	still atomic.Bool // it neither renews nor gives back
}

func (d *doomed) Renew(ctx context.Context, stage work.Stage, owner string, n int32, ttl time.Duration) ([]work.Lease, error) {
	if d.still.Load() {
		return nil, errors.New("the process does not run")
	}
	return d.Store.Renew(ctx, stage, owner, n, ttl)
}

func (d *doomed) Release(ctx context.Context, fences []work.Fence) error {
	if d.still.Load() {
		return errors.New("the process does not run")
	}
	return d.Store.Release(ctx, fences)
}

func (d *doomed) TakeIn(ctx context.Context, t work.TakeIn) error {
	switch fate := d.k.fate(); fate {
	case "killed before", "killed after":
		d.still.Store(true)
		if fate == "killed after" {
			if err := d.Store.TakeIn(ctx, t); err != nil && ctx.Err() == nil && !errors.Is(err, work.ErrLeaseLost) {
				d.k.all.Error(err)
			}
		}
		d.kill()
		d.expire()
		d.k.deaths <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	case "stopped":
		d.still.Store(true)
		defer d.still.Store(false)
		for d.expire(); d.owns(t.Fences[0].Partition); {
			<-time.After(5 * time.Millisecond)
		}
		err := d.Store.TakeIn(context.WithoutCancel(ctx), t) // it wakes up and knows nothing
		if !errors.Is(err, work.ErrLeaseLost) {
			d.k.all.Errorf("what a worker writes whose lease another one has: %v", err)
		}
		return err
	}
	return d.Store.TakeIn(ctx, t)
}

// expire lets the time pass that leases outlive their worker.
func (d *doomed) expire() {
	d.k.query(nil, `UPDATE leases SET expires = clock_timestamp() WHERE owner = $1 AND stage = 'expand' RETURNING 1`, d.owner)
}

func (d *doomed) owns(partition int32) (yes bool) {
	d.k.query(&yes, `SELECT EXISTS (SELECT FROM leases WHERE owner = $1 AND stage = 'expand' AND partition = $2)`, d.owner, partition)
	return yes
}

// query asks the state from any goroutine.
func (k *killing) query(to any, sql string, args ...any) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var none int
	if to == nil {
		to = &none
	}
	rows, err := k.facts.Query(context.Background(), sql, args...)
	if err == nil {
		for rows.Next() {
			err = errors.Join(err, rows.Scan(to))
		}
		rows.Close()
		err = errors.Join(err, rows.Err())
	}
	if err != nil {
		k.all.Error(err)
	}
}

// fate says what befalls the worker at this page.
func (k *killing) fate() (fate string) {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.heap = max(k.heap, m.HeapAlloc)
	if k.left == 0 || k.rng.IntN(3) > 0 {
		return ""
	}
	k.left--
	fate = []string{"killed before", "killed after", "stopped"}[k.rng.IntN(3)]
	k.kinds[fate]++
	return fate
}

// start runs one more worker.
func (k *killing) start() {
	ctx, kill := context.WithCancel(context.Background())
	lease := k.owner()
	d := &doomed{Store: k.state, k: k, owner: lease.Owner, kill: kill}
	e := pipeline.NewExpand(pipeline.ExpandConfig{
		Lease: lease, Prefix: k.kc.Topic(""), Partitions: k.kc.Partitions(), ChangePartitions: k.kc.Partitions(), Routes: k.routes,
	}, d, k.reader(event.Fanouts), k.source, d, k.log)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := e.Run(ctx); err != nil && ctx.Err() == nil {
			k.all.Errorf("expand: %v", err)
		}
	}()
	k.all.Cleanup(func() { kill(); <-done })
}

// A row that concerns a million products is expanded in pages, by workers that die and are stopped at any of them: each
// product is parked once, and is one item of the batch.
func TestAFanoutThroughKills(t *testing.T) {
	n := 20_000
	if s := os.Getenv(envFanout); s != "" {
		var err error
		n, err = strconv.Atoi(s)
		require.NoError(t, err)
	}
	kills := min(60, n/3000)
	k := &killing{
		middleRig: newMiddleRig(t, embeddedtest.Postgres(t), fanoutOf), rng: rand.New(rand.NewPCG(1, uint64(n))), left: kills,
		kinds: map[string]int{}, deaths: make(chan struct{}, kills),
	}
	making := time.Now()
	k.log = slog.New(slog.DiscardHandler) // they say at every death that they are dead
	k.exec(`INSERT INTO catalog.products (id, category_id, handle, title) SELECT i, 10 + i % 10, i, 'P' FROM generate_series(1, $1::int) i`, n)
	k.exec(`ANALYZE catalog.products`)
	t.Logf("%d products made in %s", n, time.Since(making).Round(time.Millisecond))
	const batch = "tx-of-the-rule"
	part := k.announce(batch, k.transact(`UPDATE catalog.price_rules SET category_id = 2`))

	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	began := time.Now()
	k.start()
	k.start()
	count := func(sql string, args ...any) (n int64) {
		k.query(&n, sql, args...)
		return n
	}
	const position = `SELECT position FROM leases WHERE stage = 'expand' AND partition = $1`
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for end := began.Add(time.Hour); count(position, part) == 0; {
		select {
		case <-k.deaths:
			k.start()
		case <-look.C:
			require.False(t, time.Now().After(end), "it ends")
		}
	}
	took := time.Since(began)

	for _, c := range []struct{ what, sql string }{
		{"products that wait", `SELECT count(DISTINCT product_id) FROM parked`},
		{"rows of them", `SELECT count(*) FROM parked`},
		{"times they were parked", `SELECT sum(changes)::bigint FROM parked`},
		{"items", `SELECT count(*) FROM batch_items WHERE batch_id = '` + batch + `' AND status = 'PENDING'`},
	} {
		require.EqualValues(t, n, count(c.sql), c.what)
	}
	require.EqualValues(t, 1, count(`SELECT count(*) FROM outbox`), "the batch is opened once")
	require.Zero(t, k.left, "nothing has befallen the workers")
	require.Less(t, k.heap, before.HeapAlloc+96<<20, "memory does not grow with the products")
	t.Logf("%d products of one row in %s: %.0f a second, through %v, with at most %d MB on the heap",
		n, took.Round(time.Millisecond), float64(n)/took.Seconds(), k.kinds, k.heap>>20)
}

// announce writes the fan-out of a change of the rule from category 1 to 2, as Capture does, and returns its partition.
func (k *killing) announce(batch string, xid change.XID) (part int32) {
	k.t.Helper()
	id, all, most := "1", "1", "2"
	v, err := json.Marshal(event.Fanout{
		Table: "catalog.price_rules", Op: "u", XID: xid, BatchID: batch, CommitTime: time.Now(),
		Before: map[string]*string{"id": &id, "category_id": &all}, After: map[string]*string{"id": &id, "category_id": &most},
	})
	require.NoError(k.t, err)
	p, err := k.kc.OpenProducer(k.t.Context(), "capture/test")
	require.NoError(k.t, err)
	defer p.Close()
	key := []byte("catalog.price_rules 1")
	part = change.Partition(change.ProductID(key), k.kc.Partitions())
	require.NoError(k.t, p.Begin())
	require.NoError(k.t, p.Produce(event.Record{
		Topic: k.kc.Topic(event.Fanouts), Partition: part, Key: key, Value: v,
		Headers: []event.Header{{Key: event.HeaderBatch, Value: []byte(batch)}},
	}))
	require.NoError(k.t, p.Commit(k.t.Context()))
	return part
}
