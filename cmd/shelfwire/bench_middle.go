package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/shelfwire/shelfwire/connectors/kafka"
	"github.com/shelfwire/shelfwire/deploy/embedded"
	"github.com/shelfwire/shelfwire/deploy/embedded/postgres"
	"github.com/shelfwire/shelfwire/pipeline"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
	"github.com/shelfwire/shelfwire/sinks/shopify"
	"github.com/shelfwire/shelfwire/sinks/shopify/shopifysim"
	"github.com/shelfwire/shelfwire/sinks/state"
)

// middleRig is what stands around Push and nothing else: a state in an embedded PostgreSQL, a broker in a process of its
// own, and a simulated shop. Records are written by the rig instead of Capture, and documents cost nothing: what a read
// costs the source is measured apart.
type middleRig struct {
	b       *bench
	admin   string // URL of the server
	url     string // of the state
	broker  captureBroker
	cluster *kafka.Cluster
	store   *state.Store
	shops   *shopify.Shops
	sim     *shopifysim.Simulator
	docs    *freeDocuments
	stops   []func()
	records int // written so far
}

const (
	middleShop       = "one"
	middlePartitions = 8
	// middleXID is below the transaction ids that the rig writes.
	middleXID = 2000
	// middleSeen is beyond every transaction id that the rig writes: a read that begins now sees them all.
	middleSeen = 1 << 40
)

func newMiddleRig(ctx context.Context, b *bench) (r *middleRig, err error) {
	r = &middleRig{b: b, docs: &freeDocuments{}}
	s, err := embedded.NewScratch(ctx, "shelfwire", "bench")
	if err != nil {
		return r, err
	}
	r.stops = append(r.stops, func() { _ = s.Remove() })
	pg, err := postgres.Start(ctx, postgres.Config{Dir: filepath.Join(s.Path, "postgres")})
	if err != nil {
		return r, err
	}
	r.stops = append(r.stops, func() { _ = pg.Stop() })
	if r.broker, err = kfakeBroker(ctx, filepath.Join(s.Path, "kafka")); err != nil {
		return r, err
	}
	r.stops = append(r.stops, func() { _ = r.broker.Stop() })
	r.admin = pg.URL("postgres")
	if r.url, err = state.Create(ctx, r.admin, "shelfwire"); err != nil {
		return r, err
	}
	if r.store, err = state.Open(ctx, state.Config{URL: r.url, Log: b.log}); err != nil {
		return r, err
	}
	r.stops = append(r.stops, r.store.Close)
	if err := r.store.Migrate(ctx); err != nil {
		return r, err
	}
	if r.cluster, err = kafka.New(kafka.Config{
		Brokers: []string{r.broker.Addr()}, Prefix: "catalog.", Partitions: middlePartitions, Logger: b.log,
	}); err != nil {
		return r, err
	}
	r.stops = append(r.stops, r.cluster.Close)
	if err := r.cluster.EnsureTopics(ctx); err != nil {
		return r, err
	}
	if r.sim, err = shopifysim.New(shopifysim.Config{Shops: []shopifysim.ShopConfig{{Domain: middleShop, Token: "simulated"}}}); err != nil {
		return r, err
	}
	r.shops, err = shopify.New(shopify.Config{
		Shops: map[string]shopify.ShopConfig{middleShop: {
			URL: "http://" + middleShop, Token: func(context.Context) (string, error) { return "simulated", nil },
		}},
		Budget: r.store, Holder: "bench", RoundTripper: r.sim.RoundTripper(), Logger: b.log,
	})
	return r, err
}

func (r *middleRig) close() {
	for _, stop := range slices.Backward(r.stops) {
		stop()
	}
}

// freeDocuments says of every product the same, at once, and that all transactions before the snapshot's end are seen.
type freeDocuments struct{ snapshot change.Snapshot }

const freeDocument = `{"eligible": true, "title": "A product of some name", "handle": "a-product-of-some-name", "vendor": "Bench",
	"descriptionHtml": "<p>What a description says of a product, in a sentence of some length that nobody reads to its end.</p>",
	"tags": ["new", "sale"], "options": [{"name": "Size", "values": ["S", "M"]}], "variants": [
	{"key": "1", "options": ["S"], "sku": "BENCH-1", "barcode": "4006381333931", "price": "12.50", "policy": "DENY", "taxable": true, "requiresShipping": true, "weightGrams": 120},
	{"key": "2", "options": ["M"], "sku": "BENCH-2", "barcode": "4006381333948", "price": "13.50", "policy": "DENY", "taxable": true, "requiresShipping": true, "weightGrams": 130}]}`

// Documents answers from memory.
func (d *freeDocuments) Documents(_ context.Context, ids []change.ProductID) ([]document.Row, change.Snapshot, time.Time, error) {
	rows := make([]document.Row, len(ids))
	for i, id := range ids {
		rows[i] = document.Row{ProductID: string(id), Shop: middleShop, Document: []byte(freeDocument)}
	}
	return rows, d.snapshot, time.Now(), nil
}

// run runs a push worker, as `shelfwire run` builds it, beside measure.
func (r *middleRig) run(ctx context.Context, measure func(context.Context, *pipeline.Push) error) error {
	reader, err := r.cluster.NewReader(r.cluster.Topic(event.Changes))
	if err != nil {
		return err
	}
	defer reader.Close()
	push := pipeline.NewPush(pipeline.PushConfig{
		Lease: pipeline.LeaseConfig{Owner: "bench"}, Prefix: "catalog.", Partitions: middlePartitions,
	}, pipeline.PushParts{
		Leases: r.store, Reader: reader, Documents: r.docs, State: r.store, Fenced: r.store, Shops: r.store, Sender: r.shops,
		TellLate: r.store.TellLate, Log: r.b.log,
	})
	runCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, measureCtx := errgroup.WithContext(ctx)
	g.Go(func() error {
		err := push.Run(runCtx)
		if runCtx.Err() == nil && err == nil {
			err = errors.New("push ended by itself")
		}
		return err
	})
	g.Go(func() error {
		defer stop()
		return measure(measureCtx, push)
	})
	return g.Wait()
}

// middleUse is the processor time that the worker's process and the state's server have used so far.
type middleUse struct{ worker, server time.Duration }

func (r *middleRig) used(ctx context.Context) (u middleUse, err error) {
	if u.worker, err = processCPU(os.Getpid()); err != nil {
		return u, err
	}
	pids, err := query[[]int](ctx, r.url, `SELECT array_agg(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()`)
	for _, pid := range pids {
		took, err := processCPU(pid)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has just ended
		}
		if err != nil {
			return u, err
		}
		u.server += took
	}
	return u, err
}

// since says what was used for each of n things.
func (u middleUse) since(before middleUse, n int) string {
	each := func(d time.Duration) float64 { return float64(d.Microseconds()) / float64(n) }
	return fmt.Sprintf("%.1f µs of the worker's CPU and %.1f µs of the state's server", each(u.worker-before.worker), each(u.server-before.server))
}

// write writes n changes as Capture would, each of a transaction of its own: product says of which product the i-th is.
func (r *middleRig) write(ctx context.Context, n int, product func(i int) int, more ...event.Header) error {
	p, err := r.cluster.OpenProducer(ctx, "bench")
	if err != nil {
		return err
	}
	defer p.Close()
	const row = `{"before":null,"after":{"id":%d,"shop":1,"handle":"handle-of-a-product-%d","title":"A title of some length for product %d",` +
		`"price":"12.50","qty":7,"updated_at":"2026-01-02T03:04:05.678901Z"},"source":{"version":"1","connector":"shelfwire","db":"shop",` +
		`"schema":"catalog","table":"variants","txId":%d,"lsn":%d},"op":"u"}`
	const each = 10_000
	for from := 0; from < n; from += each {
		if err := p.Begin(); err != nil {
			return err
		}
		now := time.Now()
		committed := strconv.AppendInt(nil, now.UnixMicro(), 10)
		for i := from; i < min(from+each, n); i++ {
			r.records++
			id := product(i)
			xid := middleXID + r.records
			if err := p.Produce(event.Record{
				Topic: r.cluster.Topic(event.Changes), Partition: -1, Key: strconv.AppendInt(nil, int64(id), 10), Timestamp: now,
				Value: fmt.Appendf(nil, row, id, id, id, xid, r.records*100),
				Headers: append([]event.Header{
					{Key: event.HeaderPosition, Value: fmt.Appendf(nil, "0/%X:1", r.records*100)},
					{Key: event.HeaderXID, Value: strconv.AppendInt(nil, int64(xid), 10)},
					{Key: event.HeaderOp, Value: []byte("u")},
					{Key: event.HeaderTable, Value: []byte("catalog.variants")},
					{Key: event.HeaderPrimaryKey, Value: fmt.Appendf(nil, `{"id":"%d"}`, id)},
					{Key: event.HeaderCommitted, Value: committed},
				}, more...),
			}); err != nil {
				return err
			}
		}
		if err := p.Commit(ctx); err != nil {
			return err
		}
	}
	return nil
}

// passed waits until Push has finished what the topic holds.
func (r *middleRig) passed(ctx context.Context) error {
	return poll(ctx, 20*time.Millisecond, func(ctx context.Context) (bool, error) {
		ends, err := r.cluster.EndOffsets(ctx, r.cluster.Topic(event.Changes))
		if err != nil {
			return false, err
		}
		at, err := r.store.Positions(ctx, work.StagePush)
		if err != nil {
			return false, err
		}
		for part, end := range ends {
			left := end - at[part]
			if left == 1 { // it may be the marker of a transaction
				_, err = r.cluster.Scan(ctx, r.cluster.Topic(event.Changes), part, at[part], end, func(event.Record) bool {
					left++
					return false
				})
			}
			if err != nil || left > 1 {
				return false, err
			}
		}
		return true, nil
	})
}

// know lets the state know n products: the first is pushed to the shop and evaluated once more, the others are copies of
// what is then on record of it.
func (r *middleRig) know(ctx context.Context, n int) error {
	for range 2 {
		if err := r.write(ctx, 1, func(int) int { return 1 }); err != nil {
			return err
		}
		seen := change.XID(middleXID + r.records + 1)
		r.docs.snapshot = change.Snapshot{Xmin: seen, Xmax: seen}
		err := r.run(ctx, func(ctx context.Context, _ *pipeline.Push) error { return r.passed(ctx) })
		if err != nil {
			return fmt.Errorf("push the first product: %w", err)
		}
	}
	conn, err := pgx.Connect(ctx, r.url)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var status, reason string
	if err := conn.QueryRow(ctx, `SELECT last_status, last_reason FROM products WHERE shop <> ''`).Scan(&status, &reason); err != nil {
		return err
	}
	if status != string(event.Skipped) {
		return fmt.Errorf("the first product was not answered from the state, but is %s %s", status, reason)
	}
	_, err = conn.Exec(ctx, `INSERT INTO products (product_id, shop, shopify_id, shadow, snapshot, document_hash, off_sale, last_status, last_reason)
		SELECT g::text, shop, shopify_id, shadow, snapshot, document_hash, off_sale, last_status, last_reason
		FROM products, generate_series(2, $1::int) g`, n)
	if err != nil {
		return fmt.Errorf("copy what is known of the first product: %w", err)
	}
	_, err = conn.Exec(ctx, `VACUUM (ANALYZE) products`)
	r.docs.snapshot = change.Snapshot{Xmin: middleSeen, Xmax: middleSeen}
	return err
}
