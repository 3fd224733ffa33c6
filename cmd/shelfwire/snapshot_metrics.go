package main

import (
	"time"

	"github.com/shelfwire/shelfwire/pipeline"
)

// snapshots exports how far the running snapshots have come, all of them together.
func (r *registry) snapshots(s *pipeline.CaptureStats) {
	r.counter("capture_snapshot_rows_total", "Rows of snapshots that passed the routes.", s.SnapshotRows.Load)
	r.counter("capture_snapshot_rereads_total", "Chunks of snapshots that had to be read again.", s.Rereads.Load)
	gauge := func(name, help string, value func(rows, estimate int64, perSecond float64, left time.Duration) float64) {
		r.gauge(name, help, func() float64 { return value(s.SnapshotTotals()) })
	}
	gauge("capture_snapshot_rows", "Rows that the running snapshots have read.",
		func(rows, _ int64, _ float64, _ time.Duration) float64 { return float64(rows) })
	gauge("capture_snapshot_estimated_rows", "About how many rows the running snapshots have, in the tables looked at so far.",
		func(_, estimate int64, _ float64, _ time.Duration) float64 { return float64(estimate) })
	gauge("capture_snapshot_rows_per_second", "Rows a second that the running snapshots read.",
		func(_, _ int64, perSecond float64, _ time.Duration) float64 { return perSecond })
	gauge("capture_snapshot_left_seconds", "How long the running snapshots will take at this rate; 0 while unknown.",
		func(_, _ int64, _ float64, left time.Duration) float64 { return left.Seconds() })
}
