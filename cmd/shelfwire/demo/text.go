package demo

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/unicode"
)

// plainText is a file as text. Its rows end with a line feed, and a line of it is a line of the file.
type plainText struct {
	text  []byte
	comma rune
	// legacy reads the cells that are not UTF-8; nil where there are none.
	legacy *charmap.Charmap
	// mended says how the file as a whole was read, where that is not how Shopify writes one.
	mended []string
}

// decodeText finds out how a file is written. What is no text of rows is an error that says what is expected instead.
func decodeText(b []byte) (p *plainText, err error) {
	p = &plainText{text: b}
	if p.text, err = p.fromUTF16(); err != nil {
		return nil, err
	}
	p.text = bytes.TrimPrefix(p.text, []byte("\xEF\xBB\xBF"))
	if kind := otherKind(p.text); kind != "" {
		return nil, errors.New("a CSV file; this is " + kind)
	}
	p.endLines()
	p.findComma()
	if !utf8.Valid(p.text) {
		p.legacy = legacyOf(p.text)
	}
	return p, nil
}

// otherKind names a file that is surely no CSV by how it begins; empty where it may be one.
func otherKind(b []byte) string {
	for _, k := range []struct{ begins, name string }{
		{"PK\x03\x04", "a spreadsheet (xlsx, ods, numbers) or a zip archive: save it as CSV UTF-8, or unpack it"},
		{"\xD0\xCF\x11\xE0", "an old spreadsheet (xls): save it as CSV UTF-8"},
		{"\x1F\x8B", "packed (gzip): unpack it"},
		{"%PDF", "a PDF document"},
	} {
		if bytes.HasPrefix(b, []byte(k.begins)) {
			return k.name
		}
	}
	b = bytes.TrimSpace(b)
	switch {
	case bytes.HasPrefix(b, []byte("{")), bytes.HasPrefix(b, []byte("[")):
		return "JSON: export the products from the admin as CSV"
	case bytes.HasPrefix(b, []byte("<")):
		return "HTML or XML, perhaps a sign-in page that was saved: export the products from the admin as CSV"
	}
	return ""
}

// fromUTF16 decodes what Excel calls Unicode text, with its byte order mark or, as some tools write it, without.
func (p *plainText) fromUTF16() ([]byte, error) {
	b := p.text
	order, mark := unicode.LittleEndian, true
	switch {
	case bytes.HasPrefix(b, []byte("\xFF\xFE")):
	case bytes.HasPrefix(b, []byte("\xFE\xFF")):
		order = unicode.BigEndian
	case len(b) >= 4 && b[0] != 0 && b[1] == 0 && b[2] != 0 && b[3] == 0:
		mark = false
	case len(b) >= 4 && b[0] == 0 && b[1] != 0 && b[2] == 0 && b[3] != 0:
		order, mark = unicode.BigEndian, false
	default:
		return b, nil
	}
	policy := unicode.IgnoreBOM
	if mark {
		policy = unicode.UseBOM
	}
	decoded, err := unicode.UTF16(order, policy).NewDecoder().Bytes(b)
	if err != nil {
		return nil, fmt.Errorf("UTF-8 or UTF-16 text (%w)", err)
	}
	p.mended = append(p.mended, "the file is UTF-16, not UTF-8")
	return decoded, nil
}

// endLines makes rows end with a line feed where they end with a carriage return alone, as Excel for the Mac writes
// them. In any other file such a return is part of a cell.
func (p *plainText) endLines() {
	first := -1
	for i, quoted := 0, false; i < len(p.text) && first < 0; i++ {
		switch p.text[i] {
		case '"':
			quoted = !quoted
		case '\r', '\n':
			if !quoted {
				first = i
			}
		}
	}
	if first < 0 || p.text[first] != '\r' || first+1 < len(p.text) && p.text[first+1] == '\n' {
		return
	}
	p.text = bytes.ReplaceAll(p.text, []byte("\r\n"), []byte("\n"))
	p.text = bytes.ReplaceAll(p.text, []byte("\r"), []byte("\n"))
	p.mended = append(p.mended, "the rows end with a carriage return, not a line feed")
}

// findComma tells the separator: from Excel's own line for it (sep=;), else from the first line that has any.
func (p *plainText) findComma() {
	p.comma = ','
	line, rest, _ := bytes.Cut(p.text, []byte("\n"))
	if sep, ok := bytes.CutPrefix(bytes.TrimSpace(line), []byte("sep=")); ok && len(sep) <= 1 {
		if len(sep) == 1 && strings.Contains(";\t|", string(sep)) {
			p.comma = rune(sep[0])
		}
		p.text = append([]byte("\n"), rest...) // an empty line is no row, but it counts
		p.sayComma()
		return
	}
	counts, quoted := map[byte]int{}, false
	for _, b := range p.text {
		switch b {
		case '"':
			quoted = !quoted
		case ',', ';', '\t', '|':
			if !quoted {
				counts[b]++
			}
		}
		if b == '\n' && !quoted && len(counts) > 0 {
			break
		}
	}
	for _, other := range []byte(";\t|") {
		if counts[other] > counts[byte(p.comma)] {
			p.comma = rune(other)
		}
	}
	p.sayComma()
}

func (p *plainText) sayComma() {
	if p.comma != ',' {
		p.mended = append(p.mended, fmt.Sprintf("the cells are separated by %q, not by a comma", p.comma))
	}
}

// legacyOf guesses which of the two encodings that Excel saves a text is in, by the bytes beside plain letters:
// Windows-1252 has its small letters at E0 to FF, Mac OS Roman its letters at 80 to 9F, where Windows-1252 has quotes
// and dashes. 92 is left out, as it is the apostrophe of Windows.
func legacyOf(b []byte) *charmap.Charmap {
	letter := func(i int) bool {
		return i >= 0 && i < len(b) && (b[i]|0x20 >= 'a' && b[i]|0x20 <= 'z')
	}
	windows, mac := 0, 0
	for i, c := range b {
		switch {
		case c < 0x80 || !letter(i-1) && !letter(i+1):
		case c >= 0xE0:
			windows++
		case c < 0xA0 && c != 0x92:
			mac++
		}
	}
	if mac > windows {
		return charmap.Macintosh
	}
	return charmap.Windows1252
}
