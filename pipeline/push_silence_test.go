package pipeline

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

func unanswered() work.Result {
	return work.Result{Status: event.Retrying, Category: event.Network, Counts: true, Unanswered: true, Message: "timeout"}
}

func answered(product string) work.Result {
	return work.Result{Status: event.Success, ShopifyID: "gid://" + product, Shadow: []byte(`"1"`), AnsweredAt: time.Now()}
}

func TestAShopThatAnswersNobodyIsDeadAndFailsNoProduct(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.slow = 2 * time.Second
		away := true
		w.answer = func(_, product string) work.Result {
			if away {
				return unanswered()
			}
			return answered(product)
		}
		_, stop := w.run("a")
		for i := range 30 {
			id := fmt.Sprintf("p%d", i)
			w.put(id, "1", "north")
			w.change(id, 100)
		}
		w.wait(time.Minute)
		require.NotZero(t, w.health["north"].DeadSince)
		w.wait(time.Minute)
		before := len(w.sent)
		w.wait(3 * time.Hour)
		require.LessOrEqual(t, len(w.sent)-before, 3*60+1, "one probe a minute")
		require.Empty(t, filter(w.outcomes(), "FAILED"))
		require.Less(t, w.known[[2]string{"p1", "north"}].Attempt, attemptsAlone+1, "the shop has answered nobody")
		w.mu.Lock()
		away = false
		w.mu.Unlock()
		w.wait(5 * time.Minute)
		require.Zero(t, w.health["north"].DeadSince)
		for i := range 30 {
			require.Equal(t, event.Success, w.known[[2]string{fmt.Sprintf("p%d", i), "north"}].LastStatus)
		}
		require.Empty(t, w.parked)
		stop()
	})
}

func filter(lines []string, word string) (out []string) {
	for _, l := range lines {
		if strings.Contains(l, word) {
			out = append(out, l)
		}
	}
	return out
}

// A shop that answers others, and one product of it that is never answered: that is the product's own failure.
func TestAttemptsCountOnlyWhileTheShopAnswersOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPaced(t, nil)
		w.answer = func(_, product string) work.Result {
			if product == "bad" {
				return unanswered()
			}
			return answered(product)
		}
		w.known[[2]string{"bad", "north"}] = work.Known{ProductID: "bad", Shop: "north", Attempt: attemptsMax - 2}
		_, stop := w.run(func(*PushConfig) {})
		w.edit("bad", "1", "north")
		for i := range 8 * 6 {
			w.edit("good", fmt.Sprint("title ", i), "north")
			w.wait(10 * time.Minute)
			require.Zero(t, w.health["north"].DeadSince)
		}
		require.Contains(t, w.outcomes(), "bad north FAILED ")
		stop()
	})
}

func TestSilenceEndsWithAnyAnswer(t *testing.T) {
	t0 := time.Unix(1_800_000_000, 0)
	at := func(s int) time.Time { return t0.Add(time.Duration(s) * time.Second) }
	var s silence
	none := []work.Result{unanswered()}
	one := s.after(at(0), none).after(at(20), none).after(at(40), none)
	require.False(t, one.dead(at(60)), "all of one product")
	none = append(none, unanswered())
	none[1].ProductID = "p2"
	none[0].ProductID = "p1"
	s = s.after(at(0), none)
	s = s.after(at(1), none)
	require.False(t, s.dead(at(40)), "two requests")
	s = s.after(at(29), none)
	require.False(t, s.dead(at(29)))
	require.True(t, s.dead(at(30)))
	require.Equal(t, s, s.after(at(31), []work.Result{{Status: event.Retrying, Category: event.APILimit, Reason: reasonUnsent}}),
		"a request that never left says nothing")
	require.Zero(t, s.after(at(31), []work.Result{unanswered(), {Status: event.Retrying, Category: event.APILimit}}),
		"a shop that throttles answers")
	require.Zero(t, s.after(at(31), []work.Result{{Status: event.Failed, Category: event.Validation}}))
}
