package pipeline

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// RelayWriter is the relay's key in catalog.positions, and its transactional id with the prefix of the topics.
const RelayWriter = "relay"

// relayOutbox holds the rows that wait for Kafka; sinks/state implements it. L is the right to relay, bound to a
// session of the state: when that ends, for whatever reason, everything that is asked with it fails.
type relayOutbox[L any] interface {
	// LockRelay takes the lock, or fails with [work.ErrRelayBusy].
	LockRelay(ctx context.Context) (L, error)
	// TakeOutbox returns the first rows that wait, in the order in which they are to be sent: those that were taken
	// before and not deleted, with the numbers that they had, else up to limit new ones with new numbers.
	TakeOutbox(ctx context.Context, lock L, limit int) ([]work.Numbered, error)
	// DeleteOutbox removes every row that has a number up to and with upTo, and sees to it that later numbers are
	// above it even when the state was restored from a backup.
	DeleteOutbox(ctx context.Context, lock L, upTo int64) error
}

// relayRight is a relayOutbox whose lock is held.
type relayRight struct {
	take   func(ctx context.Context, limit int) ([]work.Numbered, error)
	delete func(ctx context.Context, upTo int64) error
	close  func(ctx context.Context) error
}

func relayLock[L interface{ Close(context.Context) error }](ctx context.Context, o relayOutbox[L]) (relayRight, error) {
	l, err := o.LockRelay(ctx)
	if err != nil {
		return relayRight{}, err
	}
	return relayRight{
		take:   func(ctx context.Context, limit int) ([]work.Numbered, error) { return o.TakeOutbox(ctx, l, limit) },
		delete: func(ctx context.Context, upTo int64) error { return o.DeleteOutbox(ctx, l, upTo) },
		close:  l.Close,
	}, nil
}

// relayIncarnation tells one state from another: numbers of different ones cannot be compared, and one set of topics
// belongs to one of them.
type relayIncarnation interface {
	Incarnation(ctx context.Context) (work.Incarnation, error)
	// Restored is told the number that Kafka has of this incarnation. One that the state has not given yet proves that it
	// was restored: it then rebuilds what it knows, and is another incarnation when it says so.
	Restored(ctx context.Context, number int64) (restored bool, products int64, err error)
}

// relayProducer writes records in transactions; connectors/kafka implements it. Every error is final for a producer.
type relayProducer interface {
	Begin() error
	Produce(records ...event.Record) error
	// Commit makes what was produced visible as a whole. When it fails it is unknown what became of it.
	Commit(ctx context.Context) error
}

// RelayKafka opens what the relay writes with.
type RelayKafka struct {
	// Open fences every earlier producer of the relay: when it returns, none of them can commit anything more. The
	// second result closes the producer.
	Open func(ctx context.Context) (relayProducer, func(), error)
	// Position reads the relay's position; false when it never wrote one. Owner is the last one that can be read at
	// once, without waiting for a transaction that a predecessor has left open.
	Position, Owner func(ctx context.Context) (event.Position, bool, error)
	// Topic and Partition are where the position is written: catalog.positions, and the relay's partition of it.
	Topic     string
	Partition int32
	// DeadLetters is the full name of catalog.deadletters, for rows that are too large to be sent.
	DeadLetters string
	// MaxRecordBytes is what a record may hold, key, value and headers together. Default 8 MiB - 4 KiB.
	MaxRecordBytes int
}

// RelayConfig configures the relay.
type RelayConfig struct {
	// Limit is how many rows share a Kafka transaction at the most. More rows cost less each and hold back readers of
	// committed records longer. Default 1,000.
	Limit int
	// MaxBytes cuts a transaction by the bytes of its records, which are all in memory. Default 16 MiB.
	MaxBytes int
	// Idle is the pause before the outbox is looked at again after nothing was found. It is paid by the first outcome
	// after a calm, in latency, and by the state, in queries. Default 25 ms.
	Idle time.Duration
	// Standby is the pause before a process that is not the relay tries to become it. It bounds how long outcomes stand
	// still after the relay was killed. Default 500 ms.
	Standby time.Duration
	// AcceptTopics takes over topics that belong to another state, see [OwnTopics].
	AcceptTopics bool
}

func (c RelayConfig) withDefaults() RelayConfig {
	c.Limit = cmp.Or(c.Limit, 1000)
	c.MaxBytes = cmp.Or(c.MaxBytes, 16<<20)
	c.Idle = cmp.Or(c.Idle, 25*time.Millisecond)
	c.Standby = cmp.Or(c.Standby, 500*time.Millisecond)
	return c
}

// Relay sends the outbox of the state to Kafka, each row once. Any number of processes may run one: the lock lets one
// work, and the others stand by.
type Relay struct {
	cfg   RelayConfig
	kafka RelayKafka
	lock  func(context.Context) (relayRight, error)
	state relayIncarnation
	log   *slog.Logger

	waiting atomic.Pointer[string]

	// Sent counts the rows that this process has sent; DeadLetters those of them that were too large and went to
	// catalog.deadletters instead.
	Sent, DeadLetters atomic.Int64
	// Active says whether this process holds the lock.
	Active atomic.Bool
}

// NewRelay returns a stage that does nothing until Run.
func NewRelay[L interface{ Close(context.Context) error }](
	cfg RelayConfig, kafka RelayKafka, outbox relayOutbox[L], state relayIncarnation, log *slog.Logger,
) *Relay {
	kafka.MaxRecordBytes = cmp.Or(kafka.MaxRecordBytes, 8<<20-4<<10)
	return &Relay{
		cfg: cfg.withDefaults(), kafka: kafka, state: state, log: log.With("stage", "relay"),
		lock: func(ctx context.Context) (relayRight, error) { return relayLock(ctx, outbox) },
	}
}

// ForeignTopicsError says that the topics belong to another state.
type ForeignTopicsError struct {
	// Topic is the full name of catalog.positions, where that stands.
	Topic string
	// Owner and State are the incarnations of the state that owns the topics, and of ours.
	Owner, State string
	// At is when the owner last wrote.
	At time.Time
}

func (e *ForeignTopicsError) Error() string { return e.Problem() + ": " + e.Mend() }

// Problem says what was found.
func (e *ForeignTopicsError) Problem() string {
	return fmt.Sprintf("the topics beside %s belong to another state (incarnation %s, which last wrote there %s; this one is %s), "+
		"and two states that share topics would mix what they report",
		e.Topic, e.Owner, e.At.UTC().Format(time.RFC3339), e.State)
}

// Mend says what to do about it.
func (e *ForeignTopicsError) Mend() string {
	return "give this deployment a kafka.prefix and a source.slot of its own; or, when the other state is gone for good, " +
		"start it once with shelfwire run --accept-topics"
}

// Permanent says that trying again does not help.
func (*ForeignTopicsError) Permanent() bool { return true }

// OwnTopics says whether the topics are those of a state: owner is the relay's position in the topic of that name, and
// whether there is one. Topics belong to the state whose relay first wrote there; another one is refused with a
// [*ForeignTopicsError], as two deployments on one set of topics would fence each other, send outcomes twice and mix the
// events of batches with equal names. Only the incarnation that a restored state had before is taken for its own.
func OwnTopics(topic string, owner event.Position, written bool, state work.Incarnation) error {
	if !written || owner.Incarnation == state.ID || owner.Incarnation == state.Former {
		return nil
	}
	return &ForeignTopicsError{Topic: topic, Owner: owner.Incarnation, State: state.ID, At: owner.At}
}

// Run relays until ctx ends. After any error it gives up the lock and the producer and begins again: only what Kafka
// says then decides what was sent. It returns a [*ForeignTopicsError] when the topics belong to another state.
func (r *Relay) Run(ctx context.Context) error {
	const first, last = 100 * time.Millisecond, 5 * time.Second
	pause := first
	for ctx.Err() == nil {
		sent := r.Sent.Load()
		err := r.session(ctx)
		if ctx.Err() != nil {
			break
		}
		if errors.Is(err, work.ErrRelayBusy) {
			sleep(ctx, r.cfg.Standby)
			continue
		}
		if foreign, ok := errors.AsType[*ForeignTopicsError](err); ok {
			return foreign
		}
		if r.Sent.Load() > sent {
			pause = first
		}
		reason := err.Error()
		r.waiting.Store(&reason)
		r.log.WarnContext(ctx, "relay begins again", "pause", pause, "error", err)
		sleep(ctx, pause)
		pause = min(2*pause, last)
	}
	return nil
}

// Waiting says why nothing is relayed; empty while all goes well or another process relays.
func (r *Relay) Waiting() string {
	if s := r.waiting.Load(); s != nil {
		return *s
	}
	return ""
}

// session holds the lock until something goes wrong. It returns an error in any case.
func (r *Relay) session(ctx context.Context) (err error) {
	right, err := r.lock(ctx)
	if err != nil {
		return err
	}
	defer func() {
		r.Active.Store(false)
		// A lock that cannot be given up ends with its session; the error that led here matters more.
		rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if rerr := right.close(rctx); rerr != nil {
			r.log.WarnContext(ctx, "relay lock not released; it ends with its session", "error", rerr)
		}
	}()
	incarnation, err := r.state.Incarnation(ctx)
	if err != nil {
		return err
	}
	if _, _, err := r.owned(ctx, incarnation, r.kafka.Owner); err != nil { // who has no business here fences nobody
		return err
	}
	producer, closeProducer, err := r.kafka.Open(ctx)
	if err != nil {
		return err
	}
	defer closeProducer()
	// Invariant: the position is read after the predecessors were fenced. Before, one of them could still commit rows
	// that we would send again.
	pos, ok, err := r.owned(ctx, incarnation, r.kafka.Position)
	if err != nil {
		return err
	}
	s := &relaySession{Relay: r, right: right, producer: producer, incarnation: incarnation.ID, limit: r.cfg.Limit}
	if ok && pos.Incarnation == s.incarnation {
		s.sent = pos.Number
		err = s.compare(ctx)
	} else {
		err = s.claim(ctx)
	}
	if err != nil {
		return err
	}
	r.log.InfoContext(ctx, "relaying", "after", s.sent)
	r.Active.Store(true)
	r.waiting.Store(nil)
	return s.run(ctx)
}

// owned reads the relay's position, and refuses topics of another state.
func (r *Relay) owned(
	ctx context.Context, state work.Incarnation, read func(context.Context) (event.Position, bool, error),
) (event.Position, bool, error) {
	pos, ok, err := read(ctx)
	if err != nil || r.cfg.AcceptTopics {
		return pos, ok, err
	}
	return pos, ok, OwnTopics(r.kafka.Topic, pos, ok, state)
}

// errRelayRestored begins the session again: its incarnation is another one.
var errRelayRestored = errors.New("the state was restored and goes on as a new incarnation")

// relaySession is one holder of the lock with its producer.
type relaySession struct {
	*Relay
	right       relayRight
	producer    relayProducer
	incarnation string
	sent        int64 // the number of the last row that is in Kafka
	limit       int   // of rows to take: fewer when they are large
}

// compare tells the state what Kafka has of it.
func (s *relaySession) compare(ctx context.Context) error {
	restored, products, err := s.state.Restored(ctx, s.sent)
	if err != nil || !restored {
		return err
	}
	s.log.ErrorContext(ctx, "the state was restored: what it knew of the shops is void, and all known products are compared with them anew",
		"number", s.sent, "products", products)
	return errRelayRestored
}

// claim makes the topics those of this state before it sends anything, so that no other one begins there meanwhile.
func (s *relaySession) claim(ctx context.Context) error {
	err := s.producer.Begin()
	if err == nil {
		err = s.position(0)
	}
	if err == nil {
		err = s.producer.Commit(ctx)
	}
	if err != nil {
		return fmt.Errorf("make the topics those of this state: %w", err)
	}
	return nil
}

// position writes how far this state is sent, in the transaction that is open.
func (s *relaySession) position(number int64) error {
	value, err := json.Marshal(event.Position{
		Writer: RelayWriter, Number: number, Incarnation: s.incarnation, At: time.Now().UTC(),
	})
	if err != nil {
		return err
	}
	return s.producer.Produce(event.Record{Topic: s.kafka.Topic, Partition: s.kafka.Partition, Key: []byte(RelayWriter), Value: value})
}

func (s *relaySession) run(ctx context.Context) error {
	// What a predecessor has sent, and may not have deleted.
	if err := s.right.delete(ctx, s.sent); err != nil {
		return fmt.Errorf("delete outbox rows up to %d: %w", s.sent, err)
	}
	for {
		rows, err := s.right.take(ctx, s.limit)
		if err != nil {
			return fmt.Errorf("take outbox rows after %d: %w", s.sent, err)
		}
		if len(rows) == 0 {
			if !sleep(ctx, s.cfg.Idle) {
				return ctx.Err()
			}
			continue
		}
		if rows, err = s.cut(rows); err != nil {
			return err
		}
		if err := s.send(ctx, rows); err != nil {
			return err
		}
		s.Sent.Add(int64(len(rows)))
		// Invariant: rows are deleted after their transaction is committed, and before the next one begins, so that
		// what is at or below the one number in Kafka is all that may still stand here and be sent.
		if err := s.right.delete(ctx, s.sent); err != nil {
			return fmt.Errorf("delete outbox rows up to %d: %w", s.sent, err)
		}
	}
}

// cut returns the rows that go into the next transaction and adapts how many are taken to their size. Numbers that do
// not rise say that two states answer to one name; sending on would lose rows.
func (s *relaySession) cut(rows []work.Numbered) ([]work.Numbered, error) {
	last, bytes, n := s.sent, 0, 0
	for i := range rows {
		if rows[i].Number <= last {
			return nil, fmt.Errorf("outbox row %d comes after %d, which is in Kafka: the state was restored or copied; "+
				"nothing is sent, as rows could get lost", rows[i].Number, last)
		}
		last = rows[i].Number
		size := relaySize(&rows[i].Record)
		if n > 0 && bytes+size > s.cfg.MaxBytes {
			break
		}
		bytes += size
		n++
	}
	switch {
	case n < len(rows):
		s.limit = max(1, n)
	case n == s.limit && bytes < s.cfg.MaxBytes/4:
		s.limit = min(s.cfg.Limit, 2*s.limit)
	}
	return rows[:n], nil
}

// send writes rows and the number of the last of them in one Kafka transaction.
func (s *relaySession) send(ctx context.Context, rows []work.Numbered) error {
	last := rows[len(rows)-1].Number
	fail := func(err error) error { return fmt.Errorf("send outbox rows %d to %d: %w", rows[0].Number, last, err) }
	// A broker that is away makes Commit wait, not fail: somebody should read why.
	slow := time.AfterFunc(2*time.Second, func() {
		reason := fmt.Sprintf("Kafka has not acknowledged outbox rows %d to %d yet", rows[0].Number, last)
		s.waiting.Store(&reason)
	})
	defer func() {
		if !slow.Stop() {
			s.waiting.Store(nil)
		}
	}()
	if err := s.producer.Begin(); err != nil {
		return fail(err)
	}
	for i := range rows {
		if err := s.producer.Produce(s.fit(ctx, &rows[i])); err != nil {
			return fail(err)
		}
	}
	if err := s.position(last); err != nil {
		return fail(err)
	}
	if err := s.producer.Commit(ctx); err != nil {
		return fail(err)
	}
	s.sent = last
	return nil
}

// fit replaces a record that no broker would take: it would hold up everything behind it for ever. The dead letter
// carries the reason and as much of the value as fits.
func (s *relaySession) fit(ctx context.Context, row *work.Numbered) event.Record {
	size := relaySize(&row.Record)
	if size <= s.kafka.MaxRecordBytes {
		return row.Record
	}
	s.DeadLetters.Add(1)
	reason := fmt.Sprintf("a record of %d bytes for %s is larger than the limit of %d", size, row.Topic, s.kafka.MaxRecordBytes)
	s.log.ErrorContext(ctx, "record is too large and becomes a dead letter", "topic", row.Topic, "key", string(row.Key), "bytes", size)
	room := max(0, s.kafka.MaxRecordBytes-len(row.Key)-1024)
	return event.Record{
		Topic: s.kafka.DeadLetters, Partition: -1, Key: row.Key, Value: row.Value[:min(room, len(row.Value))],
		Headers: []event.Header{{Key: event.HeaderReason, Value: []byte(reason)}, {Key: event.HeaderTable, Value: []byte(row.Topic)}},
	}
}

func relaySize(r *event.Record) int {
	n := len(r.Key) + len(r.Value)
	for _, h := range r.Headers {
		n += len(h.Key) + len(h.Value)
	}
	return n
}
