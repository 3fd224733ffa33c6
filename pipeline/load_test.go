package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	chgo "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/shelfwire/shelfwire/connectors/kafka"
	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
	"github.com/shelfwire/shelfwire/sinks/clickhouse"
)

// loadLeases gives all leases to one worker until they expire, and then to the next.
type loadLeases struct {
	mu     sync.Mutex
	owner  string
	dead   string // the last owner whose leases have expired
	epoch  int64
	leases map[int32]work.Lease
}

func (l *loadLeases) Renew(_ context.Context, stage work.Stage, owner string, n int32, ttl time.Duration) ([]work.Lease, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.leases == nil {
		l.leases = map[int32]work.Lease{}
	}
	if l.owner == "" && owner != l.dead {
		l.owner = owner
		l.epoch++
	}
	if l.owner != owner {
		return nil, nil
	}
	var out []work.Lease
	for p := range n {
		lease := l.leases[p]
		lease.Fence = work.Fence{Stage: stage, Partition: p, Owner: owner, Epoch: l.epoch}
		lease.Expires = time.Now().Add(ttl)
		l.leases[p] = lease
		out = append(out, lease)
	}
	return out, nil
}

// expire ends all leases.
func (l *loadLeases) expire() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.owner, l.dead = "", l.owner
	l.epoch++
}

func (l *loadLeases) Release(_ context.Context, fences []work.Fence) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(fences) > 0 && fences[0].Owner == l.owner && fences[0].Epoch == l.epoch {
		l.owner = ""
	}
	return nil
}

func (l *loadLeases) SavePosition(_ context.Context, fences []work.Fence, positions map[int32]int64, of string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range fences {
		if f.Owner != l.owner || f.Epoch != l.epoch {
			return fmt.Errorf("save: %w", work.ErrLeaseLost)
		}
	}
	for p, at := range positions {
		lease := l.leases[p]
		if lease.Cursor != of {
			lease.Position, lease.Cursor = 0, of
		}
		lease.Position = max(lease.Position, at)
		l.leases[p] = lease
	}
	return nil
}

// loadWorld is a cluster with topics, a database, and the state.
type loadWorld struct {
	t      *testing.T
	kafka  *kafka.Cluster
	adm    *kadm.Client
	db     *clickhouse.DB
	conn   driver.Conn
	leases *loadLeases
	renew  leaseStore // what loaders ask for leases; nil: leases
	polled atomic.Int64
	runs   int
	url    string // of the database, for the test
}

// loadCounted counts what a reader returns.
type loadCounted struct {
	LoadReader
	n *atomic.Int64
}

func (r loadCounted) Poll(ctx context.Context, n int) ([]event.Record, error) {
	recs, err := r.LoadReader.Poll(ctx, n)
	r.n.Add(int64(len(recs)))
	return recs, err
}

func newLoadWorld(t *testing.T) *loadWorld {
	t.Helper()
	url := embeddedtest.NewClickHouseDatabase(t, embeddedtest.ClickHouse(t))
	return newLoadWorldOn(t, url, url, 0)
}

// newLoadWorldOn is a world whose loaders reach the engine by one address, and the test by another one.
func newLoadWorldOn(t *testing.T, loaders, tests string, timeout time.Duration) *loadWorld {
	t.Helper()
	broker := embeddedtest.Kafka(t)
	c, err := kafka.New(kafka.Config{Brokers: []string{broker.Addr()}, Prefix: broker.Prefix(), Partitions: 3})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	require.NoError(t, c.EnsureTopics(t.Context()))
	cl, err := kgo.NewClient(kgo.SeedBrokers(broker.Addr()))
	require.NoError(t, err)
	t.Cleanup(cl.Close)

	db := openLoadTables(t, loaders, timeout)
	opts, err := chgo.ParseDSN(tests)
	require.NoError(t, err)
	conn, err := chgo.Open(opts)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	return &loadWorld{t: t, kafka: c, adm: kadm.NewClient(cl), db: db, conn: conn, leases: &loadLeases{}, url: tests}
}

func openLoadTables(t *testing.T, url string, timeout time.Duration) *clickhouse.DB {
	t.Helper()
	cfg, err := clickhouse.ParseURL(url)
	require.NoError(t, err)
	cfg.InsertTimeout = timeout
	db, err := clickhouse.Open(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return db
}

// start runs a loader over tables and positions until stop.
func (w *loadWorld) start(cfg LoadConfig, tables loadTables, positions loadPositions) (l *Load, stop func()) {
	w.runs++
	cfg.Lease = LeaseConfig{Owner: fmt.Sprint("worker", w.runs), TTL: time.Minute, Every: 20 * time.Millisecond}
	var topics []LoadTopic
	for _, kind := range clickhouse.Topics() {
		name := w.kafka.Topic(kind)
		partitions := w.kafka.Partitions()
		if kind == event.Batches {
			partitions = 1
		}
		topics = append(topics, LoadTopic{Kind: kind, Name: name, Partitions: partitions, Open: func() (LoadReader, error) {
			r, err := w.kafka.NewReader(name)
			return loadCounted{r, &w.polled}, err
		}})
	}
	var leases leaseStore = w.leases
	if w.renew != nil {
		leases = w.renew
	}
	l = NewLoad(cfg, topics, leases, positions, w.kafka, tables, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(w.t, <-done)
	})
	w.t.Cleanup(stop)
	return l, stop
}

// loaded waits until the positions have reached the ends of all topics.
func (w *loadWorld) loaded(l *Load) {
	w.t.Helper()
	last := w.last(l)
	require.Eventually(w.t, func() bool { return w.reached(last) }, time.Minute, 20*time.Millisecond, "not loaded: %v", loadWhy{l})
}

// loadWhy is what a loader waits for when it is printed.
type loadWhy struct{ *Load }

func (w loadWhy) String() string { return fmt.Sprint(w.Waiting()) }

// last are the offsets of the last records of all topics, by the loader's numbers of their partitions.
func (w *loadWorld) last(l *Load) map[int32]int64 {
	last := map[int32]int64{}
	for _, t := range l.topics {
		for p, rs := range w.records(t.Kind) {
			last[t.first+p] = rs[len(rs)-1].Offset
		}
	}
	return last
}

func (w *loadWorld) reached(last map[int32]int64) bool {
	w.leases.mu.Lock()
	defer w.leases.mu.Unlock()
	for p, offset := range last {
		if w.leases.leases[p].Position <= offset {
			return false
		}
	}
	return true
}

func (w *loadWorld) records(kind string) map[int32][]event.Record {
	return relayValues(w.t, w.kafka, kind)
}

// produce writes records of all topics, some in transactions that are aborted, some malformed.
func (w *loadWorld) produce(rng *rand.Rand, first, n int) {
	w.t.Helper()
	ctx := w.t.Context()
	p, err := w.kafka.OpenProducer(ctx, "load-test")
	require.NoError(w.t, err)
	for i, failures := first, 0; i < first+n; {
		some := min(1+rng.IntN(40), first+n-i)
		err := w.transact(ctx, p, rng, i, some)
		if err == nil {
			i += some
			continue
		}
		// kfake on a starved machine was seen to answer OUT_OF_ORDER_SEQUENCE_NUMBER, which kgo takes for the end of a
		// transactional producer. Every error is final for our producers: their stages open another one, as here, and
		// what the broken one left open is aborted. Lost connections alone, before or after the broker has worked, do
		// not bring it about.
		w.t.Logf("another producer after: %v", err)
		failures++
		require.Less(w.t, failures, 5)
		p.Close()
		p, err = w.kafka.OpenProducer(ctx, "load-test")
		require.NoError(w.t, err)
	}
	p.Close()
}

// transact writes n times a record for each topic in one transaction and commits it, or not.
func (w *loadWorld) transact(ctx context.Context, p *kafka.Producer, rng *rand.Rand, first, n int) error {
	if err := p.Begin(); err != nil {
		return err
	}
	for i := first; i < first+n; i++ {
		if err := p.Produce(w.some(rng, i)...); err != nil {
			return err
		}
	}
	if rng.IntN(5) != 0 {
		return p.Commit(ctx)
	}
	if err := p.Flush(ctx); err != nil {
		return err
	}
	return p.Abort(ctx)
}

// some is one record for each topic.
func (w *loadWorld) some(rng *rand.Rand, i int) []event.Record {
	product := fmt.Sprint("p", rng.IntN(20))
	shop := fmt.Sprint("shop", rng.IntN(2))
	at := time.Now().Add(-time.Duration(rng.IntN(70*24)) * time.Hour) // several months
	mk := func(kind, key string, v any) event.Record {
		r := event.Record{Topic: w.kafka.Topic(kind), Partition: -1, Timestamp: at, Key: []byte(key)}
		switch v := v.(type) {
		case nil:
		case string:
			r.Value = []byte(v)
		default:
			b, err := json.Marshal(v)
			require.NoError(w.t, err)
			r.Value = b
		}
		return r
	}
	var out []event.Record
	o := event.Outcome{
		ID: fmt.Sprint("o", i), ProductID: product, Shop: shop, Status: event.Success, Lane: "live",
		PointsActual: float64(i), FirstCommit: at.Add(-time.Second), SettledAt: at, Changes: 1,
	}
	switch rng.IntN(4) {
	case 0:
		o.Status, o.Category, o.Message = event.Failed, event.Validation, fmt.Sprint("message ", i)
	case 1:
		o.SentAt, o.AnsweredAt = at.Add(-200*time.Millisecond), at.Add(-time.Duration(rng.IntN(100))*time.Millisecond)
	}
	outcome := mk(event.Outcomes, product, o)
	if rng.IntN(20) == 0 {
		outcome.Value = []byte(`{"broken`)
	}
	doc := document.Document{Eligible: true, Variants: document.Of([]document.Variant{{
		Key: "v1", Price: document.Of(fmt.Sprintf("%d.50", rng.IntN(3))),
		Stock: document.Of([]document.Level{{Location: "here", Quantity: rng.IntN(3)}}),
	}})}
	raw, err := json.Marshal(doc)
	require.NoError(w.t, err)
	documentKey := product + "|" + shop
	documents := mk(event.Documents, documentKey, event.Document{ProductID: product, Shop: shop, Hash: fmt.Sprint("h", i), Document: raw, ReadAt: at})
	if rng.IntN(10) == 0 {
		documents.Value = nil
	}
	documents.Partition = int32(len(product)+int(product[1])) % 3
	changed := mk(event.Changes, product, `{"before":null,"after":{"id":"`+fmt.Sprint(i)+`"},"op":"c"}`)
	changed.Headers = []event.Header{{Key: event.HeaderPosition, Value: fmt.Appendf(nil, "0/%X:1", i+1)}, {Key: event.HeaderTable, Value: []byte("public.products")}}
	out = append(out, outcome, documents, changed)
	if i%7 == 0 {
		out = append(out, mk(event.Batches, "b", event.Batch{Type: event.BatchOpened, ID: "b", At: at}))
		out = append(out, mk(event.DeadLetters, product, "\x00\xff"))
	}
	return out
}

// loadFaults stands between a loader and its tables and positions, and lets things go wrong.
type loadFaults struct {
	*clickhouse.DB
	positions loadPositions
	mu        sync.Mutex
	rng       *rand.Rand
	dead      atomic.Bool
	sent      *atomic.Int64
	late      []func() // inserts of a process that was stopped before they went out
}

var errLoadFault = errors.New("fault")

func (f *loadFaults) roll(n int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rng.IntN(n)
}

func (f *loadFaults) Insert(ctx context.Context, topic string, id [16]byte, records []event.Record, token string) (event.Inserted, error) {
	if f.dead.Load() {
		return event.Inserted{}, errLoadFault
	}
	f.sent.Add(int64(len(records)))
	switch f.roll(14) {
	case 0:
		f.sent.Add(-int64(len(records)))
		return event.Inserted{}, errLoadFault
	case 1: // the acknowledgement is lost
		_, err := f.DB.Insert(ctx, topic, id, records, token)
		return event.Inserted{}, errors.Join(errLoadFault, err)
	case 2: // the process stops before it sends, for long
		f.dead.Store(true)
		kept := slices.Clone(records)
		f.mu.Lock()
		defer f.mu.Unlock()
		f.late = append(f.late, func() { _, _ = f.DB.Insert(context.Background(), topic, id, kept, token) })
		return event.Inserted{}, errLoadFault
	case 3: // the process dies with the answer
		_, err := f.DB.Insert(ctx, topic, id, records, token)
		f.dead.Store(true)
		return event.Inserted{}, errors.Join(errLoadFault, err)
	}
	return f.DB.Insert(ctx, topic, id, records, token)
}

func (f *loadFaults) SavePosition(ctx context.Context, fences []work.Fence, positions map[int32]int64, of string) error {
	if f.dead.Load() || f.roll(4) == 0 {
		return errLoadFault
	}
	return f.positions.SavePosition(ctx, fences, positions, of)
}

func TestLoadKilledAtAnyStepShowsExactlyTheTopics(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	w := newLoadWorld(t)
	var late []func()
	var sent atomic.Int64
	produced := 0
	for range 6 {
		n := 50 + rng.IntN(200)
		w.produce(rng, produced, n)
		produced += n
		faults := &loadFaults{DB: w.db, positions: w.leases, sent: &sent, rng: rand.New(rand.NewPCG(rng.Uint64(), 1))}
		l, stop := w.start(LoadConfig{MaxRows: 1 + rng.IntN(60), MaxBytes: 1 << rng.IntN(16), Linger: time.Millisecond, Drain: time.Nanosecond}, faults, faults)
		last := w.last(l)
		require.Eventually(t, func() bool { return faults.dead.Load() || w.reached(last) }, time.Minute, 10*time.Millisecond)
		w.leases.expire()
		stop()
		late = append(late, faults.late...)
	}
	l, stop := w.start(LoadConfig{Linger: 10 * time.Millisecond}, w.db, w.leases)
	w.loaded(l)
	stop()
	for _, insert := range late {
		insert()
	}
	w.requireEqual()
	distinct := 0
	for _, kind := range clickhouse.Topics() {
		for _, rs := range w.records(kind) {
			distinct += len(rs)
		}
	}
	require.Greater(t, sent.Load()+l.Rows.Load(), int64(distinct), "the schedule repeated nothing")
}

// rows reads a query's only column of strings.
func (w *loadWorld) rows(sql string, args ...any) []string {
	w.t.Helper()
	var out []string
	rs, err := w.conn.Query(w.t.Context(), sql, args...)
	require.NoError(w.t, err, sql)
	for rs.Next() {
		var s string
		require.NoError(w.t, rs.Scan(&s))
		out = append(out, s)
	}
	require.NoError(w.t, rs.Err())
	return out
}

// requireEqual compares the views with the topics, row by row.
func (w *loadWorld) requireEqual() {
	w.t.Helper()
	const place = "concat(toString(partition), ' ', toString(offset), ' ')"
	for _, kind := range clickhouse.Topics() {
		id, err := w.kafka.TopicID(w.t.Context(), w.kafka.Topic(kind))
		require.NoError(w.t, err)
		uuid := fmt.Sprintf("%x-%x-%x-%x-%x", id[0:4], id[4:6], id[6:8], id[8:10], id[10:])
		view, content := kind, "value"
		switch kind {
		case event.Outcomes:
			content = "id"
		case event.Documents:
			view, content = "document_versions", "hash"
		case event.Batches:
			content = "batch_id"
		}
		where := " WHERE topic_id = {id:UUID} "
		got := w.rows("SELECT "+place+" || "+content+" FROM "+view+where+
			"UNION ALL SELECT "+place+" || value FROM malformed"+where+"AND topic = {topic:String}",
			chgo.Named("id", uuid), chgo.Named("topic", kind))
		var want []string
		last := map[string]string{}
		for p, rs := range w.records(kind) {
			for _, r := range rs {
				text := string(r.Value)
				var fields struct {
					ID    string `json:"id"`
					Hash  string `json:"hash"`
					Batch string `json:"batch_id"`
				}
				if json.Unmarshal(r.Value, &fields) == nil && kind != event.Changes && kind != event.DeadLetters {
					text = fields.ID + fields.Hash + fields.Batch
				}
				want = append(want, fmt.Sprintf("%d %d %s", p, r.Offset, text))
				if r.Value == nil {
					delete(last, string(r.Key))
				} else {
					last[string(r.Key)] = fields.Hash
				}
			}
		}
		slices.Sort(want)
		slices.Sort(got)
		require.NotEmpty(w.t, want, kind)
		require.Equal(w.t, want, got, kind)
		if kind == event.Documents {
			var keys []string
			for k, hash := range last {
				keys = append(keys, k+" "+hash)
			}
			slices.Sort(keys)
			stand := w.rows("SELECT concat(key, ' ', hash) FROM documents")
			slices.Sort(stand)
			require.Equal(w.t, keys, stand)
		}
	}
	if w.count("topics") == uint64(len(clickhouse.Topics())) { // else they reach back beyond the topics
		w.requireHistories()
	}
	require.NoError(w.t, w.db.Refresh(w.t.Context()))
	for view, aggregate := range map[string]string{
		"points_spent": "hourly_points", "failures_by_cause_hour": "hourly_failures", "latency_by_step_hour": "hourly_latency",
	} {
		want := w.rows("SELECT toString(tuple(*)) FROM " + view + " ORDER BY 1")
		require.NotEmpty(w.t, want, view)
		require.Equal(w.t, want, w.rows("SELECT toString(tuple(*)) FROM "+aggregate+" ORDER BY 1"), aggregate)
	}
}

// requireHistories follows prices and stock through the topic and compares with the views.
func (w *loadWorld) requireHistories() {
	w.t.Helper()
	var prices, levels []string
	for _, rs := range w.records(event.Documents) {
		price, level := map[string]string{}, map[string]string{}
		for _, r := range rs {
			var e event.Document
			var d document.Document
			if r.Value == nil {
				continue
			}
			require.NoError(w.t, json.Unmarshal(r.Value, &e))
			require.NoError(w.t, json.Unmarshal(e.Document, &d))
			v := d.Variants.Value[0]
			if p := v.Price.Value; p != price[string(r.Key)] {
				price[string(r.Key)] = p
				prices = append(prices, fmt.Sprintf("%s %s %s", r.Key, e.Hash, strings.TrimSuffix(p, "0")))
			}
			if q := fmt.Sprint(v.Stock.Value[0].Quantity); q != level[string(r.Key)] {
				level[string(r.Key)] = q
				levels = append(levels, fmt.Sprintf("%s %s %s", r.Key, e.Hash, q))
			}
		}
	}
	for view, want := range map[string][]string{"price_history": prices, "stock_history": levels} {
		value := map[string]string{"price_history": "price", "stock_history": "quantity"}[view]
		got := w.rows("SELECT concat(product_id, '|', shop, ' ', hash, ' ', toString(" + value + ")) FROM " + view)
		slices.Sort(want)
		slices.Sort(got)
		require.Equal(w.t, want, got, view)
	}
}
