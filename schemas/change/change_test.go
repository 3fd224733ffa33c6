package change

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestMurmur2 holds the hash against the vectors of org.apache.kafka.common.utils.UtilsTest.
func TestMurmur2(t *testing.T) {
	for text, want := range map[string]int32{
		"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536,
		"a-little-bit-longer-string": -1486304829, "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
		"abc": 479470107,
	} {
		require.Equal(t, want, int32(murmur2([]byte(text))), text)
	}
}

func TestPartitionIsInRange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int32Range(1, 1<<20).Draw(t, "n")
		p := Partition(ProductID(rapid.String().Draw(t, "id")), n)
		require.True(t, p >= 0 && p < n)
	})
}

func TestPositionComesBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := Position{CommitLSN: LSN(rapid.Uint64().Draw(t, "lsn")), Ordinal: rapid.Uint64().Draw(t, "ordinal")}
		back, err := ParsePosition(p.String())
		require.NoError(t, err)
		require.Equal(t, p, back)
		b, err := json.Marshal(p)
		require.NoError(t, err)
		back = Position{}
		require.NoError(t, json.Unmarshal(b, &back))
		require.Equal(t, p, back)
	})
}

func FuzzParsePosition(f *testing.F) {
	for _, s := range []string{"", "16/B374D848:12", "/:", "0/0:0", "FFFFFFFF/FFFFFFFF:18446744073709551615", "1/2", "100000000/0:1", "-1/2:3"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePosition(s)
		if err != nil {
			require.Zero(t, p)
			return
		}
		back, err := ParsePosition(p.String())
		require.NoError(t, err)
		require.Equal(t, p, back)
	})
}

func TestPositionsAreOrdered(t *testing.T) {
	require.Negative(t, Position{1, 9}.Compare(Position{2, 1}))
	require.Negative(t, Position{2, 1}.Compare(Position{2, 2}))
	require.Zero(t, Position{2, 2}.Compare(Position{2, 2}))
	// The end of a transaction, as a position, stands behind its rows and before those of the next, even where the
	// next commit record begins right there.
	end := Position{CommitLSN: 110}
	require.Positive(t, end.Compare(Position{100, 1 << 40}))
	require.Negative(t, end.Compare(Position{110, 1}))
}

func TestWidenFindsTheEpoch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := XID(rapid.Uint64Range(3, 1<<62).Draw(t, "xid"))
		d := rapid.Int64Range(-(1<<31)+1, 1<<31-1).Draw(t, "distance")
		near := int64(x) + d
		if near < 0 {
			t.Skip("no such id")
		}
		require.Equal(t, x, Widen(uint32(x), XID(near)))
	})
	require.Equal(t, XID(700), Widen(700, 0))
	require.Equal(t, XID(4294967290), Widen(4294967290, 10), "an id before the first epoch does not exist")
}

// TestSnapshotSees compares Sees with the definition: committed before, and not running, when it was taken.
func TestSnapshotSees(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		next := rapid.IntRange(5, 40).Draw(t, "next")
		running := map[XID]bool{}
		for x := 3; x < next; x++ {
			if rapid.IntRange(0, 3).Draw(t, "running") == 0 {
				running[XID(x)] = true
			}
		}
		s := Snapshot{Xmin: XID(next), Xmax: XID(next)}
		for x := next - 1; x >= 3; x-- {
			if running[XID(x)] {
				s.Xmin = XID(x)
				s.Running = append([]XID{XID(x)}, s.Running...)
			}
		}
		back, err := ParseSnapshot(s.String())
		require.NoError(t, err)
		require.Equal(t, s, back)
		for x := XID(3); x < XID(next+3); x++ {
			require.Equal(t, x < XID(next) && !running[x], s.Sees(x), "%d in %s", x, s)
		}
		require.True(t, s.Sees(0))
	})
	require.False(t, Snapshot{}.Sees(3))
	for _, s := range []string{"", "1:2", "a:2:", "1:b:", "1:2:x", "1:2:3:4"} {
		_, err := ParseSnapshot(s)
		require.Error(t, err, s)
	}
}

func TestXIDsAsJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var list XIDs
		for _, x := range rapid.SliceOf(rapid.Uint64()).Draw(t, "xids") {
			list = append(list, XID(x))
		}
		raw, err := json.Marshal(list)
		require.NoError(t, err)
		var got XIDs
		require.NoError(t, json.Unmarshal(raw, &got))
		require.Equal(t, list, got)
	})
	raw, err := json.Marshal(XIDs{1000, 1001, 1003, 1002})
	require.NoError(t, err)
	require.Equal(t, "[1000,1,2,-1]", string(raw))
}
