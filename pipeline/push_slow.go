package pipeline

import (
	"context"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"sync"
	"time"

	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// A documents query that runs into the source's statement timeout is halved, as one that breaks on its data, until the
// product is found that is too slow even alone. That product waits in the state for longer and longer, is told as
// RETRYING, and is FAILED only after all its attempts: the source may have been short of something. Its own record
// remembers it, so that it is read alone, beside the rounds of others, until a read of it has succeeded.

// reasonSlow is both the reason of the outcome and that of the parked row.
const reasonSlow = "SLOW_READ"

// timeoutsMost bounds the queries of a round that time out. To find one product among 250 takes nine; where it takes
// more, the source is slow for all of them, and asking product by product would hold them for hours.
const timeoutsMost = 12

// timedOut reports whether the source gave the query up because it took too long.
func timedOut(err error) bool {
	var e interface{ SQLState() string }
	return errors.As(err, &e) && e.SQLState() == "57014" // query_canceled (PostgreSQL, Appendix A)
}

// apart gives each product that was too slow last time a round of its own, one at a time: each holds one of the few
// connections to the source for as long as the timeout. Those that find the place taken wait in the state.
func (r *reading) apart(ctx context.Context, flights []*flight) (rest []*flight) {
	if r.alone != nil {
		return flights
	}
	for _, f := range flights {
		if f.known[""].LastReason != reasonSlow {
			rest = append(rest, f)
			continue
		}
		select {
		case r.p.slow <- struct{}{}:
			one := &reading{p: r.p, stop: r.stop, alone: sync.OnceFunc(func() { <-r.p.slow })}
			r.p.rounds.Go(func() {
				defer one.alone()
				one.run(ctx, []*entry{f.entry})
			})
		default:
			f.queued = true
			rest = append(rest, f)
		}
	}
	return rest
}

// slowJob is what becomes of a product whose read took too long, or would have to wait for its turn.
func (f *flight) slowJob() *job {
	f.blind = true
	if f.queued {
		return &job{flight: f, push: work.Push{ProductID: string(f.entry.product), Known: f.knownIn("")}, park: reasonSlow}
	}
	return f.ready("", work.Result{
		Status: event.Retrying, Category: event.Unknown, Reason: reasonSlow, Field: "documents", Counts: true,
		Message: fmt.Sprintf("the documents query does not end in time for this product alone: %v", f.slow),
	})
}

// slowTurn is when a product that found the place taken is tried again.
func slowTurn() time.Duration { return retryDelay(3, mathrand.Float64()) }

// slow keeps the product's own record: how often it was too slow. What was seen of it before stands.
func (s *settlement) slow(k work.Known) {
	if k.LastStatus == event.Failed { // what comes after has all its attempts before it
		k.Attempt = 0
	}
	s.Products = append(s.Products, work.Settled{Known: work.Known{
		ProductID: k.ProductID, LastStatus: k.LastStatus, LastReason: reasonSlow, Attempt: k.Attempt,
	}})
}

// waitsFor are the transactions that the next read of the product must see, whoever has asked for it.
func (f *flight) waitsFor() *entry {
	for _, ref := range f.parked {
		f.entry.needs(ref.XIDs...)
	}
	return f.entry
}
