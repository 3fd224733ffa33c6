package shopifysim

import (
	"fmt"
	"math"
	"time"
)

// Plan decides a shop's rate limit.
type Plan string

// Plans and what they restore in points a second; the bucket holds twenty seconds' worth.
const (
	Standard   Plan = "standard"   // 100/s, 2,000
	Advanced   Plan = "advanced"   // 200/s, 4,000
	Plus       Plan = "plus"       // 1,000/s, 20,000
	Enterprise Plan = "enterprise" // 2,000/s, 40,000
)

// bucketSeconds is how many seconds of restoring a full bucket holds.
const bucketSeconds = 20

// restoreRate returns points a second; an unknown plan is a standard one.
func (p Plan) restoreRate() float64 {
	switch p {
	case Advanced:
		return 200
	case Plus:
		return 1000
	case Enterprise:
		return 2000
	default:
		return 100
	}
}

// bucket is Shopify's leaky bucket of one app in one shop. The zero value is empty; use newBucket.
type bucket struct {
	level, max, rate float64
	at               time.Time
}

func newBucket(plan Plan, now time.Time) *bucket {
	rate := plan.restoreRate()
	return &bucket{level: rate * bucketSeconds, max: rate * bucketSeconds, rate: rate, at: now}
}

// restore lets the time until now flow in. A clock that goes back restores nothing.
func (b *bucket) restore(now time.Time) {
	if d := now.Sub(b.at); d > 0 {
		b.level = math.Min(b.max, b.level+d.Seconds()*b.rate)
		b.at = now
	}
}

// take reserves points; false, and nothing taken, where they are not there.
func (b *bucket) take(points float64, now time.Time) bool {
	b.restore(now)
	if points > b.level {
		return false
	}
	b.level -= points
	return true
}

// refund gives back what a request reserved and did not use.
func (b *bucket) refund(points float64) { b.level = math.Min(b.max, b.level+points) }

// setRate changes the restore rate, as Shopify does under load; the bucket shrinks or grows with it.
func (b *bucket) setRate(rate float64, now time.Time) {
	b.restore(now)
	b.rate, b.max = rate, rate*bucketSeconds
	b.level = math.Min(b.level, b.max)
}

// status renders throttleStatus.
func (b *bucket) status() map[string]any {
	return map[string]any{
		"maximumAvailable": b.max, "currentlyAvailable": math.Floor(b.level), "restoreRate": b.rate,
	}
}

// ParsePlan reads a plan's name; empty is Standard.
func ParsePlan(name string) (Plan, error) {
	switch p := Plan(name); p {
	case "":
		return Standard, nil
	case Standard, Advanced, Plus, Enterprise:
		return p, nil
	default:
		return "", fmt.Errorf("plan %q is none of %s, %s, %s, %s", name, Standard, Advanced, Plus, Enterprise)
	}
}
