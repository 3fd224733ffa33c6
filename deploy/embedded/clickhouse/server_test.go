package clickhouse_test

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	chgo "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/deploy/embedded/clickhouse"
	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/deploy/embedded/internal/childtest"
	"github.com/shelfwire/shelfwire/deploy/embedded/internal/host"
)

func TestMain(m *testing.M) {
	childtest.Hook(func(dir string) (int, error) {
		s, err := clickhouse.Start(context.Background(), clickhouse.Config{Dir: dir})
		if err != nil {
			return 0, err
		}
		return s.PID(), nil
	})
	embeddedtest.Main(m)
}

func start(t *testing.T, c clickhouse.Config) *clickhouse.Server {
	t.Helper()
	s, err := clickhouse.Start(t.Context(), c)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Stop()) })
	return s
}

func connect(t *testing.T, url string) chgo.Conn {
	t.Helper()
	opts, err := chgo.ParseDSN(url)
	require.NoError(t, err)
	conn, err := chgo.Open(opts)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// What was acknowledged is there after a crash, under the same address.
func TestRestartAfterKill(t *testing.T) {
	dir := filepath.Join(t.TempDir(), `a "dir" with 'odd' & <wide> names ä`)
	s := start(t, clickhouse.Config{Dir: dir})
	conn := connect(t, s.URL("default"))
	for _, statement := range []string{
		"CREATE DATABASE d", "CREATE TABLE d.t (n UInt64) ENGINE = MergeTree ORDER BY n", "INSERT INTO d.t SELECT number FROM numbers(1000)",
	} {
		require.NoError(t, conn.Exec(t.Context(), statement))
	}
	s.Kill()
	require.Error(t, conn.Ping(t.Context()))

	again := start(t, clickhouse.Config{Dir: dir, Port: s.Port(), HTTPPort: s.HTTPPort()})
	require.Equal(t, s.URL("d"), again.URL("d"))
	var n uint64
	require.Eventually(t, func() bool { // the pool first notices its dead connections
		return conn.QueryRow(t.Context(), "SELECT count() FROM d.t").Scan(&n) == nil
	}, 10*time.Second, 10*time.Millisecond)
	require.EqualValues(t, 1000, n)
	require.NoError(t, conn.Close())
}

// One wrong password on the native port ends an engine that is not interactive.
func TestBadClientsDoNotEndTheEngine(t *testing.T) {
	s := embeddedtest.ClickHouse(t)
	for _, url := range []string{
		fmt.Sprintf("clickhouse://%s:wrong@%s/default", s.User(), s.Addr()),
		fmt.Sprintf("clickhouse://nobody@%s/default", s.Addr()),
		s.URL("no_such_database"),
	} {
		require.Error(t, connect(t, url).Ping(t.Context()), url)
	}
	for _, addr := range []string{s.Addr(), s.HTTPAddr()} {
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr)
		require.NoError(t, err)
		_, err = conn.Write([]byte("\x00garbage\xff\r\n\r\n"))
		require.NoError(t, err)
		require.NoError(t, conn.Close())
	}
	require.NoError(t, connect(t, s.URL("default")).Ping(t.Context()))
}

// The engine insists on a user default without a password: it may do nothing.
func TestTheDefaultUserMayNothing(t *testing.T) {
	s := embeddedtest.ClickHouse(t)
	conn := connect(t, "clickhouse://default@"+s.Addr()+"/default")
	for _, statement := range []string{
		"SELECT * FROM file('/etc/passwd', 'LineAsString')", "CREATE DATABASE d", "SELECT * FROM system.users",
	} {
		require.ErrorContains(t, conn.Exec(t.Context(), statement), "Not enough privileges", statement)
	}
}

func TestSecondStartOnTheSameDirectory(t *testing.T) {
	dir := t.TempDir()
	start(t, clickhouse.Config{Dir: dir})
	_, err := clickhouse.Start(t.Context(), clickhouse.Config{Dir: dir})
	require.ErrorIs(t, err, host.ErrLocked)
	require.ErrorContains(t, err, dir)
}

func TestPortInUse(t *testing.T) {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	require.NoError(t, err)
	n, err := strconv.Atoi(port)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err = clickhouse.Start(ctx, clickhouse.Config{Dir: t.TempDir(), Port: n})
	require.ErrorContains(t, err, "Address already in use")
}

// A parent that is killed cannot clean up: its engine must go by itself.
func TestEngineEndsWithAKilledParent(t *testing.T) {
	dir := t.TempDir()
	childtest.KillParent(t, dir)
	start(t, clickhouse.Config{Dir: dir})
}
