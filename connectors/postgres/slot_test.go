package postgres_test

import (
	"context"
	"errors"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/connectors/postgres"
	"github.com/shelfwire/shelfwire/schemas/change"
)

func slotKind(t *testing.T, err error) postgres.SlotKind {
	t.Helper()
	var s *postgres.SlotError
	require.ErrorAs(t, err, &s)
	require.NotEmpty(t, s.Mend)
	return s.Kind
}

func TestSlotTroubleIsTyped(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE p (id int PRIMARY KEY)`)
	src := d.open(d.config())
	require.NoError(t, src.EnsurePublication(t.Context(), []string{"public.p"}))
	_, err := src.Stream(t.Context(), 0)
	require.Equal(t, postgres.SlotMissing, slotKind(t, err))

	// A transaction that runs blocks the creation, and is named.
	d.exec(`BEGIN; INSERT INTO p VALUES (1)`)
	pid := d.conn.PgConn().PID()
	cfg := d.config()
	cfg.SlotTimeout = 200 * time.Millisecond
	_, err = d.open(cfg).EnsureSlot(t.Context())
	require.Equal(t, postgres.SlotBlocked, slotKind(t, err))
	var s *postgres.SlotError
	require.ErrorAs(t, err, &s)
	require.Equal(t, []int32{int32(pid)}, s.PIDs)
	require.True(t, s.Temporary())
	d.exec(`ROLLBACK`)

	info, err := src.EnsureSlot(t.Context())
	require.NoError(t, err, "nothing is left of the first try")
	require.True(t, info.Created)
	require.NotZero(t, info.ConfirmedFlush)
	st := stream(t, src, 0)
	_, err = src.Stream(t.Context(), 0)
	require.Equal(t, postgres.SlotActive, slotKind(t, err))
	info, err = src.EnsureSlot(t.Context())
	require.NoError(t, err)
	require.False(t, info.Created)
	require.NotZero(t, info.ActivePID)
	require.Equal(t, postgres.SlotActive, slotKind(t, src.DropSlot(t.Context())))
	require.NoError(t, st.Close(t.Context()))
	require.NoError(t, src.DropSlot(t.Context()))
	require.NoError(t, src.DropSlot(t.Context()), "there is none any more")

	d.exec(`SELECT pg_create_physical_replication_slot('` + src.Slot() + `')`)
	_, err = src.EnsureSlot(t.Context())
	require.Equal(t, postgres.SlotForeign, slotKind(t, err))
	require.NoError(t, src.DropSlot(t.Context()))
}

func TestLostSlot(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE p (id int PRIMARY KEY)`)
	src := d.capture("public.p")
	d.exec(`ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'`)
	t.Cleanup(func() {
		d.exec(`ALTER SYSTEM RESET max_slot_wal_keep_size`)
		d.exec(`SELECT pg_reload_conf()`)
	})
	d.exec(`SELECT pg_reload_conf()`)
	for range 4 {
		d.exec(`INSERT INTO p SELECT coalesce(max(id), 0) + 1 FROM p`)
		d.exec(`SELECT pg_switch_wal()`)
	}
	d.exec(`CHECKPOINT`)
	_, err := src.EnsureSlot(t.Context())
	require.Equal(t, postgres.SlotLost, slotKind(t, err))
	require.ErrorContains(t, err, "pg_drop_replication_slot('"+src.Slot()+"')")
	_, err = src.Stream(t.Context(), 0)
	require.Equal(t, postgres.SlotLost, slotKind(t, err))

	// A server that goes away in between may leave open what the trouble is, but never calls it one that stays.
	var asked, fatal atomic.Int64
	cfg := d.config()
	cfg.URL = (&between{end: func() bool { return asked.Add(1) == fatal.Load() }}).url(t, d.url)
	src = d.open(cfg)
	for n := int64(1); ; n++ {
		asked.Store(0)
		fatal.Store(n)
		_, err = src.Stream(t.Context(), 0)
		fatal.Store(0)
		trouble, ok := errors.AsType[*postgres.SlotError](err)
		if ok && trouble.Kind == postgres.SlotActive { // the server is not done with the connection that was ended before
			n--
			continue
		}
		if asked.Load() < n {
			break
		}
		if ok {
			require.Equal(t, postgres.SlotLost, trouble.Kind, "message %d: %v", n, err)
			continue
		}
		q, ok := errors.AsType[*postgres.QueryError](err)
		require.True(t, ok && q.Temporary(), "message %d: %v", n, err)
	}
	require.Equal(t, postgres.SlotLost, slotKind(t, err))
}

func TestSlotOlderThanItsPublication(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE p (id int PRIMARY KEY)`)
	src := d.open(d.config())
	_, err := src.EnsureSlot(t.Context())
	require.NoError(t, err)
	d.exec(`INSERT INTO p VALUES (1)`)
	require.NoError(t, src.EnsurePublication(t.Context(), []string{"public.p"}))
	st := stream(t, src, 0)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for err == nil {
		_, err = st.Next(ctx)
	}
	require.ErrorContains(t, err, "older than publication")
}

// A first start wants every table; a later one, of another process too, goes on without one that is gone.
func TestKeepPublishedGoesOnWithoutATableThatIsGone(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE a (id int PRIMARY KEY)`, `CREATE TABLE b (id int PRIMARY KEY)`)
	tables := []string{"public.a", "public.b", "public.c"}
	require.ErrorContains(t, d.open(d.config()).KeepPublished(t.Context(), tables), `"public.c" does not exist`)
	require.NoError(t, d.open(d.config()).KeepPublished(t.Context(), tables[:2]))
	d.exec(`DROP TABLE b`)
	src := d.open(d.config())
	require.NoError(t, src.KeepPublished(t.Context(), tables[:2]))
	d.exec(`CREATE TABLE b (id int PRIMARY KEY)`)
	require.NoError(t, src.KeepPublished(t.Context(), tables[:2]))
	published, _, err := src.PublishedTables(t.Context())
	require.NoError(t, err)
	require.Equal(t, tables[:2], published)
}

func TestEnsurePublication(t *testing.T) {
	d := newDatabase(
		t, `CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE "B c" (id int PRIMARY KEY); CREATE TABLE other (id int)`,
		`CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (9)`,
		`CREATE PUBLICATION shelfwire FOR TABLE other WITH (publish = 'insert')`,
	)
	src := d.open(d.config())
	want := []string{"public.a", "public.B c", "public.p"}
	for range 2 { // the second time there is nothing to do
		require.NoError(t, src.EnsurePublication(t.Context(), want))
		require.Equal(t, "true true B c,a,other,p", d.text(`
			SELECT pubviaroot || ' ' || pubdelete || ' ' || (SELECT string_agg(tablename, ',' ORDER BY tablename COLLATE "C") FROM pg_publication_tables)
			FROM pg_publication`))
	}
	require.ErrorContains(t, src.EnsurePublication(t.Context(), []string{"public.p1"}), "route its root")
	require.Error(t, src.EnsurePublication(t.Context(), []string{"public.gone"}))
	require.ErrorContains(t, src.EnsurePublication(t.Context(), []string{"nodot"}), "want schema.name")
}

func TestHistory(t *testing.T) {
	d := newDatabase(t)
	src := d.open(d.config())
	h, err := src.History(t.Context())
	require.NoError(t, err)
	require.Equal(t, change.History{SystemID: d.text(`SELECT system_identifier::text FROM pg_control_system()`), Timeline: 1, Slot: src.Slot()}, h)
}

// withTimeout is the connection string with a wal_sender_timeout.
func withTimeout(t *testing.T, raw, timeout string) string {
	t.Helper()
	u, err := url.Parse(raw)
	require.NoError(t, err)
	q := u.Query()
	q.Set("wal_sender_timeout", timeout)
	u.RawQuery = q.Encode()
	return u.String()
}

// TestAttendOutlivesTheTimeout: a caller that waits for Kafka keeps its connection, however long; one that just stays
// away loses it.
func TestAttendOutlivesTheTimeout(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE p (id int PRIMARY KEY)`)
	src := d.captureWith(func(c *postgres.Config) { c.URL = withTimeout(t, d.url, "2s") }, "public.p")
	// More than all buffers hold. It is written first: while the test waits for it, nobody would attend to the stream.
	d.exec(`INSERT INTO p SELECT generate_series(1, 200000)`)
	st := stream(t, src, 0)
	away := func(context.Context) error { <-time.After(5 * time.Second); return nil }
	require.NoError(t, st.Attend(t.Context(), away))
	require.Len(t, d.rows(st), 200000)

	d.exec(`DELETE FROM p`)
	require.NoError(t, away(t.Context()))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var err error
	for err == nil {
		_, err = st.Next(ctx)
	}
	require.NotErrorIs(t, err, context.DeadlineExceeded, "or this test shows nothing")
	_, again := st.Next(ctx)
	require.Equal(t, err, again, "an ended stream stays ended")
}

func TestAttendReturnsTheErrorOfTheWork(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE p (id int PRIMARY KEY)`)
	st := stream(t, d.capture("public.p"), 0)
	err := st.Attend(t.Context(), func(context.Context) error { return pgx.ErrNoRows })
	require.ErrorIs(t, err, pgx.ErrNoRows)
}

func TestKilledWalsenderEndsTheStream(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE p (id int PRIMARY KEY)`)
	src := d.capture("public.p")
	st := stream(t, src, 0)
	d.exec(`INSERT INTO p VALUES (1)`)
	rows := d.rows(st)
	d.exec(`SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '` + src.Slot() + `'`)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var err error
	for err == nil {
		_, err = st.Next(ctx)
	}
	require.ErrorContains(t, err, "replication stream at ")
	var temporary interface{ Temporary() bool }
	require.ErrorAs(t, err, &temporary)
	require.True(t, temporary.Temporary())
	require.NoError(t, st.Close(t.Context()))
	d.exec(`INSERT INTO p VALUES (2)`)
	st, err = src.Stream(t.Context(), rows[0].EndLSN)
	for err != nil { // the old walsender may take a moment to go
		require.Equal(t, postgres.SlotActive, slotKind(t, err))
		st, err = src.Stream(t.Context(), rows[0].EndLSN)
	}
	t.Cleanup(func() { _ = st.Close(context.WithoutCancel(t.Context())) })
	again := d.rows(st)
	require.Equal(t, "2", again[len(again)-1].After["id"])
}

// A process that was stopped or cut off does not hold the slot for long: whoever stands by gets it.
func TestSilentReaderLosesTheSlot(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE p (id int PRIMARY KEY)`)
	src := d.captureWith(func(c *postgres.Config) { c.SenderTimeout = time.Second }, "public.p")
	silent := stream(t, src, 0)
	d.exec(`INSERT INTO p VALUES (1)`)
	rows := d.rows(silent) // and then it says nothing more
	began := time.Now()
	st := again(t, src)
	t.Logf("taken over %s after the last sign of life", time.Since(began).Round(10*time.Millisecond))
	require.Equal(t, rows, until(t, st, d.end()), "nothing was confirmed, so all comes again")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		if _, err := silent.Next(ctx); err != nil {
			require.NotErrorIs(t, err, context.DeadlineExceeded, "the one that wakes up goes on reading")
			return
		}
	}
}

// TestStreamedTransactionIsVisible: what the stream has shown, a snapshot taken later sees, as a rule; the xid tells.
func TestStreamedTransactionIsVisible(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE p (id int PRIMARY KEY)`)
	src := d.capture("public.p")
	st := stream(t, src, 0)
	d.exec(`BEGIN; SAVEPOINT s; INSERT INTO p VALUES (1); RELEASE s; COMMIT`)
	rows := d.rows(st)
	require.Len(t, rows, 1)
	for {
		_, snap, _, err := src.Documents(t.Context(), `SELECT id::text AS product_id, '' AS shop, '{}' AS document FROM p WHERE id::text = ANY ($1)`, []change.ProductID{"1"})
		require.NoError(t, err)
		if snap.Sees(rows[0].XID) { // a subtransaction's row carries the id of the whole transaction
			break
		}
	}
	c, err := src.ReadChunk(t.Context(), change.ChunkQuery{Selection: change.Selection{Table: "public.p"}, Limit: 10})
	require.NoError(t, err)
	require.True(t, c.Snapshot.Sees(rows[0].XID))
	require.False(t, c.Snapshot.Sees(rows[0].XID+1000))
}

func TestOpenRefusesWhatIsNoDatabase(t *testing.T) {
	_, err := postgres.Open(t.Context(), postgres.Config{URL: "postgres://127.0.0.1:1/x?connect_timeout=1"})
	require.ErrorContains(t, err, "connect to the source database")
	_, err = postgres.Open(t.Context(), postgres.Config{URL: "nonsense ="})
	require.ErrorContains(t, err, "source database")
}
