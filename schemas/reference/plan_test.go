package reference_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/reference"
)

// bulk makes 20,000 products with 60,000 variants: enough that a sequential scan would be seen.
const bulk = `
INSERT INTO catalog.categories (id, parent_id, depth, name)
	SELECT 100 + i, 2, 2, 'leaf ' || i FROM generate_series(1, 200) i;
INSERT INTO catalog.products (id, category_id, handle, title, approved_at)
	SELECT 1000 + i, 101 + i % 200, 'p' || i, 'Product ' || i, now() FROM generate_series(1, 20000) i;
INSERT INTO catalog.variants (id, product_id, position, options, price, approved_at)
	SELECT 100000 + i, 1001 + i / 3, i % 3, ARRAY['v' || i % 3], 10, now() FROM generate_series(0, 59999) i;
INSERT INTO catalog.images (product_id, position, url) SELECT 1000 + i, 1, 'https://x/' || i FROM generate_series(1, 20000) i;
INSERT INTO catalog.stock SELECT id, 1, 5, 5, 1 FROM catalog.variants WHERE id >= 100000;
ANALYZE catalog.categories, catalog.products, catalog.variants, catalog.images, catalog.stock, catalog.category_stores,
	catalog.stores, catalog.warehouse_locations, catalog.price_rules;
`

// explain returns the plan of the generic statement, as a prepared statement gets it after some executions, and of the
// one that is planned for its arguments.
func explain(t *testing.T, conn *pgx.Conn, mode, types, sql, args string) string {
	t.Helper()
	exec(t, conn, "SET plan_cache_mode = "+mode)
	exec(t, conn, "PREPARE asked ("+types+") AS "+sql)
	defer exec(t, conn, "DEALLOCATE asked")
	rows, err := conn.Query(t.Context(), "EXPLAIN (ANALYZE, TIMING OFF, SUMMARY OFF) EXECUTE asked ("+args+")", pgx.QueryExecModeSimpleProtocol)
	require.NoError(t, err)
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	return strings.Join(lines, "\n")
}

func TestDocumentsAreReadByIndex(t *testing.T) {
	conn := connect(t)
	exec(t, conn, fixture)
	exec(t, conn, bulk)
	for _, n := range []int{1, 50, 1000} {
		ids := make([]string, n)
		for i := range ids {
			ids[i] = fmt.Sprint(1001 + i*(20000/n))
		}
		require.Len(t, documents(t, conn, ids...), n)
		for _, mode := range []string{"force_generic_plan", "force_custom_plan"} {
			plan := explain(t, conn, mode, "text[]", reference.DocumentsSQL(), "'{"+strings.Join(ids, ",")+"}'")
			for _, table := range []string{"products", "variants", "images", "stock"} {
				require.NotContains(t, plan, "Seq Scan on "+table, "%d ids, %s", n, mode)
			}
			if strings.Contains(plan, "JIT:") {
				t.Errorf("%d ids, %s: the plan is thought so costly that it would be compiled first", n, mode)
			}
			require.Contains(t, plan, "products_pkey")
			require.Contains(t, plan, "variants_product")
		}
	}
}

func TestQueryRoutesReadByIndex(t *testing.T) {
	conn := connect(t)
	exec(t, conn, fixture)
	exec(t, conn, bulk)
	require.Len(t, page(t, conn, routeOf(t, "catalog.price_rules"), `{"category_id": 1}`, "", 1000), 1000)
	// The function's own statement: EXPLAIN does not look into functions.
	var body string
	require.NoError(t, conn.QueryRow(t.Context(),
		`SELECT prosrc FROM pg_proc WHERE proname = 'products_below'`).Scan(&body))
	body = strings.NewReplacer("= category\n", "= $1\n", "> after", "> $2", "LIMIT page", "LIMIT $3").Replace(body)
	for _, mode := range []string{"force_generic_plan", "force_custom_plan"} {
		plan := explain(t, conn, mode, "bigint, text, int", body, "1, '15', 100")
		require.NotContains(t, plan, "Seq Scan on products", plan)
		require.Contains(t, plan, "products_category", plan)
	}
}
