// Package budget shares one shop's rate budget between any number of processes.
//
// Shopify admits a request when its requested cost fits into a leaky bucket that belongs to the app and the shop. The
// state keeps a model of that bucket (work.Bucket). A process leases a slice of it, spends the slice locally, and comes
// back for more, so that the hot path asks the state once a slice and not once a request.
//
// bucket.go decides (pure, now is an argument), limiter.go acts.
//
// # Non-obvious
//
//   - Invariant: Level + all leases <= what the shop really has. Level refills at the restore rate only up to
//     Maximum - leases, because points that are leased and not yet spent are still in the shop's bucket and count
//     against its brim.
//   - A lease covers what is unspent and what is in flight. It shrinks by the actual cost when the answer is here; the
//     rest of the requested cost stays with the holder as unspent. Level never grows by a settlement, only by time.
//   - A lease that ends (its holder died) returns as room under the brim, not as points: the dead holder may have
//     spent them a moment before. So a crash can cost points but never overdraw.
//   - A waiter is a lease of zero points whose name tells lane and age; who finds an older one of its own or a higher
//     lane does not take, which makes the queue first in, first out across processes.
package budget

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shelfwire/shelfwire/schemas/work"
)

// What is assumed of a shop that has not answered yet: a request of any legal cost (1,000 points) fits, and the
// smallest plan that was ever sold is not overdrawn. The first answer replaces it.
const (
	firstMaximum = 1000
	firstRestore = 50
)

// headroom is the share of the bucket that a lane leaves to the lanes above it.
var headroom = map[work.Lane]float64{
	work.LaneLive:     0,
	work.LaneContent:  0.05,
	work.LaneRetry:    0.10,
	work.LaneCampaign: 0.20,
}

// Reported is throttleStatus of an answer, in points and points a second.
type Reported struct {
	Maximum, Available, Restore float64
}

// Holder is what one process holds of one shop's bucket.
type Holder struct {
	// Name is unique among all processes.
	Name string
	// Free is leased and unspent; InFlight is the requested cost of requests without an answer.
	Free, InFlight float64
}

// Ask is one request for points.
type Ask struct {
	Lane work.Lane
	// Since is when the waiting began, by the bucket's clock as well as the holder can know it; it orders the queue.
	Since time.Time
	// Need is what must be granted at least, in points; Slice is what is taken where there is plenty.
	Need, Slice float64
	// TTL is how long the lease lasts without being renewed.
	TTL time.Duration
}

// Take leases points: at least ask.Need, or none. It returns how long to wait before asking again; zero when granted.
// The holder's lease is renewed in any case.
func Take(b *work.Bucket, now time.Time, h *Holder, ask Ask) (granted float64, wait time.Duration) {
	Refill(b, now)
	ahead := queued(b, now, h, ask)
	room := b.Maximum - leased(b, "") // what Level can reach while the leases stand
	need := ask.Need
	// The brim caps the threshold: headroom that the bucket cannot hold must not lock a lane out for ever.
	threshold := max(need, min(need+headroom[ask.Lane]*b.Maximum, room))
	if ahead || b.Level < threshold {
		b.Leases[waiter(h.Name, ask)] = work.BucketLease{Until: now.Add(waiterTTL)}
		h.renew(b, now, ask.TTL)
		return 0, untilLevel(b, threshold)
	}
	granted = need
	if spare := b.Level - threshold; spare > 0 && ask.Slice > need {
		granted += min(ask.Slice-need, spare)
	}
	b.Level -= granted
	h.Free += granted
	delete(b.Leases, waiter(h.Name, ask))
	h.renew(b, now, ask.TTL)
	return granted, 0
}

// Observe brings an answer's throttleStatus into the model. It lowers the level to what the answer leaves after
// everything that is leased, and raises it only when nothing else is outstanding: with other requests in flight the
// report may or may not hold them already.
func Observe(b *work.Bucket, now time.Time, h *Holder, r Reported, ttl time.Duration) {
	Refill(b, now)
	if r.Maximum > 0 {
		b.Maximum = r.Maximum
	}
	if r.Restore > 0 {
		b.Restore = r.Restore
	}
	others := leased(b, h.Name)
	level := r.Available - others - h.Free - h.InFlight
	if level < 0 && h.Free > 0 {
		// Another app drinks from the bucket too: what was leased is not there any more.
		cut := min(h.Free, -level)
		h.Free -= cut
		level += cut
	}
	if others > 0 || h.InFlight > 0 {
		level = min(level, b.Level)
	}
	h.renew(b, now, ttl)
	b.Level = max(min(level, b.Maximum-leased(b, "")), -b.Maximum)
}

// Return gives unspent points back. The holder's lease stays only for what is in flight.
func Return(b *work.Bucket, now time.Time, h *Holder, ttl time.Duration) {
	Refill(b, now)
	free := h.Free
	h.Free = 0
	h.renew(b, now, ttl)
	b.Level = min(b.Level+free, max(b.Level, b.Maximum-leased(b, "")))
}

// Refill moves the model to now: restores points, drops leases that have ended and sets up a bucket that nobody has
// used yet.
func Refill(b *work.Bucket, now time.Time) {
	if b.Leases == nil {
		b.Leases = map[string]work.BucketLease{}
	}
	if b.Maximum == 0 {
		b.Maximum, b.Restore = firstMaximum, firstRestore
		b.Level, b.At = b.Maximum-leased(b, ""), now
	}
	// The clock of the state can step back (a restore, another primary): no points for that.
	if dt := now.Sub(b.At).Seconds(); dt > 0 {
		b.Level = min(b.Level+dt*b.Restore, max(b.Level, b.Maximum-leased(b, "")))
	}
	b.At = now
	maps.DeleteFunc(b.Leases, func(_ string, l work.BucketLease) bool { return !l.Until.After(now) })
}

func (h *Holder) renew(b *work.Bucket, now time.Time, ttl time.Duration) {
	if h.Free+h.InFlight <= 0 {
		delete(b.Leases, h.Name)
		return
	}
	b.Leases[h.Name] = work.BucketLease{Points: h.Free + h.InFlight, Until: now.Add(ttl)}
}

// leased sums what all holders but one hold.
func leased(b *work.Bucket, but string) float64 {
	sum := 0.0
	for name, l := range b.Leases {
		if name != but {
			sum += l.Points
		}
	}
	return sum
}

// waiterTTL is how long a place in the queue is kept without being asked for again. It is longer than the longest
// wait between two asks.
const (
	waiterTTL = 3 * time.Second
	maxWait   = time.Second
	minWait   = 10 * time.Millisecond
)

const waiterPrefix = "wait/"

// waiter names a place in the queue; names sort by lane, then age.
func waiter(holder string, ask Ask) string {
	return fmt.Sprintf("%s%d/%020d/%s", waiterPrefix, ask.Lane, ask.Since.UnixNano(), holder)
}

// queued reports whether somebody else of the same or a higher lane waits longer.
func queued(b *work.Bucket, now time.Time, h *Holder, ask Ask) bool {
	mine := waiter(h.Name, ask)
	for _, name := range slices.Sorted(maps.Keys(b.Leases)) {
		if !strings.HasPrefix(name, waiterPrefix) || !b.Leases[name].Until.After(now) {
			continue
		}
		if name >= mine {
			return false
		}
		if !strings.HasSuffix(name, "/"+h.Name) { // one's own older asks have been served or given up
			return true
		}
	}
	return false
}

// Waiting returns how many requests wait in the queue, by lane.
func Waiting(b *work.Bucket) map[work.Lane]int {
	out := map[work.Lane]int{}
	for name := range b.Leases {
		rest, ok := strings.CutPrefix(name, waiterPrefix)
		if !ok {
			continue
		}
		lane, _, _ := strings.Cut(rest, "/")
		if n, err := strconv.Atoi(lane); err == nil {
			out[work.Lane(n)]++
		}
	}
	return out
}

// untilLevel is how long the bucket takes to restore to a level, within what a waiter may sleep.
func untilLevel(b *work.Bucket, level float64) time.Duration {
	if b.Restore <= 0 {
		return maxWait
	}
	wait := time.Duration((level - b.Level) / b.Restore * float64(time.Second))
	return min(max(wait, minWait), maxWait)
}
