package postgres

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// reads compares the tables that the documents query reads with those whose changes are routed. A table that no route
// names can change for years without a shop hearing of it.
//
// The tables are taken from the query's plan, so that views and functions that are inlined are seen through. Other
// functions are not: they are named, as a person knows what they read.
func (c *checker) reads(ctx context.Context, d *Declared) {
	p, err := c.plan(ctx, d.Documents)
	if err != nil {
		c.sql(documentsKey, documentsPlace, err, "correct the SQL")
		c.found[len(c.found)-1].Offset = 0 // in a statement around the query
		return
	}
	relations, err := c.relations(ctx, p.relations)
	if err != nil {
		c.failed(documentsPlace, err)
		return
	}
	opaque, err := c.opaque(ctx, p.texts)
	if err != nil {
		c.failed(documentsPlace, err)
		return
	}
	routed := Tables(d.Routes)
	var seen []string
	for _, r := range relations {
		seen = append(seen, r.name, r.root)
		if !slices.Contains(routed, r.root) && !slices.Contains(d.Unrouted, r.root) && !slices.Contains(d.Unrouted, r.name) {
			c.unrouted(r, d)
		}
	}
	c.exceptions(ctx, d, seen, len(opaque) > 0)
	if len(opaque) > 0 {
		c.found = append(c.found, Finding{
			Kind: FindingNote, Where: documentsPlace, Key: documentsKey,
			Problem: "it calls " + strings.Join(opaque, ", ") + ": what such a function reads is not known here",
			Mend:    "see that every table that it reads has a route",
		})
	}
}

// unrouted reports a table that is read and has no route.
func (c *checker) unrouted(r relation, d *Declared) {
	problem := "it reads " + r.root + ", which no route names: its changes would reach no shop"
	for _, rt := range d.Routes {
		if rt.Parent != nil && rt.Parent.Table == r.root {
			problem = "it reads " + r.root + ", which is only the parent of " + rt.Table + ": changes of its own would reach no shop"
		}
	}
	mend := "give it a route"
	switch r.kind {
	case "m":
		problem = "it reads the materialized view " + r.root + ": what a refresh changes would reach no shop"
		mend = "read its tables instead, with routes"
	case "f":
		problem = "it reads the foreign table " + r.root + ": changes of it are not in this server's WAL and would reach no shop"
		mend = "read a table of this database instead"
	}
	f := Finding{
		Kind: FindingGap, Where: documentsPlace, Key: "routes", Problem: problem,
		Mend: mend + "; or, if it does not change while Shelfwire runs, say so: unrouted: [" + r.root + "]",
	}
	if !slices.ContainsFunc(c.found, func(o Finding) bool { return o.Problem == f.Problem }) { // of another partition
		c.found = append(c.found, f)
	}
}

// exceptions looks at what unrouted names. hidden says that the query may read more than was seen.
func (c *checker) exceptions(ctx context.Context, d *Declared, seen []string, hidden bool) {
	for i, name := range d.Unrouted {
		key := fmt.Sprintf("unrouted.%d", i)
		var there bool
		quoted, err := quoteTable(name)
		if err == nil {
			err = wrap(ctx, "look at "+name, c.pool.QueryRow(ctx, "SELECT to_regclass($1) IS NOT NULL", quoted).Scan(&there))
		}
		switch {
		case err != nil:
			c.failed("unrouted", err)
		case !there:
			c.mistake(key, "unrouted", "table "+name+" does not exist", "correct the name (it is case sensitive), or take it out")
		case !hidden && !slices.Contains(seen, name):
			c.found = append(c.found, Finding{
				Kind: FindingNote, Where: "unrouted", Key: key, Problem: "the documents query does not read " + name, Mend: "take it out",
			})
		}
	}
}

// plan is what the plan of a query tells of it.
type plan struct {
	relations [][2]string // schema and name, each once
	texts     []string    // its expressions
}

// plan lets the server plan a query without running it. The plan is the generic one and keeps every partition: with
// values for the parameters, tables that these values do not concern would be planned away.
func (c *checker) plan(ctx context.Context, sql string) (plan, error) {
	var p plan
	name := "shelfwire_check_" + strings.ToLower(rand.Text()) // one that an earlier error has left behind must not matter
	_, err := c.read(ctx, "explain the documents query", func(pg *pgconn.PgConn) error {
		for _, stmt := range []string{
			"SET LOCAL plan_cache_mode = force_generic_plan; SET LOCAL enable_partition_pruning = off",
			"PREPARE " + name + " AS\n" + sql,
		} {
			if _, err := pg.Exec(ctx, stmt).ReadAll(); err != nil {
				return wrap(ctx, "prepare", err)
			}
		}
		res, err := pg.Exec(ctx, "EXPLAIN (VERBOSE, COSTS OFF, FORMAT JSON) EXECUTE "+name+"(NULL); DEALLOCATE "+name).ReadAll()
		if err != nil {
			return wrap(ctx, "explain", err)
		}
		if len(res) == 0 || len(res[0].Rows) == 0 {
			return errors.New("explain: the server answered nothing")
		}
		var doc any
		if err := json.Unmarshal(res[0].Rows[0][0], &doc); err != nil {
			return fmt.Errorf("read the plan: %w", err)
		}
		p.walk(doc)
		return nil
	})
	return p, err
}

// walk gathers from a plan as EXPLAIN writes it. Nodes of future servers are read alike.
func (p *plan) walk(node any) {
	switch n := node.(type) {
	case map[string]any:
		schema, _ := n["Schema"].(string)
		if name, ok := n["Relation Name"].(string); ok && !slices.Contains(p.relations, [2]string{schema, name}) {
			p.relations = append(p.relations, [2]string{schema, name})
		}
		for _, v := range n {
			p.walk(v)
		}
	case []any:
		for _, v := range n {
			p.walk(v)
		}
	case string:
		p.texts = append(p.texts, n)
	}
}

// relation is a table that is read. Changes of a partition carry the name of its root, which is the table itself for
// any other.
type relation struct {
	name, root string
	kind       string // pg_class.relkind
}

// relations looks up what a plan names, sorted, without the server's own catalogs and what lives as long as a session.
func (c *checker) relations(ctx context.Context, names [][2]string) ([]relation, error) {
	var schemas, tables []string
	for _, n := range names {
		schemas, tables = append(schemas, n[0]), append(tables, n[1])
	}
	rows, err := c.pool.Query(ctx, `
		SELECT n.nspname || '.' || c.relname, rn.nspname || '.' || r.relname, c.relkind::text
		FROM unnest($1::text[], $2::text[]) AS q(schema, name)
		JOIN pg_namespace n ON n.nspname = q.schema JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = q.name
		JOIN pg_class r ON r.oid = coalesce(pg_partition_root(c.oid), c.oid) JOIN pg_namespace rn ON rn.oid = r.relnamespace
		WHERE c.relpersistence <> 't' AND n.nspname NOT IN ('pg_catalog', 'information_schema')
		ORDER BY 1`, schemas, tables)
	if err != nil {
		return nil, wrap(ctx, "look at the tables of the documents query", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r relation, err error) {
		return r, row.Scan(&r.name, &r.root, &r.kind)
	})
	return list, wrap(ctx, "look at the tables of the documents query", err)
}

// opaque lists the functions of users that expressions of a plan call, each with its language. What is immutable reads
// no table, and extensions and C code read none of the user's.
func (c *checker) opaque(ctx context.Context, texts []string) ([]string, error) {
	rows, err := c.pool.Query(ctx, `
		SELECT DISTINCT n.nspname || '.' || p.proname || ' (' || l.lanname || ')',
			CASE WHEN pg_function_is_visible(p.oid) THEN '' ELSE quote_ident(n.nspname) || '.' END || quote_ident(p.proname),
			quote_ident(n.nspname) || '.' || quote_ident(p.proname)
		FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang
		WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND l.lanname NOT IN ('c', 'internal')
			AND p.prokind IN ('f', 'w') AND p.provolatile <> 'i'
			AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
		ORDER BY 1`)
	if err != nil {
		return nil, wrap(ctx, "look at functions", err)
	}
	var found []string
	var label, short, full string
	_, err = pgx.ForEachRow(rows, []any{&label, &short, &full}, func() error {
		call := regexp.MustCompile(`(^|[^\w."])(` + regexp.QuoteMeta(short) + `|` + regexp.QuoteMeta(full) + `)\(`)
		if slices.ContainsFunc(texts, call.MatchString) {
			found = append(found, label)
		}
		return nil
	})
	return found, wrap(ctx, "look at functions", err)
}
