package demo_test

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/demo"
	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/reference"
)

func TestMain(m *testing.M) { embeddedtest.Main(m) }

// install returns a connection to a database with the empty reference schema, and the database's URL.
func install(t *testing.T) (*pgx.Conn, string) {
	t.Helper()
	url := embeddedtest.NewDatabase(t, embeddedtest.Postgres(t))
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close(context.WithoutCancel(t.Context()))) })
	require.NoError(t, demo.Install(t.Context(), conn))
	return conn, url
}

// one reads a single value.
func one[T any](t *testing.T, conn *pgx.Conn, sql string, args ...any) T {
	t.Helper()
	rows, err := conn.Query(t.Context(), sql, args...)
	require.NoError(t, err)
	v, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	require.NoError(t, err, sql)
	return v
}

// checkCatalog reads every document, checks it against the contract and against the expectations, which are computed
// by another query, and returns how many variants it has compared, and how often each verdict was given.
func checkCatalog(t *testing.T, conn *pgx.Conn) (int, map[string]int) {
	t.Helper()
	ids := one[[]string](t, conn, `SELECT array_agg(id::text ORDER BY id) FROM catalog.products`)
	verdicts := map[string]int{}
	found := map[string]demo.Expectation{}
	for at := 0; at < len(ids); at += 500 {
		rows, err := conn.Query(t.Context(), reference.DocumentsSQL(), ids[at:min(at+500, len(ids))])
		require.NoError(t, err)
		var id, shop string
		var raw json.RawMessage
		_, err = pgx.ForEachRow(rows, []any{&id, &shop, &raw}, func() error {
			d, err := document.Parse(raw)
			if err != nil {
				return fmt.Errorf("product %s in %q: %w", id, shop, err)
			}
			verdicts[d.Reason]++
			for _, e := range flatten(id, shop, d) {
				found[shop+"/"+e.VariantKey] = e
			}
			return nil
		})
		require.NoError(t, err)
	}
	compared := 0
	require.NoError(t, demo.Expectations(t.Context(), conn, func(want demo.Expectation) error {
		got, ok := found[want.Shop+"/"+want.VariantKey]
		require.True(t, ok, "%+v has no document", want)
		require.Equal(t, want, got)
		delete(found, want.Shop+"/"+want.VariantKey)
		compared++
		return nil
	}))
	require.Empty(t, found, "documents that nobody expects")
	return compared, verdicts
}

func flatten(id, shop string, d document.Document) []demo.Expectation {
	variants, _ := d.Variants.Get()
	var out []demo.Expectation
	for _, v := range variants {
		e := demo.Expectation{
			Shop: shop, ProductID: id, Title: d.Title.Value, VariantKey: v.Key, Options: v.Options, SKU: v.SKU.Value,
			Price: string(v.FirstPrice), PriceOwned: v.Price.Owned,
		}
		if v.Price.Owned {
			e.Price = v.Price.Value
		}
		if levels, owned := v.Stock.Get(); owned {
			e.Levels = map[string]int64{}
			for _, l := range levels {
				e.Levels[l.Location] = int64(l.Quantity)
			}
		}
		out = append(out, e)
	}
	return out
}

func TestGeneratedCatalogs(t *testing.T) {
	conn, _ := install(t)
	require.NoError(t, demo.Generate(t.Context(), conn, demo.Config{Products: 2500, Seed: 7}))
	require.Equal(t, int64(2500), one[int64](t, conn, `SELECT count(*) FROM catalog.products`))
	share := one[float64](t, conn, `SELECT avg((approved_at IS NOT NULL)::int)::float8 FROM catalog.products`)
	require.InDelta(t, 0.7, share, 0.05)
	require.Equal(t, []int64{1, 12}, one[[]int64](t, conn,
		`SELECT ARRAY[min(n), max(n)] FROM (SELECT count(*) AS n FROM catalog.variants GROUP BY product_id) x`))
	require.Equal(t, int64(2), one[int64](t, conn, `SELECT max(depth)::bigint FROM catalog.categories`))
	compared, verdicts := checkCatalog(t, conn)
	require.Greater(t, compared, 4000)
	for _, reason := range []string{"", "NOT_APPROVED", "NOT_NORMAL", "NO_SHOP"} {
		require.NotZero(t, verdicts[reason], "reason %q in %v", reason, verdicts)
	}
	// The application goes on where the generator has stopped.
	require.Equal(t, int64(2501), one[int64](t, conn,
		`INSERT INTO catalog.products (handle, title) VALUES ('next', 'Next') RETURNING id`))
}

func TestTheSeedDecidesTheCatalog(t *testing.T) {
	fingerprint := func(seed uint64) string {
		conn, _ := install(t)
		require.NoError(t, demo.Generate(t.Context(), conn, demo.Config{Products: 120, Seed: seed}))
		return one[string](t, conn, `SELECT md5(string_agg(x, '|' ORDER BY x)) FROM (
			SELECT to_jsonb(p)::jsonb - 'created_at' || '{}' FROM catalog.products p
			UNION ALL SELECT to_jsonb(v) FROM catalog.variants v UNION ALL SELECT to_jsonb(s) FROM catalog.stock s
			UNION ALL SELECT to_jsonb(i) FROM catalog.images i UNION ALL SELECT to_jsonb(c) FROM catalog.categories c
		) rows(row), LATERAL (SELECT row::text) AS text(x)`)
	}
	first := fingerprint(1)
	require.Equal(t, first, fingerprint(1))
	require.NotEqual(t, first, fingerprint(2))
}

func TestTheSmallestCatalog(t *testing.T) {
	conn, _ := install(t)
	require.NoError(t, demo.Generate(t.Context(), conn, demo.Config{Products: 1, Seed: 3}))
	require.Equal(t, int64(3), one[int64](t, conn, `SELECT count(*) FROM catalog.products`))
	checkCatalog(t, conn)
}

func TestStoresAreThoseOfTheDatabase(t *testing.T) {
	conn, _ := install(t)
	require.NoError(t, demo.Generate(t.Context(), conn, demo.Config{Seed: 1}))
	for _, s := range demo.Stores() {
		require.Equal(t, s.Locations, one[[]string](t, conn, `
			SELECT array_agg(l.location ORDER BY l.warehouse_id) FROM catalog.warehouse_locations l
			JOIN catalog.stores s ON s.id = l.store_id WHERE s.name = $1`, s.Name))
		require.Equal(t, s.Publications, one[[]string](t, conn, `SELECT publications FROM catalog.stores WHERE name = $1`, s.Name))
	}
}
