package pipeline

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/route"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// pageSource lists the products that a row concerns; connectors/postgres implements it.
type pageSource interface {
	// Page returns at most n product ids after the given one, in ascending byte order, and the snapshot that saw
	// them.
	Page(ctx context.Context, query string, image map[string]*string, after string, n int) ([]change.ProductID, change.Snapshot, error)
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
		reader: e.reader, log: e.log, handle: e.handle,
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

// fanout parks all products of both images of one row, a page at a time, and moves the position with the last page.
func (e *Expand) fanout(ctx context.Context, lease work.Lease, rec *event.Record) error {
	var fan event.Fanout
	err := json.Unmarshal(rec.Value, &fan)
	query, known := e.query[fan.Table]
	if err == nil && !known {
		err = fmt.Errorf("no route of the configuration has a query for the table %q", fan.Table)
	}
	if err != nil {
		return e.bury(ctx, lease, rec, err)
	}
	e.stats.Fanouts.Add(1)
	image, after := cursorOf(lease.Cursor)
	size := e.cfg.Page
	for ; image < 2; image, after = image+1, "" {
		row := fan.Before
		if image == 1 {
			row = fan.After
		}
		if row == nil {
			continue
		}
		for {
			var ids []change.ProductID
			ids, size, err = e.page(ctx, query, row, after, size, fan.XID)
			if err != nil && blamesData(err) { // it would break for ever, and everything behind it would wait
				return e.bury(ctx, lease, rec, fmt.Errorf("the route's query breaks on this row: %w", err))
			}
			if err != nil {
				return err
			}
			if len(ids) == 0 {
				break
			}
			after = string(ids[len(ids)-1])
			if err := e.park(ctx, lease, rec, &fan, ids, fmt.Sprintf("%d:%s", image, after)); err != nil {
				return err
			}
			if len(ids) < size {
				break
			}
		}
	}
	return e.takeIn(ctx, work.TakeIn{
		Fences: []work.Fence{lease.Fence}, Positions: map[int32]int64{rec.Partition: rec.Offset + 1},
	})
}

// bury puts a record that cannot be expanded among the dead letters and passes it. What of its products was parked
// before stays parked; the audit finds the others.
func (e *Expand) bury(ctx context.Context, lease work.Lease, rec *event.Record, reason error) error {
	e.stats.Dead.Add(1)
	e.log.ErrorContext(ctx, "fan-out not expanded", "partition", rec.Partition, "offset", rec.Offset, "error", reason)
	return e.takeIn(ctx, work.TakeIn{
		Fences: []work.Fence{lease.Fence}, Outbox: []event.Record{deadLetter(e.cfg.Prefix, rec, reason)},
		Positions: map[int32]int64{rec.Partition: rec.Offset + 1},
	})
}

// cursorOf reads "image:last product id".
func cursorOf(c string) (image int, after string) {
	if len(c) > 1 && c[1] == ':' {
		return int(c[0] - '0'), c[2:]
	}
	return 0, ""
}

// page reads one page in a snapshot that sees the fan-out's own transaction. It waits for as long as that takes: the
// WAL of a commit is sent before the commit is visible to others. A page that takes too long is made smaller: size is
// what it has come down to.
func (e *Expand) page(
	ctx context.Context, query string, row map[string]*string, after string, n int, xid change.XID,
) (ids []change.ProductID, size int, err error) {
	for {
		var snap change.Snapshot
		var broken error
		err := retry(ctx, e.log, "page of a fan-out", func(ctx context.Context) (err error) {
			ids, snap, err = e.source.Page(ctx, query, row, after, n)
			if err != nil && ctx.Err() == nil && timedOut(err) {
				n = max(1, n/2)
			}
			if err != nil && blamesData(err) {
				broken, err = err, nil
			}
			return err
		})
		if broken != nil {
			return nil, n, broken
		}
		if err != nil || snap.Sees(xid) {
			e.stats.Pages.Add(1)
			return ids, n, err
		}
		if !sleep(ctx, 20*time.Millisecond) {
			return nil, n, ctx.Err()
		}
	}
}

func (e *Expand) park(ctx context.Context, lease work.Lease, rec *event.Record, fan *event.Fanout, ids []change.ProductID, cursor string) error {
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
			Lane: work.LaneCampaign, Due: now, Reason: "FANOUT", XIDs: []change.XID{fan.XID}, Changes: 1,
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
