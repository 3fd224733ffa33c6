package postgres

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"
)

// confirmInterval is how long a new confirmed position may wait for the next status message. It bounds what is sent
// again after a kill, and how much WAL a busy slot holds back, for one small packet a second.
const confirmInterval = time.Second

// statusDue is when the next status message must go out.
func (st *Stream) statusDue() time.Time {
	if st.Confirmed() > st.sent {
		return st.sentAt.Add(min(st.interval, confirmInterval))
	}
	return st.sentAt.Add(st.interval)
}

// Keepalive sends a status message if one is due. It never waits for the server, and reads nothing: the server takes
// messages also while it is itself stopped by a full connection.
func (st *Stream) Keepalive() error {
	if st.broken != nil {
		return st.broken
	}
	if st.asked && st.Confirmed() > st.sent || !time.Now().Before(st.statusDue()) {
		st.asked = false
		return st.status()
	}
	return nil
}

// Attend runs work in a goroutine of its own, returns its error, and keeps the connection alive while it runs. This
// is how a caller waits for Kafka: reading stops, so the server stops sending, and no timeout strikes however long
// the broker is away. Work gets ctx as it is; trouble of the connection does not disturb it and is returned by the
// next call of Next.
func (st *Stream) Attend(ctx context.Context, work func(context.Context) error) error {
	done := make(chan error, 1)
	go func() { done <- work(ctx) }()
	timer := time.NewTimer(time.Until(st.statusDue()))
	defer timer.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-timer.C:
			if err := st.Keepalive(); err != nil && st.broken == nil {
				st.broken = fmt.Errorf("replication stream at %s: %w", st.Confirmed(), err)
			}
			if st.broken == nil {
				timer.Reset(time.Until(st.statusDue()))
			}
		}
	}
}

// status tells the server the confirmed position: as written, as flushed and as applied. Before the slot has been looked
// at all three are zero, of which the server takes nothing but the sign of life.
func (st *Stream) status() error {
	pos := st.Confirmed()
	now := time.Now()
	m := make([]byte, 0, 34)
	m = append(m, pglogrepl.StandbyStatusUpdateByteID)
	m = binary.BigEndian.AppendUint64(m, uint64(pos)) // written
	m = binary.BigEndian.AppendUint64(m, uint64(pos)) // flushed
	m = binary.BigEndian.AppendUint64(m, uint64(pos)) // applied
	m = binary.BigEndian.AppendUint64(m, uint64(toPostgresTime(now)))
	m = append(m, 0) // no reply wanted
	if err := st.wire.send('d', m); err != nil {
		return fmt.Errorf("send status %s: %w", pos, err)
	}
	st.sent, st.sentAt = pos, now
	return nil
}
