package postgres_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/connectors/postgres"
	"github.com/shelfwire/shelfwire/schemas/change"
)

func TestStreamYieldsEveryOperation(t *testing.T) {
	d := newDatabase(
		t, `CREATE TABLE p (id int PRIMARY KEY, title text, n int)`,
		`CREATE TABLE f (id int PRIMARY KEY, title text); ALTER TABLE f REPLICA IDENTITY FULL`,
	)
	src := d.capture("public.p", "public.f")
	st := stream(t, src, 0)

	d.exec(`INSERT INTO p VALUES (1, 'a', NULL), (2, 'b', 5)`)
	d.exec(`UPDATE p SET title = 'a2' WHERE id = 1`)
	d.exec(`UPDATE p SET id = 10 WHERE id = 1`)
	d.exec(`DELETE FROM p WHERE id = 2`)
	d.exec(`INSERT INTO f VALUES (1, 'x')`)
	d.exec(`UPDATE f SET title = NULL`)
	d.exec(`DELETE FROM f`)
	xid := d.text(`INSERT INTO p VALUES (3, 'c', 1) RETURNING pg_current_xact_id()::text`)

	rows := d.rows(st)
	type image = map[string]string
	want := []struct {
		op            string
		before, after image
	}{
		{"c", nil, image{"id": "1", "title": "a", "n": "NULL"}},
		{"c", nil, image{"id": "2", "title": "b", "n": "5"}},
		{"u", nil, image{"id": "1", "title": "a2", "n": "NULL"}},
		{"u", image{"id": "1"}, image{"id": "10", "title": "a2", "n": "NULL"}},
		{"d", image{"id": "2"}, nil},
		{"c", nil, image{"id": "1", "title": "x"}},
		{"u", image{"id": "1", "title": "x"}, image{"id": "1", "title": "NULL"}},
		{"d", image{"id": "1", "title": "NULL"}, nil},
		{"c", nil, image{"id": "3", "title": "c", "n": "1"}},
	}
	require.Len(t, rows, len(want))
	for i, w := range want {
		require.Equal(t, w.op, rows[i].Op, i)
		require.Equal(t, w.before, rows[i].Before, i)
		require.Equal(t, w.after, rows[i].After, i)
		if i > 0 {
			require.Positive(t, rows[i].Position.Compare(rows[i-1].Position), "positions order the stream")
		}
	}
	require.Equal(t, xid, fmt.Sprint(rows[8].XID), "the xid is the full one that the application sees")
	require.Equal(t, uint64(2), rows[1].Position.Ordinal)
	require.Greater(t, rows[0].EndLSN, rows[0].Position.CommitLSN)
}

func TestRolledBackWorkLeavesNothing(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE p (id int PRIMARY KEY)`)
	st := stream(t, d.capture("public.p"), 0)
	d.exec(`BEGIN; INSERT INTO p VALUES (1); ROLLBACK`)
	d.exec(`BEGIN; SAVEPOINT s; INSERT INTO p VALUES (2); ROLLBACK TO s; COMMIT`)
	d.exec(`BEGIN; INSERT INTO p VALUES (3); SAVEPOINT s; INSERT INTO p VALUES (4); ROLLBACK TO s; INSERT INTO p VALUES (5); COMMIT`)
	d.exec(`BEGIN; INSERT INTO p VALUES (6); SELECT pg_logical_emit_message(true, 'gone', ''); ROLLBACK`)
	var got []string
	var ordinals []uint64
	for _, r := range d.rows(st) {
		got = append(got, r.Op+r.After["id"])
		ordinals = append(ordinals, r.Position.Ordinal)
	}
	require.Equal(t, []string{"c3", "c5"}, got)
	require.Equal(t, []uint64{1, 2}, ordinals, "ordinals count what survived")
}

func TestUnchangedToast(t *testing.T) {
	d := newDatabase(
		t, `CREATE TABLE p (id int PRIMARY KEY, n int, big text); ALTER TABLE p ALTER big SET STORAGE external`,
		`CREATE TABLE f (id int PRIMARY KEY, n int, big text); ALTER TABLE f ALTER big SET STORAGE external; ALTER TABLE f REPLICA IDENTITY FULL`,
	)
	st := stream(t, d.capture("public.p", "public.f"), 0)
	big := strings.Repeat("0123456789", 900)
	d.exec(`INSERT INTO p VALUES (1, 1, '` + big + `'); INSERT INTO f VALUES (1, 1, '` + big + `')`)
	d.exec(`UPDATE p SET n = 2`)
	d.exec(`UPDATE f SET n = 2`)
	rows := d.rows(st)
	require.Equal(t, big, rows[0].After["big"])
	require.Equal(t, "UNCHANGED", rows[2].After["big"], "never null, never invented")
	require.Equal(t, big, rows[3].After["big"], "known from the old row")
}

func TestTruncatePartitionsAndMessages(t *testing.T) {
	d := newDatabase(
		t, `CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)`,
		`CREATE TABLE p (id int, region text, PRIMARY KEY (region, id)) PARTITION BY LIST (region);
		 CREATE TABLE p_eu PARTITION OF p FOR VALUES IN ('eu'); CREATE TABLE p_us PARTITION OF p FOR VALUES IN ('us')`,
	)
	src := d.capture("public.a", "public.b", "public.p")
	st := stream(t, src, 0)
	d.exec(`INSERT INTO a VALUES (1)`)
	d.exec(`BEGIN; TRUNCATE a, b; SELECT pg_logical_emit_message(true, 'shelfwire.batch', '{"name":"x"}'); INSERT INTO a VALUES (2); COMMIT`)
	d.exec(`INSERT INTO p VALUES (1, 'eu')`)
	d.exec(`UPDATE p SET region = 'us'`)
	lsn, err := src.EmitMessage(t.Context(), "mark", []byte("\x00\xff"))
	require.NoError(t, err)
	require.Equal(t, "true", d.text(`SELECT (pg_current_wal_flush_lsn() >= '`+lsn.String()+`')::text`), "nothing else has to flush it")

	rows := d.rows(st)
	var got []string
	for _, r := range rows {
		got = append(got, fmt.Sprint(r.Op, " ", r.Table, r.Message, " ", r.Position.Ordinal))
	}
	require.Equal(t, []string{
		"c public.a 1", "t public.a 1", "t public.b 2", `m shelfwire.batch={"name":"x"} 3`, "c public.a 4",
		"c public.p 1", "d public.p 1", "c public.p 2", "m mark=\x00\xff 0",
	}, got)
	require.Equal(t, lsn, rows[8].LSN, "a mark is found by the LSN that its writer got")
	require.Zero(t, rows[8].XID)
}

func TestRowsOfOneCopyHaveTheirOwnPositions(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE p (id int PRIMARY KEY)`)
	st := stream(t, d.capture("public.p"), 0)
	_, err := d.conn.PgConn().CopyFrom(t.Context(), strings.NewReader("1\n2\n3\n"), `COPY p FROM STDIN`)
	require.NoError(t, err)
	rows := d.rows(st)
	require.Len(t, rows, 3)
	require.Equal(t, rows[0].LSN, rows[1].LSN, "or this test shows nothing")
	require.NotEqual(t, rows[0].Position, rows[1].Position)
}

func TestResumeFromConfirmedPosition(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE p (id int PRIMARY KEY)`)
	src := d.capture("public.p")
	st := stream(t, src, 0)
	d.exec(`INSERT INTO p VALUES (1)`)
	d.exec(`INSERT INTO p VALUES (2)`)
	d.exec(`INSERT INTO p VALUES (3)`)
	rows := d.rows(st)
	require.Len(t, rows, 3)

	// Everything to the second row is durable; the slot hears of the first only.
	st.Confirm(rows[0].EndLSN)
	st.Confirm(1) // never back
	require.NoError(t, st.Close(t.Context()))
	info, err := src.EnsureSlot(t.Context())
	require.NoError(t, err)
	require.False(t, info.Created)
	require.Equal(t, rows[0].EndLSN, info.ConfirmedFlush)
	require.Zero(t, info.ActivePID, "Close returns when the slot is free")

	require.Len(t, d.rowsFrom(src, 0), 2, "0 goes on from what is confirmed")
	again := d.rowsFrom(src, rows[1].EndLSN)
	require.Len(t, again, 1)
	require.Equal(t, rows[2].Position, again[0].Position, "positions are the same when streamed again")

	// The slot was moved by somebody else: the server would go on in silence.
	d.exec(`SELECT pg_replication_slot_advance('` + src.Slot() + `', pg_current_wal_flush_lsn())`)
	_, err = src.Stream(t.Context(), rows[1].EndLSN)
	var slot *postgres.SlotError
	require.ErrorAs(t, err, &slot)
	require.Equal(t, postgres.SlotPassed, slot.Kind)
	require.ErrorContains(t, err, rows[1].EndLSN.String())
	require.ErrorContains(t, err, slot.Confirmed.String())
	require.False(t, slot.Temporary())
}

// rowsFrom reads from a position without confirming anything beyond it.
func (d *database) rowsFrom(src *postgres.Source, from change.LSN) []row {
	d.t.Helper()
	st, err := src.Stream(d.t.Context(), from)
	require.NoError(d.t, err)
	defer func() { require.NoError(d.t, st.Close(d.t.Context())) }()
	return until(d.t, st, d.end())
}

func TestKeepaliveMovesAnIdleSlot(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE other (id int)`)
	src := d.capture("public.p")
	st := stream(t, src, 0)
	before := st.Confirmed()
	d.exec(`INSERT INTO other SELECT generate_series(1, 5000)`) // not published
	end := d.text(`SELECT pg_current_wal_flush_lsn()::text`)
	target, err := change.ParseLSN(end)
	require.NoError(t, err)

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	idle := false
	for st.Confirmed() < target || !idle {
		ev, err := st.Next(ctx)
		require.NoError(t, err)
		require.NotEqual(t, change.EventChange, ev.Kind)
		idle = idle || ev.Kind == change.EventIdle
		if ev.Kind == change.EventKeepalive {
			st.Confirm(ev.EndLSN)
		}
	}
	require.Greater(t, st.Confirmed(), before)
	require.NoError(t, st.Close(t.Context()))
	info, err := src.EnsureSlot(t.Context())
	require.NoError(t, err)
	require.GreaterOrEqual(t, info.ConfirmedFlush, target)
}

func TestNextCanBeGivenUpAndCalledAgain(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE p (id int PRIMARY KEY)`)
	src := d.captureWith(func(c *postgres.Config) { c.IdleAfter = time.Hour }, "public.p")
	st := stream(t, src, 0)
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		for {
			if _, err := st.Next(ctx); err != nil { // keepalives may come
				require.ErrorIs(t, err, context.DeadlineExceeded)
				break
			}
		}
		cancel()
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := st.Next(ctx)
	require.ErrorIs(t, err, context.Canceled)
	d.exec(`INSERT INTO p VALUES (1)`)
	require.Len(t, d.rows(st), 1)

	for until := time.Now().Add(20 * time.Millisecond); ; {
		ev, err := st.NextUntil(t.Context(), until)
		require.NoError(t, err)
		if ev.Kind == change.EventIdle { // IdleAfter would be an hour
			require.False(t, time.Now().Before(until))
			break
		}
	}
	// A ctx that ends while nobody waits ends the next read, and no later one.
	for range 20 {
		gone, leave := context.WithCancel(t.Context())
		_, err = st.NextUntil(gone, time.Now().Add(time.Millisecond))
		require.NoError(t, err)
		leave()
		_, err = st.NextUntil(gone, time.Time{})
		require.ErrorIs(t, err, context.Canceled)
		_, err = st.NextUntil(t.Context(), time.Now().Add(time.Millisecond))
		require.NoError(t, err)
	}
	require.NoError(t, st.Close(t.Context()))
}

// The stream describes the root of a partitioned table, and a partition writes what its own identity says: what it has
// not written comes as NULL.
func TestOldRowsOfAPartitionHoldOnlyWhatItHasWritten(t *testing.T) {
	d := newDatabase(
		t, `CREATE TABLE p (id int, region text, product_id text, PRIMARY KEY (region, id)) PARTITION BY LIST (region);
		 CREATE TABLE p_us PARTITION OF p FOR VALUES IN ('us');
		 ALTER TABLE p REPLICA IDENTITY FULL; ALTER TABLE p_us REPLICA IDENTITY FULL`,
		`CREATE TABLE q (id int, n int NOT NULL, PRIMARY KEY (n, id)) PARTITION BY LIST (n);
		 CREATE TABLE q_1 PARTITION OF q FOR VALUES IN (1); CREATE UNIQUE INDEX i ON q_1 (n); ALTER TABLE q_1 REPLICA IDENTITY USING INDEX i`,
	)
	src := d.capture("public.p", "public.q")
	st := stream(t, src, 0)
	d.exec(`INSERT INTO p VALUES (1, 'us', NULL); DELETE FROM p`)
	got := deleted(d.rows(st))
	d.exec(`CREATE TABLE p_eu PARTITION OF p FOR VALUES IN ('eu')`) // its identity is the default one
	d.exec(`INSERT INTO p VALUES (2, 'eu', 'a'); DELETE FROM p`)
	d.exec(`INSERT INTO q VALUES (1, 1); DELETE FROM q`)
	got = append(got, deleted(d.rows(st))...)
	require.Equal(t, []map[string]string{
		{"id": "1", "region": "us", "product_id": "NULL"}, {"id": "2", "region": "eu"}, {"n": "1"},
	}, got)
}

func deleted(rows []row) (before []map[string]string) {
	for _, r := range rows {
		if r.Op == "d" {
			before = append(before, r.Before)
		}
	}
	return before
}
