package pipeline

import (
	"context"
	"encoding/json"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// batchStore keeps batches; sinks/state implements it.
type batchStore interface {
	// Announce records what the announcements say, and the positions after them, in one transaction.
	Announce(ctx context.Context, fences []work.Fence, batches []event.Batch, positions map[int32]int64) error
	// Complete ends every announced batch whose partitions are past their announced offsets and whose items are all
	// settled, writes each completion to the outbox in the same transaction, and returns what it ended.
	Complete(ctx context.Context) ([]event.Batch, error)
}

// Batches takes announcements from catalog.batches into the state and ends the batches that are complete.
type Batches struct {
	partitions int32
	lease      LeaseConfig
	leases     leaseStore
	reader     recordReader
	state      batchStore
	log        *slog.Logger

	// Completed counts since the start.
	Completed atomic.Int64
}

// NewBatches returns a stage that does nothing until Run. partitions are those of catalog.batches.
func NewBatches(partitions int32, lease LeaseConfig, leases leaseStore, reader recordReader, state batchStore, log *slog.Logger) *Batches {
	return &Batches{
		partitions: partitions, lease: lease.withDefaults(), leases: leases, reader: reader, state: state,
		log: log.With("stage", "batches"),
	}
}

// Run works until ctx ends.
func (b *Batches) Run(ctx context.Context) error {
	f := follower{
		keeper: &leaseKeeper{store: b.leases, stage: work.StageBatches, partitions: b.partitions, cfg: b.lease, log: b.log},
		reader: b.reader, log: b.log, handle: b.announce,
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return f.run(ctx) })
	g.Go(func() error { return b.complete(ctx) })
	return g.Wait()
}

// announce passes over the events that the state itself has written: only announcements bring it news.
func (b *Batches) announce(ctx context.Context, lease work.Lease, recs []event.Record) error {
	var news []event.Batch
	for i := range recs {
		var e event.Batch
		if err := json.Unmarshal(recs[i].Value, &e); err != nil {
			b.log.ErrorContext(ctx, "event of catalog.batches is no JSON; it is passed over", "partition", recs[i].Partition,
				"offset", recs[i].Offset, "error", err)
			continue
		}
		if e.Type == event.BatchAnnounced {
			news = append(news, e)
		}
	}
	pos := map[int32]int64{lease.Partition: recs[len(recs)-1].Offset + 1}
	return retry(ctx, b.log, "announce batches", func(ctx context.Context) error {
		return b.state.Announce(ctx, []work.Fence{lease.Fence}, news, pos)
	})
}

// complete asks four times a second: people see a batch end within a second of its last product. Any number of
// workers may ask; the state ends each round of a batch once.
func (b *Batches) complete(ctx context.Context) error {
	const every, most = 250 * time.Millisecond, 5 * time.Second
	pause := every
	for sleep(ctx, pause) {
		ended, err := b.state.Complete(ctx)
		if err != nil {
			if pause = min(2*pause, most); ctx.Err() == nil {
				b.log.WarnContext(ctx, "completion of batches not decided", "pause", pause, "error", err)
			}
			continue
		}
		pause = every
		for _, e := range ended {
			b.Completed.Add(1)
			level := slog.LevelInfo
			if e.Failed > 0 || e.Reason != "" { // somebody should look: shelfwire batches ID says what failed
				level = slog.LevelWarn
			}
			b.log.Log(ctx, level, "batch ended", "batch", e.ID, "name", e.Name, "status", e.Status, "total", e.Total,
				"succeeded", e.Succeeded, "failed", e.Failed, "skipped", e.Skipped, "errors", e.Errors, "reason", e.Reason)
		}
	}
	return nil
}
