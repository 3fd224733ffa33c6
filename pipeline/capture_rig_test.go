package pipeline_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/connectors/kafka"
	"github.com/shelfwire/shelfwire/connectors/postgres"
	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/pipeline"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/route"
)

// captureRig is a source database, a broker, and captures that run over them one after the other.
type captureRig struct {
	t   *testing.T
	url string
	db  *pgx.Conn
	kc  *kafka.Cluster
	cfg pipeline.CaptureConfig
	// faults decides what goes wrong at the producer; nil: nothing.
	faults        func(call string) error
	senderTimeout time.Duration // zero: the default
	// touch is CaptureParts.Touch. slotName is for servers that are not shared.
	touch    func(ctx context.Context, back bool) (int64, error)
	slotName string
	// emit stands for Source.EmitMessage; nil: that itself.
	emit func(prefix string, content []byte) (change.LSN, error)
	// renew stands for Source.RenewSlot; nil: that itself.
	renew func(ctx context.Context, src *postgres.Source) error
	// published: the test has made the publication.
	published bool
	// runs counts the captures so far, streamed the transactions that each took before their commit.
	runs     int
	streamed []*atomic.Int64
}

var captureRoutes = []route.Route{
	{Table: "public.products", Key: "id", Batch: true, BatchWhen: []string{"approved"}, Admin: "approved_by"},
	{Table: "public.variants", Key: "product_id"},
	{Table: "public.stock", Parent: &route.Parent{Column: "variant_id", Table: "public.variants", ID: "id", Key: "product_id"}},
	{Table: "public.categories", Query: "SELECT id FROM products"},
}

func newCaptureRig(t *testing.T) *captureRig {
	t.Helper()
	return newCaptureRigOn(t, embeddedtest.NewDatabase(t, embeddedtest.Postgres(t)))
}

// newCaptureRigOn makes the tables in a database.
func newCaptureRigOn(t *testing.T, url string) *captureRig {
	t.Helper()
	r := &captureRig{t: t, cfg: pipeline.CaptureConfig{
		Routes: captureRoutes, TxEvery: time.Millisecond, IdleEvery: 50 * time.Millisecond, SnapshotRate: -1,
	}}
	r.connect(url)
	r.exec(captureTables)
	r.kc = newCaptureTopics(t)
	return r
}

// connect has the rig use another database from now on.
func (r *captureRig) connect(url string) {
	r.t.Helper()
	db, err := pgx.Connect(r.t.Context(), url)
	require.NoError(r.t, err)
	r.t.Cleanup(func() { _ = db.Close(context.Background()) })
	r.url, r.db = url, db
}

// newCaptureTopics makes topics that nobody else uses.
func newCaptureTopics(t *testing.T) *kafka.Cluster {
	t.Helper()
	b := embeddedtest.Kafka(t)
	kc, err := kafka.New(kafka.Config{Brokers: []string{b.Addr()}, Prefix: b.Prefix(), Partitions: 4})
	require.NoError(t, err)
	t.Cleanup(kc.Close)
	require.NoError(t, kc.EnsureTopics(t.Context()))
	return kc
}

const captureTables = `
		CREATE TABLE products (id text PRIMARY KEY, title text, price numeric, approved bool, approved_by text);
		CREATE TABLE variants (id bigint PRIMARY KEY, product_id text, sku text);
		CREATE TABLE stock (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, variant_id bigint REFERENCES variants ON DELETE CASCADE, qty int);
		CREATE TABLE categories (id int PRIMARY KEY, name text);
		CREATE TABLE unrouted (id int);
		ALTER TABLE products REPLICA IDENTITY FULL; ALTER TABLE variants REPLICA IDENTITY FULL;
		ALTER TABLE stock REPLICA IDENTITY FULL; ALTER TABLE categories REPLICA IDENTITY FULL`

func (r *captureRig) exec(sql string, args ...any) {
	r.t.Helper()
	_, err := r.db.Exec(r.t.Context(), sql, args...)
	require.NoError(r.t, err)
}

// start runs a capture until the returned function is called, which gives what Run returned.
func (r *captureRig) start() (*pipeline.Capture, func() error) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c, done := r.run(ctx)
	stop := sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	r.t.Cleanup(func() { _ = stop() })
	return c, stop
}

// giveUp runs a capture that never becomes active, and returns why it ended by itself.
func (r *captureRig) giveUp() error {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	c, done := r.run(ctx)
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for {
		select {
		case err := <-done:
			require.NoError(r.t, ctx.Err(), "it waits")
			return err
		case <-look.C:
			require.False(r.t, c.Stats().Active.Load())
		}
	}
}

// run starts a capture. What Run returns comes over the channel, once the source is closed.
func (r *captureRig) run(ctx context.Context) (*pipeline.Capture, <-chan error) {
	r.t.Helper()
	r.runs++
	cfg := postgres.Config{
		URL: r.url, Slot: r.slot(), MessagePrefix: pipeline.MessagePrefix, OtherMessages: r.cfg.Mirror.On, SenderTimeout: r.senderTimeout,
	}
	if r.runs%3 != 0 { // two of three runs take transactions before their commit, the third after it
		cfg.DecodingMemory = "64kB"
	} else {
		cfg.SpillLimit = -1
	}
	r.cfg.Prefix = r.kc.Topic("")
	src, err := postgres.Open(r.t.Context(), cfg)
	require.NoError(r.t, err)
	r.streamed = append(r.streamed, &src.SpillStats().Transactions)
	c := pipeline.NewCapture(r.cfg, pipeline.CaptureParts{
		Source: &riggedSource{src, r.emit, r.renew},
		Open: func(ctx context.Context) (pipeline.CaptureStream, error) {
			if !r.published {
				if err := src.KeepPublished(ctx, pipeline.PublishedTables(r.cfg)); err != nil {
					return nil, err
				}
			}
			return src.Stream(ctx, 0)
		},
		Fence: func(ctx context.Context) (pipeline.CaptureProducer, error) {
			if r.faults != nil {
				if err := r.faults("fence"); err != nil {
					return (*kafka.Producer)(nil), err
				}
			}
			p, err := r.kc.OpenProducer(ctx, "capture/"+r.slot())
			if err != nil {
				return nil, err
			}
			return &faultyProducer{p, r}, nil
		},
		Position: func(ctx context.Context, writer string) (event.Position, bool, error) {
			return r.kc.ReadPosition(ctx, kafka.CapturePartition, writer)
		},
		Touch:  r.touch,
		Logger: slog.New(slog.NewTextHandler(r.t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	done := make(chan error, 1)
	go func() {
		err := c.Run(ctx)
		if err != nil {
			r.t.Logf("capture has ended: %v", err)
		}
		src.Close()
		done <- err
	}()
	return c, done
}

// riggedSource writes messages and makes slots as the test says.
type riggedSource struct {
	*postgres.Source
	emit  func(prefix string, content []byte) (change.LSN, error)
	renew func(ctx context.Context, src *postgres.Source) error
}

func (s *riggedSource) RenewSlot(ctx context.Context) error {
	if s.renew == nil {
		return s.Source.RenewSlot(ctx)
	}
	return s.renew(ctx, s.Source)
}

func (s *riggedSource) EmitMessage(ctx context.Context, prefix string, content []byte) (change.LSN, error) {
	if s.emit == nil {
		return s.Source.EmitMessage(ctx, prefix, content)
	}
	return s.emit(prefix, content)
}

// slot is unique in the server, which tests share.
func (r *captureRig) slot() string {
	if r.slotName != "" {
		return r.slotName
	}
	at := strings.LastIndex(r.url, "/test_")
	name, _, _ := strings.Cut(r.url[at+6:], "?")
	return "s_" + name
}

// wait returns when everything that is committed now is in Kafka, a running snapshot included.
func (r *captureRig) wait(c *pipeline.Capture) {
	r.t.Helper()
	var lsn string
	require.NoError(r.t, r.db.QueryRow(r.t.Context(), "SELECT pg_current_wal_insert_lsn()::text").Scan(&lsn))
	end, err := change.ParseLSN(lsn)
	require.NoError(r.t, err)
	// WAL that concerns nobody here, so that a keepalive passes the mark.
	r.exec("INSERT INTO unrouted VALUES (1)")
	const patience = 3 * time.Minute // of a machine that does much else
	stacks := time.AfterFunc(patience-time.Second, func() {
		snapshots, _ := json.Marshal(c.Stats().Snapshots.Load())
		r.t.Logf("capture is at %s, snapshots %s, goroutines:", change.LSN(c.Stats().Confirmed.Load()), snapshots)
		_ = pprof.Lookup("goroutine").WriteTo(r.t.Output(), 1)
	})
	defer stacks.Stop()
	require.Eventually(r.t, func() bool {
		return change.LSN(c.Stats().Confirmed.Load()) >= end && !c.Stats().Snapshotting.Load()
	}, patience, 2*time.Millisecond, "capture has not come to %s", end)
}

// records reads a whole topic, partition by partition.
func (r *captureRig) records(topic string) []event.Record {
	r.t.Helper()
	topic = r.kc.Topic(topic)
	require.NoError(r.t, embeddedtest.Settle(r.t.Context(), topic))
	ends, err := r.kc.EndOffsets(r.t.Context(), topic)
	require.NoError(r.t, err)
	var out []event.Record
	for p := range int32(len(ends)) {
		_, err := r.kc.Scan(r.t.Context(), topic, p, 0, ends[p], func(rec event.Record) bool {
			out = append(out, rec)
			return true
		})
		require.NoError(r.t, err)
	}
	return out
}

// faultyProducer fails where the rig says, before or after it has done what it was asked.
type faultyProducer struct {
	pipeline.CaptureProducer
	r *captureRig
}

func (p *faultyProducer) fault(call string) error {
	if p.r.faults == nil {
		return nil
	}
	return p.r.faults(call)
}

func (p *faultyProducer) ProduceMarked(group int64, records ...event.Record) error {
	if err := p.fault("produce"); err != nil {
		return err
	}
	return p.CaptureProducer.ProduceMarked(group, records...)
}

func (p *faultyProducer) Flush(ctx context.Context) error {
	if err := p.fault("flush"); err != nil {
		return err
	}
	return p.CaptureProducer.Flush(ctx)
}

func (p *faultyProducer) Commit(ctx context.Context) error {
	if err := p.fault("before commit"); err != nil {
		return err
	}
	if err := p.CaptureProducer.Commit(ctx); err != nil {
		return err
	}
	return p.fault("after commit")
}

// Abort leaves the transaction open as a killed process would.
func (p *faultyProducer) Abort(ctx context.Context) error {
	if p.r.faults != nil {
		return nil
	}
	return p.CaptureProducer.Abort(ctx)
}

func header(rec *event.Record, key string) string {
	v, _ := rec.Header(key)
	return v
}

// brief writes records as "table op key" in the order of their positions.
func brief(recs []event.Record) []string {
	slices.SortStableFunc(recs, func(a, b event.Record) int {
		pa, _ := change.ParsePosition(header(&a, event.HeaderPosition))
		pb, _ := change.ParsePosition(header(&b, event.HeaderPosition))
		return pa.Compare(pb)
	})
	var out []string
	for _, rec := range recs {
		out = append(out, strings.TrimPrefix(header(&rec, event.HeaderTable), "public.")+" "+header(&rec, event.HeaderOp)+" "+string(rec.Key))
	}
	return out
}
