package torture

import (
	"math/rand/v2"
	"time"
)

// strike is one kill of a schedule.
type strike struct {
	// after the strike before it.
	after time.Duration
	part  string
	// down is how long the part stays away.
	down time.Duration
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
