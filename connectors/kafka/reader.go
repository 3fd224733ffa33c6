package kafka

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/shelfwire/shelfwire/schemas/event"
)

// RangeError says that a partition holds no record at the offset that was asked for: retention has removed it, or the
// topic was made anew.
type RangeError struct {
	Topic     string
	Partition int32
	// Offset was asked for; the partition holds [Start, End).
	Offset, Start, End int64
}

func (e *RangeError) Error() string {
	if e.Offset < e.Start {
		return fmt.Sprintf("%s/%d: offset %d was removed by retention, the first one left is %d: %d offsets are lost",
			e.Topic, e.Partition, e.Offset, e.Start, e.Start-e.Offset)
	}
	return fmt.Sprintf("%s/%d: offset %d is beyond the end %d: the topic was truncated or made anew",
		e.Topic, e.Partition, e.Offset, e.End)
}

// Range is what the partition holds: [start, end).
func (e *RangeError) Range() (partition int32, start, end int64) { return e.Partition, e.Start, e.End }

// Permanent says that trying again does not help.
func (*RangeError) Permanent() bool { return true }

func (c *Cluster) rangeError(ctx context.Context, topic string, partition int32, at int64) error {
	e := &RangeError{Topic: topic, Partition: partition, Offset: at}
	starts, err := c.StartOffsets(ctx, topic)
	if err != nil {
		return fmt.Errorf("%s/%d: offset %d is out of range, and the range is unknown: %w", topic, partition, at, err)
	}
	ends, err := c.EndOffsets(ctx, topic)
	if err != nil {
		return fmt.Errorf("%s/%d: offset %d is out of range, and the range is unknown: %w", topic, partition, at, err)
	}
	e.Start, e.End = starts[partition], ends[partition]
	return e
}

// Reader yields the committed records of some partitions of one topic. One goroutine polls; Add and Remove may be
// called from others and take effect before the next Poll returns a record.
type Reader struct {
	c     *Cluster
	cl    *kgo.Client
	topic string

	mu      sync.Mutex
	next    map[int32]int64 // the partitions that are read, and the offset that comes next
	todo    []func()        // what Add and Remove have asked for since the last poll
	wake    context.CancelFunc
	failed  error // met beside records, which go first
	removed map[int32]bool
}

// NewReader makes a reader that reads no partition yet.
func (c *Cluster) NewReader(topic string) (*Reader, error) {
	cl, err := c.client(
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		// An offset that is gone must be seen by whoever keeps positions: resetting by itself loses records silently.
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		// A partition that is added waits for the fetch that is under way: a takeover would take that much longer.
		kgo.FetchMaxWait(500*time.Millisecond),
		// Packed, of which a stage unpacks and holds one while it works off what the last has brought. A larger batch, up
		// to the largest record, comes all the same.
		kgo.FetchMaxBytes(4<<20),
		kgo.FetchMaxPartitionBytes(1<<20),
	)
	if err != nil {
		return nil, err
	}
	return &Reader{c: c, cl: cl, topic: topic, next: make(map[int32]int64), removed: make(map[int32]bool)}, nil
}

// Add reads a partition from an offset on.
func (r *Reader) Add(partition int32, offset int64) {
	r.later(func() {
		r.next[partition] = offset
		r.cl.AddConsumePartitions(map[string]map[int32]kgo.Offset{r.topic: {partition: kgo.NewOffset().At(offset)}})
	})
}

// Remove stops reading a partition.
func (r *Reader) Remove(partition int32) {
	r.mu.Lock()
	r.removed[partition] = true
	r.mu.Unlock()
	r.later(func() {
		delete(r.next, partition)
		delete(r.removed, partition)
		r.cl.RemoveConsumePartitions(map[string][]int32{r.topic: {partition}})
	})
}

func (r *Reader) later(do func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.todo = append(r.todo, do)
	if r.wake != nil {
		r.wake() // a poll that waits for records of the old partitions
	}
}

// Poll returns up to limit records (all that are buffered when it is 0), in order within each partition, and waits for
// at least one. A [*RangeError] ends the reading of its partition; others go on.
func (r *Reader) Poll(ctx context.Context, limit int) ([]event.Record, error) {
	for {
		pollCtx, cancel := context.WithCancel(ctx)
		r.mu.Lock()
		for _, do := range r.todo {
			do()
		}
		r.todo = r.todo[:0]
		err := r.failed
		r.failed = nil
		r.wake = cancel
		r.mu.Unlock()
		if err != nil {
			cancel()
			return nil, err
		}
		fetches := r.cl.PollRecords(pollCtx, limit)
		cancel()
		out, err := r.take(ctx, fetches)
		if len(out) > 0 {
			r.mu.Lock()
			r.failed = err
			r.mu.Unlock()
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
}

// take turns what the library has fetched into records, without those of partitions that are on their way out.
func (r *Reader) take(ctx context.Context, fetches kgo.Fetches) ([]event.Record, error) {
	r.mu.Lock()
	r.wake = nil
	var out []event.Record
	fetches.EachRecord(func(rec *kgo.Record) {
		if at, ok := r.next[rec.Partition]; !ok || rec.Offset < at || r.removed[rec.Partition] {
			return
		}
		r.next[rec.Partition] = rec.Offset + 1
		out = append(out, incoming(rec))
	})
	next := maps.Clone(r.next)
	r.mu.Unlock()

	for _, fe := range fetches.Errors() {
		switch {
		case errors.Is(fe.Err, context.Canceled), errors.Is(fe.Err, context.DeadlineExceeded):
			// ours: the caller's, or a poll that was woken
		case errors.Is(fe.Err, kerr.OffsetOutOfRange):
			return out, r.c.rangeError(ctx, fe.Topic, fe.Partition, next[fe.Partition])
		default:
			return out, fmt.Errorf("read %s/%d at %d: %w", fe.Topic, fe.Partition, next[fe.Partition], fe.Err)
		}
	}
	return out, nil
}

// Close ends the connections. A Poll that waits returns an error.
func (r *Reader) Close() { r.cl.Close() }

// incoming makes our record of the library's. The bytes are shared: the library never uses them again.
func incoming(r *kgo.Record) event.Record {
	e := event.Record{
		Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Timestamp: r.Timestamp, Key: r.Key, Value: r.Value,
	}
	if len(r.Headers) > 0 {
		e.Headers = make([]event.Header, len(r.Headers))
		for i, h := range r.Headers {
			e.Headers[i] = event.Header{Key: h.Key, Value: h.Value}
		}
	}
	return e
}
