// Package cost computes what Shopify charges for an Admin GraphQL request before it is sent.
//
// It is a pure function of schema, document and variables. The client uses it to wait for exactly the points that a
// request needs and to split what would exceed MaxPerRequest; the simulator charges by it. The formula was derived
// from Shopify's rate limit page and its changelogs and is proved by the recorded exchanges of real shops
// (cost_test.go prints the share that it hits).
//
// # The formula
//
//   - A scalar costs nothing, an object 1 and a list of objects 1, whatever its length.
//   - A connection costs 2 plus its nodes' cost times floor(2·ln(first)), first being at least 2: Shopify charges
//     the logarithm of the page, so one page of 250 costs 11 nodes while ten pages of 25 cost 60.
//   - Value objects (money, measurements, page info) are free.
//   - A mutation costs 10 plus its input (input.go); the first level of its payload is free.
//   - Under an interface or union the dearest concrete type counts.
package cost

import (
	"fmt"
	"math"

	"github.com/vektah/gqlparser/v2/ast"
)

// MaxPerRequest is the requested cost above which Shopify refuses a request on every plan (MAX_COST_EXCEEDED).
const MaxPerRequest = 1000

// PageCap is the page size above which a connection costs no more; larger pages are refused on most connections.
const PageCap = 250

// Requested returns requestedQueryCost of one operation of doc: what Shopify holds back from the bucket before it
// executes. The document needs to be parsed but not validated; a selection that the schema does not know is an
// error. Variables are as decoded from JSON; absent ones take the operation's defaults.
func Requested(schema *ast.Schema, doc *ast.QueryDocument, op *ast.OperationDefinition, variables map[string]any) (int, error) {
	w := newWalker(schema, doc, op, variables)
	return w.operation(op, nil)
}

// Actual returns a plausible actualQueryCost for a request that returned data (the decoded "data" member of the
// answer): objects that came back null are free and connections count what they returned. Shopify's own figure
// follows no published formula; it was never above the requested cost in recordings, and neither is this one.
func Actual(schema *ast.Schema, doc *ast.QueryDocument, op *ast.OperationDefinition, variables map[string]any, data map[string]any) (int, error) {
	w := newWalker(schema, doc, op, variables)
	if data == nil {
		data = map[string]any{}
	}
	w.measured = true
	return w.operation(op, data)
}

// walker carries what every level of one computation needs.
type walker struct {
	schema    *ast.Schema
	doc       *ast.QueryDocument
	variables map[string]any
	measured  bool // count what data holds instead of what the document asks for
}

func newWalker(schema *ast.Schema, doc *ast.QueryDocument, op *ast.OperationDefinition, given map[string]any) *walker {
	variables := make(map[string]any, len(op.VariableDefinitions))
	for _, d := range op.VariableDefinitions {
		if v, ok := given[d.Variable]; ok {
			variables[d.Variable] = v
		} else if d.DefaultValue != nil {
			if v, err := d.DefaultValue.Value(nil); err == nil {
				variables[d.Variable] = v
			}
		}
	}
	return &walker{schema: schema, doc: doc, variables: variables}
}

func (w *walker) operation(op *ast.OperationDefinition, data map[string]any) (int, error) {
	mutation := op.Operation == ast.Mutation
	root := w.schema.Query
	if mutation {
		root = w.schema.Mutation
	}
	fields, err := w.collect(op.SelectionSet, root)
	if err != nil {
		return 0, err
	}
	total := 0.0
	for _, f := range fields {
		if f.name == "__typename" {
			continue
		}
		var points float64
		if mutation {
			points, err = w.mutation(f, data)
		} else {
			points, err = w.root(f, data)
		}
		if err != nil {
			return 0, err
		}
		total += points
	}
	// Nothing selected after @skip, or __typename alone, is still a request: recorded as 1.
	return int(math.Max(1, math.Floor(total))), nil
}

// root costs one root field of a query.
func (w *walker) root(f *field, data map[string]any) (float64, error) {
	if f.typ != nil && f.typ.Name == "Count" {
		return rootCountPoints, nil
	}
	return w.field(f, w.member(data, f))
}

// mutation costs one root field of a mutation: the fixed part and the input, then only what lies below the payload's
// first level.
func (w *walker) mutation(f *field, data map[string]any) (float64, error) {
	total := math.Round(inputPoints(f.name, f.args))
	payload, err := w.collect(f.selection, f.typ)
	if err != nil {
		return 0, err
	}
	answer, _ := w.member(data, f).(map[string]any)
	if w.measured && answer == nil {
		return math.Min(total, mutationPoints), nil
	}
	for _, p := range payload {
		if p.typ == nil {
			continue
		}
		points, err := w.below(p, w.member(answer, p))
		if err != nil {
			return 0, err
		}
		total += points
	}
	return total, nil
}

// field costs a field with what lies below it.
func (w *walker) field(f *field, value any) (float64, error) {
	if w.measured && value == nil {
		return 0, nil
	}
	if points, ok := dear[f.parent+"."+f.name]; ok {
		return points, nil
	}
	if f.typ == nil {
		return 0, nil
	}
	if f.connection() {
		return w.page(f, value)
	}
	below, err := w.below(f, value)
	if err != nil {
		return 0, err
	}
	if free[f.typ.Name] {
		return below, nil
	}
	return 1 + below, nil
}

// below costs what a field's object selects, without the object itself.
func (w *walker) below(f *field, value any) (float64, error) {
	if w.measured && value == nil {
		return 0, nil
	}
	if f.connection() {
		return w.page(f, value)
	}
	// Of a list the first element that is there stands for all: a list of objects is charged once.
	if list, ok := value.([]any); ok {
		value = nil
		for _, v := range list {
			if v != nil {
				value = v
				break
			}
		}
		if w.measured && value == nil {
			return 0, nil
		}
	}
	return w.object(f.selection, f.typ, value)
}

// object costs a selection on a type; of an abstract type the dearest of the concrete types that the selection
// names, or in a measured walk the one that was returned.
func (w *walker) object(set ast.SelectionSet, typ *ast.Definition, value any) (float64, error) {
	concrete := []*ast.Definition{typ}
	if typ.IsAbstractType() {
		concrete = w.named(set, typ)
	}
	data, _ := value.(map[string]any)
	dearest := 0.0
	for _, t := range concrete {
		fields, err := w.collect(set, t)
		if err != nil {
			return 0, err
		}
		sum := 0.0
		for _, f := range fields {
			points, err := w.field(f, w.member(data, f))
			if err != nil {
				return 0, err
			}
			sum += points
		}
		dearest = math.Max(dearest, sum)
	}
	return dearest, nil
}

// page costs a connection.
func (w *walker) page(f *field, value any) (float64, error) {
	fields, err := w.collect(f.selection, f.typ)
	if err != nil {
		return 0, err
	}
	answer, _ := value.(map[string]any)
	node, other := 0.0, 0.0
	returned := 0
	for _, c := range fields {
		list, _ := w.member(answer, c).([]any)
		returned = max(returned, len(list))
		var points float64
		switch c.name {
		case "nodes":
			points, err = w.node(c.selection, c.typ, list, false)
			node += points
		case "edges":
			points, err = w.node(c.selection, c.typ, list, true)
			node += points
		default: // pageInfo is free; filters and the like are ordinary objects
			points, err = w.field(c, w.member(answer, c))
			other += points
		}
		if err != nil {
			return 0, err
		}
	}
	if f.pageSize() == 0 { // refused when executed, and charged without its nodes
		return connectionPoints + other, nil
	}
	size := float64(min(PageCap, max(2, f.pageSize())))
	factor := math.Floor(2 * math.Log(size))
	if w.measured {
		factor = math.Min(factor, 2*math.Log(size)*float64(returned)/size)
	}
	return connectionPoints + other + factor*math.Max(node, 1), nil
}

// node costs one node of a connection with what lies below it; through edges when edge is set.
func (w *walker) node(set ast.SelectionSet, typ *ast.Definition, list []any, edge bool) (float64, error) {
	var sample any
	if len(list) > 0 {
		sample = list[0]
	}
	if w.measured && sample == nil {
		return 0, nil
	}
	points, err := w.object(set, typ, sample)
	if err != nil {
		return 0, err
	}
	if edge { // the edge is free, its node field has charged for the node
		return points, nil
	}
	return 1 + points, nil
}

// member returns the value that the answer holds for a field.
func (w *walker) member(data map[string]any, f *field) any {
	if data == nil {
		return nil
	}
	return data[f.key]
}

// errUnknown names a selection that the schema does not have.
func errUnknown(typ *ast.Definition, name string) error {
	return fmt.Errorf("cost: type %s has no field %s in the Admin schema", typ.Name, name)
}
