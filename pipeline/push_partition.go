package pipeline

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/shelfwire/shelfwire/pipeline/checkpoint"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// ownedPartition is a partition that this worker holds the lease of.
type ownedPartition struct {
	mu      sync.Mutex // guards lease, until, draining and tracker: readers, lines and the settler read them
	lease   work.Lease
	until   time.Time
	tracker *checkpoint.Tracker
	// draining is written by the loop alone, which reads it without the lock.
	draining bool

	// The loop's own.
	saved   int64
	flying  int
	drainBy time.Time // when a hand-over waits no longer for what flies
	handing bool      // the lease is being given back
}

func (o *ownedPartition) fence() work.Fence {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.lease.Fence
}

// usable reports whether the lease outlasts a request that begins now.
func (o *ownedPartition) usable(now time.Time, request time.Duration) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return !o.draining && now.Add(request).Before(o.until)
}

func (o *ownedPartition) leaving() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.draining
}

// safeWith is the position that may be written together with the end of these offsets.
func (o *ownedPartition) safeWith(offsets []int64) int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.tracker.SafeWith(offsets...)
}

func (o *ownedPartition) open() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.tracker.Open()
}

func (o *ownedPartition) arrived(offset int64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.tracker.Arrived(offset)
}

func (o *ownedPartition) done(offsets []int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.tracker.Done(offsets...)
}

// assign compares what the worker holds with what it thought to hold.
func (p *Push) assign(ctx context.Context, held []heldLease) {
	seen := map[int32]bool{}
	for _, h := range held {
		if p.released[h.Partition] == h.Epoch && h.Epoch > 0 { // the renewal began before the lease was given back
			continue
		}
		seen[h.Partition] = true
		o := p.owned[h.Partition]
		if o != nil && o.lease.Epoch != h.Epoch { // lost and won again: what was held belongs to the old epoch
			p.drop(h.Partition)
			o = nil
		}
		if o == nil {
			o = &ownedPartition{tracker: checkpoint.NewTracker(h.Position), saved: h.Position}
			p.owned[h.Partition] = o
			o.lease, o.until = h.Lease, h.until
			p.ahead.begin(h.Partition, h.Position)
			p.parts.Reader.Add(h.Partition, h.Position)
			p.log.InfoContext(ctx, "partition taken", "partition", h.Partition, "position", h.Position, "epoch", h.Epoch)
		}
		o.mu.Lock()
		o.lease, o.until = h.Lease, h.until
		o.mu.Unlock()
		if h.Wanted && !o.draining {
			o.mu.Lock()
			o.draining = true
			o.mu.Unlock()
			o.drainBy = time.Now().Add(p.cfg.Drain)
			p.parts.Reader.Remove(h.Partition)
			p.forgetPartition(h.Partition)
		}
	}
	for part, o := range p.owned {
		if !seen[part] && !o.handing {
			p.log.WarnContext(ctx, "partition lost", "partition", part)
			p.drop(part)
		}
	}
}

// drop forgets a partition at once: its lease is gone, and with it the right to settle.
func (p *Push) drop(partition int32) {
	p.parts.Reader.Remove(partition)
	p.forgetPartition(partition)
	delete(p.owned, partition)
}

func (p *Push) forgetPartition(partition int32) {
	for id, e := range p.hot {
		if e.partition == partition {
			p.forget(id)
		}
	}
}

func (p *Push) forget(id change.ProductID) {
	if e := p.hot[id]; e != nil {
		p.windows[e.class()].Drop(id)
		p.lines.leaveAll(e)
	}
	delete(p.hot, id)
	delete(p.blocked, id)
}

// handedOver says that a lease was given back, or that this did not succeed.
type handedOver struct {
	owner     *ownedPartition
	partition int32
	epoch     int64
	released  bool
}

// handOver releases what another worker waits for, as soon as nothing of it flies any more, and at the drain deadline
// in any case. What flies then has been sent under intents that the next owner finds; it can send nothing more, as each
// further request needs an intent under a lease that is gone.
func (p *Push) handOver(ctx context.Context) {
	now := time.Now()
	for part, o := range p.owned {
		if !o.draining || o.handing || o.flying > 0 && now.Before(o.drainBy) {
			continue
		}
		o.handing = true
		var ms []moved
		if safe := o.safeWith(nil); safe != o.saved {
			ms = []moved{{o, part, safe}}
		}
		if o.flying > 0 {
			p.log.WarnContext(ctx, "partition handed over at the drain deadline; the next owner finds the intents",
				"partition", part, "flying", o.flying)
		}
		fence := o.fence()
		p.rounds.Go(func() {
			ctx, cancel := context.WithTimeout(p.life, p.cfg.Lease.TTL) // later it would have ended by itself
			defer cancel()
			if len(ms) > 0 {
				p.save(ctx, ms)
			}
			err := p.parts.Leases.Release(ctx, []work.Fence{fence})
			if err != nil {
				p.log.WarnContext(ctx, "lease not released; it is tried again while it is renewed", "partition", part, "error", err)
			}
			select {
			case p.handed <- handedOver{o, part, fence.Epoch, err == nil}:
			case <-p.life.Done():
			}
		})
	}
}

// forgetOwner ends a hand-over.
func (p *Push) forgetOwner(h handedOver) {
	if p.owned[h.partition] == h.owner {
		delete(p.owned, h.partition)
	}
	if !h.released { // the next renewal tells whose it is
		return
	}
	p.released[h.partition] = h.epoch
	p.log.Info("partition handed over", "partition", h.partition)
}

// moved is a position that no settlement has carried.
type moved struct {
	owner     *ownedPartition
	partition int32
	safe      int64
}

// savePositions writes positions that moved without a settlement of their own to carry them, beside the loop: it is
// not owed, and may have to wait for a settlement's locks.
func (p *Push) savePositions(ctx context.Context) {
	ms := p.moved()
	if p.saving || len(ms) == 0 {
		return
	}
	p.saving = true
	p.rounds.Go(func() {
		saved := p.save(ctx, ms)
		select {
		case p.saved <- saved:
		case <-ctx.Done():
		}
	})
}

func (p *Push) moved() (ms []moved) {
	for part, o := range p.owned {
		if safe := o.safeWith(nil); safe != o.saved && !o.handing {
			ms = append(ms, moved{o, part, safe})
		}
	}
	return ms
}

// save writes positions and returns those that stand.
func (p *Push) save(ctx context.Context, ms []moved) []moved {
	t := work.TakeIn{Positions: map[int32]int64{}}
	for _, m := range ms {
		t.Fences = append(t.Fences, m.owner.fence())
		t.Positions[m.partition] = m.safe
	}
	t.TakenIn = t.Positions
	err := p.parts.Fenced.TakeIn(ctx, t)
	switch {
	case err == nil:
		return ms
	case errors.Is(err, work.ErrLeaseLost) && len(ms) > 1: // one lost lease refuses them all
		var saved []moved
		for i := range ms {
			saved = append(saved, p.save(ctx, ms[i:i+1])...)
		}
		return saved
	case ctx.Err() == nil && !errors.Is(err, work.ErrLeaseLost):
		p.log.WarnContext(ctx, "positions not saved; it is tried again", "partitions", len(ms), "error", err)
	}
	return nil
}
