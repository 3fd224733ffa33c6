package state

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/shelfwire/shelfwire/schemas/work"
)

// ErrNoCampaign says that no campaign has this id.
var ErrNoCampaign = errors.New("no such campaign")

// ErrCampaignEnded says that a campaign cannot be cancelled because it has ended.
var ErrCampaignEnded = errors.New("the campaign has ended")

// anyLane lets an index that begins with the lane be used for all of a campaign.
const anyLane = `'{0,1,2,3}'::smallint[]`

// cancelPiece is how many rows one transaction of a cancel takes: a settlement never waits longer for its rows than
// such a piece lasts (10 ms or so).
const cancelPiece = 5000

// queueCampaigns makes the campaigns that rows name by their id, and opens those that had ended. One that stands open
// is not touched, so that the takers of its many records do not queue for its row. A batch that is being cancelled
// begins as a cancelled campaign.
func queueCampaigns(b *pgx.Batch, parked []work.Parked) {
	named := map[string]struct{}{}
	for i := range parked {
		if id := parked[i].CampaignID; id != "" {
			named[id] = struct{}{}
		}
	}
	if len(named) == 0 {
		return
	}
	ids := slices.Sorted(maps.Keys(named))
	kinds := make([]string, len(ids))
	for i, id := range ids {
		if kind, _, ours := strings.Cut(id, "/"); ours {
			kinds[i] = clean(kind)
		}
	}
	b.Queue(`INSERT INTO campaigns AS c (id, kind, cancelled)
		SELECT n.id, n.kind, coalesce((SELECT b.cancelling FROM batches b WHERE b.id = n.id), false)
		FROM unnest($1::text[], $2::text[]) n(id, kind)
		WHERE NOT EXISTS (SELECT FROM campaigns o WHERE o.id = n.id AND (o.ended_at IS NULL OR o.cancelled))
		ORDER BY n.id COLLATE "C" ON CONFLICT (id) DO UPDATE SET ended_at = NULL WHERE NOT c.cancelled`, ids, kinds)
}

// CancelCampaign stops what a campaign has not sent: its parked products are dropped, and those that come later too.
// What other campaigns or changes want of the same products stands. A batch is cancelled as by [Store.CancelBatch].
func (s *Store) CancelCampaign(ctx context.Context, id string) error {
	err := s.CancelBatch(ctx, id)
	if !errors.Is(err, ErrNoBatch) {
		if errors.Is(err, ErrBatchEnded) {
			return fmt.Errorf("cancel campaign %s: %w", id, ErrCampaignEnded)
		}
		return err
	}
	var no int64
	err = s.transactOnce(ctx, "cancel campaign", func(tx pgx.Tx) error {
		var ended bool
		err := tx.QueryRow(ctx, `SELECT no, ended_at IS NOT NULL FROM campaigns WHERE id = $1 FOR NO KEY UPDATE`, id).Scan(&no, &ended)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return ErrNoCampaign
		case err != nil:
			return err
		case ended:
			return ErrCampaignEnded
		}
		_, err = tx.Exec(ctx, `UPDATE campaigns SET cancelled = true WHERE no = $1`, no)
		return err
	})
	if err == nil {
		err = s.sweepParked(ctx, no, id)
	}
	if err != nil {
		return fmt.Errorf("cancel campaign %s: %w", id, err)
	}
	return nil
}

// Cancelled returns which of these campaigns are cancelled, by their numbers.
func (s *Store) Cancelled(ctx context.Context, campaigns []int64) ([]int64, error) {
	rows, err := s.pool.Query(ctx, `SELECT no FROM campaigns WHERE no = ANY($1) AND cancelled`, campaigns)
	if err != nil {
		return nil, fmt.Errorf("ask which campaigns are cancelled: %w", err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("ask which campaigns are cancelled: %w", err)
	}
	return out, nil
}

// CancelledProducts returns those of these (product, shop) pairs whose push was cancelled with a batch, and that have not
// been settled in that shop since. Campaigns without a batch leave nothing of what they have dropped.
func (s *Store) CancelledProducts(ctx context.Context, pairs [][2]string) (map[[2]string]bool, error) {
	out := map[[2]string]bool{}
	for piece := range slices.Chunk(pairs, cancelPiece) {
		ids, shops := make([]string, len(piece)), make([]string, len(piece))
		for i, p := range piece {
			ids[i], shops[i] = p[0], p[1]
		}
		rows, err := s.pool.Query(ctx, `SELECT DISTINCT n.product_id, n.shop FROM unnest($1::text[], $2::text[]) n(product_id, shop)
			CROSS JOIN batches b
			JOIN batch_items i ON i.batch_id = b.id AND i.product_id = n.product_id AND i.shop IN ('', n.shop)
			LEFT JOIN products p ON p.product_id = n.product_id AND p.shop = n.shop
			WHERE b.cancelling AND i.status = 'CANCELLED' AND (p.settled_at < i.processed_at) IS NOT FALSE`, ids, shops)
		if err != nil {
			return nil, fmt.Errorf("ask which pushes were cancelled: %w", err)
		}
		var id, shop string
		if _, err := pgx.ForEachRow(rows, []any{&id, &shop}, func() error { out[[2]string{id, shop}] = true; return nil }); err != nil {
			return nil, fmt.Errorf("ask which pushes were cancelled: %w", err)
		}
	}
	return out, nil
}

// sweep carries on what a cancel has not finished, because its process ended or a transaction slipped past it, and
// ends campaigns of which nothing is left.
func (s *Store) sweep(ctx context.Context) error {
	// It is asked four times a second while something of a cancelled batch is in hand: walk only where something waits.
	rows, err := s.pool.Query(ctx, `SELECT no, id, EXISTS (SELECT FROM batch_items i WHERE i.batch_id = c.id
			AND i.status IN ('PENDING', 'RETRYING', 'HELD')) FROM campaigns c WHERE cancelled AND ended_at IS NULL ORDER BY no`)
	if err != nil {
		return err
	}
	type cancelled struct {
		No    int64
		ID    string
		Waits bool
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[cancelled])
	if err != nil {
		return err
	}
	for _, c := range list {
		if c.Waits {
			if err := s.sweepItems(ctx, c.ID); err != nil {
				return err
			}
		}
		if err := s.sweepParked(ctx, c.No, c.ID); err != nil {
			return err
		}
	}
	return s.endCampaigns(ctx)
}

func (s *Store) endCampaigns(ctx context.Context) error {
	var some bool
	if err := s.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM campaigns c WHERE `+campaignEnds+`)`).Scan(&some); err != nil || !some {
		return err
	}
	return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		// The rows are locked first and judged by a later statement, thus with a later snapshot: whoever parks in a campaign
		// locks its row before the commit, and opens it again where it has ended.
		rows, err := tx.Query(ctx, `SELECT no FROM campaigns c WHERE `+campaignEnds+` ORDER BY no FOR NO KEY UPDATE SKIP LOCKED`)
		if err != nil {
			return err
		}
		nos, err := pgx.CollectRows(rows, pgx.RowTo[int64])
		if err != nil || len(nos) == 0 {
			return err
		}
		_, err = tx.Exec(ctx, `UPDATE campaigns c SET ended_at = clock_timestamp() WHERE no = ANY($1) AND `+campaignEnds, nos)
		return err
	})
}

// campaignEnds holds for an open campaign c of which nothing is parked, and whose batch, if it is one, has ended.
const campaignEnds = `c.ended_at IS NULL AND NOT EXISTS (SELECT FROM batches b WHERE b.id = c.id AND b.ended_at IS NULL)
	AND NOT EXISTS (SELECT FROM parked p WHERE p.lane = ANY(` + anyLane + `) AND p.campaign = c.no)`

// sweepItems cancels the items of a cancelled batch that wait; what is in hand is settled as it ends. Items of a batch
// that was opened again meanwhile are left alone.
func (s *Store) sweepItems(ctx context.Context, batch string) error {
	var product, shop string
	for {
		var n int
		err := s.retry(ctx, "cancel items", func() error {
			var p, z *string
			err := s.pool.QueryRow(ctx, sweepItemsSQL, batch, product, shop, cancelPiece).Scan(&n, &p, &z)
			if err == nil && n > 0 {
				product, shop = *p, *z
			}
			return err
		})
		if err != nil || n < cancelPiece {
			return err
		}
	}
}

// sweepItemsSQL walks the items of a batch by their key, so that the pieces together are one walk.
const sweepItemsSQL = `WITH n AS (SELECT i.product_id, i.shop FROM batch_items i
		WHERE i.batch_id = $1 AND (i.product_id, i.shop) > ($2, $3) AND i.status IN ('PENDING', 'RETRYING', 'HELD')
			AND EXISTS (SELECT FROM batches b WHERE b.id = $1 AND b.cancelling AND b.ended_at IS NULL)
		ORDER BY i.batch_id, i.product_id, i.shop LIMIT $4 FOR NO KEY UPDATE),
	done AS (UPDATE batch_items i SET status = 'CANCELLED', processed_at = clock_timestamp() FROM n
		WHERE i.batch_id = $1 AND i.product_id = n.product_id AND i.shop = n.shop RETURNING i.product_id, i.shop)
	SELECT (SELECT count(*) FROM n), l.product_id, l.shop FROM (SELECT 1) one
	LEFT JOIN (SELECT product_id, shop FROM n ORDER BY product_id DESC, shop DESC LIMIT 1) l ON true`

// sweepParked drops the parked rows of a cancelled campaign. Rows that somebody has in hand are left for the next
// sweep: nobody pulls them.
func (s *Store) sweepParked(ctx context.Context, no int64, id string) error {
	for {
		var n int
		err := s.retry(ctx, "drop parked rows of a cancelled campaign", func() error {
			return s.pool.QueryRow(ctx, sweepParkedSQL, no, id, cancelPiece, int16(work.LaneRetry)).Scan(&n)
		})
		if err != nil || n < cancelPiece {
			return err
		}
	}
}

// sweepParkedSQL deletes rows of a cancelled campaign. A product of which a request may have reached its shop, or which
// is in hand, is not forgotten: somebody must look at what has become of it, for no campaign and before its turn.
const sweepParkedSQL = `WITH n AS (SELECT p.product_id, p.shop, p.reason = 'LATE_REQUEST'
			OR EXISTS (SELECT FROM intents i WHERE i.product_id = p.product_id)
			OR EXISTS (SELECT FROM batch_items i WHERE i.batch_id = $2 AND i.product_id = p.product_id AND i.status = 'PROCESSING')
			AS stays
		FROM parked p WHERE p.lane = ANY(` + anyLane + `) AND p.campaign = $1
			AND EXISTS (SELECT FROM campaigns c WHERE c.no = $1 AND c.cancelled)
		LIMIT $3 FOR UPDATE OF p SKIP LOCKED),
	gone AS (DELETE FROM parked p USING n WHERE p.product_id = n.product_id AND p.shop = n.shop AND p.campaign = $1
		RETURNING p.*, n.stays),
	kept AS (INSERT INTO parked AS p (product_id, shop, campaign, partition, lane, due, generation, reason, attempt, xids,
			changes, first_commit, last_commit)
		SELECT product_id, shop, 0, partition, least(lane, $4), due, generation, reason, attempt, xids, changes,
			first_commit, last_commit
		FROM gone WHERE stays ORDER BY product_id, shop
		` + parkMerge + ` RETURNING 1)
	SELECT (SELECT count(*) FROM gone)`

// Campaign is what was begun by a person or by a gap and pushes many products.
type Campaign struct {
	// No is its number, the order in which campaigns were begun; ID names it: that of its batch, or made by us.
	No int64
	ID string
	// Kind is transaction (a fan-out), snapshot, replay or heal.
	Kind, Name, Admin string
	// Paused says that it waits: by itself, with its lane, or with everything.
	Paused, Cancelled  bool
	CreatedAt, EndedAt time.Time
	// Whole says that Total grows no more.
	Whole bool
	// Total counts items of a batch, else products; Done those that are settled; Parked rows that wait in the state.
	Total, Done, Parked int64
	// Rate is Done a second since it was begun or last resumed; zero while nothing is known.
	Rate float64
}

// ETA is how long it will last at its rate; false when that cannot be said: it has ended, waits, or is not whole.
func (c *Campaign) ETA() (time.Duration, bool) {
	left := c.Total - c.Done
	if !c.EndedAt.IsZero() || c.Paused || c.Cancelled || !c.Whole || left <= 0 || c.Rate <= 0 {
		return 0, false
	}
	return time.Duration(float64(left) / c.Rate * float64(time.Second)), true
}

// campaignDone counts a campaign c with its batch b: what it holds, what is settled of it, and its parked rows.
const campaignDone = `CROSS JOIN LATERAL (SELECT count(*) AS parked FROM parked p
		WHERE c.ended_at IS NULL AND p.lane = ANY(` + anyLane + `) AND p.campaign = c.no) w
	CROSS JOIN LATERAL (SELECT count(*) AS total, count(*) FILTER (WHERE i.status IN ('SUCCESS', 'FAILED', 'SKIPPED', 'CANCELLED')) AS done
		FROM batch_items i WHERE b.id IS NOT NULL AND i.batch_id = b.id) i
	CROSS JOIN LATERAL (SELECT CASE WHEN b.id IS NULL THEN c.total ELSE i.total END AS total,
		CASE WHEN b.id IS NULL THEN greatest(c.total - w.parked, 0) ELSE i.done END AS done) d`

// CampaignFilter narrows a list of campaigns. The zero value is the newest 50.
type CampaignFilter struct {
	ID string
	// Open leaves out those that have ended.
	Open bool
	// Limit is 50 when 0.
	Limit int
}

// Campaigns lists campaigns, the newest first, each with its progress: one statement over indexes, about a second for
// each ten million rows that are parked.
func (s *Store) Campaigns(ctx context.Context, f CampaignFilter) ([]Campaign, error) {
	limit := f.Limit
	if limit <= 0 {
		limit = 50
	}
	rows, err := s.pool.Query(ctx, `SELECT c.no, c.id, coalesce(nullif(b.kind, ''), c.kind),
			coalesce(nullif(b.name, ''), c.name), coalesce(b.admin, ''),
			EXISTS (SELECT FROM pauses z WHERE z.what IN ('all', 'lane/campaign', 'campaign/' || c.id)), c.cancelled,
			c.created_at, c.ended_at, b.announced IS NOT FALSE, d.total, d.done, w.parked,
			greatest(d.done - c.rate_done, 0) / greatest(extract(epoch FROM coalesce(c.ended_at, clock_timestamp()) - c.rate_from), 0.001)::float8
		FROM (SELECT * FROM campaigns WHERE ($1 = '' OR id = $1) AND (NOT $2 OR ended_at IS NULL)
			ORDER BY created_at DESC, no DESC LIMIT $3) c
		LEFT JOIN batches b ON b.id = c.id `+campaignDone+` ORDER BY c.created_at DESC, c.no DESC`, f.ID, f.Open, limit)
	if err != nil {
		return nil, fmt.Errorf("list campaigns: %w", err)
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c Campaign, err error) {
		var ended *time.Time
		err = row.Scan(&c.No, &c.ID, &c.Kind, &c.Name, &c.Admin, &c.Paused, &c.Cancelled, &c.CreatedAt, &ended, &c.Whole,
			&c.Total, &c.Done, &c.Parked, &c.Rate)
		c.CreatedAt, c.EndedAt = c.CreatedAt.UTC(), orZero(ended)
		return c, err
	})
	if err != nil {
		return nil, fmt.Errorf("list campaigns: %w", err)
	}
	return out, nil
}

// Campaign returns one campaign, or [ErrNoCampaign].
func (s *Store) Campaign(ctx context.Context, id string) (Campaign, error) {
	list, err := s.Campaigns(ctx, CampaignFilter{ID: id, Limit: 1})
	if err != nil {
		return Campaign{}, err
	}
	if id == "" || len(list) == 0 {
		return Campaign{}, fmt.Errorf("campaign %s: %w", id, ErrNoCampaign)
	}
	return list[0], nil
}
