package pipeline

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// follower reads the partitions of a topic under leases and handles the records of each one after the other, several
// partitions side by side: the shape of the stages that need no debounce (Expand, and the reader of catalog.batches).
//
// Its loop is never busy: news of leases is heard at once, also while records are handled for minutes, and a partition
// that another worker waits for is given back as soon as what is handled has been cut.
type follower struct {
	keeper *leaseKeeper
	reader recordReader
	log    *slog.Logger
	// side is how many partitions are handled at once; 0 is one.
	side int
	// handle makes the effect of these records durable together with the position after them. They are of one
	// partition and in order. It returns work.ErrLeaseLost when the partition is no longer this worker's, and
	// otherwise tries until it succeeds or ctx ends, which it may do at any point: whatever it has made durable stands.
	handle func(ctx context.Context, lease work.Lease, recs []event.Record) error

	// All below belongs to the loop.
	held    map[int32]*followed
	ready   []*followed // with records to handle, in turn
	busy    int
	results chan followedDone
	ahead   readAhead
	work    sync.WaitGroup
}

// followed is a partition that this worker holds the lease of.
type followed struct {
	lease work.Lease
	queue []event.Record
	next  int64 // the offset after the last record that was queued
	// full: reading has been stopped until the queue is handled.
	full bool
	// stop ends what is being handled; nil while nothing is. leaving: the lease is given back when it has ended.
	stop    context.CancelFunc
	leaving bool
}

// followedDone is the end of one call of handle.
type followedDone struct {
	of   *followed
	next int64
	err  error
}

// followQueue is how many records of a partition may wait while earlier ones are handled.
const followQueue = 2000

// run works until ctx ends and then gives the leases back.
func (f *follower) run(ctx context.Context) error {
	f.held, f.results, f.side = map[int32]*followed{}, make(chan followedDone), max(f.side, 1)
	updates := make(chan []heldLease)
	records := make(chan []event.Record)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return f.keeper.run(ctx, updates) })
	g.Go(func() error { return deliver(ctx, f.log, f.reader, 1000, records) })
	g.Go(func() error {
		for {
			select {
			case held := <-updates:
				f.assign(ctx, held)
			case recs := <-records:
				f.take(recs)
			case d := <-f.results:
				if err := f.done(ctx, d); err != nil {
					return err
				}
			case <-ctx.Done():
				return nil
			}
			f.start(ctx)
		}
	})
	err := g.Wait()
	f.work.Wait()
	for part := range f.held {
		f.reader.Remove(part)
	}
	f.keeper.release(context.WithoutCancel(ctx))
	return err
}

func (f *follower) assign(ctx context.Context, held []heldLease) {
	seen := map[int32]bool{}
	var free []work.Fence
	for _, h := range held {
		seen[h.Partition] = true
		p := f.held[h.Partition]
		switch {
		case h.Wanted && (p == nil || p.stop == nil || p.lease.Epoch != h.Epoch):
			f.drop(h.Partition)
			free = append(free, h.Fence)
		case h.Wanted:
			f.reader.Remove(h.Partition)
			p.leaving = true
			p.stop()
		case p != nil && p.lease.Epoch == h.Epoch:
			p.lease.Expires = h.Expires
		default:
			f.drop(h.Partition)
			f.held[h.Partition] = &followed{lease: h.Lease, next: h.Position}
			f.ahead.begin(h.Partition, h.Position)
			f.reader.Add(h.Partition, h.Position)
		}
	}
	for part := range f.held {
		if !seen[part] {
			f.drop(part)
		}
	}
	f.release(ctx, free)
}

// release gives leases back, beside the loop: the state may be away.
func (f *follower) release(ctx context.Context, fences []work.Fence) {
	if len(fences) == 0 {
		return
	}
	f.work.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, leaseStop)
		defer cancel()
		if err := f.keeper.store.Release(ctx, fences); err != nil && ctx.Err() == nil {
			f.log.WarnContext(ctx, "leases not released; they end by themselves", "error", err)
		}
	})
}

// drop forgets a partition. What is being handled of it is cut: its writes would be refused.
func (f *follower) drop(partition int32) {
	p := f.held[partition]
	if p == nil {
		return
	}
	f.reader.Remove(partition)
	delete(f.held, partition)
	p.queue = nil
	if p.stop != nil {
		p.stop()
	}
}

// take queues records. Of a partition whose queue is full nothing more is read, but for what has been read already.
func (f *follower) take(recs []event.Record) {
	for i := range recs {
		r := &recs[i]
		stale := f.ahead.stale(r)
		p := f.held[r.Partition]
		if stale || p == nil || p.leaving || r.Offset < p.next {
			continue
		}
		if len(p.queue) == 0 && p.stop == nil {
			f.ready = append(f.ready, p)
		}
		p.queue, p.next = append(p.queue, *r), r.Offset+1
		if len(p.queue) >= followQueue && !p.full {
			p.full = true
			f.reader.Remove(r.Partition)
		}
	}
}

// start has queues handled, those that have waited longest first.
func (f *follower) start(ctx context.Context) {
	for f.busy < f.side && len(f.ready) > 0 {
		p := f.ready[0]
		f.ready = f.ready[1:]
		if f.held[p.lease.Partition] != p || p.leaving {
			continue
		}
		recs, lease := p.queue, p.lease
		p.queue = nil
		if p.full {
			p.full = false
			f.ahead.begin(lease.Partition, p.next)
			f.reader.Add(lease.Partition, p.next)
		}
		hctx, stop := context.WithCancel(ctx)
		p.stop = stop
		f.busy++
		f.work.Go(func() {
			err := f.handle(hctx, lease, recs)
			if err != nil && hctx.Err() != nil {
				err = hctx.Err()
			}
			select {
			case f.results <- followedDone{of: p, next: recs[len(recs)-1].Offset + 1, err: err}:
			case <-ctx.Done():
			}
			stop()
		})
	}
}

// done books the end of one call of handle. An error that trying again cannot mend ends the stage.
func (f *follower) done(ctx context.Context, d followedDone) error {
	p := d.of
	f.busy--
	p.stop = nil
	part := p.lease.Partition
	switch {
	case f.held[part] != p: // lost meanwhile
	case p.leaving:
		f.drop(part)
		f.release(ctx, []work.Fence{p.lease.Fence})
	case errors.Is(d.err, work.ErrLeaseLost):
		f.drop(part)
	case d.err != nil && ctx.Err() == nil:
		return d.err
	case d.err == nil:
		p.lease.Position, p.lease.Cursor = d.next, ""
		if len(p.queue) > 0 {
			f.ready = append(f.ready, p)
		}
	}
	return nil
}

// readAhead tells records that were read before their partition was begun anew. Deliver reads one poll ahead: when a
// lease is lost and won again, that poll is still to come, and it lies beyond what is then read again. Taken first, it
// would make all in between look as if it had been taken before. The zero value is ready.
type readAhead struct {
	next   map[int32]int64 // one past the record that was handed over last
	beyond map[int32]int64 // a poll that was read ahead begins here or after it
}

// begin says that a partition is read from an offset on.
func (a *readAhead) begin(partition int32, offset int64) {
	delete(a.beyond, partition)
	// From the offset on there is at least one record before next. So the first record of the new reading lies before
	// it, and whatever was read ahead does not.
	if next, ok := a.next[partition]; ok && offset < next {
		if a.beyond == nil {
			a.beyond = map[int32]int64{}
		}
		a.beyond[partition] = next
	}
}

// stale must be asked of every record that is handed over, in order, wanted or not.
func (a *readAhead) stale(r *event.Record) bool {
	if a.next == nil {
		a.next = map[int32]int64{}
	}
	a.next[r.Partition] = r.Offset + 1
	beyond, waits := a.beyond[r.Partition]
	if waits && r.Offset >= beyond {
		return true
	}
	delete(a.beyond, r.Partition)
	return false
}

// deliver hands over what the reader returns, as fast as the other side takes it. It ends with ctx, or with an error
// that trying again cannot mend, such as records that retention has removed before they were read.
func deliver(ctx context.Context, log *slog.Logger, reader recordReader, limit int, to chan<- []event.Record) error {
	for ctx.Err() == nil {
		var recs []event.Record
		err := retry(ctx, log, "read records", func(ctx context.Context) (err error) {
			recs, err = reader.Poll(ctx, limit)
			return err
		})
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		case len(recs) == 0:
			continue
		}
		select {
		case to <- recs:
		case <-ctx.Done():
		}
	}
	return nil
}
