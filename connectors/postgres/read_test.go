package postgres_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/connectors/postgres"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/route"
)

func TestChunksReadATableOnceInKeyOrder(t *testing.T) {
	d := newDatabase(
		t, `CREATE TABLE k (b text, z numeric, a char(4), PRIMARY KEY (z, a))`,
		`INSERT INTO k SELECT 'r' || i, CASE WHEN i % 3 = 0 THEN 'NaN' ELSE i::numeric / 7 END, lpad(i::text, 3) FROM generate_series(1, 100) i`,
	)
	src := d.open(d.config())
	var got []string
	var after []string
	var rel *change.Relation
	for chunks := 1; ; chunks++ {
		c, err := src.ReadChunk(t.Context(), change.ChunkQuery{Selection: change.Selection{Table: "public.k"}, After: after, Limit: 9})
		require.NoError(t, err)
		for _, r := range c.Rows {
			got = append(got, string(r[0].Data))
		}
		if rel != nil {
			require.Same(t, rel, c.Relation)
		}
		rel, after = c.Relation, c.LastKey
		require.WithinDuration(t, time.Now(), c.ReadAt, time.Minute)
		if c.Done {
			require.Equal(t, 12, chunks, "100 rows in chunks of 9")
			break
		}
		require.Len(t, c.Rows, 9)
	}
	require.Equal(t, []string{"z", "a"}, rel.PrimaryKey)
	require.Equal(t, d.text(`SELECT string_agg(b, ' ' ORDER BY z, a) FROM k`), strings.Join(got, " "))

	c, err := src.ReadChunk(t.Context(), change.ChunkQuery{Selection: change.Selection{Table: "public.k"}, After: after, Limit: 9})
	require.NoError(t, err)
	require.True(t, c.Done)
	require.Empty(t, c.Rows)
	require.Equal(t, after, c.LastKey)
}

func TestIncludedColumnsAreNoKey(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE k (b int NOT NULL, a int, product_id int NOT NULL, PRIMARY KEY (a) INCLUDE (b))`, `INSERT INTO k VALUES (1, 2, 3)`)
	src := d.open(d.config())
	c, err := src.ReadChunk(t.Context(), change.ChunkQuery{Selection: change.Selection{Table: "public.k"}, Limit: 10})
	require.NoError(t, err)
	require.Equal(t, []string{"a"}, c.Relation.PrimaryKey)
	require.Equal(t, []string{"2"}, c.LastKey)
	require.False(t, c.Relation.Columns[0].Identity)
	stmts, err := src.Identities(t.Context(), []route.Route{{Table: "public.k", Key: "b"}})
	require.NoError(t, err)
	require.Contains(t, strings.Join(stmts, ""), `("a", "b")`)
}

func TestChunkRefusesWhatItCannotResume(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE nokey (a int); CREATE TABLE k (id int PRIMARY KEY)`)
	src := d.open(d.config())
	_, err := src.ReadChunk(t.Context(), change.ChunkQuery{Selection: change.Selection{Table: "public.nokey"}, Limit: 10})
	require.ErrorIs(t, err, postgres.ErrNoPrimaryKey)
	_, err = src.ReadChunk(t.Context(), change.ChunkQuery{Selection: change.Selection{Table: "public.gone"}, Limit: 10})
	require.ErrorIs(t, err, postgres.ErrNoTable)
	_, err = src.ReadChunk(t.Context(), change.ChunkQuery{Selection: change.Selection{Table: "public.k"}, After: []string{"1", "2"}, Limit: 10})
	require.ErrorContains(t, err, "primary key")
	_, err = src.ReadChunk(t.Context(), change.ChunkQuery{Selection: change.Selection{Table: "k"}, Limit: 10})
	require.ErrorContains(t, err, "want schema.name")
}

func TestChunkKeepsToThePublication(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE k (id int PRIMARY KEY, a text, secret text, twice int GENERATED ALWAYS AS (id * 2) STORED)`)
	src := d.open(d.config())
	d.exec(`CREATE PUBLICATION shelfwire FOR TABLE k (id, a) WHERE (id > 1) WITH (publish_via_partition_root)`)
	require.NoError(t, src.EnsurePublication(t.Context(), []string{"public.k"}))
	_, err := src.EnsureSlot(t.Context())
	require.NoError(t, err)
	st := stream(t, src, 0)
	d.exec(`INSERT INTO k VALUES (1, 'x', 's'), (2, 'y', 's')`)
	rows := d.rows(st)
	c, err := src.ReadChunk(t.Context(), change.ChunkQuery{Selection: change.Selection{Table: "public.k"}, Limit: 10})
	require.NoError(t, err)
	require.Len(t, rows, 1)
	require.Len(t, c.Rows, 1)
	require.Equal(t, map[string]string{"id": "2", "a": "y"}, rows[0].After)
	require.Equal(t, rows[0].After, images(c.Relation, c.Rows[0]))
}

// TestStreamAndChunkAgree holds every value of the type catalog against itself: as the stream sends it, and as a
// chunk reads it.
func TestStreamAndChunkAgree(t *testing.T) {
	dir := filepath.Join("..", "..", "..", "shared", "debezium")
	schema, err := os.ReadFile(filepath.Join(dir, "schema.sql"))
	if err != nil && os.Getenv("CI") != "true" {
		t.Skip("the type catalog is not here")
	}
	require.NoError(t, err)
	data, err := os.ReadFile(filepath.Join(dir, "types.sql"))
	require.NoError(t, err)
	schemaSQL, _, _ := strings.Cut(string(schema), "-- ---------- operations")
	dataSQL, _, _ := strings.Cut(string(data), "-- ---------- operations")
	d := newDatabase(t, withoutMeta(schemaSQL))
	var tables []string
	list, err := d.conn.Query(t.Context(), `SELECT 'public.' || relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace`)
	require.NoError(t, err)
	for list.Next() {
		var name string
		require.NoError(t, list.Scan(&name))
		tables = append(tables, name)
	}
	require.NoError(t, list.Err())
	src := d.capture(tables...)
	st := stream(t, src, 0)
	d.exec(withoutMeta(dataSQL))
	d.exec("RESET timezone; RESET datestyle")

	streamed := map[string]map[string]string{}
	for _, r := range d.rows(st) {
		streamed[r.Table+"/"+r.After["id"]] = r.After
	}
	require.Greater(t, len(streamed), 150)
	values := 0
	for _, table := range tables {
		c, err := src.ReadChunk(t.Context(), change.ChunkQuery{Selection: change.Selection{Table: table}, Limit: 1000})
		require.NoError(t, err)
		for _, r := range c.Rows {
			chunk := images(c.Relation, r)
			require.Equal(t, streamed[table+"/"+chunk["id"]], chunk, table)
			delete(streamed, table+"/"+chunk["id"])
			values += len(chunk)
		}
	}
	require.Empty(t, streamed, "rows that the chunks did not have")
	t.Logf("%d values of %d tables", values, len(tables))
}

// withoutMeta drops the lines of psql itself.
func withoutMeta(sql string) string {
	var b strings.Builder
	for line := range strings.Lines(sql) {
		if !strings.HasPrefix(line, `\`) {
			b.WriteString(line)
		}
	}
	return b.String()
}

const catalog = `
	CREATE TABLE product (id bigint PRIMARY KEY, title text, n int);
	CREATE TABLE variant (id bigint PRIMARY KEY, product_id bigint REFERENCES product);
	INSERT INTO product SELECT i, 'p' || i, 1 FROM generate_series(1, 20) i;
	INSERT INTO variant SELECT i, CASE WHEN i < 40 THEN (i + 1) / 2 END FROM generate_series(1, 40) i;`

func TestParentKeys(t *testing.T) {
	d := newDatabase(t, catalog)
	src := d.open(d.config())
	p := route.Parent{Column: "variant_id", Table: "public.variant", ID: "id", Key: "product_id"}
	keys, snap, err := src.ParentKeys(t.Context(), p, []string{"1", "2", "03", "40", "99"})
	require.NoError(t, err)
	require.Equal(t, map[string]change.ParentRow{"1": {ID: "1", Product: "1"}, "2": {ID: "2", Product: "1"}, "03": {ID: "3", Product: "2"}}, keys, "no product and no row are left out")
	require.NotZero(t, snap.Xmax)
	_, _, err = src.ParentKeys(t.Context(), p, []string{"x"})
	var q *postgres.QueryError
	require.ErrorAs(t, err, &q)
	require.True(t, q.Data())
	p.ID = "nope"
	_, _, err = src.ParentKeys(t.Context(), p, []string{"1"})
	require.ErrorIs(t, err, postgres.ErrNoColumn)
}

func TestPage(t *testing.T) {
	d := newDatabase(t, catalog)
	src := d.open(d.config())
	const sql = `SELECT id::text FROM product WHERE n = ($1::jsonb ->> 'n')::int AND id::text COLLATE "C" > $2 ORDER BY id::text COLLATE "C" LIMIT $3`
	one := "1"
	image := map[string]*string{"n": &one, "none": nil}
	var all []change.ProductID
	for after := ""; ; {
		page, err := src.Page(t.Context(), sql, image, after, 7)
		require.NoError(t, err)
		all = append(all, page.Products...)
		if page.Rows < 7 {
			break
		}
		after = string(page.Products[len(page.Products)-1])
	}
	require.Len(t, all, 20)
	require.Equal(t, change.ProductID("1"), all[0])
	require.Equal(t, change.ProductID("10"), all[1])
}

const documents = `
	SELECT p.id::text AS product_id, 'main'::text AS shop, jsonb_build_object('title', p.title, 'x', 10 / p.n) AS document
	FROM product p WHERE p.id::text = ANY ($1) ORDER BY p.id`

// A page of a thousand products is read in 8 ms; compiled first, as its cost is thought to be high, in 260.
func TestReadsAreNotCompiled(t *testing.T) {
	d := newDatabase(t)
	page, err := d.open(d.config()).Page(t.Context(), `SELECT current_setting('jit') FROM (SELECT $1::jsonb, $2::text, $3::int) asked`, nil, "", 1)
	require.NoError(t, err)
	require.Equal(t, []change.ProductID{"off"}, page.Products)
}

func TestDocuments(t *testing.T) {
	d := newDatabase(t, catalog)
	src := d.open(d.config())
	xid := d.text(`UPDATE product SET title = E'q"\\t' WHERE id = 2 RETURNING pg_current_xact_id()::text`)
	rows, snap, at, err := src.Documents(t.Context(), documents, []change.ProductID{"2", "3", `odd "id\`, "99"})
	require.NoError(t, err)
	require.Len(t, rows, 2)
	require.JSONEq(t, `{"title": "q\"\\t", "x": 10}`, string(rows[0].Document))
	require.Equal(t, "main", rows[0].Shop)
	require.WithinDuration(t, time.Now(), at, time.Minute)
	var x uint64
	_, err = fmt.Sscan(xid, &x)
	require.NoError(t, err)
	require.True(t, snap.Sees(change.XID(x)))

	// What is not committed is neither read nor seen by the snapshot.
	d.exec(`BEGIN; UPDATE product SET title = 'open' WHERE id = 3`)
	open := d.text(`SELECT pg_current_xact_id()::text`)
	_, err = fmt.Sscan(open, &x)
	require.NoError(t, err)
	rows, snap, _, err = src.Documents(t.Context(), documents, []change.ProductID{"3"})
	require.NoError(t, err)
	require.JSONEq(t, `{"title": "p3", "x": 10}`, string(rows[0].Document))
	require.False(t, snap.Sees(change.XID(x)))
	d.exec(`COMMIT`)
}

func TestDocumentsErrorsSayWhatToDo(t *testing.T) {
	d := newDatabase(t, catalog, `UPDATE product SET n = 0 WHERE id = 7`)
	cfg := d.config()
	cfg.StatementTimeout = 200 * time.Millisecond
	src := d.open(cfg)
	try := func(sql string, ids ...change.ProductID) *postgres.QueryError {
		t.Helper()
		_, _, _, err := src.Documents(t.Context(), sql, ids)
		var q *postgres.QueryError
		require.ErrorAs(t, err, &q)
		require.ErrorContains(t, err, "read the documents of")
		return q
	}
	q := try(documents, "6", "7")
	require.Equal(t, "22012", q.SQLSTATE)
	require.True(t, q.Data())
	require.False(t, q.Temporary())

	q = try(`SELECT p.id::text AS product_id, 'x' AS shop, gone AS document FROM product p WHERE p.id::text = ANY ($1)`, "6")
	require.False(t, q.Data(), "no single product is to blame")
	require.False(t, q.Temporary())
	require.False(t, try(`SELECT id::text, 'x' AS shop, '{}' AS document FROM product WHERE id::text = ANY ($1)`, "6").Data())

	require.True(t, try(`SELECT pg_sleep(3)::text AS product_id, '' AS shop, '{}' AS document WHERE '6' = ANY ($1)`, "6").Temporary())

	d.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'shelfwire' AND datname = current_database()`)
	_, _, _, err := src.Documents(t.Context(), documents, []change.ProductID{"6"})
	if err != nil { // the pool may have noticed and replaced the connection
		var q *postgres.QueryError
		require.ErrorAs(t, err, &q)
		require.True(t, q.Temporary())
	}
	_, _, _, err = src.Documents(t.Context(), documents, []change.ProductID{"6"})
	require.NoError(t, err, "the pool recovers")
}
