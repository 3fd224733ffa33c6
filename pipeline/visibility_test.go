package pipeline_test

import (
	"context"
	"encoding/json"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	server "github.com/shelfwire/shelfwire/deploy/embedded/postgres"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/sinks/state"
)

// hangingCatalog is a store with 80 products of one variant each, all of one category that a rule prices.
const hangingCatalog = `
INSERT INTO catalog.stores (id, name) VALUES (1, 'north'), (2, 'south'), (3, 'east');
INSERT INTO catalog.categories (id, parent_id, depth, name) VALUES (1, NULL, 0, 'all'), (2, 1, 1, 'coats');
INSERT INTO catalog.category_stores VALUES (1, 1);
INSERT INTO catalog.price_rules (id, category_id, name, percent) VALUES (1, 2, 'sale', -10);
INSERT INTO catalog.products (id, category_id, handle, title, approved_at) SELECT i, 2, 'p' || i, 'P', now() FROM generate_series(1, 80) i;
INSERT INTO catalog.variants (id, product_id, position, price, approved_at) SELECT 100 + i, i, 1, 100, now() FROM generate_series(1, 80) i;
INSERT INTO catalog.warehouses (id, name) VALUES (1, 'Kiel');
INSERT INTO catalog.warehouse_locations VALUES (1, 1, 'Main');
INSERT INTO catalog.stock SELECT id, 1, 1, 1 FROM catalog.variants;
INSERT INTO catalog.images (product_id, position, url) SELECT id, 1, 'https://x/' || id FROM catalog.products;
CREATE TABLE catalog.probes (n int);
ANALYZE;
`

// hanging is a rig whose server waits for a standby that is not there: what an application commits has been streamed
// and is visible to nobody, for as long as the test likes.
type hanging struct {
	*middleRig
	wait sync.WaitGroup // for commits
	over atomic.Bool
}

func newHanging(t *testing.T) *hanging {
	t.Helper()
	s, err := embeddedtest.StartPostgres(t.Context(), server.Config{Dir: filepath.Join(embeddedtest.Dir(t), "postgres")})
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Stop() })
	h := &hanging{middleRig: newMiddleRig(t, s, hangingCatalog)}
	h.start()
	h.calm()
	h.requireTrue()
	return h
}

// miss makes commits wait from now on.
func (h *hanging) miss() {
	h.t.Helper()
	h.over.Store(false)
	h.exec(`ALTER SYSTEM SET synchronous_standby_names = 'missing'`)
	h.exec(`SELECT pg_reload_conf()`)
	probe := h.connect(h.url) // they do when the checkpointer has heard of it
	h.wait.Go(func() {
		for !h.over.Load() {
			if _, err := probe.Exec(context.Background(), `INSERT INTO catalog.probes VALUES (1)`); err != nil {
				return
			}
		}
	})
	h.soon(func() bool { return h.hangs(probe.PgConn().PID()) }, "commits wait for the standby")
}

func (h *hanging) hangs(pid uint32) bool {
	return one[bool](h.t, h.db, `SELECT coalesce((SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = $1), false)`, pid)
}

// commit runs a transaction and returns when its commit waits.
func (h *hanging) commit(sql string) {
	h.t.Helper()
	app := h.connect(h.url)
	h.wait.Go(func() {
		if _, err := app.Exec(context.Background(), `BEGIN; `+sql+`; COMMIT`); err != nil {
			h.t.Errorf("%s: %v", sql, err)
		}
	})
	h.soon(func() bool { return h.hangs(app.PgConn().PID()) }, "the commit waits for the standby")
}

// release ends the waiting, as an administrator does who gives the standby up.
func (h *hanging) release() {
	if h.over.Swap(true) {
		return
	}
	_, err := h.db.Exec(context.Background(), `ALTER SYSTEM RESET synchronous_standby_names`)
	if err == nil {
		_, err = h.db.Exec(context.Background(), `SELECT pg_reload_conf()`)
	}
	if err != nil {
		h.t.Error(err)
	}
	h.wait.Wait()
}

// invisible says of which products a row waits for their transaction.
func (h *hanging) invisible() int { return h.parked()["NOT_YET_VISIBLE"] }

// askedAgain waits until each of these rows has been asked for and parked again.
func (h *hanging) askedAgain(times int) {
	h.t.Helper()
	for range times {
		last := one[int64](h.t, h.facts, `SELECT max(generation) FROM parked`)
		h.soon(func() bool {
			return one[int64](h.t, h.facts, `SELECT coalesce(min(generation), 0) FROM parked`) > last
		}, "what is parked is asked for again")
	}
}

// The WAL of a commit is sent before others see the transaction: for hours, where a synchronous standby is away. Nothing
// that is read meanwhile may pass for its effect, and the waiting must cost next to nothing.
func TestWhatIsStreamedAndNotVisible(t *testing.T) {
	h := newHanging(t)
	for _, c := range []struct {
		name string
		test func(*hanging)
	}{
		{"a product", (*hanging).aProduct},
		{"a subtransaction", (*hanging).aSubtransaction},
		{"a fan-out", (*hanging).aFanout},
		{"a snapshot chunk", (*hanging).aSnapshotChunk},
		{"a parent look-up", (*hanging).aParentLookup},
		{"a snapshot chunk after a restart", (*hanging).aSnapshotChunkAfterARestart},
		{"a parent look-up after a restart", (*hanging).aParentLookupAfterARestart},
		{"a parent look-up after a takeover", (*hanging).aParentLookupAfterATakeover},
		{"nobody else waits after a restart", (*hanging).nobodyElseAfterARestart},
		{"a parent look-up over a gap", (*hanging).aParentLookupOverAGap},
	} {
		ok := t.Run(c.name, func(t *testing.T) {
			defer h.of(t)()
			defer h.release() // before connections are closed
			c.test(h)
			h.release()
			h.calm()
			h.requireTrue()
		})
		require.True(t, ok, "the others would find what it has left")
	}
}

func (h *hanging) aProduct() {
	before, mutations := h.price("north", "1"), h.mutations()
	h.miss()
	h.commit(`UPDATE catalog.variants SET price = 200 WHERE product_id = 1`)
	h.soon(func() bool { return h.invisible() == 1 }, "parked")
	h.stopPush()
	h.startPush()
	reads, asked := h.source.documents.Load(), h.source.snapshots.Load()
	h.askedAgain(2)
	require.Equal(h.t, reads, h.source.documents.Load(), "documents are not read in vain")
	require.Less(h.t, h.source.snapshots.Load()-asked, int64(20), "nor is it asked for all the time what is visible")
	require.Equal(h.t, before, h.price("north", "1"))
	require.Equal(h.t, mutations, h.mutations())

	// Nobody else waits.
	h.locally(`UPDATE catalog.variants SET price = 300 WHERE product_id = 2`)
	h.soon(func() bool { return h.price("north", "2") == "270.00" }, "another product is pushed")
	require.Equal(h.t, 1, h.invisible())
	require.Equal(h.t, before, h.price("north", "1"))

	h.release()
	h.soon(func() bool { return h.price("north", "1") == "180.00" }, "pushed once it is visible")
	h.calm()
	require.Equal(h.t, mutations+2, h.mutations(), "each of the two once")
}

// A snapshot lists the transactions that run, and not their subtransactions: one that asked for the writer's own id
// would think it visible.
func (h *hanging) aSubtransaction() {
	mutations := h.mutations()
	before := h.price("north", "3")
	h.miss()
	h.commit(`SAVEPOINT a; UPDATE catalog.variants SET price = 210 WHERE product_id = 3; RELEASE a;
		SAVEPOINT b; UPDATE catalog.variants SET price = 999 WHERE product_id IN (4, 5); ROLLBACK TO b;
		SAVEPOINT c; SAVEPOINT d; UPDATE catalog.variants SET price = 220 WHERE product_id = 4`)
	// Large enough to be sent before its end, most of it in subtransactions.
	h.commit(`SAVEPOINT a; UPDATE catalog.products SET description_html = repeat('x', 1000 + id::int) WHERE id BETWEEN 11 AND 80;
		SAVEPOINT b; UPDATE catalog.variants SET price = 230 WHERE product_id BETWEEN 11 AND 80;
		SAVEPOINT c; UPDATE catalog.variants SET price = 999 WHERE product_id = 5; ROLLBACK TO c`)
	h.soon(func() bool { return h.source.SpillStats().Transactions.Load() > 0 }, "it was streamed before its end")
	h.soon(func() bool { return h.invisible() == 72 }, "parked")
	h.askedAgain(1)
	require.Equal(h.t, mutations, h.mutations())
	require.Equal(h.t, before, h.price("north", "3"))
	batches, err := h.state.Batches(h.t.Context(), state.BatchFilter{Kind: event.KindTransaction, Limit: 1})
	require.NoError(h.t, err)
	require.Equal(h.t, 70, batches[0].Total)
	require.Zero(h.t, batches[0].EndedAt, "nothing of it is done")

	h.release()
	h.calm()
	require.Equal(h.t, "189.00", h.price("north", "3"))
	require.Equal(h.t, "198.00", h.price("north", "4"))
	require.Equal(h.t, "90.00", h.price("north", "5"))
	require.Equal(h.t, "207.00", h.price("north", "11"))
	h.soon(func() bool {
		b, err := h.state.Batch(h.t.Context(), batches[0].ID)
		require.NoError(h.t, err)
		return b.Status == state.BatchCompleted && b.Succeeded == 70
	}, "the batch is complete")
}

func (h *hanging) aFanout() {
	mutations := h.mutations()
	before := h.price("north", "6")
	h.miss()
	pages := h.source.pages.Load()
	h.commit(`SAVEPOINT a; UPDATE catalog.price_rules SET percent = -20; RELEASE a`)
	asked := h.source.snapshots.Load()
	h.soon(func() bool { return h.source.snapshots.Load() >= asked+8 }, "it is asked what is visible")
	require.Equal(h.t, pages, h.source.pages.Load(), "no page is read")
	require.Empty(h.t, h.parked())
	require.Equal(h.t, mutations, h.mutations())
	require.Equal(h.t, before, h.price("north", "6"))

	h.release()
	h.soon(func() bool { return h.price("north", "6") == "80.00" }, "priced by the new rule")
	h.calm()
	require.Equal(h.t, mutations+80, h.mutations(), "each product once")
}

// A chunk that is read now shows the old row, and the stream has had the new one: put behind it, the old one would stand.
func (h *hanging) aSnapshotChunk() {
	h.miss()
	h.commit(`UPDATE catalog.variants SET sku = 'new' WHERE product_id = 7`)
	h.soon(func() bool { return h.invisible() == 1 }, "parked")
	rereads := h.capture.Stats().Rereads.Load()
	h.exec(`SELECT pg_logical_emit_message(false, 'shelfwire.snapshot', '{"id": "hanging", "table": "catalog.variants"}')`)
	h.soon(func() bool { return h.capture.Stats().Rereads.Load() >= rereads+3 }, "its chunks are read again")
	h.stopCapture() // the next one knows what its predecessor has streamed
	h.startCapture()
	h.soon(func() bool { return h.capture.Stats().Rereads.Load() >= 3 }, "its chunks are read again")
	require.True(h.t, h.capture.Stats().Snapshotting.Load())
	require.Equal(h.t, []string{"u new"}, h.written("107"))

	h.release()
	h.calm()
	require.Equal(h.t, []string{"u new", "r new"}, h.written("107"))
}

// Of a row that the stream has moved to another product a read still shows the old one. Believed once, it would send the
// changes of all its children astray for good. A capture that has just begun must learn from the position what its
// predecessor had streamed.
func (h *hanging) aParentLookup() {
	h.miss()
	h.commit(`UPDATE catalog.variants SET product_id = 9, position = 2, options = '{other}' WHERE id = 108`)
	h.soon(func() bool { return h.invisible() == 2 }, "parked")
	h.exec(`SELECT pg_logical_emit_message(false, 'shelfwire.snapshot', '{"id": "look-up", "table": "catalog.images"}')`)
	h.soon(func() bool { return h.capture.Stats().Snapshotting.Load() }, "a snapshot is under way")
	h.stopCapture()
	h.startCapture()
	h.locally(`UPDATE catalog.stock SET approved = 5 WHERE variant_id = 108`)
	h.soon(func() bool { return h.capture.Stats().Lookups.Load() > 0 }, "the variant's product is asked for")

	h.release()
	h.calm()
	h.exec(`UPDATE catalog.stock SET approved = 7 WHERE variant_id = 108`)
}

// The same where no snapshot ran when the first capture was stopped.
func (h *hanging) aSnapshotChunkAfterARestart() {
	h.miss()
	h.commit(`UPDATE catalog.variants SET sku = 'newer' WHERE product_id = 20`)
	h.soon(func() bool { return h.invisible() == 1 }, "parked")
	h.stopCapture()
	h.startCapture()
	h.exec(`SELECT pg_logical_emit_message(false, 'shelfwire.snapshot', '{"id": "restart", "table": "catalog.variants"}')`)
	h.soon(func() bool {
		return h.capture.Stats().Rereads.Load() >= 3 || len(h.written("120")) > 1
	}, "its chunks are read again")
	require.Equal(h.t, []string{"u newer"}, h.written("120"))

	h.release()
	h.calm()
	require.Equal(h.t, []string{"u newer", "r newer"}, h.written("120"))
}

func (h *hanging) aParentLookupAfterARestart() {
	h.miss()
	h.commit(`UPDATE catalog.variants SET product_id = 22, position = 2, options = '{other}' WHERE id = 121`)
	h.soon(func() bool { return h.invisible() == 2 }, "parked")
	for range 2 { // also one that has streamed nothing itself hands it on
		h.stopCapture()
		h.startCapture()
		h.soon(func() bool { return h.capture.Stats().KafkaTransactions.Load() > 0 }, "it has written a position")
	}
	h.locally(`UPDATE catalog.stock SET approved = 5 WHERE variant_id = 121`)
	h.soon(func() bool { return h.capture.Stats().Lookups.Load() > 0 }, "the variant's product is asked for")

	h.release()
	h.calm()
	h.requireTrue()
	h.exec(`UPDATE catalog.stock SET approved = 7 WHERE variant_id = 121`)
}

// A process that stood by has seen nothing of the stream, and takes over from one whose connection is cut and that does not
// know it yet.
func (h *hanging) aParentLookupAfterATakeover() {
	stopFirst := h.stopCapture
	first := h.capture
	h.startCapture()
	h.miss()
	h.commit(`UPDATE catalog.variants SET product_id = 28, position = 2, options = '{other}' WHERE id = 127`)
	h.soon(func() bool { return h.invisible() == 2 }, "parked")
	at := one[string](h.t, h.db, `SELECT pg_current_wal_insert_lsn()::text`)
	h.soon(func() bool {
		return one[bool](h.t, h.db, `SELECT confirmed_flush_lsn >= $1::pg_lsn FROM pg_replication_slots`, at)
	}, "the commit is not sent again")
	for !h.capture.Stats().Active.Load() { // either of them may be the next
		was := first.Stats().Active.Load()
		h.exec(`SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active`)
		h.soon(func() bool { return h.capture.Stats().Active.Load() || !was || !first.Stats().Active.Load() }, "it has noticed")
		h.soon(func() bool { return h.capture.Stats().Active.Load() || first.Stats().Active.Load() }, "one has the slot")
	}
	h.locally(`UPDATE catalog.stock SET approved = 5 WHERE variant_id = 127`)
	h.soon(func() bool { return h.capture.Stats().Lookups.Load() > 0 }, "the variant's product is asked for")

	h.release()
	h.calm()
	stopFirst()
	require.Equal(h.t, []string{"28"}, h.ledTo("catalog.stock", "27", "28"))
}

// ledTo lists which of these products rows of a table were led to that were updated.
func (h *hanging) ledTo(table string, products ...string) (out []string) {
	h.t.Helper()
	topic := h.kc.Topic(event.Changes)
	ends, err := h.kc.EndOffsets(h.t.Context(), topic)
	require.NoError(h.t, err)
	for part, end := range ends {
		_, err := h.kc.Scan(h.t.Context(), topic, part, 0, end, func(rec event.Record) bool {
			if header(&rec, event.HeaderTable) == table && header(&rec, event.HeaderOp) == "u" && slices.Contains(products, string(rec.Key)) {
				out = append(out, string(rec.Key))
			}
			return true
		})
		require.NoError(h.t, err)
	}
	return out
}

// What hangs has changed no table that rows are led through: a capture that has just begun does not wait for it.
func (h *hanging) nobodyElseAfterARestart() {
	h.miss()
	h.commit(`UPDATE catalog.stock SET approved = 3 WHERE variant_id = 123`)
	h.soon(func() bool { return h.invisible() == 1 }, "parked")
	h.stopCapture()
	h.startCapture()
	h.locally(`UPDATE catalog.stock SET approved = 4 WHERE variant_id = 124`)
	h.soon(func() bool { return h.capture.Stats().Records.Load() > 0 }, "captured")
	require.Equal(h.t, 1, h.invisible())
}

// Over a gap nobody knows what a predecessor has streamed. What a look-up takes for true by then is forgotten when those
// that were writing to the parents' table have ended.
func (h *hanging) aParentLookupOverAGap() {
	h.miss()
	h.commit(`UPDATE catalog.variants SET product_id = 26, position = 2, options = '{other}' WHERE id = 125`)
	h.soon(func() bool { return h.invisible() == 2 }, "parked")
	h.stopCapture()
	h.restart = true
	h.startCapture()
	h.restart = false
	h.locally(`UPDATE catalog.stock SET approved = 5 WHERE variant_id = 125`)
	h.soon(func() bool { return h.capture.Stats().Lookups.Load() > 0 }, "the variant's product is asked for")

	h.release()
	h.calm()
	h.requireTrue()
	h.exec(`UPDATE catalog.stock SET approved = 7 WHERE variant_id = 125`)
}

// locally runs a transaction that waits for no standby and is visible at once.
func (h *hanging) locally(sql string) {
	h.t.Helper()
	h.exec(`SET synchronous_commit = local`)
	h.exec(sql)
	h.exec(`RESET synchronous_commit`)
}

// written lists what catalog.changes holds of a variant since it got a SKU: op and SKU.
func (h *hanging) written(variant string) (out []string) {
	h.t.Helper()
	topic := h.kc.Topic(event.Changes)
	ends, err := h.kc.EndOffsets(h.t.Context(), topic)
	require.NoError(h.t, err)
	for part, end := range ends {
		_, err := h.kc.Scan(h.t.Context(), topic, part, 0, end, func(rec event.Record) bool {
			var e struct {
				Op     string
				After  map[string]any
				Source struct{ Table string }
			}
			if json.Unmarshal(rec.Value, &e) == nil && e.Source.Table == "variants" && string(mustJSON(h.t, e.After["id"])) == variant {
				if sku, ok := e.After["sku"].(string); ok {
					out = append(out, e.Op+" "+sku)
				} else if len(out) > 0 {
					out = append(out, e.Op+" old")
				}
			}
			return true
		})
		require.NoError(h.t, err)
	}
	return out
}

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	require.NoError(t, err)
	return b
}
