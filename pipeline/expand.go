package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/route"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// pageSource lists the products that a row concerns; connectors/postgres implements it.
type pageSource interface {
	// Page returns at most n rows after the given product id, in ascending byte order.
	Page(ctx context.Context, query string, image map[string]*string, after string, n int) (change.Page, error)
	// Snapshot says what a page that is read now would see.
	Snapshot(ctx context.Context) (change.Snapshot, error)
}

// taker takes records in under fences.
type taker interface {
	TakeIn(ctx context.Context, t work.TakeIn) error
}

// ExpandConfig configures the stage that turns one row into the products that it concerns.
type ExpandConfig struct {
	Lease  LeaseConfig
	Prefix string
	// Partitions of catalog.fanouts, and of catalog.changes (which assigns parked products).
	Partitions, ChangePartitions int32
	// Routes are those with a query.
	Routes []route.Route
	// Page is how many products are read at once, and parked in one transaction unless many batches share the run.
	// Default 1,000.
	Page int
	// Side is how many fan-outs, of as many partitions, are expanded at once. Default 4.
	Side int
}

// ExpandStats counts since the start.
type ExpandStats struct {
	Fanouts, Pages, Products, Dead atomic.Int64
}

// Expand pages through the products of a fan-out and parks them. Its atomic step is one transaction of the state:
// the products of a page, their items, and the page reached. Fan-outs that wait and ask for the same products share a run:
// see expand_share.go.
type Expand struct {
	cfg    ExpandConfig
	leases leaseStore
	reader recordReader
	source pageSource
	state  taker
	log    *slog.Logger
	query  map[string]fanoutQuery // by table
	stats  ExpandStats
}

// NewExpand returns a stage that does nothing until Run.
func NewExpand(cfg ExpandConfig, leases leaseStore, reader recordReader, source pageSource, state taker, log *slog.Logger) *Expand {
	cfg.Lease = cfg.Lease.withDefaults()
	if cfg.Page == 0 {
		cfg.Page = 1000
	}
	if cfg.Side == 0 {
		cfg.Side = 4
	}
	e := &Expand{
		cfg: cfg, leases: leases, reader: reader, source: source, state: state,
		log: log.With("stage", "expand"), query: map[string]fanoutQuery{},
	}
	for _, r := range cfg.Routes {
		if r.Query != "" {
			e.query[r.Table] = newFanoutQuery(r.Query)
		}
	}
	return e
}

// Run works until ctx ends.
func (e *Expand) Run(ctx context.Context) error {
	f := follower{
		keeper: &leaseKeeper{store: e.leases, stage: work.StageExpand, partitions: e.cfg.Partitions, cfg: e.cfg.Lease, log: e.log},
		reader: e.reader, log: e.log, side: e.cfg.Side, handle: e.handle,
	}
	return f.run(ctx)
}

// Stats are safe to read at any time.
func (e *Expand) Stats() *ExpandStats { return &e.stats }

func (e *Expand) handle(ctx context.Context, lease work.Lease, recs []event.Record) error {
	reqs := make([]*fanoutRequest, len(recs))
	for i := range recs {
		reqs[i] = e.request(&recs[i])
	}
	for i, q := range reqs {
		if i > 0 {
			lease.Cursor = ""
		}
		if q.done {
			continue
		}
		if err := e.fanout(ctx, lease, reqs[i:]); err != nil {
			return err
		}
	}
	return nil
}

// fanout parks all products of the images of the first request, and of those that share its run, a page at a time, and
// then moves the position to the first request that is left.
func (e *Expand) fanout(ctx context.Context, lease work.Lease, reqs []*fanoutRequest) error {
	first := reqs[0]
	if first.bad != nil {
		return e.bury(ctx, lease, reqs, first.bad)
	}
	w := &expansion{e: e, lease: lease, shared: reqs[:1], size: e.cfg.Page}
	err := w.expand(ctx, reqs[1:])
	if bad, ok := errors.AsType[*fanoutError](err); ok { // whoever shared the run breaks by himself
		e.stats.Fanouts.Add(1)
		return e.bury(ctx, lease, reqs, bad)
	}
	if err != nil {
		return err
	}
	for _, q := range w.shared {
		q.done = true
	}
	e.stats.Fanouts.Add(int64(len(w.shared)))
	return e.takeIn(ctx, work.TakeIn{
		Fences: []work.Fence{lease.Fence}, Positions: map[int32]int64{first.rec.Partition: passedBy(reqs)},
	})
}

// passedBy is the position behind the first of these requests and all that follow it and are done.
//
// Invariant: it never passes a request whose products are not all parked and items of its batch, or the batch could be
// complete without them.
func passedBy(reqs []*fanoutRequest) int64 {
	n := 1
	for n < len(reqs) && reqs[n].done {
		n++
	}
	return reqs[n-1].rec.Offset + 1
}

// bury puts the first record, which cannot be expanded, among the dead letters and passes it. What of its products was
// parked before stays parked; the audit finds the others. Its batch ends as FAILED, whatever becomes of its items: some
// were never seen.
func (e *Expand) bury(ctx context.Context, lease work.Lease, reqs []*fanoutRequest, reason error) error {
	rec := reqs[0].rec
	e.stats.Dead.Add(1)
	e.log.ErrorContext(ctx, "fan-out not expanded", "partition", rec.Partition, "offset", rec.Offset, "error", reason)
	t := work.TakeIn{
		Fences: []work.Fence{lease.Fence}, Outbox: []event.Record{deadLetter(e.cfg.Prefix, rec, reason)},
		Positions: map[int32]int64{rec.Partition: passedBy(reqs)},
	}
	if batch, ok := rec.Header(event.HeaderBatch); ok && batch != "" {
		t.Batches = []event.Batch{{Type: event.BatchOpened, ID: batch, Kind: event.KindTransaction}}
		t.Spoilt = map[string]string{batch: headOf("a fan-out was not expanded: " + reason.Error())}
	}
	return e.takeIn(ctx, t)
}

// expansion is one run over the products of a row: for one fan-out, or for several that ask for the same products.
type expansion struct {
	e      *Expand
	lease  work.Lease
	shared []*fanoutRequest // the first of them is where the position stands
	upto   int64            // offset of the last of them
	size   int              // of a page; it has come down to this where pages take too long
}

// fanoutError is why a fan-out can never be expanded: it would break again and again, and everything behind it would wait.
type fanoutError struct{ err error }

func (f *fanoutError) Error() string { return f.err.Error() }
func (f *fanoutError) Unwrap() error { return f.err }

// expand parks the products of both images after the one that was reached, for the request of the run and those that may
// share it. Both are paged side by side: most rows concern the same products before and after their change, and each is
// parked once.
func (w *expansion) expand(ctx context.Context, others []*fanoutRequest) error {
	after, err := w.begin(ctx, others)
	if err != nil {
		return err
	}
	rows := w.shared[0].images
	for len(rows) > 0 {
		var all []change.ProductID
		var upto change.ProductID // how far the pages that others follow reach; empty: there are none
		last := make([]change.ProductID, len(rows))
		more := make([]bool, len(rows))
		for i, row := range rows {
			page, err := w.page(ctx, row, after)
			if err != nil {
				return err
			}
			ids, err := ascending(page.Products, after)
			if err != nil {
				return err
			}
			if len(ids) == 0 { // of rows without a product alone there are no more: NULL comes last in any order
				continue
			}
			all, last[i], more[i] = append(all, ids...), ids[len(ids)-1], page.Rows >= w.size
			if more[i] && (upto == "" || last[i] < upto) {
				upto = last[i]
			}
		}
		slices.Sort(all)
		all = slices.Compact(all)
		if upto != "" { // what lies beyond comes again, with what the other image has before it
			n, _ := slices.BinarySearch(all, upto)
			all = all[:n+1]
		}
		if len(all) == 0 {
			return nil
		}
		after = string(all[len(all)-1])
		if err := w.park(ctx, all); err != nil {
			return err
		}
		var left []map[string]*string
		for i, row := range rows {
			if more[i] || string(last[i]) > after {
				left = append(left, row)
			}
		}
		rows = left
	}
	return nil
}

// ascending checks that a page comes after the one before and that its ids ascend, or the pages would never end, or lose
// products; and that the state can take its ids. Equal ones become one.
func ascending(ids []change.ProductID, after string) ([]change.ProductID, error) {
	for i, id := range ids {
		last := after
		if i > 0 {
			last = string(ids[i-1])
		}
		if len(id) > productIDMost {
			return nil, &fanoutError{fmt.Errorf("the route's query returned a product id of %d bytes, more than %d, that begins "+
				"with %q: let it return shorter ids", len(id), productIDMost, headOf(string(id)))}
		}
		if string(id) < last || string(id) == after {
			return nil, &fanoutError{fmt.Errorf("the route's query returned %q after %q: let it begin after $2 and order by the id "+
				"COLLATE \"C\"", id, last)}
		}
	}
	return slices.Compact(ids), nil
}

// page reads one page in a snapshot that sees the transactions of all who share it. It waits for as long as that takes: the
// WAL of a commit is sent before the commit is visible to others, hours before where a synchronous standby is away. A
// page that takes too long is made smaller.
func (w *expansion) page(ctx context.Context, row map[string]*string, after string) (page change.Page, err error) {
	e := w.e
	for {
		if _, err := w.visible(ctx); err != nil {
			return page, err
		}
		var broken error
		size := w.size
		err := retry(ctx, e.log, "page of a fan-out", func(ctx context.Context) (err error) {
			size = w.size
			page, err = e.source.Page(ctx, e.query[w.shared[0].fan.Table].sql, row, after, size)
			if err != nil && ctx.Err() == nil && timedOut(err) {
				w.size = max(1, w.size/2)
			}
			if err != nil && blamesData(err) {
				broken, err = err, nil
			}
			return err
		})
		if broken != nil {
			return page, &fanoutError{fmt.Errorf("the route's query breaks on this row: %w", broken)}
		}
		if err != nil || w.seenBy(page.Snapshot) {
			e.stats.Pages.Add(1)
			return page, err
		}
	}
}

// seenBy reports whether a snapshot sees the transactions of all who share the run.
func (w *expansion) seenBy(s change.Snapshot) bool {
	for _, q := range w.shared {
		if !s.Sees(q.fan.XID) {
			return false
		}
	}
	return true
}

// visible returns when those transactions are visible to those who begin to read now, and what these see. To ask costs
// next to nothing: a page may be the product of minutes.
func (w *expansion) visible(ctx context.Context) (snap change.Snapshot, err error) {
	e, rec := w.e, w.shared[0].rec
	told := time.Now().Add(expandPatience)
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		err = retry(ctx, e.log, "visibility of a fan-out", func(ctx context.Context) (err error) {
			snap, err = e.source.Snapshot(ctx)
			return err
		})
		if err != nil || w.seenBy(snap) {
			return snap, err
		}
		if now := time.Now(); now.After(told) {
			e.log.WarnContext(ctx, "a fan-out waits until its transaction is visible: does its commit wait for a synchronous standby?",
				"table", w.shared[0].fan.Table, "transaction", uint64(w.shared[0].fan.XID), "partition", rec.Partition, "offset", rec.Offset)
			told = now.Add(time.Minute)
		}
		if !sleep(ctx, pause) {
			return snap, context.Cause(ctx)
		}
	}
}

// expandPatience is how long a fan-out waits for its transaction before it is told.
const expandPatience = 5 * time.Second

func (e *Expand) takeIn(ctx context.Context, t work.TakeIn) error {
	t.Token = newToken() // one for all tries: the answer to one that was applied may be lost
	return retry(ctx, e.log, "park a page", func(ctx context.Context) error { return e.state.TakeIn(ctx, t) })
}
