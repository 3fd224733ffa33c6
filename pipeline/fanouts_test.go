package pipeline_test

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/connectors/kafka"
	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
	"github.com/shelfwire/shelfwire/sinks/state"
)

// fanoutCatalog has ten products in each category of three trees:
//
//	1 (north)        11 - 111, 112      12 (north, east) - 121
//	2 (south)        21 - 211
//	3 (sold nowhere) 31
const fanoutCatalog = `
INSERT INTO catalog.stores (id, name) VALUES (1, 'north'), (2, 'south'), (3, 'east');
INSERT INTO catalog.categories (id, parent_id, depth, name) VALUES (1, NULL, 0, 'a'), (11, 1, 1, 'a1'), (111, 11, 2, 'a11'),
	(112, 11, 2, 'a12'), (12, 1, 1, 'a2'), (121, 12, 2, 'a21'), (2, NULL, 0, 'b'), (21, 2, 1, 'b1'), (211, 21, 2, 'b11'),
	(3, NULL, 0, 'c'), (31, 3, 1, 'c1');
INSERT INTO catalog.category_stores VALUES (1, 1), (2, 2), (12, 1), (12, 3);
INSERT INTO catalog.price_rules (id, category_id, name, percent) VALUES (1, 1, 'all', -10), (2, 11, 'some', 20), (3, 2, 'b', -5);
INSERT INTO catalog.warehouses (id, name) VALUES (1, 'Kiel');
INSERT INTO catalog.warehouse_locations SELECT 1, id, 'Main' FROM catalog.stores;
INSERT INTO catalog.products (id, category_id, kind, handle, title, approved_at)
	SELECT i, (ARRAY[1, 11, 111, 112, 12, 121, 2, 21, 211, 3, 31])[1 + i % 11], CASE WHEN i = 50 THEN 'gift' ELSE 'normal' END,
		'p' || i, 'P ' || i, CASE WHEN i <> 60 THEN now() END FROM generate_series(1, 110) i;
INSERT INTO catalog.variants (id, product_id, position, price, approved_at) SELECT 1000 + i, i, 1, i, now() FROM generate_series(1, 110) i;
INSERT INTO catalog.stock SELECT id, 1, 9, 9, 1 FROM catalog.variants;
ANALYZE;
`

// below lists the products of categories and all below them.
func (r *middleRig) below(categories ...int) []string {
	r.t.Helper()
	return r.ids(`WITH RECURSIVE tree AS (
			SELECT id FROM catalog.categories WHERE id = ANY($1)
			UNION ALL SELECT c.id FROM catalog.categories c JOIN tree t ON c.parent_id = t.id)
		SELECT DISTINCT p.id::text FROM catalog.products p WHERE p.category_id IN (SELECT id FROM tree)`, categories)
}

// soldIn lists the products of a store: those of which the nearest category with a store has this one.
func (r *middleRig) soldIn(store int) []string {
	r.t.Helper()
	return r.ids(`WITH RECURSIVE way AS (
			SELECT p.id AS product, p.category_id AS at, 0 AS far FROM catalog.products p
			UNION ALL SELECT w.product, c.parent_id, w.far + 1 FROM way w JOIN catalog.categories c ON c.id = w.at),
		stops AS (SELECT w.product, w.far, s.store_id FROM way w JOIN catalog.category_stores s ON s.category_id = w.at)
		SELECT s.product::text FROM stops s
		WHERE s.store_id = $1 AND s.far = (SELECT min(o.far) FROM stops o WHERE o.product = s.product)`, store)
}

func (r *middleRig) ids(sql string, args ...any) []string {
	r.t.Helper()
	rows, err := r.db.Query(r.t.Context(), sql, args...)
	require.NoError(r.t, err)
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(r.t, err)
	return sorted(ids)
}

func sorted(lists ...[]string) []string {
	all := slices.Concat(lists...)
	slices.Sort(all)
	return slices.Compact(all)
}

// transact commits statements in one transaction and returns its id.
func (r *middleRig) transact(statements ...string) (xid change.XID) {
	r.t.Helper()
	err := pgx.BeginFunc(r.t.Context(), r.db, func(tx pgx.Tx) error {
		for _, sql := range statements {
			if _, err := tx.Exec(r.t.Context(), sql); err != nil {
				return err
			}
		}
		return tx.QueryRow(r.t.Context(), `SELECT pg_current_xact_id()::text::bigint`).Scan(&xid)
	})
	require.NoError(r.t, err)
	return xid
}

// batch waits until a transaction's batch is as it shall be.
func (r *middleRig) batch(xid change.XID, so func(state.Batch) bool, what string) (b state.Batch) {
	r.t.Helper()
	r.soon(func() bool {
		list, err := r.state.Batches(r.t.Context(), state.BatchFilter{XID: xid})
		require.NoError(r.t, err)
		if len(list) == 1 {
			b = list[0]
		}
		return len(list) == 1 && so(b)
	}, "%s", what)
	return b
}

func ended(b state.Batch) bool { return !b.EndedAt.IsZero() }

// items lists the products of a batch.
func (r *middleRig) items(b state.Batch) []string {
	r.t.Helper()
	items, err := r.state.Items(r.t.Context(), b.ID, state.ItemFilter{Limit: 10_000})
	require.NoError(r.t, err)
	var ids []string
	for _, it := range items {
		require.Contains(r.t, []work.ItemStatus{work.ItemSuccess, work.ItemSkipped}, it.Status, "%+v", it)
		ids = append(ids, it.ProductID)
	}
	return sorted(ids)
}

// One row of a rule, a category, a store or its routing concerns many products: all that its old image and its new one
// lead to, each once, and every shop is as the documents say.
func TestFanoutsOfTheReferenceSchema(t *testing.T) {
	r := newMiddleRig(t, embeddedtest.Postgres(t), fanoutCatalog)
	r.startExpand(7) // many pages
	r.start()
	r.calm()
	r.requireTrue()
	for _, c := range []struct {
		name, sql string
		want      func() []string // asked before and after the change; both together
		// might are products that may be touched, too: a touch too many costs a read.
		might func() []string
	}{
		{name: "a deleted rule", sql: `DELETE FROM catalog.price_rules WHERE id = 2`, want: func() []string { return r.below(11) }},
		{
			name: "a narrowed rule", sql: `UPDATE catalog.price_rules SET category_id = 111 WHERE id = 1`,
			want: func() []string { return r.below(1) },
		},
		{
			name: "a rule elsewhere", sql: `UPDATE catalog.price_rules SET category_id = 12, percent = 7 WHERE id = 3`,
			want: func() []string { return r.below(2, 12) },
		},
		{name: "a moved category", sql: `SELECT catalog.move_category(12, 2)`, want: func() []string { return r.below(12) }},
		{name: "one moved deeper", sql: `SELECT catalog.move_category(11, 121)`, want: func() []string { return r.below(11) }},
		{
			name: "a store toggled off", sql: `UPDATE catalog.stores SET sync_prices = false WHERE name = 'north'`,
			want: func() []string { return r.soldIn(1) }, might: func() []string { return r.below(1, 12) },
		},
		{
			name: "and on, after prices changed", sql: `UPDATE catalog.stores SET sync_prices = true WHERE name = 'north'`,
			want: func() []string { return r.soldIn(1) }, might: func() []string { return r.below(1, 12) },
		},
		{
			name: "a shop routed elsewhere", sql: `UPDATE catalog.category_stores SET store_id = 3 WHERE category_id = 2`,
			want: func() []string { return r.below(2) },
		},
		{name: "a shop more", sql: `INSERT INTO catalog.category_stores VALUES (3, 1), (31, 2)`, want: func() []string { return r.below(3) }},
		{name: "a shop less", sql: `DELETE FROM catalog.category_stores WHERE category_id = 1`, want: func() []string { return r.below(1) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			defer r.of(t)()
			if c.name == "and on, after prices changed" {
				before := r.price("north", "11") // in category 1
				require.NotEmpty(t, before)
				r.exec(`UPDATE catalog.variants SET price = price + 1000`)
				r.calm()
				require.Equal(t, before, r.price("north", "11"), "not owned")
			}
			want := c.want()
			products := r.products(c.might)
			b := r.batch(r.transact(c.sql), ended, "the batch ends")
			want = sorted(want, c.want())
			require.NotEmpty(t, want)
			require.Equal(t, state.BatchCompleted, b.Status)
			got := r.items(b)
			require.Subset(t, got, want)
			require.Subset(t, sorted(want, products, r.products(c.might)), got)
			r.requireTrue()
			require.Zero(t, b.Failed)
			require.Equal(t, 1, r.ends(b.ID))
		})
	}
}

func (r *middleRig) products(list func() []string) []string {
	if list == nil {
		return nil
	}
	return list()
}

// ends counts how often the end of a batch was told.
func (r *middleRig) ends(id string) (n int) {
	r.t.Helper()
	r.soon(func() bool {
		o, err := r.state.Outbox(r.t.Context())
		require.NoError(r.t, err)
		return o.Rows == 0
	}, "everything is told")
	topic := r.kc.Topic(event.Batches)
	to, err := r.kc.EndOffsets(r.t.Context(), topic)
	require.NoError(r.t, err)
	for part, end := range to {
		_, err := r.kc.Scan(r.t.Context(), topic, part, 0, end, func(rec event.Record) bool {
			var e event.Batch
			require.NoError(r.t, json.Unmarshal(rec.Value, &e))
			if e.ID == id && (e.Type == event.BatchCompleted || e.Type == event.BatchFailed || e.Type == event.BatchCancelled) {
				n++
			}
			return true
		})
		require.NoError(r.t, err)
	}
	return n
}

// A batch has rows of its own and a rule. Whatever of it lags (a partition, the fan-out, what is parked for a shop that
// takes nothing, a worker that was killed and its records that come again), it is not complete before that has come, and
// once.
func TestABatchIsNotCompleteBeforeItsSlowestPart(t *testing.T) {
	r := newMiddleRig(t, embeddedtest.Postgres(t), fanoutCatalog)
	var g gate
	r.through = func(reader *kafka.Reader) middleReader { return &gatedReader{Reader: reader, gate: &g} }
	r.start()
	r.calm()
	price := 5000
	begin := func() change.XID {
		price++
		return r.transact(
			`UPDATE catalog.variants SET price = `+one[string](r.t, r.db, `SELECT $1::int::text`, price)+` WHERE product_id IN (21, 22, 23, 24)`,
			`UPDATE catalog.price_rules SET percent = percent + 1 WHERE id = 1`)
	}
	want := sorted(r.below(1), []string{"21", "22", "23", "24"})
	// open waits until nothing more happens by itself, and finds the batch incomplete.
	open := func(xid change.XID, so func(state.Batch) bool, what string) {
		r.t.Helper()
		b := r.batch(xid, func(b state.Batch) bool { return b.Announced && so(b) }, what)
		_, err := r.state.Complete(r.t.Context())
		require.NoError(r.t, err)
		b, err = r.state.Batch(r.t.Context(), b.ID)
		require.NoError(r.t, err)
		require.False(r.t, ended(b))
	}
	for _, c := range []struct {
		name string
		test func() change.XID
	}{
		{"a partition lags", func() change.XID {
			// All of its products are pushed, as the rule concerns them too.
			release := g.hold(change.Partition("23", r.kc.Partitions())) // 23 is in category 11
			defer release()
			xid := begin()
			open(xid, func(b state.Batch) bool { return b.Total >= len(want)-3 && b.Processing == 0 && len(r.parked()) == 0 }, "all but one partition")
			return xid
		}},
		{"the fan-out lags", func() change.XID {
			r.stopExpand()
			xid := begin()
			open(xid, func(b state.Batch) bool { return b.Total >= 4 && b.Processing == 0 }, "its own rows")
			r.startExpand(5)
			return xid
		}},
		{"a shop takes nothing", func() change.XID {
			_, err := r.state.Pause(r.t.Context(), state.PauseShop("north"), "ann")
			require.NoError(r.t, err)
			r.soon(func() bool { // Push looks once a second
				r.exec(`UPDATE catalog.products SET title = title || '.' WHERE id = 1`)
				return r.parked()["PAUSED"] > 0
			}, "paused")
			xid := begin()
			open(xid, func(b state.Batch) bool {
				return b.Total >= len(want) && b.Processing > 0 && one[bool](r.t, r.facts, `SELECT NOT EXISTS (SELECT FROM batch_items i
					LEFT JOIN parked p ON p.product_id = i.product_id AND p.shop = 'north' AND p.reason = 'PAUSED'
					WHERE i.batch_id = $1 AND i.status NOT IN ('SUCCESS', 'SKIPPED') AND p.product_id IS NULL)`, b.ID)
			}, "all but one shop")
			_, err = r.state.Resume(r.t.Context(), state.PauseShop("north"))
			require.NoError(r.t, err)
			return xid
		}},
		{"a worker is killed again and again", func() change.XID {
			drain := r.push.Drain
			r.push.Drain = 1
			defer func() { r.push.Drain = drain }()
			r.stopPush()
			r.startPush()
			xid := begin()
			for range 3 {
				r.stopPush() // its leases end by themselves
				r.startPush()
			}
			return xid
		}},
	} {
		ok := t.Run(c.name, func(t *testing.T) {
			defer r.of(t)()
			b := r.batch(c.test(), ended, "the batch ends")
			require.Equal(t, state.BatchCompleted, b.Status)
			require.Equal(t, want, r.items(b))
			r.calm()
			r.requireTrue()
			require.Equal(t, 1, r.ends(b.ID))
		})
		require.True(t, ok, "the others would find what it has left")
	}
	t.Run("all records come again", func(t *testing.T) {
		defer r.of(t)()
		const told = `SELECT string_agg(concat_ws(' ', batch_id, product_id, shop, status, processed_at), ',' ORDER BY batch_id, product_id, shop)
			FROM batch_items`
		items, mutations := one[string](t, r.facts, told), r.mutations()
		r.stopPush()
		_, err := r.facts.Exec(t.Context(), `UPDATE leases SET position = 0, taken_in = 0 WHERE stage = 'push'`)
		require.NoError(t, err)
		r.startPush()
		r.calm()
		require.Equal(t, items, one[string](t, r.facts, told))
		require.Equal(t, mutations, r.mutations())
		r.requireTrue()
	})
}

// gate holds back the records of one partition.
type gate struct{ shut atomic.Pointer[gateShut] }

type gateShut struct {
	partition int32
	opened    chan struct{}
}

// hold lets records of a partition pass only when open is called.
func (g *gate) hold(partition int32) (open func()) {
	s := &gateShut{partition: partition, opened: make(chan struct{})}
	g.shut.Store(s)
	return sync.OnceFunc(func() { g.shut.Store(nil); close(s.opened) })
}

// gatedReader keeps what the gate holds back until it is open.
type gatedReader struct {
	*kafka.Reader
	gate *gate

	mu   sync.Mutex
	kept []event.Record
}

func (r *gatedReader) Remove(partition int32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.kept = slices.DeleteFunc(r.kept, func(rec event.Record) bool { return rec.Partition == partition })
	r.Reader.Remove(partition)
}

func (r *gatedReader) Poll(ctx context.Context, n int) ([]event.Record, error) {
	wake, cancel := context.WithCancel(ctx)
	defer cancel()
	if s := r.gate.shut.Load(); s != nil {
		go func() {
			select {
			case <-s.opened:
				cancel()
			case <-wake.Done():
			}
		}()
	} else if kept := r.release(); len(kept) > 0 {
		return kept, nil
	}
	recs, err := r.Reader.Poll(wake, n)
	if ctx.Err() == nil && wake.Err() != nil {
		err = nil
	}
	s := r.gate.shut.Load()
	if s == nil {
		return append(r.release(), recs...), err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(recs, func(rec event.Record) bool {
		if rec.Partition == s.partition {
			r.kept = append(r.kept, rec)
		}
		return rec.Partition == s.partition
	}), err
}

func (r *gatedReader) release() []event.Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	kept := r.kept
	r.kept = nil
	return kept
}
