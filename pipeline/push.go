package pipeline

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shelfwire/shelfwire/pipeline/debounce"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// Push takes changes from Kafka into the debounce window of their product, reads the documents of what is due, and
// makes the shops equal to them. One product is pushed by one worker at a time: the holder of its partition's lease.
//
// A product passes four hands, and none of them waits for the next one's slowest: the loop, which alone knows what
// waits and what flies; a few readers, which turn due products into jobs for shops; a line for each shop, which sends
// them; one settler, which writes what became of them and lets each product land as soon as its own jobs are settled.
type Push struct {
	cfg   PushConfig
	parts PushParts
	log   *slog.Logger
	stats PushStats

	// All below belongs to the loop goroutine.
	owned    map[int32]*ownedPartition
	released map[int32]int64 // the epochs in which partitions were handed over: a renewal may still tell of them
	windows  [classes]*debounceWindow
	hot      map[change.ProductID]*entry
	flying   map[change.ProductID]struct{}
	blocked  map[change.ProductID]struct{} // due, but still flying
	readers  readerSlots
	pause    readPause // of readers; pullPause is of pulls
	ahead    readAhead
	taking   bool // records are being taken in
	pulling  bool

	pullPause readPause // while the state does not answer

	more    bool // the last pull has brought most of what it asked for
	asked   int  // of those that wait for all their shops, by the last pull
	cursor  work.PullCursor
	saving  bool
	stopBy  time.Time // the drain deadline, once the worker stops
	drained bool      // nothing was left in flight then

	updates chan []heldLease
	records chan []event.Record
	takenIn chan *intake
	landed  chan []landing
	reading chan readerNews
	pulled  chan pullNews
	saved   chan []moved
	handed  chan handedOver

	health   healthMap
	pauses   atomic.Pointer[work.Pauses]
	silences silences
	troubles troubles
	holds    holdNews
	lines    lines
	hints    hints
	content  map[string]bool // tables whose changes go in the lane of content
	finished chan finished   // on their way to the settler
	rounds   sync.WaitGroup
	slow     chan struct{} // holds one while a product is read alone

	// life is what everything lives by that a stop does not cut: it ends at the drain deadline, or when all has landed.
	life context.Context //nolint:containedctx // one for the worker, made by Run; stages of a push outlive the call that began them
}

// NewPush returns a worker that does nothing until Run.
func NewPush(cfg PushConfig, parts PushParts) *Push {
	cfg = cfg.withDefaults()
	p := &Push{
		cfg: cfg, parts: parts, log: parts.Log.With("stage", "push"),
		owned:    map[int32]*ownedPartition{},
		released: map[int32]int64{},
		hot:      map[change.ProductID]*entry{},
		flying:   map[change.ProductID]struct{}{},
		blocked:  map[change.ProductID]struct{}{},
		updates:  make(chan []heldLease),
		records:  make(chan []event.Record),
		takenIn:  make(chan *intake),
		landed:   make(chan []landing, 64),
		reading:  make(chan readerNews),
		pulled:   make(chan pullNews),
		saved:    make(chan []moved),
		handed:   make(chan handedOver),
		finished: make(chan finished, 64),
		slow:     make(chan struct{}, 1),
		lines:    newLines(cfg.Flying, cfg.FlyingPerShop),
		hints:    newHints(),
		content:  map[string]bool{},
	}
	for _, table := range cfg.ContentTables {
		p.content[table] = true
	}
	p.windows[classLive] = debounce.New[change.ProductID, shopSet]()
	p.windows[classCampaign] = debounce.New[change.ProductID, shopSet]() // hurried only: it has waited in the state
	return p
}

// Run works until ctx ends, then stops in two steps: nothing new is taken, what is on its way is settled, and the
// leases are given back. It returns an error only when the worker cannot go on at all. When the drain deadline passes,
// it returns at once, and what still waits for a service gives up by itself.
func (p *Push) Run(ctx context.Context) error {
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	p.life = life
	g, ctx := errgroup.WithContext(ctx)
	keeper := &leaseKeeper{
		store: p.parts.Leases, stage: work.StagePush, partitions: p.cfg.Partitions, cfg: p.cfg.Lease, log: p.log,
	}
	g.Go(func() error { return keeper.run(ctx, p.updates) })
	g.Go(func() error { return deliver(ctx, p.log, p.parts.Reader, 5000, p.records) })
	g.Go(func() error { return p.watchShops(ctx) })
	g.Go(func() error { return p.loop(ctx) })
	settled := make(chan struct{})
	go func() { p.settleAll(); close(settled) }()
	err := g.Wait()
	end()
	if !p.drained { // the next owner waits for the leases' end, and finds the intents
		return err
	}
	<-settled
	release, cancel := context.WithDeadline(context.WithoutCancel(ctx), p.stopBy)
	defer cancel()
	keeper.release(release)
	return err
}

// loop is the only goroutine that knows what waits and what flies. It waits for no service: whatever asks one does so
// in a goroutine of its own and tells the loop when it is done.
func (p *Push) loop(ctx context.Context) error {
	pull := time.NewTicker(100 * time.Millisecond)
	defer pull.Stop()
	save := time.NewTicker(time.Second)
	defer save.Stop()
	for {
		records := p.records
		if p.taking || len(p.hot)+len(p.flying) >= p.cfg.Hot || p.open() >= openPerHot*p.cfg.Hot {
			records = nil
		}
		due, stop := p.timer()
		select {
		case held := <-p.updates:
			p.assign(ctx, held)
		case recs := <-records:
			p.take(ctx, recs)
		case in := <-p.takenIn:
			p.taken(in)
		case ls := <-p.landed:
			p.land(ls)
		case news := <-p.reading:
			p.readers.hear(news)
			if news.over {
				p.pause.hear(time.Now(), news.failed)
			}
		case got := <-p.pulled:
			p.pulling = false
			if p.pullPause.hear(time.Now(), got.failed); !got.failed {
				p.cursor = got.Next
				p.unpark(got.Parked)
			}
		case <-pull.C:
			p.windows[classLive].Unblock()
			p.pull(ctx)
		case <-save.C:
			p.savePositions(ctx)
		case ms := <-p.saved:
			p.saving = false
			for _, m := range ms {
				m.owner.saved = m.safe
			}
		case h := <-p.handed:
			p.forgetOwner(h)
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

// timer fires when the next product is due and may be read, or a hand-over can wait no longer.
func (p *Push) timer() (due <-chan time.Time, stop func()) {
	var next time.Time
	sooner := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	for c := range classes {
		if t, ok := p.windows[c].Next(); ok && p.readers.free(c) {
			if t.Before(p.pause.until) {
				t = p.pause.until
			}
			sooner(t)
		}
	}
	for _, o := range p.owned {
		if o.draining && !o.handing {
			sooner(o.drainBy)
		}
	}
	if next.IsZero() {
		return nil, func() {}
	}
	t := time.NewTimer(time.Until(next))
	return t.C, func() { t.Stop() }
}

// start hands due products to the readers that are free. While all of them are busy, due products gather: that is what
// makes one read of many.
func (p *Push) start(ctx context.Context) {
	now := time.Now()
	if now.Before(p.pause.until) {
		return
	}
	room := [classes]func(shopSet, time.Time) int{
		classLive: func(set shopSet, since time.Time) int { return p.room(now, set, since) },
	}
	for c := range classes {
		for p.readers.free(c) {
			due := p.windows[c].Due(now, p.cfg.Round, room[c])
			if len(due) == 0 {
				break
			}
			if entries := p.leave(c, due, now); len(entries) > 0 {
				p.fly(ctx, c, entries)
			}
			// What comes next is fetched while half of the last is still to be read.
			if c == classCampaign && p.more && 2*p.windows[c].Len() <= pullRounds*p.cfg.Round {
				p.pull(ctx)
			}
		}
	}
}

// leave takes due products out of memory and returns those that may fly now.
func (p *Push) leave(c class, due []change.ProductID, now time.Time) (entries []*entry) {
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
			p.windows[c].Delay(id, p.setOf(e), now.Add(again))
			continue
		}
		if c == classLive {
			p.reserve(e)
		}
		e.due, e.owner = now, o
		o.flying++
		p.flying[id] = struct{}{}
		delete(p.hot, id)
		entries = append(entries, e)
	}
	return entries
}

// fly starts a reader; drain waits for it and for all that comes of it.
func (p *Push) fly(ctx context.Context, c class, entries []*entry) {
	p.stats.Rounds.Add(1)
	slot := p.readers.begin(c)
	p.rounds.Go(func() {
		long := time.AfterFunc(readerPatience, func() { p.hearReader(readerNews{slot: slot}) })
		r := &reading{p: p, stop: ctx}
		// A stop does not cut what is on its way: answers are awaited and settled. It ends only the waiting for points.
		failed := r.run(p.life, entries)
		long.Stop()
		p.hearReader(readerNews{slot: slot, over: true, failed: failed})
	})
}

func (p *Push) hearReader(news readerNews) {
	select {
	case p.reading <- news:
	case <-p.life.Done():
	}
}

// tell reports landings to the loop.
func (p *Push) tell(ls []landing) {
	if len(ls) == 0 {
		return
	}
	select {
	case p.landed <- ls:
	case <-p.life.Done():
	}
}

// land books what flights have become.
func (p *Push) land(ls []landing) {
	now := time.Now()
	p.windows[classLive].Unblock() // places have come free
	for _, l := range ls {
		id := l.entry.product
		delete(p.flying, id)
		o := l.entry.owner
		o.flying--
		switch {
		case !l.again:
			p.lines.leaveAll(l.entry) // it needed none of the places that were kept for it
		case o.draining, p.owned[l.entry.partition] != o: // it is read again from the position, under another lease
			p.lines.leaveAll(l.entry)
		default:
			l.entry.pause(p, now, l.after)
		}
		if _, ok := p.blocked[id]; ok {
			delete(p.blocked, id)
			if e := p.hot[id]; e != nil {
				p.windows[e.class()].Hurry(id, p.setOf(e), now)
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
	for waiting := done; waiting != nil || len(p.flying) > 0; {
		select {
		case ls := <-p.landed:
			p.land(ls)
		case <-p.reading:
		case h := <-p.handed:
			p.forgetOwner(h)
		case <-waiting:
			waiting = nil
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
