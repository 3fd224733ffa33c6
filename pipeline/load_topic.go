package pipeline

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// loadTopic loads one topic. Only run's goroutine uses it, but for held and waiting.
type loadTopic struct {
	LoadTopic
	load      *Load
	first     int32 // the number of partition 0 among the loader's leases
	broker    loadTopics
	positions loadPositions
	leases    leaseStore
	log       *slog.Logger

	held    chan []heldLease
	waiting atomic.Pointer[string]

	reader  LoadReader // nil before the first partition and after an error
	id      [16]byte
	checked time.Time // when id was last asked for
	open    map[int32]*loadPartition
	pending []work.Lease // leases that are held and not open yet
	again   time.Time    // when to try to open them again; zero for at once
	pause   time.Duration
	block   loadBlock
}

// loadPartition is a partition that is read.
type loadPartition struct {
	fence work.Fence
	next  int64 // the offset after the last record that came
	saved int64 // the position in the state, as far as it is known here
}

// loadBlock is what the next insert will write.
type loadBlock struct {
	records []event.Record
	bytes   int
	due     time.Time
}

// loadCheck is how often a topic is asked for its id while all goes well. The reader notices most of what happens to a
// topic, but not one that was made anew and has already grown past the offset that is read next.
const loadCheck = 5 * time.Second

// loadPoll is how long a poll waits while there is nothing else to do, and so how soon new leases are seen.
const loadPoll = 250 * time.Millisecond

func (t *loadTopic) run(ctx context.Context) error {
	defer t.stop(ctx)
	for ctx.Err() == nil {
		t.assign(ctx)
		t.openPending(ctx)
		wait := loadPoll
		if len(t.block.records) > 0 {
			wait = min(wait, max(time.Until(t.block.due), time.Millisecond))
		}
		if t.reader == nil {
			sleep(ctx, wait)
			continue
		}
		pctx, cancel := context.WithTimeout(ctx, wait)
		recs, err := t.reader.Poll(pctx, t.load.cfg.MaxRows-len(t.block.records))
		// An error that wraps the end of the wait tells of something that was cut short, and is one.
		idle := err == pctx.Err() //nolint:errorlint // exactly the end of the wait, not what wraps it
		cancel()
		t.gather(recs)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !idle:
			t.flush(ctx)
			t.log.WarnContext(ctx, "reading stopped; it begins again from the saved positions", "error", err)
			t.reopen()
			t.later(err)
			continue
		case t.block.full(t.load.cfg) || len(t.block.records) > 0 && !time.Now().Before(t.block.due):
			t.flush(ctx)
		}
		if len(t.pending) == 0 {
			t.pause = 0
			t.goesOn(ctx)
		}
	}
	return nil
}

func (b *loadBlock) full(c LoadConfig) bool {
	return len(b.records) >= c.MaxRows || b.bytes >= c.MaxBytes
}

// gather adds records to the block, without those of partitions that were given up meanwhile.
func (t *loadTopic) gather(recs []event.Record) {
	for i := range recs {
		p := t.open[recs[i].Partition]
		if p == nil || recs[i].Offset < p.next {
			continue
		}
		if len(t.block.records) == 0 {
			t.block.due = time.Now().Add(t.load.cfg.Linger)
		}
		p.next = recs[i].Offset + 1
		t.block.records = append(t.block.records, recs[i])
		t.block.bytes += size(&recs[i])
	}
}

// assign follows the newest leases: what is lost is dropped, what another worker waits for is loaded up to where it
// was read and released, what is new is opened.
func (t *loadTopic) assign(ctx context.Context) {
	var held []heldLease
	select {
	case held = <-t.held:
	default:
		return
	}
	mine := map[int32]bool{}
	var wanted []work.Fence
	t.pending = t.pending[:0]
	for _, h := range held {
		partition := h.Partition - t.first
		if h.Wanted {
			wanted = append(wanted, h.Fence)
			continue
		}
		mine[partition] = true
		if p := t.open[partition]; p == nil || p.fence != h.Fence {
			t.drop(partition)
			t.pending = append(t.pending, h.Lease)
		}
	}
	if len(wanted) > 0 {
		t.flush(ctx)
	}
	for partition := range t.open {
		if !mine[partition] {
			t.drop(partition)
		}
	}
	if len(wanted) > 0 {
		if err := t.leases.Release(ctx, wanted); err != nil {
			t.log.WarnContext(ctx, "leases not released; they end by themselves", "error", err)
		}
	}
}

// drop stops reading a partition and forgets what came of it: its next owner reads that again.
func (t *loadTopic) drop(partition int32) {
	if t.open[partition] == nil {
		return
	}
	t.reader.Remove(partition)
	delete(t.open, partition)
	kept := t.block.records[:0]
	t.block.bytes = 0
	for _, r := range t.block.records {
		if r.Partition != partition {
			kept = append(kept, r)
			t.block.bytes += size(&r)
		}
	}
	clear(t.block.records[len(kept):])
	t.block.records = kept
}

// reopen gives up the reader and all partitions, which are then pending: it may have stopped reading one because
// retention was faster, or because the topic was made anew.
func (t *loadTopic) reopen() {
	for partition, p := range maps.Clone(t.open) {
		t.drop(partition)
		t.pending = append(t.pending, work.Lease{Fence: p.fence, Position: p.saved, Cursor: t.positionsOf()})
	}
	if t.reader != nil {
		t.reader.Close()
		t.reader = nil
	}
}

// openPending begins to read what is leased and not read yet, and now and then makes sure that the topic is the same.
func (t *loadTopic) openPending(ctx context.Context) {
	now := time.Now()
	if len(t.pending) == 0 && (len(t.open) == 0 || now.Sub(t.checked) < loadCheck) || now.Before(t.again) {
		return
	}
	if err := t.begin(ctx); err != nil {
		if ctx.Err() == nil {
			if t.waiting.Load() == nil {
				t.log.WarnContext(ctx, "partitions cannot be read yet", "error", err)
			}
			t.later(err)
		}
		return
	}
	t.pending, t.again, t.checked = t.pending[:0], time.Time{}, now
}

func (t *loadTopic) later(err error) {
	t.pause = max(loadNextPause(t.pause), loadFirstPause)
	t.again = time.Now().Add(t.pause)
	reason := err.Error()
	t.waiting.Store(&reason)
}

func (t *loadTopic) goesOn(ctx context.Context) {
	if t.waiting.Swap(nil) != nil {
		t.log.InfoContext(ctx, "loading goes on")
	}
}

// positionsOf names what the positions count.
func (t *loadTopic) positionsOf() string { return hex.EncodeToString(t.id[:]) }

// begin opens every pending partition or none.
func (t *loadTopic) begin(ctx context.Context) error {
	id, err := t.broker.TopicID(ctx, t.Name)
	if err != nil {
		return err
	}
	starts, err := t.broker.StartOffsets(ctx, t.Name)
	if err != nil {
		return err
	}
	if id != t.id {
		// What was read before belongs to the id that the topic had then.
		t.flush(ctx)
		t.reopen()
		t.id = id
	}
	if t.reader == nil {
		if t.reader, err = t.Open(); err != nil {
			return err
		}
	}
	var ends map[int32]int64
	if len(t.pending) > 0 {
		if ends, err = t.load.tables.Begin(ctx, t.Kind, id); err != nil {
			return err
		}
	}
	from := make([]int64, len(t.pending))
	for i := range t.pending {
		lease := &t.pending[i]
		partition := lease.Partition - t.first
		if lease.Cursor != t.positionsOf() {
			lease.Position = 0 // it counts the records of a topic that is no more
		}
		from[i] = max(t.startAt(ctx, partition, lease.Position, ends[partition], starts[partition]), starts[partition])
	}
	for i, lease := range t.pending {
		partition := lease.Partition - t.first
		if first := starts[partition]; first > lease.Position && lease.Position > 0 {
			t.log.ErrorContext(ctx, "records were removed by retention before they were loaded",
				"partition", partition, "from", lease.Position, "to", first)
		}
		t.open[partition] = &loadPartition{fence: lease.Fence, next: from[i], saved: lease.Position}
		t.reader.Add(partition, from[i])
	}
	return nil
}

// startAt decides where to read from. The state's position says that everything before it was acknowledged. When the
// tables do not reach up to it, something that was acknowledged is gone (they were restored or emptied, or the topic
// was made anew and its offsets start again): nothing is known then, and the partition is read from its beginning, if
// Kafka still holds anything of it. Rows that stand already only come again.
func (t *loadTopic) startAt(ctx context.Context, partition int32, position, next, first int64) int64 {
	if position <= max(next, first) {
		return position
	}
	t.log.WarnContext(ctx, "the tables hold less than was loaded; the partition is loaded again from its beginning",
		"partition", partition, "position", position, "rows_up_to", next)
	return 0
}

// flush makes the block durable, in pieces that keep the limits, and then moves the positions. It tries until all has
// succeeded or ctx ends.
// Invariant: a position moves only after every record before it was acknowledged by the tables.
func (t *loadTopic) flush(ctx context.Context) {
	if len(t.block.records) == 0 {
		return
	}
	for len(t.block.records) > 0 {
		piece := t.block.piece(t.load.cfg.MaxBytes)
		var in event.Inserted
		if !t.insist(ctx, func() (err error) {
			in, err = t.load.tables.Insert(ctx, t.Kind, t.id, piece, token(piece))
			return err
		}) {
			return
		}
		t.count(ctx, len(piece), in)
		t.block.forget(len(piece))
	}
	t.save(ctx)
}

// count books rows that were acknowledged.
func (t *loadTopic) count(ctx context.Context, rows int, in event.Inserted) {
	t.load.Rows.Add(int64(rows))
	t.load.Malformed.Add(int64(in.Malformed))
	t.load.Inserts.Add(1)
	if in.Malformed > 0 {
		t.log.WarnContext(ctx, "records do not fit their table; they stand in malformed", "count", in.Malformed)
	}
	if t.load.Step == nil {
		return
	}
	now := time.Now()
	for _, at := range in.SettledAt {
		t.load.Step(StepSettledToClickHouse, max(0, now.Sub(at)))
	}
}

// piece is the longest beginning of the block that keeps the limit of bytes, and at least one record.
func (b *loadBlock) piece(most int) []event.Record {
	bytes := 0
	for i := range b.records {
		if bytes += size(&b.records[i]); bytes > most && i > 0 {
			return b.records[:i]
		}
	}
	return b.records
}

// forget removes the first n records.
func (b *loadBlock) forget(n int) {
	for i := range b.records[:n] {
		b.bytes -= size(&b.records[i])
	}
	b.records = slices.Delete(b.records, 0, n)
}

func size(r *event.Record) int { return len(r.Key) + len(r.Value) }

// token names records by the ranges of offsets that they make up: "0:17-42 3:5-5".
func token(records []event.Record) string {
	first, last := map[int32]int64{}, map[int32]int64{}
	for i := range records {
		r := &records[i]
		if _, ok := first[r.Partition]; !ok {
			first[r.Partition] = r.Offset
		}
		last[r.Partition] = r.Offset
	}
	var s strings.Builder
	for _, p := range slices.Sorted(maps.Keys(first)) {
		fmt.Fprintf(&s, " %d:%d-%d", p, first[p], last[p])
	}
	return strings.TrimPrefix(s.String(), " ")
}

// save moves the positions of all partitions that the block has brought forward. A partition whose lease was lost is
// dropped: the new owner loads the same records again.
func (t *loadTopic) save(ctx context.Context) {
	var moved []int32
	for _, partition := range slices.Sorted(maps.Keys(t.open)) {
		if p := t.open[partition]; p.next > p.saved {
			moved = append(moved, partition)
		}
	}
	err := t.saveThese(ctx, moved)
	if !errors.Is(err, work.ErrLeaseLost) {
		return
	}
	for _, partition := range moved { // one lost lease refuses them all
		if errors.Is(t.saveThese(ctx, []int32{partition}), work.ErrLeaseLost) {
			t.log.InfoContext(ctx, "lease lost", "partition", partition)
			t.drop(partition)
		}
	}
}

// saveThese returns nil when the positions are saved, [work.ErrLeaseLost], or the error that ctx ended with.
func (t *loadTopic) saveThese(ctx context.Context, partitions []int32) error {
	if len(partitions) == 0 {
		return nil
	}
	fences := make([]work.Fence, len(partitions))
	positions := make(map[int32]int64, len(partitions))
	for i, partition := range partitions {
		p := t.open[partition]
		fences[i] = p.fence
		positions[p.fence.Partition] = p.next
	}
	var lost error
	done := t.insist(ctx, func() error {
		err := t.positions.SavePosition(ctx, fences, positions, t.positionsOf())
		if errors.Is(err, work.ErrLeaseLost) {
			lost = err
			return nil
		}
		return err
	})
	switch {
	case lost != nil:
		return lost
	case !done:
		return ctx.Err()
	}
	for _, partition := range partitions {
		t.open[partition].saved = t.open[partition].next
	}
	return nil
}

// insist calls f until it succeeds and reports whether it did before ctx ended. Meanwhile nothing is read, so that
// memory stays bounded, and Waiting says why.
func (t *loadTopic) insist(ctx context.Context, f func() error) bool {
	pause := loadFirstPause
	for {
		err := f()
		if err == nil {
			t.goesOn(ctx)
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		t.load.Retries.Add(1)
		reason := err.Error()
		if t.waiting.Swap(&reason) == nil {
			t.log.WarnContext(ctx, "loading waits", "error", err)
		}
		if !sleep(ctx, pause) {
			return false
		}
		pause = loadNextPause(pause)
	}
}

// stop loads what was gathered, within the drain time. The leases are given back when all topics have stopped.
func (t *loadTopic) stop(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), t.load.cfg.Drain)
	defer cancel()
	t.flush(ctx)
	if len(t.block.records) == 0 {
		t.save(ctx) // of an insert that the stop came right after
	}
	if t.reader != nil {
		t.reader.Close()
	}
}
