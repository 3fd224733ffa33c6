package pipeline

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/shelfwire/shelfwire/schemas/change"
)

// targets calls f for each image of the backlog that waits for a look-up.
func (s *captureSession) targets(f func(*routerTarget)) {
	for i := range s.backlog {
		row := s.backlog[i].row
		if row == nil {
			continue
		}
		for j := range row.pairs {
			for _, t := range []*routerTarget{&row.pairs[j].old, &row.pairs[j].new} {
				if t.kind == routerPending {
					f(t)
				}
			}
		}
	}
}

// captureLookup is what is asked of one parent table.
type captureLookup struct {
	ids  []string
	seen map[string]bool
}

// resolve looks up the products of all parents that the backlog waits for, with one query for each way through a
// parent table.
func (s *captureSession) resolve(ctx context.Context) error {
	asks := map[*routerParent]*captureLookup{}
	s.targets(func(t *routerTarget) {
		// The stream may have brought the parent since.
		if id, ok := s.router.cache.get(t.parent, []byte(t.id)); ok {
			*t = routerTarget{kind: routerProduct, product: id}
			return
		}
		a := asks[t.parent]
		if a == nil {
			a = &captureLookup{seen: map[string]bool{}}
			asks[t.parent] = a
		}
		if !a.seen[t.id] {
			a.seen[t.id] = true
			a.ids = append(a.ids, t.id)
		}
	})
	for parent, ask := range asks {
		found, err := s.lookUp(ctx, parent, ask.ids)
		if err != nil {
			return err
		}
		for id, row := range found.rows {
			s.router.resolve(parent, id, row)
		}
		s.targets(func(t *routerTarget) {
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

// lookUp asks until the answer has seen every transaction of the stream that has changed the parent's table: WAL is sent
// before its commit is visible, and what they made of it the stream has said, and may be forgotten by now. For others it
// does not wait, not for those of the rows either: a commit that hangs for hours shall hold up nobody whom it does not
// concern.
func (s *captureSession) lookUp(ctx context.Context, parent *routerParent, ids []string) (found captureFound, err error) {
	err = s.stream.Attend(ctx, func(ctx context.Context) error {
		for pause := 10 * time.Millisecond; ; pause = min(2*pause, time.Second) {
			found = captureFound{rows: map[string]change.ParentRow{}, bad: map[string]string{}}
			late := false
			err := s.parents(ctx, parent, ids, &found, func(snap change.Snapshot) {
				late = late || parent.table.ahead(snap)
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
