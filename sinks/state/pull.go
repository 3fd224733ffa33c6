package state

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/shelfwire/shelfwire/schemas/work"
)

// pullProbes bounds the index probes of one call: heads that are visited times partitions. 2,000 are 5 to 10 ms.
const pullProbes = 2048

// pullHeads is how many heads of a lane are visited at the most; the next call goes on behind them.
const pullHeads = 128

// headsSQL walks (lane, campaign, shop) by skipping through the index, from each cursor to the end and from the
// beginning to the cursor. It visits a bounded number of heads, whatever waits behind them, and says for each in which
// partitions something is due; for one that is stopped, nothing. Each LIMIT 1 keeps a probe a probe: an EXISTS becomes a
// join, which reads all rows of a shop where the statistics are older than the rows. Parameters: partitions; shops that are closed; lanes
// with their names and last campaigns; the last shop of campaigns; campaigns and heads for each lane.
const headsSQL = `WITH RECURSIVE lanes AS (
		SELECT l.lane, coalesce(l.last, -1) AS last FROM unnest($3::smallint[], $4::text[], $5::bigint[]) l(lane, name, last)
		WHERE NOT EXISTS (SELECT FROM pauses z WHERE z.what = 'all' OR z.what = 'lane/' || l.name)
	), walked AS (
		SELECT l.lane, r.turn, r.hi, h.campaign, 1 AS i FROM lanes l
		CROSS JOIN LATERAL (VALUES (0, l.last + 1, 9223372036854775807), (1, 0, l.last)) r(turn, lo, hi)
		CROSS JOIN LATERAL (SELECT k.campaign FROM parked k WHERE k.lane = l.lane AND k.campaign >= r.lo
			ORDER BY k.campaign LIMIT 1) h
		WHERE h.campaign <= r.hi
		UNION ALL
		SELECT w.lane, w.turn, w.hi, h.campaign, w.i + 1 FROM walked w
		CROSS JOIN LATERAL (SELECT k.campaign FROM parked k WHERE k.lane = w.lane AND k.campaign > w.campaign
			ORDER BY k.campaign LIMIT 1) h
		WHERE h.campaign <= w.hi AND w.i < $9::int
	), turns AS MATERIALIZED (
		SELECT w.lane, w.campaign, row_number() OVER (PARTITION BY w.lane ORDER BY w.turn, w.i) AS place,
			greatest($9::int / count(*) OVER (PARTITION BY w.lane), 1) AS steps
		FROM walked w LEFT JOIN campaigns c ON c.no = w.campaign
		WHERE c.cancelled IS NOT TRUE AND NOT EXISTS (SELECT FROM pauses z WHERE z.what = 'campaign/' || c.id)
	), heads AS (
		SELECT t.lane, t.campaign, t.place, t.steps, r.turn, r.hi, h.shop, 1 AS i FROM turns t
		LEFT JOIN unnest($6::smallint[], $7::bigint[], $8::text[]) a(lane, campaign, shop)
			ON a.lane = t.lane AND a.campaign = t.campaign
		CROSS JOIN LATERAL (VALUES (0, coalesce(a.shop || chr(1), ''), NULL::text), (1, '', a.shop)) r(turn, lo, hi)
		CROSS JOIN LATERAL (SELECT k.shop FROM parked k WHERE k.lane = t.lane AND k.campaign = t.campaign
			AND k.shop >= r.lo COLLATE "C" ORDER BY k.shop LIMIT 1) h
		WHERE r.turn = 0 OR h.shop <= r.hi COLLATE "C"
		UNION ALL
		SELECT g.lane, g.campaign, g.place, g.steps, g.turn, g.hi, h.shop, g.i + 1 FROM heads g
		CROSS JOIN LATERAL (SELECT k.shop FROM parked k WHERE k.lane = g.lane AND k.campaign = g.campaign
			AND k.shop > g.shop ORDER BY k.shop LIMIT 1) h
		WHERE (g.turn = 0 OR h.shop <= g.hi COLLATE "C") AND g.i < g.steps
	)
	SELECT g.lane, g.campaign, g.shop, g.turn, g.i >= g.steps, s.dead_since IS NOT NULL,
		CASE WHEN g.shop <> ALL($2::text[]) AND z.what IS NULL
				AND (s.dead_since IS NULL OR s.next_probe <= statement_timestamp())
			THEN ARRAY(SELECT q FROM unnest($1::int[]) q CROSS JOIN LATERAL (SELECT FROM parked k WHERE k.lane = g.lane
				AND k.campaign = g.campaign AND k.shop = g.shop AND k.partition = q AND k.due <= statement_timestamp() LIMIT 1) due)
			ELSE '{}' END
	FROM heads g LEFT JOIN shops s ON s.shop = g.shop LEFT JOIN pauses z ON z.what = 'shop/' || g.shop
	ORDER BY g.lane, g.place, g.turn, g.i`

// rowsSQL reads the first due rows of each head in each of its partitions.
const rowsSQL = `SELECT h.head, k.product_id, k.shop, k.campaign, k.partition, k.lane, k.due, k.generation, k.reason,
		k.attempt, k.xids, k.changes, k.first_commit, k.last_commit
	FROM unnest($1::int[], $2::smallint[], $3::bigint[], $4::text[], $5::int[], $6::int[])
		h(head, lane, campaign, shop, partition, most)
	CROSS JOIN LATERAL (SELECT * FROM parked p WHERE p.lane = h.lane AND p.campaign = h.campaign AND p.shop = h.shop
		AND p.partition = h.partition AND p.due <= statement_timestamp() AND p.product_id <> ALL($7::text[])
		ORDER BY p.due LIMIT h.most) k`

// Pull returns parked products of the caller's partitions that are due and have room in their shop, the most urgent
// lane first; within a lane the campaigns take turns, within a campaign its shops, and each shop's products go by due.
// What is paused, cancelled, or waits for a dead shop whose probe is not due, is not served whatever the caller knows
// of it; a dead shop whose probe is due gets one product.
//
// It claims nothing: the rows stand until a settlement deletes them at the generation returned here, and come again
// until then, unless they are said to be in hand. Its cost does not grow with what is parked, nor with the number of
// partitions: a call visits a bounded number of campaigns and shops, and the next one goes on behind them. So it may
// return fewer than n while more are due.
func (s *Store) Pull(ctx context.Context, q work.Pull) (work.Pulled, error) {
	if len(q.Partitions) == 0 || q.N <= 0 {
		return work.Pulled{Next: q.After}, nil
	}
	heads, err := s.pullHeads(ctx, &q)
	if err == nil {
		err = s.pullRows(ctx, &q, heads)
	}
	if err != nil {
		return work.Pulled{Next: q.After}, fmt.Errorf("pull parked products: %w", err)
	}
	return deal(&q, heads), nil
}

// pullHead is what waits for a shop in a campaign and a lane: the state's answer, and what was read of it.
type pullHead struct {
	turn work.PullTurn
	shop string
	// parts are those in which something is due; none where the head is stopped.
	parts []int32
	dead  bool
	rows  []work.Parked // by due
}

func (s *Store) pullHeads(ctx context.Context, q *work.Pull) ([]*pullHead, error) {
	var lanes []int16
	var names []string
	var last []*int64
	for l := work.LaneLive; l <= work.LaneCampaign; l++ {
		var after *int64
		if no, ok := q.After.Campaigns[l]; ok {
			after = &no
		}
		lanes, names, last = append(lanes, int16(l)), append(names, l.String()), append(last, after)
	}
	n := len(q.After.Shops)
	cl, cc, cs := make([]int16, 0, n), make([]int64, 0, n), make([]string, 0, n)
	for t, shop := range q.After.Shops {
		cl, cc, cs = append(cl, int16(t.Lane)), append(cc, t.Campaign), append(cs, shop)
	}
	closed := slices.Clone(q.Closed)
	for shop, room := range q.Room {
		if room <= 0 {
			closed = append(closed, shop)
		}
	}
	most := min(pullHeads, max(pullProbes/len(q.Partitions)/len(lanes), 16))
	rows, err := s.pool.Query(ctx, headsSQL, q.Partitions, orEmpty(closed), lanes, names, last, cl, cc, cs, most)
	if err != nil {
		return nil, err
	}
	var heads []*pullHead
	var cut work.PullTurn // a campaign whose walk from the cursor was cut short: what comes before the cursor is not next
	cuts := false
	for rows.Next() {
		h := &pullHead{}
		var turn int
		var end bool
		if err := rows.Scan(&h.turn.Lane, &h.turn.Campaign, &h.shop, &turn, &end, &h.dead, &h.parts); err != nil {
			rows.Close()
			return nil, err
		}
		if turn == 0 && end {
			cut, cuts = h.turn, true
		}
		if turn == 1 && cuts && h.turn == cut {
			continue
		}
		if room, ok := q.Room[h.shop]; !ok && q.Default <= 0 || ok && room <= 0 {
			h.parts = nil
		}
		heads = append(heads, h)
	}
	return heads, rows.Err()
}

// pullRows reads as many rows of each head as it may get, and some more: what others do not need.
func (s *Store) pullRows(ctx context.Context, q *work.Pull, heads []*pullHead) error {
	shops := map[work.PullTurn]int{}
	campaigns := map[work.Lane]int{}
	for _, h := range heads {
		if len(h.parts) == 0 {
			continue
		}
		if shops[h.turn]++; shops[h.turn] == 1 {
			campaigns[h.turn.Lane]++
		}
	}
	var nos, parts, most []int32
	var lanes []int16
	var camps []int64
	var names []string
	for i, h := range heads {
		if len(h.parts) == 0 {
			continue
		}
		// Twice its share, for what others leave; a row is a random page, so no more is read than may be used.
		want := min(room(q, h), q.N, max(8, 2*q.N/(campaigns[h.turn.Lane]*shops[h.turn])))
		each := min(want, want/len(h.parts)+1)
		for _, p := range h.parts {
			nos, parts, most = append(nos, int32(i)), append(parts, p), append(most, int32(min(each, math.MaxInt32)))
			lanes, camps, names = append(lanes, int16(h.turn.Lane)), append(camps, h.turn.Campaign), append(names, h.shop)
		}
	}
	if len(nos) == 0 {
		return nil
	}
	rows, err := s.pool.Query(ctx, rowsSQL, nos, lanes, camps, names, parts, most, orEmpty(q.InHand))
	if err != nil {
		return err
	}
	for rows.Next() {
		var no int32
		var p work.Parked
		if err := scanParkedInto(rows, &p, &no); err != nil {
			rows.Close()
			return err
		}
		heads[no].rows = append(heads[no].rows, p)
	}
	for _, h := range heads {
		slices.SortStableFunc(h.rows, func(a, b work.Parked) int { return a.Due.Compare(b.Due) })
	}
	return rows.Err()
}

// room is what may come of a head at the most.
func room(q *work.Pull, h *pullHead) int {
	if h.dead {
		return 1
	}
	if n, ok := q.Room[h.shop]; ok {
		return max(n, 0)
	}
	return max(q.Default, 0)
}

// deal hands out what was read: lane by lane, the campaigns of a lane in turns, the shops of a campaign in turns. It is
// pure. heads are in the order of lanes, of each lane's round and of each campaign's round.
func deal(q *work.Pull, heads []*pullHead) work.Pulled {
	out := work.Pulled{Next: work.PullCursor{Campaigns: map[work.Lane]int64{}, Shops: map[work.PullTurn]string{}}}
	maps.Copy(out.Next.Campaigns, q.After.Campaigns)
	if len(q.After.Shops) <= cursorsMost { // else it begins anew: of campaigns long gone, most of them
		maps.Copy(out.Next.Shops, q.After.Shops)
	}
	left := map[string]int{} // room by shop
	for _, h := range heads {
		left[h.shop] = room(q, h)
	}
	for lane := range chunked(heads, func(h *pullHead) work.Lane { return h.turn.Lane }) {
		var rounds [][]*pullHead
		for c := range chunked(lane, func(h *pullHead) work.PullTurn { return h.turn }) {
			rounds = append(rounds, c)
		}
		dealLane(q, rounds, left, &out)
	}
	return out
}

// cursorsMost bounds what a cursor remembers.
const cursorsMost = 1000

// dealLane hands out what the campaigns of a lane have, one product at a time.
func dealLane(q *work.Pull, rounds [][]*pullHead, left map[string]int, out *work.Pulled) {
	turn := rounds[0][0].turn
	// Where all is handed out the next call goes on behind everything that was visited.
	out.Next.Campaigns[turn.Lane] = rounds[len(rounds)-1][0].turn.Campaign
	for _, heads := range rounds {
		out.Next.Shops[heads[0].turn] = heads[len(heads)-1].shop
	}
	at := make([]int, len(rounds)) // the next shop of each campaign
	for some := true; some; {
		some = false
		for c, heads := range rounds {
			for range heads {
				h := heads[at[c]%len(heads)]
				at[c]++
				if len(h.rows) == 0 || left[h.shop] <= 0 {
					continue
				}
				if len(out.Parked) == q.N {
					return // cursors stand at who was served last
				}
				out.Parked, h.rows, some = append(out.Parked, h.rows[0]), h.rows[1:], true
				left[h.shop]--
				out.Next.Campaigns[turn.Lane], out.Next.Shops[h.turn] = h.turn.Campaign, h.shop
				break
			}
		}
	}
}

// chunked yields runs of items with the same key.
func chunked[K comparable](heads []*pullHead, key func(*pullHead) K) func(yield func([]*pullHead) bool) {
	return func(yield func([]*pullHead) bool) {
		for len(heads) > 0 {
			n := slices.IndexFunc(heads, func(h *pullHead) bool { return key(h) != key(heads[0]) })
			if n < 0 {
				n = len(heads)
			}
			if !yield(heads[:n]) {
				return
			}
			heads = heads[n:]
		}
	}
}

// orEmpty turns nil, which would be NULL and exclude all, into an empty array.
func orEmpty(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

// parkedColumns are what scanParkedInto reads.
const parkedColumns = `product_id, shop, campaign, partition, lane, due, generation, reason, attempt, xids, changes,
	first_commit, last_commit`

// scanParkedInto reads parkedColumns, after the columns of lead.
func scanParkedInto(row pgx.CollectableRow, p *work.Parked, lead ...any) error {
	var first, last *time.Time
	err := row.Scan(append(lead, &p.ProductID, &p.Shop, &p.Campaign, &p.Partition, &p.Lane, &p.Due, &p.Generation, &p.Reason,
		&p.Attempt, &p.XIDs, &p.Changes, &first, &last)...)
	p.XIDs, p.FirstCommit, p.LastCommit = orNil(p.XIDs), orZero(first), orZero(last)
	return err
}

func scanParked(row pgx.CollectableRow) (p work.Parked, err error) {
	err = scanParkedInto(row, &p)
	return p, err
}
