package demo

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/unicode"
)

// noted is how often each thing was noted.
func noted(e *export) map[string]int {
	counts := map[string]int{}
	for _, n := range e.loaded.Notes {
		counts[n.What] = n.Count
	}
	return counts
}

func TestReadExportOfSpreadsheets(t *testing.T) {
	const text = "Handle;Title;Vendor;Variant Price\nmöbel;Größe – Möbel’s;Crème brûlée;12,50\nx;Señor;Åsa;1.299,00\n"
	for name, c := range map[string]struct {
		encoding encoding.Encoding
		change   func(string) string
		note     string
	}{
		"utf-8":                  {encoding.Nop, nil, ""},
		"utf-8 with a mark":      {unicode.UTF8BOM, nil, ""},
		"utf-16":                 {unicode.UTF16(unicode.LittleEndian, unicode.UseBOM), nil, "the file is UTF-16, not UTF-8"},
		"utf-16, big end first":  {unicode.UTF16(unicode.BigEndian, unicode.UseBOM), nil, "the file is UTF-16, not UTF-8"},
		"utf-16 without a mark":  {unicode.UTF16(unicode.LittleEndian, unicode.IgnoreBOM), nil, "the file is UTF-16, not UTF-8"},
		"windows-1252":           {charmap.Windows1252, nil, noteEncoding + "Windows 1252"},
		"mac os roman":           {charmap.Macintosh, nil, noteEncoding + "Macintosh"},
		"carriage returns":       {encoding.Nop, func(s string) string { return strings.ReplaceAll(s, "\n", "\r") }, "the rows end with a carriage return, not a line feed"},
		"both":                   {encoding.Nop, func(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }, ""},
		"mac, carriage returns":  {charmap.Macintosh, func(s string) string { return strings.ReplaceAll(s, "\n", "\r") }, noteEncoding + "Macintosh"},
		"tabs":                   {encoding.Nop, func(s string) string { return strings.ReplaceAll(s, ";", "\t") }, `the cells are separated by '\t', not by a comma`},
		"a line for Excel":       {encoding.Nop, func(s string) string { return "sep=;\r\n" + s }, ""},
		"a table's name":         {encoding.Nop, func(s string) string { return "Table 1\n" + s }, noteLeading},
		"all cells in quotes":    {encoding.Nop, func(s string) string { return `"` + strings.NewReplacer(";", `";"`, "\n", "\"\n\"").Replace(s) + `"` }, ""},
		"columns and rows after": {encoding.Nop, func(s string) string { return strings.ReplaceAll(s, "\n", ";;;\n") + ";;;;;;\n\n;\n" }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			written := text
			if c.change != nil {
				written = c.change(written)
			}
			written, err := c.encoding.NewEncoder().String(written)
			require.NoError(t, err)
			e := read(t, written)
			require.Len(t, e.products, 2)
			require.Equal(t, []string{"möbel", "Größe – Möbel’s", "Crème brûlée"}, []string{e.products[0].handle, e.products[0].title, e.products[0].vendor})
			require.Equal(t, []string{"Señor", "Åsa"}, []string{e.products[1].title, e.products[1].vendor})
			require.Equal(t, []string{"12.50", "1299.00"}, []string{e.products[0].variants[0].price, e.products[1].variants[0].price})
			require.Equal(t, 2, noted(e)[noteNumber])
			if c.note != "" {
				require.Contains(t, noted(e), c.note)
			}
		})
	}
}

func TestReadExportCountsLinesAsTheFileDoes(t *testing.T) {
	for _, end := range []string{"\n", "\r\n", "\r"} {
		for leading, lines := range map[string]int{"": 0, "sep=,": 1, "Table 1": 1} {
			text := header + "a,A,\"x\ny\",,,,,,,,,,,,,,,,,,,,\nb,B,,,,,perhaps,,,,,,,,,,,,,,,,\n"
			if leading != "" {
				text = leading + "\n" + text
			}
			_, err := readExport(strings.NewReader(strings.ReplaceAll(text, "\n", end)), "x.csv")
			require.ErrorContains(t, err, fmt.Sprintf(`x.csv:%d: column "Published": "perhaps"`, 4+lines), "%q %q", end, leading)
		}
	}
}

func TestReadExportMendsCells(t *testing.T) {
	e := read(t, "Handle,Title,Variant SKU,Variant Barcode,Variant Price,Variant Inventory Qty,Image Src,Status,SEO Title,Option1 Name,Option1 Value,Published\n"+
		`Bad_Handle!.x,"A  b`+"\n"+`c`+"\x00\x07"+`","=""00123""",4.00638E+12,"$1,299.5",2.7,//cdn.shop/a b.jpg,Aktiv,`+strings.Repeat("s", 300)+",Size / Cut,Red,VRAI\n"+
		"bad_handle!.x,Other,'5,'4006381333931,19.999,-3,pic.jpg,,,,red,\n"+
		"bad_handle!.x,,,,1E+03,\"1,250\",HTTPS://cdn.shop/c.jpg,,,,Blue\u200d,\n"+
		",No handle,,,€ 5,,,,,,,\n"+
		",,lost,,1,,,,,,,\n"+
		"bad-handle,B,,,CHF 1'200.50,,,,,,,FAUX\n"+
		"bad.handle,C,,,5 kr,,,unlisted,,,,\n")
	require.Equal(t, map[string]int{
		noteHandle: 2, noteControl: 1, noteApostrophe: 3, noteScientific: 1, noteNumber: 6, noteCents: 1, noteUnits: 1, noteNegative: 1,
		noteScheme: 1, noteAddress: 1, noteStatus: 1, noteCut: 1, noteReserved: 1, noteSpelling: 1, noteRepeated: 1, noteSecondTitle: 1,
		noteNoHandle: 1, noteNobody: 1, noteTaken: 1,
	}, noted(e))
	p := e.products[0]
	require.Equal(t, []string{"bad_handle-x", "A  b c", strings.Repeat("s", 255)}, []string{p.handle, p.title, p.seoTitle})
	require.Equal(t, []string{"Size/Cut"}, p.options)
	require.Equal(t, []image{{url: "https://cdn.shop/a%20b.jpg"}, {url: "https://cdn.shop/c.jpg"}}, p.images)
	require.Equal(t, []any{"00123", "4.00638E+12", "1299.5", 2}, []any{p.variants[0].sku, p.variants[0].barcode, p.variants[0].price, p.variants[0].main})
	require.Equal(t, []any{"1000", 1250, "Blue\u200d"}, []any{p.variants[1].price, p.variants[1].main, p.variants[1].options[0]})
	require.Equal(t, []string{"no-handle", "5"}, []string{e.products[1].handle, e.products[1].variants[0].price})
	require.Equal(t, []string{"bad-handle", "1200.50"}, []string{e.products[2].handle, e.products[2].variants[0].price})
	require.Equal(t, []string{"bad-handle-1", "5"}, []string{e.products[3].handle, e.products[3].variants[0].price})
	require.Equal(t, 1, e.loaded.Approved, "one without a status, of those that are published")
	require.Contains(t, e.loaded.Notes[1].String(), `written as it would (first at line 2, "Handle": "Bad_Handle!.x")`)
}

func TestReadExportOfParentRows(t *testing.T) {
	e := read(t, "URL handle,Title,Option1 name,Option1 value,Option2 name,Option2 value,Price,Product image URL,Inventory quantity\n"+
		"a,A,,,,,,https://x/1,9\n"+ // nothing of a variant, as some tools write it
		"a,A,Size,S,Colour,Red,5,https://x/2,1\n"+
		"a,A,,,,,,https://x/3,\n"+ // a picture's row with the title again
		"a,A,,M,,Red,5,,2\n"+
		"b,B,,,,,,,\n")
	require.Len(t, e.products[0].variants, 2)
	require.Len(t, e.products[0].images, 3)
	require.Equal(t, []string{"Size", "Colour"}, e.products[0].options)
	require.Equal(t, []string{"Default Title"}, e.products[1].variants[0].options)
	require.Equal(t, map[string]int{noteNoPrice: 1}, noted(e))
}

func TestReadExportOfFewColumns(t *testing.T) {
	e := read(t, "Title\nA cup\nA cup\n日本\n!\n")
	require.Equal(t, []string{"a-cup", "a-cup-1", "日本", "product"},
		[]string{e.products[0].handle, e.products[1].handle, e.products[2].handle, e.products[3].handle})
	require.Equal(t, "10.00", e.products[0].variants[0].price)
	require.Equal(t, 10, e.products[0].variants[0].main)
	require.Equal(t, map[string]int{notePriceAll: 1, noteNoStock: 1, noteNoHandle: 4, noteTaken: 1}, noted(e))
}

func TestReadExportOfLargeProducts(t *testing.T) {
	var b strings.Builder
	b.WriteString("Handle,Title,Option1 Name,Option1 Value,Option2 Name,Option2 Value,Option3 Name,Option3 Value,Variant Price,Image Src\n")
	write := func(handle string, variants, values, pictures int) {
		for i := range variants {
			fmt.Fprintf(&b, "%s,%s,A,a%d,B,b%d,C,c%d,5,\n", handle, handle, i%values, i/values%values, i/values/values)
		}
		for i := range pictures {
			fmt.Fprintf(&b, "%s,,,,,,,,,https://x/%d\n", handle, i)
		}
	}
	write("large", 2048, 20, 260)
	e := read(t, b.String())
	require.Len(t, e.products[0].variants, 2048)
	require.Len(t, e.products[0].images, 250)
	require.Equal(t, map[string]int{notePictures: 10, noteNoStock: 1}, noted(e))

	write("larger", 2049, 20, 0)
	_, err := readExport(strings.NewReader(b.String()), "x.csv")
	require.ErrorContains(t, err, `x.csv:4358: column "Handle": "larger" stands there, expected at most 2048 variants`)
	b.Reset()
	b.WriteString("Handle,Title,Option1 Name,Option1 Value,Option2 Name,Option2 Value,Option3 Name,Option3 Value,Variant Price,Image Src\n")
	write("wide", 101, 101, 0)
	_, err = readExport(strings.NewReader(b.String()), "x.csv")
	require.ErrorContains(t, err, `x.csv:102: column "Option1 Value": "a100" stands there, expected at most 100 values`)
}

func TestParseNumber(t *testing.T) {
	for _, c := range []struct {
		cell  string
		comma rune
		want  string // "": an error
	}{
		{"1299", ',', "1299"},
		{"1299.00", ';', "1299.00"},
		{"1.299", ',', "1.299"},
		{"-3", ',', "-3"},
		{"0.125", ';', "0.125"},
		{"1,299", ',', "1299"},
		{"1,299.5", ',', "1299.5"},
		{"1,299,000", ',', "1299000"},
		{"1,25,000.00", ',', "125000.00"},
		{"12,5", ',', "12.5"},
		{"12,50", ';', "12.50"},
		{"0,125", ';', "0.125"},
		{"1.299,00", ',', "1299.00"},
		{"1.299.000", ';', "1299000"},
		{"1 299,00", ';', "1299.00"},
		{"1\u202f299,00 €", ';', "1299.00"},
		{"1'299.50", ',', "1299.50"},
		{"−4", ',', "-4"},
		{"$5", ',', "5"},
		{"US$ 5.50", ',', "5.50"},
		{"Rs. 500", ',', "500"},
		{"5 zł", ';', "5"},
		{"1.5E+03", ',', "1500"},
		{"1.299", ';', ""},
		{"1,299", ';', ""},
		{"1,29,00", ',', ""},
		{"12.3.4", ',', ""},
		{"free", ',', ""},
		{"", ',', ""},
		{"1-2", ',', ""},
		{"NaN", ',', ""},
		{"Inf", ',', ""},
		{"0x10", ',', ""},
		{"1e999", ',', ""},
		{"٣", ',', ""},
		{".5", ',', "0.5"},
		{"5.", ',', ""},
		{"$.50", ',', "0.50"},
		{"--1", ',', ""},
	} {
		got, mended, err := parseNumber(c.cell, c.comma, true)
		if c.want == "" {
			require.Error(t, err, "%q", c.cell)
			continue
		}
		require.NoError(t, err, "%q", c.cell)
		require.Equal(t, c.want, got, "%q", c.cell)
		require.Equal(t, c.want != c.cell, mended, "%q", c.cell)
	}
}
