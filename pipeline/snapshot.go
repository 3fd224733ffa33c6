package pipeline

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
)

// snapshotPlan says how a snapshot goes on from a position, given the tables that must have one; nil when all are
// complete. A table that lost its route is left out, one that gained a route is added.
func snapshotPlan(pos event.Position, tables []string, now time.Time) *event.SnapshotProgress {
	if pos.Snapshot == nil {
		todo := slices.DeleteFunc(slices.Clone(tables), func(t string) bool { return slices.Contains(pos.Tables, t) })
		return snapshotAgain(nil, todo, now)
	}
	p := *pos.Snapshot
	p.Pending = nil
	for _, t := range pos.Snapshot.Pending {
		// The table in work may stand here once more: somebody has asked for all of it.
		if slices.Contains(tables, t) {
			p.Pending = append(p.Pending, t)
		}
	}
	for _, t := range tables {
		if t != p.Table && !slices.Contains(p.Pending, t) && !slices.Contains(pos.Tables, t) {
			p.Pending = append(p.Pending, t)
		}
	}
	if slices.Contains(tables, p.Table) {
		return &p
	}
	p.Table, p.LastKey = "", nil // nothing may be left to read, but the batch is to be announced
	if len(p.Pending) > 0 {
		p.Table, p.Pending = p.Pending[0], p.Pending[1:]
	}
	return &p
}

func snapshotID(now time.Time) string {
	return "snapshot-" + now.UTC().Format("20060102T150405.000000")
}

// snapshotAdvance is the progress after a chunk of its table: nil when the last table is complete. complete lists the
// tables that are.
func snapshotAdvance(p event.SnapshotProgress, complete []string, c *change.Chunk) (*event.SnapshotProgress, []string) {
	p.Rows += int64(len(c.Rows))
	p.LastKey = c.LastKey
	if !c.Done {
		return &p, complete
	}
	return snapshotNext(p, complete)
}

// snapshotNext leaves the table of p behind, which is complete or shall not be read further.
func snapshotNext(p event.SnapshotProgress, complete []string) (*event.SnapshotProgress, []string) {
	if p.Table != "" && !slices.Contains(complete, p.Table) {
		complete = append(slices.Clone(complete), p.Table)
	}
	if len(p.Pending) == 0 {
		return nil, complete
	}
	p.Table, p.Pending, p.LastKey = p.Pending[0], p.Pending[1:], nil
	return &p, complete
}

// snapshotAgain adds tables to what is still to be read, as their rows were changed in a way that the stream does not
// spell out. A snapshot that begins with this is named by the time.
func snapshotAgain(p *event.SnapshotProgress, tables []string, now time.Time) *event.SnapshotProgress {
	if len(tables) == 0 {
		return p
	}
	if p == nil {
		return &event.SnapshotProgress{ID: snapshotID(now), Table: tables[0], Pending: tables[1:]}
	}
	q := *p
	q.Pending = slices.Clone(p.Pending)
	for _, t := range tables {
		// Also the table in work: its part below LastKey has been read before.
		if !slices.Contains(q.Pending, t) {
			q.Pending = append(q.Pending, t)
		}
	}
	return &q
}

// snapshotMark is the content of a watermark message: which session, which chunk, which end of it.
type snapshotMark struct {
	run    string
	number int
	high   bool
}

func (m snapshotMark) String() string {
	if m.high {
		return fmt.Sprintf("%s %d high", m.run, m.number)
	}
	return fmt.Sprintf("%s %d low", m.run, m.number)
}

func parseSnapshotMark(s string) (snapshotMark, bool) {
	f := strings.Fields(s)
	if len(f) != 3 || (f[2] != "low" && f[2] != "high") {
		return snapshotMark{}, false
	}
	n, err := strconv.Atoi(f[1])
	return snapshotMark{run: f[0], number: n, high: f[2] == "high"}, err == nil
}

// snapshotRecent is how many of the transactions streamed last are remembered until a snapshot has proved that they
// are visible. A transaction is streamed before it is visible while its backend still waits for a standby, so there
// are never more of these than connections.
const snapshotRecent = 1 << 14

// snapshotWindow decides which rows of a chunk may be merged into the stream at the chunk's high mark. It is pure.
//
// Between the marks the stream has every change that the chunk's snapshot may or may not have seen: rows changed there
// are dropped from the chunk, as the stream has said it better. What was streamed before the low mark the snapshot must
// have seen, or the chunk would bring back older rows: such a chunk is read again. What comes after the high mark the
// snapshot cannot have seen, as it was taken before.
type snapshotWindow struct {
	run    string
	number int // of the chunk whose marks count
	table  string
	open   bool // between its marks
	void   bool // the table was truncated between them, or changed in a way that does not name the row
	// touched holds the rows that were changed between the marks, by the values of the columns in names.
	touched map[string]struct{}
	names   []string
	// recent are the transactions streamed last that no chunk's snapshot has been seen to contain; before are those
	// of them that were streamed when the window opened.
	recent, before []change.XID
	key            []byte
}

// expect makes the window wait for the marks of another chunk.
func (w *snapshotWindow) expect(number int, table string) {
	w.number, w.table, w.open, w.void = number, table, false, false
	w.touched, w.names = nil, nil
}

// streamed notes a transaction of the stream.
func (w *snapshotWindow) streamed(x change.XID) {
	if len(w.recent) >= 2*snapshotRecent {
		w.recent = append(w.recent[:0], w.recent[len(w.recent)-snapshotRecent:]...)
	}
	w.recent = append(w.recent, x)
}

// touch notes a change of the stream.
func (w *snapshotWindow) touch(c *change.Change) {
	if !w.open || c.Relation.Table() != w.table {
		return
	}
	if c.Op == change.Truncate {
		w.void = true
		return
	}
	names := snapshotIdentity(c.Relation)
	if w.names == nil {
		w.names = names
	}
	w.void = w.void || !slices.Equal(w.names, names)
	for _, image := range []change.Tuple{c.Before, c.After} {
		if image == nil {
			continue // there is no such row, or its identity is that of the other image
		}
		k, ok := snapshotKey(w.key[:0], c.Relation, names, image)
		if !ok {
			w.void = true // which row of the chunk it is cannot be known
			return
		}
		w.touched[string(k)] = struct{}{}
		w.key = k
	}
}

// low opens the window.
func (w *snapshotWindow) low(m snapshotMark) {
	if m.run != w.run || m.number != w.number {
		return
	}
	w.open, w.void = true, false
	w.touched, w.names = map[string]struct{}{}, nil
	w.before = slices.Clone(w.recent)
}

// high closes the window and returns the rows of the chunk that may be merged here. ok is false when the chunk must be
// read again.
func (w *snapshotWindow) high(c *change.Chunk) (rows []change.Tuple, ok bool) {
	w.open = false
	names := snapshotIdentity(c.Relation)
	ok = !w.void && (len(w.touched) == 0 || slices.Equal(w.names, names))
	for _, x := range w.before {
		ok = ok && c.Snapshot.Sees(x)
	}
	w.recent = slices.DeleteFunc(w.recent, c.Snapshot.Sees)
	if !ok {
		return nil, false
	}
	for _, row := range c.Rows {
		if k, has := snapshotKey(w.key[:0], c.Relation, names, row); has {
			w.key = k
			if _, changed := w.touched[string(k)]; changed {
				continue
			}
		}
		rows = append(rows, row)
	}
	return rows, true
}

// snapshotIdentity lists the columns that every old image of a table has, and that name one row: the primary key, or
// those of the index that is the replica identity, which need not cover the primary key.
func snapshotIdentity(rel *change.Relation) []string {
	if rel.ReplicaIdentity != 'i' {
		return rel.PrimaryKey
	}
	var names []string
	for i := range rel.Columns {
		if rel.Columns[i].Identity {
			names = append(names, rel.Columns[i].Name)
		}
	}
	return names
}

// snapshotKey appends the values of columns of a row in a form that is equal for equal values only.
func snapshotKey(dst []byte, rel *change.Relation, names []string, row change.Tuple) ([]byte, bool) {
	if len(names) == 0 {
		return dst, false
	}
	for _, name := range names {
		v := routerValue(row, rel.Index(name))
		if v.Kind != change.Text {
			return dst, false
		}
		dst = strconv.AppendInt(dst, int64(len(v.Data)), 10)
		dst = append(append(dst, ':'), v.Data...)
	}
	return dst, true
}
