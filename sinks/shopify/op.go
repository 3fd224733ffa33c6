package shopify

import (
	"fmt"
	"regexp"
	"strings"
	"sync"

	"github.com/vektah/gqlparser/v2/ast"
	"github.com/vektah/gqlparser/v2/parser"

	"github.com/shelfwire/shelfwire/schemas/admin"
	documents "github.com/shelfwire/shelfwire/schemas/shopify"
	"github.com/shelfwire/shelfwire/sinks/shopify/cost"
)

// op is one root field that a request will carry for one product: a document with its variables.
type op struct {
	document string
	vars     map[string]any
	// points is its requested cost. Aliases add up without a discount, so a request costs the sum of its ops.
	points int
	// done changes the shadow when the shop has accepted the op; payload is the root field's answer.
	done func(s *Shadow, payload map[string]any)
	// adds is what the op adds to lists that are not ours alone.
	adds additions
	// heavy marks what takes the shop long: few of these share a request, lest it times out.
	heavy bool
	err   error
}

// stockRow is one level to be set.
type stockRow struct {
	variant  string // key
	item     string // gid
	location string // name
	name     string // available, on_hand
	quantity int
	listed   bool // by the document; false where a level that has left it is emptied
	from     *int // what the shop is believed to have; nil where nobody knows
}

// ref stands in a plan's variables for what only the shop's settings tell.
type ref struct{ kind, name string }

// The kinds of ref.
const (
	refLocation    = "location"
	refPublication = "publication"
	refCustomID    = "custom id" // name is "namespace" or "key"
)

// newOp prices an op.
func newOp(name string, vars map[string]any) *op {
	o := &op{document: name, vars: vars}
	o.points, o.err = price(name, vars)
	return o
}

// makesVariants reports whether the op counts against the shop's daily limit of new variants.
func (o *op) makesVariants() bool {
	return o.document == "productSet" || o.document == "productVariantsBulkCreate"
}

// template is a document that is ready to be put into a request beside others.
type template struct {
	name      string
	operation *ast.OperationDefinition
	source    *ast.QueryDocument
	query     bool
	root      string // the root field's name
	body      string // the root field with arguments and selection
	params    []param
}

type param struct{ name, definition string }

var variable = regexp.MustCompile(`\$\w+`)

// templates parses all documents once. They are embedded, and a test of schemas/shopify proves each: an error here is
// a broken build.
var templates = sync.OnceValues(func() (map[string]*template, error) {
	out := map[string]*template{}
	for _, name := range documents.Names() {
		text, err := documents.Document(name)
		if err != nil {
			return nil, err
		}
		t, err := newTemplate(name, text)
		if err != nil {
			return nil, fmt.Errorf("parse the GraphQL document %s: %w", name, err)
		}
		out[name] = t
	}
	return out, nil
})

func newTemplate(name, text string) (*template, error) {
	doc, err := parser.ParseQuery(&ast.Source{Name: name, Input: text})
	if err != nil {
		return nil, err
	}
	operation := doc.Operations[0]
	root, ok := operation.SelectionSet[0].(*ast.Field)
	if !ok {
		return nil, fmt.Errorf("the root selection is no field")
	}
	end := strings.LastIndexByte(text, '}')
	t := &template{
		name: name, operation: operation, source: doc, query: operation.Operation == ast.Query, root: root.Name,
		body: strings.TrimSpace(text[root.Position.Start:end]),
	}
	for _, d := range operation.VariableDefinitions {
		t.params = append(t.params, param{d.Variable, d.Type.String()})
	}
	return t, nil
}

// price is the requested cost of one op.
func price(name string, vars map[string]any) (int, error) {
	all, err := templates()
	if err != nil {
		return 0, err
	}
	schema, err := admin.Schema()
	if err != nil {
		return 0, err
	}
	t := all[name]
	if t == nil {
		return 0, fmt.Errorf("price %s: no such document", name)
	}
	return cost.Requested(schema, t.source, t.operation, vars)
}

// compose puts ops into one GraphQL request: each root field gets the alias m0, m1, ..., and its variables that
// number as a suffix.
func compose(ops []*op) (query string, variables map[string]any, err error) {
	all, err := templates()
	if err != nil {
		return "", nil, err
	}
	var head, body strings.Builder
	variables = map[string]any{}
	kind := "mutation"
	for i, o := range ops {
		t := all[o.document]
		if t.query {
			kind = "query"
		}
		suffix := fmt.Sprintf("_%d", i)
		for _, p := range t.params {
			fmt.Fprintf(&head, "$%s%s: %s, ", p.name, suffix, p.definition)
			// A variable that is declared and not given makes its argument absent, not null.
			if value, given := o.vars[p.name]; given {
				variables[p.name+suffix] = value
			}
		}
		fmt.Fprintf(&body, "  m%d: %s\n", i, variable.ReplaceAllStringFunc(t.body, func(v string) string { return v + suffix }))
	}
	return fmt.Sprintf("%s shelfwire(%s) {\n%s}\n", kind, strings.TrimSuffix(head.String(), ", "), body.String()), variables, nil
}
