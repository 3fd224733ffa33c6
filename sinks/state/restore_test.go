package state

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/work"
)

// TestARestoredStateIsReadFromTheShops: the backup is older than what the shops have. A product that it takes for
// unchanged must be compared with its shop again, also by a worker that had it in hand.
func TestARestoredStateIsReadFromTheShops(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	f := own(t, s, work.StagePush, "w", 4)
	known := work.Settled{Known: work.Known{
		ProductID: "p", Shop: "s", ShopifyID: "gid://1", Shadow: []byte(`{"title":1}`), DocumentHash: "h", Snapshot: snapshot(5, 9),
	}}
	require.NoError(t, s.Settle(ctx, work.Settlement{Fences: f, Products: []work.Settled{known}, Outbox: records("a", "b")}))
	lock, err := s.LockRelay(ctx)
	require.NoError(t, err)
	defer func() { _ = lock.Close(ctx) }()
	rows, err := s.TakeOutbox(ctx, lock, 10)
	require.NoError(t, err)
	require.Len(t, rows, 2)
	first, err := s.Incarnation(ctx)
	require.NoError(t, err)

	restored, _, err := s.Restored(ctx, 2)
	require.NoError(t, err)
	require.False(t, restored, "all that Kafka has was given here")
	restored, n, err := s.Restored(ctx, 3)
	require.NoError(t, err)
	require.True(t, restored)
	require.EqualValues(t, 1, n)
	l, err := s.Load(ctx, []string{"p"})
	require.NoError(t, err)
	require.Nil(t, l.Known[0].Shadow)
	require.Empty(t, l.Known[0].DocumentHash)
	require.Equal(t, "gid://1", l.Known[0].ShopifyID, "nothing is created twice")
	require.ErrorIs(t, s.Settle(ctx, work.Settlement{Fences: f, Products: []work.Settled{known}}), work.ErrLeaseLost)
	got, err := pull(s, []int32{0, 1, 2, 3}, nil, 9)
	require.NoError(t, err)
	require.Len(t, got, 1)
	require.Equal(t, reasonRestored, got[0].Reason)
	second, err := s.Incarnation(ctx)
	require.NoError(t, err)
	require.NotEqual(t, first, second)
	rows, err = s.TakeOutbox(ctx, lock, 10)
	require.NoError(t, err)
	require.Empty(t, rows, "they are in Kafka")
	restored, _, err = s.Restored(ctx, 3)
	require.NoError(t, err)
	require.False(t, restored, "once")
}
