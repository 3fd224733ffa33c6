package postgres_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/connectors/postgres"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/route"
)

// gone is the kind of trouble that only a new slot mends; empty for any other.
func gone(t *testing.T, err error) string {
	t.Helper()
	var s interface{ Gone() string }
	require.ErrorAs(t, err, &s)
	return s.Gone()
}

// Two processes find the slot missing. What one is creating must not look lost to the other, which would drop it.
func TestSlotInCreationBelongsToSomebody(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE p (id int PRIMARY KEY)`)
	src := d.open(d.config())
	require.NoError(t, src.EnsurePublication(t.Context(), []string{"public.p"}))
	require.Equal(t, "missing", gone(t, src.CheckSlot(t.Context())))

	d.exec(`BEGIN; INSERT INTO p VALUES (1)`) // holds the creation up
	done := make(chan error, 1)
	go func() { done <- src.RenewSlot(t.Context()) }()
	require.Eventually(t, func() bool {
		return d.text(`SELECT count(*)::text FROM pg_replication_slots WHERE slot_name = '`+src.Slot()+`'`) == "1"
	}, 20*time.Second, 5*time.Millisecond)
	other := d.open(d.config())
	err := other.CheckSlot(t.Context())
	require.Equal(t, postgres.SlotActive, slotKind(t, err))
	require.Empty(t, gone(t, err))
	require.Equal(t, postgres.SlotActive, slotKind(t, other.RenewSlot(t.Context())))
	for _, f := range other.Check(t.Context(), postgres.Declared{
		Routes:    []route.Route{{Table: "public.p", Key: "id"}},
		Documents: `SELECT id::text AS product_id, ''::text AS shop, '{}'::jsonb AS document FROM p WHERE id::text = ANY ($1)`,
	}) {
		require.NotContains(t, f.Where, "slot", "a process that starts now stands by: %s", f.Problem)
	}
	d.exec(`COMMIT`)
	require.NoError(t, <-done)
	require.NoError(t, other.CheckSlot(t.Context()))
}

func TestRenewSlotGivesUpWhatTheOldOneHeld(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE p (id int PRIMARY KEY)`)
	src := d.capture("public.p")
	d.exec(`INSERT INTO p VALUES (1)`)
	require.NoError(t, src.RenewSlot(t.Context()))
	st := stream(t, src, 0)
	require.Equal(t, postgres.SlotActive, slotKind(t, src.RenewSlot(t.Context())), "somebody reads it")
	d.exec(`INSERT INTO p VALUES (2)`)
	rows := d.rows(st)
	require.Len(t, rows, 1)
	require.Equal(t, "2", rows[0].After["id"])
}

// From version 17 on the slot is one that standbys can have too. One that somebody has made otherwise stays that.
func TestSlotIsMadeForFailovers(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE p (id int PRIMARY KEY)`)
	src := d.capture("public.p")
	info, err := src.EnsureSlot(t.Context())
	require.NoError(t, err)
	newer := d.text(`SELECT (current_setting('server_version_num')::int >= 170000)::text`) == "true"
	require.Equal(t, newer, info.Failover)
	require.Empty(t, notes(src.Check(t.Context(), postgres.Declared{})))
	require.NoError(t, src.RenewSlot(t.Context()))
	info, err = src.EnsureSlot(t.Context())
	require.NoError(t, err)
	require.Equal(t, newer, info.Failover)

	require.NoError(t, src.DropSlot(t.Context()))
	d.exec(`SELECT pg_create_logical_replication_slot('` + src.Slot() + `', 'pgoutput')`)
	require.NoError(t, src.RenewSlot(t.Context()))
	info, err = src.EnsureSlot(t.Context())
	require.NoError(t, err)
	require.False(t, info.Failover)
	if newer {
		list := notes(src.Check(t.Context(), postgres.Declared{}))
		require.Len(t, list, 1)
		sql := list[0][strings.Index(list[0], "ALTER_REPLICATION_SLOT"):strings.LastIndex(list[0], "'")]
		repl, err := pgconn.Connect(t.Context(), d.url+"&replication=database")
		require.NoError(t, err)
		defer repl.Close(t.Context())
		require.NoError(t, repl.Exec(t.Context(), sql).Close(), "what it says can be run")
	}
	require.Empty(t, notes(src.Check(t.Context(), postgres.Declared{})))
}

// notes are how findings say that the slot is no failover slot.
func notes(found []postgres.Finding) (mend []string) {
	for _, f := range found {
		if f.Kind == postgres.FindingNote && strings.HasPrefix(f.Where, "slot ") {
			mend = append(mend, f.Mend)
		}
	}
	return mend
}

func TestStaleSlotIsRecognisedAndRenewed(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE p (id int PRIMARY KEY)`)
	src := d.open(d.config())
	require.NoError(t, src.RenewSlot(t.Context()))
	d.exec(`INSERT INTO p VALUES (1)`)
	require.NoError(t, src.EnsurePublication(t.Context(), []string{"public.p"}))
	st, err := src.Stream(t.Context(), 0)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for err == nil {
		_, err = st.Next(ctx)
	}
	require.Equal(t, "stale", gone(t, err))
	require.NoError(t, st.Close(t.Context()))
	require.Eventually(t, func() bool { return src.RenewSlot(t.Context()) == nil }, 20*time.Second, 10*time.Millisecond)
	st = stream(t, src, 0)
	d.exec(`INSERT INTO p VALUES (2)`)
	require.Len(t, d.rows(st), 1)
}

// A server that cannot decode at all has not lost the slot: it must not be dropped for that.
func TestSlotOfOthersIsNeverDropped(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE p (id int PRIMARY KEY)`)
	src := d.open(d.config())
	d.exec(`SELECT pg_create_physical_replication_slot('` + src.Slot() + `')`)
	err := src.RenewSlot(t.Context())
	require.Equal(t, postgres.SlotForeign, slotKind(t, err))
	require.Empty(t, gone(t, err))
	var permanent interface{ Permanent() bool }
	require.ErrorAs(t, err, &permanent)
	require.True(t, permanent.Permanent())
	d.exec(`SELECT pg_drop_replication_slot('` + src.Slot() + `')`)
}

func TestSwitchPointOfAServerThatWasNeverPromoted(t *testing.T) {
	d := newDatabase(t)
	_, ok, err := d.open(d.config()).SwitchPoint(t.Context(), 1)
	require.NoError(t, err)
	require.False(t, ok)
}

func TestWALEndGoesOn(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE p (id int PRIMARY KEY)`)
	src := d.open(d.config())
	before, err := src.WALEnd(t.Context())
	require.NoError(t, err)
	d.exec(`INSERT INTO p VALUES (1)`)
	after, err := src.WALEnd(t.Context())
	require.NoError(t, err)
	require.Greater(t, after, before)
	var text string
	require.NoError(t, d.conn.QueryRow(t.Context(), `SELECT pg_current_wal_flush_lsn()::text`, pgx.QueryExecModeExec).Scan(&text))
	lsn, err := change.ParseLSN(text)
	require.NoError(t, err)
	require.GreaterOrEqual(t, lsn, after)
}

// A slot that is made while a published table is changed may never know of the change, now and then: PostgreSQL then
// sends the rows without their new column. It must be made again.
func TestSlotIsNotMadeBesideAChangeOfItsTables(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE other (id int)`)
	src := d.open(d.config())
	require.NoError(t, src.EnsurePublication(t.Context(), []string{"public.p"}))
	running, err := pgx.Connect(t.Context(), d.url)
	require.NoError(t, err)
	defer func() { _ = running.Close(context.Background()) }()
	_, err = running.Exec(t.Context(), `BEGIN; INSERT INTO other VALUES (1)`)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() {
		_, err := src.EnsureSlot(t.Context())
		done <- err
	}()
	require.Eventually(t, func() bool {
		return d.text(`SELECT count(*)::text FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()`) == "1"
	}, 20*time.Second, 5*time.Millisecond, "the server waits for the one who writes")
	d.exec(`ALTER TABLE p ADD x text DEFAULT 'new'`)
	changed := d.text(`SELECT pg_current_wal_lsn()::text`)
	_, err = running.Exec(t.Context(), `COMMIT`)
	require.NoError(t, err)
	require.NoError(t, <-done)
	require.Equal(t, "true", d.text(`SELECT (restart_lsn >= '`+changed+`')::text FROM pg_replication_slots WHERE slot_name = '`+src.Slot()+`'`),
		"it was begun before the change")
	st := stream(t, src, 0)
	d.exec(`INSERT INTO p VALUES (1)`)
	rows := d.rows(st)
	require.Equal(t, map[string]string{"id": "1", "x": "new"}, rows[len(rows)-1].After)
}
