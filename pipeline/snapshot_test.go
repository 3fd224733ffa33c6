package pipeline

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/route"
)

func snapshotTables(names ...string) []event.SnapshotTable {
	var list []event.SnapshotTable
	for i, n := range names {
		list = append(list, event.SnapshotTable{Number: i + 1, Table: n})
	}
	return list
}

func TestSnapshotPlan(t *testing.T) {
	now := time.Unix(0, 0).UTC()
	const id = "snapshot-19700101T000000.000000"
	cut := []event.SnapshotRange{{After: []string{"5"}}}
	running := event.SnapshotProgress{ID: "s", Rows: 5, Tables: snapshotTables("a", "b")}
	running.Tables[0].Shape, running.Tables[0].Ranges = "id int", cut
	asked := event.SnapshotProgress{ID: "q", Request: &event.SnapshotRequest{Table: "c"}, Tables: snapshotTables("c")}
	for _, c := range []struct {
		name   string
		pos    event.Position
		tables []string
		want   []event.SnapshotProgress
	}{
		{"first start", event.Position{}, []string{"a", "b"}, []event.SnapshotProgress{{ID: id, Began: now, Tables: snapshotTables("a", "b")}}},
		{"nothing routed", event.Position{}, nil, nil},
		{"all complete", event.Position{Tables: []string{"a", "b"}}, []string{"b"}, nil},
		{"a new table", event.Position{Tables: []string{"a"}}, []string{"a", "b"}, []event.SnapshotProgress{{ID: id, Began: now, Tables: snapshotTables("b")}}},
		{"goes on", event.Position{Snapshots: []event.SnapshotProgress{running}}, []string{"a", "b"}, []event.SnapshotProgress{running}},
		{"lost its table", event.Position{Snapshots: []event.SnapshotProgress{running}}, []string{"b"}, []event.SnapshotProgress{{ID: "s", Rows: 5, Tables: running.Tables[1:]}}},
		{"lost all tables", event.Position{Snapshots: []event.SnapshotProgress{running}}, nil, []event.SnapshotProgress{{ID: "s", Rows: 5, Tables: []event.SnapshotTable{}}}},
		{"asked for is not complete", event.Position{Snapshots: []event.SnapshotProgress{asked}}, []string{"c"}, []event.SnapshotProgress{asked, {ID: id, Began: now, Tables: snapshotTables("c")}}},
		{"asked for was complete", event.Position{Snapshots: []event.SnapshotProgress{asked}, Tables: []string{"c"}}, []string{"c"}, []event.SnapshotProgress{asked}},
	} {
		t.Run(c.name, func(t *testing.T) {
			require.Equal(t, c.want, snapshotPlan(c.pos, c.tables, now))
		})
	}
	more := snapshotPlan(event.Position{Snapshots: []event.SnapshotProgress{running}}, []string{"a", "b", "c"}, now)
	require.Equal(t, event.SnapshotTable{Number: 3, Table: "c"}, more[0].Tables[2])
	require.Len(t, running.Tables, 2, "what is on its way to Kafka stays as it was")

	book := newSnapshotBook("r", 2, nil, event.Position{Snapshots: []event.SnapshotProgress{running}})
	book.truncated([]string{"a", "b"}, now)
	require.Equal(t, []event.SnapshotTable{running.Tables[0], running.Tables[1], {Number: 3, Table: "a"}}, book.running[0].Tables,
		"b was not begun, what is read of a is from before")
}

func TestSnapshotMarks(t *testing.T) {
	for _, m := range []snapshotMark{{"RUN", 3, 1, false}, {"RUN", 12, 2, true}} {
		got, ok := parseSnapshotMark(m.String())
		require.True(t, ok)
		require.Equal(t, m, got)
	}
	for _, s := range []string{"", "RUN 3 1", "RUN x 1 low", "RUN 1 x low", "RUN 3 1 middle", "RUN 3 1 low more"} {
		_, ok := parseSnapshotMark(s)
		require.False(t, ok, s)
	}
}

// snapshotModel is a table with a history of transactions on it, and a reader of the topic: the model that the book is
// held against.
type snapshotModel struct {
	t     *rapid.T
	rel   *change.Relation
	rows  map[int]int // committed
	log   []snapshotModelTx
	now   int
	value int

	book *snapshotBook
	// view is what the reader of the topic has; version the newest value of each row that it has seen.
	view, version map[int]int
	parts         []*snapshotModelPart
	// stream is what has been written and has not come yet.
	stream []func()
	// begun are the transactions that have an id and have not committed; last is the highest id.
	begun []change.XID
	last  change.XID
	// proof is the answer to the question what is visible; nil: none is under way.
	proof *change.Snapshot
}

type snapshotModelTx struct {
	xid     change.XID
	visible int // from this moment on snapshots see it
	rows    map[int]int
}

// snapshotModelPart is a part in a reader's hand: its low mark comes first, then the read, then the high mark.
type snapshotModelPart struct {
	req   snapshotRequest
	stage int
	chunk change.Chunk
}

const snapshotModelGone = -1

func (m *snapshotModel) commit() {
	m.now++
	for range rapid.IntRange(0, 2).Draw(m.t, "begin") {
		m.last++
		m.begun = append(m.begun, m.last)
	}
	if len(m.begun) == 0 {
		return
	}
	i := rapid.IntRange(0, len(m.begun)-1).Draw(m.t, "commit")
	tx := snapshotModelTx{xid: m.begun[i], visible: m.now + rapid.IntRange(0, 6).Draw(m.t, "late"), rows: map[int]int{}}
	m.begun = slices.Delete(m.begun, i, i+1)
	m.stream = append(m.stream, func() { m.book.streamed(tx.xid) })
	for range rapid.IntRange(1, 3).Draw(m.t, "changes") {
		id := rapid.IntRange(0, 9).Draw(m.t, "id")
		old, exists := m.rows[id]
		m.value++
		c := change.Change{Op: change.Create, Relation: m.rel, After: m.tuple(id, m.value)}
		if exists {
			c.Op, c.Before = change.Update, m.tuple(id, old)
		}
		m.rows[id], tx.rows[id] = m.value, m.value
		if exists && rapid.Bool().Draw(m.t, "delete") {
			c.Op, c.After = change.Delete, nil
			delete(m.rows, id)
			tx.rows[id] = snapshotModelGone
		}
		value := m.value
		m.stream = append(m.stream, func() {
			m.view[id], m.version[id] = value, value
			if c.Op == change.Delete {
				delete(m.view, id)
			}
			m.book.touch(&c)
		})
	}
	m.log = append(m.log, tx)
}

func (m *snapshotModel) tuple(id, v int) change.Tuple {
	return testTuple(strconv.Itoa(id), strconv.Itoa(v))
}

// see reads two rows of a range as of now: what is visible by then.
func (m *snapshotModel) see(q change.ChunkQuery) change.Chunk {
	c := change.Chunk{
		Relation: m.rel, Shape: q.Shape, Done: true, LastKey: q.After,
		Snapshot: change.Snapshot{Xmin: 1, Xmax: m.last + 1, Running: slices.Clone(m.begun)},
	}
	rows := map[int]int{}
	for _, tx := range m.log {
		if tx.visible > m.now {
			c.Snapshot.Running = append(c.Snapshot.Running, tx.xid)
			continue
		}
		maps.Copy(rows, tx.rows)
	}
	slices.Sort(c.Snapshot.Running)
	from, upto := -1, 99
	if len(q.After) > 0 {
		from, _ = strconv.Atoi(q.After[0])
	}
	if len(q.Upto) > 0 {
		upto, _ = strconv.Atoi(q.Upto[0])
	}
	for id := from + 1; id <= min(upto, 9); id++ {
		if v, ok := rows[id]; ok && v != snapshotModelGone {
			if len(c.Rows) == 2 {
				c.Done = false
				break
			}
			c.Rows, c.LastKey = append(c.Rows, m.tuple(id, v)), []string{strconv.Itoa(id)}
		}
	}
	return c
}

// come has the stream bring what was written first.
func (m *snapshotModel) come() {
	if len(m.stream) == 0 {
		return
	}
	f := m.stream[0]
	m.stream = m.stream[1:]
	f()
}

// step takes one step of a part that is under way.
func (m *snapshotModel) step() {
	i := rapid.IntRange(0, len(m.parts)-1).Draw(m.t, "part")
	p := m.parts[i]
	p.stage++
	switch {
	case p.req.cut && p.stage == 1, !p.req.cut && p.stage == 2:
		p.chunk = m.see(p.req.query)
	case !p.req.cut && p.stage == 1:
		m.mark(func() { m.book.low(snapshotMark{run: "r", number: p.req.number, attempt: 1}) })
	default:
		m.parts = slices.Delete(m.parts, i, i+1)
		m.mark(func() { m.high(p) })
	}
}

// mark writes a watermark; one of a session before means nothing when it comes.
func (m *snapshotModel) mark(f func()) {
	book := m.book
	m.stream = append(m.stream, func() {
		if m.book == book {
			f()
		}
	})
}

// high takes the high mark of a part.
func (m *snapshotModel) high(p *snapshotModelPart) {
	switch task := m.book.tasks[p.req.number]; {
	case p.req.cut:
		_, ok := m.book.cut(task, &change.Cut{Shape: "id int", Bounds: [][]string{{"3"}, {"6"}}, Rows: 10, Snapshot: p.chunk.Snapshot})
		require.True(m.t, ok)
	default:
		rows, ok, _ := m.book.merge(task, 1, &p.chunk)
		if !ok {
			m.now++
			m.parts = append(m.parts, &snapshotModelPart{req: m.book.again(task)})
			return
		}
		for _, row := range rows {
			id, _ := strconv.Atoi(string(row[0].Data))
			v, _ := strconv.Atoi(string(row[1].Data))
			require.GreaterOrEqual(m.t, v, m.version[id], "row %d went back", id)
			m.view[id], m.version[id] = v, v
		}
		m.book.advance(task, &p.chunk)
	}
}

// Whoever applies the stream and, at each high mark, the rows of a chunk that the window lets through, has the table as
// it is, and never sees a row go back: whatever commits around the marks, however late commits become visible, however
// many chunks are read at a time, however far the stream lags behind, whenever it is asked what is visible, and wherever a
// session ends and the next goes on from its position.
func TestSnapshotsMergeExactly(t *testing.T) {
	rel := testRelation("t", "id", "v")
	rapid.Check(t, func(t *rapid.T) {
		m := &snapshotModel{t: t, rel: rel, rows: map[int]int{}, view: map[int]int{}, version: map[int]int{}}
		for id := range 8 { // rows of before the slot: the stream has never told of them, and everybody sees them
			m.value++
			m.rows[id] = m.value
			m.last++
			m.log = append(m.log, snapshotModelTx{xid: m.last, rows: map[int]int{id: m.value}})
		}
		m.book = newSnapshotBook("r", 3, nil, event.Position{Snapshots: snapshotPlan(event.Position{}, []string{"public.t"}, time.Unix(0, 0))})
		for {
			for {
				req, ok := m.book.next()
				if !ok {
					break
				}
				m.parts = append(m.parts, &snapshotModelPart{req: req})
			}
			if m.book.finished() != nil {
				break
			}
			switch rapid.IntRange(0, 12).Draw(t, "what") {
			case 0:
				if rapid.IntRange(0, 4).Draw(t, "restart") == 0 {
					p := m.book.progress()
					m.parts, m.proof = nil, nil
					m.book = newSnapshotBook("r", 3, nil, event.Position{Snapshots: p.running, Tables: p.tables, Unseen: m.book.unseen()})
				}
			case 1, 2, 3:
				m.commit()
			case 4:
				if m.proof == nil {
					snap := m.see(change.ChunkQuery{}).Snapshot
					m.proof = &snap
				} else {
					m.book.proved(*m.proof)
					m.proof = nil
				}
			case 5, 6, 7, 8:
				for range rapid.IntRange(1, 8).Draw(t, "come") {
					m.come()
				}
				for len(m.stream) > 20 {
					m.come()
				}
			default:
				if len(m.parts) > 0 {
					m.step()
				}
			}
		}
		for len(m.stream) > 0 {
			m.come()
		}
		require.Equal(t, []string{"public.t"}, m.book.complete)
		for id := range m.rows {
			require.Equal(t, m.rows[id], m.view[id], "row %d", id)
		}
		require.Len(t, m.view, len(m.rows))
	})
}

func TestSnapshotOfATruncatedTableIsReadAgain(t *testing.T) {
	rel := testRelation("t", "id", "v")
	w := snapshotWindow{table: "public.t"}
	w.open(1, nil, snapshotProof{})
	w.touch(&change.Change{Op: change.Truncate, Relation: rel})
	_, ok := w.close(&change.Chunk{Relation: rel, Rows: []change.Tuple{testTuple("1", "a")}})
	require.False(t, ok)
}

// The failing schedule: the replica identity is an index without the primary key, so that a delete in the window does
// not name the key of the row that the chunk has.
func TestSnapshotWindowKnowsRowsByTheirIdentity(t *testing.T) {
	rel := &change.Relation{
		Schema: "public", Name: "t", ReplicaIdentity: 'i', PrimaryKey: []string{"id"},
		Columns: []change.Column{{Name: "id", TypeOID: 25}, {Name: "sku", TypeOID: 25, Identity: true}},
	}
	full := &change.Relation{Schema: rel.Schema, Name: rel.Name, ReplicaIdentity: 'f', PrimaryKey: rel.PrimaryKey, Columns: rel.Columns}
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
		{"the identity itself changed", change.Change{Op: 'd', Relation: full, Before: testTuple("1", "a")}, false, 0},
		{"nothing names it", change.Change{Op: 'd', Relation: rel, Before: testTuple("1", "MISSING")}, false, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := snapshotWindow{table: "public.t"}
			w.open(1, nil, snapshotProof{})
			w.touch(&c.change)
			rows, ok := w.close(chunk)
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

// Equal rows of a table without a key cannot be told apart, so that none may be dropped for another's change.
func TestSnapshotOfEqualRowsIsReadAgain(t *testing.T) {
	rel := &change.Relation{
		Schema: "public", Name: "t", ReplicaIdentity: 'f',
		Columns: []change.Column{{Name: "id", Identity: true}, {Name: "sku", Identity: true}},
	}
	chunk := &change.Chunk{Relation: rel, Rows: []change.Tuple{testTuple("1", "a"), testTuple("1", "a"), testTuple("2", "b")}}
	for id, want := range map[string]bool{"1": false, "9": true} {
		w := snapshotWindow{table: "public.t"}
		w.open(1, nil, snapshotProof{})
		w.touch(&change.Change{Op: change.Delete, Relation: rel, Before: testTuple(id, "a")})
		_, ok := w.close(chunk)
		require.Equal(t, want, ok)
	}
}

func TestSnapshotRequests(t *testing.T) {
	routes := []route.Route{{Table: "public.a", Key: "id"}, {Table: "public.b", Key: "id"}, {Table: "public.q", Query: "SELECT"}}
	for content, want := range map[string]string{
		`{"all": true}`: "public.a public.b",
		`{"id": "x", "table": "public.a", "where": "id > 1"}`: "public.a",
		`{"products": ["1"]}`:                      "public.a public.b",
		`{"products": ["1"], "table": "public.b"}`: "public.b",
		`nonsense`: "! not the JSON",
		`{"table": "public.a"} {"table": "public.b"}`:     "! behind",
		`{"tabel": "public.a"}`:                           "! unknown field",
		`{}`:                                              "! neither",
		`{"table": "public.gone"}`:                        "! no route",
		`{"table": "public.q"}`:                           "! query only",
		`{"where": "true"}`:                               "! needs a table",
		`{"all": true, "where": "true"}`:                  "! goes with",
		`{"products": [""]}`:                              "! empty",
		`{"where": "` + strings.Repeat("x", 1<<20) + `"}`: "! bytes",
	} {
		a := parseSnapshotAsk(&change.Message{Content: []byte(content), LSN: 5}, CaptureConfig{Routes: routes})
		if reason, bad := strings.CutPrefix(want, "! "); bad {
			require.Contains(t, a.refused, reason)
			continue
		}
		require.Empty(t, a.refused, content)
		require.Equal(t, want, strings.Join(a.tables, " "))
	}
}

func TestSnapshotMeter(t *testing.T) {
	var m snapshotMeter
	p := event.SnapshotProgress{ID: "s", Rows: 100, Estimate: 1000}
	now := time.Unix(0, 0)
	require.Zero(t, m.status(&p, now).PerSecond)
	p.Rows = 300
	s := m.status(&p, now.Add(2*time.Second))
	require.InDelta(t, 100, s.PerSecond, 1e-9)
	require.Equal(t, 7*time.Second, s.Left)
	m.keep(nil)
	require.Zero(t, m.status(&p, now).PerSecond)
}

// A table is divided only when those have ended that may have written to it before the stream had it.
func TestSnapshotWaitsForWritersOfBefore(t *testing.T) {
	b := newSnapshotBook("r", 1, nil, event.Position{Snapshots: snapshotPlan(event.Position{}, []string{"a"}, time.Unix(0, 0))})
	req, _ := b.next()
	for i, writers := range [][]string{{"1/1", "2/1"}, {"1/1", "3/1"}, {"1/1"}} {
		var ok bool
		req, ok = b.cut(b.tasks[req.number], &change.Cut{Shape: "s", Writers: writers})
		require.False(t, ok, i)
	}
	_, ok := b.cut(b.tasks[req.number], &change.Cut{Shape: "s", Writers: []string{"3/1"}})
	require.True(t, ok, "3/1 came later")
}

// While the marks of what was read are on their way, the readers have something to read; how much is bounded.
func TestSnapshotPartsWaitForTheReaders(t *testing.T) {
	b := newSnapshotBook("r", 1, nil, event.Position{Snapshots: snapshotPlan(event.Position{}, []string{"a"}, time.Unix(0, 0))})
	req, _ := b.next()
	_, ok := b.cut(b.tasks[req.number], &change.Cut{Shape: "s", Bounds: [][]string{{"1"}, {"2"}, {"3"}, {"4"}}})
	require.True(t, ok)
	places := map[int]bool{}
	for req, ok := b.next(); ok; req, ok = b.next() {
		places[req.place] = true
	}
	require.Len(t, places, 1+snapshotAhead, "one is read, the others wait, none twice")
}

// A cut may wait for a writer for hours. What the position says of transactions does not grow meanwhile, and is not copied
// each time that it is asked for.
func TestUnseenTransactionsAreFewWhileACutWaits(t *testing.T) {
	b := newSnapshotBook("r", 1, nil, event.Position{Snapshots: snapshotPlan(event.Position{}, []string{"a"}, time.Unix(0, 0))})
	req, _ := b.next()
	most, x := 0, change.XID(1000)
	for range 30 {
		for range 1000 { // a second of a busy database
			x++
			b.streamed(x)
		}
		raw, err := json.Marshal(event.Position{Unseen: b.unseen()})
		require.NoError(t, err)
		most = max(most, len(raw))
		// A writer of before goes on, and one transaction waits for a standby.
		snap := change.Snapshot{Xmin: 10, Xmax: x, Running: []change.XID{10, 1500}}
		req, _ = b.cut(b.tasks[req.number], &change.Cut{Shape: "s", Writers: []string{"1/1"}, Snapshot: snap})
	}
	require.Less(t, most, 4000, "bytes of the position")
	require.Contains(t, b.unseen(), change.XID(1500))
	kept := b.unseen()
	want := slices.Clone(kept)
	require.Zero(t, testing.AllocsPerRun(10, func() { b.unseen() }))
	for range 1 << 16 {
		x++
		b.streamed(x)
	}
	b.seen(change.Snapshot{Xmin: x, Xmax: x})
	for range 100 {
		x++
		b.streamed(x)
	}
	require.Equal(t, want, kept, "what is on its way to Kafka stays as it was")
}

// A transaction of any size passes in bounded memory while a snapshot runs: a chunk with too many changed rows is read again.
func TestWindowsForgetWhatIsTooMuch(t *testing.T) {
	rel := testRelation("t", "id", "v")
	chunk := &change.Chunk{Relation: rel, Rows: []change.Tuple{testTuple("1", "a"), testTuple("x", "b")}}
	for rows, merges := range map[int]bool{1000: true, 1_000_000: false} {
		w := snapshotWindow{table: "public.t"}
		w.open(1, nil, snapshotProof{})
		most := 0
		for i := range rows {
			w.touch(&change.Change{Op: change.Update, Relation: rel, After: testTuple(strconv.Itoa(i), "b")})
			most = max(most, len(w.touched))
		}
		require.LessOrEqual(t, most, snapshotWindowBytes/snapshotKeyBytes)
		left, ok := w.close(chunk)
		require.Equal(t, merges, ok)
		if ok {
			require.Equal(t, []change.Tuple{testTuple("x", "b")}, left)
		}
		w.open(2, nil, snapshotProof{})
		_, ok = w.close(chunk)
		require.True(t, ok, "the next attempt begins anew")
	}
}

// A mirrored table that cannot be read refuses nobody a snapshot of all tables; asked for by its name, it is told.
func TestSnapshotsOfAllGoOnWithoutATableOfTheMirrorAlone(t *testing.T) {
	cfg := CaptureConfig{Routes: []route.Route{{Table: "public.products", Key: "id"}}, Mirror: MirrorConfig{On: true, Tables: []string{"public.parted"}}}
	for content, spare := range map[string]bool{`{"all": true}`: true, `{"table": "public.parted"}`: false} {
		b := newSnapshotBook("r", 2, cfg.Routes, event.Position{})
		b.ask(parseSnapshotAsk(&change.Message{Content: []byte(content), LSN: 5}, cfg), 1, time.Unix(0, 0))
		for r, ok := b.next(); ok; r, ok = b.next() {
			require.Equal(t, spare && r.query.Table == "public.parted", r.spare, "%s %s", content, r.query.Table)
		}
	}
}

// attentiveStream does what is asked of it beside its keepalives.
type attentiveStream struct{ captureStream }

func (attentiveStream) Attend(ctx context.Context, work func(context.Context) error) error {
	return work(ctx)
}

// A request for a snapshot and the position behind it stand in one unit: after a kill between two, nobody would take it.
func TestARequestIsOnRecordWithItsPosition(t *testing.T) {
	c := NewCapture(CaptureConfig{
		Routes: []route.Route{{Table: "public.products", Key: "id"}}, Mirror: MirrorConfig{On: true}, TxRows: 1, BatchRows: 1, BatchProducts: 1,
	}, CaptureParts{Logger: slog.New(slog.DiscardHandler)})
	s := c.newSession(attentiveStream{}, event.Position{Position: change.Position{CommitLSN: 10}, Tables: []string{"public.products"}})
	var err error
	s.mirror, err = newCaptureMirror(c.cfg)
	require.NoError(t, err)
	s.units = make(chan *captureUnit, 10)
	s.backlog = append(s.backlog, captureStep{kind: captureAdvance, end: 11}) // something waits
	s.takeMessage(&change.Message{Prefix: MessageSnapshot, Content: []byte(`{"id":"x","table":"public.products"}`), LSN: 100})
	require.NoError(t, s.drain(t.Context()))
	s.units <- s.closeUnit()
	close(s.units)
	records := 0
	for u := range s.units {
		records += len(u.records)
		require.Equal(t, u.position.CommitLSN >= 100, len(u.position.Snapshots) == 1, "position %s", u.position.Position)
	}
	require.Equal(t, 1, records, "it is in the mirror, once")
}

// Parts that cannot be read, however many, leave the readers to the others.
func TestPartsThatCannotBeReadTakeNobodysPlace(t *testing.T) {
	b := newSnapshotBook("r", 2, nil, event.Position{Snapshots: snapshotPlan(event.Position{}, []string{"a"}, time.Unix(0, 0))})
	req, _ := b.next()
	_, ok := b.cut(b.tasks[req.number], &change.Cut{Shape: "s", Bounds: [][]string{{"1"}, {"2"}, {"3"}, {"4"}, {"5"}, {"6"}}})
	require.True(t, ok)
	var stuck []snapshotRequest
	for range 5 {
		r, ok := b.next()
		require.True(t, ok, "part %d", len(stuck))
		b.low(snapshotMark{run: "r", number: r.number, attempt: 1})
		stuck = append(stuck, b.putOff(b.tasks[r.number], snapshotUnreadable))
	}
	b.ask(&snapshotAsk{tables: []string{"b"}, lsn: 5}, 1, time.Unix(0, 0))
	r, ok := b.next()
	require.True(t, ok)
	require.Equal(t, "b", r.query.Table, "one that is asked for can begin")
	for _, r := range stuck {
		require.NotNil(t, b.tasks[r.number], "it is tried again")
	}
}
