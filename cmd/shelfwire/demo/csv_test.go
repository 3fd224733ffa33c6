package demo

import (
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

const header = "Handle,Title,Body (HTML),Vendor,Type,Tags,Published,Option1 Name,Option1 Value,Option2 Name,Option2 Value," +
	"Variant SKU,Variant Grams,Variant Inventory Qty,Variant Inventory Policy,Variant Price,Variant Compare At Price," +
	"Image Src,Image Position,Image Alt Text,Gift Card,Variant Image,Status\n"

func read(t *testing.T, text string) *export {
	t.Helper()
	e, err := readExport(strings.NewReader(text), "x.csv")
	require.NoError(t, err)
	return e
}

func TestReadExportPutsRowsTogether(t *testing.T) {
	e := read(t, "\xEF\xBB\xBF"+strings.ReplaceAll(header+
		`shirt,"Shirt, ""blue""","<p>One
two</p>",Nord,Tops,"a, B,b, ,a",true,Size,S,Colour,Red,'007,120,3,deny,19.9,25,https://x/1.jpg,2,"A
shirt",false,https://x/v.jpg,active
shirt,,,,,,,,M,,Red,,,-4,continue,,0.00,https://x/0.jpg,1,,,,
mug,Mug,,,Home,,TRUE,Title,Default Title,,,,,,,5,,,,,,,draft
shirt,,,,,,,,,,,,,,,,,https://x/3 4.jpg,3,,,,
shirt,,,,,,,,S,,Red,,,,,1,,https://x/1.jpg,,,,,
,,,,,,,,,,,,,,,,,,,,,,
card,Card,,,,,,,,,,,,,,10,,,,,true
`, "\n", "\r\n"))
	require.Equal(t, []Note{
		{What: noteApostrophe, Count: 1, Line: 2, Column: "Variant SKU", Example: "'007"},
		{What: noteNegative, Count: 1, Line: 5, Column: "Variant Inventory Qty", Example: "-4"},
		{What: noteRepeated, Count: 1, Line: 8, Column: "Handle", Example: "shirt"},
		{What: noteNoPrice, Count: 1, Line: 5, Column: "Variant Price"},
	}, e.loaded.Notes)
	e.loaded.Notes = nil
	require.Equal(t, Loaded{Products: 3, Approved: 2, Variants: 4, Images: 4, Categories: 3, Repeated: 1}, e.loaded)
	shirt := e.products[0]
	require.Equal(t, `Shirt, "blue"`, shirt.title)
	require.Equal(t, "<p>One\ntwo</p>", shirt.html)
	require.Equal(t, []string{"a", "B"}, shirt.tags)
	require.Equal(t, []string{"Size", "Colour"}, shirt.options)
	require.Equal(t, []image{
		{url: "https://x/0.jpg"}, {url: "https://x/1.jpg", alt: "A shirt"}, {url: "https://x/3%204.jpg"}, {url: "https://x/v.jpg"},
	}, shirt.images)
	s, m := shirt.variants[0], shirt.variants[1]
	require.Equal(t, []string{"S", "Red"}, s.options)
	require.Equal(t, "007", s.sku)
	require.Equal(t, []any{"19.9", "25", 120.0, 3, 0}, []any{s.price, s.compareAt, s.grams, s.main, s.reserved})
	require.Equal(t, []any{"", "", "CONTINUE", 0, 4}, []any{m.price, m.compareAt, m.policy, m.main, m.reserved})
	require.True(t, e.products[1].approvedAt.IsZero(), "a draft")
	require.Equal(t, "gift", e.products[2].kind)
	require.Equal(t, []string{"Title"}, e.products[2].options)
	require.Equal(t, []string{"Default Title"}, e.products[2].variants[0].options)
}

func TestReadExportOfOtherWordings(t *testing.T) {
	newer := read(t, "Title,URL handle,Description,Product category,Tags,Published on online store,Status,SKU,Option1 name,Option1 value,Price,"+
		"Inventory quantity,Continue selling when out of stock,Weight value (grams),Product image URL,Whatever\n"+
		"Cup,cup,<b>x</b>,Home & Garden > Kitchen > Cups,,TRUE,Active,C,Title,Default Title,5.00,2,DENY,10,https://x/1,1\n")
	require.Equal(t, "Home & Garden", newer.tree.list[0].name)
	require.Len(t, newer.tree.list, 3)
	require.Equal(t, []int64{northID, southID}, newer.tree.list[2].stores)
	require.Equal(t, "5.00", newer.products[0].variants[0].price)
	require.Equal(t, 2, newer.products[0].variants[0].main)

	minimal := read(t, "Handle;Title;Variant Price\ncafe;Caf\xe9 \x80 \x00x;12,50\n")
	require.Equal(t, "Café € x", minimal.products[0].title, "Windows-1252, no NUL")
	require.Equal(t, "12.50", minimal.products[0].variants[0].price)
	require.Equal(t, 10, minimal.products[0].variants[0].main, "no stock column")
	require.False(t, minimal.products[0].approvedAt.IsZero())

	late := read(t, "Handle\tTitle\tOption1 Name\tOption1 Value\tImage Src\na\t\t\t\thttps://x/1\nA \tApple\tSize\tS\t\na\t\t\tM\t\n")
	require.Len(t, late.products, 1, "the picture stood before its product")
	require.Len(t, late.products[0].variants, 2)
	require.Len(t, late.products[0].images, 1)
}

func TestReadExportSaysWhatIsWrongWhere(t *testing.T) {
	ok := "a,A,,,,,true,Title,Default Title,,,,,1,deny,5,,,,,,,\n"
	for name, c := range map[string]struct {
		text   string
		line   int
		column string
		words  string
	}{
		"empty":          {"", 1, "", "the file is empty"},
		"no title":       {"Handle,Price\nx,1\n", 1, "Title", "Shopify product export"},
		"utf-16":         {"\xFF\xFEH\x00a\x00", 1, "Title", `"Ha" stands there`},
		"orders":         {"Name,Email,Lineitem name\n#1,a@x,b\n", 1, "Title", "an export of orders"},
		"customers":      {"Customer ID,First Name,Last Name,Email\n1,a,b,c\n", 1, "Title", "an export of customers"},
		"inventory":      {"Handle,Title,Option1 Name,SKU,HS Code,Location,On hand (current)\na,A,Title,,,Berlin,3\n", 1, "", "an export of inventory"},
		"json":           {`{"products": []}`, 1, "", "this is JSON"},
		"a web page":     {"\n<!DOCTYPE html>\n<html></html>", 1, "", "HTML"},
		"old xls":        {"\xD0\xCF\x11\xE0\xA1\xB1", 1, "", "(xls)"},
		"gzip":           {"\x1F\x8B\x08", 1, "", "unpack it"},
		"only blank":     {"\n\n  \n,,,\n", 4, "Title", "Shopify product export"},
		"far header":     {"a\nb\nc\nd\ne\nf\nHandle,Title\n", 6, "Title", "Shopify product export"},
		"spreadsheet":    {"PK\x03\x04....", 1, "", "spreadsheet"},
		"no product":     {header, 2, "", "at least one product"},
		"price":          {header + ok + "b,B,\"<p>\n\n</p>\",,,,true,Title,Default Title,,,,,1,deny,\"1,29,00\",,,,,,,\n", 5, "Variant Price", `"1,29,00" stands there, expected a price such as 19.99`},
		"ambiguous":      {"Handle;Title;Variant Price\na;A;1.299\n", 2, "Variant Price", "thousands or of decimals"},
		"huge price":     {header + "b,B,,,,,true,Title,Default Title,,,,,1,deny,1E+12,,,,,,,\n", 2, "Variant Price", "below 1000000000"},
		"negative price": {header + "b,B,,,,,true,Title,Default Title,,,,,1,deny,-1,,,,,,,\n", 2, "Variant Price", "price"},
		"quantity":       {header + "b,B,,,,,true,Title,Default Title,,,,,many,deny,1,,,,,,,\n", 2, "Variant Inventory Qty", "a number from"},
		"too many units": {header + "b,B,,,,,true,Title,Default Title,,,,,-3000000000,deny,1,,,,,,,\n", 2, "Variant Inventory Qty", "a number from -1000000000"},
		"option twice":   {header + "b,B,,,,,true,Size,S,SIZE,M,,,1,deny,1,,,,,,,\n", 2, "Option2 Name", "another name"},
		"long handle":    {header + strings.Repeat("ä", 256) + ",B,,,,,true\n", 2, "Handle", "255"},
		"weight":         {header + "b,B,,,,,true,Title,Default Title,,,,NaN,1,deny,1,,,,,,,\n", 2, "Variant Grams", "number"},
		"policy":         {header + "b,B,,,,,true,Title,Default Title,,,,,1,maybe,1,,,,,,,\n", 2, "Variant Inventory Policy", "deny or continue"},
		"published":      {header + "b,B,,,,,perhaps,Title,Default Title,,,,,1,deny,1,,,,,,,\n", 2, "Published", "true or false"},
		"long title":     {header + "b," + strings.Repeat("x", 256) + ",,,,,true\n", 2, "Title", "255"},
		"title missing":  {header + ok + "b,,,,,,,,S,,,,,1,deny,1,,,,,,,\n", 3, "Title", "of the product b"},
		"option value":   {header + "b,B,,,,,true,Size,S,Colour,Red,,,1,deny,1,,,,,,,\nb,,,,,,,,M,,,,,1,deny,1,,,,,,,\n", 3, "Option2 Value", "option Colour of the product b"},
		"too many cells": {header + strings.TrimSuffix(ok, "\n") + ",x\n", 2, "", "23 cells"},
		"open quote":     {header + ok + "b,\"B,,,\n,,\n", 3, "", "closing quote"},
		"bare quote":     {header + ok + "b,5\" pot,,,\n", 3, "", "doubled"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := readExport(strings.NewReader(c.text), "x.csv")
			var e *CSVError
			require.ErrorAs(t, err, &e)
			require.Equal(t, []any{"x.csv", c.line, c.column}, []any{e.File, e.Line, e.Column}, err.Error())
			require.ErrorContains(t, err, c.words)
		})
	}
}

func TestReadExportOfWhatCannotBeRead(t *testing.T) {
	_, err := readExport(iotest.ErrReader(errors.New("is a directory")), "x.csv")
	require.EqualError(t, err, "read x.csv: is a directory")
}

func FuzzReadExport(f *testing.F) {
	f.Add(header + "a,A,,,,,true,Title,Default Title,,,,,1,deny,5,,https://x/1,,,,,\n")
	f.Add("Handle;Title\nx;\"y\"\n")
	f.Add("\xEF\xBB\xBFURL handle\tTitle\tOption2 Value\n\x00\t\xff\ta\n")
	f.Add("Title;Price;Option1 Name;Option1 Value\n日本;1.299,00;Größe;S\n;;;\n!;$5;;\n")
	f.Add("\xFF\xFEH\x00,\x00T\x00i\x00t\x00l\x00e\x00\n\x00a\x00,\x00b\x00")
	f.Add("sep=;\rHandle;Title;SKU;Option1 Value;Image Src\r\"a\rb\";Cr\x8fme;=\"1\";s;//x/y\ra;;;S;HTTP://x\r")
	handle := regexp.MustCompile(`^[^\s/]+$`)
	f.Fuzz(func(t *testing.T, text string) {
		e, err := readExport(strings.NewReader(text), "x.csv")
		if err != nil {
			var bad *CSVError
			require.ErrorAs(t, err, &bad)
			require.Positive(t, bad.Line)
			require.NotEmpty(t, bad.Expected)
			return
		}
		handles := map[string]bool{}
		for _, p := range e.products {
			require.False(t, handles[p.handle], p.handle)
			handles[p.handle] = true
			require.NotEmpty(t, p.title)
			require.Regexp(t, handle, p.handle)
			for _, line := range append([]string{p.title, p.handle, p.vendor, p.typ, p.seoTitle, p.material}, p.options...) {
				require.LessOrEqual(t, utf8.RuneCountInString(line), 255)
				require.NotContains(t, line, "\n")
			}
			require.Len(t, p.images, len(slices.CompactFunc(slices.Clone(p.images), func(a, b image) bool { return a.url == b.url })))
			require.True(t, utf8.ValidString(p.title+p.html+p.handle))
			require.NotContains(t, p.title+p.html+p.handle, "\x00")
			require.NotEmpty(t, p.variants)
			choices := map[string]bool{}
			for _, v := range p.variants {
				for _, amount := range []string{v.price, v.compareAt, v.cost} {
					require.Regexp(t, `^([0-9]{1,9}(\.[0-9]+)?)?$`, amount)
				}
				require.Len(t, v.options, len(p.options))
				key := fold(strings.Join(v.options, "\x00"))
				require.False(t, choices[key], "%q twice", key)
				choices[key] = true
			}
		}
	})
}
