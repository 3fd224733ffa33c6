package clickhouse

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	chgo "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/schemas/event"
)

func TestMain(m *testing.M) { embeddedtest.Main(m) }

// open gives a migrated database on the real engine.
func open(t *testing.T, change ...func(*Config)) *DB {
	t.Helper()
	cfg, err := ParseURL(embeddedtest.NewClickHouseDatabase(t, embeddedtest.ClickHouse(t)))
	require.NoError(t, err)
	for _, c := range change {
		c(&cfg)
	}
	db, err := Open(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	require.NoError(t, db.Migrate(t.Context()))
	return db
}

var (
	topicA = [16]byte{0xa, 1}
	topicB = [16]byte{0xb, 2}
	noon   = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
)

// records makes one record for each value, at offsets from first on, a second apart.
func records(t *testing.T, topic string, partition int32, first int64, values ...any) []event.Record {
	t.Helper()
	out := make([]event.Record, len(values))
	for i, v := range values {
		out[i] = event.Record{
			Topic: "catalog." + topic, Partition: partition, Offset: first + int64(i),
			Timestamp: noon.Add(time.Duration(first+int64(i)) * time.Second),
		}
		switch v := v.(type) {
		case []byte:
			out[i].Value = v
		case event.Record:
			out[i].Key, out[i].Value, out[i].Headers = v.Key, v.Value, v.Headers
		default:
			b, err := json.Marshal(v)
			require.NoError(t, err)
			out[i].Value = b
		}
	}
	return out
}

func outcomeOf(n int) event.Outcome {
	at := noon.Add(time.Duration(n) * time.Millisecond)
	return event.Outcome{
		ID: fmt.Sprint("o", n), ProductID: fmt.Sprint("p", n%7), Shop: "eu", Status: event.Success, Lane: "live",
		Changes: 3, PointsRequested: 12, PointsActual: 10, FirstCommit: at, LastCommit: at.Add(time.Millisecond),
		SentAt: at.Add(100 * time.Millisecond), AnsweredAt: at.Add(350 * time.Millisecond), SettledAt: at.Add(time.Second),
		VariantIDs: []string{"v1", "v2"},
	}
}

func count(t *testing.T, db *DB, from string) (n uint64) {
	t.Helper()
	require.NoError(t, db.conn.QueryRow(t.Context(), "SELECT count() FROM "+from).Scan(&n))
	return n
}

func insert(t *testing.T, db *DB, topic string, id [16]byte, rs []event.Record, token string) int {
	t.Helper()
	in, err := db.Insert(t.Context(), topic, id, rs, token)
	require.NoError(t, err)
	return in.Malformed
}

func TestMigrateCanBeRepeatedAndChangesOnlySettings(t *testing.T) {
	db := open(t)
	insert(t, db, event.Outcomes, topicA, records(t, event.Outcomes, 0, 0, outcomeOf(1)), "a")
	require.NoError(t, db.Migrate(t.Context()))
	for _, days := range []int{30, 30, 7, 0} {
		db.cfg.Retention = time.Duration(days) * 24 * time.Hour
		db.cfg.Refresh = time.Duration(days*3607+60) * time.Second
		require.NoError(t, db.Migrate(t.Context()))
		var engine, made string
		require.NoError(t, db.conn.QueryRow(t.Context(), "SELECT engine_full FROM system.tables WHERE database = currentDatabase() AND name = 'outcomes_rows'").Scan(&engine))
		require.NoError(t, db.conn.QueryRow(t.Context(), "SELECT create_table_query FROM system.tables WHERE database = currentDatabase() AND name = 'hourly_points'").Scan(&made))
		if days == 0 {
			require.NotContains(t, engine, " TTL ")
		} else {
			require.Contains(t, engine, fmt.Sprintf("toIntervalDay(%d)", days))
		}
		require.Contains(t, made, "REFRESH AFTER "+interval(db.cfg.Refresh)+" (")
	}
	require.EqualValues(t, 1, count(t, db, "outcomes"))
}

// A database of the first version gets what came later, and its rows stay as they are.
func TestMigrateBringsOldDatabasesUpToDate(t *testing.T) {
	cfg, err := ParseURL(embeddedtest.NewClickHouseDatabase(t, embeddedtest.ClickHouse(t)))
	require.NoError(t, err)
	db, err := Open(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	require.NoError(t, db.conn.Exec(t.Context(), "CREATE TABLE migrations (version UInt32, name String, applied_at DateTime64(3, 'UTC')) ENGINE = ReplacingMergeTree ORDER BY version"))
	all, err := readMigrations(migrations)
	require.NoError(t, err)
	for _, m := range all[:3] {
		require.NoError(t, db.apply(t.Context(), m))
	}
	require.NoError(t, db.conn.Exec(t.Context(), `INSERT INTO outcomes_rows (topic_id, partition, offset, timestamp, product_id, status, settled_at)
		VALUES ({id:UUID}, 0, 3, now64(3), 'old', 'SUCCESS', now64(6))`, chgo.Named("id", formatUUID(topicA))))
	require.NoError(t, db.conn.Exec(t.Context(), "ALTER TABLE outcomes_rows MODIFY TTL toDateTime(timestamp) + toIntervalDay(30)"))
	db.cfg.Retention = 30 * 24 * time.Hour
	require.NoError(t, db.Migrate(t.Context()))
	insert(t, db, event.Outcomes, topicA, records(t, event.Outcomes, 0, 4, outcomeOf(4)), "a")
	require.EqualValues(t, 1, count(t, db, "outcomes WHERE product_id = 'old' AND loaded_at IS NULL"))
	require.EqualValues(t, 1, count(t, db, "outcomes WHERE product_id = 'p4' AND loaded_at IS NOT NULL"))
	require.EqualValues(t, 1, count(t, db, "latencies WHERE step = 'settled_to_clickhouse'"))
	ends, err := db.Begin(t.Context(), event.Outcomes, topicA)
	require.NoError(t, err)
	require.Equal(t, map[int32]int64{0: 5}, ends)
	require.EqualValues(t, 1, count(t, db, "system.tables WHERE database = currentDatabase() AND name = 'outcomes_rows' AND engine_full LIKE '%greatest(least(timestamp%'"))
}

func TestMigrateMakesTheDatabaseAndMayRunInManyProcesses(t *testing.T) {
	cfg, err := ParseURL(embeddedtest.NewClickHouseDatabase(t, embeddedtest.ClickHouse(t)))
	require.NoError(t, err)
	cfg.Database += "`odd\\name"
	done := make(chan error)
	for range 4 {
		go func() {
			db, err := Open(cfg)
			if err == nil {
				err = db.Migrate(context.WithoutCancel(t.Context()))
				_ = db.Close()
			}
			done <- err
		}()
	}
	for range 4 {
		require.NoError(t, <-done)
	}
	db, err := Open(cfg)
	require.NoError(t, err)
	require.EqualValues(t, 0, count(t, db, "outcomes"))
	require.NoError(t, db.conn.Exec(t.Context(), "DROP DATABASE "+quoteName(cfg.Database)+" SYNC"))
	require.NoError(t, db.Close())
}

func TestARepeatedRowIsTheSameRow(t *testing.T) {
	db := open(t)
	var values []any
	for n := range 100 {
		values = append(values, outcomeOf(n))
	}
	all := records(t, event.Outcomes, 3, 1000, values...)
	insert(t, db, event.Outcomes, topicA, all, "1000..1099")
	insert(t, db, event.Outcomes, topicA, all, "1000..1099") // recognised by its token
	require.EqualValues(t, 100, count(t, db, "outcomes_rows"))
	insert(t, db, event.Outcomes, topicA, all[:40], "1000..1039") // as a loader that was killed cuts it
	insert(t, db, event.Outcomes, topicA, all[30:], "1030..1099")
	require.Greater(t, count(t, db, "outcomes_rows"), uint64(100))
	require.EqualValues(t, 100, count(t, db, "outcomes"))

	var pushes, changes uint64
	var actual float64
	require.NoError(t, db.conn.QueryRow(t.Context(),
		"SELECT sum(pushes), toUInt64(sum(changes_coalesced)), sum(actual) FROM points_spent").Scan(&pushes, &changes, &actual))
	require.EqualValues(t, 100, pushes)
	require.EqualValues(t, 300, changes)
	require.InDelta(t, 1000.0, actual, 0.001)

	require.NoError(t, db.Refresh(t.Context()))
	for aggregate, view := range map[string]string{"hourly_points": "points_spent", "hourly_latency": "latency_by_step_hour", "hourly_failures": "failures_by_cause_hour"} {
		var differ uint64
		require.NoError(t, db.conn.QueryRow(t.Context(), fmt.Sprintf(
			"SELECT (SELECT count() FROM (SELECT * FROM %[1]s EXCEPT SELECT * FROM %[2]s)) + (SELECT count() FROM (SELECT * FROM %[2]s EXCEPT SELECT * FROM %[1]s))", aggregate, view)).Scan(&differ))
		require.Zero(t, differ, aggregate)
	}
}
