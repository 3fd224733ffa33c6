package embeddedtest_test

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	chgo "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/deploy/embedded/postgres"
)

func TestMain(m *testing.M) { embeddedtest.Main(m) }

// A test that leaves connections and slots behind must not break the next one.
func TestNewDatabaseIsDroppedWithItsSlots(t *testing.T) {
	s := embeddedtest.Postgres(t)
	var url string
	t.Run("leave a slot and a connection", func(t *testing.T) {
		url = embeddedtest.NewDatabase(t, s)
		c, err := pgx.Connect(t.Context(), url)
		require.NoError(t, err)
		_, err = c.Exec(t.Context(), "SELECT pg_create_logical_replication_slot('left_behind', 'pgoutput')")
		require.NoError(t, err)
	})
	_, err := pgx.Connect(t.Context(), url)
	require.ErrorContains(t, err, "does not exist")
	c, err := pgx.Connect(t.Context(), s.URL("postgres"))
	require.NoError(t, err)
	defer c.Close(t.Context())
	var slots int
	require.NoError(t, c.QueryRow(t.Context(), "SELECT count(*) FROM pg_replication_slots").Scan(&slots))
	require.Zero(t, slots)
}

// A test's own topics are there for it, and gone for the next.
func TestKafka(t *testing.T) {
	var name, addr string
	t.Run("write", func(t *testing.T) {
		b := embeddedtest.Kafka(t, map[string]int32{"topic": 3})
		name, addr = b.Prefix()+"topic", b.Addr()
		c, err := kgo.NewClient(kgo.SeedBrokers(addr), kgo.DefaultProduceTopic(name))
		require.NoError(t, err)
		defer c.Close()
		require.NoError(t, c.ProduceSync(t.Context(), kgo.StringRecord("x")).FirstErr())
	})
	if !embeddedtest.NeedsJava(t) {
		return // the broker is gone
	}
	c, err := kgo.NewClient(kgo.SeedBrokers(addr))
	require.NoError(t, err)
	defer c.Close()
	topics, err := kadm.NewClient(c).ListTopics(t.Context())
	require.NoError(t, err)
	require.NotContains(t, topics, name)
}

// Several brokers of a test's own come back on their data and address.
func TestStartKafka(t *testing.T) {
	dir := filepath.Join(embeddedtest.Dir(t), "kafka")
	s, err := embeddedtest.StartKafka(t.Context(), dir, 0)
	require.NoError(t, err)
	_, port, err := net.SplitHostPort(s.Addr())
	require.NoError(t, err)
	s.Kill()
	<-s.Done()
	number, err := strconv.Atoi(port)
	require.NoError(t, err)
	again, err := embeddedtest.StartKafka(t.Context(), dir, number)
	require.NoError(t, err)
	require.Equal(t, s.Addr(), again.Addr())
	require.NoError(t, again.Stop())
}

func TestPostgresIsTheVersionAskedFor(t *testing.T) {
	s := embeddedtest.Postgres(t)
	c, err := pgx.Connect(t.Context(), s.URL("postgres"))
	require.NoError(t, err)
	defer c.Close(t.Context())
	var got string
	require.NoError(t, c.QueryRow(t.Context(), "SELECT current_setting('server_version_num')::int / 10000 || ''").Scan(&got))
	if want := os.Getenv("SHELFWIRE_TEST_POSTGRES"); want != "" {
		require.Equal(t, want, got)
	}
	t.Setenv("SHELFWIRE_TEST_POSTGRES", "newest")
	_, err = embeddedtest.StartPostgres(t.Context(), postgres.Config{Dir: embeddedtest.Dir(t)})
	require.ErrorContains(t, err, "SHELFWIRE_TEST_POSTGRES=newest")
}

func TestClickHouse(t *testing.T) {
	opts, err := chgo.ParseDSN(embeddedtest.NewClickHouseDatabase(t, embeddedtest.ClickHouse(t)))
	require.NoError(t, err)
	conn, err := chgo.Open(opts)
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.Exec(t.Context(), "CREATE TABLE t (n UInt64) ENGINE = MergeTree ORDER BY n"))
	require.NoError(t, conn.Exec(t.Context(), "INSERT INTO t SELECT number FROM numbers(1000)"))
	var n uint64
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT count() FROM t").Scan(&n))
	require.EqualValues(t, 1000, n)
}
