package shopifysim

import (
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"

	"github.com/vektah/gqlparser/v2/ast"
)

// problem is one reason why a variable's value does not fit its type.
type problem struct {
	path        []any
	explanation string
	message     string // only for global ids
}

// coercer turns JSON values into what resolvers expect: int64 for Int, float64 for Float, string for ID, enums and
// custom scalars, []any and map[string]any for lists and input objects. Absent fields stay absent, null stays null:
// Shopify's mutations tell the two apart.
type coercer struct {
	schema   *ast.Schema
	problems []problem
}

// variables coerces the variables of an operation, or returns Shopify's INVALID_VARIABLE errors.
func (c *coercer) variables(op *ast.OperationDefinition, given map[string]any) (map[string]any, []*apiError) {
	out := map[string]any{}
	var errs []*apiError
	for _, d := range op.VariableDefinitions {
		value, ok := given[d.Variable]
		if !ok && d.DefaultValue != nil {
			if v, err := d.DefaultValue.Value(nil); err == nil {
				value, ok = v, true
			}
		}
		if !ok && !d.Type.NonNull {
			continue
		}
		c.problems = nil
		out[d.Variable] = c.value(d.Type, value, nil)
		if len(c.problems) > 0 {
			errs = append(errs, invalidVariable(d, value, c.problems))
		}
	}
	return out, errs
}

func invalidVariable(d *ast.VariableDefinition, value any, problems []problem) *apiError {
	rendered := make([]any, len(problems))
	var details []string
	for i, p := range problems {
		path := p.path
		if path == nil {
			path = []any{}
		}
		entry := map[string]any{"path": path, "explanation": p.explanation}
		if p.message != "" {
			entry["message"] = p.message
		}
		rendered[i] = entry
		if len(path) > 0 {
			details = append(details, fmt.Sprintf("%s (%s)", dotted(path), p.explanation))
		}
	}
	message := fmt.Sprintf("Variable $%s of type %s was provided invalid value", d.Variable, d.Type.String())
	if len(details) > 0 {
		message += " for " + strings.Join(details, ", ")
	}
	e := coded("INVALID_VARIABLE", message)
	e.Extensions["value"] = value
	e.Extensions["problems"] = rendered
	e.Locations = locations(d.Position)
	e.whole = true
	return e
}

func dotted(path []any) string {
	parts := make([]string, len(path))
	for i, p := range path {
		parts[i] = fmt.Sprint(p)
	}
	return strings.Join(parts, ".")
}

func (c *coercer) fail(path []any, explanation string) any {
	c.problems = append(c.problems, problem{path: path, explanation: explanation})
	return nil
}

func (c *coercer) value(t *ast.Type, v any, path []any) any {
	if v == nil {
		if t.NonNull {
			return c.fail(path, "Expected value to not be null")
		}
		return nil
	}
	if t.Elem != nil {
		list, ok := v.([]any)
		if !ok {
			list = []any{v} // GraphQL takes one value for a list of one
		}
		out := make([]any, len(list))
		for i, e := range list {
			out[i] = c.value(t.Elem, e, at(path, i))
		}
		return out
	}
	def := c.schema.Types[t.NamedType]
	switch def.Kind {
	case ast.InputObject:
		return c.object(def, v, path)
	case ast.Enum:
		s, ok := v.(string)
		if !ok || def.EnumValues.ForName(s) == nil {
			names := make([]string, len(def.EnumValues))
			for i, e := range def.EnumValues {
				names[i] = e.Name
			}
			return c.fail(path, fmt.Sprintf("Expected %s to be one of: %s", quoted(v), strings.Join(names, ", ")))
		}
		return s
	default:
		return c.scalar(def.Name, v, path)
	}
}

func (c *coercer) object(def *ast.Definition, v any, path []any) any {
	in, ok := v.(map[string]any)
	if !ok {
		return c.fail(path, fmt.Sprintf("Expected %s to be a key-value object.", quoted(v)))
	}
	for name := range in {
		if def.Fields.ForName(name) == nil {
			c.fail(at(path, name), "Field is not defined on "+def.Name)
		}
	}
	out := make(map[string]any, len(in))
	for _, f := range def.Fields {
		value, given := in[f.Name]
		if !given && f.DefaultValue != nil {
			if d, err := f.DefaultValue.Value(nil); err == nil {
				value, given = d, true
			}
		}
		if !given && !f.Type.NonNull {
			continue
		}
		out[f.Name] = c.value(f.Type, value, at(path, f.Name))
	}
	if def.Directives.ForName("oneOf") != nil && len(in) != 1 {
		c.fail(path, fmt.Sprintf("'%s' requires exactly one argument, but %d were provided.", def.Name, len(in)))
	}
	return out
}

// scalar checks a scalar. Money and Decimal become text, as Shopify keeps them.
func (c *coercer) scalar(name string, v any, path []any) any {
	switch name {
	case "Int":
		if n, ok := integer(v); ok && n >= math.MinInt32 && n <= math.MaxInt32 {
			return n
		}
	case "Float":
		if f, ok := float(v); ok {
			return f
		}
	case "Boolean":
		if b, ok := v.(bool); ok {
			return b
		}
	case "ID":
		s, ok := v.(string)
		if ok && validGID.MatchString(s) {
			return s
		}
		explanation := fmt.Sprintf("Invalid global id '%v'", v)
		c.problems = append(c.problems, problem{path: path, explanation: explanation, message: explanation})
		return nil
	case "Money", "Decimal":
		if s, ok := decimalText(v); ok {
			return s
		}
	case "UnsignedInt64", "BigInt":
		if n, ok := integer(v); ok && (n >= 0 || name == "BigInt") {
			return strconv.FormatInt(n, 10)
		}
		if t, ok := v.(string); ok && integerForm.MatchString(t) {
			return t
		}
	case "JSON":
		return v
	default: // String and the scalars that are text to the API: DateTime, URL, HTML, ...
		if s, ok := v.(string); ok {
			return s
		}
	}
	return c.fail(path, fmt.Sprintf("Could not coerce value %s to %s", quoted(v), name))
}

// quoted renders a value as Shopify's explanations do.
func quoted(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(b)
}

func integer(v any) (int64, bool) {
	switch v := v.(type) {
	case int64:
		return v, true
	case int:
		return int64(v), true
	case float64:
		return int64(v), v == math.Trunc(v)
	case json.Number:
		n, err := strconv.ParseInt(v.String(), 10, 64)
		return n, err == nil
	default:
		return 0, false
	}
}

func float(v any) (float64, bool) {
	switch v := v.(type) {
	case float64:
		return v, true
	case int64:
		return float64(v), true
	case json.Number:
		f, err := v.Float64()
		return f, err == nil
	default:
		return 0, false
	}
}

var decimalForm = regexp.MustCompile(`^[+-]?(\d+(\.\d*)?|\.\d+)$`)

// decimalText reads a decimal given as text or number.
func decimalText(v any) (string, bool) {
	var s string
	switch v := v.(type) {
	case string:
		s = strings.TrimSpace(v)
	case json.Number:
		s = v.String()
	case float64:
		s = strconv.FormatFloat(v, 'f', -1, 64)
	case int64:
		s = strconv.FormatInt(v, 10)
	default:
		return "", false
	}
	return s, decimalForm.MatchString(s)
}
