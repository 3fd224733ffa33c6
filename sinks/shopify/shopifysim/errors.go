package shopifysim

import "strconv"

// apiError is one element of the top-level "errors" of an answer. A resolver returns one to fail its field; the
// executor adds path and location.
type apiError struct {
	Message    string           `json:"message"`
	Locations  []map[string]int `json:"locations,omitempty"`
	Path       []any            `json:"path,omitempty"`
	Extensions map[string]any   `json:"extensions,omitempty"`

	whole bool // refuses the whole request: the answer has no "data"
}

func (e *apiError) Error() string { return e.Message }

// coded builds a top-level error with a code.
func coded(code, message string) *apiError {
	return &apiError{Message: message, Extensions: map[string]any{"code": code}}
}

// notImplemented refuses what the simulator does not know instead of making an answer up.
func notImplemented(what string) *apiError {
	return coded("SIMULATOR_NOT_IMPLEMENTED", "The simulator does not implement "+what+".")
}

func notFound(v any) *apiError {
	s, _ := v.(string)
	return coded("RESOURCE_NOT_FOUND", "Invalid id: "+s)
}

// userErrors collects what a mutation's validation finds; field paths as Shopify gives them, indexes as strings.
type userErrors []any

// add appends one error. An empty code renders as null, which is what Shopify often answers.
func (u *userErrors) add(code, message string, field ...any) {
	path := make([]any, len(field))
	for i, f := range field {
		switch f := f.(type) {
		case int:
			path[i] = strconv.Itoa(f)
		default:
			path[i] = f
		}
	}
	r := record{"message": message, "field": path, "code": nil, "elementIndex": nil}
	if len(path) == 0 {
		r["field"] = nil
	}
	if code != "" {
		r["code"] = code
	}
	*u = append(*u, r)
}

// list renders for a payload: an empty list, never null.
func (u userErrors) list() []any {
	if u == nil {
		return []any{}
	}
	return u
}

// at extends a field path without sharing its array.
func at(path []any, more ...any) []any {
	out := make([]any, 0, len(path)+len(more))
	return append(append(out, path...), more...)
}
