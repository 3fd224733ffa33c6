// Package checkpoint decides how far a partition has been finished when its records finish out of order. It is pure.
package checkpoint

import "sort"

// Tracker follows the records of one partition from their arrival to their end. Offsets may have gaps (transaction
// markers, compaction). The zero Tracker is empty and stands at offset 0; it is not safe for concurrent use.
type Tracker struct {
	open []record // in offset order; the first is not done
	next int64    // one past the last offset that arrived
}

type record struct {
	offset int64
	done   bool
}

// NewTracker returns a tracker whose next record is expected at offset or after it.
func NewTracker(offset int64) *Tracker { return &Tracker{next: offset} }

// Arrived says that a record was read. Offsets must rise; one that does not is a record that was read before, and
// Arrived reports false and changes nothing.
func (t *Tracker) Arrived(offset int64) bool {
	if offset < t.next {
		return false
	}
	t.open = append(t.open, record{offset: offset})
	t.next = offset + 1
	return true
}

// Done says that everything which the record asked for is durable. An unknown offset changes nothing.
func (t *Tracker) Done(offsets ...int64) {
	for _, o := range offsets {
		if i := t.find(o); i >= 0 {
			t.open[i].done = true
		}
	}
	n := 0
	for n < len(t.open) && t.open[n].done {
		n++
	}
	if n == 0 {
		return
	}
	t.open = t.open[n:]
	if cap(t.open) > 4*len(t.open)+1024 { // give the memory of a past backlog back
		t.open = append([]record(nil), t.open...)
	}
}

// Safe returns the position that may be committed: the offset of the first record that is not done, or one past the
// last record when all are.
func (t *Tracker) Safe() int64 { return t.SafeWith() }

// SafeWith returns what Safe would be if these offsets were done too. A settlement writes it in the same transaction
// that makes them done.
func (t *Tracker) SafeWith(offsets ...int64) int64 {
	also := make(map[int64]struct{}, len(offsets))
	for _, o := range offsets {
		also[o] = struct{}{}
	}
	for _, r := range t.open {
		if _, ok := also[r.offset]; !r.done && !ok {
			return r.offset
		}
	}
	return t.next
}

// Open counts the records that have arrived at or after the safe position.
func (t *Tracker) Open() int { return len(t.open) }

func (t *Tracker) find(offset int64) int {
	i := sort.Search(len(t.open), func(i int) bool { return t.open[i].offset >= offset })
	if i < len(t.open) && t.open[i].offset == offset {
		return i
	}
	return -1
}
