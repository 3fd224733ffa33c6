package pipeline

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shelfwire/shelfwire/pipeline/debounce"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// recordReader reads explicit partitions of one topic; connectors/kafka implements it.
type recordReader interface {
	// Add begins to read a partition at an offset, Remove ends it: no record of it is returned afterwards.
	Add(partition int32, offset int64)
	Remove(partition int32)
	// Poll returns what has come, at most n records, and waits while nothing has.
	Poll(ctx context.Context, n int) ([]event.Record, error)
}

// documentSource reads what the shops shall have.
type documentSource interface {
	// Documents reads the current documents of all these products in one snapshot.
	Documents(ctx context.Context, products []change.ProductID) ([]document.Row, change.Snapshot, time.Time, error)
}

// pushStore is the state as a push reads it.
type pushStore interface {
	// Load returns what is known of the products before their read begins.
	Load(ctx context.Context, products []string) (work.Loaded, error)
	// Pull returns due parked products; it claims nothing.
	Pull(ctx context.Context, partitions []int32, excludeShops []string, n int) ([]work.Parked, error)
	// Guard tells which of these effects must be held.
	Guard(ctx context.Context, shop string, reqs []work.GuardRequest, limits work.GuardLimits) (map[work.GuardRequest]bool, error)
}

// fencedStore is the state as a push writes it. Every write is rolled back with [work.ErrLeaseLost] unless its
// fences hold.
type fencedStore interface {
	TakeIn(ctx context.Context, t work.TakeIn) error
	Intend(ctx context.Context, fences []work.Fence, intents []work.Intent) error
	Settle(ctx context.Context, s work.Settlement) error
}

// shopStore knows which shops take nothing at the moment.
type shopStore interface {
	Shops(ctx context.Context) ([]work.ShopHealth, error)
	SetShopDead(ctx context.Context, shop, reason string, dead bool, nextProbe time.Time) error
}

// shopSender plans and sends; sinks/shopify implements it.
type shopSender interface {
	Plan(p work.Push) work.Plan
	// Send carries plans of one shop out and returns one result a plan, in order. It calls intend before each
	// request that writes, and does not send when that returns an error.
	Send(ctx context.Context, shop string, plans []work.Plan, intend func(context.Context, []work.Intent) error) []work.Result
}

// PushConfig configures a push worker.
type PushConfig struct {
	Lease LeaseConfig
	// Prefix is put before the topics' names.
	Prefix string
	// Partitions of catalog.changes.
	Partitions int32
	// Debounce: quiet 500 ms and max wait 5 s by default. A longer quiet coalesces more changes into one push and
	// delays each by as much.
	Debounce debounce.Config
	// RequestTimeout bounds one request to a shop. No request is sent by a lease that ends sooner. Default 15 s.
	RequestTimeout time.Duration
	// Round is how many due products share one documents query at the most. Default 250.
	Round int
	// Hot is how many products may wait or fly in memory; beyond that, reading pauses. Default 50,000.
	Hot int
	// Flying is how many products may be on their way to shops at once. Default 2,000.
	Flying int
	// FlyingPerShop is how many products of one shop may be on their way at once; more are parked, so that one slow
	// shop holds nothing that another needs. Default 250.
	FlyingPerShop int
	// NotYetVisible is how long a product waits in memory for its transaction to become visible before it is parked.
	// Default 5 s.
	NotYetVisible time.Duration
	// LateRequest is how long a request may still reach a shop after its answer was given up. Default 2 min.
	LateRequest time.Duration
	// Group is how many products of a shop are sent and settled together. More share requests and round trips; fewer
	// are settled sooner, and fewer must be read again after a crash. Default 50.
	Group int
	// Drain bounds how long a stop or a hand-over waits for what is on its way. Default 20 s.
	Drain time.Duration
	// Guard holds what would take too much off sale at once.
	Guard work.GuardLimits
}

func (c PushConfig) withDefaults() PushConfig {
	c.Lease = c.Lease.withDefaults()
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	num := func(n *int, v int) {
		if *n == 0 {
			*n = v
		}
	}
	if c.Debounce == (debounce.Config{}) {
		c.Debounce = debounce.Config{Quiet: 500 * time.Millisecond, MaxWait: 5 * time.Second}
	}
	set(&c.RequestTimeout, 15*time.Second)
	set(&c.NotYetVisible, 5*time.Second)
	set(&c.LateRequest, 2*time.Minute)
	set(&c.Drain, 20*time.Second)
	set(&c.Guard.Window, 10*time.Minute)
	num(&c.Round, 250)
	num(&c.Hot, 50_000)
	num(&c.Flying, 2_000)
	num(&c.FlyingPerShop, 250)
	num(&c.Group, 50)
	num(&c.Guard.Floor, 50)
	if c.Guard.Share == 0 {
		c.Guard.Share = 0.20
	}
	return c
}

// PushParts are what a push worker works with.
type PushParts struct {
	Leases    leaseStore
	Reader    recordReader
	Documents documentSource
	State     pushStore
	Fenced    fencedStore
	Shops     shopStore
	Sender    shopSender
	Log       *slog.Logger
}

// Push takes changes from Kafka into the debounce window of their product, reads the documents of what is due, and
// makes the shops equal to them. One product is pushed by one worker at a time: the holder of its partition's lease.
type Push struct {
	cfg   PushConfig
	parts PushParts
	log   *slog.Logger
	stats PushStats

	// All below belongs to the loop goroutine.
	owned   map[int32]*ownedPartition
	window  *debounce.Window[change.ProductID]
	hot     map[change.ProductID]*entry
	flying  map[change.ProductID]struct{}
	blocked map[change.ProductID]struct{} // due, but still flying

	updates chan []heldLease
	records chan []event.Record
	landed  chan []landing
	pulled  chan []work.Parked
	pulling bool
	saved   chan []moved
	saving  bool
	health  healthMap
	busy    shopLoad
	holds   holdNews
	rounds  sync.WaitGroup
	slow    chan struct{} // holds one while a product is read alone

	stopBy  time.Time // the drain deadline, once the worker stops
	drained bool      // nothing was left in flight then
	ahead   readAhead
}

// NewPush returns a worker that does nothing until Run.
func NewPush(cfg PushConfig, parts PushParts) *Push {
	cfg = cfg.withDefaults()
	return &Push{
		cfg: cfg, parts: parts, log: parts.Log.With("stage", "push"),
		owned:   map[int32]*ownedPartition{},
		window:  debounce.New[change.ProductID](cfg.Debounce),
		hot:     map[change.ProductID]*entry{},
		flying:  map[change.ProductID]struct{}{},
		blocked: map[change.ProductID]struct{}{},
		updates: make(chan []heldLease),
		records: make(chan []event.Record),
		landed:  make(chan []landing, 64),
		pulled:  make(chan []work.Parked),
		saved:   make(chan []moved),
		slow:    make(chan struct{}, 1),
		busy:    shopLoad{n: map[string]int{}},
	}
}

// Run works until ctx ends, then stops in two steps: nothing new is taken, what is on its way is settled, and the
// leases are given back. It returns an error only when the worker cannot go on at all.
func (p *Push) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	keeper := &leaseKeeper{
		store: p.parts.Leases, stage: work.StagePush, partitions: p.cfg.Partitions, cfg: p.cfg.Lease, log: p.log,
	}
	g.Go(func() error { return keeper.run(ctx, p.updates) })
	g.Go(func() error { return deliver(ctx, p.log, p.parts.Reader, 5000, p.records) })
	g.Go(func() error { return p.watchShops(ctx) })
	g.Go(func() error { return p.loop(ctx) })
	err := g.Wait()
	if !p.drained { // the next owner waits for the leases' end, and finds the intents
		return err
	}
	release, cancel := context.WithDeadline(context.WithoutCancel(ctx), p.stopBy)
	defer cancel()
	keeper.release(release)
	return err
}

// loop is the only goroutine that knows what waits and what flies.
func (p *Push) loop(ctx context.Context) error {
	pull := time.NewTicker(100 * time.Millisecond)
	defer pull.Stop()
	save := time.NewTicker(time.Second)
	defer save.Stop()
	for {
		records := p.records
		if len(p.hot)+len(p.flying) >= p.cfg.Hot || p.open() >= openPerHot*p.cfg.Hot {
			records = nil
		}
		due, stop := p.timer()
		select {
		case held := <-p.updates:
			p.assign(ctx, held)
		case recs := <-records:
			p.take(ctx, recs)
		case ls := <-p.landed:
			p.land(ls)
		case rows := <-p.pulled:
			p.pulling = false
			p.unpark(rows)
		case <-pull.C:
			p.pull(ctx)
		case <-save.C:
			p.savePositions(ctx)
		case ms := <-p.saved:
			p.saving = false
			for _, m := range ms {
				m.owner.saved = m.safe
			}
		case <-due:
		case <-ctx.Done():
			stop()
			p.stopBy = time.Now().Add(p.cfg.Drain)
			p.drained = p.drain(ctx)
			return nil
		}
		stop()
		p.start(ctx)
		p.handOver(ctx)
		p.gauge()
	}
}

// openPerHot bounds the records behind one position, for each product that may wait: a few products that change all
// the time while they cannot be pushed would collect offsets without end.
const openPerHot = 20

func (p *Push) open() (n int) {
	for _, o := range p.owned {
		n += o.open()
	}
	return n
}

// timer fires when the next product is due and may fly.
func (p *Push) timer() (due <-chan time.Time, stop func()) {
	next, ok := p.window.Next()
	if !ok || len(p.flying) >= p.cfg.Flying {
		return nil, func() {}
	}
	t := time.NewTimer(time.Until(next))
	return t.C, func() { t.Stop() }
}

// start sends due products on their way, a round at a time.
func (p *Push) start(ctx context.Context) {
	now := time.Now()
	for room := p.cfg.Flying - len(p.flying); room > 0; room = p.cfg.Flying - len(p.flying) {
		due := p.window.Due(now, min(room, p.cfg.Round))
		if len(due) == 0 {
			return
		}
		var entries []*entry
		for _, id := range due {
			e := p.hot[id]
			if _, flies := p.flying[id]; flies {
				p.blocked[id] = struct{}{} // one worker, one push at a time
				continue
			}
			o := p.owned[e.partition]
			if o == nil || o.draining {
				p.forget(id) // the next owner reads it again
				continue
			}
			if !o.usable(now, p.cfg.RequestTimeout) { // renewed in time, it is still ours, and nobody reads it again
				p.window.Delay(id, now, now.Add(again))
				continue
			}
			e.due, e.owner = now, o
			o.flying++
			p.flying[id] = struct{}{}
			delete(p.hot, id)
			entries = append(entries, e)
		}
		if len(entries) > 0 {
			p.fly(ctx, entries)
		}
	}
}

// fly starts a round in a goroutine of its own; drain waits for all of them.
func (p *Push) fly(ctx context.Context, entries []*entry) {
	p.stats.Rounds.Add(1)
	fences := map[int32]*ownedPartition{}
	for _, e := range entries {
		fences[e.partition] = p.owned[e.partition]
	}
	r := &round{p: p, owned: fences, stop: ctx}
	p.rounds.Go(func() {
		// A stop does not cut what is on its way: answers are awaited and settled. It ends only the waiting for points.
		p.landed <- r.run(context.WithoutCancel(ctx), entries)
	})
}

// land books what a round has become.
func (p *Push) land(ls []landing) {
	now := time.Now()
	for _, l := range ls {
		id := l.entry.product
		delete(p.flying, id)
		o := l.entry.owner
		o.flying--
		switch {
		case !l.again:
		case o.draining, p.owned[l.entry.partition] != o: // it is read again from the position, under another lease
		case p.hot[id] != nil:
			p.hot[id].absorb(l.entry)
			p.window.Delay(id, now, now.Add(l.after))
		default:
			p.hot[id] = l.entry
			p.window.Delay(id, now, now.Add(l.after))
		}
		if _, ok := p.blocked[id]; ok {
			delete(p.blocked, id)
			if p.hot[id] != nil {
				p.window.Hurry(id, now, now)
			}
		}
	}
}

// drain lets what is on its way land, and reports whether it did before the drain deadline.
func (p *Push) drain(ctx context.Context) bool {
	ctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), p.stopBy)
	defer cancel()
	done := make(chan struct{})
	go func() { p.rounds.Wait(); close(done) }()
	for waiting := true; waiting; {
		select {
		case ls := <-p.landed:
			p.land(ls)
		case <-done:
			waiting = false
		case <-ctx.Done():
			p.log.WarnContext(ctx, "drain deadline passed; the next owner finds the intents", "flying", len(p.flying))
			return false
		}
	}
	// It is not owed, as positions are read again: a stop does not wait for a state that is away.
	save, cancelSave := context.WithTimeout(ctx, leaseStop)
	defer cancelSave()
	if ms := p.moved(); len(ms) > 0 {
		p.save(save, ms)
	}
	for part := range p.owned {
		p.parts.Reader.Remove(part)
	}
	return true
}
