package pipeline

import (
	"context"
	"time"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// pullRounds is how many rounds of parked products are pulled ahead of the readers. A pull steps over what is in hand
// already, and over the places of rows that are just gone, so that few large ones cost less than many small ones.
const pullRounds = 8

// pullNews is what a pull has brought, or that it failed.
type pullNews struct {
	work.Pulled
	failed bool
}

// pull asks for parked products that are due, when there is room for them: ten times a second, and while there is more as
// soon as a reader begins with what was pulled before, so that reading and pulling go on side by side. While the state
// does not answer it asks seldom.
func (p *Push) pull(ctx context.Context) {
	most := min(pullRounds*p.cfg.Round, p.cfg.Hot-len(p.hot))
	if p.pulling || most <= 0 || time.Now().Before(p.pullPause.until) || len(p.owned) == 0 || p.parts.Hold != nil && p.parts.Hold() != "" {
		return
	}
	var parts []int32
	for part, o := range p.owned {
		if !o.draining {
			parts = append(parts, part)
		}
	}
	q := work.Pull{
		Partitions: parts, Closed: append(p.closedShops(), p.lines.full()...), InHand: p.inHand(), N: most, After: p.cursor,
	}
	q.Room, q.Default = p.lines.free()
	// Those that wait for all their shops are pulled to be read: as many as readers will soon take.
	q.Room[""] = max(0, pullRounds*p.cfg.Round-p.windows[classCampaign].Len())
	p.asked = q.Room[""]
	p.pulling = true
	p.rounds.Go(func() {
		got, err := p.parts.State.Pull(ctx, q)
		switch {
		case err == nil:
			p.troubles.end(ctx, p.log, waitPull)
		case ctx.Err() == nil:
			p.troubles.begin(ctx, p.log, waitPull, err)
		}
		select {
		case p.pulled <- pullNews{got, err != nil}:
		case <-ctx.Done():
		}
	})
}

// inHand are the products that stand for parked rows already: pulling claims nothing, and the rows would come again.
func (p *Push) inHand() []string {
	ids := make([]string, 0, len(p.flying))
	for id := range p.flying {
		ids = append(ids, string(id))
	}
	for id, e := range p.hot {
		if len(e.pulled) > 0 {
			ids = append(ids, string(id))
		}
	}
	return ids
}

// unpark lets due parked products fly next. The rows stay until a settlement deletes them. What its shop has no place
// for is left alone: it would be read only to be parked again.
func (p *Push) unpark(rows []work.Parked) {
	now := time.Now()
	p.more = len(rows) > 0 && 2*len(rows) >= min(p.asked, p.cfg.Round)
	for _, row := range rows {
		id := change.ProductID(row.ProductID)
		o := p.owned[row.Partition]
		if _, flies := p.flying[id]; flies || o == nil || o.draining {
			continue
		}
		h := p.hot[id]
		if h != nil && (h.parked == "" || h.pulled[row.Shop] >= row.Generation && row.Generation > 0) {
			continue // a live change absorbs what is parked: its settlement deletes the row
		}
		e := &entry{
			product: id, partition: row.Partition, changes: row.Changes, first: row.FirstCommit, last: row.LastCommit,
			captured: row.FirstCommit, lane: row.Lane, attempt: row.Attempt, parked: row.Reason,
			pulled: map[string]int64{row.Shop: row.Generation},
		}
		e.needs(row.XIDs...)
		if row.Shop != "" {
			key := lineKey{row.Shop, e.class()}
			if !p.lines.enter(key) {
				continue
			}
			e.hold(key, 1)
			e.only = map[string]struct{}{row.Shop: {}}
		}
		p.wait(e, func(w *debounceWindow, id change.ProductID, set shopSet) { w.Hurry(id, set, now) })
	}
}
