package state

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/work"
)

func TestBacklogCountsWhatWaitsAndWhy(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	f := own(t, s, work.StagePush, "w1", 2)
	empty, err := s.Backlog(ctx)
	require.NoError(t, err)
	require.Empty(t, empty.Parked)
	require.Len(t, empty.Stages, 1)
	require.Equal(t, StageLeases{Stage: work.StagePush, Workers: 1, Held: 2, Positions: map[int32]int64{0: 0, 1: 0}}, empty.Stages[0])

	require.NoError(t, s.Settle(ctx, work.Settlement{Fences: f, Positions: map[int32]int64{0: 7}, Outbox: records("a", "b")}))
	require.NoError(t, s.Intend(ctx, f, []work.Intent{{ProductIDs: []string{"p"}, Shop: "north", Key: "k", Mutation: "productSet"}}))
	require.NoError(t, s.Park(ctx, []work.Parked{
		{ProductID: "a", Shop: "north", Lane: work.LaneRetry, Reason: "NETWORK", Due: time.Now().Add(time.Hour)},
		{ProductID: "b", Shop: "north", Lane: work.LaneRetry, Reason: "NETWORK"},
		{ProductID: "c", Lane: work.LaneCampaign, Reason: "SNAPSHOT", CampaignID: "snapshot/1"},
	}))
	exec(t, s, `UPDATE parked SET due = due - interval '1 minute' WHERE product_id = 'b'`)
	exec(t, s, `UPDATE leases SET expires = 'epoch' WHERE partition = 1`)
	b, err := s.Backlog(ctx)
	require.NoError(t, err)
	require.Equal(t, StageLeases{Stage: work.StagePush, Workers: 1, Held: 1, Positions: map[int32]int64{0: 7, 1: 0}}, b.Stages[0])
	require.EqualValues(t, 2, b.Outbox.Rows)
	require.EqualValues(t, 1, b.Intents)
	require.Zero(t, b.ParkedMore)
	require.Len(t, b.Parked, 2)
	retry := b.Parked[0]
	require.Greater(t, retry.Oldest, 30*time.Second)
	retry.Oldest = 0
	require.Equal(t, ParkedGroup{Lane: work.LaneRetry, Shop: "north", Reason: "NETWORK", Products: 2, Due: 1}, retry)
	require.Equal(t, "SNAPSHOT", b.Parked[1].Reason)
}
