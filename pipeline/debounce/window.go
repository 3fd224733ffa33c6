// Package debounce decides which keys are due: quiet for long enough, or waiting for too long. It is pure: time is
// an argument, nothing is started and nothing sleeps.
package debounce

import (
	"container/heap"
	"time"
)

// Config says how long a key waits.
type Config struct {
	// Quiet is how long a key must have been left alone. Longer coalesces more and delays each first change by as
	// much. Zero: due at once.
	Quiet time.Duration
	// MaxWait bounds the wait of a key that is never quiet, counted from its first touch. It is at least Quiet.
	MaxWait time.Duration
}

// Window holds keys until they are due. One heap serves all keys, so that a key costs no timer and a touch costs
// O(log n). The zero Window is not usable; it is not safe for concurrent use.
type Window[K comparable] struct {
	cfg   Config
	keys  map[K]*waiting[K]
	queue queue[K]
}

type waiting[K comparable] struct {
	key   K
	first time.Time
	due   time.Time
	index int
}

// New returns an empty window.
func New[K comparable](cfg Config) *Window[K] {
	cfg.MaxWait = max(cfg.MaxWait, cfg.Quiet)
	return &Window[K]{cfg: cfg, keys: map[K]*waiting[K]{}}
}

// Touch says that something happened to k: it is due after Quiet from now, but never later than MaxWait after the
// first touch.
func (w *Window[K]) Touch(k K, now time.Time) {
	due := now.Add(w.cfg.Quiet)
	if e := w.keys[k]; e != nil {
		if last := e.first.Add(w.cfg.MaxWait); due.After(last) {
			due = last
		}
		w.move(e, due)
		return
	}
	w.add(k, now, due)
}

// Hurry makes k due at the given time at the latest, and adds it when it does not wait yet. A later touch may push
// it back by Quiet, as ever within MaxWait.
func (w *Window[K]) Hurry(k K, now, due time.Time) {
	switch e := w.keys[k]; {
	case e == nil:
		w.add(k, now, due)
	case due.Before(e.due):
		w.move(e, due)
	}
}

// Delay puts k, which has been released before, back until the given time. Its wait counts from now again.
func (w *Window[K]) Delay(k K, now, due time.Time) {
	if e := w.keys[k]; e != nil {
		w.move(e, due)
		return
	}
	w.add(k, now, due)
}

// Due removes and returns at most n keys that are due at now, the longest due first.
func (w *Window[K]) Due(now time.Time, n int) []K {
	var out []K
	for len(w.queue) > 0 && len(out) < n && !w.queue[0].due.After(now) {
		e := heap.Pop(&w.queue).(*waiting[K])
		delete(w.keys, e.key)
		out = append(out, e.key)
	}
	return out
}

// Next returns when the next key is due; false when nothing waits.
func (w *Window[K]) Next() (time.Time, bool) {
	if len(w.queue) == 0 {
		return time.Time{}, false
	}
	return w.queue[0].due, true
}

// Drop forgets k.
func (w *Window[K]) Drop(k K) {
	if e := w.keys[k]; e != nil {
		heap.Remove(&w.queue, e.index)
		delete(w.keys, k)
	}
}

// Len counts the waiting keys.
func (w *Window[K]) Len() int { return len(w.queue) }

func (w *Window[K]) add(k K, first, due time.Time) {
	e := &waiting[K]{key: k, first: first, due: due}
	w.keys[k] = e
	heap.Push(&w.queue, e)
}

func (w *Window[K]) move(e *waiting[K], due time.Time) {
	e.due = due
	heap.Fix(&w.queue, e.index)
}

type queue[K comparable] []*waiting[K]

func (q queue[K]) Len() int           { return len(q) }
func (q queue[K]) Less(i, j int) bool { return q[i].due.Before(q[j].due) }
func (q queue[K]) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

func (q *queue[K]) Push(x any) {
	e := x.(*waiting[K])
	e.index = len(*q)
	*q = append(*q, e)
}

func (q *queue[K]) Pop() any {
	old := *q
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	return e
}
