package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
	"github.com/shelfwire/shelfwire/sinks/clickhouse"
)

func loadRandom(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func TestLoadStartsAgainWhenATopicIsMadeAnew(t *testing.T) {
	rng := loadRandom(t)
	w := newLoadWorld(t)
	w.produce(rng, 0, 300)
	l, stop := w.start(LoadConfig{Linger: time.Millisecond}, w.db, w.leases)
	w.loaded(l)
	before := w.count("outcomes") // all of them stay, under the topic's old id

	names := []string{w.kafka.Topic(event.Outcomes), w.kafka.Topic(event.Documents)}
	_, err := w.adm.DeleteTopics(t.Context(), names...)
	require.NoError(t, err)
	require.NoError(t, w.kafka.EnsureTopics(t.Context()))
	w.produce(rng, 1000, 40) // offsets stay far below the positions that are saved
	w.viewsEqual()
	require.Greater(t, w.count("outcomes"), before)
	stop()

	w.produce(rng, 2000, 20) // while nobody looks
	_, stop = w.start(LoadConfig{Linger: time.Millisecond}, w.db, w.leases)
	w.viewsEqual()
	stop()
}

func TestLoadFillsTablesThatWereEmptied(t *testing.T) {
	w := newLoadWorld(t)
	w.produce(loadRandom(t), 0, 300)
	l, stop := w.start(LoadConfig{Linger: time.Millisecond}, w.db, w.leases)
	w.loaded(l)
	stop()
	for _, table := range []string{"outcomes_rows", "changes_rows", "documents_rows", "document_versions_rows", "malformed_rows"} {
		require.NoError(t, w.conn.Exec(t.Context(), "TRUNCATE TABLE "+table+" SYNC"))
	}
	_, stop = w.start(LoadConfig{Linger: time.Millisecond}, w.db, w.leases)
	w.viewsEqual()
	stop()
	w.requireEqual()
}

// viewsEqual waits until every topic has as many rows as records, and compares them.
func (w *loadWorld) viewsEqual() {
	w.t.Helper()
	require.Eventually(w.t, func() bool {
		for _, kind := range clickhouse.Topics() {
			want := 0
			for _, rs := range w.records(kind) {
				want += len(rs)
			}
			view := map[string]string{event.Documents: "document_versions"}[kind]
			if view == "" {
				view = kind
			}
			id, err := w.kafka.TopicID(w.t.Context(), w.kafka.Topic(kind))
			require.NoError(w.t, err)
			where := fmt.Sprintf(" WHERE topic_id = '%x-%x-%x-%x-%x'", id[0:4], id[4:6], id[6:8], id[8:10], id[10:])
			if w.count(view+where)+w.count("malformed"+where) < uint64(want) {
				return false
			}
			if kind == event.Documents && !w.documentsStand(where) { // their second table is written after the first
				return false
			}
		}
		return true
	}, time.Minute, 50*time.Millisecond)
	w.requireEqual()
}

// documentsStand reports whether the last document of each partition is in the table of last documents.
func (w *loadWorld) documentsStand(where string) bool {
	for p, rs := range w.records(event.Documents) {
		if w.count(fmt.Sprintf("documents_rows%s AND partition = %d AND offset = %d", where, p, rs[len(rs)-1].Offset)) == 0 {
			return false
		}
	}
	return true
}

func (w *loadWorld) count(from string) (n uint64) {
	w.t.Helper()
	require.NoError(w.t, w.conn.QueryRow(w.t.Context(), "SELECT count() FROM "+from).Scan(&n))
	return n
}

// loadOutage is a service that is away until it is back.
type loadOutage struct {
	*clickhouse.DB
	positions loadPositions
	away      atomic.Pointer[string]
	calls     atomic.Int64
}

func (o *loadOutage) check(what string) error {
	o.calls.Add(1)
	if s := o.away.Load(); s != nil && strings.Contains(*s, what) {
		return errors.New(what + " is away")
	}
	return nil
}

func (o *loadOutage) Migrate(ctx context.Context) error {
	if err := o.check("migrate"); err != nil {
		return err
	}
	return o.DB.Migrate(ctx)
}

func (o *loadOutage) Begin(ctx context.Context, topic string, id [16]byte) (map[int32]int64, error) {
	if err := o.check("begin"); err != nil {
		return nil, err
	}
	return o.DB.Begin(ctx, topic, id)
}

func (o *loadOutage) Insert(ctx context.Context, topic string, id [16]byte, records []event.Record, token string) (event.Inserted, error) {
	if err := o.check("insert"); err != nil {
		return event.Inserted{}, err
	}
	return o.DB.Insert(ctx, topic, id, records, token)
}

func (o *loadOutage) SavePosition(ctx context.Context, fences []work.Fence, positions map[int32]int64, of string) error {
	if err := o.check("save"); err != nil {
		return err
	}
	return o.positions.SavePosition(ctx, fences, positions, of)
}

func TestLoadWaitsForWhatIsAwayAndSaysWhy(t *testing.T) {
	w := newLoadWorld(t)
	w.produce(loadRandom(t), 0, 100)
	for i, what := range []string{"migrate", "begin", "insert", "save"} {
		w.produce(loadRandom(t), 1000*(i+1), 100)
		o := &loadOutage{DB: w.db, positions: w.leases}
		o.away.Store(&what)
		l, stop := w.start(LoadConfig{Linger: time.Millisecond}, o, o)
		require.Eventually(t, func() bool {
			for _, why := range l.Waiting() {
				if why == what+" is away" {
					return true
				}
			}
			return false
		}, 10*time.Second, time.Millisecond, what)
		none := ""
		o.away.Store(&none)
		w.loaded(l)
		require.Eventually(t, func() bool { return len(l.Waiting()) == 0 }, 10*time.Second, time.Millisecond, what)
		require.Less(t, o.calls.Load(), int64(1000), "a hot loop")
		stop()
	}
	w.requireEqual()
}

// loadHandOver wants every lease of the first worker for the second, once all has been read. The second gets them when
// the first has released the last.
type loadHandOver struct {
	*loadLeases
	polled   *atomic.Int64
	all      int64
	mu       sync.Mutex
	released map[int32]bool
}

func (h *loadHandOver) Renew(ctx context.Context, stage work.Stage, owner string, n int32, ttl time.Duration) ([]work.Lease, error) {
	ls, err := h.loadLeases.Renew(ctx, stage, owner, n, ttl)
	if owner != "worker1" {
		return ls, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(ls) > 0 && int32(len(h.released)) == n {
		h.expire()
	}
	var held []work.Lease
	for _, l := range ls {
		if l.Wanted = h.polled.Load() >= h.all; !h.released[l.Partition] {
			held = append(held, l)
		}
	}
	return held, err
}

func (h *loadHandOver) Release(_ context.Context, fences []work.Fence) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, f := range fences {
		h.released[f.Partition] = f.Owner == "worker1"
	}
	return nil
}

func TestLoadHandsOverWhatIsWantedWithNothingLeftBehind(t *testing.T) {
	w := newLoadWorld(t)
	w.produce(loadRandom(t), 0, 200)
	var all int64
	for _, kind := range clickhouse.Topics() {
		for _, rs := range w.records(kind) {
			all += int64(len(rs))
		}
	}
	w.renew = &loadHandOver{loadLeases: w.leases, polled: &w.polled, all: all, released: map[int32]bool{}}
	// Nothing is inserted for its own sake, but for the hand-over.
	first, _ := w.start(LoadConfig{Linger: time.Hour}, w.db, w.leases)
	require.Eventually(t, func() bool {
		w.leases.mu.Lock()
		defer w.leases.mu.Unlock()
		return w.leases.dead == "worker1"
	}, time.Minute, time.Millisecond)
	require.Equal(t, all, first.Rows.Load())

	second, stop := w.start(LoadConfig{Linger: time.Millisecond}, w.db, w.leases)
	w.loaded(second)
	stop()
	w.requireEqual()
}

// loadHoles are tables that hold the last rows of a block of the topic, and not those before: its insert was cut short
// between two months.
type loadHoles struct {
	noRecords
	mu    sync.Mutex
	next  int64
	begun []int64
}

func (h *loadHoles) Begin(context.Context, string, [16]byte) (map[int32]int64, error) {
	return map[int32]int64{0: h.next}, nil
}

func (h *loadHoles) Add(_ int32, offset int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.begun = append(h.begun, offset)
}

// The position that stands was reached in the topic of that name that was deleted. Rows of the new one reach beyond it.
func TestLoadDoesNotTrustAPositionInATopicThatIsNoMore(t *testing.T) {
	for cursor, want := range map[string]int64{strings.Repeat("02", 16): 0, "01" + strings.Repeat("00", 15): 300} {
		synctest.Test(t, func(t *testing.T) {
			leases := &loadLeases{leases: map[int32]work.Lease{0: {Position: 300, Cursor: cursor}}}
			h := &loadHoles{next: 381}
			topics := []LoadTopic{{Kind: event.Changes, Name: "changes", Partitions: 1, Open: func() (LoadReader, error) { return h, nil }}}
			l := NewLoad(LoadConfig{Lease: LeaseConfig{Owner: "a"}}, topics, leases, leases, h, h, slog.New(slog.DiscardHandler))
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- l.Run(ctx) }()
			time.Sleep(time.Second) // in the bubble
			cancel()
			require.NoError(t, <-done)
			require.Equal(t, []int64{want}, h.begun)
		})
	}
}

// loadSizes are tables that note how large blocks are, and a topic with records that are not all small.
type loadSizes struct {
	noRecords
	mu      sync.Mutex
	records []event.Record
	blocks  [][]int64 // the offsets of each
	refuse  int       // inserts that fail
}

func (s *loadSizes) Poll(ctx context.Context, n int) ([]event.Record, error) {
	s.mu.Lock()
	n = min(n, len(s.records))
	out := s.records[:n]
	s.records = s.records[n:]
	s.mu.Unlock()
	if n == 0 {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return out, nil
}

func (s *loadSizes) Insert(_ context.Context, _ string, _ [16]byte, records []event.Record, _ string) (event.Inserted, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse > 0 {
		s.refuse--
		return event.Inserted{}, errLoadFault
	}
	var block []int64
	for _, r := range records {
		block = append(block, r.Offset)
	}
	s.blocks = append(s.blocks, block)
	return event.Inserted{SettledAt: []time.Time{time.Now().Add(-time.Second)}}, nil
}

func TestLoadCutsBlocksAtBothLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &loadSizes{refuse: 3}
		for i, size := range []int{10, 10, 10, 10, 90, 200, 10, 50, 51, 1, 1, 1} {
			s.records = append(s.records, event.Record{Offset: int64(i), Value: make([]byte, size)})
		}
		leases := &loadLeases{}
		topics := []LoadTopic{{Kind: event.Changes, Name: "changes", Partitions: 1, Open: func() (LoadReader, error) { return s, nil }}}
		l := NewLoad(LoadConfig{Lease: LeaseConfig{Owner: "a"}, MaxRows: 9, MaxBytes: 100}, topics, leases, leases, s, s, slog.New(slog.DiscardHandler))
		var steps []time.Duration
		l.Step = func(step string, d time.Duration) {
			require.Equal(t, StepSettledToClickHouse, step)
			steps = append(steps, d)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.Run(ctx) }()
		time.Sleep(time.Minute) // in the bubble
		cancel()
		require.NoError(t, <-done)
		require.Equal(t, [][]int64{{0, 1, 2, 3}, {4}, {5}, {6, 7}, {8}, {9, 10, 11}}, s.blocks)
		require.EqualValues(t, 12, leases.leases[0].Position)
		require.EqualValues(t, 3, l.Retries.Load())
		require.Equal(t, []time.Duration{time.Second, time.Second, time.Second, time.Second, time.Second, time.Second}, steps)
	})
}

// What retention has taken on both sides is no loss that reading again could mend.
func TestLoadDoesNotReadAgainWhatIsGoneFromKafkaToo(t *testing.T) {
	for first, want := range map[int64]int64{0: 0, 299: 299, 300: 300, 350: 350} {
		l := &loadTopic{log: slog.New(slog.DiscardHandler)}
		require.Equal(t, want, max(l.startAt(t.Context(), 0, 300, 0, first), first))
		require.EqualValues(t, 300, l.startAt(t.Context(), 0, 300, 300, 0))
	}
}
