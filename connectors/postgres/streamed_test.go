package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/connectors/postgres"
	"github.com/shelfwire/shelfwire/schemas/change"
)

// both opens two sources that read the same WAL: one whose server streams whatever is larger than 64 kB, and one whose
// server keeps every transaction until its commit.
func (d *database) both(tables ...string) (streamed, whole *postgres.Source) {
	d.t.Helper()
	streamed = d.captureWith(func(c *postgres.Config) { c.DecodingMemory, c.SpillDir = "64kB", d.t.TempDir() }, tables...)
	cfg := d.config()
	copied := cfg.Slot + "_whole"
	d.exec(fmt.Sprintf("SELECT pg_copy_logical_replication_slot('%s', '%s')", cfg.Slot, copied))
	cfg.Slot, cfg.SpillLimit = copied, -1
	return streamed, d.open(cfg)
}

// same compares rows and shows the first that differs, and not all of them.
func same(t *testing.T, want, got []row) {
	t.Helper()
	for i := range min(len(want), len(got)) {
		require.Equal(t, want[i], got[i], i)
	}
	require.True(t, len(want) == len(got), "want %d rows, got %d", len(want), len(got)) //nolint:testifylint // not all of them
}

// writer runs one random transaction: large enough to be streamed, with savepoints that are kept, rolled back and
// nested, with changes of the schema, truncates and messages.
type writer struct {
	rnd  *rand.Rand
	says bool // it sends messages, and then rolls no savepoint back
	sql  strings.Builder
	name string
	own  int // rows of this writer are in a range of their own, so that no two wait for each other
	next int
	deep int
}

func (w *writer) add(format string, args ...any) { fmt.Fprintf(&w.sql, format+";\n", args...) }

func (w *writer) rows() {
	from := w.own + w.next
	n := 1 + w.rnd.IntN(400)
	w.next += n
	switch w.rnd.IntN(8) {
	case 0:
		w.add("UPDATE big SET n = n + 1 WHERE id BETWEEN %d AND %d", w.own, w.own+w.rnd.IntN(w.next+1))
	case 1:
		w.add("DELETE FROM big WHERE id BETWEEN %d AND %d", w.own, w.own+w.rnd.IntN(20))
	case 2:
		w.add("UPDATE big SET id = id + 500000 WHERE id = (SELECT min(id) FROM big WHERE id BETWEEN %d AND %d)", w.own, w.own+400000)
	case 3:
		if !w.says {
			return
		}
		w.add("SELECT pg_logical_emit_message(true, 'note', '%s %d')", w.name, w.next)
	case 4:
		w.add("INSERT INTO wide SELECT i, repeat(md5(i::text), 200) FROM generate_series(%d, %d) i", from, from+w.rnd.IntN(5))
	default:
		w.add("INSERT INTO big SELECT i, i, repeat('%s', 20) FROM generate_series(%d, %d) i ON CONFLICT DO NOTHING", w.name, from, from+n)
	}
}

func (w *writer) block(depth int) {
	for range 1 + w.rnd.IntN(6) {
		if depth < 3 && w.rnd.IntN(3) == 0 {
			w.deep++
			name := fmt.Sprintf("s%d", w.deep)
			w.add("SAVEPOINT %s", name)
			w.block(depth + 1)
			kind := w.rnd.IntN(3)
			if w.says {
				kind = 2
			}
			switch kind {
			case 0:
				w.add("ROLLBACK TO %s", name)
			case 1:
				w.add("ROLLBACK TO %s", name)
				w.add("RELEASE %s", name)
			default:
				w.add("RELEASE %s", name)
			}
			continue
		}
		w.rows()
	}
}

func TestStreamedTransactionsComeAsIfTheyWereWhole(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	d := newDatabase(t,
		`CREATE TABLE big (id int PRIMARY KEY, n int, s text)`,
		`CREATE TABLE wide (id int PRIMARY KEY, s text); ALTER TABLE wide ALTER s SET STORAGE external; ALTER TABLE wide REPLICA IDENTITY FULL`,
		`CREATE TABLE shape (id int PRIMARY KEY, a text)`,
		`CREATE TABLE small (id int PRIMARY KEY)`)
	a, b := d.both("public.big", "public.wide", "public.shape", "public.small")
	var wg sync.WaitGroup
	for k := range 4 {
		wg.Go(func() {
			conn, err := pgx.Connect(t.Context(), d.url)
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
			rnd := rand.New(rand.NewPCG(seed, uint64(k)))
			for i := range 6 {
				w := &writer{rnd: rnd, name: fmt.Sprintf("w%d", k), own: k*2_000_000 + i*50_000, says: rnd.IntN(2) == 0}
				w.add("BEGIN")
				w.block(0)
				w.add([]string{"COMMIT", "COMMIT", "COMMIT", "ROLLBACK"}[rnd.IntN(4)])
				if _, err := conn.PgConn().Exec(t.Context(), w.sql.String()).ReadAll(); err != nil {
					t.Errorf("%v\n%s", err, w.sql.String())
					return
				}
				if _, err := conn.Exec(t.Context(), fmt.Sprintf("INSERT INTO small VALUES (%d)", k*1000+i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	// The shape of a table changes within a streamed transaction, also in what is rolled back of it.
	d.exec(`BEGIN;
		INSERT INTO shape SELECT i, repeat('x', 300) FROM generate_series(1, 500) i;
		SAVEPOINT s; ALTER TABLE shape ADD b int DEFAULT 7; INSERT INTO shape SELECT i, repeat('y', 300), i FROM generate_series(501, 1000) i;
		ROLLBACK TO s; INSERT INTO shape SELECT i, repeat('z', 300) FROM generate_series(1001, 1500) i;
		ALTER TABLE shape RENAME a TO c; INSERT INTO shape SELECT i, repeat('q', 300) FROM generate_series(1501, 2000) i;
		TRUNCATE small; COMMIT`)
	// Whose first row of a table is in a subtransaction that is rolled back.
	d.exec(`CREATE TABLE late (id int PRIMARY KEY, s text); ALTER PUBLICATION ` + d.text("SELECT quote_ident(pubname) FROM pg_publication") + ` ADD TABLE late`)
	d.exec(`BEGIN; SAVEPOINT s; INSERT INTO late SELECT i, repeat('x', 300) FROM generate_series(1, 600) i; ROLLBACK TO s;
		INSERT INTO late SELECT i, repeat('y', 300) FROM generate_series(1, 600) i; COMMIT; INSERT INTO late VALUES (0, 'alone')`)
	d.exec(`INSERT INTO shape VALUES (0, 'alone')`)

	want := d.rows(stream(t, b, 0))
	got := until(t, stream(t, a, 0), d.end())
	require.Greater(t, len(want), 3000)
	require.Greater(t, a.SpillStats().Transactions.Load(), int64(3), "or nothing was streamed")
	require.Zero(t, b.SpillStats().Transactions.Load())
	same(t, want, got)
	require.Zero(t, a.SpillStats().Bytes.Load(), "the disk is given back")
}

// What does not fit on this side is left to the server, and comes from there.
func TestSpillLimitLeavesTheTransactionToTheServer(t *testing.T) {
	dir := t.TempDir()
	d := newDatabase(t, `CREATE TABLE p (id int PRIMARY KEY, s text)`)
	src := d.captureWith(func(c *postgres.Config) { c.DecodingMemory, c.SpillDir, c.SpillLimit = "64kB", dir, 1<<20 }, "public.p")
	st := stream(t, src, 0)
	d.exec(`INSERT INTO p SELECT i, repeat('x', 500) FROM generate_series(1, 10000) i`)
	require.ErrorContains(t, broken(t, st), "more than 1048576 bytes in "+dir)
	require.NoError(t, st.Close(t.Context()))
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
	require.Zero(t, src.SpillStats().Bytes.Load())

	st = again(t, src)
	rows := d.rows(st)
	n := len(rows) // a failure should not print them all
	require.Equal(t, 10000, n, "kept by the server")
	require.Equal(t, int64(1), src.SpillStats().Left.Load())
	require.Equal(t, int64(1), src.SpillStats().Transactions.Load())
	st.Confirm(rows[0].EndLSN)
	require.NoError(t, st.Close(t.Context()))
	st = again(t, src)
	d.exec(`UPDATE p SET s = repeat('y', 500) WHERE id <= 500`)
	n = len(d.rows(st))
	require.Equal(t, 500, n)
	require.Equal(t, int64(2), src.SpillStats().Transactions.Load(), "the stream after that takes transactions early again")
}

// broken reads until the stream must begin again.
func broken(t *testing.T, st *postgres.Stream) *postgres.WholeError {
	t.Helper()
	for {
		if _, err := st.Next(t.Context()); err != nil {
			var whole *postgres.WholeError
			require.ErrorAs(t, err, &whole)
			return whole
		}
	}
}

// The protocol does not say which savepoint a message belongs to. So a transaction that has both is read whole, where
// the server itself leaves out what was rolled back.
func TestMessageBesideARolledBackSavepointIsReadWhole(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE p (id int PRIMARY KEY, s text)`)
	src := d.captureWith(func(c *postgres.Config) { c.DecodingMemory, c.MessagePrefix = "64kB", "shelfwire." }, "public.p")
	fill := func(from int) string {
		return fmt.Sprintf("INSERT INTO p SELECT i, repeat('x', 300) FROM generate_series(%d, %d) i;", from, from+999)
	}
	st := stream(t, src, 0)
	// Of other prefixes none counts: this transaction is streamed.
	d.exec(`BEGIN; SAVEPOINT s; SELECT pg_logical_emit_message(true, 'other', 'gone');` + fill(1) + `ROLLBACK TO s;` + fill(1) + `COMMIT`)
	d.exec(`BEGIN; SAVEPOINT s; SELECT pg_logical_emit_message(true, 'shelfwire.batch', 'gone');` + fill(1001) + `ROLLBACK TO s;
		SELECT pg_logical_emit_message(true, 'shelfwire.batch', 'stays');` + fill(1001) + `COMMIT`)
	rows := 0
	for rows < 1000 {
		ev, err := st.Next(t.Context())
		require.NoError(t, err)
		if ev.Kind == change.EventChange {
			rows++
			require.Equal(t, uint64(rows), ev.Change.Position.Ordinal)
		}
	}
	require.ErrorContains(t, broken(t, st), "savepoint")
	require.NoError(t, st.Close(t.Context()))
	other := again(t, d.open(d.config())) // somebody else has the slot for a moment, and a try fails
	_, err := src.Stream(t.Context(), 0)
	require.Equal(t, postgres.SlotActive, slotKind(t, err))
	require.NoError(t, other.Close(t.Context()))
	st = again(t, src)
	defer func() { _ = st.Close(t.Context()) }()
	var got []string
	for rows = 0; rows < 2000; {
		ev, err := st.Next(t.Context())
		require.NoError(t, err)
		switch ev.Kind {
		case change.EventChange:
			rows++
		case change.EventMessage:
			got = append(got, string(ev.Message.Content))
		default:
		}
	}
	require.Equal(t, []string{"stays"}, got)
}

// PostgreSQL 18 sees that a transaction has been rolled back before it streams it, and streams nothing; but it goes on to
// tell of the end of its savepoints.
func TestAbortOfATransactionThatWasNeverStreamed(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE p (id int PRIMARY KEY, s text)`)
	src := d.captureWith(func(c *postgres.Config) { c.DecodingMemory = "64kB" }, "public.p")
	d.exec(`BEGIN; SAVEPOINT s; INSERT INTO p SELECT i, repeat('x', 300) FROM generate_series(1, 1000) i; ROLLBACK`)
	d.exec(`BEGIN; SAVEPOINT s; INSERT INTO p SELECT i, repeat('y', 300) FROM generate_series(1, 1000) i; ROLLBACK TO s;
		INSERT INTO p SELECT i, repeat('z', 300) FROM generate_series(1, 1000) i; COMMIT`)
	st := stream(t, src, 0) // reads it when it is over
	rows := d.rows(st)
	require.Equal(t, 1000, len(rows)) //nolint:testifylint // not all of them
	for _, r := range rows {
		require.Equal(t, byte('z'), r.After["s"][0])
	}
}

// again opens the stream while the server may still be ending the last one.
func again(t *testing.T, src *postgres.Source) *postgres.Stream {
	t.Helper()
	for {
		st, err := src.Stream(t.Context(), 0)
		if err == nil {
			t.Cleanup(func() { _ = st.Close(context.WithoutCancel(t.Context())) })
			return st
		}
		var slot *postgres.SlotError
		require.True(t, errors.As(err, &slot) && slot.Kind == postgres.SlotActive, "%v", err)
	}
}

// A keepalive between two chunks must not be taken for the end of all that was received: the transaction comes whole
// again to whoever goes on from there.
func TestOpenTransactionComesWholeAfterAConfirmedKeepalive(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE p (id int PRIMARY KEY, s text)`, `CREATE TABLE q (id int PRIMARY KEY)`)
	src := d.captureWith(func(c *postgres.Config) { c.DecodingMemory = "64kB" }, "public.p", "public.q")
	st := stream(t, src, 0)
	tx, err := pgx.Connect(t.Context(), d.url)
	require.NoError(t, err)
	defer func() { _ = tx.Close(context.WithoutCancel(t.Context())) }()
	_, err = tx.PgConn().Exec(t.Context(), `BEGIN; INSERT INTO p SELECT i, repeat('x', 500) FROM generate_series(1, 3000) i`).ReadAll()
	require.NoError(t, err)
	d.exec(`INSERT INTO q VALUES (1)`)
	mark := change.LSN(0)
	for src.SpillStats().Bytes.Load() == 0 || mark == 0 {
		ev, err := st.Next(t.Context())
		require.NoError(t, err)
		if ev.Kind == change.EventCommit || ev.Kind == change.EventKeepalive {
			mark = ev.EndLSN
			st.Confirm(ev.EndLSN)
		}
	}
	require.Positive(t, src.SpillStats().Largest.Load(), "it is open")
	require.NoError(t, st.Close(t.Context()))
	require.Zero(t, src.SpillStats().Largest.Load())
	_, err = tx.Exec(t.Context(), `INSERT INTO p SELECT i, 'late' FROM generate_series(3001, 3010) i`)
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `COMMIT`)
	require.NoError(t, err)
	st = again(t, src)
	rows := slices.DeleteFunc(d.rows(st), func(r row) bool { return r.Table == "public.q" })
	n := len(rows) // a failure should not print them all
	require.Equal(t, 3010, n)
	for i, r := range rows {
		require.Equal(t, fmt.Sprint(i+1), r.After["id"])
		require.Equal(t, uint64(i+1), r.Position.Ordinal)
	}
}
