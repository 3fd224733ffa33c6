package pipeline_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/connectors/postgres"
	"github.com/shelfwire/shelfwire/pipeline"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
)

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
				`INSERT INTO products SELECT 'big' || g || '-' || pg_current_xact_id(), repeat('t', 1500), g FROM generate_series(1, 90) g`,
				`SAVEPOINT big`, `UPDATE products SET price = price + 1`, `ROLLBACK TO big`, `UPDATE products SET price = price + 1`)
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
	for seed := range uint64(2) {
		t.Run(fmt.Sprint("seed ", seed+1), func(t *testing.T) { losesAndDoublesNothing(t, seed+1) })
	}
}

func losesAndDoublesNothing(t *testing.T, seed uint64) {
	t.Helper()
	r := newCaptureRig(t)
	r.cfg.BatchRows, r.cfg.TxRows, r.cfg.SnapshotChunk, r.cfg.SnapshotReaders = 20, 40, 5, 3
	rnd := rand.New(rand.NewPCG(seed, 1))
	require.NoError(t, captureWrites(t.Context(), r.db, rnd, 30)) // what the snapshot finds

	// The witness has a slot of its own, older than the capture's first record.
	witness, err := postgres.Open(t.Context(), postgres.Config{
		URL: r.url, Slot: r.slot() + "_w", MessagePrefix: pipeline.MessagePrefix, SpillLimit: -1,
	})
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
	asked := 0
	for running := true; running; {
		ask := func(request string, args ...any) {
			if asked < 20 {
				asked++
				r.ask(asked%2 == 0, fmt.Sprintf(request, args...))
			}
		}
		ask(`{"id": "%d", "products": ["p1", "p2", "p3", "p4"]}`, asked)
		_, stop := r.start()
		ask(`{"id": "%d", "table": "public.products", "where": "price %% 3 = 1"}`, asked)
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
	if r.runs%3 == 2 { // on a slow machine the last run does most of the work: it shall take them before their commit
		r.runs++
	}
	c, stop := r.start()
	r.wait(c)
	require.NoError(t, stop())
	r.compare(witness)
	r.reads() // each row once in each snapshot
	require.Empty(t, r.records(event.DeadLetters))
	require.Equal(t, asked, r.endings(), "snapshots that were asked for")
	var streamed int64
	for _, n := range r.streamed {
		streamed += n.Load()
	}
	require.Positive(t, streamed, "no transaction was taken before its commit")
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
		if b.Type != event.BatchAnnounced { // the slot stood before the first start
			continue
		}
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
