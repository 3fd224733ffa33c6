package pipeline

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
)

// dispatch asks for as many parts of the running snapshots as may be read at a time.
func (s *captureSession) dispatch() {
	for {
		req, ok := s.book.next()
		if !ok {
			return
		}
		s.snapshots.submit(req)
	}
}

// snapshotMoved puts on record where the snapshots are, with the ends of those that are complete.
func (s *captureSession) snapshotMoved() {
	s.step(captureStep{kind: captureProgress, progress: s.snapshotStep(nil, nil)})
	s.dispatch()
}

// snapshotStep describes where the snapshots are. refused have ended as well as those that are complete.
func (s *captureSession) snapshotStep(refused []event.SnapshotProgress, dead []event.Record) *captureSnapshotStep {
	ended := append(refused, s.book.finished()...)
	step := s.book.progress()
	step.dead = dead
	for _, p := range ended {
		s.c.log.Info("snapshot has ended", "snapshot", p.ID, "rows", p.Rows)
		if p.Rows == 0 {
			continue // nothing stands in the topics
		}
		b := event.Batch{Type: event.BatchAnnounced, ID: p.ID, Kind: event.KindSnapshot, Rows: p.Rows}
		if p.Request != nil {
			b.Name, b.Admin = p.Request.ID, p.Request.Admin
		}
		step.announce = append(step.announce, b)
	}
	return step
}

// watermark takes a mark: of the beginning of a chunk, or of an answer that lies ready.
func (s *captureSession) watermark(m snapshotMark, lsn change.LSN) {
	if m.run != s.book.run {
		return // of a session before
	}
	if !m.high {
		s.book.low(m)
		return
	}
	a, t := s.snapshots.take(m), s.book.tasks[m.number]
	switch {
	case a == nil || t == nil: // the mark was written twice, or nobody waits for the part any more
	case a.refused != "" && t.request.spare:
		s.c.log.Error("a table cannot be read whole: its mirror topic begins with what changes", "table", t.request.query.Table, "reason", a.refused)
		s.book.without(t)
		s.snapshotMoved()
	case a.refused != "":
		s.refuse(t, a.refused, lsn)
	case a.later:
		s.snapshots.submit(s.book.putOff(t, snapshotUnreadable))
		s.dispatch() // another part meanwhile
	case a.cut != nil:
		if req, ok := s.book.cut(t, a.cut); !ok {
			s.c.log.Info("snapshot of a table waits for transactions that write to it", "table", req.query.Table, "transactions", req.writers)
			s.snapshots.submit(req)
			s.dispatch() // another part meanwhile
			return
		}
		if !t.request.asked {
			s.router.doubt(t.request.query.Table)
		}
		s.snapshotMoved()
	default:
		s.merge(t, a, lsn)
	}
}

// refuse makes a snapshot that cannot be had a dead letter.
func (s *captureSession) refuse(t *snapshotTask, reason string, lsn change.LSN) {
	p, ok := s.book.refuse(t, reason)
	if !ok {
		return
	}
	content, err := json.Marshal(p.Request)
	if err != nil { // texts
		panic(fmt.Sprintf("encode a request: %v", err))
	}
	s.c.log.Error("snapshot cannot be had", "snapshot", p.ID, "request", p.Request.ID, "reason", reason)
	dead := snapshotDead(s.batcher.limits.deadletters, &snapshotAsk{
		request: *p.Request, content: content, position: change.Position{CommitLSN: lsn},
	}, reason)
	step := s.snapshotStep([]event.SnapshotProgress{p}, []event.Record{dead})
	s.step(captureStep{kind: captureProgress, progress: step})
	s.dispatch()
}

// merge puts the rows of a chunk where its high mark stands in the stream.
func (s *captureSession) merge(t *snapshotTask, a *snapshotAnswer, lsn change.LSN) {
	chunk, table := a.chunk, t.request.query.Table
	rows, ok, recut := s.book.merge(t, a.attempt, chunk)
	switch {
	case recut:
		s.c.log.Warn("a table's key or file changed while a snapshot ran: the table is read again from its first row", "table", table)
		s.snapshotMoved()
		return
	case !ok:
		s.c.stats.Rereads.Add(1)
		s.snapshots.submit(s.book.again(t))
		s.dispatch() // another part while this one waits
		return
	}
	s.encoder.envelope.ReadAt = chunk.ReadAt
	// Rows that wait for nobody go into the unit at once: none ends before the progress that counts them.
	direct := len(s.backlog) == 0 && s.router.alone(chunk.Relation)
	// The mark ends where the next record of the WAL begins, which may be a commit: within the mark begins none.
	at := lsn - 1
	for i, row := range rows {
		c := change.Change{
			Op: change.Read, Relation: chunk.Relation, After: row, LSN: lsn,
			Position: change.Position{CommitLSN: at, Ordinal: uint64(i + 1)},
		}
		step := s.routeRow(&c, nil, !direct)
		if step == nil {
			continue
		}
		step.snapshot = t.request.snapshot
		s.push(step, direct)
		s.c.stats.SnapshotRows.Add(1)
	}
	if name := s.book.advance(t, chunk); name != "" {
		s.c.log.Info("snapshot of a table is complete", "snapshot", t.request.snapshot, "table", name)
	}
	s.snapshotMoved()
}

// ask takes a request for a snapshot: with its transaction, or at once.
func (s *captureSession) ask(m *change.Message) {
	switch {
	case m.Transactional && s.skip, !m.Transactional && m.LSN <= s.resume.CommitLSN:
		return // taken
	case m.Transactional:
		// Also one below the position: what the transaction asks for is on record with its commit only.
		s.asked = append(s.asked, parseSnapshotAsk(m, s.c.cfg))
		return
	}
	dead := s.begun([]*snapshotAsk{parseSnapshotAsk(m, s.c.cfg)})
	step := s.snapshotStep(nil, dead)
	step.taken = m.LSN
	st := captureStep{kind: captureProgress, progress: step}
	if rec, ok := s.encoder.message(m, nil, s.mirror); ok {
		st.mirror = []event.Record{rec}
	}
	s.step(st)
	s.dispatch()
}

// begun begins what was asked for, and returns what of it cannot be had.
func (s *captureSession) begun(asked []*snapshotAsk) []event.Record {
	var dead []event.Record
	for _, a := range asked {
		if a.refused == "" && len(s.book.running) >= snapshotMost {
			a.refused = fmt.Sprintf("%d snapshots run already", snapshotMost)
		}
		p := s.book.ask(a, s.batcher.history.Timeline, time.Now())
		if a.refused != "" {
			s.c.log.Error("snapshot cannot be had", "snapshot", p.ID, "request", a.request.ID, "position", a.position.String(), "reason", a.refused)
			dead = append(dead, snapshotDead(s.batcher.limits.deadletters, a, a.refused))
			continue
		}
		s.c.log.Info("snapshot begins", "snapshot", p.ID, "request", a.request.ID, "tables", a.tables)
	}
	return dead
}
