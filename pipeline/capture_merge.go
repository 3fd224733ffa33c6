package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
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
	case a.cut != nil:
		if req, ok := s.book.cut(t, a.cut); !ok {
			s.c.log.Info("snapshot of a table waits for transactions that write to it", "table", req.query.Table, "transactions", req.writers)
			s.snapshots.submit(req)
			s.dispatch() // another part meanwhile
			return
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
		step := s.row(&c, nil, !direct)
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
	s.step(captureStep{kind: captureProgress, progress: step})
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

// commit ends the open transaction. One that has truncated a routed table calls for a new snapshot: which products had
// rows in it is not known, so all are touched. One that has asked for snapshots gets them. That stands in the same step,
// so that no unit ends between the two.
func (s *captureSession) commit(end change.LSN) {
	step := captureStep{kind: captureCommit, end: end, others: !s.concerned}
	if !s.truncated && len(s.asked) == 0 {
		s.step(step)
		return
	}
	if s.truncated {
		s.book.truncated(readableTables(SnapshotTables(s.c.cfg.Routes), s.resume), time.Now())
	}
	dead := s.begun(s.asked)
	s.truncated, s.asked = false, nil
	step.progress = s.snapshotStep(nil, dead)
	s.step(step)
	s.dispatch()
}

// targets calls f for each image of the backlog that waits for a look-up.
func (s *captureSession) targets(f func(*captureRowStep, *routerTarget)) {
	for i := range s.backlog {
		row := s.backlog[i].row
		if row == nil {
			continue
		}
		for j := range row.pairs {
			for _, t := range []*routerTarget{&row.pairs[j].old, &row.pairs[j].new} {
				if t.kind == routerPending {
					f(row, t)
				}
			}
		}
	}
}

// captureLookup is what is asked of one parent table.
type captureLookup struct {
	ids  []string
	seen map[string]bool
	// xids are the transactions that the answer must have seen: a parent may have been made in them.
	xids map[change.XID]bool
}

// resolve looks up the products of all parents that the backlog waits for, with one query for each way through a
// parent table.
func (s *captureSession) resolve(ctx context.Context) error {
	asks := map[*routerParent]*captureLookup{}
	s.targets(func(row *captureRowStep, t *routerTarget) {
		// The stream may have brought the parent since.
		if id, ok := s.router.cache.get(t.parent, []byte(t.id)); ok {
			*t = routerTarget{kind: routerProduct, product: id}
			return
		}
		a := asks[t.parent]
		if a == nil {
			a = &captureLookup{seen: map[string]bool{}, xids: map[change.XID]bool{}}
			asks[t.parent] = a
		}
		if !a.seen[t.id] {
			a.seen[t.id] = true
			a.ids = append(a.ids, t.id)
		}
		a.xids[row.xid] = true
	})
	for parent, ask := range asks {
		found, err := s.lookUp(ctx, parent, ask)
		if err != nil {
			return err
		}
		for id, row := range found.rows {
			s.router.resolve(parent, id, row)
		}
		s.targets(func(_ *captureRowStep, t *routerTarget) {
			if t.parent != parent {
				return
			}
			id := t.id
			*t = routerTarget{}
			switch row, ok := found.rows[id]; {
			case ok && routerReason([]byte(row.Product)) == "":
				*t = routerTarget{kind: routerProduct, product: row.Product}
			case found.bad[id] != "":
				*t = routerTarget{kind: routerBad, reason: found.bad[id]}
			default:
				// The parent is gone, and its own deletion has touched or will touch its product; or the product id that it
				// holds is none, which its own route says.
				s.c.stats.Orphans.Add(1)
			}
		})
	}
	s.waiting = 0
	return nil
}

// captureFound is the answer to a captureLookup.
type captureFound struct {
	rows map[string]change.ParentRow
	// bad says why an id could not even be asked for.
	bad map[string]string
}

// lookUp asks until the answer has seen every transaction that it must: WAL is sent before its commit is visible. These
// are those of the rows, and those that have changed the parent's table: what they made of it the stream has said, and may
// be forgotten by now.
func (s *captureSession) lookUp(ctx context.Context, parent *routerParent, ask *captureLookup) (found captureFound, err error) {
	err = s.stream.Attend(ctx, func(ctx context.Context) error {
		for pause := 10 * time.Millisecond; ; pause = min(2*pause, time.Second) {
			found = captureFound{rows: map[string]change.ParentRow{}, bad: map[string]string{}}
			late := false
			err := s.parents(ctx, parent, ask.ids, &found, func(snap change.Snapshot) {
				late = late || parent.ahead(snap)
				for x := range ask.xids {
					late = late || !snap.Sees(x)
				}
			})
			if err != nil || !late {
				return err
			}
			if !sleep(ctx, pause) { // for a standby that the commit waits for
				return ctx.Err()
			}
		}
	})
	return found, err
}

// parents asks for ids, and halves what the source cannot read until it has found the id that it stumbles over: a value
// that the parent's column cannot hold.
func (s *captureSession) parents(ctx context.Context, parent *routerParent, ids []string, found *captureFound, saw func(change.Snapshot)) error {
	var rows map[string]change.ParentRow
	var snap change.Snapshot
	var bad error
	var gone bool
	var tries captureTries
	err := retry(ctx, s.c.log, "products of parent rows", func(ctx context.Context) (err error) {
		s.c.stats.Lookups.Add(1)
		rows, snap, err = s.c.parts.Source.ParentKeys(ctx, parent.Parent, ids)
		var data interface{ Data() bool }
		if errors.As(err, &data) && data.Data() {
			bad = err
			return nil
		}
		// All its rows are gone. Once it is there again, it is read, and so are all products that the state knows.
		var none interface{ NoTable() bool }
		if gone = errors.As(err, &none) && none.NoTable(); gone {
			return nil
		}
		return tries.judge("products of parent rows", err)
	})
	switch half := len(ids) / 2; {
	case err != nil:
		return err
	case gone:
	case bad == nil:
		maps.Copy(found.rows, rows)
		saw(snap)
	case half == 0:
		found.bad[ids[0]] = captureLabel(fmt.Sprintf("no row of %s can be found by this value: %v", parent.Table, bad))
	default:
		if err := s.parents(ctx, parent, ids[:half], found, saw); err != nil {
			return err
		}
		return s.parents(ctx, parent, ids[half:], found, saw)
	}
	return nil
}
