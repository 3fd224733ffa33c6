package pipeline

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/shelfwire/shelfwire/schemas/change"
)

// request asks for the next chunk of the running snapshot, after a pause. A snapshot that has nothing left to read is
// closed instead.
func (s *captureSession) request(pause time.Duration) {
	if s.progress == nil {
		return
	}
	if s.progress.Table == "" {
		s.finish(&captureSnapshotDone{id: s.progress.ID, rows: s.progress.Rows, tables: s.complete})
		s.progress = nil
		return
	}
	s.number++
	s.window.expect(s.number, s.progress.Table)
	// One request is under way at a time; the reader may still be returning from the last one, so it waits here.
	s.snapshots.requests <- snapshotRequest{number: s.number, table: s.progress.Table, after: s.progress.LastKey, pause: pause}
}

func (s *captureSession) finish(d *captureSnapshotDone) {
	s.backlog = append(s.backlog, captureStep{kind: captureProgress, progress: d})
}

// snapshotPause is how long a chunk that came too early waits before it is read for the nth time again: by then a commit
// that was streamed before it became visible is visible. One that waits for a standby may take hours; a good guest does
// not read the same rows fifty times a second for as long.
func snapshotPause(n int) time.Duration { return 20 * time.Millisecond << min(max(n-1, 0), 6) }

// merge puts the rows of a chunk where its high mark stands in the stream.
func (s *captureSession) merge(lsn change.LSN) {
	chunk := s.snapshots.take(s.number)
	if chunk == nil {
		return // the mark was written twice, and its chunk is merged
	}
	if s.reordered(chunk.Relation) {
		s.c.log.Warn("primary key changed while a snapshot ran: the table is read again from its first row", "table", s.progress.Table)
		again := *s.progress
		again.LastKey = nil
		s.progress = &again
		s.request(0)
		return
	}
	rows, ok := s.window.high(chunk)
	if !ok {
		s.c.stats.Rereads.Add(1)
		s.rereads++
		s.request(snapshotPause(s.rereads))
		return
	}
	s.rereads = 0
	s.encoder.envelope.ReadAt = chunk.ReadAt
	for i, row := range rows {
		c := change.Change{
			Op: change.Read, Relation: chunk.Relation, After: row, LSN: lsn,
			Position: change.Position{CommitLSN: lsn, Ordinal: uint64(i + 1)},
		}
		r := s.router.route(&c, s.pairs)
		s.pairs = r.pairs
		if len(r.pairs) == 0 {
			continue
		}
		step := s.encoder.row(&c, nil, &r)
		step.snapshot = s.progress.ID
		s.push(step)
		s.c.stats.SnapshotRows.Add(1)
	}
	done := &captureSnapshotDone{id: s.progress.ID}
	table := s.progress.Table
	done.rows = s.progress.Rows + int64(len(chunk.Rows))
	s.progress, s.complete = snapshotAdvance(*s.progress, s.complete, chunk)
	done.progress, done.tables = s.progress, s.complete
	if chunk.Done {
		s.c.log.Info("snapshot of a table is complete", "table", table, "rows", done.rows, "all", s.progress == nil)
	}
	s.finish(done)
	s.request(0)
}

// reordered reports whether the rows of a chunk stand in another order than those of the chunk before, so that the key
// that it went on from said nothing about which rows are behind it.
func (s *captureSession) reordered(now *change.Relation) bool {
	was := s.shape
	s.shape = now
	if was == nil || was == now || was.OID != now.OID || len(s.progress.LastKey) == 0 {
		return false
	}
	return !slices.EqualFunc(was.PrimaryKey, now.PrimaryKey, func(a, b string) bool {
		i, j := was.Index(a), now.Index(b)
		return a == b && i >= 0 && j >= 0 && was.Columns[i].TypeOID == now.Columns[j].TypeOID
	})
}

// commit ends the open transaction. One that has truncated a routed table calls for a new snapshot: which products had
// rows in it is not known, so all are touched. That stands in the same step, so that no unit ends between the two.
func (s *captureSession) commit(end change.LSN) {
	step := captureStep{kind: captureCommit, end: end}
	if !s.truncated {
		s.backlog = append(s.backlog, step)
		return
	}
	s.truncated = false
	running := s.progress != nil
	s.progress = snapshotAgain(s.progress, SnapshotTables(s.c.cfg.Routes), time.Now())
	step.progress = &captureSnapshotDone{progress: s.progress, tables: s.complete}
	s.backlog = append(s.backlog, step)
	if !running {
		s.request(0)
	}
}

// pending reports whether the row waits for a look-up.
func (r *captureRowStep) pending() bool {
	for i := range r.pairs {
		if r.pairs[i].old.kind == routerPending || r.pairs[i].new.kind == routerPending {
			return true
		}
	}
	return false
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

// lookUp asks until the answer has seen every transaction that it must: WAL is sent before its commit is visible.
func (s *captureSession) lookUp(ctx context.Context, parent *routerParent, ask *captureLookup) (found captureFound, err error) {
	err = s.stream.Attend(ctx, func(ctx context.Context) error {
		for pause := 10 * time.Millisecond; ; pause = min(2*pause, time.Second) {
			found = captureFound{rows: map[string]change.ParentRow{}, bad: map[string]string{}}
			late := false
			err := s.parents(ctx, parent, ask.ids, &found, func(snap change.Snapshot) {
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
	var tries captureTries
	err := retry(ctx, s.c.log, "products of parent rows", func(ctx context.Context) (err error) {
		s.c.stats.Lookups.Add(1)
		rows, snap, err = s.c.parts.Source.ParentKeys(ctx, parent.Parent, ids)
		var data interface{ Data() bool }
		if errors.As(err, &data) && data.Data() {
			bad = err
			return nil
		}
		return tries.judge("products of parent rows", err)
	})
	switch half := len(ids) / 2; {
	case err != nil:
		return err
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
