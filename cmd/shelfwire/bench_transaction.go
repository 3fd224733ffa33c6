package main

import (
	"context"
	"fmt"
	"slices"
)

// smallTransaction is streamed before its end as a large one is; the memory of the two is compared. One that is larger
// still takes so much longer that the collector of garbage has more chances to come late.
const smallTransaction, largeTransaction = 200_000, 2_000_000

// measureTransaction measures what memory capture takes while one large transaction passes.
func measureTransaction(ctx context.Context, b *bench) ([]figure, error) {
	r, err := newCaptureRig(ctx, b, kfakeBroker)
	defer r.close()
	if err != nil {
		return nil, err
	}
	large := b.few(max(b.rows, smallTransaction), 2*smallTransaction)
	var peaks []float64
	for _, rows := range append(slices.Repeat([]int{smallTransaction}, 6), large) {
		peak, err := r.transaction(ctx, rows)
		if err != nil {
			return nil, fmt.Errorf("one transaction of %d rows: %w", rows, err)
		}
		peaks = append(peaks, peak)
	}
	// When the collector of garbage comes in time is luck: a peak is compared with a peak.
	few, most := peaks[:len(peaks)-1], peaks[len(peaks)-1]
	small := slices.Max(few)
	how := fmt.Sprintf("peak resident set of shelfwire run --only capture from its start on, each in a process of its own, one transaction of rows of about "+
		"210 bytes that the server streams before its end, into a broker (kfake) in a process of its own; %.0f MB at %d rows (the most of %d), %.0f MB at %d rows",
		small, smallTransaction, len(few), most, large)
	name := fmt.Sprintf("the same ÷ that of %d rows", smallTransaction)
	growth := shown(name, most/small, "ratio", how)
	if large == largeTransaction {
		growth = atMost(name, most/small, "ratio", 1.1, how)
	}
	return []figure{atMost(fmt.Sprintf("peak memory of capture, one transaction of %d rows", large), most, "MB", 256, how), growth}, nil
}

// transaction writes one transaction and returns the peak of capture's memory, in MB, when all of it is in Kafka.
func (r *captureRig) transaction(ctx context.Context, rows int) (float64, error) {
	r.b.say("transaction: one of %d rows", rows)
	r.runs++
	slot := fmt.Sprintf("run_%d", r.runs)
	err := r.exec(ctx, `TRUNCATE bulk`, fmt.Sprintf(`SELECT pg_create_logical_replication_slot('%s', 'pgoutput')`, slot),
		fmt.Sprintf(`INSERT INTO bulk `+captureRow+` FROM generate_series(1, %d) i`, rows), `CHECKPOINT`)
	if err != nil {
		return 0, err
	}
	run, err := r.capture(ctx, captureTask{slot: slot, rows: rows, fromStart: true, pids: walsenderPIDs})
	r.b.say("transaction: %.0f rows/s from the start of the process, peak %.0f MB", run.rate, run.peak)
	return run.peak, err
}
