package pipeline

import (
	"context"
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

// snapshotPause is how long a chunk that came too early waits: by then a commit that was streamed before it became
// visible is visible, unless it waits for a standby.
const snapshotPause = 20 * time.Millisecond

// merge puts the rows of a chunk where its high mark stands in the stream.
func (s *captureSession) merge(lsn change.LSN) {
	chunk := s.snapshots.take(s.number)
	if chunk == nil {
		return // the mark was written twice, and its chunk is merged
	}
	rows, ok := s.window.high(chunk)
	if !ok {
		s.c.stats.Rereads.Add(1)
		s.request(snapshotPause)
		return
	}
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

// again takes a new snapshot after a transaction that has truncated a routed table: which products had rows in it is
// not known, so all are touched.
func (s *captureSession) again() {
	if !s.truncated {
		return
	}
	s.truncated = false
	running := s.progress != nil
	s.progress = snapshotAgain(s.progress, SnapshotTables(s.c.cfg.Routes), time.Now())
	s.finish(&captureSnapshotDone{progress: s.progress, tables: s.complete})
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

// lookup is what one query asks for.
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
		keys, err := s.lookUp(ctx, parent, ask)
		if err != nil {
			return err
		}
		for id, product := range keys {
			s.router.resolve(parent, id, product)
		}
		s.targets(func(_ *captureRowStep, t *routerTarget) {
			if t.parent != parent {
				return
			}
			product, ok := keys[t.id]
			if *t = (routerTarget{}); ok && product != "" {
				*t = routerTarget{kind: routerProduct, product: product}
				return
			}
			// The parent is gone, and its own deletion has touched or will touch its product.
			s.c.stats.Orphans.Add(1)
		})
	}
	s.waiting = 0
	return nil
}

// lookUp asks until the answer has seen every transaction that it must: WAL is sent before its commit is visible.
func (s *captureSession) lookUp(ctx context.Context, parent *routerParent, ask *captureLookup) (keys map[string]change.ProductID, err error) {
	err = s.stream.Attend(ctx, func(ctx context.Context) error {
		for {
			var snap change.Snapshot
			err := retry(ctx, s.c.log, "products of parent rows", func(ctx context.Context) (err error) {
				s.c.stats.Lookups.Add(1)
				keys, snap, err = s.c.parts.Source.ParentKeys(ctx, parent.Parent, ask.ids)
				if err != nil && captureFinal(err) {
					return &captureError{err.Error()}
				}
				return err
			})
			if err != nil {
				return err
			}
			for x := range ask.xids {
				if snap.Sees(x) {
					delete(ask.xids, x)
				}
			}
			if len(ask.xids) == 0 {
				return nil
			}
			if !sleep(ctx, 10*time.Millisecond) {
				return ctx.Err()
			}
		}
	})
	return keys, err
}
