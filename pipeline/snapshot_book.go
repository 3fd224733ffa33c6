package pipeline

import (
	"fmt"
	"slices"
	"time"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/route"
)

// snapshotBook keeps the snapshots that run, and which of their parts are being read. It is pure; one goroutine uses it.
type snapshotBook struct {
	run     string
	readers int // that read a part each, at a time
	routes  []route.Route

	running  []event.SnapshotProgress
	complete []string
	ended    []event.SnapshotEnd
	tasks    map[int]*snapshotTask
	number   int // of the last task
	// recent are the transactions of the stream that nothing has proved visible, the newest last. What stands in it is never
	// overwritten: positions on their way to Kafka share it.
	recent change.XIDs
	proof  snapshotProof
}

// snapshotTask is a part that is being read.
type snapshotTask struct {
	request snapshotRequest
	window  snapshotWindow
	// tries counts how often it has come too early; paused: it waits until it may be read again.
	tries  int
	paused bool
}

// snapshotEnds is how many snapshots that have ended the position names.
const snapshotEnds = 16

// snapshotAhead is how many parts may wait beside those that are being read: for a reader, or, read, for their mark to
// come with the stream. Without them the readers would do nothing meanwhile.
const snapshotAhead = 2

// snapshotTasks bounds the parts that are read or wait to be read again.
const snapshotTasks = 64

// newSnapshotBook goes on from a position.
func newSnapshotBook(run string, readers int, routes []route.Route, pos event.Position) *snapshotBook {
	b := &snapshotBook{
		run: run, readers: max(readers, 1), routes: routes, complete: pos.Tables, ended: pos.Ended,
		tasks: map[int]*snapshotTask{}, recent: slices.Clone(pos.Unseen),
	}
	for _, p := range pos.Snapshots {
		b.running = append(b.running, p.Clone())
	}
	return b
}

// snapshotRequest asks for one part: for the ranges of a table, or for a chunk of one range.
type snapshotRequest struct {
	number int
	// snapshot, table and place say what it is of.
	snapshot     string
	table, place int
	cut          bool
	asked        bool // by somebody, who may be told that it cannot be had
	spare        bool // of a table that is for the mirror alone, which may begin with what changes
	query        change.ChunkQuery
	// writers are the transactions that a cut waits for.
	writers []string
	// pause is waited first.
	pause time.Duration
}

// next gives the next part to read, of the snapshot that has the fewest under way, the oldest first. A table is divided
// before any is read, so that the sum of the estimates is known early.
func (b *snapshotBook) next() (snapshotRequest, bool) {
	busy := 0
	of := map[string]int{}
	taken := map[[3]any]bool{}
	for _, t := range b.tasks {
		r := &t.request
		taken[[3]any{r.snapshot, r.table, r.place}] = true
		of[r.snapshot]++
		if !t.paused {
			busy++
		}
	}
	if busy >= b.readers+snapshotAhead || len(b.tasks) >= snapshotTasks {
		return snapshotRequest{}, false
	}
	var best snapshotRequest
	for i := range b.running {
		p := &b.running[i]
		if best.snapshot != "" && of[p.ID] >= of[best.snapshot] {
			continue
		}
		free := func(table, place int) bool { return !taken[[3]any{p.ID, table, place}] }
		if r, ok := b.part(p, free); ok {
			best = r
		}
	}
	if best.snapshot == "" {
		return best, false
	}
	b.start(&best)
	return best, true
}

// part finds what of a snapshot can be read next.
func (b *snapshotBook) part(p *event.SnapshotProgress, free func(table, place int) bool) (snapshotRequest, bool) {
	r := snapshotRequest{snapshot: p.ID, asked: p.Request != nil}
	spare := func(table string) bool {
		return (p.Request == nil || p.Request.All) && !slices.Contains(SnapshotTables(b.routes), table)
	}
	for i := range p.Tables {
		if t := &p.Tables[i]; t.Shape == "" && free(t.Number, 0) {
			r.table, r.cut, r.query.Selection, r.spare = t.Number, true, b.selection(p, t.Table), spare(t.Table)
			return r, true
		}
	}
	for i := range p.Tables {
		t := &p.Tables[i]
		for j, part := range t.Ranges {
			if !part.Done && free(t.Number, j) {
				r.table, r.place, r.spare = t.Number, j, spare(t.Table)
				r.query = change.ChunkQuery{Selection: b.selection(p, t.Table), Shape: t.Shape, After: part.After, Upto: part.Upto}
				return r, true
			}
		}
	}
	return r, false
}

func (b *snapshotBook) selection(p *event.SnapshotProgress, table string) change.Selection {
	sel := change.Selection{Table: table}
	if p.Request != nil {
		sel.Where, sel.Products, sel.Routes = p.Request.Where, p.Request.Products, b.routes
	}
	return sel
}

func (b *snapshotBook) start(r *snapshotRequest) *snapshotTask {
	b.number++
	r.number = b.number
	t := &snapshotTask{request: *r, paused: r.pause > 0, window: snapshotWindow{table: r.query.Table}}
	b.tasks[r.number] = t
	return t
}

// again reads a part once more, after a pause that grows.
func (b *snapshotBook) again(t *snapshotTask) snapshotRequest {
	delete(b.tasks, t.request.number)
	r := t.request
	r.pause = snapshotPause(t.tries + 1)
	b.start(&r).tries = t.tries + 1
	return r
}

// putOff reads a part once more after a pause, in which it takes nobody's place.
func (b *snapshotBook) putOff(t *snapshotTask, pause time.Duration) snapshotRequest {
	delete(b.tasks, t.request.number)
	r := t.request
	r.pause = pause
	b.start(&r).tries = t.tries
	return r
}

// snapshotPause is how long a chunk that came too early waits before it is read for the nth time again: by then a commit
// that was streamed before it became visible is visible. One that waits for a standby may take hours; a good guest does
// not read the same rows fifty times a second for as long.
func snapshotPause(n int) time.Duration { return 20 * time.Millisecond << min(max(n-1, 0), 6) }

// streamed notes a transaction of the stream.
func (b *snapshotBook) streamed(x change.XID) { b.recent = append(b.recent, x) }

// unseen is what a position must say of the transactions of the stream.
func (b *snapshotBook) unseen() change.XIDs { return slices.Clip(b.recent) }

// seen forgets the transactions that a read has seen.
//
// Invariant: the mark of the read has come with the stream. A chunk whose low mark is still to come is read after it, and
// sees them as well.
func (b *snapshotBook) seen(s change.Snapshot) { b.recent = unproved(b.recent, s) }

// proved forgets the transactions that a snapshot sees which was taken beside the stream. A chunk that was read before it
// may lack them, and its low mark be still to come: the proof tells it when it closes.
func (b *snapshotBook) proved(s change.Snapshot) {
	for _, x := range b.recent {
		if x > b.proof.upto && s.Sees(x) {
			b.proof.upto = x
		}
	}
	b.proof.snapshot = s
	b.seen(s)
}

// touch notes a change of the stream.
func (b *snapshotBook) touch(c *change.Change) {
	for _, t := range b.tasks {
		t.window.touch(c)
	}
}

// low opens the window of a chunk.
func (b *snapshotBook) low(m snapshotMark) {
	if t := b.tasks[m.number]; t != nil && m.run == b.run {
		t.paused = false
		t.window.open(m.attempt, b.recent, b.proof)
	}
}

// merge closes the window of a chunk. Where ok is false, the part is read again, after a pause, or the whole table,
// when its keys mean something else by now: then recut says so.
func (b *snapshotBook) merge(t *snapshotTask, attempt int, c *change.Chunk) (rows []change.Tuple, ok, recut bool) {
	if c.Shape != t.request.query.Shape {
		b.recut(t)
		return nil, false, true
	}
	if t.window.attempt == attempt {
		rows, ok = t.window.close(c)
	}
	b.seen(c.Snapshot)
	return rows, ok, false
}

// find gives the snapshot and the table of a part; nil when they are no more.
func (b *snapshotBook) find(r *snapshotRequest) (*event.SnapshotProgress, *event.SnapshotTable) {
	for i := range b.running {
		p := &b.running[i]
		for j := range p.Tables {
			if p.ID == r.snapshot && p.Tables[j].Number == r.table {
				return p, &p.Tables[j]
			}
		}
	}
	return nil, nil
}

// forget drops what is being read of a table, or with table 0 of all of a snapshot.
func (b *snapshotBook) forget(snapshot string, table int) {
	for n, t := range b.tasks {
		if t.request.snapshot == snapshot && (table == 0 || t.request.table == table) {
			delete(b.tasks, n)
		}
	}
}

// recut has a table divided anew and read from its first row.
func (b *snapshotBook) recut(t *snapshotTask) {
	_, table := b.find(&t.request)
	b.forget(t.request.snapshot, t.request.table)
	if table != nil {
		table.Shape, table.Ranges = "", nil
	}
}

// cut notes the ranges of a table. It returns false, and a request to look again, while transactions write to the table
// that may have begun to before the stream had it: of these nobody else tells.
func (b *snapshotBook) cut(t *snapshotTask, c *change.Cut) (snapshotRequest, bool) {
	b.seen(c.Snapshot)
	r := &t.request
	if !r.asked {
		wait := c.Writers
		if t.tries > 0 {
			wait = slices.DeleteFunc(slices.Clone(r.writers), func(w string) bool { return !slices.Contains(c.Writers, w) })
		}
		if len(wait) > 0 {
			r.writers = wait
			return b.again(t), false
		}
	}
	delete(b.tasks, r.number)
	p, table := b.find(r)
	if table == nil {
		return snapshotRequest{}, true
	}
	table.Shape = c.Shape
	var from []string
	for _, bound := range c.Bounds {
		table.Ranges = append(table.Ranges, event.SnapshotRange{After: from, Upto: bound})
		from = bound
	}
	if !c.Closed {
		table.Ranges = append(table.Ranges, event.SnapshotRange{After: from})
	}
	p.Estimate += c.Rows
	return snapshotRequest{}, true
}

// advance notes that a chunk is merged. It returns the name of the table that is complete by it, if any.
func (b *snapshotBook) advance(t *snapshotTask, c *change.Chunk) string {
	r := &t.request
	delete(b.tasks, r.number)
	p, table := b.find(r)
	if table == nil {
		return ""
	}
	p.Rows += int64(len(c.Rows))
	part := &table.Ranges[r.place]
	part.After, part.Done = c.LastKey, c.Done
	if slices.ContainsFunc(table.Ranges, func(r event.SnapshotRange) bool { return !r.Done }) {
		return ""
	}
	name := table.Table
	b.through(p, table)
	return name
}

// through notes that nothing more is to be read of a table.
func (b *snapshotBook) through(p *event.SnapshotProgress, table *event.SnapshotTable) {
	number, name := table.Number, table.Table
	p.Tables = slices.DeleteFunc(p.Tables, func(t event.SnapshotTable) bool { return t.Number == number })
	if p.Request == nil && !slices.Contains(b.complete, name) {
		b.complete = append(slices.Clone(b.complete), name)
	}
}

// without has a snapshot go on without a table that cannot be read.
func (b *snapshotBook) without(t *snapshotTask) {
	b.forget(t.request.snapshot, t.request.table)
	if p, table := b.find(&t.request); table != nil {
		b.through(p, table)
	}
}

// finished takes the snapshots out that have nothing left to read.
func (b *snapshotBook) finished() []event.SnapshotProgress {
	var done []event.SnapshotProgress
	b.running = slices.DeleteFunc(b.running, func(p event.SnapshotProgress) bool {
		if len(p.Tables) > 0 {
			return false
		}
		done = append(done, p)
		return true
	})
	for _, p := range done {
		b.note(p, "")
	}
	return done
}

// refuse ends a snapshot that cannot be had.
func (b *snapshotBook) refuse(t *snapshotTask, reason string) (event.SnapshotProgress, bool) {
	b.forget(t.request.snapshot, 0)
	for i, p := range b.running {
		if p.ID == t.request.snapshot {
			b.running = slices.Delete(b.running, i, i+1)
			b.note(p, reason)
			return p, true
		}
	}
	return event.SnapshotProgress{}, false
}

// note remembers the end of a snapshot that somebody asked for.
func (b *snapshotBook) note(p event.SnapshotProgress, refused string) {
	if p.Request == nil {
		return
	}
	b.ended = append(slices.Clone(b.ended), event.SnapshotEnd{ID: p.ID, Request: p.Request.ID, Rows: p.Rows, Refused: refused})
	b.ended = b.ended[max(0, len(b.ended)-snapshotEnds):]
}

// ask begins a snapshot that somebody has asked for at a place of the stream, which names it.
func (b *snapshotBook) ask(a *snapshotAsk, timeline int32, now time.Time) event.SnapshotProgress {
	req := a.request
	p := event.SnapshotProgress{ID: fmt.Sprintf("snapshot-%d-%x", timeline, uint64(a.lsn)), Request: &req, Began: now.UTC()}
	for i, t := range a.tables {
		p.Tables = append(p.Tables, event.SnapshotTable{Number: i + 1, Table: t})
	}
	if a.refused != "" {
		b.note(p, a.refused)
		return p
	}
	b.running = append(b.running, p)
	return p
}

// truncated has tables read whole, as their rows were changed in a way that the stream does not spell out.
func (b *snapshotBook) truncated(tables []string, now time.Time) {
	i := slices.IndexFunc(b.running, func(p event.SnapshotProgress) bool { return p.Request == nil })
	if i >= 0 {
		// A table that has not been divided is read from now on anyway.
		tables = slices.DeleteFunc(slices.Clone(tables), func(t string) bool {
			return slices.ContainsFunc(b.running[i].Tables, func(has event.SnapshotTable) bool { return has.Table == t && has.Shape == "" })
		})
	}
	b.running = snapshotMore(b.running, tables, now)
}

// progress copies what the position must say.
func (b *snapshotBook) progress() *captureSnapshotStep {
	s := &captureSnapshotStep{tables: b.complete, ended: b.ended}
	for _, p := range b.running {
		s.running = append(s.running, p.Clone())
	}
	return s
}

// snapshotsGivenUp are the ends that a position must tell of when another snapshot takes the place of all that ran.
func snapshotsGivenUp(old event.Position, by string) []event.SnapshotEnd {
	b := &snapshotBook{ended: old.Ended}
	for _, p := range old.Snapshots {
		b.note(p, "given up: all tables are read again by "+by)
	}
	return b.ended
}
