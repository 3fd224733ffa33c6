package change

import (
	"bytes"
	"strconv"
)

// appendMoment gives a date or timestamp its ISO 8601 form: "2026-11-21Z", "2026-11-21T13:14:15.5Z". Years before 1
// are astronomical (1 BC is 0000), years beyond 9999 have a sign. A timestamptz has as many decimals as its column.
func appendMoment(dst []byte, oid uint32, mod int32, text []byte) []byte {
	christian := bytes.TrimSuffix(text, []byte(" BC"))
	dash := bytes.IndexByte(christian, '-')
	timed := oid != oidDate
	space := len(christian)
	if timed {
		space = bytes.IndexByte(christian, ' ')
	}
	if dash < 4 || space < dash || !isClock(christian) || !timed && bytes.IndexByte(christian, ' ') >= 0 { // infinity, -infinity
		return appendString(dst, text)
	}
	dst = append(dst, '"')
	if dash == 4 && len(christian) == len(text) {
		dst = append(dst, christian[:space]...)
	} else {
		y, err := strconv.ParseInt(string(christian[:dash]), 10, 32)
		if err != nil {
			return appendString(dst[:len(dst)-1], text)
		}
		if len(christian) < len(text) {
			y = 1 - y
		}
		dst = appendYear(dst, y)
		dst = append(dst, christian[dash:space]...)
	}
	if timed {
		clock := christian[space+1:]
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

func appendYear(dst []byte, y int64) []byte {
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
	return strconv.AppendInt(dst, y, 10)
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

// appendTimetz gives "13:14:15.5+05" the ISO form "13:14:15.5+05:00", and Z for no offset.
func appendTimetz(dst, text []byte) []byte {
	i := bytes.LastIndexAny(text, "+-")
	if i < 8 || !isClock(text) {
		return appendString(dst, text)
	}
	dst = append(append(dst, '"'), text[:i]...)
	switch offset := text[i:]; {
	case string(offset) == "+00":
		dst = append(dst, 'Z')
	case len(offset) == len("+00"):
		dst = append(append(dst, offset...), ":00"...)
	default:
		dst = append(dst, offset...)
	}
	return append(dst, '"')
}

// appendTimetzUTC moves a time of day with offset, "13:14:15.5+05:30", to UTC.
func appendTimetzUTC(dst, text []byte) []byte {
	i := len(text) - 1
	for i >= 0 && text[i] != '+' && text[i] != '-' {
		i--
	}
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
	total, unit := 0, 3600
	for i := 0; i < len(b); i += 3 {
		if i+2 > len(b) || unit == 0 || b[i]-'0' > 9 || b[i+1]-'0' > 9 || i+2 < len(b) && (b[i+2] != ':' || i+3 == len(b)) {
			return 0, false
		}
		total += (int(b[i]-'0')*10 + int(b[i+1]-'0')) * unit
		unit /= 60
	}
	return total, len(b) > 0
}

// The fields of an interval in the order of its ISO form.
const (
	intervalYears = iota
	intervalMonths
	intervalDays
	intervalHours
	intervalMinutes
	intervalSeconds
	intervalFields
)

// interval holds each field with its own sign, which stands apart where several share one.
type interval struct {
	negative [intervalFields]bool
	value    [intervalFields][]byte
}

// appendInterval gives "1 year 2 mons 3 days 04:05:06.7" as "P1Y2M3DT4H5M6.7S", each part with its own sign.
func appendInterval(dst, text []byte) []byte {
	iv, ok := parseInterval(text)
	if !ok { // infinity
		return appendString(dst, text)
	}
	dst = append(dst, '"', 'P')
	for i, unit := range []byte("YMDHMS") {
		if i == intervalHours {
			dst = append(dst, 'T')
		}
		v := iv.value[i]
		if iv.negative[i] && len(v) > 0 {
			dst = append(dst, '-')
		}
		if len(v) == 0 || v[0] == '.' {
			dst = append(dst, '0')
		}
		dst = append(append(dst, v...), unit)
	}
	return append(dst, '"')
}

func parseInterval(text []byte) (iv interval, ok bool) {
	for len(text) > 0 {
		var word, unit []byte
		word, text, _ = bytes.Cut(text, []byte{' '})
		if bytes.IndexByte(word, ':') > 0 {
			iv, ok = iv.withClock(word)
			return iv, ok && len(text) == 0
		}
		unit, text, _ = bytes.Cut(text, []byte{' '})
		field := 0
		switch string(unit) {
		case "year", "years":
			field = intervalYears
		case "mon", "mons":
			field = intervalMonths
		case "day", "days":
			field = intervalDays
		default:
			return iv, false
		}
		word = bytes.TrimPrefix(word, []byte{'+'})
		if !isNumber(word) {
			return iv, false
		}
		iv.value[field] = word
	}
	return iv, true
}

// withClock reads "-04:05:06.789".
func (iv interval) withClock(word []byte) (interval, bool) {
	negative := word[0] == '-'
	if negative || word[0] == '+' {
		word = word[1:]
	}
	for field := intervalHours; field <= intervalSeconds; field++ {
		part, rest, more := bytes.Cut(word, []byte{':'})
		if more != (field < intervalSeconds) || !isDecimal(part) {
			return iv, false
		}
		iv.negative[field], iv.value[field] = negative, bytes.TrimLeft(part, "0")
		word = rest
	}
	return iv, true
}

// isDecimal reports whether the text is digits, and after a point more of them.
func isDecimal(text []byte) bool {
	points := 0
	for _, c := range text {
		if c == '.' {
			points++
		} else if c-'0' > 9 {
			return false
		}
	}
	return len(text) > 0 && points <= 1 && text[0] != '.' && text[len(text)-1] != '.'
}
