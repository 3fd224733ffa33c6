// Package embeddedtest gives tests real services: one PostgreSQL and one
// ClickHouse for a test binary, started by the first test that asks, and Kafka
// brokers in memory.
//
// Two variables of the environment choose others, so that the same tests run on
// what a user may have:
//
//	SHELFWIRE_TEST_POSTGRES  major version: 14 to 18; default: what is there
//	SHELFWIRE_TEST_KAFKA     kfake (default), or apache for a real broker
//
//	func TestMain(m *testing.M) { embeddedtest.Main(m) }
//
//	func TestCapture(t *testing.T) {
//		url := embeddedtest.NewDatabase(t, embeddedtest.Postgres(t))
//		broker := embeddedtest.Kafka(t)
//		...
//	}
//
// Data lies in a directory of the user's cache, because the account that
// PostgreSQL runs under when its caller is root cannot enter t.TempDir. What a
// killed test binary leaves there, the next one removes.
package embeddedtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/shelfwire/shelfwire/deploy/embedded"
	"github.com/shelfwire/shelfwire/deploy/embedded/apachekafka"
	"github.com/shelfwire/shelfwire/deploy/embedded/clickhouse"
	"github.com/shelfwire/shelfwire/deploy/embedded/internal/host"
	"github.com/shelfwire/shelfwire/deploy/embedded/postgres"
)

// startTimeout bounds the start of a service, a first download included.
const startTimeout = 5 * time.Minute

// shared are the services of this test binary, zero until asked for.
var shared struct {
	sync.Mutex
	scratch  *host.Scratch
	postgres *postgres.Server
	engine   *clickhouse.Server
	broker   *apachekafka.Broker
	// real are the addresses of that and of other real brokers.
	real []string
}

// Main runs the tests of a package and stops what they have shared. It belongs
// into TestMain, as its first and only statement. The test framework takes the
// exit code from m.
func Main(m *testing.M) {
	embedded.ChildHook()
	m.Run()
	if err := stop(); err != nil {
		fmt.Fprintln(os.Stderr, "embeddedtest:", err)
	}
}

func stop() error {
	shared.Lock()
	defer shared.Unlock()
	var err error
	if shared.engine != nil {
		err = shared.engine.Stop()
	}
	if shared.postgres != nil {
		err = errors.Join(err, shared.postgres.Stop())
	}
	if shared.broker != nil {
		shared.broker.Kill() // its directory goes too
	}
	if shared.scratch != nil {
		err = errors.Join(err, shared.scratch.Remove())
	}
	return err
}

// Dir is a fresh directory that PostgreSQL can use also when the caller is root.
// It is removed after the test: stop the server in it before, by t.Cleanup or
// defer.
func Dir(tb testing.TB) string {
	tb.Helper()
	shared.Lock()
	defer shared.Unlock()
	base, err := scratch()
	if err != nil {
		tb.Fatal(err)
	}
	dir, err := os.MkdirTemp(base, "dir-") //nolint:usetesting // that PostgreSQL's account cannot enter tb.TempDir is why this function exists
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Error(err)
		}
	})
	return dir
}

// scratch is the directory of this test binary, made at the first call. shared
// is locked.
func scratch() (string, error) {
	if shared.scratch != nil {
		return shared.scratch.Path, nil
	}
	base, err := host.BaseDir("shelfwire")
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	shared.scratch, err = host.NewScratch(ctx, filepath.Join(base, "test"))
	if err != nil {
		return "", err
	}
	return shared.scratch.Path, nil
}

// Postgres is the server that the tests of this binary share. Take a database
// of your own from [NewDatabase]; do not stop the server.
func Postgres(tb testing.TB) *postgres.Server {
	tb.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.postgres != nil {
		return shared.postgres
	}
	dir, err := scratch()
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	s, err := StartPostgres(ctx, postgres.Config{Dir: filepath.Join(dir, "postgres"), Progress: func(m string) { tb.Log(m) }})
	if err != nil {
		tb.Fatal(err)
	}
	shared.postgres = s
	return s
}

// StartPostgres starts a server of the caller's own, which stops it, with the
// version that tests are to run on.
func StartPostgres(ctx context.Context, c postgres.Config) (*postgres.Server, error) {
	major, err := postgresMajor()
	if err != nil {
		return nil, err
	}
	c.Major = major
	return postgres.Start(ctx, c)
}

// NewDatabase creates an empty database and returns its connection string. After
// the test, its connections are cut, its replication slots dropped, and the
// database too.
func NewDatabase(tb testing.TB, s *postgres.Server) string {
	tb.Helper()
	name := "test_" + strings.ToLower(rand.Text())
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if err := admin(ctx, s, func(c *pgx.Conn) error {
		_, err := c.Exec(ctx, "CREATE DATABASE "+name)
		return err
	}); err != nil {
		tb.Fatalf("create a database: %v", err)
	}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := admin(ctx, s, func(c *pgx.Conn) error { return drop(ctx, c, name) }); err != nil {
			tb.Errorf("drop the database of the test: %v", err)
		}
	})
	return s.URL(name)
}

func admin(ctx context.Context, s *postgres.Server, do func(*pgx.Conn) error) error {
	c, err := pgx.Connect(ctx, s.URL("postgres"))
	if err != nil {
		return err
	}
	return errors.Join(do(c), c.Close(ctx))
}

// drop removes a database with its slots. A slot can be dropped only when its
// walsender has gone, which takes a moment after it was told to.
func drop(ctx context.Context, c *pgx.Conn, name string) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		var left int
		err := c.QueryRow(ctx, `
			SELECT count(*) FROM pg_replication_slots s
			WHERE s.database = $1 AND CASE WHEN s.active_pid IS NULL
				THEN pg_drop_replication_slot(s.slot_name) IS NULL
				ELSE pg_terminate_backend(s.active_pid) IS NULL END`, name).Scan(&left)
		if err == nil {
			if err = c.QueryRow(ctx, "SELECT count(*) FROM pg_replication_slots WHERE database = $1", name).Scan(&left); err != nil {
				return err
			}
			if left == 0 {
				_, err = c.Exec(ctx, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)")
				return err
			}
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-tick.C:
		}
	}
}

// ClickHouse is the engine that the tests of this binary share. Take a database
// of your own from [NewClickHouseDatabase]; do not stop the engine.
func ClickHouse(tb testing.TB) *clickhouse.Server {
	tb.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.engine != nil {
		return shared.engine
	}
	dir, err := scratch()
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	s, err := clickhouse.Start(ctx, clickhouse.Config{Dir: filepath.Join(dir, "clickhouse"), Progress: func(m string) { tb.Log(m) }})
	if err != nil {
		tb.Fatal(err)
	}
	shared.engine = s
	return s
}

// NewClickHouseDatabase creates an empty database and returns its connection
// string. It is dropped after the test. Close clients before the test ends, or
// the end of the test binary takes 5 s longer.
func NewClickHouseDatabase(tb testing.TB, s *clickhouse.Server) string {
	tb.Helper()
	name := "test_" + strings.ToLower(rand.Text())
	if err := statement(s, "CREATE DATABASE "+name); err != nil {
		tb.Fatalf("create a database: %v", err)
	}
	tb.Cleanup(func() {
		if err := statement(s, "DROP DATABASE "+name+" SYNC"); err != nil {
			tb.Errorf("drop the database of the test: %v", err)
		}
	})
	return s.URL(name)
}

// statement runs over HTTP, so that a test that needs no ClickHouse does not
// have its driver linked in.
func statement(s *clickhouse.Server, sql string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+s.HTTPAddr()+"/?wait_end_of_query=1", strings.NewReader(sql))
	if err != nil {
		return err
	}
	req.Close = true // a connection kept alive would delay the engine's end
	req.SetBasicAuth(s.User(), s.Password())
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil || resp.StatusCode != http.StatusOK {
		return errors.Join(fmt.Errorf("%s: %s: %s", sql, resp.Status, answer), err)
	}
	return nil
}
