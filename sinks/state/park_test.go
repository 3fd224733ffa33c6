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
	rows, err := pull(s, []int32{0}, nil, 10)
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
	news, err := s.Pause(ctx, PauseShop("paused"), "me")
	require.NoError(t, err)
	require.True(t, news)

	got, err := pull(s, []int32{0, 1, 2}, []string{"busy"}, 14)
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

	one, err := pull(s, []int32{1}, nil, 1000)
	require.NoError(t, err)
	for _, r := range one {
		require.Equal(t, int32(1), r.Partition)
	}
	exec(t, s, `UPDATE shops SET next_probe = clock_timestamp()`)
	require.Len(t, pullAll(t, s, "dead"), 1, "one probe")
	require.NoError(t, s.SetShopDead(ctx, "dead", "", false, time.Time{}))
	require.Len(t, pullAll(t, s, "dead"), 50)
	was, err := s.Resume(ctx, PauseShop("paused"))
	require.NoError(t, err)
	require.True(t, was)
	require.Len(t, pullAll(t, s, "paused"), 50)
}

// pullAll pulls what is due of one shop.
func pullAll(t *testing.T, s *Store, shop string) (out []work.Parked) {
	t.Helper()
	rows, err := pull(s, []int32{0, 1, 2}, nil, 10_000)
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
	rows   map[parkKey]work.Parked
	pulled []work.Parked
	// campaigns by number; what is stopped, as it is named.
	campaigns map[int64]string
	cancelled map[int64]bool
	paused    map[string]bool
}

type parkKey struct {
	product, shop string
	campaign      int64
}

func keyOf(p *work.Parked) parkKey { return parkKey{p.ProductID, p.Shop, p.Campaign} }

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
		Campaign:  rapid.Int64Range(0, 2).Draw(t, "campaign"),
	}
	if rapid.Bool().Draw(t, "timed") {
		p.FirstCommit = time.Unix(int64(rapid.IntRange(1, 9).Draw(t, "first")), 0).UTC()
		p.LastCommit = p.FirstCommit.Add(time.Second)
	}
	return p
}

func (m *parkModel) merge(ps []work.Parked) {
	for _, p := range ps {
		if m.cancelled[p.Campaign] {
			continue
		}
		k := keyOf(&p)
		if old, ok := m.rows[k]; ok {
			p = mergeParked(old, p)
		}
		m.rows[k] = p
	}
}

// park names campaigns by their id, as takers do; a settlement knows their number.
func (m *parkModel) park(t *rapid.T) {
	ps := make([]work.Parked, rapid.IntRange(1, 4).Draw(t, "n"))
	named := make([]work.Parked, len(ps))
	for i := range ps {
		ps[i] = m.draw(t)
		named[i] = ps[i]
		named[i].Campaign, named[i].CampaignID = 0, m.campaigns[ps[i].Campaign]
	}
	require.NoError(t, m.s.Park(context.Background(), named))
	m.merge(ps)
}

func (m *parkModel) pause(t *rapid.T) {
	what := rapid.SampledFrom([]string{PauseAll, PauseShop("s"), PauseLane(work.LaneRetry), PauseCampaign("c/1"), PauseCampaign("c/2")}).Draw(t, "what")
	change := m.s.Resume
	if !m.paused[what] {
		change = func(ctx context.Context, what string) (bool, error) { return m.s.Pause(ctx, what, "") }
	}
	was, err := change(context.Background(), what)
	require.NoError(t, err)
	require.True(t, was)
	m.paused[what] = !m.paused[what]
}

func (m *parkModel) cancel(t *rapid.T) {
	no := rapid.Int64Range(1, 2).Draw(t, "campaign")
	require.NoError(t, m.s.CancelCampaign(context.Background(), m.campaigns[no]))
	m.cancelled[no] = true
	for k := range m.rows {
		if k.campaign == no {
			delete(m.rows, k)
		}
	}
}

// stands says whether a row waits for more than its time.
func (m *parkModel) stands(p *work.Parked) bool {
	return m.paused[PauseAll] || m.paused[PauseShop(p.Shop)] || m.paused[PauseLane(p.Lane)] ||
		m.paused[PauseCampaign(m.campaigns[p.Campaign])]
}

func (m *parkModel) pull(t *rapid.T) {
	rows, err := pull(m.s, []int32{0, 1}, nil, 100)
	require.NoError(t, err)
	due := 0
	for _, p := range m.rows {
		if p.Due.Before(time.Now().Add(time.Minute)) && !m.stands(&p) {
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
	if k := keyOf(&p); m.rows[k].Generation == p.Generation {
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
	rows, err := m.s.pool.Query(context.Background(), `SELECT `+parkedColumns+` FROM parked`)
	require.NoError(t, err)
	all, err := pgx.CollectRows(rows, scanParked)
	require.NoError(t, err)
	for _, got := range all {
		k := keyOf(&got)
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

// TestParkingAgainstAModel parks, pulls, settles, pauses and cancels at random.
func TestParkingAgainstAModel(t *testing.T) {
	s := newStore(t)
	f := own(t, s, work.StagePush, "w", 2)
	rapid.Check(t, func(t *rapid.T) {
		exec(t, s, `TRUNCATE parked, campaigns, pauses RESTART IDENTITY`)
		exec(t, s, `INSERT INTO campaigns (id) VALUES ('c/1'), ('c/2')`)
		m := &parkModel{
			s: s, fences: f, rows: map[parkKey]work.Parked{}, campaigns: map[int64]string{1: "c/1", 2: "c/2"},
			cancelled: map[int64]bool{}, paused: map[string]bool{},
		}
		t.Repeat(map[string]func(*rapid.T){
			"park": m.park, "pull": m.pull, "settle": m.settle, "pause": m.pause, "cancel": m.cancel, "": m.check,
		})
	})
}

// pull asks for n products, with room for all of them.
func pull(s *Store, partitions []int32, closed []string, n int) ([]work.Parked, error) {
	got, err := s.Pull(context.Background(), work.Pull{Partitions: partitions, Closed: closed, Default: n, N: n})
	return got.Parked, err
}
