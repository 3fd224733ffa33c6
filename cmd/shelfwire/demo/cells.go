package demo

import (
	"bufio"
	"errors"
	"io"
	"math"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/encoding/charmap"
)

// column is a column of a Shopify product export that is loaded.
type column int

const (
	colHandle column = iota
	colTitle
	colBody
	colVendor
	colCategory
	colGoogleCategory
	colType
	colTags
	colPublished
	colStatus
	colOption1Name
	colOption2Name
	colOption3Name
	colOption1Value
	colOption2Value
	colOption3Value
	colSKU
	colBarcode
	colGrams
	colQuantity
	colPolicy
	colPrice
	colCompareAt
	colCost
	colRequiresShipping
	colTaxable
	colImage
	colImagePosition
	colImageAlt
	colVariantImage
	colGiftCard
	colSEOTitle
	colSEODescription
	colMaterial
)

// columnHeadings are the columns' names in exports before 2025 and since; the first stands in messages about a missing
// one.
var columnHeadings = map[column][]string{
	colHandle:           {"Handle", "URL handle"},
	colTitle:            {"Title"},
	colBody:             {"Body (HTML)", "Body HTML", "Description"},
	colVendor:           {"Vendor"},
	colCategory:         {"Product Category", "Standardized Product Type"},
	colGoogleCategory:   {"Google Shopping / Google Product Category"},
	colType:             {"Type", "Custom Product Type"},
	colTags:             {"Tags"},
	colPublished:        {"Published", "Published on online store"},
	colStatus:           {"Status"},
	colOption1Name:      {"Option1 Name"},
	colOption2Name:      {"Option2 Name"},
	colOption3Name:      {"Option3 Name"},
	colOption1Value:     {"Option1 Value"},
	colOption2Value:     {"Option2 Value"},
	colOption3Value:     {"Option3 Value"},
	colSKU:              {"Variant SKU", "SKU"},
	colBarcode:          {"Variant Barcode", "Barcode"},
	colGrams:            {"Variant Grams", "Weight value (grams)"},
	colQuantity:         {"Variant Inventory Qty", "Inventory quantity"},
	colPolicy:           {"Variant Inventory Policy", "Continue selling when out of stock"},
	colPrice:            {"Variant Price", "Price"},
	colCompareAt:        {"Variant Compare At Price", "Compare-at price"},
	colCost:             {"Cost per item"},
	colRequiresShipping: {"Variant Requires Shipping", "Requires shipping"},
	colTaxable:          {"Variant Taxable", "Charge tax"},
	colImage:            {"Image Src", "Product image URL"},
	colImagePosition:    {"Image Position"},
	colImageAlt:         {"Image Alt Text"},
	colVariantImage:     {"Variant Image", "Variant image URL"},
	colGiftCard:         {"Gift Card"},
	colSEOTitle:         {"SEO Title"},
	colSEODescription:   {"SEO Description"},
	colMaterial:         {"Material (product.metafields.custom.material)"},
}

// headings and columnNames are columnHeadings from either side.
var headings, columnNames = func() (map[column]string, map[string]column) {
	first, all := map[column]string{}, map[string]column{}
	for c, names := range columnHeadings {
		first[c] = names[0]
		for _, name := range names {
			all[normalize(name)] = c
		}
	}
	return first, all
}()

// normalize makes headings comparable: case and spaces do not count.
func normalize(heading string) string {
	return strings.ToLower(strings.Join(strings.Fields(heading), ""))
}

// openText finds out how a file is written: it drops a byte order mark and tells the separator from the header.
func openText(r io.Reader) (io.Reader, rune, error) {
	b := bufio.NewReaderSize(r, 64<<10)
	head, err := b.Peek(64 << 10)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, 0, err
	}
	switch {
	case len(head) >= 2 && (head[0] == 0xFF && head[1] == 0xFE || head[0] == 0xFE && head[1] == 0xFF):
		return nil, 0, errors.New("UTF-8; the file is UTF-16, save it as CSV UTF-8")
	case len(head) >= 4 && string(head[:2]) == "PK":
		return nil, 0, errors.New("CSV; the file is a spreadsheet or an archive, export or unpack it")
	case strings.HasPrefix(string(head), "\xEF\xBB\xBF"):
		if _, err := b.Discard(3); err != nil {
			return nil, 0, err
		}
	}
	line, _, _ := strings.Cut(string(head), "\n")
	comma := ','
	for _, other := range ";\t" {
		if strings.Count(line, string(other)) > strings.Count(line, string(comma)) {
			comma = other
		}
	}
	return b, comma, nil
}

// clean makes a cell storable: text that is not UTF-8 is read as Windows-1252, which is what Excel saves; control
// characters, which Postgres or the shop would refuse, are dropped.
func clean(s string) string {
	if !utf8.ValidString(s) {
		if decoded, err := charmap.Windows1252.NewDecoder().String(s); err == nil {
			s = decoded
		}
		s = strings.ToValidUTF8(s, "\uFFFD")
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' && r != '\t' || r == '\uFEFF' {
			return -1
		}
		return r
	}, s)
}

// text is a cell without the spaces around it.
func (s *sheet) text(c column) string { return strings.TrimSpace(s.raw(c)) }

// line255 is a cell that Shopify takes up to 255 characters of.
func (s *sheet) line255(c column) (string, error) {
	t := strings.Join(strings.Fields(s.text(c)), " ")
	if utf8.RuneCountInString(t) > 255 {
		return "", s.wrong(c, "at most 255 characters, which is Shopify's limit")
	}
	return t, nil
}

// code is a SKU or barcode; spreadsheets keep their leading zeros by an apostrophe, which is no part of them.
func (s *sheet) code(c column) (string, error) {
	t, err := s.line255(c)
	return strings.TrimPrefix(t, "'"), err
}

var decimalCell = regexp.MustCompile(`^[0-9]{1,10}(\.[0-9]{1,10})?$`)

// price is a decimal, or empty.
func (s *sheet) price(c column) (string, error) {
	t := s.text(c)
	if s.csv.Comma == ';' { // a spreadsheet of a country that writes 12,50
		t = strings.Replace(t, ",", ".", 1)
	}
	if t != "" && !decimalCell.MatchString(t) {
		return "", s.wrong(c, "a price such as 19.99: digits and a point, no currency, no thousands separator")
	}
	return t, nil
}

// number is a number within bounds, or fallback where the cell is empty.
func (s *sheet) number(c column, least, most, fallback float64) (float64, error) {
	t := s.text(c)
	if t == "" {
		return fallback, nil
	}
	if s.csv.Comma == ';' {
		t = strings.Replace(t, ",", ".", 1)
	}
	n, err := strconv.ParseFloat(t, 64)
	if err != nil || math.IsNaN(n) || n < least || n > most {
		return 0, s.wrong(c, "a number from "+strconv.FormatFloat(least, 'f', -1, 64)+" to "+strconv.FormatFloat(most, 'f', -1, 64))
	}
	return n, nil
}

// whole is a whole number, or fallback where the cell is empty.
func (s *sheet) whole(c column, least, most, fallback int) (int, error) {
	n, err := s.number(c, float64(least), float64(most), float64(fallback))
	if err == nil && n != math.Trunc(n) {
		err = s.wrong(c, "a whole number")
	}
	return int(n), err
}

// truth is true or false, or fallback where the cell is empty.
func (s *sheet) truth(c column, fallback bool) (bool, error) {
	switch strings.ToLower(s.text(c)) {
	case "":
		return fallback, nil
	case "true", "yes", "1", "wahr", "vrai":
		return true, nil
	case "false", "no", "0", "falsch", "faux":
		return false, nil
	}
	return false, s.wrong(c, "true or false")
}

// policy is DENY or CONTINUE; empty is DENY.
func (s *sheet) policy() (string, error) {
	switch strings.ToLower(s.text(colPolicy)) {
	case "", "deny", "false":
		return "DENY", nil
	case "continue", "true":
		return "CONTINUE", nil
	}
	return "", s.wrong(colPolicy, "deny or continue")
}

// address is the URL of a picture, or empty.
func (s *sheet) address(c column) (string, error) {
	t := strings.ReplaceAll(s.text(c), " ", "%20")
	if t == "" {
		return "", nil
	}
	u, err := url.Parse(t)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || strings.ContainsFunc(t, unicode.IsSpace) || len(t) > 2048 {
		return "", s.wrong(c, "the address of a picture that begins with https://")
	}
	return t, nil
}

// tags are the cell's words between commas, each once: Shopify compares them without case.
func (s *sheet) tags() ([]string, error) {
	tags, seen := []string{}, map[string]bool{}
	for tag := range strings.SplitSeq(s.text(colTags), ",") {
		tag = strings.Join(strings.Fields(tag), " ")
		if tag == "" || seen[strings.ToLower(tag)] {
			continue
		}
		if utf8.RuneCountInString(tag) > 255 {
			return nil, s.wrong(colTags, "tags of at most 255 characters, separated by commas")
		}
		seen[strings.ToLower(tag)] = true
		tags = append(tags, tag)
	}
	if len(tags) > 250 {
		return nil, s.wrong(colTags, "at most 250 tags, which is Shopify's limit")
	}
	return tags, nil
}
