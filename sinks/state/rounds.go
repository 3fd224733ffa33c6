package state

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// ErrBatchEnded says that a batch cannot be cancelled because it has ended.
var ErrBatchEnded = errors.New("the batch has ended")

// ErrBatchCancelling says that a batch cannot be retried because it is being cancelled: what is in hand of it must end
// first.
var ErrBatchCancelling = errors.New("the batch is being cancelled")

// Retried is what became of a person's retry.
type Retried struct {
	// Items went back to PENDING; OverLimit have used up their retries and stay FAILED.
	Items, OverLimit int
	Round            int
}

// RetryBatch puts the failed items of a batch that have used fewer than limit retries back to PENDING and makes their
// products due. A batch that had ended is open again, in its next round; what was cancelled of it stays so. partitions
// is the number of partitions of catalog.changes.
func (s *Store) RetryBatch(ctx context.Context, id string, limit int, partitions int32) (Retried, error) {
	var out Retried
	err := s.transactOnce(ctx, "retry batch", func(tx pgx.Tx) (err error) {
		out, err = retryBatch(ctx, tx, id, limit, partitions)
		return err
	})
	if err != nil {
		return out, fmt.Errorf("retry batch %s: %w", id, err)
	}
	return out, nil
}

func retryBatch(ctx context.Context, tx pgx.Tx, id string, limit int, partitions int32) (Retried, error) {
	var out Retried
	lock, err := lockBatch(ctx, tx, id)
	if err != nil {
		return out, err
	}
	if lock.cancelling && lock.ended.IsZero() {
		return out, ErrBatchCancelling // its sweep would drop what is parked here
	}
	rows, err := tx.Query(ctx, `WITH n AS (SELECT product_id, shop FROM batch_items WHERE batch_id = $1 AND status = 'FAILED'
				AND retries < $2 ORDER BY 1, 2 FOR NO KEY UPDATE)
			UPDATE batch_items i SET status = 'PENDING', retries = retries + 1, attempt = 0 FROM n
			WHERE i.batch_id = $1 AND i.product_id = n.product_id AND i.shop = n.shop RETURNING i.product_id, i.shop, i.xid`,
		id, limit)
	if err != nil {
		return out, err
	}
	parked, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (p work.Parked, err error) {
		var x int64
		if err = row.Scan(&p.ProductID, &p.Shop, &x); x != 0 {
			p.XIDs = []change.XID{xid(x)}
		}
		p.Lane, p.Reason, p.CampaignID = work.LaneRetry, reasonRetry, id
		p.Partition = change.Partition(change.ProductID(p.ProductID), partitions)
		return p, err
	})
	if err != nil {
		return out, err
	}
	out.Items = len(parked)
	var b pgx.Batch
	if len(parked) > 0 {
		b.Queue(`UPDATE batches SET round = round + (ended_at IS NOT NULL)::int, status = 'PROCESSING', reason = '', ended_at = NULL,
			cancelling = false, lean = false WHERE id = $1`, id)
		b.Queue(`UPDATE campaigns SET cancelled = false, ended_at = NULL WHERE id = $1`, id)
		queuePark(&b, parked)
	}
	b.Queue(`SELECT b.round, (SELECT count(*) FROM batch_items i WHERE i.batch_id = $1 AND i.status = 'FAILED')
		FROM batches b WHERE b.id = $1`, id).QueryRow(func(row pgx.Row) error { return row.Scan(&out.Round, &out.OverLimit) })
	return out, tx.SendBatch(ctx, &b).Close()
}

// CancelBatch stops what a batch has not sent: its waiting items become CANCELLED, and those that come later too; what
// is in hand is settled as it ends. Its parked products are dropped, also where another campaign or a change of their
// own wants them, which stands in a row of its own. The batch ends as CANCELLED, by [Store.Complete], when all of it
// has been seen and nothing is in hand.
//
// It is cancelled when the first transaction has been committed; items and rows follow in pieces, by this call or, if
// that ends early, by [Store.Complete].
func (s *Store) CancelBatch(ctx context.Context, id string) error {
	var no int64
	err := s.transactOnce(ctx, "cancel batch", func(tx pgx.Tx) error {
		lock, err := lockBatch(ctx, tx, id)
		if err != nil {
			return err
		}
		if !lock.ended.IsZero() {
			return ErrBatchEnded
		}
		var b pgx.Batch
		b.Queue(`UPDATE batches SET cancelling = true WHERE id = $1`, id)
		b.Queue(`INSERT INTO campaigns AS c (id, cancelled) VALUES ($1, true)
			ON CONFLICT (id) DO UPDATE SET cancelled = true, ended_at = NULL RETURNING no`, id).
			QueryRow(func(row pgx.Row) error { return row.Scan(&no) })
		return tx.SendBatch(ctx, &b).Close()
	})
	if err == nil {
		err = s.sweepItems(ctx, id)
	}
	if err == nil {
		err = s.sweepParked(ctx, no, id)
	}
	if err != nil {
		return fmt.Errorf("cancel batch %s: %w", id, err)
	}
	return nil
}

// batchLock is what a batch was when its row was locked.
type batchLock struct {
	ended      time.Time
	cancelling bool
}

// lockBatch locks a batch's row before its items are changed from outside, which Complete relies on.
func lockBatch(ctx context.Context, tx pgx.Tx, id string) (l batchLock, err error) {
	var ended *time.Time
	err = tx.QueryRow(ctx, `SELECT ended_at, cancelling FROM batches WHERE id = $1 FOR NO KEY UPDATE`, id).Scan(&ended, &l.cancelling)
	if errors.Is(err, pgx.ErrNoRows) {
		err = ErrNoBatch
	}
	l.ended = orZero(ended)
	return l, err
}
