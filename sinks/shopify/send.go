package shopify

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// Intend records, before a request that writes goes out, that it may have reached the shop. When it fails, the
// request is not sent.
type Intend = func(ctx context.Context, intents []work.Intent) error

// maxRounds bounds how often one Send reads, writes and plans again. A creation takes two, a restructured product
// three, a conflict of stock one more.
const maxRounds = 8

// Send brings products of one shop to where their plans want them, and returns one result for each plan, in their
// order. It never fails as a whole: what could not be sent is RETRYING in its result.
//
// The products share requests up to the cost cap; each request waits for the shared rate budget in the most urgent
// lane of its plans (campaigns never ride along with live changes). Before a request goes out intend is asked,
// which refuses where the caller's leases would not outlast it.
func (s *Shops) Send(ctx context.Context, name string, plans []work.Plan, intend Intend) []work.Result {
	jobs := make([]*job, len(plans))
	for i := range plans {
		jobs[i] = newJob(plans[i])
	}
	sh := s.shops[name]
	for _, group := range byUrgency(jobs) {
		if sh == nil {
			for _, j := range group {
				j.end(&failure{category: event.Unknown, final: true, message: fmt.Sprintf("No shop %q is configured.", name)})
			}
			continue
		}
		d := &delivery{shops: s, shop: sh, intend: intend, lane: urgency(group)}
		d.run(ctx, group)
	}
	results := make([]work.Result, len(jobs))
	for i, j := range jobs {
		results[i] = j.result()
	}
	return results
}

// byUrgency keeps campaigns apart from what is live, so that neither waits in the other's lane.
func byUrgency(jobs []*job) [][]*job {
	var live, campaign []*job
	for _, j := range jobs {
		switch {
		case j.finished:
		case j.plan.Lane >= work.LaneCampaign:
			campaign = append(campaign, j)
		default:
			live = append(live, j)
		}
	}
	var out [][]*job
	for _, g := range [][]*job{live, campaign} {
		if len(g) > 0 {
			out = append(out, g)
		}
	}
	return out
}

func urgency(jobs []*job) work.Lane {
	lane := work.LaneCampaign
	for _, j := range jobs {
		lane = min(lane, j.plan.Lane)
	}
	return lane
}

// delivery is one Send to one shop in one lane.
type delivery struct {
	shops  *Shops
	shop   *shop
	set    *settings
	intend Intend
	lane   work.Lane
}

func (d *delivery) run(ctx context.Context, jobs []*job) {
	set, f := d.shops.learnSettings(ctx, d.shop, d.lane, false)
	if f != nil {
		for _, j := range jobs {
			j.end(f)
		}
		return
	}
	d.set = set
	for _, j := range jobs {
		if r := d.shop.identityTaken(j.plan.Push.Document); r != nil {
			j.end(&failure{category: event.Validation, final: true, message: r.message, field: r.field})
		}
	}
	for range maxRounds {
		d.readRound(ctx, open(jobs, func(j *job) bool { return j.todo.read }))
		writes := open(jobs, func(j *job) bool { return !j.todo.read })
		d.prepare(ctx, writes)
		d.spare(open(writes, nil))
		for _, r := range pack(writes, d.shops.cfg.MaxMutations, d.shops.cfg.MaxCreations) {
			d.write(ctx, r)
		}
		for _, j := range writes {
			j.next()
		}
		if len(open(jobs, nil)) == 0 {
			break
		}
	}
	for _, j := range open(jobs, nil) {
		j.end(&failure{category: event.Unknown, counts: true, message: "The shop did not come to rest after several rounds of changes."})
	}
	d.nameCandidates(ctx, jobs)
}

func open(jobs []*job, which func(*job) bool) []*job {
	var out []*job
	for _, j := range jobs {
		if !j.finished && (which == nil || which(j)) {
			out = append(out, j)
		}
	}
	return out
}

// prepare puts the shop's ids into the mutations. A name that the shop does not have fails what needs it; settings
// may have changed since they were read, so they are read again first.
func (d *delivery) prepare(ctx context.Context, jobs []*job) {
	missing := func() bool {
		for _, j := range jobs {
			if j.unresolved(d.shop, d.set) != nil {
				return true
			}
		}
		return false
	}
	if missing() {
		if set, f := d.shops.learnSettings(ctx, d.shop, d.lane, true); f == nil {
			d.set = set
		}
	}
	for _, j := range jobs {
		if j.shadow != nil {
			j.leaveMissing(d.shop, d.set)
		}
		for r := j.unresolved(d.shop, d.set); r != nil; r = j.unresolved(d.shop, d.set) {
			j.drop(d.shop, d.set)
			j.fail(&failure{category: event.Validation, final: true, message: r.message, field: r.field})
		}
	}
}

// write sends one request and settles each of its parts.
func (d *delivery) write(ctx context.Context, r *request) {
	r = r.alive()
	if len(r.items) == 0 {
		return
	}
	jobs := r.jobs()
	key := newKey()
	ops := make([]*op, len(r.items))
	for i, it := range r.items {
		vars, _ := d.shop.resolve(it.op, d.set)
		if it.rows != nil {
			vars["key"] = fmt.Sprintf("%s-%d", key, i)
		}
		sent := *it.op
		sent.vars = vars
		ops[i] = &sent
		it.record(vars)
		if it.op.err != nil {
			for _, j := range it.jobs {
				j.end(broken(it.op.err))
			}
			return
		}
	}
	for _, j := range jobs {
		j.flying = r.additionsFor(j)
	}
	at := time.Now()
	a := d.shops.call(ctx, d.shop, d.lane, ops, func(ctx context.Context) error {
		return d.intend(ctx, intents(key, d.shop.name, jobs, r, at))
	}, len(jobs))
	r.charge(a, at)
	if a.whole != nil {
		if a.whole.unexecuted {
			if parts := r.halves(); parts != nil {
				for _, part := range parts {
					d.write(ctx, part)
				}
				return
			}
		}
		d.refuse(r, jobs, a.whole)
		return
	}
	for i, it := range r.items {
		payload, problem := a.of(fmt.Sprintf("m%d", i))
		d.settle(ctx, it, payload, problem)
	}
}

// refuse fails the products of a request that has failed as a whole.
func (d *delivery) refuse(r *request, jobs []*job, f *failure) {
	if f.daily {
		d.shop.pauseVariants()
	}
	for _, j := range jobs {
		own := *f
		if f.daily && !slices.ContainsFunc(r.items, func(i item) bool { return i.rows == nil && i.jobs[0] == j && i.op.makesVariants() }) {
			own.retryAfter = time.Second // it was only in the wrong company
		}
		j.fail(&own)
	}
}

// dailyPause is how long no variants are asked for after the shop has said that its daily limit is reached.
const dailyPause = 10 * time.Minute

func (sh *shop) pauseVariants() {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.noVariants = time.Now().Add(dailyPause)
}

// spare keeps products that need new variants out of requests while the shop makes none, so that they hold up no other.
func (d *delivery) spare(jobs []*job) {
	d.shop.mu.Lock()
	paused := time.Now().Before(d.shop.noVariants)
	d.shop.mu.Unlock()
	if !paused {
		return
	}
	for _, j := range jobs {
		if slices.ContainsFunc(j.todo.ops, (*op).makesVariants) {
			j.end(&failure{
				category: event.APILimit, reason: reasonUnsent, retryAfter: time.Hour,
				message: "The shop has reached its daily limit of new variants.",
			})
		}
	}
}

// intents says of each product what the request is about to do to it.
func intents(key, shop string, jobs []*job, r *request, at time.Time) []work.Intent {
	var names []string
	for _, it := range r.items {
		if !slices.Contains(names, it.op.document) {
			names = append(names, it.op.document)
		}
	}
	out := make([]work.Intent, len(jobs))
	for i, j := range jobs {
		out[i] = work.Intent{
			Key: key, Shop: shop, At: at, ProductIDs: []string{j.plan.Push.ProductID}, Mutation: intentText(names, j.flying),
		}
	}
	return out
}

// newKey returns a random UUID (RFC 9562, version 4).
func newKey() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// alive leaves out what has ended since the request was packed: a product whose earlier mutation is in doubt.
func (r *request) alive() *request {
	out := &request{}
	for _, i := range r.items {
		if i.rows == nil {
			if !i.jobs[0].finished {
				out.add(i)
			}
			continue
		}
		rows := slices.DeleteFunc(slices.Clone(i.rows), func(row ownedRow) bool { return row.job.finished })
		switch {
		case len(rows) == len(i.rows):
			out.add(i)
		case len(rows) > 0:
			out.add(stockItem(rows[0].name, rows))
		}
	}
	return out
}

// charge gives each product its share of the request's cost.
func (r *request) charge(a *answer, at time.Time) {
	actual := float64(r.points)
	switch {
	case a.whole != nil && (a.whole.limited() || a.whole.reason == reasonUnsent):
		actual = 0
	case a.actual >= 0:
		actual = a.actual
	}
	now := time.Now()
	for _, i := range r.items {
		points := float64(i.op.points)
		share := points * actual / float64(max(1, r.points))
		if i.rows == nil {
			i.jobs[0].charge(points, share, at, now)
			continue
		}
		for _, row := range i.rows {
			row.job.charge(points/float64(len(i.rows)), share/float64(len(i.rows)), at, now)
		}
	}
}

// nameCandidates tells which product has a handle that was refused, so that a person can decide.
func (d *delivery) nameCandidates(ctx context.Context, jobs []*job) {
	for _, j := range jobs {
		if j.failure == nil || j.failure.category != event.Duplicate || j.plan.Push.Document == nil {
			continue
		}
		handle, owned := j.plan.Push.Document.Handle.Get()
		if !owned || !strings.Contains(strings.ToLower(j.failure.field+" "+j.failure.message), "handle") {
			continue
		}
		fields, f := d.shops.query(ctx, d.shop, d.lane, []*op{newOp("lookup", map[string]any{"identifier": map[string]any{"handle": handle}})})
		if f != nil || fields[0] == nil {
			continue
		}
		named := *j.failure
		named.message += fmt.Sprintf(" It belongs to %s (%q).", text(fields[0]["id"]), cut(text(fields[0]["title"]), 100))
		j.failure = &named
	}
}
