package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"go.yaml.in/yaml/v3"

	"github.com/shelfwire/shelfwire/connectors/kafka"
	"github.com/shelfwire/shelfwire/deploy/embedded"
	embeddedkafka "github.com/shelfwire/shelfwire/deploy/embedded/kafka"
	"github.com/shelfwire/shelfwire/deploy/embedded/postgres"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
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
}

const captureRow = `SELECT i, i %% 40, 'handle-of-a-product-' || i, 'A title of some length for product ' || i, 12.50, 0, now(), repeat('body ', 12)`

func captureLoads(b *bench) []captureLoad {
	small, large := b.few(300_000, 3000), b.few(500_000, 3000)
	ones := b.few(150_000, 1000)
	return []captureLoad{
		{
			name: "100 rows a transaction", rows: small, goal: 1.6, perRow: 3, perRowServer: 5,
			sql: fmt.Sprintf(`DO $$ BEGIN FOR t IN 0..%d LOOP UPDATE products SET qty = qty + 1 WHERE id BETWEEN t * 100 %% %d + 1 AND t * 100 %% %d + 100; COMMIT; END LOOP; END $$`,
				small/100-1, captureProducts, captureProducts),
		},
		{
			name: "one row a transaction", rows: ones, goal: 2, perRow: 4, perRowServer: 11,
			sql: fmt.Sprintf(`DO $$ BEGIN FOR t IN 1..%d LOOP UPDATE products SET qty = qty + 1 WHERE id = t %% %d + 1; COMMIT; END LOOP; END $$`, ones, captureProducts),
		},
		{
			name: fmt.Sprintf("one transaction of %d rows", large), rows: large, goal: 0.65,
			sql:  fmt.Sprintf(`INSERT INTO bulk `+captureRow+` FROM generate_series(1, %d) i`, large),
			recv: []string{"-o", "proto_version=2", "-o", "streaming=on"}, fromStart: true,
		},
	}
}

// captureProducts are the rows that the loads change.
const captureProducts = 20_000

// captureRig is a PostgreSQL, a broker in a process of its own, and one table.
type captureRig struct {
	b      *bench
	dir    string
	url    string // of the source
	state  string
	admin  string
	broker string
	conn   *pgx.Conn
	recv   string // pg_recvlogical
	stops  []func()
	runs   int
}

func measureCapture(ctx context.Context, b *bench) (out []figure, err error) {
	r, err := newCaptureRig(ctx, b)
	defer r.close()
	if err != nil {
		return nil, err
	}
	for _, l := range captureLoads(b) {
		figures, err := r.load(ctx, l)
		if err != nil {
			return out, fmt.Errorf("%s: %w", l.name, err)
		}
		out = append(out, figures...)
	}
	figures, err := r.readable(ctx)
	return append(out, figures...), err
}

func newCaptureRig(ctx context.Context, b *bench) (r *captureRig, err error) {
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
	broker, err := embeddedkafka.StartProcess(ctx, embeddedkafka.Config{Dir: filepath.Join(r.dir, "kafka")})
	if err != nil {
		return r, err
	}
	r.stops = append(r.stops, func() { _ = broker.Stop() })
	r.broker, r.admin = broker.Addr(), pg.URL("postgres")
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
	if r.recv, err = recvlogical(); err != nil {
		return r, err
	}
	return r, r.exec(ctx,
		`CREATE TABLE products (id bigint PRIMARY KEY, shop int, handle text, title text, price numeric(12,2), qty int, updated_at timestamptz, body text) WITH (fillfactor = 60)`,
		`CREATE TABLE bulk (LIKE products INCLUDING ALL)`,
		fmt.Sprintf(`INSERT INTO products `+captureRow+` FROM generate_series(1, %d) i`, captureProducts),
		`CREATE PUBLICATION bench FOR TABLE products, bulk WITH (publish_via_partition_root = true)`,
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

// recvlogical finds the reader that comes with PostgreSQL.
func recvlogical() (string, error) {
	if path, err := exec.LookPath("pg_recvlogical"); err == nil {
		return path, nil
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/pg_recvlogical") // the pattern is right
	if len(found) == 0 {
		return "", errors.New("pg_recvlogical, which speed is measured against, is not installed; it comes with PostgreSQL's server or client packages")
	}
	return found[len(found)-1], nil
}

// captureRun is what one reading of the load has shown.
type captureRun struct {
	rate        float64 // rows a second, from the first to the last
	cpu, server float64 // µs for each row
	allocs      float64 // heap allocations for each row
	first       time.Duration
	peak        float64 // MB
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
	for range rounds {
		took, err := r.receive(ctx, base, end, l.recv)
		if err != nil {
			return nil, err
		}
		run, err := r.capture(ctx, base, l)
		if err != nil {
			return nil, err
		}
		runs = append(runs, run)
		raw = append(raw, float64(l.rows)/took.Seconds())
		ratios = append(ratios, run.rate*took.Seconds()/float64(l.rows))
		r.b.say("capture: %.0f rows/s, pg_recvlogical %.0f rows/s, CPU %.1f µs a row, walsender %.1f µs, %.1f allocations",
			run.rate, raw[len(raw)-1], run.cpu, run.server, run.allocs)
	}
	if err := r.exec(ctx, fmt.Sprintf(`SELECT pg_drop_replication_slot('%s')`, base)); err != nil {
		return nil, err
	}
	return captureFigures(l, ratios, raw, runs), nil
}

func captureFigures(l captureLoad, ratios, raw []float64, runs []captureRun) []figure {
	of := func(f func(captureRun) float64) float64 {
		var list []float64
		for _, r := range runs {
			list = append(list, f(r))
		}
		return medianOf(list)
	}
	since := "from the first record that a read_committed reader could see"
	if l.fromStart {
		since = "from the start of the process"
	}
	how := fmt.Sprintf("medians of %d rounds by turns, %d rows of about 210 bytes; shelfwire run --only capture into a broker (kfake) in a "+
		"process of its own, %s to the last; capture %.0f rows/s, "+
		"pg_recvlogical to /dev/null %.0f rows/s", len(runs), l.rows, since, of(func(r captureRun) float64 { return r.rate }), medianOf(raw))
	ratio := medianOf(ratios)
	out := []figure{{
		Name: "capture ÷ pg_recvlogical, " + l.name, Value: round4(ratio), Unit: "ratio", Goal: fmt.Sprintf("≥ %g", l.goal),
		Holds: ratio >= l.goal, Conditions: how,
	}}
	if l.perRow > 0 {
		out = append(out,
			atMost("CPU of capture, "+l.name, of(func(r captureRun) float64 { return r.cpu }), "µs/row", l.perRow, "the same runs, from the first record on"),
			atMost("CPU of its walsender, "+l.name, of(func(r captureRun) float64 { return r.server }), "µs/row", l.perRowServer, "the same runs"),
			atMost("heap allocations of capture, "+l.name, of(func(r captureRun) float64 { return r.allocs }), "1/row", 1, "the same runs, from the first record on"),
			atMost("first record after the start of capture, "+l.name, of(func(r captureRun) float64 { return r.first.Seconds() }), "s", 0.5, "the same runs"))
	}
	return append(out, atMost("peak memory of capture, "+l.name, of(func(r captureRun) float64 { return r.peak }), "MB", 256, "the same runs"))
}

func medianOf(list []float64) float64 {
	list = slices.Sorted(slices.Values(list))
	return list[len(list)/2]
}

// copySlot makes a slot that begins where base does.
func (r *captureRig) copySlot(ctx context.Context, base string) (string, error) {
	r.runs++
	slot := fmt.Sprintf("run_%d", r.runs)
	return slot, r.exec(ctx, fmt.Sprintf(`SELECT pg_copy_logical_replication_slot('%s', '%s')`, base, slot))
}

// receive times pg_recvlogical to /dev/null.
func (r *captureRig) receive(ctx context.Context, base, end string, options []string) (time.Duration, error) {
	slot, err := r.copySlot(ctx, base)
	if err != nil {
		return 0, err
	}
	if options == nil {
		options = []string{"-o", "proto_version=1"}
	}
	args := append([]string{"-d", r.url, "--slot", slot, "--start", "--endpos", end, "--no-loop", "-f", "/dev/null", "-o", "publication_names=bench"}, options...)
	began := time.Now()
	if text, err := exec.CommandContext(ctx, r.recv, args...).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("pg_recvlogical: %w: %s", err, text)
	}
	took := time.Since(began)
	return took, r.exec(ctx, fmt.Sprintf(`SELECT pg_drop_replication_slot('%s')`, slot))
}

// capture times a `shelfwire run --only capture`.
func (r *captureRig) capture(ctx context.Context, base string, l captureLoad) (run captureRun, err error) {
	rows := l.rows
	slot, err := r.copySlot(ctx, base)
	if err != nil {
		return run, err
	}
	cluster, err := r.topics(ctx, slot)
	if err != nil {
		return run, err
	}
	defer cluster.Close()
	file, listen, err := r.writeConfig(ctx, slot)
	if err != nil {
		return run, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 5*time.Minute, errors.New("not all rows were in Kafka after 5 minutes"))
	defer cancel()
	began := time.Now()
	err = withRun(ctx, []string{"-c", file, "--only", "capture"}, func(ctx context.Context, p *process) error {
		var first, last time.Time
		var seen int64
		var before captureUse
		err := poll(ctx, 10*time.Millisecond, func(ctx context.Context) (bool, error) {
			ends, err := cluster.EndOffsets(ctx, cluster.Topic(event.Changes))
			if err != nil {
				return false, err
			}
			var n int64
			for _, at := range ends {
				n += at
			}
			if n > 0 && first.IsZero() {
				first, seen = time.Now(), n
				before, err = r.used(ctx, p, listen, slot)
			}
			last = time.Now()
			return n >= int64(rows), err // markers of transactions count too, so the last few rows may be on their way
		})
		if err != nil {
			return err
		}
		after, err := r.used(ctx, p, listen, slot)
		if err != nil {
			return err
		}
		n := float64(int64(rows) - seen)
		run.first, run.rate = first.Sub(began), n/last.Sub(first).Seconds()
		if l.fromStart {
			run.rate = float64(rows) / last.Sub(began).Seconds()
		}
		run.cpu = float64((after.cpu - before.cpu).Microseconds()) / n
		run.server = float64((after.server - before.server).Microseconds()) / n
		run.allocs = (after.mallocs - before.mallocs) / n
		m, err := p.memory()
		run.peak = m.peak
		return err
	})
	if err != nil {
		return run, err
	}
	return run, poll(ctx, 20*time.Millisecond, func(ctx context.Context) (bool, error) {
		return r.exec(ctx, fmt.Sprintf(`SELECT pg_drop_replication_slot('%s')`, slot)) == nil, nil // once its walsender has gone
	})
}

// topics opens topics of the slot's own.
func (r *captureRig) topics(ctx context.Context, slot string) (*kafka.Cluster, error) {
	cluster, err := kafka.New(kafka.Config{Brokers: []string{r.broker}, Prefix: slot + ".", Partitions: 8})
	if err != nil {
		return nil, err
	}
	if err := r.prepare(ctx, cluster, slot); err != nil {
		cluster.Close()
		return nil, err
	}
	return cluster, nil
}

// prepare makes the topics, and a position that knows both tables, so that no snapshot is taken.
func (r *captureRig) prepare(ctx context.Context, cluster *kafka.Cluster, slot string) error {
	if err := cluster.EnsureTopics(ctx); err != nil {
		return err
	}
	id, err := query[string](ctx, r.url, `SELECT system_identifier::text FROM pg_control_system()`)
	if err != nil {
		return err
	}
	confirmed, err := query[string](ctx, r.url, `SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1`, slot)
	if err != nil {
		return err
	}
	lsn, err := change.ParseLSN(confirmed)
	if err != nil {
		return err
	}
	p, err := cluster.OpenProducer(ctx, "bench")
	if err != nil {
		return err
	}
	defer p.Close()
	pos := event.Position{
		Writer: "capture/" + slot, History: change.History{SystemID: id, Timeline: 1, Slot: slot},
		Position: change.Position{CommitLSN: lsn}, Tables: []string{"public.products", "public.bulk"}, At: time.Now().UTC(),
	}
	value, err := json.Marshal(pos)
	if err != nil {
		return err
	}
	return errors.Join(p.Begin(), p.Produce(event.Record{
		Topic: cluster.Topic(event.Positions), Partition: kafka.CapturePartition, Key: []byte(pos.Writer), Value: value,
	}), p.Commit(ctx))
}

// freeAddress is one that nobody listens on at the moment.
func freeAddress(ctx context.Context) (string, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

func (r *captureRig) writeConfig(ctx context.Context, slot string) (file, listen string, err error) {
	l, err := freeAddress(ctx)
	if err != nil {
		return "", "", err
	}
	text, err := yaml.Marshal(map[string]any{
		"source":    map[string]any{"url": r.url, "slot": slot, "publication": "bench"},
		"kafka":     map[string]any{"brokers": []string{r.broker}, "prefix": slot + ".", "partitions": 8},
		"state":     map[string]any{"url": r.state},
		"shops":     map[string]any{"one": map[string]any{"url": "http://127.0.0.1:9", "token": "none"}},
		"documents": "SELECT id::text AS product_id, 'one' AS shop, '{}'::jsonb AS document FROM products WHERE id::text = ANY ($1)",
		"routes":    []map[string]any{{"table": "public.products", "key": "id"}, {"table": "public.bulk", "key": "id"}},
		"metrics":   map[string]any{"listen": l},
	})
	if err != nil {
		return "", "", err
	}
	file = filepath.Join(r.dir, slot+".yaml")
	return file, l, os.WriteFile(file, text, 0o600)
}

// captureUse is what the processes have used up so far.
type captureUse struct {
	cpu, server time.Duration
	mallocs     float64
}

func (r *captureRig) used(ctx context.Context, p *process, listen, slot string) (u captureUse, err error) {
	if u.cpu, err = processCPU(p.pid); err != nil {
		return u, err
	}
	walsender, err := query[int](ctx, r.url, `SELECT coalesce(active_pid, 0) FROM pg_replication_slots WHERE slot_name = $1`, slot)
	if err != nil {
		return u, err
	}
	if u.server, err = processCPU(walsender); err != nil {
		return u, err
	}
	u.mallocs, err = scrape(ctx, listen, "go_memstats_mallocs_total")
	return u, err
}

// processCPU is the processor time of a process so far, its system calls included (proc(5), /proc/pid/stat).
func processCPU(pid int) (time.Duration, error) {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, fmt.Errorf("read the processor time of process %d (Linux only): %w", pid, err)
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:])) // the name may hold anything
	const userTime, systemTime, tick = 11, 12, 10 * time.Millisecond
	user, err1 := strconv.ParseInt(fields[userTime], 10, 64)
	system, err2 := strconv.ParseInt(fields[systemTime], 10, 64)
	return time.Duration(user+system) * tick, errors.Join(err1, err2)
}

// scrape reads one metric.
func scrape(ctx context.Context, listen, name string) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+listen+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.ParseFloat(strings.TrimSpace(value), 64)
		}
	}
	return 0, fmt.Errorf("no metric %s", name)
}
