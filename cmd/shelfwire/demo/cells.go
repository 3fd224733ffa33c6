package demo

import (
	"errors"
	"math"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
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
	colBody:             {"Body (HTML)", "Body HTML", "Body", "Description"},
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

// columnOf is the column that a heading names.
func columnOf(heading string) (column, bool) {
	name := normalize(heading)
	if c, ok := columnNames[name]; ok {
		return c, true
	}
	// The name before a metafield is the merchant's own, in the merchant's language.
	if strings.Contains(name, "(product.metafields.custom.material)") || strings.HasPrefix(name, "metafield:custom.material[") {
		return colMaterial, true
	}
	return 0, false
}

// cleanRow makes the cells of known columns of the current row storable, and counts what it has to change.
func (s *sheet) cleanRow() {
	for _, i := range s.known {
		if i >= len(s.cells) {
			continue
		}
		was := s.cells[i]
		s.cells[i] = s.clean(was)
		switch {
		case s.cells[i] == was:
		case !utf8.ValidString(was):
			s.noteAt(noteEncoding+s.legacy.String(), s.line, s.names[i], shorten(s.cells[i]))
		case strings.ContainsFunc(was, dropped):
			s.noteAt(noteControl, s.line, s.names[i], shorten(s.cells[i]))
		}
	}
}

// clean makes a text storable: what is not UTF-8 is decoded; control characters, which Postgres or the shop would
// refuse, are dropped; line ends are line feeds.
func (s *sheet) clean(text string) string {
	if !utf8.ValidString(text) {
		if decoded, err := s.legacy.NewDecoder().String(text); err == nil {
			text = decoded
		}
		text = strings.ToValidUTF8(text, "\uFFFD")
	}
	if strings.Contains(text, "\r") {
		text = strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(text)
	}
	if !strings.ContainsFunc(text, dropped) {
		return text
	}
	return strings.Map(func(r rune) rune {
		if dropped(r) {
			return -1
		}
		return r
	}, text)
}

// dropped tells the characters that are never stored: control characters but for line ends and tabs, and byte order
// marks.
func dropped(r rune) bool {
	return unicode.IsControl(r) && r != '\n' && r != '\r' && r != '\t' || r == '\uFEFF'
}

// text is a cell without the spaces around it.
func (s *sheet) text(c column) string { return strings.TrimSpace(s.raw(c)) }

var lineBreaks = regexp.MustCompile(`\s*[\n\t\x{2028}\x{2029}]\s*`)

// single is a cell as one line.
func (s *sheet) single(c column) string { return lineBreaks.ReplaceAllString(s.text(c), " ") }

// line255 is a cell that Shopify takes up to 255 characters of.
func (s *sheet) line255(c column) (string, error) {
	t := s.single(c)
	if utf8.RuneCountInString(t) > 255 {
		return "", s.wrong(c, "at most 255 characters, which is Shopify's limit")
	}
	return t, nil
}

// cut is a text of at most so many characters. It is for what nobody finds a product by.
func (s *sheet) cut(c column, text string, most int) string {
	if utf8.RuneCountInString(text) <= most {
		return text
	}
	s.note(noteCut, c)
	return strings.TrimSpace(string([]rune(text)[:most]))
}

var (
	formulaCell    = regexp.MustCompile(`^="(.*)"$`)
	scientificCell = regexp.MustCompile(`^[0-9][.,][0-9]+[eE]\+[0-9]{2}$`)
)

// code is a SKU or barcode; spreadsheets keep their leading zeros by an apostrophe or a formula, which is no part of
// them.
func (s *sheet) code(c column) (string, error) {
	t, err := s.line255(c)
	plain := strings.TrimPrefix(t, "'")
	if m := formulaCell.FindStringSubmatch(plain); m != nil {
		plain = m[1]
	}
	switch {
	case plain != t:
		s.note(noteApostrophe, c)
	case scientificCell.MatchString(t):
		s.note(noteScientific, c)
	}
	return strings.TrimSpace(plain), err
}

// maxPrice leaves room in the schema for what the traffic makes of prices.
const maxPrice = 1e9

// price is a decimal, or empty.
func (s *sheet) price(c column) (string, error) {
	t := s.text(c)
	if t == "" {
		return "", nil
	}
	number, mended, err := parseNumber(t, s.csv.Comma, true)
	switch {
	case errors.Is(err, errAmbiguous):
		return "", s.wrong(c, "a price such as 1299.00 or 12.99: here the separator may be of thousands or of decimals")
	case err != nil, strings.HasPrefix(number, "-"):
		return "", s.wrong(c, "a price such as 19.99, not below zero")
	}
	if f, err := strconv.ParseFloat(number, 64); err != nil || f >= maxPrice {
		return "", s.wrong(c, "a price below 1000000000")
	}
	if mended {
		s.note(noteNumber, c)
	}
	if whole, fraction, _ := strings.Cut(number, "."); len(strings.TrimRight(fraction, "0")) > 2 {
		s.note(noteCents, c)
		number = whole + "." + fraction[:min(len(fraction), 9)]
	}
	return number, nil
}

// number is a number within bounds, or fallback where the cell is empty.
func (s *sheet) number(c column, least, most, fallback float64) (float64, error) {
	t := s.text(c)
	if t == "" {
		return fallback, nil
	}
	plain, mended, err := parseNumber(t, s.csv.Comma, false)
	if errors.Is(err, errAmbiguous) {
		return 0, s.wrong(c, "a number such as 1500 or 1.5: here the separator may be of thousands or of decimals")
	}
	n, bad := strconv.ParseFloat(plain, 64)
	if err != nil || bad != nil || n < least || n > most {
		return 0, s.wrong(c, "a number from "+strconv.FormatFloat(least, 'f', -1, 64)+" to "+strconv.FormatFloat(most, 'f', -1, 64))
	}
	if mended {
		s.note(noteNumber, c)
	}
	return n, nil
}

// whole is a whole number, or fallback where the cell is empty.
func (s *sheet) whole(c column, least, most, fallback int) (int, error) {
	n, err := s.number(c, float64(least), float64(most), float64(fallback))
	if err == nil && n != math.Trunc(n) {
		s.note(noteUnits, c)
	}
	return int(n), err
}

// truth is true or false, or fallback where the cell is empty.
func (s *sheet) truth(c column, fallback bool) (bool, error) {
	word := strings.ToLower(s.text(c))
	if word == "" {
		return fallback, nil
	}
	if is, known := truths[word]; known {
		return is, nil
	}
	return false, s.wrong(c, "true or false")
}

// policy is DENY or CONTINUE; empty is DENY.
func (s *sheet) policy() (string, error) {
	word := strings.ToLower(s.text(colPolicy))
	switch sells, known := truths[word]; {
	case word == "", word == "deny", known && !sells:
		return "DENY", nil
	case word == "continue", known:
		return "CONTINUE", nil
	}
	return "", s.wrong(colPolicy, "deny or continue")
}

// onSale reads the status: only active products are for sale.
func (s *sheet) onSale() bool {
	switch strings.ToLower(s.text(colStatus)) {
	case "", "active":
		return true
	case "draft", "archived", "unlisted":
	default:
		s.note(noteStatus, colStatus)
	}
	return false
}

// address is the URL of a picture, or empty. A shop that cannot fetch a picture takes the product without it.
func (s *sheet) address(c column) string {
	t := strings.ReplaceAll(s.text(c), " ", "%20")
	if t == "" {
		return ""
	}
	if strings.HasPrefix(t, "//") {
		s.note(noteScheme, c)
		t = "https:" + t
	}
	u, err := url.Parse(t)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || strings.ContainsFunc(t, unicode.IsSpace) || utf8.RuneCountInString(t) > 2048 {
		s.note(noteAddress, c)
		return ""
	}
	return u.Scheme + t[len(u.Scheme):] // in lower case
}

// tags are the cell's words between commas, each once: Shopify compares them without case.
func (s *sheet) tags() ([]string, error) {
	tags, seen := []string{}, map[string]bool{}
	for tag := range strings.SplitSeq(s.single(colTags), ",") {
		tag = strings.TrimSpace(tag)
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
