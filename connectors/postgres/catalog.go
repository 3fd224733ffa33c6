package postgres

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/shelfwire/shelfwire/schemas/change"
)

// table is a relation as the catalog describes it, with what reading its rows needs.
type table struct {
	*change.Relation
	kind string // pg_class.relkind
	// casts are the types of the primary key columns, with their modifiers: without one, char(4) would be char(1).
	casts []string
	// collations are those of the primary key columns, 0 for a type that has none: they decide the order.
	collations []string
	// pages and tuples are what the planner knows of the size; tuples is -1 before the first ANALYZE or VACUUM. For a
	// partitioned table they are sums. filenode is the file of a plain table, 0 for a partitioned one.
	pages, tuples float64
	filenode      string
	// filter is the publication's row filter as SQL; empty for none.
	filter string
}

// keySQL gives the key columns of each index, without those that are only included.
const keySQL = `key AS (
	SELECT indrelid, indisprimary, indisreplident, (indkey::int2[])[0:indnkeyatts - 1] AS cols FROM pg_index WHERE indisprimary OR indisreplident
)`

// describeStatement names the statement of describe where a connection has it prepared.
const describeStatement = "shelfwire_describe"

// describeSQL reads a table from the catalog, given its schema, its name and the publication.
func (s *Source) describeSQL() string {
	list := "NULL::name[], NULL::text"
	if s.version >= 150000 { // column lists and row filters
		list = "p.attnames, p.rowfilter"
	}
	// Before 18 no generated column is in the stream, but attnames may list them. From then on it lists those that are: stored
	// ones, where the publication's options or the column list say so.
	generated := "a.attgenerated = ''"
	if s.version >= 180000 {
		generated = "(a.attgenerated = '' OR u.attnames IS NOT NULL)"
	}
	return `
		WITH t AS (
			SELECT c.oid, c.relreplident, c.relkind, ` + list + `,
				CASE c.relkind WHEN 'p' THEN l.pages ELSE c.relpages END, CASE c.relkind WHEN 'p' THEN l.tuples ELSE c.reltuples END,
				coalesce(pg_relation_filenode(c.oid), 0)
			FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
			LEFT JOIN pg_publication_tables p ON p.schemaname = n.nspname AND p.tablename = c.relname AND p.pubname = $3
			LEFT JOIN LATERAL (
				SELECT sum(lc.relpages) AS pages, sum(greatest(lc.reltuples, 0)) AS tuples
				FROM pg_partition_tree(c.oid) pt JOIN pg_class lc ON lc.oid = pt.relid WHERE c.relkind = 'p' AND pt.isleaf
			) l ON true
			WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p')
		), u (oid, identity, kind, attnames, filter, pages, tuples, filenode) AS (TABLE t), ` + keySQL + `
		SELECT u.oid, u.identity, u.kind, coalesce(u.filter, ''), a.attname, a.atttypid, a.atttypmod, format_type(a.atttypid, a.atttypmod),
			coalesce(array_position(pk.cols, a.attnum), -1),
			CASE u.identity WHEN 'f' THEN true WHEN 'd' THEN a.attnum = ANY (pk.cols) ELSE a.attnum = ANY (ri.cols) END,
			a.attcollation, coalesce(u.pages, 0), coalesce(u.tuples, -1), u.filenode
		FROM u JOIN pg_attribute a ON a.attrelid = u.oid AND a.attnum > 0 AND NOT a.attisdropped AND ` + generated + `
		LEFT JOIN key pk ON pk.indrelid = u.oid AND pk.indisprimary
		LEFT JOIN key ri ON ri.indrelid = u.oid AND ri.indisreplident
		WHERE u.attnames IS NULL OR a.attname = ANY (u.attnames)
		ORDER BY a.attnum`
}

// describe reads the columns that the stream has as well: generated ones only where they are published, and those of the
// publication's column list where it has one. It returns nil when there is no such table.
func (s *Source) describe(ctx context.Context, pg *pgconn.PgConn, name string) (*table, error) {
	schema, rel, err := splitTable(name)
	if err != nil {
		return nil, err
	}
	var t *table
	type keyed struct {
		place                 int
		name, cast, collation string
	}
	var key []keyed
	args := [][]byte{[]byte(schema), []byte(rel), []byte(s.cfg.Publication)}
	var result *pgconn.ResultReader
	if pg.CustomData()[describeStatement] != nil {
		result = pg.ExecPrepared(ctx, describeStatement, args, nil, nil)
	} else {
		result = pg.ExecParams(ctx, s.describeSQL(), args, nil, nil, nil)
	}
	err = eachRow(ctx, result, func(_ []string, v [][]byte) error {
		if t == nil {
			oid, err := strconv.ParseUint(string(v[0]), 10, 32)
			if err != nil {
				return err
			}
			t = &table{
				Relation: &change.Relation{OID: uint32(oid), Schema: schema, Name: rel, ReplicaIdentity: v[1][0]},
				kind:     string(v[2]), filter: string(v[3]), filenode: string(v[13]),
			}
			t.pages, err = strconv.ParseFloat(string(v[11]), 64)
			if err == nil {
				t.tuples, err = strconv.ParseFloat(string(v[12]), 64)
			}
			if err != nil {
				return err
			}
		}
		typ, err1 := strconv.ParseUint(string(v[5]), 10, 32)
		mod, err2 := strconv.ParseInt(string(v[6]), 10, 32)
		place, err3 := strconv.Atoi(string(v[8]))
		if err1 != nil || err2 != nil || err3 != nil {
			return fmt.Errorf("catalog of %s: column %s", name, v[4])
		}
		col := string(v[4])
		t.Columns = append(t.Columns, change.Column{Name: col, TypeOID: uint32(typ), TypeMod: int32(mod), Identity: string(v[9]) == "t"})
		if place >= 0 {
			key = append(key, keyed{place, col, string(v[7]), string(v[10])})
		}
		return nil
	})
	if err != nil || t == nil {
		return nil, err
	}
	slices.SortFunc(key, func(a, b keyed) int { return a.place - b.place })
	for _, k := range key {
		t.PrimaryKey, t.casts, t.collations = append(t.PrimaryKey, k.name), append(t.casts, k.cast), append(t.collations, k.collation)
	}
	_, err = s.types.complete(t.Relation, func(sql string, args [][]byte, each func([]string, [][]byte) error) error {
		return query(ctx, pg, sql, args, each)
	})
	return t, err
}

// resolve completes a relation by its primary key. Under identity DEFAULT the flagged columns are the primary key,
// by the catalog as it was when the WAL was written. Only their order, where there are several, and the key under any
// other identity must come from the live catalog, which may be ahead of the stream: an answer that does not fit the
// description is not used.
func (st *Stream) resolve(ctx context.Context) error {
	rel := st.unresolved
	var flagged []string
	if rel.ReplicaIdentity == 'd' {
		for i := range rel.Columns {
			if rel.Columns[i].Identity {
				flagged = append(flagged, rel.Columns[i].Name)
			}
		}
	}
	key := flagged
	if rel.ReplicaIdentity != 'd' || len(flagged) > 1 {
		live, mixed, err := st.liveTable(ctx, rel.OID)
		if err != nil {
			return fmt.Errorf("primary key of %s: %w", rel.Table(), err)
		}
		// A new partition has the default identity, and the stream describes the root again before its first row.
		rel.Mixed = mixed && rel.ReplicaIdentity == 'f'
		fits := rel.ReplicaIdentity != 'd' || len(live) == len(flagged)
		for _, c := range live {
			i := rel.Index(c)
			fits = fits && i >= 0 && (rel.ReplicaIdentity != 'd' || rel.Columns[i].Identity)
		}
		if fits {
			key = live
		}
	}
	if err := st.src.completeTypes(ctx, rel); err != nil {
		return err
	}
	rel.PrimaryKey = key
	st.unresolved = nil
	return nil
}

// liveTable reads the columns of a primary key in key order, none where the table has none or is gone, and whether a
// partition of the table has another replica identity than FULL.
func (s *Source) liveTable(ctx context.Context, oid uint32) (key []string, mixed bool, err error) {
	err = s.pool.QueryRow(ctx, `
		SELECT ARRAY(SELECT a.attname::text
			FROM pg_index i CROSS JOIN unnest(i.indkey) WITH ORDINALITY k (attnum, n)
			JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
			WHERE i.indrelid = $1 AND i.indisprimary AND k.n <= i.indnkeyatts ORDER BY k.n),
			EXISTS (SELECT FROM pg_partition_tree($1::oid::regclass) t JOIN pg_class c ON c.oid = t.relid WHERE t.isleaf AND c.relreplident <> 'f')`,
		oid).Scan(&key, &mixed)
	return key, mixed, wrap(ctx, "read the catalog", err)
}

// columnType is the type of a column as SQL, with its modifier.
func columnType(ctx context.Context, pg *pgconn.PgConn, name, column string) (typ string, err error) {
	schema, rel, err := splitTable(name)
	if err != nil {
		return "", err
	}
	err = query(ctx, pg, `
		SELECT format_type(a.atttypid, a.atttypmod)
		FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = $1 AND c.relname = $2 AND a.attname = $3 AND a.attnum > 0 AND NOT a.attisdropped`,
		[][]byte{[]byte(schema), []byte(rel), []byte(column)}, func(_ []string, v [][]byte) error {
			typ = string(v[0])
			return nil
		})
	if err == nil && typ == "" {
		err = fmt.Errorf("%s.%s: %w", name, column, ErrNoColumn)
	}
	return typ, err
}

// shapes keeps one Relation for each shape of a table, so that its address stays the identity of the shape from one
// chunk to the next.
type shapes struct {
	mu sync.Mutex
	m  map[uint32]*change.Relation
	// wide is the widest row of each table's last chunk, in bytes.
	wide map[uint32]int
}

// widest is the widest row of the last chunk of a table, in bytes; 0 for none.
func (s *shapes) widest(oid uint32) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wide[oid]
}

func (s *shapes) setWidest(oid uint32, bytes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.wide == nil {
		s.wide = map[uint32]int{}
	}
	s.wide[oid] = bytes
}

// intern returns the relation that was kept for an equal one.
func (s *shapes) intern(r *change.Relation) *change.Relation {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.m[r.OID]; old != nil && old.Schema == r.Schema && old.Name == r.Name && old.ReplicaIdentity == r.ReplicaIdentity &&
		slices.Equal(old.Columns, r.Columns) && slices.Equal(old.PrimaryKey, r.PrimaryKey) {
		return old
	}
	if s.m == nil {
		s.m = map[uint32]*change.Relation{}
	}
	s.m[r.OID] = r
	return r
}
