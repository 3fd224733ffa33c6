package pipeline

import (
	"context"
	"crypto/rand"
	"errors"
	"iter"
	"slices"
	"time"

	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// finished are jobs that are over: answered, parked, or in need of no call. asked are the intents that were written for
// them.
type finished struct {
	jobs  []*job
	asked []work.Intent
}

// One settlement takes settleMost jobs, or documents of settleBytes: it holds the rows of its leases as long as it lasts,
// and all its documents are one parameter of a statement.
const (
	settleMost  = 500
	settleBytes = 32 << 20
)

// bytes is the size of the documents that a settlement of the jobs may publish.
func (f finished) bytes() (n int) {
	for _, j := range f.jobs {
		n += j.bytes()
	}
	return n
}

func (j *job) bytes() int {
	if j.same {
		return 0
	}
	return len(j.push.Raw)
}

// pieces are the jobs in as few parts of settleBytes as their order allows; a document above it is one alone. Each has all
// the intents, of which a settlement takes those of its jobs.
func (f finished) pieces() iter.Seq[finished] {
	return func(yield func(finished) bool) {
		var from, n int
		for i, j := range f.jobs {
			if n > 0 && n+j.bytes() > settleBytes {
				if !yield(finished{jobs: f.jobs[from:i], asked: f.asked}) {
					return
				}
				from, n = i, 0
			}
			n += j.bytes()
		}
		yield(finished{jobs: f.jobs[from:], asked: f.asked})
	}
}

// settleSoon hands jobs to the settler, and waits when it has too many already.
func (p *Push) settleSoon(f finished) {
	if len(f.jobs) == 0 {
		return
	}
	select {
	case p.finished <- f:
	case <-p.life.Done():
	}
}

// settleAll is the settler. While one settlement is on its way the next gathers, so that a busy worker settles many
// jobs in a round trip and an idle one each of them at once.
//
// Invariant: one settlement runs at a time, so that exactly one of them is the last of a product and carries its
// offsets.
func (p *Push) settleAll() {
	for {
		var all finished
		select {
		case all = <-p.finished:
		case <-p.life.Done():
			return
		}
		size := all.bytes()
		for more := true; more && len(all.jobs) < settleMost && size < settleBytes; {
			select {
			case f := <-p.finished:
				all.jobs, all.asked = append(all.jobs, f.jobs...), append(all.asked, f.asked...)
				size += f.bytes()
			default:
				more = false
			}
		}
		for piece := range all.pieces() {
			p.settle(p.life, piece)
		}
	}
}

// settle settles jobs together, or partition by partition when one of their leases is lost, and lets every product land
// that has no job left.
func (p *Push) settle(ctx context.Context, f finished) {
	byOwner := map[*ownedPartition][]*job{}
	var jobs, withdrawn []*job
	for _, j := range f.jobs {
		if j.withdrawn {
			j.flight.broken = true
			withdrawn = append(withdrawn, j)
			continue
		}
		jobs = append(jobs, j)
		byOwner[j.flight.entry.owner] = append(byOwner[j.flight.entry.owner], j)
	}
	results := make([]work.Result, len(jobs))
	for i, j := range jobs {
		results[i] = j.result
	}
	err := p.settleTogether(ctx, jobs, f.asked)
	again := func() {
		for i, j := range jobs {
			j.result = results[i] // as it was answered
		}
	}
	switch {
	case len(byOwner) > 1 && errors.Is(err, work.ErrLeaseLost):
		again()
		for _, own := range byOwner {
			p.settled(ctx, own, f.asked, p.settleTogether(ctx, own, f.asked))
		}
	case refusesData(err):
		again()
		p.settleApart(ctx, jobs, f.asked, err)
		p.landAll(withdrawn)
		return
	default:
		p.settled(ctx, jobs, f.asked, err)
	}
	p.landAll(f.jobs)
}

// settleApart settles each job alone, as the state refuses what one of them brings. That one is settled without what it
// brings: sending it again and again would not make it any better. Each lands before the next is settled, so that one of
// them is the last of its product.
func (p *Push) settleApart(ctx context.Context, jobs []*job, asked []work.Intent, err error) {
	for _, j := range jobs {
		own := []*job{j}
		result := j.result
		if len(jobs) > 1 {
			err = p.settleTogether(ctx, own, asked)
		}
		if refusesData(err) {
			p.log.ErrorContext(ctx, "the state refuses what became of a push", "product", j.push.ProductID, "shop", j.push.Shop, "error", err)
			j.park, j.result = "", work.Result{
				ProductID: j.push.ProductID, Shop: j.push.Shop, Status: event.Failed, Category: event.Unknown,
				Unanswered: result.Unanswered, SentAt: result.SentAt, AnsweredAt: result.AnsweredAt,
				Message: "The state refuses what became of the push: " + err.Error(),
			}
			err = p.settleTogether(ctx, own, asked)
		}
		p.settled(ctx, own, asked, err)
		p.landAll(own)
	}
}

// refusesData reports whether the state has refused a write for what it says (PostgreSQL, Appendix A: data exceptions,
// integrity violations, program limits). No repetition mends that.
func refusesData(err error) bool {
	var e interface{ SQLState() string }
	if !errors.As(err, &e) || len(e.SQLState()) != 5 {
		return false
	}
	return slices.Contains([]string{"22", "23", "54"}, e.SQLState()[:2])
}

// settleTogether writes what became of these jobs in one transaction: records, items, parked rows, outbox, and the
// positions of the products that are finished with them.
func (p *Push) settleTogether(ctx context.Context, jobs []*job, asked []work.Intent) error {
	if len(jobs) == 0 {
		return nil
	}
	s := &settlement{p: p, now: time.Now(), left: map[*flight]int{}, asked: map[[2]string][]work.Intent{}}
	for _, j := range jobs {
		s.left[j.flight]++
	}
	for _, i := range asked {
		for _, id := range i.ProductIDs {
			key := [2]string{id, i.Shop}
			s.asked[key] = append(s.asked[key], i)
		}
	}
	for _, j := range jobs {
		s.job(j)
	}
	s.intents(jobs)
	offsets := s.finish()
	if s.err != nil {
		return s.err
	}
	// Beyond the leases nothing could be settled any more.
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Lease.TTL)
	defer cancel()
	s.Token = newToken()
	err := p.insist(ctx, waitSettle, func(ctx context.Context) error { return p.parts.Fenced.Settle(ctx, s.Settlement) })
	if err != nil {
		return err
	}
	for o, done := range offsets {
		o.done(done)
	}
	s.count(jobs)
	return nil
}

// newToken names a write, so that the state applies it once however often it is sent.
func newToken() (t work.Token) {
	_, _ = rand.Read(t[:]) // never fails (crypto/rand)
	return t
}

// settled books whether jobs were settled.
func (p *Push) settled(ctx context.Context, jobs []*job, asked []work.Intent, err error) {
	if err == nil {
		return
	}
	if errors.Is(err, work.ErrLeaseLost) {
		p.tellOfSent(ctx, jobs, asked)
	}
	p.log.WarnContext(ctx, "not settled; the products are read again", "jobs", len(jobs), "error", err)
	for _, j := range jobs {
		j.flight.broken = true
	}
}

// tellOfSent has the next owner look once more at what may have been sent under a lease that is lost, now that the
// request is over, or when it can no longer land. It may have found the intents, looked at the shops and closed them long
// before: a worker can be stopped between an intent and its request for any time.
//
// The intents are put on record anew beside the rows that wake the products, as a row alone would be ended by whatever
// push of the product comes before its turn. While an intent stands every push reads the shop, and none is the last.
func (p *Push) tellOfSent(ctx context.Context, jobs []*job, asked []work.Intent) {
	var rows []work.Parked
	var intents []work.Intent
	now := time.Now()
	for _, j := range jobs {
		e, due, sent := j.flight.entry, now, false
		if j.result.Unanswered {
			due = now.Add(p.cfg.LateRequest)
		}
		for _, i := range asked {
			if i.Shop != j.push.Shop || !slices.Contains(i.ProductIDs, j.push.ProductID) {
				continue
			}
			// Under a name of its own: whoever has seen the intent before it was sent may be about to close it.
			i.Key, i.ProductIDs, i.At = i.Key+"/late", []string{j.push.ProductID}, due.Add(-p.cfg.LateRequest)
			intents, sent = append(intents, i), true
		}
		if sent {
			rows = append(rows, work.Parked{
				ProductID: j.push.ProductID, Shop: j.push.Shop, Partition: e.partition, Lane: work.LaneRetry, Due: due,
				Reason: reasonLate, FirstCommit: e.first, LastCommit: e.last,
			})
		}
	}
	if len(rows) == 0 || p.parts.TellLate == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Lease.TTL)
	defer cancel()
	if err := p.parts.TellLate(ctx, rows, intents); err != nil {
		p.log.WarnContext(ctx, "what was sent under a lost lease is not looked at again", "products", len(rows), "error", err)
	}
}

// landAll ends jobs, and lets the products land that have none left.
func (p *Push) landAll(jobs []*job) {
	var ls []landing
	for _, j := range jobs {
		p.giveBack(j)
		f := j.flight
		if f.open--; f.open == 0 {
			ls = append(ls, landing{entry: f.entry, again: f.broken, after: again})
		}
	}
	p.tell(ls)
}
