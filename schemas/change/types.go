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
		var scratch [64]byte
		a := arrayReader{b: text, oid: f.OID, mod: f.Mod, delimiter: f.Delimiter, elem: scratch[:0]}
		if dst = a.nested(dst, 0); a.ok() {
			return dst
		}
		return appendString(dst[:at], text)
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

// arrayReader turns the text of an array into a JSON array, nested as the array is. An array whose indexes do not
// begin at 1 ("[0:2]={1,2,3}") has no JSON form and is left to be sent as text.
type arrayReader struct {
	b         []byte
	oid       uint32
	mod       int32
	delimiter byte
	bad       bool
	elem      []byte // scratch for an element with escapes
}

func (a *arrayReader) ok() bool { return !a.bad && len(a.b) == 0 }

// maxDepth is one more than Postgres allows (MAXDIM).
const maxDepth = 7

func (a *arrayReader) nested(dst []byte, depth int) []byte {
	if !a.take('{') || depth > maxDepth {
		a.bad = true
		return dst
	}
	dst = append(dst, '[')
	if a.take('}') {
		return append(dst, ']')
	}
	for !a.bad {
		if len(a.b) > 0 && a.b[0] == '{' {
			dst = a.nested(dst, depth+1)
		} else {
			dst = a.value(dst)
		}
		if a.take('}') {
			return append(dst, ']')
		}
		if !a.take(a.delimiter) {
			a.bad = true
		}
		dst = append(dst, ',')
	}
	return dst
}

func (a *arrayReader) take(c byte) bool {
	if len(a.b) == 0 || a.b[0] != c {
		return false
	}
	a.b = a.b[1:]
	return true
}

func (a *arrayReader) value(dst []byte) []byte {
	if !a.take('"') {
		n := 0
		for n < len(a.b) && a.b[n] != a.delimiter && a.b[n] != '}' {
			n++
		}
		if n == 0 || n == len(a.b) {
			a.bad = true
			return dst
		}
		text := a.b[:n]
		a.b = a.b[n:]
		if string(text) == "NULL" {
			return append(dst, "null"...)
		}
		return appendScalar(dst, a.oid, a.mod, text)
	}
	a.elem = a.elem[:0]
	for len(a.b) > 0 {
		n := bytes.IndexAny(a.b, `"\`)
		if n < 0 || a.b[n] == '\\' && n+1 == len(a.b) {
			break
		}
		a.elem = append(a.elem, a.b[:n]...)
		if a.b[n] == '"' {
			a.b = a.b[n+1:]
			return appendScalar(dst, a.oid, a.mod, a.elem)
		}
		a.elem = append(a.elem, a.b[n+1])
		a.b = a.b[n+2:]
	}
	a.bad = true
	return dst
}
