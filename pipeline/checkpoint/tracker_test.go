package checkpoint

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestPositionStaysAtTheFirstOpenRecord(t *testing.T) {
	tr := NewTracker(100)
	require.Equal(t, int64(100), tr.Safe())
	for _, o := range []int64{100, 101, 104, 105} { // 102 and 103 are transaction markers
		require.True(t, tr.Arrived(o))
	}
	tr.Done(101, 104)
	require.Equal(t, int64(100), tr.Safe())
	require.Equal(t, int64(105), tr.SafeWith(100))
	require.Equal(t, int64(100), tr.Safe(), "asking changes nothing")
	tr.Done(100)
	require.Equal(t, int64(105), tr.Safe())
	tr.Done(105, 9999)
	require.Equal(t, int64(106), tr.Safe())
	require.False(t, tr.Arrived(105), "a record that was read before")
}

// The model is the definition: the smallest arrived offset that is not done.
func TestTrackerEqualsItsDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tr := NewTracker(0)
		var arrived []int64
		done := map[int64]bool{}
		next := int64(0)
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			if rapid.Bool().Draw(t, "arrive") || len(arrived) == 0 {
				o := next + int64(rapid.IntRange(0, 2).Draw(t, "gap"))
				require.True(t, tr.Arrived(o))
				arrived = append(arrived, o)
				next = o + 1
			} else {
				o := rapid.SampledFrom(arrived).Draw(t, "done")
				if !done[o] { // SafeWith must foretell Done
					want := tr.SafeWith(o)
					tr.Done(o)
					require.Equal(t, want, tr.Safe())
				}
				done[o] = true
			}
			want := next
			for _, o := range arrived {
				if !done[o] {
					want = o
					break
				}
			}
			require.Equal(t, want, tr.Safe())
		}
	})
}
