package pipeline

import (
	"context"
	"sync"
	"time"

	"github.com/shelfwire/shelfwire/schemas/event"
)

// SnapshotStatus is how far a snapshot has come.
type SnapshotStatus struct {
	// ID is that of the batch, Request that of whoever asked for it.
	ID, Request string
	// Rows have been read, of about Estimate, which is 0 while nothing is known and grows until each table has been
	// looked at.
	Rows, Estimate int64
	// PerSecond is the rate since this process has known it. Left is what remains by that; 0 while unknown.
	PerSecond float64
	Left      time.Duration
	Began     time.Time
}

// snapshotMeter measures the rates of snapshots. The zero value is ready.
type snapshotMeter struct {
	mu   sync.Mutex
	from map[string]snapshotReading
}

// snapshotReading is where a snapshot was at a time.
type snapshotReading struct {
	at   time.Time
	rows int64
}

// status says how far a snapshot has come.
func (m *snapshotMeter) status(p *event.SnapshotProgress, now time.Time) SnapshotStatus {
	s := SnapshotStatus{ID: p.ID, Rows: p.Rows, Estimate: p.Estimate, Began: p.Began}
	if p.Request != nil {
		s.Request = p.Request.ID
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	from, known := m.from[p.ID]
	if !known {
		if m.from == nil {
			m.from = map[string]snapshotReading{}
		}
		m.from[p.ID] = snapshotReading{now, p.Rows}
		return s
	}
	if took := now.Sub(from.at).Seconds(); took > 0 {
		s.PerSecond = float64(p.Rows-from.rows) / took
	}
	if left := p.Estimate - p.Rows; left > 0 && s.PerSecond > 0 {
		s.Left = time.Duration(float64(left) / s.PerSecond * float64(time.Second))
	}
	return s
}

// keep forgets all snapshots but these.
func (m *snapshotMeter) keep(running []event.SnapshotProgress) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.from
	m.from = nil
	for i := range running {
		if r, ok := old[running[i].ID]; ok {
			if m.from == nil {
				m.from = map[string]snapshotReading{}
			}
			m.from[running[i].ID] = r
		}
	}
}

// batch is the event that tells how far a snapshot has come.
func (m *snapshotMeter) batch(p *event.SnapshotProgress, now time.Time) event.Batch {
	s := m.status(p, now)
	b := event.Batch{
		Type: event.BatchReading, ID: p.ID, Kind: event.KindSnapshot, Name: s.Request, Rows: s.Rows, Estimate: s.Estimate,
		PerSecond: s.PerSecond, LeftSeconds: s.Left.Seconds(), At: now,
	}
	if p.Request != nil {
		b.Admin = p.Request.Admin
	}
	return b
}

// setSnapshots notes what is in Kafka.
func (s *CaptureStats) setSnapshots(running []event.SnapshotProgress, now time.Time) {
	s.Snapshotting.Store(len(running) > 0)
	if len(running) == 0 {
		if s.Snapshots.Swap(nil) != nil {
			s.meter.keep(nil)
		}
		return
	}
	list := make([]SnapshotStatus, len(running))
	for i := range running {
		list[i] = s.meter.status(&running[i], now)
	}
	s.meter.keep(running)
	s.Snapshots.Store(&list)
}

// SnapshotTotals are the sums over all snapshots that run: rows read, rows expected, rows a second, and the longest time
// that is left; 0 while unknown.
func (s *CaptureStats) SnapshotTotals() (rows, estimate int64, perSecond float64, left time.Duration) {
	list := s.Snapshots.Load()
	if list == nil {
		return 0, 0, 0, 0
	}
	for _, p := range *list {
		rows, estimate, perSecond, left = rows+p.Rows, estimate+p.Estimate, perSecond+p.PerSecond, max(left, p.Left)
	}
	return rows, estimate, perSecond, left
}

// tellSnapshots writes a line for each running snapshot into the log now and then.
func (c *Capture) tellSnapshots(ctx context.Context) error {
	tick := time.NewTicker(captureTell)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		list := c.stats.Snapshots.Load()
		if list == nil {
			continue
		}
		for _, p := range *list {
			c.log.InfoContext(ctx, "snapshot goes on", "snapshot", p.ID, "request", p.Request, "rows", p.Rows, "of_about", p.Estimate,
				"rows_per_second", int64(p.PerSecond), "left", p.Left.Round(time.Second))
		}
	}
}
