package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	chgo "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/jackc/pgx/v5"

	"github.com/shelfwire/shelfwire/deploy/embedded"
	engine "github.com/shelfwire/shelfwire/deploy/embedded/clickhouse"
	"github.com/shelfwire/shelfwire/pipeline"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
	"github.com/shelfwire/shelfwire/sinks/clickhouse"
)

// loadRig is a topic of outcomes, and the engine that they go to.
type loadRig struct {
	*middleRig
	engine   *engine.Server
	outcomes []event.Outcome
	rounds   int
}

// loadBlock is how many rows go into one INSERT of either side: Load's own default.
const loadBlock = 4000

// measureLoad holds the way of outcomes from Kafka into ClickHouse, exactly once by Load, against inserts of the same rows
// from memory by the driver alone.
func measureLoad(ctx context.Context, b *bench) ([]figure, error) {
	r, err := newLoadRig(ctx, b)
	defer r.close()
	if err != nil {
		return nil, err
	}
	rounds := b.few(5, 1)
	var ratios, loads, plains []float64
	for range rounds {
		plain, err := r.plain(ctx)
		if err != nil {
			return nil, fmt.Errorf("plain inserts: %w", err)
		}
		load, err := r.load(ctx)
		if err != nil {
			return nil, fmt.Errorf("load: %w", err)
		}
		b.say("load: %.0f rows/s, plain inserts %.0f rows/s", load, plain)
		ratios, loads, plains = append(ratios, load/plain), append(loads, load), append(plains, plain)
	}
	how := fmt.Sprintf("medians of %d rounds by turns, %d outcomes of about %d bytes of JSON in %d partitions, blocks of %d rows for both; Load reads "+
		"them from a broker (kfake) in a process of its own, decodes them, inserts them with tokens into its own table, which the "+
		"server syncs to disk, and saves its position in PostgreSQL after each block; counted from the first acknowledged block to the last, "+
		"and then compared: as many rows as records; %.0f rows/s. Plain: clickhouse-go appends the same values from memory, nothing to decode, "+
		"to a MergeTree with the same columns, codecs and indexes, without tokens, syncing or a position; %.0f rows/s",
		rounds, len(r.outcomes), r.bytes()/len(r.outcomes), middlePartitions, loadBlock, medianOf(loads), medianOf(plains))
	return []figure{atLeast("outcomes into ClickHouse, exactly once ÷ plain inserts", medianOf(ratios), "ratio", 0.5, how)}, nil
}

func newLoadRig(ctx context.Context, b *bench) (*loadRig, error) {
	m, err := newMiddleRig(ctx, b)
	r := &loadRig{middleRig: m}
	if err != nil {
		return r, err
	}
	s, err := embedded.NewScratch(ctx, "shelfwire", "bench")
	if err != nil {
		return r, err
	}
	r.stops = append(r.stops, func() { _ = s.Remove() })
	if r.engine, err = engine.Start(ctx, engine.Config{Dir: filepath.Join(s.Path, "clickhouse")}); err != nil {
		return r, err
	}
	r.stops = append(r.stops, func() { r.engine.Kill() })
	n := b.few(100_000, 12_000)
	now := time.Now().UTC().Truncate(time.Millisecond)
	for i := range n {
		r.outcomes = append(r.outcomes, benchOutcome(i, now.Add(time.Duration(i-n)*time.Millisecond)))
	}
	b.say("load: %d outcomes", n)
	return r, r.publish(ctx)
}

// benchOutcome is the outcome of a push of a few variants, as most are.
func benchOutcome(i int, at time.Time) event.Outcome {
	product := fmt.Sprint(100_000 + i%20_000)
	gid := func(n int) string { return fmt.Sprintf("gid://shopify/ProductVariant/%d", 48_000_000_000+i*7+n) }
	o := event.Outcome{
		ID: fmt.Sprintf("0198f3c2-6f4b-7c1d-9e2a-%012d", i), ProductID: product, Shop: []string{"north", "south", "west"}[i%3], Status: event.Success,
		ShopifyID: "gid://shopify/Product/9" + product, VariantIDs: []string{gid(0), gid(1)}, Lane: "live_stock", Attempt: 1,
		Plan: "update price of 2 variants", PointsRequested: 12, PointsActual: 10, Changes: 1 + i%4, FirstCommit: at, LastCommit: at.Add(3 * time.Millisecond),
		CapturedAt: at.Add(9 * time.Millisecond), DueAt: at.Add(509 * time.Millisecond), ReadAt: at.Add(514 * time.Millisecond),
		SentAt: at.Add(518 * time.Millisecond), AnsweredAt: at.Add(650 * time.Millisecond), SettledAt: at.Add(656 * time.Millisecond),
		DocumentHash: fmt.Sprintf("%016x", uint64(i)*0x9e3779b97f4a7c15),
		Sent: fmt.Sprintf(`{"productId":"gid://shopify/Product/9%s","variants":[{"id":"%s","price":"%d.50"},{"id":"%s","price":"%d.75"}]}`,
			product, gid(0), i%90+1, gid(1), i%90+2),
	}
	if i%25 == 0 {
		o.Status, o.Category, o.Message, o.Field = event.Failed, event.Validation, "Title can't be blank", "input.title"
	}
	return o
}

func (r *loadRig) bytes() (n int) {
	for i := range r.outcomes[:min(1000, len(r.outcomes))] {
		b, _ := json.Marshal(&r.outcomes[i]) // it was written before
		n += len(b)
	}
	return n * len(r.outcomes) / min(1000, len(r.outcomes))
}

// publish writes the topic.
func (r *loadRig) publish(ctx context.Context) error {
	p, err := r.cluster.OpenProducer(ctx, "bench-load")
	if err != nil {
		return err
	}
	defer p.Close()
	for some := range slices.Chunk(r.outcomes, 5000) {
		if err := p.Begin(); err != nil {
			return err
		}
		for i := range some {
			value, err := json.Marshal(&some[i])
			if err != nil {
				return err
			}
			if err := p.Produce(event.Record{
				Topic: r.cluster.Topic(event.Outcomes), Partition: -1, Key: []byte(some[i].ProductID), Timestamp: some[i].SettledAt, Value: value,
			}); err != nil {
				return err
			}
		}
		if err := p.Commit(ctx); err != nil {
			return err
		}
	}
	return nil
}

// load loads the whole topic into a database that is empty, and returns rows a second.
func (r *loadRig) load(ctx context.Context) (rate float64, err error) {
	r.rounds++
	cfg, err := clickhouse.ParseURL(r.engine.URL(fmt.Sprintf("load_%d", r.rounds)))
	if err != nil {
		return 0, err
	}
	db, err := clickhouse.Open(cfg)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := db.Migrate(ctx); err != nil {
		return 0, err
	}
	if err := r.forget(ctx); err != nil {
		return 0, err
	}
	name := r.cluster.Topic(event.Outcomes)
	topics := []pipeline.LoadTopic{{Kind: event.Outcomes, Name: name, Partitions: middlePartitions, Open: func() (pipeline.LoadReader, error) {
		return r.cluster.NewReader(name)
	}}}
	l := pipeline.NewLoad(pipeline.LoadConfig{Lease: pipeline.LeaseConfig{Owner: fmt.Sprint("bench", r.rounds)}, MaxRows: loadBlock},
		topics, r.store, r.store, r.cluster, db, r.b.log)
	runCtx, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- l.Run(runCtx) }()
	var first, last time.Time
	var before int64
	err = poll(ctx, time.Millisecond, func(context.Context) (bool, error) {
		n := l.Rows.Load()
		if n > 0 && first.IsZero() {
			first, before = time.Now(), n
		}
		last = time.Now()
		return n >= int64(len(r.outcomes)), nil
	})
	stop()
	if err = errors.Join(err, <-ended); err != nil {
		return 0, err
	}
	rows, err := r.count(ctx, fmt.Sprintf("load_%d.outcomes", r.rounds))
	if err == nil && rows != uint64(len(r.outcomes)) {
		err = fmt.Errorf("the view outcomes has %d rows of %d records", rows, len(r.outcomes))
	}
	return float64(int64(len(r.outcomes))-before) / last.Sub(first).Seconds(), errors.Join(err, r.drop(ctx, fmt.Sprintf("load_%d", r.rounds)))
}

// forget has the next loader begin at the beginning.
func (r *loadRig) forget(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, r.url)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, "DELETE FROM leases WHERE stage = $1", work.StageLoad)
	return errors.Join(err, conn.Close(ctx))
}

// plain inserts the same rows by the driver, and returns rows a second, but of the first block, as load does.
func (r *loadRig) plain(ctx context.Context) (rate float64, err error) {
	r.rounds++
	name := fmt.Sprintf("plain_%d", r.rounds)
	cfg, err := clickhouse.ParseURL(r.engine.URL(name))
	if err != nil {
		return 0, err
	}
	db, err := clickhouse.Open(cfg)
	if err != nil {
		return 0, err
	}
	if err := errors.Join(db.Migrate(ctx), db.Close()); err != nil {
		return 0, err
	}
	conn, err := r.open(name)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	for _, sql := range []string{
		"CREATE TABLE plain AS outcomes_rows ENGINE = MergeTree PARTITION BY toYYYYMM(timestamp) ORDER BY (timestamp, topic_id, partition, offset)",
		"ALTER TABLE plain DROP PROJECTION ends",
	} {
		if err := conn.Exec(ctx, sql); err != nil {
			return 0, err
		}
	}
	var began time.Time
	offset := 0
	for block := range slices.Chunk(r.outcomes, loadBlock) {
		if err := insertPlain(ctx, conn, block, offset); err != nil {
			return 0, err
		}
		offset += len(block)
		if began.IsZero() {
			began = time.Now()
		}
	}
	rate = float64(len(r.outcomes)-loadBlock) / time.Since(began).Seconds()
	return rate, r.drop(ctx, name)
}

func insertPlain(ctx context.Context, conn driver.Conn, block []event.Outcome, offset int) error {
	batch, err := conn.PrepareBatch(ctx, "INSERT INTO plain")
	if err != nil {
		return err
	}
	for i := range block {
		o := &block[i]
		if err := batch.Append("61f0c404-5cb3-11e7-907b-a6006ad3dba0", int32(0), uint64(offset+i), o.SettledAt, o.ID, o.ProductID, o.Shop,
			string(o.Status), string(o.Category), o.Reason, o.Message, o.Field, o.ShopifyID, o.VariantIDs, o.BatchIDs, o.Lane, int32(o.Attempt), o.Plan,
			o.Sent, o.SentHash, o.PointsRequested, o.PointsActual, int64(o.Changes), orNull(o.FirstCommit), orNull(o.LastCommit), orNull(o.CapturedAt),
			orNull(o.DueAt), orNull(o.ReadAt), orNull(o.SentAt), orNull(o.AnsweredAt), orNull(o.SettledAt), o.DocumentHash, orNull(o.NextAttempt), nil,
		); err != nil {
			return errors.Join(err, batch.Abort())
		}
	}
	return batch.Send()
}

func orNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// open connects as any user of the driver would, compressed as Load is.
func (r *loadRig) open(database string) (driver.Conn, error) {
	o, err := chgo.ParseDSN(r.engine.URL(database))
	if err != nil {
		return nil, err
	}
	o.Compression = &chgo.Compression{Method: chgo.CompressionLZ4}
	return chgo.Open(o)
}

func (r *loadRig) count(ctx context.Context, from string) (n uint64, err error) {
	conn, err := r.open("default")
	if err != nil {
		return 0, err
	}
	err = conn.QueryRow(ctx, "SELECT count() FROM "+from).Scan(&n)
	return n, errors.Join(err, conn.Close())
}

// drop removes a database, so that its merges do not go on beside the next measurement.
func (r *loadRig) drop(ctx context.Context, database string) error {
	conn, err := r.open("default")
	if err != nil {
		return err
	}
	return errors.Join(conn.Exec(ctx, "DROP DATABASE "+database+" SYNC"), conn.Close())
}
