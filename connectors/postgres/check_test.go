package postgres_test

import (
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/connectors/postgres"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/reference"
	"github.com/shelfwire/shelfwire/schemas/route"
)

func TestCheckFindsNothingInTheReference(t *testing.T) {
	d := newDatabase(t, reference.SchemaSQL(), reference.ReplicaIdentitySQL())
	src := d.open(d.config())
	routes, err := reference.Routes()
	require.NoError(t, err)
	require.Empty(t, src.Check(t.Context(), postgres.Declared{Routes: routes, Documents: reference.DocumentsSQL()}))
	stmts, err := src.Identities(t.Context(), routes)
	require.NoError(t, err)
	require.Empty(t, stmts)
}

// Whichever of its questions the server does not answer because it ends the connection: that is no mistake of anybody's,
// and asking again helps.
func TestCheckCallsALostConnectionAway(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE v (id text PRIMARY KEY); INSERT INTO v VALUES ('1');
		CREATE TABLE w (id int PRIMARY KEY, v text); ALTER TABLE w REPLICA IDENTITY FULL;
		CREATE TABLE c (id int PRIMARY KEY); ALTER TABLE c REPLICA IDENTITY FULL; INSERT INTO c VALUES (1);
		CREATE TABLE m (id int PRIMARY KEY)`)
	declared := postgres.Declared{
		Routes: []route.Route{
			{Table: "public.v", Key: "id"},
			{Table: "public.w", Parent: &route.Parent{Column: "v", Table: "public.v", ID: "id", Key: "id"}},
			{Table: "public.c", Query: `SELECT id FROM v WHERE $1::jsonb IS NOT NULL AND id COLLATE "C" > $2 ORDER BY id COLLATE "C" LIMIT $3`},
		},
		Mirrored: []string{"public.m"}, Unrouted: []string{"public.m"},
		Documents: `SELECT id AS product_id, 'x' AS shop, (SELECT to_jsonb(m) FROM m LIMIT 1) AS document FROM v WHERE id = ANY ($1)`,
	}
	var asked, fatal atomic.Int64
	cfg := d.config()
	cfg.URL = (&between{end: func() bool { return asked.Add(1) == fatal.Load() }}).url(t, d.url)
	src := d.open(cfg)
	ends := 0
	for n := int64(1); ; n += 3 { // a statement is at least so many messages
		asked.Store(0)
		fatal.Store(n)
		found := src.Check(t.Context(), declared)
		fatal.Store(0)
		if asked.Load() < n {
			break
		}
		for _, f := range found {
			ends++
			require.Equal(t, postgres.FindingAway, f.Kind, "message %d: %+v", n, f)
		}
	}
	require.Greater(t, ends, 20, "connections whose end was noticed")
}

func TestCheckSaysWhatIsWrongAndHowToMendIt(t *testing.T) {
	d := newDatabase(
		t, `CREATE TABLE product (id bigint PRIMARY KEY, title text, approved timestamptz);
		INSERT INTO product SELECT i, 'x', NULL FROM generate_series(1, 20) i;
		CREATE TABLE variant (id bigint PRIMARY KEY, product_id bigint NOT NULL);
		CREATE TABLE stock (id bigint PRIMARY KEY, variant_id bigint NOT NULL);
		CREATE TABLE rule (id bigint PRIMARY KEY, category text);
		INSERT INTO rule VALUES (1, 'a');
		CREATE TABLE nokey (product_id bigint);
		CREATE UNLOGGED TABLE light (id bigint PRIMARY KEY);
		CREATE TABLE part (id bigint, region text, product_id bigint NOT NULL, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
		CREATE TABLE part_eu PARTITION OF part FOR VALUES IN ('eu');
		CREATE VIEW v AS SELECT * FROM product`,
	)
	src := d.open(d.config())
	good := `SELECT id::text AS product_id, 'x'::text AS shop, '{}'::jsonb AS document FROM product WHERE id::text = ANY ($1)`
	page := func(sql string) []route.Route { return []route.Route{{Table: "public.rule", Query: sql}} }
	for _, c := range []struct {
		name, documents string
		routes          []route.Route
		problem, mend   string
	}{
		{"no table", good, []route.Route{{Table: "public.gone", Key: "id"}}, "does not exist", "create the table"},
		{"no column", good, []route.Route{{Table: "public.product", Key: "nope"}}, "column nope", "correct the name"},
		{"view", good, []route.Route{{Table: "public.v", Key: "id"}}, "is no table", "views"},
		{"unlogged", good, []route.Route{{Table: "public.light", Key: "id"}}, "not logged", `ALTER TABLE "public"."light" SET LOGGED;`},
		{"partition", good, []route.Route{{Table: "public.part_eu", Key: "id"}}, "is a partition", "route the partitioned table"},
		{"no primary key", good, []route.Route{{Table: "public.nokey", Key: "product_id"}}, "no primary key", "add a primary key"},
		{"two ways", good, []route.Route{{Table: "public.product", Key: "id", Query: "SELECT"}}, "exactly one", ""},
		{
			"identity by index", good,
			[]route.Route{{Table: "public.variant", Key: "product_id"}},
			"DEFAULT and lacks product_id",
			`CREATE UNIQUE INDEX "variant_identity" ON "public"."variant" ("id", "product_id"); ALTER TABLE "public"."variant" REPLICA IDENTITY USING INDEX "variant_identity";`,
		},
		{"identity full for nullable", good, []route.Route{{Table: "public.product", Key: "id", Batch: true, BatchWhen: []string{"approved"}}}, "lacks approved", `ALTER TABLE "public"."product" REPLICA IDENTITY FULL;`},
		{"identity full for a query", good, page(`SELECT id::text FROM product WHERE $1::jsonb IS NOT NULL AND id::text COLLATE "C" > $2 ORDER BY id::text COLLATE "C" LIMIT $3`), "lacks category", `"rule" REPLICA IDENTITY FULL`},
		{"identity of a partition", good, []route.Route{{Table: "public.part", Key: "product_id"}}, "public.part_eu is DEFAULT", `ALTER TABLE "public"."part_eu" REPLICA IDENTITY FULL;`},
		{"parent column", good, []route.Route{{Table: "public.stock", Parent: &route.Parent{Column: "variant_id", Table: "public.variant", ID: "id", Key: "nope"}}}, "column nope of public.variant", ""},
		{"parent not unique", good, []route.Route{{Table: "public.stock", Parent: &route.Parent{Column: "variant_id", Table: "public.variant", ID: "product_id", Key: "product_id"}}}, "no unique index", "CREATE UNIQUE INDEX"},
		{"parent types", good, []route.Route{{Table: "public.stock", Parent: &route.Parent{Column: "variant_id", Table: "public.rule", ID: "category", Key: "id"}}}, "operator does not exist", ""},
		{"query syntax", good, page(`SELEC 1`), "syntax error", "correct the SQL"},
		{"query parameters", good, page(`SELECT id::text FROM product`), "0 parameters", "$1 (the row"},
		{"query without limit", good, page(`SELECT id::text FROM product WHERE $1::jsonb IS NOT NULL AND id::text > $2::text AND $3::int > 0`), "rows for a page of 5", "LIMIT $3"},
		{"query order", good, page(`SELECT id::text FROM product WHERE $1::jsonb IS NOT NULL AND $2::text IS NOT NULL ORDER BY id DESC LIMIT $3`), "came after", `COLLATE "C"`},
		{"query fails on a row", good, page(`SELECT id::text FROM product WHERE ($1::jsonb ->> 'category')::int = id AND id::text > $2 LIMIT $3`), "invalid input syntax", `"category":"a"`},
		{"documents syntax", `SELECT nope`, nil, "column \"nope\" does not exist", "correct"},
		{"documents parameters", `SELECT 1`, nil, "0 parameters", "use $1"},
		{"documents columns", `SELECT id::text AS product_id, 'x'::text AS shop FROM product WHERE id::text = ANY ($1)`, nil, "no column document", ""},
		{"documents types", `SELECT id AS product_id, 'x'::text AS shop, '{}'::jsonb AS document FROM product WHERE id::text = ANY ($1)`, nil, "product_id is not of type text", "::text AS product_id"},
		{"documents data", `SELECT id::text AS product_id, 'x'::text AS shop, to_jsonb(1 / (id - id)) AS document FROM product WHERE id::text = ANY ($1)`, []route.Route{{Table: "public.product", Key: "id"}}, "division by zero", ""},
		{"documents of others", `SELECT '0' || id::text AS product_id, 'x'::text AS shop, '{}'::jsonb AS document FROM product WHERE id::text = ANY ($1)`, []route.Route{{Table: "public.product", Key: "id"}}, "it returned \"0", ""},
		{"documents no object", `SELECT id::text AS product_id, 'x'::text AS shop, '[]'::jsonb AS document FROM product WHERE id::text = ANY ($1)`, []route.Route{{Table: "public.product", Key: "id"}}, "no JSON object", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			found := src.Check(t.Context(), postgres.Declared{Routes: c.routes, Documents: c.documents})
			for _, f := range found {
				if strings.Contains(f.Problem, c.problem) && strings.Contains(f.Mend, c.mend) {
					return
				}
			}
			t.Errorf("want %q, mended by %q; found %+v", c.problem, c.mend, found)
		})
	}
	fine := []route.Route{{Table: "public.product", Key: "id"}}
	require.Empty(t, src.Check(t.Context(), postgres.Declared{Routes: fine, Documents: good}))
	once := `SELECT id::text AS product_id, 'x'::text AS shop, jsonb_build_object('x', 1 / (id - 2)) AS document FROM product WHERE id::text = ANY ($1)`
	require.Empty(t, src.Check(t.Context(), postgres.Declared{Routes: fine, Documents: once}), "one product that breaks the query is that product's failure")
}

// A table that was captured and is gone is no mistake in the configuration: capture goes on without it.
func TestCheckOfACapturedTableThatIsGone(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE product (id bigint PRIMARY KEY); CREATE TABLE stock (id bigint PRIMARY KEY, variant_id bigint NOT NULL); ALTER TABLE stock REPLICA IDENTITY FULL`)
	src := d.open(d.config())
	declared := postgres.Declared{
		Documents: `SELECT id::text AS product_id, 'x'::text AS shop, '{}'::jsonb AS document FROM product WHERE id::text = ANY ($1)`,
		Routes: []route.Route{
			{Table: "public.product", Key: "id"},
			{Table: "public.gone", Key: "id"},
			{Table: "public.stock", Parent: &route.Parent{Column: "variant_id", Table: "public.variant", ID: "id", Key: "product_id"}},
		},
	}
	kinds := func() (list []string) {
		for _, f := range src.Check(t.Context(), declared) {
			list = append(list, string(f.Kind)+" "+f.Problem)
		}
		return list
	}
	require.Equal(t, []string{"mistake table public.gone does not exist", "mistake table public.variant does not exist"}, kinds())
	declared.Captured = []string{"public.gone", "public.variant", "public.product"}
	const gone = " is gone: nothing of it is captured until it is there again"
	require.Equal(t, []string{"gap table public.gone" + gone, "gap table public.variant" + gone}, kinds())
}

func TestCheckOfARoleThatMayNothing(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE product (id bigint PRIMARY KEY)`)
	role := "guest_" + d.text("SELECT current_database()")
	d.exec(`CREATE ROLE ` + role + ` LOGIN PASSWORD 'x'`)
	t.Cleanup(func() { d.exec(`DROP OWNED BY ` + role + `; DROP ROLE ` + role) })
	cfg := d.config()
	cfg.URL = withUser(t, d.url, role, "x")
	src := d.open(cfg)
	var all []string
	for _, f := range src.Check(t.Context(), postgres.Declared{
		Routes:    []route.Route{{Table: "public.product", Key: "id"}},
		Documents: `SELECT '1'::text AS product_id, ''::text AS shop, '{}'::jsonb AS document WHERE '' = ANY ($1)`,
	}) {
		all = append(all, f.Problem+" | "+f.Mend)
	}
	text := strings.Join(all, "\n")
	require.Contains(t, text, "may not replicate | ALTER ROLE \""+role+"\" REPLICATION;")
	require.Contains(t, text, `may not read public.product | GRANT USAGE ON SCHEMA "public"`)
	require.Contains(t, text, `may not create it | CREATE PUBLICATION "shelfwire" FOR TABLE "public"."product"`)

	d.exec(`CREATE TABLE stock (id bigint PRIMARY KEY, product_id bigint)`)
	text = texts(src.Check(t.Context(), postgres.Declared{
		Routes:    []route.Route{{Table: "public.stock", Parent: &route.Parent{Column: "product_id", Table: "public.product", ID: "id", Key: "id"}}},
		Documents: `SELECT id::text AS product_id, ''::text AS shop, '{}'::jsonb AS document FROM product WHERE id::text = ANY ($1)`,
	}))
	require.Contains(t, text, `CREATE PUBLICATION "shelfwire" FOR TABLE "public"."stock", "public"."product"`, "parents are captured as well")
	require.Contains(t, text, `permission denied for table product`)
	require.Contains(t, text, `GRANT SELECT ON ... TO "`+role+`"`)
	require.NotContains(t, text, "correct the SQL")

	err := src.EnsurePublication(t.Context(), []string{"public.product"})
	require.ErrorContains(t, err, `CREATE PUBLICATION "shelfwire" FOR TABLE "public"."product" WITH`)
	_, err = src.EnsureSlot(t.Context())
	require.ErrorContains(t, err, "REPLICATION")
}

// TestSetupSQLIsEnough runs the script that init prints and captures with nothing but the role that it made.
// A parent that has no route of its own is captured too: its rows say where those of others belong.
func TestSetupSQLPublishesParents(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE product (id bigint PRIMARY KEY); CREATE TABLE orders (id bigint PRIMARY KEY); CREATE TABLE bare (id bigint)`)
	found := texts(d.open(d.config()).Check(t.Context(), postgres.Declared{
		Routes: []route.Route{{Table: "public.product", Key: "id"}}, Mirrored: []string{"public.orders", "public.gone", "public.bare"},
		Documents: `SELECT id::text AS product_id, ''::text AS shop, '{}'::jsonb AS document FROM product WHERE id::text = ANY ($1)`,
	}))
	require.Contains(t, found, "mistake at mirror.tables.1: table public.gone does not exist")
	require.Contains(t, found, `mistake at mirror.tables.2`)
	require.Contains(t, found, `ALTER TABLE "public"."bare" REPLICA IDENTITY FULL`)
	require.NotContains(t, found, `ADD TABLE "public"."bare"`, "whoever ran it would break the application")
	require.NotContains(t, found, "orders")
	script, err := postgres.SetupSQL(postgres.Setup{Mirrored: []string{"sales.orders", "shop.stock"}, Routes: []route.Route{
		{Table: "shop.stock", Parent: &route.Parent{Column: "variant_id", Table: "other.variants", ID: "id", Key: "product_id"}},
	}})
	require.NoError(t, err)
	require.Contains(t, script, `"other"."variants"`)
	require.Contains(t, script, `"sales"."orders"`)
	require.Equal(t, 1, strings.Count(script, "  \"shop\".\"stock\""), "once")
	require.Contains(t, script, `GRANT USAGE ON SCHEMA "shop", "other"`)
}

func TestSetupSQLIsEnough(t *testing.T) {
	d := newDatabase(t, reference.SchemaSQL())
	routes, err := reference.Routes()
	require.NoError(t, err)
	owner := d.open(d.config())
	identities, err := owner.Identities(t.Context(), routes)
	require.NoError(t, err)
	require.NotEmpty(t, identities)
	db := d.text("SELECT current_database()")
	script, err := postgres.SetupSQL(postgres.Setup{
		Database: db, Role: "r_" + db, Routes: routes, Identities: identities, StateDatabase: "s_" + db, StateRole: "so_" + db,
	})
	require.NoError(t, err)
	t.Cleanup(func() {
		for _, s := range []string{"DROP DATABASE s_" + db, "DROP OWNED BY r_" + db, "DROP ROLE r_" + db, "DROP ROLE so_" + db} {
			d.exec(s)
		}
	})
	require.NotContains(t, strings.ToLower(script), "trigger")
	for stmt := range strings.SplitSeq(withoutComments(script), ";") {
		if strings.TrimSpace(stmt) != "" {
			d.exec(stmt)
		}
	}
	d.exec(`ALTER ROLE "r_` + db + `" PASSWORD 'x'`)
	cfg := d.config()
	cfg.URL = withUser(t, d.url, "r_"+db, "x")
	src := d.open(cfg)
	require.Empty(t, src.Check(t.Context(), postgres.Declared{Routes: routes, Documents: reference.DocumentsSQL()}))
	require.NoError(t, src.EnsurePublication(t.Context(), postgres.Tables(routes)))
	_, err = src.EnsureSlot(t.Context())
	require.NoError(t, err)
	st := stream(t, src, 0)
	d.exec(`INSERT INTO catalog.stores (name) SELECT 'x' WHERE false`)
	require.Empty(t, d.rows(st))
	_, err = src.ReadChunk(t.Context(), change.ChunkQuery{Selection: change.Selection{Table: "catalog.products"}, Limit: 10})
	require.NoError(t, err)
	_, err = src.EmitMessage(t.Context(), "x", nil)
	require.NoError(t, err)

	plain, err := postgres.SetupSQL(postgres.Setup{Routes: routes})
	require.NoError(t, err)
	require.Contains(t, plain, "REPLICA IDENTITY FULL")
	_, err = postgres.SetupSQL(postgres.Setup{})
	require.Error(t, err)
}

func withoutComments(sql string) string {
	var b strings.Builder
	for line := range strings.Lines(sql) {
		if !strings.HasPrefix(line, "--") && !strings.HasPrefix(line, `\`) {
			b.WriteString(line)
		}
	}
	return b.String()
}

func withUser(t *testing.T, raw, user, password string) string {
	t.Helper()
	u, err := url.Parse(raw)
	require.NoError(t, err)
	u.User = url.UserPassword(user, password)
	return u.String()
}
