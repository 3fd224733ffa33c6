package pipeline

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// round is one turn of a group of due products: load what is known, read the documents in one snapshot, plan, send
// shop by shop, settle.
type round struct {
	p     *Push
	owned map[int32]*ownedPartition
	// stop ends when the worker is told to: nothing new is sent then.
	stop context.Context //nolint:containedctx // the round itself must outlive it

	// alone gives the place back that the round of one slow product holds; nil for a round of many.
	alone    func()
	timeouts int

	snapshot change.Snapshot
	readAt   time.Time

	// settling lets one settlement of the round run at a time, so that exactly one of them is the last of a product
	// and carries its offsets.
	settling sync.Mutex
}

// flight is one product of a round.
type flight struct {
	entry  *entry
	known  map[string]work.Known // by shop; "" is the product's own record
	items  []work.Item           // unsettled
	parked []work.ParkedRef
	shops  map[string]struct{} // those that it has a job for
	unseen bool                // its transaction stays invisible: nothing was read
	open   int                 // jobs that are not settled yet
	broken bool                // a job could not be settled: the product must fly again
	again  time.Duration
	blind  bool  // the read broke on the product itself: items settle and parked rows end without a snapshot
	slow   error // the read of the product alone has timed out
	queued bool  // it must be read alone, and another product is
}

// landing is what a flight has become: done, or to fly again after a pause.
type landing struct {
	entry *entry
	again bool
	after time.Duration
}

// job is a flight's part for one shop.
type job struct {
	flight *flight
	push   work.Push
	plan   work.Plan
	result work.Result
	ready  bool   // result stands; nothing is sent
	park   string // wait for this reason instead of being sent
}

// again is the pause before a product flies again because something behind it was away.
const again = 500 * time.Millisecond

// run never returns before every flight has landed one way or the other.
func (r *round) run(ctx context.Context, entries []*entry) []landing {
	// Until the items are split nothing has been sent, and a stop cuts whatever is waited for.
	flights, err := r.load(r.stop, entries)
	if err != nil {
		r.p.log.WarnContext(ctx, "load before a read", "products", len(entries), "error", err)
		return sendBack(entries, again)
	}
	flights, done := r.seenBefore(flights)
	flights = r.apart(ctx, flights)
	rows, failed := r.read(r.stop, flights)
	if r.alone != nil {
		r.alone()
	}
	jobs := r.jobs(flights, rows, failed)
	r.hold(r.stop, jobs)
	r.route(r.stop, jobs)
	if err := r.splitItems(r.stop, jobs); err != nil {
		r.leave(jobs)
		r.p.log.WarnContext(ctx, "items not split", "error", err)
		return append(done, sendBack(entriesOf(flights), again)...)
	}
	r.send(ctx, jobs)
	for _, f := range flights {
		l := landing{entry: f.entry}
		switch {
		case f.again > 0:
			l.again, l.after = true, f.again
		case f.broken || f.open > 0:
			l.again, l.after = true, again
		}
		done = append(done, l)
	}
	return done
}

func sendBack(entries []*entry, after time.Duration) []landing {
	out := make([]landing, len(entries))
	for i, e := range entries {
		out[i] = landing{entry: e, again: true, after: after}
	}
	return out
}

func entriesOf(flights []*flight) []*entry {
	out := make([]*entry, len(flights))
	for i, f := range flights {
		out[i] = f.entry
	}
	return out
}

// load asks for everything known of the products, before the read: a row parked later keeps its higher generation.
func (r *round) load(ctx context.Context, entries []*entry) ([]*flight, error) {
	ids := make([]string, len(entries))
	byID := make(map[string]*flight, len(entries))
	flights := make([]*flight, len(entries))
	for i, e := range entries {
		ids[i] = string(e.product)
		flights[i] = &flight{entry: e, known: map[string]work.Known{}}
		byID[ids[i]] = flights[i]
	}
	loaded, err := r.p.parts.State.Load(ctx, ids)
	if err != nil {
		return nil, err
	}
	for _, k := range loaded.Known {
		byID[k.ProductID].known[k.Shop] = k
	}
	for _, it := range loaded.Items {
		f := byID[it.ProductID]
		f.items = append(f.items, it)
		if it.Shop == "" { // its first read must see all shops, or the item would be split into too few
			f.entry.only = nil
		}
	}
	for _, ref := range loaded.Parked {
		f := byID[ref.ProductID]
		f.parked = append(f.parked, ref)
	}
	return flights, nil
}

// seenBefore lands what the product's last settled read has seen already: records that came again after a takeover,
// or that were on their way while a newer push read their effect. No read, no outcome.
func (r *round) seenBefore(flights []*flight) (rest []*flight, done []landing) {
	for _, f := range flights {
		e := f.entry
		own, ok := f.known[""]
		if !ok || e.parked != "" || len(e.xids) == 0 || len(f.items)+len(f.parked) > 0 || !seesAll(own.Snapshot, e.xids) {
			rest = append(rest, f)
			continue
		}
		r.owned[e.partition].done(e.offsets)
		r.p.stats.SeenBefore.Add(int64(e.changes))
		done = append(done, landing{entry: e})
	}
	return rest, done
}

func seesAll(s change.Snapshot, xids []change.XID) bool {
	for _, x := range xids {
		if !s.Sees(x) {
			return false
		}
	}
	return true
}

// read asks for the documents of all flights in one query. A query that breaks on its data, or takes too long, is
// bisected to the products that are the reason, so that one bad row stops nobody else; failed holds the errors of those
// that break it.
func (r *round) read(ctx context.Context, flights []*flight) (rows map[string][]document.Row, failed map[string]error) {
	rows, failed = map[string][]document.Row{}, map[string]error{}
	r.readSome(ctx, slices.DeleteFunc(slices.Clone(flights), func(f *flight) bool { return f.queued }), rows, failed)
	for _, f := range flights {
		id := string(f.entry.product)
		if failed[id] == nil && f.slow == nil && !f.queued && f.again == 0 && !seesAll(r.snapshot, f.entry.xids) {
			f.wait(r)
		}
	}
	return rows, failed
}

func (r *round) readSome(ctx context.Context, flights []*flight, rows map[string][]document.Row, failed map[string]error) {
	if len(flights) == 0 {
		return
	}
	if r.timeouts >= timeoutsMost {
		for _, f := range flights {
			f.again = again
		}
		return
	}
	ids := make([]change.ProductID, len(flights))
	for i, f := range flights {
		ids[i] = f.entry.product
	}
	got, snap, at, err := r.p.parts.Documents.Documents(ctx, ids)
	r.p.stats.Reads.Add(1)
	slow := err != nil && ctx.Err() == nil && timedOut(err)
	if slow {
		r.timeouts++
	}
	switch {
	case err == nil:
		r.seen(snap, at)
		for _, row := range got {
			rows[row.ProductID] = append(rows[row.ProductID], row)
		}
	case !slow && !blamesData(err) || ctx.Err() != nil:
		r.p.log.WarnContext(ctx, "documents query; it is tried again", "products", len(ids), "error", err)
		for _, f := range flights {
			f.again = again
		}
	case slow && len(flights) == 1:
		flights[0].slow = err
	case len(flights) == 1:
		failed[string(ids[0])] = err
	default:
		half := len(flights) / 2
		r.readSome(ctx, flights[:half], rows, failed)
		r.readSome(ctx, flights[half:], rows, failed)
	}
}

// seen keeps the oldest snapshot of the round's queries: what it shows, all of them have shown.
func (r *round) seen(s change.Snapshot, at time.Time) {
	if r.readAt.IsZero() || s.Xmax < r.snapshot.Xmax {
		r.snapshot, r.readAt = s, at
	}
}

// blamesData reports whether the query broke on the values of some row. Everything else is waited for: neither a lost
// connection nor a query that does not fit the schema any more must ever be blamed on a product.
func blamesData(err error) bool {
	var d interface{ Data() bool }
	return errors.As(err, &d) && d.Data()
}

// wait lets a product whose transaction the read does not see fly again soon, or parks it when that lasts.
func (f *flight) wait(r *round) {
	now := time.Now()
	if f.entry.unseen.IsZero() {
		f.entry.unseen = now
	}
	r.p.stats.NotYetVisible.Add(1)
	if now.Sub(f.entry.unseen) < r.p.cfg.NotYetVisible {
		f.again = 50 * time.Millisecond
		return
	}
	f.again = -1 // parked below: see jobs
}

// route decides for each job that would be sent whether its shop takes anything at the moment.
func (r *round) route(ctx context.Context, jobs []*job) {
	for _, j := range jobs {
		if j.ready || j.park != "" {
			continue
		}
		reason, probe := r.p.closed(j.push.Shop, time.Now())
		if probe {
			if err := r.p.claimProbe(ctx, j.push.Shop); err != nil {
				reason = "SHOP_DEAD"
			}
		}
		if reason == "" && !r.p.busy.enter(j.push.Shop, r.p.cfg.FlyingPerShop) {
			reason = "SHOP_BUSY"
		}
		j.park = reason
	}
}

// leave gives back the places of jobs that have entered their shop and will not be sent.
func (r *round) leave(jobs []*job) {
	for _, j := range jobs {
		if !j.ready && j.park == "" {
			r.p.busy.leave(j.push.Shop, 1)
		}
	}
}

// send settles what needs no call, and carries out the rest shop by shop, each shop in its own time.
func (r *round) send(ctx context.Context, jobs []*job) {
	var idle []*job
	byShop := map[string][]*job{}
	for _, j := range jobs {
		if j.ready || j.park != "" {
			idle = append(idle, j)
			continue
		}
		byShop[j.push.Shop] = append(byShop[j.push.Shop], j)
	}
	var g errgroup.Group
	if len(idle) > 0 {
		g.Go(func() error { r.settle(ctx, idle, nil); return nil })
	}
	for shop, js := range byShop {
		g.Go(func() error {
			for group := range slices.Chunk(js, r.p.cfg.Group) {
				r.sendTo(ctx, shop, group)
			}
			return nil
		})
	}
	_ = g.Wait() // settle and sendTo mark what did not land
}

// sendTo carries the jobs of one shop out and settles them.
func (r *round) sendTo(ctx context.Context, shop string, jobs []*job) {
	defer r.p.busy.leave(shop, len(jobs))
	plans := make([]work.Plan, len(jobs))
	fences := map[int32]work.Fence{}
	for i, j := range jobs {
		plans[i] = j.plan
		fences[j.flight.entry.partition] = r.owned[j.flight.entry.partition].fence()
	}
	all := make([]work.Fence, 0, len(fences))
	for _, f := range fences {
		all = append(all, f)
	}
	var asked []work.Intent
	intend := func(ctx context.Context, intents []work.Intent) error {
		// Invariant: nothing is sent that no intent is on record for, and no intent is written by a lease that does
		// not outlast the request.
		for part := range fences {
			if !r.owned[part].usable(time.Now(), r.p.cfg.RequestTimeout) {
				return work.ErrLeaseLost
			}
		}
		asked = append(asked, intents...)
		return r.p.parts.Fenced.Intend(ctx, all, intents)
	}
	results := r.p.parts.Sender.Send(r.stop, shop, plans, intend)
	for i, j := range jobs {
		j.result = results[i]
		if j.result.Status == event.Retrying && j.result.Reason == reasonUnsent && j.result.Shadow == nil {
			j.park = "SHOP_BUSY" // nothing has happened that would be worth an outcome
		}
	}
	r.p.noteHealth(ctx, shop, results)
	r.settle(ctx, jobs, asked)
}

// outcomeRecord is an outcome on its way to the outbox.
func (r *round) outcomeRecord(o event.Outcome) (event.Record, error) {
	return jsonRecord(r.p.cfg.Prefix+event.Outcomes, -1, o.ProductID, o)
}
