package pipeline_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/pipeline"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
)

// cut ends the walsender of a capture and waits until it reads again.
func (r *captureRig) cut(c *pipeline.Capture) {
	r.t.Helper()
	var pid int
	r.exec(`SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1`, r.slot())
	require.Eventually(r.t, func() bool { return !c.Stats().Active.Load() }, time.Minute, time.Millisecond)
	require.Eventually(r.t, func() bool {
		err := r.db.QueryRow(r.t.Context(), `SELECT coalesce(active_pid, 0) FROM pg_replication_slots WHERE slot_name = $1`, r.slot()).Scan(&pid)
		return err == nil && pid != 0 && c.Stats().Active.Load()
	}, time.Minute, time.Millisecond)
}

// The failing schedule: a run that gives up its position loses its connection. The next session of the same process must
// go on from what the first one has written.
func TestCaptureGivesUpItsPositionOnce(t *testing.T) {
	r := newCaptureRig(t)
	r.exec(`INSERT INTO products VALUES ('a', 'A', 1)`)
	c, stop := r.start()
	r.wait(c)
	require.NoError(t, stop())
	r.cfg.Restart = true
	var lost atomic.Bool
	r.faults = func(call string) error {
		if call == "after commit" && lost.CompareAndSwap(false, true) {
			return errors.New("the answer is lost")
		}
		return nil
	}
	c, stop = r.start()
	r.wait(c)
	r.exec(`INSERT INTO products VALUES ('b', 'B', 1)`)
	r.wait(c)
	r.cut(c)
	r.exec(`INSERT INTO products VALUES ('c', 'C', 1)`)
	r.wait(c)
	require.NoError(t, stop())
	require.Equal(t, []string{"products r a", "products r a", "products c b", "products c c"}, brief(r.records(event.Changes)))
}

// The failing schedule: a kill after the truncate has reached Kafka and before the snapshot that it calls for is on
// record.
func truncateIsNotForgotten(t *testing.T) {
	r := newCaptureRig(t)
	r.cfg.BatchRows, r.cfg.TxRows = 5, 5
	r.exec(`INSERT INTO variants VALUES (1, 'a', 'x')`)
	c, stop := r.start()
	r.wait(c)
	require.NoError(t, stop())
	reads := func() (n int) {
		for _, rec := range r.records(event.Changes) {
			if header(&rec, event.HeaderTable) == "public.variants" && header(&rec, event.HeaderOp) == "r" {
				n++
			}
		}
		return n
	}
	for nth := range int32(5) {
		before := reads()
		r.exec(fmt.Sprintf(`BEGIN; TRUNCATE stock; INSERT INTO products SELECT 'p%d-' || i FROM generate_series(1, 11) i; COMMIT`, nth))
		var n atomic.Int32
		r.faults = func(call string) error {
			if call == "after commit" && n.Add(1) > nth {
				return errors.New("killed")
			}
			return nil
		}
		_, stop := r.start()
		require.Eventually(t, func() bool { return n.Load() > nth }, time.Minute, time.Millisecond)
		require.NoError(t, stop())
		r.faults = nil
		c, stop := r.start()
		r.wait(c)
		require.NoError(t, stop())
		require.Equal(t, before+1, reads(), "killed after Kafka transaction %d", nth+1)
	}
}

// cmd passes what the connector returns: with an error, a nil producer in a value that is not nil.
func TestCaptureSurvivesAFenceThatFails(t *testing.T) {
	r := newCaptureRig(t)
	var n atomic.Int32
	r.faults = func(call string) error {
		if call == "fence" && n.Add(1)%2 == 1 { // before the slot is made, and before the stream is read
			return errors.New("the broker is away")
		}
		return nil
	}
	c, stop := r.start()
	r.wait(c)
	require.NoError(t, stop())
	require.EqualValues(t, 4, n.Load())
}

// One row that nobody can use must not stop the others: what Kafka or the state would refuse never reaches them.
func goesOnPastWhatNobodyCanTake(t *testing.T) {
	r := newCaptureRig(t)
	r.exec(`ALTER TABLE stock DROP CONSTRAINT stock_variant_id_fkey, ALTER variant_id TYPE numeric`)
	c, stop := r.start()
	r.wait(c)
	r.exec(`INSERT INTO variants VALUES (1, 'a', 'x')`)
	r.exec(`SELECT pg_logical_emit_message(true, 'shelfwire.batch', '{"name":"n\u0000' || repeat('x', 2000000) || '"}')`)
	r.exec(`INSERT INTO products VALUES ('approved', 'A', 1, true, repeat('y', 2000000))`)
	r.exec(`INSERT INTO variants VALUES (2, repeat('z', 3000), 'too long for an index of the state')`)
	r.exec(`INSERT INTO variants VALUES (3, repeat('z', 9 << 20), 'too long for Kafka')`)
	r.exec(`INSERT INTO stock (variant_id, qty) VALUES (1e30, 1), (1, 2), ('NaN', 3)`)
	r.exec(`INSERT INTO products VALUES ('wide', repeat('w', 9 << 20), 1)`)
	r.exec(`UPDATE products SET title = repeat('v', 5 << 20) WHERE id = 'wide'`)
	r.exec(`INSERT INTO variants VALUES (4, 'b', 'y')`)
	r.wait(c)
	require.NoError(t, stop())
	require.Equal(t, []string{
		"variants c a", "products c approved", "stock c a", "products c wide", "products u wide", "variants c b",
	}, brief(r.records(event.Changes)))
	var reasons []string
	for _, rec := range r.records(event.DeadLetters) {
		reason := header(&rec, event.HeaderReason)
		require.Less(t, len(reason), 500)
		reasons = append(reasons, reason)
	}
	require.Len(t, reasons, 4, strings.Join(reasons, "\n"))
	var names []string
	for _, rec := range r.records(event.Batches) {
		require.Less(t, len(rec.Value), 10_000)
		var b event.Batch
		require.NoError(t, json.Unmarshal(rec.Value, &b))
		require.NotContains(t, b.Name, "\x00")
		names = append(names, b.Name[:min(4, len(b.Name))]+b.Admin[:min(4, len(b.Admin))])
	}
	require.Equal(t, []string{"n\uFFFD", "yyyy"}, names)
}

// A row far beyond what Kafka takes, or what should lie in memory, is captured without its wide values: its product is
// touched, the others go on, and memory does not follow its size.
func TestCaptureTakesARowOfHundredsOfMegabytes(t *testing.T) {
	r := newCaptureRig(t)
	c, stop := r.start()
	r.wait(c)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r.exec(`INSERT INTO products VALUES ('huge', repeat('x', 250 << 20), 1)`)
	r.exec(`UPDATE products SET price = 2`)
	r.exec(`UPDATE products SET title = 'short'`)
	r.exec(`DELETE FROM products`)
	r.exec(`INSERT INTO variants VALUES (1, repeat('p', 250 << 20), 'S')`) // a product id that is none
	r.exec(`BEGIN; INSERT INTO products SELECT 'fill' || i, repeat('f', 2000) FROM generate_series(1, 60) i;
		INSERT INTO products VALUES ('streamed', repeat('x', 250 << 20), 1); COMMIT`)
	r.exec(`INSERT INTO variants VALUES (2, 'after', 'S')`)
	r.wait(c)
	runtime.ReadMemStats(&after)
	require.NoError(t, stop())
	var got []string
	changes := r.records(event.Changes)
	for _, line := range brief(changes) {
		if !strings.Contains(line, "fill") {
			got = append(got, line)
		}
	}
	require.Equal(t, []string{
		"products c huge", "products u huge", "products u huge", "products d huge", "products c streamed", "variants c after",
	}, got)
	for _, rec := range changes {
		if string(rec.Key) == "huge" && header(&rec, event.HeaderOp) != "d" {
			require.Contains(t, string(rec.Value), `"after":{"id":"huge"`)
		}
		if string(rec.Key) == "huge" && header(&rec, event.HeaderOp) == "c" {
			require.Contains(t, string(rec.Value), `"title":"__debezium_unavailable_value"`)
		}
	}
	dead := r.records(event.DeadLetters)
	require.Len(t, dead, 1)
	require.Contains(t, header(&dead[0], event.HeaderReason), "too large")
	grown := (after.Sys - before.Sys) >> 20
	t.Logf("memory grew by %d MiB", grown)
	require.Less(t, grown, uint64(200))
}

// The failing schedule: the type of a primary key, and with it the order of the rows, changes between two chunks.
func beginsATableAgainWhenItsKeyChanges(t *testing.T) {
	r := newCaptureRig(t)
	r.cfg.SnapshotChunk = 30
	r.exec(`ALTER TABLE stock DROP CONSTRAINT stock_variant_id_fkey; INSERT INTO variants SELECT i, 'p' || i, 'S' FROM generate_series(1, 200) i`)
	asleep, wake := make(chan struct{}), make(chan struct{})
	var n atomic.Int32
	r.faults = func(call string) error {
		if call == "before commit" && n.Add(1) == 4 { // the first says that a slot is to be made
			close(asleep)
			<-wake
		}
		return nil
	}
	c, stop := r.start()
	<-asleep
	r.exec(`ALTER TABLE variants ALTER id TYPE text`)
	close(wake)
	r.wait(c)
	require.NoError(t, stop())
	seen := map[string]bool{}
	for _, rec := range r.records(event.Changes) {
		seen[string(rec.Key)] = true
	}
	require.Len(t, seen, 200)
}

// Columns come, go and change their names and types while rows are captured, also within one transaction; what a route
// does not read changes nothing.
func followsTheSchema(t *testing.T) {
	r := newCaptureRig(t)
	c, stop := r.start()
	r.wait(c)
	r.exec(`INSERT INTO products VALUES ('a', 'A', 1)`)
	r.exec(`BEGIN; UPDATE products SET price = 2; ALTER TABLE products ADD color text DEFAULT 'red', DROP title; UPDATE products SET price = 3; COMMIT`)
	r.exec(`BEGIN; ALTER TABLE products ALTER price TYPE int USING price::int; INSERT INTO products (id, price) VALUES ('b', 1); SAVEPOINT s;
		ALTER TABLE products DROP color; INSERT INTO products (id) VALUES ('gone'); ROLLBACK TO s; UPDATE products SET color = 'blue' WHERE id = 'b'; COMMIT`)
	r.exec(`ALTER TABLE products RENAME price TO cost; ALTER TABLE products DROP CONSTRAINT products_pkey; UPDATE products SET cost = 9 WHERE id = 'a'`)
	r.exec(`ALTER TABLE products RENAME TO goods; ALTER TABLE goods RENAME TO products; ALTER TABLE products RENAME id TO sku; DELETE FROM products WHERE sku = 'b'`)
	r.exec(`ALTER TABLE products RENAME sku TO id; DELETE FROM products`)
	r.wait(c)
	require.NoError(t, stop())
	changes := r.records(event.Changes)
	require.Equal(t, []string{
		"products c a", "products u a", "products u a", "products c b", "products u b", "products u a", "products d a",
	}, brief(changes))
	dead := r.records(event.DeadLetters)
	require.Len(t, dead, 1, "while the route's column has another name")
	require.Contains(t, string(dead[0].Value), `"sku":"b"`)
	for _, want := range []string{`"title":"A","price":"1"`, `"price":"2"`, `"price":"3"`, `"color":"red"`, `"price":1`, `"color":"blue"`, `"cost":9`} {
		require.True(t, slices.ContainsFunc(changes, func(rec event.Record) bool { return strings.Contains(string(rec.Value), want) }), want)
	}
}

// The failing schedule: a kill in the middle of a transaction that is half in Kafka, and a start with other limits, by
// which it would be no batch, and with a route more.
func TestCaptureFinishesAnOpenTransactionUnderOtherLimits(t *testing.T) {
	r := newCaptureRig(t)
	r.cfg.Routes = captureRoutes[1:]
	r.cfg.BatchRows, r.cfg.TxRows = 5, 5
	c, stop := r.start()
	r.wait(c)
	require.NoError(t, stop())
	r.exec(`ALTER PUBLICATION shelfwire ADD TABLE products`) // its rows are sent, and lead nowhere yet
	var n atomic.Int32
	r.faults = func(call string) error {
		if call == "after commit" && n.Add(1) == 4 {
			return errors.New("killed")
		}
		return nil
	}
	r.exec(`BEGIN; INSERT INTO variants SELECT i, 'p' || i % 7, 's' FROM generate_series(1, 40) i; INSERT INTO products VALUES ('late', 'L', 1); COMMIT`)
	_, stop = r.start()
	require.Eventually(t, func() bool { return n.Load() >= 4 }, time.Minute, time.Millisecond)
	require.NoError(t, stop())
	r.faults = nil
	half := len(r.records(event.Changes))
	require.Less(t, half, 40)
	require.Empty(t, r.records(event.Batches))

	r.cfg.Routes, r.cfg.BatchRows, r.cfg.TxRows = captureRoutes, 1000, 10_000
	c, stop = r.start()
	r.wait(c)
	require.NoError(t, stop())
	last := map[int32]int64{}
	keys := map[string]int{}
	id := ""
	for _, rec := range r.records(event.Changes) {
		if header(&rec, event.HeaderOp) == "r" {
			continue // the snapshot of the table that has gained a route
		}
		id = header(&rec, event.HeaderBatch)
		require.NotEmpty(t, id)
		keys[header(&rec, event.HeaderTable)+header(&rec, event.HeaderPrimaryKey)]++
		last[rec.Partition] = rec.Offset
	}
	require.Len(t, keys, 41)
	for key, n := range keys {
		require.Equal(t, 1, n, key)
	}
	batches := r.records(event.Batches)
	var b event.Batch
	require.NoError(t, json.Unmarshal(batches[0].Value, &b))
	require.Equal(t, id, b.ID)
	require.EqualValues(t, 41, b.Rows)
	require.Equal(t, last, b.Changes)
}

// The failing schedule: a transaction commits right behind the mark at which the rows of a chunk stand in the stream.
// The mark ends where the commit begins, and rows of both had the same positions, the later ones often the lower.
func TestCaptureRowsOfASnapshotHaveTheirOwnPositions(t *testing.T) {
	r := newCaptureRig(t)
	r.cfg.Heartbeat = -1
	writer, err := pgx.Connect(t.Context(), r.url)
	require.NoError(t, err)
	defer func() { _ = writer.Close(context.Background()) }()
	var marks []change.LSN
	var one sync.Mutex // parts of a snapshot are read side by side
	r.emit = func(prefix string, content []byte) (at change.LSN, err error) {
		one.Lock()
		defer one.Unlock()
		var text string
		tx, err := writer.Begin(context.Background())
		if err == nil {
			_, err = tx.Exec(context.Background(), `UPDATE products SET price = price + 1 WHERE id = 'a'`)
		}
		if err == nil {
			err = tx.QueryRow(context.Background(), `SELECT pg_logical_emit_message(false, $1, $2::bytea)::text`, prefix, content).Scan(&text)
		}
		if err == nil {
			err = tx.Commit(context.Background())
		}
		if err == nil {
			at, err = change.ParseLSN(text)
		}
		marks = append(marks, at)
		return at, err
	}
	r.exec(`INSERT INTO products VALUES ('a', 'A', 1), ('b', 'B', 1)`)
	c, stop := r.start()
	r.wait(c)
	for i := range 5 {
		r.ask(false, fmt.Sprintf(`{"id": "%d", "table": "public.products"}`, i))
		r.wait(c)
	}
	require.NoError(t, stop())
	commits, reads := map[change.LSN]bool{}, map[change.LSN]bool{}
	for _, rec := range r.records(event.Changes) {
		pos, err := change.ParsePosition(header(&rec, event.HeaderPosition))
		require.NoError(t, err)
		if header(&rec, event.HeaderOp) == "r" {
			reads[pos.CommitLSN] = true
		} else {
			commits[pos.CommitLSN] = true
		}
	}
	require.True(t, slices.ContainsFunc(marks, func(at change.LSN) bool { return commits[at] }), "or this test shows nothing")
	for at := range reads {
		require.False(t, commits[at], "rows of a snapshot and of a transaction at %s", at)
	}
}

// A record that comes after a calm is stamped when it comes: whoever measures a lag by it would find a negative one.
func TestARecordIsNotOlderThanItsCommit(t *testing.T) {
	r := newCaptureRig(t)
	c, stop := r.start()
	r.wait(c)
	for i := range 5 {
		done := make(chan struct{})
		time.AfterFunc(100*time.Millisecond, func() { close(done) })
		<-done
		r.exec(`INSERT INTO products VALUES ($1, 'A', 1)`, fmt.Sprint("p", i))
	}
	r.wait(c)
	require.NoError(t, stop())
	n := 0
	for _, rec := range r.records(event.Changes) {
		var e struct {
			TS     int64 `json:"ts_us"`
			Source struct {
				TS int64 `json:"ts_us"`
			}
		}
		require.NoError(t, json.Unmarshal(rec.Value, &e))
		require.GreaterOrEqual(t, e.TS, e.Source.TS, "%s", rec.Value)
		n++
	}
	require.Equal(t, 5, n)
}
