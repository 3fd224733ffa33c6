package pipeline

import (
	"slices"
	"time"

	"github.com/shelfwire/shelfwire/pipeline/debounce"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/work"
)

type debounceWindow = debounce.Window[change.ProductID, shopSet]

// entry is a product that waits in memory or flies, and what it stands for.
type entry struct {
	product   change.ProductID
	partition int32
	owner     *ownedPartition // under whose lease it flies
	offsets   []int64
	xids      []change.XID // distinct transactions that its read must see
	changes   int
	first     time.Time // commit of the first change
	last      time.Time
	captured  time.Time // Kafka's timestamp of the first record
	lane      work.Lane
	attempt   int
	// only restricts the push to these shops (a parked retry); nil means all. parked says why it was parked.
	only   map[string]struct{}
	parked string
	// pulled are the parked rows that it stands for, by shop, at their generations: pulling claims nothing, so the
	// same row comes again and again until it is settled.
	pulled map[string]int64
	// places are those that it has in the lines of shops before it was read: what was pulled has room to be sent.
	places map[lineKey]int
	due    time.Time
	unseen time.Time // since when its transaction is not visible yet
}

func (e *entry) class() class { return classOf(e.lane) }

// absorb merges what another entry of the same product stands for.
func (e *entry) absorb(o *entry) {
	e.offsets = append(e.offsets, o.offsets...)
	e.needs(o.xids...)
	e.changes += o.changes
	if e.first.IsZero() || !o.first.IsZero() && o.first.Before(e.first) {
		e.first, e.captured = o.first, o.captured
	}
	if o.last.After(e.last) {
		e.last = o.last
	}
	e.lane = min(e.lane, o.lane)
	e.attempt = max(e.attempt, o.attempt)
	if e.only == nil || o.only == nil {
		e.only = nil
	} else {
		for s := range o.only {
			e.only[s] = struct{}{}
		}
	}
	if e.unseen.IsZero() || !o.unseen.IsZero() && o.unseen.Before(e.unseen) {
		e.unseen = o.unseen
	}
	if e.parked == "" {
		e.parked = o.parked
	}
	for shop, generation := range o.pulled {
		if e.pulled == nil {
			e.pulled = map[string]int64{}
		}
		e.pulled[shop] = max(e.pulled[shop], generation)
	}
	for key, n := range o.places {
		e.hold(key, n)
	}
	o.places = nil
}

func (e *entry) hold(key lineKey, n int) {
	if e.places == nil {
		e.places = map[lineKey]int{}
	}
	e.places[key] += n
}

func (e *entry) needs(xids ...change.XID) {
	for _, x := range xids {
		if x != 0 && !slices.Contains(e.xids, x) {
			e.xids = append(e.xids, x)
		}
	}
}

// wait puts an entry into memory, on top of what waits of the product, and lets then put it into the window of its
// class, among those of its shops.
func (p *Push) wait(e *entry, then func(w *debounceWindow, id change.ProductID, set shopSet)) {
	h := p.hot[e.product]
	if h == nil {
		h = e
		p.hot[e.product] = e
	} else {
		before := h.class()
		h.absorb(e)
		if h.class() != before { // something live has come to what a campaign asked for
			p.windows[before].Drop(e.product)
		}
	}
	then(p.windows[h.class()], e.product, p.setOf(h))
}

// pause lets a product that has landed fly again after a while.
func (e *entry) pause(p *Push, now time.Time, after time.Duration) {
	p.wait(e, func(w *debounceWindow, id change.ProductID, set shopSet) { w.Delay(id, set, now.Add(after)) })
}
