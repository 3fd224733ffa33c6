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

// Shops returns what is known of every shop that has a bucket or was ever dead or paused. Times are in the caller's
// clock.
func (s *Store) Shops(ctx context.Context) ([]work.ShopHealth, error) {
	rows, err := s.pool.Query(ctx, `SELECT shop, clock_timestamp() - h.dead_since, coalesce(h.reason, ''),
			h.next_probe - clock_timestamp(), z.shop IS NOT NULL, b.bucket
		FROM shops h FULL JOIN buckets b USING (shop)
		FULL JOIN (SELECT substr(what, 6) AS shop FROM pauses WHERE what LIKE 'shop/%') z USING (shop) ORDER BY shop`)
	if err != nil {
		return nil, fmt.Errorf("read the shops: %w", err)
	}
	now := time.Now()
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (work.ShopHealth, error) {
		var h work.ShopHealth
		var dead, probe *time.Duration
		var bucket []byte
		if err := row.Scan(&h.Shop, &dead, &h.Reason, &probe, &h.Paused, &bucket); err != nil {
			return h, err
		}
		if dead != nil {
			h.DeadSince = now.Add(-*dead)
		}
		if probe != nil {
			h.NextProbe = now.Add(*probe)
		}
		if bucket != nil {
			if err := json.Unmarshal(bucket, &h.Bucket); err != nil {
				return h, fmt.Errorf("bucket of shop %s: %w", h.Shop, err)
			}
		}
		return h, nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the shops: %w", err)
	}
	return out, nil
}

// reviveSpread is over what time the products of a shop that answers again come due: all at once would be another
// reason for it to refuse.
const reviveSpread = time.Minute

// SetShopDead notes that a shop refuses everything, and when one product may be tried on it; or that it answers again.
// Then the products that have waited for it come due, spread over a minute. Until nextProbe, [Store.Pull] leaves out
// what waits for a dead shop, and afterwards returns one product for each partition and lane.
func (s *Store) SetShopDead(ctx context.Context, shop, reason string, dead bool, nextProbe time.Time) error {
	probe := max(time.Until(nextProbe), 0)
	_, err := s.pool.Exec(ctx, `INSERT INTO shops AS s (shop, dead_since, reason, next_probe)
			SELECT $1, CASE WHEN $3 THEN clock_timestamp() END, $2, CASE WHEN $3 THEN clock_timestamp() + $4::interval END
		ON CONFLICT (shop) DO UPDATE SET reason = EXCLUDED.reason, next_probe = EXCLUDED.next_probe,
			dead_since = CASE WHEN $3 THEN coalesce(s.dead_since, EXCLUDED.dead_since) END`,
		shop, clean(reason), dead, probe)
	if err == nil && !dead {
		err = s.revive(ctx, shop)
	}
	if err != nil {
		return fmt.Errorf("set shop %s dead=%t: %w", shop, dead, err)
	}
	return nil
}

// ClaimProbe lets one worker of all try a dead shop, and keeps the others back until next: it says whether the caller is
// the one. A shop that is not dead, or whose probe is not due, is nobody's.
func (s *Store) ClaimProbe(ctx context.Context, shop string, next time.Time) (bool, error) {
	tag, err := s.pool.Exec(ctx, `UPDATE shops SET next_probe = clock_timestamp() + $2::interval
		WHERE shop = $1 AND dead_since IS NOT NULL AND next_probe <= clock_timestamp()`, shop, max(time.Until(next), 0))
	if err != nil {
		return false, fmt.Errorf("claim the probe of shop %s: %w", shop, err)
	}
	return tag.RowsAffected() == 1, nil
}

// revive spreads waiting products, the latest due first and for 2 s at the most: a worker waits for it. What it does
// not reach is due soonest by itself. Pieces and SKIP LOCKED keep settlements from waiting.
func (s *Store) revive(ctx context.Context, shop string) error {
	for start := time.Now(); time.Since(start) < 2*time.Second; {
		tag, err := s.pool.Exec(ctx, `WITH n AS (SELECT product_id, campaign FROM parked WHERE shop = $1 AND reason = $2
				ORDER BY due DESC LIMIT 5000 FOR UPDATE SKIP LOCKED)
			UPDATE parked p SET reason = $3, due = clock_timestamp() + random() * $4::interval
			FROM n WHERE p.product_id = n.product_id AND p.shop = $1 AND p.campaign = n.campaign`, shop, reasonShopDead, reasonRetry, reviveSpread)
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 {
			return nil
		}
	}
	return nil
}
