package shopifysim

import (
	"html"
	"math/big"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// input is a coerced input object.
type input map[string]any

func asInput(v any) input {
	m, _ := v.(map[string]any)
	return m
}

// has says whether the field was given, null included.
func (in input) has(name string) bool {
	_, ok := in[name]
	return ok
}

// given says whether the field was given and is not null.
func (in input) given(name string) bool { return in[name] != nil }

// text returns a text field; "" where it is absent or null.
func (in input) text(name string) string {
	s, _ := in[name].(string)
	return s
}

// optional returns a text field, nil where it is absent or null.
func (in input) optional(name string) *string {
	s, ok := in[name].(string)
	if !ok {
		return nil
	}
	return &s
}

func (in input) object(name string) input { return asInput(in[name]) }

func (in input) list(name string) []any {
	l, _ := in[name].([]any)
	return l
}

func (in input) objects(name string) []input { return asInputs(in[name]) }

func asInputs(v any) []input {
	l, _ := v.([]any)
	out := make([]input, len(l))
	for i, e := range l {
		out[i] = asInput(e)
	}
	return out
}

func texts(v any) []string {
	l, _ := v.([]any)
	out := make([]string, 0, len(l))
	for _, e := range l {
		if s, ok := e.(string); ok {
			out = append(out, s)
		}
	}
	return out
}

// setText writes a nullable text field where it was given; blank text is null.
func (in input) setText(name string, to **string) {
	if !in.has(name) {
		return
	}
	*to = in.optional(name)
	if *to != nil && **to == "" {
		*to = nil
	}
}

// money renders a decimal text as the shop's prices are kept: two places, rounded half away from zero.
func money(s string) string {
	r, ok := new(big.Rat).SetString(strings.TrimPrefix(s, "+"))
	if !ok {
		return "0.00"
	}
	return r.FloatString(2)
}

// amount renders a price as MoneyV2 does: without trailing zeros, but one place.
func amount(price string) string {
	s := strings.TrimRight(price, "0")
	if strings.HasSuffix(s, ".") {
		s += "0"
	}
	return s
}

func (s *store) moneyV2(price string) record {
	return record{"amount": amount(price), "currencyCode": s.currency}
}

func negative(decimal string) bool { return strings.HasPrefix(decimal, "-") }

// longest is the largest length of names, titles, handles, SKUs, barcodes and tags, in characters.
const longest = 255

func tooLong(s string) bool { return utf8.RuneCountInString(s) > longest }

// handleOf makes a handle of any text: letters and digits in lower case, everything else collapsed to one hyphen.
func handleOf(s string) string {
	var b strings.Builder
	dash := false
	for _, r := range strings.ToLower(s) {
		switch {
		case unicode.IsLetter(r) || unicode.IsDigit(r) || r == '_':
			if dash && b.Len() > 0 {
				b.WriteByte('-')
			}
			dash = false
			b.WriteRune(r)
		case r == '\'' || r == '’': // "men's" is "mens"
		default:
			dash = true
		}
	}
	return b.String()
}

// normalTags trims tags, drops blank ones and those that differ in case only (the first stays), and sorts them
// without regard to case, as Shopify returns them. A comma separates tags within one.
func normalTags(given []string) []string {
	seen := map[string]bool{}
	out := []string{}
	for _, g := range given {
		for t := range strings.SplitSeq(g, ",") {
			t = strings.TrimSpace(t)
			if t == "" || seen[strings.ToLower(t)] {
				continue
			}
			seen[strings.ToLower(t)] = true
			out = append(out, t)
		}
	}
	slices.SortStableFunc(out, func(a, b string) int { return strings.Compare(strings.ToLower(a), strings.ToLower(b)) })
	return out
}

var htmlTag = regexp.MustCompile(`<[^>]*>`)

// plainText strips the markup of a description.
func plainText(s string) string {
	return strings.Join(strings.Fields(html.UnescapeString(htmlTag.ReplaceAllString(s, " "))), " ")
}
