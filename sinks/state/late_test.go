package state

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/work"
)

// What was sent under a lost lease stands beside what its next owner has on record: a settlement closes what it has seen.
func TestLateRequestsOutlastASettlementThatHasNotSeenThem(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	f := own(t, s, work.StagePush, "w", 1)
	sent := work.Intent{Key: "k", Shop: "s", ProductIDs: []string{"p"}, Mutation: "productSet {}"}
	require.NoError(t, s.Intend(ctx, f, []work.Intent{sent}))
	seen, err := s.Load(ctx, []string{"p"})
	require.NoError(t, err)

	told, due := sent, time.Now().Add(time.Minute)
	told.Key, told.At = "k/late", time.Now().Add(-time.Minute)
	row := work.Parked{ProductID: "p", Shop: "s", Lane: work.LaneRetry, Reason: "LATE_REQUEST", Due: due}
	require.NoError(t, s.TellLate(ctx, []work.Parked{row}, []work.Intent{told}))
	require.NoError(t, s.Settle(ctx, work.Settlement{Fences: f, Unpark: seen.Parked, Intents: seen.Known[0].Intents}))

	l, err := s.Load(ctx, []string{"p"})
	require.NoError(t, err)
	require.Len(t, l.Parked, 1)
	require.Len(t, l.Known, 1, "also where nothing else is known of the product")
	require.Len(t, l.Known[0].Intents, 1)
	in := l.Known[0].Intents[0]
	require.Equal(t, "k/late", in.Key)
	require.Equal(t, sent.Mutation, in.Mutation, "it says what the request may have added")
	require.WithinDuration(t, told.At, in.At, 10*time.Second)

	require.NoError(t, s.Settle(ctx, work.Settlement{Fences: f, Unpark: l.Parked, Intents: l.Known[0].Intents}))
	require.Zero(t, count(t, s, `SELECT count(*) FROM parked`)+count(t, s, `SELECT count(*) FROM intents`))
}
