package main

import (
	"context"
	"fmt"
	"io"
	"time"
)

// snapshotPIDs selects the server's processes of capture: those that read chunks, and the one that reads the WAL.
const snapshotPIDs = `SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND $1 <> ''`

// measureSnapshot holds the first snapshot of a table against COPY of the same table, on a pipeline of its own.
func measureSnapshot(ctx context.Context, b *bench) ([]figure, error) {
	r, err := newCaptureRig(ctx, b, kfakeBroker)
	defer r.close()
	if err != nil {
		return nil, err
	}
	rows := b.few(1_000_000, 20_000)
	b.say("snapshot: a table of %d rows", rows)
	// As a table is that has stood for a while: nothing is left to be noted in its pages by whoever reads it first.
	if err := r.exec(ctx, fmt.Sprintf(`INSERT INTO still `+captureRow+` FROM generate_series(1, %d) i`, rows), `VACUUM (FREEZE, ANALYZE) still`, `CHECKPOINT`); err != nil {
		return nil, err
	}
	const rounds = 3
	var ratios, raw []float64
	var runs []captureRun
	for range rounds {
		began := time.Now()
		if _, err := r.conn.PgConn().CopyTo(ctx, io.Discard, `COPY still TO STDOUT`); err != nil {
			return nil, fmt.Errorf("COPY: %w", err)
		}
		raw = append(raw, float64(rows)/time.Since(began).Seconds())
		r.runs++
		slot := fmt.Sprintf("run_%d", r.runs)
		if err := r.exec(ctx, fmt.Sprintf(`SELECT pg_create_logical_replication_slot('%s', 'pgoutput')`, slot)); err != nil {
			return nil, err
		}
		run, err := r.capture(ctx, captureTask{
			slot: slot, rows: rows, tables: []string{"public.products", "public.bulk"}, pids: snapshotPIDs,
			source: map[string]any{"snapshot_rate": 1_000_000_000},
		})
		if err != nil {
			return nil, err
		}
		runs, ratios = append(runs, run), append(ratios, run.rate/raw[len(raw)-1])
		b.say("snapshot: %.0f rows/s, COPY %.0f rows/s, CPU %.1f µs a row, server %.1f µs, broker %.1f µs, %.1f allocations, peak %.0f MB",
			run.rate, raw[len(raw)-1], run.cpu, run.server, run.broker, run.allocs, run.peak)
	}
	of := func(f func(captureRun) float64) float64 { return medianRun(runs, f) }
	ratio := medianOf(ratios)
	how := fmt.Sprintf("medians of %d rounds by turns, %d rows of about 210 bytes with a primary key; rows of the first snapshot, without a bound of "+
		"its rate (snapshot_rate: 1000000000; the default is 20,000 rows/s), from the first record that a read_committed reader could see to the last, into a "+
		"broker (kfake) in a process of its own; snapshot %.0f rows/s, COPY still TO STDOUT, thrown away, %.0f rows/s; CPU for each row %.1f µs of "+
		"capture, %.1f µs of the server's processes, %.1f µs of the broker, %.2f heap allocations", rounds, rows,
		of(func(r captureRun) float64 { return r.rate }), medianOf(raw), of(func(r captureRun) float64 { return r.cpu }),
		of(func(r captureRun) float64 { return r.server }), of(func(r captureRun) float64 { return r.broker }), of(func(r captureRun) float64 { return r.allocs }))
	return []figure{
		atLeast("snapshot ÷ COPY", ratio, "ratio", 0.3, how),
		atMost("peak memory of capture, snapshot", of(func(r captureRun) float64 { return r.peak }), "MB", 256, "the same runs"),
	}, nil
}
