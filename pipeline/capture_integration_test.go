package pipeline_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
)

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

func resumesASnapshot(t *testing.T) {
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
func fencesAPredecessorThatWakesUp(t *testing.T) {
	t.Helper()
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

	r.cfg.NoHeal = true
	require.ErrorContains(t, r.giveUp(), "run: shelfwire run --restart-capture")
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
	r.senderTimeout = 2 * time.Second
	back := make(chan struct{})
	var armed, held atomic.Bool
	r.faults = func(call string) error {
		if call == "before commit" && armed.CompareAndSwap(true, false) {
			held.Store(true)
			<-back
		}
		return nil
	}
	c, stop := r.start()
	r.wait(c) // a row from before the slot would come with the snapshot, too
	armed.Store(true)
	for i := range 50 {
		r.exec(`INSERT INTO products VALUES ($1, 'A', 1)`, fmt.Sprint(i))
	}
	require.Eventually(t, held.Load, time.Minute, time.Millisecond)
	pid := func() (pid int) {
		require.NoError(t, r.db.QueryRow(t.Context(), `SELECT coalesce(active_pid, 0) FROM pg_replication_slots WHERE slot_name = $1`, r.slot()).Scan(&pid))
		return pid
	}
	before := pid()
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	for range 100 { // 5 s: two and a half times the timeout
		<-look.C
		require.Equal(t, before, pid())
	}
	close(back)
	r.wait(c)
	require.Equal(t, before, pid())
	require.NoError(t, stop())
	require.Len(t, r.records(event.Changes), 50)
}
