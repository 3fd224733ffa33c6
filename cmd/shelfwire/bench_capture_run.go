package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"go.yaml.in/yaml/v3"

	"github.com/shelfwire/shelfwire/connectors/kafka"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
)

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

// captureTask is what one `shelfwire run --only capture` is to read.
type captureTask struct {
	slot string
	rows int
	// tables have had their first snapshot, so that none is taken of them; nil: all.
	tables []string
	// source are further settings of the source.
	source map[string]any
	// fromStart counts from the start of the process, and not from the first record.
	fromStart bool
	// pids selects the server's processes that work for it, given the slot.
	pids string
}

// walsenderPIDs selects the process that reads the WAL for a slot.
const walsenderPIDs = `SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1 AND active_pid IS NOT NULL`

// captureRun is what one reading has shown.
type captureRun struct {
	rate                float64 // rows a second, from the first to the last
	cpu, server, broker float64 // µs for each row
	allocs              float64 // heap allocations for each row
	first               time.Duration
	peak                float64 // MB
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

// captureSlot times capture on a copy of a slot.
func (r *captureRig) captureSlot(ctx context.Context, base string, l captureLoad) (captureRun, error) {
	slot, err := r.copySlot(ctx, base)
	if err != nil {
		return captureRun{}, err
	}
	return r.capture(ctx, captureTask{slot: slot, rows: l.rows, fromStart: l.fromStart, pids: walsenderPIDs})
}

// captureMost is how long one reading may take, and captureMostRow what is added for each row: a slow machine reads more
// than ten thousand a second.
const captureMost, captureMostRow = 5 * time.Minute, 100 * time.Microsecond

// capture times a `shelfwire run --only capture`, and drops its slot.
func (r *captureRig) capture(ctx context.Context, t captureTask) (run captureRun, err error) {
	cluster, err := r.topics(ctx, t.slot, t.tables)
	if err != nil {
		return run, err
	}
	defer cluster.Close()
	file, listen, err := r.writeConfig(ctx, t.slot, t.source)
	if err != nil {
		return run, err
	}
	most := captureMost + time.Duration(t.rows)*captureMostRow
	ctx, cancel := context.WithTimeoutCause(ctx, most, fmt.Errorf("not all rows were in Kafka after %s", most))
	defer cancel()
	began := time.Now()
	err = withRun(ctx, []string{"-c", file, "--only", "capture"}, func(ctx context.Context, p *process) error {
		run, err = r.watch(ctx, t, cluster, p, listen, began)
		return err
	})
	if err != nil {
		return run, err
	}
	return run, poll(ctx, 20*time.Millisecond, func(ctx context.Context) (bool, error) {
		return r.exec(ctx, fmt.Sprintf(`SELECT pg_drop_replication_slot('%s')`, t.slot)) == nil, nil // once its walsender has gone
	})
}

// watch looks at the topic's end until all rows are there, and at what the processes use meanwhile.
func (r *captureRig) watch(ctx context.Context, t captureTask, cluster *kafka.Cluster, p *process, listen string, began time.Time) (run captureRun, err error) {
	var first, last time.Time
	var seen int64
	var start, before captureUse // a process that has just begun has used nothing
	if start.broker, err = processCPU(r.broker.PID()); err != nil {
		return run, err
	}
	err = poll(ctx, 10*time.Millisecond, func(ctx context.Context) (bool, error) {
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
			before, err = r.used(ctx, t, p, listen)
		}
		last = time.Now()
		return n >= int64(t.rows), err // markers of transactions count too, so the last few rows may be on their way
	})
	if err != nil {
		return run, err
	}
	after, err := r.used(ctx, t, p, listen)
	if err != nil {
		return run, err
	}
	run.first = first.Sub(began)
	if t.fromStart || seen >= int64(t.rows) { // few rows may come at once
		seen, first, before = 0, began, start
	}
	n := float64(int64(t.rows) - seen)
	run.rate = n / last.Sub(first).Seconds()
	run.cpu = float64((after.cpu - before.cpu).Microseconds()) / n
	run.server = float64((after.server - before.server).Microseconds()) / n
	run.broker = float64((after.broker - before.broker).Microseconds()) / n
	run.allocs = (after.mallocs - before.mallocs) / n
	m, err := p.memory()
	run.peak = m.peak
	return run, err
}

// topics opens topics of the slot's own.
func (r *captureRig) topics(ctx context.Context, slot string, tables []string) (*kafka.Cluster, error) {
	cluster, err := kafka.New(kafka.Config{Brokers: []string{r.broker.Addr()}, Prefix: slot + ".", Partitions: 8})
	if err != nil {
		return nil, err
	}
	if err := r.prepare(ctx, cluster, slot, tables); err != nil {
		cluster.Close()
		return nil, err
	}
	return cluster, nil
}

// prepare makes the topics, and a position that knows tables, so that no snapshot is taken of them.
func (r *captureRig) prepare(ctx context.Context, cluster *kafka.Cluster, slot string, tables []string) error {
	if tables == nil {
		tables = captureTables
	}
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
		Position: change.Position{CommitLSN: lsn}, Tables: tables, At: time.Now().UTC(),
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

func (r *captureRig) writeConfig(ctx context.Context, slot string, more map[string]any) (file, listen string, err error) {
	l, err := freeAddress(ctx)
	if err != nil {
		return "", "", err
	}
	source := map[string]any{"url": r.url, "slot": slot, "publication": "bench"}
	maps.Copy(source, more)
	var routes []map[string]any
	for _, table := range captureTables {
		routes = append(routes, map[string]any{"table": table, "key": "id"})
	}
	text, err := yaml.Marshal(map[string]any{
		"source":    source,
		"kafka":     map[string]any{"brokers": []string{r.broker.Addr()}, "prefix": slot + ".", "partitions": 8},
		"state":     map[string]any{"url": r.state},
		"shops":     map[string]any{"one": map[string]any{"url": "http://127.0.0.1:9", "token": "none"}},
		"documents": "SELECT id::text AS product_id, 'one' AS shop, '{}'::jsonb AS document FROM products WHERE id::text = ANY ($1)",
		"routes":    routes,
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
	cpu, server, broker time.Duration
	mallocs             float64
}

func (r *captureRig) used(ctx context.Context, t captureTask, p *process, listen string) (u captureUse, err error) {
	if u.cpu, err = processCPU(p.pid); err != nil {
		return u, err
	}
	rows, err := r.conn.Query(ctx, t.pids, t.slot)
	if err != nil {
		return u, err
	}
	pids, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil {
		return u, err
	}
	for _, pid := range pids {
		took, err := processCPU(pid)
		if err != nil {
			return u, err
		}
		u.server += took
	}
	if u.broker, err = processCPU(r.broker.PID()); err != nil {
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
