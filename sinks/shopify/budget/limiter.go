package budget

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/shelfwire/shelfwire/schemas/work"
)

// Store keeps the bucket of each shop for all processes. UpdateBucket runs f on the shop's bucket with the state's
// clock and writes it back, alone; f may run more than once, and only its last run counts.
type Store interface {
	UpdateBucket(ctx context.Context, shop string, f func(now time.Time, b *work.Bucket)) error
}

// ErrTooDear says that a request costs more than the shop's whole bucket: it can never be sent.
var ErrTooDear = errors.New("the request costs more points than the shop's bucket holds")

// Config configures a Limiter.
type Config struct {
	// Shop is the shop's name, by which the store keeps its bucket.
	Shop string
	// Holder names this process, uniquely among all that share the store.
	Holder string
	// Store keeps the bucket.
	Store Store
	// TTL is how long a lease outlives its last renewal: the time for which a killed process keeps its points from
	// the others. It must be twice a request's timeout. Default 30 s.
	TTL time.Duration
	// Idle is after how long without a request unspent points are given back (see ReturnIdle). Default 1 s.
	Idle time.Duration
}

// Limiter hands out one shop's points to the goroutines of one process. It is safe for concurrent use.
type Limiter struct {
	cfg Config

	mu      sync.Mutex
	holder  Holder
	until   time.Time // local clock; when the lease ends unless renewed
	queue   []*turn   // by lane, then arrival
	seen    work.Bucket
	report  *Reported // newest, not yet in the store
	lastUse time.Time
	// ask serialises updates of the store: two at a time would both write the holder's lease.
	ask chan struct{}
}

// turn is one goroutine's place in the queue.
type turn struct {
	lane  work.Lane
	cost  float64
	since time.Time
	kick  chan struct{} // told when the queue before it has changed
}

// NewLimiter returns a limiter that holds nothing yet.
func NewLimiter(cfg Config) *Limiter {
	if cfg.TTL == 0 {
		cfg.TTL = 30 * time.Second
	}
	if cfg.Idle == 0 {
		cfg.Idle = time.Second
	}
	return &Limiter{cfg: cfg, holder: Holder{Name: cfg.Holder}, ask: make(chan struct{}, 1)}
}

// Acquire waits until cost points may be spent, first in first out within the lane. It fails when ctx ends, when the
// store does, or with ErrTooDear. Every Acquire that succeeds is followed by one Settle.
func (l *Limiter) Acquire(ctx context.Context, lane work.Lane, cost float64) error {
	t := &turn{lane: lane, cost: cost, since: time.Now(), kick: make(chan struct{}, 1)}
	l.enqueue(t)
	defer l.leave(t)
	for {
		if l.spend(t) {
			return nil
		}
		wait := maxWait
		if l.first(t) {
			var err error
			if wait, err = l.lease(ctx, t); err != nil {
				return fmt.Errorf("wait for %.0f points of shop %s: %w", cost, l.cfg.Shop, err)
			}
		}
		if wait == 0 {
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("wait for %.0f points of shop %s: %w", cost, l.cfg.Shop, ctx.Err())
		case <-t.kick:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// Settle ends what Acquire began: requested is what was acquired, actual what the shop charged (0 where it refused
// the request, requested where that is not known). r is the answer's throttleStatus, nil where there was none.
func (l *Limiter) Settle(ctx context.Context, requested, actual float64, r *Reported) error {
	l.mu.Lock()
	l.holder.InFlight = max(0, l.holder.InFlight-requested)
	l.holder.Free += max(0, requested-actual)
	l.lastUse = time.Now()
	urgent := false
	if r != nil {
		l.report = r
		// Shopify lowers rates without notice, and other apps share nothing but the shop: the others must know at once.
		urgent = r.Maximum != l.seen.Maximum || r.Restore != l.seen.Restore || r.Available < l.holder.Free+l.holder.InFlight
	}
	l.wake()
	l.mu.Unlock()
	if !urgent {
		return nil
	}
	return l.update(ctx, func(now time.Time, b *work.Bucket, h *Holder) {
		Observe(b, now, h, *r, l.cfg.TTL)
	})
}

// ReturnIdle gives unspent points back when nobody has used them for a while, so that another process can have them.
func (l *Limiter) ReturnIdle(ctx context.Context) error {
	l.mu.Lock()
	idle := l.holder.Free > 0 && len(l.queue) == 0 && time.Since(l.lastUse) >= l.cfg.Idle
	l.mu.Unlock()
	if !idle {
		return nil
	}
	return l.Return(ctx)
}

// Return gives all unspent points back.
func (l *Limiter) Return(ctx context.Context) error {
	// They leave this process first: nobody here may spend what the others are about to get. If the store fails, they
	// are lost until the lease ends.
	l.mu.Lock()
	free := l.holder.Free
	l.holder.Free = 0
	l.mu.Unlock()
	return l.update(ctx, func(now time.Time, b *work.Bucket, h *Holder) {
		kept := h.Free // leased meanwhile
		h.Free = free
		Return(b, now, h, l.cfg.TTL)
		h.Free = kept
		h.renew(b, now, l.cfg.TTL)
	})
}

// Bucket returns the bucket as this process saw it last.
func (l *Limiter) Bucket() work.Bucket {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seen
}

// lease asks the store for points for the turn at the head of the queue; zero wait means: granted.
func (l *Limiter) lease(ctx context.Context, t *turn) (time.Duration, error) {
	var wait time.Duration
	dear := false
	err := l.update(ctx, func(now time.Time, b *work.Bucket, h *Holder) {
		Refill(b, now)
		// A first guess of the maximum refuses nothing: only what the shop has reported does.
		if dear = t.cost > b.Maximum; dear {
			return
		}
		// A slice is what one second restores, and never so much that a few idle processes empty the bucket.
		slice := min(b.Restore, b.Maximum/10)
		need := t.cost - min(h.Free, t.cost)
		// Since is by the local clock; the skew between processes of one deployment is small against a wait.
		_, wait = Take(b, now, h, Ask{Lane: t.lane, Since: t.since, Need: need, Slice: slice, TTL: l.cfg.TTL})
	})
	if err != nil {
		return 0, err
	}
	if dear {
		return 0, ErrTooDear
	}
	return wait, nil
}

// update runs one change of the shared bucket with this process's holder, brings in the newest report, and takes the
// result over.
func (l *Limiter) update(ctx context.Context, f func(now time.Time, b *work.Bucket, h *Holder)) error {
	select {
	case l.ask <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-l.ask }()

	l.mu.Lock()
	l.expire()
	before, report := l.holder, l.report
	l.report = nil
	l.mu.Unlock()

	start := time.Now()
	var after Holder
	var seen work.Bucket
	err := l.cfg.Store.UpdateBucket(ctx, l.cfg.Shop, func(now time.Time, b *work.Bucket) {
		after = before
		if report != nil {
			Observe(b, now, &after, *report, l.cfg.TTL)
		}
		f(now, b, &after)
		seen = *b
		seen.Leases = nil
	})

	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		// Whether the store has written is not known. What was to be granted is not used: at worst it lies idle
		// until the lease is written again.
		return err
	}
	// Requests were sent and answered meanwhile: add the difference instead of overwriting.
	l.holder.Free = max(0, l.holder.Free+after.Free-before.Free)
	l.holder.InFlight = max(0, l.holder.InFlight+after.InFlight-before.InFlight)
	l.until = start.Add(l.cfg.TTL)
	l.seen = seen
	return nil
}

// expire voids unspent points whose lease has ended: others count on them by now. Called with mu held.
func (l *Limiter) expire() {
	if !time.Now().Before(l.until) {
		l.holder.Free = 0
	}
}

// spend takes the points for a turn that is first, when enough are leased. A lease is spent only in the first half of
// its life, so that the request has landed or timed out before the lease ends.
func (l *Limiter) spend(t *turn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.queue[0] != t || l.holder.Free < t.cost || !time.Now().Before(l.until.Add(-l.cfg.TTL/2)) {
		return false
	}
	l.holder.Free -= t.cost
	l.holder.InFlight += t.cost
	l.lastUse = time.Now()
	return true
}

func (l *Limiter) first(t *turn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.queue[0] == t
}

func (l *Limiter) enqueue(t *turn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := len(l.queue)
	for i, other := range l.queue {
		if t.lane < other.lane {
			at = i
			break
		}
	}
	l.queue = append(l.queue, nil)
	copy(l.queue[at+1:], l.queue[at:])
	l.queue[at] = t
}

func (l *Limiter) leave(t *turn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, other := range l.queue {
		if other == t {
			l.queue = append(l.queue[:i], l.queue[i+1:]...)
			break
		}
	}
	l.wake()
}

// wake tells the head of the queue to look again. Called with mu held.
func (l *Limiter) wake() {
	if len(l.queue) == 0 {
		return
	}
	select {
	case l.queue[0].kick <- struct{}{}:
	default: // it has been told already
	}
}
