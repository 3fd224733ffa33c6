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
	for rest := text; len(rest) > 0; {
		var p hstorePair
		var ok bool
		if p, rest, ok = nextPair(rest); !ok {
			return appendString(dst, text)
		}
		pairs = append(pairs, p)
	}
	buckets := uint32(16) // grows when it is three quarters full
	for len(pairs) > int(buckets)*3/4 {
		buckets *= 2
	}
	for i := range pairs {
		pairs[i].bucket &= buckets - 1
	}
	slices.SortStableFunc(pairs, func(a, b hstorePair) int { return int(a.bucket) - int(b.bucket) })
	var object [512]byte
	inner := append(object[:0], '{')
	for i, p := range pairs {
		if i > 0 {
			inner = append(inner, ',')
		}
		inner = append(appendUnescaped(inner, p.key), ':')
		if p.value == nil {
			inner = append(inner, "null"...)
		} else {
			inner = appendUnescaped(inner, p.value)
		}
	}
	return appendString(dst, append(inner, '}'))
}

// hstorePair is a key and a value as they stand between their quotes; a nil value is NULL.
type hstorePair struct {
	key, value []byte
	bucket     uint32 // the hash that the bucket is taken from
}

func nextPair(text []byte) (p hstorePair, rest []byte, ok bool) {
	const arrow, null = "=>", "NULL"
	if p.key, rest, ok = quoted(text); !ok || len(rest) < len(arrow) || string(rest[:len(arrow)]) != arrow {
		return p, nil, false
	}
	rest = rest[len(arrow):]
	if len(rest) >= len(null) && string(rest[:len(null)]) == null {
		rest = rest[len(null):]
	} else if p.value, rest, ok = quoted(rest); !ok {
		return p, nil, false
	}
	if len(rest) > 0 {
		if len(rest) < 3 || string(rest[:2]) != ", " {
			return p, nil, false
		}
		rest = rest[2:]
	}
	h := javaHash(p.key)
	p.bucket = h ^ h>>16
	return p, rest, true
}

// quoted takes a quoted text off the front. What is between the quotes keeps its backslashes; it is never nil.
func quoted(text []byte) (inside, rest []byte, ok bool) {
	if len(text) == 0 || text[0] != '"' {
		return nil, nil, false
	}
	for i := 1; i < len(text); i++ {
		switch text[i] {
		case '\\':
			i++
		case '"':
			return text[1:i], text[i+1:], true
		}
	}
	return nil, nil, false
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
