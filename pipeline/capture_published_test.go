package pipeline_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/event"
)

// publishedRig looks at the publication often.
func publishedRig(t *testing.T) (r *captureRig, touched *atomic.Int32) {
	t.Helper()
	r = newCaptureRig(t)
	touched = &atomic.Int32{}
	r.cfg.PublicationEvery = 20 * time.Millisecond
	r.touch = func(context.Context, bool) (int64, error) { return int64(touched.Add(1)), nil }
	r.exec(`ALTER TABLE stock DROP CONSTRAINT stock_variant_id_fkey`)
	r.exec(`INSERT INTO products VALUES ('a', 'A', 1); INSERT INTO variants VALUES (1, 'a', 'x')`)
	return r, touched
}

// comes waits for a record of catalog.changes.
func (r *captureRig) comes(want string) {
	r.t.Helper()
	require.Eventually(r.t, func() bool { return slices.Contains(brief(r.records(event.Changes)), want) }, time.Minute, 10*time.Millisecond, want)
}

// rereads are the reasons of the events that tell of tables that are read again.
func (r *captureRig) rereads() (reasons []string) {
	r.t.Helper()
	for _, rec := range r.records(event.Batches) {
		var b event.Batch
		require.NoError(r.t, json.Unmarshal(rec.Value, &b))
		if b.Type == event.BatchHealed {
			require.Equal(r.t, "unpublished", b.Healing.Cause)
			reasons = append(reasons, b.Reason)
		}
	}
	return reasons
}

// A table that is dropped leaves the publication, and one of the same name that comes after it is not in it: what is
// written to it would be missed without a word.
func TestCaptureTakesATableThatIsDroppedAndMadeAgain(t *testing.T) {
	r, touched := publishedRig(t)
	c, stop := r.start()
	r.wait(c)
	r.exec(`DROP TABLE variants`)
	require.Eventually(t, func() bool { return touched.Load() == 1 }, time.Minute, 5*time.Millisecond, "its rows are gone, and nobody says which")
	r.exec(`INSERT INTO products VALUES ('b', 'B', 1)`)
	r.comes("products c b") // the others go on
	r.exec(`INSERT INTO stock (variant_id, qty) VALUES (1, 1)`)
	r.wait(c) // of a parent that is no more: it concerns nobody
	require.EqualValues(t, 1, c.Stats().Orphans.Load())
	r.exec(`CREATE TABLE variants (id text PRIMARY KEY, product_id text, sku text); ALTER TABLE variants REPLICA IDENTITY FULL`)
	r.exec(`INSERT INTO variants VALUES ('k1', 'c', 'y')`) // before or after it is published
	require.Eventually(t, func() bool { return touched.Load() == 2 }, time.Minute, 5*time.Millisecond)
	r.comes("variants r c")
	r.wait(c)
	r.exec(`INSERT INTO variants VALUES ('k2', 'd', 'y')`)
	r.exec(`UPDATE variants SET product_id = 'e' WHERE id = 'k1'`)
	r.exec(`INSERT INTO stock (variant_id, qty) VALUES (7, 1)`) // its parent's key has another type now
	r.comes("variants c d")
	r.comes("variants c e")
	r.comes("variants d c")
	r.wait(c)
	require.NoError(t, stop())
	require.Len(t, r.rereads(), 2)
	require.EqualValues(t, 2, touched.Load())
	require.Equal(t, 1, count(brief(r.records(event.Changes)), "products r a"), "the other tables are not read again")

	// In one transaction, while nobody looks.
	r.exec(`BEGIN; DROP TABLE products; CREATE TABLE products (id bigint PRIMARY KEY, title text, price numeric, approved bool, approved_by text); INSERT INTO products VALUES (5); COMMIT`)
	c, stop = r.start()
	r.wait(c)
	require.NoError(t, stop())
	require.Contains(t, brief(r.records(event.Changes)), "products r 5")
	require.Len(t, r.rereads(), 3)
}

// A whole snapshot leaves out a table that is gone.
func TestCaptureHealsWithoutATableThatIsGone(t *testing.T) {
	r, touched := publishedRig(t)
	c, stop := r.start()
	r.wait(c)
	r.exec(`DROP TABLE variants`)
	require.Eventually(t, func() bool { return touched.Load() == 1 }, time.Minute, 5*time.Millisecond)
	r.wait(c)
	require.Eventually(t, func() bool { // it comes back at once
		_, _ = r.db.Exec(t.Context(), `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1`, r.slot())
		_, err := r.db.Exec(t.Context(), `SELECT pg_drop_replication_slot($1)`, r.slot())
		return err == nil
	}, time.Minute, time.Millisecond)
	require.Eventually(t, func() bool { return touched.Load() == 2 }, time.Minute, 5*time.Millisecond)
	r.wait(c)
	require.NoError(t, stop())
	require.Equal(t, 2, count(brief(r.records(event.Changes)), "products r a"))
}

// What a running capture does, one that is started anew does as well: it goes on without a table that is gone.
func TestCaptureStartsWithoutATableThatIsGone(t *testing.T) {
	r, touched := publishedRig(t)
	c, stop := r.start()
	r.wait(c)
	require.NoError(t, stop())
	r.exec(`DROP TABLE variants`)
	for i, id := range []string{"b", "c"} { // and once more
		c, stop = r.start()
		r.exec(`INSERT INTO products VALUES ($1, 'B', 1)`, id)
		r.comes("products c " + id)
		r.wait(c)
		require.NoError(t, stop())
		require.Len(t, r.rereads(), 1, "start %d", i+1)
	}
	require.EqualValues(t, 1, touched.Load())
	r.exec(`CREATE TABLE variants (id text PRIMARY KEY, product_id text, sku text); ALTER TABLE variants REPLICA IDENTITY FULL`)
	r.exec(`INSERT INTO variants VALUES ('k1', 'd', 'y')`)
	c, stop = r.start()
	r.comes("variants r d")
	r.wait(c)
	require.NoError(t, stop())
	require.Len(t, r.rereads(), 2)
}

func count(list []string, what string) (n int) {
	for _, s := range list {
		if s == what {
			n++
		}
	}
	return n
}

// What is written to a table while it is not in the publication, or outside of its row filter, is in no stream.
func TestCaptureReadsAgainWhatWasNotPublished(t *testing.T) {
	r, _ := publishedRig(t)
	c, stop := r.start()
	r.wait(c)
	publication := "shelfwire"
	r.exec(`BEGIN; ALTER PUBLICATION ` + publication + ` DROP TABLE products; INSERT INTO products VALUES ('missed', 'M', 1); COMMIT`)
	r.comes("products r missed")
	r.wait(c)
	require.Len(t, r.rereads(), 1)
	r.exec(`BEGIN; ALTER PUBLICATION ` + publication + ` DROP TABLE products; ALTER PUBLICATION ` + publication + ` ADD TABLE products; INSERT INTO products VALUES ('again', 'M', 1); COMMIT`)
	require.Eventually(t, func() bool { return len(r.rereads()) == 2 }, time.Minute, 10*time.Millisecond)
	r.wait(c)
	require.Equal(t, 3, count(brief(r.records(event.Changes)), "products r a"))
	require.NoError(t, stop())

	// One that did not publish everything for a while: seen at the next look, and at the next start.
	r.exec(`ALTER PUBLICATION shelfwire SET (publish = 'insert')`)
	c, stop = r.start()
	r.wait(c)
	require.Len(t, r.rereads(), 3)
	before := count(brief(r.records(event.Changes)), "products r a")
	r.exec(`BEGIN; ALTER PUBLICATION shelfwire SET (publish = 'insert'); UPDATE products SET title = 'unseen' WHERE id = 'a'; COMMIT`)
	require.Eventually(t, func() bool { return len(r.rereads()) == 4 }, time.Minute, 10*time.Millisecond)
	r.wait(c)
	require.Equal(t, before+1, count(brief(r.records(event.Changes)), "products r a"))
	require.NoError(t, stop())

	// A publication that is made anew, with a table less.
	r.cfg.NoHeal = true
	r.exec(`ALTER PUBLICATION ` + publication + ` SET TABLE stock, variants, categories`)
	require.ErrorContains(t, r.giveUp(), "public.products: dropped and made again, or not published for a while")
	r.cfg.NoHeal = false
	c, stop = r.start()
	r.wait(c)
	require.NoError(t, stop())
	require.Len(t, r.rereads(), 5)
}

// A kill between the change of the publication and the record of it neither forgets to read the table nor reads it twice.
func TestCaptureRereadsOnceThroughKills(t *testing.T) {
	r, _ := publishedRig(t)
	c, stop := r.start()
	r.wait(c)
	require.NoError(t, stop())
	for nth := range int32(6) {
		before := count(brief(r.records(event.Changes)), "products r a")
		r.exec(`ALTER PUBLICATION shelfwire DROP TABLE products`)
		var n atomic.Int32
		r.faults = func(call string) error {
			if n.Add(1) > nth && call != "fence" {
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
		require.Equal(t, before+1, count(brief(r.records(event.Changes)), "products r a"), "killed at step %d", nth)
	}
}

// Snapshots that run when tables are read again, or are gone, are announced with the offsets of their own records, those
// of before among them.
func TestCaptureKeepsTheOffsetsOfSnapshotsThroughARereading(t *testing.T) {
	r, _ := publishedRig(t)
	r.cfg.SnapshotChunk, r.cfg.SnapshotRate = 10, 300
	r.exec(`INSERT INTO products SELECT 'p' || i, 'P', 1 FROM generate_series(1, 200) i`)
	r.exec(`INSERT INTO variants SELECT i, 'v' || i, 'S' FROM generate_series(2, 200) i`)
	last := func() map[string]map[int32]int64 {
		of := map[string]map[int32]int64{}
		for _, rec := range r.records(event.Changes) {
			if id := header(&rec, event.HeaderBatch); id != "" {
				if of[id] == nil {
					of[id] = map[int32]int64{}
				}
				of[id][rec.Partition] = rec.Offset
			}
		}
		return of
	}
	c, stop := r.start()
	require.Eventually(t, func() bool { return len(last()) == 1 }, time.Minute, 10*time.Millisecond, "the first snapshot runs")
	r.ask(true, `{"id": "asked", "table": "public.variants"}`)
	require.Eventually(t, func() bool { return len(last()) == 2 }, time.Minute, 10*time.Millisecond, "both snapshots run")
	r.exec(`BEGIN; ALTER PUBLICATION shelfwire DROP TABLE products; ALTER PUBLICATION shelfwire ADD TABLE products; COMMIT`)
	require.Eventually(t, func() bool { return len(r.rereads()) == 1 }, time.Minute, 10*time.Millisecond)
	r.exec(`DROP TABLE variants`)
	require.Eventually(t, func() bool { return len(r.rereads()) == 2 }, time.Minute, 10*time.Millisecond)
	r.wait(c)
	require.NoError(t, stop())
	got := map[string]map[int32]int64{}
	for _, b := range r.announced() {
		got[b.ID] = b.Changes
	}
	require.Len(t, got, 2)
	require.Equal(t, last(), got)
}

// A table that vanishes while a snapshot reads it ends neither Capture nor the snapshots of the others.
func TestCaptureGoesOnWhenATableVanishesUnderASnapshot(t *testing.T) {
	r, _ := publishedRig(t)
	r.cfg.PublicationEvery = time.Hour // only the failed read says it
	r.cfg.SnapshotChunk = 10
	r.exec(`INSERT INTO variants SELECT i, 'p' || i, 'S' FROM generate_series(2, 300) i`)
	asleep, wake := make(chan struct{}), make(chan struct{})
	var n atomic.Int32
	r.faults = func(call string) error {
		if call == "before commit" && n.Add(1) == 5 {
			close(asleep)
			<-wake
		}
		return nil
	}
	c, stop := r.start()
	<-asleep
	r.exec(`DROP TABLE variants`)
	close(wake)
	r.exec(`INSERT INTO products VALUES ('later', 'L', 1)`)
	r.comes("products c later")
	r.wait(c)
	require.NoError(t, stop())
}
