package state

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// Announce takes announcements into the state: which offsets belong to each batch. Events of other types are passed
// over, as the topic carries them too. A batch that is announced already keeps its first announcement.
func (s *Store) Announce(ctx context.Context, fences []work.Fence, batches []event.Batch, positions map[int32]int64) error {
	if err := checkPositions(fences, positions); err != nil {
		return fmt.Errorf("announce: %w", err)
	}
	var rows []event.Batch
	for _, b := range batches {
		if b.Type == event.BatchAnnounced {
			rows = append(rows, b)
		}
	}
	slices.SortStableFunc(rows, func(a, b event.Batch) int { return cmp.Compare(a.ID, b.ID) })
	rows = slices.CompactFunc(rows, func(a, b event.Batch) bool { return a.ID == b.ID })
	n := len(rows)
	ids, kinds, names, admins, lsns := make([]string, n), make([]string, n), make([]string, n), make([]string, n), make([]string, n)
	changes, fanouts, counts := make([]string, n), make([]string, n), make([]int64, n)
	xids, times, reasons := make([]int64, n), make([]*time.Time, n), make([]string, n)
	for i, b := range rows {
		ids[i], kinds[i], names[i], admins[i], lsns[i] = b.ID, clean(b.Kind), clean(b.Name), clean(b.Admin), b.CommitLSN.String()
		xids[i], times[i], counts[i], reasons[i] = int64(b.XID), at(b.CommitTime), b.Rows, clean(b.Reason)
		var err error
		if changes[i], err = offsets(b.Changes); err != nil {
			return fmt.Errorf("announce batch %s: %w", b.ID, err)
		}
		if fanouts[i], err = offsets(b.Fanouts); err != nil {
			return fmt.Errorf("announce batch %s: %w", b.ID, err)
		}
	}
	return s.apply(ctx, "announce", fences, func(b *pgx.Batch) {
		if n > 0 {
			b.Queue(`INSERT INTO batches AS o (id, kind, name, admin, commit_lsn, xid, commit_time, rows, changes, fanouts,
					reason, announced, announced_at)
				SELECT id, kind, name, admin, commit_lsn, xid, commit_time, rows, changes::jsonb, fanouts::jsonb, reason, true,
					clock_timestamp()
				FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::pg_lsn[], $6::bigint[], $7::timestamptz[],
					$8::bigint[], $9::text[], $10::text[], $11::text[])
					n(id, kind, name, admin, commit_lsn, xid, commit_time, rows, changes, fanouts, reason)
				ORDER BY id COLLATE "C"
				ON CONFLICT (id) DO UPDATE SET rows = EXCLUDED.rows, changes = EXCLUDED.changes, fanouts = EXCLUDED.fanouts,
					reason = coalesce(nullif(o.reason, ''), EXCLUDED.reason), announced = true, announced_at = EXCLUDED.announced_at,
					kind = coalesce(nullif(EXCLUDED.kind, ''), o.kind), name = coalesce(nullif(EXCLUDED.name, ''), o.name),
					admin = coalesce(nullif(EXCLUDED.admin, ''), o.admin),
					commit_lsn = greatest(EXCLUDED.commit_lsn, o.commit_lsn), xid = greatest(EXCLUDED.xid, o.xid),
					commit_time = coalesce(EXCLUDED.commit_time, o.commit_time)
				WHERE NOT o.announced`,
				ids, kinds, names, admins, lsns, xids, times, counts, changes, fanouts, reasons)
		}
		queuePositions(b, fences, nil, positions, nil)
	})
}

func offsets(m map[int32]int64) (string, error) {
	if m == nil {
		return "{}", nil
	}
	v, err := json.Marshal(m)
	return string(v), err
}

// completeWhere holds for a batch b of which everything was seen and settled: every partition is past the offset of
// the batch's last record there (a fan-out: its products are parked and their items written), and no item is open.
const completeWhere = `b.announced AND b.status IN ('PENDING', 'PROCESSING')
	AND NOT EXISTS (SELECT FROM jsonb_each_text(b.changes) c LEFT JOIN leases l
		ON l.stage = 'push' AND l.partition = c.key::int WHERE l.taken_in IS NULL OR l.taken_in <= c.value::bigint)
	AND NOT EXISTS (SELECT FROM jsonb_each_text(b.fanouts) f LEFT JOIN leases l
		ON l.stage = 'expand' AND l.partition = f.key::int WHERE l.position IS NULL OR l.position <= f.value::bigint)
	AND NOT EXISTS (SELECT FROM batch_items i WHERE i.batch_id = b.id
		AND i.status IN ('PENDING', 'PROCESSING', 'RETRYING', 'HELD'))`

// Complete ends the batches that are complete and returns their events, which are in the outbox by the same
// transaction: exactly once for each batch and round, whoever calls it and how often. It looks only at batches that
// are announced and open. It also carries on what a cancel has left over, and ends campaigns of which nothing waits.
func (s *Store) Complete(ctx context.Context) ([]event.Batch, error) {
	var some, campaigns bool
	err := s.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM batches b WHERE `+completeWhere+`),
		EXISTS (SELECT FROM campaigns c WHERE c.ended_at IS NULL AND (c.cancelled OR `+campaignEnds+`))`).Scan(&some, &campaigns)
	if err != nil {
		return nil, fmt.Errorf("look for complete batches: %w", err)
	}
	if campaigns {
		if err := s.sweep(ctx); err != nil {
			return nil, fmt.Errorf("end campaigns: %w", err)
		}
	}
	if !some && !campaigns {
		return nil, nil
	}
	var events []event.Batch
	err = s.retry(ctx, "complete batches", func() error {
		return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) (err error) {
			events, err = s.complete(ctx, tx)
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("complete batches: %w", err)
	}
	return events, nil
}

func (s *Store) complete(ctx context.Context, tx pgx.Tx) ([]event.Batch, error) {
	// The rows are locked first and judged by a later statement, thus with a later snapshot: what reopens a batch locks
	// its row too, and after that lock nothing can make a complete batch incomplete.
	rows, err := tx.Query(ctx, `SELECT id FROM batches b WHERE `+completeWhere+` ORDER BY id LIMIT 100 FOR UPDATE SKIP LOCKED`)
	if err != nil {
		return nil, err
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(ids) == 0 {
		return nil, err
	}
	rows, err = tx.Query(ctx, `UPDATE batches b SET ended_at = clock_timestamp(), started_at = coalesce(b.started_at, clock_timestamp()),
			status = CASE WHEN b.cancelling THEN 'CANCELLED'
				WHEN b.reason <> '' OR c.failed > 0 AND c.succeeded = 0 THEN 'FAILED' ELSE 'COMPLETED' END
		FROM batches o CROSS JOIN LATERAL (SELECT count(*) FILTER (WHERE i.status = 'FAILED') AS failed,
				count(*) FILTER (WHERE i.status = 'SUCCESS') AS succeeded FROM batch_items i WHERE i.batch_id = o.id) c
		WHERE b.id = o.id AND o.id = ANY($1) AND `+completeWhere+` RETURNING b.id`, ids)
	if err != nil {
		return nil, err
	}
	if ids, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil || len(ids) == 0 {
		return nil, err
	}
	sums, err := summaries(ctx, tx, `WHERE b.id = ANY($1) ORDER BY b.id`, ids)
	if err != nil {
		return nil, err
	}
	var events []event.Batch
	var records []event.Record
	for _, sum := range sums {
		ev := sum.event()
		v, err := json.Marshal(ev)
		if err != nil {
			return nil, fmt.Errorf("encode completion of batch %s: %w", ev.ID, err)
		}
		events = append(events, ev)
		records = append(records, event.Record{Topic: s.batchTopic, Partition: -1, Key: []byte(ev.ID), Value: v})
	}
	outbox, err := newOutboxRows(records)
	if err != nil {
		return nil, err
	}
	var b pgx.Batch
	outbox.queue(&b)
	return events, tx.SendBatch(ctx, &b).Close()
}

// BatchStatus is the state of a batch.
type BatchStatus string

// The states of a batch.
const (
	BatchPending    BatchStatus = "PENDING"
	BatchProcessing BatchStatus = "PROCESSING"
	BatchCompleted  BatchStatus = "COMPLETED"
	BatchFailed     BatchStatus = "FAILED"
	BatchCancelled  BatchStatus = "CANCELLED"
)

// Batch is a batch with its counts, which are derived from its items whenever it is read.
type Batch struct {
	ID, Kind, Name, Admin string
	XID                   change.XID
	CommitLSN             change.LSN
	CommitTime            time.Time
	Rows                  int64
	Status                BatchStatus
	// Reason says why capture had to give the batch up: it ends as FAILED, whatever became of the items that it has. Empty
	// for one that is whole, or was retried.
	Reason                string
	Round                 int
	Announced, Cancelling bool
	CreatedAt             time.Time
	StartedAt, EndedAt    time.Time
	// Total counts the items; Processing those that are not settled.
	Total, Succeeded, Failed, Skipped, Cancelled, Processing int
	// Errors are the categories of the failed items, the most frequent first.
	Errors []BatchErrors
}

// BatchErrors is one line of a batch's error summary.
type BatchErrors struct {
	Category event.Category
	Count    int
	// An example: its product, shop and message.
	ProductID, Shop, Message string
}

// Duration is from the first item taken in hand to the end, or to now while the batch runs; zero before.
func (b *Batch) Duration(now time.Time) time.Duration {
	switch {
	case b.StartedAt.IsZero():
		return 0
	case b.EndedAt.IsZero():
		return now.Sub(b.StartedAt)
	}
	return b.EndedAt.Sub(b.StartedAt)
}

// SuccessRate is succeeded / (succeeded + failed); false where there is neither.
func (b *Batch) SuccessRate() (float64, bool) {
	if b.Succeeded+b.Failed == 0 {
		return 0, false
	}
	return float64(b.Succeeded) / float64(b.Succeeded+b.Failed), true
}

// event is the batch's record for the topic at its end.
func (b *Batch) event() event.Batch {
	ev := event.Batch{
		Type: event.BatchCompleted, ID: b.ID, Kind: b.Kind, Name: b.Name, Admin: b.Admin, XID: b.XID,
		CommitLSN: b.CommitLSN, CommitTime: b.CommitTime, Rows: b.Rows, Round: b.Round, Status: string(b.Status),
		Total: b.Total, Succeeded: b.Succeeded, Failed: b.Failed, Skipped: b.Skipped, Cancelled: b.Cancelled, At: b.EndedAt,
		Reason: b.Reason,
	}
	switch b.Status {
	case BatchFailed:
		ev.Type = event.BatchFailed
	case BatchCancelled:
		ev.Type = event.BatchCancelled
	case BatchPending, BatchProcessing, BatchCompleted:
	}
	for _, e := range b.Errors {
		if ev.Errors == nil {
			ev.Errors = map[string]int{}
		}
		ev.Errors[string(e.Category)] += e.Count
	}
	return ev
}
