package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
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

// missingTable is that of a table that is not there.
type missingTable struct{ tableError }

// NoTable says that the table does not exist.
func (missingTable) NoTable() bool { return true }

// Errors about a table. They are Permanent.
var (
	// ErrNoPrimaryKey is returned for a table whose rows nothing names, so that rows of a chunk could not be told from
	// those that changed while it was read.
	ErrNoPrimaryKey error = tableError("the table has no primary key, so a snapshot of it could not be resumed: add one, or, " +
		"for a table that is not partitioned, set REPLICA IDENTITY FULL, or leave the table out of the routes")
	// ErrNoTable is returned for a table that does not exist.
	ErrNoTable error = missingTable{"there is no such table"}
	// ErrNoColumn is returned for a column that does not exist.
	ErrNoColumn error = tableError("there is no such column")

	errKeyLength error = tableError("the key to go on from has another number of columns than the primary key")
)

// chunkBytes is about how much of a table a chunk holds: it lies in memory as a whole, and once more as records.
const chunkBytes = 8 << 20

// chunkFirst is how many rows are fetched of a table whose width is not known, and chunkStep the most at a time where
// nothing stops the server once too much has come.
const chunkFirst, chunkStep = 8, 64

// ReadChunk reads the next rows of a range in one REPEATABLE READ READ ONLY transaction: in the order of the primary
// key, or block by block where there is none (see [Source.CutTable]). Of wide rows it reads fewer, about 8 MiB. A
// partitioned table is read through its root, any other without tables that inherit from it: the stream gives their rows
// their own name. Columns and rows are those that the publication lets through, as in the stream. It takes no lock that
// a writer would notice.
//
// The rows are as the snapshot saw them, which is some moment, not that of any position: whoever merges them with the
// stream needs marks around the call ([Source.EmitMessage]) and the snapshot. A row that the server cannot send is a
// [*RowError].
func (s *Source) ReadChunk(ctx context.Context, q change.ChunkQuery) (change.Chunk, error) {
	c := change.Chunk{LastKey: q.After}
	if q.Limit < 1 {
		return c, fmt.Errorf("a chunk of %d rows", q.Limit)
	}
	m, err := s.readTable(ctx, "read a chunk of "+q.Table, readAhead{table: q.Table, mark: q.Mark, prefix: q.MarkPrefix}, func(pg *pgconn.PgConn) error {
		t, err := s.describe(ctx, pg, q.Table)
		if err != nil {
			return err
		}
		blocks, err := t.byBlocks()
		if err != nil {
			return err
		}
		c.Relation, c.Shape = s.shapes.intern(t.Relation), t.shape()
		switch {
		case q.Shape != "" && q.Shape != c.Shape:
			return nil // keys of another shape may not even be values of the columns
		case blocks:
			return s.readBlocks(ctx, pg, t, q, &c)
		}
		return s.readKeys(ctx, pg, t, q, &c)
	})
	switch {
	case tooLarge(err):
		pg, _ := errors.AsType[*pgconn.PgError](err) // not the type around it, which says that the statement is wrong
		return change.Chunk{}, &RowError{Slot: s.cfg.Slot, Publication: s.cfg.Publication, Table: q.Table, After: q.After, Err: pg}
	case err != nil:
		return change.Chunk{}, conditionError(ctx, &q.Selection, err)
	}
	c.Snapshot, c.ReadAt = m.snapshot, m.at
	return c, nil
}

// readKeys reads rows in the order of the primary key.
func (s *Source) readKeys(ctx context.Context, pg *pgconn.PgConn, t *table, q change.ChunkQuery, c *change.Chunk) error {
	sql, err := chunkSQL(t, &q)
	if err != nil {
		return err
	}
	var args [][]byte
	for _, k := range slices.Concat(q.After, q.Upto) {
		args = append(args, []byte(k))
	}
	f := chunkFill{limit: q.Limit, step: chunkStep, widest: s.shapes.widest(t.OID)}
	if q.All() && t.filter == "" { // each row that is passed is one that is wanted
		f.step = q.Limit + 1
	}
	var rows tuples
	if f.widest > 0 {
		c.Rows = make([]change.Tuple, 0, min(q.Limit, chunkBytes/f.widest)+1)
	}
	if err := f.read(ctx, pg, sql, args, c, func(v [][]byte) { c.Rows = append(c.Rows, rows.of(v)) }); err != nil {
		return err
	}
	if f.seen > 0 {
		s.shapes.setWidest(t.OID, f.seen)
	}
	if !c.Done {
		c.Rows = c.Rows[:min(q.Limit, len(c.Rows))]
	}
	if len(c.Rows) > 0 {
		c.LastKey = keyText(c.Relation, c.Rows[len(c.Rows)-1])
	}
	return nil
}

// chunkFill reads the rows of a chunk by a cursor.
type chunkFill struct {
	// limit is how many rows are wanted.
	limit int
	// step is the most rows that are fetched at a time. The server's statement timeout is for each step.
	step int
	// widest is the widest row that the table had the last time, in bytes, 0 while unknown; seen is that of this time.
	widest, seen int
}

// read fetches as many rows at a time as their width allows, and says whether none is left behind them. It asks for one
// row more than limit, to know.
//
// Rows may be wider than all before them: a step of many rows is cancelled once it has brought twice of what a chunk may
// hold. The rows that have come are the first ones of the query, and as good as any; the transaction can only be ended.
func (f *chunkFill) read(ctx context.Context, pg *pgconn.PgConn, sql string, args [][]byte, c *change.Chunk, add func([][]byte)) error {
	err := query(ctx, pg, "DECLARE chunk NO SCROLL CURSOR FOR "+sql, args, func([]string, [][]byte) error { return nil })
	if err != nil {
		return err
	}
	rows, bytes, step := 0, 0, min(chunkFirst, f.limit+1)
	if f.widest > 0 {
		step = min(f.step, f.limit+1, max(1, chunkBytes/f.widest))
	}
	for step > 0 {
		before, cancelled := rows, false
		err := query(ctx, pg, "FETCH "+strconv.Itoa(step)+" FROM chunk", nil, func(_ []string, v [][]byte) error {
			if cancelled {
				return nil
			}
			add(v)
			rows++
			n := 0
			for _, b := range v {
				n += len(b)
			}
			bytes, f.seen = bytes+n, max(f.seen, n)
			if bytes > 2*chunkBytes && step > chunkStep {
				cancelled = true
				return pg.CancelRequest(ctx)
			}
			return nil
		})
		if cancelled {
			c.Done = false
			if sqlstate(err) == "57014" { // unless it was done by then
				err = nil
			}
			return err
		}
		if err != nil {
			return err
		}
		if rows-before < step {
			break // the last row has come
		}
		each := bytes/rows + 1
		step = min(f.step, chunkFirst*step, f.limit+1-rows, (chunkBytes-bytes)/each)
		if step <= 0 {
			c.Done = false
			return nil
		}
	}
	c.Done = true
	return nil
}

// chunkSQL asks for one row more than the limit, to know whether another chunk follows.
func chunkSQL(t *table, q *change.ChunkQuery) (string, error) {
	var key, where []string
	for _, c := range t.PrimaryKey {
		key = append(key, quoteIdent(c))
		if t.Index(c) < 0 {
			return "", tableError(fmt.Sprintf("the publication's column list leaves out %s of the primary key", c))
		}
	}
	n := 0
	// The comparison of rows is what an index on all key columns answers by one range scan.
	bound := func(op string, values []string) error {
		switch len(values) {
		case 0:
			return nil
		case len(key):
		default:
			return fmt.Errorf("%w: %d and %d", errKeyLength, len(values), len(key))
		}
		var to []string
		for i := range values {
			n++
			to = append(to, "$"+strconv.Itoa(n)+"::"+t.casts[i])
		}
		where = append(where, fmt.Sprintf("(%s) %s (%s)", strings.Join(key, ", "), op, strings.Join(to, ", ")))
		return nil
	}
	if err := errors.Join(bound(">", q.After), bound("<=", q.Upto)); err != nil {
		return "", err
	}
	sql, err := t.selectSQL(t.columnList(), &q.Selection, where)
	return sql + " ORDER BY " + strings.Join(key, ", ") + " LIMIT " + strconv.Itoa(q.Limit+1), err
}

// columnList are the columns of a chunk as SQL.
func (t *table) columnList() string {
	var columns []string
	for _, c := range t.Columns {
		columns = append(columns, quoteIdent(c.Name))
	}
	return strings.Join(columns, ", ")
}

// from names the table in a FROM clause.
func (t *table) from() string {
	only := "ONLY "
	if t.kind == "p" {
		only = "" // its rows are all in its partitions
	}
	return only + quoteIdent(t.Schema) + "." + quoteIdent(t.Name)
}

// selectSQL reads the selected rows that the publication lets through and that meet other conditions as well.
func (t *table) selectSQL(columns string, sel *change.Selection, where []string) (string, error) {
	if t.filter != "" {
		where = append(where, "("+t.filter+")")
	}
	cond, err := selectionSQL(sel)
	if err != nil {
		return "", err
	}
	where = append(where, cond...)
	sql := "SELECT " + columns + " FROM " + t.from()
	if len(where) > 0 {
		sql += " WHERE " + strings.Join(where, " AND ")
	}
	return sql, nil
}

// tuples copies the rows of one chunk into large pieces of memory, which go when the chunk does.
type tuples struct {
	values []change.Value
	bytes  []byte
}

// The pieces: 16 KiB of values, and of bytes. Go makes larger objects at a higher price, from 32 KiB on.
const tupleValues, tupleBytes = 512, 16 << 10

// of copies a row.
func (p *tuples) of(v [][]byte) change.Tuple {
	n := 0
	for _, b := range v {
		n += len(b)
	}
	if p.bytes == nil || n > cap(p.bytes)-len(p.bytes) {
		p.bytes = make([]byte, 0, max(n, tupleBytes))
	}
	if len(v) > len(p.values) {
		p.values = make([]change.Value, max(len(v), tupleValues))
	}
	t := change.Tuple(p.values[:len(v):len(v)])
	p.values = p.values[len(v):]
	for i, b := range v {
		if b == nil {
			t[i].Kind = change.Null
			continue
		}
		at := len(p.bytes)
		p.bytes = append(p.bytes, b...)
		t[i] = change.Value{Kind: change.Text, Data: p.bytes[at:len(p.bytes):len(p.bytes)]}
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
