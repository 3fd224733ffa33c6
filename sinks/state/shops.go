package state

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/shelfwire/shelfwire/schemas/work"
)

// UpdateBucket reads a shop's bucket, lets f change it and writes it back, while no other process can. now is the
// state's clock. f must only compute: the row is locked while it runs. It is called once, or not at all when the state
// cannot be reached; where the answer to the write is lost, the error leaves open whether it was written. A shop
// without a bucket begins with the zero one.
func (s *Store) UpdateBucket(ctx context.Context, shop string, f func(now time.Time, b *work.Bucket)) error {
	if err := s.updateBucket(ctx, shop, f); err != nil {
		return fmt.Errorf("update the bucket of shop %s: %w", shop, err)
	}
	return nil
}

func (s *Store) updateBucket(ctx context.Context, shop string, f func(now time.Time, b *work.Bucket)) error {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release() // closes the connection where the transaction is still open
	var now time.Time
	var text []byte
	var read pgx.Batch
	read.Queue(`BEGIN`)
	read.Queue(`INSERT INTO buckets (shop) SELECT $1 WHERE NOT EXISTS (SELECT FROM buckets WHERE shop = $1)
		ON CONFLICT DO NOTHING`, shop)
	read.Queue(`SELECT bucket FROM buckets WHERE shop = $1 FOR NO KEY UPDATE`, shop).
		QueryRow(func(row pgx.Row) error { return row.Scan(&text) })
	// After the lock: the time of waiting for it belongs to the past.
	read.Queue(`SELECT clock_timestamp()`).QueryRow(func(row pgx.Row) error { return row.Scan(&now) })
	if err := conn.SendBatch(ctx, &read).Close(); err != nil {
		return err
	}
	var b work.Bucket
	if err := json.Unmarshal(text, &b); err != nil {
		return fmt.Errorf("decode: %w", err)
	}
	f(now.UTC(), &b)
	if text, err = json.Marshal(b); err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	var write pgx.Batch
	write.Queue(`UPDATE buckets SET bucket = $2::text::json WHERE shop = $1`, shop, string(text))
	write.Queue(`COMMIT`)
	return conn.SendBatch(ctx, &write).Close()
}
