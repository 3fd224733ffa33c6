package postgres_test

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/connectors/postgres"
	"github.com/shelfwire/shelfwire/schemas/change"
)

// busy has the only connection of the pool taken for longer than the server waits for a sign of life.
func busy(t *testing.T, d *database, src *postgres.Source, took time.Duration) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		const sql = `SELECT x AS product_id, 's' AS shop, NULL::jsonb AS document FROM unnest($1::text[]) x, pg_sleep(`
		_, _, _, _ = src.Documents(t.Context(), sql+strconv.FormatFloat(took.Seconds(), 'f', 1, 64)+")", []change.ProductID{"a"}) // the test's end may come first
	}()
	t.Cleanup(func() { <-done })
	require.Eventually(t, func() bool {
		return d.text(`SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'`) == "1"
	}, 10*time.Second, 10*time.Millisecond)
}

// The stream asks the catalog about a table that it meets, and at its start about the slot. The server hears of it also
// while all connections of the pool are in other hands.
func TestStreamLivesWhileItWaitsForTheCatalog(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE f (id int PRIMARY KEY, title text); ALTER TABLE f REPLICA IDENTITY FULL`)
	src := d.captureWith(func(c *postgres.Config) { c.MaxConns = 1; c.SenderTimeout = time.Second }, "public.f")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	began := d.text(`SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = current_database()`)
	busy(t, d, src, 2*time.Second)
	st, err := src.Stream(ctx, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = st.Close(context.WithoutCancel(t.Context())) })
	require.Equal(t, began, d.text(`SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = current_database()`),
		"a sign of life confirms nothing")

	busy(t, d, src, 2*time.Second)
	d.exec(`INSERT INTO f VALUES (1, 'x')`)
	for {
		ev, err := st.Next(ctx)
		require.NoError(t, err)
		if ev.Kind == change.EventChange {
			require.Equal(t, []string{"id"}, ev.Change.Relation.PrimaryKey)
			return
		}
	}
}
