package postgres

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/shelfwire/shelfwire/schemas/change"
)

// types remembers what the catalog says of types that do not come with Postgres. What a type is made of never changes
// as long as it lives, so an answer is good for ever; a new OID is asked for with the first table that has it.
type types struct {
	mu sync.Mutex
	m  map[uint32]change.Form
}

// typesSQL follows domains down to what they are over, and says of arrays what their elements are: a row for each type
// with its own OID, the OID and modifier of what is left, the delimiter of an array (0 where it is none), and whether
// that is an hstore.
const typesSQL = `
	WITH RECURSIVE down (root, element, delim, oid, mod, depth) AS (
		SELECT t.oid, false, 0, t.oid, -1, 0 FROM unnest($1::oid[]) AS o JOIN pg_type t ON t.oid = o
		UNION ALL
		SELECT d.root, d.element OR t.typtype <> 'd', CASE WHEN t.typtype = 'd' THEN d.delim ELSE ascii(e.typdelim::text) END,
			CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.typelem END,
			CASE WHEN t.typtype = 'd' AND t.typtypmod >= 0 THEN t.typtypmod ELSE d.mod END, d.depth + 1
		FROM down d JOIN pg_type t ON t.oid = d.oid LEFT JOIN pg_type e ON e.oid = t.typelem
		WHERE (t.typtype = 'd' OR NOT d.element AND t.typinput = 'pg_catalog.array_in'::regproc) AND t.oid >= 10000
	)
	SELECT DISTINCT ON (d.root) d.root, d.delim, d.oid, d.mod, t.typtype = 'b' AND t.typname = 'hstore'
	FROM down d JOIN pg_type t ON t.oid = d.oid ORDER BY d.root, d.depth DESC`

// formQuery runs a statement with text parameters and gives its rows.
type formQuery func(sql string, args [][]byte, each func([]string, [][]byte) error) error

// complete gives the columns of a relation their forms. It reports whether the catalog had all of their types.
func (t *types) complete(rel *change.Relation, ask formQuery) (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var unknown []string
	for i := range rel.Columns {
		c := &rel.Columns[i]
		if _, ok := t.m[c.TypeOID]; !ok && c.TypeOID >= change.FirstAssignedOID {
			unknown = append(unknown, strconv.FormatUint(uint64(c.TypeOID), 10))
		}
	}
	if len(unknown) > 0 {
		if t.m == nil {
			t.m = map[uint32]change.Form{}
		}
		if err := ask(typesSQL, [][]byte{arrayLiteral(unknown)}, t.learn); err != nil {
			return false, fmt.Errorf("types of %s: %w", rel.Table(), err)
		}
	}
	all := true
	for i := range rel.Columns {
		c := &rel.Columns[i]
		if c.TypeOID < change.FirstAssignedOID {
			continue
		}
		f, ok := t.m[c.TypeOID]
		all = all && ok
		if f.Mod < 0 { // an array of a type that takes a modifier has it on the column
			f.Mod = c.TypeMod
		}
		c.Form = f // of a type that is gone: that of text
	}
	return all, nil
}

func (t *types) learn(_ []string, v [][]byte) error {
	var n [4]int64
	for i := range n {
		var err error
		if n[i], err = strconv.ParseInt(string(v[i]), 10, 64); err != nil {
			return fmt.Errorf("catalog of types: %w", err)
		}
	}
	f := change.BuiltIn(uint32(n[2]), int32(n[3]))
	if string(v[4]) == "t" {
		f.OID = change.FormHstore
	}
	if n[1] != 0 {
		f = f.ArrayOf(byte(n[1]))
	}
	t.m[uint32(n[0])] = f
	return nil
}

// typePause and typeTries bound the wait for a type that was made by a transaction which has been streamed and is not
// visible yet. One that stays unknown is gone.
const (
	typePause = 10 * time.Millisecond
	typeTries = 20
)

// completeTypes gives a relation of the stream the forms of its columns.
func (s *Source) completeTypes(ctx context.Context, rel *change.Relation) error {
	if !slices.ContainsFunc(rel.Columns, func(c change.Column) bool { return c.TypeOID >= change.FirstAssignedOID }) {
		return nil
	}
	for try := 1; ; try++ {
		all, err := s.types.complete(rel, func(sql string, args [][]byte, each func([]string, [][]byte) error) error {
			conn, err := s.pool.Acquire(ctx)
			if err != nil {
				return wrap(ctx, "read the catalog", err)
			}
			defer conn.Release()
			return query(ctx, conn.Conn().PgConn(), sql, args, each)
		})
		if err != nil || all || try == typeTries {
			return err
		}
		if err := pauseFor(ctx, typePause); err != nil {
			return err
		}
	}
}

func pauseFor(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
