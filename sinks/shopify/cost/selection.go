package cost

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/vektah/gqlparser/v2/ast"
)

// field is one merged field of a selection: selections with the same response key are one field to GraphQL, and
// Shopify charges them once.
type field struct {
	key       string // response key: alias or name
	name      string
	parent    string          // name of the type that it is selected on
	typ       *ast.Definition // named type of the field; nil for scalars and enums
	args      map[string]any
	selection ast.SelectionSet
}

// connection says whether the field is a page of nodes.
func (f *field) connection() bool {
	return f.typ != nil && strings.HasSuffix(f.typ.Name, "Connection")
}

// pageSize returns first or last; 0 where neither is given.
func (f *field) pageSize() int {
	for _, name := range []string{"first", "last"} {
		if n, ok := number(f.args[name]); ok {
			return int(n)
		}
	}
	return 0
}

// collect flattens a selection for one concrete type (or for an interface, then with its own fields only), applies
// @skip and @include, and merges fields by response key.
func (w *walker) collect(set ast.SelectionSet, typ *ast.Definition) ([]*field, error) {
	var fields []*field
	err := w.into(&fields, set, typ)
	return fields, err
}

func (w *walker) into(fields *[]*field, set ast.SelectionSet, typ *ast.Definition) error {
	for _, s := range set {
		switch s := s.(type) {
		case *ast.Field:
			if !w.included(s.Directives) {
				continue
			}
			if err := w.add(fields, s, typ); err != nil {
				return err
			}
		case *ast.InlineFragment:
			if w.included(s.Directives) && w.applies(s.TypeCondition, typ) {
				if err := w.into(fields, s.SelectionSet, typ); err != nil {
					return err
				}
			}
		case *ast.FragmentSpread:
			f := w.doc.Fragments.ForName(s.Name)
			if f == nil {
				return fmt.Errorf("cost: fragment %s is not defined", s.Name)
			}
			if w.included(s.Directives) && w.applies(f.TypeCondition, typ) {
				if err := w.into(fields, f.SelectionSet, typ); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (w *walker) add(fields *[]*field, s *ast.Field, typ *ast.Definition) error {
	key := s.Alias
	if key == "" {
		key = s.Name
	}
	if i := slices.IndexFunc(*fields, func(f *field) bool { return f.key == key }); i >= 0 {
		f := (*fields)[i]
		f.selection = append(slices.Clip(f.selection), s.SelectionSet...)
		return nil
	}
	if strings.HasPrefix(s.Name, "__") {
		*fields = append(*fields, &field{key: key, name: s.Name})
		return nil
	}
	def := typ.Fields.ForName(s.Name)
	if def == nil {
		return errUnknown(typ, s.Name)
	}
	named := w.schema.Types[def.Type.Name()]
	if named != nil && named.IsLeafType() {
		named = nil
	}
	args, err := w.arguments(def, s)
	if err != nil {
		return err
	}
	*fields = append(*fields, &field{key: key, name: s.Name, parent: typ.Name, typ: named, args: args, selection: s.SelectionSet})
	return nil
}

// arguments resolves a field's arguments; absent ones take the schema's defaults.
func (w *walker) arguments(def *ast.FieldDefinition, s *ast.Field) (map[string]any, error) {
	args := make(map[string]any, len(s.Arguments))
	for _, d := range def.Arguments {
		if d.DefaultValue == nil {
			continue
		}
		v, err := d.DefaultValue.Value(nil)
		if err != nil {
			return nil, fmt.Errorf("cost: default of %s.%s: %w", s.Name, d.Name, err)
		}
		args[d.Name] = v
	}
	for _, a := range s.Arguments {
		v, err := a.Value.Value(w.variables)
		if err != nil {
			return nil, fmt.Errorf("cost: argument %s of %s: %w", a.Name, s.Name, err)
		}
		args[a.Name] = v
	}
	return args, nil
}

// included evaluates @skip and @include.
func (w *walker) included(directives ast.DirectiveList) bool {
	for _, name := range []string{"skip", "include"} {
		d := directives.ForName(name)
		if d == nil {
			continue
		}
		arg := d.Arguments.ForName("if")
		if arg == nil {
			continue
		}
		v, err := arg.Value.Value(w.variables)
		if on, ok := v.(bool); err == nil && ok && on == (name == "skip") {
			return false
		}
	}
	return true
}

// applies says whether a fragment on a type condition selects on typ.
func (w *walker) applies(condition string, typ *ast.Definition) bool {
	if condition == "" || condition == typ.Name {
		return true
	}
	cond := w.schema.Types[condition]
	if cond == nil || !cond.IsAbstractType() {
		return false
	}
	for _, p := range w.schema.GetPossibleTypes(cond) {
		if p.Name == typ.Name {
			return true
		}
	}
	return false
}

// named lists the concrete types of an abstract type that a selection names in its fragments; the type itself where
// it names none.
func (w *walker) named(set ast.SelectionSet, typ *ast.Definition) []*ast.Definition {
	var out []*ast.Definition
	possible := w.schema.GetPossibleTypes(typ)
	var walk func(set ast.SelectionSet)
	walk = func(set ast.SelectionSet) {
		for _, s := range set {
			var condition string
			var inner ast.SelectionSet
			switch s := s.(type) {
			case *ast.InlineFragment:
				condition, inner = s.TypeCondition, s.SelectionSet
			case *ast.FragmentSpread:
				if f := w.doc.Fragments.ForName(s.Name); f != nil {
					condition, inner = f.TypeCondition, f.SelectionSet
				}
			default:
				continue
			}
			for _, p := range possible {
				if condition != "" && condition != typ.Name && w.applies(condition, p) && !slices.Contains(out, p) {
					out = append(out, p)
				}
			}
			walk(inner)
		}
	}
	walk(set)
	if len(out) == 0 {
		return []*ast.Definition{typ}
	}
	return out
}

// number reads an integer or float as JSON decoders and gqlparser deliver it.
func number(v any) (float64, bool) {
	switch v := v.(type) {
	case int:
		return float64(v), true
	case int64:
		return float64(v), true
	case float64:
		return v, true
	case json.Number:
		f, err := v.Float64()
		return f, err == nil
	default:
		return 0, false
	}
}
