package postgres

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/shelfwire/shelfwire/schemas/route"
)

// Tables lists the tables of the routes, each once, in the order of the routes.
func Tables(routes []route.Route) []string {
	var tables []string
	for _, r := range routes {
		if !slices.Contains(tables, r.Table) {
			tables = append(tables, r.Table)
		}
	}
	return tables
}

// published lists the tables that are captured: those of the routes, and the parents that they lead through, whose rows
// say where those of others belong; and those that are only mirrored.
func published(routes []route.Route, mirrored []string) []string {
	tables := Tables(routes)
	for _, r := range routes {
		if r.Parent != nil && !slices.Contains(tables, r.Parent.Table) {
			tables = append(tables, r.Parent.Table)
		}
	}
	for _, t := range mirrored {
		if !slices.Contains(tables, t) {
			tables = append(tables, t)
		}
	}
	return tables
}

// need is what routes read of the old rows of a table.
type need struct {
	all     bool
	columns []string
}

// needs says for each routed table what its replica identity must hold: the column that leads to the product, what
// batch_when compares, and for a query the whole row, as it may read any column. The rows of a parent table need no
// more than the primary key: their own route says the rest.
func needs(routes []route.Route) map[string]need {
	by := map[string]need{}
	for _, r := range routes {
		n := by[r.Table]
		cols := slices.Clone(r.BatchWhen)
		switch {
		case r.Query != "":
			n.all = true
		case r.Parent != nil:
			cols = append(cols, r.Parent.Column)
		default:
			cols = append(cols, r.Key)
		}
		for _, c := range cols {
			if !slices.Contains(n.columns, c) {
				n.columns = append(n.columns, c)
			}
		}
		by[r.Table] = n
	}
	return by
}

// identities reports the tables whose old rows do not carry what the routes read.
func (c *checker) identities(ctx context.Context, routes []route.Route) {
	by := needs(routes)
	for _, table := range slices.Sorted(maps.Keys(by)) {
		if !c.exists(ctx, table) {
			continue // reported already
		}
		list, err := c.lacking(ctx, table, by[table])
		if err != nil {
			c.failed("route "+table, err)
			continue
		}
		for _, l := range list {
			c.add("route "+table, l.problem(), l.statement)
		}
	}
}

// Identities returns the statements that make the replica identities cover what the routes read, each with a comment
// that says what it costs. Tables that need nothing are left out; so are tables and columns that do not exist.
func (s *Source) Identities(ctx context.Context, routes []route.Route) ([]string, error) {
	var stmts []string
	by := needs(routes)
	for _, table := range Tables(routes) {
		list, err := s.lacking(ctx, table, by[table])
		if err != nil {
			return nil, err
		}
		for _, l := range list {
			stmts = append(stmts, "-- "+l.problem()+"\n"+l.statement)
		}
	}
	return stmts, nil
}

// lack is one table, or one partition, whose replica identity is too small.
type lack struct {
	table, kind string
	columns     []string // that it lacks
	statement   string
	cost        string
}

func (l *lack) problem() string {
	kind := map[string]string{"d": "DEFAULT", "n": "NOTHING", "i": "USING INDEX", "f": "FULL"}[l.kind]
	return fmt.Sprintf("the replica identity of %s is %s and lacks %s, which is needed to lead deleted and moved rows to the product that they leave; with the statement given, %s",
		l.table, kind, strings.Join(l.columns, ", "), l.cost)
}

// leaf is the routed table, or a partition of it. An identity is not inherited: that of the partition decides what is
// written of an old row, that of the root what the stream says of it, so both must do.
type leaf struct {
	name, kind string
	all, has   []string
	key        []string
	nullable   []string
	index      string // a unique index that would do, without the schema
	width      int64  // bytes of a row on average, 0 when not analyzed
	family     bool   // partitioned, or a partition
}

// lacking compares a table and its partitions with what is needed.
func (s *Source) lacking(ctx context.Context, table string, n need) ([]lack, error) {
	leaves, err := s.leaves(ctx, table, n.columns)
	if err != nil {
		return nil, err
	}
	var list []lack
	for _, l := range leaves {
		want := n.columns
		if n.all {
			want = l.all
		}
		var columns []string
		for _, c := range want {
			if slices.Contains(l.all, c) && !slices.Contains(l.has, c) {
				columns = append(columns, c)
			}
		}
		if len(columns) == 0 && (l.kind == "f" || !n.all) {
			continue
		}
		if len(columns) == 0 {
			columns = []string{"a promise to hold columns that are added later"}
		}
		list = append(list, l.lack(columns, n))
	}
	return list, nil
}

func (l *leaf) lack(columns []string, n need) lack {
	quoted, _ := quoteTable(l.name) // comes from the catalog
	k := lack{table: l.name, kind: l.kind, columns: columns}
	nullable := slices.ContainsFunc(n.columns, func(c string) bool { return slices.Contains(l.nullable, c) })
	switch {
	case n.all || nullable || len(l.key) == 0 || l.family && l.index == "":
		k.statement = "ALTER TABLE " + quoted + " REPLICA IDENTITY FULL;"
		k.cost = "each update and delete also writes the old row to the WAL"
		if l.width > 0 {
			k.cost += fmt.Sprintf(", about %d bytes", l.width)
		}
	case l.index != "":
		k.statement = fmt.Sprintf("ALTER TABLE %s REPLICA IDENTITY USING INDEX %s;", quoted, quoteIdent(l.index))
		k.cost = "deletes, and updates of these columns, also write the index columns to the WAL: some bytes"
	default:
		schema, name, _ := splitTable(l.name)
		index := name + "_identity"
		var cols []string
		for _, c := range append(slices.Clone(l.key), n.columns...) {
			if q := quoteIdent(c); !slices.Contains(cols, q) {
				cols = append(cols, q)
			}
		}
		k.statement = fmt.Sprintf("CREATE UNIQUE INDEX %s ON %s.%s (%s); ALTER TABLE %s REPLICA IDENTITY USING INDEX %s;",
			quoteIdent(index), quoteIdent(schema), quoteIdent(name), strings.Join(cols, ", "), quoted, quoteIdent(index))
		k.cost = "deletes, and updates of these columns, also write the index columns to the WAL: some bytes; the index must be kept (build it CONCURRENTLY on a large table)"
	}
	return k
}

func (s *Source) leaves(ctx context.Context, table string, columns []string) ([]leaf, error) {
	schema, name, err := splitTable(table)
	if err != nil {
		return nil, err
	}
	rows, err := s.pool.Query(ctx, `
		WITH root AS (
			SELECT c.oid, c.relkind FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2
		), part AS (
			SELECT oid, false AS family FROM root WHERE relkind = 'r' UNION ALL
			SELECT t.relid, true FROM root, pg_partition_tree(root.oid) t WHERE root.relkind = 'p' AND (t.isleaf OR t.relid = root.oid)
		), `+keySQL+`
		SELECT n.nspname || '.' || c.relname, c.relreplident::text, a.cols, a.has, a.key, a.nullable, coalesce(i.relname::text, ''), a.width, part.family
		FROM part JOIN pg_class c USING (oid) JOIN pg_namespace n ON n.oid = c.relnamespace
		LEFT JOIN key pk ON pk.indrelid = c.oid AND pk.indisprimary
		LEFT JOIN key ri ON ri.indrelid = c.oid AND ri.indisreplident
		CROSS JOIN LATERAL (
			SELECT array_agg(a.attname::text) AS cols,
				coalesce(array_agg(a.attname::text) FILTER (WHERE CASE c.relreplident WHEN 'f' THEN true
					WHEN 'd' THEN a.attnum = ANY (pk.cols) WHEN 'i' THEN a.attnum = ANY (ri.cols) END), '{}') AS has,
				coalesce(array_agg(a.attname::text) FILTER (WHERE a.attnum = ANY (pk.cols)), '{}') AS key,
				coalesce(array_agg(a.attname::text) FILTER (WHERE NOT a.attnotnull), '{}') AS nullable,
				coalesce((SELECT sum(st.avg_width) FROM pg_stats st WHERE st.schemaname = n.nspname AND st.tablename = c.relname), 0)::bigint AS width
			FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
		) a
		LEFT JOIN LATERAL (
			SELECT ic.relname FROM pg_index x JOIN pg_class ic ON ic.oid = x.indexrelid
			CROSS JOIN LATERAL (
				SELECT array_agg(xa.attname::text) AS cols, bool_and(xa.attnotnull) AS solid
				FROM unnest(x.indkey) WITH ORDINALITY k (n, place) JOIN pg_attribute xa ON xa.attrelid = x.indrelid AND xa.attnum = k.n
				WHERE k.place <= x.indnkeyatts
			) xc
			WHERE x.indrelid = c.oid AND x.indisunique AND x.indimmediate AND x.indisvalid AND x.indpred IS NULL AND x.indexprs IS NULL
				AND xc.solid AND xc.cols @> $3::text[] AND xc.cols @> a.key
			ORDER BY cardinality(xc.cols), ic.relname LIMIT 1
		) i ON true
		ORDER BY 1`, schema, name, columns)
	if err != nil {
		return nil, wrap(ctx, "look at the replica identity of "+table, err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (l leaf, err error) {
		err = row.Scan(&l.name, &l.kind, &l.all, &l.has, &l.key, &l.nullable, &l.index, &l.width, &l.family)
		return l, err
	})
	return list, wrap(ctx, "look at the replica identity of "+table, err)
}
