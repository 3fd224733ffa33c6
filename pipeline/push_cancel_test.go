package pipeline

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/work"
)

// campaign parks a product for campaign 7, whose batch is b7.
func (w *world) campaign(product string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.park([]work.Parked{{ProductID: product, Lane: work.LaneCampaign, Due: time.Now(), Reason: "FANOUT", Campaign: 7, Changes: 1}})
	w.items[[3]string{"b7", product, ""}] = work.Item{BatchID: "b7", ProductID: product, Status: work.ItemPending}
}

// What a cancelled campaign has in the hands of a reader has not been sent: it stays so, and its batch may end at once.
func TestACancelStopsWhatIsBeingRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.xid = 101
		w.put("p1", "x", "north", "south")
		w.campaign("p1")
		w.onRead = func() { w.cancel(7, "b7") }
		_, stop := w.run("a")
		w.wait(5 * time.Second)
		require.Empty(t, w.sent)
		require.Empty(t, w.outcomes())
		require.Empty(t, w.parked)
		for _, shop := range []string{"north", "south"} {
			require.Equal(t, work.ItemCancelled, w.items[[3]string{"b7", "p1", shop}].Status)
		}
		w.onRead = nil
		w.change("p1", 100) // its read was thrown away: it counts for nobody
		w.wait(5 * time.Second)
		require.ElementsMatch(t, []string{"north:p1", "south:p1"}, w.sent)
		stop()
	})
}

// The product has changed by itself: a cancel of what else wanted it is no reason to leave the shop behind.
func TestACancelLeavesWhatAChangeWants(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("p1", "x", "north")
		w.campaign("p1")
		w.change("p1", 100)
		w.onRead = func() { w.cancel(7, "b7") }
		_, stop := w.run("a")
		w.wait(5 * time.Second)
		require.Equal(t, []string{"north:p1"}, w.sent)
		require.Empty(t, w.parked)
		stop()
	})
}

// A request of it may have reached the shop: somebody must look at what has become of it.
func TestACancelLeavesWhatMayHaveReachedAShop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("p1", "x", "north")
		w.campaign("p1")
		w.intents["k"] = work.Intent{Key: "k", Shop: "north", ProductIDs: []string{"p1"}, At: time.Now().Add(-time.Hour)}
		w.onRead = func() { w.cancel(7, "b7") }
		_, stop := w.run("a")
		w.wait(5 * time.Second)
		require.Equal(t, []string{"north:p1"}, w.sent)
		require.Empty(t, w.intents)
		stop()
	})
}

// It was pulled, and waits in memory for a reader.
func TestACancelStopsWhatWaitsForAReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("p1", "x", "north")
		w.campaign("p1")
		p := w.worker("a", func(*PushConfig) {})
		p.parts.State = &beforeLoad{w, func() { w.cancel(7, "b7") }}
		stop := w.start(p)
		w.wait(5 * time.Second)
		require.Empty(t, w.sent)
		require.Zero(t, w.reads)
		require.Empty(t, p.flying)
		stop()
	})
}

// beforeLoad is a state of which something changes before it is asked what is known.
type beforeLoad struct {
	*world
	change func()
}

func (b *beforeLoad) Load(ctx context.Context, products []string) (work.Loaded, error) {
	b.mu.Lock()
	b.change()
	b.mu.Unlock()
	return b.world.Load(ctx, products)
}
