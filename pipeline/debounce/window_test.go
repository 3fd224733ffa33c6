package debounce

import (
	"cmp"
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
	w := New[string, int](Config{Quiet: 500 * time.Millisecond, MaxWait: 5 * time.Second})
	for ms := 0; ms <= 900; ms += 100 {
		w.Touch("p", 0, at(ms))
	}
	require.Empty(t, w.Due(at(1399), 10, nil))
	require.Equal(t, []string{"p"}, w.Due(at(1400), 10, nil))
	require.Empty(t, w.Due(at(10_000), 10, nil))
}

func TestKeyThatIsNeverQuietIsReleasedAtMaxWait(t *testing.T) {
	w := New[string, int](Config{Quiet: 500 * time.Millisecond, MaxWait: 5 * time.Second})
	for ms := 0; ms < 5000; ms += 100 {
		require.Empty(t, w.Due(at(ms), 1, nil), "at %d ms", ms)
		w.Touch("p", 0, at(ms))
	}
	require.Equal(t, []string{"p"}, w.Due(at(5000), 1, nil))
}

func TestHurryAndDrop(t *testing.T) {
	w := New[string, int](Config{Quiet: time.Second, MaxWait: time.Second})
	w.Touch("a", 0, at(0))
	w.Hurry("a", 0, at(10), at(10))
	w.Hurry("b", 0, at(10), at(20))
	w.Hurry("b", 0, at(10), at(500)) // later than what it has: no effect
	next, ok := w.Next()
	require.True(t, ok)
	require.Equal(t, at(10), next)
	require.Equal(t, []string{"a", "b"}, w.Due(at(20), 9, nil))
	w.Touch("c", 0, at(20))
	w.Drop("c")
	w.Drop("never there")
	require.Zero(t, w.Len())
	_, ok = w.Next()
	require.False(t, ok)
}

// A flood of one class delays another's only key by no more than its own turn.
func TestAFloodOfOneClassDelaysNoOther(t *testing.T) {
	w := New[int, string](Config{})
	for k := range 50_000 {
		w.Touch(k, "flood", at(0))
	}
	w.Touch(50_000, "calm", at(100))
	require.Contains(t, w.Due(at(100), 10, nil), 50_000)
}

func TestAClassWithoutRoomGoesOnAbsorbing(t *testing.T) {
	w := New[int, string](Config{Quiet: time.Second, MaxWait: 2 * time.Second})
	full := true
	room := func(c string, _ time.Time) int {
		if c == "starved" && full {
			return 0
		}
		return 1
	}
	w.Touch(1, "starved", at(0))
	w.Touch(2, "fine", at(500))
	require.Empty(t, w.Due(at(1000), 9, room))
	next, ok := w.Next()
	require.True(t, ok)
	require.Equal(t, at(1500), next, "nobody waits for what has no room")
	require.Equal(t, []int{2}, w.Due(at(1500), 9, room))
	_, ok = w.Next()
	require.False(t, ok)
	w.Touch(1, "starved", at(1600))
	w.Touch(3, "starved", at(1600))
	full = false
	require.Empty(t, w.Due(at(3000), 9, room))
	w.Unblock()
	require.Equal(t, []int{1}, w.Due(at(3000), 9, room))
	require.Equal(t, []int{3}, w.Due(at(3000), 9, room))
	require.Zero(t, w.Len())
}

// The model is the definition: a key is due at min(last touch + quiet, first touch + max wait), sooner when it is
// hurried; due keys are dealt out one of each class in turns, the class that was served longest ago first.
type model struct {
	cfg     Config
	keys    map[int]*modelKey
	served  map[int]int // class: turn in which it was served last
	turn    int
	blocked map[int]bool
}

type modelKey struct {
	class      int
	first, due time.Time
}

func (m *model) add(k, class int, now, due time.Time) {
	other := func(e *modelKey) bool { return e.class == class }
	if !slices.ContainsFunc(slices.Collect(maps.Values(m.keys)), other) {
		m.turn++
		m.served[class] = m.turn
	}
	m.keys[k] = &modelKey{class, now, due}
}

func (m *model) drop(k int) {
	e := m.keys[k]
	delete(m.keys, k)
	if e != nil && !slices.ContainsFunc(slices.Collect(maps.Values(m.keys)), func(o *modelKey) bool { return o.class == e.class }) {
		delete(m.blocked, e.class)
	}
}

// due returns the classes in the order of their turns, and the dues of each.
func (m *model) due(now time.Time, n int, room map[int]int) (classes []int, dues []time.Time) {
	waits := map[int][]time.Time{}
	for _, e := range m.keys {
		if !e.due.After(now) && !m.blocked[e.class] {
			waits[e.class] = append(waits[e.class], e.due)
		}
	}
	left := map[int]int{}
	for c := range waits {
		slices.SortFunc(waits[c], time.Time.Compare)
		if left[c] = room[c]; left[c] <= 0 {
			m.blocked[c] = true
			delete(waits, c)
		}
	}
	for len(classes) < n {
		order := slices.SortedFunc(maps.Keys(waits), func(a, b int) int { return cmp.Compare(m.served[a], m.served[b]) })
		i := slices.IndexFunc(order, func(c int) bool { return left[c] > 0 && len(waits[c]) > 0 })
		if i < 0 {
			break
		}
		c := order[i]
		classes, dues = append(classes, c), append(dues, waits[c][0])
		waits[c], left[c] = waits[c][1:], left[c]-1
		m.turn++
		m.served[c] = m.turn
	}
	return classes, dues
}

func TestNoClassWaitsBehindAnother(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ms := func(most int, what string) time.Duration {
			return time.Duration(rapid.IntRange(0, most).Draw(t, what)) * time.Millisecond
		}
		cfg := Config{Quiet: ms(50, "quiet"), MaxWait: ms(200, "max wait")}
		w := New[int, int](cfg)
		m := &model{keys: map[int]*modelKey{}, served: map[int]int{}, blocked: map[int]bool{}}
		m.cfg = Config{Quiet: cfg.Quiet, MaxWait: max(cfg.MaxWait, cfg.Quiet)}
		now := t0
		for range rapid.IntRange(1, 150).Draw(t, "steps") {
			now = now.Add(ms(30, "pass") + time.Duration(rapid.IntRange(1, 999).Draw(t, "ns"))) // dues differ: ties have no order
			k := rapid.IntRange(0, 9).Draw(t, "key")
			class, e := k%4, m.keys[k]
			switch rapid.IntRange(0, 5).Draw(t, "what") {
			case 0, 1:
				w.Touch(k, class, now)
				if e == nil {
					m.add(k, class, now, now.Add(m.cfg.Quiet))
				} else if e.due = now.Add(m.cfg.Quiet); e.due.After(e.first.Add(m.cfg.MaxWait)) {
					e.due = e.first.Add(m.cfg.MaxWait)
				}
			case 2:
				due := now.Add(ms(50, "hurry"))
				w.Hurry(k, class, now, due)
				if e == nil {
					m.add(k, class, now, due)
				} else if due.Before(e.due) {
					e.due = due
				}
			case 3:
				due := now.Add(ms(50, "delay"))
				w.Delay(k, class, now, due)
				if e == nil {
					m.add(k, class, now, due)
				} else {
					e.due = due
				}
			case 4:
				if rapid.Bool().Draw(t, "unblock") {
					w.Unblock()
					clear(m.blocked)
				} else {
					w.Drop(k)
					m.drop(k)
				}
			default:
				requireSame(t, w, m, now)
			}
			require.Equal(t, len(m.keys), w.Len())
		}
	})
}

func requireSame(t *rapid.T, w *Window[int, int], m *model, now time.Time) {
	n := rapid.IntRange(1, 8).Draw(t, "n")
	room := map[int]int{}
	for c := range 4 {
		room[c] = rapid.IntRange(0, 3).Draw(t, "room")
	}
	classes, dues := m.due(now, n, room)
	got := w.Due(now, n, func(c int, _ time.Time) int { return room[c] })
	require.Len(t, got, len(classes))
	for i, k := range got {
		require.Equal(t, classes[i], m.keys[k].class, "turn %d", i)
		require.Equal(t, dues[i], m.keys[k].due, "turn %d", i)
	}
	for _, k := range got {
		m.drop(k)
	}
	next, ok := w.Next()
	var want time.Time
	for _, e := range m.keys {
		if !m.blocked[e.class] && (want.IsZero() || e.due.Before(want)) {
			want = e.due
		}
	}
	require.Equal(t, !want.IsZero(), ok)
	require.Equal(t, want, next)
}
