package pipeline

import (
	"sync"
	"time"

	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// A shop is dead by silence when no request to it has been answered for silentFor, there were silentRequests of them,
// and they were not all about one product: a single request or product that goes wrong says nothing of the shop, and
// neither do several requests at the same moment.
const (
	silentFor      = 30 * time.Second
	silentRequests = 3
)

// attemptsAlone are the attempts that count whatever the shop does to others: they are what makes a product wait longer
// each time, up to some 4 minutes.
const attemptsAlone = 6

// silences keeps, by shop, since when it has answered nothing to this worker.
type silences struct {
	mu sync.Mutex
	of map[string]silence
}

// silence is a run of requests without an answer. The zero value is none.
type silence struct {
	since    time.Time
	requests int
	product  string // the last one
	many     bool   // there were others
}

// after is what a silence becomes by a group of results: an answer of any kind ends it, a request without one
// prolongs it, and what was never sent says nothing.
func (s silence) after(now time.Time, results []work.Result) silence {
	unanswered := false
	for i := range results {
		r := &results[i]
		switch {
		case r.Reason == reasonUnsent:
		case isSilent(r):
			unanswered = true
			s.many = s.many || s.product != "" && s.product != r.ProductID
			s.product = r.ProductID
		case r.Category == event.Unknown && r.Status == event.Retrying: // not known to be an answer of the shop
		default:
			return silence{}
		}
	}
	if !unanswered {
		return s
	}
	if s.requests == 0 {
		s.since = now
	}
	s.requests++
	return s
}

func (s silence) dead(now time.Time) bool {
	return s.many && s.requests >= silentRequests && now.Sub(s.since) >= silentFor
}

// isSilent reports whether the shop has not answered at all: not reached, no answer in time, connection broken.
func isSilent(r *work.Result) bool {
	return r.Category == event.Network && r.Status == event.Retrying && r.Reason != reasonUnsent
}

func (l *silences) hear(shop string, now time.Time, results []work.Result) silence {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.of == nil {
		l.of = map[string]silence{}
	}
	s := l.of[shop].after(now, results)
	if s == (silence{}) {
		delete(l.of, shop)
	} else {
		l.of[shop] = s
	}
	return s
}

// judgeSilence says of unanswered results whether their shop is dead, and lets an attempt count only while the shop
// answers others: 24 hours of a shop that is away fail no product.
func (p *Push) judgeSilence(shop string, jobs []*job, results []work.Result) {
	now := time.Now()
	s := p.silences.hear(shop, now, results)
	dead := s.dead(now) || !p.health.get(shop).DeadSince.IsZero()
	for i, j := range jobs {
		r := &results[i]
		switch {
		case !isSilent(r):
		case dead:
			r.ShopDead, r.Counts = true, false
		case s.requests > 1 && j.push.Known.Attempt >= attemptsAlone:
			r.Counts = false
		}
	}
}
