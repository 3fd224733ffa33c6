package torture

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// middlePlan is the schedule of one trial of the middle. It follows from the seed alone.
type middlePlan struct {
	seed uint64
	// late: requests land after they were given up, and frozen hands send what they were about to. Otherwise the clock
	// may step forward, which makes a request count as one that can no longer land.
	late bool
	// guarded: the guard stands at a few products.
	guarded bool
	// tables: ClickHouse is there, and loaded.
	tables bool
	// places are the hands that are at work at the beginning.
	places []string
	blows  []blow
}

// middleKinds are drawn by weight. Those with once are dear, and come once in a trial at the most.
var middleKinds = []struct {
	kind   string
	weight int
	once   bool
}{
	{"kill push", 14, false},
	{"kill expand", 5, false},
	{"kill relay", 7, false},
	{"kill load", 4, false},
	{"kill capture", 3, true},
	{"stop push", 6, false},
	{"stop expand", 3, false},
	{"stop relay", 3, false},
	{"freeze push", 10, true},
	{"freeze relay", 4, true},
	{"freeze expand", 3, true},
	{"freeze load", 2, true},
	{"storm", 5, true},
	{"fail at a step", 22, false},
	{"kill at a step", 18, false},
	{"freeze at a step", 12, false},
	{"cut connections", 8, false},
	{"silence", 5, false},
	{"delays", 5, false},
	{"end backends", 6, false},
	{"broker errors", 14, false},
	{"kill the server", 3, true},
	{"shop dead", 5, false},
	{"shop throttled", 4, false},
	{"documents fail", 5, true},
	{"documents are wrong", 5, true},
	{"pause", 10, false},
	{"cancel", 5, false},
	{"replay", 8, false},
	{"request a snapshot", 8, false},
	{"touch all", 2, false},
	{"exclude", 5, false},
	{"retry", 4, false},
	{"release", 4, false},
	{"reject", 3, false},
	{"clock", 6, false},
}

// middleSteps are the steps of which one may go wrong, before or after it.
var middleSteps = []string{
	"renew", "release", "load", "pull", "guard", "take in", "intend", "settle", "park", "claim probe", "set dead", "announce", "complete",
	"lock", "take outbox", "delete outbox", "documents", "page", "poll", "request", "request", "request", "settle", "settle", "intend",
	"take in", "begin", "produce", "commit", "open producer", "position", "insert", "save position", "first row",
}

func planMiddle(seed uint64) middlePlan {
	rng := rand.New(rand.NewPCG(seed, 0x3ddd1e))
	p := middlePlan{
		seed: seed, late: rng.IntN(2) == 0, guarded: rng.IntN(3) == 0, tables: rng.IntN(6) == 0,
		places: []string{"capture", "push-a", "push-b", "expand-a", "relay-a"},
	}
	for _, more := range []string{"push-c", "expand-b", "relay-b"} {
		if rng.IntN(2) == 0 {
			p.places = append(p.places, more)
		}
	}
	if p.tables {
		p.places = append(p.places, "load-a")
	}
	total := 0
	for _, k := range middleKinds {
		total += k.weight
	}
	used := map[string]bool{}
	for range 8 + rng.IntN(9) {
		n, i := rng.IntN(total), 0
		for ; n >= middleKinds[i].weight; i++ {
			n -= middleKinds[i].weight
		}
		b := blow{
			after: time.Duration(rng.IntN(300)) * time.Millisecond, kind: middleKinds[i].kind,
			span: time.Duration(rng.IntN(400)) * time.Millisecond, pick: rng.Uint64(),
		}
		if middleKinds[i].once && used[b.kind] || !p.tables && strings.HasSuffix(b.kind, " load") {
			b.kind = middleKinds[0].kind
		}
		used[b.kind] = true
		p.blows = append(p.blows, b)
	}
	return p
}

// some draws one of the hands of a role.
func (p *middlePlan) some(rng *rand.Rand, role string) string {
	var of []string
	for _, place := range p.places {
		if r, _, _ := strings.Cut(place, "-"); r == role {
			of = append(of, place)
		}
	}
	slices.Sort(of)
	return of[rng.IntN(len(of))]
}

func (p *middlePlan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: late %t, guarded %t, %s\n", p.seed, p.late, p.guarded, p.places)
	for _, bl := range p.blows {
		fmt.Fprintf(&b, "  after %s %s, for %s (%d)\n", bl.after, bl.kind, bl.span, bl.pick)
	}
	return b.String()
}
