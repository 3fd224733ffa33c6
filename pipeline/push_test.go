package pipeline

import (
	"encoding/json"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/pipeline/debounce"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

func TestTenChangesAreOnePushAndTheirOffsetsAreDoneTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("p1", "one", "north", "south")
		p, stop := w.run("a")
		for i := range 10 {
			w.change("p1", 100)
			w.wait(100 * time.Millisecond)
			require.Zero(t, w.position, "change %d", i)
		}
		w.wait(time.Second)
		require.ElementsMatch(t, []string{"north:p1", "south:p1"}, w.sent)
		require.Equal(t, 1, w.reads)
		require.Equal(t, int64(10), w.position)
		require.Empty(t, w.intents, "answered requests leave no intent")
		require.Equal(t, int64(10), p.Stats().Consumed.Load())
		require.ElementsMatch(t, []string{"p1 north SUCCESS ", "p1 south SUCCESS "}, w.outcomes())
		stop()
		require.Empty(t, w.owner, "the lease is given back")
	})
}

// Texts wait longer than prices, and a price that comes meanwhile takes them along at once.
func TestContentWaitsLongerThanPrices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		text := event.Header{Key: event.HeaderTable, Value: []byte("catalog.texts")}
		for _, id := range []string{"text", "price", "both"} {
			w.put(id, "x", "north")
		}
		stop := w.start(w.worker("a", func(c *PushConfig) {
			c.Content, c.ContentTables = debounce.Wait{Quiet: 10 * time.Second, MaxWait: time.Minute}, []string{"catalog.texts"}
		}))
		w.change("text", 100, text)
		w.change("both", 100, text)
		w.change("price", 100)
		w.wait(time.Second)
		require.Equal(t, []string{"north:price"}, w.sent)
		w.wait(4 * time.Second)
		w.change("both", 101, event.Header{Key: event.HeaderTable, Value: []byte("catalog.prices")})
		w.wait(time.Second)
		require.Equal(t, []string{"north:price", "north:both"}, w.sent)
		w.wait(3 * time.Second)
		require.Len(t, w.sent, 2)
		w.wait(2 * time.Second)
		require.Equal(t, []string{"north:price", "north:both", "north:text"}, w.sent)
		stop()
	})
}

func TestManyProductsShareOneRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		_, stop := w.run("a")
		w.wait(time.Second)
		for i := range 50 {
			id := fmt.Sprintf("p%d", i)
			w.put(id, "x", fmt.Sprintf("shop%d", i%3))
			w.change(id, 100)
		}
		w.wait(time.Second)
		require.Equal(t, []int{50}, w.readSize)
		require.Len(t, w.sent, 50)
		stop()
	})
}

// WAL is sent before a commit is visible: the read must be repeated, and nothing may be pushed from the old state.
func TestAReadThatDoesNotSeeTheChangeDoesNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("p1", "old", "north")
		w.xid = 100
		_, stop := w.run("a")
		w.change("p1", 100)
		w.wait(2 * time.Second)
		require.Empty(t, w.sent)
		require.Greater(t, w.reads, 3)
		require.Zero(t, w.position)
		w.mu.Lock()
		w.xid = 101
		w.mu.Unlock()
		w.put("p1", "new", "north")
		w.wait(time.Second)
		require.Equal(t, []string{"north:p1"}, w.sent)
		require.JSONEq(t, `"new"`, string(w.known[[2]string{"p1", "north"}].Shadow))
		stop()
	})
}

func TestATransactionThatStaysInvisibleIsParkedAndComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("p1", "x", "north")
		w.xid = 100
		_, stop := w.run("a")
		w.change("p1", 100)
		w.wait(8 * time.Second)
		require.Equal(t, "NOT_YET_VISIBLE", w.parked[[2]string{"p1", ""}].Reason)
		require.Equal(t, int64(1), w.position, "parked is durable")
		w.mu.Lock()
		w.xid = 101
		w.mu.Unlock()
		w.wait(8 * time.Second)
		require.Equal(t, []string{"north:p1"}, w.sent)
		require.Empty(t, w.parked)
		stop()
	})
}

// A later change may be visible while an earlier, parked one is not: pushing the later one must leave the row standing.
func TestAReadThatDoesNotSeeAParkedTransactionLeavesItParked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("p1", "x", "north")
		w.xid = 200
		w.park([]work.Parked{{ProductID: "p1", Reason: "NOT_YET_VISIBLE", XIDs: []change.XID{300}, Due: time.Now().Add(time.Hour)}})
		_, stop := w.run("a")
		w.change("p1", 100)
		w.wait(2 * time.Second)
		require.Equal(t, []string{"north:p1"}, w.sent)
		require.Len(t, w.parked, 1)
		stop()
	})
}

func TestADeadShopDelaysNoOtherAndComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		dead := true
		w.answer = func(shop, product string) work.Result {
			if shop == "south" && dead {
				return work.Result{Status: event.Retrying, Category: event.ShopifyError, ShopDead: true, Message: "402"}
			}
			return work.Result{Status: event.Success, ShopifyID: "gid://" + product, Shadow: []byte(`"x"`), AnsweredAt: time.Now()}
		}
		_, stop := w.run("a")
		w.wait(time.Second)
		for i := range 20 {
			id := fmt.Sprintf("p%d", i)
			w.put(id, "x", "north", "south")
			w.change(id, 100)
		}
		w.wait(5 * time.Second)
		require.Equal(t, int64(20), w.position, "a dead shop holds no offsets")
		require.Len(t, w.parked, 20)
		north := 0
		for _, s := range w.sent {
			if s[:5] == "north" {
				north++
			}
		}
		require.Equal(t, 20, north)
		before := len(w.sent)
		w.wait(3 * time.Minute)
		require.LessOrEqual(t, len(w.sent)-before, 4, "one probe a minute")
		w.mu.Lock()
		dead = false
		w.mu.Unlock()
		w.wait(3 * time.Minute)
		require.Empty(t, w.parked)
		require.Len(t, w.known, 60, "20 products, each with its own record and two shops'")
		stop()
	})
}

func TestAWorkerThatLostItsLeaseSendsAndSettlesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("p1", "x", "north")
		_, stop := w.run("a")
		w.change("p1", 100)
		w.wait(100 * time.Millisecond)
		w.mu.Lock()
		w.owner, w.epoch, w.expires = "b", w.epoch+1, time.Now().Add(time.Hour)
		w.mu.Unlock()
		w.wait(time.Minute)
		require.Empty(t, w.sent)
		require.Zero(t, w.position)
		require.Empty(t, w.outbox)
		stop()
		require.Equal(t, "b", w.owner)
	})
}

func TestTheNextOwnerFindsWhatIsSettledDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("p1", "x", "north")
		w.put("p2", "x", "north")
		w.broken["p2"] = false
		w.change("p2", 1<<41) // stays invisible, so that the position cannot move
		w.change("p1", 100)
		_, stop := w.run("a")
		w.wait(2 * time.Second)
		require.Equal(t, []string{"north:p1"}, w.sent)
		require.Zero(t, w.position)
		outcomes := w.outcomes()
		stop()
		p, stop := w.run("b")
		w.wait(2 * time.Second)
		require.Equal(t, int64(1), p.Stats().SeenBefore.Load(), "p1 came again and was settled already")
		require.Equal(t, []string{"north:p1"}, w.sent)
		require.Equal(t, outcomes, w.outcomes())
		stop()
	})
}

func TestAHandOverDrainsFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("p1", "x", "north")
		w.slow = 8 * time.Second
		_, stop := w.run("a")
		w.change("p1", 100)
		w.wait(time.Second)
		require.Equal(t, []string{"north:p1"}, w.sent, "on its way")
		w.mu.Lock()
		w.wanted = true
		w.mu.Unlock()
		w.wait(4 * time.Second)
		require.Equal(t, "a", w.owner, "still flying")
		w.mu.Lock()
		w.owner = "a"
		w.mu.Unlock()
		w.wait(4 * time.Second)
		require.Equal(t, int64(1), w.position)
		require.False(t, w.wanted, "released once it had landed")
		stop()
	})
}

func TestOneProductThatBreaksTheQueryStopsNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		_, stop := w.run("a")
		w.wait(time.Second)
		w.broken["p7"] = true
		for i := range 10 {
			id := fmt.Sprintf("p%d", i)
			w.put(id, "x", "north")
			w.change(id, 100, event.Header{Key: event.HeaderBatch, Value: []byte("b1")})
		}
		w.wait(2 * time.Second)
		require.Len(t, w.sent, 9)
		require.Contains(t, w.outcomes(), "p7  FAILED ")
		require.Equal(t, int64(10), w.position)
		require.Equal(t, work.ItemFailed, w.items[[3]string{"b1", "p7", ""}].Status)
		require.Equal(t, work.ItemSuccess, w.items[[3]string{"b1", "p6", "north"}].Status)
		stop()
	})
}

func TestADocumentThatBreaksTheSchemaNamesTheField(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.docs["p1"] = []document.Row{{
			ProductID: "p1", Shop: "north", Document: json.RawMessage(`{"eligible":true,"title":"x","handle":5}`),
		}}
		w.change("p1", 100, event.Header{Key: event.HeaderBatch, Value: []byte("b1")})
		_, stop := w.run("a")
		w.wait(2 * time.Second)
		require.Empty(t, w.sent)
		item := w.items[[3]string{"b1", "p1", "north"}]
		require.Equal(t, work.ItemFailed, item.Status)
		require.Equal(t, event.Validation, item.Category)
		require.Equal(t, "handle", item.Field)
		stop()
	})
}

func TestWhileTheSourceIsAwayNothingIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("p1", "x", "north")
		w.away = true
		_, stop := w.run("a")
		w.change("p1", 100)
		w.wait(time.Minute)
		require.Empty(t, w.sent)
		require.Zero(t, w.position)
		require.Less(t, w.reads, 150, "no hot loop")
		w.mu.Lock()
		w.away = false
		w.mu.Unlock()
		w.wait(6 * time.Second)
		require.Equal(t, []string{"north:p1"}, w.sent)
		stop()
	})
}

func TestABatchItemIsSplitOverItsShopsBeforeAnythingIsSettled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("p1", "x", "north", "south")
		w.answer = func(shop, product string) work.Result {
			if shop == "south" {
				return work.Result{Status: event.Failed, Category: event.Validation, Message: "no"}
			}
			return work.Result{Status: event.Success, ShopifyID: "gid", Shadow: []byte(`"x"`)}
		}
		w.slow = time.Second
		_, stop := w.run("a")
		w.change("p1", 100, event.Header{Key: event.HeaderBatch, Value: []byte("b1")})
		w.wait(200 * time.Millisecond)
		require.Equal(t, work.ItemPending, w.items[[3]string{"b1", "p1", ""}].Status)
		require.Equal(t, int64(1), w.takenIn)
		require.Zero(t, w.position)
		w.wait(700 * time.Millisecond)
		require.Equal(t, work.ItemProcessing, w.items[[3]string{"b1", "p1", "north"}].Status)
		require.Equal(t, work.ItemProcessing, w.items[[3]string{"b1", "p1", "south"}].Status)
		require.Len(t, w.items, 2)
		w.wait(time.Second)
		require.Equal(t, work.ItemSuccess, w.items[[3]string{"b1", "p1", "north"}].Status)
		require.Equal(t, work.ItemFailed, w.items[[3]string{"b1", "p1", "south"}].Status)
		stop()
	})
}

func TestSnapshotRowsAreParkedAndPulled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		for i := range 5 {
			id := fmt.Sprintf("p%d", i)
			w.put(id, "x", "north")
			w.change(id, 0, event.Header{Key: event.HeaderOrigin, Value: []byte(event.KindSnapshot)})
		}
		_, stop := w.run("a")
		w.wait(50 * time.Millisecond)
		require.Equal(t, int64(5), w.position, "parked rows hold no offsets")
		w.wait(time.Second)
		require.Len(t, w.sent, 5)
		require.Empty(t, w.parked)
		stop()
	})
}

// A change that parks the product again while its push is under way must survive that push.
func TestAProductParkedAgainDuringItsPushStaysParked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("p1", "x", "north")
		w.slow = 3 * time.Second
		row := work.Parked{ProductID: "p1", Due: time.Now(), Reason: "FANOUT", Lane: work.LaneCampaign}
		w.park([]work.Parked{row})
		_, stop := w.run("a")
		w.wait(time.Second)
		require.Len(t, w.sent, 1)
		w.mu.Lock()
		w.park([]work.Parked{row})
		w.mu.Unlock()
		require.Equal(t, 1, w.reads)
		w.wait(5 * time.Second)
		require.Equal(t, 2, w.reads, "read again: the first read may not have seen what parked it")
		require.Empty(t, w.parked)
		stop()
	})
}

func TestFailedAttemptsWaitLongerAndLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("p1", "x", "north")
		fails := 3
		w.answer = func(_, product string) work.Result {
			if fails--; fails >= 0 {
				return work.Result{Status: event.Retrying, Category: event.Network, Counts: true, Unanswered: true}
			}
			return work.Result{Status: event.Success, ShopifyID: "gid://" + product, Shadow: []byte(`"x"`)}
		}
		_, stop := w.run("a")
		w.change("p1", 100)
		w.wait(2500 * time.Millisecond)
		require.Len(t, w.sent, 2, "after about 1 s")
		require.NotEmpty(t, w.intents, "nobody knows what became of it")
		w.wait(7 * time.Second)
		require.Len(t, w.sent, 3, "after about 5 s")
		w.wait(40 * time.Second)
		require.Len(t, w.sent, 4, "after about 30 s")
		require.Equal(t, "LATE_REQUEST", w.parked[[2]string{"p1", "north"}].Reason, "a given up request may still land")
		w.wait(3 * time.Minute)
		require.Len(t, w.sent, 5, "read once more")
		require.Empty(t, w.parked)
		require.Empty(t, w.intents)
		stop()
	})
}

func TestTheGuardHoldsAndAMendedDocumentIsPushedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("p1", "OFF", "north")
		w.held["north"] = true
		_, stop := w.run("a")
		w.change("p1", 100)
		w.wait(2 * time.Second)
		require.Empty(t, w.sent)
		require.Equal(t, []string{"p1 north HELD GUARD"}, w.outcomes())
		w.put("p1", "fine", "north")
		w.change("p1", 101)
		w.wait(2 * time.Second)
		require.Equal(t, []string{"north:p1"}, w.sent)
		require.Empty(t, w.parked)
		stop()
	})
}

func TestMalformedRecordsBecomeDeadLetters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("p1", "x", "north")
		w.change("", 100)
		w.mu.Lock()
		w.records = append(w.records, event.Record{Offset: 1, Key: []byte("p9"), Value: []byte("raw"), Headers: []event.Header{
			{Key: event.HeaderXID, Value: []byte("many")},
		}})
		w.mu.Unlock()
		w.change("p\xff", 100)
		w.change("p\x00", 100)
		w.change("p1", 100)
		_, stop := w.run("a")
		w.wait(2 * time.Second)
		require.Equal(t, []string{"north:p1"}, w.sent)
		require.Equal(t, int64(5), w.position)
		dead := 0
		for _, r := range w.outbox {
			if r.Topic == "catalog."+event.DeadLetters {
				dead++
				reason, _ := r.Header(event.HeaderReason)
				require.NotEmpty(t, reason)
			}
		}
		require.Equal(t, 4, dead)
		stop()
	})
}

func TestRetryDelays(t *testing.T) {
	var total time.Duration
	for n := 1; n <= attemptsMax; n++ {
		require.GreaterOrEqual(t, retryDelay(n, 0.5), retryDelay(n-1, 0.5))
		total += retryDelay(n, 0.5)
	}
	require.Equal(t, time.Second, retryDelay(1, 0.5))
	require.Equal(t, 30*time.Second, retryDelay(3, 0.5))
	require.Equal(t, time.Minute, retryDelay(4, 0.5))
	require.Equal(t, 2*time.Hour, retryDelay(99, 0.5))
	require.InDelta(t, 24, total.Hours(), 2)
}
