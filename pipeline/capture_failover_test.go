package pipeline_test

import (
	"context"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/connectors/kafka"
	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/deploy/embedded/postgres"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
)

// standbyOf makes a standby of a stopped primary's directory and starts both. keep says whether the slots come along, as
// those do that are made for a failover. The settings are the primary's and, over its own, the standby's.
func standbyOf(t *testing.T, dir string, keep bool, settings ...map[string]string) (primary, standby *postgres.Server) {
	t.Helper()
	settings = append(settings, nil, nil)
	other := copyServer(t, dir)
	primary = ownServer(t, dir, settings[0])
	data := filepath.Join(other, "pgdata")
	script := `touch "$1/standby.signal" && chown --reference="$1/PG_VERSION" "$1/standby.signal"`
	if !keep {
		script += ` && rm -rf "$1"/pg_replslot/*`
	}
	out, err := exec.Command("sh", "-c", script, "sh", data).CombinedOutput() //nolint:noctx // ends by itself
	require.NoError(t, err, string(out))
	params := map[string]string{"primary_conninfo": primary.URL("postgres")}
	maps.Copy(params, settings[1])
	return primary, ownServer(t, other, params)
}

// promote makes the standby the primary, once it has replayed what the primary has written.
func promote(t *testing.T, primary *captureRig, standby *postgres.Server) {
	t.Helper()
	var end string
	require.NoError(t, primary.db.QueryRow(t.Context(), `SELECT pg_current_wal_flush_lsn()::text`).Scan(&end))
	r := &captureRig{t: t}
	r.connect(standby.URL("postgres"))
	require.Eventually(t, func() bool {
		var there bool
		require.NoError(t, r.db.QueryRow(t.Context(), `SELECT pg_last_wal_replay_lsn() >= $1::pg_lsn`, end).Scan(&there))
		return there
	}, time.Minute, 10*time.Millisecond)
	r.exec(`SELECT pg_promote()`)
}

// A standby is promoted that has the slot: the timeline is new, the history up to it is the same.
func goesOnAfterAFailoverWithTheSlot(t *testing.T) {
	dir, s, h := ownHealRig(t, "failover")
	require.NoError(t, s.Stop())
	primary, standby := standbyOf(t, dir, true)
	h.connect(primary.URL("postgres"))
	c, stop := h.start()
	h.exec(`INSERT INTO products VALUES ('p1', 'P', 1)`)
	h.wait(c)
	require.NoError(t, stop())
	h.exec(`INSERT INTO products VALUES ('p2', 'P', 1)`) // not captured before the failover

	// The address may lead to the standby before it is promoted: that is no reason to heal, nor to give up.
	onPrimary := h.url
	h.url = standby.URL("postgres")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	_, done := h.run(ctx)
	require.NoError(t, <-done, "it waits for the promotion")
	cancel()
	h.url = onPrimary
	promote(t, h.captureRig, standby)
	require.NoError(t, primary.Stop())

	h.connect(standby.URL("postgres"))
	c, stop = h.start()
	h.exec(`INSERT INTO products VALUES ('p3', 'P', 1)`)
	h.wait(c)
	require.NoError(t, stop())
	require.Empty(t, h.healings())
	require.Equal(t, []string{
		"products c before", "products c deleted", "products c p1", "products c p2", "products c p3",
	}, brief(h.records(event.Changes)))
	pos, _, err := h.kc.ReadPosition(t.Context(), kafka.CapturePartition, "capture/failover")
	require.NoError(t, err)
	require.EqualValues(t, 2, pos.Timeline)
}

// The primary dies while a commit, captured already, waits for another standby that is away. On the new primary it is
// visible: rows are led by it at once, and what was not visible on the old one keeps nobody waiting.
func goesOnAfterAFailoverWithACommitThatHangs(t *testing.T) {
	dir, s, h := ownHealRig(t, "failover")
	h.exec(`INSERT INTO products VALUES ('p1', 'P', 1), ('p2', 'P', 1)`)
	h.exec(`INSERT INTO variants VALUES (1, 'p1', 'S')`)
	h.exec(`INSERT INTO stock (variant_id, qty) VALUES (1, 1)`)
	require.NoError(t, s.Stop())
	primary, standby := standbyOf(t, dir, true, map[string]string{"synchronous_standby_names": "missing"})
	h.connect(primary.URL("postgres"))
	c, stop := h.start()
	app, err := pgx.Connect(t.Context(), primary.URL("postgres"))
	require.NoError(t, err)
	hung := make(chan error, 1)
	go func() {
		_, err := app.Exec(context.Background(), `UPDATE variants SET product_id = 'p2' WHERE id = 1`)
		hung <- err
	}()
	require.Eventually(t, func() bool {
		return slices.Contains(brief(h.records(event.Changes)), "variants c p2")
	}, time.Minute, 10*time.Millisecond, "it is captured")
	pos, _, err := h.kc.ReadPosition(t.Context(), kafka.CapturePartition, "capture/failover")
	require.NoError(t, err)
	require.NotEmpty(t, pos.UnseenParents["public.variants"])
	promote(t, h.captureRig, standby)
	primary.Kill()
	require.Error(t, <-hung)
	require.NoError(t, stop())
	require.Positive(t, c.Stats().Records.Load())

	h.connect(standby.URL("postgres"))
	c, stop = h.start()
	h.exec(`UPDATE stock SET qty = 2 WHERE variant_id = 1`)
	h.wait(c)
	require.NoError(t, stop())
	require.Empty(t, h.healings())
	records := brief(h.records(event.Changes))
	require.Equal(t, "stock u p2", records[len(records)-1])
}

// The primary dies with WAL that the standby never had, and of which nothing was captured. That the position had moved
// over it is no reason for a snapshot, and what the new primary writes in its place is not taken for captured.
func goesOnAfterAFailoverThatLostNothingCaptured(t *testing.T) {
	dir, s, h := ownHealRig(t, "failover")
	h.exec(`CREATE TABLE log (line text)`)
	require.NoError(t, s.Stop())
	primary, standby := standbyOf(t, dir, true)
	h.connect(primary.URL("postgres"))
	c, stop := h.start()
	h.exec(`INSERT INTO products VALUES ('p1', 'P', 1)`)
	h.wait(c)
	promote(t, h.captureRig, standby)
	h.exec(`INSERT INTO log SELECT repeat('x', 100) FROM generate_series(1, 20000)`)
	h.wait(c)
	require.NoError(t, stop())
	before, _, err := h.kc.ReadPosition(t.Context(), kafka.CapturePartition, "capture/failover")
	require.NoError(t, err)
	require.NoError(t, primary.Stop())

	h.connect(standby.URL("postgres"))
	h.exec(`INSERT INTO products VALUES ('p2', 'P', 1)`)
	var end string
	require.NoError(t, h.db.QueryRow(t.Context(), `SELECT pg_current_wal_flush_lsn()::text`).Scan(&end))
	at, err := change.ParseLSN(end)
	require.NoError(t, err)
	require.Greater(t, before.CommitLSN, at, "the old one had written more")
	c, stop = h.start()
	h.exec(`INSERT INTO products VALUES ('p3', 'P', 1)`)
	h.wait(c)
	require.NoError(t, stop())
	require.Empty(t, h.healings())
	require.Equal(t, 1, h.back, "transaction ids of the old primary mean others now")
	require.Equal(t, []string{
		"products c before", "products c deleted", "products c p1", "products c p2", "products c p3",
	}, brief(h.records(event.Changes)))
}

// A standby is promoted that has neither the slot nor the last transactions.
func healsAFailoverThatLostWhatWasCaptured(t *testing.T) {
	dir, s, h := ownHealRig(t, "failover")
	require.NoError(t, s.Stop())
	primary, standby := standbyOf(t, dir, false)
	h.connect(primary.URL("postgres"))
	h.gap()
	promote(t, h.captureRig, standby)
	h.exec(`INSERT INTO products SELECT 'never' || i FROM generate_series(1, 5000) i`) // the old primary goes on
	c, stop := h.start()
	h.wait(c)
	require.NoError(t, stop())
	require.NoError(t, primary.Stop())

	h.connect(standby.URL("postgres"))
	before := len(h.records(event.Changes))
	c, stop = h.start()
	h.wait(c)
	h.exec(`INSERT INTO products VALUES ('after', 'A', 1)`)
	h.wait(c)
	require.NoError(t, stop())
	list := h.healings()
	require.Len(t, list, 1)
	require.Equal(t, "timeline", list[0].Healing.Cause)
	require.True(t, list[0].Healing.Back, "transaction ids of the old primary mean others now")
	require.Equal(t, 1, h.back)
	require.Equal(t, []int32{1, 2}, []int32{list[0].Healing.FromTimeline, list[0].Healing.ToTimeline})
	require.Len(t, h.records(event.Changes), before+3, "before, within, after")
}

// needVersion skips a test of what an older server does not have.
func needVersion(t *testing.T, url string, major int, what string) {
	t.Helper()
	db, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer db.Close(t.Context())
	var version int
	require.NoError(t, db.QueryRow(t.Context(), `SELECT current_setting('server_version_num')::int / 10000`).Scan(&version))
	if version < major {
		t.Skipf("the server is PostgreSQL %d, and %s came with %d: SHELFWIRE_TEST_POSTGRES=%d runs it", version, what, major, major)
	}
}

// eventually is true of the other server at some time.
func eventually(t *testing.T, url, sql string) {
	t.Helper()
	r := &captureRig{t: t}
	r.connect(url)
	require.Eventually(t, func() bool {
		var is bool
		require.NoError(t, r.db.QueryRow(t.Context(), sql).Scan(&is))
		return is
	}, time.Minute, 20*time.Millisecond, sql)
	require.NoError(t, r.db.Close(t.Context()))
}

// both is a connection string with two addresses, that leads to the one which is the primary.
func both(t *testing.T, a, b string) string {
	t.Helper()
	one, err := pgx.ParseConfig(a)
	require.NoError(t, err)
	two, err := pgx.ParseConfig(b)
	require.NoError(t, err)
	require.Equal(t, one.Password, two.Password)
	at := "@127.0.0.1:" + strconv.Itoa(int(one.Port))
	return strings.Replace(a, at, at+",127.0.0.1:"+strconv.Itoa(int(two.Port)), 1) + "&target_session_attrs=read-write"
}

// The primary dies while capture runs, in the middle of traffic, and the standby that keeps a copy of the slot takes its
// place: nobody restarts anything, nothing is healed, and the topic has each product of the new primary once.
func TestCaptureGoesOnThroughAFailoverWithASynchronisedSlot(t *testing.T) {
	dir := embeddedtest.Dir(t)
	s := ownServer(t, dir, nil)
	needVersion(t, s.URL("postgres"), 17, "a failover slot")
	r := newCaptureRigOn(t, s.URL("postgres"))
	r.slotName = "failover"
	h := newHealRig(t, r)
	h.exec(`SELECT pg_create_physical_replication_slot('standby', true)`)
	require.NoError(t, s.Stop())
	primary, standby := standbyOf(t, dir, false, map[string]string{"synchronized_standby_slots": "standby"}, map[string]string{
		"sync_replication_slots": "on", "hot_standby_feedback": "on", "primary_slot_name": "standby",
	})
	h.connect(primary.URL("postgres"))
	h.url = both(t, primary.URL("postgres"), standby.URL("postgres"))
	c, stop := h.start()
	h.exec(`INSERT INTO products VALUES ('p1', 'P', 1)`)
	h.wait(c)
	eventually(t, standby.URL("postgres"),
		`SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = 'failover' AND failover AND synced AND NOT temporary)`)

	wrote := make(chan int)
	go func() {
		conn, err := pgx.Connect(context.Background(), primary.URL("postgres"))
		n := 0
		for ; err == nil; n++ {
			_, err = conn.Exec(context.Background(), `INSERT INTO products VALUES ($1, 'T', 1)`, fmt.Sprintf("traffic %d", n))
		}
		wrote <- n
	}()
	records := c.Stats().Records.Load()
	require.Eventually(t, func() bool { return c.Stats().Records.Load() > records+200 }, time.Minute, time.Millisecond)
	primary.Kill()
	t.Logf("%d transactions before the death of the primary", <-wrote)
	promoted := &captureRig{t: t}
	promoted.connect(standby.URL("postgres"))
	promoted.exec(`SELECT pg_promote()`)
	h.db = promoted.db
	h.exec(`INSERT INTO products VALUES ('p2', 'P', 1)`)
	h.wait(c)
	require.NoError(t, stop())
	require.Empty(t, h.healings())
	require.Equal(t, 1, h.touched, "reads may have seen transactions of the old primary whose ids the new one gives again")

	want := map[string]int{}
	rows, err := h.db.Query(t.Context(), `SELECT id FROM products`)
	require.NoError(t, err)
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	for _, id := range ids {
		want["products c "+id] = 1
	}
	got := map[string]int{}
	for _, line := range brief(h.records(event.Changes)) {
		got[line]++
	}
	require.Equal(t, want, got)
	pos, _, err := h.kc.ReadPosition(t.Context(), kafka.CapturePartition, "capture/failover")
	require.NoError(t, err)
	require.EqualValues(t, 2, pos.Timeline)
}

// A slot that nobody reads for too long is given up by the server. The healing says so.
func TestCaptureHealsASlotThatWasIdleForTooLong(t *testing.T) {
	needVersion(t, embeddedtest.Postgres(t).URL("postgres"), 18, "idle_replication_slot_timeout")
	s := ownServer(t, embeddedtest.Dir(t), map[string]string{"idle_replication_slot_timeout": "1s"})
	r := newCaptureRigOn(t, s.URL("postgres"))
	r.slotName = "idle"
	h := newHealRig(t, r)
	h.gap()
	require.Eventually(t, func() bool {
		h.exec(`CHECKPOINT`) // which is when the server looks
		var reason string
		require.NoError(t, h.db.QueryRow(t.Context(), `SELECT coalesce(invalidation_reason, '') FROM pg_replication_slots`).Scan(&reason))
		return reason == "idle_timeout"
	}, time.Minute, 100*time.Millisecond)
	h.cfg.NoHeal = true
	err := h.giveUp()
	require.ErrorContains(t, err, "idle_timeout")
	require.ErrorContains(t, err, `SELECT pg_drop_replication_slot('idle')" && shelfwire run --restart-capture`)
	h.cfg.NoHeal = false
	require.Contains(t, h.healed("lost").Reason, "idle_timeout")
}

// A slot that was made on the standby by hand falls to a conflict with recovery: vacuum on the primary has removed rows
// of the catalog that it needs. After the promotion it is recognised for what it is.
func TestCaptureHealsASlotThatConflictedWithRecovery(t *testing.T) {
	dir := embeddedtest.Dir(t)
	s := ownServer(t, dir, nil)
	needVersion(t, s.URL("postgres"), 16, "a logical slot on a standby")
	r := newCaptureRigOn(t, s.URL("postgres"))
	r.slotName = "conflict"
	h := newHealRig(t, r)
	require.NoError(t, s.Stop())
	primary, standby := standbyOf(t, dir, false)
	h.connect(primary.URL("postgres"))

	made := make(chan error, 1)
	go func() {
		conn, err := pgx.Connect(context.Background(), standby.URL("postgres"))
		if err == nil {
			_, err = conn.Exec(context.Background(), `SELECT pg_create_logical_replication_slot('conflict', 'pgoutput')`)
			_ = conn.Close(context.Background())
		}
		made <- err
	}()
	for done := false; !done; {
		select {
		case err := <-made:
			require.NoError(t, err)
			done = true
		case <-time.After(50 * time.Millisecond):
			h.exec(`SELECT pg_log_standby_snapshot()`) // it waits for one
		}
	}
	h.gap()
	h.exec(`SELECT pg_drop_replication_slot('conflict')`) // the primary's own, which would hold vacuum back
	h.exec(`CREATE TABLE gone (id int)`)
	h.exec(`DROP TABLE gone`)
	h.exec(`VACUUM pg_class`)
	h.exec(`VACUUM pg_attribute`)
	h.exec(`INSERT INTO unrouted VALUES (1)`)
	eventually(t, standby.URL("postgres"), `SELECT conflicting FROM pg_replication_slots`)
	promote(t, h.captureRig, standby)
	require.NoError(t, primary.Stop())
	h.connect(standby.URL("postgres"))
	g := h.healed("lost")
	require.Regexp(t, "rows_removed|conflict", g.Reason)
	require.False(t, g.Back, "nothing that was captured is undone")
}
