package change

import (
	"bytes"
	"encoding/base64"
	"strconv"
)

// appendText appends the JSON form of a value's text. A text that does not look as its type should is sent as it is.
func appendText(dst []byte, f Form, text []byte) []byte {
	if f.Array && len(text) > 0 {
		at := len(dst)
		out, ok := appendArray(dst, f, text)
		if ok {
			return out
		}
		return appendString(out[:at], text)
	}
	return appendScalar(dst, f.OID, f.Mod, text)
}

// appendScalar is appendText of what is no array.
func appendScalar(dst []byte, oid uint32, mod int32, text []byte) []byte {
	if len(text) == 0 && oid != FormHstore { // only text types have an empty form
		return append(dst, '"', '"')
	}
	switch oid {
	case FormText:
		return appendString(dst, text)
	case oidInt8, oidInt2, oidInt4, oidOID, oidFloat4, oidFloat8:
		if !isNumber(text) { // NaN, Infinity
			return appendString(dst, text)
		}
		return append(dst, text...)
	case oidBool:
		if len(text) != 1 {
			return appendString(dst, text)
		}
		return strconv.AppendBool(dst, text[0] == 't')
	case oidNumeric:
		return appendNumeric(dst, text)
	case oidMoney:
		return appendMoney(dst, text)
	case oidBytea:
		return appendBytea(dst, text)
	case oidBit:
		return appendBit(dst, mod, text)
	case oidDate, oidTimestamp, oidTimestamptz:
		return appendMoment(dst, oid, mod, text)
	case oidTime:
		if !isClock(text) {
			return appendString(dst, text)
		}
		dst = append(dst, '"')
		dst = append(dst, text...)
		return append(dst, 'Z', '"')
	case oidTimetz:
		return appendTimetz(dst, text)
	case formTimetzUTC:
		return appendTimetzUTC(dst, text)
	case oidInterval:
		return appendInterval(dst, text)
	case oidPoint, oidLine, oidLseg, oidBox, oidPath, oidPolygon, oidCircle:
		return appendGeometry(dst, oid, text)
	case FormHstore:
		return appendHstore(dst, text)
	}
	return appendString(dst, text)
}

// isNumber reports whether the text is a JSON number.
func isNumber(text []byte) bool {
	i := 0
	digits := func() bool {
		at := i
		for i < len(text) && text[i]-'0' <= 9 {
			i++
		}
		return i > at
	}
	if i < len(text) && text[i] == '-' {
		i++
	}
	first := i
	if !digits() || text[first] == '0' && i > first+1 {
		return false
	}
	if i < len(text) && text[i] == '.' {
		if i++; !digits() {
			return false
		}
	}
	if i < len(text) && text[i] == 'e' {
		if i++; i < len(text) && (text[i] == '+' || text[i] == '-') {
			i++
		}
		if !digits() {
			return false
		}
	}
	return i == len(text)
}

// clockBytes are what dates and times in ISO form are written with.
var clockBytes = func() (set [256]bool) {
	for _, c := range []byte("0123456789-:.+ ") {
		set[c] = true
	}
	return set
}()

func isClock(text []byte) bool {
	for _, c := range text {
		if !clockBytes[c] {
			return false
		}
	}
	return true
}

func appendNumeric(dst, text []byte) []byte {
	switch string(text) {
	case "NaN":
		return append(dst, `"NAN"`...)
	case "Infinity":
		return append(dst, `"POSITIVE_INFINITY"`...)
	case "-Infinity":
		return append(dst, `"NEGATIVE_INFINITY"`...)
	}
	return appendString(dst, text)
}

// appendMoney drops the decoration of "-$1,234.50". In a locale that writes money in another way the text stays.
func appendMoney(dst, text []byte) []byte {
	at := len(dst)
	dst = append(dst, '"')
	dots := 0
	for i, c := range text {
		switch {
		case c >= '0' && c <= '9' || c == '-' && i == 0:
			dst = append(dst, c)
		case c == '.':
			dots++
			dst = append(dst, c)
		case c == ',' && dots == 0 && groups(text[i+1:]) || c == '$':
		default:
			return appendString(dst[:at], text)
		}
	}
	if dots > 1 {
		return appendString(dst[:at], text)
	}
	return append(dst, '"')
}

// groups reports whether three digits follow, and then another group, the decimals or nothing: a comma before them
// separates thousands. Before anything else, as in "1,5", it is a decimal comma.
func groups(after []byte) bool {
	n := 0
	for n < len(after) && after[n] >= '0' && after[n] <= '9' {
		n++
	}
	return n == 3 && (n == len(after) || after[n] == ',' || after[n] == '.')
}

// appendBytea turns Postgres' hex form into base64.
func appendBytea(dst, text []byte) []byte {
	if !bytes.HasPrefix(text, []byte(`\x`)) || len(text)%2 != 0 {
		return appendString(dst, text)
	}
	at := len(dst)
	dst = append(dst, '"')
	var raw [3 * 64]byte // a multiple of three, so that the parts fit together
	for hex := text[2:]; len(hex) > 0; {
		n := min(len(raw), len(hex)/2)
		for i := range n {
			hi, lo := unhex[hex[2*i]], unhex[hex[2*i+1]]
			if hi|lo > 15 {
				return appendString(dst[:at], text)
			}
			raw[i] = hi<<4 | lo
		}
		dst = base64.StdEncoding.AppendEncode(dst, raw[:n])
		hex = hex[2*n:]
	}
	return append(dst, '"')
}

func appendBase64(dst, raw []byte) []byte {
	dst = append(dst, '"')
	dst = base64.StdEncoding.AppendEncode(dst, raw)
	return append(dst, '"')
}

// unhex gives the value of a lower-case digit, 255 for anything else.
var unhex = func() (value [256]byte) {
	for c := range value {
		value[c] = 255
	}
	for i, c := range []byte("0123456789abcdef") {
		value[c] = byte(i)
	}
	return value
}()

// appendBit gives bit(1) as a boolean, and bit(n) as base64 of the number it spells, little-endian and without zero
// bytes at the end. The declared length makes that invertible, which is why varbit stays text.
func appendBit(dst []byte, mod int32, text []byte) []byte {
	for _, c := range text {
		if c != '0' && c != '1' {
			return appendString(dst, text)
		}
	}
	if mod == 1 && len(text) == 1 {
		return strconv.AppendBool(dst, text[0] == '1')
	}
	var room [64]byte
	raw := room[:0]
	for end := len(text); end > 0; end -= 8 {
		var b byte
		for _, c := range text[max(end-8, 0):end] {
			b = b<<1 | (c - '0')
		}
		raw = append(raw, b)
	}
	return appendBase64(dst, bytes.TrimRight(raw, "\x00"))
}

// maxDepth is what Postgres allows (MAXDIM).
const maxDepth = 6

// appendArray turns the text of an array into a JSON array, nested as the array is. An array whose indexes do not
// begin at 1 ("[0:2]={1,2,3}") has no JSON form: ok is false then, and what was appended is to be taken off.
//
// It does not call itself, or the scratch for elements with escapes would be on the heap.
func appendArray(dst []byte, f Form, b []byte) (out []byte, ok bool) {
	var room [64]byte
	scratch, depth := room[:0], 0
	for len(b) > 0 {
		if b[0] == '{' && depth < maxDepth {
			depth++
			dst, b = append(dst, '['), b[1:]
			if len(b) == 0 || b[0] != '}' {
				continue
			}
		} else if depth == 0 {
			return dst, false
		} else if dst, b, scratch, ok = appendElement(dst, f, b, scratch); !ok {
			return dst, false
		}
		for len(b) > 0 && b[0] == '}' {
			depth--
			dst, b = append(dst, ']'), b[1:]
			if depth == 0 {
				return dst, len(b) == 0
			}
		}
		if len(b) == 0 || b[0] != f.Delimiter {
			return dst, false
		}
		dst, b = append(dst, ','), b[1:]
	}
	return dst, false
}

// appendElement takes one element off the front.
func appendElement(dst []byte, f Form, b, scratch []byte) (out, rest, again []byte, ok bool) {
	if len(b) == 0 || b[0] != '"' {
		n := 0
		for n < len(b) && b[n] != f.Delimiter && b[n] != '}' {
			n++
		}
		if n == 0 || n == len(b) {
			return dst, b, scratch, false
		}
		if string(b[:n]) == "NULL" {
			return append(dst, "null"...), b[n:], scratch, true
		}
		return appendScalar(dst, f.OID, f.Mod, b[:n]), b[n:], scratch, true
	}
	b, scratch = b[1:], scratch[:0]
	for len(b) > 0 {
		n := bytes.IndexAny(b, `"\`)
		if n < 0 || b[n] == '\\' && n+1 == len(b) {
			break
		}
		scratch = append(scratch, b[:n]...)
		if b[n] == '"' {
			return appendScalar(dst, f.OID, f.Mod, scratch), b[n+1:], scratch, true
		}
		scratch = append(scratch, b[n+1])
		b = b[n+2:]
	}
	return dst, b, scratch, false
}
