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
	var fresh, past, gone int64
	g := guardCount{shop: shop, effect: effect}
	var asked []string // those that were not let go before
	b.Queue(`INSERT INTO guards (shop, effect) VALUES ($1, $2) ON CONFLICT DO NOTHING`, shop, string(effect))
	b.Queue(`SELECT held_since IS NOT NULL, counted, measured, measured_at > statement_timestamp() - $3::interval
		FROM guards WHERE shop = $1 AND effect = $2 FOR NO KEY UPDATE`, shop, string(effect), measuredFor).
		QueryRow(func(row pgx.Row) error { return row.Scan(&standing, &g.counted, &g.live, &g.measured) })
	b.Queue(`WITH gone AS (DELETE FROM guard_products WHERE shop = $1 AND effect = $2 AND NOT held
			AND at <= statement_timestamp() - $3::interval AND coalesce(free_until, 'epoch') <= statement_timestamp()
			RETURNING free_until)
		SELECT count(*) FILTER (WHERE free_until IS NULL) FROM gone`, shop, string(effect), limits.Window).
		QueryRow(func(row pgx.Row) error { return row.Scan(&gone) })
	b.Queue(`INSERT INTO guard_products AS g (shop, effect, product_id, at)
		SELECT $1, $2, id, statement_timestamp() FROM unnest($3::text[]) id
		ON CONFLICT (shop, effect, product_id) DO UPDATE SET at = EXCLUDED.at,
			free_until = CASE WHEN g.free_until IS NOT NULL THEN least(g.free_until, EXCLUDED.at + $4::interval) END
		RETURNING product_id, coalesce(free_until, 'epoch') > at, xmax = 0`, shop, string(effect), ids, limits.Window).
		Query(func(rows pgx.Rows) error {
			var id string
			var free, first bool
			_, err := pgx.ForEachRow(rows, []any{&id, &free, &first}, func() error {
				if !free {
					asked = append(asked, id)
				}
				if first {
					fresh++
				}
				return nil
			})
			return err
		})
	b.Queue(`SELECT count(*) FROM guard_products WHERE shop = $1 AND effect = $2 AND free_until <= statement_timestamp()`,
		shop, string(effect)).QueryRow(func(row pgx.Row) error { return row.Scan(&past) })
	if err := tx.SendBatch(ctx, &b).Close(); err != nil {
		return nil, err
	}
	g.counted += fresh - gone
	if len(asked) == 0 || !standing {
		over, err := g.write(ctx, tx, g.counted+past, limits, len(asked) > 0)
		if err != nil || !over {
			return nil, err
		}
	}
	_, err := tx.Exec(ctx, `WITH n AS (UPDATE guards SET counted = $4 WHERE shop = $1 AND effect = $2)
		UPDATE guard_products SET held = true WHERE shop = $1 AND effect = $2 AND product_id = ANY($3)`,
		shop, string(effect), asked, g.counted)
	return asked, err
}

// measuredFor is how long a count of a shop's live products is good: a hundred thousand take 20 ms, and what the guard
// itself lets pass does not change the number.
const measuredFor = 10 * time.Second

// guardCount is what the guard's row says of a shop and an effect, which is locked.
type guardCount struct {
	shop   string
	effect work.Effect
	// counted are the products in the window that were not let go; live those of the shop, when measured is true.
	counted, live int64
	measured      bool
}

// write keeps the count and begins a hold where it is past the threshold; judge says that somebody has asked.
func (g *guardCount) write(ctx context.Context, tx pgx.Tx, counted int64, limits work.GuardLimits, judge bool) (bool, error) {
	over, threshold := false, int64(limits.Floor)
	if judge && counted > threshold { // else what is live need not be counted
		if !g.measured {
			err := tx.QueryRow(ctx, `WITH n AS (SELECT (SELECT count(*) FROM products WHERE shop = $1 AND shopify_id <> '' AND NOT off_sale)
					+ (SELECT count(*) FROM guard_products g JOIN products p USING (product_id, shop)
						WHERE g.shop = $1 AND g.effect = $2 AND p.shopify_id <> '' AND p.off_sale) AS live)
				UPDATE guards SET measured = n.live, measured_at = clock_timestamp() FROM n
				WHERE shop = $1 AND effect = $2 RETURNING measured`, g.shop, string(g.effect)).Scan(&g.live)
			if err != nil {
				return false, err
			}
		}
		threshold = max(int64(limits.Share*float64(g.live)), threshold)
		over = counted > threshold
	}
	_, err := tx.Exec(ctx, `UPDATE guards SET counted = $3, held_since = CASE WHEN $4 THEN clock_timestamp() ELSE held_since END,
			live = CASE WHEN $4 THEN $5 ELSE live END, threshold = CASE WHEN $4 THEN $6 ELSE threshold END
		WHERE shop = $1 AND effect = $2`, g.shop, string(g.effect), g.counted, over, g.live, threshold)
	return over, err
}

// held are products that a settlement parks because of a hold. The hold may have ended since the guard was asked, and has
// then made due, or dropped, only what was parked: these would wait for the next recheck, and be pushed then.
type held struct{ ids, shops []string }

func heldColumns(parked []work.Parked) (h held) {
	for i := range parked {
		if parked[i].Reason == reasonHeld {
			h.ids, h.shops = append(h.ids, parked[i].ProductID), append(h.shops, parked[i].Shop)
		}
	}
	return h
}

// lock keeps holds of the shops from ending until the settlement is committed: before the rows that their end locks.
func (h held) lock(b *pgx.Batch) {
	if len(h.ids) > 0 {
		b.Queue(`SELECT FROM guards WHERE shop = ANY($1) ORDER BY shop, effect FOR SHARE`, h.shops)
	}
}

// rejectedSQL holds for n(product_id, shop), whose push the guard has held, when a hold on it was rejected since and none
// else stands. A row of the guard that is held goes only so. A release leaves the row, and is younger than the question:
// a product that was free already when it was asked about is so for less than $3, which is freeFor.
const rejectedSQL = `NOT EXISTS (SELECT FROM guards e JOIN guard_products g USING (shop, effect)
	WHERE e.shop = n.shop AND g.product_id = n.product_id AND (g.held OR g.free_until >= g.at + $3::interval))`

// drop cancels the items of what was rejected before it was parked, as [Store.RejectHold] would have: else it would be
// pushed, and counted anew.
func (h held) drop(b *pgx.Batch) {
	if len(h.ids) > 0 {
		b.Queue(`WITH i AS (SELECT i.batch_id, i.product_id, i.shop FROM batch_items i
				JOIN unnest($1::text[], $2::text[]) n(product_id, shop) USING (product_id, shop)
				WHERE i.status = 'HELD' AND `+rejectedSQL+` ORDER BY 1, 2, 3 FOR NO KEY UPDATE OF i)
			UPDATE batch_items o SET status = 'CANCELLED', reason = 'REJECTED', processed_at = clock_timestamp() FROM i
			WHERE o.batch_id = i.batch_id AND o.product_id = i.product_id AND o.shop = i.shop`, h.ids, h.shops, freeFor)
	}
}

// wake ends the wait for what no hold holds any more: what was rejected is dropped, what was released is due now.
func (h held) wake(b *pgx.Batch) {
	if len(h.ids) > 0 {
		b.Queue(`DELETE FROM parked p USING unnest($1::text[], $2::text[]) n(product_id, shop)
			WHERE p.product_id = n.product_id AND p.shop = n.shop AND p.reason = $4 AND `+rejectedSQL,
			h.ids, h.shops, freeFor, reasonHeld)
		b.Queue(`UPDATE parked p SET due = clock_timestamp(), reason = $4 FROM unnest($1::text[], $2::text[]) n(product_id, shop)
			WHERE p.product_id = n.product_id AND p.shop = n.shop AND p.reason = $3 AND NOT EXISTS (SELECT
				FROM guard_products g WHERE g.shop = p.shop AND g.product_id = p.product_id AND g.held)`,
			h.ids, h.shops, reasonHeld, reasonRetry)
	}
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
	return s.endHold(ctx, "release", shop, effect, func(b *pgx.Batch, ids []string) {
		b.Queue(`WITH n AS (SELECT p.product_id, p.campaign FROM parked p WHERE p.shop = $1 AND p.product_id = ANY($2) AND p.reason = $3
				ORDER BY 1, 2 FOR UPDATE OF p)
			UPDATE parked p SET due = clock_timestamp(), reason = $4 FROM n
			WHERE p.product_id = n.product_id AND p.shop = $1 AND p.campaign = n.campaign`, shop, ids, reasonHeld, reasonRetry)
		b.Queue(`UPDATE guard_products SET held = false, free_until = clock_timestamp() + $4::interval
			WHERE shop = $1 AND effect = $2 AND product_id = ANY($3)`, shop, string(effect), ids, freeFor)
	})
}

// RejectHold ends a hold without its effect: the held pushes are dropped, their items CANCELLED with the reason
// REJECTED, and counting starts anew. The shop keeps what it has until a product is pushed for another reason. Without
// a hold it is [ErrNoHold].
func (s *Store) RejectHold(ctx context.Context, shop string, effect work.Effect) error {
	return s.endHold(ctx, "reject", shop, effect, func(b *pgx.Batch, ids []string) {
		b.Queue(`WITH n AS (SELECT i.batch_id, i.product_id FROM batch_items i
				WHERE i.shop = $1 AND i.product_id = ANY($2) AND i.status = 'HELD' ORDER BY 1, 2 FOR NO KEY UPDATE OF i)
			UPDATE batch_items i SET status = 'CANCELLED', reason = 'REJECTED', processed_at = clock_timestamp() FROM n
			WHERE i.batch_id = n.batch_id AND i.product_id = n.product_id AND i.shop = $1`, shop, ids)
		// What another hold has caught as well goes on waiting for that.
		b.Queue(`WITH n AS (SELECT p.product_id, p.campaign FROM parked p WHERE p.shop = $1 AND p.product_id = ANY($3) AND p.reason = $4
				AND NOT EXISTS (SELECT FROM guard_products o WHERE o.shop = $1 AND o.effect <> $2 AND o.held
					AND o.product_id = p.product_id)
				ORDER BY 1, 2 FOR UPDATE OF p)
			DELETE FROM parked p USING n WHERE p.product_id = n.product_id AND p.shop = $1 AND p.campaign = n.campaign`,
			shop, string(effect), ids, reasonHeld)
		b.Queue(`DELETE FROM guard_products WHERE shop = $1 AND effect = $2 AND product_id = ANY($3)`, shop, string(effect), ids)
	})
}

// endHold ends a hold in pieces, so that no settlement waits for long: while it stands, what is let go passes, and what
// comes anew joins. Each piece but the last is cancelPiece products; who is cut short begins again with what is left.
func (s *Store) endHold(ctx context.Context, op, shop string, effect work.Effect, end func(b *pgx.Batch, ids []string)) error {
	for last := false; !last; {
		err := s.transactOnce(ctx, op+" hold", func(tx pgx.Tx) (err error) {
			last, err = endSome(ctx, tx, shop, effect, end)
			return err
		})
		if err != nil {
			return fmt.Errorf("%s the hold on %s in shop %s: %w", op, effect, shop, err)
		}
	}
	return nil
}

func endSome(ctx context.Context, tx pgx.Tx, shop string, effect work.Effect, end func(b *pgx.Batch, ids []string)) (last bool, err error) {
	var standing bool
	err = tx.QueryRow(ctx, `SELECT held_since IS NOT NULL FROM guards WHERE shop = $1 AND effect = $2 FOR NO KEY UPDATE`,
		shop, string(effect)).Scan(&standing)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && !standing {
		return false, ErrNoHold
	}
	if err != nil {
		return false, err
	}
	rows, err := tx.Query(ctx, `SELECT product_id FROM guard_products WHERE shop = $1 AND effect = $2 AND held
		ORDER BY product_id LIMIT $3`, shop, string(effect), cancelPiece)
	if err != nil {
		return false, err
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return false, err
	}
	last = len(ids) < cancelPiece
	var b pgx.Batch
	if len(ids) > 0 {
		end(&b, ids)
	}
	if last {
		b.Queue(`DELETE FROM guard_products WHERE shop = $1 AND effect = $2 AND NOT held
			AND coalesce(free_until, 'epoch') <= statement_timestamp()`, shop, string(effect))
		b.Queue(`UPDATE guards SET held_since = NULL, counted = 0 WHERE shop = $1 AND effect = $2`, shop, string(effect))
	} else {
		b.Queue(`UPDATE guards SET counted = greatest(counted - $3, 0) WHERE shop = $1 AND effect = $2`, shop, string(effect), len(ids))
	}
	return last, tx.SendBatch(ctx, &b).Close()
}
