package pipeline

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/shelfwire/shelfwire/pipeline/checkpoint"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// ownedPartition is a partition that this worker holds the lease of.
type ownedPartition struct {
	mu      sync.Mutex // guards lease, until, draining and tracker: rounds read them
	lease   work.Lease
	until   time.Time
	tracker *checkpoint.Tracker
	// draining is written by the loop alone, which reads it without the lock.
	draining bool

	// The loop's own.
	saved  int64
	flying int
}

func (o *ownedPartition) fence() work.Fence {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.lease.Fence
}

// usable reports whether the lease outlasts a request that begins now.
func (o *ownedPartition) usable(now time.Time, request time.Duration) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return !o.draining && now.Add(request).Before(o.until)
}

// safeWith is the position that may be written together with the end of these offsets.
func (o *ownedPartition) safeWith(offsets []int64) int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.tracker.SafeWith(offsets...)
}

func (o *ownedPartition) open() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.tracker.Open()
}

func (o *ownedPartition) done(offsets []int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.tracker.Done(offsets...)
}

// entry is a product that waits in memory or flies, and what it stands for.
type entry struct {
	product   change.ProductID
	partition int32
	owner     *ownedPartition // under whose lease it flies
	offsets   []int64
	xids      []change.XID // distinct transactions that its read must see
	changes   int
	first     time.Time // commit of the first change
	last      time.Time
	captured  time.Time // Kafka's timestamp of the first record
	lane      work.Lane
	attempt   int
	// only restricts the push to these shops (a parked retry); nil means all. parked says why it was parked.
	only   map[string]struct{}
	parked string
	// pulled are the parked rows that it stands for, by shop, at their generations: pulling claims nothing, so the
	// same row comes again and again until it is settled.
	pulled map[string]int64
	due    time.Time
	unseen time.Time // since when its transaction is not visible yet
}

// absorb merges what another entry of the same product stands for.
func (e *entry) absorb(o *entry) {
	e.offsets = append(e.offsets, o.offsets...)
	e.needs(o.xids...)
	e.changes += o.changes
	if e.first.IsZero() || !o.first.IsZero() && o.first.Before(e.first) {
		e.first, e.captured = o.first, o.captured
	}
	if o.last.After(e.last) {
		e.last = o.last
	}
	e.lane = min(e.lane, o.lane)
	e.attempt = max(e.attempt, o.attempt)
	if e.only == nil || o.only == nil {
		e.only = nil
	} else {
		for s := range o.only {
			e.only[s] = struct{}{}
		}
	}
	if e.unseen.IsZero() || !o.unseen.IsZero() && o.unseen.Before(e.unseen) {
		e.unseen = o.unseen
	}
	if e.parked == "" {
		e.parked = o.parked
	}
	for shop, generation := range o.pulled {
		if e.pulled == nil {
			e.pulled = map[string]int64{}
		}
		e.pulled[shop] = max(e.pulled[shop], generation)
	}
}

func (e *entry) needs(xids ...change.XID) {
	for _, x := range xids {
		if x != 0 && !slices.Contains(e.xids, x) {
			e.xids = append(e.xids, x)
		}
	}
}

// assign compares what the worker holds with what it thought to hold.
func (p *Push) assign(ctx context.Context, held []heldLease) {
	seen := map[int32]bool{}
	for _, h := range held {
		seen[h.Partition] = true
		o := p.owned[h.Partition]
		if o != nil && o.lease.Epoch != h.Epoch { // lost and won again: what was held belongs to the old epoch
			p.drop(h.Partition)
			o = nil
		}
		if o == nil {
			o = &ownedPartition{tracker: checkpoint.NewTracker(h.Position), saved: h.Position}
			p.owned[h.Partition] = o
			o.lease, o.until = h.Lease, h.until
			p.ahead.begin(h.Partition, h.Position)
			p.parts.Reader.Add(h.Partition, h.Position)
			p.log.InfoContext(ctx, "partition taken", "partition", h.Partition, "position", h.Position, "epoch", h.Epoch)
		}
		o.mu.Lock()
		o.lease, o.until = h.Lease, h.until
		o.mu.Unlock()
		if h.Wanted && !o.draining {
			o.mu.Lock()
			o.draining = true
			o.mu.Unlock()
			p.parts.Reader.Remove(h.Partition)
			p.forgetPartition(h.Partition)
		}
	}
	for part := range p.owned {
		if !seen[part] {
			p.log.WarnContext(ctx, "partition lost", "partition", part)
			p.drop(part)
		}
	}
}

// drop forgets a partition at once: its lease is gone, and with it the right to settle.
func (p *Push) drop(partition int32) {
	p.parts.Reader.Remove(partition)
	p.forgetPartition(partition)
	delete(p.owned, partition)
}

func (p *Push) forgetPartition(partition int32) {
	for id, e := range p.hot {
		if e.partition == partition {
			p.forget(id)
		}
	}
}

func (p *Push) forget(id change.ProductID) {
	delete(p.hot, id)
	delete(p.blocked, id)
	p.window.Drop(id)
}

// handOver releases what another worker waits for, as soon as nothing of it flies any more.
func (p *Push) handOver(ctx context.Context) {
	for part, o := range p.owned {
		if !o.draining || o.flying > 0 {
			continue
		}
		if safe := o.safeWith(nil); safe != o.saved {
			p.save(ctx, []moved{{o, part, safe}})
		}
		if err := p.parts.Leases.Release(ctx, []work.Fence{o.fence()}); err != nil {
			p.log.WarnContext(ctx, "lease not released; it ends by itself", "partition", part, "error", err)
		}
		delete(p.owned, part)
		p.log.InfoContext(ctx, "partition handed over", "partition", part)
	}
}

// take brings records in: live changes into the window, campaigns into the parked rows, items of batches into the
// state. What is written is durable before a record counts as taken in.
func (p *Push) take(ctx context.Context, recs []event.Record) {
	in := intake{prefix: p.cfg.Prefix, n: p.cfg.Partitions}
	for i := range recs {
		r := &recs[i]
		o := p.owned[r.Partition]
		if p.ahead.stale(r) || o == nil || o.draining {
			continue
		}
		o.mu.Lock()
		fresh := o.tracker.Arrived(r.Offset)
		o.mu.Unlock()
		if fresh {
			in.add(r)
		}
	}
	p.stats.Consumed.Add(int64(len(in.entries)))
	if !p.takeIn(ctx, &in) {
		return
	}
	now := time.Now()
	for _, e := range in.entries {
		if h := p.hot[e.product]; h != nil {
			h.absorb(e)
		} else {
			p.hot[e.product] = e
		}
		p.window.Touch(e.product, now)
	}
	for part, offsets := range in.done {
		if o := p.owned[part]; o != nil {
			o.done(offsets)
		}
	}
}

// takeIn writes items, parked rows and dead letters, and reports whether the records may count as taken in.
func (p *Push) takeIn(ctx context.Context, in *intake) bool {
	t := in.takeIn
	if len(t.Items)+len(t.Parked)+len(t.Outbox) == 0 {
		return true // nothing but live changes: their offsets stay open until they are settled
	}
	t.TakenIn, t.Positions = map[int32]int64{}, map[int32]int64{}
	for part, last := range in.last {
		o := p.owned[part]
		t.Fences = append(t.Fences, o.fence())
		t.TakenIn[part] = last + 1
		t.Positions[part] = o.safeWith(in.done[part])
	}
	err := retry(ctx, p.log, "take records in", func(ctx context.Context) error { return p.parts.Fenced.TakeIn(ctx, t) })
	if err == nil {
		p.stats.Parked.Add(int64(len(t.Parked)))
		return true
	}
	if errors.Is(err, work.ErrLeaseLost) {
		for part := range in.last {
			p.drop(part)
		}
	}
	return false
}

// intake sorts the records of one poll; it is pure.
type intake struct {
	prefix  string
	n       int32
	entries []*entry
	takeIn  work.TakeIn
	last    map[int32]int64
	done    map[int32][]int64 // offsets that are finished once takeIn is durable
	items   map[[2]string]struct{}
	batches map[string]struct{}
}

func (in *intake) add(r *event.Record) {
	if in.last == nil {
		in.last, in.done = map[int32]int64{}, map[int32][]int64{}
		in.items, in.batches = map[[2]string]struct{}{}, map[string]struct{}{}
	}
	in.last[r.Partition] = r.Offset
	e, batch, origin, err := parseChange(r)
	if err != nil {
		in.takeIn.Outbox = append(in.takeIn.Outbox, deadLetter(in.prefix, r, err))
		in.done[r.Partition] = append(in.done[r.Partition], r.Offset)
		return
	}
	if batch != "" {
		in.item(batch, e, origin)
	}
	if origin == "" {
		in.entries = append(in.entries, e)
		return
	}
	in.done[r.Partition] = append(in.done[r.Partition], r.Offset)
	in.takeIn.Parked = append(in.takeIn.Parked, work.Parked{
		ProductID: string(e.product), Partition: r.Partition, Lane: work.LaneCampaign, Due: time.Now(),
		Reason: origin, Changes: 1, FirstCommit: e.first, LastCommit: e.last,
	})
}

func (in *intake) item(batch string, e *entry, origin string) {
	if _, ok := in.batches[batch]; !ok {
		in.batches[batch] = struct{}{}
		b := event.Batch{Type: event.BatchOpened, ID: batch, Kind: event.KindTransaction, CommitTime: e.last}
		if origin != "" {
			b.Kind = origin
		}
		if len(e.xids) > 0 {
			b.XID = e.xids[0]
		}
		in.takeIn.Batches = append(in.takeIn.Batches, b)
	}
	key := [2]string{batch, string(e.product)}
	if _, ok := in.items[key]; ok {
		return
	}
	in.items[key] = struct{}{}
	it := work.Item{BatchID: batch, ProductID: string(e.product), Status: work.ItemPending}
	if len(e.xids) > 0 {
		it.XID = e.xids[0]
	}
	in.takeIn.Items = append(in.takeIn.Items, it)
}

// parseChange reads the key and headers of a record of catalog.changes; its value is not needed, as a push reads the
// document itself.
func parseChange(r *event.Record) (e *entry, batch, origin string, err error) {
	if len(r.Key) == 0 {
		return nil, "", "", errors.New("the record has no key: it must be the product id")
	}
	// The state takes neither, and would refuse all that are read or written together with it.
	if !utf8.Valid(r.Key) || bytes.IndexByte(r.Key, 0) >= 0 {
		return nil, "", "", errors.New("the record's key is no text: it must be the product id in UTF-8")
	}
	e = &entry{
		product: change.ProductID(r.Key), partition: r.Partition, offsets: []int64{r.Offset},
		changes: 1, captured: r.Timestamp,
	}
	if v, ok := r.Header(event.HeaderXID); ok {
		x, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			return nil, "", "", fmt.Errorf("header %s is %q: want a decimal transaction id", event.HeaderXID, v)
		}
		e.needs(change.XID(x))
	}
	e.first = r.Timestamp
	if v, ok := r.Header(event.HeaderCommitted); ok {
		us, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			return nil, "", "", fmt.Errorf("header %s is %q: want microseconds since 1970", event.HeaderCommitted, v)
		}
		e.first = time.UnixMicro(us)
	}
	e.last = e.first
	batch, _ = r.Header(event.HeaderBatch)
	if !utf8.ValidString(batch) || strings.IndexByte(batch, 0) >= 0 {
		return nil, "", "", fmt.Errorf("header %s is no text", event.HeaderBatch)
	}
	origin, _ = r.Header(event.HeaderOrigin)
	return e, batch, origin, nil
}

// deadLetter keeps the original bytes of a record that cannot be processed at all.
func deadLetter(prefix string, r *event.Record, reason error) event.Record {
	return event.Record{
		Topic: prefix + event.DeadLetters, Partition: -1, Key: r.Key, Value: r.Value,
		Headers: append(slices.Clone(r.Headers),
			event.Header{Key: event.HeaderReason, Value: []byte(reason.Error())},
			event.Header{Key: "source-topic", Value: []byte(r.Topic)},
			event.Header{Key: "source-partition", Value: strconv.AppendInt(nil, int64(r.Partition), 10)},
			event.Header{Key: "source-offset", Value: strconv.AppendInt(nil, r.Offset, 10)}),
	}
}

// pull asks for parked products that are due, when there is room for them.
func (p *Push) pull(ctx context.Context) {
	room := p.cfg.Flying - len(p.flying) - p.window.Len()
	if p.pulling || room <= 0 || len(p.owned) == 0 {
		return
	}
	var parts []int32
	for part, o := range p.owned {
		if !o.draining {
			parts = append(parts, part)
		}
	}
	exclude := p.closedShops()
	n := min(room, 2*p.cfg.Round) + len(p.flying) // pulling claims nothing: those that fly come back too
	p.pulling = true
	p.rounds.Go(func() {
		rows, err := p.parts.State.Pull(ctx, parts, exclude, n)
		if err != nil && ctx.Err() == nil {
			p.log.WarnContext(ctx, "pull parked products", "error", err)
		}
		select {
		case p.pulled <- rows:
		case <-ctx.Done():
		}
	})
}

// unpark lets due parked products fly next. The rows stay until a settlement deletes them.
func (p *Push) unpark(rows []work.Parked) {
	now := time.Now()
	for _, row := range rows {
		id := change.ProductID(row.ProductID)
		o := p.owned[row.Partition]
		if _, flies := p.flying[id]; flies || o == nil || o.draining {
			continue
		}
		e := &entry{
			product: id, partition: row.Partition, changes: row.Changes, first: row.FirstCommit, last: row.LastCommit,
			captured: row.FirstCommit, lane: row.Lane, attempt: row.Attempt, parked: row.Reason,
			pulled: map[string]int64{row.Shop: row.Generation},
		}
		e.needs(row.XIDs...)
		if row.Shop != "" {
			e.only = map[string]struct{}{row.Shop: {}}
		}
		switch h := p.hot[id]; {
		case h == nil:
			p.hot[id] = e
			p.window.Hurry(id, now, now)
		case h.pulled[row.Shop] >= row.Generation && row.Generation > 0: // it stands for that row already
		case h.parked != "":
			h.absorb(e)
		} // a live change absorbs what is parked: its settlement deletes the row
	}
}

// moved is a position that no settlement has carried.
type moved struct {
	owner     *ownedPartition
	partition int32
	safe      int64
}

// savePositions writes positions that moved without a settlement of their own to carry them, beside the loop: it is
// not owed, and may have to wait for a settlement's locks.
func (p *Push) savePositions(ctx context.Context) {
	ms := p.moved()
	if p.saving || len(ms) == 0 {
		return
	}
	p.saving = true
	p.rounds.Go(func() {
		saved := p.save(ctx, ms)
		select {
		case p.saved <- saved:
		case <-ctx.Done():
		}
	})
}

func (p *Push) moved() (ms []moved) {
	for part, o := range p.owned {
		if safe := o.safeWith(nil); safe != o.saved {
			ms = append(ms, moved{o, part, safe})
		}
	}
	return ms
}

// save writes positions and returns those that stand.
func (p *Push) save(ctx context.Context, ms []moved) []moved {
	t := work.TakeIn{Positions: map[int32]int64{}}
	for _, m := range ms {
		t.Fences = append(t.Fences, m.owner.fence())
		t.Positions[m.partition] = m.safe
	}
	t.TakenIn = t.Positions
	err := p.parts.Fenced.TakeIn(ctx, t)
	switch {
	case err == nil:
		return ms
	case errors.Is(err, work.ErrLeaseLost) && len(ms) > 1: // one lost lease refuses them all
		var saved []moved
		for i := range ms {
			saved = append(saved, p.save(ctx, ms[i:i+1])...)
		}
		return saved
	case ctx.Err() == nil && !errors.Is(err, work.ErrLeaseLost):
		p.log.WarnContext(ctx, "positions not saved; it is tried again", "partitions", len(ms), "error", err)
	}
	return nil
}
