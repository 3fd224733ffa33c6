package shopify

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// settle brings the answer to one mutation into its products' shadows, or fails them.
func (d *delivery) settle(ctx context.Context, i item, payload map[string]any, problem *failure) {
	if problem == nil && payload == nil {
		problem = &failure{
			category: event.Unknown, counts: true, unanswered: true,
			message: "The answer says nothing of " + i.op.document + ".",
		}
	}
	if problem != nil {
		for _, j := range i.jobs {
			j.fail(problem)
		}
		return
	}
	errs := userErrors(payload)
	if i.rows != nil {
		d.settleStock(ctx, i, errs)
		return
	}
	j := i.jobs[0]
	switch {
	case len(errs) > 0:
		j.fail(d.classify(ctx, i.op.document, errs[0]))
	case i.op.document == "productSet" && text(object(payload["product"])["id"]) == "":
		j.fail(&failure{category: event.Unknown, counts: true, unanswered: true, message: "The shop named no product that it has set."})
	default:
		// Invariant: only the shop's own yes changes the shadow.
		if i.op.done != nil {
			i.op.done(j.shadow, payload)
		}
		j.wrote = true
	}
}

// classify sorts a userError. Where it says that a location or channel is not there, the names are looked up anew
// before the product is planned again.
func (d *delivery) classify(ctx context.Context, root string, e userError) *failure {
	f := classifyUser(root, e)
	if f.unset {
		if set, failed := d.shops.learnSettings(ctx, d.shop, d.lane, true); failed == nil {
			d.set = set
		}
	}
	return f
}

// maxStale is how often one level is written again because it has moved meanwhile.
const maxStale = 3

// settleStock settles the rows of one inventorySetQuantities. Shopify takes all or none: the rows that it names are
// taken out, and the others stand in the shadow as they did, so that the next round sends them again.
func (d *delivery) settleStock(ctx context.Context, i item, errs []userError) {
	if len(errs) == 0 {
		for _, r := range i.rows {
			r.job.wrote = true
			r.job.setLevel(r.stockRow, ShadowLevel{Quantity: r.quantity})
		}
		return
	}
	refused := map[int]*failure{}
	var stale []ownedRow
	for _, e := range errs {
		n, named := rowIndex(e.field)
		switch {
		case !named && !classifyUser(i.op.document, e).final: // it passes by itself, for all rows alike
			for _, j := range i.jobs {
				j.fail(classifyUser(i.op.document, e))
			}
			return
		case !named || n >= len(i.rows):
			d.isolate(ctx, i, e)
			return
		case e.code == "CHANGE_FROM_QUANTITY_STALE" || e.code == "COMPARE_QUANTITY_STALE":
			stale = append(stale, i.rows[n])
		default:
			refused[n] = d.classify(ctx, "inventorySetQuantities", e)
		}
	}
	for n, f := range refused {
		r := i.rows[n]
		named := *f
		named.message = fmt.Sprintf("Stock of variant %s at %s: %s", r.variant, r.location, f.message)
		if !named.reread || r.job.rereads > 0 {
			r.job.bad[r.level()] = true
		}
		r.job.fail(&named)
	}
	d.refresh(ctx, stale)
}

// rowIndex reads the row's number from ["input", "quantities", "71", "inventoryItemId"].
func rowIndex(field []string) (int, bool) {
	at := slices.Index(field, "quantities")
	if at < 0 || at+1 >= len(field) {
		return 0, false
	}
	n, err := strconv.Atoi(field[at+1])
	return n, err == nil && n >= 0
}

// isolate sends the halves of rows that were refused without saying which; a single one is the culprit.
func (d *delivery) isolate(ctx context.Context, i item, e userError) {
	if len(i.rows) == 1 {
		r := i.rows[0]
		f := d.classify(ctx, "inventorySetQuantities", e)
		if !f.reread || r.job.rereads > 0 {
			r.job.bad[r.level()] = true
		}
		r.job.fail(f)
		return
	}
	half := len(i.rows) / 2
	for _, rows := range [][]ownedRow{i.rows[:half], i.rows[half:]} {
		part := &request{}
		part.add(stockItem(rows[0].name, rows))
		d.write(ctx, part)
	}
}

// refresh reads levels that were not what the shadow said, so that the next round compares with what is there.
func (d *delivery) refresh(ctx context.Context, rows []ownedRow) {
	if len(rows) == 0 {
		return
	}
	var ops []*op
	for _, r := range rows {
		location, _ := d.shop.lookup(ref{refLocation, r.location}, d.set)
		ops = append(ops, newOp("level", map[string]any{"id": r.item, "location": location}))
	}
	at := 0
	for chunk := range slices.Chunk(ops, maxInputRows) {
		fields, f := d.shops.query(ctx, d.shop, d.lane, chunk)
		for n := range chunk {
			r := rows[at]
			at++
			if f != nil {
				r.job.fail(f)
				continue
			}
			d.conflict(r, fields[n])
		}
	}
}

// conflict brings a level that has moved into the shadow and decides when the document's value is written over it.
func (d *delivery) conflict(r ownedRow, item map[string]any) {
	l := ShadowLevel{Unknown: true}
	if q, ok := quantity(object(item["inventoryLevel"]), r.name); ok {
		l = ShadowLevel{Quantity: q}
	}
	r.job.setLevel(r.stockRow, l)
	r.job.stale[r.level()]++
	wait := d.shops.cfg.StaleWait
	d.shops.cfg.Logger.Debug("a stock level has moved in the shop",
		"shop", d.shop.name, "product", r.job.plan.Push.ProductID, "location", r.location, "level", l.Quantity)
	switch {
	case wait > 0 && r.name == available:
		r.job.fail(&failure{
			category: event.ShopifyError, reason: "STOCK_MOVED", retryAfter: wait,
			message: fmt.Sprintf("The shop's level at %s has moved to %d; its sales are given time to reach the database.", r.location, l.Quantity),
		})
	case r.job.stale[r.level()] > maxStale:
		r.job.fail(&failure{
			category: event.ShopifyError, reason: "STOCK_MOVED", counts: true, retryAfter: time.Second,
			message: fmt.Sprintf("The shop's level at %s moves faster than it can be written.", r.location),
		})
	}
}

// setLevel notes what a level is now.
func (j *job) setLevel(r stockRow, l ShadowLevel) {
	sv := j.shadow.Variants[r.variant]
	if sv == nil {
		return
	}
	if r.name != available {
		l.Name = r.name
	}
	sv.Stock[r.location] = l
}

// readRound finds out what the shop has of products in doubt and plans them again.
func (d *delivery) readRound(ctx context.Context, jobs []*job) {
	var byID, lookups []*job
	for _, j := range jobs {
		if j.known.shadow != nil && j.known.shadow.ID != "" {
			byID = append(byID, j)
		} else {
			lookups = append(lookups, j)
		}
	}
	gone := d.readProducts(ctx, byID)
	// A product that is not there by its id may have been created anew with our custom id.
	found := d.lookup(ctx, append(lookups, gone...))
	for _, j := range d.readProducts(ctx, found) {
		j.planRead(nil)
	}
}

// lookup asks for products by custom id; those that exist get a shadow with their id and are returned.
func (d *delivery) lookup(ctx context.Context, jobs []*job) []*job {
	var found []*job
	for chunk := range slices.Chunk(jobs, maxInputRows) {
		ops := make([]*op, len(chunk))
		for i, j := range chunk {
			ops[i] = newOp("lookup", map[string]any{"identifier": d.shop.customID(j.plan.Push)})
		}
		fields, f := d.read(ctx, chunk, ops)
		for i, j := range chunk {
			switch {
			case f != nil:
				j.end(f)
			case fields[i] == nil:
				j.planRead(nil)
			default:
				j.known.shadow = newShadow("")
				if j.known.memory != nil {
					j.known.shadow = j.known.memory.clone()
				}
				j.known.shadow.ID = text(fields[i]["id"])
				found = append(found, j)
			}
		}
	}
	return found
}

// readProducts reads whole products by id, as many as fit into a request, page by page, and plans them again. Those
// that do not exist are returned.
func (d *delivery) readProducts(ctx context.Context, jobs []*job) (gone []*job) {
	readings := map[*job]*reading{}
	for _, j := range jobs {
		doc := j.plan.Push.Document
		if doc == nil {
			doc = &document.Document{}
		}
		readings[j] = &reading{doc: doc, old: j.known.shadow, set: d.set}
	}
	for len(jobs) > 0 {
		var ops []*op
		points := 0
		for _, j := range jobs {
			o := readings[j].op(j.known.shadow.ID)
			o.vars, _ = d.shop.resolve(o, d.set)
			if len(ops) > 0 && points+o.points > maxReadPoints {
				break
			}
			ops = append(ops, o)
			points += o.points
		}
		now := jobs[:len(ops)]
		jobs = jobs[len(ops):]
		fields, f := d.read(ctx, now, ops)
		for i, j := range now {
			switch {
			case f != nil:
				j.end(f)
			case fields[i] == nil:
				gone = append(gone, j)
			case readings[j].take(fields[i]):
				jobs = append(jobs, j) // its next page
			default:
				j.planRead(readings[j].shadow())
			}
		}
	}
	return gone
}

// maxReadPoints keeps reads of products below the cost cap, and leaves the bucket something for what is live.
const maxReadPoints = 500

// read sends queries on behalf of products and charges them.
func (d *delivery) read(ctx context.Context, jobs []*job, ops []*op) ([]map[string]any, *failure) {
	at := time.Now()
	fields, f := d.shops.query(ctx, d.shop, d.lane, ops)
	for i, j := range jobs {
		j.charge(float64(ops[i].points), float64(ops[i].points), at, time.Now())
	}
	return fields, f
}

// planRead plans a product again with what the shop has; nil where it has no such product.
func (j *job) planRead(s *Shadow) {
	j.known = knowledge{shadow: s, memory: j.known.memory, sure: true, fresh: true}
	j.shadow, j.absent = s, s == nil
	d := decide(j.plan.Push, j.known)
	for _, e := range d.effects {
		if !slices.Contains(j.plan.Effects, e) {
			// The guard has not seen this effect, as nobody knew what the shop had. Now the state will know.
			j.end(&failure{
				category: event.Unknown, reason: "READ", retryAfter: 100 * time.Millisecond,
				message: "The shop was read; what it has makes this push " + effectWords[e] + ", which the guard must see first.",
			})
			return
		}
	}
	j.accept(d)
}

var effectWords = map[work.Effect]string{
	work.EffectOffSale:   "take it off sale",
	work.EffectZeroPrice: "set a price to 0",
}
