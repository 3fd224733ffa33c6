package torture

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	kafkatopics "github.com/shelfwire/shelfwire/connectors/kafka"
	source "github.com/shelfwire/shelfwire/connectors/postgres"
	"github.com/shelfwire/shelfwire/pipeline"
	"github.com/shelfwire/shelfwire/pipeline/debounce"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
	"github.com/shelfwire/shelfwire/sinks/clickhouse"
	"github.com/shelfwire/shelfwire/sinks/shopify"
	"github.com/shelfwire/shelfwire/sinks/state"
)

// The times of the middle's hands: a lease outlasts requests and what a busy machine takes to renew it, and late
// requests are over before a trial is.
const (
	middleLease   = 2 * time.Second
	middleRequest = 500 * time.Millisecond
	middleLate    = 3 * time.Second
	middleLateBy  = 900 * time.Millisecond
	// loadLease is longer: there are four times as many, and nothing waits for them but the end.
	loadLease = 4 * time.Second
)

// hand is a worker of one role.
type hand struct {
	mortal
	trial  *middle
	place  string
	source *source.Source
	store  stepStore
	topics *kafkatopics.Cluster
	log    *slog.Logger
	closes []func()
}

// enter puts a new hand in a place.
func (m *middle) enter(place string) *hand {
	t := m.t
	t.Helper()
	m.entered++
	h := &hand{trial: m, place: place, mortal: mortal{name: fmt.Sprint(place, "-", m.entered), proxy: newProxy(t, m.server.addr())}}
	h.fate = func(step string) error { return m.befall(h, step) }
	h.log = slog.New(slog.NewTextHandler(&m.log, nil)).With("hand", h.name)
	var err error
	h.topics, err = kafkatopics.New(kafkatopics.Config{Brokers: m.broker.addrs, Partitions: partitions, MaxRecordBytes: 8 << 20})
	require.NoError(t, err)
	h.source, err = source.Open(t.Context(), source.Config{
		URL: h.through(m.sourceURL), MaxConns: 3, MessagePrefix: pipeline.MessagePrefix, SenderTimeout: senderTimeout,
		SpillDir: m.dir, Logger: h.log,
	})
	require.NoError(t, err)
	store, err := state.Open(t.Context(), state.Config{URL: h.through(m.stateURL), MaxConns: 5, BatchTopic: m.cfg.Kafka.Prefix + event.Batches})
	require.NoError(t, err)
	h.store = stepStore{store, &h.mortal}
	role, _, _ := strings.Cut(place, "-")
	run := map[string]func() func(context.Context) error{
		"capture": h.capture, "push": h.push, "expand": h.expand, "relay": h.relay, "load": h.load,
	}[role]()
	h.start(run, h.clear)
	m.hands[place] = h
	m.all = append(m.all, h)
	return h
}

func (h *hand) clear() {
	for _, end := range h.closes {
		end()
	}
	h.store.Close()
	h.source.Close()
	h.topics.Close()
}

// through leads a connection string through the hand's proxy.
func (h *hand) through(to string) string {
	u, err := url.Parse(to)
	require.NoError(h.trial.t, err)
	u.Host = h.proxy.addr()
	return u.String()
}

func (h *hand) lease() pipeline.LeaseConfig {
	return pipeline.LeaseConfig{Owner: h.name, TTL: middleLease}
}

func (h *hand) reader(topic string) stepReader {
	r, err := h.topics.NewReader(h.topics.Topic(topic))
	require.NoError(h.trial.t, err)
	h.closes = append(h.closes, r.Close)
	return stepReader{r, &h.mortal}
}

func (h *hand) capture() func(context.Context) error {
	cfg := pipeline.CaptureConfig{
		Routes: h.trial.cfg.Routes, Prefix: h.trial.cfg.Kafka.Prefix, PositionPartition: kafkatopics.CapturePartition, Database: "shop",
		BatchProducts: 20, BatchRows: 200, SnapshotChunk: 10, SnapshotReaders: 1, Heartbeat: 300 * time.Millisecond, SnapshotRate: -1,
	}
	tables := pipeline.PublishedTables(cfg)
	c := pipeline.NewCapture(cfg, pipeline.CaptureParts{
		Source: h.source,
		Open: func(ctx context.Context) (pipeline.CaptureStream, error) {
			if err := h.source.KeepPublished(ctx, tables); err != nil {
				return nil, err
			}
			return h.source.Stream(ctx, 0)
		},
		Fence: func(ctx context.Context) (pipeline.CaptureProducer, error) {
			return h.topics.OpenProducer(ctx, "capture/"+h.source.Slot())
		},
		Position: func(ctx context.Context, writer string) (event.Position, bool, error) {
			return h.topics.ReadPosition(ctx, kafkatopics.CapturePartition, writer)
		},
		Touch:  func(ctx context.Context, back bool) (int64, error) { return h.store.Touch(ctx, partitions, back) },
		Logger: h.log,
	})
	return c.Run
}

func (h *hand) push() func(context.Context) error {
	m := h.trial
	shops := map[string]shopify.ShopConfig{}
	for name, s := range m.cfg.Shops {
		shops[name] = shopify.ShopConfig{URL: s.URL, Token: func(context.Context) (string, error) { return "simulated", nil }}
	}
	client, err := shopify.New(shopify.Config{
		Shops: shops, Budget: h.store, Holder: h.name, RoundTripper: door{h}, Timeout: middleRequest, Logger: h.log,
	})
	require.NoError(m.t, err)
	guard := work.GuardLimits{Floor: 1_000_000}
	if m.plan.guarded {
		guard = work.GuardLimits{Floor: 4, Share: 0.01}
	}
	src := stepSource{h.source, h}
	p := pipeline.NewPush(pipeline.PushConfig{
		Lease: h.lease(), Prefix: m.cfg.Kafka.Prefix, Partitions: partitions, RequestTimeout: middleRequest, LateRequest: middleLate,
		Debounce: debounce.Wait{Quiet: 40 * time.Millisecond, MaxWait: 250 * time.Millisecond}, NotYetVisible: 300 * time.Millisecond,
		Content: debounce.Wait{Quiet: 120 * time.Millisecond, MaxWait: 600 * time.Millisecond}, ContentTables: []string{"catalog.products", "catalog.images"},
		Drain: 2 * time.Second, Guard: guard, Round: 20, Group: 10, Hot: 60, Flying: 30, FlyingPerShop: 12,
	}, pipeline.PushParts{
		Leases: h.store, Reader: h.reader(event.Changes), Documents: src, State: h.store, Fenced: h.store, Shops: h.store,
		Sender: client, Snapshot: h.source.Snapshot, TellLate: h.store.TellLate, Log: h.log,
	})
	b := pipeline.NewBatches(1, h.lease(), h.store, h.reader(event.Batches), h.store, h.log)
	return func(ctx context.Context) error {
		g, ctx := errgroup.WithContext(ctx)
		for name, run := range map[string]func(context.Context) error{"shops": client.Run, "push": p.Run, "batches": b.Run} {
			g.Go(func() error {
				if err := run(ctx); err != nil && !errors.Is(err, context.Canceled) {
					return fmt.Errorf("%s: %w", name, err)
				}
				return nil
			})
		}
		return g.Wait()
	}
}

func (h *hand) expand() func(context.Context) error {
	e := pipeline.NewExpand(pipeline.ExpandConfig{
		Lease: h.lease(), Prefix: h.trial.cfg.Kafka.Prefix, Partitions: partitions, ChangePartitions: partitions, Routes: h.trial.cfg.Routes, Page: 5,
	}, h.store, h.reader(event.Fanouts), stepSource{h.source, h}, h.store, h.log)
	return e.Run
}

func (h *hand) relay() func(context.Context) error {
	r := pipeline.NewRelay(pipeline.RelayConfig{Limit: 20, Standby: 200 * time.Millisecond, Idle: 50 * time.Millisecond}, pipeline.RelayKafka{
		Open: func(ctx context.Context) (pipeline.RelayProducer, func(), error) {
			p, err := ask(&h.mortal, "open producer", func() (*kafkatopics.Producer, error) { return h.topics.OpenProducer(ctx, pipeline.RelayWriter) })
			if err != nil {
				return nil, nil, err
			}
			s := stepProducer{p, &h.mortal}
			return s, p.Close, nil
		},
		Position: func(ctx context.Context) (p event.Position, ok bool, err error) {
			err = do(&h.mortal, "position", func() (err error) {
				p, ok, err = h.topics.ReadPosition(ctx, kafkatopics.RelayPartition, pipeline.RelayWriter)
				return err
			})
			return p, ok, err
		},
		Owner: func(ctx context.Context) (event.Position, bool, error) {
			return h.topics.LastPosition(ctx, kafkatopics.RelayPartition, pipeline.RelayWriter)
		},
		Topic: h.topics.Topic(event.Positions), Partition: kafkatopics.RelayPartition, DeadLetters: h.topics.Topic(event.DeadLetters),
	}, h.store, h.store, h.log)
	return r.Run
}

func (h *hand) load() func(context.Context) error {
	c, err := clickhouse.ParseURL(h.trial.clickhouseURL)
	require.NoError(h.trial.t, err)
	db, err := clickhouse.Open(c)
	require.NoError(h.trial.t, err)
	h.closes = append(h.closes, func() { _ = db.Close() })
	var topics []pipeline.LoadTopic
	for _, kind := range clickhouse.Topics() {
		name := h.topics.Topic(kind)
		topics = append(topics, pipeline.LoadTopic{Kind: kind, Name: name, Partitions: topicPartitions(kind), Open: func() (pipeline.LoadReader, error) {
			r, err := h.topics.NewReader(name)
			return stepReader{r, &h.mortal}, err
		}})
	}
	lease := pipeline.LeaseConfig{Owner: h.name, TTL: loadLease}
	l := pipeline.NewLoad(pipeline.LoadConfig{Lease: lease, MaxRows: 50, Linger: 50 * time.Millisecond}, topics, h.store, h.store, h.topics,
		stepTables{db, &h.mortal}, h.log)
	return l.Run
}
