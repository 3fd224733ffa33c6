package postgres

import (
	"context"
	"time"

	"github.com/shelfwire/shelfwire/schemas/change"
)

// SlotStatus is what the server says of the slot, of its walsender and of what holds them up, at one moment.
type SlotStatus struct {
	// Exists, Active and ActivePID say whether there is a slot, and who reads it.
	Exists    bool
	Active    bool
	ActivePID int32
	// End is the end of WAL; Confirmed, Restart and Sent are how far the slot is acknowledged, from where the server
	// keeps WAL for it, and what its walsender has sent. Each is 0 where it is not known.
	End, Confirmed, Restart, Sent change.LSN
	// WALStatus is reserved, extended, unreserved (the server may remove needed WAL at its next checkpoint) or lost.
	// Reason is why the slot was invalidated.
	WALStatus, Reason string
	// SafeWAL is how many bytes may still be written before the slot is in danger; -1 where the server has no limit.
	SafeWAL int64
	// State is the walsender's: startup, catchup, streaming; empty without one.
	State string
	// SpillTransactions and SpillBytes are what the server has spilled for the slot, since its statistics were reset.
	SpillTransactions, SpillBytes int64
	// Streamed are the transactions that the server has streamed before their commit.
	Streamed int64
	// OldestTransaction is the age of the oldest open transaction that writes; nothing newer than its beginning can be
	// forgotten. 0: none is open.
	OldestTransaction time.Duration
	// Connections are those of this application to the server, the walsender among them.
	Connections int
	// At is the time by this process's clock. ClockOffset is what the server's clock is ahead of it, at most ClockError
	// wrong, which is half of the round trip.
	At                      time.Time
	ClockOffset, ClockError time.Duration
}

// Held is how many bytes of WAL the server keeps for the slot.
func (s *SlotStatus) Held() int64 { return distance(s.Restart, s.End) }

// Lag is how many bytes of WAL are not acknowledged.
func (s *SlotStatus) Lag() int64 { return distance(s.Confirmed, s.End) }

func distance(from, to change.LSN) int64 {
	if from == 0 || to < from {
		return 0
	}
	return int64(to - from)
}

// statusSQL asks for everything at once: positions that are compared must be of one moment.
const statusSQL = `
	SELECT s.slot_name IS NOT NULL, coalesce(s.active, false), coalesce(s.active_pid, 0),
		CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END::text,
		coalesce(s.confirmed_flush_lsn, '0/0')::text, coalesce(s.restart_lsn, '0/0')::text, coalesce(r.sent_lsn, '0/0')::text,
		coalesce(s.wal_status, ''), coalesce(to_jsonb(s) ->> 'invalidation_reason', ''), coalesce(s.safe_wal_size, -1),
		coalesce(r.state, ''), coalesce(t.spill_txns, 0), coalesce(t.spill_bytes, 0), coalesce(t.stream_txns, 0),
		coalesce((SELECT extract(epoch FROM clock_timestamp() - min(xact_start)) FROM pg_stat_activity
			WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()), 0)::float8,
		(SELECT count(*) FROM pg_stat_activity WHERE application_name = $2 AND datname = current_database()),
		(extract(epoch FROM clock_timestamp()) * 1000000)::bigint
	FROM (VALUES (1)) always
	LEFT JOIN pg_replication_slots s ON s.slot_name = $1
	LEFT JOIN pg_stat_replication r ON r.pid = s.active_pid
	LEFT JOIN pg_stat_replication_slots t ON t.slot_name = s.slot_name`

// SlotStatus measures. It costs one statement that reads no table. A role without pg_read_all_stats sees less: nothing of
// others' transactions, and of a walsender of another role only that it is there.
func (s *Source) SlotStatus(ctx context.Context) (SlotStatus, error) {
	conn, err := s.pool.Acquire(ctx) // before the clock is read
	if err != nil {
		return SlotStatus{}, wrap(ctx, "measure the slot", err)
	}
	defer conn.Release()
	out := SlotStatus{At: time.Now()}
	var end, confirmed, restart, sent string
	var oldest float64
	var us int64
	err = conn.QueryRow(ctx, statusSQL, s.cfg.Slot, s.cfg.ApplicationName).Scan(
		&out.Exists, &out.Active, &out.ActivePID, &end, &confirmed, &restart, &sent, &out.WALStatus, &out.Reason, &out.SafeWAL,
		&out.State, &out.SpillTransactions, &out.SpillBytes, &out.Streamed, &oldest, &out.Connections, &us)
	if err != nil {
		return SlotStatus{}, wrap(ctx, "measure the slot", err)
	}
	trip := time.Since(out.At)
	out.ClockError = trip / 2
	out.ClockOffset = time.UnixMicro(us).Sub(out.At.Add(trip / 2))
	out.OldestTransaction = time.Duration(oldest * float64(time.Second))
	for _, p := range []struct {
		text string
		lsn  *change.LSN
	}{{end, &out.End}, {confirmed, &out.Confirmed}, {restart, &out.Restart}, {sent, &out.Sent}} {
		if *p.lsn, err = change.ParseLSN(p.text); err != nil {
			return SlotStatus{}, err
		}
	}
	return out, nil
}
