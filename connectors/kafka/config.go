// Package kafka reads and writes the topics: a transactional producer that fences its predecessor, readers by explicit
// partition, bounded scans, and topics that are created on purpose.
//
// Non-obvious, and each once a bug somewhere:
//
//   - There is no consumer group. The leases in the state assign partitions; a group is only written to, so that lag
//     tools have something to show.
//   - Whatever goes wrong inside a transaction is final for its [Producer]: franz-go can go on after some of these
//     errors, but only with a new epoch and without knowing what became of the last commit. We open a new producer
//     instead and ask the topic.
//   - A read to the end of a partition cannot wait for "the last record": behind it stand transaction markers, aborted
//     records and what compaction has removed, none of which are delivered. [Cluster.Scan] therefore fetches by itself
//     and watches the offset that the broker has answered up to.
package kafka

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

// Config says how to reach a cluster and how our topics look there. The zero value of every field but Brokers is
// usable.
type Config struct {
	// Brokers are the seed addresses, host:port.
	Brokers []string
	// Prefix stands before every topic name. Default "catalog.".
	Prefix string
	// Partitions is the partition count of all topics that are partitioned by product. Default 8. It bounds how many
	// workers can share the work, and can never be changed for an existing topic: the place of a product would move,
	// and its order with it.
	Partitions int32
	// Mirrors are the full names of further topics, for rows as another program writes them. They have as many
	// partitions; how long they keep what is their readers' affair, and their cleanup.policy is not looked at. Default: none.
	Mirrors []string
	// Replication is the replication factor of created topics. Default -1: the broker's own default.
	Replication int16
	// MaxRecordBytes bounds one record, key, value and headers together, before compression. Default 8 MiB. It is set
	// as max.message.bytes of the topics that carry rows; of larger rows the widest values are left out.
	MaxRecordBytes int32
	// TransactionTimeout is after what time the broker aborts a transaction whose producer went silent. Default 30 s.
	// Until then readers of committed records wait behind it; shorter than a broker's restart, it fences a healthy
	// producer.
	TransactionTimeout time.Duration
	// Compression of what is produced: none, gzip, snappy, lz4 or zstd. Default snappy, which costs about half a µs of processor
	// time for each row; none is for brokers whose disks and network are not the limit.
	Compression string
	// ClientID is shown in the broker's logs and quotas. Default "shelfwire".
	ClientID string
	// TLS is used for every connection when it is set.
	TLS *tls.Config
	// SASL logs in with a name and a password when User is set.
	SASL SASL
	// Logger gets what the client library warns about. Nil discards it.
	Logger *slog.Logger
}

// SASL holds credentials.
type SASL struct {
	// Mechanism is PLAIN (the default), SCRAM-SHA-256 or SCRAM-SHA-512.
	Mechanism string
	User      string
	Password  string
}

// Cluster is a Kafka cluster with our topics. Its methods may be called concurrently.
type Cluster struct {
	cfg Config
	cl  *kgo.Client
	adm *kadm.Client
	// contact is what all clients have learned of the brokers.
	contact contact
}

// New prepares access to a cluster. It does not connect; [Cluster.Ping] does.
func New(cfg Config) (*Cluster, error) {
	if len(cfg.Brokers) == 0 {
		return nil, errors.New("kafka: no brokers are configured")
	}
	cfg.Prefix = cmp.Or(cfg.Prefix, "catalog.")
	cfg.Partitions = cmp.Or(cfg.Partitions, 8)
	cfg.Replication = cmp.Or(cfg.Replication, -1)
	cfg.MaxRecordBytes = cmp.Or(cfg.MaxRecordBytes, 8<<20)
	cfg.TransactionTimeout = cmp.Or(cfg.TransactionTimeout, 30*time.Second)
	cfg.Compression = cmp.Or(cfg.Compression, "snappy")
	if compressions[cfg.Compression] == nil {
		return nil, fmt.Errorf("kafka: compression %q is unknown: want one of %s", cfg.Compression, strings.Join(slices.Sorted(maps.Keys(compressions)), ", "))
	}
	cfg.ClientID = cmp.Or(cfg.ClientID, "shelfwire")
	c := &Cluster{cfg: cfg}
	cl, err := c.client()
	if err != nil {
		return nil, err
	}
	c.cl, c.adm = cl, kadm.NewClient(cl)
	return c, nil
}

// Close ends the connections of the cluster. Producers and readers have their own.
func (c *Cluster) Close() { c.cl.Close() }

var compressions = map[string]func() kgo.CompressionCodec{
	"none": kgo.NoCompression, "gzip": kgo.GzipCompression, "snappy": kgo.SnappyCompression, "lz4": kgo.Lz4Compression, "zstd": kgo.ZstdCompression,
}

// Ping asks a broker for anything at all.
func (c *Cluster) Ping(ctx context.Context) error {
	if err := c.cl.Ping(ctx); err != nil {
		return fmt.Errorf("reach Kafka at %v: %w", c.cfg.Brokers, err)
	}
	return nil
}

// Topic is the full name of one of the topics in package event.
func (c *Cluster) Topic(name string) string { return c.cfg.Prefix + name }

// Partitions is the partition count of the topics that are partitioned by product.
func (c *Cluster) Partitions() int32 { return c.cfg.Partitions }

// client makes a client of the library with what all our clients have in common.
func (c *Cluster) client(more ...kgo.Opt) (*kgo.Client, error) {
	opts := []kgo.Opt{
		kgo.SeedBrokers(c.cfg.Brokers...),
		kgo.ClientID(c.cfg.ClientID),
		// A leader that moved is found as soon as an answer says so, not seconds later.
		kgo.MetadataMinAge(250 * time.Millisecond),
		kgo.WithHooks(&c.contact),
	}
	if c.cfg.Logger != nil {
		opts = append(opts, kgo.WithLogger(&logAdapter{log: c.cfg.Logger, last: map[string]*logEvent{}}))
	}
	if c.cfg.TLS != nil {
		opts = append(opts, kgo.DialTLSConfig(c.cfg.TLS))
	}
	if c.cfg.SASL.User != "" {
		m, err := c.cfg.SASL.mechanism()
		if err != nil {
			return nil, err
		}
		opts = append(opts, kgo.SASL(m))
	}
	cl, err := kgo.NewClient(slices.Concat(opts, more)...)
	if err != nil {
		return nil, fmt.Errorf("kafka: %w", err)
	}
	return cl, nil
}

func (s SASL) mechanism() (sasl.Mechanism, error) {
	switch s.Mechanism {
	case "", "PLAIN":
		return plain.Auth{User: s.User, Pass: s.Password}.AsMechanism(), nil
	case "SCRAM-SHA-256":
		return scram.Auth{User: s.User, Pass: s.Password}.AsSha256Mechanism(), nil
	case "SCRAM-SHA-512":
		return scram.Auth{User: s.User, Pass: s.Password}.AsSha512Mechanism(), nil
	}
	return nil, fmt.Errorf("kafka: SASL mechanism %q is unknown: want PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512", s.Mechanism)
}

// logAdapter passes on what the client library finds worth a warning. Its lower levels describe every request. While a
// broker is away the library says the same of every attempt: of equal events one is passed on in logEvery.
type logAdapter struct {
	log  *slog.Logger
	mu   sync.Mutex
	last map[string]*logEvent
}

// logEvent is one kind of event: when it was last passed on, and how often it has come since.
type logEvent struct {
	at  time.Time
	new int
}

const logEvery = 30 * time.Second

func (*logAdapter) Level() kgo.LogLevel { return kgo.LogLevelWarn }

func (a *logAdapter) Log(level kgo.LogLevel, msg string, keyvals ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	e, now := a.last[msg], time.Now()
	if e == nil {
		e = &logEvent{}
		a.last[msg] = e
	}
	if e.new++; now.Sub(e.at) < logEvery {
		return
	}
	l := slog.LevelWarn
	if level == kgo.LogLevelError {
		l = slog.LevelError
	}
	a.log.Log(context.Background(), l, "kafka client", append([]any{slog.String("event", msg), slog.Int("times", e.new)}, keyvals...)...)
	e.at, e.new = now, 0
}
