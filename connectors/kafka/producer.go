package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
)

// ErrFenced is found in the error of a producer that may write no more: another one was opened with its transactional
// id, or a transaction of it stayed open longer than the timeout. Nothing of its open transaction will be read by
// anyone. The broker's answer does not tell the two cases apart; what does is whoever holds the slot.
var ErrFenced = errors.New("fenced: another producer has taken over, or the transaction timed out")

// Producer writes records in transactions. One goroutine uses it at a time. Any error but one of the context before
// anything was sent is final: close the producer, open another, and read from the topic what was committed.
type Producer struct {
	c  *Cluster
	cl *kgo.Client

	records slab[kgo.Record]
	headers slab[kgo.RecordHeader]
	// promises are what the library calls for the records of each group.
	promises map[int64]func(*kgo.Record, error)

	mu   sync.Mutex
	err  error // the first record that failed
	last map[mark]int64
}

// mark says whose last offset is kept: that of the caller's group in one partition of a topic.
type mark struct {
	group     int64
	topic     string
	partition int32
}

// OpenProducer fences every earlier producer with the same transactional id and returns once none of them can commit
// anything more and what they left open is aborted. The prefix of the topics is put before the id, so that two
// deployments that share a cluster do not fence each other.
func (c *Cluster) OpenProducer(ctx context.Context, transactionalID string) (*Producer, error) {
	cl, err := c.client(
		kgo.TransactionalID(c.Topic(transactionalID)),
		kgo.TransactionTimeout(c.cfg.TransactionTimeout),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerBatchMaxBytes(c.cfg.MaxRecordBytes),
		kgo.ProducerBatchCompression(compressions[c.cfg.Compression]()),
		// We decide ourselves when enough is gathered; the default of 10 ms would be paid by every single change.
		kgo.ProducerLinger(0),
		// Whoever writes bounds a transaction. A Produce that waits for room in the buffer could not be stopped.
		kgo.MaxBufferedRecords(1<<24),
	)
	if err != nil {
		return nil, err
	}
	// The library would load the id with the first record; by then a predecessor may have written more than we read.
	if _, _, err := cl.ProducerID(ctx); err != nil {
		cl.Close()
		return nil, fmt.Errorf("fence the predecessors of producer %s: %w", transactionalID, typed(err))
	}
	return &Producer{c: c, cl: cl, last: map[mark]int64{}, promises: map[int64]func(*kgo.Record, error){}}, nil
}

// Begin opens a transaction. The broker hears of it with the first record.
func (p *Producer) Begin() error {
	if err := p.failure(); err != nil {
		return err
	}
	p.records.reset() // everything of the last transaction has been answered
	p.headers.reset()
	clear(p.promises)
	p.mu.Lock()
	clear(p.last)
	p.mu.Unlock()
	if err := p.cl.BeginTransaction(); err != nil {
		return fmt.Errorf("begin a Kafka transaction: %w", typed(err))
	}
	return nil
}

// Produce adds records to the open transaction, and sends them without waiting. They are not copied: keys, values and
// header values must stay as they are until the transaction is committed, and for good where it is not. A record that
// cannot be written is reported by the next call of any method.
func (p *Producer) Produce(records ...event.Record) error { return p.ProduceMarked(0, records...) }

// ProduceMarked is Produce, and keeps the last offset of the records of this group, for [Producer.Offsets]. Group 0
// keeps none.
func (p *Producer) ProduceMarked(group int64, records ...event.Record) error {
	promise := p.promises[group]
	if promise == nil {
		promise = func(r *kgo.Record, err error) { p.answered(group, r, err) }
		p.promises[group] = promise
	}
	for i := range records {
		// Not the caller's context: a record whose context ends after it was sent leaves it unknown what was written.
		p.cl.Produce(context.Background(), p.record(&records[i]), promise)
	}
	return p.failure()
}

func (p *Producer) record(e *event.Record) *kgo.Record {
	r := &p.records.take(1)[0]
	*r = kgo.Record{
		Topic:     e.Topic,
		Partition: e.Partition,
		Timestamp: e.Timestamp,
		Key:       e.Key,
		Value:     e.Value,
	}
	if e.Partition < 0 {
		r.Partition = change.Partition(change.ProductID(e.Key), p.c.partitions(e.Topic))
	}
	if len(e.Headers) > 0 {
		r.Headers = p.headers.take(len(e.Headers))
		for i, h := range e.Headers {
			r.Headers[i] = kgo.RecordHeader(h)
		}
	}
	return r
}

// partitions is the partition count of a topic that may be produced to by key.
func (c *Cluster) partitions(topic string) int32 {
	if topic == c.Topic(event.Batches) {
		return 1
	}
	return c.cfg.Partitions
}

// answered runs for one record after the other and must not block.
func (p *Producer) answered(group int64, r *kgo.Record, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case err != nil && p.err == nil:
		p.err = fmt.Errorf("write to %s/%d: %w", r.Topic, r.Partition, typed(err))
	case err == nil && group != 0:
		p.last[mark{group, r.Topic, r.Partition}] = r.Offset
	}
}

// Flush waits until every record so far is answered. Records stay invisible to readers until [Producer.Commit].
func (p *Producer) Flush(ctx context.Context) error {
	if err := p.cl.Flush(ctx); err != nil {
		return fmt.Errorf("flush to Kafka: %w", err)
	}
	return p.failure()
}

// Offsets returns the last offset in each partition of topic that a record of the group has got in the open
// transaction. It is complete after [Producer.Flush].
func (p *Producer) Offsets(group int64, topic string) map[int32]int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := make(map[int32]int64)
	for k, at := range p.last {
		if k.group == group && k.topic == topic {
			m[k.partition] = at
		}
	}
	return m
}

// commitGrace is how long a commit that has been sent may take after its context has ended. A stop within 5 s must have
// room for it.
const commitGrace = 2 * time.Second

// Commit makes the records of the transaction visible, all of them or none. When it fails it is unknown whether it
// was committed, unless the error is [ErrFenced]: read the position from the topic after opening the next producer.
func (p *Producer) Commit(ctx context.Context) error {
	if err := p.Flush(ctx); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	// A request that is cut in the middle tells nothing, so a caller that stops gives this one a while; otherwise it
	// takes no longer than the broker itself would keep the transaction.
	ectx, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.c.cfg.TransactionTimeout+5*time.Second)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(commitGrace, cancel) })
	defer stop()
	return p.end(ectx, kgo.TryCommit, "commit the Kafka transaction")
}

// Abort drops the open transaction. Where ctx ends first, the next producer with the id, or the timeout, aborts it.
func (p *Producer) Abort(ctx context.Context) error {
	if err := p.cl.AbortBufferedRecords(ctx); err != nil {
		return fmt.Errorf("abort: %w", err)
	}
	return p.end(ctx, kgo.TryAbort, "abort the Kafka transaction")
}

func (p *Producer) end(ctx context.Context, how kgo.TransactionEndTry, what string) error {
	if err := p.cl.EndTransaction(ctx, how); err != nil {
		err = fmt.Errorf("%s: %w", what, typed(err))
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.err == nil {
			p.err = err
		}
		return err
	}
	return nil
}

// Close ends the connections. It does not end an open transaction: the next producer with the id, or the timeout, aborts
// it.
func (p *Producer) Close() {
	// Close of the library waits for nothing in flight; the broker sorts out what arrives late by its epoch.
	p.cl.Close()
}

func (p *Producer) failure() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// typed adds ErrFenced to what brokers answer to a producer that was replaced.
func typed(err error) error {
	for _, fenced := range []error{kerr.ProducerFenced, kerr.InvalidProducerEpoch, kerr.InvalidTxnState} {
		// The last one: the transaction that the producer means to end has been aborted already.
		if errors.Is(err, fenced) {
			return errors.Join(ErrFenced, err)
		}
	}
	return err
}

// slab hands out values of one transaction from large chunks, which the next transaction uses again. What was in them
// is still there.
type slab[T any] struct {
	chunks   [][]T
	at, used int // chunks[:at] are full, used of chunks[at] is
}

// slabChunk values are allocated at once, and slabChunks are kept: what a usual transaction needs.
const slabChunk, slabChunks = 1024, 64

func (s *slab[T]) reset() {
	if len(s.chunks) > slabChunks {
		clear(s.chunks[slabChunks:])
		s.chunks = s.chunks[:slabChunks]
	}
	s.at, s.used = 0, 0
}

func (s *slab[T]) take(n int) []T {
	if n > slabChunk {
		return make([]T, n)
	}
	if s.used+n > slabChunk {
		s.at, s.used = s.at+1, 0
	}
	if s.at >= len(s.chunks) {
		s.chunks = append(s.chunks, make([]T, slabChunk))
	}
	out := s.chunks[s.at][s.used : s.used+n : s.used+n]
	s.used += n
	return out
}
