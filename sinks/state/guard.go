package state

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/shelfwire/shelfwire/schemas/work"
)

// ErrNoHold says that no hold stands.
var ErrNoHold = errors.New("no hold stands")

// freeFor is how long a released product may wait for its push. The first time that it asks, it is cut to the window:
// long enough for the retries of that push, too short for a second incident.
const freeFor = 24 * time.Hour

// Guard counts products that would get an effect in a shop, over all workers and whatever their origin, and says which
// of the requests are held. A product counts once within the window. Past max(share * live products, floor) a hold
// begins: these requests and every further one of the effect join it until [Store.ReleaseHold] or [Store.RejectHold].
// The live products are those of the shop that are on sale, and those of the counted ones that were.
//
// A request that is not held may be sent, and asked again when its push is repeated.
func (s *Store) Guard(
	ctx context.Context, shop string, reqs []work.GuardRequest, limits work.GuardLimits,
) (map[work.GuardRequest]bool, error) {
	byEffect := map[work.Effect][]string{}
	for _, r := range reqs {
		byEffect[r.Effect] = append(byEffect[r.Effect], r.ProductID)
	}
	held := map[work.GuardRequest]bool{}
	err := s.retry(ctx, "guard", func() error {
		clear(held)
		return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
			for _, effect := range slices.Sorted(maps.Keys(byEffect)) {
				ids := byEffect[effect]
				slices.Sort(ids)
				ids = slices.Compact(ids)
				caught, err := guard(ctx, tx, shop, effect, ids, limits)
				if err != nil {
					return err
				}
				for _, id := range caught {
					held[work.GuardRequest{ProductID: id, Effect: effect}] = true
				}
			}
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("guard shop %s: %w", shop, err)
	}
	return held, nil
}

// guard returns which products are held.
func guard(
	ctx context.Context, tx pgx.Tx, shop string, effect work.Effect, ids []string, limits work.GuardLimits,
) ([]string, error) {
	var b pgx.Batch
	var standing bool
	var counted int
	var asked []string // those that were not let go before
	b.Queue(`INSERT INTO guards (shop, effect) VALUES ($1, $2) ON CONFLICT DO NOTHING`, shop, string(effect))
	b.Queue(`SELECT held_since IS NOT NULL FROM guards WHERE shop = $1 AND effect = $2 FOR NO KEY UPDATE`, shop, string(effect)).
		QueryRow(func(row pgx.Row) error { return row.Scan(&standing) })
	b.Queue(`DELETE FROM guard_products WHERE shop = $1 AND effect = $2 AND NOT held
		AND at <= statement_timestamp() - $3::interval AND coalesce(free_until, 'epoch') <= statement_timestamp()`,
		shop, string(effect), limits.Window)
	b.Queue(`INSERT INTO guard_products AS g (shop, effect, product_id, at)
		SELECT $1, $2, id, statement_timestamp() FROM unnest($3::text[]) id
		ON CONFLICT (shop, effect, product_id) DO UPDATE SET at = EXCLUDED.at,
			free_until = CASE WHEN g.free_until IS NOT NULL THEN least(g.free_until, EXCLUDED.at + $4::interval) END
		RETURNING product_id, coalesce(free_until, 'epoch') > at`, shop, string(effect), ids, limits.Window).
		Query(func(rows pgx.Rows) error {
			var id string
			var free bool
			_, err := pgx.ForEachRow(rows, []any{&id, &free}, func() error {
				if !free {
					asked = append(asked, id)
				}
				return nil
			})
			return err
		})
	b.Queue(`SELECT count(*) FROM guard_products WHERE shop = $1 AND effect = $2
		AND coalesce(free_until, 'epoch') <= statement_timestamp()`, shop, string(effect)).
		QueryRow(func(row pgx.Row) error { return row.Scan(&counted) })
	if err := tx.SendBatch(ctx, &b).Close(); err != nil {
		return nil, err
	}
	if len(asked) == 0 {
		return nil, nil
	}
	if !standing {
		over, err := hold(ctx, tx, shop, effect, counted, limits)
		if err != nil || !over {
			return nil, err
		}
	}
	_, err := tx.Exec(ctx, `UPDATE guard_products SET held = true WHERE shop = $1 AND effect = $2 AND product_id = ANY($3)`,
		shop, string(effect), asked)
	return asked, err
}

// hold begins a hold when the count is past the threshold.
func hold(ctx context.Context, tx pgx.Tx, shop string, effect work.Effect, counted int, limits work.GuardLimits) (bool, error) {
	if counted <= limits.Floor {
		return false, nil // what is live need not be counted
	}
	var live int
	err := tx.QueryRow(ctx, `SELECT (SELECT count(*) FROM products WHERE shop = $1 AND shopify_id <> '' AND NOT off_sale)
		+ (SELECT count(*) FROM guard_products g JOIN products p USING (product_id, shop)
			WHERE g.shop = $1 AND g.effect = $2 AND p.shopify_id <> '' AND p.off_sale)`, shop, string(effect)).Scan(&live)
	if err != nil {
		return false, err
	}
	threshold := max(int(limits.Share*float64(live)), limits.Floor)
	if counted <= threshold {
		return false, nil
	}
	_, err = tx.Exec(ctx, `UPDATE guards SET held_since = clock_timestamp(), live = $3, threshold = $4
		WHERE shop = $1 AND effect = $2`, shop, string(effect), live, threshold)
	return true, err
}

// Hold is what the guard has stopped.
type Hold struct {
	Shop   string
	Effect work.Effect
	Since  time.Time
	// Products counts what is held; Live and Threshold are what it was measured by when the hold began.
	Products, Live, Threshold int
	// Examples are some of the held products.
	Examples []string
}

// Holds lists the holds that stand, the oldest first.
func (s *Store) Holds(ctx context.Context) ([]Hold, error) {
	rows, err := s.pool.Query(ctx, `SELECT g.shop, g.effect, g.held_since, g.live, g.threshold,
			(SELECT count(*) FROM guard_products p WHERE p.shop = g.shop AND p.effect = g.effect AND p.held),
			ARRAY(SELECT p.product_id FROM guard_products p WHERE p.shop = g.shop AND p.effect = g.effect AND p.held
				ORDER BY p.product_id LIMIT 5)
		FROM guards g WHERE g.held_since IS NOT NULL ORDER BY g.held_since, g.shop, g.effect`)
	if err != nil {
		return nil, fmt.Errorf("list holds: %w", err)
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (h Hold, err error) {
		err = row.Scan(&h.Shop, &h.Effect, &h.Since, &h.Live, &h.Threshold, &h.Products, &h.Examples)
		h.Since = h.Since.UTC()
		return h, err
	})
	if err != nil {
		return nil, fmt.Errorf("list holds: %w", err)
	}
	return out, nil
}

// ReleaseHold lets a hold go: the held products pass uncounted at their next push, which is due at once, and counting
// starts anew. Without a hold it is [ErrNoHold].
func (s *Store) ReleaseHold(ctx context.Context, shop string, effect work.Effect) error {
	return s.endHold(ctx, "release", shop, effect, func(b *pgx.Batch) {
		b.Queue(`WITH n AS (SELECT p.product_id, p.campaign FROM parked p JOIN guard_products g USING (shop, product_id)
				WHERE g.shop = $1 AND g.effect = $2 AND g.held AND p.reason = $3 ORDER BY 1, 2 FOR UPDATE OF p)
			UPDATE parked p SET due = clock_timestamp(), reason = $4 FROM n
			WHERE p.product_id = n.product_id AND p.shop = $1 AND p.campaign = n.campaign`,
			shop, string(effect), reasonHeld, reasonRetry)
		b.Queue(`DELETE FROM guard_products WHERE shop = $1 AND effect = $2 AND NOT held
			AND coalesce(free_until, 'epoch') <= statement_timestamp()`, shop, string(effect))
		b.Queue(`UPDATE guard_products SET held = false, free_until = clock_timestamp() + $3::interval
			WHERE shop = $1 AND effect = $2 AND held`, shop, string(effect), freeFor)
	})
}

// RejectHold ends a hold without its effect: the held pushes are dropped, their items CANCELLED with the reason
// REJECTED, and counting starts anew. The shop keeps what it has until a product is pushed for another reason. Without
// a hold it is [ErrNoHold].
func (s *Store) RejectHold(ctx context.Context, shop string, effect work.Effect) error {
	return s.endHold(ctx, "reject", shop, effect, func(b *pgx.Batch) {
		b.Queue(`WITH n AS (SELECT i.batch_id, i.product_id FROM batch_items i JOIN guard_products g USING (shop, product_id)
				WHERE g.shop = $1 AND g.effect = $2 AND g.held AND i.status = 'HELD' ORDER BY 1, 2 FOR NO KEY UPDATE OF i)
			UPDATE batch_items i SET status = 'CANCELLED', reason = 'REJECTED', processed_at = clock_timestamp() FROM n
			WHERE i.batch_id = n.batch_id AND i.product_id = n.product_id AND i.shop = $1`, shop, string(effect))
		// What another hold has caught as well goes on waiting for that.
		b.Queue(`WITH n AS (SELECT p.product_id, p.campaign FROM parked p JOIN guard_products g USING (shop, product_id)
				WHERE g.shop = $1 AND g.effect = $2 AND g.held AND p.reason = $3
				AND NOT EXISTS (SELECT FROM guard_products o WHERE o.shop = $1 AND o.effect <> $2 AND o.held
					AND o.product_id = p.product_id)
				ORDER BY 1, 2 FOR UPDATE OF p)
			DELETE FROM parked p USING n WHERE p.product_id = n.product_id AND p.shop = $1 AND p.campaign = n.campaign`, shop, string(effect), reasonHeld)
		b.Queue(`DELETE FROM guard_products WHERE shop = $1 AND effect = $2`, shop, string(effect))
	})
}

func (s *Store) endHold(ctx context.Context, op, shop string, effect work.Effect, queue func(b *pgx.Batch)) error {
	err := s.retry(ctx, op+" hold", func() error {
		return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
			tag, err := tx.Exec(ctx, `UPDATE guards SET held_since = NULL WHERE shop = $1 AND effect = $2
				AND held_since IS NOT NULL`, shop, string(effect))
			if err != nil {
				return err
			}
			if tag.RowsAffected() == 0 {
				return ErrNoHold
			}
			var b pgx.Batch
			queue(&b)
			return tx.SendBatch(ctx, &b).Close()
		})
	})
	if err != nil {
		return fmt.Errorf("%s the hold on %s in shop %s: %w", op, effect, shop, err)
	}
	return nil
}
