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

// snapshotPlan gives the snapshots that go on from a position, given the tables that must have been read once. A table
// that lost its route is left out, one that gained a route is added.
func snapshotPlan(pos event.Position, tables []string, now time.Time) []event.SnapshotProgress {
	var running []event.SnapshotProgress
	missing := slices.DeleteFunc(slices.Clone(tables), func(t string) bool { return slices.Contains(pos.Tables, t) })
	for _, p := range pos.Snapshots {
		p = p.Clone()
		p.Tables = slices.DeleteFunc(p.Tables, func(t event.SnapshotTable) bool { return !slices.Contains(tables, t.Table) })
		if p.Request == nil {
			missing = slices.DeleteFunc(missing, func(t string) bool {
				return slices.ContainsFunc(p.Tables, func(has event.SnapshotTable) bool { return has.Table == t })
			})
		}
		running = append(running, p) // also where nothing is left to read: its batch is to be announced
	}
	return snapshotMore(running, missing, now)
}

// snapshotMore adds whole tables to a snapshot that Capture has begun by itself, or begins one.
func snapshotMore(running []event.SnapshotProgress, tables []string, now time.Time) []event.SnapshotProgress {
	if len(tables) == 0 {
		return running
	}
	i := slices.IndexFunc(running, func(p event.SnapshotProgress) bool { return p.Request == nil })
	if i < 0 {
		i = len(running)
		running = append(running, event.SnapshotProgress{
			ID: "snapshot-" + now.UTC().Format("20060102T150405.000000"), Began: now.UTC(),
		})
	}
	p := &running[i]
	number := 0
	for _, t := range p.Tables {
		number = max(number, t.Number)
	}
	for _, t := range tables {
		number++
		p.Tables = append(p.Tables, event.SnapshotTable{Number: number, Table: t})
	}
	return running
}

// snapshotMark is the content of a watermark message: which session, which part, which attempt at reading it, which end
// of it.
type snapshotMark struct {
	run             string
	number, attempt int
	high            bool
}

func (m snapshotMark) String() string {
	end := "low"
	if m.high {
		end = "high"
	}
	return fmt.Sprintf("%s %d %d %s", m.run, m.number, m.attempt, end)
}

func parseSnapshotMark(s string) (snapshotMark, bool) {
	f := strings.Fields(s)
	if len(f) != 4 || (f[3] != "low" && f[3] != "high") {
		return snapshotMark{}, false
	}
	n, err1 := strconv.Atoi(f[1])
	a, err2 := strconv.Atoi(f[2])
	return snapshotMark{run: f[0], number: n, attempt: a, high: f[3] == "high"}, err1 == nil && err2 == nil
}

// snapshotWindow decides which rows of a chunk may be merged into the stream at the chunk's high mark. It is pure.
//
// Between the marks the stream has every change that the chunk's snapshot may or may not have seen: rows changed there
// are dropped from the chunk, as the stream has said it better. What was streamed before the low mark the snapshot must
// have seen, or the chunk would bring back older rows: such a chunk is read again. What comes after the high mark the
// snapshot cannot have seen, as it was taken before.
type snapshotWindow struct {
	table   string
	attempt int  // whose low mark has opened it
	opened  bool // between the marks
	void    bool // the table was truncated between them, or changed in a way that does not name the row
	// touched holds the rows that were changed between the marks, by the values of the columns in names.
	// bytes is about what they take.
	touched map[string]struct{}
	bytes   int
	names   []string
	// before are the transactions that were streamed before the window opened and may not be visible yet.
	before []change.XID
	// proof is what was known of those that are not in before any more.
	proof snapshotProof
	key   []byte
}

// snapshotProof is why transactions were forgotten: a snapshot sees them, as it sees all that were forgotten earlier. upto
// is the highest of them; 0: none was.
type snapshotProof struct {
	snapshot change.Snapshot
	upto     change.XID
}

// needed reports whether a read may lack one of these transactions. It may be wrong of one that ended beside the read and
// is younger than another that was forgotten: then a chunk is read once more in vain.
func (p *snapshotProof) needed(s change.Snapshot) bool {
	return p.upto != 0 && p.upto >= s.Xmax ||
		slices.ContainsFunc(s.Running, func(x change.XID) bool { return x <= p.upto && p.snapshot.Sees(x) })
}

// open begins the window at the low mark.
func (w *snapshotWindow) open(attempt int, before []change.XID, proof snapshotProof) {
	*w = snapshotWindow{
		table: w.table, attempt: attempt, opened: true, touched: map[string]struct{}{}, before: slices.Clone(before), proof: proof, key: w.key,
	}
}

// touch notes a change of the stream.
func (w *snapshotWindow) touch(c *change.Change) {
	if !w.opened || w.void || c.Relation.Table() != w.table {
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
		if _, has := w.touched[string(k)]; !has {
			w.touched[string(k)] = struct{}{}
			w.bytes += len(k) + snapshotKeyBytes
		}
		w.key = k
	}
	if w.bytes > snapshotWindowBytes { // a large transaction passes: it is cheaper to read the chunk again after it
		w.void, w.touched = true, nil
	}
}

// snapshotWindowBytes bounds what the rows take that were changed in one window, of about snapshotKeyBytes more than their
// key each.
const snapshotWindowBytes, snapshotKeyBytes = 8 << 20, 40

// close ends the window at the high mark and returns the rows of the chunk that may be merged here. ok is false when
// the chunk must be read again.
func (w *snapshotWindow) close(c *change.Chunk) (rows []change.Tuple, ok bool) {
	names := snapshotIdentity(c.Relation)
	ok = w.opened && !w.void && (len(w.touched) == 0 || slices.Equal(w.names, names))
	w.opened = false
	ok = ok && !w.proof.needed(c.Snapshot)
	for _, x := range w.before {
		ok = ok && c.Snapshot.Sees(x)
	}
	if !ok {
		return nil, false
	}
	if len(w.touched) == 0 {
		return c.Rows, true
	}
	// Without a key, equal rows may be many, and which of them was changed is not known: none may be dropped.
	alike := len(c.Relation.PrimaryKey) == 0 && c.Relation.ReplicaIdentity != 'i'
	for _, row := range c.Rows {
		if k, has := snapshotKey(w.key[:0], c.Relation, names, row); has {
			w.key = k
			if _, changed := w.touched[string(k)]; changed && alike {
				return nil, false
			} else if changed {
				continue
			}
		}
		rows = append(rows, row)
	}
	return rows, true
}

// snapshotIdentity lists the columns that every old image of a table has, and that name one row: the primary key, or
// those of the index that is the replica identity, which need not cover the primary key. In a table without either,
// which has whole old images, they are all columns.
func snapshotIdentity(rel *change.Relation) []string {
	if rel.ReplicaIdentity != 'i' && len(rel.PrimaryKey) > 0 {
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
		switch v.Kind {
		case change.Null:
			dst = append(dst, '-')
			continue
		case change.Text:
		default:
			return dst, false
		}
		dst = strconv.AppendInt(dst, int64(len(v.Data)), 10)
		dst = append(append(dst, ':'), v.Data...)
	}
	return dst, true
}
