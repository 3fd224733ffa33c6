package shopify

import (
	"fmt"
	"strconv"
)

// The functions below walk decoded JSON of a shop, which may be anything: what is not there or of another type is the
// zero value.

func object(v any) map[string]any {
	m, _ := v.(map[string]any)
	return m
}

func list(v any) []any {
	l, _ := v.([]any)
	return l
}

func text(v any) string {
	s, _ := v.(string)
	return s
}

func number(v any) float64 {
	f, _ := v.(float64)
	return f
}

func truth(v any) bool {
	b, _ := v.(bool)
	return b
}

// nodeIDs returns the ids of a connection's nodes.
func nodeIDs(v map[string]any, path ...string) []string {
	for _, p := range path {
		v = object(v[p])
	}
	var ids []string
	for _, n := range list(v["nodes"]) {
		ids = append(ids, text(object(n)["id"]))
	}
	return ids
}

func anys(in []string) []any {
	out := make([]any, len(in))
	for i, s := range in {
		out[i] = s
	}
	return out
}

func itoa(n int) string { return strconv.Itoa(n) }

// count says "1 tag", "2 tags".
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
