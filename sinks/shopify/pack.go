package shopify

import (
	"slices"

	"github.com/shelfwire/shelfwire/sinks/shopify/cost"
)

// item is one root field of a request with the products that it is for: one, or many where it sets stock.
type item struct {
	op   *op
	jobs []*job
	// rows are the stock rows with their owners, in the order of the input.
	rows []ownedRow
}

type ownedRow struct {
	stockRow
	job *job
}

// request is what goes out in one call.
type request struct {
	items  []item
	points int
	heavy  int
}

func (r *request) fits(o *op, maxItems, maxHeavy int) bool {
	switch {
	case len(r.items) == 0:
		return true
	case r.points+o.points > cost.MaxPerRequest || len(r.items) >= maxItems:
		return false
	case o.heavy && r.heavy >= maxHeavy:
		return false
	}
	return true
}

func (r *request) add(i item) {
	r.items = append(r.items, i)
	r.points += i.op.points
	if i.op.heavy {
		r.heavy++
	}
}

// jobs lists the products of a request, each once.
func (r *request) jobs() []*job {
	var out []*job
	for _, i := range r.items {
		for _, j := range i.jobs {
			if !slices.Contains(out, j) {
				out = append(out, j)
			}
		}
	}
	return out
}

// pack puts what the jobs want into as few requests as the limits allow. A product's mutations keep their order, also
// across requests. Stock comes last, for all products together.
func pack(jobs []*job, maxItems, maxHeavy int) []*request {
	var out []*request
	last := &request{}
	place := func(i item) {
		if !last.fits(i.op, maxItems, maxHeavy) {
			out = append(out, last)
			last = &request{}
		}
		last.add(i)
	}
	byName := map[string][]ownedRow{}
	for _, j := range jobs {
		for _, o := range j.todo.ops {
			place(item{op: o, jobs: []*job{j}})
		}
		for _, row := range j.todo.rows {
			byName[row.name] = append(byName[row.name], ownedRow{row, j})
		}
	}
	for _, name := range []string{available, onHand} {
		for rows := range slices.Chunk(byName[name], maxInputRows) {
			place(stockItem(name, rows))
		}
	}
	if len(last.items) > 0 {
		out = append(out, last)
	}
	return out
}

// stockItem sets levels of any number of products in one mutation.
func stockItem(name string, rows []ownedRow) item {
	quantities := make([]any, 0, len(rows))
	i := item{rows: rows}
	for _, r := range rows {
		// Invariant: changeFromQuantity is always there. Null writes blindly and is sent only where nobody knows
		// what the shop has; a missing one is refused by Shopify.
		var from any
		if r.from != nil {
			from = *r.from
		}
		quantities = append(quantities, map[string]any{
			"inventoryItemId": r.item, "locationId": ref{refLocation, r.location},
			"quantity": r.quantity, "changeFromQuantity": from,
		})
		if !slices.Contains(i.jobs, r.job) {
			i.jobs = append(i.jobs, r.job)
		}
	}
	i.op = newOp("inventorySetQuantities", map[string]any{
		"input": map[string]any{"name": name, "reason": "correction", "quantities": quantities},
		"key":   "", // the request's key takes its place
	})
	return i
}

// halves splits a request by products, so that one that the shop refuses does not take the others with it.
func (r *request) halves() []*request {
	jobs := r.jobs()
	if len(jobs) < 2 {
		return nil
	}
	var out []*request
	for _, part := range [][]*job{jobs[:len(jobs)/2], jobs[len(jobs)/2:]} {
		half := &request{}
		for _, i := range r.items {
			if i.rows == nil {
				if slices.Contains(part, i.jobs[0]) {
					half.add(i)
				}
				continue
			}
			var rows []ownedRow
			for _, row := range i.rows {
				if slices.Contains(part, row.job) {
					rows = append(rows, row)
				}
			}
			if len(rows) > 0 {
				half.add(stockItem(rows[0].name, rows))
			}
		}
		out = append(out, half)
	}
	return out
}
