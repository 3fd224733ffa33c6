package demo

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/unicode"
	"pgregory.net/rapid"
)

// wording is what one generation of exports calls the columns.
type wording map[column]string

var (
	older = wording{
		colHandle: "Handle", colTitle: "Title", colBody: "Body (HTML)", colVendor: "Vendor", colCategory: "Product Category", colType: "Type",
		colTags: "Tags", colPublished: "Published", colStatus: "Status", colOption1Name: "Option1 Name", colOption1Value: "Option1 Value",
		colOption2Name: "Option2 Name", colOption2Value: "Option2 Value", colOption3Name: "Option3 Name", colOption3Value: "Option3 Value",
		colSKU: "Variant SKU", colBarcode: "Variant Barcode", colGrams: "Variant Grams", colQuantity: "Variant Inventory Qty",
		colPolicy: "Variant Inventory Policy", colPrice: "Variant Price", colCompareAt: "Variant Compare At Price", colCost: "Cost per item",
		colRequiresShipping: "Variant Requires Shipping", colTaxable: "Variant Taxable", colImage: "Image Src", colImagePosition: "Image Position",
		colImageAlt: "Image Alt Text", colVariantImage: "Variant Image", colGiftCard: "Gift Card", colSEOTitle: "SEO Title",
		colSEODescription: "SEO Description", colMaterial: "Material (product.metafields.custom.material)",
	}
	newer = wording{
		colHandle: "URL handle", colTitle: "Title", colBody: "Description", colVendor: "Vendor", colCategory: "Product category", colType: "Type",
		colTags: "Tags", colPublished: "Published on online store", colStatus: "Status", colOption1Name: "Option1 name", colOption1Value: "Option1 value",
		colOption2Name: "Option2 name", colOption2Value: "Option2 value", colOption3Name: "Option3 name", colOption3Value: "Option3 value",
		colSKU: "SKU", colBarcode: "Barcode", colGrams: "Weight value (grams)", colQuantity: "Inventory quantity",
		colPolicy: "Continue selling when out of stock", colPrice: "Price", colCompareAt: "Compare-at price", colCost: "Cost per item",
		colRequiresShipping: "Requires shipping", colTaxable: "Charge tax", colImage: "Product image URL", colImagePosition: "Image position",
		colImageAlt: "Image alt text", colVariantImage: "Variant image URL", colGiftCard: "Gift card", colSEOTitle: "SEO title",
		colSEODescription: "SEO description", colMaterial: "Matière (product.metafields.custom.material)",
	}
	// others are columns of real exports that are not loaded.
	others = []string{
		"Option1 Linked To", "Option2 Linked To", "Variant Fulfillment Service", "Variant Tax Code", "Variant Weight Unit", "Unit Price Total Measure",
		"Google Shopping / MPN", "Google Shopping / Custom Label 0", "Included / International", "Price / International",
		"Compare At Price / International", "Included / Eurozone", "Collection", "Größe (product.metafields.shopify.size)",
		"Metafield: custom.x [single_line_text_field]", "Product rating count (product.metafields.reviews.rating_count)", "",
	}
)

// layout is how a file is written.
type layout struct {
	names      wording
	comma      rune
	end        string // of rows
	encoding   encoding.Encoding
	quoteAll   bool
	yes, no    string
	thousands  bool // prices as 1,299.00, or 1.299,00 between semicolons
	repeatBody bool // the product's cells on each of its rows
	order      []string
}

func drawLayout(t *rapid.T) layout {
	l := layout{
		names:    rapid.SampledFrom([]wording{older, newer}).Draw(t, "wording"),
		comma:    rapid.SampledFrom([]rune{',', ',', ';', '\t'}).Draw(t, "comma"),
		end:      rapid.SampledFrom([]string{"\n", "\r\n", "\r"}).Draw(t, "end"),
		quoteAll: rapid.Bool().Draw(t, "quote all"),
		encoding: rapid.SampledFrom([]encoding.Encoding{
			encoding.Nop, unicode.UTF8BOM, unicode.UTF16(unicode.LittleEndian, unicode.UseBOM), charmap.Windows1252, charmap.Macintosh,
		}).Draw(t, "encoding"),
		thousands: rapid.Bool().Draw(t, "thousands"), repeatBody: rapid.Bool().Draw(t, "repeat"),
	}
	words := rapid.SampledFrom([][2]string{{"true", "false"}, {"TRUE", "FALSE"}, {"WAHR", "FALSCH"}, {"VRAI", "FAUX"}}).Draw(t, "words")
	l.yes, l.no = words[0], words[1]
	for _, name := range l.names {
		l.order = append(l.order, name)
	}
	slices.Sort(l.order) // a map's order would not be repeatable
	l.order = append(l.order, rapid.SliceOfNDistinct(rapid.SampledFrom(others), 0, len(others), rapid.ID[string]).Draw(t, "others")...)
	l.order = rapid.Permutation(l.order).Draw(t, "order")
	return l
}

// words are single-line texts, plain enough for every encoding or of the whole of Unicode.
func (l layout) words(most int) *rapid.Generator[string] {
	alphabet := []string{"Crème", "brûlée", "Größe", "ñandú", "5\" x 3'", "a,b;c", "|", "-", "<b>", "&amp;", "Möbel’s", "“x”", "...", "=1+1", "#"}
	switch l.encoding {
	case charmap.Windows1252, charmap.Macintosh:
	default:
		alphabet = append(alphabet, "日本語", "قميص", "חולצה", "👩‍👩‍👧", "a\u200bb", "\u202ex\u202c", "N\u0303", "İ", "ﬁ", "\u00ad", "１２", "\U0001F9E5")
	}
	return rapid.Map(rapid.SliceOfN(rapid.SampledFrom(alphabet), 1, most), func(list []string) string { return strings.Join(list, " ") })
}

func (l layout) maybe(t *rapid.T, name string, most int) string {
	if rapid.IntRange(0, 3).Draw(t, "no "+name) == 0 {
		return ""
	}
	return l.words(most).Draw(t, name)
}

// file is the products that a file shall hold, and its rows by column.
type file struct {
	products []product
	rows     []map[column]string
}

// drawProduct draws a product and its rows: one for each variant, pictures on these or on rows of their own.
func (l layout) drawProduct(t *rapid.T, n int) (product, []map[column]string) {
	p := product{
		id: int64(n + 1), handle: fmt.Sprintf("%s-%d", rapid.SampledFrom([]string{"shirt", "größe", "a_b", "x-y-z"}).Draw(t, "handle"), n),
		title: l.words(5).Draw(t, "title"), vendor: l.maybe(t, "vendor", 2), typ: l.maybe(t, "type", 2), kind: "normal",
		seoTitle: l.maybe(t, "seo title", 3), material: l.maybe(t, "material", 2),
		html: strings.Join(rapid.SliceOfN(l.words(8), 0, 6).Draw(t, "html"), "\n\n"), seoDescription: l.maybe(t, "seo", 9),
	}
	p.tags = rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"sale", "new in", "Größe:M", "b-2"}), 0, 4, rapid.ID[string]).Draw(t, "tags")
	if p.tags == nil {
		p.tags = []string{}
	}
	head := map[column]string{
		colTitle: p.title, colBody: p.html, colVendor: p.vendor, colType: p.typ, colTags: strings.Join(p.tags, ", "), colSEOTitle: p.seoTitle,
		colSEODescription: p.seoDescription, colMaterial: p.material, colCategory: rapid.SampledFrom([]string{"", "Home > Pots", "Toys"}).Draw(t, "category"),
	}
	published, active, gift := rapid.Bool().Draw(t, "published"), rapid.Bool().Draw(t, "active"), rapid.IntRange(0, 9).Draw(t, "gift") == 0
	head[colPublished], head[colGiftCard] = l.truth(published), l.truth(gift)
	head[colStatus] = map[bool]string{true: "active", false: "draft"}[active]
	if gift {
		p.kind = "gift"
	}
	if published && active {
		p.approvedAt, p.author = approvalOf(n), importer
	}
	rows := l.drawVariants(t, &p, head)
	return p, l.drawPictures(t, &p, rows)
}

func (l layout) truth(is bool) string {
	if is {
		return l.yes
	}
	return l.no
}

func (l layout) drawVariants(t *rapid.T, p *product, head map[column]string) (rows []map[column]string) {
	names := []column{colOption1Name, colOption2Name, colOption3Name}
	values := []column{colOption1Value, colOption2Value, colOption3Value}
	menus := [][]string{{"Default Title"}}
	p.options = []string{"Title"}
	if depth := rapid.IntRange(0, 3).Draw(t, "options"); depth > 0 {
		menus, p.options = nil, nil
		for i := range depth {
			p.options = append(p.options, fmt.Sprintf("%s %d", l.words(1).Draw(t, "option"), i))
			menus = append(menus, nil)
			for j := range rapid.IntRange(1, 4).Draw(t, "values") {
				menus[i] = append(menus[i], fmt.Sprintf("%s %d", l.words(1).Draw(t, "value"), j))
			}
		}
	}
	total := 1
	for _, menu := range menus {
		total *= len(menu)
	}
	for n := range total {
		row := map[column]string{}
		if n == 0 || l.repeatBody {
			maps.Copy(row, head)
		}
		v := variant{withoutStockOther: true}
		rest := n
		for i, menu := range menus {
			v.options = append(v.options, menu[rest%len(menu)])
			rest /= len(menu)
			row[values[i]] = v.options[i]
			if n == 0 || l.repeatBody {
				row[names[i]] = p.options[i]
			}
		}
		l.drawFacts(t, &v, row)
		v.approvedAt = p.approvedAt
		p.variants = append(p.variants, v)
		rows = append(rows, row)
	}
	return rows
}

func (l layout) drawFacts(t *rapid.T, v *variant, row map[column]string) {
	v.sku = rapid.SampledFrom([]string{"", "A-1", "00012", "A-1 / B"}).Draw(t, "sku")
	v.barcode = rapid.SampledFrom([]string{"", "4006381333931", "0012"}).Draw(t, "barcode")
	row[colSKU], row[colBarcode] = v.sku, v.barcode
	if v.sku != "" && rapid.Bool().Draw(t, "apostrophe") {
		row[colSKU] = "'" + v.sku
	}
	v.price, row[colPrice] = l.drawMoney(t, "price")
	v.compareAt, row[colCompareAt] = l.drawMoney(t, "compare at")
	if strings.Trim(v.compareAt, "0.") == "" {
		v.compareAt = ""
	}
	v.cost, row[colCost] = l.drawMoney(t, "cost")
	v.grams = float64(rapid.IntRange(0, 900).Draw(t, "grams"))
	row[colGrams] = rapid.SampledFrom([]string{"%.0f", "%.1f"}).Draw(t, "grams as")
	row[colGrams] = fmt.Sprintf(row[colGrams], v.grams)
	units := rapid.IntRange(-20, 100000).Draw(t, "units")
	v.main, v.reserved = max(units, 0), max(-units, 0)
	row[colQuantity] = strconv.Itoa(units)
	v.policy = rapid.SampledFrom([]string{"DENY", "CONTINUE"}).Draw(t, "policy")
	row[colPolicy] = rapid.SampledFrom([]string{strings.ToLower(v.policy), l.truth(v.policy == "CONTINUE")}).Draw(t, "policy as")
	v.untaxed, v.digital = rapid.Bool().Draw(t, "untaxed"), rapid.Bool().Draw(t, "digital")
	row[colTaxable], row[colRequiresShipping] = l.truth(!v.untaxed), l.truth(!v.digital)
}

// drawMoney draws an amount, and how the file writes it.
func (l layout) drawMoney(t *rapid.T, name string) (amount, cell string) {
	if rapid.IntRange(0, 4).Draw(t, "no "+name) == 0 {
		return "", ""
	}
	whole, cents := rapid.IntRange(0, 99999).Draw(t, name), rapid.IntRange(0, 99).Draw(t, name+" cents")
	amount = fmt.Sprintf("%d.%02d", whole, cents)
	cell = amount
	if l.thousands && whole >= 1000 {
		cell = fmt.Sprintf("%d,%03d.%02d", whole/1000, whole%1000, cents)
	}
	if l.comma == ';' {
		cell = swapSeparators(cell)
	}
	return amount, cell
}

// drawPictures puts pictures on the product's rows and on rows of their own, and the rows of their own anywhere.
func (l layout) drawPictures(t *rapid.T, p *product, rows []map[column]string) []map[column]string {
	for i := range rapid.IntRange(0, 5).Draw(t, "pictures") {
		picture := image{url: fmt.Sprintf("https://cdn.shopify.com/s/files/%d/%d_größe.jpg?v=1", p.id, i), alt: l.maybe(t, "alt", 3)}
		p.images = append(p.images, picture)
		cells := map[column]string{colImage: picture.url, colImageAlt: picture.alt, colImagePosition: strconv.Itoa(i + 1)}
		if i < len(rows) && rows[i][colImage] == "" && rapid.Bool().Draw(t, "beside a variant") {
			maps.Copy(rows[i], cells)
			continue
		}
		rows = slices.Insert(rows, rapid.IntRange(0, len(rows)).Draw(t, "where"), cells)
	}
	for i := range rows {
		rows[i][colHandle] = p.handle
		if len(p.images) > 0 && rows[i][colPrice] != "" && rapid.Bool().Draw(t, "variant image") {
			rows[i][colVariantImage] = p.images[0].url
		}
	}
	return rows
}

// write is the file's text.
func (l layout) write(t *rapid.T, rows []map[column]string) string {
	var b strings.Builder
	line := func(cell func(name string) string) {
		for i, name := range l.order {
			if i > 0 {
				b.WriteRune(l.comma)
			}
			text := cell(name)
			if l.quoteAll || strings.ContainsAny(text, "\",;\t|\r\n") || text != strings.TrimSpace(text) {
				text = `"` + strings.ReplaceAll(text, `"`, `""`) + `"`
			}
			b.WriteString(text)
		}
		b.WriteString(l.end)
	}
	line(func(name string) string { return name })
	for _, row := range rows {
		byName := map[string]string{}
		for c, text := range row {
			byName[l.names[c]] = text
		}
		line(func(name string) string {
			if text, known := byName[name]; known || !slices.Contains(others, name) {
				return text
			}
			return "not, \"loaded\"\n"
		})
	}
	text, err := l.encoding.NewEncoder().String(b.String())
	require.NoError(t, err)
	return text
}

// TestReadExportGivesBackWhatWasWritten writes exports of both wordings as spreadsheets would, with the rows of the
// products between each other, and compares what is read with what was written.
func TestReadExportGivesBackWhatWasWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := drawLayout(t)
		var f file
		queues := [][]map[column]string{}
		for n := range rapid.IntRange(1, 4).Draw(t, "products") {
			p, rows := l.drawProduct(t, n)
			f.products = append(f.products, p)
			queues = append(queues, rows)
			f.rows = append(f.rows, map[column]string{colHandle: p.handle}) // the products appear in this order
		}
		mixed := rapid.Bool().Draw(t, "mixed")
		for len(queues) > 0 {
			i := 0
			if mixed {
				i = rapid.IntRange(0, len(queues)-1).Draw(t, "next")
			}
			f.rows = append(f.rows, queues[i][0])
			if queues[i] = queues[i][1:]; len(queues[i]) == 0 {
				queues = slices.Delete(queues, i, i+1)
			}
		}
		e, err := readExport(strings.NewReader(l.write(t, f.rows)), "x.csv")
		require.NoError(t, err)
		require.Len(t, e.products, len(f.products))
		for i, want := range f.products {
			got := e.products[i]
			got.category = 0
			require.Len(t, got.variants, len(want.variants))
			byOptions := map[string]variant{}
			for _, v := range got.variants {
				v.id = 0
				byOptions[strings.Join(v.options, "\x00")] = v
			}
			for _, v := range want.variants {
				require.Equal(t, v, byOptions[strings.Join(v.options, "\x00")])
			}
			got.variants, want.variants = nil, nil
			require.Equal(t, want, got)
		}
		counts := noted(e)
		for _, never := range []string{noteRepeated, noteSpelling, noteTaken, noteHandle, noteNobody, noteControl, noteAddress, noteSecondTitle} {
			require.NotContains(t, counts, never)
		}
	})
}
