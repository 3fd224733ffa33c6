package pipeline_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/pipeline"
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
func TestCaptureTruncateIsNotForgotten(t *testing.T) {
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
		if call == "fence" && n.Add(1) == 1 {
			return errors.New("the broker is away")
		}
		return nil
	}
	c, stop := r.start()
	r.wait(c)
	require.NoError(t, stop())
	require.EqualValues(t, 2, n.Load())
}

// One row that nobody can use must not stop the others: what Kafka or the state would refuse never reaches them.
func TestCaptureGoesOnPastWhatNobodyCanTake(t *testing.T) {
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

// The failing schedule: the type of a primary key, and with it the order of the rows, changes between two chunks.
func TestCaptureSnapshotBeginsATableAgainWhenItsKeyChanges(t *testing.T) {
	r := newCaptureRig(t)
	r.cfg.SnapshotChunk = 30
	r.exec(`ALTER TABLE stock DROP CONSTRAINT stock_variant_id_fkey; INSERT INTO variants SELECT i, 'p' || i, 'S' FROM generate_series(1, 200) i`)
	asleep, wake := make(chan struct{}), make(chan struct{})
	var n atomic.Int32
	r.faults = func(call string) error {
		if call == "before commit" && n.Add(1) == 3 {
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
