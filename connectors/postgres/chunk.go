package postgres

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/shelfwire/shelfwire/schemas/change"
)

// tableError is something about a table that no second try will mend.
type tableError string

func (e tableError) Error() string { return string(e) }

// Permanent says that trying again does not help.
func (tableError) Permanent() bool { return true }

// Errors about a table. They are Permanent.
var (
	// ErrNoPrimaryKey is returned for a table whose rows have no key to go on from.
	ErrNoPrimaryKey error = tableError("the table has no primary key, so a snapshot of it could not be resumed: add one, or leave the table out of the routes")
	// ErrNoTable is returned for a table that does not exist.
	ErrNoTable error = tableError("there is no such table")
	// ErrNoColumn is returned for a column that does not exist.
	ErrNoColumn error = tableError("there is no such column")

	errKeyChanged error = tableError("the key to go on from does not fit the primary key, which was changed while the snapshot ran: " +
		"run once with --restart-capture to take a whole snapshot")
)

// chunkBytes is about how much of a table a chunk holds: it lies in memory as a whole, and once more as records.
const chunkBytes = 8 << 20

// chunkFirst is how many rows are fetched before their width is known, and chunkStep the most at a time after that, as
// the next ones may be wider.
const chunkFirst, chunkStep = 8, 64

// ReadChunk reads up to limit rows of a table ("schema.name") whose primary key is greater than after, in one
// REPEATABLE READ READ ONLY transaction; an empty after begins at the first. Of wide rows it reads fewer, about 8 MiB.
// A partitioned table is read through its root, any other without tables that inherit from it: the stream gives their
// rows their own name. Columns and rows are those that the publication lets through, as in the stream. It takes no lock
// that a writer would notice.
//
// The rows are as the snapshot saw them, which is some moment, not that of any position: whoever merges them with the
// stream needs marks around the call ([Source.EmitMessage]) and the snapshot.
func (s *Source) ReadChunk(ctx context.Context, name string, after []string, limit int) (change.Chunk, error) {
	c := change.Chunk{LastKey: after}
	m, err := s.read(ctx, "read a chunk of "+name, func(pg *pgconn.PgConn) error {
		t, err := s.describe(ctx, pg, name)
		if err != nil {
			return err
		}
		sql, err := chunkSQL(t, after, limit)
		if err != nil {
			return err
		}
		args := make([][]byte, len(after))
		for i, k := range after {
			args[i] = []byte(k)
		}
		c.Relation = s.shapes.intern(t.Relation)
		err = fillChunk(ctx, pg, &c, sql, args, limit)
		if q, ok := errors.AsType[*QueryError](err); ok && len(after) > 0 && q.Data() {
			return fmt.Errorf("%w: %w", errKeyChanged, err)
		}
		return err
	})
	if err != nil {
		return change.Chunk{}, err
	}
	c.Snapshot, c.ReadAt = m.snapshot, m.at
	if len(c.Rows) > 0 {
		c.LastKey = keyText(c.Relation, c.Rows[len(c.Rows)-1])
	}
	return c, nil
}

// fillChunk reads rows by a cursor, as many at a time as their width allows, and says whether none is left behind them.
func fillChunk(ctx context.Context, pg *pgconn.PgConn, c *change.Chunk, sql string, args [][]byte, limit int) error {
	err := query(ctx, pg, "DECLARE chunk NO SCROLL CURSOR FOR "+sql, args, func([]string, [][]byte) error { return nil })
	if err != nil {
		return err
	}
	bytes, step := 0, min(chunkFirst, limit+1)
	for step > 0 {
		before := len(c.Rows)
		err := query(ctx, pg, "FETCH "+strconv.Itoa(step)+" FROM chunk", nil, func(_ []string, v [][]byte) error {
			c.Rows = append(c.Rows, tupleOf(v))
			for _, b := range v {
				bytes += len(b)
			}
			return nil
		})
		if err != nil {
			return err
		}
		if len(c.Rows)-before < step {
			break // the last row has come
		}
		each := bytes/len(c.Rows) + 1
		step = min(chunkStep, limit+1-len(c.Rows), (chunkBytes-bytes)/each)
		if step <= 0 {
			c.Rows, c.Done = c.Rows[:min(limit, len(c.Rows))], false
			return nil
		}
	}
	c.Done = true
	return nil
}

// chunkSQL asks for one row more than limit, to know whether another chunk follows.
func chunkSQL(t *table, after []string, limit int) (string, error) {
	switch {
	case t == nil:
		return "", ErrNoTable
	case len(t.PrimaryKey) == 0:
		return "", ErrNoPrimaryKey
	case len(after) > 0 && len(after) != len(t.PrimaryKey):
		return "", fmt.Errorf("%w: the one has %d columns, the other %d", errKeyChanged, len(after), len(t.PrimaryKey))
	case limit < 1:
		return "", fmt.Errorf("a chunk of %d rows", limit)
	}
	var columns, key, from, where []string
	for _, c := range t.Columns {
		columns = append(columns, quoteIdent(c.Name))
	}
	for i, c := range t.PrimaryKey {
		key = append(key, quoteIdent(c))
		if t.Index(c) < 0 {
			return "", tableError(fmt.Sprintf("the publication's column list leaves out %s of the primary key", c))
		}
		from = append(from, "$"+strconv.Itoa(i+1)+"::"+t.casts[i])
	}
	if len(after) > 0 {
		// The comparison of rows is what an index on all key columns answers by one range scan.
		where = append(where, fmt.Sprintf("(%s) > (%s)", strings.Join(key, ", "), strings.Join(from, ", ")))
	}
	if t.filter != "" {
		where = append(where, "("+t.filter+")")
	}
	only := "ONLY "
	if t.kind == "p" {
		only = "" // its rows are all in its partitions
	}
	sql := "SELECT " + strings.Join(columns, ", ") + " FROM " + only + quoteIdent(t.Schema) + "." + quoteIdent(t.Name)
	if len(where) > 0 {
		sql += " WHERE " + strings.Join(where, " AND ")
	}
	return sql + " ORDER BY " + strings.Join(key, ", ") + " LIMIT " + strconv.Itoa(limit+1), nil
}

// tupleOf copies a row into one allocation for all its bytes.
func tupleOf(v [][]byte) change.Tuple {
	n := 0
	for _, b := range v {
		n += len(b)
	}
	data := make([]byte, 0, n)
	t := make(change.Tuple, len(v))
	for i, b := range v {
		if b == nil {
			t[i].Kind = change.Null
			continue
		}
		at := len(data)
		data = append(data, b...)
		t[i] = change.Value{Kind: change.Text, Data: data[at:len(data):len(data)]}
	}
	return t
}

func keyText(rel *change.Relation, row change.Tuple) []string {
	key := make([]string, len(rel.PrimaryKey))
	for i, c := range rel.PrimaryKey {
		key[i] = string(row[rel.Index(c)].Data)
	}
	return key
}

// EmitMessage writes a non-transactional logical message into the WAL and returns where it ends, which is the LSN of
// the message in the stream. When the call returns, the message is flushed, so that it reaches the stream at once:
// left to the WAL writer it would take up to wal_writer_delay (200 ms), and longer on an idle server. Before
// PostgreSQL 17 that costs one transaction id.
func (s *Source) EmitMessage(ctx context.Context, prefix string, content []byte) (change.LSN, error) {
	sql := "SELECT pg_logical_emit_message(false, $1, $2::bytea, true)::text, '', ''"
	if s.version < 170000 {
		// A commit flushes what stands before it, provided that its transaction has an id.
		sql = `SELECT pg_logical_emit_message(false, $1, $2::bytea)::text, pg_current_xact_id()::text, set_config('synchronous_commit', 'local', true)`
	}
	if content == nil {
		content = []byte{} // a NULL would write nothing
	}
	var lsn, xid, setting string
	if err := s.pool.QueryRow(ctx, sql, prefix, content).Scan(&lsn, &xid, &setting); err != nil {
		return 0, wrap(ctx, "write a logical message", err)
	}
	return change.ParseLSN(lsn)
}
