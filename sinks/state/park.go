package state

import (
	"cmp"
	"context"
	"fmt"
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

// heldRecheck is when a held product is read again if its caller named no time. A release makes it due at once; this
// only catches a product that is parked in the very moment of the release.
const heldRecheck = time.Hour

// Park lets products wait, outside of any lease: what a campaign has found (replay, re-sync). The worker that holds
// the product's partition will pull them.
func (s *Store) Park(ctx context.Context, parked []work.Parked) error {
	// Pieces keep each transaction short, so that a settlement never waits long for a row of the campaign.
	for piece := range slices.Chunk(parked, 5000) {
		if err := s.applyOnce(ctx, "park", work.Token{}, func(b *pgx.Batch) { queuePark(b, piece) }); err != nil {
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

// foldParked sorts by (product, shop) and joins rows of the same one: an upsert may touch each row once, and writers
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
		return cmp.Or(cmp.Compare(a.ProductID, b.ProductID), cmp.Compare(a.Shop, b.Shop))
	})
	n := 0
	for i, p := range out {
		if i > 0 && out[n-1].ProductID == p.ProductID && out[n-1].Shop == p.Shop {
			out[n-1] = mergeParked(out[n-1], p)
			continue
		}
		out[n] = p
		n++
	}
	return out[:n]
}

// parkSQL merges as mergeParked does. Due arrives as a delay from now, because the state's clock decides what is due
// and a worker's clock may be off.
const parkSQL = `INSERT INTO parked AS p (product_id, shop, partition, lane, due, generation, reason, attempt, xids,
		changes, first_commit, last_commit)
	SELECT product_id, shop, partition, lane, clock_timestamp() + wait, nextval('generations'), reason, attempt,
		xids::bigint[], changes, first_commit, last_commit
	FROM unnest($1::text[], $2::text[], $3::int[], $4::smallint[], $5::interval[], $6::text[], $7::int[], $8::text[],
		$9::bigint[], $10::timestamptz[], $11::timestamptz[])
		n(product_id, shop, partition, lane, wait, reason, attempt, xids, changes, first_commit, last_commit)
	ORDER BY product_id COLLATE "C", shop COLLATE "C"
	ON CONFLICT (product_id, shop) DO UPDATE SET
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

func queuePark(b *pgx.Batch, parked []work.Parked) {
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
	for i := range rows {
		p := &rows[i]
		ids[i], shops[i], parts[i], lanes[i] = p.ProductID, p.Shop, p.Partition, int16(p.Lane)
		waits[i] = max(p.Due.Sub(now), 0)
		reasons[i], attempts[i], xids[i] = clean(p.Reason), int32(p.Attempt), arrayOf(p.XIDs)
		changes[i], first[i], last[i] = int64(p.Changes), at(p.FirstCommit), at(p.LastCommit)
	}
	b.Queue(parkSQL, ids, shops, parts, lanes, waits, reasons, attempts, xids, changes, first, last)
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

// queueUnpark deletes parked rows that are still at the generation that was seen.
func queueUnpark(b *pgx.Batch, refs []work.ParkedRef) {
	if len(refs) == 0 {
		return
	}
	n := len(refs)
	ids, shops, gens := make([]string, n), make([]string, n), make([]int64, n)
	for i, r := range refs {
		ids[i], shops[i], gens[i] = r.ProductID, r.Shop, r.Generation
	}
	b.Queue(`WITH seen AS (SELECT p.product_id, p.shop FROM parked p
			JOIN unnest($1::text[], $2::text[], $3::bigint[]) r(product_id, shop, generation)
			USING (product_id, shop, generation) ORDER BY p.product_id, p.shop FOR UPDATE OF p)
		DELETE FROM parked p USING seen WHERE p.product_id = seen.product_id AND p.shop = seen.shop`, ids, shops, gens)
}

// pullSQL visits each (partition, lane, shop) that has rows by skipping through the index, takes the first due rows of
// each and deals them out: lane by lane, the shops of a lane in turns. What waits for excluded shops costs one step
// for each shop, however many rows it has.
//
// A shop that is paused, or dead with its probe not due, is not served whatever the caller knows of it; a dead one
// whose probe is due gets one product of each partition and lane, as all but one would come back unsent.
const pullSQL = `WITH RECURSIVE heads AS (
		SELECT o.partition, o.lane, h.shop
		FROM (SELECT p, l FROM unnest($1::int[]) p, unnest('{0,1,2,3}'::smallint[]) l) o(partition, lane)
		CROSS JOIN LATERAL (SELECT k.shop FROM parked k WHERE k.partition = o.partition AND k.lane = o.lane
			ORDER BY k.shop LIMIT 1) h
		UNION ALL
		SELECT g.partition, g.lane, h.shop FROM heads g
		CROSS JOIN LATERAL (SELECT k.shop FROM parked k WHERE k.partition = g.partition AND k.lane = g.lane
			AND k.shop > g.shop ORDER BY k.shop LIMIT 1) h
	), served AS MATERIALIZED (
		SELECT g.*, s.dead_since IS NOT NULL AS dead FROM heads g LEFT JOIN shops s USING (shop)
		WHERE g.shop <> ALL($2::text[]) AND s.paused IS NOT TRUE
			AND (s.dead_since IS NULL OR s.next_probe <= statement_timestamp())
			AND EXISTS (SELECT FROM parked k WHERE k.partition = g.partition AND k.lane = g.lane AND k.shop = g.shop
				AND k.due <= statement_timestamp())
	)
	SELECT product_id, shop, partition, lane, due, generation, reason, attempt, xids, changes, first_commit, last_commit
	FROM (SELECT k.*, row_number() OVER (PARTITION BY k.lane, k.shop ORDER BY k.due) AS turn
		FROM served g CROSS JOIN LATERAL (SELECT * FROM parked k
			WHERE k.partition = g.partition AND k.lane = g.lane AND k.shop = g.shop AND k.due <= statement_timestamp()
			ORDER BY k.due LIMIT CASE WHEN g.dead THEN 1 ELSE
				(SELECT least($3::int, greatest(16, 4 * $3::int / greatest(count(*), 1))) FROM served) END
		) k) dealt
	ORDER BY lane, turn, due LIMIT $3::int`

// Pull returns parked products of these partitions that are due, the most urgent lane first, within a lane the shops
// in turns and each shop's by due. It claims nothing: the rows stand until a settlement deletes them at the generation
// returned here, and come again until then. It may return fewer than n while more are due; only an empty answer says
// that there are none.
func (s *Store) Pull(ctx context.Context, partitions []int32, excludeShops []string, n int) ([]work.Parked, error) {
	if len(partitions) == 0 || n <= 0 {
		return nil, nil
	}
	if excludeShops == nil {
		excludeShops = []string{} // NULL would exclude all
	}
	rows, err := s.pool.Query(ctx, pullSQL, partitions, excludeShops, n)
	if err != nil {
		return nil, fmt.Errorf("pull parked products: %w", err)
	}
	out, err := pgx.CollectRows(rows, scanParked)
	if err != nil {
		return nil, fmt.Errorf("pull parked products: %w", err)
	}
	return out, nil
}

func scanParked(row pgx.CollectableRow) (work.Parked, error) {
	var p work.Parked
	var first, last *time.Time
	err := row.Scan(&p.ProductID, &p.Shop, &p.Partition, &p.Lane, &p.Due, &p.Generation, &p.Reason, &p.Attempt, &p.XIDs,
		&p.Changes, &first, &last)
	p.XIDs, p.FirstCommit, p.LastCommit = orNil(p.XIDs), orZero(first), orZero(last)
	return p, err
}
