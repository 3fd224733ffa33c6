package pipeline

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// slowTakeIn is a state that takes long to write what a campaign has brought.
type slowTakeIn struct {
	*world
	d time.Duration
}

func (s *slowTakeIn) TakeIn(ctx context.Context, t work.TakeIn) error {
	if len(t.Parked) > 0 {
		time.Sleep(s.d) // in the bubble
	}
	return s.world.TakeIn(ctx, t)
}

func TestWhileACampaignIsTakenInLiveChangesArePushed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPaced(t, nil)
		w.pollMost = 100
		p := w.worker("a", func(*PushConfig) {})
		p.parts.Sender, p.parts.Fenced = w, &slowTakeIn{w.world, 400 * time.Millisecond}
		stop := w.start(p)
		w.wait(time.Second)
		at := w.edit("live", "1", "north")
		for i := range 5000 {
			w.change(fmt.Sprintf("c%d", i), 0, snapshotRow())
		}
		w.wait(2 * time.Minute)
		require.Equal(t, 500*time.Millisecond, w.at["north:live"][0].Sub(at))
		require.Equal(t, int64(5001), w.position)
		stop()
	})
}

// A lost lease of one partition refuses a poll of many; the others' records must count.
func TestALostLeaseHoldsUpNoTakeInOfAnotherPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.leases = 2
		p := w.worker("a", func(c *PushConfig) { c.Partitions = 2 })
		p.parts.Fenced = &lostPartition{w, 1}
		stop := w.start(p)
		w.wait(time.Second)
		w.mu.Lock()
		for i := range 10 {
			r := campaignRecord(fmt.Sprintf("c%d", i), int32(i%2), int64(i))
			w.records = append(w.records, r)
		}
		w.mu.Unlock()
		w.change("c10", 0, snapshotRow()) // partition 0
		w.wait(2500 * time.Millisecond)
		require.Equal(t, int64(11), w.positions[0])
		require.Zero(t, w.positions[1])
		stop()
	})
}

// lostPartition is a state in which the lease of one partition is lost.
type lostPartition struct {
	*world
	partition int32
}

func (l *lostPartition) TakeIn(ctx context.Context, t work.TakeIn) error {
	for _, f := range t.Fences {
		if f.Partition == l.partition {
			return work.ErrLeaseLost
		}
	}
	return l.world.TakeIn(ctx, t)
}

func campaignRecord(key string, partition int32, offset int64) event.Record {
	return event.Record{
		Partition: partition, Offset: offset, Timestamp: time.Now(), Key: []byte(key), Headers: []event.Header{snapshotRow()},
	}
}

func TestAHandOverWaitsNoLongerThanTheDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPaced(t, map[string]time.Duration{"slow": 10 * time.Minute})
		_, stop := w.run(func(*PushConfig) {})
		w.edit("q", "1", "slow")
		w.wait(2 * time.Second)
		w.mu.Lock()
		w.wanted = true
		w.mu.Unlock()
		w.wait(19900 * time.Millisecond) // the next renewal tells, within a second and a half
		require.Equal(t, "a", w.owner)
		w.wait(1600 * time.Millisecond)
		require.False(t, w.wanted, "released at the drain deadline")
		w.mu.Lock()
		w.owner, w.expires, w.epoch = "b", time.Now().Add(time.Hour), w.epoch+1
		w.mu.Unlock()
		w.wait(15 * time.Minute)
		require.Empty(t, w.sent, "its intent came too late")
		require.Empty(t, w.intents)
		stop()
	})
}

func TestTheDrainDeadlineIsExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPaced(t, map[string]time.Duration{"slow": 10 * time.Minute})
		p := w.worker("a", func(*PushConfig) {})
		p.parts.Sender = w
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		w.wait(time.Second)
		for i := range 300 {
			w.edit(fmt.Sprintf("q%d", i), "1", "slow")
			w.edit(fmt.Sprintf("p%d", i), "1", "north")
		}
		w.wait(2 * time.Second)
		cancel()
		stopped := time.Now()
		require.NoError(t, <-done)
		require.Equal(t, 20*time.Second, time.Since(stopped), "to the nanosecond")
		require.Equal(t, "a", w.owner, "what flies may still land: the lease is left to end")
		time.Sleep(10 * time.Minute) // whatever still waits for the shop gives up by itself: the bubble ends
	})
}

// A stop in the quiet of a worker costs nothing but the release.
func TestAStopWithNothingInFlightIsImmediate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPaced(t, nil)
		_, stop := w.run(func(*PushConfig) {})
		w.edit("p", "1", "north")
		w.wait(2 * time.Second)
		stopped := time.Now()
		stop()
		require.Zero(t, time.Since(stopped))
		require.Empty(t, w.owner)
	})
}
