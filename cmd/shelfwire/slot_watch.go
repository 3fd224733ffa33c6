package main

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shelfwire/shelfwire/connectors/postgres"
	"github.com/shelfwire/shelfwire/pipeline"
	"github.com/shelfwire/shelfwire/schemas/change"
)

// How often the slot is measured, and how often a standing alert is told again.
const (
	slotEvery  = 5 * time.Second
	alertEvery = 10 * time.Minute
)

// slotSource is measured.
type slotSource interface {
	SlotStatus(ctx context.Context) (postgres.SlotStatus, error)
}

// slotWatch measures the slot for the metrics, and warns before the WAL that it holds back fills the disk or meets the
// server's limit.
type slotWatch struct {
	source slotSource
	limit  int64 // bytes held back that are worth a warning
	log    *slog.Logger

	last    atomic.Pointer[postgres.SlotStatus]
	behind  atomic.Int64 // ns
	history slotHistory

	said   string
	saidAt time.Time
}

// run measures until ctx ends. A source that is away is the capture's to complain about.
func (w *slotWatch) run(ctx context.Context) error {
	tick := time.NewTicker(slotEvery)
	defer tick.Stop()
	for {
		mctx, cancel := context.WithTimeout(ctx, slotEvery)
		s, err := w.source.SlotStatus(mctx)
		cancel()
		if err == nil {
			w.take(&s)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// take judges a measurement.
func (w *slotWatch) take(s *postgres.SlotStatus) {
	w.last.Store(s)
	w.behind.Store(int64(w.history.add(s.At, s.End, s.Confirmed)))
	level, text := slotAlert(s, w.limit)
	switch {
	case text == "" && w.said != "":
		w.log.Info("the slot is well again", "wal_status", s.WALStatus, "held_bytes", s.Held())
	case text == "" || text == w.said && s.At.Sub(w.saidAt) < alertEvery:
		return
	default:
		w.log.Log(context.Background(), level, "the slot needs a look", "reason", text, "held_bytes", s.Held(), "lag_bytes", s.Lag(), "lag", w.lag().Round(time.Second),
			"safe_wal_size", s.SafeWAL, "wal_status", s.WALStatus, "active", s.Active, "oldest_transaction", s.OldestTransaction.Round(time.Second))
	}
	w.said, w.saidAt = text, s.At
}

func (w *slotWatch) lag() time.Duration { return time.Duration(w.behind.Load()) }

// slotAlert says what is wrong with the WAL that a slot holds back; empty when nothing is. A slot that is gone is the
// capture's to heal and to tell.
func slotAlert(s *postgres.SlotStatus, limit int64) (slog.Level, string) {
	switch held := s.Held(); {
	case !s.Exists || s.WALStatus == "lost":
		return 0, ""
	case s.WALStatus == "unreserved":
		return slog.LevelError, "the slot is about to be lost: the server may remove WAL that it needs at its next checkpoint (max_slot_wal_keep_size)"
	case s.SafeWAL >= 0 && s.SafeWAL < (held+s.SafeWAL)/4:
		return slog.LevelError, "the slot holds back more than three quarters of the WAL that the server allows it (max_slot_wal_keep_size)"
	case held > limit:
		return slog.LevelWarn, "the slot holds back much WAL: " + slotCulprit(s)
	}
	return 0, ""
}

// slotCulprit says what keeps the slot from moving.
func slotCulprit(s *postgres.SlotStatus) string {
	switch {
	case !s.Active:
		return "nobody reads it"
	case s.Lag() < s.Held()/2 && s.OldestTransaction > time.Minute:
		return "a transaction has been open for long, and all since its beginning is kept"
	case s.Lag() < s.Held()/2:
		return "it is read, and the server has not moved its beginning yet"
	}
	return "it is read more slowly than the database writes"
}

// slotHistory knows when the WAL ended where, so that a distance in bytes can be told in time.
type slotHistory struct{ marks []slotMark }

type slotMark struct {
	at  time.Time
	end change.LSN
}

// slotMarks bounds the history: an hour at first; older marks are thinned out.
const slotMarks = 720

// add notes the end of WAL and returns for how long what follows confirmed has been waiting: since the last mark that
// is confirmed, or at least since the oldest one; 0 when all is confirmed.
func (h *slotHistory) add(now time.Time, end, confirmed change.LSN) time.Duration {
	if n := len(h.marks); n == 0 || h.marks[n-1].end != end {
		h.marks = append(h.marks, slotMark{now, end})
	} else if n > 0 && confirmed >= end {
		h.marks[n-1].at = now // nothing was written
	}
	for len(h.marks) > 1 && h.marks[1].end <= confirmed {
		h.marks = h.marks[1:]
	}
	if len(h.marks) > slotMarks {
		thin := h.marks[:0:0]
		for i, m := range h.marks {
			if i%2 == 0 || i == len(h.marks)-1 {
				thin = append(thin, m)
			}
		}
		h.marks = thin
	}
	if confirmed >= end || confirmed == 0 {
		return 0
	}
	return now.Sub(h.marks[0].at)
}

// metrics exports what was measured last, and nothing before the first time.
func (w *slotWatch) metrics(r *registry, c *pipeline.CaptureStats, spill *postgres.SpillStats) {
	gauge := func(name, help string, get func(*postgres.SlotStatus) float64) {
		r.gauge(name, help, func() float64 {
			if s := w.last.Load(); s != nil {
				return get(s)
			}
			return 0
		})
	}
	gauge("slot_lag_bytes", "WAL that the slot has not acknowledged.", func(s *postgres.SlotStatus) float64 { return float64(s.Lag()) })
	gauge("slot_held_bytes", "WAL that the server keeps for the slot.", func(s *postgres.SlotStatus) float64 { return float64(s.Held()) })
	gauge("slot_safe_wal_bytes", "WAL that may be written before the slot is in danger; -1: the server has no limit.", func(s *postgres.SlotStatus) float64 { return float64(s.SafeWAL) })
	gauge("slot_confirmed_lsn", "Position that the slot has acknowledged.", func(s *postgres.SlotStatus) float64 { return float64(s.Confirmed) })
	gauge("slot_restart_lsn", "Position from which the server keeps WAL for the slot.", func(s *postgres.SlotStatus) float64 { return float64(s.Restart) })
	gauge("slot_sent_lsn", "Position that the walsender has sent.", func(s *postgres.SlotStatus) float64 { return float64(s.Sent) })
	gauge("source_wal_lsn", "End of the source's WAL.", func(s *postgres.SlotStatus) float64 { return float64(s.End) })
	gauge("slot_active", "1 while some process reads the slot.", func(s *postgres.SlotStatus) float64 { return truth(s.Active) })
	gauge("slot_server_spill_bytes", "Bytes that the server has spilled for the slot.", func(s *postgres.SlotStatus) float64 { return float64(s.SpillBytes) })
	gauge("slot_server_spill_transactions", "Transactions that the server has spilled for the slot.", func(s *postgres.SlotStatus) float64 { return float64(s.SpillTransactions) })
	gauge("source_oldest_transaction_seconds", "Age of the oldest open transaction that writes.", func(s *postgres.SlotStatus) float64 { return s.OldestTransaction.Seconds() })
	gauge("source_connections", "Connections of this application to the source.", func(s *postgres.SlotStatus) float64 { return float64(s.Connections) })
	gauge("source_clock_offset_seconds", "How far the source's clock is ahead of this process's.", func(s *postgres.SlotStatus) float64 { return s.ClockOffset.Seconds() })
	gauge("source_lag_seconds", "Time from the commit of the last captured transaction until it was in Kafka, by one clock.", func(s *postgres.SlotStatus) float64 {
		durable, commit := c.NewestDurable.Load(), c.NewestCommit.Load()
		if commit == 0 {
			return 0
		}
		return (time.Duration(durable-commit*1000) + s.ClockOffset).Seconds()
	})
	r.gauge("slot_lag_seconds", "For how long WAL has been waiting to be acknowledged.", func() float64 { return w.lag().Seconds() })
	r.gauge("capture_active", "1 while this process has the slot.", func() float64 { return truth(c.Active.Load()) })
	r.gauge("capture_unpublished_tables", "Tables that should be captured and are not published: dropped, renamed or taken out of the publication.",
		func() float64 { return float64(c.Unpublished.Load()) })
	r.gauge("capture_snapshot", "1 while a snapshot is running.", func() float64 { return truth(c.Snapshotting.Load()) })
	r.counter("capture_healings_total", "Gaps that were healed by a snapshot.", c.Healings.Load)
	r.gauge("capture_last_healing_timestamp_seconds", "When the last gap was healed; 0: none since the start.", func() float64 { return float64(c.Healed.Load()) / 1e9 })
	r.gauge("spill_bytes", "Bytes of large transactions that wait for their commit on this disk.", func() float64 { return float64(spill.Bytes.Load()) })
	r.gauge("spill_largest_bytes", "Bytes of the largest of them.", func() float64 { return float64(spill.Largest.Load()) })
	r.counter("spill_transactions_total", "Transactions that were taken before their commit.", spill.Transactions.Load)
	r.counter("spill_left_total", "Times that large transactions were left to the server.", spill.Left.Load)
	for _, status := range []string{"reserved", "extended", "unreserved", "lost"} {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "shelfwire_slot_wal_status", Help: "1 for the slot's wal_status.", ConstLabels: prometheus.Labels{"status": status},
		}, func() float64 {
			s := w.last.Load()
			return truth(s != nil && s.WALStatus == status)
		}))
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// bytesText writes a number of bytes for people.
func bytesText(n int64) string {
	const k = 1024
	switch {
	case n < k:
		return fmt.Sprintf("%d B", n)
	case n < k*k:
		return fmt.Sprintf("%.1f kB", float64(n)/k)
	case n < k*k*k:
		return fmt.Sprintf("%.1f MB", float64(n)/k/k)
	}
	return fmt.Sprintf("%.1f GB", float64(n)/k/k/k)
}
