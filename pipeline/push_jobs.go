package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// The reasons of skipped products that the pipeline itself gives, and the one by which the sender says that a request
// never left (no points in time, or a stop).
const (
	reasonNoRow  = "NO_ROW"
	reasonNoShop = "NO_SHOP"
	reasonUnsent = "UNSENT"
	// reasonInvisible is why a product is parked whose transaction no new snapshot sees yet.
	reasonInvisible = "NOT_YET_VISIBLE"
	// reasonRead says that a first read has shown effects that the guard has not been asked about: plan again.
	reasonRead = "READ"
	// reasonExcluded is why a product is skipped that people keep from being pushed.
	reasonExcluded = "EXCLUDED"
)

// jobs turns flights and their rows into what each shop must be asked for.
func (r *reading) jobs(flights []*flight, rows map[string][]document.Row, failed map[string]error) []*job {
	var out []*job
	for _, f := range flights {
		var js []*job
		id := string(f.entry.product)
		switch {
		case f.again < 0: // its transaction stays invisible: it waits in the state
			f.again, f.unseen = 0, true
			js = []*job{{flight: f, push: work.Push{ProductID: id}, park: reasonInvisible}}
		case f.slow != nil || f.queued:
			js = []*job{f.slowJob()}
		case failed[id] != nil:
			j := f.ready("", work.Result{
				Status: event.Failed, Category: event.Validation, Field: "documents",
				Message: fmt.Sprintf("the documents query breaks on this product: %v", failed[id]),
			})
			f.blind = true
			js = []*job{j}
		default:
			js = f.split(rows[id])
		}
		f.open, f.shops = len(js), make(map[string]struct{}, len(js))
		for _, j := range js {
			f.shops[j.push.Shop] = struct{}{}
		}
		if f.entry.only == nil && !f.blind && !f.unseen {
			r.p.hints.learn(f.entry.product, f.shops)
		}
		out = append(out, js...)
	}
	for _, j := range out {
		j.same = j.same && !j.flight.excludes(j.push.Shop)
		if !j.same {
			j.flight.news++
		}
		if j.ready || j.park != "" {
			continue
		}
		if j.flight.excludes(j.push.Shop) {
			j.ready = true
			j.result = work.Result{
				ProductID: j.push.ProductID, Shop: j.push.Shop, Status: event.Skipped, Reason: reasonExcluded,
				Message: "somebody has excluded the product: shelfwire include sends it again",
			}
			continue
		}
		if j.same {
			j.ready = true
			j.result = work.Result{
				ProductID: j.push.ProductID, Shop: j.push.Shop, Status: j.push.Known.LastStatus, Reason: j.push.Known.LastReason,
			}
			continue
		}
		j.plan = r.p.parts.Sender.Plan(j.push)
		j.plan.Lane = max(j.plan.Lane, j.flight.entry.lane)
		if j.plan.Nothing {
			j.ready, j.result = true, j.plan.Result
		}
	}
	return out
}

// ready is a job whose result stands without asking a shop.
func (f *flight) ready(shop string, res work.Result) *job {
	id := string(f.entry.product)
	res.ProductID, res.Shop = id, shop
	return &job{
		flight: f, ready: true, result: res,
		push: work.Push{ProductID: id, Shop: shop, Known: f.knownIn(shop)},
	}
}

func (f *flight) knownIn(shop string) work.Known {
	k, ok := f.known[shop]
	if !ok {
		k = work.Known{ProductID: string(f.entry.product), Shop: shop}
	}
	return k
}

// split makes one job for each shop that the product belongs to or has left.
func (f *flight) split(rows []document.Row) []*job {
	var out []*job
	routed := map[string]bool{}
	unnamed, named := f.unnamed(rows)
	if unnamed.Message != "" {
		out = append(out, f.ready("", unnamed))
	}
	rows = named
	for i, row := range rows {
		if row.Shop == "" {
			reason := reasonNoShop
			var d struct{ Reason string }
			if json.Unmarshal(row.Document, &d) == nil && d.Reason != "" {
				reason = d.Reason
			}
			out = append(out, f.ready("", work.Result{
				Status: event.Skipped, Reason: reason,
				Message: "no shop is routed to this product",
			}))
			continue
		}
		if routed[row.Shop] || !f.wants(row.Shop) { // told with its first row
			routed[row.Shop] = true
			continue
		}
		routed[row.Shop] = true
		if n := countRows(rows[i:], row.Shop); n > 1 {
			out = append(out, f.ready(row.Shop, work.Result{
				Status: event.Failed, Category: event.Validation, Field: "documents",
				Message: fmt.Sprintf("the documents query returns %d rows for this product in this shop: which of them "+
					"the shop shall have cannot be known; it must return one", n),
			}))
			continue
		}
		out = append(out, f.document(row))
	}
	for shop := range f.known {
		k := f.knownIn(shop)
		if shop == "" || routed[shop] || !f.wants(shop) {
			continue
		}
		if unnamed.Message != "" { // it may belong here, too
			out = append(out, f.ready(shop, unnamed))
			continue
		}
		if k.ShopifyID == "" && len(k.Intents) == 0 {
			out = append(out, f.ready(shop, work.Result{Status: event.Skipped, Reason: reasonNoRow}))
			continue
		}
		out = append(out, &job{flight: f, push: work.Push{
			ProductID: string(f.entry.product), Shop: shop, Known: k, Gone: len(rows) == 0, Moved: len(rows) > 0,
		}})
	}
	for _, it := range f.items { // an item of a shop that the product neither belongs to nor ever reached
		if it.Shop != "" && !routed[it.Shop] && f.wants(it.Shop) {
			if _, ok := f.known[it.Shop]; !ok {
				routed[it.Shop] = true
				out = append(out, f.ready(it.Shop, work.Result{Status: event.Skipped, Reason: reasonNoRow}))
			}
		}
	}
	if len(out) == 0 { // a stale id, or a parked retry of a shop that is gone: nothing to do, and that must settle
		out = append(out, f.ready("", work.Result{Status: event.Skipped, Reason: reasonNoRow}))
	}
	return out
}

// unnamed separates the rows whose shop no name can be, and says what becomes of a product that has some; no message
// when it has none. They are told once, instead of rows without a shop.
func (f *flight) unnamed(rows []document.Row) (res work.Result, named []document.Row) {
	i := slices.IndexFunc(rows, func(row document.Row) bool { return len(row.Shop) > shopNameMost })
	if i < 0 {
		return res, rows
	}
	for _, row := range rows {
		if row.Shop != "" && len(row.Shop) <= shopNameMost {
			named = append(named, row)
		}
	}
	return work.Result{
		Status: event.Failed, Category: event.Validation, Field: "documents",
		Message: fmt.Sprintf("the documents query returns a shop for this product whose name has %d bytes, more than %d, and "+
			"begins with %q: let it return the name of a shop of the configuration",
			len(rows[i].Shop), shopNameMost, headOf(rows[i].Shop)),
	}, named
}

func countRows(rows []document.Row, shop string) (n int) {
	for i := range rows {
		if rows[i].Shop == shop {
			n++
		}
	}
	return n
}

// ends reports whether the product's last job ends its wait in a shop that it has no job for: the wait for all shops,
// and the one for a shop that it has nothing to do with any more. A push of some shops ends neither for others.
func (f *flight) ends(shop string) bool {
	if shop == "" {
		return f.entry.only == nil
	}
	_, own := f.shops[shop]
	return !own && !f.unseen && f.wants(shop)
}

func (f *flight) excludes(shop string) bool {
	_, all := f.excluded[""]
	_, here := f.excluded[shop]
	return all || here
}

// campaigns are those for which the product is parked again when its push to a shop has to wait: those of the rows that
// end with this push. One that has changed by itself waits for none, so that it is sent whatever becomes of them.
func (f *flight) campaigns(shop string) []int64 {
	var out []int64
	for _, ref := range f.parked {
		if (ref.Shop == shop || ref.Shop == "" && f.entry.only == nil) && !slices.Contains(out, ref.Campaign) {
			out = append(out, ref.Campaign)
		}
	}
	if len(out) == 0 || len(f.entry.offsets) > 0 {
		return []int64{0}
	}
	return out
}

func (f *flight) wants(shop string) bool {
	_, ok := f.entry.only[shop]
	return ok || f.entry.only == nil
}

// document makes the job of one row. A document that breaks the schema fails with its path; the shop is left as it
// is.
func (f *flight) document(row document.Row) *job {
	known := f.knownIn(row.Shop)
	// Items tell of variants, which only a plan knows.
	if len(f.items) == 0 && known.DocumentHash != "" && f.r.p.parts.Sender.Same(&known, row.Document) {
		return &job{flight: f, same: true, push: work.Push{
			ProductID: string(f.entry.product), Shop: row.Shop, Raw: row.Document, Hash: known.DocumentHash, Known: known,
		}}
	}
	d, err := document.Parse(row.Document)
	if err != nil {
		res := work.Result{Status: event.Failed, Category: event.Validation, Message: err.Error()}
		if at, ok := errors.AsType[*document.Error](err); ok {
			res.Field = at.Path
		}
		j := f.ready(row.Shop, res)
		j.push.Raw = row.Document
		return j
	}
	return &job{flight: f, push: work.Push{
		ProductID: string(f.entry.product), Shop: row.Shop, Document: &d, Raw: row.Document, Hash: document.Hash(d),
		Known: known,
	}}
}

// hold asks the guard about everything that would take products off sale or give things away.
func (r *reading) hold(ctx context.Context, jobs []*job) {
	asks := map[string][]work.GuardRequest{}
	for _, j := range jobs {
		if j.ready || j.park != "" {
			continue
		}
		for _, e := range j.plan.Effects {
			asks[j.push.Shop] = append(asks[j.push.Shop], work.GuardRequest{ProductID: j.push.ProductID, Effect: e})
		}
	}
	for shop, reqs := range asks {
		held, err := r.p.parts.State.Guard(ctx, shop, reqs, r.p.cfg.Guard)
		for _, j := range jobs {
			if j.push.Shop != shop || j.ready || len(j.plan.Effects) == 0 {
				continue
			}
			if err != nil { // unasked is unsent
				j.park = "GUARD_UNKNOWN"
				continue
			}
			for _, e := range j.plan.Effects {
				if held[work.GuardRequest{ProductID: j.push.ProductID, Effect: e}] {
					r.p.holds.say(ctx, r.p.log, shop, e)
					j.ready = true
					j.result = work.Result{
						ProductID: j.push.ProductID, Shop: shop, Status: event.Held, Reason: "GUARD",
						Message: fmt.Sprintf("held by the guard: too many products of %s would get the effect %s "+
							"within %s; release or reject the hold", shop, e, r.p.cfg.Guard.Window),
					}
				}
			}
		}
		if err != nil {
			r.p.log.WarnContext(ctx, "guard not asked", "shop", shop, "error", err)
		}
	}
}

// splitItems gives each item of a batch that has no shop yet one item for each shop, and marks what is about to be
// sent as PROCESSING, before anything is sent: so a batch is never complete while a shop of a product is missing. What
// waits for its shop is PENDING and not in hand, so that its batch can be cancelled.
func (r *reading) splitItems(ctx context.Context, jobs []*job) error {
	s := work.Settlement{}
	fences := map[*ownedPartition]struct{}{}
	split := map[[2]string]struct{}{}
	for _, j := range jobs {
		for _, it := range j.flight.items {
			if !r.snapshot.Sees(it.XID) || j.push.Shop == "" || it.Shop != "" && it.Shop != j.push.Shop {
				continue
			}
			if it.Shop == "" {
				split[[2]string{it.BatchID, it.ProductID}] = struct{}{}
			}
			n := it
			n.Shop, n.Status = j.push.Shop, work.ItemProcessing
			if j.park != "" {
				n.Status = work.ItemPending
			}
			if it.Shop != "" && (j.ready || n.Status == it.Status) {
				continue // nothing is sent for it now, or nothing is new
			}
			s.Items = append(s.Items, n)
			fences[j.flight.entry.owner] = struct{}{}
		}
	}
	if len(s.Items) == 0 {
		return nil
	}
	for k := range split {
		s.SplitItems = append(s.SplitItems, work.Item{BatchID: k[0], ProductID: k[1]})
	}
	for o := range fences {
		s.Fences = append(s.Fences, o.fence())
	}
	ctx, cancel := context.WithTimeout(ctx, r.p.cfg.Lease.TTL) // beyond the leases it could not be written any more
	defer cancel()
	s.Token = newToken()
	return r.p.insist(ctx, waitSplit, func(ctx context.Context) error { return r.p.parts.Fenced.Settle(ctx, s) })
}

// dropCancelled takes back what is about to be sent for cancelled campaigns only. The items are in hand by now: a cancel
// that is not seen here waits for them, and one that is seen has sent nothing. What has changed by itself, or may have
// reached its shop, goes on.
func (r *reading) dropCancelled(ctx context.Context, jobs []*job) error {
	var asked []int64
	for _, j := range jobs {
		for _, no := range j.sentFor() {
			if !slices.Contains(asked, no) {
				asked = append(asked, no)
			}
		}
	}
	if len(asked) == 0 {
		return nil
	}
	gone, err := r.p.parts.State.Cancelled(ctx, asked)
	if err != nil || len(gone) == 0 {
		return err
	}
	for _, j := range jobs {
		of := j.sentFor()
		if len(of) > 0 && !slices.ContainsFunc(of, func(no int64) bool { return !slices.Contains(gone, no) }) {
			j.ready, j.cancelled, j.flight.dropped = true, true, true
			j.result = work.Result{ProductID: j.push.ProductID, Shop: j.push.Shop, Status: event.Cancelled}
		}
	}
	return nil
}

// sentFor are the campaigns for which alone the job is about to be sent; none where it is not, or for others too.
func (j *job) sentFor() []int64 {
	if j.ready || j.park != "" || len(j.push.Known.Intents) > 0 {
		return nil
	}
	of := j.flight.campaigns(j.push.Shop)
	if slices.Contains(of, 0) {
		return nil
	}
	return of
}

// retryDelay is the pause before the attempt after n failed ones: 1 s, 5 s, 30 s, then 1 min doubling to 2 h. jitter
// is a number in [0, 1) that spreads it by a quarter either way.
func retryDelay(n int, jitter float64) time.Duration {
	quick := [...]time.Duration{time.Second, 5 * time.Second, 30 * time.Second}
	d := 2 * time.Hour
	switch {
	case n <= 0:
		d = 0
	case n <= len(quick):
		d = quick[n-1]
	case n-len(quick) <= 7:
		d = time.Minute << (n - len(quick) - 1)
	}
	return time.Duration(float64(d) * (0.75 + jitter/2))
}

// attemptsMax is after how many counted attempts a product is FAILED: retryDelay then adds up to 24 hours.
const attemptsMax = 21
