package pipeline

import (
	"time"

	"github.com/shelfwire/shelfwire/schemas/work"
)

// class separates what must not wait for each other: what is live, with its retries, and what campaigns have parked.
// The two are read, sent and settled apart.
type class int

const (
	classLive class = iota
	classCampaign
	classes
)

func classOf(l work.Lane) class {
	if l >= work.LaneCampaign {
		return classCampaign
	}
	return classLive
}

// How many readers work at once: two, so that one asks the state while the other asks the source. More would only read
// fewer products at a time. A query that takes longer than a reader should (one that will time out, a source under load)
// gives its place to another, until too many are under way to blame a single product.
const (
	readersLive     = 2
	readersCampaign = 1
	readerPatience  = time.Second
	readersLong     = 4
)

// readerSlots counts readers; it belongs to the loop.
type readerSlots struct {
	busy [classes]int
	long int
}

// readerSlot is one reader's place.
type readerSlot struct {
	class class
	long  bool // it counts as long, and no more as busy
	over  bool
}

// readerNews says that a reader takes long, or is over.
type readerNews struct {
	slot   *readerSlot
	over   bool
	failed bool // nothing could be read: what it needs is away
}

func (s *readerSlots) free(c class) bool {
	return s.busy[c] < [classes]int{readersLive, readersCampaign}[c]
}

func (s *readerSlots) begin(c class) *readerSlot {
	s.busy[c]++
	return &readerSlot{class: c}
}

func (s *readerSlots) hear(n readerNews) {
	switch slot := n.slot; {
	case slot.over:
	case n.over:
		slot.over = true
		if slot.long {
			s.long--
		} else {
			s.busy[slot.class]--
		}
	case s.long < readersLong:
		slot.long = true
		s.busy[slot.class]--
		s.long++
	}
}
