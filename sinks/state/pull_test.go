package state

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shelfwire/shelfwire/schemas/work"
)

// fill parks n due products of a campaign over so many shops and eight partitions.
func fill(t require.TestingT, s *Store, campaign, n, shops int) {
	exec(t, s, `INSERT INTO parked (product_id, shop, campaign, partition, lane, due, generation, reason, changes)
		SELECT 'p' || $1::bigint || '-' || i, 'shop' || (i % $3::int), $1::bigint, (i / $3::int) % 8, 3, now() - interval '1 min', i, 'SNAPSHOT', 1
		FROM generate_series(1, $2::int) i`, campaign, n, shops)
}

var eight = []int32{0, 1, 2, 3, 4, 5, 6, 7}

// TestAPullCostsTheSameWhateverIsParked: a thousand shops, and a million rows that wait for one, cost no more buffers
// than what is visited, and no table is read through.
func TestAPullCostsTheSameWhateverIsParked(t *testing.T) {
	s := newStore(t)
	for _, c := range []struct{ rows, shops int }{{200_000, 1000}, {300_000, 1}, {1000, 50}} {
		exec(t, s, `TRUNCATE parked`)
		fill(t, s, 1, c.rows, c.shops)
		exec(t, s, `VACUUM ANALYZE parked`)
		q := work.Pull{Partitions: eight, Default: 250, N: 500}
		buffers := countBuffers(t, s, &q)
		start := time.Now()
		got, err := s.Pull(t.Context(), q)
		require.NoError(t, err)
		t.Logf("%d rows of %d shops: %d pulled in %s, %d buffers", c.rows, c.shops, len(got.Parked), time.Since(start), buffers)
		require.GreaterOrEqual(t, len(got.Parked), 250)
		// A head costs a step of 4 pages, and 8 probes of 4; a row its page.
		require.Less(t, buffers, 4*pullHeads*9*2+4*q.N)
		require.Less(t, time.Since(start), time.Second, "20 ms on a calm machine")
	}
}

// TestAPullOfATableThatHasJustGrownIsCheap: ten million rows were parked within minutes, and the statistics are those of
// the empty table. The rows of a shop were read whole and sorted, for the first of them: 34 s.
func TestAPullOfATableThatHasJustGrownIsCheap(t *testing.T) {
	s := newStore(t)
	exec(t, s, `ALTER TABLE parked SET (autovacuum_enabled = false)`)
	for _, analyzed := range []int{0, 1} { // never, and when it was all but empty
		exec(t, s, `TRUNCATE parked`)
		fill(t, s, 1, 100*analyzed, 5)
		if analyzed > 0 {
			exec(t, s, `ANALYZE parked`)
		}
		fill(t, s, 2, 150_000, 5)
		q := work.Pull{Partitions: eight, Default: 250, N: 500}
		require.Less(t, countBuffers(t, s, &q), 3000)
	}
}

// countBuffers runs the statements of a pull, and says how many pages they touch. It fails where one reads a table
// through.
func countBuffers(t *testing.T, s *Store, q *work.Pull) int {
	t.Helper()
	heads, err := s.pullHeads(t.Context(), q)
	require.NoError(t, err)
	total := explain(t, s, headsSQL, q.Partitions, []string{}, []int16{0, 1, 2, 3}, []string{"live", "content", "retry", "campaign"},
		[]*int64{nil, nil, nil, nil}, []int16{}, []int64{}, []string{}, pullHeads)
	var lanes []int16
	var nos, parts, most []int32
	var camps []int64
	var shops []string
	for i, h := range heads {
		for _, p := range h.parts {
			nos, lanes, camps, shops = append(nos, int32(i)), append(lanes, int16(h.turn.Lane)), append(camps, h.turn.Campaign), append(shops, h.shop)
			parts, most = append(parts, p), append(most, 4)
		}
	}
	return total + explain(t, s, rowsSQL, nos, lanes, camps, shops, parts, most, []string{})
}

// explain runs a statement and returns the pages that it touched.
func explain(t *testing.T, s *Store, sql string, args ...any) int {
	t.Helper()
	var text []byte
	require.NoError(t, s.pool.QueryRow(t.Context(), `EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) `+sql, args...).Scan(&text))
	var plans []struct {
		Plan map[string]any `json:"Plan"`
	}
	require.NoError(t, json.Unmarshal(text, &plans))
	var walk func(node map[string]any)
	walk = func(node map[string]any) {
		if rel, _ := node["Relation Name"].(string); node["Node Type"] == "Seq Scan" {
			require.NotContains(t, []string{"parked", "batch_items", "products", "outbox"}, rel)
		}
		children, _ := node["Plans"].([]any)
		for _, c := range children {
			walk(c.(map[string]any))
		}
	}
	walk(plans[0].Plan)
	hit, _ := plans[0].Plan["Shared Hit Blocks"].(float64)
	read, _ := plans[0].Plan["Shared Read Blocks"].(float64)
	return int(hit + read)
}

// TestPullIsFairBetweenCampaigns: a campaign of many shops, one of a single shop and one that knows no shops yet take
// turns, however much each of them has.
func TestPullIsFairBetweenCampaigns(t *testing.T) {
	s := newStore(t)
	exec(t, s, `INSERT INTO campaigns (id) VALUES ('a'), ('b'), ('c')`)
	fill(t, s, 1, 2000, 40)
	fill(t, s, 2, 30, 1)
	fill(t, s, 3, 2000, 1)
	exec(t, s, `UPDATE parked SET shop = '' WHERE campaign = 3`)
	got, err := s.Pull(t.Context(), work.Pull{Partitions: eight, Default: 1000, N: 90})
	require.NoError(t, err)
	by := map[int64]int{}
	shops := map[string]int{}
	for _, p := range got.Parked {
		by[p.Campaign]++
		if p.Campaign == 1 {
			shops[p.Shop]++
		}
	}
	require.Equal(t, map[int64]int{1: 30, 2: 30, 3: 30}, by)
	require.GreaterOrEqual(t, len(shops), 20, "and its shops too: as many as a call visits")
}

// TestPullReachesEveryShop: with room for twenty, six hundred shops of two campaigns are served in thirty calls; the
// cursor goes round.
func TestPullReachesEveryShop(t *testing.T) {
	s := newStore(t)
	exec(t, s, `INSERT INTO campaigns (id) VALUES ('a'), ('b')`)
	fill(t, s, 1, 900, 300)
	fill(t, s, 2, 900, 300)
	q := work.Pull{Partitions: eight, Default: 5, N: 20}
	served := map[string]int{}
	for range 31 {
		got, err := s.Pull(t.Context(), q)
		require.NoError(t, err)
		require.Len(t, got.Parked, 20)
		for _, p := range got.Parked {
			served[fmt.Sprint(p.Campaign, p.Shop)]++
			q.InHand = append(q.InHand, p.ProductID)
		}
		q.After = got.Next
	}
	require.Len(t, served, 600)
	for shop, n := range served {
		require.LessOrEqual(t, n, 2, shop)
	}
}

// TestPullTakesNoMoreThanThereIsRoom, over all campaigns and lanes of a shop together; and what is in hand takes nobody's
// place.
func TestPullTakesNoMoreThanThereIsRoom(t *testing.T) {
	s := newStore(t)
	exec(t, s, `INSERT INTO campaigns (id) VALUES ('a'), ('b')`)
	fill(t, s, 1, 300, 3)
	fill(t, s, 2, 300, 3)
	exec(t, s, `UPDATE parked SET lane = 2 WHERE campaign = 2`)
	q := work.Pull{Partitions: eight, Room: map[string]int{"shop0": 7, "shop1": 0}, Default: 20, N: 500}
	count := func() (by map[string]int) {
		got, err := s.Pull(t.Context(), q)
		require.NoError(t, err)
		by = map[string]int{}
		for _, p := range got.Parked {
			require.NotContains(t, q.InHand, p.ProductID)
			by[p.Shop]++
		}
		for _, p := range got.Parked {
			q.InHand = append(q.InHand, p.ProductID)
		}
		return by
	}
	require.Equal(t, map[string]int{"shop0": 7, "shop2": 20}, count())
	require.Equal(t, map[string]int{"shop0": 7, "shop2": 20}, count(), "others come while those are in hand")
	q.Default = 0
	require.Equal(t, map[string]int{"shop0": 7}, count())
	q.Closed = []string{"shop0"}
	require.Empty(t, count())
}

// TestTurnsAreFair deals at random: nobody gets two more than a neighbour that has something left, rooms hold, nothing
// is given twice, and all is given when there is place for all.
func TestTurnsAreFair(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := work.Pull{N: rapid.IntRange(1, 60).Draw(t, "n"), Default: rapid.IntRange(0, 30).Draw(t, "default"), Room: map[string]int{}}
		var heads []*pullHead
		all := 0
		for c := range rapid.IntRange(1, 5).Draw(t, "campaigns") {
			for i := range rapid.IntRange(1, 6).Draw(t, "shops") {
				h := &pullHead{turn: work.PullTurn{Lane: work.LaneCampaign, Campaign: int64(c)}, shop: fmt.Sprint(i)}
				for r := range rapid.IntRange(0, 20).Draw(t, "rows") {
					h.rows = append(h.rows, work.Parked{ProductID: fmt.Sprint(c, i, r), Shop: h.shop, Campaign: int64(c)})
				}
				all += len(h.rows)
				heads = append(heads, h)
			}
		}
		if rapid.Bool().Draw(t, "roomy") {
			q.Default = 1000
		}
		out := deal(&q, heads)
		campaigns, shops := map[int64]int{}, map[string]int{}
		for _, p := range out.Parked {
			campaigns[p.Campaign]++
			shops[p.Shop]++
		}
		for shop, n := range shops {
			require.LessOrEqual(t, n, q.Default, shop)
		}
		require.LessOrEqual(t, len(out.Parked), q.N)
		left := map[int64]bool{} // campaigns that could have had more
		for _, h := range heads {
			if len(h.rows) > 0 && shops[h.shop] < q.Default {
				left[h.turn.Campaign] = true
			}
		}
		if len(out.Parked) < q.N {
			require.Empty(t, left, "place is left and something to fill it")
		}
		for c := range left {
			for o, n := range campaigns {
				require.LessOrEqual(t, n, campaigns[c]+1, "campaign %d got %d, and %d only %d", o, n, c, campaigns[c])
			}
		}
		if q.Default == 1000 && q.N >= all {
			require.Len(t, out.Parked, all)
		}
	})
}

// BenchmarkPull pulls 2,000 at a time from a million rows: of a thousand shops, of five, and from behind half of them
// that belong to a shop that is closed.
func BenchmarkPull(b *testing.B) {
	s := benchStore(b)
	for _, c := range []struct {
		name   string
		shops  int
		closed []string
	}{{"shops=1000", 1000, nil}, {"shops=5", 5, nil}, {"shops=5/closed=2", 5, []string{"shop0", "shop1"}}} {
		exec(b, s, `TRUNCATE parked`)
		fill(b, s, 1, 1_000_000, c.shops)
		exec(b, s, `VACUUM ANALYZE parked`)
		b.Run(c.name, func(b *testing.B) {
			got := 0
			q := work.Pull{Partitions: eight, Closed: c.closed, Default: 500, N: 2000}
			for b.Loop() {
				rows, err := s.Pull(context.Background(), q)
				require.NoError(b, err)
				require.NotEmpty(b, rows.Parked)
				got += len(rows.Parked)
				q.After = rows.Next
			}
			b.ReportMetric(float64(got)/b.Elapsed().Seconds(), "products/s")
		})
	}
}
