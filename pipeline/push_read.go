package pipeline

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// reading is one turn of a reader: load what is known of some due products, read their documents in one snapshot, plan,
// and put what must be sent into the lines of the shops. Each product then goes its own way.
type reading struct {
	p *Push
	// stop ends when the worker is told to: nothing new is sent then.
	stop context.Context //nolint:containedctx // the reading itself must outlive it

	// alone gives the place back that the reading of one slow product holds; nil for a reading of many.
	alone    func()
	timeouts int
	away     bool // a documents query failed for a reason that is no product's

	snapshot change.Snapshot
	readAt   time.Time
}

// flight is one product on its way.
type flight struct {
	r      *reading
	entry  *entry
	known  map[string]work.Known // by shop; "" is the product's own record
	items  []work.Item           // unsettled
	parked []work.ParkedRef
	// excluded are the shops, or with "" all, that people keep the product from.
	excluded map[string]struct{}
	shops    map[string]struct{} // those that it has a job for
	dropped  bool                // one of its jobs was cancelled: its read counts for nobody
	news     int                 // jobs that are not the same as the last time
	unseen   bool                // its transaction stays invisible: nothing was read
	open     int                 // jobs that are not over yet; the settler's own once the first of them is on its way
	broken   bool                // a job was not settled: the product must fly again; the settler's own
	again    time.Duration
	blind    bool  // the read broke on the product itself: items settle and parked rows end without a snapshot
	slow     error // the read of the product alone has timed out
	queued   bool  // it must be read alone, and another product is
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
	same   bool   // the document is the one that was skipped the last time: nothing in the record is new
	park   string // wait for this reason instead of being sent
	// cancelled: all that wanted it was cancelled before anything was sent.
	cancelled bool
	probe     bool // it may try a dead shop

	place     lineKey
	placed    bool
	withdrawn bool // it may not be sent now: nothing is settled, and the product flies again
}

// again is the pause before a product flies again because something behind it was away.
const again = 500 * time.Millisecond

// run hands every flight on, to the lines, the settler or back to the loop. It reports whether nothing could be read as
// what is needed for it is away.
func (r *reading) run(ctx context.Context, entries []*entry) (failed bool) {
	// Until the items are split nothing has been sent, and a stop cuts whatever is waited for.
	flights, err := r.load(r.stop, entries)
	if err != nil {
		if r.stop.Err() == nil {
			r.p.troubles.begin(ctx, r.p.log, waitState, err)
		}
		r.p.tell(sendBack(entries, again))
		return true
	}
	r.p.troubles.end(ctx, r.p.log, waitState)
	flights = r.seenBefore(flights)
	flights = r.apart(ctx, flights)
	r.look(r.stop, flights)
	rows, broken := r.read(r.stop, flights)
	if r.alone != nil {
		r.alone()
	}
	var back []landing
	for _, f := range flights {
		if f.again > 0 {
			back = append(back, landing{entry: f.entry, again: true, after: f.again})
		}
	}
	r.p.tell(back)
	flights = slices.DeleteFunc(flights, func(f *flight) bool { return f.again > 0 })
	jobs := r.jobs(flights, rows, broken)
	r.hold(r.stop, jobs)
	r.route(r.stop, jobs)
	err = r.splitItems(r.stop, jobs)
	if err == nil {
		err = r.dropCancelled(r.stop, jobs)
	}
	if err != nil {
		r.leave(jobs)
		r.p.log.WarnContext(ctx, "items not begun", "error", err)
		r.p.tell(sendBack(entriesOf(flights), again))
		return r.away
	}
	r.put(jobs)
	return r.away && r.readAt.IsZero()
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
func (r *reading) load(ctx context.Context, entries []*entry) ([]*flight, error) {
	ids := make([]string, len(entries))
	byID := make(map[string]*flight, len(entries))
	flights := make([]*flight, len(entries))
	for i, e := range entries {
		ids[i] = string(e.product)
		flights[i] = &flight{r: r, entry: e, known: map[string]work.Known{}}
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
	for _, x := range loaded.Excluded {
		f := byID[x.ProductID]
		if f.excluded == nil {
			f.excluded = map[string]struct{}{}
		}
		f.excluded[x.Shop] = struct{}{}
	}
	return flights, nil
}

// seenBefore lands what the product's last settled read has seen already: records that came again after a takeover,
// or that were on their way while a newer push read their effect. No read, no outcome. So it does with what was pulled
// and stands in the state no more: a cancel has dropped it.
func (r *reading) seenBefore(flights []*flight) (rest []*flight) {
	var done []landing
	for _, f := range flights {
		e := f.entry
		if f.unwanted() {
			done = append(done, landing{entry: e})
			continue
		}
		own, ok := f.known[""]
		if !ok || e.parked != "" || len(e.xids) == 0 || len(f.items)+len(f.parked) > 0 || !seesAll(own.Snapshot, e.xids) {
			rest = append(rest, f)
			continue
		}
		e.owner.done(e.offsets)
		r.p.stats.SeenBefore.Add(int64(e.changes))
		done = append(done, landing{entry: e})
	}
	r.p.tell(done)
	return rest
}

// unwanted reports whether a product was pulled for rows that are all gone, and nothing else asks for it.
func (f *flight) unwanted() bool {
	if f.entry.parked == "" || len(f.entry.offsets)+len(f.items)+len(f.parked) > 0 {
		return false
	}
	for _, k := range f.known {
		if len(k.Intents) > 0 {
			return false
		}
	}
	return true
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
func (r *reading) read(ctx context.Context, flights []*flight) (rows map[string][]document.Row, failed map[string]error) {
	rows, failed = map[string][]document.Row{}, map[string]error{}
	r.readSome(ctx, slices.DeleteFunc(slices.Clone(flights), func(f *flight) bool { return f.queued || f.again != 0 }), rows, failed)
	for _, f := range flights {
		id := string(f.entry.product)
		if failed[id] == nil && f.slow == nil && !f.queued && f.again == 0 && !seesAll(r.snapshot, f.entry.xids) {
			f.wait(r)
		}
	}
	return rows, failed
}

func (r *reading) readSome(ctx context.Context, flights []*flight, rows map[string][]document.Row, failed map[string]error) {
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
		r.p.troubles.end(ctx, r.p.log, waitDocuments)
		r.seen(snap, at)
		for _, row := range got {
			rows[row.ProductID] = append(rows[row.ProductID], row)
		}
	case !slow && !blamesData(err) || ctx.Err() != nil:
		r.away = true
		if ctx.Err() == nil {
			r.p.troubles.begin(ctx, r.p.log, waitDocuments, err)
		}
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
func (r *reading) seen(s change.Snapshot, at time.Time) {
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
func (f *flight) wait(r *reading) {
	now := time.Now()
	if f.entry.unseen.IsZero() {
		f.entry.unseen = now
	}
	r.p.stats.NotYetVisible.Add(1)
	waited := now.Sub(f.entry.unseen)
	if waited < r.p.cfg.NotYetVisible && f.entry.parked != reasonInvisible {
		f.again = min(max(waited/2, 50*time.Millisecond), 500*time.Millisecond)
		return
	}
	f.again = -1 // parked below: see jobs
}

// invisiblePause is how long a product is parked whose transaction is not visible: a quarter of the time that it has
// waited already, at least 1 s and at most 30 s. A commit that hangs for hours is so asked for twice a minute.
func invisiblePause(now, committed time.Time) time.Duration {
	return min(max(now.Sub(committed)/4, time.Second), 30*time.Second)
}

// look asks what is visible now, where products have been read in vain before: their documents are read only when their
// transactions are.
func (r *reading) look(ctx context.Context, flights []*flight) {
	ask := r.p.parts.Snapshot
	before := func(f *flight) bool { return !f.entry.unseen.IsZero() || f.entry.parked == reasonInvisible }
	if ask == nil || !slices.ContainsFunc(flights, before) {
		return
	}
	snapshot, err := ask(ctx)
	if err != nil {
		return // the documents query tells what is wrong
	}
	for _, f := range flights {
		if before(f) && !f.queued && !seesAll(snapshot, f.entry.xids) {
			f.wait(r)
		}
	}
}

// outcomeRecord is an outcome on its way to the outbox.
func (p *Push) outcomeRecord(o event.Outcome) (event.Record, error) {
	return jsonRecord(p.cfg.Prefix+event.Outcomes, -1, o.ProductID, o)
}
