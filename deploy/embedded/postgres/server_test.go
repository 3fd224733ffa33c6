package postgres_test

import (
	"context"
	"net/url"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/deploy/embedded/internal/childtest"
	"github.com/shelfwire/shelfwire/deploy/embedded/internal/host"
	"github.com/shelfwire/shelfwire/deploy/embedded/postgres"
)

func TestMain(m *testing.M) {
	childtest.Hook(func(dir string) (int, error) {
		s, err := postgres.Start(context.Background(), postgres.Config{Dir: dir})
		if err != nil {
			return 0, err
		}
		return s.PID(), nil
	})
	embeddedtest.Main(m)
}

func start(t *testing.T, c postgres.Config) *postgres.Server {
	t.Helper()
	s, err := postgres.Start(t.Context(), c)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Stop()) })
	return s
}

func query(t *testing.T, url, sql string) string {
	t.Helper()
	c, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer c.Close(t.Context())
	var result string
	require.NoError(t, c.QueryRow(t.Context(), sql).Scan(&result))
	return result
}

// What was committed, and a slot, are there after a crash, under the same address.
func TestRestartAfterKill(t *testing.T) {
	dir := embeddedtest.Dir(t)
	s := start(t, postgres.Config{Dir: dir})
	require.Equal(t, "logical", query(t, s.URL("postgres"), "SHOW wal_level"))
	query(t, s.URL("postgres"), "SELECT slot_name FROM pg_create_logical_replication_slot('kept', 'pgoutput')")
	c, err := pgx.Connect(t.Context(), s.URL("postgres"))
	require.NoError(t, err)
	defer c.Close(t.Context())
	_, err = c.Exec(t.Context(), "CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")
	require.NoError(t, err)

	s.Kill()
	require.Error(t, c.Ping(t.Context()))

	again := start(t, postgres.Config{Dir: dir, Port: s.Port(), Params: map[string]string{"work_mem": "5MB"}})
	require.Equal(t, s.URL("postgres"), again.URL("postgres"))
	require.Equal(t, "1000", query(t, again.URL("postgres"), "SELECT count(*)::text FROM t"))
	require.Equal(t, "kept", query(t, again.URL("postgres"), "SELECT slot_name FROM pg_replication_slots"))
	require.Equal(t, "5MB", query(t, again.URL("postgres"), "SHOW work_mem"))
	require.Contains(t, again.Log(), "recovery", "the log is that of this run")
}

// A backend whose postmaster is killed alone finishes its statement and commits.
// A crash must not: what is read after it must stay what it was.
func TestKillTakesTheBackends(t *testing.T) {
	dir := embeddedtest.Dir(t)
	s := start(t, postgres.Config{Dir: dir})
	c, err := pgx.Connect(t.Context(), s.URL("postgres"))
	require.NoError(t, err)
	_, err = c.Exec(t.Context(), "CREATE TABLE t (n int)")
	require.NoError(t, err)
	result := make(chan error, 1)
	go func() {
		// Busy, not asleep: a backend that waits notices the end of its postmaster.
		_, err := c.Exec(context.Background(), "INSERT INTO t SELECT count(*) FROM generate_series(1, 50000000)")
		result <- err
	}()
	require.Eventually(t, func() bool {
		return query(t, s.URL("postgres"), "SELECT count(*)::text FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'INSERT%'") == "1"
	}, 10*time.Second, time.Millisecond)
	s.Kill()
	require.Error(t, <-result)
	again := start(t, postgres.Config{Dir: dir, Port: s.Port()})
	require.Equal(t, "0", query(t, again.URL("postgres"), "SELECT count(*)::text FROM t"))
}

// A crash from outside, as a torture test makes it, is seen, and once it is seen
// the next start succeeds.
func TestDoneAfterACrashFromOutside(t *testing.T) {
	dir := embeddedtest.Dir(t)
	for range 5 {
		s := start(t, postgres.Config{Dir: dir})
		require.NoError(t, syscall.Kill(s.PID(), syscall.SIGKILL))
		<-s.Done()
	}
}

func TestSecondStartOnTheSameDirectory(t *testing.T) {
	dir := embeddedtest.Dir(t)
	s := start(t, postgres.Config{Dir: dir})
	_, err := postgres.Start(t.Context(), postgres.Config{Dir: dir})
	require.ErrorIs(t, err, host.ErrLocked)
	require.ErrorContains(t, err, dir)
	require.Equal(t, "1", query(t, s.URL("postgres"), "SELECT '1'"), "the first one does not notice")
}

func TestServerEndsWithAKilledParent(t *testing.T) {
	dir := embeddedtest.Dir(t)
	childtest.KillParent(t, dir)
	start(t, postgres.Config{Dir: dir})
}

func TestWrongPassword(t *testing.T) {
	s := embeddedtest.Postgres(t)
	u, err := url.Parse(s.URL("postgres"))
	require.NoError(t, err)
	u.User = url.UserPassword("postgres", "wrong")
	_, err = pgx.Connect(t.Context(), u.String())
	var refused *pgconn.PgError
	require.ErrorAs(t, err, &refused)
	require.Equal(t, "28P01", refused.Code)
}

// The account that the server runs under when its caller is root cannot enter
// t.TempDir: that is said by name, not by an error of initdb.
func TestUnreachableDirectory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root has to run the server under another account")
	}
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o700))
	_, err := postgres.Start(t.Context(), postgres.Config{Dir: dir + "/data"})
	require.ErrorContains(t, err, "cannot enter "+dir)
}

func TestABrokenSettingSaysSo(t *testing.T) {
	_, err := postgres.Start(t.Context(), postgres.Config{Dir: embeddedtest.Dir(t), Params: map[string]string{"no_such": "1"}})
	require.ErrorContains(t, err, `unrecognized configuration parameter "no_such"`)
}
