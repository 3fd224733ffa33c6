package reference_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/reference"
	"github.com/shelfwire/shelfwire/schemas/route"
)

func TestMain(m *testing.M) { embeddedtest.Main(m) }

// fixture is a small catalog with every kind of product. Categories: 1 all (sold by north), 2 coats and 3 wool coats
// below it, 4 lamps (sold by south and north), 5 attic (sold nowhere), 6 cellar below lamps (sold by south).
const fixture = `
INSERT INTO catalog.stores (id, name, publications) VALUES (1, 'north', '{Online Store}'), (2, 'south', NULL);
INSERT INTO catalog.categories (id, parent_id, depth, name) VALUES
	(1, NULL, 0, 'all'), (2, 1, 1, 'coats'), (3, 2, 2, 'wool coats'), (4, NULL, 0, 'lamps'), (5, NULL, 0, 'attic'), (6, 4, 1, 'cellar');
INSERT INTO catalog.category_stores VALUES (1, 1), (4, 1), (4, 2), (6, 2);
INSERT INTO catalog.warehouses (id, name) VALUES (1, 'Kiel'), (2, 'Bonn'), (3, 'Ulm');
INSERT INTO catalog.warehouse_locations VALUES (1, 1, 'Main'), (2, 1, 'Main'), (3, 1, 'Outlet'), (1, 2, 'South');
INSERT INTO catalog.products (id, category_id, kind, handle, title, tags, material, option_names, approved_at) VALUES
	(1, 3, 'normal', 'coat', 'Coat', '{wool,"new in"}', 'Wool', '{Size,Colour}', now()),
	(2, 4, 'normal', 'lamp', 'Lamp', '{}', NULL, '{Title}', now()),
	(3, 2, 'gift', 'gift', 'Gift', '{}', NULL, '{Title}', now()),
	(4, 2, 'sample', 'sample', 'Sample', '{}', NULL, '{Title}', now()),
	(5, 2, 'normal', 'raw', 'Not approved', '{}', NULL, '{Title}', NULL),
	(6, 5, 'normal', 'attic', 'In the attic', '{}', NULL, '{Title}', now()),
	(7, NULL, 'normal', 'none', 'Without category', '{}', NULL, '{Title}', now()),
	(8, 2, 'normal', 'bare', 'Without variants', '{}', NULL, '{Title}', now()),
	(9, 6, 'service', 'fitting', 'Fitting', '{}', NULL, '{Title}', now()),
	(10, 6, 'normal', 'cellar-lamp', 'Cellar lamp', '{}', NULL, '{Title}', now());
INSERT INTO catalog.images (product_id, position, url) VALUES (1, 2, 'https://x/b.jpg'), (1, 1, 'https://x/a.jpg');
INSERT INTO catalog.variants (id, product_id, position, options, sku, price, compare_at_price, weight_grams, approved_at) VALUES
	(11, 1, 1, '{M,Red}', 'C-M-R', 100, NULL, 850.5, now()), (12, 1, 2, '{S,Red}', NULL, 90.5, 120, NULL, now()),
	(13, 1, 3, '{XL,Blue}', 'C-XL', 110, NULL, NULL, NULL), (14, 1, 4, '{L,Green}', 'C-L', NULL, NULL, NULL, now()),
	(21, 2, 1, '{"Default Title"}', 'L', 0, NULL, NULL, now()), (51, 5, 1, '{"Default Title"}', 'N', 5, NULL, NULL, now()),
	(61, 6, 1, '{"Default Title"}', 'A', 5, NULL, NULL, now()), (101, 10, 1, '{"Default Title"}', 'CL', 0.01, NULL, NULL, now());
INSERT INTO catalog.stock VALUES (11, 1, 10, 8, 3), (11, 2, 4, 4, 0), (11, 3, 1, 1, 5), (12, 1, 2, 2, 2), (21, 1, 7, 6, 0);
`

func connect(t *testing.T) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), embeddedtest.NewDatabase(t, embeddedtest.Postgres(t)))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close(context.WithoutCancel(t.Context()))) })
	exec(t, conn, reference.SchemaSQL())
	exec(t, conn, reference.ReplicaIdentitySQL())
	return conn
}

func exec(t *testing.T, conn *pgx.Conn, sql string, args ...any) {
	t.Helper()
	_, err := conn.Exec(t.Context(), sql, args...)
	require.NoError(t, err, sql)
}

// documents reads the documents of products and checks each against the contract; the key is "product@shop".
func documents(t *testing.T, conn *pgx.Conn, ids ...string) map[string]document.Document {
	t.Helper()
	rows, err := conn.Query(t.Context(), reference.DocumentsSQL(), ids)
	require.NoError(t, err)
	out := map[string]document.Document{}
	var id, shop string
	var raw json.RawMessage
	_, err = pgx.ForEachRow(rows, []any{&id, &shop, &raw}, func() error {
		d, err := document.Parse(raw)
		if err != nil {
			return fmt.Errorf("%s@%s: %w: %s", id, shop, err, raw)
		}
		require.NotContains(t, out, id+"@"+shop)
		out[id+"@"+shop] = d
		return nil
	})
	require.NoError(t, err)
	return out
}

// variant returns a variant of a document by its key.
func variant(t *testing.T, d document.Document, key string) document.Variant {
	t.Helper()
	list, _ := d.Variants.Get()
	i := slices.IndexFunc(list, func(v document.Variant) bool { return v.Key == key })
	require.GreaterOrEqual(t, i, 0, "variant %s", key)
	return list[i]
}

func TestDocumentsOfEveryKindOfProduct(t *testing.T) {
	conn := connect(t)
	exec(t, conn, fixture)
	got := documents(t, conn, "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "99", "x", "", "1", "01", "999999999999999999999")

	reasons := map[string]string{}
	for at, d := range got {
		reasons[at] = d.Reason
	}
	require.Equal(t, map[string]string{
		"1@north": "", "2@north": "", "2@south": "", "3@north": "NOT_NORMAL", "4@north": "NOT_NORMAL", "5@north": "NOT_APPROVED",
		"6@": "NO_SHOP", "7@": "NO_SHOP", "8@north": "NO_VARIANT", "9@south": "NOT_NORMAL", "10@south": "",
	}, reasons, "a product that does not exist has no row, and each shop gets one")

	coat := got["1@north"]
	require.Equal(t, document.Of("Coat"), coat.Title)
	require.Equal(t, document.Cleared[string](), coat.DescriptionHTML)
	require.Equal(t, document.Of([]string{"wool", "new in"}), coat.Tags)
	require.Equal(t, document.Of([]string{"Online Store"}), coat.Publications)
	require.False(t, got["2@south"].Publications.Owned)
	require.Equal(t, document.Of([]document.Image{{URL: "https://x/a.jpg"}, {URL: "https://x/b.jpg"}}), coat.Images)
	require.Equal(t, document.Of([]document.Option{
		{Name: "Size", Values: []string{"M", "S"}}, {Name: "Colour", Values: []string{"Red"}},
	}), coat.Options, "values of variants that are left out are not on the menu")
	variants, _ := coat.Variants.Get()
	require.Len(t, variants, 2, "13 is not approved, 14 has no price")
	require.Equal(t, document.Variant{
		Key: "11", Options: []string{"M", "Red"}, SKU: document.Of("C-M-R"), Barcode: document.Cleared[string](),
		Price: document.Of("100.00"), CompareAtPrice: document.Cleared[string](), Cost: document.Cleared[string](),
		Policy: document.Of("DENY"), Taxable: document.Of(true), RequiresShipping: document.Of(true),
		WeightGrams: document.Of(850.5),
		Stock: document.Of([]document.Level{
			{Location: "Main", Quantity: 9, Name: "available"},   // 8-3 and 4-0
			{Location: "Outlet", Quantity: 0, Name: "available"}, // 1-5 is not below 0
		}),
	}, variants[0])
	require.Equal(t, document.Of([]document.Level{
		{Location: "Main", Quantity: 0, Name: "available"}, {Location: "Outlet", Quantity: 0, Name: "available"},
	}), variants[1].Stock, "a variant without a stock row has 0, not nothing")
	require.Equal(t, document.Of([]document.Level{{Location: "South", Quantity: 6, Name: "available"}}),
		variant(t, got["2@south"], "21").Stock)
}

func TestSwitchesOfAStoreLeaveThingsAlone(t *testing.T) {
	conn := connect(t)
	exec(t, conn, fixture)
	exec(t, conn, `UPDATE catalog.stores SET sync_prices = false, sync_stock = false, sync_content = false WHERE name = 'north'`)
	got := documents(t, conn, "1", "2")
	v := variant(t, got["1@north"], "12")
	require.False(t, v.Price.Owned)
	require.False(t, v.CompareAtPrice.Owned)
	require.False(t, v.Cost.Owned)
	require.Equal(t, document.Decimal("90.50"), v.FirstPrice, "a creation is never on sale at 0")
	require.False(t, v.Stock.Owned)
	for _, owned := range []bool{
		got["1@north"].DescriptionHTML.Owned, got["1@north"].Tags.Owned, got["1@north"].Images.Owned,
		got["1@north"].Metafields.Owned, got["1@north"].SEO.Owned, got["1@north"].Vendor.Owned,
	} {
		require.False(t, owned)
	}
	require.Equal(t, document.Of("Coat"), got["1@north"].Title)
	other := variant(t, got["2@south"], "21")
	require.True(t, other.Price.Owned, "the other store is not concerned")
	require.Empty(t, other.FirstPrice)
	require.True(t, other.Stock.Owned)

	exec(t, conn, `UPDATE catalog.stores SET sync_stock = true, stock_quantity = 'on_hand' WHERE name = 'north'`)
	require.Equal(t, document.Of([]document.Level{
		{Location: "Main", Quantity: 14, Name: "on_hand"}, {Location: "Outlet", Quantity: 1, Name: "on_hand"},
	}), variant(t, documents(t, conn, "1")["1@north"], "11").Stock)
}

func TestTheNearestActiveRulePrices(t *testing.T) {
	conn := connect(t)
	exec(t, conn, fixture)
	price := func(id, key string) (string, string) {
		t.Helper()
		for _, d := range documents(t, conn, id) {
			v := variant(t, d, key)
			return v.Price.Value, v.CompareAtPrice.Value
		}
		t.Fatalf("no document of %s", id)
		return "", ""
	}
	check := func(id, key, wantPrice, wantCompare string) {
		t.Helper()
		p, c := price(id, key)
		require.Equal(t, []string{wantPrice, wantCompare}, []string{p, c})
	}
	exec(t, conn, `INSERT INTO catalog.price_rules (category_id, name, percent) VALUES (1, 'all', -10), (4, 'lamps', -99.99)`)
	check("1", "11", "90.00", "100.00")
	check("1", "12", "81.45", "120.00")
	check("10", "101", "0.01", "0.01") // never given away
	check("2", "21", "0.00", "0.00")   // what costs nothing stays so
	exec(t, conn, `INSERT INTO catalog.price_rules (category_id, name, percent) VALUES (3, 'wool', 20)`)
	check("1", "11", "120.00", "")
	exec(t, conn, `UPDATE catalog.price_rules SET active = false WHERE name = 'wool'`)
	check("1", "11", "90.00", "100.00")
}

func TestMovedCategoriesChangeShops(t *testing.T) {
	conn := connect(t)
	exec(t, conn, fixture)
	exec(t, conn, `SELECT catalog.move_category(2, 4)`)
	got := documents(t, conn, "1")
	require.Contains(t, got, "1@north")
	require.Contains(t, got, "1@south")
	var depth int
	require.NoError(t, conn.QueryRow(t.Context(), `SELECT depth FROM catalog.categories WHERE id = 3`).Scan(&depth))
	require.Equal(t, 2, depth)
	exec(t, conn, `SELECT catalog.move_category(2, NULL)`)
	require.Contains(t, documents(t, conn, "1"), "1@", "a top category that no store sells")
	require.NoError(t, conn.QueryRow(t.Context(), `SELECT depth FROM catalog.categories WHERE id = 3`).Scan(&depth))
	require.Equal(t, 1, depth)
	_, err := conn.Exec(t.Context(), `SELECT catalog.move_category(2, 3)`)
	require.ErrorContains(t, err, "below itself")

	// A cycle that somebody has made by hand ends the walk.
	exec(t, conn, `UPDATE catalog.categories SET parent_id = 3 WHERE id = 2`)
	require.Contains(t, documents(t, conn, "1"), "1@")
	require.Equal(t, []string{"1", "3", "4", "5", "8"}, page(t, conn, routeOf(t, "catalog.categories"), `{"id": 2}`, "", 10))
}

func routeOf(t *testing.T, table string) route.Route {
	t.Helper()
	routes, err := reference.Routes()
	require.NoError(t, err)
	i := slices.IndexFunc(routes, func(r route.Route) bool { return r.Table == table })
	require.GreaterOrEqual(t, i, 0, table)
	return routes[i]
}

// page runs a query route as Expand does.
func page(t *testing.T, conn *pgx.Conn, r route.Route, image, after string, size int) []string {
	t.Helper()
	rows, err := conn.Query(t.Context(), r.Query, json.RawMessage(image), after, size)
	require.NoError(t, err)
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	return ids
}

func TestQueryRoutesPageInTextOrder(t *testing.T) {
	conn := connect(t)
	exec(t, conn, fixture)
	for table, c := range map[string]struct {
		image string
		want  []string
	}{
		"catalog.stores":              {`{"id": 1, "name": "north"}`, []string{"1", "10", "2", "3", "4", "5", "8", "9"}},
		"catalog.categories":          {`{"id": 4}`, []string{"10", "2", "9"}},
		"catalog.category_stores":     {`{"category_id": 1, "store_id": 2}`, []string{"1", "3", "4", "5", "8"}},
		"catalog.price_rules":         {`{"id": 1, "category_id": 3}`, []string{"1"}},
		"catalog.warehouse_locations": {`{"warehouse_id": 1, "store_id": 2}`, []string{"10", "2", "9"}},
	} {
		t.Run(table, func(t *testing.T) {
			r := routeOf(t, table)
			require.Equal(t, c.want, page(t, conn, r, c.image, "", 100))
			require.True(t, slices.IsSorted(c.want))
			var paged []string
			for after := ""; ; {
				ids := page(t, conn, r, c.image, after, 2)
				if len(ids) == 0 {
					break
				}
				require.LessOrEqual(t, len(ids), 2)
				paged = append(paged, ids...)
				after = ids[len(ids)-1]
			}
			require.Equal(t, c.want, paged, "pages neither repeat nor leave out")
			require.Empty(t, page(t, conn, r, `{}`, "", 10), "an empty image, as a dry run sends it")
		})
	}
}

func TestEveryTableOfTheDocumentsQueryIsRouted(t *testing.T) {
	routes, err := reference.Routes()
	require.NoError(t, err)
	for word := range strings.FieldsFuncSeq(reference.DocumentsSQL(), func(r rune) bool {
		return r != '.' && r != '_' && (r < 'a' || r > 'z')
	}) {
		if strings.HasPrefix(word, "catalog.") {
			require.True(t, slices.ContainsFunc(routes, func(r route.Route) bool { return r.Table == word }), word)
		}
	}
}

func TestReplicaIdentityHoldsWhatRoutesRead(t *testing.T) {
	conn := connect(t)
	routes, err := reference.Routes()
	require.NoError(t, err)
	for _, r := range routes {
		var identity []string
		var all int
		require.NoError(t, conn.QueryRow(t.Context(), `
			SELECT coalesce(array_agg(a.attname::text) FILTER (WHERE c.relreplident = 'f' OR a.attnum = ANY (i.indkey)), '{}'), count(*)
			FROM pg_class c
			JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
			LEFT JOIN pg_index i ON i.indrelid = c.oid
				AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident END
			WHERE c.oid = $1::regclass`, r.Table).Scan(&identity, &all))
		needs := append([]string{}, r.BatchWhen...)
		switch {
		case r.Key != "":
			needs = append(needs, r.Key)
		case r.Parent != nil:
			needs = append(needs, r.Parent.Column)
		default:
			require.Len(t, identity, all, "%s: a query may read any column", r.Table)
		}
		require.Subset(t, identity, needs, r.Table)
	}
}
