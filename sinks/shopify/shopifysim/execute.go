package shopifysim

import (
	"errors"
	"fmt"
	"time"

	"github.com/vektah/gqlparser/v2/ast"
)

// arguments are a field's coerced arguments: absent, null and given are three things.
type arguments map[string]any

// record is an object whose fields are known when it is built: payloads, user errors, value objects. "__typename"
// may name its type where the schema's type is abstract. A field that the record lacks is not implemented.
type record map[string]any

// resolver answers one field of one type.
type resolver func(x *execution, self any, a arguments) (any, error)

// fields are the resolvers of a type by field name.
type fields map[string]resolver

// get makes a resolver of a plain accessor.
func get[T any](f func(T) any) resolver {
	return func(_ *execution, self any, _ arguments) (any, error) { return f(self.(T)), nil }
}

// with makes a resolver of a function that needs the execution or arguments.
func with[T any](f func(x *execution, self T, a arguments) (any, error)) resolver {
	return func(x *execution, self any, a arguments) (any, error) { return f(x, self.(T), a) }
}

// execution is one request while it runs.
type execution struct {
	*store
	api       *api
	doc       *ast.QueryDocument
	variables map[string]any
	errs      []*apiError
	focus     *product // whose options are being read
	later     []func() // done when the mutation has no errors: changes to what is not cloned
	failed    int      // user errors returned
	key       string   // of @idempotent on the mutation that runs; "" without
	keyed     bool
}

// errNull says that a value is null where the schema allows none: the parent becomes null in its place.
var errNull = errors.New("null in a non-null position")

// run executes an operation and returns its data; nil where a non-null root field failed.
func (x *execution) run(op *ast.OperationDefinition) (data map[string]any) {
	root, roots := x.api.schema.Query, x.api.queries
	if op.Operation == ast.Mutation {
		root, roots = x.api.schema.Mutation, x.api.mutations
	}
	data = map[string]any{}
	for _, f := range x.collect(op.SelectionSet, root, nil) {
		if f.Name == "__typename" {
			data[f.Alias] = root.Name
			continue
		}
		path := []any{f.Alias}
		value, err := x.root(f, roots[f.Name], path)
		if err != nil {
			return nil
		}
		data[f.Alias] = value
	}
	return data
}

// root resolves one root field.
func (x *execution) root(f *ast.Field, resolve resolver, path []any) (any, error) {
	a, apiErr := x.arguments(f, path)
	if apiErr != nil {
		return x.null(f, apiErr, path)
	}
	x.key, x.keyed, x.later = "", false, nil
	if d := f.Directives.ForName("idempotent"); d != nil {
		if arg := d.Arguments.ForName("key"); arg != nil {
			v, _ := arg.Value.Value(x.variables)
			x.key, x.keyed = fmt.Sprint(v), v != nil
		}
	}
	value, err := resolve(x, nil, a)
	if err != nil {
		return x.null(f, err, path)
	}
	return x.complete(f.Definition.Type, f, value, path)
}

// null records an error and makes the field null, or its parent where the field may not be.
func (x *execution) null(f *ast.Field, err error, path []any) (any, error) {
	var e *apiError
	if !errors.As(err, &e) {
		e = coded("INTERNAL_SERVER_ERROR", err.Error())
	}
	if e.Locations == nil {
		e.Locations = locations(f.Position)
	}
	if e.Path == nil {
		e.Path = path
	}
	x.errs = append(x.errs, e)
	if f.Definition.Type.NonNull {
		return nil, errNull
	}
	return nil, nil
}

// complete shapes a resolved value by its type and selection.
func (x *execution) complete(t *ast.Type, f *ast.Field, value any, path []any) (any, error) {
	if isNil(value) {
		if t.NonNull {
			return nil, errNull
		}
		return nil, nil
	}
	if t.Elem != nil {
		return x.completeList(t, f, value, path)
	}
	def := x.api.schema.Types[t.NamedType]
	if def.IsLeafType() {
		return leaf(value), nil
	}
	out, err := x.object(f.SelectionSet, def, value, path)
	if err != nil && !t.NonNull {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (x *execution) completeList(t *ast.Type, f *ast.Field, value any, path []any) (any, error) {
	list, ok := value.([]any)
	if !ok {
		return nil, fmt.Errorf("%v: a list was expected, not %T", path, value)
	}
	out := make([]any, len(list))
	for i, v := range list {
		e, err := x.complete(t.Elem, f, v, at(path, i))
		if err != nil {
			if t.NonNull {
				return nil, err
			}
			return nil, nil
		}
		out[i] = e
	}
	return out, nil
}

// object executes a selection on a value.
func (x *execution) object(set ast.SelectionSet, def *ast.Definition, value any, path []any) (map[string]any, error) {
	if def.IsAbstractType() {
		def = x.api.schema.Types[typeName(value)]
		if def == nil {
			return nil, fmt.Errorf("%v: %T has no GraphQL type", path, value)
		}
	}
	out := map[string]any{}
	for _, f := range x.collect(set, def, nil) {
		if f.Name == "__typename" {
			out[f.Alias] = def.Name
			continue
		}
		at := at(path, f.Alias)
		v, err := x.field(f, def, value, at)
		if err != nil {
			return nil, err
		}
		out[f.Alias] = v
	}
	return out, nil
}

func (x *execution) field(f *ast.Field, def *ast.Definition, self any, path []any) (any, error) {
	if r, ok := self.(record); ok {
		v, ok := r[f.Name]
		if !ok {
			return x.null(f, notImplemented(def.Name+"."+f.Name), path)
		}
		return x.complete(f.Definition.Type, f, v, path)
	}
	resolve := x.api.types[def.Name][f.Name]
	if resolve == nil {
		return x.null(f, notImplemented(def.Name+"."+f.Name), path)
	}
	a, apiErr := x.arguments(f, path)
	if apiErr != nil {
		return x.null(f, apiErr, path)
	}
	v, err := resolve(x, self, a)
	if err != nil {
		return x.null(f, err, path)
	}
	return x.complete(f.Definition.Type, f, v, path)
}

// collect flattens a selection for a concrete type; fields with one response key are merged.
func (x *execution) collect(set ast.SelectionSet, def *ast.Definition, into []*ast.Field) []*ast.Field {
	for _, s := range set {
		switch s := s.(type) {
		case *ast.Field:
			if x.included(s.Directives) {
				into = mergeField(into, s)
			}
		case *ast.InlineFragment:
			if x.included(s.Directives) && x.api.applies(s.TypeCondition, def) {
				into = x.collect(s.SelectionSet, def, into)
			}
		case *ast.FragmentSpread:
			f := x.doc.Fragments.ForName(s.Name)
			if f != nil && x.included(s.Directives) && x.api.applies(f.TypeCondition, def) {
				into = x.collect(f.SelectionSet, def, into)
			}
		}
	}
	return into
}

func mergeField(into []*ast.Field, f *ast.Field) []*ast.Field {
	for i, old := range into {
		if old.Alias == f.Alias {
			if len(f.SelectionSet) > 0 {
				merged := *old
				merged.SelectionSet = append(append(ast.SelectionSet{}, old.SelectionSet...), f.SelectionSet...)
				into[i] = &merged
			}
			return into
		}
	}
	return append(into, f)
}

// included evaluates @skip and @include.
func (x *execution) included(directives ast.DirectiveList) bool {
	for _, name := range []string{"skip", "include"} {
		d := directives.ForName(name)
		if d == nil {
			continue
		}
		v, err := d.Arguments.ForName("if").Value.Value(x.variables)
		if on, ok := v.(bool); err == nil && ok && on == (name == "skip") {
			return false
		}
	}
	return true
}

// arguments coerces a field's arguments; literals pass the same checks as variables.
func (x *execution) arguments(f *ast.Field, path []any) (arguments, *apiError) {
	raw := f.ArgumentMap(x.variables)
	out := make(arguments, len(raw))
	for _, d := range f.Definition.Arguments {
		v, ok := raw[d.Name]
		if !ok {
			continue
		}
		c := coercer{schema: x.api.schema}
		out[d.Name] = c.value(d.Type, v, []any{d.Name})
		if len(c.problems) > 0 {
			e := coded("argumentLiteralsIncompatible", c.problems[0].explanation)
			e.Path = at(path, c.problems[0].path...)
			return nil, e
		}
	}
	return out, nil
}

// typeName names the concrete GraphQL type of a value.
func typeName(value any) string {
	switch v := value.(type) {
	case interface{ graphqlType() string }:
		return v.graphqlType()
	case record:
		s, _ := v["__typename"].(string)
		return s
	default:
		return ""
	}
}

// leaf renders a scalar.
func leaf(v any) any {
	switch v := v.(type) {
	case time.Time:
		return v.UTC().Format("2006-01-02T15:04:05Z")
	case *time.Time:
		return v.UTC().Format("2006-01-02T15:04:05Z")
	case *string:
		return *v
	default:
		return v
	}
}

// isNil recognises nil pointers inside interfaces, which accessors return for absent values.
func isNil(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case *string:
		return v == nil
	case *time.Time:
		return v == nil
	case *media:
		return v == nil
	case *product:
		return v == nil
	case *variant:
		return v == nil
	case *inventoryItem:
		return v == nil
	case *level:
		return v == nil
	case *location:
		return v == nil
	case *publication:
		return v == nil
	case *metafield:
		return v == nil
	case *definition:
		return v == nil
	case *collection:
		return v == nil
	case record:
		return v == nil
	default:
		return false
	}
}

// locations renders a position of the document.
func locations(p *ast.Position) []map[string]int {
	if p == nil {
		return nil
	}
	return []map[string]int{{"line": p.Line, "column": p.Column}}
}
