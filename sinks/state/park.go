package state

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// Reasons for waiting that the state itself knows: it makes such rows due when what they wait for has ended.
const (
	reasonShopDead = "SHOP_DEAD"
	reasonHeld     = "HELD"
	reasonRetry    = "RETRY"
)

// heldRecheck is when a held product is read again if its caller named no time: what it would do to the shop may have
// changed. A release makes it due at once.
const heldRecheck = time.Hour

// Park lets products wait, outside of any lease: what a campaign has found (replay, re-sync). The worker that holds
// the product's partition will pull them. A campaign that is named by its id is made where there is none, and its
// total grows by what did not wait for it yet.
func (s *Store) Park(ctx context.Context, parked []work.Parked) error {
	// Pieces keep each transaction short, so that a settlement never waits long for a row of the campaign.
	for piece := range slices.Chunk(parked, 5000) {
		err := s.applyOnce(ctx, "park", work.Token{}, func(b *pgx.Batch) {
			queueCampaigns(b, piece)
			queueParkAs(b, countedParkSQL, piece)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// mergeParked joins what stands with what is parked on top of it. queuePark does the same in SQL.
//
// The earliest due stands: a live change or a person's replay makes a waiting retry due at once, and a campaign never
// delays one. To push a product back, a settlement unparks the generation that its read has seen and parks anew: where
// somebody parked the product in between, the two meet here, and the earlier due is right because there is news.
func mergeParked(old, add work.Parked) work.Parked {
	m := add
	m.Lane = min(old.Lane, add.Lane)
	if old.Due.Before(add.Due) {
		m.Due, m.Reason = old.Due, old.Reason
	}
	m.Attempt = max(old.Attempt, add.Attempt)
	m.XIDs = joinXIDs(old.XIDs, add.XIDs)
	m.Changes = old.Changes + add.Changes
	if m.FirstCommit.IsZero() || !old.FirstCommit.IsZero() && old.FirstCommit.Before(m.FirstCommit) {
		m.FirstCommit = old.FirstCommit
	}
	if old.LastCommit.After(m.LastCommit) {
		m.LastCommit = old.LastCommit
	}
	return m
}

// xidsMost bounds what a row remembers of the transactions that it waits for. It keeps the highest: a transaction that
// is not visible yet is waiting for a standby, and whoever waits for that is among the newest.
const xidsMost = 64

// joinXIDs is the union in ascending order. parkSQL does the same.
func joinXIDs(a, b []change.XID) []change.XID {
	all := slices.DeleteFunc(slices.Concat(a, b), func(x change.XID) bool { return x == 0 })
	slices.Sort(all)
	all = slices.Compact(all)
	return orNil(all[max(0, len(all)-xidsMost):])
}

// foldParked sorts by (product, shop, campaign) and joins rows of the same one: an upsert may touch each row once, and writers
// that lock in one order do not wait for each other in a circle. A zero due is now.
func foldParked(parked []work.Parked, now time.Time) []work.Parked {
	out := make([]work.Parked, 0, len(parked))
	for _, p := range parked {
		p.XIDs = joinXIDs(p.XIDs, nil)
		if p.Due.IsZero() {
			p.Due = now
			if p.Reason == reasonHeld {
				p.Due = now.Add(heldRecheck)
			}
		}
		out = append(out, p)
	}
	slices.SortStableFunc(out, func(a, b work.Parked) int {
		return compareParked(&a, &b)
	})
	n := 0
	for i, p := range out {
		if i > 0 && compareParked(&out[n-1], &p) == 0 {
			out[n-1] = mergeParked(out[n-1], p)
			continue
		}
		out[n] = p
		n++
	}
	return out[:n]
}

func compareParked(a, b *work.Parked) int {
	return cmp.Or(cmp.Compare(a.ProductID, b.ProductID), cmp.Compare(a.Shop, b.Shop), cmp.Compare(a.Campaign, b.Campaign),
		cmp.Compare(a.CampaignID, b.CampaignID))
}

// parkMerge is how a row joins one that stands, as mergeParked does.
const parkMerge = `ON CONFLICT (product_id, shop, campaign) DO UPDATE SET
		partition = EXCLUDED.partition,
		lane = least(p.lane, EXCLUDED.lane),
		due = least(p.due, EXCLUDED.due),
		reason = CASE WHEN p.due < EXCLUDED.due THEN p.reason ELSE EXCLUDED.reason END,
		generation = nextval('generations'),
		attempt = greatest(p.attempt, EXCLUDED.attempt),
		xids = CASE WHEN EXCLUDED.xids <@ p.xids THEN p.xids ELSE ARRAY(SELECT x FROM (SELECT DISTINCT x
			FROM unnest(p.xids || EXCLUDED.xids) x ORDER BY x DESC LIMIT 64) newest ORDER BY x) END,
		changes = p.changes + EXCLUDED.changes,
		first_commit = least(p.first_commit, EXCLUDED.first_commit),
		last_commit = greatest(p.last_commit, EXCLUDED.last_commit)`

// parkSQL merges as mergeParked does. Due arrives as a delay from now, because the state's clock decides what is due
// and a worker's clock may be off.
//
// What is parked for a campaign that is cancelled is dropped here; what a concurrent transaction slips past is never
// pulled, and swept.
const parkSQL = `INSERT INTO parked AS p (product_id, shop, campaign, partition, lane, due, generation, reason, attempt,
		xids, changes, first_commit, last_commit)
	SELECT n.product_id, n.shop, coalesce(i.no, c.no, 0), n.partition, n.lane, clock_timestamp() + n.wait,
		nextval('generations'), n.reason, n.attempt, n.xids::bigint[], n.changes, n.first_commit, n.last_commit
	FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::int[], $6::smallint[], $7::interval[], $8::text[],
		$9::int[], $10::text[], $11::bigint[], $12::timestamptz[], $13::timestamptz[])
		n(product_id, shop, campaign, campaign_id, partition, lane, wait, reason, attempt, xids, changes, first_commit,
			last_commit)
	LEFT JOIN campaigns c ON c.no = n.campaign LEFT JOIN campaigns i ON i.id = n.campaign_id AND n.campaign_id <> ''
	WHERE c.cancelled IS NOT TRUE AND i.cancelled IS NOT TRUE
	ORDER BY n.product_id COLLATE "C", n.shop COLLATE "C", coalesce(i.no, c.no, 0)
	` + parkMerge

// countedParkSQL is parkSQL that adds to the campaign's total what did not wait for it. It opens the campaign too: a sweep
// that did not see these rows yet may have ended it since this transaction began.
const countedParkSQL = `WITH done AS (` + parkSQL + ` RETURNING p.campaign, p.xmax = 0 AS fresh)
	UPDATE campaigns c SET total = c.total + d.n, ended_at = CASE WHEN c.cancelled THEN c.ended_at END
	FROM (SELECT campaign, count(*) FILTER (WHERE fresh) AS n FROM done GROUP BY campaign) d WHERE c.no = d.campaign AND d.n > 0`

// queuePark parks rows; campaigns that they name by id are made before.
func queuePark(b *pgx.Batch, parked []work.Parked) {
	queueCampaigns(b, parked)
	queueParkAs(b, parkSQL, parked)
}

func queueParkAs(b *pgx.Batch, sql string, parked []work.Parked) {
	if len(parked) == 0 {
		return
	}
	now := time.Now()
	rows := foldParked(parked, now)
	n := len(rows)
	ids, shops, reasons := make([]string, n), make([]string, n), make([]string, n)
	parts, lanes, attempts := make([]int32, n), make([]int16, n), make([]int32, n)
	waits, xids, changes := make([]time.Duration, n), make([]string, n), make([]int64, n)
	first, last := make([]*time.Time, n), make([]*time.Time, n)
	campaigns, named := make([]int64, n), make([]string, n)
	for i := range rows {
		p := &rows[i]
		ids[i], shops[i], parts[i], lanes[i] = p.ProductID, p.Shop, p.Partition, int16(p.Lane)
		campaigns[i], named[i] = p.Campaign, p.CampaignID
		waits[i] = max(p.Due.Sub(now), 0)
		reasons[i], attempts[i], xids[i] = clean(p.Reason), int32(p.Attempt), arrayOf(p.XIDs)
		changes[i], first[i], last[i] = int64(p.Changes), at(p.FirstCommit), at(p.LastCommit)
	}
	b.Queue(sql, ids, shops, campaigns, named, parts, lanes, waits, reasons, attempts, xids, changes, first, last)
}

// arrayOf writes ids as Postgres reads an array: parameters of arrays of arrays would have to be of equal length.
func arrayOf(xids []change.XID) string {
	b := []byte{'{'}
	for i, x := range xids {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, int64(x), 10)
	}
	return string(append(b, '}'))
}

func orNil(xids []change.XID) []change.XID {
	if len(xids) == 0 {
		return nil
	}
	return xids
}

// queueUnpark deletes parked rows that are still at the generation that was seen. Generations are unique, so the campaign
// need not be the one that was seen: a cancel gives rows to none.
func queueUnpark(b *pgx.Batch, refs []work.ParkedRef) {
	if len(refs) == 0 {
		return
	}
	n := len(refs)
	ids, shops, gens := make([]string, n), make([]string, n), make([]int64, n)
	for i, r := range refs {
		ids[i], shops[i], gens[i] = r.ProductID, r.Shop, r.Generation
	}
	b.Queue(`WITH seen AS (SELECT p.product_id, p.shop, p.campaign FROM parked p
			JOIN unnest($1::text[], $2::text[], $3::bigint[]) r(product_id, shop, generation)
			USING (product_id, shop, generation) ORDER BY p.product_id, p.shop, p.campaign FOR UPDATE OF p)
		DELETE FROM parked p USING seen
		WHERE p.product_id = seen.product_id AND p.shop = seen.shop AND p.campaign = seen.campaign`, ids, shops, gens)
}
