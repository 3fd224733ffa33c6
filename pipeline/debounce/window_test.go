package debounce

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

var t0 = time.Unix(1_800_000_000, 0)

func at(ms int) time.Time { return t0.Add(time.Duration(ms) * time.Millisecond) }

func TestBurstIsReleasedOnceWhenQuiet(t *testing.T) {
	w := New[string](Config{Quiet: 500 * time.Millisecond, MaxWait: 5 * time.Second})
	for ms := 0; ms <= 900; ms += 100 {
		w.Touch("p", at(ms))
	}
	require.Empty(t, w.Due(at(1399), 10))
	require.Equal(t, []string{"p"}, w.Due(at(1400), 10))
	require.Empty(t, w.Due(at(10_000), 10))
}

func TestKeyThatIsNeverQuietIsReleasedAtMaxWait(t *testing.T) {
	w := New[string](Config{Quiet: 500 * time.Millisecond, MaxWait: 5 * time.Second})
	for ms := 0; ms < 5000; ms += 100 {
		require.Empty(t, w.Due(at(ms), 1), "at %d ms", ms)
		w.Touch("p", at(ms))
	}
	require.Equal(t, []string{"p"}, w.Due(at(5000), 1))
}

func TestHurryAndDrop(t *testing.T) {
	w := New[string](Config{Quiet: time.Second, MaxWait: time.Second})
	w.Touch("a", at(0))
	w.Hurry("a", at(10), at(10))
	w.Hurry("b", at(10), at(20))
	w.Hurry("b", at(10), at(500)) // later than what it has: no effect
	next, ok := w.Next()
	require.True(t, ok)
	require.Equal(t, at(10), next)
	require.Equal(t, []string{"a", "b"}, w.Due(at(20), 9))
	w.Touch("c", at(20))
	w.Drop("c")
	w.Drop("never there")
	require.Zero(t, w.Len())
	_, ok = w.Next()
	require.False(t, ok)
}

// The model is the definition: a key is due at min(last touch + quiet, first touch + max wait).
func TestWindowEqualsItsDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := Config{
			Quiet:   time.Duration(rapid.IntRange(0, 50).Draw(t, "quiet")) * time.Millisecond,
			MaxWait: time.Duration(rapid.IntRange(0, 200).Draw(t, "max wait")) * time.Millisecond,
		}
		w := New[int](cfg)
		maxWait := max(cfg.MaxWait, cfg.Quiet)
		type entry struct{ first, last time.Time }
		model := map[int]entry{}
		due := func(e entry) time.Time {
			if d := e.last.Add(cfg.Quiet); d.Before(e.first.Add(maxWait)) {
				return d
			}
			return e.first.Add(maxWait)
		}
		now := t0
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 30).Draw(t, "pass")) * time.Millisecond)
			if rapid.Bool().Draw(t, "touch") {
				k := rapid.IntRange(0, 5).Draw(t, "key")
				w.Touch(k, now)
				e, ok := model[k]
				if !ok {
					e.first = now
				}
				e.last = now
				model[k] = e
				continue
			}
			got := w.Due(now, 100)
			slices.Sort(got)
			var want []int
			for _, k := range slices.Sorted(maps.Keys(model)) {
				if !due(model[k]).After(now) {
					want = append(want, k)
					delete(model, k)
				}
			}
			require.Equal(t, want, got)
			require.Equal(t, len(model), w.Len())
		}
	})
}
