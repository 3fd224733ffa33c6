package shopify

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"time"

	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// job is one product on its way through a Send.
type job struct {
	plan  work.Plan
	known knowledge
	todo  decision
	// shadow is what the shop has by now, as far as answers tell; nil before the product exists.
	shadow   *Shadow
	finished bool
	// failure is the first; a product with a refused field goes on with its stock.
	failure *failure
	reason  string
	skipped string
	wrote   bool
	absent  bool // the shop was asked and has no such product
	rereads int
	bad     map[level]bool // rows that the shop refused
	flying  additions      // of the request that was sent last
	stale   map[level]int  // how often a row's level was another than expected

	requested, actual  float64
	sent               []any
	sentAt, answeredAt time.Time
}

// level names one stock level of a product.
type level struct{ variant, location string }

func (r stockRow) level() level { return level{r.variant, r.location} }

func newJob(p work.Plan) *job {
	j := &job{plan: p, bad: map[level]bool{}, stale: map[level]int{}}
	st, ok := p.Steps.(*steps)
	if p.Nothing || !ok {
		j.finished = true
		return j
	}
	j.known = st.known
	j.known.shadow, j.known.memory = st.known.shadow.clone(), st.known.memory.clone()
	j.accept(st.first)
	return j
}

// accept takes over a decision; it ends the job when nothing is left to do.
func (j *job) accept(d decision) {
	j.todo = d
	if d.reason != "" {
		j.reason = d.reason
	}
	if d.read {
		return
	}
	if d.refused != nil && j.failure == nil {
		j.failure = &failure{category: event.Validation, final: true, message: d.refused.message, field: d.refused.field}
	}
	switch {
	case d.shadow != nil:
		j.shadow = d.shadow.clone()
	case j.shadow == nil && len(d.ops) > 0:
		j.shadow = newShadow("")
		if j.known.memory != nil { // the creation before may yet land on top of this one
			j.shadow.Former = cloneMap(j.known.memory.Former)
		}
	}
	if j.failure != nil { // what a person must mend is not tried again; stock still is
		j.todo.ops = nil
	}
	j.todo.rows = slices.DeleteFunc(slices.Clone(d.rows), func(r stockRow) bool { return j.bad[r.level()] })
	if len(j.todo.ops) == 0 && len(j.todo.rows) == 0 {
		j.finished, j.skipped = true, d.skipped
	}
}

// next plans again after a round of writes.
func (j *job) next() {
	if j.finished {
		return
	}
	if j.todo.read { // the shop contradicted the shadow
		return
	}
	if j.shadow == nil || j.shadow.ID == "" {
		j.finished = true
		return
	}
	j.known = knowledge{shadow: j.shadow, sure: !j.shadow.Doubt}
	j.accept(decide(j.plan.Push, j.known))
}

// fail notes what went wrong. A refused field ends nothing but its own kind; everything else ends the job.
func (j *job) fail(f *failure) {
	if f.reread && j.rereads == 0 && !f.unanswered {
		j.rereads++
		j.known.sure = false
		if j.shadow != nil && j.shadow.ID != "" {
			j.known.shadow = j.shadow
		}
		j.todo = decision{read: true}
		return
	}
	// A final failure of one field gives way to one that passes, and every other to one whose outcome is unknown.
	if j.failure == nil || j.failure.final && !f.final || f.unanswered && !j.failure.unanswered {
		j.failure = f
	}
	if f.unanswered {
		j.remember()
	}
	if f.final && !f.dead {
		if j.shadow != nil {
			j.shadow.Doubt = j.shadow.Doubt || f.reread
		}
		return
	}
	j.finished = true
}

// remember notes in the shadow what may have reached the shop.
func (j *job) remember() {
	if j.shadow == nil {
		j.shadow = newShadow("")
	}
	if j.shadow.ID == "" && j.known.memory != nil {
		j.shadow.Former = cloneMap(j.known.memory.Former)
	}
	j.shadow.maybe(j.flying)
}

// end fails the job whatever the failure.
func (j *job) end(f *failure) {
	j.failure, j.finished = f, true
}

func (j *job) charge(requested, actual float64, sent, answered time.Time) {
	j.requested += requested
	j.actual += actual
	if j.sentAt.IsZero() {
		j.sentAt = sent
	}
	j.answeredAt = answered
}

// unresolved returns the first name of the job's mutations that the shop does not have.
func (j *job) unresolved(sh *shop, set *settings) *refusal {
	for _, o := range j.todo.ops {
		if _, r := sh.resolve(o, set); r != nil {
			return r
		}
	}
	for _, row := range j.todo.rows {
		if _, r := sh.lookup(ref{refLocation, row.location}, set); r != nil {
			return r
		}
	}
	return nil
}

// drop leaves out what cannot be resolved.
func (j *job) drop(sh *shop, set *settings) {
	j.todo.ops = slices.DeleteFunc(slices.Clone(j.todo.ops), func(o *op) bool {
		_, r := sh.resolve(o, set)
		return r != nil
	})
	j.todo.rows = slices.DeleteFunc(slices.Clone(j.todo.rows), func(row stockRow) bool {
		_, r := sh.lookup(ref{refLocation, row.location}, set)
		if r != nil {
			j.bad[row.level()] = true
		}
		return r != nil
	})
}

// leaveMissing gives up what is to be taken from a channel or a location that the shop does not have any more.
func (j *job) leaveMissing(sh *shop, set *settings) {
	var ops []*op
	for _, o := range j.todo.ops {
		if o.document != "publishableUnpublish" {
			ops = append(ops, o)
			continue
		}
		var rest []string
		for _, name := range publicationNames(o) {
			if _, r := sh.lookup(ref{refPublication, name}, set); r == nil {
				rest = append(rest, name)
				continue
			}
			j.shadow.Publications = slices.DeleteFunc(j.shadow.Publications, func(n string) bool { return n == name })
		}
		if len(rest) > 0 {
			ops = append(ops, unpublishOp(j.shadow.ID, rest))
		}
	}
	j.todo.ops = ops
	j.todo.rows = slices.DeleteFunc(slices.Clone(j.todo.rows), func(row stockRow) bool {
		_, r := sh.lookup(ref{refLocation, row.location}, set)
		sv := j.shadow.Variants[row.variant]
		if r == nil || row.listed || sv == nil {
			return false
		}
		delete(sv.Stock, row.location)
		return true
	})
}

// record notes what a product sends, for its outcome.
func (i item) record(vars map[string]any) {
	if i.rows == nil {
		i.jobs[0].sent = append(i.jobs[0].sent, map[string]any{i.op.document: vars})
		return
	}
	input := object(vars["input"])
	rows := list(input["quantities"])
	for _, j := range i.jobs {
		var own []any
		for n, row := range i.rows {
			if row.job == j {
				own = append(own, rows[n])
			}
		}
		j.sent = append(j.sent, map[string]any{i.op.document: map[string]any{"name": input["name"], "quantities": own}})
	}
}

// maxSent bounds what an outcome shows of what was sent, in bytes.
const maxSent = 64 << 10

// result is the job's end as the stages see it.
func (j *job) result() work.Result {
	if j.plan.Nothing {
		return j.plan.Result
	}
	p := j.plan.Push
	r := work.Result{
		ProductID: p.ProductID, Shop: p.Shop, ShopifyID: p.Known.ShopifyID, OffSale: p.Known.OffSale,
		PointsRequested: j.requested, PointsActual: j.actual, SentAt: j.sentAt, AnsweredAt: j.answeredAt, Sent: j.sentText(),
	}
	j.describe(&r, p.Document)
	f := j.failure
	switch {
	case f == nil && j.wrote:
		r.Status, r.Reason = event.Success, j.reason
		return r
	case f == nil:
		r.Status, r.Reason = event.Skipped, j.skipped
		return r
	}
	r.Status, r.Category, r.Message, r.Field, r.Reason = event.Retrying, f.category, f.message, f.field, f.reason
	if f.final {
		r.Status = event.Failed
	}
	r.RetryAfter, r.Counts, r.ShopDead, r.Unanswered = f.retryAfter, f.counts, f.dead, f.unanswered
	if len(p.Known.Intents) > 0 && !j.known.sure {
		r.Unanswered = true // what was in doubt before still is: the shop could not be read
	}
	return r
}

// describe tells what the shop has now.
func (j *job) describe(r *work.Result, doc *document.Document) {
	// Invariant: only a read that has found nothing makes the state forget a product. A read that failed has not.
	if j.shadow == nil && j.absent && r.ShopifyID != "" {
		r.ShopifyID, r.Shadow = "", json.RawMessage(noShadow) // deleted in the shop
		return
	}
	if j.shadow == nil || j.shadow.ID == "" && !j.shadow.Doubt {
		return
	}
	if j.shadow.ID != "" {
		r.ShopifyID = j.shadow.ID
		r.VariantIDs = j.shadow.variantIDs(doc)
	}
	if j.shadow.Status != "" {
		r.OffSale = !j.shadow.onSale()
	}
	if raw, err := j.shadow.encode(); err == nil && string(raw) != string(j.plan.Push.Known.Shadow) {
		r.Shadow = raw
	}
}

func (j *job) sentText() string {
	if len(j.sent) == 0 {
		return ""
	}
	b, err := json.Marshal(j.sent)
	if err != nil {
		return ""
	}
	if len(b) <= maxSent {
		return string(b)
	}
	sum := sha256.Sum256(b)
	tail := "... sha256:" + hex.EncodeToString(sum[:])
	return cut(string(b), maxSent-len(tail)-3) + tail
}
