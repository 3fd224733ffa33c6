package state

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// Every transaction that writes several of these tables does so in one order: leases, guards, batches, items, products,
// campaigns that are made or opened, parked, totals of campaigns, intents, outbox, positions; and within each statement
// by key. So two writers never wait for each other in a circle except over rows that both insert, which is tried again.

// TakeIn records what a stage has read: batches and items are opened, products parked, positions moved. A batch that
// is seen for the first time is announced as opened through the outbox.
func (s *Store) TakeIn(ctx context.Context, t work.TakeIn) error {
	if err := checkPositions(t.Fences, t.TakenIn, t.Positions); err != nil {
		return fmt.Errorf("take in: %w", err)
	}
	opened, err := openedEvents(t.Batches)
	if err != nil {
		return fmt.Errorf("take in: %w", err)
	}
	outbox, err := newOutboxRows(t.Outbox)
	if err != nil {
		return fmt.Errorf("take in: %w", err)
	}
	return s.applyAs(ctx, "take in", t.Token, t.Fences, func(b *pgx.Batch) {
		s.queueOpen(b, opened)
		queueSpoilt(b, t.Spoilt)
		queueNewItems(b, t.Items)
		queuePark(b, t.Parked)
		outbox.queue(b)
		queuePositions(b, t.Fences, t.TakenIn, t.Positions, t.Cursors)
	})
}

// openedEvents prepares the rows and opened events of batches, one of each id, in the order of ids.
func openedEvents(batches []event.Batch) ([]openedBatch, error) {
	byID := map[string]event.Batch{}
	for _, b := range batches {
		if _, ok := byID[b.ID]; !ok && b.ID != "" {
			byID[b.ID] = b
		}
	}
	out := make([]openedBatch, 0, len(byID))
	for _, id := range slices.Sorted(maps.Keys(byID)) {
		b := byID[id]
		ev := event.Batch{
			Type: event.BatchOpened, ID: id, Kind: b.Kind, Name: b.Name, Admin: b.Admin, XID: b.XID,
			CommitLSN: b.CommitLSN, CommitTime: b.CommitTime, At: time.Now().UTC(),
		}
		v, err := json.Marshal(ev)
		if err != nil {
			return nil, fmt.Errorf("encode opened event of batch %s: %w", id, err)
		}
		out = append(out, openedBatch{Batch: b, value: v})
	}
	return out, nil
}

type openedBatch struct {
	event.Batch
	value []byte
}

func (s *Store) queueOpen(b *pgx.Batch, batches []openedBatch) {
	if len(batches) == 0 {
		return
	}
	n := len(batches)
	ids, kinds, names, admins, lsns := make([]string, n), make([]string, n), make([]string, n), make([]string, n), make([]string, n)
	xids, times, values := make([]int64, n), make([]*time.Time, n), make([][]byte, n)
	for i, o := range batches {
		ids[i], kinds[i], names[i], admins[i] = o.ID, clean(o.Kind), clean(o.Name), clean(o.Admin)
		lsns[i], xids[i], times[i], values[i] = o.CommitLSN.String(), int64(o.XID), at(o.CommitTime), o.value
	}
	// An announcement may have come first: the row stands then, and is opened now. A batch that is open already is not
	// touched, so that the takers of its many records do not queue for its row.
	b.Queue(`WITH n AS (SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::pg_lsn[], $6::bigint[],
				$7::timestamptz[], $8::bytea[]) n(id, kind, name, admin, commit_lsn, xid, commit_time, value)
			WHERE NOT EXISTS (SELECT FROM batches o WHERE o.id = n.id AND o.opened_at IS NOT NULL)),
		opened AS (INSERT INTO batches AS o (id, kind, name, admin, commit_lsn, xid, commit_time, opened_at)
			SELECT id, kind, name, admin, commit_lsn, xid, commit_time, clock_timestamp() FROM n ORDER BY id COLLATE "C"
			ON CONFLICT (id) DO UPDATE SET opened_at = clock_timestamp() WHERE o.opened_at IS NULL RETURNING id)
		INSERT INTO outbox (topic, partition, key, value)
		SELECT $9, -1, convert_to(id, 'UTF8'), value FROM n JOIN opened USING (id) ORDER BY id COLLATE "C"`,
		ids, kinds, names, admins, lsns, xids, times, values, s.batchTopic)
}

// queueSpoilt notes why batches can never be whole.
func queueSpoilt(b *pgx.Batch, spoilt map[string]string) {
	if len(spoilt) == 0 {
		return
	}
	ids := slices.Sorted(maps.Keys(spoilt))
	reasons := make([]string, len(ids))
	for i, id := range ids {
		reasons[i] = clean(spoilt[id])
	}
	b.Queue(`WITH n AS (SELECT b.id, n.reason FROM batches b JOIN unnest($1::text[], $2::text[]) n(id, reason) USING (id)
			WHERE b.reason = '' ORDER BY b.id FOR NO KEY UPDATE OF b)
		UPDATE batches b SET reason = n.reason FROM n WHERE b.id = n.id`, ids, reasons)
}

// itemColumns are the parameters of item statements, in the order of (batch, product, shop), one of each.
type itemColumns struct {
	batches, ids, shops, status, category, reason, message, field, shopifyID, payload []string
	variants                                                                          []string // JSON arrays
	xids                                                                              []int64
	attempts                                                                          []int32
	processed                                                                         []*time.Time
}

func newItemColumns(items []work.Item) itemColumns {
	items = slices.Clone(items)
	slices.SortStableFunc(items, compareItems)
	// Of several for one item the last holds: it is the newest.
	last := items[:0]
	for i, it := range items {
		if i+1 < len(items) && compareItems(it, items[i+1]) == 0 {
			continue
		}
		last = append(last, it)
	}
	n := len(last)
	c := itemColumns{
		batches: make([]string, n), ids: make([]string, n), shops: make([]string, n), status: make([]string, n),
		category: make([]string, n), reason: make([]string, n), message: make([]string, n), field: make([]string, n),
		shopifyID: make([]string, n), payload: make([]string, n), variants: make([]string, n), xids: make([]int64, n),
		attempts: make([]int32, n), processed: make([]*time.Time, n),
	}
	for i := range last {
		it := &last[i]
		c.batches[i], c.ids[i], c.shops[i], c.status[i] = it.BatchID, it.ProductID, it.Shop, string(it.Status)
		c.category[i], c.reason[i], c.message[i] = string(it.Category), clean(it.Reason), clean(it.Message)
		c.field[i], c.shopifyID[i], c.payload[i] = clean(it.Field), clean(it.ShopifyID), clean(it.Payload)
		c.variants[i] = "[]"
		if len(it.VariantIDs) > 0 {
			v, _ := json.Marshal(it.VariantIDs) // strings always encode
			c.variants[i] = clean(string(v))
		}
		c.xids[i], c.attempts[i], c.processed[i] = int64(it.XID), int32(it.Attempt), at(it.ProcessedAt)
	}
	return c
}

func compareItems(a, b work.Item) int {
	return cmp.Or(cmp.Compare(a.BatchID, b.BatchID), cmp.Compare(a.ProductID, b.ProductID), cmp.Compare(a.Shop, b.Shop))
}

// queueNewItems inserts items that do not stand in any shop: a redelivered record meets its item split, settled or
// both. Items of a batch that is being cancelled begin as cancelled.
func queueNewItems(b *pgx.Batch, items []work.Item) {
	if len(items) == 0 {
		return
	}
	c := newItemColumns(items)
	b.Queue(`INSERT INTO batch_items (batch_id, product_id, shop, xid, status, processed_at)
		SELECT n.batch_id, n.product_id, n.shop, n.xid, CASE WHEN b.cancelling THEN 'CANCELLED' ELSE 'PENDING' END,
			CASE WHEN b.cancelling THEN clock_timestamp() END
		FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[]) n(batch_id, product_id, shop, xid)
		LEFT JOIN batches b ON b.id = n.batch_id
		WHERE NOT EXISTS (SELECT FROM batch_items i WHERE i.batch_id = n.batch_id AND i.product_id = n.product_id)
		ORDER BY n.batch_id COLLATE "C", n.product_id COLLATE "C", n.shop COLLATE "C" ON CONFLICT DO NOTHING`,
		c.batches, c.ids, c.shops, c.xids)
}

// clean makes a text storable: Postgres takes neither NUL nor what is not UTF-8, and a shop that answers garbage must
// not keep the settlement of others from being written.
func clean(s string) string {
	if strings.IndexByte(s, 0) >= 0 {
		s = strings.ReplaceAll(s, "\x00", "")
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// queueBegun sets batches to PROCESSING whose first item is taken in hand. It touches a row once in the batch's life:
// after that the many settlements of a batch do not queue for it.
func queueBegun(b *pgx.Batch, batches []string) {
	ids := slices.Compact(slices.Clone(batches)) // sorted by newItemColumns
	b.Queue(`WITH n AS (SELECT id FROM batches WHERE id = ANY($1) AND status = 'PENDING' ORDER BY id FOR NO KEY UPDATE)
		UPDATE batches b SET status = 'PROCESSING', started_at = coalesce(started_at, clock_timestamp())
		FROM n WHERE b.id = n.id`, ids)
}

// xid reads a transaction id as it is stored.
func xid(v int64) change.XID { return change.XID(v) }
