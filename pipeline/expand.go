package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
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
	// Page is how many products are parked in one transaction. Default 1,000.
	Page int
	// Side is how many fan-outs, of as many partitions, are expanded at once. Default 4.
	Side int
}

// ExpandStats counts since the start.
type ExpandStats struct {
	Fanouts, Pages, Products, Dead atomic.Int64
}

// Expand pages through the products of a fan-out and parks them. Its atomic step is one transaction of the state:
// the products of a page, their items, and the page reached.
type Expand struct {
	cfg    ExpandConfig
	leases leaseStore
	reader recordReader
	source pageSource
	state  taker
	log    *slog.Logger
	query  map[string]string // by table
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
		log: log.With("stage", "expand"), query: map[string]string{},
	}
	for _, r := range cfg.Routes {
		if r.Query != "" {
			e.query[r.Table] = r.Query
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
	for i := range recs {
		if i > 0 {
			lease.Cursor = ""
		}
		if err := e.fanout(ctx, lease, &recs[i]); err != nil {
			return err
		}
	}
	return nil
}

// fanout parks all products of both images of one row, a page at a time, and then moves the position.
func (e *Expand) fanout(ctx context.Context, lease work.Lease, rec *event.Record) error {
	var fan event.Fanout
	if err := json.Unmarshal(rec.Value, &fan); err != nil {
		return e.bury(ctx, lease, rec, err)
	}
	if _, known := e.query[fan.Table]; !known {
		return e.bury(ctx, lease, rec, fmt.Errorf("no route of the configuration has a query for the table %q", fan.Table))
	}
	e.stats.Fanouts.Add(1)
	w := &expansion{e: e, lease: lease, rec: rec, fan: &fan, size: e.cfg.Page}
	err := w.expand(ctx)
	if bad, ok := errors.AsType[*fanoutError](err); ok {
		return e.bury(ctx, lease, rec, bad)
	}
	if err != nil {
		return err
	}
	return e.takeIn(ctx, work.TakeIn{
		Fences: []work.Fence{lease.Fence}, Positions: map[int32]int64{rec.Partition: rec.Offset + 1},
	})
}

// bury puts a record that cannot be expanded among the dead letters and passes it. What of its products was parked
// before stays parked; the audit finds the others. Its batch ends as FAILED, whatever becomes of its items: some were
// never seen.
func (e *Expand) bury(ctx context.Context, lease work.Lease, rec *event.Record, reason error) error {
	e.stats.Dead.Add(1)
	e.log.ErrorContext(ctx, "fan-out not expanded", "partition", rec.Partition, "offset", rec.Offset, "error", reason)
	t := work.TakeIn{
		Fences: []work.Fence{lease.Fence}, Outbox: []event.Record{deadLetter(e.cfg.Prefix, rec, reason)},
		Positions: map[int32]int64{rec.Partition: rec.Offset + 1},
	}
	if batch, ok := rec.Header(event.HeaderBatch); ok && batch != "" {
		t.Batches = []event.Batch{{Type: event.BatchOpened, ID: batch, Kind: event.KindTransaction}}
		t.Spoilt = map[string]string{batch: headOf("a fan-out was not expanded: " + reason.Error())}
	}
	return e.takeIn(ctx, t)
}

// expansion is the work on one fan-out.
type expansion struct {
	e     *Expand
	lease work.Lease
	rec   *event.Record
	fan   *event.Fanout
	size  int // of a page; it has come down to this where pages take too long
}

// fanoutError is why a fan-out can never be expanded: it would break again and again, and everything behind it would wait.
type fanoutError struct{ err error }

func (f *fanoutError) Error() string { return f.err.Error() }
func (f *fanoutError) Unwrap() error { return f.err }

// expand parks the products of both images after the one that was reached. Both are paged side by side: most rows concern
// the same products before and after their change, and each is parked once.
func (w *expansion) expand(ctx context.Context) error {
	after := reached(w.lease.Cursor)
	var rows []map[string]*string
	for _, row := range []map[string]*string{w.fan.Before, w.fan.After} {
		if row != nil {
			rows = append(rows, row)
		}
	}
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
		if err := w.park(ctx, all, cursorAt(after)); err != nil {
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
// products. Equal ones become one.
func ascending(ids []change.ProductID, after string) ([]change.ProductID, error) {
	for i, id := range ids {
		last := after
		if i > 0 {
			last = string(ids[i-1])
		}
		if string(id) < last || string(id) == after {
			return nil, &fanoutError{fmt.Errorf("the route's query returned %q after %q: let it begin after $2 and order by the id "+
				"COLLATE \"C\"", id, last)}
		}
	}
	return slices.Compact(ids), nil
}

// cursorAt says how far both images have been parked, and reached reads it. A cursor of another form was written when the
// images were paged one after the other, and says nothing of one of them: both begin anew.
func cursorAt(product string) string { return cursorMark + product }

func reached(cursor string) (product string) {
	product, ok := strings.CutPrefix(cursor, cursorMark)
	if !ok {
		return ""
	}
	return product
}

const cursorMark = "both:"

// page reads one page in a snapshot that sees the fan-out's own transaction. It waits for as long as that takes: the
// WAL of a commit is sent before the commit is visible to others, hours before where a synchronous standby is away. A
// page that takes too long is made smaller.
func (w *expansion) page(ctx context.Context, row map[string]*string, after string) (page change.Page, err error) {
	e := w.e
	for {
		if err := w.visible(ctx); err != nil {
			return page, err
		}
		var broken error
		size := w.size
		err := retry(ctx, e.log, "page of a fan-out", func(ctx context.Context) (err error) {
			size = w.size
			page, err = e.source.Page(ctx, e.query[w.fan.Table], row, after, size)
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
		if err != nil || page.Snapshot.Sees(w.fan.XID) {
			e.stats.Pages.Add(1)
			return page, err
		}
	}
}

// visible returns when the fan-out's transaction is visible to those who begin to read now. To ask costs next to nothing:
// a page may be the product of minutes.
func (w *expansion) visible(ctx context.Context) error {
	e := w.e
	told := time.Now().Add(expandPatience)
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		var snap change.Snapshot
		err := retry(ctx, e.log, "visibility of a fan-out", func(ctx context.Context) (err error) {
			snap, err = e.source.Snapshot(ctx)
			return err
		})
		if err != nil || snap.Sees(w.fan.XID) {
			return err
		}
		if now := time.Now(); now.After(told) {
			e.log.WarnContext(ctx, "a fan-out waits until its transaction is visible: does its commit wait for a synchronous standby?",
				"table", w.fan.Table, "transaction", uint64(w.fan.XID), "partition", w.rec.Partition, "offset", w.rec.Offset)
			told = now.Add(time.Minute)
		}
		if !sleep(ctx, pause) {
			return context.Cause(ctx)
		}
	}
}

// expandPatience is how long a fan-out waits for its transaction before it is told.
const expandPatience = 5 * time.Second

func (w *expansion) park(ctx context.Context, ids []change.ProductID, cursor string) error {
	e, lease, rec, fan := w.e, w.lease, w.rec, w.fan
	t := work.TakeIn{
		Fences: []work.Fence{lease.Fence}, Cursors: map[int32]string{rec.Partition: cursor},
		Positions: map[int32]int64{rec.Partition: rec.Offset},
	}
	if fan.BatchID != "" {
		t.Batches = []event.Batch{{
			Type: event.BatchOpened, ID: fan.BatchID, Kind: event.KindTransaction, XID: fan.XID, CommitTime: fan.CommitTime,
		}}
	}
	now := time.Now()
	for _, id := range ids {
		t.Parked = append(t.Parked, work.Parked{
			ProductID: string(id), Partition: change.Partition(id, e.cfg.ChangePartitions),
			Lane: work.LaneCampaign, Due: now, Reason: "FANOUT", CampaignID: fan.BatchID, XIDs: []change.XID{fan.XID}, Changes: 1,
			FirstCommit: fan.CommitTime, LastCommit: fan.CommitTime,
		})
		if fan.BatchID != "" {
			t.Items = append(t.Items, work.Item{
				BatchID: fan.BatchID, ProductID: string(id), XID: fan.XID, Status: work.ItemPending,
			})
		}
	}
	e.stats.Products.Add(int64(len(ids)))
	return e.takeIn(ctx, t)
}

func (e *Expand) takeIn(ctx context.Context, t work.TakeIn) error {
	return retry(ctx, e.log, "park a page", func(ctx context.Context) error { return e.state.TakeIn(ctx, t) })
}
