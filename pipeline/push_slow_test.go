package pipeline

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// The query times out with p3 in it, however few others are with it.
func TestAQueryThatTimesOutIsHalvedAndTheProductThatTakesTooLongStandsInNobodysWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		_, stop := w.run("a")
		w.wait(100 * time.Millisecond)
		w.endless["p3"] = true
		for i := range 8 {
			id := fmt.Sprintf("p%d", i)
			w.put(id, "x", "north")
			w.change(id, 100, event.Header{Key: event.HeaderBatch, Value: []byte("b1")})
		}
		w.wait(3 * time.Minute)
		require.Len(t, w.sent, 7)
		require.NotContains(t, w.sent, "north:p3")
		require.Equal(t, int64(8), w.position, "what waits in the state holds no offsets")
		require.Contains(t, w.outcomes(), "p3  RETRYING SLOW_READ")
		require.Equal(t, work.ItemRetrying, w.items[[3]string{"b1", "p3", ""}].Status)
		require.Equal(t, "SLOW_READ", w.parked[[2]string{"p3", ""}].Reason)

		// Whatever comes of it, nobody else waits for a query that it is in.
		for i := range 5 {
			w.change("p3", w.xid-1)
			w.put("p1", fmt.Sprint("title ", i), "north")
			w.mu.Lock()
			w.xid++
			w.mu.Unlock()
			w.change("p1", w.xid-1)
			sent := len(w.sent)
			w.wait(20 * time.Second)
			require.Greater(t, len(w.sent), sent)
		}
		reads := w.reads
		w.wait(2 * time.Hour)
		require.Less(t, w.reads-reads, 10, "it is tried more and more rarely")

		w.mu.Lock()
		w.endless["p3"] = false
		w.mu.Unlock()
		w.wait(3 * time.Hour) // the longest wait, with its jitter
		require.Contains(t, w.sent, "north:p3")
		require.Empty(t, w.parked)
		require.Empty(t, w.known[[2]string{"p3", ""}].LastReason)
		require.Equal(t, work.ItemSuccess, w.items[[3]string{"b1", "p3", "north"}].Status)
		stop()
	})
}

func TestAProductThatIsNeverReadInTimeFailsInTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("p1", "x", "north")
		w.endless["p1"] = true
		w.known[[2]string{"p1", ""}] = work.Known{ProductID: "p1", Attempt: attemptsMax - 2, LastReason: reasonSlow}
		_, stop := w.run("a")
		w.change("p1", 100, event.Header{Key: event.HeaderBatch, Value: []byte("b1")})
		w.wait(6 * time.Hour)
		require.Contains(t, w.outcomes(), "p1  FAILED SLOW_READ")
		require.Len(t, w.outcomes(), 3)
		require.Empty(t, w.parked)
		require.Equal(t, work.ItemFailed, w.items[[3]string{"b1", "p1", ""}].Status)
		w.mu.Lock()
		w.endless["p1"] = false
		w.xid++
		w.mu.Unlock()
		w.change("p1", w.xid-1)
		w.wait(2 * time.Second)
		require.Equal(t, []string{"north:p1"}, w.sent)
		stop()
	})
}

// A retry of one shop meets the timeout: the wait for all shops takes its place.
func TestARetryThatIsNotReadInTimeWaitsForItsShop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("p1", "x", "north", "south")
		w.endless["p1"] = true
		w.park([]work.Parked{{ProductID: "p1", Shop: "south", Due: time.Now(), Reason: "RETRY", Lane: work.LaneRetry, XIDs: []change.XID{7}}})
		_, stop := w.run("a")
		w.wait(2 * time.Minute)
		require.Less(t, w.reads, 6, "no hot loop")
		require.Len(t, w.parked, 1)
		require.Equal(t, []change.XID{7}, slices.Compact(w.parked[[2]string{"p1", ""}].XIDs))
		w.mu.Lock()
		w.endless["p1"] = false
		w.mu.Unlock()
		w.wait(10 * time.Minute)
		require.ElementsMatch(t, []string{"north:p1", "south:p1"}, w.sent)
		require.Empty(t, w.parked)
		stop()
	})
}

// A source that is slow for everybody is not asked product by product, and nothing is lost.
func TestASourceThatIsSlowForAllIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		_, stop := w.run("a")
		for i := range 100 {
			id := fmt.Sprintf("p%d", i)
			w.endless[id] = true
			w.put(id, "x", "north")
			w.change(id, 100)
		}
		w.wait(time.Hour)
		require.LessOrEqual(t, w.most, 2, "one shared query and one of a product alone")
		require.Less(t, w.reads, 2*60*2+10)
		require.Empty(t, w.sent)
		w.mu.Lock()
		clear(w.endless)
		w.mu.Unlock()
		w.wait(2 * time.Hour)
		require.Len(t, w.sent, 100)
		require.Empty(t, w.parked)
		require.Equal(t, int64(100), w.position)
		stop()
	})
}
