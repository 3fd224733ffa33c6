package pipeline

import (
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
)

func TestSnapshotPlan(t *testing.T) {
	now := time.Unix(0, 0)
	running := &event.SnapshotProgress{ID: "s", Table: "a", LastKey: []string{"5"}, Pending: []string{"b"}, Rows: 5}
	for _, c := range []struct {
		name   string
		pos    event.Position
		tables []string
		want   *event.SnapshotProgress
	}{
		{"first start", event.Position{}, []string{"a", "b"}, &event.SnapshotProgress{ID: snapshotID(now), Table: "a", Pending: []string{"b"}}},
		{"nothing routed", event.Position{}, nil, nil},
		{"all complete", event.Position{Tables: []string{"a", "b"}}, []string{"b"}, nil},
		{"a new table", event.Position{Tables: []string{"a"}}, []string{"a", "b"}, &event.SnapshotProgress{ID: snapshotID(now), Table: "b", Pending: []string{}}},
		{"goes on", event.Position{Snapshot: running}, []string{"a", "b"}, running},
		{"goes on with another", event.Position{Snapshot: running}, []string{"a", "b", "c"}, &event.SnapshotProgress{ID: "s", Table: "a", LastKey: []string{"5"}, Pending: []string{"b", "c"}, Rows: 5}},
		{"lost its table", event.Position{Snapshot: running}, []string{"b"}, &event.SnapshotProgress{ID: "s", Table: "b", Pending: []string{}, Rows: 5}},
		{"lost all tables", event.Position{Snapshot: running}, nil, &event.SnapshotProgress{ID: "s", Pending: []string{}, Rows: 5}},
		{"again while in work", event.Position{Snapshot: &event.SnapshotProgress{ID: "s", Table: "a", LastKey: []string{"5"}, Pending: []string{"b", "a"}}, Tables: []string{"b"}}, []string{"a", "b"}, &event.SnapshotProgress{ID: "s", Table: "a", LastKey: []string{"5"}, Pending: []string{"b", "a"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := snapshotPlan(c.pos, c.tables, now)
			if c.want == nil {
				require.Nil(t, got)
				return
			}
			require.Equal(t, c.want.Pending, append([]string{}, got.Pending...))
			got.Pending = c.want.Pending
			require.Equal(t, c.want, got)
		})
	}
	again := snapshotAgain(running, []string{"a", "b"}, now)
	require.Equal(t, []string{"b", "a"}, again.Pending)
	require.Equal(t, []string{"b"}, running.Pending, "what is on its way to Kafka stays as it was")
}

func TestSnapshotMarks(t *testing.T) {
	for _, m := range []snapshotMark{{"RUN", 3, false}, {"RUN", 12, true}} {
		got, ok := parseSnapshotMark(m.String())
		require.True(t, ok)
		require.Equal(t, m, got)
	}
	for _, s := range []string{"", "RUN 3", "RUN x low", "RUN 3 middle", "RUN 3 low more"} {
		_, ok := parseSnapshotMark(s)
		require.False(t, ok, s)
	}
}

// snapshotModel is a table with a history of transactions on it: the model that the window is held against.
type snapshotModel struct {
	rel  *change.Relation
	rows map[string]string // committed
	log  []snapshotModelTx
}

type snapshotModelTx struct {
	xid     change.XID
	visible int // from this moment on snapshots see it
	changes []change.Change
}

// Whoever applies the stream and, at each high mark, the rows of a chunk that the window lets through, has the table as
// it is, and never sees a row go back: whatever commits around the marks, and however late commits become visible.
func TestSnapshotWindowMergesExactly(t *testing.T) {
	rel := testRelation("t", "id", "v")
	rapid.Check(t, func(t *rapid.T) {
		w := snapshotModel{rel: rel, rows: map[string]string{}}
		version := map[string]int{} // of each row in the reader's view
		view := map[string]string{}
		window := snapshotWindow{run: "r"}
		value := 0

		commit := func(now int) {
			tx := snapshotModelTx{xid: change.XID(len(w.log) + 1), visible: now + rapid.IntRange(0, 3).Draw(t, "late")}
			for range rapid.IntRange(1, 3).Draw(t, "changes") {
				id := strconv.Itoa(rapid.IntRange(0, 5).Draw(t, "id"))
				_, exists := w.rows[id]
				switch {
				case !exists:
					value++
					w.rows[id] = strconv.Itoa(value)
					tx.changes = append(tx.changes, change.Change{Op: 'c', Relation: rel, After: testTuple(id, w.rows[id])})
				case rapid.Bool().Draw(t, "delete"):
					tx.changes = append(tx.changes, change.Change{Op: 'd', Relation: rel, Before: testTuple(id, w.rows[id])})
					delete(w.rows, id)
				default:
					value++
					old := w.rows[id]
					w.rows[id] = strconv.Itoa(value)
					tx.changes = append(tx.changes, change.Change{Op: 'u', Relation: rel, Before: testTuple(id, old), After: testTuple(id, w.rows[id])})
				}
			}
			w.log = append(w.log, tx)
			window.streamed(tx.xid)
			for i := range tx.changes {
				c := &tx.changes[i]
				window.touch(c)
				if c.Op == change.Delete {
					delete(view, string(c.Before[0].Data))
					continue
				}
				id := string(c.After[0].Data)
				view[id] = string(c.After[1].Data)
				version[id], _ = strconv.Atoi(view[id])
			}
		}
		// see reads the table as of now: what is visible by then.
		see := func(now int) *change.Chunk {
			c := &change.Chunk{Relation: rel, Done: true, Snapshot: change.Snapshot{Xmin: 1, Xmax: change.XID(len(w.log) + 1)}}
			rows := map[string]string{}
			for _, tx := range w.log {
				if tx.visible > now {
					c.Snapshot.Running = append(c.Snapshot.Running, tx.xid)
					continue
				}
				for _, ch := range tx.changes {
					if ch.Op == change.Delete {
						delete(rows, string(ch.Before[0].Data))
						continue
					}
					rows[string(ch.After[0].Data)] = string(ch.After[1].Data)
				}
			}
			for id, v := range rows {
				c.Rows = append(c.Rows, testTuple(id, v))
			}
			return c
		}
		// Rows of before the slot: the stream has never told of them, and everybody sees them.
		for i := range 4 {
			id := strconv.Itoa(i)
			value++
			w.rows[id] = strconv.Itoa(value)
			w.log = append(w.log, snapshotModelTx{xid: change.XID(len(w.log) + 1), changes: []change.Change{{Op: 'c', Relation: rel, After: testTuple(id, w.rows[id])}}})
		}
		now := 0
		some := func(name string) {
			for range rapid.IntRange(0, 3).Draw(t, name) {
				now++
				commit(now)
			}
		}
		some("before")
		for number := 1; ; number++ {
			window.expect(number, "public.t")
			some("before low")
			window.low(snapshotMark{run: "r", number: number})
			some("before the read")
			chunk := see(now)
			some("after the read")
			rows, ok := window.high(chunk)
			now++
			if !ok {
				continue
			}
			for _, row := range rows {
				id, v := string(row[0].Data), string(row[1].Data)
				n, _ := strconv.Atoi(v)
				require.GreaterOrEqual(t, n, version[id], "row %s went back", id)
				view[id], version[id] = v, n
			}
			break
		}
		some("after")
		require.Equal(t, w.rows, view)
	})
}

func TestSnapshotOfATruncatedTableIsReadAgain(t *testing.T) {
	rel := testRelation("t", "id", "v")
	w := snapshotWindow{run: "r"}
	w.expect(1, "public.t")
	w.low(snapshotMark{run: "other", number: 1})
	require.False(t, w.open, "marks of another session mean nothing")
	w.low(snapshotMark{run: "r", number: 1})
	w.touch(&change.Change{Op: change.Truncate, Relation: rel})
	_, ok := w.high(&change.Chunk{Relation: rel, Rows: []change.Tuple{testTuple("1", "a")}})
	require.False(t, ok)
}

// The failing schedule: the replica identity is an index without the primary key, so that a delete in the window does
// not name the key of the row that the chunk has.
func TestSnapshotWindowKnowsRowsByTheirIdentity(t *testing.T) {
	rel := &change.Relation{
		Schema: "public", Name: "t", ReplicaIdentity: 'i', PrimaryKey: []string{"id"},
		Columns: []change.Column{{Name: "id", TypeOID: 25}, {Name: "sku", TypeOID: 25, Identity: true}},
	}
	full := *rel
	full.ReplicaIdentity = 'f'
	chunk := &change.Chunk{Relation: rel, Rows: []change.Tuple{testTuple("1", "a"), testTuple("2", "b"), testTuple("3", "c")}}
	for _, c := range []struct {
		name   string
		change change.Change
		ok     bool
		want   int
	}{
		{"deleted", change.Change{Op: 'd', Relation: rel, Before: testTuple("MISSING", "a")}, true, 2},
		{"its primary key changed", change.Change{Op: 'u', Relation: rel, After: testTuple("9", "a")}, true, 2},
		{"its identity changed", change.Change{Op: 'u', Relation: rel, Before: testTuple("MISSING", "a"), After: testTuple("1", "b")}, true, 1},
		{"the identity itself changed", change.Change{Op: 'd', Relation: &full, Before: testTuple("1", "a")}, false, 0},
		{"nothing names it", change.Change{Op: 'd', Relation: rel, Before: testTuple("1", "MISSING")}, false, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := snapshotWindow{run: "r"}
			w.expect(1, "public.t")
			w.low(snapshotMark{run: "r", number: 1})
			w.touch(&c.change)
			rows, ok := w.high(chunk)
			require.Equal(t, c.ok, ok)
			require.Len(t, rows, c.want)
		})
	}
}

func TestSnapshotPauseGrows(t *testing.T) {
	var pauses []string
	for _, n := range []int{1, 2, 3, 7, 1000} {
		pauses = append(pauses, snapshotPause(n).String())
	}
	require.Equal(t, []string{"20ms", "40ms", "80ms", "1.28s", "1.28s"}, pauses)
}
