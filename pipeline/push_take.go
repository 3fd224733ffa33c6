package pipeline

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// take brings records in: live changes into the window, campaigns into the parked rows, items of batches into the
// state. What must be written is written beside the loop, one poll at a time, and is durable before it counts as taken
// in; a live change of no batch has nothing to write and waits for nobody.
func (p *Push) take(ctx context.Context, recs []event.Record) {
	in := &intake{prefix: p.cfg.Prefix, content: p.content, n: p.cfg.Partitions, at: time.Now(), owners: map[int32]*ownedPartition{}}
	for i := range recs {
		r := &recs[i]
		o := p.owned[r.Partition]
		if p.ahead.stale(r) || o == nil || o.draining {
			continue
		}
		if o.arrived(r.Offset) {
			in.owners[r.Partition] = o
			in.add(r)
		}
	}
	p.stats.Consumed.Add(int64(len(in.entries) + len(in.free)))
	p.admit(in, in.free)
	if in.nothingToWrite() { // nothing but live changes: their offsets stay open until they are settled
		p.admit(in, in.entries)
		return
	}
	p.taking = true
	p.rounds.Go(func() {
		p.takeIn(ctx, in)
		select {
		case p.takenIn <- in:
		case <-ctx.Done():
		}
	})
}

// admit lets changes wait in the window since they have come.
func (p *Push) admit(in *intake, entries []*entry) {
	for _, e := range entries {
		o := p.owned[e.partition]
		if o == nil || o != in.owners[e.partition] || o.draining {
			continue // the next owner reads it again
		}
		lane := e.lane // its own: it may become part of what waits already
		p.wait(e, func(w *debounceWindow, id change.ProductID, set shopSet) { w.Touch(id, set, p.cfg.wait(lane), in.at) })
	}
}

// taken goes on with a poll whose writes are durable, but for partitions that were lost meanwhile.
func (p *Push) taken(in *intake) {
	p.taking = false
	p.admit(in, in.entries)
	for part, o := range in.owners {
		switch {
		case p.owned[part] != o:
		case in.lost[part]:
			p.drop(part)
		default:
			o.done(in.done[part])
		}
	}
}

// takeIn writes items, parked rows and dead letters of a poll. Where a lease is lost that refuses the whole, each
// partition is written alone.
func (p *Push) takeIn(ctx context.Context, in *intake) {
	err := p.writeIn(ctx, in)
	if err == nil {
		return
	}
	in.lost = map[int32]bool{}
	defer func() { p.tellLost(ctx, in, err) }()
	if len(in.owners) == 1 || !errors.Is(err, work.ErrLeaseLost) {
		for part := range in.owners {
			in.lost[part] = true
		}
		return
	}
	for part, o := range in.owners {
		one := &intake{prefix: in.prefix, content: in.content, n: in.n, at: in.at, owners: map[int32]*ownedPartition{part: o}}
		for i := range in.records {
			if r := &in.records[i]; r.Partition == part {
				one.add(r)
			}
		}
		if one.nothingToWrite() {
			continue
		}
		if broken := p.writeIn(ctx, one); broken != nil {
			in.lost[part] = true
			if !errors.Is(broken, work.ErrLeaseLost) {
				err = broken
			}
		}
	}
}

// tellLost tells of partitions that are given up for another reason than a lease that is lost: they are read again, and
// may be refused again.
func (p *Push) tellLost(ctx context.Context, in *intake, err error) {
	if ctx.Err() != nil || errors.Is(err, work.ErrLeaseLost) {
		return
	}
	p.log.ErrorContext(ctx, "changes not taken in; their partitions are read again",
		"partitions", slices.Sorted(maps.Keys(in.lost)), "error", err)
}

func (p *Push) writeIn(ctx context.Context, in *intake) error {
	t := in.takeIn
	t.TakenIn, t.Positions = map[int32]int64{}, map[int32]int64{}
	for part, last := range in.last {
		o := in.owners[part]
		t.Fences = append(t.Fences, o.fence())
		t.TakenIn[part] = last + 1
		t.Positions[part] = o.safeWith(in.done[part])
	}
	t.Token = newToken()
	err := p.insist(ctx, waitTakeIn, func(ctx context.Context) error { return p.parts.Fenced.TakeIn(ctx, t) })
	if err == nil {
		p.stats.Parked.Add(int64(len(t.Parked)))
	}
	return err
}
