package pipeline

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// What a shop has no room for stays in the window and goes on absorbing: more load makes more coalescing, not more reads.
func TestAFloodOfAStarvedShopIsAbsorbedAndDelaysNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPaced(t, map[string]time.Duration{"slow": 4 * time.Second})
		p, stop := w.run(func(*PushConfig) {})
		const products = 1500
		for i := range products {
			w.edit(fmt.Sprintf("q%d", i), "0", "slow")
		}
		w.edit("live", "0", "north")
		w.wait(10 * time.Minute)
		require.Len(t, w.sent, products+1)
		read, sent := w.documentsRead(), len(w.sent)
		for round := range 10 {
			for i := range products {
				w.edit(fmt.Sprintf("q%d", i), fmt.Sprint(round+1), "slow")
			}
			at := w.edit("live", fmt.Sprint(round+1), "north")
			w.wait(2 * time.Second)
			require.Equal(t, 500*time.Millisecond, w.at["north:live"][round+1].Sub(at))
		}
		w.wait(10 * time.Minute)
		read, sent = w.documentsRead()-read, len(w.sent)-sent
		t.Logf("%d changes: %d documents read, %d pushes, %d parked", 11*products, read, sent, p.Stats().Parked.Load())
		require.LessOrEqual(t, float64(read), 1.2*float64(sent), "documents are read when there is room to send them")
		require.Less(t, sent, 3*products, "ten changes are not ten pushes")
		for i := range products {
			require.JSONEq(t, `"10"`, string(w.known[[2]string{fmt.Sprintf("q%d", i), "slow"}].Shadow))
		}
		require.Empty(t, w.parked)
		stop()
	})
}

func TestHintsAreBounded(t *testing.T) {
	h := newHints()
	for i := range 100_000 {
		h.learn("p", map[string]struct{}{fmt.Sprint(i): {}, "": {}})
	}
	require.Len(t, h.shops, setsMost)
	set, shops := h.of("p")
	require.NotEqual(t, setUnknown, set)
	require.Len(t, shops, 1)
	set, _ = h.of("never read")
	require.Equal(t, setUnknown, set)
}
