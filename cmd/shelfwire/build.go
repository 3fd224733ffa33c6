package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/config"
	"github.com/shelfwire/shelfwire/connectors/kafka"
	"github.com/shelfwire/shelfwire/pipeline"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
	"github.com/shelfwire/shelfwire/sinks/clickhouse"
	"github.com/shelfwire/shelfwire/sinks/shopify"
	"github.com/shelfwire/shelfwire/sinks/shopify/budget"
)

// The largest record, key, value and headers together, that the topics take, and what the stages may put into one: the
// rest is for what surrounds a record.
const (
	maxRecordBytes = 8 << 20
	maxRowBytes    = maxRecordBytes - 4<<10
)

// kafkaConfig is how the configuration reaches Kafka.
func kafkaConfig(cfg *config.Config, log *slog.Logger) kafka.Config {
	c := cfg.Kafka
	kc := kafka.Config{
		Brokers: c.Brokers, Prefix: c.Prefix, Partitions: int32(c.Partitions), Replication: int16(c.Replication),
		MaxRecordBytes: maxRecordBytes, Compression: c.Compression, Logger: log,
	}
	kc.Mirrors, _ = cfg.MirrorTopics() // checked with the configuration
	if c.TLS {
		kc.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if c.Username != "" {
		kc.SASL = kafka.SASL{Mechanism: "SCRAM-SHA-512", User: c.Username, Password: c.Password.Reveal()}
	}
	return kc
}

func (a *app) buildCapture(context.Context) error {
	database, err := databaseName(a.cfg.Source.URL)
	if err != nil {
		return err
	}
	cfg := pipeline.CaptureConfig{
		Routes: a.cfg.Routes, Prefix: a.cfg.Kafka.Prefix, PositionPartition: kafka.CapturePartition,
		Version: version(), Database: database, MaxRecordBytes: maxRowBytes,
		BatchProducts: a.cfg.Batches.Products, BatchRows: a.cfg.Batches.Rows,
		Restart: a.options.restartCapture, SnapshotChunk: a.cfg.Source.SnapshotChunk,
		SnapshotReaders: a.cfg.Source.SnapshotReaders, SnapshotRate: a.cfg.Source.SnapshotRate, Heartbeat: a.cfg.Source.Heartbeat,
		NoHeal: a.options.noHeal || a.cfg.Source.Heal.Off, HealMost: a.cfg.Source.Heal.Most,
		AcceptSource: true, // the state has refused another cluster unless it was told to take it
	}
	if cfg.Mirror = a.mirror(); cfg.Mirror.On {
		cfg.Name = a.cfg.Mirror.Prefix
	}
	tables := pipeline.PublishedTables(cfg)
	a.capture = pipeline.NewCapture(cfg, pipeline.CaptureParts{
		Source: a.source,
		Open: func(ctx context.Context) (pipeline.CaptureStream, error) {
			// The publication must exist before the slot: it is looked up in the catalog of the WAL's own time.
			if err := a.source.KeepPublished(ctx, tables); err != nil {
				return nil, err
			}
			// From wherever the slot stands: a predecessor may still confirm while it ends.
			return a.source.Stream(ctx, 0)
		},
		Fence: func(ctx context.Context) (pipeline.CaptureProducer, error) {
			return a.cluster.OpenProducer(ctx, "capture/"+a.cfg.Source.Slot)
		},
		Position: func(ctx context.Context, writer string) (event.Position, bool, error) {
			return a.cluster.ReadPosition(ctx, kafka.CapturePartition, writer)
		},
		Touch: func(ctx context.Context, back bool) (int64, error) {
			return a.state.Touch(ctx, a.cluster.Partitions(), back)
		},
		Largest: a.source.SpillStats().Largest.Load,
		Logger:  a.log,
	})
	s := a.capture.Stats()
	a.slot = &slotWatch{source: a.source, limit: int64(a.cfg.Source.WALAlertMB) << 20, log: a.log.With("stage", "slot")}
	a.slot.metrics(a.metrics, s, a.source.SpillStats())
	a.metrics.snapshots(s)
	a.metrics.counter("capture_transactions_total", "Transactions of the source that passed the routes.", s.Transactions.Load)
	a.metrics.counter("capture_rows_total", "Rows that passed the routes.", s.Rows.Load)
	a.metrics.counter("capture_records_total", "Records written to catalog.changes.", s.Records.Load)
	a.metrics.counter("capture_batches_total", "Batches announced.", s.Batches.Load)
	a.metrics.counter("capture_deadletters_total", "Rows that could not be processed.", s.DeadLetters.Load)
	a.metrics.counter("capture_kafka_transactions_total", "Kafka transactions committed.", s.KafkaTransactions.Load)
	return nil
}

// captureTables are those that should be published.
func (a *app) captureTables() []string {
	return pipeline.PublishedTables(pipeline.CaptureConfig{Routes: a.cfg.Routes, Mirror: a.mirror()})
}

// mirror is what is mirrored; the zero value where nothing is.
func (a *app) mirror() pipeline.MirrorConfig {
	if m := a.cfg.Mirror; m.On {
		return pipeline.MirrorConfig{On: true, Tables: m.Tables}
	}
	return pipeline.MirrorConfig{}
}

func (a *app) buildRelay() {
	a.relay = pipeline.NewRelay(pipeline.RelayConfig{AcceptTopics: a.options.acceptTopics}, pipeline.RelayKafka{
		Open: func(ctx context.Context) (pipeline.RelayProducer, func(), error) {
			p, err := a.cluster.OpenProducer(ctx, pipeline.RelayWriter)
			if err != nil {
				return nil, nil, err
			}
			return p, p.Close, nil
		},
		Position: func(ctx context.Context) (event.Position, bool, error) {
			return a.cluster.ReadPosition(ctx, kafka.RelayPartition, pipeline.RelayWriter)
		},
		Owner: func(ctx context.Context) (event.Position, bool, error) { return topicsOwner(ctx, a.cluster) },
		Topic: a.cluster.Topic(event.Positions), Partition: kafka.RelayPartition,
		DeadLetters: a.cluster.Topic(event.DeadLetters), MaxRecordBytes: maxRowBytes,
	}, a.state, a.state, a.log)
	a.metrics.MustRegister(newStateGauges(a.state, a.relay.Active.Load))
	a.metrics.counter("relay_sent_total", "Outbox rows sent to Kafka.", a.relay.Sent.Load)
	a.metrics.waiting("relay", "", func() bool { return a.relay.Waiting() != "" })
}

// databaseName is the database that a connection string leads to; without a name it is the user's.
func databaseName(url config.Secret) (string, error) {
	c, err := pgconn.ParseConfig(url.Reveal())
	if err != nil {
		return "", fmt.Errorf("source database: %w", err)
	}
	return cmp.Or(c.Database, c.User), nil
}

func (a *app) openShops(budget budget.Store) (err error) {
	shops := map[string]shopify.ShopConfig{}
	for name, s := range a.cfg.Shops {
		token := s.Token.Reveal()
		shops[name] = shopify.ShopConfig{
			URL: s.URL, Token: func(context.Context) (string, error) { return token, nil },
		}
	}
	a.shops, err = shopify.New(shopify.Config{
		Shops: shops, Budget: budget, Holder: a.owner, Timeout: a.requestTimeout(), StaleWait: a.cfg.Push.StaleWait, Logger: a.log,
	})
	return err
}

// checkKafka reaches the brokers without creating topics.
func (a *app) checkKafka(ctx context.Context) error {
	c, err := kafka.New(kafkaConfig(a.cfg, nil))
	if err != nil {
		return err
	}
	defer c.Close()
	if err := attempt(ctx, c.Ping); err != nil {
		return err
	}
	// A topic that is not there yet is made by the first run.
	topic := c.Topic(event.Changes)
	if ends, err := c.EndOffsets(ctx, topic); err == nil && len(ends) != int(c.Partitions()) {
		return &kafka.TopicError{Topic: topic, Have: int32(len(ends)), Want: c.Partitions()}
	}
	return nil
}

// soloBudget is a rate budget of this process alone, for the few points of a check that comes before the first run.
type soloBudget struct {
	mu      sync.Mutex
	buckets map[string]work.Bucket
}

// UpdateBucket changes a bucket by the process's own clock.
func (s *soloBudget) UpdateBucket(_ context.Context, shop string, f func(now time.Time, b *work.Bucket)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.buckets == nil {
		s.buckets = map[string]work.Bucket{}
	}
	b := s.buckets[shop]
	f(time.Now(), &b)
	s.buckets[shop] = b
	return nil
}

// checkTables reaches ClickHouse without changing it. A database that is missing is made by the first run.
func (a *app) checkTables(ctx context.Context) error {
	const unknownDatabase = 81
	if err := a.openTables(ctx); err != nil || a.tables == nil {
		return err
	}
	err := attempt(ctx, a.tables.Ping)
	var answer *clickhouse.ServerError
	if errors.As(err, &answer) && answer.Code == unknownDatabase {
		return nil
	}
	return err
}
