package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/shelfwire/shelfwire/deploy/embedded"
	"github.com/shelfwire/shelfwire/deploy/embedded/postgres"
	"github.com/shelfwire/shelfwire/sinks/state"
)

// captureLoad is WAL that is read again and again, by copies of one slot that was made before it.
type captureLoad struct {
	name string
	rows int
	sql  string
	// recv are the options by which pg_recvlogical reads it fastest.
	recv []string
	// fromStart times from the start of the process: what is streamed before its commit has long been read when its first
	// record can be seen.
	fromStart bool
	// goal is rows a second against pg_recvlogical; perRow and perRowServer are CPU µs for each row, of capture and of the
	// walsender; 0: none.
	goal, perRow, perRowServer float64
	debezium                   debeziumRun
}

const captureRow = `SELECT i, i %% 40, 'handle-of-a-product-' || i, 'A title of some length for product ' || i, 12.50, 0, now(), repeat('body ', 12)`

func captureLoads(b *bench) []captureLoad {
	small, large := b.few(300_000, 3000), b.few(500_000, 3000)
	ones := b.few(150_000, 1000)
	return []captureLoad{
		{
			name: "100 rows a transaction", rows: small, goal: 1.6, perRow: 3, perRowServer: 5,
			debezium: debeziumRun{ratio: 0.44, cpu: 30, goal: 3.5},
			sql: fmt.Sprintf(`DO $$ BEGIN FOR t IN 0..%d LOOP UPDATE products SET qty = qty + 1 WHERE id BETWEEN t * 100 %% %d + 1 AND t * 100 %% %d + 100; COMMIT; END LOOP; END $$`,
				small/100-1, captureProducts, captureProducts),
		},
		{
			name: "one row a transaction", rows: ones, goal: 2, perRow: 4, perRowServer: 11,
			debezium: debeziumRun{ratio: 0.98, cpu: 38, goal: 2},
			sql:      fmt.Sprintf(`DO $$ BEGIN FOR t IN 1..%d LOOP UPDATE products SET qty = qty + 1 WHERE id = t %% %d + 1; COMMIT; END LOOP; END $$`, ones, captureProducts),
		},
		{
			name: fmt.Sprintf("one transaction of %d rows", large), rows: large, goal: 0.65,
			sql:  fmt.Sprintf(`INSERT INTO bulk `+captureRow+` FROM generate_series(1, %d) i`, large),
			recv: []string{"-o", "proto_version=2", "-o", "streaming=on"}, fromStart: true,
			debezium: debeziumRun{ratio: 0.44, cpu: 38, goal: 1.4},
		},
	}
}

// captureProducts are the rows that the loads change.
const captureProducts = 20_000

// captureTables are those of the rig.
var captureTables = []string{"public.products", "public.bulk", "public.still"}

// captureRig is a PostgreSQL, a broker in a process of its own, and one table.
type captureRig struct {
	b      *bench
	dir    string
	url    string // of the source
	state  string
	admin  string
	broker captureBroker
	conn   *pgx.Conn
	recv   string // pg_recvlogical
	stops  []func()
	runs   int
}

func measureCapture(ctx context.Context, b *bench) ([]figure, error) {
	return measureLoads(ctx, b, kfakeBroker, 3, 10)
}

// measureKafka measures the same into Apache Kafka, which is what Debezium's figures were recorded with.
func measureKafka(ctx context.Context, b *bench) ([]figure, error) {
	return measureLoads(ctx, b, apacheBroker, 10, 75)
}

// measureLoads measures how fast the loads are read, and how soon a change can be read from the broker: p50 and p99 are
// the goals of that, in ms.
func measureLoads(ctx context.Context, b *bench, start startBroker, p50, p99 float64) (out []figure, err error) {
	r, err := newCaptureRig(ctx, b, start)
	defer r.close()
	if err != nil {
		return nil, err
	}
	if r.recv, err = recvlogical(); err != nil {
		return nil, err
	}
	for _, l := range captureLoads(b) {
		figures, err := r.load(ctx, l)
		if err != nil {
			return out, fmt.Errorf("%s: %w", l.name, err)
		}
		out = append(out, figures...)
	}
	figures, err := r.readable(ctx, p50, p99)
	return append(out, figures...), err
}

func newCaptureRig(ctx context.Context, b *bench, start startBroker) (r *captureRig, err error) {
	r = &captureRig{b: b}
	s, err := embedded.NewScratch(ctx, "shelfwire", "bench")
	if err != nil {
		return r, err
	}
	r.dir = s.Path
	r.stops = append(r.stops, func() { _ = s.Remove() })
	pg, err := postgres.Start(ctx, postgres.Config{Dir: filepath.Join(r.dir, "postgres")})
	if err != nil {
		return r, err
	}
	r.stops = append(r.stops, func() { _ = pg.Stop() })
	if r.broker, err = start(ctx, filepath.Join(r.dir, "kafka")); err != nil {
		return r, err
	}
	r.stops = append(r.stops, func() { _ = r.broker.Stop() })
	r.admin = pg.URL("postgres")
	if r.url, err = state.Create(ctx, r.admin, "shop"); err != nil {
		return r, err
	}
	if r.state, err = state.Create(ctx, r.admin, "shelfwire"); err != nil {
		return r, err
	}
	if r.conn, err = pgx.Connect(ctx, r.url); err != nil {
		return r, err
	}
	r.stops = append(r.stops, func() { _ = r.conn.Close(context.WithoutCancel(ctx)) })
	return r, r.exec(ctx,
		`CREATE TABLE products (id bigint PRIMARY KEY, shop int, handle text, title text, price numeric(12,2), qty int, updated_at timestamptz, body text) WITH (fillfactor = 60)`,
		`CREATE TABLE bulk (LIKE products INCLUDING ALL)`,
		`CREATE TABLE still (LIKE products INCLUDING ALL)`,
		fmt.Sprintf(`INSERT INTO products `+captureRow+` FROM generate_series(1, %d) i`, captureProducts),
		`CREATE PUBLICATION bench FOR TABLE `+strings.Join(captureTables, ", ")+` WITH (publish_via_partition_root = true)`,
		`SET synchronous_commit = off`)
}

func (r *captureRig) close() {
	for _, stop := range slices.Backward(r.stops) {
		stop()
	}
}

func (r *captureRig) exec(ctx context.Context, sql ...string) error {
	for _, s := range sql {
		if _, err := r.conn.PgConn().Exec(ctx, s).ReadAll(); err != nil {
			return fmt.Errorf("%s: %w", firstLine(s), err)
		}
	}
	return nil
}

// load writes WAL, and reads it by turns with pg_recvlogical and with capture.
func (r *captureRig) load(ctx context.Context, l captureLoad) ([]figure, error) {
	r.b.say("capture: %s", l.name)
	base := fmt.Sprintf("base_%d", r.runs)
	if err := r.exec(ctx, fmt.Sprintf(`SELECT pg_create_logical_replication_slot('%s', 'pgoutput')`, base), l.sql, `CHECKPOINT`); err != nil {
		return nil, err
	}
	end, err := query[string](ctx, r.url, `SELECT pg_current_wal_insert_lsn()::text`)
	if err != nil {
		return nil, err
	}
	const rounds = 3
	var ratios, raw []float64
	var runs []captureRun
	for range r.broker.warm {
		if _, err := r.captureSlot(ctx, base, l); err != nil {
			return nil, err
		}
	}
	for range rounds {
		took, err := r.receive(ctx, base, end, l.recv)
		if err != nil {
			return nil, err
		}
		run, err := r.captureSlot(ctx, base, l)
		if err != nil {
			return nil, err
		}
		runs = append(runs, run)
		raw = append(raw, float64(l.rows)/took.Seconds())
		ratios = append(ratios, run.rate*took.Seconds()/float64(l.rows))
		r.b.say("capture: %.0f rows/s, pg_recvlogical %.0f rows/s, CPU %.1f µs a row, walsender %.1f µs, broker %.1f µs, %.1f allocations",
			run.rate, raw[len(raw)-1], run.cpu, run.server, run.broker, run.allocs)
	}
	if err := r.exec(ctx, fmt.Sprintf(`SELECT pg_drop_replication_slot('%s')`, base)); err != nil {
		return nil, err
	}
	return r.figures(l, ratios, raw, runs), nil
}

func (r *captureRig) figures(l captureLoad, ratios, raw []float64, runs []captureRun) []figure {
	of := func(f func(captureRun) float64) float64 { return medianRun(runs, f) }
	since := "from the first record that a read_committed reader could see"
	if l.fromStart {
		since = "from the start of the process"
	}
	how := fmt.Sprintf("medians of %d rounds by turns, %d rows of about 210 bytes; shelfwire run --only capture into a broker (%s) in a "+
		"process of its own, %s to the last; capture %.0f rows/s, "+
		"pg_recvlogical to /dev/null %.0f rows/s", len(runs), l.rows, r.broker.kind, since, of(func(r captureRun) float64 { return r.rate }), medianOf(raw))
	ratio := medianOf(ratios)
	name := l.name + r.broker.label
	out := []figure{atLeast("capture ÷ pg_recvlogical, "+name, ratio, "ratio", l.goal, how), l.debezium.rate(name, ratio)}
	cpu := of(func(r captureRun) float64 { return r.cpu })
	if l.perRow > 0 {
		out = append(out,
			atMost("CPU of capture, "+name, cpu, "µs/row", l.perRow, "the same runs, from the first record on"),
			atMost("CPU of its walsender, "+name, of(func(r captureRun) float64 { return r.server }), "µs/row", l.perRowServer, "the same runs"),
			atMost("heap allocations of capture, "+name, of(func(r captureRun) float64 { return r.allocs }), "1/row", 1, "the same runs, from the first record on"),
			atMost("first record after the start of capture, "+name, of(func(r captureRun) float64 { return r.first.Seconds() }), "s", 0.5, "the same runs"))
	} else {
		out = append(out,
			shown("CPU of capture, "+name, cpu, "µs/row", "the same runs, from the start of the process"),
			shown("CPU of its walsender, "+name, of(func(r captureRun) float64 { return r.server }), "µs/row", "the same runs"))
	}
	peak := of(func(r captureRun) float64 { return r.peak })
	return append(out,
		shown("CPU of the broker, "+name, of(func(r captureRun) float64 { return r.broker }), "µs/row", "the same runs"),
		l.debezium.cost(name, cpu),
		atMost("peak memory of capture, "+name, peak, "MB", 256, "the same runs"),
		debeziumMemory(name, peak))
}

// medianRun is the median of what f gives for each run.
func medianRun(runs []captureRun, f func(captureRun) float64) float64 {
	var list []float64
	for _, r := range runs {
		list = append(list, f(r))
	}
	return medianOf(list)
}

func medianOf(list []float64) float64 {
	list = slices.Sorted(slices.Values(list))
	return list[len(list)/2]
}
