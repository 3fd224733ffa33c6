package embeddedtest_test

import (
	"testing"

	chgo "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
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

func TestKafka(t *testing.T) {
	b := embeddedtest.Kafka(t, map[string]int32{"topic": 3})
	c, err := kgo.NewClient(kgo.SeedBrokers(b.Addr()), kgo.DefaultProduceTopic("topic"))
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.ProduceSync(t.Context(), kgo.StringRecord("x")).FirstErr())
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
