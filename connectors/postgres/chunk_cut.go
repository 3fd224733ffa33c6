package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/shelfwire/shelfwire/schemas/change"
)

// CutTable divides a table into at most so many ranges of about equal size, none of them for fewer than least rows. A
// selection that is not the whole table is one range; its condition is tried by the planner, and an error says what is
// wrong with it.
//
// A table without a primary key is read by blocks of its file, provided that its old rows name its rows (REPLICA
// IDENTITY FULL or USING INDEX): a row that is not changed stays in its block, one that is changed comes with the
// stream, and a file that was written anew (VACUUM FULL, CLUSTER, TRUNCATE) has another shape. Any other table without a
// primary key gives [ErrNoPrimaryKey].
func (s *Source) CutTable(ctx context.Context, sel change.Selection, ranges, least int) (change.Cut, error) {
	var cut change.Cut
	m, err := s.read(ctx, "divide "+sel.Table, func(pg *pgconn.PgConn) error {
		t, err := s.describe(ctx, pg, sel.Table)
		if err != nil {
			return err
		}
		blocks, err := t.byBlocks()
		if err != nil {
			return err
		}
		if cut.Writers, err = writers(ctx, pg, t); err != nil {
			return err
		}
		cut.Shape = t.shape()
		if cut.Rows, err = estimate(ctx, pg, t, &sel); err != nil {
			return err
		}
		if !sel.All() {
			ranges = 1
		}
		ranges = max(1, min(ranges, int(cut.Rows)/max(least, 1)))
		if blocks {
			return t.cutBlocks(ctx, pg, ranges, &cut)
		}
		return t.cutKeys(ctx, pg, ranges, &cut)
	})
	if err != nil {
		return change.Cut{}, conditionError(ctx, &sel, err)
	}
	cut.Snapshot = m.snapshot
	return cut, nil
}

// byBlocks says how the rows of a table are reached: false by primary key, true by block.
func (t *table) byBlocks() (bool, error) {
	switch {
	case t == nil:
		return false, ErrNoTable
	case len(t.PrimaryKey) > 0:
		return false, nil
	case t.kind == "r" && (t.ReplicaIdentity == 'f' || t.ReplicaIdentity == 'i'):
		return true, nil
	}
	return false, ErrNoPrimaryKey
}

// shape names what the order of a table's keys depends on.
func (t *table) shape() string {
	if len(t.PrimaryKey) == 0 {
		return "blocks of file " + t.filenode
	}
	cols := make([]string, len(t.PrimaryKey))
	for i, c := range t.PrimaryKey {
		cols[i] = quoteIdent(c) + " " + t.casts[i]
		if t.collations[i] != "0" {
			cols[i] += " collation " + t.collations[i]
		}
	}
	return strings.Join(cols, ", ")
}

// writers lists the transactions that hold the lock of a writer on the table or on a part of it.
func writers(ctx context.Context, pg *pgconn.PgConn, t *table) (list []string, err error) {
	err = query(ctx, pg, `
		SELECT DISTINCT virtualtransaction FROM pg_locks
		WHERE locktype = 'relation' AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
			AND mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
			AND relation IN (SELECT $1::oid UNION SELECT relid::oid FROM pg_partition_tree($1::oid::regclass))`,
		[][]byte{[]byte(strconv.FormatUint(uint64(t.OID), 10))}, func(_ []string, v [][]byte) error {
			list = append(list, string(v[0]))
			return nil
		})
	return list, err
}

// estimate asks the planner how many rows are selected, which tries the condition as well: the planner reads it,
// looks up its columns and computes what is constant in it.
func estimate(ctx context.Context, pg *pgconn.PgConn, t *table, sel *change.Selection) (int64, error) {
	sql, err := t.selectSQL("1", sel, nil)
	if err != nil {
		return 0, err
	}
	var plan []struct {
		Plan struct {
			Rows float64 `json:"Plan Rows"`
		}
	}
	err = query(ctx, pg, "EXPLAIN (FORMAT JSON) "+sql, nil, func(_ []string, v [][]byte) error { return json.Unmarshal(v[0], &plan) })
	if err != nil || len(plan) == 0 {
		return 0, err
	}
	return int64(plan[0].Plan.Rows), nil
}

// sampledBlocks is how many blocks are read to find the bounds of ranges: some thousand keys.
const sampledBlocks = 200

// cutKeys takes the bounds from the keys of some blocks.
func (t *table) cutKeys(ctx context.Context, pg *pgconn.PgConn, ranges int, cut *change.Cut) error {
	if ranges < 2 {
		return nil
	}
	var key, text []string
	for i, c := range t.PrimaryKey {
		key = append(key, quoteIdent(c))
		text = append(text, "k"+strconv.Itoa(i))
	}
	var named []string
	for i := range key {
		named = append(named, key[i]+" AS "+text[i])
	}
	percent := min(100, 100*sampledBlocks/max(t.pages, 1))
	sql := fmt.Sprintf(`
		SELECT %[1]s FROM (
			SELECT %[2]s, row_number() OVER w AS n, count(*) OVER () AS total FROM %[3]s TABLESAMPLE SYSTEM (%[4]g) WINDOW w AS (ORDER BY %[5]s)
		) s WHERE (n - 1) * %[6]d / total < n * %[6]d / total AND n < total ORDER BY n`,
		strings.Join(text, ", "), strings.Join(named, ", "), t.from(), percent, strings.Join(key, ", "), ranges)
	return query(ctx, pg, sql, nil, func(_ []string, v [][]byte) error {
		bound := make([]string, len(v))
		for i, b := range v {
			bound[i] = string(b)
		}
		cut.Bounds = append(cut.Bounds, bound)
		return nil
	})
}

// cutBlocks divides the file as it is now: rows that come into later blocks come with the stream.
func (t *table) cutBlocks(ctx context.Context, pg *pgconn.PgConn, ranges int, cut *change.Cut) error {
	blocks := 0
	err := query(ctx, pg, "SELECT pg_relation_size($1::oid::regclass) / current_setting('block_size')::int",
		[][]byte{[]byte(strconv.FormatUint(uint64(t.OID), 10))}, func(_ []string, v [][]byte) (err error) {
			blocks, err = strconv.Atoi(string(v[0]))
			return err
		})
	if err != nil {
		return err
	}
	cut.Closed = true
	for i := 1; i <= ranges; i++ {
		end := []string{strconv.Itoa(blocks * i / ranges)}
		if len(cut.Bounds) == 0 || !slices.Equal(cut.Bounds[len(cut.Bounds)-1], end) {
			cut.Bounds = append(cut.Bounds, end)
		}
	}
	return nil
}

// blockRows is taken for the rows of a block where no statistics tell.
const blockRows = 40

// readBlocks reads the rows of some whole blocks. Keys are the numbers of the next block to read, and of the first one
// that is not in the range any more.
func (s *Source) readBlocks(ctx context.Context, pg *pgconn.PgConn, t *table, q change.ChunkQuery, c *change.Chunk) error {
	if len(q.Upto) > 1 || len(q.After) > 1 {
		return fmt.Errorf("%w: a place in a range of blocks is one number", errKeyLength)
	}
	from, upto := 0, math.MaxInt32 // no range: it has no end
	var err error
	if len(q.After) == 1 {
		from, err = strconv.Atoi(q.After[0])
	}
	if err == nil && len(q.Upto) == 1 {
		upto, err = strconv.Atoi(q.Upto[0])
	}
	if err != nil {
		return fmt.Errorf("range of blocks: %w", err)
	}
	each := float64(blockRows)
	if t.pages > 0 && t.tuples > 0 {
		each = t.tuples / t.pages
	}
	to := min(upto, from+max(1, int(float64(q.Limit)/max(each, 1))))
	sql, err := t.selectSQL(t.columnList()+", ctid", &q.Selection, []string{fmt.Sprintf("ctid >= '(%d,0)' AND ctid < '(%d,0)'", from, to)})
	if err != nil {
		return err
	}
	var blocks []int
	var bad error
	// More rows than any limit: the blocks bound them, and the bytes.
	var rows tuples
	f := chunkFill{limit: 1 << 30, step: chunkStep}
	err = f.read(ctx, pg, sql+" ORDER BY ctid", nil, c, func(v [][]byte) {
		b, _, _ := strings.Cut(strings.TrimPrefix(string(v[len(v)-1]), "("), ",")
		n, err := strconv.Atoi(b)
		if err != nil {
			bad = fmt.Errorf("place of a row: %w", err)
		}
		c.Rows, blocks = append(c.Rows, rows.of(v[:len(v)-1])), append(blocks, n)
	})
	if err != nil || bad != nil {
		return errors.Join(err, bad)
	}
	// The cursor holds a lock by which the file stays what it is. It was another when it was written anew before.
	if now, err := s.describe(ctx, pg, q.Table); err != nil || now == nil || now.filenode != t.filenode {
		c.Rows, c.Shape, c.Done = nil, "written anew", false
		return err
	}
	if !c.Done { // too wide: the last block may not be whole, unless it is the only one
		to = blocks[len(blocks)-1]
		if to == from {
			return s.readBlock(ctx, pg, t, q, c, from, upto)
		}
		for len(blocks) > 0 && blocks[len(blocks)-1] == to {
			blocks, c.Rows = blocks[:len(blocks)-1], c.Rows[:len(c.Rows)-1]
		}
	}
	c.LastKey, c.Done = []string{strconv.Itoa(to)}, to >= upto
	return nil
}

// readBlock reads one block whose rows are so wide that it takes a chunk of its own, of whatever size.
func (s *Source) readBlock(ctx context.Context, pg *pgconn.PgConn, t *table, q change.ChunkQuery, c *change.Chunk, block, upto int) error {
	sql, err := t.selectSQL(t.columnList(), &q.Selection, []string{fmt.Sprintf("ctid >= '(%d,0)' AND ctid < '(%d,0)'", block, block+1)})
	if err != nil {
		return err
	}
	c.Rows = nil
	var rows tuples
	err = query(ctx, pg, sql, nil, func(_ []string, v [][]byte) error {
		c.Rows = append(c.Rows, rows.of(v))
		return nil
	})
	c.LastKey, c.Done = []string{strconv.Itoa(block + 1)}, block+1 >= upto
	return err
}
