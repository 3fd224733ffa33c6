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
	w, wait := New[string, int](), Wait{Quiet: 500 * time.Millisecond, MaxWait: 5 * time.Second}
	for ms := 0; ms <= 900; ms += 100 {
		w.Touch("p", 0, wait, at(ms))
	}
	require.Empty(t, w.Due(at(1399), 10, nil))
	require.Equal(t, []string{"p"}, w.Due(at(1400), 10, nil))
	require.Empty(t, w.Due(at(10_000), 10, nil))
}

func TestKeyThatIsNeverQuietIsReleasedAtMaxWait(t *testing.T) {
	w, wait := New[string, int](), Wait{Quiet: 500 * time.Millisecond, MaxWait: 5 * time.Second}
	for ms := 0; ms < 5000; ms += 100 {
		require.Empty(t, w.Due(at(ms), 1, nil), "at %d ms", ms)
		w.Touch("p", 0, wait, at(ms))
	}
	require.Equal(t, []string{"p"}, w.Due(at(5000), 1, nil))
}

func TestHurryAndDrop(t *testing.T) {
	w, wait := New[string, int](), Wait{Quiet: time.Second, MaxWait: time.Second}
	w.Touch("a", 0, wait, at(0))
	w.Hurry("a", 0, at(10))
	w.Hurry("b", 0, at(20))
	w.Hurry("b", 0, at(500)) // later than what it has: no effect
	next, ok := w.Next()
	require.True(t, ok)
	require.Equal(t, at(10), next)
	require.Equal(t, []string{"a", "b"}, w.Due(at(20), 9, nil))
	w.Touch("c", 0, wait, at(20))
	w.Drop("c")
	w.Drop("never there")
	require.Zero(t, w.Len())
	_, ok = w.Next()
	require.False(t, ok)
}

// A description that may wait for ten seconds neither delays a price nor is put off by prices for longer than that.
func TestTheMostUrgentTouchCounts(t *testing.T) {
	price := Wait{Quiet: 500 * time.Millisecond, MaxWait: 2 * time.Second}
	text := Wait{Quiet: 10 * time.Second, MaxWait: time.Minute}
	w := New[string, int]()
	due := func() time.Time {
		at, ok := w.Next()
		require.True(t, ok)
		return at
	}
	w.Touch("p", 0, text, at(0))
	require.Equal(t, at(10_000), due())
	w.Touch("p", 0, text, at(4000))
	require.Equal(t, at(14_000), due(), "it was not left alone")
	w.Touch("p", 0, price, at(5000))
	require.Equal(t, at(5500), due())
	w.Touch("p", 0, text, at(5400))
	require.Equal(t, at(5900), due(), "not quiet, but the price waits")
	for ms := 5400; ms < 7000; ms += 100 {
		w.Touch("p", 0, text, at(ms))
	}
	require.Equal(t, at(7000), due(), "2 s after the price")
	require.Equal(t, []string{"p"}, w.Due(at(7000), 1, nil))

	w.Touch("q", 0, text, at(0))
	for ms := 100; ms < 59_900; ms += 9_900 {
		w.Touch("q", 0, text, at(ms))
	}
	require.Equal(t, at(60_000), due())
	w.Touch("q", 0, price, at(59_000))
	require.Equal(t, at(59_500), due())
	for ms := 59_000; ms < 60_000; ms += 100 {
		w.Touch("q", 0, price, at(ms))
	}
	require.Equal(t, at(60_000), due(), "a minute after the text, though prices go on")
}

// A flood of one class delays another's only key by no more than its own turn.
func TestAFloodOfOneClassDelaysNoOther(t *testing.T) {
	w, wait := New[int, string](), Wait{}
	for k := range 50_000 {
		w.Touch(k, "flood", wait, at(0))
	}
	w.Touch(50_000, "calm", wait, at(100))
	require.Contains(t, w.Due(at(100), 10, nil), 50_000)
}

func TestAClassWithoutRoomGoesOnAbsorbing(t *testing.T) {
	w, wait := New[int, string](), Wait{Quiet: time.Second, MaxWait: 2 * time.Second}
	full := true
	room := func(c string, _ time.Time) int {
		if c == "starved" && full {
			return 0
		}
		return 1
	}
	w.Touch(1, "starved", wait, at(0))
	w.Touch(2, "fine", wait, at(500))
	require.Empty(t, w.Due(at(1000), 9, room))
	next, ok := w.Next()
	require.True(t, ok)
	require.Equal(t, at(1500), next, "nobody waits for what has no room")
	require.Equal(t, []int{2}, w.Due(at(1500), 9, room))
	_, ok = w.Next()
	require.False(t, ok)
	w.Touch(1, "starved", wait, at(1600))
	w.Touch(3, "starved", wait, at(1600))
	full = false
	require.Empty(t, w.Due(at(3000), 9, room))
	w.Unblock()
	require.Equal(t, []int{1}, w.Due(at(3000), 9, room))
	require.Equal(t, []int{3}, w.Due(at(3000), 9, room))
	require.Zero(t, w.Len())
}

// The model is the definition: a key is due at min(last touch + shortest quiet, earliest touch + its max wait), sooner
// when it is hurried; due keys are dealt out one of each class in turns, the class that was served longest ago first.
type model struct {
	keys    map[int]*modelKey
	served  map[int]int // class: turn in which it was served last
	turn    int
	blocked map[int]bool
}

type modelKey struct {
	class   int
	due     time.Time
	touches []modelTouch
}

type modelTouch struct {
	at   time.Time
	wait Wait
}

func (k *modelKey) touch(now time.Time, wait Wait) {
	k.touches = append(k.touches, modelTouch{now, wait})
	quiet, end := wait.Quiet, time.Time{}
	for _, t := range k.touches {
		quiet = min(quiet, t.wait.Quiet)
		if last := t.at.Add(max(t.wait.MaxWait, t.wait.Quiet)); end.IsZero() || last.Before(end) {
			end = last
		}
	}
	if k.due = now.Add(quiet); k.due.After(end) {
		k.due = end
	}
}

func (m *model) add(k, class int, due time.Time) *modelKey {
	other := func(e *modelKey) bool { return e.class == class }
	if !slices.ContainsFunc(slices.Collect(maps.Values(m.keys)), other) {
		m.turn++
		m.served[class] = m.turn
	}
	m.keys[k] = &modelKey{class: class, due: due}
	return m.keys[k]
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
		waits := []Wait{{Quiet: ms(50, "quiet"), MaxWait: ms(200, "max wait")}, {Quiet: ms(100, "quiet"), MaxWait: ms(400, "max wait")}}
		w := New[int, int]()
		m := &model{keys: map[int]*modelKey{}, served: map[int]int{}, blocked: map[int]bool{}}
		now := t0
		for range rapid.IntRange(1, 150).Draw(t, "steps") {
			now = now.Add(ms(30, "pass") + time.Duration(rapid.IntRange(1, 999).Draw(t, "ns"))) // dues differ: ties have no order
			k := rapid.IntRange(0, 9).Draw(t, "key")
			class, e := k%4, m.keys[k]
			switch rapid.IntRange(0, 5).Draw(t, "what") {
			case 0, 1:
				wait := waits[rapid.IntRange(0, 1).Draw(t, "lane")]
				w.Touch(k, class, wait, now)
				if e == nil {
					e = m.add(k, class, now)
				}
				e.touch(now, wait)
			case 2:
				due := now.Add(ms(50, "hurry"))
				w.Hurry(k, class, due)
				if e == nil {
					m.add(k, class, due)
				} else if due.Before(e.due) {
					e.due = due
				}
			case 3:
				due := now.Add(ms(50, "delay"))
				w.Delay(k, class, due)
				if e == nil {
					m.add(k, class, due)
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
