package state

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// Intend records, before requests go out, that they may reach the shop. Their time is that of the state's clock. When
// it fails the requests must not be sent.
//
// Many are on their way at the same time, and none waits for another or for a settlement: its lock of the leases (KEY
// SHARE) goes with theirs (NO KEY UPDATE). Whoever takes one of the leases over (UPDATE) waits for them all, and so finds
// what they have written. The token keeps a try whose connection broke from coming after the intent was closed.
func (s *Store) Intend(ctx context.Context, fences []work.Fence, intents []work.Intent) error {
	if len(intents) == 0 {
		return nil
	}
	if err := checkFences(fences); err != nil {
		return fmt.Errorf("intend: %w", err)
	}
	type row struct{ id, shop, key, mutation string }
	var rows []row
	for _, in := range intents {
		for _, id := range in.ProductIDs {
			rows = append(rows, row{id, in.Shop, in.Key, in.Mutation})
		}
	}
	slices.SortFunc(rows, func(a, b row) int {
		return cmp.Or(cmp.Compare(a.id, b.id), cmp.Compare(a.shop, b.shop), cmp.Compare(a.key, b.key))
	})
	rows = slices.CompactFunc(rows, func(a, b row) bool { return a.id == b.id && a.shop == b.shop && a.key == b.key })
	n := len(rows)
	ids, shops, keys, mutations := make([]string, n), make([]string, n), make([]string, n), make([]string, n)
	for i, r := range rows {
		ids[i], shops[i], keys[i], mutations[i] = r.id, r.shop, r.key, r.mutation
	}
	stages, parts, owners, epochs := fenceColumns(fences)
	var written int64
	var token work.Token
	_, _ = rand.Read(token[:]) // never fails (crypto/rand)
	err := s.retry(ctx, "intend", func() error {
		tag, err := s.pool.Exec(ctx, `WITH held AS (SELECT FROM leases l
				JOIN unnest($1::text[], $2::int[], $3::text[], $4::bigint[]) f(stage, partition, owner, epoch) USING (stage, partition, owner, epoch)
				WHERE l.expires > clock_timestamp() ORDER BY l.stage, l.partition FOR KEY SHARE OF l),
			token AS (INSERT INTO writes (token) SELECT $10::uuid WHERE (SELECT count(*) FROM held) = $9)
			INSERT INTO intents (product_id, shop, key, mutation)
			SELECT * FROM unnest($5::text[], $6::text[], $7::text[], $8::text[]) WHERE (SELECT count(*) FROM held) = $9
			ON CONFLICT (product_id, shop, key) DO UPDATE SET mutation = EXCLUDED.mutation, at = clock_timestamp()`,
			stages, parts, owners, epochs, ids, shops, keys, mutations, len(fences), [16]byte(token))
		written = tag.RowsAffected()
		return err
	})
	switch {
	case repeated(err):
		return nil
	case err != nil:
		return fmt.Errorf("intend: %w", err)
	case written == 0:
		return &LeaseLostError{Op: "intend", Leases: "one of " + fenceNames(fences)}
	}
	return nil
}

func fenceNames(fences []work.Fence) string {
	names := make([]string, len(fences))
	for i, f := range fences {
		names[i] = fmt.Sprintf("%s/%d", f.Stage, f.Partition)
	}
	return strings.Join(names, ", ")
}

// queueCloseIntents deletes intents for the products that they list: others of the same request may wait for their
// own answer.
func queueCloseIntents(b *pgx.Batch, intents []work.Intent) {
	var ids, shops, keys []string
	for _, in := range intents {
		for _, id := range in.ProductIDs {
			ids, shops, keys = append(ids, id), append(shops, in.Shop), append(keys, in.Key)
		}
	}
	if len(ids) > 0 {
		b.Queue(`DELETE FROM intents i USING unnest($1::text[], $2::text[], $3::text[]) n(product_id, shop, key)
			WHERE i.product_id = n.product_id AND i.shop = n.shop AND i.key = n.key`, ids, shops, keys)
	}
}

// Settle writes what a group of finished pushes has changed, in one transaction and one round trip, valid only under
// its fences.
//
// It is tried again until ctx ends while the state is away, and applied at most once. When ctx ends first, it may have
// been applied: the caller then gives up what it holds in memory of these partitions and continues from what
// [Store.Load] and [Store.Renew] say, as a new owner would; it does not settle the same again.
func (s *Store) Settle(ctx context.Context, t work.Settlement) error {
	if err := checkPositions(t.Fences, t.Positions); err != nil {
		return fmt.Errorf("settle: %w", err)
	}
	outbox, err := newOutboxRows(t.Outbox)
	if err != nil {
		return fmt.Errorf("settle: %w", err)
	}
	held := heldColumns(t.Park)
	return s.applyAs(ctx, "settle", t.Token, t.Fences, func(b *pgx.Batch) {
		held.lock(b)
		queueItems(b, t.Items, t.SplitItems)
		held.drop(b)
		queueProducts(b, t.Products, t.Forget)
		queueUnpark(b, t.Unpark) // before Park: that is how a product is pushed back, see mergeParked
		queuePark(b, t.Park)
		held.wake(b)
		queueCloseIntents(b, t.Intents)
		outbox.queue(b)
		queuePositions(b, t.Fences, nil, t.Positions, nil)
	})
}

// itemsSQL upserts items. An item that is settled stays so, with two exceptions, as what a shop really did is the
// truth: a success corrects a FAILED (its attempts were used up) or CANCELLED one (it was on its way), and a SKIPPED
// corrects a FAILED one. Unsettled items of a batch that is being cancelled become cancelled.
const itemsSQL = `WITH n AS (
		SELECT n.batch_id, n.product_id, n.shop, n.xid, n.category, n.reason, n.message, n.field, n.shopify_id, n.attempt,
			n.payload, CASE WHEN b.cancelling AND n.status IN ('PENDING', 'PROCESSING', 'RETRYING', 'HELD')
				THEN 'CANCELLED' ELSE n.status END AS status,
			coalesce(n.processed_at, clock_timestamp()) AS processed_at,
			ARRAY(SELECT json_array_elements_text(n.variants::json)) AS variant_ids,
			coalesce((SELECT max(w.retries) FROM batch_items w WHERE w.batch_id = n.batch_id
				AND w.product_id = n.product_id AND w.shop = ''), 0) AS retries
		FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::text[], $7::text[], $8::text[],
			$9::text[], $10::text[], $11::text[], $12::int[], $13::text[], $14::timestamptz[])
			n(batch_id, product_id, shop, xid, status, category, reason, message, field, shopify_id, variants, attempt,
				payload, processed_at)
		LEFT JOIN batches b ON b.id = n.batch_id)
	INSERT INTO batch_items AS i (batch_id, product_id, shop, xid, status, category, reason, message, field, shopify_id,
		variant_ids, attempt, payload, processed_at, retries)
	SELECT batch_id, product_id, shop, xid, status, category, reason, message, field, shopify_id, variant_ids, attempt,
		payload, processed_at, retries
	FROM n ORDER BY batch_id COLLATE "C", product_id COLLATE "C", shop COLLATE "C"
	ON CONFLICT (batch_id, product_id, shop) DO UPDATE SET
		status = EXCLUDED.status, category = EXCLUDED.category, reason = EXCLUDED.reason, message = EXCLUDED.message,
		field = EXCLUDED.field, variant_ids = EXCLUDED.variant_ids, attempt = EXCLUDED.attempt,
		shopify_id = CASE WHEN EXCLUDED.shopify_id = '' THEN i.shopify_id ELSE EXCLUDED.shopify_id END,
		payload = CASE WHEN EXCLUDED.payload = '' THEN i.payload ELSE EXCLUDED.payload END,
		processed_at = EXCLUDED.processed_at
	WHERE i.status IN ('PENDING', 'PROCESSING', 'RETRYING')
		OR i.status = 'HELD' AND (EXCLUDED.status <> 'HELD' OR EXCLUDED.message <> i.message)
		OR i.status IN ('FAILED', 'CANCELLED') AND EXCLUDED.status = 'SUCCESS'
		OR i.status = 'FAILED' AND EXCLUDED.status = 'SKIPPED'`

func queueItems(b *pgx.Batch, items, split []work.Item) {
	if len(items) > 0 {
		c := newItemColumns(items)
		queueBegun(b, c.batches)
		b.Queue(itemsSQL, c.batches, c.ids, c.shops, c.xids, c.status, c.category, c.reason, c.message, c.field,
			c.shopifyID, c.variants, c.attempts, c.payload, c.processed)
		// A late success makes a FAILED batch COMPLETED; it is not announced a second time. One that was given up stays so:
		// what of it was never seen has not succeeded.
		b.Queue(`WITH n AS (SELECT id FROM batches b WHERE id = ANY($1) AND status = 'FAILED' AND reason = '' AND EXISTS (SELECT
				FROM batch_items i WHERE i.batch_id = b.id AND i.status = 'SUCCESS') ORDER BY id FOR NO KEY UPDATE)
			UPDATE batches b SET status = 'COMPLETED' FROM n WHERE b.id = n.id`, slices.Compact(slices.Clone(c.batches)))
	}
	if len(split) > 0 {
		c := newItemColumns(split)
		b.Queue(`WITH n AS (SELECT i.batch_id, i.product_id FROM batch_items i
				JOIN unnest($1::text[], $2::text[]) n(batch_id, product_id) USING (batch_id, product_id)
				WHERE i.shop = '' ORDER BY 1, 2 FOR UPDATE OF i)
			DELETE FROM batch_items i USING n
			WHERE i.batch_id = n.batch_id AND i.product_id = n.product_id AND i.shop = ''`, c.batches, c.ids)
	}
}

func queueProducts(b *pgx.Batch, settled []work.Settled, forget []work.Known) {
	if len(settled) > 0 {
		rows := slices.Clone(settled)
		slices.SortStableFunc(rows, func(a, b work.Settled) int {
			return cmp.Or(cmp.Compare(a.ProductID, b.ProductID), cmp.Compare(a.Shop, b.Shop))
		})
		last := rows[:0]
		for i, r := range rows {
			if i+1 < len(rows) && r.ProductID == rows[i+1].ProductID && r.Shop == rows[i+1].Shop {
				continue
			}
			last = append(last, r)
		}
		queueKnown(b, last)
	}
	if len(forget) > 0 {
		ids, shops := make([]string, len(forget)), make([]string, len(forget))
		for i, k := range forget {
			ids[i], shops[i] = k.ProductID, k.Shop
		}
		b.Queue(`WITH n AS (SELECT product_id, shop FROM products JOIN unnest($1::text[], $2::text[]) n(product_id, shop)
				USING (product_id, shop) ORDER BY 1, 2 FOR UPDATE OF products)
			DELETE FROM products p USING n WHERE p.product_id = n.product_id AND p.shop = n.shop`, ids, shops)
	}
}

func queueKnown(b *pgx.Batch, rows []work.Settled) {
	n := len(rows)
	ids, shops, gids, snaps, hashes := make([]string, n), make([]string, n), make([]string, n), make([]string, n), make([]string, n)
	statuses, reasons, shadows := make([]string, n), make([]string, n), make([]*string, n)
	offSale, attempts, attempted := make([]bool, n), make([]int32, n), make([]bool, n)
	for i := range rows {
		r := &rows[i]
		ids[i], shops[i], gids[i], hashes[i] = r.ProductID, r.Shop, clean(r.ShopifyID), r.DocumentHash
		if !zeroSnapshot(r.Snapshot) {
			snaps[i] = r.Snapshot.String()
		}
		statuses[i], reasons[i] = string(r.LastStatus), clean(r.LastReason)
		if r.Shadow != nil {
			v := string(r.Shadow)
			shadows[i] = &v
		}
		offSale[i], attempts[i], attempted[i] = r.OffSale, int32(r.Attempt), r.Attempted
	}
	b.Queue(`INSERT INTO products AS p (product_id, shop, shopify_id, shadow, snapshot, document_hash, off_sale,
			last_status, last_reason, attempt, attempted_at)
		SELECT product_id, shop, shopify_id, shadow::json, snapshot, document_hash, off_sale, last_status, last_reason,
			attempt, CASE WHEN attempted THEN clock_timestamp() END
		FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bool[], $8::text[],
			$9::text[], $10::int[], $11::bool[]) n(product_id, shop, shopify_id, shadow, snapshot, document_hash, off_sale,
			last_status, last_reason, attempt, attempted)
		ORDER BY product_id COLLATE "C", shop COLLATE "C"
		ON CONFLICT (product_id, shop) DO UPDATE SET
			shopify_id = EXCLUDED.shopify_id, shadow = coalesce(EXCLUDED.shadow, p.shadow),
			snapshot = CASE WHEN EXCLUDED.snapshot = '' THEN p.snapshot ELSE EXCLUDED.snapshot END,
			document_hash = EXCLUDED.document_hash, off_sale = EXCLUDED.off_sale, last_status = EXCLUDED.last_status,
			last_reason = EXCLUDED.last_reason, attempt = EXCLUDED.attempt, settled_at = EXCLUDED.settled_at,
			attempted_at = coalesce(EXCLUDED.attempted_at, p.attempted_at)`,
		ids, shops, gids, shadows, snaps, hashes, offSale, statuses, reasons, attempts, attempted)
}

func zeroSnapshot(s change.Snapshot) bool { return s.Xmin == 0 && s.Xmax == 0 && len(s.Running) == 0 }
