package pipeline

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// Each shop has two lines, one for what is live and one for campaigns, and each line a few requests on their way. So a
// shop that is slow, or has no points left, holds up nobody but itself, and a campaign holds up nothing that is live.
const (
	sendersLive     = 2
	sendersCampaign = 1
)

// lineKey names a line.
type lineKey struct {
	shop  string
	class class
}

// lines are the lines of all shops, and the places in them. A place is taken before a job is put into a line, and given
// back when it is settled.
//
// Invariant: a line never holds more places than are still free (the dynamic threshold of Choudhury and Hahne, IEEE/ACM
// Transactions on Networking 6, 1998). With n lines that do not move, each ends with 1/(n+1) of all places, and as many
// stay free for whoever comes next.
type lines struct {
	mu    sync.Mutex
	of    map[lineKey]*line
	total [classes]int
	taken [classes]int
	most  int // of one line
}

type line struct {
	places  int
	waiting []*job
	senders int
}

func newLines(total, most int) lines {
	return lines{of: map[lineKey]*line{}, total: [classes]int{total, max(1, total/2)}, most: most}
}

// enter takes a place, if the line may have one more.
func (l *lines) enter(key lineKey) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.room(key) {
		return false
	}
	if l.of[key] == nil {
		l.of[key] = &line{}
	}
	l.of[key].places++
	l.taken[key.class]++
	return true
}

func (l *lines) room(key lineKey) bool { return l.places(key) > 0 }

func (l *lines) places(key lineKey) int {
	held := 0
	if q := l.of[key]; q != nil {
		held = q.places
	}
	return min(l.most-held, l.total[key.class]-l.taken[key.class]-held)
}

// left is how many places a line may have more.
func (l *lines) left(key lineKey) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.places(key)
}

// leave gives places back.
func (l *lines) leave(key lineKey, n int) {
	if n == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.of[key]
	q.places -= n
	l.taken[key.class] -= n
	l.forget(key, q)
}

func (l *lines) forget(key lineKey, q *line) {
	if q.places == 0 && q.senders == 0 && len(q.waiting) == 0 {
		delete(l.of, key)
	}
}

// leaveAll gives back the places that an entry has taken before it was read.
func (l *lines) leaveAll(e *entry) {
	for key, n := range e.places {
		l.leave(key, n)
	}
	e.places = nil
}

// full are the shops of which neither line has room.
func (l *lines) full() (shops []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key := range l.of {
		if key.class == classLive && !l.room(key) && !l.room(lineKey{key.shop, classCampaign}) {
			shops = append(shops, key.shop)
		}
	}
	return shops
}

// free is how many products more each shop takes that has some on their way, in the one of its lines that has more room,
// and how many any other takes.
func (l *lines) free() (left map[string]int, others int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	left = map[string]int{}
	for key := range l.of {
		left[key.shop] = max(l.places(lineKey{key.shop, classLive}), l.places(lineKey{key.shop, classCampaign}))
	}
	for c := range classes {
		others = max(others, min(l.most, l.total[c]-l.taken[c]))
	}
	return left, others
}

// put appends jobs to a line and reports whether it needs one more sender.
func (l *lines) put(key lineKey, jobs []*job) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.of[key] // it stands, as every job has a place
	q.waiting = append(q.waiting, jobs...)
	// Stock and prices before content, both before what comes back from the state.
	slices.SortStableFunc(q.waiting, func(a, b *job) int { return cmp.Compare(a.plan.Lane, b.plan.Lane) })
	if q.senders >= [classes]int{sendersLive, sendersCampaign}[key.class] {
		return false
	}
	q.senders++
	return true
}

// next takes the first n jobs of a line; none ends its sender.
func (l *lines) next(key lineKey, n int) []*job {
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.of[key]
	n = min(n, len(q.waiting))
	if n == 0 {
		q.senders--
		l.forget(key, q)
		return nil
	}
	group := slices.Clone(q.waiting[:n])
	q.waiting = slices.Delete(q.waiting, 0, n)
	return group
}

// line puts the jobs of one line in, and sees to it that somebody sends them.
func (p *Push) line(stop context.Context, key lineKey, jobs []*job) {
	if !p.lines.put(key, jobs) {
		return
	}
	p.rounds.Go(func() {
		for {
			group := p.lines.next(key, p.cfg.Group)
			if group == nil {
				return
			}
			p.sendTo(stop, key.shop, group)
		}
	})
}

// sendTo carries jobs of one shop out, and hands them to the settler. What may not be sent any more when its turn has
// come is not: the line may have been long.
func (p *Push) sendTo(stop context.Context, shop string, jobs []*job) {
	var unsent, send []*job
	now := time.Now()
	reason, dead := p.closed(shop, now)
	if dead { // a probe is due, and whoever may make it has claimed it
		reason = "SHOP_DEAD"
	}
	for _, j := range jobs {
		o := j.flight.entry.owner
		switch {
		case stop.Err() != nil, o.leaving(): // the next owner finds it in the state
			j.unsent("SHOP_BUSY")
		case !o.usable(now, p.cfg.RequestTimeout):
			j.withdrawn = true
		case reason != "" && !j.probe:
			j.unsent(reason)
		case p.paused(shop, j.plan.Lane):
			j.unsent("PAUSED")
		default:
			send = append(send, j)
			continue
		}
		unsent = append(unsent, j)
	}
	p.settleSoon(finished{jobs: unsent})
	if len(send) == 0 {
		return
	}
	plans := make([]work.Plan, len(send))
	owners := make(map[string]*ownedPartition, len(send))
	for i, j := range send {
		plans[i] = j.plan
		owners[j.push.ProductID] = j.flight.entry.owner
	}
	var asked []work.Intent
	results := p.parts.Sender.Send(stop, shop, plans, func(ctx context.Context, intents []work.Intent) error {
		return p.intend(ctx, owners, intents, &asked)
	})
	p.judgeSilence(shop, send, results)
	for i, j := range send {
		j.result = results[i]
		if j.result.Status == event.Retrying && j.result.Reason == reasonUnsent && j.result.Shadow == nil {
			j.park = "SHOP_BUSY" // nothing has happened that would be worth an outcome
		}
	}
	p.noteHealth(p.life, shop, results)
	p.settleSoon(finished{jobs: send, asked: asked})
}

// intend puts on record that a request is about to go out.
//
// Invariant: nothing is sent that no intent is on record for, and no intent is written by a lease that does not outlast
// the request.
func (p *Push) intend(ctx context.Context, owners map[string]*ownedPartition, intents []work.Intent, asked *[]work.Intent) error {
	var fences []work.Fence
	asking := map[*ownedPartition]struct{}{}
	for _, i := range intents {
		for _, id := range i.ProductIDs {
			o := owners[id]
			if _, ok := asking[o]; ok {
				continue
			}
			asking[o] = struct{}{}
			if !o.usable(time.Now(), p.cfg.RequestTimeout) {
				return work.ErrLeaseLost
			}
			fences = append(fences, o.fence())
		}
	}
	*asked = append(*asked, intents...) // also when the answer is lost: it may be on record
	if err := p.parts.Fenced.Intend(ctx, fences, intents); err != nil {
		return err
	}
	for o := range asking { // it may have waited for the state
		if !o.usable(time.Now(), p.cfg.RequestTimeout) {
			return work.ErrLeaseLost
		}
	}
	return nil
}

// unsent lets a job wait in the state whose turn has come to nothing.
func (j *job) unsent(reason string) {
	j.park = reason
	j.result = work.Result{
		ProductID: j.push.ProductID, Shop: j.push.Shop, Status: event.Retrying, Reason: reasonUnsent,
	}
}

// route decides for each job that would be sent whether its shop takes anything at the moment, and gives it its place
// in the shop's line.
func (r *reading) route(ctx context.Context, jobs []*job) {
	p := r.p
	for _, j := range jobs {
		if j.ready || j.park != "" {
			continue
		}
		reason, probe := p.closed(j.push.Shop, time.Now())
		if p.paused(j.push.Shop, j.plan.Lane) {
			reason, probe = "PAUSED", false
		}
		if probe {
			if probe = p.claimProbe(ctx, j.push.Shop); !probe {
				reason = "SHOP_DEAD"
			}
		}
		j.probe = probe
		if reason == "" && !j.enter(&p.lines) {
			reason = "SHOP_BUSY"
		}
		j.park = reason
	}
	for _, j := range jobs { // what else was pulled has no job, or no place in that line
		p.lines.leaveAll(j.flight.entry)
	}
}

// enter takes the place that the product has already, or one more.
func (j *job) enter(l *lines) bool {
	j.place = lineKey{j.push.Shop, classOf(j.plan.Lane)}
	if e := j.flight.entry; e.places[j.place] > 0 {
		e.places[j.place]--
		j.placed = true
		return true
	}
	j.placed = l.enter(j.place)
	return j.placed
}

// leave gives back the places of jobs that have entered their shop and will not be sent.
func (r *reading) leave(jobs []*job) {
	for _, j := range jobs {
		r.p.giveBack(j)
	}
}

func (p *Push) giveBack(j *job) {
	if j.placed {
		j.placed = false
		p.lines.leave(j.place, 1)
	}
}

// put settles what needs no call, and puts the rest into the lines of its shops.
func (r *reading) put(jobs []*job) {
	var idle []*job
	byLine := map[lineKey][]*job{}
	for _, j := range jobs {
		if j.ready || j.park != "" {
			idle = append(idle, j)
			continue
		}
		byLine[j.place] = append(byLine[j.place], j)
	}
	for key, js := range byLine {
		r.p.line(r.stop, key, js)
	}
	r.p.settleSoon(finished{jobs: idle})
}
