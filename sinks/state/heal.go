package state

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// reasonHealed is why a product is parked that a gap in the capture may concern.
const reasonHealed = "HEALED"

// healPage is how many products are read and parked at once.
const healPage = 5000

// Touch parks every product that a shop has, or may have, in the campaign lane, so that its document is evaluated
// again: one that is as it should be costs nothing at the shop, one that is gone from the source is noticed. It returns
// their number. partitions are those of catalog.changes. A second call finds what the first has parked and changes
// nothing.
//
// back says that the source's history went back: which transactions were seen is void then. An id that a read is noted to
// have seen would otherwise name another transaction, and that one's changes would pass for pushed.
func (s *Store) Touch(ctx context.Context, partitions int32, back bool) (int64, error) {
	if back {
		if err := s.retry(ctx, "forget what was read of the source", func() error { return pgx.BeginFunc(ctx, s.pool, forgetSeen(ctx)) }); err != nil {
			return 0, fmt.Errorf("forget what was read of the source: %w", err)
		}
	}
	campaign, err := s.healCampaign(ctx)
	if err != nil {
		return 0, err
	}
	now := time.Now()
	return s.parkKnown(ctx, func(id string) work.Parked {
		return work.Parked{
			ProductID: id, Partition: change.Partition(change.ProductID(id), partitions), Lane: work.LaneCampaign,
			Due: now, Reason: reasonHealed, CampaignID: campaign,
		}
	})
}

// Pass sets positions of a stage that stand where from says, forward or back, and ends the leases of their partitions, so
// that whoever takes them next reads from there. It fails, and changes nothing, where one has moved.
func (s *Store) Pass(ctx context.Context, stage work.Stage, from, to map[int32]int64) error {
	parts := slices.Sorted(maps.Keys(to))
	was, next := make([]int64, len(parts)), make([]int64, len(parts))
	for i, p := range parts {
		was[i], next[i] = from[p], to[p]
	}
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `WITH n AS (SELECT l.stage, l.partition, n.next FROM leases l
				JOIN unnest($2::int[], $3::bigint[], $4::bigint[]) n(partition, was, next) ON n.partition = l.partition AND n.was = l.position
				WHERE l.stage = $1 ORDER BY l.partition FOR UPDATE OF l)
			UPDATE leases l SET position = n.next, taken_in = n.next, cursor = '', owner = '', epoch = l.epoch + 1, expires = 'epoch'
			FROM n WHERE l.stage = n.stage AND l.partition = n.partition`, string(stage), parts, was, next)
		if err == nil && tag.RowsAffected() < int64(len(parts)) {
			err = errors.New("a position has moved meanwhile")
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("pass positions of %s: %w", stage, err)
	}
	return nil
}

// Unannounced gives batches up whose announcements have gone unread: they end as FAILED, with the reason, as soon as what
// is known of them is settled. It leaves those alone that were opened less than an hour ago, as theirs may be to come. It
// returns how many there were.
func (s *Store) Unannounced(ctx context.Context, reason string) (int64, error) {
	tag, err := s.pool.Exec(ctx, `WITH n AS (SELECT id FROM batches WHERE NOT announced AND status IN ('PENDING', 'PROCESSING')
			AND opened_at < clock_timestamp() - interval '1 hour' ORDER BY id FOR NO KEY UPDATE)
		UPDATE batches b SET announced = true, announced_at = clock_timestamp(), reason = coalesce(nullif(b.reason, ''), $1)
		FROM n WHERE b.id = n.id`, clean(reason))
	if err != nil {
		return 0, fmt.Errorf("give up batches whose announcements have gone: %w", err)
	}
	return tag.RowsAffected(), nil
}

// healCampaign is the heal that is still going on, so that one that was interrupted goes on as itself, or a new one.
func (s *Store) healCampaign(ctx context.Context) (id string, err error) {
	err = s.pool.QueryRow(ctx, `SELECT id FROM campaigns WHERE kind = 'heal' AND ended_at IS NULL AND NOT cancelled
		ORDER BY no DESC LIMIT 1`).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return "heal/" + time.Now().UTC().Format("20060102T150405.000Z"), nil
	}
	if err != nil {
		return "", fmt.Errorf("look for a heal that goes on: %w", err)
	}
	return id, nil
}

// forgetSeen voids what names transactions of the source. What shops have stays known, so that evaluating all products again
// costs nothing where they are as they should be.
func forgetSeen(ctx context.Context) func(pgx.Tx) error {
	return func(tx pgx.Tx) error {
		var b pgx.Batch
		queueForgetSeen(&b)
		return tx.SendBatch(ctx, &b).Close()
	}
}

// queueForgetSource voids what was true only of a source that is another now. Shopify ids stay, so that no product is created
// twice.
func queueForgetSource(b *pgx.Batch) {
	b.Queue(`UPDATE products SET document_hash = '', shadow = NULL`)
	queueForgetSeen(b)
}

// queueForgetSeen voids what names transactions.
func queueForgetSeen(b *pgx.Batch) {
	b.Queue(`UPDATE products SET snapshot = '' WHERE snapshot <> ''`)
	b.Queue(`UPDATE parked SET xids = '{}' WHERE xids <> '{}'`)
	b.Queue(`UPDATE batch_items SET xid = 0 WHERE xid <> 0 AND status IN ('PENDING', 'PROCESSING', 'RETRYING', 'HELD')`)
}

// productIDs is a page of the products above after that a shop has or may have, in the order of their ids.
func (s *Store) productIDs(ctx context.Context, after string) ([]string, error) {
	rows, err := s.pool.Query(ctx, `SELECT DISTINCT product_id FROM products WHERE product_id > $1 AND shop <> ''
		ORDER BY product_id LIMIT $2`, after, healPage)
	var ids []string
	if err == nil {
		ids, err = pgx.CollectRows(rows, pgx.RowTo[string])
	}
	if err != nil {
		return nil, fmt.Errorf("read known products after %q: %w", after, err)
	}
	return ids, nil
}
