package change

import (
	"encoding/binary"
	"unicode/utf16"
	"unicode/utf8"
)

const hexDigits = "0123456789ABCDEF"

// appendString appends a JSON string. What JSON demands is escaped, and characters beyond U+FFFF as surrogates, as
// the connector does: keys must be the same bytes, or they fall into other partitions.
//
// A byte that is not UTF-8, which a database with SQL_ASCII can hold, becomes the lone surrogate U+DC80 and up, as
// Python's surrogateescape has it. No text has one otherwise, so the bytes can be had back and two keys stay two; a
// reader that knows nothing of it sees U+FFFD.
func appendString(dst, s []byte) []byte {
	dst = append(dst, '"')
	if n := plain(s); n == len(s) {
		dst = append(dst, s...)
		return append(dst, '"')
	}
	return append(appendEscaped(dst, s), '"')
}

// appendEscaped appends what stands between the quotes.
func appendEscaped(dst, s []byte) []byte {
	for {
		n := plain(s)
		dst, s = append(dst, s[:n]...), s[n:]
		if len(s) == 0 {
			return dst
		}
		if s[0] < utf8.RuneSelf {
			dst, s = appendEscape(dst, s[0]), s[1:]
			continue
		}
		r, n := utf8.DecodeRune(s)
		switch {
		case n == 1:
			dst = appendUnicode(dst, 0xDC00+rune(s[0]))
		case r > 0xFFFF:
			hi, lo := utf16.EncodeRune(r)
			dst = appendUnicode(appendUnicode(dst, hi), lo)
		default:
			dst = append(dst, s[:n]...)
		}
		s = s[n:]
	}
}

// plain counts the bytes at the front that stand for themselves: ASCII that needs no escape. It looks at eight at a
// time.
func plain(s []byte) int {
	const (
		ones  = 0x0101010101010101
		highs = 0x8080808080808080
	)
	n := 0
	for ; n+8 <= len(s); n += 8 {
		w := binary.LittleEndian.Uint64(s[n:])
		quote, slash := w^(ones*'"'), w^(ones*'\\')
		// A byte's high bit is set where it is below ' ', equal to one of the two, or beyond ASCII. A borrow can set it
		// falsely only above a byte that is met itself.
		if (w|(w-ones*' ')|(quote-ones)|(slash-ones))&highs != 0 {
			break
		}
	}
	for ; n < len(s); n++ {
		if c := s[n]; c < ' ' || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			break
		}
	}
	return n
}

func appendEscape(dst []byte, c byte) []byte {
	switch c {
	case '"', '\\':
		return append(dst, '\\', c)
	case '\n':
		return append(dst, `\n`...)
	case '\r':
		return append(dst, `\r`...)
	case '\t':
		return append(dst, `\t`...)
	case '\b':
		return append(dst, `\b`...)
	case '\f':
		return append(dst, `\f`...)
	}
	return appendUnicode(dst, rune(c))
}

func appendUnicode(dst []byte, r rune) []byte {
	return append(dst, '\\', 'u', hexDigits[r>>12&15], hexDigits[r>>8&15], hexDigits[r>>4&15], hexDigits[r&15])
}
