package state

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// Load reads all about products in one round trip. Call it before their documents are read: a settlement may remove
// only parked rows that stood before.
//
// A product that was begun in a shop and never settled there comes as a Known with nothing but its intents. An intent
// lists the product it was loaded with, whatever else the request held; its time is in the caller's clock.
func (s *Store) Load(ctx context.Context, products []string) (work.Loaded, error) {
	var l work.Loaded
	if len(products) == 0 {
		return l, nil
	}
	index := map[[2]string]int{}
	var b pgx.Batch
	// Parked and items before what is known: each statement has a snapshot of its own, and what was parked after its
	// turn is then rather left standing than taken for seen.
	b.Queue(`SELECT product_id, shop, campaign, generation, xids FROM parked WHERE product_id = ANY($1)`, products).
		Query(func(rows pgx.Rows) (err error) {
			l.Parked, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (p work.ParkedRef, err error) {
				err = row.Scan(&p.ProductID, &p.Shop, &p.Campaign, &p.Generation, &p.XIDs)
				p.XIDs = orNil(p.XIDs)
				return p, err
			})
			return err
		})
	b.Queue(`SELECT product_id, shop FROM excluded WHERE product_id = ANY($1)`, products).
		Query(func(rows pgx.Rows) (err error) {
			l.Excluded, err = pgx.CollectRows(rows, pgx.RowToStructByPos[work.Exclusion])
			if len(l.Excluded) == 0 {
				l.Excluded = nil
			}
			return err
		})
	b.Queue(itemSelect+` WHERE product_id = ANY($1) AND status IN ('PENDING', 'PROCESSING', 'RETRYING', 'HELD')`, products).
		Query(func(rows pgx.Rows) (err error) {
			l.Items, err = pgx.CollectRows(rows, scanItem)
			return err
		})
	b.Queue(knownSelect+` WHERE product_id = ANY($1)`, products).Query(func(rows pgx.Rows) (err error) {
		l.Known, err = pgx.CollectRows(rows, scanKnown)
		for i, k := range l.Known {
			index[[2]string{k.ProductID, k.Shop}] = i
		}
		return err
	})
	b.Queue(`SELECT product_id, shop, key, mutation, clock_timestamp() - at FROM intents WHERE product_id = ANY($1)
		ORDER BY at, key`, products).Query(func(rows pgx.Rows) error {
		var id string
		var in work.Intent
		var age time.Duration
		now := time.Now()
		_, err := pgx.ForEachRow(rows, []any{&id, &in.Shop, &in.Key, &in.Mutation, &age}, func() error {
			i, ok := index[[2]string{id, in.Shop}]
			if !ok {
				i = len(l.Known)
				index[[2]string{id, in.Shop}] = i
				l.Known = append(l.Known, work.Known{ProductID: id, Shop: in.Shop})
			}
			add := in
			add.ProductIDs, add.At = []string{id}, now.Add(-age)
			l.Known[i].Intents = append(l.Known[i].Intents, add)
			return nil
		})
		return err
	})
	if err := s.pool.SendBatch(ctx, &b).Close(); err != nil {
		return work.Loaded{}, fmt.Errorf("load %d products: %w", len(products), err)
	}
	return l, nil
}

// KnownProducts pages through what is known, for replays and audits: up to limit products above after, in the order
// of their ids (bytewise). shop "" is all shops; a product's records of all shops are then on one page, which may be a
// little longer. Open intents and the products' own records (without a shop) are left out. Continue with the last ProductID until a page is empty.
func (s *Store) KnownProducts(ctx context.Context, shop, after string, limit int) ([]work.Known, error) {
	where, args := `WHERE product_id > $1 AND shop <> '' ORDER BY product_id FETCH FIRST ($2::int) ROWS WITH TIES`, []any{after, limit}
	if shop != "" {
		where, args = `WHERE product_id > $1 AND shop = $3 ORDER BY product_id LIMIT $2::int`, append(args, shop)
	}
	rows, err := s.pool.Query(ctx, knownSelect+` `+where, args...)
	if err != nil {
		return nil, fmt.Errorf("read known products after %q: %w", after, err)
	}
	out, err := pgx.CollectRows(rows, scanKnown)
	if err != nil {
		return nil, fmt.Errorf("read known products after %q: %w", after, err)
	}
	return out, nil
}

const knownSelect = `SELECT product_id, shop, shopify_id, shadow::text, snapshot, document_hash, off_sale, last_status,
	last_reason, attempt FROM products`

func scanKnown(row pgx.CollectableRow) (work.Known, error) {
	var k work.Known
	var shadow *string
	var snapshot, status string
	err := row.Scan(&k.ProductID, &k.Shop, &k.ShopifyID, &shadow, &snapshot, &k.DocumentHash, &k.OffSale, &status,
		&k.LastReason, &k.Attempt)
	if err != nil {
		return k, err
	}
	k.LastStatus = event.Status(status)
	if shadow != nil {
		k.Shadow = json.RawMessage(*shadow)
	}
	if snapshot != "" {
		if k.Snapshot, err = change.ParseSnapshot(snapshot); err != nil {
			return k, fmt.Errorf("product %s in shop %s: %w", k.ProductID, k.Shop, err)
		}
	}
	return k, nil
}

const itemSelect = `SELECT batch_id, product_id, shop, xid, status, category, reason, message, field, shopify_id,
	variant_ids, attempt, payload, processed_at FROM batch_items`

func scanItem(row pgx.CollectableRow) (work.Item, error) {
	var it work.Item
	var x int64
	var status, category string
	var processed *time.Time
	err := row.Scan(&it.BatchID, &it.ProductID, &it.Shop, &x, &status, &category, &it.Reason, &it.Message, &it.Field,
		&it.ShopifyID, &it.VariantIDs, &it.Attempt, &it.Payload, &processed)
	it.XID, it.Status, it.Category, it.ProcessedAt = xid(x), work.ItemStatus(status), event.Category(category), orZero(processed)
	return it, err
}
