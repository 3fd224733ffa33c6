package pipeline_test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/audit"
	"github.com/shelfwire/shelfwire/connectors/kafka"
	"github.com/shelfwire/shelfwire/connectors/postgres"
	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	server "github.com/shelfwire/shelfwire/deploy/embedded/postgres"
	"github.com/shelfwire/shelfwire/pipeline"
	"github.com/shelfwire/shelfwire/pipeline/debounce"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/reference"
	"github.com/shelfwire/shelfwire/schemas/route"
	"github.com/shelfwire/shelfwire/schemas/work"
	"github.com/shelfwire/shelfwire/sinks/shopify"
	"github.com/shelfwire/shelfwire/sinks/shopify/shopifysim"
	"github.com/shelfwire/shelfwire/sinks/state"
)

// middleRig is the way of a change from a real source database in the reference schema to simulated shops, with
// Kafka and the state between, in one process. Its stages are started and killed one by one.
type middleRig struct {
	t      *testing.T // of the test, or of its part that runs
	all    *testing.T // whose end is that of stages
	db     *pgx.Conn  // what looks; applications have connections of their own
	url    string
	kc     *kafka.Cluster
	source *watchedSource
	state  *state.Store
	facts  *pgx.Conn // of the state
	sim    *shopifysim.Simulator
	shops  *shopify.Shops
	routes []route.Route
	log    *slog.Logger
	// lease and push are how stages are configured that are started from now on.
	lease   pipeline.LeaseConfig
	push    pipeline.PushConfig
	capture *pipeline.Capture
	owners  int
	// restart has the next capture give up its position.
	restart bool
	// stopCapture, stopExpand and stopPush stop those that were started last.
	stopCapture, stopExpand, stopPush func()
	// through is what Push reads its records through.
	through func(*kafka.Reader) middleReader
}

// middleReader is how a stage reads a topic.
type middleReader interface {
	Add(partition int32, offset int64)
	Remove(partition int32)
	Poll(ctx context.Context, n int) ([]event.Record, error)
}

// middleShops are the shops of the catalog's stores.
var middleShops = []string{"north", "south", "east"}

// newMiddleRig brings everything up but the stages. catalog is the SQL that fills the reference schema.
func newMiddleRig(t *testing.T, s *server.Server, catalog string) *middleRig {
	t.Helper()
	r := &middleRig{
		t: t, all: t, url: embeddedtest.NewDatabase(t, s), kc: newCaptureTopics(t),
		log:   slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
		lease: pipeline.LeaseConfig{TTL: 4 * time.Second, Every: 100 * time.Millisecond},
	}
	r.through = func(reader *kafka.Reader) middleReader { return reader }
	r.push = pipeline.PushConfig{
		Prefix: r.kc.Topic(""), Partitions: r.kc.Partitions(), NotYetVisible: 300 * time.Millisecond,
		RequestTimeout: time.Second, // a lease outlasts it
		Debounce:       debounce.Wait{Quiet: 20 * time.Millisecond, MaxWait: 200 * time.Millisecond},
		Guard:          work.GuardLimits{Floor: 1 << 20},
	}
	var err error
	r.routes, err = reference.Routes()
	require.NoError(t, err)
	r.db = r.connect(r.url)
	r.exec(reference.SchemaSQL())
	r.exec(reference.ReplicaIdentitySQL())
	r.exec(catalog)
	// The state has no standby to wait for.
	stateURL := embeddedtest.NewDatabase(t, s)
	separator := "?"
	if strings.Contains(stateURL, "?") {
		separator = "&"
	}
	stateURL += separator + "synchronous_commit=local"
	r.facts = r.connect(stateURL)
	r.state, err = state.Open(t.Context(), state.Config{URL: stateURL, BatchTopic: r.kc.Topic(event.Batches)})
	require.NoError(t, err)
	t.Cleanup(r.state.Close)
	require.NoError(t, r.state.Migrate(t.Context()))

	name, _, _ := strings.Cut(r.url[strings.LastIndex(r.url, "/test_")+6:], "?")
	source, err := postgres.Open(t.Context(), postgres.Config{
		URL: r.url, Slot: "s_" + name, MessagePrefix: pipeline.MessagePrefix, DecodingMemory: "64kB",
	})
	require.NoError(t, err)
	t.Cleanup(source.Close)
	r.source = &watchedSource{Source: source}
	r.openShops()
	return r
}

// of has a part of the test be the one that runs, until end.
func (r *middleRig) of(t *testing.T) (end func()) {
	t.Helper()
	outer := r.t
	r.t = t
	return func() { r.t = outer }
}

func (r *middleRig) openShops() {
	r.t.Helper()
	cfg := shopifysim.Config{}
	shops := map[string]shopify.ShopConfig{}
	for _, name := range middleShops {
		cfg.Shops = append(cfg.Shops, shopifysim.ShopConfig{
			Domain: name, Token: "t", Plan: shopifysim.Enterprise, Locations: []string{"Main"},
		})
		shops[name] = shopify.ShopConfig{URL: "http://" + name, Token: func(context.Context) (string, error) { return "t", nil }}
	}
	var err error
	r.sim, err = shopifysim.New(cfg)
	require.NoError(r.t, err)
	r.t.Cleanup(func() { _ = r.sim.Close() })
	for _, name := range middleShops { // what is measured here is not their patience
		r.sim.Shop(name).SetRestoreRate(20000)
	}
	r.shops, err = shopify.New(shopify.Config{
		Shops: shops, Budget: r.state, Holder: "rig", RoundTripper: r.sim.RoundTripper(), Logger: r.log,
	})
	require.NoError(r.t, err)
	r.always("shops", r.shops.Run)
}

func (r *middleRig) connect(url string) *pgx.Conn {
	r.t.Helper()
	conn, err := pgx.Connect(r.t.Context(), url)
	require.NoError(r.t, err)
	r.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func (r *middleRig) exec(sql string, args ...any) {
	r.t.Helper()
	_, err := r.db.Exec(r.t.Context(), sql, args...)
	require.NoError(r.t, err, sql)
}

// one asks for one value.
func one[T any](t *testing.T, conn *pgx.Conn, sql string, args ...any) T {
	t.Helper()
	var v T
	require.NoError(t, conn.QueryRow(t.Context(), sql, args...).Scan(&v), sql)
	return v
}

// soon waits for what is to come; a machine may do much else. It asks in the test's own goroutine, so that questions may
// fail the test.
func (r *middleRig) soon(so func() bool, what string, args ...any) {
	r.t.Helper()
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for end := time.Now().Add(time.Minute); !so(); <-look.C {
		if time.Now().After(end) {
			r.t.Fatalf("not after a minute: %s; parked are %v", fmt.Sprintf(what, args...), r.parked())
		}
	}
}

// always runs something until the end of the test, or until stop is called.
func (r *middleRig) always(name string, run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil && ctx.Err() == nil {
			r.all.Errorf("%s: %v", name, err)
		}
	})
	r.all.Cleanup(stop)
	return stop
}

func (r *middleRig) owner() pipeline.LeaseConfig {
	r.owners++
	c := r.lease
	c.Owner = fmt.Sprintf("w%d", r.owners)
	return c
}

func (r *middleRig) reader(topic string) *kafka.Reader {
	r.t.Helper()
	reader, err := r.kc.NewReader(r.kc.Topic(topic))
	require.NoError(r.t, err)
	r.all.Cleanup(reader.Close)
	return reader
}

// start runs one of each stage.
func (r *middleRig) start() {
	r.t.Helper()
	r.startCapture()
	r.startExpand(0)
	r.startPush()
	batches := pipeline.NewBatches(1, r.owner(), r.state, r.reader(event.Batches), r.state, r.log)
	r.always("batches", batches.Run)
	relay := pipeline.NewRelay(pipeline.RelayConfig{}, pipeline.RelayKafka{
		Open: func(ctx context.Context) (pipeline.RelayProducer, func(), error) {
			p, err := r.kc.OpenProducer(ctx, pipeline.RelayWriter)
			if err != nil {
				return nil, nil, err
			}
			return p, p.Close, nil
		},
		Position: func(ctx context.Context) (event.Position, bool, error) {
			return r.kc.ReadPosition(ctx, kafka.RelayPartition, pipeline.RelayWriter)
		},
		Owner: func(ctx context.Context) (event.Position, bool, error) {
			return r.kc.LastPosition(ctx, kafka.RelayPartition, pipeline.RelayWriter)
		},
		Topic: r.kc.Topic(event.Positions), Partition: kafka.RelayPartition, DeadLetters: r.kc.Topic(event.DeadLetters),
	}, r.state, r.state, r.log)
	r.always("relay", relay.Run)
}

func (r *middleRig) startCapture() {
	r.t.Helper()
	cfg := pipeline.CaptureConfig{
		Routes: r.routes, Prefix: r.kc.Topic(""), PositionPartition: kafka.CapturePartition, TxEvery: time.Millisecond,
		IdleEvery: 50 * time.Millisecond, SnapshotRate: -1, SnapshotChunk: 50, Heartbeat: time.Second,
		Restart: r.restart,
	}
	r.capture = pipeline.NewCapture(cfg, pipeline.CaptureParts{
		Source: r.source,
		Open: func(ctx context.Context) (pipeline.CaptureStream, error) {
			if err := r.source.KeepPublished(ctx, pipeline.PublishedTables(cfg)); err != nil {
				return nil, err
			}
			return r.source.Stream(ctx, 0)
		},
		Fence: func(ctx context.Context) (pipeline.CaptureProducer, error) {
			return r.kc.OpenProducer(ctx, "capture/"+r.source.Slot())
		},
		Position: func(ctx context.Context, writer string) (event.Position, bool, error) {
			return r.kc.ReadPosition(ctx, kafka.CapturePartition, writer)
		},
		Touch: func(ctx context.Context, back bool) (int64, error) {
			return r.state.Touch(ctx, r.kc.Partitions(), back)
		},
		Logger: r.log,
	})
	r.stopCapture = r.always("capture", r.capture.Run)
}

// startExpand pages in steps of page products; 0 is the default.
func (r *middleRig) startExpand(page int) {
	r.t.Helper()
	e := pipeline.NewExpand(pipeline.ExpandConfig{
		Lease: r.owner(), Prefix: r.kc.Topic(""), Partitions: r.kc.Partitions(), ChangePartitions: r.kc.Partitions(),
		Routes: r.routes, Page: page,
	}, r.state, r.reader(event.Fanouts), r.source, r.state, r.log)
	r.stopExpand = r.always("expand", e.Run)
}

func (r *middleRig) startPush() {
	r.t.Helper()
	cfg := r.push
	cfg.Lease = r.owner()
	p := pipeline.NewPush(cfg, pipeline.PushParts{
		Leases: r.state, Reader: r.through(r.reader(event.Changes)), Documents: r.source, Snapshot: r.source.Snapshot,
		TellLate: r.state.TellLate, State: r.state, Fenced: r.state, Shops: r.state, Sender: r.shops, Log: r.log,
	})
	r.stopPush = r.always("push", p.Run)
}

// calm waits until everything that is committed and visible now has come to the shops.
func (r *middleRig) calm() {
	r.t.Helper()
	lsn, err := change.ParseLSN(one[string](r.t, r.db, `SELECT pg_current_wal_insert_lsn()::text`))
	require.NoError(r.t, err)
	r.exec(`SELECT pg_logical_emit_message(false, 'rig', 'so that a keepalive passes the mark')`)
	r.soon(func() bool {
		return change.LSN(r.capture.Stats().Confirmed.Load()) >= lsn && !r.capture.Stats().Snapshotting.Load()
	}, "captured")
	r.soon(func() bool { return r.passed(work.StageBatches, event.Batches) }, "announced")
	r.soon(func() bool { return r.passed(work.StageExpand, event.Fanouts) }, "expanded")
	r.soon(func() bool { return r.passed(work.StagePush, event.Changes) }, "pushed")
	r.soon(func() bool { return len(r.parked()) == 0 }, "nothing is parked")
}

// passed reports whether a stage has finished everything that its topic holds.
func (r *middleRig) passed(stage work.Stage, topic string) bool {
	at, err := r.state.Positions(r.t.Context(), stage)
	require.NoError(r.t, err)
	topic = r.kc.Topic(topic)
	ends, err := r.kc.EndOffsets(r.t.Context(), topic)
	require.NoError(r.t, err)
	for part, end := range ends {
		left := false // the last offsets may be markers of transactions, which no reader ever sees
		if at[part] < end {
			_, err := r.kc.Scan(r.t.Context(), topic, part, at[part], end, func(event.Record) bool {
				left = true
				return false
			})
			require.NoError(r.t, err)
		}
		if left {
			return false
		}
	}
	return true
}

// parked counts what waits in the state, by reason.
func (r *middleRig) parked() map[string]int {
	rows, err := r.facts.Query(r.t.Context(), `SELECT reason, count(*)::int FROM parked WHERE reason <> 'LATE_REQUEST' GROUP BY 1`)
	require.NoError(r.t, err)
	out := map[string]int{}
	var reason string
	var n int
	_, err = pgx.ForEachRow(rows, []any{&reason, &n}, func() error {
		out[reason] = n
		return nil
	})
	require.NoError(r.t, err)
	return out
}

// mutations is how many were executed in all shops.
func (r *middleRig) mutations() (n int) {
	for _, shop := range middleShops {
		for _, m := range r.sim.Shop(shop).Stats().Mutations {
			n += m
		}
	}
	return n
}

// requireTrue compares all shops with what the documents query says of every product, or of some.
func (r *middleRig) requireTrue(only ...string) {
	r.t.Helper()
	report, err := audit.Run(r.t.Context(), middleTruth{r}, simulated{r.sim}, only)
	require.NoError(r.t, err)
	require.Empty(r.t, report.Drifts)
	require.True(r.t, report.Clean(), "nothing was compared")
}

// middleTruth asks the source what the shops shall have.
type middleTruth struct{ r *middleRig }

func (m middleTruth) ProductIDs(ctx context.Context, after string, n int) ([]string, error) {
	conn, err := pgx.Connect(ctx, m.r.url)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(ctx) }()
	rows, err := conn.Query(ctx, `SELECT id::text FROM catalog.products WHERE id::text COLLATE "C" > $1 ORDER BY id::text COLLATE "C" LIMIT $2`,
		after, n)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

func (m middleTruth) Documents(ctx context.Context, ids []string) ([]document.Row, error) {
	products := make([]change.ProductID, len(ids))
	for i, id := range ids {
		products[i] = change.ProductID(id)
	}
	rows, _, _, err := m.r.source.Source.Documents(ctx, reference.DocumentsSQL(), products)
	return rows, err
}

// simulated reads the shops past their API.
type simulated struct{ sim *shopifysim.Simulator }

func (s simulated) Names() []string { return middleShops }

func (s simulated) Products(_ context.Context, shop string, yield func(audit.Product) bool) error {
	for _, p := range s.sim.Shop(shop).Products() {
		if !yield(simulatedProduct(&p)) {
			break
		}
	}
	return nil
}

func simulatedProduct(p *shopifysim.Product) audit.Product {
	out := audit.Product{
		ID: p.ID, ProductID: ownMetafield(p.Metafields, "product_id"), Status: p.Status, Title: p.Title, DescriptionHTML: p.DescriptionHTML,
		Vendor: p.Vendor, ProductType: p.ProductType, Handle: p.Handle, SEOTitle: p.SEOTitle, SEODescription: p.SEODescription,
		Tags: p.Tags, Metafields: map[string]string{}, Publications: slices.Collect(maps.Keys(p.Publications)),
	}
	for _, m := range p.Metafields {
		out.Metafields[m.Namespace+"."+m.Key] = m.Value
	}
	for _, o := range p.Options {
		option := document.Option{Name: o.Name}
		for _, v := range o.Values {
			option.Values = append(option.Values, v.Name)
		}
		out.Options = append(out.Options, option)
	}
	for _, v := range p.Variants {
		levels := map[string]map[string]int{}
		for _, l := range v.Levels {
			levels[l.Location] = map[string]int{}
			for name, n := range l.Quantities {
				levels[l.Location][name] = int(n)
			}
		}
		out.Variants = append(out.Variants, audit.Variant{
			ID: v.ID, Options: v.Values, SKU: v.SKU, Barcode: v.Barcode, Price: v.Price, CompareAtPrice: v.CompareAtPrice, Levels: levels,
		})
	}
	return out
}

func ownMetafield(list []shopifysim.Metafield, key string) string {
	i := slices.IndexFunc(list, func(m shopifysim.Metafield) bool { return m.Namespace == "shelfwire" && m.Key == key })
	if i < 0 {
		return ""
	}
	return list[i].Value
}

// price is what a product of one variant costs in a shop; empty where the shop does not have it.
func (r *middleRig) price(shop, product string) string {
	for _, p := range r.sim.Shop(shop).Products() {
		if ownMetafield(p.Metafields, "product_id") == product {
			return p.Variants[0].Price
		}
	}
	return ""
}

// watchedSource counts the reads of the source.
type watchedSource struct {
	*postgres.Source
	documents, pages, snapshots atomic.Int64
}

func (s *watchedSource) Documents(ctx context.Context, ids []change.ProductID) ([]document.Row, change.Snapshot, time.Time, error) {
	s.documents.Add(1)
	return s.Source.Documents(ctx, reference.DocumentsSQL(), ids)
}

func (s *watchedSource) Page(ctx context.Context, sql string, image map[string]*string, after string, n int) (change.Page, error) {
	s.pages.Add(1)
	return s.Source.Page(ctx, sql, image, after, n)
}

func (s *watchedSource) Snapshot(ctx context.Context) (change.Snapshot, error) {
	s.snapshots.Add(1)
	return s.Source.Snapshot(ctx)
}
