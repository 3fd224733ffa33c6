package torture

import (
	"math/rand/v2"
	"slices"
	"time"
)

// strike is one blow of a schedule.
type strike struct {
	// after the strike before it.
	after time.Duration
	part  string
	// down is how long the part stays away.
	down time.Duration
	// freeze stops the process as it stands instead of killing it, and lets it go on afterwards: it wakes up behind a
	// world that has gone on without it, and does not know.
	freeze bool
	// dead is closed when it has hit.
	dead chan struct{}
}

// schedule draws kills: every part in each round, in an order of its own. Few enough that each is alone when it is
// hit, near enough that others are still recovering now and then.
func schedule(seed uint64, kills int, parts []string) []strike {
	rng := rand.New(rand.NewPCG(seed, 0xdead))
	upTo := func(d time.Duration) time.Duration { return time.Duration(rng.Int64N(int64(d))) }
	var out []strike
	for len(out) < kills {
		for _, i := range rng.Perm(len(parts)) {
			out = append(out, strike{
				after: time.Second + upTo(3*time.Second), part: parts[i], down: upTo(2 * time.Second),
			})
		}
	}
	return out[:kills]
}

// freezes adds, at places of their own, one freeze for each of these parts, longer than a lease.
func freezes(seed uint64, strikes []strike, parts []string) []strike {
	rng := rand.New(rand.NewPCG(seed, 0xf0e))
	for _, part := range parts {
		s := strike{after: time.Second, part: part, down: lease + time.Duration(rng.Int64N(int64(4*time.Second))), freeze: true}
		strikes = slices.Insert(strikes, rng.IntN(len(strikes)+1), s)
	}
	return strikes
}
