package pipeline

import (
	"context"
	"errors"
	"log/slog"

	"golang.org/x/sync/errgroup"

	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// follower reads the partitions of a topic under leases and handles their records one after the other: the shape of
// the stages that need no debounce (Expand, and the reader of catalog.batches).
type follower struct {
	keeper *leaseKeeper
	reader recordReader
	log    *slog.Logger
	// handle makes the effect of these records durable together with the position after them. They are of one
	// partition and in order. It returns work.ErrLeaseLost when the partition is no longer this worker's, and
	// otherwise tries until it succeeds or ctx ends.
	handle func(ctx context.Context, lease work.Lease, recs []event.Record) error

	held  map[int32]work.Lease
	ahead readAhead
}

// run works until ctx ends and then gives the leases back.
func (f *follower) run(ctx context.Context) error {
	f.held = map[int32]work.Lease{}
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
				if err := f.dispatch(ctx, recs); err != nil {
					return err
				}
			case <-ctx.Done():
				return nil // nothing is ever left half done between two records
			}
		}
	})
	err := g.Wait()
	for part := range f.held {
		f.reader.Remove(part)
	}
	f.keeper.release(context.WithoutCancel(ctx))
	return err
}

func (f *follower) assign(ctx context.Context, held []heldLease) {
	seen := map[int32]bool{}
	var wanted []work.Fence
	for _, h := range held {
		old, ok := f.held[h.Partition]
		switch {
		case h.Wanted: // nothing is ever left half done between two records
			f.drop(h.Partition)
			wanted = append(wanted, h.Fence)
			continue
		case ok && old.Epoch == h.Epoch:
			old.Expires = h.Expires
			f.held[h.Partition] = old
		default:
			f.reader.Remove(h.Partition)
			f.held[h.Partition] = h.Lease
			f.ahead.begin(h.Partition, h.Position)
			f.reader.Add(h.Partition, h.Position)
		}
		seen[h.Partition] = true
	}
	for part := range f.held {
		if !seen[part] {
			f.drop(part)
		}
	}
	if len(wanted) > 0 {
		if err := f.keeper.store.Release(ctx, wanted); err != nil {
			f.log.WarnContext(ctx, "leases not released; they end by themselves", "error", err)
		}
	}
}

func (f *follower) drop(partition int32) {
	f.reader.Remove(partition)
	delete(f.held, partition)
}

// dispatch hands each partition's records over in one call.
func (f *follower) dispatch(ctx context.Context, recs []event.Record) error {
	byPart := map[int32][]event.Record{}
	for i := range recs {
		r := &recs[i]
		if f.ahead.stale(r) {
			continue
		}
		if l, ok := f.held[r.Partition]; ok && r.Offset >= l.Position {
			byPart[r.Partition] = append(byPart[r.Partition], *r)
		}
	}
	for part, rs := range byPart {
		lease := f.held[part]
		err := f.handle(ctx, lease, rs)
		switch {
		case err == nil:
			lease.Position, lease.Cursor = rs[len(rs)-1].Offset+1, ""
			f.held[part] = lease
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, work.ErrLeaseLost):
			f.drop(part)
		default:
			return err
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
