package pipeline

import (
	"hash/maphash"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/shelfwire/shelfwire/schemas/change"
)

// shopSet numbers the shops that a product belongs to. Due products of different sets take turns, and those of a set
// whose lines are full stay in the window, where they go on absorbing changes.
type shopSet uint32

const (
	setUnknown shopSet = iota // not read since this worker began
	setPlaced                 // pulled with its place
	setFirst
)

// hintSlots bounds what is remembered: products share slots, and the one that was read last has it. A product without a
// hint is only served in one line with all others that have none.
const (
	hintSlots = 1 << 20 // 8 MB
	setsMost  = 1 << 16
)

// waitsForRoom is how long a due product may wait for room in its shop before it is read and parked: so offsets always
// move on.
const waitsForRoom = 2 * time.Minute

// hints remember to which shops products belong. They may be wrong: nothing depends on them but the order of work.
type hints struct {
	seed maphash.Seed

	mu    sync.Mutex
	sets  map[string]shopSet
	shops [][]string // by set, from setFirst on
	slots []hint
}

type hint struct {
	tag uint32
	set shopSet
}

func newHints() hints {
	return hints{seed: maphash.MakeSeed(), sets: map[string]shopSet{}}
}

func (h *hints) slot(id change.ProductID) (int, uint32) {
	sum := maphash.String(h.seed, string(id))
	return int(sum % hintSlots), uint32(sum >> 32)
}

// learn notes the shops of a product.
func (h *hints) learn(id change.ProductID, shops map[string]struct{}) {
	names := make([]string, 0, len(shops))
	for s := range shops {
		if s != "" {
			names = append(names, s)
		}
	}
	if len(names) == 0 {
		return
	}
	slices.Sort(names)
	key := strings.Join(names, "\x00")
	i, tag := h.slot(id)
	h.mu.Lock()
	defer h.mu.Unlock()
	set, ok := h.sets[key]
	if !ok {
		if len(h.shops) >= setsMost {
			return
		}
		set = setFirst + shopSet(len(h.shops))
		h.sets[key], h.shops = set, append(h.shops, names)
	}
	if h.slots == nil {
		h.slots = make([]hint, hintSlots)
	}
	h.slots[i] = hint{tag, set}
}

// of returns the set of a product's shops, and the shops of it.
func (h *hints) of(id change.ProductID) (shopSet, []string) {
	i, tag := h.slot(id)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.slots == nil || h.slots[i].tag != tag || h.slots[i].set < setFirst {
		return setUnknown, nil
	}
	set := h.slots[i].set
	return set, h.shops[set-setFirst]
}

func (h *hints) shopsOf(set shopSet) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if set < setFirst {
		return nil
	}
	return h.shops[set-setFirst]
}

// setOf is the set in which an entry waits.
func (p *Push) setOf(e *entry) shopSet {
	if len(e.places) > 0 {
		return setPlaced
	}
	set, _ := p.hints.of(e.product)
	return set
}

// room is how many due products of a set may be read now. What has waited for long, and all when memory is half full,
// is read and parked instead.
func (p *Push) room(now time.Time, set shopSet, since time.Time) int {
	shops := p.hints.shopsOf(set)
	if len(shops) == 0 || now.Sub(since) > waitsForRoom || 2*len(p.hot) > p.cfg.Hot {
		return p.cfg.Round
	}
	most := 0
	for _, s := range shops {
		most = max(most, p.lines.left(lineKey{s, classLive}))
	}
	return most
}

// reserve takes the places that a product will need in the lines of its shops, as far as they are known.
func (p *Push) reserve(e *entry) {
	if len(e.places) > 0 {
		return
	}
	_, shops := p.hints.of(e.product)
	for _, s := range shops {
		key := lineKey{s, classLive}
		if e.only != nil {
			if _, ok := e.only[s]; !ok {
				continue
			}
		}
		if p.lines.enter(key) {
			e.hold(key, 1)
		}
	}
}
