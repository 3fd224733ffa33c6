package pipeline

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// countedLeases counts renewals.
type countedLeases struct{ renewed atomic.Int64 }

func (c *countedLeases) Renew(_ context.Context, stage work.Stage, owner string, _ int32, _ time.Duration) ([]work.Lease, error) {
	return []work.Lease{{Fence: work.Fence{Stage: stage, Owner: owner, Epoch: 1}, Position: c.renewed.Add(1)}}, nil
}

func (c *countedLeases) Release(context.Context, []work.Fence) error { return nil }

func TestALeaseIsRenewedWhileItsHolderIsBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &countedLeases{}
		k := &leaseKeeper{
			store: store, stage: work.StageExpand, partitions: 1, cfg: LeaseConfig{Owner: "a"}.withDefaults(),
			log: slog.New(slog.DiscardHandler),
		}
		ctx, cancel := context.WithCancel(t.Context())
		held, done := make(chan []heldLease), make(chan error)
		go func() { done <- k.run(ctx, held) }()
		<-held
		time.Sleep(2 * time.Minute) // one page
		require.Greater(t, store.renewed.Load(), int64(30))
		got := <-held
		require.Greater(t, got[0].Position, int64(30), "the newest renewal")
		require.Greater(t, time.Until(got[0].until), 25*time.Second)
		cancel()
		require.NoError(t, <-done)
	})
}

func TestAPollThatWasReadAheadIsNotTakenAfterItsPartitionBeginsAnew(t *testing.T) {
	var a readAhead
	stale := func(offset int64) bool { return a.stale(&event.Record{Offset: offset}) }
	a.begin(0, 100)
	require.False(t, stale(100))
	require.False(t, stale(105))
	a.begin(0, 103) // the lease was lost and won again; the poll after 105 is on its way
	require.True(t, stale(107))
	require.True(t, stale(108))
	require.False(t, stale(105))
	require.False(t, stale(107), "the same record, in order now")
	a.begin(0, 200) // another worker has gone on
	require.False(t, stale(109), "its own offset tells")
	a.begin(0, 90)
	a.begin(0, 95)
	require.True(t, stale(110))
	require.False(t, stale(97))
	require.False(t, stale(110))
}
