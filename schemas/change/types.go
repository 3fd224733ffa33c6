package change

import (
	"bytes"
	"encoding/base64"
	"strconv"
	"strings"
)

// The types of Postgres whose text has a JSON form of its own (src/include/catalog/pg_type.dat; these OIDs never
// change). Every other type is a JSON string of its text.
const (
	oidBool        = 16
	oidBytea       = 17
	oidInt8        = 20
	oidInt2        = 21
	oidInt4        = 23
	oidOID         = 26
	oidFloat4      = 700
	oidFloat8      = 701
	oidMoney       = 790
	oidDate        = 1082
	oidTime        = 1083
	oidTimestamp   = 1114
	oidTimestamptz = 1184
	oidInterval    = 1186
	oidTimetz      = 1266
	oidBit         = 1560
	oidNumeric     = 1700
)

// element gives the element type of the array types that are sent as JSON arrays. Zero: no such array.
func element(oid uint32) uint32 {
	switch oid {
	case 1000:
		return oidBool
	case 1001:
		return oidBytea
	case 1005:
		return oidInt2
	case 1007:
		return oidInt4
	case 1016:
		return oidInt8
	case 1021:
		return oidFloat4
	case 1022:
		return oidFloat8
	case 1028:
		return oidOID
	case 791:
		return oidMoney
	case 1182:
		return oidDate
	case 1183:
		return oidTime
	case 1115:
		return oidTimestamp
	case 1185:
		return oidTimestamptz
	case 1187:
		return oidInterval
	case 1270:
		return oidTimetz
	case 1561:
		return oidBit
	case 1231:
		return oidNumeric
	case 1002, 1003, 1009, 1014, 1015, 2951, 199, 3807, 143, 1041, 651, 1040, 775, 3905, 3907, 3909, 3911, 3913, 3927, 3643:
		// "char", name, text, char(n), varchar, uuid, json, jsonb, xml, inet, cidr, macaddr, macaddr8, ranges, tsvector
		return 25
	}
	return 0
}

// appendText appends the JSON form of a value's text. A text that does not look as its type should is sent as it is.
func appendText(dst []byte, oid uint32, mod int32, text []byte) []byte {
	switch oid {
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
	}
	if of := element(oid); of != 0 {
		at := len(dst)
		a := arrayReader{b: text, oid: of, mod: mod}
		if dst = a.append(dst); a.ok() {
			return dst
		}
		dst = dst[:at]
	}
	return appendString(dst, text)
}

// isNumber reports whether the text is a JSON number.
func isNumber(text []byte) bool {
	t := bytes.TrimPrefix(text, []byte{'-'})
	digits := func() int {
		n := 0
		for n < len(t) && t[n] >= '0' && t[n] <= '9' {
			n++
		}
		t = t[n:]
		return n
	}
	zero := len(t) > 0 && t[0] == '0'
	if n := digits(); n == 0 || zero && n > 1 {
		return false
	}
	if len(t) > 0 && t[0] == '.' {
		if t = t[1:]; digits() == 0 {
			return false
		}
	}
	if len(t) > 0 && t[0] == 'e' {
		if t = t[1:]; len(t) > 0 && (t[0] == '+' || t[0] == '-') {
			t = t[1:]
		}
		if digits() == 0 {
			return false
		}
	}
	return len(t) == 0
}

// isClock reports whether the text has only what dates and times in ISO form are written with.
func isClock(text []byte) bool {
	for _, c := range text {
		if (c < '0' || c > '9') && c != '-' && c != ':' && c != '.' && c != '+' && c != ' ' {
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
		case c == ',' || c == '$':
		default:
			return appendString(dst[:at], text)
		}
	}
	if dots > 1 {
		return appendString(dst[:at], text)
	}
	return append(dst, '"')
}

// appendBytea turns Postgres' hex form into base64.
func appendBytea(dst, text []byte) []byte {
	if !bytes.HasPrefix(text, []byte(`\x`)) || len(text)%2 != 0 {
		return appendString(dst, text)
	}
	raw := make([]byte, len(text)/2-1)
	for i := range raw {
		hi, ok1 := unhex(text[2+2*i])
		lo, ok2 := unhex(text[3+2*i])
		if !ok1 || !ok2 {
			return appendString(dst, text)
		}
		raw[i] = hi<<4 | lo
	}
	return appendBase64(dst, raw)
}

func appendBase64(dst, raw []byte) []byte {
	dst = append(dst, '"')
	dst = base64.StdEncoding.AppendEncode(dst, raw)
	return append(dst, '"')
}

func unhex(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	}
	return 0, false
}

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
	raw := make([]byte, (len(text)+7)/8)
	for i, c := range text {
		place := len(text) - 1 - i
		raw[place/8] |= (c - '0') << (place % 8)
	}
	return appendBase64(dst, bytes.TrimRight(raw, "\x00"))
}

// appendMoment gives a date or timestamp its ISO 8601 form: "2026-11-21Z", "2026-11-21T13:14:15.5Z". Years before 1
// are astronomical (1 BC is 0000), years beyond 9999 have a sign. A timestamptz has as many decimals as its column.
func appendMoment(dst []byte, oid uint32, mod int32, text []byte) []byte {
	christian := bytes.TrimSuffix(text, []byte(" BC"))
	day, clock, timed := bytes.Cut(christian, []byte{' '})
	year, rest, ok := bytes.Cut(day, []byte{'-'})
	y, err := strconv.ParseInt(string(year), 10, 32)
	if !ok || err != nil || timed != (oid != oidDate) || !isClock(christian) { // infinity, -infinity
		return appendString(dst, text)
	}
	if len(christian) < len(text) {
		y = 1 - y
	}
	dst = append(dst, '"')
	switch {
	case y < 0:
		dst = append(dst, '-')
		y = -y
	case y > 9999:
		dst = append(dst, '+')
	}
	for n := int64(1000); n > 1 && y < n; n /= 10 {
		dst = append(dst, '0')
	}
	dst = strconv.AppendInt(dst, y, 10)
	dst = append(dst, '-')
	dst = append(dst, rest...)
	if timed {
		dst = append(dst, 'T')
		if oid == oidTimestamptz {
			clock = bytes.TrimSuffix(clock, []byte("+00"))
		}
		dst = append(dst, clock...)
		if oid == oidTimestamptz {
			dst = appendDecimals(dst, clock, mod)
		}
	}
	return append(dst, 'Z', '"')
}

// appendDecimals fills the decimals of a clock up to the column's.
func appendDecimals(dst, clock []byte, mod int32) []byte {
	want := 6
	if mod >= 0 {
		want = int(min(mod, 6))
	}
	have := 0
	if i := bytes.IndexByte(clock, '.'); i >= 0 {
		have = len(clock) - i - 1
	} else if want > 0 {
		dst = append(dst, '.')
	}
	for ; have < want; have++ {
		dst = append(dst, '0')
	}
	return dst
}

// appendTimetz moves a time of day with offset, "13:14:15.5+05:30", to UTC.
func appendTimetz(dst, text []byte) []byte {
	i := bytes.LastIndexAny(text, "+-")
	if i < 8 || !isClock(text) {
		return appendString(dst, text)
	}
	seconds, ok1 := clockSeconds(text[:8])
	offset, ok2 := clockSeconds(text[i+1:])
	if !ok1 || !ok2 {
		return appendString(dst, text)
	}
	if text[i] == '+' {
		offset = -offset
	}
	if seconds += offset; seconds != 86400 || offset != 0 { // 24:00 without offset is a time of its own
		seconds = ((seconds % 86400) + 86400) % 86400
	}
	dst = append(dst, '"')
	for n, part := range [3]int{seconds / 3600, seconds / 60 % 60, seconds % 60} {
		if n > 0 {
			dst = append(dst, ':')
		}
		dst = append(dst, byte('0'+part/10), byte('0'+part%10))
	}
	dst = append(dst, text[8:i]...)
	return append(dst, 'Z', '"')
}

// clockSeconds reads "05", "05:30" or "05:30:15".
func clockSeconds(b []byte) (int, bool) {
	s, unit := 0, 3600
	for part := range bytes.SplitSeq(b, []byte{':'}) {
		n, err := strconv.Atoi(string(part))
		if err != nil || n < 0 || unit == 0 {
			return 0, false
		}
		s += n * unit
		unit /= 60
	}
	return s, true
}

// appendInterval gives "1 year 2 mons 3 days 04:05:06.7" as "P1Y2M3DT4H5M6.7S", each part with its own sign.
func appendInterval(dst, text []byte) []byte {
	parts := map[string]string{}
	fields := bytes.Fields(text)
	for i := 0; i < len(fields); i++ {
		f := string(fields[i])
		switch {
		case bytes.IndexByte(fields[i], ':') > 0:
			clock := bytes.Split(fields[i], []byte{':'})
			if len(clock) != 3 || !isClock(fields[i]) {
				return appendString(dst, text)
			}
			sign := ""
			if clock[0][0] == '-' || clock[0][0] == '+' {
				if clock[0][0] == '-' {
					sign = "-"
				}
				clock[0] = clock[0][1:]
			}
			for n, unit := range []string{"H", "M.", "S"} {
				if v := string(bytes.TrimLeft(clock[n], "0")); v != "" && v[0] != '.' {
					parts[unit] = sign + v
				} else if v != "" {
					parts[unit] = sign + "0" + v
				}
			}
		case i+1 < len(fields):
			i++
			f = strings.TrimPrefix(f, "+")
			unit := map[string]string{"year": "Y", "years": "Y", "mon": "M", "mons": "M", "day": "D", "days": "D"}[string(fields[i])]
			if unit == "" || !isNumber([]byte(f)) {
				return appendString(dst, text)
			}
			parts[unit] = f
		default: // infinity
			return appendString(dst, text)
		}
	}
	dst = append(dst, '"', 'P')
	for _, unit := range []string{"Y", "M", "D", "H", "M.", "S"} {
		if unit == "H" {
			dst = append(dst, 'T')
		}
		if v := parts[unit]; v != "" {
			dst = append(dst, v...)
		} else {
			dst = append(dst, '0')
		}
		dst = append(dst, unit[0])
	}
	return append(dst, '"')
}

// arrayReader turns the text of an array into a JSON array, nested as the array is. An array whose indexes do not
// begin at 1 ("[0:2]={1,2,3}") has no JSON form and is left to be sent as text.
type arrayReader struct {
	b    []byte
	oid  uint32
	mod  int32
	bad  bool
	elem []byte // scratch for an element with escapes
}

func (a *arrayReader) ok() bool { return !a.bad && len(a.b) == 0 }

// maxDepth is one more than Postgres allows (MAXDIM).
const maxDepth = 7

func (a *arrayReader) append(dst []byte) []byte { return a.nested(dst, 0) }

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
		if !a.take(',') {
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
		n := bytes.IndexAny(a.b, ",}")
		if n <= 0 {
			a.bad = true
			return dst
		}
		text := a.b[:n]
		a.b = a.b[n:]
		if string(text) == "NULL" {
			return append(dst, "null"...)
		}
		return appendText(dst, a.oid, a.mod, text)
	}
	a.elem = a.elem[:0]
	for len(a.b) > 0 {
		c := a.b[0]
		a.b = a.b[1:]
		if c == '"' {
			if len(a.elem) == 0 {
				return append(dst, `""`...) // only text types have an empty form
			}
			return appendText(dst, a.oid, a.mod, a.elem)
		}
		if c == '\\' && len(a.b) > 0 {
			c = a.b[0]
			a.b = a.b[1:]
		}
		a.elem = append(a.elem, c)
	}
	a.bad = true
	return dst
}
