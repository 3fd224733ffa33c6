package shopifysim

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/vektah/gqlparser/v2/ast"
	"github.com/vektah/gqlparser/v2/gqlerror"
	"github.com/vektah/gqlparser/v2/parser"
	"github.com/vektah/gqlparser/v2/validator"
	"github.com/vektah/gqlparser/v2/validator/core"
	"github.com/vektah/gqlparser/v2/validator/rules"
)

// document parses and validates a request text, once for each text.
func (a *api) document(text string) *document {
	a.mu.Lock()
	d := a.docs[text]
	a.mu.Unlock()
	if d != nil {
		return d
	}
	d = a.parse(text)
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.docs) >= maxDocuments {
		clear(a.docs)
	}
	a.docs[text] = d
	return d
}

func (a *api) parse(text string) *document {
	doc, err := parser.ParseQuery(&ast.Source{Input: text})
	if err != nil {
		e := &apiError{Message: err.Error(), whole: true}
		if g, ok := errors.AsType[*gqlerror.Error](err); ok {
			e.Message, e.Locations = g.Message, errorLocations(g)
		}
		return &document{errs: []*apiError{e}}
	}
	var errs []*apiError
	checks := rules.NewDefaultRules()
	checks.AddRule(globalIDs, checkGlobalIDs)
	for _, g := range validator.ValidateWithRules(a.schema, doc, checks) {
		errs = append(errs, translate(a.schema, doc, g))
	}
	return &document{doc: doc, errs: errs}
}

// globalIDs is the rule that Shopify adds to GraphQL's own: an ID literal must be a global id.
const globalIDs = "GlobalIDs"

func checkGlobalIDs(observers *core.Events, addError core.AddErrFunc) {
	observers.OnValue(func(_ *core.Walker, v *ast.Value) {
		if v.Definition != nil && v.Definition.Name == "ID" && v.Kind == ast.StringValue && !validGID.MatchString(v.Raw) {
			addError(core.Message("Invalid global id '%s'", v.Raw), core.At(v.Position))
		}
	})
}

func errorLocations(g *gqlerror.Error) []map[string]int {
	var out []map[string]int
	for _, l := range g.Locations {
		out = append(out, map[string]int{"line": l.Line, "column": l.Column})
	}
	return out
}

var (
	unknownField    = regexp.MustCompile(`^Cannot query field "(\w+)" on type "(\w+)"`)
	unknownArgument = regexp.MustCompile(`^Unknown argument "(\w+)" on field "(\w+)\.(\w+)"`)
)

// translate words a validation error as Shopify does where its wording is known, and keeps the validator's where it
// is not.
func translate(schema *ast.Schema, doc *ast.QueryDocument, g *gqlerror.Error) *apiError {
	e := &apiError{Message: g.Message, Locations: errorLocations(g), Extensions: map[string]any{}, whole: true}
	var at hit
	if len(g.Locations) > 0 {
		at = locate(schema, doc, g.Locations[0].Line, g.Locations[0].Column)
	}
	if at.path != nil {
		e.Path = at.path
	}
	switch g.Rule {
	case "FieldsOnCorrectType":
		e.Extensions["code"] = "undefinedField"
		if m := unknownField.FindStringSubmatch(g.Message); m != nil {
			e.Message = fmt.Sprintf("Field '%s' doesn't exist on type '%s'", m[1], m[2])
			e.Extensions["fieldName"], e.Extensions["typeName"] = m[1], m[2]
		}
	case "KnownArgumentNames":
		e.Extensions["code"] = "argumentNotAccepted"
		if m := unknownArgument.FindStringSubmatch(g.Message); m != nil {
			e.Message = fmt.Sprintf("Field '%s' doesn't accept argument '%s'", m[3], m[1])
			e.Extensions["name"], e.Extensions["typeName"], e.Extensions["argumentName"] = m[3], "Field", m[1]
		}
	case "ProvidedRequiredArguments":
		missingArguments(e, at.field)
	case globalIDs:
		e.Extensions["code"], e.Extensions["typeName"] = "argumentLiteralsIncompatible", "CoercionError"
		if n := len(e.Path); n > 0 {
			if _, index := e.Path[n-1].(int); index {
				e.Path = e.Path[:n-1]
			}
		}
		if at.field != nil {
			e.Locations = locations(at.field.Position)
		}
	case "ValuesOfCorrectType":
		incompatible(e, at)
	default:
		e.Extensions["code"] = strings.ToLower(g.Rule[:min(1, len(g.Rule))]) + g.Rule[min(1, len(g.Rule)):]
	}
	return e
}

// missingArguments words the absence of required arguments: one error names them all.
func missingArguments(e *apiError, f *ast.Field) {
	e.Extensions["code"] = "missingRequiredArguments"
	if f == nil || f.Definition == nil {
		return
	}
	var names []string
	for _, d := range f.Definition.Arguments {
		if d.Type.NonNull && d.DefaultValue == nil && f.Arguments.ForName(d.Name) == nil {
			names = append(names, d.Name)
		}
	}
	list := strings.Join(names, ", ")
	e.Message = fmt.Sprintf("Field '%s' is missing required arguments: %s", f.Name, list)
	e.Extensions["className"], e.Extensions["name"], e.Extensions["arguments"] = "Field", f.Name, list
}

// incompatible words a literal that does not fit its type.
func incompatible(e *apiError, at hit) {
	e.Extensions["code"] = "argumentLiteralsIncompatible"
	if at.value == nil {
		return
	}
	class, owner := "Field", at.owner
	if at.input {
		class = "InputObject"
	}
	e.Message = fmt.Sprintf("Argument '%s' on %s '%s' has an invalid value (%s). Expected type '%s'.",
		at.argument, class, owner, at.value.String(), at.expected)
	e.Extensions["typeName"], e.Extensions["argumentName"] = class, at.argument
	e.Locations = locations(at.position)
}

// hit is what stands at a position of a document.
type hit struct {
	path     []any
	field    *ast.Field
	value    *ast.Value
	argument string // name of the argument or input field that the value is given for
	owner    string // the field or input type that has the argument
	input    bool
	expected string
	position *ast.Position // of the owner
}

// locate finds the field or argument value at a position, with its path as Shopify prints it for invalid documents:
// the operation first, then fields and arguments by name.
func locate(schema *ast.Schema, doc *ast.QueryDocument, line, column int) hit {
	is := func(p *ast.Position) bool { return p != nil && p.Line == line && p.Column == column }
	var found hit
	var inValue func(h hit, v *ast.Value) bool
	inValue = func(h hit, v *ast.Value) bool {
		if is(v.Position) && len(v.Children) == 0 {
			h.value = v
			found = h
			return true
		}
		for i, c := range v.Children {
			n := h
			if c.Name == "" {
				n.path = at(h.path, i)
			} else {
				n.path, n.argument, n.input, n.position = at(h.path, c.Name), c.Name, true, v.Position
				if v.Definition != nil {
					n.owner = v.Definition.Name
					if d := v.Definition.Fields.ForName(c.Name); d != nil {
						n.expected = d.Type.String()
					}
				}
			}
			if inValue(n, c.Value) {
				return true
			}
		}
		return false
	}
	var inSet func(path []any, set ast.SelectionSet) bool
	inSet = func(path []any, set ast.SelectionSet) bool {
		for _, s := range set {
			switch s := s.(type) {
			case *ast.Field:
				h := hit{path: at(path, s.Name), field: s}
				if is(s.Position) {
					found = h
					return true
				}
				for _, a := range s.Arguments {
					n := hit{path: at(h.path, a.Name), field: s, argument: a.Name, owner: s.Name, position: s.Position}
					if s.Definition != nil {
						if d := s.Definition.Arguments.ForName(a.Name); d != nil {
							n.expected = d.Type.String()
						}
					}
					if is(a.Position) || inValue(n, a.Value) {
						if found.path == nil {
							found = n
						}
						return true
					}
				}
				if inSet(h.path, s.SelectionSet) {
					return true
				}
			case *ast.InlineFragment:
				if inSet(at(path, "... on "+s.TypeCondition), s.SelectionSet) {
					return true
				}
			}
		}
		return false
	}
	for _, op := range doc.Operations {
		name := strings.TrimSpace(string(op.Operation) + " " + op.Name)
		if inSet([]any{name}, op.SelectionSet) {
			return found
		}
	}
	for _, f := range doc.Fragments {
		if inSet([]any{"fragment " + f.Name}, f.SelectionSet) {
			return found
		}
	}
	return found
}
