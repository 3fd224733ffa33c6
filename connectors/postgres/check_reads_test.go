package postgres_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/connectors/postgres"
	"github.com/shelfwire/shelfwire/schemas/reference"
	"github.com/shelfwire/shelfwire/schemas/route"
)

// texts are findings as kind, key, problem and mend.
func texts(found []postgres.Finding) string {
	var b strings.Builder
	for _, f := range found {
		fmt.Fprintf(&b, "%s at %s: %s | %s\n", f.Kind, f.Key, f.Problem, f.Mend)
	}
	return b.String()
}

// A table that the documents query reads and no route names would change without a shop hearing of it.
func TestCheckFindsTablesWithoutARoute(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE product (id bigint PRIMARY KEY, country text, brand_id int);
		INSERT INTO product SELECT i, 'de', 1 FROM generate_series(1, 20) i;
		CREATE TABLE country (code text PRIMARY KEY, name text);
		CREATE TABLE brand (id int PRIMARY KEY, name text);
		CREATE TABLE price (id bigint, region text, amount int, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
		CREATE TABLE price_eu PARTITION OF price FOR VALUES IN ('eu');
		CREATE TABLE price_us PARTITION OF price FOR VALUES IN ('us');
		CREATE TABLE note (product_id bigint, text text);
		CREATE TABLE variant (id bigint PRIMARY KEY, product_id bigint NOT NULL);
		CREATE TABLE stock (id bigint PRIMARY KEY, variant_id bigint NOT NULL);
		CREATE MATERIALIZED VIEW rank AS SELECT id, 1 AS rank FROM product;
		CREATE VIEW named AS SELECT b.id, b.name FROM brand b;
		CREATE FUNCTION country_name(text) RETURNS text LANGUAGE sql STABLE AS 'SELECT $1 || ''!''';
		CREATE FUNCTION countries(text) RETURNS SETOF country LANGUAGE sql STABLE AS 'SELECT * FROM country WHERE code = $1';
		CREATE FUNCTION notes(bigint) RETURNS text LANGUAGE plpgsql STABLE AS 'BEGIN RETURN (SELECT max(text) FROM note WHERE product_id = $1); END'`)
	src := d.open(d.config())
	query := func(from string) string {
		return `SELECT p.id::text AS product_id, 'x'::text AS shop, '{}'::jsonb || to_jsonb(p) AS document
			FROM product p ` + from + ` AND p.id::text = ANY ($1); -- done`
	}
	routes := []route.Route{
		{Table: "public.product", Key: "id"},
		{Table: "public.stock", Parent: &route.Parent{Column: "variant_id", Table: "public.variant", ID: "id", Key: "product_id"}},
	}
	d.exec(`ALTER TABLE stock REPLICA IDENTITY FULL`)
	for _, c := range []struct {
		name, from string
		unrouted   []string
		want       []string // each a part of one finding; none: nothing is found
	}{
		{"all routed", `WHERE true`, nil, nil},
		{"a table", `JOIN country c ON c.code = p.country WHERE true`, nil, []string{
			"gap at routes: it reads public.country, which no route names: its changes would reach no shop | give it a route; or, if it does not change while Shelfwire runs, say so: unrouted: [public.country]",
		}},
		{"a table that is fine", `JOIN country c ON c.code = p.country WHERE true`, []string{"public.country"}, nil},
		{"a view", `JOIN named n ON n.id = p.brand_id WHERE true`, nil, []string{"gap at routes: it reads public.brand,"}},
		{"a subquery", `WHERE (SELECT max(amount) FROM price WHERE price.id = p.id) > 0`, nil, []string{"gap at routes: it reads public.price,"}},
		{"a partition of what is fine", `JOIN price r ON r.id = p.id AND r.region = 'eu' WHERE true`, []string{"public.price"}, nil},
		{"an SQL function", `JOIN countries(p.country) c ON true WHERE true`, nil, []string{"gap at routes: it reads public.country,"}},
		{"a plain SQL function", `WHERE country_name(p.country) <> ''`, nil, nil},
		{"an opaque function", `WHERE notes(p.id) IS NULL`, nil, []string{"note at documents: it calls public.notes (plpgsql)"}},
		{"a materialized view", `JOIN rank r ON r.id = p.id WHERE true`, nil, []string{"it reads the materialized view public.rank"}},
		{"only a parent", `JOIN variant v ON v.product_id = p.id WHERE true`, nil, []string{"public.variant, which is only the parent of public.stock"}},
		{"an exception for nothing", `WHERE true`, []string{"public.country", "public.gone"}, []string{
			"note at unrouted.0: the documents query does not read public.country", "mistake at unrouted.1: table public.gone does not exist",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			found := src.Check(t.Context(), postgres.Declared{Routes: routes, Documents: query(c.from), Unrouted: c.unrouted})
			text := texts(found)
			require.Len(t, found, len(c.want), text)
			for _, want := range c.want {
				require.Contains(t, text, want)
			}
		})
	}
}

func TestCheckComparesShops(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE product (id bigint PRIMARY KEY, shop text);
		INSERT INTO product SELECT i, CASE WHEN i > 19000 THEN 'west' WHEN i % 2 = 0 THEN 'north' ELSE '' END FROM generate_series(1, 20000) i;
		ANALYZE product`)
	src := d.open(d.config())
	declared := postgres.Declared{
		Routes: []route.Route{{Table: "public.product", Key: "id"}}, Shops: []string{"north", "south"},
		Documents: `SELECT id::text AS product_id, shop, jsonb_build_object('eligible', 1 / (id - 7) > 2, 'reason', 'X') AS document
			FROM product WHERE id = ANY ($1::text[]::bigint[])`,
	}
	text := texts(src.Check(t.Context(), declared))
	require.Contains(t, text, `gap at shops: it sends products to shop "west", such as product 19`, "what stands at the table's end is seen as well")
	require.Contains(t, text, "note at shops.south: none of the 300 products that were tried belongs to shop south")
	require.NotContains(t, text, `"north"`)
	require.NotContains(t, text, `shop ""`)
	declared.Shops = []string{"north", "west"}
	require.Empty(t, src.Check(t.Context(), declared))

	// A few documents that break the schema are those products' failures; most of them are the query's.
	documents := declared.Documents
	declared.Documents = strings.Replace(documents, "'eligible'", "CASE WHEN id % 4 = 0 THEN 'status' ELSE 'eligible' END", 1)
	require.Empty(t, src.Check(t.Context(), declared))
	declared.Documents = strings.Replace(documents, "'eligible'", "'status'", 1)
	text = texts(src.Check(t.Context(), declared))
	require.Regexp(t, `gap at documents: (\d+) of \d+ documents that were tried break the schema, such as that of product \d+: .*eligible`, text)
}

// The reference's own stores and routes have no gap, and every mistake knows its place.
func TestCheckKnowsThePlaceOfAMistake(t *testing.T) {
	d := newDatabase(t, reference.SchemaSQL(), reference.ReplicaIdentitySQL())
	src := d.open(d.config())
	routes, err := reference.Routes()
	require.NoError(t, err)
	for key, spoil := range map[string]func(*postgres.Declared){
		"routes.0.table":         func(d *postgres.Declared) { d.Routes[0].Table = "catalog.product" },
		"routes.0.key":           func(d *postgres.Declared) { d.Routes[0].Key = "idd" },
		"routes.0.admin":         func(d *postgres.Declared) { d.Routes[0].Admin = "nobody" },
		"routes.0.batch_when.0":  func(d *postgres.Declared) { d.Routes[0].BatchWhen = []string{"never"} },
		"routes.3.parent.column": func(d *postgres.Declared) { d.Routes[3].Parent.Column = "v" },
		"routes.3.parent.table":  func(d *postgres.Declared) { d.Routes[3].Parent.Table = "catalog.v" },
		"routes.3.parent.id":     func(d *postgres.Declared) { d.Routes[3].Parent.ID = "v" },
		"routes.3.parent.key":    func(d *postgres.Declared) { d.Routes[3].Parent.Key = "v" },
		"routes.4.query":         func(d *postgres.Declared) { d.Routes[4].Query = "SELECT\n  nope" },
		"documents":              func(d *postgres.Declared) { d.Documents = "SELECT\n  nope" },
	} {
		declared := postgres.Declared{Documents: reference.DocumentsSQL()}
		for _, r := range routes {
			if r.Parent != nil {
				p := *r.Parent
				r.Parent = &p
			}
			declared.Routes = append(declared.Routes, r)
		}
		spoil(&declared)
		var at *postgres.Finding
		found := src.Check(t.Context(), declared)
		for i := range found {
			if found[i].Kind == postgres.FindingMistake && found[i].Key == key {
				at = &found[i]
			}
		}
		require.NotNil(t, at, "%s: %s", key, texts(found))
		if strings.Contains(at.Problem, `"nope"`) {
			require.Equal(t, len("SELECT\n  n"), at.Offset)
		}
	}
}

// A database that is not there is not a mistake of the SQL, and nothing else is told beside it.
func TestCheckOfADatabaseThatHasGone(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE product (id bigint PRIMARY KEY)`)
	src := d.open(d.config())
	src.Close()
	found := src.Check(t.Context(), postgres.Declared{Routes: []route.Route{{Table: "public.product", Key: "id"}}, Documents: "SELECT nope"})
	require.Len(t, found, 1)
	require.Equal(t, postgres.FindingAway, found[0].Kind)
}
