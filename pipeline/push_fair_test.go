package pipeline

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// paced is a world in which requests to some shops take long.
type paced struct {
	*world
	slow map[string]time.Duration // by the head of the shop's name
	at   map[string][]time.Time   // when "shop:product" was sent
}

func newPaced(t *testing.T, slow map[string]time.Duration) *paced {
	t.Helper()
	return &paced{world: newWorld(t), slow: slow, at: map[string][]time.Time{}}
}

func (s *paced) Send(
	ctx context.Context, shop string, plans []work.Plan, intend func(context.Context, []work.Intent) error,
) []work.Result {
	s.mu.Lock()
	for _, p := range plans {
		s.at[shop+":"+p.Push.ProductID] = append(s.at[shop+":"+p.Push.ProductID], time.Now())
	}
	s.mu.Unlock()
	for head, d := range s.slow {
		if strings.HasPrefix(shop, head) {
			time.Sleep(d) // in the bubble
		}
	}
	return s.world.Send(ctx, shop, plans, intend)
}

func (s *paced) run(change func(*PushConfig)) (p *Push, stop func()) {
	p = s.worker("a", change)
	p.parts.Sender = s
	stop = s.start(p)
	s.wait(time.Second)
	return p, stop
}

// edit commits a new title of a product and returns when.
func (s *paced) edit(product, title string, shops ...string) time.Time {
	s.put(product, title, shops...)
	s.mu.Lock()
	s.xid++
	x := s.xid - 1
	s.mu.Unlock()
	s.change(product, x)
	return time.Now()
}

// documentsRead sums the products of all documents queries.
func (s *paced) documentsRead() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.readSize {
		n += k
	}
	return n
}

func snapshotRow() event.Header {
	return event.Header{Key: event.HeaderOrigin, Value: []byte(event.KindSnapshot)}
}

func TestASlowShopKeepsNoProductOfAnotherInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPaced(t, map[string]time.Duration{"slow": time.Minute})
		_, stop := w.run(func(*PushConfig) {})
		w.edit("fast", "1", "north")
		w.edit("q", "1", "slow")
		w.wait(2 * time.Second)
		second := w.edit("fast", "2", "north")
		w.wait(3 * time.Minute)
		require.Len(t, w.at["north:fast"], 2)
		require.Equal(t, 500*time.Millisecond, w.at["north:fast"][1].Sub(second), "as if the slow shop were not there")
		stop()
	})
}

func TestEightSlowShopsDelayNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPaced(t, map[string]time.Duration{"slow": time.Minute})
		_, stop := w.run(func(*PushConfig) {})
		for i := range 8 {
			for j := range 250 {
				w.edit(fmt.Sprintf("s%d-%d", i, j), "1", fmt.Sprintf("slow%d", i))
			}
		}
		w.wait(3 * time.Second)
		at := w.edit("live", "1", "north")
		w.wait(20 * time.Minute)
		require.Equal(t, 500*time.Millisecond, w.at["north:live"][0].Sub(at))
		require.Len(t, w.sent, 2001, "nothing is lost of the slow ones")
		require.Empty(t, w.parked)
		stop()
	})
}

// The first snapshot of many shops, of which a tenth answers once in a while.
func TestAHundredSlowShopsOfAThousandDelayNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPaced(t, map[string]time.Duration{"slow": time.Minute, "shop": 100 * time.Millisecond})
		p, stop := w.run(func(*PushConfig) {})
		for i := range 1000 {
			shop := fmt.Sprintf("shop%d", i)
			if i%10 == 0 {
				shop = fmt.Sprintf("slow%d", i)
			}
			for j := range 8 {
				id := fmt.Sprintf("p%d-%d", i, j)
				w.put(id, "1", shop)
				w.change(id, 0, snapshotRow())
			}
		}
		w.wait(10 * time.Second)
		for i := range 20 {
			at := w.edit(fmt.Sprintf("live%d", i), "1", "shop7")
			w.wait(2 * time.Second)
			require.LessOrEqual(t, w.at["shop7:"+fmt.Sprintf("live%d", i)][0].Sub(at), time.Second)
		}
		w.wait(5 * time.Minute)
		fast := 0
		for _, s := range w.sent {
			if strings.HasPrefix(s, "shop") {
				fast++
			}
		}
		require.Equal(t, 7_200+20, fast, "no slow shop holds up the campaign of another")
		require.LessOrEqual(t, p.Stats().Flying.Load(), int64(2000))
		w.wait(10 * time.Minute)
		require.Len(t, w.sent, 8_020)
		stop()
	})
}

// What its shop has no place for is not read only to be parked again.
func TestACampaignOfAStarvedShopIsReadOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPaced(t, map[string]time.Duration{"slow": 4 * time.Second})
		p, stop := w.run(func(*PushConfig) {})
		for i := range 3000 {
			id := fmt.Sprintf("c%d", i)
			w.put(id, "1", "slow")
			w.change(id, 0, snapshotRow())
		}
		w.wait(10 * time.Minute)
		require.Len(t, w.sent, 3000)
		t.Logf("%d documents read, %d products parked", w.documentsRead(), p.Stats().Parked.Load())
		require.LessOrEqual(t, w.documentsRead(), 2*3000, "once to learn its shop, and once to be sent")
		require.Empty(t, w.parked)
		stop()
	})
}

func TestTwoRowsOfOneProductInOneShopAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		_, stop := w.run("a")
		w.put("p1", "x", "north", "south", "north")
		w.change("p1", 100, event.Header{Key: event.HeaderBatch, Value: []byte("b1")})
		w.wait(2 * time.Second)
		require.Equal(t, []string{"south:p1"}, w.sent, "which of the two is meant nobody knows")
		item := w.items[[3]string{"b1", "p1", "north"}]
		require.Equal(t, work.ItemFailed, item.Status)
		require.Equal(t, event.Validation, item.Category)
		require.Equal(t, "documents", item.Field)
		require.Contains(t, item.Message, "2 rows")
		require.Equal(t, int64(1), w.position)
		stop()
	})
}

// Under load due products gather while readers are busy: that is what keeps the state and the source to few queries.
func TestDueProductsGatherWhileReadersAreBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPaced(t, nil)
		p := w.worker("a", func(*PushConfig) {})
		p.parts.State = &slowLoad{w.world, 20 * time.Millisecond}
		stop := w.start(p)
		for i := range 2000 {
			w.edit(fmt.Sprintf("p%d", i), "1", fmt.Sprintf("shop%d", i%50))
			w.wait(time.Millisecond)
		}
		w.wait(2 * time.Second)
		require.Len(t, w.sent, 2000)
		require.LessOrEqual(t, p.Stats().Rounds.Load(), int64(220), "two readers, 20 ms each, for two seconds")
		stop()
	})
}

// slowLoad is a state that takes its time.
type slowLoad struct {
	*world
	d time.Duration
}

func (s *slowLoad) Load(ctx context.Context, products []string) (work.Loaded, error) {
	time.Sleep(s.d) // in the bubble
	return s.world.Load(ctx, products)
}
