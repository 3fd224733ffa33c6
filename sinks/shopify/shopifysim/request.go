package shopifysim

import (
	"fmt"
	"math"
	"time"

	"github.com/vektah/gqlparser/v2/ast"

	"github.com/shelfwire/shelfwire/sinks/shopify/cost"
)

// prepared is a request that may be executed: valid, coerced, its cost known.
type prepared struct {
	entry     entry // as it goes into the journal
	doc       *ast.QueryDocument
	op        *ast.OperationDefinition
	variables map[string]any
	requested int
	roots     []string
}

// refusal is an answer to a request that is not executed.
type refusal struct {
	errors []*apiError
}

func (r *refusal) String() string {
	if len(r.errors) == 0 {
		return "refused"
	}
	return r.errors[0].Message
}

// prepare takes a request to the point where only the bucket stands between it and execution.
func (a *api) prepare(query, operation string, variables map[string]any) (*prepared, *refusal) {
	d := a.document(query)
	if len(d.errs) > 0 {
		return nil, &refusal{errors: d.errs}
	}
	op := d.doc.Operations.ForName(operation)
	if op == nil && len(d.doc.Operations) > 0 && operation == "" {
		return nil, &refusal{errors: []*apiError{{Message: "An operation name is required", whole: true}}}
	}
	if op == nil {
		return nil, &refusal{errors: []*apiError{{Message: fmt.Sprintf("No operation named %q", operation), whole: true}}}
	}
	c := coercer{schema: a.schema}
	coerced, errs := c.variables(op, variables)
	if len(errs) > 0 {
		return nil, &refusal{errors: errs}
	}
	root := a.schema.Query
	if op.Operation == ast.Mutation {
		root = a.schema.Mutation
	}
	if err := a.missing(d.doc, op.SelectionSet, root); err != nil {
		return nil, &refusal{errors: []*apiError{err}}
	}
	requested, err := cost.Requested(a.schema, d.doc, op, variables)
	if err != nil {
		return nil, &refusal{errors: []*apiError{notImplemented(err.Error())}}
	}
	if requested > cost.MaxPerRequest {
		return nil, &refusal{errors: []*apiError{maxCost(requested)}}
	}
	p := &prepared{
		entry: entry{Query: query, Operation: operation, Variables: variables},
		doc:   d.doc, op: op, variables: coerced, requested: requested,
	}
	p.roots = rootNames(op.SelectionSet, d.doc)
	return p, nil
}

func rootNames(set ast.SelectionSet, doc *ast.QueryDocument) []string {
	var out []string
	for _, s := range set {
		switch s := s.(type) {
		case *ast.Field:
			out = append(out, s.Name)
		case *ast.InlineFragment:
			out = append(out, rootNames(s.SelectionSet, doc)...)
		case *ast.FragmentSpread:
			if f := doc.Fragments.ForName(s.Name); f != nil {
				out = append(out, rootNames(f.SelectionSet, doc)...)
			}
		}
	}
	return out
}

const limitsPage = "https://shopify.dev/api/usage/rate-limits"

func maxCost(requested int) *apiError {
	e := coded("MAX_COST_EXCEEDED", fmt.Sprintf(
		"Query cost is %d, which exceeds the single query max cost limit (%d).\n\nSee %s for more information on how the cost of a query is calculated.",
		requested, cost.MaxPerRequest, limitsPage))
	e.Extensions["cost"], e.Extensions["maxCost"], e.Extensions["documentation"] = requested, cost.MaxPerRequest, limitsPage
	e.whole = true
	return e
}

// serve answers one request of a shop whose token was checked: charge, execute, journal, refund.
func (s *Shop) serve(p *prepared, throttled bool) map[string]any {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.sim.cfg.Now()
	if throttled {
		s.bucket.restore(now)
		s.bucket.level = math.Min(s.bucket.level, float64(p.requested)-1)
	}
	if !s.bucket.take(float64(p.requested), now) {
		s.stats.Throttled++
		return s.throttledAnswer(p)
	}
	if err := s.oversized(p); err != nil {
		// Not executed, yet charged in full (recorded: 420 points for an array of 2,049).
		s.stats.Refused++
		return map[string]any{"errors": []*apiError{err}, "extensions": s.costs(p, nil)}
	}
	data, errs := s.execute(p, now)
	if p.op.Operation == ast.Mutation && s.log != nil {
		p.entry.At = now
		if err := s.log.append(p.entry); err != nil {
			s.sim.log.Error("journal entry is lost", "shop", s.cfg.Domain, "error", err)
		}
	}
	used, err := cost.Actual(s.sim.api.schema, p.doc, p.op, p.variables, data)
	if err != nil || used > p.requested {
		used = p.requested
	}
	s.bucket.refund(float64(p.requested - used))
	s.account(p, used)
	answer := map[string]any{"data": any(data), "extensions": s.costs(p, used)}
	if data == nil {
		answer["data"] = nil
	}
	if len(errs) > 0 {
		answer["errors"] = errs
	}
	return answer
}

// execute runs a prepared request at an instant.
func (s *Shop) execute(p *prepared, now time.Time) (map[string]any, []*apiError) {
	s.store.now = now.UTC()
	x := &execution{store: s.store, api: s.sim.api, doc: p.doc, variables: p.variables}
	data := x.run(p.op)
	s.stats.UserErrors += x.failed
	return data, x.errs
}

func (s *Shop) account(p *prepared, used int) {
	s.stats.Executed++
	s.stats.PointsRequested += p.requested
	s.stats.PointsUsed += used
	counts := s.stats.Queries
	if p.op.Operation == ast.Mutation {
		counts = s.stats.Mutations
	}
	for _, r := range p.roots {
		counts[r]++
	}
}

func (s *Shop) costs(p *prepared, used any) map[string]any {
	return map[string]any{"cost": map[string]any{
		"requestedQueryCost": p.requested, "actualQueryCost": used, "throttleStatus": s.bucket.status(),
	}}
}

func (s *Shop) throttledAnswer(p *prepared) map[string]any {
	e := coded("THROTTLED", "Throttled")
	e.Extensions["documentation"] = limitsPage
	return map[string]any{"errors": []*apiError{e}, "extensions": s.costs(p, nil)}
}

// inputLimits are the array sizes that differ from the general limit, by input type and field or root field and
// argument.
var inputLimits = map[string]int{
	"ProductSetInput.variants":              2048,
	"productVariantsBulkCreate.variants":    2048,
	"productVariantsBulkUpdate.variants":    2048,
	"productVariantsBulkDelete.variantsIds": 2048,
	"OptionSetInput.values":                 2048, // more than 100 is a user error of its own
	"OptionCreateInput.values":              2048,
}

// defaultInputLimit is the largest array that Shopify takes in an input.
const defaultInputLimit = 250

// oversized finds an array in the arguments that is larger than Shopify accepts.
func (s *Shop) oversized(p *prepared) *apiError {
	x := &execution{store: s.store, api: s.sim.api, doc: p.doc, variables: p.variables}
	root := s.sim.api.schema.Query
	if p.op.Operation == ast.Mutation {
		root = s.sim.api.schema.Mutation
	}
	for _, f := range x.collect(p.op.SelectionSet, root, nil) {
		if f.Definition == nil {
			continue
		}
		a := f.ArgumentMap(p.variables)
		for _, d := range f.Definition.Arguments {
			if path, size, limit := s.sim.api.tooLong(d.Type, a[d.Name], f.Name+"."+d.Name, []any{f.Alias, d.Name}); path != nil {
				e := coded("MAX_INPUT_SIZE_EXCEEDED", fmt.Sprintf(
					"The input array size of %d is greater than the maximum allowed of %d.", size, limit))
				e.Path, e.Locations, e.whole = path, locations(f.Position), true
				return e
			}
		}
	}
	return nil
}

func (a *api) tooLong(t *ast.Type, v any, name string, path []any) ([]any, int, int) {
	if list, ok := v.([]any); ok && t.Elem != nil {
		limit := defaultInputLimit
		if l, ok := inputLimits[name]; ok {
			limit = l
		}
		if len(list) > limit {
			return path, len(list), limit
		}
		for i, e := range list {
			if p, n, l := a.tooLong(t.Elem, e, name, at(path, i)); p != nil {
				return p, n, l
			}
		}
		return nil, 0, 0
	}
	def := a.schema.Types[t.Name()]
	in, ok := v.(map[string]any)
	if !ok || def.Kind != ast.InputObject {
		return nil, 0, 0
	}
	for _, f := range def.Fields {
		if p, n, l := a.tooLong(f.Type, in[f.Name], def.Name+"."+f.Name, at(path, f.Name)); p != nil {
			return p, n, l
		}
	}
	return nil, 0, 0
}
