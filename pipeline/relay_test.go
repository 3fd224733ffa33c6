package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shelfwire/shelfwire/connectors/kafka"
	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// relayMemory is an outbox that keeps the contract of relayOutbox in memory. One lock is valid at a time; taking it
// away is what the death of a session does.
type relayMemory struct {
	mu          sync.Mutex
	rows        []event.Record // in order of their ids; the first numbered of them have numbers
	numbered    int
	number      int64 // of rows[numbered-1]
	holder      *relayMemoryLock
	incarnation work.Incarnation
	knows       bool // that a number ahead of its own means a restore
}

type relayMemoryLock struct{ m *relayMemory }

func (l *relayMemoryLock) Close(context.Context) error {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if l.m.holder == l {
		l.m.holder = nil
	}
	return nil
}

func (m *relayMemory) add(rows ...event.Record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rows = append(m.rows, rows...)
}

func (m *relayMemory) left() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.rows)
}

func (m *relayMemory) Incarnation(context.Context) (work.Incarnation, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.incarnation, nil
}

func (m *relayMemory) Restored(_ context.Context, number int64) (bool, int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.knows || number <= m.number {
		return false, 0, nil
	}
	m.incarnation = work.Incarnation{ID: m.incarnation.ID + ", restored", Former: m.incarnation.ID}
	return true, 1, nil
}

func (m *relayMemory) LockRelay(context.Context) (*relayMemoryLock, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.holder != nil {
		return nil, work.ErrRelayBusy
	}
	m.holder = &relayMemoryLock{m}
	return m.holder, nil
}

var errRelaySession = errors.New("the session has ended")

func (m *relayMemory) TakeOutbox(_ context.Context, l *relayMemoryLock, limit int) ([]work.Numbered, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.holder != l {
		return nil, errRelaySession
	}
	if m.numbered == 0 {
		m.numbered = min(limit, len(m.rows))
		m.number += int64(m.numbered)
	}
	out := make([]work.Numbered, m.numbered)
	for i := range out {
		out[i] = work.Numbered{Number: m.number - int64(m.numbered-1-i), Record: m.rows[i]}
	}
	return out, nil
}

func (m *relayMemory) DeleteOutbox(_ context.Context, l *relayMemoryLock, upTo int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.holder != l {
		return errRelaySession
	}
	for m.numbered > 0 && m.number-int64(m.numbered-1) <= upTo {
		m.rows = m.rows[1:]
		m.numbered--
	}
	m.number = max(m.number, upTo)
	return nil
}

// relayCluster is a cluster with our topics.
func relayCluster(t *testing.T) *kafka.Cluster {
	t.Helper()
	b := embeddedtest.Kafka(t)
	c, err := kafka.New(kafka.Config{
		Brokers: []string{b.Addr()}, Prefix: b.Prefix(), Partitions: 3, TransactionTimeout: 10 * time.Second,
	})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	require.NoError(t, c.EnsureTopics(t.Context()))
	return c
}

func relayTo(c *kafka.Cluster, open func(context.Context) (relayProducer, func(), error)) RelayKafka {
	return RelayKafka{
		Open: open,
		Position: func(ctx context.Context) (event.Position, bool, error) {
			return c.ReadPosition(ctx, kafka.RelayPartition, RelayWriter)
		},
		Owner: func(ctx context.Context) (event.Position, bool, error) {
			return c.LastPosition(ctx, kafka.RelayPartition, RelayWriter)
		},
		Topic: c.Topic(event.Positions), Partition: kafka.RelayPartition, DeadLetters: c.Topic(event.DeadLetters),
	}
}

// relayValues reads all committed records of a topic.
func relayValues(t require.TestingT, c *kafka.Cluster, topic string) map[int32][]event.Record {
	ctx := context.Background()
	require.NoError(t, embeddedtest.Settle(ctx, c.Topic(topic)))
	ends, err := c.EndOffsets(ctx, c.Topic(topic))
	require.NoError(t, err)
	out := map[int32][]event.Record{}
	for p, end := range ends {
		_, err := c.Scan(ctx, c.Topic(topic), p, 0, end, func(r event.Record) bool {
			r.Key, r.Value = append([]byte(nil), r.Key...), append([]byte(nil), r.Value...)
			out[p] = append(out[p], r)
			return true
		})
		require.NoError(t, err)
	}
	return out
}

func relayRows(c *kafka.Cluster, from, n int) []event.Record {
	rows := make([]event.Record, n)
	for i := range rows {
		rows[i] = event.Record{
			Topic: c.Topic(event.Outcomes), Partition: -1, Key: fmt.Appendf(nil, "p%d", (from+i)%5), Value: fmt.Appendf(nil, "%d", from+i),
		}
	}
	return rows
}

// Where a relay can be stopped.
const (
	relayAtBegin = iota
	relayAtProduce
	relayBeforeCommit
	relayAfterCommit
	relayNever
)

var errRelayStopped = errors.New("stopped")

// relayStopping is a producer whose process stops at one step of its n-th transaction. What it leaves open stays open:
// a process that was stopped, not one that has ended.
type relayStopping struct {
	*kafka.Producer
	step, after int
	open        bool // a transaction is
}

func (p *relayStopping) at(step int) error {
	if p.step == step && p.after == 0 {
		return errRelayStopped
	}
	return nil
}

func (p *relayStopping) Begin() error {
	if err := p.at(relayAtBegin); err != nil {
		return err
	}
	p.open = true
	return p.Producer.Begin()
}

func (p *relayStopping) Produce(records ...event.Record) error {
	if err := p.at(relayAtProduce); err != nil {
		return err
	}
	return p.Producer.Produce(records...)
}

func (p *relayStopping) Commit(ctx context.Context) error {
	if err := p.at(relayBeforeCommit); err != nil {
		return errors.Join(err, p.Flush(ctx))
	}
	if err := p.Producer.Commit(ctx); err != nil {
		return err
	}
	p.open = false
	err := p.at(relayAfterCommit)
	p.after--
	return err
}

func TestRelaySendsEachRowOnceWhereverItIsStopped(t *testing.T) {
	broker := embeddedtest.Kafka(t)
	examples := 0
	rapid.Check(t, func(rt *rapid.T) {
		examples++
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		c, err := kafka.New(kafka.Config{
			Brokers: []string{broker.Addr()}, Prefix: fmt.Sprintf("%srelay%d.", broker.Prefix(), examples), Partitions: 3, TransactionTimeout: 10 * time.Second,
		})
		require.NoError(rt, err)
		defer c.Close()
		require.NoError(rt, c.EnsureTopics(ctx))

		outbox := &relayMemory{incarnation: work.Incarnation{ID: "one"}}
		var stopped []*relayStopping
		total := 0
		steps := rapid.SliceOfN(rapid.IntRange(relayAtBegin, relayAfterCommit), 1, 5).Draw(rt, "steps")
		for i := 0; i <= len(steps); i++ {
			step, after := relayNever, 0
			if i < len(steps) {
				step, after = steps[i], rapid.IntRange(0, 2).Draw(rt, "transactions before")
			}
			n := rapid.IntRange(1, 12).Draw(rt, "rows")
			outbox.add(relayRows(c, total, n)...)
			total += n
			var p *relayStopping
			relay := NewRelay(RelayConfig{Limit: rapid.IntRange(1, 5).Draw(rt, "limit"), Idle: time.Millisecond},
				relayTo(c, func(ctx context.Context) (relayProducer, func(), error) {
					real, err := c.OpenProducer(ctx, "relay")
					p = &relayStopping{Producer: real, step: step, after: after}
					return p, func() {}, err
				}), outbox, outbox, slog.New(slog.DiscardHandler))
			// A broker that is busy may end a session by itself: Run begins another then, and so does this.
			for err = nil; !errors.Is(err, context.Canceled) && !errors.Is(err, errRelayStopped); {
				if p != nil {
					p.Close()
				}
				require.NoError(rt, ctx.Err(), "the last session ended with: %v", err)
				err = relayUntilEmpty(ctx, relay, outbox)
			}
			stopped = append(stopped, p)
		}
		require.Zero(rt, outbox.left())
		for _, p := range stopped[:len(stopped)-1] { // they wake, and go on where they were
			if !p.open {
				require.NoError(rt, p.Producer.Begin())
			}
			_ = p.Producer.Produce(relayRows(c, 1_000_000, 1)...)
			require.ErrorIs(rt, p.Producer.Commit(ctx), kafka.ErrFenced)
			p.Close()
		}
		stopped[len(stopped)-1].Close()
		requireEachOnce(rt, c, total)
	})
}

// relayUntilEmpty runs one session until nothing is left, or until it ends by itself.
func relayUntilEmpty(ctx context.Context, r *Relay, outbox *relayMemory) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan error)
	go func() { done <- r.session(ctx) }()
	for outbox.left() > 0 {
		select {
		case err := <-done:
			return err
		case <-time.After(time.Millisecond):
		}
	}
	stop()
	return <-done
}

// requireEachOnce checks that the outcomes 0 to total-1 stand in the topic once each, in order per product.
func requireEachOnce(t require.TestingT, c *kafka.Cluster, total int) {
	seen := map[string]int{}
	for _, rs := range relayValues(t, c, event.Outcomes) {
		last := map[string]int{}
		for _, r := range rs {
			seen[string(r.Value)]++
			var n int
			_, err := fmt.Sscan(string(r.Value), &n)
			require.NoError(t, err)
			if before, ok := last[string(r.Key)]; ok {
				require.Greater(t, n, before, "order of %s", r.Key)
			}
			last[string(r.Key)] = n
		}
	}
	for n := range total {
		require.Equal(t, 1, seen[fmt.Sprint(n)], "row %d", n)
	}
	require.Len(t, seen, total)
}

// relayRun runs a relay until the test ends.
func relayRun(t *testing.T, r *Relay) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(t, <-done)
	})
	t.Cleanup(stop)
	return stop
}

func relayOpen(c *kafka.Cluster) func(context.Context) (relayProducer, func(), error) {
	return func(ctx context.Context) (relayProducer, func(), error) {
		p, err := c.OpenProducer(ctx, "relay")
		if err != nil {
			return nil, nil, err
		}
		return p, p.Close, nil
	}
}

func TestRelayStandsByAndTakesOver(t *testing.T) {
	c := relayCluster(t)
	outbox := &relayMemory{incarnation: work.Incarnation{ID: "one"}}
	cfg := RelayConfig{Standby: 5 * time.Millisecond, Idle: time.Millisecond}
	first := NewRelay(cfg, relayTo(c, relayOpen(c)), outbox, outbox, slog.New(slog.DiscardHandler))
	stop := relayRun(t, first)
	require.Eventually(t, first.Active.Load, 10*time.Second, time.Millisecond)
	second := NewRelay(cfg, relayTo(c, relayOpen(c)), outbox, outbox, slog.New(slog.DiscardHandler))
	relayRun(t, second)
	outbox.add(relayRows(c, 0, 50)...)
	require.Eventually(t, func() bool { return outbox.left() == 0 }, 10*time.Second, time.Millisecond)
	require.False(t, second.Active.Load())
	require.Empty(t, second.Waiting(), "to stand by is not to wait")
	stop()
	outbox.add(relayRows(c, 50, 50)...)
	require.Eventually(t, func() bool { return outbox.left() == 0 }, 10*time.Second, time.Millisecond)
	require.EqualValues(t, 50, first.Sent.Load())
	require.EqualValues(t, 50, second.Sent.Load())
	requireEachOnce(t, c, 100)
}

// A second deployment that was given the prefix of the first by mistake must not stop it, not fence it and not write
// between its outcomes.
func TestRelayLeavesTheTopicsOfAnotherStateAlone(t *testing.T) {
	c := relayCluster(t)
	one := &relayMemory{incarnation: work.Incarnation{ID: "one"}}
	first := NewRelay(RelayConfig{Limit: 4, Idle: time.Millisecond}, relayTo(c, relayOpen(c)), one, one, slog.New(slog.DiscardHandler))
	stop := relayRun(t, first)
	require.Eventually(t, first.Active.Load, 10*time.Second, time.Millisecond) // nothing is sent yet: the topics are its own already

	two := &relayMemory{incarnation: work.Incarnation{ID: "two"}}
	two.add(relayRows(c, 1000, 3)...)
	second := NewRelay(RelayConfig{Limit: 4}, relayTo(c, relayOpen(c)), two, two, slog.New(slog.DiscardHandler))
	err := second.Run(t.Context())
	foreign, ok := errors.AsType[*ForeignTopicsError](err)
	require.True(t, ok, "%v", err)
	require.Equal(t, []string{"one", "two"}, []string{foreign.Owner, foreign.State})
	require.ErrorContains(t, err, "--accept-topics")
	require.Equal(t, 3, two.left())

	one.add(relayRows(c, 0, 10)...)
	require.Eventually(t, func() bool { return one.left() == 0 }, 10*time.Second, time.Millisecond)
	stop()
	requireEachOnce(t, c, 10)

	// A state that was made anew in place of the first: its numbers are low, and what it has is sent all the same.
	three := &relayMemory{incarnation: work.Incarnation{ID: "three"}}
	three.add(relayRows(c, 10, 10)...)
	relayRun(t, NewRelay(RelayConfig{Limit: 4, AcceptTopics: true}, relayTo(c, relayOpen(c)), three, three, slog.New(slog.DiscardHandler)))
	require.Eventually(t, func() bool { return three.left() == 0 }, 10*time.Second, time.Millisecond)
	requireEachOnce(t, c, 20)
	require.ErrorAs(t, first.Run(t.Context()), new(*ForeignTopicsError), "the first one must not come back")
}

func TestRelayContinuesAboveKafkaAfterARestoreOfTheState(t *testing.T) {
	c := relayCluster(t)
	outbox := &relayMemory{incarnation: work.Incarnation{ID: "one"}}
	stop := relayRun(t, NewRelay(RelayConfig{}, relayTo(c, relayOpen(c)), outbox, outbox, slog.New(slog.DiscardHandler)))
	outbox.add(relayRows(c, 0, 10)...)
	require.Eventually(t, func() bool { return outbox.left() == 0 }, 10*time.Second, time.Millisecond)
	stop()
	restored := &relayMemory{incarnation: work.Incarnation{ID: "one"}} // a backup from before the first number
	relayRun(t, NewRelay(RelayConfig{}, relayTo(c, relayOpen(c)), restored, restored, slog.New(slog.DiscardHandler)))
	restored.add(relayRows(c, 10, 10)...)
	require.Eventually(t, func() bool { return restored.left() == 0 }, 10*time.Second, time.Millisecond)
	requireEachOnce(t, c, 20)
}

// The state hears of it before anything is sent, and goes on as another one.
func TestRelayTellsAStateThatItWasRestored(t *testing.T) {
	c := relayCluster(t)
	outbox := &relayMemory{incarnation: work.Incarnation{ID: "one"}, knows: true}
	for range 2 { // a state that was not restored is left alone
		stop := relayRun(t, NewRelay(RelayConfig{}, relayTo(c, relayOpen(c)), outbox, outbox, slog.New(slog.DiscardHandler)))
		outbox.add(relayRows(c, 0, 5)...)
		require.Eventually(t, func() bool { return outbox.left() == 0 }, 10*time.Second, time.Millisecond)
		stop()
	}
	require.Equal(t, "one", outbox.incarnation.ID)
	restored := &relayMemory{incarnation: work.Incarnation{ID: "one"}, knows: true}
	restored.add(relayRows(c, 10, 10)...)
	stop := relayRun(t, NewRelay(RelayConfig{}, relayTo(c, relayOpen(c)), restored, restored, slog.New(slog.DiscardHandler)))
	require.Eventually(t, func() bool { return restored.left() == 0 }, 10*time.Second, time.Millisecond)
	stop()
	require.Equal(t, "one, restored", restored.incarnation.ID)
}

func TestRelayPutsAsideWhatNoBrokerTakes(t *testing.T) {
	c := relayCluster(t)
	outbox := &relayMemory{incarnation: work.Incarnation{ID: "one"}}
	to := relayTo(c, relayOpen(c))
	to.MaxRecordBytes = 4096
	relay := NewRelay(RelayConfig{MaxBytes: 10_000}, to, outbox, outbox, slog.New(slog.DiscardHandler))
	rows := relayRows(c, 0, 20)
	huge := relayRows(c, 100, 1)[0]
	huge.Value = make([]byte, 1<<20)
	outbox.add(append(append(rows[:10:10], huge), rows[10:]...)...)
	relayRun(t, relay)
	require.Eventually(t, func() bool { return outbox.left() == 0 }, 10*time.Second, time.Millisecond)
	requireEachOnce(t, c, 20)
	require.EqualValues(t, 1, relay.DeadLetters.Load())
	var dead []event.Record
	for _, rs := range relayValues(t, c, event.DeadLetters) {
		dead = append(dead, rs...)
	}
	require.Len(t, dead, 1)
	require.Equal(t, huge.Key, dead[0].Key)
	reason, _ := dead[0].Header(event.HeaderReason)
	require.Contains(t, reason, "larger than the limit of 4096")
}

func TestRelaySendsNothingWhenNumbersFallBack(t *testing.T) {
	s := relaySession{Relay: &Relay{cfg: RelayConfig{}.withDefaults()}, sent: 7, limit: 10}
	_, err := s.cut([]work.Numbered{{Number: 7}})
	require.ErrorContains(t, err, "restored or copied")
}
