package torture

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// trialPlan is the schedule of one trial. It follows from the seed alone.
type trialPlan struct {
	seed uint64
	// early: the slot is there, and rows are written, before Capture starts for the first time.
	early          bool
	ddl, truncates bool
	first          habits
	blows          []blow
}

// blow is one thing that goes wrong, so long after the one before it.
type blow struct {
	after  time.Duration
	kind   string
	span   time.Duration // how long it lasts
	pick   uint64        // decides what the kind leaves open
	habits habits        // of who starts then
}

// blowKinds are drawn by weight. Those with once are dear, and come once in a trial at the most.
var blowKinds = []struct {
	kind   string
	weight int
	once   bool
}{
	{"kill capture", 30, false},
	{"stop capture", 6, false},
	{"freeze capture, another takes over", 10, true},
	{"lose a step", 16, false},
	{"cut connections", 10, false},
	{"silence", 6, false},
	{"delays", 6, false},
	{"end backends", 8, false},
	{"broker errors", 24, false},
	{"request a snapshot", 20, false},
	{"kill the server", 8, true},
	{"drop the slot", 6, true},
	{"read the slot", 4, true},
	{"lose the slot's WAL", 3, true},
	{"restore a backup", 4, true},
	{"fail over", 5, true},
	{"checkpoint", 4, false},
}

func planTrial(seed uint64) trialPlan {
	rng := rand.New(rand.NewPCG(seed, 0x5e1f))
	p := trialPlan{
		seed: seed, early: rng.IntN(2) == 0, ddl: rng.IntN(3) > 0, truncates: rng.IntN(4) == 0, first: drawHabits(rng),
	}
	total := 0
	for _, k := range blowKinds {
		total += k.weight
	}
	used := map[string]bool{}
	for range 4 + rng.IntN(5) {
		n := rng.IntN(total)
		i := 0
		for ; n >= blowKinds[i].weight; i++ {
			n -= blowKinds[i].weight
		}
		b := blow{
			after: time.Duration(rng.IntN(350)) * time.Millisecond, kind: blowKinds[i].kind, span: time.Duration(rng.IntN(400)) * time.Millisecond,
			pick: rng.Uint64(), habits: drawHabits(rng),
		}
		if blowKinds[i].once && used[b.kind] {
			b.kind = blowKinds[0].kind
		}
		used[b.kind] = true
		p.blows = append(p.blows, b)
	}
	return p
}

func drawHabits(rng *rand.Rand) habits {
	pick := func(of ...int) int { return of[rng.IntN(len(of))] }
	h := habits{
		Rows: pick(5, 20, 1000), TxRows: pick(5, 40, 10_000), Chunk: pick(4, 10, 50), Readers: pick(1, 2, 3),
		Every: time.Duration(pick(1, 1, 20)) * time.Millisecond, Memory: "64kB",
	}
	switch rng.IntN(4) {
	case 0:
		h.Spill = -1 // transactions come whole
	case 1:
		h.Spill = 200 << 10 // and so does one that is larger than this
	}
	return h
}

func (p *trialPlan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: early %t, ddl %t, truncates %t, %+v\n", p.seed, p.early, p.ddl, p.truncates, p.first)
	for _, bl := range p.blows {
		fmt.Fprintf(&b, "  after %s %s, for %s (%d), then %+v\n", bl.after, bl.kind, bl.span, bl.pick, bl.habits)
	}
	return b.String()
}
