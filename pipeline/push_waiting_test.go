package pipeline

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

func TestHeldProductsAreNotReadAgainAndAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPaced(t, nil)
		w.held["north"] = true
		_, stop := w.run(func(*PushConfig) {})
		for i := range 200 {
			id := fmt.Sprintf("p%d", i)
			w.put(id, "OFF", "north")
			w.change(id, 100, event.Header{Key: event.HeaderBatch, Value: []byte("b1")})
		}
		w.wait(time.Minute)
		require.Equal(t, 200, w.documentsRead())
		item := w.items[[3]string{"b1", "p7", "north"}]
		require.Equal(t, work.ItemHeld, item.Status)
		w.wait(2 * time.Hour)
		require.LessOrEqual(t, w.documentsRead(), 4*200, "once an hour")
		require.Equal(t, item, w.items[[3]string{"b1", "p7", "north"}], "an item that is held already is not written again")
		require.Len(t, filter(w.outcomes(), "p7 north HELD"), 1)
		w.mu.Lock()
		w.held["north"] = false
		for k, row := range w.parked { // as a release does
			row.Due = time.Now()
			w.parked[k] = row
		}
		w.mu.Unlock()
		w.wait(30 * time.Second)
		require.Len(t, w.sent, 200)
		stop()
	})
}

// A commit can wait for a standby for ten minutes, and for hours.
func TestWhatIsNotVisibleIsLookedForMoreAndMoreRarely(t *testing.T) {
	for name, ask := range map[string]bool{"by its documents": false, "by a snapshot": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.xid = 50
				var asked atomic.Int64
				p := w.worker("a", func(*PushConfig) {})
				if ask {
					p.parts.Snapshot = func(context.Context) (change.Snapshot, error) {
						asked.Add(1)
						w.mu.Lock()
						defer w.mu.Unlock()
						return change.Snapshot{Xmin: w.xid, Xmax: w.xid}, nil
					}
				}
				stop := w.start(p)
				w.put("p", "1", "north")
				w.change("p", 100)
				w.wait(10 * time.Minute)
				if ask {
					require.Equal(t, 1, w.reads, "its documents were read once")
					require.LessOrEqual(t, asked.Load(), int64(60))
				}
				require.LessOrEqual(t, w.reads, 60)
				w.mu.Lock()
				w.xid = 101
				w.mu.Unlock()
				w.wait(31 * time.Second)
				require.Equal(t, []string{"north:p"}, w.sent)
				require.Empty(t, w.parked)
				stop()
			})
		})
	}
}

// awayState cannot be read.
type awayState struct {
	*world
	away         atomic.Bool
	loads, pulls atomic.Int64
}

func (s *awayState) Pull(ctx context.Context, q work.Pull) (work.Pulled, error) {
	if s.away.Load() {
		s.pulls.Add(1)
		return work.Pulled{}, errors.New("connection refused")
	}
	return s.world.Pull(ctx, q)
}

func (s *awayState) Load(ctx context.Context, products []string) (work.Loaded, error) {
	if s.away.Load() {
		s.loads.Add(1)
		return work.Loaded{}, errors.New("connection refused")
	}
	return s.world.Load(ctx, products)
}

func TestAStateThatIsAwayIsAskedCalmlyAndNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPaced(t, nil)
		p := w.worker("a", func(*PushConfig) {})
		away := &awayState{world: w.world}
		p.parts.State = away
		stop := w.start(p)
		w.wait(time.Second)
		require.Empty(t, p.Waiting())
		away.away.Store(true)
		for i := range 3000 {
			w.edit(fmt.Sprintf("c%d", i), "1", "north")
		}
		begun := time.Now()
		w.wait(10 * time.Minute)
		require.LessOrEqual(t, away.loads.Load(), int64(2*10*12+20), "two readers, every 5 s")
		require.LessOrEqual(t, away.pulls.Load(), int64(10*12+20))
		waiting := p.Waiting()
		require.Len(t, waiting, 2, "documents, and what is parked")
		for _, wait := range waiting {
			require.Equal(t, work.StagePush, wait.Stage)
			require.True(t, strings.HasSuffix(wait.Reason, "connection refused"), wait.Reason)
			require.WithinRange(t, wait.Since, begun, begun.Add(time.Second))
		}
		away.away.Store(false)
		w.wait(30 * time.Second)
		require.Len(t, w.sent, 3000)
		require.Empty(t, p.Waiting())
		stop()
	})
}

// A worker was stopped between an intent and its request, longer than any request may be late. The next owner has closed
// the intent before the request went out.
func TestAWorkerThatWakesUpTellsOfWhatItSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("p1", "x", "north")
		w.slow = 5 * time.Second
		p := w.worker("a", func(*PushConfig) {})
		stop := w.start(p)
		w.change("p1", 100)
		w.wait(time.Second)
		require.Len(t, w.sent, 1)
		w.mu.Lock()
		w.owner, w.epoch, w.expires = "b", w.epoch+1, time.Now().Add(time.Minute)
		clear(w.intents)
		w.known[[2]string{"p1", "north"}] = work.Known{ProductID: "p1", Shop: "north", ShopifyID: "gid://p1", Shadow: []byte(`"x"`)}
		w.mu.Unlock()
		w.wait(6 * time.Second)
		require.Equal(t, reasonLate, w.parked[[2]string{"p1", "north"}].Reason)
		stop()
		_, stop = w.run("b")
		w.wait(10 * time.Second)
		require.Len(t, w.sent, 2, "the shop is looked at, though all that is known equals the document")
		require.Empty(t, w.parked)
		stop()
	})
}

// The request that went out so late has no answer either: it may land as late as any other, and is looked for after that.
func TestAWorkerThatWakesUpTellsOfWhatMayStillLand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("p1", "x", "north")
		w.slow = 5 * time.Second
		w.answer = func(string, string) work.Result {
			return work.Result{Status: event.Retrying, Category: event.Network, Counts: true, Unanswered: true}
		}
		p := w.worker("a", func(*PushConfig) {})
		stop := w.start(p)
		w.change("p1", 100)
		w.wait(time.Second)
		w.mu.Lock()
		w.owner, w.epoch, w.expires = "b", w.epoch+1, time.Now().Add(time.Minute)
		clear(w.intents)
		w.mu.Unlock()
		w.wait(6 * time.Second)
		row := w.parked[[2]string{"p1", "north"}]
		require.Equal(t, reasonLate, row.Reason)
		require.Greater(t, time.Until(row.Due), p.cfg.LateRequest-10*time.Second)
		stop()
	})
}

// The next owner may not let a change in between stand for the look that is owed when nothing can land any more.
func TestAChangeInBetweenDoesNotEndTheWaitForALateRequest(t *testing.T) {
	for name, failing := range map[string]bool{"which is pushed": false, "whose push is tried again": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.lateAnswer("p1", work.Result{Status: event.Retrying, Category: event.Network, Counts: true, Unanswered: true})
				told := time.Now()
				w.answer = nil
				if failing {
					fails := 2
					w.answer = func(string, string) work.Result {
						if fails--; fails >= 0 {
							return work.Result{Status: event.Retrying, Category: event.Network, Counts: true}
						}
						return work.Result{Status: event.Success, ShopifyID: "gid://p1", Shadow: []byte(`"y"`)}
					}
				}
				_, stop := w.run("b")
				w.wait(20 * time.Second)
				w.xid = 102
				w.put("p1", "y", "north")
				w.change("p1", 101)
				w.wait(60 * time.Second)
				before := len(w.sent)
				require.Greater(t, before, 1, "the change is pushed")
				require.Equal(t, reasonLate, w.parked[[2]string{"p1", "north"}].Reason)
				w.wait(time.Until(told.Add(3 * time.Minute)))
				require.Len(t, w.sent, before+1, "the shop is looked at when nothing can land any more")
				require.Empty(t, w.parked)
				require.Empty(t, w.intents)
				stop()
			})
		})
	}
}

// The row is due at once, as the request has been answered. A change that takes off before the row is pulled stands for it,
// and must look at the shop too.
func TestAChangeThatAbsorbsALateRequestLooksAtTheShop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.lateAnswer("p1", work.Result{Status: event.Success, ShopifyID: "gid://p1", Shadow: []byte(`"x"`)})
		w.mu.Lock()
		row, told := w.parked[[2]string{"p1", "north"}], maps.Clone(w.intents)
		clear(w.parked)
		clear(w.intents)
		w.mu.Unlock()
		_, stop := w.run("b")
		w.wait(10050 * time.Millisecond) // between two pulls
		sent := len(w.sent)
		w.xid = 102
		w.change("p1", 101)
		w.wait(499 * time.Millisecond)
		w.mu.Lock()
		w.park([]work.Parked{row})
		maps.Copy(w.intents, told)
		w.mu.Unlock()
		w.wait(5 * time.Second)
		require.Len(t, w.sent, sent+1)
		require.Empty(t, w.parked)
		require.Empty(t, w.intents)
		stop()
	})
}

// The request was a creation, the product has been deleted since, and nothing is on record of it any more.
func TestALateCreationOfWhatIsGoneIsFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		require.NoError(t, w.tellLate(t.Context(),
			[]work.Parked{{ProductID: "p1", Shop: "north", Lane: work.LaneRetry, Due: time.Now(), Reason: reasonLate}},
			[]work.Intent{{Key: "k/late", Shop: "north", ProductIDs: []string{"p1"}, At: time.Now().Add(-2 * time.Minute)}}))
		_, stop := w.run("a")
		w.wait(10 * time.Second)
		require.Equal(t, []string{"north:p1"}, w.sent, "the shop is looked at")
		require.Empty(t, w.parked)
		stop()
	})
}

// The steps follow each other without a gap: together they are the time from the commit to the settlement.
func TestEachStepIsMeasured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.slow = 300 * time.Millisecond
		p := w.worker("a", func(*PushConfig) {})
		var mu sync.Mutex
		steps := map[string]time.Duration{}
		p.Stats().Step = func(step string, d time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			steps[step] += d
		}
		p.parts.State = &slowLoad{w, 20 * time.Millisecond}
		l := &ledger{world: w, d: 7 * time.Millisecond}
		p.parts.Fenced = l
		stop := w.start(p)
		w.wait(time.Second)
		w.put("p1", "1", "north")
		at := time.Now()
		w.change("p1", 100)
		for len(w.outcomes()) == 0 {
			w.wait(time.Millisecond)
		}
		w.wait(0)
		require.Len(t, steps, len(PushSteps()))
		require.Equal(t, 500*time.Millisecond, steps[StepKafkaToDue])
		require.Equal(t, 20*time.Millisecond, steps[StepDueToRead])
		require.Equal(t, 7*time.Millisecond, steps[StepAnsweredToSettle])
		var sum time.Duration
		for _, d := range steps {
			sum += d
		}
		require.InDelta(t, time.Since(at), sum, float64(2*time.Millisecond))
		stop()
	})
}

// The bucket or the intents may be what is away: the product comes back at once each time.
func TestWhatTheSenderGivesUpIsNotTriedInAHotLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put("p1", "x", "north")
		w.answer = func(string, string) work.Result {
			return work.Result{Status: event.Retrying, Category: event.APILimit, Reason: reasonUnsent, Message: "no bucket"}
		}
		_, stop := w.run("a")
		w.change("p1", 100)
		w.wait(time.Minute)
		require.LessOrEqual(t, len(w.sent), 61)
		require.Greater(t, len(w.sent), 40)
		stop()
	})
}

// lateAnswer lets a worker lose its lease with a request on its way, which then comes to this end. The next owner has
// closed its intent long before, and believes that the shop has what the document says.
func (w *world) lateAnswer(product string, res work.Result) {
	w.t.Helper()
	w.put(product, "x", "north")
	w.slow, w.xid = 5*time.Second, 101
	w.answer = func(string, string) work.Result { return res }
	_, stop := w.run("a")
	w.change(product, 100)
	w.wait(time.Second)
	require.Len(w.t, w.sent, 1)
	w.mu.Lock()
	w.owner, w.epoch, w.expires = "b", w.epoch+1, time.Now().Add(time.Minute)
	clear(w.intents)
	w.known[[2]string{product, "north"}] = work.Known{ProductID: product, Shop: "north", ShopifyID: "gid://" + product, Shadow: []byte(`"x"`)}
	w.mu.Unlock()
	w.wait(6 * time.Second)
	require.Equal(w.t, reasonLate, w.parked[[2]string{product, "north"}].Reason)
	stop()
	w.slow = 0
}
