package state

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// lockForget is the advisory lock of the one who forgets.
const lockForget = 0x53484647 // "SHFG"

// Forgotten counts what was removed.
type Forgotten struct {
	Batches, Items, Payloads, Campaigns, Products, Guarded int64
}

// forgetStep is a statement that removes up to $2 rows that ended longer than $1 ago and returns how many it has.
type forgetStep struct {
	sql   string
	keep  func(keep time.Duration) time.Duration
	count func(f *Forgotten) *int64
}

func whole(keep time.Duration) time.Duration { return keep }

// payloadShare is the part of the time for which what was sent is kept: it is most of the bytes, up to 64 KB an item, and
// ClickHouse has it too.
const payloadShare = 4

// forgetSteps run in this order: the items of a batch go before the batch, and one batch before the next: a batch of
// which nothing is found is done.
var forgetSteps = []forgetStep{
	{
		`WITH b AS (SELECT id FROM batches WHERE ended_at < clock_timestamp() - $1::interval AND NOT lean ORDER BY ended_at LIMIT 1),
		n AS (SELECT i.batch_id, i.product_id, i.shop FROM b CROSS JOIN LATERAL (SELECT * FROM batch_items k WHERE k.batch_id = b.id
			AND k.payload <> '') i ORDER BY 1, 2, 3 LIMIT $2 FOR NO KEY UPDATE),
		done AS (UPDATE batch_items i SET payload = '' FROM n
			WHERE i.batch_id = n.batch_id AND i.product_id = n.product_id AND i.shop = n.shop RETURNING 1),
		thin AS (UPDATE batches SET lean = true WHERE id IN (SELECT id FROM b) AND NOT EXISTS (SELECT FROM n WHERE n.batch_id = batches.id)
			RETURNING 1)
		SELECT (SELECT count(*) FROM done), (SELECT count(*) FROM done) + (SELECT count(*) FROM thin)`,
		func(keep time.Duration) time.Duration { return keep / payloadShare }, func(f *Forgotten) *int64 { return &f.Payloads },
	},
	{
		`WITH b AS (SELECT id FROM batches WHERE ended_at < clock_timestamp() - $1::interval ORDER BY ended_at LIMIT 1),
		n AS (SELECT i.batch_id, i.product_id, i.shop FROM b CROSS JOIN LATERAL (SELECT * FROM batch_items k
			WHERE k.batch_id = b.id) i ORDER BY 1, 2, 3 LIMIT $2),
		done AS (DELETE FROM batch_items i USING n
			WHERE i.batch_id = n.batch_id AND i.product_id = n.product_id AND i.shop = n.shop RETURNING 1),
		gone AS (DELETE FROM batches WHERE id IN (SELECT id FROM b) AND NOT EXISTS (SELECT FROM n WHERE n.batch_id = batches.id)
			RETURNING 1)
		SELECT (SELECT count(*) FROM done), (SELECT count(*) FROM done) + (SELECT count(*) FROM gone)`,
		whole, func(f *Forgotten) *int64 { return &f.Items },
	},
	{`WITH n AS (SELECT no, id FROM campaigns c WHERE ended_at < clock_timestamp() - $1::interval
			AND NOT EXISTS (SELECT FROM batches b WHERE b.id = c.id)
			AND NOT EXISTS (SELECT FROM parked p WHERE p.lane = ANY(` + anyLane + `) AND p.campaign = c.no) ORDER BY ended_at LIMIT $2),
		z AS (DELETE FROM pauses WHERE what IN (SELECT 'campaign/' || id FROM n)),
		done AS (DELETE FROM campaigns c USING n WHERE c.no = n.no RETURNING 1)
		SELECT count(*), count(*) FROM done`, whole, func(f *Forgotten) *int64 { return &f.Campaigns }},
	{`WITH n AS (SELECT shop, effect, product_id, free_until FROM guard_products WHERE NOT held
			AND at < clock_timestamp() - interval '2 days' AND coalesce(free_until, 'epoch') < clock_timestamp()
			AND $1::interval IS NOT NULL LIMIT $2),
		g AS (SELECT 1 FROM guards WHERE (shop, effect) IN (SELECT shop, effect FROM n) ORDER BY shop, effect FOR NO KEY UPDATE),
		done AS (DELETE FROM guard_products p USING n WHERE (SELECT count(*) FROM g) >= 0 AND p.shop = n.shop AND p.effect = n.effect
			AND p.product_id = n.product_id AND NOT p.held RETURNING p.shop, p.effect, p.free_until),
		c AS (UPDATE guards g SET counted = greatest(g.counted - d.n, 0) FROM (SELECT shop, effect, count(*) AS n FROM done
			WHERE free_until IS NULL GROUP BY 1, 2) d WHERE g.shop = d.shop AND g.effect = d.effect)
		SELECT count(*), count(*) FROM done`, whole, func(f *Forgotten) *int64 { return &f.Guarded }},
}

// Forget removes what nobody asks for any more, and says what: batches with their items and campaigns, keep after they
// ended, what was sent for their items after a quarter of that, the records of products that no shop has, and what the
// guard has counted and let go. It works in pieces, so that nobody waits for long, and one process at a time: for the
// others it is nothing.
func (s *Store) Forget(ctx context.Context, keep time.Duration) (Forgotten, error) {
	var f Forgotten
	turn, err := s.pool.Acquire(ctx)
	if err != nil {
		return f, fmt.Errorf("forget: %w", err)
	}
	defer turn.Release()
	var mine bool
	if err := turn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1)`, lockForget).Scan(&mine); err != nil || !mine {
		return f, err
	}
	defer func() {
		if _, err := turn.Exec(context.WithoutCancel(ctx), `SELECT pg_advisory_unlock($1)`, lockForget); err != nil {
			_ = turn.Conn().Close(context.WithoutCancel(ctx)) // the lock lives as long as the session
		}
	}()
	for _, step := range forgetSteps {
		if err := forgetAll(ctx, turn.Conn(), &step, keep, &f); err != nil {
			return f, fmt.Errorf("forget: %w", err)
		}
	}
	if err := forgetProducts(ctx, turn.Conn(), keep, &f); err != nil {
		return f, fmt.Errorf("forget products that no shop has: %w", err)
	}
	return f, nil
}

func forgetAll(ctx context.Context, conn *pgx.Conn, step *forgetStep, keep time.Duration, f *Forgotten) error {
	for {
		var n, work int64
		if err := conn.QueryRow(ctx, step.sql, step.keep(keep), cancelPiece).Scan(&n, &work); err != nil {
			return err
		}
		*step.count(f) += n
		if step.count(f) == &f.Items {
			f.Batches += work - n
		}
		if work == 0 {
			return nil
		}
	}
}

// forgetProducts walks the products by their key. The record of a product itself says what its last read has seen: when
// no shop has it and nothing waits, nobody asks.
func forgetProducts(ctx context.Context, conn *pgx.Conn, keep time.Duration, f *Forgotten) error {
	for after := ""; ; {
		var last *string
		var n int64
		err := conn.QueryRow(ctx, `WITH page AS (SELECT product_id, shop, settled_at FROM products WHERE product_id > $1
				ORDER BY product_id, shop LIMIT $2),
			n AS (SELECT product_id FROM page g WHERE shop = '' AND settled_at < clock_timestamp() - $3::interval
				AND NOT EXISTS (SELECT FROM products o WHERE o.product_id = g.product_id AND o.shop <> '')
				AND NOT EXISTS (SELECT FROM parked o WHERE o.product_id = g.product_id)),
			done AS (DELETE FROM products p USING n WHERE p.product_id = n.product_id AND p.shop = '' RETURNING 1)
			SELECT (SELECT count(*) FROM done), (SELECT max(product_id) FROM page)`, after, cancelPiece, keep).Scan(&n, &last)
		if err != nil {
			return err
		}
		f.Products += n
		if last == nil {
			return nil
		}
		after = *last
	}
}
