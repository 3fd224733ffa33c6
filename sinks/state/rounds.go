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

// Retried is what became of a person's retry.
type Retried struct {
	// Items went back to PENDING; OverLimit have used up their retries and stay FAILED.
	Items, OverLimit int
	Round            int
}

// RetryBatch puts the failed items of a batch that have used fewer than limit retries back to PENDING and makes their
// products due. A batch that had ended is open again, in its next round. partitions is the number of partitions of
// catalog.changes.
func (s *Store) RetryBatch(ctx context.Context, id string, limit int, partitions int32) (Retried, error) {
	var out Retried
	err := s.retry(ctx, "retry batch", func() error {
		return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) (err error) {
			out, err = retryBatch(ctx, tx, id, limit, partitions)
			return err
		})
	})
	if err != nil {
		return out, fmt.Errorf("retry batch %s: %w", id, err)
	}
	return out, nil
}

func retryBatch(ctx context.Context, tx pgx.Tx, id string, limit int, partitions int32) (Retried, error) {
	var out Retried
	if _, err := lockBatch(ctx, tx, id); err != nil {
		return out, err
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
		p.Lane, p.Reason = work.LaneRetry, reasonRetry
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
			cancelling = false WHERE id = $1`, id)
		queuePark(&b, parked)
	}
	b.Queue(`SELECT b.round, (SELECT count(*) FROM batch_items i WHERE i.batch_id = $1 AND i.status = 'FAILED')
		FROM batches b WHERE b.id = $1`, id).QueryRow(func(row pgx.Row) error { return row.Scan(&out.Round, &out.OverLimit) })
	return out, tx.SendBatch(ctx, &b).Close()
}

// CancelBatch stops what a batch has not sent: its waiting items become CANCELLED, and those that come later too; what
// is in hand is settled as it ends. Products that wait only for campaigns of which this was the last are not pushed.
// Products with a live change of their own are: they were changed. The batch ends as CANCELLED, by [Store.Complete],
// when all of it has been seen and nothing is in hand.
func (s *Store) CancelBatch(ctx context.Context, id string) error {
	err := s.retry(ctx, "cancel batch", func() error {
		return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
			ended, err := lockBatch(ctx, tx, id)
			if err != nil {
				return err
			}
			if !ended.IsZero() {
				return ErrBatchEnded
			}
			var b pgx.Batch
			b.Queue(`UPDATE batches SET cancelling = true WHERE id = $1`, id)
			b.Queue(`WITH n AS (SELECT product_id, shop FROM batch_items WHERE batch_id = $1
					AND status IN ('PENDING', 'RETRYING', 'HELD') ORDER BY 1, 2 FOR NO KEY UPDATE)
				UPDATE batch_items i SET status = 'CANCELLED', processed_at = clock_timestamp() FROM n
				WHERE i.batch_id = $1 AND i.product_id = n.product_id AND i.shop = n.shop`, id)
			b.Queue(`WITH n AS (SELECT p.product_id, p.shop FROM parked p WHERE p.lane = $2 AND p.product_id IN (SELECT
					i.product_id FROM batch_items i WHERE i.batch_id = $1 AND i.status = 'CANCELLED')
					AND NOT EXISTS (SELECT FROM batch_items o WHERE o.product_id = p.product_id
						AND o.status IN ('PENDING', 'PROCESSING', 'RETRYING', 'HELD'))
					ORDER BY 1, 2 FOR UPDATE)
				DELETE FROM parked p USING n WHERE p.product_id = n.product_id AND p.shop = n.shop`, id, int16(work.LaneCampaign))
			return tx.SendBatch(ctx, &b).Close()
		})
	})
	if err != nil {
		return fmt.Errorf("cancel batch %s: %w", id, err)
	}
	return nil
}

// lockBatch locks a batch's row before its items are changed from outside, which Complete relies on, and returns when
// the batch ended.
func lockBatch(ctx context.Context, tx pgx.Tx, id string) (time.Time, error) {
	var ended *time.Time
	err := tx.QueryRow(ctx, `SELECT ended_at FROM batches WHERE id = $1 FOR NO KEY UPDATE`, id).Scan(&ended)
	if errors.Is(err, pgx.ErrNoRows) {
		err = ErrNoBatch
	}
	return orZero(ended), err
}
