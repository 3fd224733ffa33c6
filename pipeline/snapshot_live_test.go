package pipeline_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/route"
)

// reads counts the snapshot records of each batch by table, and checks that no row of a batch stands there twice.
func (r *captureRig) reads() map[string]map[string]int {
	r.t.Helper()
	of := map[string]map[string]int{}
	seen := map[string]bool{}
	for _, rec := range r.records(event.Changes) {
		if header(&rec, event.HeaderOp) != "r" {
			continue
		}
		batch, table := header(&rec, event.HeaderBatch), header(&rec, event.HeaderTable)
		key := batch + table + header(&rec, event.HeaderPrimaryKey)
		require.False(r.t, seen[key], "twice: %s", key)
		seen[key] = true
		if of[batch] == nil {
			of[batch] = map[string]int{}
		}
		of[batch][table]++
	}
	return of
}

// announced gives the announcements of snapshots by name; those that Capture began have none.
func (r *captureRig) announced() map[string]event.Batch {
	r.t.Helper()
	by := map[string]event.Batch{}
	for _, rec := range r.records(event.Batches) {
		var b event.Batch
		require.NoError(r.t, json.Unmarshal(rec.Value, &b))
		if b.Type == event.BatchAnnounced && b.Kind == event.KindSnapshot {
			by[b.Name] = b
		}
	}
	return by
}

// endings counts the snapshots that were asked for and have ended. One without rows is not announced; the position
// names it only for a while, so that all positions are read.
func (r *captureRig) endings() int {
	r.t.Helper()
	ended := map[string]bool{}
	for _, rec := range r.records(event.Positions) {
		var pos event.Position
		require.NoError(r.t, json.Unmarshal(rec.Value, &pos))
		for _, e := range pos.Ended {
			require.Empty(r.t, e.Refused)
			ended[e.ID] = true
		}
	}
	return len(ended)
}

func (r *captureRig) ask(transactional bool, request string) {
	r.t.Helper()
	r.exec(`SELECT pg_logical_emit_message($1, 'shelfwire.snapshot', $2)`, transactional, request)
}

func takesSnapshotsThatAreAskedFor(t *testing.T) {
	r := newCaptureRig(t)
	r.cfg.SnapshotChunk = 7
	r.exec(`INSERT INTO products SELECT 'p' || i, 'P', i FROM generate_series(1, 100) i`)
	r.exec(`INSERT INTO variants SELECT i, 'p' || i % 100, 'S' FROM generate_series(1, 200) i`)
	r.exec(`INSERT INTO stock (variant_id, qty) SELECT i, i FROM generate_series(1, 200) i`)
	c, stop := r.start()
	r.wait(c)
	r.ask(true, `{"id": "one", "table": "public.products", "admin": "ann"}`)
	r.ask(false, `{"id": "where", "table": "public.products", "where": "price <= 10 -- the cheap ones"}`)
	r.ask(false, `{"id": "products", "products": ["p5", "p6"]}`)
	r.exec(`BEGIN; SELECT pg_logical_emit_message(true, 'shelfwire.snapshot', '{"id": "rolled back", "all": true}'); ROLLBACK`)
	r.exec(`BEGIN; SAVEPOINT s; SELECT pg_logical_emit_message(true, 'shelfwire.snapshot', '{"id": "rolled back", "all": true}'); ROLLBACK TO s;
		SELECT pg_logical_emit_message(true, 'shelfwire.snapshot', '{"id": "both", "table": "public.stock", "where": "qty > 150", "products": ["p51", "p52"]}');
		INSERT INTO unrouted VALUES (1); COMMIT`)
	r.wait(c)
	require.NoError(t, stop())

	batches, reads := r.announced(), r.reads()
	for name, want := range map[string]map[string]int{
		"":         {"public.products": 100, "public.variants": 200, "public.stock": 200},
		"one":      {"public.products": 100},
		"where":    {"public.products": 10},
		"products": {"public.products": 2, "public.variants": 4, "public.stock": 4},
		"both":     {"public.stock": 2},
	} {
		b, ok := batches[name]
		require.True(t, ok, name)
		require.Equal(t, want, reads[b.ID], name)
		require.EqualValues(t, want["public.products"]+want["public.variants"]+want["public.stock"], b.Rows, name)
		require.NotEmpty(t, b.Changes)
	}
	require.Len(t, batches, 5)
	require.Equal(t, "ann", batches["one"].Admin)
	require.Empty(t, r.records(event.DeadLetters))
	require.Nil(t, c.Stats().Snapshots.Load())
}

// A request that cannot be had is told, and stops nothing.
func TestCaptureRefusesSnapshotsThatCannotBeHad(t *testing.T) {
	r := newCaptureRig(t)
	r.exec(`INSERT INTO products SELECT 'p' || i, 'P', i FROM generate_series(1, 100) i`)
	r.cfg.SnapshotChunk = 7
	c, stop := r.start()
	r.wait(c)
	bad := []struct{ request, reason string }{
		{`nonsense`, "not the JSON object"},
		{`{"table": "public.gone"}`, "no route"},
		{`{"table": "public.unrouted"}`, "no route"},
		{`{"table": "public.categories"}`, "by a query only"},
		{`{"table": "public.products", "where": "colour = 1"}`, "colour"},
		{`{"table": "public.products", "where": "true) OR (true"}`, "parentheses"},
		{`{"table": "public.products", "where": "1 / (price - 50) < 9"}`, "division by zero"},
		{`{"products": ["no number"], "table": "public.variants", "where": "id = 'x'"}`, "invalid input syntax"},
	}
	for i, b := range bad {
		r.ask(i%2 == 0, b.request)
	}
	r.exec(`INSERT INTO products VALUES ('new', 'N', 1)`)
	r.wait(c)
	require.NoError(t, stop())
	dead := r.records(event.DeadLetters)
	require.Len(t, dead, len(bad))
	for _, b := range bad {
		require.True(t, slices.ContainsFunc(dead, func(rec event.Record) bool {
			reason := header(&rec, event.HeaderReason)
			return header(&rec, event.HeaderOrigin) == "shelfwire.snapshot" && len(rec.Value) > 0 && strings.Contains(reason, b.reason)
		}), b.reason)
	}
	require.Contains(t, brief(r.records(event.Changes)), "products c new")
	// Rows that were read before the division failed are announced: nobody waits for them for ever.
	for id, tables := range r.reads() {
		require.True(t, slices.ContainsFunc(r.records(event.Batches), func(rec event.Record) bool { return string(rec.Key) == id }), tables)
	}
}

// Whenever the process is killed, a snapshot that was asked for is taken once, and each of its rows is there once.
func TestCaptureTakesARequestOnceThroughKills(t *testing.T) {
	r := newCaptureRig(t)
	r.cfg.SnapshotChunk, r.cfg.BatchRows, r.cfg.TxRows = 10, 20, 20
	r.exec(`INSERT INTO products SELECT 'p' || i, 'P', i FROM generate_series(1, 100) i`)
	c, stop := r.start()
	r.wait(c)
	require.NoError(t, stop())
	r.ask(false, `{"id": "a", "table": "public.products"}`)
	r.exec(`BEGIN; INSERT INTO variants SELECT i, 'p1', 's' FROM generate_series(1, 70) i;
		SELECT pg_logical_emit_message(true, 'shelfwire.snapshot', '{"id": "b", "table": "public.products", "where": "price > 50"}');
		INSERT INTO variants SELECT i, 'p2', 's' FROM generate_series(71, 140) i; COMMIT`)
	r.ask(true, `{"id": "bad"}`)
	for after := 3; after < 40; after += 4 {
		var n atomic.Int32
		r.faults = func(string) error {
			if int(n.Add(1)) > after {
				return errors.New("killed")
			}
			return nil
		}
		c, stop := r.start()
		require.Eventually(t, func() bool {
			return int(n.Load()) > after || c.Stats().Active.Load() && c.Stats().KafkaTransactions.Load() > 0 && !c.Stats().Snapshotting.Load()
		}, time.Minute, time.Millisecond)
		require.NoError(t, stop())
	}
	r.faults = nil
	c, stop = r.start()
	r.wait(c)
	require.NoError(t, stop())
	batches, reads := r.announced(), r.reads()
	require.Len(t, batches, 3)
	require.Equal(t, map[string]int{"public.products": 100}, reads[batches["a"].ID])
	require.Equal(t, map[string]int{"public.products": 50}, reads[batches["b"].ID])
	require.Len(t, r.records(event.DeadLetters), 1)
}

// The failing schedule: the type of a primary key is changed while nobody captures, and the snapshot would go on from
// a key that stands at another place in the new order.
func TestCaptureReadsATableAgainWhoseKeyChangedBetweenSessions(t *testing.T) {
	r := newCaptureRig(t)
	r.cfg.Routes = captureRoutes[:1]
	r.cfg.SnapshotChunk, r.cfg.SnapshotReaders = 10, 1
	r.exec(`ALTER TABLE products ADD number int; INSERT INTO products SELECT 'p' || i, 'P', i, NULL, NULL, i FROM generate_series(1, 100) i;
		ALTER TABLE products DROP CONSTRAINT products_pkey; ALTER TABLE products ADD PRIMARY KEY (number)`)
	var n atomic.Int32
	r.faults = func(call string) error {
		if call == "after commit" && n.Add(1) > 4 {
			return errors.New("killed")
		}
		return nil
	}
	_, stop := r.start()
	require.Eventually(t, func() bool { return n.Load() > 4 }, time.Minute, time.Millisecond)
	require.NoError(t, stop())
	r.exec(`ALTER TABLE products ALTER number TYPE text USING lpad((1000 - number)::text, 4, '0')`)
	r.faults = nil
	c, stop := r.start()
	r.wait(c)
	require.NoError(t, stop())
	products := map[string]bool{}
	for _, rec := range r.records(event.Changes) {
		products[string(rec.Key)] = true
	}
	require.Len(t, products, 100)
}

// A table without a primary key is read by blocks, also while its rows change and move.
func TestCaptureReadsATableWithoutAKey(t *testing.T) {
	r := newCaptureRig(t)
	r.exec(`CREATE TABLE tags (product_id text, tag text); ALTER TABLE tags REPLICA IDENTITY FULL;
		INSERT INTO tags SELECT 'p' || i, repeat('x', 300) FROM generate_series(1, 2000) i; INSERT INTO tags SELECT 'same', 'y' FROM generate_series(1, 20)`)
	r.cfg.Routes = []route.Route{{Table: "public.tags", Key: "product_id"}}
	r.cfg.SnapshotChunk = 60
	writer, err := pgx.Connect(t.Context(), r.url)
	require.NoError(t, err)
	defer func() { _ = writer.Close(context.Background()) }()
	wrote := make(chan error, 1)
	c, stop := r.start()
	go func() {
		for i := range 200 {
			if _, err := writer.Exec(t.Context(), fmt.Sprintf(`UPDATE tags SET tag = tag || 'z' WHERE product_id = 'p%d'`, i*10)); err != nil {
				wrote <- err
				return
			}
		}
		wrote <- nil
	}()
	require.NoError(t, <-wrote)
	r.wait(c)
	require.NoError(t, stop())
	last, same := map[string]string{}, 0
	for _, rec := range r.records(event.Changes) {
		var env struct{ After map[string]string }
		require.NoError(t, json.Unmarshal(rec.Value, &env))
		last[string(rec.Key)] = env.After["tag"]
		if string(rec.Key) == "same" {
			same++
		}
	}
	require.Len(t, last, 2001)
	require.Equal(t, 20, same)
	rows, err := r.db.Query(t.Context(), `SELECT DISTINCT product_id, tag FROM tags`)
	require.NoError(t, err)
	for rows.Next() {
		var id, tag string
		require.NoError(t, rows.Scan(&id, &tag))
		require.Equal(t, tag, last[id], id)
	}
	require.NoError(t, rows.Err())
}

// The failing schedule: a transaction has written to a table before the stream had it, and commits after the table was
// read. The stream does not bring its rows.
func waitsForWritersBeforeItReadsANewTable(t *testing.T) {
	r := newCaptureRig(t)
	r.cfg.Routes = captureRoutes[1:2]
	c, stop := r.start()
	r.wait(c)
	require.NoError(t, stop())
	writer, err := pgx.Connect(t.Context(), r.url)
	require.NoError(t, err)
	defer func() { _ = writer.Close(context.Background()) }()
	_, err = writer.Exec(t.Context(), `BEGIN; INSERT INTO products VALUES ('early', 'E', 1)`)
	require.NoError(t, err)
	r.cfg.Routes = captureRoutes[:2]
	c, stop = r.start()
	require.Eventually(t, func() bool { return c.Stats().Active.Load() && c.Stats().KafkaTransactions.Load() > 0 }, time.Minute, time.Millisecond)
	require.Never(t, func() bool { return !c.Stats().Snapshotting.Load() }, time.Second, 10*time.Millisecond)
	_, err = writer.Exec(t.Context(), `INSERT INTO products VALUES ('late', 'L', 1); COMMIT`)
	require.NoError(t, err)
	r.wait(c)
	require.NoError(t, stop())
	keys := map[string]bool{}
	for _, rec := range r.records(event.Changes) {
		keys[string(rec.Key)] = true
	}
	require.Equal(t, map[string]bool{"early": true, "late": true}, keys)
}
