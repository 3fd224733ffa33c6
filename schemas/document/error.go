package document

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
)

// Error says what is wrong with a document, where, and how to mend it. It is a fault of the data or of the documents
// query: sending the same document again gives the same error.
type Error struct {
	// Path is where in the document: "variants[3].price"; empty for the document as a whole.
	Path string
	// Message says what is wrong and how to mend it, in one line.
	Message string
}

func (e *Error) Error() string {
	if e.Path == "" {
		return "document " + e.Message
	}
	return "document field " + e.Path + " " + e.Message
}

// explain turns the first violation, in the order of the document, into an *Error. Validation walks maps in random
// order; without the sort the same document would give another message each time, hence another outcome.
func (c *contract) explain(err error) error {
	var top *jsonschema.ValidationError
	if !errors.As(err, &top) {
		return &Error{Message: "cannot be validated: " + err.Error()}
	}
	all := leaves(top, nil)
	slices.SortFunc(all, func(a, b *jsonschema.ValidationError) int {
		if d := slices.CompareFunc(a.InstanceLocation, b.InstanceLocation, compareSteps); d != 0 {
			return d
		}
		return strings.Compare(c.message(a), c.message(b))
	})
	first := all[0]
	at := first.InstanceLocation
	message := c.message(first)
	if unknown, ok := first.ErrorKind.(*kind.AdditionalProperties); ok {
		at = append(slices.Clone(at), slices.Min(unknown.Properties))
	}
	if n := distinctPlaces(all) - 1; n > 0 {
		message += fmt.Sprintf(" (and %d more places)", n)
	}
	return &Error{Path: joinPath(at), Message: message}
}

// leaves appends the violations that have no cause of their own.
func leaves(e *jsonschema.ValidationError, out []*jsonschema.ValidationError) []*jsonschema.ValidationError {
	if len(e.Causes) == 0 {
		return append(out, e)
	}
	for _, cause := range e.Causes {
		out = leaves(cause, out)
	}
	return out
}

// compareSteps orders list positions as numbers and names as text.
func compareSteps(a, b string) int {
	m, errA := strconv.Atoi(a)
	n, errB := strconv.Atoi(b)
	if errA == nil && errB == nil {
		return cmp.Compare(m, n)
	}
	return strings.Compare(a, b)
}

func distinctPlaces(all []*jsonschema.ValidationError) int {
	places := map[string]bool{}
	for _, e := range all {
		places[joinPath(e.InstanceLocation)] = true
	}
	return len(places)
}

// joinPath writes steps as people write them: variants[3].price.
func joinPath(steps []string) string {
	var b strings.Builder
	for _, step := range steps {
		if _, err := strconv.Atoi(step); err == nil {
			b.WriteString("[" + step + "]")
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('.')
		}
		b.WriteString(step)
	}
	return b.String()
}

// message says what is wrong and how to mend it.
func (c *contract) message(e *jsonschema.ValidationError) string {
	switch k := e.ErrorKind.(type) {
	case *kind.Type:
		return typeMessage(k)
	case *kind.Required:
		return requiredMessage(k.Missing)
	case *kind.DependentRequired:
		return fmt.Sprintf("has %s without %s: options and variants go together; a product without real options has "+
			`the option Title with the value "Default Title"`, k.Prop, strings.Join(k.Missing, ", "))
	case *kind.AdditionalProperties:
		return "is not a field of the contract; known here: " + strings.Join(c.fields[definition(e.SchemaURL)], ", ")
	case *kind.Enum:
		return fmt.Sprintf("is %s, must be one of %s", quote(k.Got), listOf(k.Want))
	case *kind.Pattern:
		return patternMessage(k)
	case *kind.UniqueItems:
		return fmt.Sprintf("has the same value at [%d] and [%d]: select it DISTINCT", k.Duplicates[0], k.Duplicates[1])
	}
	return limitMessage(e)
}

func limitMessage(e *jsonschema.ValidationError) string {
	switch k := e.ErrorKind.(type) {
	case *kind.MinLength:
		return "is empty: give it a text, or leave the field out"
	case *kind.MaxLength:
		return fmt.Sprintf("has %d characters, at most %d are allowed: shorten it, for example by left(column, %d)",
			k.Got, k.Want, k.Want)
	case *kind.MinItems:
		return "is an empty list: leave the field out, or make the product not eligible with a reason"
	case *kind.MaxItems:
		return fmt.Sprintf("has %d entries, Shopify takes at most %d: split the product or leave some out", k.Got, k.Want)
	case *kind.Minimum:
		return fmt.Sprintf("is %s, must be at least %s: use greatest(value, %s)",
			k.Got.RatString(), k.Want.RatString(), k.Want.RatString())
	case *kind.Maximum:
		return fmt.Sprintf("is %s, must be at most %s", k.Got.RatString(), k.Want.RatString())
	}
	return fmt.Sprintf("breaks the rule %q of document.schema.json", strings.Join(e.ErrorKind.KeywordPath(), "/"))
}

func typeMessage(k *kind.Type) string {
	message := fmt.Sprintf("is %s, must be %s", k.Got, strings.Join(k.Want, " or "))
	switch {
	case k.Got == "null":
		return message + ": it cannot be cleared; leave the field out where the document does not own it"
	case k.Got == "number" && slices.Contains(k.Want, "string"):
		return message + ": cast it with ::text, so that no digit is lost"
	case k.Got == "number" && slices.Contains(k.Want, "integer"):
		return message + ": round it to whole units"
	}
	return message
}

func requiredMessage(missing []string) string {
	if slices.Contains(missing, "reason") {
		return "is not eligible without a reason: add one such as NOT_APPROVED, or a word of your own in upper case"
	}
	return "lacks " + strings.Join(missing, ", ") + ": add it to the documents query"
}

// patternMessage explains a pattern by an example; people do not read regular expressions.
func patternMessage(k *kind.Pattern) string {
	must := "must match " + k.Want
	switch {
	case strings.HasPrefix(k.Want, "^[0-9]"):
		must = `must be a decimal such as "12.50": digits and a point, not negative, no currency, no thousands separator`
	case strings.HasPrefix(k.Want, "^https"):
		must = "must be an address that begins with http:// or https:// and has no spaces"
	case strings.HasPrefix(k.Want, "^[A-Z]"):
		must = "must be a word in upper case such as NOT_APPROVED (letters, digits, _; at most 64)"
	case strings.HasPrefix(k.Want, "^[^,"):
		must = "must have no comma: Shopify would split it into several tags"
	case strings.HasPrefix(k.Want, "^[^\\s/"):
		must = "must have no spaces and no slash"
	case strings.HasPrefix(k.Want, "^[a-z]"):
		must = `must be the name of a metafield type such as "single_line_text_field"`
	}
	return "is " + quote(k.Got) + ", " + must
}

// quote shortens a value for a message.
func quote(v any) string {
	text, ok := v.(string)
	if !ok {
		return fmt.Sprint(v)
	}
	if runes := []rune(text); len(runes) > 60 {
		text = string(runes[:60]) + "…"
	}
	return strconv.Quote(text)
}

func listOf(values []any) string {
	words := make([]string, 0, len(values))
	for _, v := range values {
		if v == nil || v == "" {
			continue // tolerated, not recommended
		}
		words = append(words, quote(v))
	}
	return strings.Join(words, ", ")
}

// definition is the name under $defs that a schema location ends in.
func definition(location string) string {
	return location[strings.LastIndexByte(location, '/')+1:]
}

// fieldNames lists, for each definition of the schema, its fields in alphabetical order.
func fieldNames(schema any) map[string][]string {
	out := map[string][]string{}
	root, _ := schema.(map[string]any)
	defs, _ := root["$defs"].(map[string]any)
	for name, def := range defs {
		object, _ := def.(map[string]any)
		properties, _ := object["properties"].(map[string]any)
		for field := range properties {
			out[name] = append(out[name], field)
		}
		slices.Sort(out[name])
	}
	return out
}
