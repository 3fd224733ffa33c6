package pipeline_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/connectors/kafka"
	"github.com/shelfwire/shelfwire/connectors/postgres"
	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/pipeline"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/route"
)

// captureRig is a source database, a broker, and captures that run over them one after the other.
type captureRig struct {
	t   *testing.T
	url string
	db  *pgx.Conn
	kc  *kafka.Cluster
	cfg pipeline.CaptureConfig
	// faults decides what goes wrong at the producer; nil: nothing.
	faults func(call string) error
}

var captureRoutes = []route.Route{
	{Table: "public.products", Key: "id", Batch: true, BatchWhen: []string{"approved"}, Admin: "approved_by"},
	{Table: "public.variants", Key: "product_id"},
	{Table: "public.stock", Parent: &route.Parent{Column: "variant_id", Table: "public.variants", ID: "id", Key: "product_id"}},
	{Table: "public.categories", Query: "SELECT id FROM products"},
}

func newCaptureRig(t *testing.T) *captureRig {
	t.Helper()
	url := embeddedtest.NewDatabase(t, embeddedtest.Postgres(t))
	db, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = db.Close(context.Background()) })
	_, err = db.Exec(t.Context(), `
		CREATE TABLE products (id text PRIMARY KEY, title text, price numeric, approved bool, approved_by text);
		CREATE TABLE variants (id bigint PRIMARY KEY, product_id text, sku text);
		CREATE TABLE stock (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, variant_id bigint REFERENCES variants ON DELETE CASCADE, qty int);
		CREATE TABLE categories (id int PRIMARY KEY, name text);
		CREATE TABLE unrouted (id int);
		ALTER TABLE products REPLICA IDENTITY FULL; ALTER TABLE variants REPLICA IDENTITY FULL;
		ALTER TABLE stock REPLICA IDENTITY FULL; ALTER TABLE categories REPLICA IDENTITY FULL`)
	require.NoError(t, err)
	broker := embeddedtest.Kafka(t)
	kc, err := kafka.New(kafka.Config{Brokers: []string{broker.Addr()}, Partitions: 4})
	require.NoError(t, err)
	t.Cleanup(kc.Close)
	require.NoError(t, kc.EnsureTopics(t.Context()))
	return &captureRig{t: t, url: url, db: db, kc: kc, cfg: pipeline.CaptureConfig{
		Routes: captureRoutes, TxEvery: time.Millisecond, IdleEvery: 50 * time.Millisecond, SnapshotRate: -1,
	}}
}

func (r *captureRig) exec(sql string, args ...any) {
	r.t.Helper()
	_, err := r.db.Exec(r.t.Context(), sql, args...)
	require.NoError(r.t, err)
}

// start runs a capture until the returned function is called, which gives what Run returned.
func (r *captureRig) start() (*pipeline.Capture, func() error) {
	r.t.Helper()
	src, err := postgres.Open(r.t.Context(), postgres.Config{URL: r.url, Slot: r.slot()})
	require.NoError(r.t, err)
	c := pipeline.NewCapture(r.cfg, pipeline.CaptureParts{
		Source: src,
		Open: func(ctx context.Context) (pipeline.CaptureStream, error) {
			if err := src.EnsurePublication(ctx, pipeline.RoutedTables(r.cfg.Routes)); err != nil {
				return nil, err
			}
			if _, err := src.EnsureSlot(ctx); err != nil {
				return nil, err
			}
			return src.Stream(ctx, 0)
		},
		Fence: func(ctx context.Context) (pipeline.CaptureProducer, error) {
			p, err := r.kc.OpenProducer(ctx, "capture/"+r.slot())
			if err != nil {
				return nil, err
			}
			return &faultyProducer{p, r}, nil
		},
		Position: func(ctx context.Context, writer string) (event.Position, bool, error) {
			return r.kc.ReadPosition(ctx, kafka.CapturePartition, writer)
		},
		Logger: slog.New(slog.NewTextHandler(r.t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stopped := false
	stop := func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		err := <-done
		src.Close()
		return err
	}
	r.t.Cleanup(func() { _ = stop() })
	return c, stop
}

// slot is unique in the server, which tests share.
func (r *captureRig) slot() string {
	at := strings.LastIndex(r.url, "/test_")
	name, _, _ := strings.Cut(r.url[at+6:], "?")
	return "s_" + name
}

// wait returns when everything that is committed now is in Kafka, a running snapshot included.
func (r *captureRig) wait(c *pipeline.Capture) {
	r.t.Helper()
	var lsn string
	require.NoError(r.t, r.db.QueryRow(r.t.Context(), "SELECT pg_current_wal_insert_lsn()::text").Scan(&lsn))
	end, err := change.ParseLSN(lsn)
	require.NoError(r.t, err)
	// WAL that concerns nobody here, so that a keepalive passes the mark.
	r.exec("INSERT INTO unrouted VALUES (1)")
	require.Eventually(r.t, func() bool {
		return change.LSN(c.Stats().Confirmed.Load()) >= end && !c.Stats().Snapshotting.Load()
	}, time.Minute, 2*time.Millisecond, "capture has not come to %s", end)
}

// records reads a whole topic, partition by partition.
func (r *captureRig) records(topic string) []event.Record {
	r.t.Helper()
	topic = r.kc.Topic(topic)
	ends, err := r.kc.EndOffsets(r.t.Context(), topic)
	require.NoError(r.t, err)
	var out []event.Record
	for p := range int32(len(ends)) {
		_, err := r.kc.Scan(r.t.Context(), topic, p, 0, ends[p], func(rec event.Record) bool {
			out = append(out, rec)
			return true
		})
		require.NoError(r.t, err)
	}
	return out
}

// faultyProducer fails where the rig says, before or after it has done what it was asked.
type faultyProducer struct {
	pipeline.CaptureProducer
	r *captureRig
}

func (p *faultyProducer) fault(call string) error {
	if p.r.faults == nil {
		return nil
	}
	return p.r.faults(call)
}

func (p *faultyProducer) ProduceMarked(group int64, records ...event.Record) error {
	if err := p.fault("produce"); err != nil {
		return err
	}
	return p.CaptureProducer.ProduceMarked(group, records...)
}

func (p *faultyProducer) Flush(ctx context.Context) error {
	if err := p.fault("flush"); err != nil {
		return err
	}
	return p.CaptureProducer.Flush(ctx)
}

func (p *faultyProducer) Commit(ctx context.Context) error {
	if err := p.fault("before commit"); err != nil {
		return err
	}
	if err := p.CaptureProducer.Commit(ctx); err != nil {
		return err
	}
	return p.fault("after commit")
}

// Abort leaves the transaction open as a killed process would.
func (p *faultyProducer) Abort(ctx context.Context) error {
	if p.r.faults != nil {
		return nil
	}
	return p.CaptureProducer.Abort(ctx)
}

func header(rec *event.Record, key string) string {
	v, _ := rec.Header(key)
	return v
}

// brief writes records as "table op key" in the order of their positions.
func brief(recs []event.Record) []string {
	slices.SortStableFunc(recs, func(a, b event.Record) int {
		pa, _ := change.ParsePosition(header(&a, event.HeaderPosition))
		pb, _ := change.ParsePosition(header(&b, event.HeaderPosition))
		return pa.Compare(pb)
	})
	var out []string
	for _, rec := range recs {
		out = append(out, strings.TrimPrefix(header(&rec, event.HeaderTable), "public.")+" "+header(&rec, event.HeaderOp)+" "+string(rec.Key))
	}
	return out
}

func TestCaptureRoutesTheOldAndTheNewImage(t *testing.T) {
	r := newCaptureRig(t)
	c, stop := r.start()
	r.wait(c)
	r.exec(`INSERT INTO products VALUES ('a', 'A', 1), ('b', 'B', 2)`)
	r.exec(`INSERT INTO variants VALUES (1, 'a', 'x'), (2, NULL, 'y')`)
	r.exec(`INSERT INTO stock (variant_id, qty) VALUES (1, 5), (NULL, 1)`)
	r.exec(`UPDATE variants SET product_id = 'b' WHERE id = 1`)
	r.exec(`UPDATE stock SET qty = 6 WHERE variant_id = 1`)
	r.exec(`BEGIN; DELETE FROM variants WHERE id = 1; COMMIT`)
	r.exec(`BEGIN; INSERT INTO products VALUES ('gone'); ROLLBACK`)
	r.exec(`BEGIN; SAVEPOINT s; INSERT INTO products VALUES ('gone'); ROLLBACK TO s; UPDATE products SET price = 3 WHERE id = 'a'; COMMIT`)
	r.exec(`UPDATE products SET id = 'c' WHERE id = 'b'`)
	r.wait(c)
	require.NoError(t, stop())

	require.Equal(t, []string{
		"products c a", "products c b", "variants c a", "stock c a", "variants d a", "variants c b", "stock u b",
		"variants d b", // the cascade's stock row has no parent any more
		"products u a", "products d b", "products c c",
	}, brief(r.records(event.Changes)))
	dead := r.records(event.DeadLetters)
	require.Len(t, dead, 1)
	require.Equal(t, "product id product_id is NULL", header(&dead[0], event.HeaderReason))
	require.Contains(t, string(dead[0].Value), `"sku":"y"`)
	require.EqualValues(t, 1, c.Stats().Orphans.Load())

	for _, rec := range r.records(event.Changes) {
		require.Equal(t, change.Partition(change.ProductID(rec.Key), 4), rec.Partition)
		require.NotEmpty(t, header(&rec, event.HeaderXID))
		require.NotEmpty(t, header(&rec, event.HeaderCommitted))
		require.Empty(t, header(&rec, event.HeaderBatch))
		var env struct {
			Op     string
			Before map[string]any
			After  map[string]any
		}
		require.NoError(t, json.Unmarshal(rec.Value, &env))
		require.Equal(t, header(&rec, event.HeaderOp), env.Op)
	}
}

func TestCaptureDecidesAndAnnouncesBatches(t *testing.T) {
	r := newCaptureRig(t)
	r.cfg.BatchProducts, r.cfg.BatchRows, r.cfg.TxRows = 5, 20, 20
	c, stop := r.start()
	r.wait(c)
	r.exec(`INSERT INTO products SELECT 'p' || i, 'P', 1 FROM generate_series(1, 4) i`) // too small
	r.exec(`INSERT INTO products SELECT 'q' || i, 'P', 1 FROM generate_series(1, 5) i`) // by products
	r.exec(`BEGIN`)                                                                     // by rows, over several Kafka transactions
	for range 70 {
		r.exec(`UPDATE products SET price = price + 1 WHERE id = 'p1'`)
	}
	r.exec(`SELECT pg_logical_emit_message(true, 'shelfwire.batch', '{"name":"spring","admin":"eve"}')`)
	r.exec(`COMMIT`)
	r.exec(`UPDATE products SET approved = true, approved_by = 'ann' WHERE id = 'p2'`)
	r.exec(`UPDATE products SET title = 'T' WHERE id = 'p2'`) // approved stays: none
	r.exec(`BEGIN; UPDATE products SET title = 'U' WHERE id = 'p3'; INSERT INTO categories VALUES (1, 'shoes'); COMMIT`)
	r.exec(`UPDATE categories SET name = 'boots'`)
	r.wait(c)
	require.NoError(t, stop())

	changes := r.records(event.Changes)
	fans := r.records(event.Fanouts)
	type last = map[int32]int64
	wantChanges, wantFanouts := map[string]last{}, map[string]last{}
	for _, recs := range []struct {
		list []event.Record
		want map[string]last
	}{{changes, wantChanges}, {fans, wantFanouts}} {
		for _, rec := range recs.list {
			if id := header(&rec, event.HeaderBatch); id != "" {
				if recs.want[id] == nil {
					recs.want[id] = last{}
				}
				recs.want[id][rec.Partition] = rec.Offset
			}
		}
	}
	var got []string
	for _, rec := range r.records(event.Batches) {
		var b event.Batch
		require.NoError(t, json.Unmarshal(rec.Value, &b))
		require.Equal(t, b.ID, string(rec.Key))
		require.Equal(t, event.KindTransaction, b.Kind, "a snapshot of nothing is not announced")
		require.Equal(t, event.BatchAnnounced, b.Type)
		require.Equal(t, fmt.Sprintf("tx-1-%x", uint64(b.CommitLSN)), b.ID)
		if len(b.Changes) > 0 || wantChanges[b.ID] != nil {
			require.Equal(t, wantChanges[b.ID], b.Changes, b.Name)
		}
		if len(b.Fanouts) > 0 || wantFanouts[b.ID] != nil {
			require.Equal(t, wantFanouts[b.ID], b.Fanouts, b.Name)
		}
		got = append(got, fmt.Sprint(b.Rows, b.Name, b.Admin))
	}
	require.Equal(t, []string{"5", "70springeve", "1ann", "2", "1"}, got)
	require.Len(t, fans, 2)
	var f event.Fanout
	for _, rec := range fans {
		require.NoError(t, json.Unmarshal(rec.Value, &f))
		require.Equal(t, `public.categories:{"id":1}`, string(rec.Key))
	}
	require.Equal(t, "u", f.Op)
	require.Equal(t, "shoes", *f.Before["name"])
	require.Equal(t, "boots", *f.After["name"])
	require.Equal(t, header(&fans[1], event.HeaderBatch), f.BatchID)
}

func TestCaptureSnapshotIsResumedAndAnnounced(t *testing.T) {
	r := newCaptureRig(t)
	r.cfg.SnapshotChunk = 30
	r.exec(`INSERT INTO products SELECT 'p' || i, 'P', i FROM generate_series(1, 100) i`)
	r.exec(`INSERT INTO variants SELECT i, 'p' || i, 'S' FROM generate_series(1, 100) i`)
	r.exec(`INSERT INTO stock (variant_id, qty) SELECT i, i FROM generate_series(1, 100) i`)
	for range 8 { // cut short again and again
		var n atomic.Int32
		r.faults = func(call string) error {
			if n.Add(1) > 15 {
				return errors.New("killed")
			}
			return nil
		}
		c, stop := r.start()
		require.Eventually(t, func() bool { return n.Load() > 15 || !c.Stats().Snapshotting.Load() && c.Stats().Active.Load() }, time.Minute, time.Millisecond)
		require.NoError(t, stop())
	}
	r.faults = nil
	c, stop := r.start()
	r.wait(c)
	require.NoError(t, stop())

	seen := map[string]int{}
	changes := r.records(event.Changes)
	for _, rec := range changes {
		require.Equal(t, "r", header(&rec, event.HeaderOp))
		require.Equal(t, "snapshot", header(&rec, event.HeaderOrigin))
		require.Empty(t, header(&rec, event.HeaderXID))
		seen[header(&rec, event.HeaderTable)+header(&rec, event.HeaderPrimaryKey)]++
	}
	require.Len(t, seen, 300)
	for k, n := range seen {
		require.Equal(t, 1, n, k)
	}
	batches := r.records(event.Batches)
	require.Len(t, batches, 1)
	var b event.Batch
	require.NoError(t, json.Unmarshal(batches[0].Value, &b))
	require.Equal(t, event.KindSnapshot, b.Kind)
	require.EqualValues(t, 300, b.Rows)
	want := map[int32]int64{}
	for _, rec := range changes {
		require.Equal(t, b.ID, header(&rec, event.HeaderBatch))
		want[rec.Partition] = rec.Offset
	}
	require.Equal(t, want, b.Changes)

	// A later start has nothing to read again; a truncate has.
	c, stop = r.start()
	r.exec(`TRUNCATE stock`)
	r.wait(c)
	require.NoError(t, stop())
	require.Len(t, r.records(event.Changes), 500)
	require.Len(t, r.records(event.DeadLetters), 1)
}

// The failing schedule: a process hangs in the middle of a write, another takes over, and the first one wakes up.
func TestCaptureFencesAPredecessorThatWakesUp(t *testing.T) {
	r := newCaptureRig(t)
	asleep, wake := make(chan struct{}), make(chan struct{})
	var armed atomic.Bool
	r.faults = func(call string) error {
		if call == "before commit" && armed.CompareAndSwap(true, false) {
			close(asleep)
			<-wake
		}
		return nil
	}
	old, stopOld := r.start()
	r.wait(old)
	armed.Store(true)
	r.exec(`INSERT INTO products VALUES ('a', 'A', 1)`)
	<-asleep
	// Its walsender ends, as after a cut of the network, and its slot is free.
	r.exec(`SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1`, r.slot())
	fresh, stop := r.start()
	require.Eventually(t, func() bool { return fresh.Stats().Active.Load() }, time.Minute, time.Millisecond)
	r.exec(`INSERT INTO products VALUES ('b', 'B', 1)`)
	r.wait(fresh)
	close(wake)
	r.exec(`INSERT INTO products VALUES ('c', 'C', 1)`)
	r.wait(fresh)
	require.Eventually(t, func() bool { return !old.Stats().Active.Load() }, time.Minute, time.Millisecond, "the first one stands by: the slot is taken")
	require.NoError(t, stop())
	require.Eventually(t, func() bool { return old.Stats().Active.Load() }, time.Minute, time.Millisecond, "and takes over in its turn")
	r.exec(`INSERT INTO products VALUES ('d', 'D', 1)`)
	r.wait(old)
	require.NoError(t, stopOld())
	require.Equal(t, []string{"products c a", "products c b", "products c c", "products c d"}, brief(r.records(event.Changes)))
}

func TestCaptureRefusesAPositionThatTheSlotHasPassed(t *testing.T) {
	r := newCaptureRig(t)
	c, stop := r.start()
	r.wait(c)
	r.exec(`INSERT INTO products VALUES ('a', 'A', 1)`)
	r.wait(c)
	require.NoError(t, stop())
	r.exec(`INSERT INTO products VALUES ('lost', 'L', 1)`)
	// Somebody reads from our slot.
	r.exec(`SELECT pg_replication_slot_advance($1, pg_current_wal_flush_lsn())`, r.slot())

	ended := func() error {
		c, stop := r.start()
		defer func() { _ = stop() }()
		require.Never(t, func() bool { return c.Stats().Active.Load() }, 300*time.Millisecond, 5*time.Millisecond)
		return stop()
	}
	require.ErrorContains(t, ended(), "run once with --restart-capture")
	r.cfg.Restart = true
	c, stop = r.start()
	r.wait(c)
	require.NoError(t, stop())
	require.Equal(t, []string{"products c a", "products r a", "products r lost"}, brief(r.records(event.Changes)))
	r.cfg.Restart = false
	c, stop = r.start()
	r.exec(`INSERT INTO products VALUES ('b', 'B', 1)`)
	r.wait(c)
	require.NoError(t, stop())
}

// Kafka is away for longer than the server waits for a silent client.
func TestCaptureKeepsTheConnectionWhileKafkaIsAway(t *testing.T) {
	r := newCaptureRig(t)
	r.exec(`ALTER DATABASE ` + r.db.Config().Database + ` SET wal_sender_timeout = '600ms'`)
	back := make(chan struct{})
	var once, held atomic.Bool
	r.faults = func(call string) error {
		if call == "before commit" && once.CompareAndSwap(false, true) {
			held.Store(true)
			<-back
		}
		return nil
	}
	c, stop := r.start()
	for i := range 50 {
		r.exec(`INSERT INTO products VALUES ($1, 'A', 1)`, fmt.Sprint(i))
	}
	require.Eventually(t, held.Load, time.Minute, time.Millisecond)
	pid := func() (pid int) {
		require.NoError(t, r.db.QueryRow(t.Context(), `SELECT coalesce(active_pid, 0) FROM pg_replication_slots WHERE slot_name = $1`, r.slot()).Scan(&pid))
		return pid
	}
	before := pid()
	require.Never(t, func() bool { return pid() != before }, 2*time.Second, 50*time.Millisecond)
	close(back)
	r.wait(c)
	require.Equal(t, before, pid())
	require.NoError(t, stop())
	require.Len(t, r.records(event.Changes), 50)
}

// captureWrites runs random transactions: rollbacks, savepoints, key changes, deletes, large ones. Products of variants
// never change, so that a stock row can lead to one product only.
func captureWrites(ctx context.Context, db *pgx.Conn, rnd *rand.Rand, n int) error {
	ids := func(k int) string { return "p" + strconv.Itoa(rnd.IntN(k)) }
	statement := func() string {
		switch rnd.IntN(9) {
		case 0:
			return fmt.Sprintf(`INSERT INTO products VALUES ('%s', 't', 1) ON CONFLICT (id) DO UPDATE SET title = products.title || 'x'`, ids(60))
		case 1:
			return fmt.Sprintf(`UPDATE products SET price = price + 1 WHERE id = '%s'`, ids(60))
		case 2:
			return fmt.Sprintf(`DELETE FROM products WHERE id = '%s'`, ids(60))
		case 3:
			return fmt.Sprintf(`UPDATE products SET id = left(id, 3) || '-' || pg_current_xact_id() || '-' || md5(random()::text) WHERE id = '%s'`, ids(60))
		case 4:
			v := rnd.IntN(80)
			return fmt.Sprintf(`INSERT INTO variants VALUES (%d, 'p%d', 's') ON CONFLICT (id) DO UPDATE SET sku = variants.sku || 'y'`, v, v)
		case 5:
			return fmt.Sprintf(`INSERT INTO stock (variant_id, qty) SELECT id, 1 FROM variants WHERE id = %d`, rnd.IntN(80))
		case 6:
			return fmt.Sprintf(`UPDATE stock SET qty = qty + 1 WHERE variant_id %% 7 = %d`, rnd.IntN(7))
		case 7:
			return fmt.Sprintf(`DELETE FROM variants WHERE id = %d`, rnd.IntN(80))
		}
		return fmt.Sprintf(`INSERT INTO categories VALUES (%d, 'c') ON CONFLICT (id) DO UPDATE SET name = categories.name || 'z'`, rnd.IntN(5))
	}
	for range n {
		sql := []string{"BEGIN"}
		for range 1 + rnd.IntN(5) {
			switch rnd.IntN(6) {
			case 0:
				sql = append(sql, "SAVEPOINT s", statement(), "ROLLBACK TO s")
			case 1:
				sql = append(sql, "SAVEPOINT s", statement(), "RELEASE s")
			}
			sql = append(sql, statement())
		}
		if rnd.IntN(25) == 0 {
			sql = append(sql, `UPDATE products SET price = price + g FROM generate_series(1, 1) g`,
				`INSERT INTO products SELECT 'big' || g || '-' || pg_current_xact_id(), 't', g FROM generate_series(1, 90) g`)
		}
		sql = append(sql, []string{"COMMIT", "COMMIT", "COMMIT", "ROLLBACK"}[rnd.IntN(4)])
		if _, err := db.Exec(ctx, strings.Join(sql, ";")); err != nil {
			return err
		}
	}
	return nil
}

// The promise: through kills at any point, lost answers and restarts, the topic holds each routed row of each committed
// transaction once, in order, and nothing else.
func TestCaptureLosesAndDoublesNothing(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			r := newCaptureRig(t)
			r.cfg.BatchRows, r.cfg.TxRows, r.cfg.SnapshotChunk = 20, 40, 60
			rnd := rand.New(rand.NewPCG(seed, 1))
			require.NoError(t, captureWrites(t.Context(), r.db, rnd, 30)) // what the snapshot finds

			// The witness has a slot of its own, older than the capture's first record.
			witness, err := postgres.Open(t.Context(), postgres.Config{URL: r.url, Slot: r.slot() + "_w"})
			require.NoError(t, err)
			defer witness.Close()
			require.NoError(t, witness.EnsurePublication(t.Context(), pipeline.RoutedTables(captureRoutes)))
			// The capture's slot first: what stands between the two is in neither comparison.
			src, err := postgres.Open(t.Context(), postgres.Config{URL: r.url, Slot: r.slot()})
			require.NoError(t, err)
			_, err = src.EnsureSlot(t.Context())
			require.NoError(t, err)
			src.Close()
			_, err = witness.EnsureSlot(t.Context())
			require.NoError(t, err)

			faults := rand.New(rand.NewPCG(seed, 2))
			r.faults = func(call string) error {
				if faults.IntN(40) == 0 {
					return errors.New("fault " + call)
				}
				return nil
			}
			writer, err := pgx.Connect(t.Context(), r.url)
			require.NoError(t, err)
			defer func() { _ = writer.Close(context.Background()) }()
			wrote := make(chan error, 1)
			go func() { wrote <- captureWrites(t.Context(), writer, rnd, 400) }()
			for running := true; running; {
				_, stop := r.start()
				life := time.NewTimer(time.Duration(50+captureLife(seed)) * time.Millisecond)
				select {
				case err := <-wrote:
					require.NoError(t, err)
					running = false
				case <-life.C:
				}
				require.NoError(t, stop())
			}
			r.faults = nil
			c, stop := r.start()
			r.wait(c)
			require.NoError(t, stop())
			r.compare(witness)
		})
	}
}

// captureLife varies how long a process lives.
func captureLife(seed uint64) int { return int(seed*37) % 200 }

// compare holds the topics against the stream as the witness reads it.
func (r *captureRig) compare(witness *postgres.Source) {
	r.t.Helper()
	want := r.expected(witness)
	got := map[string]int{}
	lastOf := map[int32]change.Position{}
	batches := map[string]map[int32]int64{}
	changes := r.records(event.Changes)
	rows := map[string]string{}
	for _, rec := range changes {
		pos, err := change.ParsePosition(header(&rec, event.HeaderPosition))
		require.NoError(r.t, err)
		require.GreaterOrEqual(r.t, pos.Compare(lastOf[rec.Partition]), 0, "order in partition %d", rec.Partition)
		lastOf[rec.Partition] = pos
		if id := header(&rec, event.HeaderBatch); id != "" {
			if batches[id] == nil {
				batches[id] = map[int32]int64{}
			}
			batches[id][rec.Partition] = rec.Offset
		}
		r.follow(rows, &rec)
		if header(&rec, event.HeaderOp) == "r" {
			continue
		}
		got[fmt.Sprint(pos, " ", header(&rec, event.HeaderTable), " ", header(&rec, event.HeaderOp), " ", string(rec.Key))]++
	}
	for k, n := range got {
		require.Equal(r.t, 1, n, "doubled: %s", k)
		_, ok := want[k]
		require.True(r.t, ok, "never committed: %s", k)
	}
	for k, must := range want {
		require.True(r.t, !must || got[k] == 1, "lost: %s", k)
	}
	announced := map[string]bool{}
	for _, rec := range r.records(event.Batches) {
		var b event.Batch
		require.NoError(r.t, json.Unmarshal(rec.Value, &b))
		require.False(r.t, announced[b.ID], "announced twice: %s", b.ID)
		announced[b.ID] = true
		if len(b.Changes) > 0 || len(batches[b.ID]) > 0 {
			require.Equal(r.t, batches[b.ID], b.Changes, b.ID)
		}
	}
	for id := range batches {
		require.True(r.t, announced[id], "never announced: %s", id)
	}
	// Snapshot and stream together tell the whole content of the tables.
	for table, columns := range map[string]string{"products": "id, price", "variants": "id::text, sku", "stock": "id::text, qty::text"} {
		found, err := r.db.Query(r.t.Context(), "SELECT "+columns+" FROM "+table)
		require.NoError(r.t, err)
		n := 0
		for found.Next() {
			var id, v string
			require.NoError(r.t, found.Scan(&id, &v))
			require.Equal(r.t, v, rows[table+" "+id], "%s %s", table, id)
			n++
		}
		require.NoError(r.t, found.Err())
		for k := range rows {
			if strings.HasPrefix(k, table+" ") {
				n--
			}
		}
		if table == "stock" {
			continue // a stock row that goes with its variant leaves no record of its own
		}
		require.Zero(r.t, n, "rows of %s in the topic that the table has not", table)
	}
}

// follow applies a record to the rows that a reader of the topic would have: the last value of each row.
func (r *captureRig) follow(rows map[string]string, rec *event.Record) {
	var env struct {
		Op            string
		Before, After map[string]any
	}
	require.NoError(r.t, json.Unmarshal(rec.Value, &env))
	table := strings.TrimPrefix(header(rec, event.HeaderTable), "public.")
	field := map[string]string{"products": "price", "variants": "sku", "stock": "qty"}[table]
	if env.Op == "d" {
		delete(rows, table+" "+fmt.Sprint(env.Before["id"]))
		return
	}
	if env.Op == "u" && env.Before["id"] != env.After["id"] {
		delete(rows, table+" "+fmt.Sprint(env.Before["id"]))
	}
	rows[table+" "+fmt.Sprint(env.After["id"])] = fmt.Sprint(env.After[field])
}

// expected are the records that the stream calls for. The value says whether one must be there: a stock row whose
// variant is gone by the time of the look-up may be left out.
func (r *captureRig) expected(witness *postgres.Source) map[string]bool {
	st, err := witness.Stream(r.t.Context(), 0)
	require.NoError(r.t, err)
	defer func() { _ = st.Close(context.Background()) }()
	var lsn string
	require.NoError(r.t, r.db.QueryRow(r.t.Context(), "SELECT pg_current_wal_flush_lsn()::text").Scan(&lsn))
	end, err := change.ParseLSN(lsn)
	require.NoError(r.t, err)
	want := map[string]bool{}
	for {
		ev, err := st.Next(r.t.Context())
		require.NoError(r.t, err)
		if ev.Kind == change.EventKeepalive && ev.EndLSN >= end {
			return want
		}
		if ev.Kind != change.EventChange {
			continue
		}
		c := ev.Change
		value := func(image change.Tuple, column string) string {
			if image == nil {
				return ""
			}
			return string(image[c.Relation.Index(column)].Data)
		}
		add := func(op change.Op, product string, must bool) {
			want[fmt.Sprint(c.Position, " ", c.Relation.Table(), " ", string(rune(op)), " ", product)] = must
		}
		column, must, prefix := "id", true, ""
		switch c.Relation.Name {
		case "variants":
			column = "product_id"
		case "stock":
			column, must, prefix = "variant_id", false, "p"
		case "categories":
			continue
		}
		before, after := value(c.Before, column), value(c.After, column)
		switch {
		case c.Op == change.Update && before != after:
			add(change.Delete, prefix+before, must)
			add(change.Create, prefix+after, must)
		case c.Op == change.Delete:
			add(c.Op, prefix+before, must)
		default:
			add(c.Op, prefix+after, must)
		}
	}
}
