package demo_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/demo"
)

var paths = []demo.Path{
	demo.PathUpdate, demo.PathCopy, demo.PathMerge, demo.PathFunction, demo.PathCascade, demo.PathBulk, demo.PathScript, demo.PathHTTP,
}

func TestTrafficDoesEveryKindByEveryPath(t *testing.T) {
	conn, url := install(t)
	require.NoError(t, demo.Generate(t.Context(), conn, demo.Config{Products: 300, Seed: 11}))
	_, err := conn.Exec(t.Context(), `SELECT pg_create_logical_replication_slot('seen', 'pgoutput'); CREATE PUBLICATION seen FOR ALL TABLES`)
	require.NoError(t, err)
	traffic := demo.NewTraffic(demo.TrafficConfig{URL: url, Duration: 3 * time.Second, Seed: 11, Rate: 100})
	require.NoError(t, traffic.Run(t.Context()))

	stats, marks := traffic.Stats(), traffic.Marks()
	for _, kind := range []demo.Kind{
		demo.KindPrice, demo.KindPriceList, demo.KindPriceRule, demo.KindContent, demo.KindImage, demo.KindApproval,
		demo.KindRevocation, demo.KindBooking, demo.KindReceipt, demo.KindCount, demo.KindOrder, demo.KindImport,
		demo.KindRollback, demo.KindSavepoint, demo.KindVariantDelete, demo.KindProductDelete, demo.KindSwitch, demo.KindMistake,
	} {
		require.NotZero(t, stats.Kinds[kind], "%s in %v", kind, stats.Kinds)
	}
	for _, path := range paths {
		require.NotZero(t, stats.Paths[path], "%s in %v", path, stats.Paths)
	}
	require.Equal(t, int64(2), stats.Kinds[demo.KindPriceRule])
	require.Equal(t, int64(2), stats.Kinds[demo.KindSwitch])
	require.GreaterOrEqual(t, stats.Committed, int64(50))
	require.GreaterOrEqual(t, stats.RolledBack, stats.Kinds[demo.KindRollback])
	require.Greater(t, stats.Rows, stats.Committed)

	require.Equal(t, []string{"Spring import 11"}, marks.Batches)
	require.Equal(t, int64(600-len(marks.DeletedProducts)), one[int64](t, conn, `SELECT count(*) FROM catalog.products`))
	require.True(t, one[bool](t, conn, `SELECT bool_and(sync_prices) FROM catalog.stores`))
	require.NotEmpty(t, marks.RolledBack)
	require.Zero(t, one[int64](t, conn, `
		SELECT (SELECT count(*) FROM catalog.products WHERE title = ANY ($1) OR handle = ANY ($1))
		     + (SELECT count(*) FROM catalog.variants WHERE sku = ANY ($1))`, marks.RolledBack))
	require.NotEmpty(t, marks.DeletedVariants)
	require.Zero(t, one[int64](t, conn, `SELECT count(*) FROM catalog.variants WHERE id::text = ANY ($1)`, marks.DeletedVariants))
	require.Zero(t, one[int64](t, conn, `SELECT count(*) FROM catalog.products WHERE id::text = ANY ($1)`, marks.DeletedProducts))
	compared, _ := checkCatalog(t, conn)
	require.NotZero(t, compared)

	wal := one[[][]byte](t, conn, `
		SELECT array_agg(data) FROM pg_logical_slot_get_binary_changes('seen', NULL, NULL,
			'proto_version', '1', 'publication_names', 'seen', 'messages', 'true')`)
	has := func(text string) bool {
		return slices.ContainsFunc(wal, func(b []byte) bool { return bytes.Contains(b, []byte(text)) })
	}
	require.True(t, has("shelfwire.batch\x00"))
	require.True(t, has(`{"admin":"`))
	for _, text := range marks.RolledBack {
		require.False(t, has(text), "rolled back, and seen by logical decoding")
	}
}

func TestTrafficOnAHandfulOfProducts(t *testing.T) {
	conn, url := install(t)
	_, err := demo.LoadCSV(t.Context(), conn, strings.NewReader("Handle,Title,Variant Price\na,A,1\nb,B,2\nc,C,3\n"), "small.csv")
	require.NoError(t, err)
	traffic := demo.NewTraffic(demo.TrafficConfig{URL: url, Duration: 2 * time.Second, Seed: 5, Rate: 100})
	require.NoError(t, traffic.Run(t.Context()))
	stats := traffic.Stats()
	require.Equal(t, int64(1), stats.Kinds[demo.KindImport])
	require.LessOrEqual(t, stats.Kinds[demo.KindProductDelete], int64(1))
	require.LessOrEqual(t, stats.Kinds[demo.KindRevocation], int64(2))
	for _, path := range paths {
		require.NotZero(t, stats.Paths[path], "%s in %v", path, stats)
	}
	compared, _ := checkCatalog(t, conn)
	require.NotZero(t, compared)
	require.Equal(t, int64(6)-stats.Kinds[demo.KindProductDelete], one[int64](t, conn, `SELECT count(*) FROM catalog.products`))
}

// TestTrafficLeavesThePricesOfFreeProducts has a catalog without prices worth the name: when the sync of a store goes on
// again, hundreds of prices would become 0, which no guard lets pass.
func TestTrafficLeavesThePricesOfFreeProducts(t *testing.T) {
	conn, url := install(t)
	var b strings.Builder
	b.WriteString("Handle,Title,Variant Price,Tags\n")
	for i := range 60 {
		fmt.Fprintf(&b, "free-%d,%s,0.00,\"SALE, New In\"\n", i, strings.Repeat("x ", 100))
	}
	_, err := demo.LoadCSV(t.Context(), conn, strings.NewReader(b.String()), "free.csv")
	require.NoError(t, err)
	traffic := demo.NewTraffic(demo.TrafficConfig{URL: url, Duration: time.Second, Seed: 3, Rate: 50})
	require.NoError(t, traffic.Run(t.Context()))
	require.Zero(t, traffic.Stats().Kinds[demo.KindSwitch])
	require.Zero(t, one[int64](t, conn, `SELECT count(*) FROM catalog.products WHERE title <> trim(title)`), "a shop would trim it")
	checkCatalog(t, conn)
}

func TestTrafficStopsWhenTold(t *testing.T) {
	conn, url := install(t)
	require.NoError(t, demo.Generate(t.Context(), conn, demo.Config{Products: 50, Seed: 2}))
	ctx, cancel := context.WithCancel(t.Context())
	traffic := demo.NewTraffic(demo.TrafficConfig{URL: url, Duration: time.Hour, Rate: 200})
	ended := make(chan error, 1)
	go func() { ended <- traffic.Run(ctx) }()
	require.Eventually(t, func() bool { return traffic.Stats().Committed > 5 }, 30*time.Second, 5*time.Millisecond)
	cancel()
	select {
	case err := <-ended:
		require.ErrorIs(t, err, context.Canceled)
	case <-time.After(5 * time.Second):
		t.Fatal("the traffic goes on after its end")
	}
	require.Eventually(t, func() bool {
		return one[int64](t, conn, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'`) == 0
	}, 10*time.Second, 10*time.Millisecond, "connections are left behind")
}

func TestTrafficRefusesAnEmptyCatalog(t *testing.T) {
	_, url := install(t)
	require.ErrorContains(t, demo.NewTraffic(demo.TrafficConfig{URL: url}).Run(t.Context()), "generate or load a catalog")
}
