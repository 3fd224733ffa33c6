package change

import (
	"slices"
	"unicode/utf16"
	"unicode/utf8"
)

// appendHstore gives the text of an hstore, `"a"=>"1", "n"=>NULL`, as a string that holds a JSON object. Its keys stand
// in the order of a HashMap of Java, as the connector has them, so that equal values are equal bytes there and here.
func appendHstore(dst, text []byte) []byte {
	var room [16]hstorePair
	pairs := room[:0]
	for at := 0; at < len(text); {
		p, end, ok := nextPair(text, at)
		if !ok {
			return appendString(dst, text)
		}
		pairs, at = append(pairs, p), end
	}
	buckets := uint32(16) // grows when it is three quarters full
	for len(pairs) > int(buckets)*3/4 {
		buckets *= 2
	}
	// Sorted are buckets with the places of pairs, not the pairs: these would go to the heap.
	var orders [16]uint64
	order := orders[:0]
	for i := range pairs {
		order = append(order, uint64(pairs[i].hash&(buckets-1))<<32|uint64(i))
	}
	slices.Sort(order)
	var object [512]byte
	inner := append(object[:0], '{')
	for i, at := range order {
		p := &pairs[uint32(at)]
		if i > 0 {
			inner = append(inner, ',')
		}
		inner = append(appendUnescaped(inner, text[p.key.from:p.key.to]), ':')
		if p.null {
			inner = append(inner, "null"...)
		} else {
			inner = appendUnescaped(inner, text[p.value.from:p.value.to])
		}
	}
	return appendString(dst, append(inner, '}'))
}

// hstorePair says where a key and a value stand between their quotes. It holds places and not the bytes, which would
// have to be on the heap as soon as a list of pairs is.
type hstorePair struct {
	key, value span
	null       bool
	hash       uint32 // that Java's table takes the bucket from
}

type span struct{ from, to int }

// nextPair reads the pair at a place, and what separates it from the next, whose place it returns.
func nextPair(text []byte, at int) (p hstorePair, next int, ok bool) {
	const arrow, null = "=>", "NULL"
	if p.key, at, ok = quoted(text, at); !ok || !hasAt(text, at, arrow) {
		return p, 0, false
	}
	at += len(arrow)
	if hasAt(text, at, null) {
		p.null, at = true, at+len(null)
	} else if p.value, at, ok = quoted(text, at); !ok {
		return p, 0, false
	}
	if at < len(text) {
		if !hasAt(text, at, ", ") || at+2 == len(text) {
			return p, 0, false
		}
		at += 2
	}
	h := javaHash(text[p.key.from:p.key.to])
	p.hash = h ^ h>>16
	return p, at, true
}

func hasAt(text []byte, at int, what string) bool {
	return len(text)-at >= len(what) && string(text[at:at+len(what)]) == what
}

// quoted finds a quoted text, whose backslashes stay.
func quoted(text []byte, at int) (inside span, next int, ok bool) {
	if at >= len(text) || text[at] != '"' {
		return span{}, 0, false
	}
	for i := at + 1; i < len(text); i++ {
		switch text[i] {
		case '\\':
			i++
		case '"':
			return span{at + 1, i}, i + 1, true
		}
	}
	return span{}, 0, false
}

// javaHash is String.hashCode of what stands between quotes.
func javaHash(inside []byte) uint32 {
	h := uint32(0)
	for i := 0; i < len(inside); {
		if inside[i] == '\\' && i+1 < len(inside) {
			i++
		}
		r, n := utf8.DecodeRune(inside[i:])
		if r > 0xFFFF {
			hi, lo := utf16.EncodeRune(r)
			h, r = h*31+uint32(hi), lo
		}
		h = h*31 + uint32(r)
		i += n
	}
	return h
}

// appendUnescaped appends what stands between quotes as a JSON string whose characters beyond ASCII stay as they are:
// the string around it will escape them.
func appendUnescaped(dst, inside []byte) []byte {
	dst = append(dst, '"')
	for i := 0; i < len(inside); i++ {
		if inside[i] == '\\' && i+1 < len(inside) {
			i++
		}
		if c := inside[i]; c < ' ' || c == '"' || c == '\\' {
			dst = appendEscape(dst, c)
		} else {
			dst = append(dst, c)
		}
	}
	return append(dst, '"')
}
