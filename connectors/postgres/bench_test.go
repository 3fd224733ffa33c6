package postgres_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/connectors/postgres"
	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/schemas/change"
)

// BenchmarkStream reads rows of about 200 bytes, 100 to a transaction, and encodes them. The rate includes the
// walsender on the same machine.
func BenchmarkStream(b *testing.B) {
	url := embeddedtest.NewDatabase(b, embeddedtest.Postgres(b))
	conn, err := pgx.Connect(b.Context(), url)
	require.NoError(b, err)
	defer func() { _ = conn.Close(context.WithoutCancel(b.Context())) }()
	exec := func(sql string) {
		_, err := conn.PgConn().Exec(b.Context(), sql).ReadAll()
		require.NoError(b, err)
	}
	exec(`CREATE TABLE p (id bigint PRIMARY KEY, shop int, handle text, title text, price numeric(12,2), n int, at timestamptz DEFAULT now(), body text)`)
	src, err := postgres.Open(b.Context(), postgres.Config{URL: url, Slot: "bench"})
	require.NoError(b, err)
	defer src.Close()
	require.NoError(b, src.EnsurePublication(b.Context(), []string{"public.p"}))
	_, err = src.EnsureSlot(b.Context())
	require.NoError(b, err)
	const rows = 300_000
	exec(fmt.Sprintf(`DO $$ BEGIN FOR t IN 0..%d LOOP
		INSERT INTO p SELECT t * 100 + i, 1, 'handle-' || i, 'A title of a product ' || i, 12.50, i, now(), repeat('body ', 16) FROM generate_series(1, 100) i;
		COMMIT; END LOOP; END $$`, rows/100-1))
	exec("SELECT pg_copy_logical_replication_slot('bench', 'bench_eager')")
	b.Run("gulps", func(b *testing.B) { readStream(b, postgres.Config{URL: url, Slot: "bench"}) })
	b.Run("eager", func(b *testing.B) { readStream(b, postgres.Config{URL: url, Slot: "bench_eager", ReadPause: -1}) })
}

func readStream(b *testing.B, cfg postgres.Config) {
	b.Helper()
	src, err := postgres.Open(b.Context(), cfg)
	require.NoError(b, err)
	defer src.Close()
	st, err := src.Stream(b.Context(), 0)
	require.NoError(b, err)
	defer func() { _ = st.Close(context.WithoutCancel(b.Context())) }()

	var record []byte
	bytes := int64(0)
	b.ReportAllocs()
	b.ResetTimer()
	for rows := 0; rows < b.N; {
		ev, err := st.Next(b.Context())
		require.NoError(b, err)
		switch ev.Kind {
		case change.EventChange:
			rows++
			record = change.AppendEnvelope(record[:0], ev.Change, &change.Envelope{Version: "1", Name: "bench", Database: "bench", Transaction: ev.Transaction, At: time.Now()})
			bytes += int64(len(record))
		case change.EventCommit:
			st.Confirm(ev.EndLSN)
		default:
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "rows/s")
	b.ReportMetric(float64(bytes)/float64(b.N), "B/record")
}

// BenchmarkChunk reads chunks of rows of about 200 bytes; one of a row shows what a chunk costs by itself.
func BenchmarkChunk(b *testing.B) {
	url := embeddedtest.NewDatabase(b, embeddedtest.Postgres(b))
	conn, err := pgx.Connect(b.Context(), url)
	require.NoError(b, err)
	defer func() { _ = conn.Close(context.WithoutCancel(b.Context())) }()
	_, err = conn.PgConn().Exec(b.Context(), `
		CREATE TABLE p (id bigint PRIMARY KEY, shop int, handle text, title text, price numeric(12,2), n int, at timestamptz DEFAULT now(), body text);
		INSERT INTO p SELECT i, 1, 'handle-' || i, 'A title of a product ' || i, 12.50, i, now(), repeat('body ', 16) FROM generate_series(1, 300000) i;
		ANALYZE p`).ReadAll()
	require.NoError(b, err)
	src, err := postgres.Open(b.Context(), postgres.Config{URL: url, Slot: "bench"})
	require.NoError(b, err)
	defer src.Close()
	require.NoError(b, src.EnsurePublication(b.Context(), []string{"public.p"}))
	for _, limit := range []int{1, 1000, 2000, 10_000} {
		b.Run(fmt.Sprintf("limit=%d", limit), func(b *testing.B) {
			b.ReportAllocs()
			rows := 0
			q := change.ChunkQuery{Selection: change.Selection{Table: "public.p"}, Limit: limit}
			for b.Loop() {
				c, err := src.ReadChunk(b.Context(), q)
				require.NoError(b, err)
				rows += len(c.Rows)
				if q.After = c.LastKey; c.Done {
					q.After = nil
				}
			}
			b.ReportMetric(float64(rows)/b.Elapsed().Seconds(), "rows/s")
		})
	}
	b.Run("mark", func(b *testing.B) {
		for b.Loop() {
			_, err := src.EmitMessage(b.Context(), "shelfwire.watermark", []byte("x"))
			require.NoError(b, err)
		}
	})
}
