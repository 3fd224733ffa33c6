package pipeline

import (
	"context"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shelfwire/shelfwire/pipeline/debounce"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// DryRun shows what Push would send for the changes that come while it runs. It holds no lease and writes nothing, neither
// to a shop nor to the state nor to Kafka, so it can stand beside workers: what they have pushed already it plans as
// unchanged. It asks neither shops nor the guard.
type DryRun struct {
	push    *Push // never run: it reads and plans
	reader  recordReader
	from    map[int32]int64
	show    func(Shown)
	window  *debounceWindow
	waiting map[change.ProductID]*entry
}

// Shown is what one push would be.
type Shown struct {
	ProductID, Shop string
	// Changes is how many changes it stands for, FirstCommit when the first of them was committed.
	Changes     int
	FirstCommit time.Time
	// Words say what would be sent, and Points its requested cost. Both are empty where nothing would be: Status, Reason
	// and Message then say why.
	Words   string
	Points  int
	Effects []work.Effect
	Status  event.Status
	Reason  string
	Message string
}

// NewDryRun returns a dry run that begins at these offsets of catalog.changes. It takes Debounce, Round and Hot of the
// configuration, and Reader, Documents, Snapshot, State, Sender and Log of the parts. show is called by one goroutine.
func NewDryRun(cfg PushConfig, parts PushParts, from map[int32]int64, show func(Shown)) *DryRun {
	p := NewPush(cfg, parts)
	p.log = slog.New(slog.DiscardHandler) // troubles are told below, once
	return &DryRun{
		push: p, reader: parts.Reader, from: from, show: show,
		window: debounce.New[change.ProductID, shopSet](), waiting: map[change.ProductID]*entry{},
	}
}

// Run shows what is due until ctx ends.
func (d *DryRun) Run(ctx context.Context) error {
	for part, at := range d.from {
		d.reader.Add(part, at)
	}
	all := make(chan []event.Record)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return deliver(ctx, d.push.parts.Log, d.reader, 1000, all) })
	g.Go(func() error {
		for {
			records := all
			if len(d.waiting) >= d.push.cfg.Hot {
				records = nil
			}
			var due <-chan time.Time
			stop := func() bool { return true }
			if next, ok := d.window.Next(); ok {
				t := time.NewTimer(time.Until(next))
				due, stop = t.C, t.Stop
			}
			select {
			case recs := <-records:
				d.take(recs)
			case <-due:
				d.plan(ctx)
			case <-ctx.Done():
				stop()
				return nil
			}
			stop()
		}
	})
	return g.Wait()
}

// take lets products wait; a record that nobody can read is told by Push.
func (d *DryRun) take(recs []event.Record) {
	now := time.Now()
	for i := range recs {
		e, _, _, err := parseChange(&recs[i], d.push.content)
		if err != nil {
			continue
		}
		e.offsets = nil
		lane := e.lane
		d.wait(e)
		d.window.Touch(e.product, setUnknown, d.push.cfg.wait(lane), now)
	}
}

func (d *DryRun) wait(e *entry) {
	if h := d.waiting[e.product]; h != nil {
		h.absorb(e)
	} else {
		d.waiting[e.product] = e
	}
}

// plan reads and shows what is due. What cannot be read now, or not with its change, is read again.
func (d *DryRun) plan(ctx context.Context) {
	now := time.Now()
	var entries []*entry
	for _, id := range d.window.Due(now, d.push.cfg.Round, nil) {
		entries = append(entries, d.waiting[id])
		delete(d.waiting, id)
	}
	later := func(e *entry, after time.Duration) {
		d.wait(e)
		d.window.Delay(e.product, setUnknown, now.Add(after))
	}
	r := &reading{p: d.push, stop: ctx}
	flights, err := r.load(ctx, entries)
	if err != nil {
		d.push.parts.Log.WarnContext(ctx, "dry run: the state is asked again", "error", err)
		for _, e := range entries {
			later(e, readPauseMost)
		}
		return
	}
	r.look(ctx, flights)
	rows, broken := r.read(ctx, flights)
	var seen []*flight
	for _, f := range flights {
		switch {
		case f.again > 0:
			later(f.entry, f.again)
		case f.again < 0:
			later(f.entry, d.push.cfg.NotYetVisible)
		default:
			seen = append(seen, f)
		}
	}
	for _, j := range r.jobs(seen, rows, broken) {
		s := Shown{ProductID: j.push.ProductID, Shop: j.push.Shop, Changes: j.flight.entry.changes, FirstCommit: j.flight.entry.first}
		if j.ready {
			s.Status, s.Reason, s.Message = j.result.Status, j.result.Reason, j.result.Message
		} else {
			s.Words, s.Points, s.Effects = j.plan.Words, j.plan.Points, j.plan.Effects
		}
		d.show(s)
	}
}
