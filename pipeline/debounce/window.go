// Package debounce decides which keys are due: quiet for long enough, or waiting for too long, and which of those that
// are due go first: the classes that they belong to take turns. It is pure: time is an argument, nothing is started and
// nothing sleeps.
package debounce

import (
	"cmp"
	"container/heap"
	"slices"
	"time"
)

// Wait says how long a key waits after something has happened to it.
type Wait struct {
	// Quiet is how long a key must have been left alone. Longer coalesces more and delays each first change by as
	// much. Zero: due at once.
	Quiet time.Duration
	// MaxWait bounds the wait of a key that is never quiet, counted from its first touch. It is at least Quiet.
	MaxWait time.Duration
}

// Window holds keys of type K until they are due, each in a class of type C. A heap for each class and one of classes
// serve all keys, so that a key costs no timer and a touch costs O(log n). The zero Window is not usable; it is not safe
// for concurrent use.
type Window[K, C comparable] struct {
	keys    map[K]*waiting[K, C]
	classes map[C]*class[K, C]
	queue   heapOf[*class[K, C]] // of classes that are not set aside, by their first key
	aside   map[C]*class[K, C]   // classes that had no room
	turn    uint64
}

type waiting[K, C comparable] struct {
	key   K
	class *class[K, C]
	due   time.Time
	// quiet and last are the shortest quiet time and the earliest end of its wait that a touch has given it; last is
	// zero before the first one.
	quiet time.Duration
	last  time.Time
	index int
}

func (e *waiting[K, C]) when() time.Time { return e.due }
func (e *waiting[K, C]) at(i int)        { e.index = i }

// class is a class with the keys that wait in it; it has at least one.
type class[K, C comparable] struct {
	name  C
	keys  heapOf[*waiting[K, C]]
	turn  uint64 // when it was served last
	index int
}

func (c *class[K, C]) when() time.Time { return c.keys[0].due }
func (c *class[K, C]) at(i int)        { c.index = i }

// New returns an empty window.
func New[K, C comparable]() *Window[K, C] {
	return &Window[K, C]{keys: map[K]*waiting[K, C]{}, classes: map[C]*class[K, C]{}, aside: map[C]*class[K, C]{}}
}

// Touch says that something happened to k that may wait so long: k is due after Quiet from now, but never later than
// MaxWait after the first touch. Where touches differ in how long they may wait, the shortest Quiet and the earliest end
// count: what is urgent neither waits for what is not, nor is put off by it. A key that waits already stays in its class.
func (w *Window[K, C]) Touch(k K, c C, wait Wait, now time.Time) {
	last := now.Add(max(wait.MaxWait, wait.Quiet))
	e := w.keys[k]
	switch {
	case e == nil:
		e = w.add(k, c, now.Add(wait.Quiet))
		e.quiet, e.last = wait.Quiet, last
		return
	case e.last.IsZero():
		e.quiet, e.last = wait.Quiet, last
	default:
		e.quiet, e.last = min(e.quiet, wait.Quiet), earlier(e.last, last)
	}
	w.move(e, earlier(now.Add(e.quiet), e.last))
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// Hurry makes k due at the given time at the latest, and adds it when it does not wait yet. A later touch may push
// it back by Quiet, as ever within MaxWait.
func (w *Window[K, C]) Hurry(k K, c C, due time.Time) {
	switch e := w.keys[k]; {
	case e == nil:
		w.add(k, c, due)
	case due.Before(e.due):
		w.move(e, due)
	}
}

// Delay puts k, which has been released before, back until the given time.
func (w *Window[K, C]) Delay(k K, c C, due time.Time) {
	if e := w.keys[k]; e != nil {
		w.move(e, due)
		return
	}
	w.add(k, c, due)
}

// Due removes and returns at most n keys that are due at now: one of each class in turns, the class that was served
// longest ago first, and of a class the longest due. room says how many keys of a class may be released, given when its
// first was due; nil is any number. A class without room is set aside until Unblock.
func (w *Window[K, C]) Due(now time.Time, n int, room func(c C, since time.Time) int) []K {
	var ready []*class[K, C]
	var rooms []int
	for len(w.queue) > 0 && !w.queue[0].when().After(now) {
		c := heap.Pop(&w.queue).(*class[K, C])
		most := n
		if room != nil {
			most = room(c.name, c.when())
		}
		if most <= 0 {
			w.aside[c.name] = c
			continue
		}
		ready, rooms = append(ready, c), append(rooms, most)
	}
	order := make([]int, len(ready))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(ready[a].turn, ready[b].turn) })
	var out []K
	for some := true; some && len(out) < n; {
		some = false
		for _, i := range order {
			c := ready[i]
			if len(out) == n {
				break
			}
			if rooms[i] == 0 || len(c.keys) == 0 || c.when().After(now) {
				continue
			}
			e := heap.Pop(&c.keys).(*waiting[K, C])
			delete(w.keys, e.key)
			w.turn++
			c.turn, rooms[i], some = w.turn, rooms[i]-1, true
			out = append(out, e.key)
		}
	}
	for _, c := range ready {
		if len(c.keys) == 0 {
			delete(w.classes, c.name)
			continue
		}
		heap.Push(&w.queue, c)
	}
	return out
}

// Unblock lets classes be asked again that had no room.
func (w *Window[K, C]) Unblock() {
	for name, c := range w.aside {
		delete(w.aside, name)
		heap.Push(&w.queue, c)
	}
}

// Next returns when the next key is due whose class is not set aside; false when none waits.
func (w *Window[K, C]) Next() (time.Time, bool) {
	if len(w.queue) == 0 {
		return time.Time{}, false
	}
	return w.queue[0].when(), true
}

// Drop forgets k.
func (w *Window[K, C]) Drop(k K) {
	e := w.keys[k]
	if e == nil {
		return
	}
	c := e.class
	heap.Remove(&c.keys, e.index)
	delete(w.keys, k)
	_, aside := w.aside[c.name]
	switch {
	case len(c.keys) > 0 && !aside:
		heap.Fix(&w.queue, c.index)
	case len(c.keys) > 0:
	case aside:
		delete(w.aside, c.name)
		delete(w.classes, c.name)
	default:
		heap.Remove(&w.queue, c.index)
		delete(w.classes, c.name)
	}
}

// Len counts the waiting keys.
func (w *Window[K, C]) Len() int { return len(w.keys) }

func (w *Window[K, C]) add(k K, name C, due time.Time) *waiting[K, C] {
	e := &waiting[K, C]{key: k, due: due}
	w.keys[k] = e
	c := w.classes[name]
	if c == nil { // as one that has just been served: new classes take no turn before the others
		w.turn++
		c = &class[K, C]{name: name, turn: w.turn, keys: heapOf[*waiting[K, C]]{e}}
		w.classes[name], e.class = c, c
		heap.Push(&w.queue, c)
		return e
	}
	e.class = c
	heap.Push(&c.keys, e)
	w.settle(c)
	return e
}

func (w *Window[K, C]) move(e *waiting[K, C], due time.Time) {
	e.due = due
	heap.Fix(&e.class.keys, e.index)
	w.settle(e.class)
}

// settle puts a class where its first key wants it.
func (w *Window[K, C]) settle(c *class[K, C]) {
	if _, aside := w.aside[c.name]; !aside {
		heap.Fix(&w.queue, c.index)
	}
}

// heapOf is a heap by time of things that know where they stand in it.
type heapOf[E interface {
	when() time.Time
	at(i int)
}] []E

func (q heapOf[E]) Len() int           { return len(q) }
func (q heapOf[E]) Less(i, j int) bool { return q[i].when().Before(q[j].when()) }
func (q heapOf[E]) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].at(i)
	q[j].at(j)
}

func (q *heapOf[E]) Push(x any) {
	e := x.(E)
	e.at(len(*q))
	*q = append(*q, e)
}

func (q *heapOf[E]) Pop() any {
	var none E
	old := *q
	e := old[len(old)-1]
	old[len(old)-1] = none
	*q = old[:len(old)-1]
	return e
}
