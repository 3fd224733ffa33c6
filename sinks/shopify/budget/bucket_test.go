package budget

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shelfwire/shelfwire/schemas/work"
)

// shop is the truth that the model must never overdraw.
type shop struct {
	maximum, restore, available float64
	at                          time.Time
}

func (s *shop) to(now time.Time) {
	s.available = min(s.maximum, s.available+s.restore*now.Sub(s.at).Seconds())
	s.at = now
}

// flight is a request between its process and the shop.
type flight struct {
	holder            *Holder
	requested, actual float64
	sent              time.Time
	executed          bool
	report            Reported
}

// world is several processes, one shared bucket and one shop.
type world struct {
	t       *rapid.T
	now     time.Time
	bucket  work.Bucket
	shop    shop
	holders []*Holder
	until   []time.Time // of each holder's lease
	flights []*flight
	serial  int
}

const (
	testTTL     = 30 * time.Second
	testTimeout = 15 * time.Second
)

func newWorld(t *rapid.T) *world {
	start := time.Unix(1_700_000_000, 0)
	size := rapid.SampledFrom([]float64{1000, 2000, 4000, 20000}).Draw(t, "maximum")
	w := &world{t: t, now: start, shop: shop{maximum: size, restore: size / 20, available: size, at: start}}
	w.bucket = work.Bucket{Maximum: size, Restore: size / 20, Level: size, At: start}
	for i := range rapid.IntRange(1, 5).Draw(t, "processes") {
		w.holders = append(w.holders, &Holder{Name: fmt.Sprint("p", i)})
		w.until = append(w.until, time.Time{})
	}
	return w
}

func (w *world) pick() (int, *Holder) {
	i := rapid.IntRange(0, len(w.holders)-1).Draw(w.t, "process")
	return i, w.holders[i]
}

func (w *world) advance(*rapid.T) {
	w.now = w.now.Add(time.Duration(rapid.IntRange(1, 20_000).Draw(w.t, "ms")) * time.Millisecond)
	// A request lands before its timeout or never.
	for _, f := range w.flights {
		if !f.executed && w.now.Sub(f.sent) > testTimeout {
			at := f.sent.Add(testTimeout)
			if at.Before(w.shop.at) {
				at = w.shop.at
			}
			w.execute(f, at)
		}
	}
}

func (w *world) take(*rapid.T) {
	i, h := w.pick()
	if !w.now.Before(w.until[i]) {
		h.Free = 0
	}
	Take(&w.bucket, w.now, h, Ask{
		Lane: work.Lane(rapid.IntRange(0, 3).Draw(w.t, "lane")), Since: w.now, TTL: testTTL, Slice: w.bucket.Restore,
		Need: float64(rapid.IntRange(1, 1000).Draw(w.t, "need")),
	})
	w.until[i] = w.now.Add(testTTL)
}

func (w *world) send(*rapid.T) {
	i, h := w.pick()
	if h.Free < 1 || !w.now.Before(w.until[i].Add(-testTTL/2)) {
		return
	}
	cost := float64(rapid.IntRange(1, int(h.Free)).Draw(w.t, "cost"))
	h.Free -= cost
	h.InFlight += cost
	actual := float64(rapid.IntRange(0, int(cost)).Draw(w.t, "actual"))
	w.flights = append(w.flights, &flight{holder: h, requested: cost, actual: actual, sent: w.now})
}

func (w *world) execute(f *flight, at time.Time) {
	w.shop.to(at)
	if w.shop.available < f.requested-1e-6 {
		w.t.Fatalf("THROTTLED: requested %.1f, available %.1f; model %+v", f.requested, w.shop.available, w.bucket)
	}
	w.shop.available -= f.actual
	f.executed = true
	f.report = Reported{Maximum: w.shop.maximum, Available: w.shop.available, Restore: w.shop.restore}
}

func (w *world) land(*rapid.T) {
	for _, f := range w.flights {
		if !f.executed {
			w.execute(f, w.now)
			return
		}
	}
}

func (w *world) answer(*rapid.T) {
	for n, f := range w.flights {
		if !f.executed {
			continue
		}
		w.flights = append(w.flights[:n], w.flights[n+1:]...)
		f.holder.InFlight -= f.requested
		f.holder.Free += f.requested - f.actual
		for i, h := range w.holders {
			if h == f.holder && w.now.Before(w.until[i]) && rapid.Bool().Draw(w.t, "observed") {
				Observe(&w.bucket, w.now, h, f.report, testTTL)
				w.until[i] = w.now.Add(testTTL)
			}
		}
		return
	}
}

func (w *world) giveBack(*rapid.T) {
	i, h := w.pick()
	if w.now.Before(w.until[i]) {
		Return(&w.bucket, w.now, h, testTTL)
		w.until[i] = w.now.Add(testTTL)
	}
}

// crash replaces a process; its requests are still on the way.
func (w *world) crash(*rapid.T) {
	i, _ := w.pick()
	w.serial++
	w.holders[i] = &Holder{Name: fmt.Sprint("p", i, "-", w.serial)}
	w.until[i] = time.Time{}
}

func TestNeverOverdraws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		t.Repeat(map[string]func(*rapid.T){
			"advance": w.advance, "take": w.take, "send": w.send, "land": w.land, "answer": w.answer,
			"give back": w.giveBack, "crash": w.crash,
		})
	})
}

func TestEveryRequestIsServedInItsTurn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Unix(1_700_000_000, 0)
		b := work.Bucket{Maximum: 2000, Restore: 100, At: now}
		large := &Holder{Name: "large"}
		since := now
		small := rapid.IntRange(1, 6).Draw(t, "small")
		others := make([]*Holder, small)
		for i := range others {
			others[i] = &Holder{Name: fmt.Sprint("small", i)}
		}
		for range 200 { // 20 s at 100 points a second
			now = now.Add(100 * time.Millisecond)
			if got, _ := Take(&b, now, large, Ask{Lane: work.LaneLive, Since: since, Need: 1000, TTL: testTTL}); got > 0 {
				require.LessOrEqual(t, now.Sub(since), 11*time.Second)
				return
			}
			for _, h := range others {
				Take(&b, now, h, Ask{Lane: work.LaneLive, Since: now, Need: 10, Slice: 100, TTL: testTTL})
				h.Free = 0 // spent and answered at once
			}
		}
		t.Fatal("a request of 1,000 points was starved by small ones for 20 s")
	})
}

func TestACrashedHoldersLeaseReturns(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	b := work.Bucket{Maximum: 2000, Restore: 100, Level: 2000, At: now}
	dead := &Holder{Name: "dead"}
	got, _ := Take(&b, now, dead, Ask{Need: 1000, Slice: 1500, TTL: testTTL})
	require.InDelta(t, 1500, got, 0.1)
	alive := &Holder{Name: "alive"}
	got, wait := Take(&b, now, alive, Ask{Need: 800, TTL: testTTL})
	require.Zero(t, got)
	require.Positive(t, wait)
	now = now.Add(testTTL)
	Refill(&b, now)
	require.InDelta(t, 500, b.Level, 0.1, "the brim stood at what the dead holder left")
	now = now.Add(15 * time.Second)
	Refill(&b, now)
	require.InDelta(t, 2000, b.Level, 0.1)
}

func TestALowerLaneLeavesHeadroom(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	b := work.Bucket{Maximum: 2000, Restore: 100, Level: 300, At: now}
	h := &Holder{Name: "a"}
	got, _ := Take(&b, now, h, Ask{Lane: work.LaneCampaign, Since: now, Need: 10, TTL: testTTL})
	require.Zero(t, got)
	got, _ = Take(&b, now, h, Ask{Lane: work.LaneLive, Since: now, Need: 10, TTL: testTTL})
	require.InDelta(t, 10, got, 0.1)
}

func TestAnAnswerLowersAtOnceAndRaisesOnlyWhenAlone(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	b := work.Bucket{Maximum: 2000, Restore: 100, Level: 1000, At: now}
	a, c := &Holder{Name: "a"}, &Holder{Name: "c"}
	Take(&b, now, c, Ask{Need: 100, TTL: testTTL})
	Observe(&b, now, a, Reported{Maximum: 2000, Available: 500, Restore: 100}, testTTL)
	require.InDelta(t, 400, b.Level, 0.1, "500 reported, 100 held elsewhere")
	Observe(&b, now, a, Reported{Maximum: 2000, Available: 1900, Restore: 100}, testTTL)
	require.InDelta(t, 400, b.Level, 0.1)
	Return(&b, now, c, testTTL)
	Observe(&b, now, a, Reported{Maximum: 2000, Available: 1900, Restore: 100}, testTTL)
	require.InDelta(t, 1900, b.Level, 0.1)
	Observe(&b, now, a, Reported{Maximum: 1000, Available: 1000, Restore: 50}, testTTL)
	require.InDelta(t, 1000, b.Level, 0.1)
	require.InDelta(t, 50, b.Restore, 0.1)
}
