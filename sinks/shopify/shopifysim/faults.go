package shopifysim

import (
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// FaultKind is a way in which a request can fail.
type FaultKind string

// The faults. Those that answer are answered before anything is executed, except where it says otherwise.
const (
	Healthy         FaultKind = ""
	Throttle        FaultKind = "throttle"         // THROTTLED although there are points
	ServerError     FaultKind = "server_error"     // HTTP 500
	BadGateway      FaultKind = "bad_gateway"      // HTTP 502
	Unavailable     FaultKind = "unavailable"      // HTTP 503
	GatewayTimeout  FaultKind = "gateway_timeout"  // HTTP 504, executed
	InternalError   FaultKind = "internal_error"   // 200 with INTERNAL_SERVER_ERROR, executed: the outcome is unknown
	InternalRefused FaultKind = "internal_refused" // 200 with INTERNAL_SERVER_ERROR, not executed
	LostResponse    FaultKind = "lost_response"    // executed, then the connection is cut
	LostRequest     FaultKind = "lost_request"     // the connection is cut, nothing executed
	Late            FaultKind = "late"             // the connection is cut; executed LateBy later
	Hang            FaultKind = "hang"             // no answer, nothing executed
	HangExecuted    FaultKind = "hang_executed"    // executed, no answer
	Garbage         FaultKind = "garbage"          // 200 with a body that is no JSON
	Truncated       FaultKind = "truncated"        // executed; the body ends in the middle
	Unauthorized    FaultKind = "unauthorized"     // HTTP 401
	PaymentRequired FaultKind = "payment_required" // HTTP 402
	Forbidden       FaultKind = "forbidden"        // HTTP 403
	NotFound        FaultKind = "not_found"        // HTTP 404
	Locked          FaultKind = "locked"           // HTTP 423
	TooMany         FaultKind = "too_many"         // HTTP 429 with Retry-After
	DailyVariants   FaultKind = "daily_variants"   // HTTP 429: no more variants today
	Redirect        FaultKind = "redirect"         // HTTP 302 to another host
)

// Faults are injected at random, each request drawing once from a generator of its own seed: rates are shares of all
// requests between 0 and 1, and their sum must not exceed 1.
type Faults struct {
	Seed             uint64
	ThrottleRate     float64
	ServerErrorRate  float64
	InternalRate     float64 // half of them executed
	LostResponseRate float64
	LostRequestRate  float64
	LateRate         float64
	HangRate         float64 // half of them executed
	GarbageRate      float64
	// LateBy is how long a Late request takes to land. Default 5 s.
	LateBy time.Duration
}

// Fault is one exact injection.
type Fault struct {
	// Kind is what happens.
	Kind FaultKind `json:"kind"`
	// Field restricts it to requests with this root field (a mutation's or query's name); empty matches all.
	Field string `json:"field"`
	// Count is how many matching requests it hits. Default 1.
	Count int `json:"count"`
	// Skip lets so many matching requests pass before.
	Skip int `json:"skip"`
}

// faultSource draws faults; safe for concurrent use. Which request gets which fault is repeatable only where the
// order of requests is.
type faultSource struct {
	cfg Faults
	mu  sync.Mutex
	rng *rand.Rand
}

func newFaultSource(cfg Faults) *faultSource {
	if cfg.LateBy == 0 {
		cfg.LateBy = 5 * time.Second
	}
	return &faultSource{cfg: cfg, rng: rand.New(rand.NewPCG(cfg.Seed, 0x5eed))}
}

// set replaces the rates and restarts the generator.
func (f *faultSource) set(cfg Faults) {
	n := newFaultSource(cfg)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cfg, f.rng = n.cfg, n.rng
}

func (f *faultSource) draw() FaultKind {
	f.mu.Lock()
	defer f.mu.Unlock()
	u, coin := f.rng.Float64(), f.rng.IntN(2) == 0
	for _, c := range []struct {
		rate      float64
		kind, alt FaultKind
	}{
		{f.cfg.ThrottleRate, Throttle, Throttle},
		{f.cfg.ServerErrorRate, ServerError, Unavailable},
		{f.cfg.InternalRate, InternalError, InternalRefused},
		{f.cfg.LostResponseRate, LostResponse, LostResponse},
		{f.cfg.LostRequestRate, LostRequest, LostRequest},
		{f.cfg.LateRate, Late, Late},
		{f.cfg.HangRate, Hang, HangExecuted},
		{f.cfg.GarbageRate, Garbage, Truncated},
	} {
		if u < c.rate {
			if coin {
				return c.alt
			}
			return c.kind
		}
		u -= c.rate
	}
	return Healthy
}

// latency draws an answer time.
func (f *faultSource) latency(l Latency) time.Duration {
	if l.Max <= l.Min {
		return l.Min
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return l.Min + time.Duration(f.rng.Int64N(int64(l.Max-l.Min)))
}

func (f *faultSource) lateBy() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cfg.LateBy
}

// SetFaults replaces the random faults of all shops.
func (sim *Simulator) SetFaults(f Faults) { sim.faults.set(f) }

// SetHealth makes every request to the shop fail in one way until it is set to Healthy.
func (s *Shop) SetHealth(kind FaultKind) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.health = kind
}

// Inject makes the next matching requests fail.
func (s *Shop) Inject(f Fault) {
	f.Count = max(f.Count, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next = append(s.next, &f)
}

// ClearInjected takes back what was injected and has hit nothing yet.
func (s *Shop) ClearInjected() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next = nil
}

// fault decides what happens to a request with these root fields.
func (s *Shop) fault(roots []string) FaultKind {
	s.mu.Lock()
	defer s.mu.Unlock()
	kind := s.health
	if kind == Healthy {
		kind = s.injected(roots)
	}
	if kind == Healthy {
		kind = s.sim.faults.draw()
	}
	if kind != Healthy {
		s.stats.Faulted++
	}
	return kind
}

// injected takes the first injection that matches.
func (s *Shop) injected(roots []string) FaultKind {
	for i, f := range s.next {
		if !matches(f.Field, roots) {
			continue
		}
		if f.Skip > 0 {
			f.Skip--
			continue
		}
		f.Count--
		if f.Count == 0 {
			s.next = append(s.next[:i:i], s.next[i+1:]...)
		}
		return f.Kind
	}
	return Healthy
}

func matches(field string, roots []string) bool {
	if field == "" {
		return true
	}
	return slices.Contains(roots, field)
}
