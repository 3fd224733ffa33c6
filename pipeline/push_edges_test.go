package pipeline

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// Parking adds the changes of the row that stands to those of the new one. A product that comes back unsent again and
// again must not grow by that, or it ends beyond what the column holds and takes its whole group with it.
func TestAProductThatComesBackUnsentKeepsItsCountOfChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("p1", "x", "north")
		w.answer = func(string, string) work.Result {
			return work.Result{Status: event.Retrying, Category: event.APILimit, Reason: reasonUnsent}
		}
		_, stop := w.run("a")
		w.change("p1", 100)
		w.wait(20 * time.Second)
		require.Greater(t, len(w.sent), 10)
		require.Equal(t, 1, w.parked[[2]string{"p1", "north"}].Changes)
		stop()
	})
}

// A retry of one shop says nothing of the others: what waits for all of them must stay.
func TestAPushOfOneShopEndsNoWaitForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("p1", "x", "north", "south")
		w.park([]work.Parked{
			{ProductID: "p1", Shop: "south", Due: time.Now(), Reason: "RETRY", Lane: work.LaneRetry},
			{ProductID: "p1", Due: time.Now().Add(10 * time.Second), Reason: "NOT_YET_VISIBLE"},
		})
		_, stop := w.run("a")
		w.wait(5 * time.Second)
		require.Equal(t, []string{"south:p1"}, w.sent)
		w.wait(10 * time.Second)
		require.Contains(t, w.sent, "north:p1")
		require.Empty(t, w.parked)
		stop()
	})
}

func TestARetryInAShopThatTheProductHasLeftIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("p1", "x", "north")
		w.park([]work.Parked{{ProductID: "p1", Shop: "south", Due: time.Now(), Reason: "SHOP_BUSY", Lane: work.LaneRetry}})
		_, stop := w.run("a")
		w.wait(5 * time.Second)
		require.Empty(t, w.parked)
		require.Equal(t, 1, w.reads, "no hot loop")
		stop()
	})
}

// The item was split when the query still worked, and the retry is the shop's.
func TestAQueryThatBreaksDuringARetryFailsTheItemOfItsShop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("p1", "x", "north")
		w.answer = func(string, string) work.Result {
			return work.Result{Status: event.Retrying, Category: event.Network, Counts: true}
		}
		_, stop := w.run("a")
		w.change("p1", 100, event.Header{Key: event.HeaderBatch, Value: []byte("b1")})
		w.wait(time.Second)
		require.Equal(t, work.ItemRetrying, w.items[[3]string{"b1", "p1", "north"}].Status)
		w.mu.Lock()
		w.broken["p1"] = true
		w.mu.Unlock()
		w.wait(time.Minute)
		require.Equal(t, work.ItemFailed, w.items[[3]string{"b1", "p1", "north"}].Status)
		require.Len(t, w.items, 1)
		require.Empty(t, w.parked)
		require.Less(t, w.reads, 5, "no hot loop")
		stop()
	})
}

func TestTheLastAttemptFailsTheItemAndTheNextChangeBeginsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("p1", "x", "north")
		w.answer = func(string, string) work.Result {
			return work.Result{Status: event.Retrying, Category: event.Network, Counts: true}
		}
		w.known[[2]string{"p1", "north"}] = work.Known{ProductID: "p1", Shop: "north", Attempt: attemptsMax}
		_, stop := w.run("a")
		w.change("p1", 100, event.Header{Key: event.HeaderBatch, Value: []byte("b1")})
		w.wait(2 * time.Second)
		require.Empty(t, w.parked)
		require.Equal(t, work.ItemFailed, w.items[[3]string{"b1", "p1", "north"}].Status)
		require.Equal(t, event.Failed, w.known[[2]string{"p1", "north"}].LastStatus)
		w.mu.Lock()
		w.xid++
		w.mu.Unlock()
		w.change("p1", w.xid-1)
		w.wait(700 * time.Millisecond)
		require.Equal(t, "RETRY", w.parked[[2]string{"p1", "north"}].Reason)
		stop()
	})
}

func TestItemsThatCannotBeSplitTakeNoPlacesOfTheirShop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.settleErr = work.ErrLeaseLost
		_, stop := w.run("a")
		for i := range 300 {
			id := fmt.Sprintf("p%d", i)
			w.put(id, "x", "north")
			w.change(id, 100, event.Header{Key: event.HeaderBatch, Value: []byte("b1")})
		}
		w.wait(5 * time.Second)
		w.mu.Lock()
		w.settleErr = nil
		w.mu.Unlock()
		w.wait(20 * time.Second)
		require.Len(t, w.sent, 300)
		require.Empty(t, w.parked)
		stop()
	})
}

// The first request of a push has created the product, the second found no points: what the shop has is on record.
func TestWhatAPartlySentPushHasDoneIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("p1", "x", "north")
		sent := 0
		w.answer = func(string, string) work.Result {
			if sent++; sent > 1 {
				return work.Result{Status: event.Success, ShopifyID: "gid://p1", Shadow: []byte(`"x"`)}
			}
			return work.Result{Status: event.Retrying, Reason: reasonUnsent, ShopifyID: "gid://p1", Shadow: []byte(`"half"`)}
		}
		_, stop := w.run("a")
		w.change("p1", 100)
		w.wait(600 * time.Millisecond)
		require.Equal(t, "gid://p1", w.known[[2]string{"p1", "north"}].ShopifyID)
		require.Empty(t, w.intents)
		w.wait(10 * time.Second)
		require.Equal(t, []string{"p1 north RETRYING UNSENT", "p1 north SUCCESS "}, w.outcomes())
		stop()
	})
}

func TestAShopWhoseProbeFindsNothingToDoIsAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("p1", "x", "north")
		w.health["north"] = work.ShopHealth{Shop: "north", DeadSince: time.Now(), NextProbe: time.Now()}
		w.answer = func(string, string) work.Result { return work.Result{Status: event.Skipped, Reason: "UNCHANGED"} }
		_, stop := w.run("a")
		w.wait(100 * time.Millisecond)
		w.change("p1", 100)
		w.wait(2 * time.Second)
		require.Zero(t, w.health["north"].DeadSince)
		stop()
	})
}

// Renewals that come late, yet before the lease's end, leave it with its epoch: nobody reads its records again.
func TestAChangeThatIsDueWhileItsLeaseRunsOutIsPushedWhenItIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("p1", "x", "north")
		_, stop := w.run("a")
		w.wait(time.Second)
		w.mu.Lock()
		w.renewErr = errors.New("the state is away")
		w.mu.Unlock()
		w.wait(18 * time.Second)
		w.change("p1", 100)
		w.wait(5 * time.Second)
		require.Empty(t, w.sent, "the lease does not outlast a request")
		w.mu.Lock()
		w.renewErr = nil
		w.mu.Unlock()
		w.wait(5 * time.Second)
		require.Equal(t, []string{"north:p1"}, w.sent)
		require.Equal(t, int64(1), w.position)
		require.Equal(t, int64(1), w.epoch)
		stop()
	})
}

// An intent that was written slowly is no leave to send any more: the lease would not outlast the request.
func TestARequestWhoseIntentTookTooLongIsNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("p1", "x", "north")
		_, stop := w.run("a")
		w.wait(time.Second)
		w.mu.Lock()
		w.renewErr, w.intendTakes = errors.New("the state is away"), 14*time.Second
		w.mu.Unlock()
		w.wait(8 * time.Second)
		w.change("p1", 100)
		w.wait(18 * time.Second)
		require.Positive(t, w.intended, "it was about to be sent")
		require.Empty(t, w.sent)
		w.mu.Lock()
		w.renewErr, w.intendTakes = nil, 0
		w.mu.Unlock()
		w.wait(time.Minute)
		require.Contains(t, w.sent, "north:p1")
		require.Equal(t, int64(1), w.position)
		stop()
	})
}

// With the window full, the next poll waits to be taken. When the lease then ends and is won again, reading begins
// before that poll.
func TestARecordThatWasReadAheadDoesNotHideThoseBeforeIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.away, w.pollMost = true, 1
		p := w.worker("a", func(c *PushConfig) { c.Hot = 2 })
		stop := w.start(p)
		for i := range 4 {
			id := fmt.Sprintf("p%d", i)
			w.put(id, "x", "north")
			w.change(id, 100)
		}
		w.wait(5 * time.Second)
		w.mu.Lock()
		w.epoch++ // its end had passed when it was renewed
		w.mu.Unlock()
		w.wait(5 * time.Second)
		w.mu.Lock()
		w.away = false
		w.mu.Unlock()
		w.wait(10 * time.Second)
		require.ElementsMatch(t, []string{"north:p0", "north:p1", "north:p2", "north:p3"}, w.sent)
		require.Equal(t, int64(4), w.position)
		stop()
	})
}

// What still flies under the lease that was lost must not be counted for the one that was won.
func TestAHandOverWaitsForItsOwnFlightsAfterALostLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("p1", "x", "north")
		w.put("p2", "x", "south")
		w.slow = 10 * time.Second
		_, stop := w.run("a")
		w.wait(100 * time.Millisecond)
		w.change("p1", 100)
		w.wait(time.Second)
		w.mu.Lock()
		w.epoch++
		w.mu.Unlock()
		w.wait(4 * time.Second)
		w.change("p2", 100)
		w.wait(time.Second)
		require.Equal(t, []string{"north:p1", "south:p2"}, w.sent)
		w.mu.Lock()
		w.wanted = true
		w.mu.Unlock()
		w.wait(6 * time.Second) // p1 has landed, p2 has not
		require.Equal(t, "a", w.owner)
		require.True(t, w.wanted)
		w.wait(6 * time.Second)
		require.Contains(t, w.known, [2]string{"p2", "south"}, "settled before the lease was given away")
		stop()
	})
}

func TestAStopDoesNotWaitForAStateThatIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("p1", "x", "north")
		_, stop := w.run("a")
		w.change("p1", 100)
		w.wait(900 * time.Millisecond)
		require.Equal(t, []string{"north:p1"}, w.sent)
		w.mu.Lock()
		w.stuck = true
		w.mu.Unlock()
		w.wait(time.Second)
		begun := time.Now()
		stop()
		require.Less(t, time.Since(begun), 5*time.Second)
	})
}

// The product has no attempt left, but its last request may still land: the shop is read once more after it.
func TestTheLastAttemptThatIsUnansweredIsLookedAtOnceMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("p1", "x", "north")
		w.answer = func(_, product string) work.Result {
			if len(w.sent) > 1 {
				return work.Result{Status: event.Success, ShopifyID: "gid://" + product, Shadow: []byte(`"x"`)}
			}
			return work.Result{Status: event.Retrying, Category: event.Network, Counts: true, Unanswered: true}
		}
		w.known[[2]string{"p1", "north"}] = work.Known{ProductID: "p1", Shop: "north", Attempt: attemptsMax}
		_, stop := w.run("a")
		w.change("p1", 100)
		w.wait(2 * time.Second)
		require.Equal(t, []string{"p1 north FAILED "}, w.outcomes())
		require.NotEmpty(t, w.intents)
		require.Equal(t, "LATE_REQUEST", w.parked[[2]string{"p1", "north"}].Reason)
		w.wait(3 * time.Minute)
		require.Len(t, w.sent, 2)
		require.Empty(t, w.intents)
		require.Empty(t, w.parked)
		stop()
	})
}

// Behind a synchronous standby transactions become visible in the order of their commits, which is not that of their
// ids: the newest says nothing of the others.
func TestAParkedProductWaitsForEachOfItsTransactions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("p1", "x", "north")
		w.running = []change.XID{100, 105}
		_, stop := w.run("a")
		w.change("p1", 100)
		w.change("p1", 105)
		w.wait(10 * time.Second)
		require.Equal(t, "NOT_YET_VISIBLE", w.parked[[2]string{"p1", ""}].Reason)
		w.mu.Lock()
		w.running = []change.XID{100}
		w.mu.Unlock()
		w.wait(time.Minute)
		require.Empty(t, w.sent, "100 is not visible yet")
		w.mu.Lock()
		w.running = nil
		w.mu.Unlock()
		w.wait(20 * time.Second)
		require.Equal(t, []string{"north:p1"}, w.sent)
		require.Empty(t, w.parked)
		stop()
	})
}

// A write of positions alone is not owed: while it waits for locks or for a standby, pushes go on.
func TestPushesDoNotWaitForPositionsToBeSaved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("p1", "x", "north")
		_, stop := w.run("a")
		w.change("p1", 100)
		w.wait(800 * time.Millisecond)
		require.Len(t, w.sent, 1)
		w.mu.Lock()
		w.stuck = true
		w.mu.Unlock()
		w.wait(5 * time.Second)
		w.put("p2", "x", "north")
		w.change("p2", 100)
		w.wait(time.Second)
		require.Equal(t, []string{"north:p1", "north:p2"}, w.sent)
		require.Equal(t, int64(2), w.position, "its settlement carried the position")
		stop()
	})
}

// Each write locks the rows of its leases and waits for a commit: a worker of many partitions makes one of them.
func TestThePositionsOfAllPartitionsAreSavedTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.leases = 16
		_, stop := w.run("a")
		for i := range 16 {
			w.mu.Lock()
			w.records = append(w.records, event.Record{Partition: int32(i), Offset: 7, Key: fmt.Append(nil, "stale", i), Timestamp: time.Now()})
			w.mu.Unlock()
		}
		w.change("p1", 100)
		w.wait(3 * time.Second)
		require.Equal(t, int64(8), w.positions[5])
		require.LessOrEqual(t, w.saves, 3)
		stop()
	})
}

// A batch can be cancelled while a shop is dead: what waits for it is not in hand.
func TestItemsThatWaitForADeadShopAreNotInHand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("p1", "x", "north", "south")
		w.health["north"] = work.ShopHealth{Shop: "north", DeadSince: time.Now(), NextProbe: time.Now().Add(time.Hour)}
		_, stop := w.run("a")
		w.wait(100 * time.Millisecond)
		w.change("p1", 100, event.Header{Key: event.HeaderBatch, Value: []byte("b1")})
		w.wait(2 * time.Second)
		require.Equal(t, work.ItemSuccess, w.items[[3]string{"b1", "p1", "south"}].Status)
		require.Equal(t, work.ItemPending, w.items[[3]string{"b1", "p1", "north"}].Status)
		w.answer = func(string, string) work.Result {
			return work.Result{Status: event.Retrying, Category: event.APILimit, Reason: reasonUnsent}
		}
		w.put("p2", "x", "south")
		w.change("p2", 100, event.Header{Key: event.HeaderBatch, Value: []byte("b1")})
		w.wait(time.Second)
		require.Contains(t, w.sent, "south:p2")
		require.Equal(t, work.ItemPending, w.items[[3]string{"b1", "p2", "south"}].Status, "it found no points")
		stop()
	})
}

// Most of what a replay of the catalog finds is as it was the last time: the record of its shop is then not even written.
func TestWhatIsSkippedAgainWritesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("p1", "x", "north")
		again := func(want ...string) {
			t.Helper()
			w.mu.Lock()
			w.settled = nil
			w.park([]work.Parked{{ProductID: "p1", Reason: "replay", Due: time.Now(), Lane: work.LaneCampaign}})
			w.mu.Unlock()
			w.wait(2 * time.Second)
			require.ElementsMatch(t, want, w.settled)
			require.Empty(t, w.parked)
		}
		p, stop := w.run("a")
		w.wait(time.Second)
		again("p1 north", "p1 ")
		again("p1 north", "p1 ")
		require.Equal(t, []string{"p1 north SUCCESS ", "p1 north SKIPPED UNCHANGED"}, w.outcomes())
		again()
		require.Equal(t, int64(2), p.Stats().Skipped.Load())
		require.Len(t, w.outcomes(), 2, "nothing new is told")

		// A record of a transaction that no settled read has seen is another matter: those that come after it are spared.
		w.mu.Lock()
		own := w.known[[2]string{"p1", ""}]
		own.Snapshot = change.Snapshot{Xmin: 50, Xmax: 50}
		w.known[[2]string{"p1", ""}] = own
		w.settled = nil
		w.mu.Unlock()
		w.change("p1", 100)
		w.wait(2 * time.Second)
		require.Equal(t, []string{"p1 "}, w.settled)
		require.Equal(t, int64(1), w.position)

		w.mu.Lock()
		w.excluded = map[work.Exclusion]struct{}{{ProductID: "p1", Shop: "north"}: {}}
		w.mu.Unlock()
		again("p1 north", "p1 ")
		require.Equal(t, "p1 north SKIPPED EXCLUDED", w.outcomes()[2])
		w.mu.Lock()
		w.excluded = nil
		w.mu.Unlock()
		again("p1 north", "p1 ")
		require.Equal(t, "p1 north SKIPPED UNCHANGED", w.outcomes()[3])

		// An item tells of the product's variants, which only a plan knows.
		w.mu.Lock()
		w.items[[3]string{"b", "p1", ""}] = work.Item{BatchID: "b", ProductID: "p1", Status: work.ItemPending}
		w.mu.Unlock()
		again("p1 north", "p1 ")
		require.Equal(t, work.ItemSkipped, w.items[[3]string{"b", "p1", "north"}].Status)
		stop()
	})
}
