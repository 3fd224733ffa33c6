package pipeline

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/work"
)

// What is stopped waits in the state, goes on absorbing changes, and goes out as one push when it is let go.
func TestWhatIsPausedIsParkedAndSentWhenItIsResumed(t *testing.T) {
	for name, pauses := range map[string]work.Pauses{
		"all":  {All: true},
		"shop": {Shops: map[string]bool{"north": true}},
		"lane": {Lanes: map[work.Lane]bool{work.LaneLive: true}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.pauses = pauses
				w.put("p1", "one", "north")
				_, stop := w.run("a")
				for range 3 {
					w.change("p1", 100)
					w.wait(time.Second)
				}
				require.Empty(t, w.sent)
				require.Equal(t, int64(3), w.position, "nothing waits for it in memory")
				require.Equal(t, "PAUSED", w.parked[[2]string{"p1", "north"}].Reason)
				w.mu.Lock()
				w.pauses = work.Pauses{}
				w.mu.Unlock()
				w.wait(3 * time.Second)
				require.Equal(t, []string{"north:p1"}, w.sent)
				require.Empty(t, w.parked)
				stop()
			})
		})
	}
}

// An excluded product is skipped in the shops that it is kept from, and nowhere else.
func TestAnExcludedProductIsSkipped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.excluded = map[work.Exclusion]struct{}{{ProductID: "p1", Shop: "north"}: {}, {ProductID: "p2"}: {}}
		w.put("p1", "one", "north", "south")
		w.put("p2", "two", "north", "south")
		_, stop := w.run("a")
		w.change("p1", 100)
		w.change("p2", 100)
		w.wait(2 * time.Second)
		require.Equal(t, []string{"south:p1"}, w.sent)
		require.Equal(t, int64(2), w.position)
		require.Empty(t, w.parked)
		require.ElementsMatch(t, []string{
			"p1 north SKIPPED EXCLUDED", "p1 south SUCCESS ", "p2 north SKIPPED EXCLUDED", "p2 south SKIPPED EXCLUDED",
		}, w.outcomes())
		stop()
	})
}

// A push that must wait again waits for each campaign that has asked for it; one that has changed by itself, for none.
func TestAWaitingProductStaysInItsCampaigns(t *testing.T) {
	refs := []work.ParkedRef{{Shop: "", Campaign: 7}, {Shop: "north", Campaign: 8}, {Shop: "south", Campaign: 9}, {Shop: "north", Campaign: 7}}
	f := &flight{entry: &entry{}, parked: refs}
	require.Equal(t, []int64{7, 8}, f.campaigns("north"))
	f.entry.only = map[string]struct{}{"north": {}}
	require.Equal(t, []int64{8, 7}, f.campaigns("north"))
	f.entry.offsets = []int64{3}
	require.Equal(t, []int64{0}, f.campaigns("north"))
	require.Equal(t, []int64{0}, (&flight{entry: &entry{}}).campaigns("north"))
}
