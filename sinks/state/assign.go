package state

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// seat is a row of leases as assign sees it.
type seat struct {
	partition   int32
	owner       string
	expires     time.Time
	wantedBy    string
	wantedUntil time.Time
	// dead says that the lease's end means nothing: see [leasesAhead].
	dead bool
}

// live reports whether the seat's owner may rely on it.
func (s *seat) live(now time.Time) bool { return s.owner != "" && s.expires.After(now) && !s.dead }

// assignment is what one worker shall do with the seats of a stage.
type assignment struct {
	renew []int32 // own and unexpired: extend
	claim []int32 // free, and within the fair share
	want  []int32 // of a busier worker: mark
	drop  []int32 // marks of ours that are of no use any more
}

// assign decides for the worker me. It is pure, and every worker that runs it in turn moves towards the same place:
// all seats taken, and no two workers more than one apart. Nobody knows the workers but from the seats: those who hold
// one or have marked one are counted, and a worker for whom there is none to take or to wait for is not.
//
// Workers that were killed count as long as their leases last, and what would be their share has no taker. So what has
// been free for as long as spare, while everybody who lives has looked at it, is taken beyond the share.
func assign(seats []seat, me string, now time.Time, spare time.Duration) assignment {
	var a assignment
	held := map[string]int{} // live seats by owner; a marked seat already counts for the one who waits for it
	members := map[string]bool{me: true}
	var free []seat
	for _, s := range seats {
		waits := s.wantedBy != "" && s.wantedUntil.After(now)
		if waits {
			members[s.wantedBy] = true
		}
		switch {
		case !s.live(now):
			// An own lease that has ended is free as well: claiming it raises the epoch, so that a holder that has
			// dropped it by its own clock meets it as a new one.
			free = append(free, s)
			continue
		case s.owner == me:
			a.renew = append(a.renew, s.partition)
		case waits && s.wantedBy != me && s.wantedBy != s.owner:
			members[s.owner] = true
			held[s.wantedBy]++
			continue
		}
		members[s.owner] = true
		held[s.owner]++
	}
	share := (len(seats) + len(members) - 1) / len(members)

	// What was given up for us first; what was given up for another is left to it while its mark stands.
	mine := len(a.renew)
	slices.SortStableFunc(free, func(x, y seat) int { return cmp.Compare(rank(x, me), rank(y, me)) })
	for _, s := range free {
		forMe := s.wantedBy == me
		forOther := !forMe && s.wantedBy != "" && s.wantedUntil.After(now)
		if (mine < share || now.Sub(s.expires) >= spare) && !forOther {
			a.claim = append(a.claim, s.partition)
			mine++
		} else if forMe {
			a.drop = append(a.drop, s.partition)
		}
	}

	delete(held, me)
	a.want = wanted(seats, me, now, held, mine)
	for _, s := range seats {
		if s.wantedBy == me && s.owner != me && s.live(now) && !slices.Contains(a.want, s.partition) {
			a.drop = append(a.drop, s.partition)
		}
	}
	return a
}

func rank(s seat, me string) int {
	if s.wantedBy == me {
		return 0
	}
	return 1
}

// wanted picks seats of busier workers until none of them has two more than we will have: taking one of a worker that
// has only one more would turn the two around and never end.
func wanted(seats []seat, me string, now time.Time, held map[string]int, mine int) []int32 {
	var want []int32
	for {
		busiest := ""
		for _, o := range slices.Sorted(maps.Keys(held)) {
			if busiest == "" || held[o] > held[busiest] {
				busiest = o
			}
		}
		if busiest == "" || held[busiest] < mine+2 {
			return want
		}
		pick, found := seat{}, false
		for _, s := range seats {
			live := s.owner == busiest && s.live(now)
			byOther := s.wantedBy != "" && s.wantedBy != me && s.wantedBy != s.owner && s.wantedUntil.After(now)
			if !live || byOther || slices.Contains(want, s.partition) {
				continue
			}
			// A mark that stands is kept: its owner may be draining it.
			if !found || s.wantedBy == me && pick.wantedBy != me {
				pick, found = s, true
			}
		}
		if !found {
			delete(held, busiest) // what counts for it is still marked with another: nothing of it to be had
			continue
		}
		want = append(want, pick.partition)
		held[busiest]--
		mine++
	}
}
