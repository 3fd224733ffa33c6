package clickhouse

import (
	"encoding/json"
	"fmt"
	"testing"

	chgo "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/schemas/event"
)

// BenchmarkInsert compares the way of an outcome from its bytes into its table with plain inserts of the same rows by the
// driver, without tokens, identity or fsync.
func BenchmarkInsert(b *testing.B) {
	cfg, err := ParseURL(embeddedtest.NewClickHouseDatabase(b, embeddedtest.ClickHouse(b)))
	require.NoError(b, err)
	db, err := Open(cfg)
	require.NoError(b, err)
	defer func() { require.NoError(b, db.Close()) }()
	require.NoError(b, db.Migrate(b.Context()))
	const size = 4_000
	outcomes := make([]event.Outcome, size)
	rs := make([]event.Record, size)
	for i := range rs {
		outcomes[i] = outcomeOf(i)
		value, err := json.Marshal(outcomes[i])
		require.NoError(b, err)
		rs[i] = event.Record{Key: []byte(outcomes[i].ProductID), Value: value, Timestamp: noon}
	}
	b.Run("load", func(b *testing.B) {
		first := int64(0)
		for b.Loop() {
			for i := range rs {
				rs[i].Offset = first + int64(i)
			}
			_, err := db.Insert(b.Context(), event.Outcomes, topicA, rs, fmt.Sprint(first))
			require.NoError(b, err)
			first += size
		}
		b.ReportMetric(size*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
	})
	b.Run("plain", func(b *testing.B) {
		require.NoError(b, db.conn.Exec(b.Context(), "CREATE OR REPLACE TABLE plain AS outcomes_rows ENGINE = MergeTree ORDER BY (timestamp, offset)"))
		require.NoError(b, db.conn.Exec(b.Context(), "ALTER TABLE plain DROP PROJECTION ends"))
		offset := uint64(0)
		for b.Loop() {
			batch, err := db.conn.PrepareBatch(chgo.Context(b.Context()), "INSERT INTO plain")
			require.NoError(b, err)
			for i := range outcomes {
				o := &outcomes[i]
				require.NoError(b, batch.Append(formatUUID(topicA), int32(0), offset, noon, o.ID, o.ProductID, o.Shop, string(o.Status),
					string(o.Category), o.Reason, o.Message, o.Field, o.ShopifyID, o.VariantIDs, o.BatchIDs, o.Lane, int32(o.Attempt), o.Plan,
					o.Sent, o.SentHash, o.PointsRequested, o.PointsActual, int64(o.Changes), nullable(o.FirstCommit), nullable(o.LastCommit),
					nullable(o.CapturedAt), nullable(o.DueAt), nullable(o.ReadAt), nullable(o.SentAt), nullable(o.AnsweredAt),
					nullable(o.SettledAt), o.DocumentHash, nullable(o.NextAttempt), nullable(noon)))
				offset++
			}
			require.NoError(b, batch.Send())
		}
		b.ReportMetric(size*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
	})
}
