package state

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// TestAProductParkedDuringItsPushIsPushedAgain: a campaign parks it between the push's load and its settlement.
func TestAProductParkedDuringItsPushIsPushedAgain(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	f := own(t, s, work.StagePush, "w", 1)
	require.NoError(t, s.Park(ctx, []work.Parked{{ProductID: "p", Lane: work.LaneCampaign, Reason: "SNAPSHOT", Changes: 1}}))
	seen, err := s.Load(ctx, []string{"p"})
	require.NoError(t, err)
	require.NoError(t, s.Park(ctx, []work.Parked{{ProductID: "p", Lane: work.LaneCampaign, Reason: "REPLAY", Changes: 1}}))
	require.NoError(t, s.Settle(ctx, work.Settlement{Fences: f, Unpark: seen.Parked}))
	rows, err := s.Pull(ctx, []int32{0}, nil, 10)
	require.NoError(t, err)
	require.Len(t, rows, 1, "the second parking stands")
	require.NoError(t, s.Settle(ctx, work.Settlement{Fences: f, Unpark: []work.ParkedRef{{ProductID: "p", Generation: rows[0].Generation}}}))
	require.Zero(t, count(t, s, `SELECT count(*) FROM parked`))

	require.NoError(t, s.Park(ctx, []work.Parked{{ProductID: "p", Reason: "REPLAY"}}))
	require.NoError(t, s.Settle(ctx, work.Settlement{Fences: f, Unpark: seen.Parked}))
	require.Equal(t, 1, count(t, s, `SELECT count(*) FROM parked`), "a generation is never given twice")
}

// TestARetryIsPushedBack: the settlement of a failed attempt moves the row to later; news that came meanwhile keep it
// early.
func TestARetryIsPushedBack(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	f := own(t, s, work.StagePush, "w", 1)
	later := work.Parked{ProductID: "p", Shop: "s", Lane: work.LaneRetry, Reason: "RETRY", Due: time.Now().Add(time.Hour), Attempt: 2}
	wait := func() (d time.Duration) {
		require.NoError(t, s.pool.QueryRow(ctx, `SELECT due - clock_timestamp() FROM parked`).Scan(&d))
		return d
	}
	require.NoError(t, s.Park(ctx, []work.Parked{{ProductID: "p", Shop: "s", Lane: work.LaneRetry, Reason: "RETRY", Attempt: 1}}))
	seen, err := s.Load(ctx, []string{"p"})
	require.NoError(t, err)
	require.NoError(t, s.Settle(ctx, work.Settlement{Fences: f, Unpark: seen.Parked, Park: []work.Parked{later}}))
	require.InDelta(t, time.Hour, wait(), float64(time.Minute))

	require.NoError(t, s.Park(ctx, []work.Parked{{ProductID: "p", Shop: "s", Lane: work.LaneCampaign, Reason: "REPLAY"}}))
	require.LessOrEqual(t, wait(), time.Duration(0), "a replay makes it due at once")
	require.NoError(t, s.Settle(ctx, work.Settlement{Fences: f, Unpark: seen.Parked, Park: []work.Parked{later}}))
	require.LessOrEqual(t, wait(), time.Duration(0), "which a settlement that has not seen it does not undo")
}

// TestPullServesLanesThenShopsInTurns: urgent before others, no shop before another, nothing of a shop that is not
// served.
func TestPullServesLanesThenShopsInTurns(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	var rows []work.Parked
	add := func(n int, shop string, lane work.Lane, due time.Duration) {
		for i := range n {
			rows = append(rows, work.Parked{
				ProductID: fmt.Sprintf("%s-%s-%d", shop, lane, i), Shop: shop, Partition: int32(i % 3), Lane: lane,
				Due: time.Now().Add(due), Reason: "FANOUT",
			})
		}
	}
	add(300, "flood", work.LaneCampaign, -time.Hour)
	add(6, "small", work.LaneCampaign, -time.Minute)
	add(2, "small", work.LaneRetry, -time.Second)
	add(2, "small", work.LaneLive, time.Hour)
	add(50, "dead", work.LaneLive, -time.Hour)
	add(50, "paused", work.LaneLive, -time.Hour)
	add(50, "busy", work.LaneLive, -time.Hour)
	require.NoError(t, s.Park(ctx, rows))
	require.NoError(t, s.SetShopDead(ctx, "dead", "401", true, time.Now().Add(time.Minute)))
	require.NoError(t, s.Pause(ctx, "paused", true))

	got, err := s.Pull(ctx, []int32{0, 1, 2}, []string{"busy"}, 14)
	require.NoError(t, err)
	require.Len(t, got, 14)
	shops := map[string]int{}
	for i, r := range got {
		shops[r.Shop]++
		if i < 2 {
			require.Equal(t, "small", r.Shop)
			require.Equal(t, work.LaneRetry, r.Lane)
		}
	}
	require.Equal(t, map[string]int{"small": 8, "flood": 6}, shops)

	one, err := s.Pull(ctx, []int32{1}, nil, 1000)
	require.NoError(t, err)
	for _, r := range one {
		require.Equal(t, int32(1), r.Partition)
	}
	exec(t, s, `UPDATE shops SET next_probe = clock_timestamp()`)
	require.Len(t, pullAll(t, s, "dead"), 3, "a probe for each partition")
	require.NoError(t, s.SetShopDead(ctx, "dead", "", false, time.Time{}))
	require.Len(t, pullAll(t, s, "dead"), 50)
	require.NoError(t, s.Pause(ctx, "paused", false))
	require.Len(t, pullAll(t, s, "paused"), 50)
}

// pullAll pulls what is due of one shop.
func pullAll(t *testing.T, s *Store, shop string) (out []work.Parked) {
	t.Helper()
	rows, err := s.Pull(t.Context(), []int32{0, 1, 2}, nil, 10_000)
	require.NoError(t, err)
	for _, r := range rows {
		if r.Shop == shop {
			out = append(out, r)
		}
	}
	return out
}

// parkModel is the table of parked products as a map that is merged in Go.
type parkModel struct {
	s      *Store
	fences []work.Fence
	rows   map[[2]string]work.Parked
	pulled []work.Parked
}

// draw makes a row. It is due by whole hours: the state's clock and this one are a little apart, and all here is in
// the past or far.
func (m *parkModel) draw(t *rapid.T) work.Parked {
	hours := rapid.SampledFrom([]int{0, 2, 5, 9}).Draw(t, "hours")
	p := work.Parked{
		ProductID: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "product"),
		Shop:      rapid.SampledFrom([]string{"", "s", "z"}).Draw(t, "shop"),
		Partition: int32(rapid.IntRange(0, 1).Draw(t, "partition")),
		Lane:      work.Lane(rapid.IntRange(0, 3).Draw(t, "lane")),
		Due:       time.Now().Add(time.Duration(hours) * time.Hour),
		Reason:    fmt.Sprintf("R%d", hours),
		Attempt:   rapid.IntRange(0, 9).Draw(t, "attempt"),
		XIDs:      joinXIDs(rapid.SliceOfN(rapid.Map(rapid.IntRange(1, 200), func(x int) change.XID { return change.XID(x) }), 0, 40).Draw(t, "xids"), nil),
		Changes:   rapid.IntRange(1, 9).Draw(t, "changes"),
	}
	if rapid.Bool().Draw(t, "timed") {
		p.FirstCommit = time.Unix(int64(rapid.IntRange(1, 9).Draw(t, "first")), 0).UTC()
		p.LastCommit = p.FirstCommit.Add(time.Second)
	}
	return p
}

func (m *parkModel) merge(ps []work.Parked) {
	for _, p := range ps {
		k := [2]string{p.ProductID, p.Shop}
		if old, ok := m.rows[k]; ok {
			p = mergeParked(old, p)
		}
		m.rows[k] = p
	}
}

func (m *parkModel) park(t *rapid.T) {
	ps := make([]work.Parked, rapid.IntRange(1, 4).Draw(t, "n"))
	for i := range ps {
		ps[i] = m.draw(t)
	}
	require.NoError(t, m.s.Park(context.Background(), ps))
	m.merge(ps)
}

func (m *parkModel) pull(t *rapid.T) {
	rows, err := m.s.Pull(context.Background(), []int32{0, 1}, nil, 100)
	require.NoError(t, err)
	due := 0
	for _, p := range m.rows {
		if p.Due.Before(time.Now().Add(time.Minute)) {
			due++
		}
	}
	require.Len(t, rows, due)
	require.True(t, slices.IsSortedFunc(rows, func(a, b work.Parked) int { return int(a.Lane - b.Lane) }))
	m.pulled = append(m.pulled, rows...)
}

// settle ends the push of a row that was pulled, and may park the same or another product.
func (m *parkModel) settle(t *rapid.T) {
	if len(m.pulled) == 0 {
		t.Skip("nothing was pulled")
	}
	i := rapid.IntRange(0, len(m.pulled)-1).Draw(t, "which")
	p := m.pulled[i]
	st := work.Settlement{Fences: m.fences, Unpark: []work.ParkedRef{{ProductID: p.ProductID, Shop: p.Shop, Generation: p.Generation}}}
	if k := [2]string{p.ProductID, p.Shop}; m.rows[k].Generation == p.Generation {
		delete(m.rows, k)
	}
	if rapid.Bool().Draw(t, "again") {
		st.Park = []work.Parked{m.draw(t)}
		m.merge(st.Park)
	}
	require.NoError(t, m.s.Settle(context.Background(), st))
	m.pulled = slices.Delete(m.pulled, i, i+1)
}

// check compares, and learns the generations of what was parked since.
func (m *parkModel) check(t *rapid.T) {
	rows, err := m.s.pool.Query(context.Background(), `SELECT product_id, shop, partition, lane, due, generation, reason,
		attempt, xids, changes, first_commit, last_commit FROM parked`)
	require.NoError(t, err)
	all, err := pgx.CollectRows(rows, scanParked)
	require.NoError(t, err)
	for _, got := range all {
		k := [2]string{got.ProductID, got.Shop}
		want, ok := m.rows[k]
		require.True(t, ok, "%+v should be gone", got)
		require.WithinDuration(t, want.Due, got.Due, 10*time.Minute)
		if want.Generation != 0 {
			require.Equal(t, want.Generation, got.Generation, "unchanged since it was last seen")
		}
		want.Due, want.Generation = got.Due, got.Generation
		require.Equal(t, want, got)
		m.rows[k] = want
	}
	require.Len(t, m.rows, len(all))
}

// TestParkingAgainstAModel parks, pulls and settles at random.
func TestParkingAgainstAModel(t *testing.T) {
	s := newStore(t)
	f := own(t, s, work.StagePush, "w", 2)
	rapid.Check(t, func(t *rapid.T) {
		exec(t, s, `TRUNCATE parked`)
		m := &parkModel{s: s, fences: f, rows: map[[2]string]work.Parked{}}
		t.Repeat(map[string]func(*rapid.T){"park": m.park, "pull": m.pull, "settle": m.settle, "": m.check})
	})
}
