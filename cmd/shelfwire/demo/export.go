package demo

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/shelfwire/shelfwire/schemas/document"
)

// draft is a product of which not all rows have been seen: its rows may stand anywhere in the file, and the names of
// its options may come after their values.
type draft struct {
	product
	line        int // of its first row
	path        []string
	optionNames [document.MaxOptions]string
	rows        []variantRow
	seen        map[string]bool // option values of the rows
	pictures    []picture
	addresses   map[string]bool
	published   bool
}

type variantRow struct {
	variant
	line   int
	values [document.MaxOptions]string
}

type picture struct {
	image
	position int
}

// builder puts the rows of a sheet together.
type builder struct {
	sheet   *sheet
	order   []*draft
	byName  map[string]*draft
	variant int64
	loaded  Loaded
}

func newBuilder(s *sheet) *builder { return &builder{sheet: s, byName: map[string]*draft{}} }

// row takes in the sheet's current row.
func (b *builder) row() error {
	handle, err := b.sheet.line255(colHandle)
	if err != nil {
		return err
	}
	if handle == "" {
		return b.sheet.wrong(colHandle, "the handle of the product; every row of an export has it")
	}
	// As the shop would write it; what is the same handle to the shop is the same product here.
	handle = strings.ToLower(strings.NewReplacer(" ", "-", "/", "-").Replace(handle))
	d := b.byName[handle]
	if d == nil {
		d = &draft{line: b.sheet.line, seen: map[string]bool{}, addresses: map[string]bool{}}
		d.id, d.handle, d.kind = int64(len(b.order)+1), handle, "normal"
		b.order = append(b.order, d)
		b.byName[handle] = d
	}
	if d.title == "" && b.sheet.text(colTitle) != "" {
		if err := b.readProduct(d); err != nil {
			return err
		}
	}
	if err := b.readOptionNames(d); err != nil {
		return err
	}
	if b.isVariant() {
		if err := b.readVariant(d); err != nil {
			return err
		}
	}
	return b.readPictures(d)
}

// isVariant tells a variant's row from one that only adds a picture.
func (b *builder) isVariant() bool {
	for _, c := range []column{colTitle, colOption1Value, colOption2Value, colOption3Value, colSKU, colPrice, colBarcode} {
		if b.sheet.text(c) != "" {
			return true
		}
	}
	return false
}

// readProduct reads what stands on the first row of a product.
func (b *builder) readProduct(d *draft) (err error) {
	s := b.sheet
	for _, cell := range []struct {
		to *string
		of column
	}{{&d.title, colTitle}, {&d.vendor, colVendor}, {&d.typ, colType}, {&d.seoTitle, colSEOTitle}, {&d.material, colMaterial}} {
		if *cell.to, err = s.line255(cell.of); err != nil {
			return err
		}
	}
	d.html = strings.TrimSpace(s.raw(colBody))
	if utf8.RuneCountInString(d.html) > 524288 {
		return s.wrong(colBody, "at most 524288 characters")
	}
	d.seoDescription = s.text(colSEODescription)
	if utf8.RuneCountInString(d.seoDescription) > 5000 {
		return s.wrong(colSEODescription, "at most 5000 characters")
	}
	if d.tags, err = s.tags(); err != nil {
		return err
	}
	gift, err := s.truth(colGiftCard, false)
	if err != nil {
		return err
	}
	if gift {
		d.kind = "gift"
	}
	if d.published, err = s.truth(colPublished, true); err != nil {
		return err
	}
	if status := s.text(colStatus); status != "" && !strings.EqualFold(status, "active") {
		d.published = false // draft, archived, and whatever else is not for sale
	}
	d.path = s.categoryPath()
	return nil
}

// categoryPath is the product's place in the tree: Shopify's category, else Google's, else the type.
func (s *sheet) categoryPath() []string {
	for _, c := range []column{colCategory, colGoogleCategory, colType} {
		cell := s.text(c)
		if cell == "" || strings.Trim(cell, "0123456789") == "" { // Google's categories may be numbers
			continue
		}
		var path []string
		for name := range strings.SplitSeq(cell, " > ") {
			if name = strings.TrimSpace(name); name != "" && len(path) < 20 {
				path = append(path, name)
			}
		}
		if len(path) > 0 {
			return path
		}
	}
	return []string{"Uncategorized"}
}

func (b *builder) readOptionNames(d *draft) error {
	for i, c := range []column{colOption1Name, colOption2Name, colOption3Name} {
		name, err := b.sheet.line255(c)
		if err != nil {
			return err
		}
		if d.optionNames[i] == "" {
			d.optionNames[i] = name
		}
	}
	return nil
}

func (b *builder) readVariant(d *draft) (err error) {
	s := b.sheet
	v := variantRow{line: s.line}
	for i, c := range []column{colOption1Value, colOption2Value, colOption3Value} {
		if v.values[i], err = s.line255(c); err != nil {
			return err
		}
	}
	if v.sku, err = s.code(colSKU); err != nil {
		return err
	}
	if v.barcode, err = s.code(colBarcode); err != nil {
		return err
	}
	if err := b.readPrices(&v); err != nil {
		return err
	}
	if err := b.readLogistics(&v); err != nil {
		return err
	}
	key := strings.Join(v.values[:], "\x00")
	if d.seen[key] {
		b.loaded.Repeated++
		return nil
	}
	d.seen[key] = true
	if d.rows = append(d.rows, v); len(d.rows) > document.MaxVariants {
		return s.wrong(colHandle, "at most 2048 variants of a product, which is Shopify's limit")
	}
	return nil
}

func (b *builder) readPrices(v *variantRow) (err error) {
	if v.price, err = b.sheet.price(colPrice); err != nil {
		return err
	}
	if v.compareAt, err = b.sheet.price(colCompareAt); err != nil {
		return err
	}
	if strings.Trim(v.compareAt, "0.") == "" {
		v.compareAt = "" // some exports write 0.00 for none
	}
	v.cost, err = b.sheet.price(colCost)
	return err
}

func (b *builder) readLogistics(v *variantRow) error {
	s := b.sheet
	var err error
	if v.grams, err = s.number(colGrams, 0, 1e8, 0); err != nil {
		return err
	}
	if v.policy, err = s.policy(); err != nil {
		return err
	}
	shipped, err := s.truth(colRequiresShipping, true)
	if err != nil {
		return err
	}
	taxed, err := s.truth(colTaxable, true)
	if err != nil {
		return err
	}
	v.digital, v.untaxed = !shipped, !taxed
	fallback := 0
	if !s.has(colQuantity) {
		fallback = 10
	}
	units, err := s.whole(colQuantity, math.MinInt32, 1e9, fallback)
	// Below zero is sold more than there was: reserved passes approved.
	v.main, v.reserved, v.withoutStockOther = max(units, 0), max(-units, 0), true
	return err
}

// readPictures takes the row's picture and its variant's; one address counts once.
func (b *builder) readPictures(d *draft) error {
	s := b.sheet
	src, err := s.address(colImage)
	if err != nil {
		return err
	}
	position, err := s.whole(colImagePosition, 0, 1e6, len(d.pictures)+1)
	if err != nil {
		return err
	}
	alt := []rune(strings.Join(strings.Fields(s.text(colImageAlt)), " "))
	d.addPicture(picture{image: image{url: src, alt: string(alt[:min(len(alt), 512)])}, position: position})
	own, err := s.address(colVariantImage)
	if err != nil {
		return err
	}
	d.addPicture(picture{image: image{url: own}, position: math.MaxInt32})
	return nil
}

func (d *draft) addPicture(p picture) {
	if p.url == "" || d.addresses[p.url] || len(d.pictures) == 250 { // Shopify keeps 250
		return
	}
	d.addresses[p.url] = true
	d.pictures = append(d.pictures, p)
}

// finish makes products of the drafts.
func (b *builder) finish() (*export, error) {
	e := &export{tree: newTree(), loaded: b.loaded}
	for i, d := range b.order {
		if d.title == "" {
			return nil, &CSVError{
				File: b.sheet.file, Line: d.line, Column: headings[colTitle],
				Expected: "a title on one of the rows of the product " + d.handle,
			}
		}
		if err := b.finishOptions(d); err != nil {
			return nil, err
		}
		slices.SortStableFunc(d.pictures, func(x, y picture) int { return cmp.Compare(x.position, y.position) })
		for _, p := range d.pictures {
			d.images = append(d.images, p.image)
		}
		if d.published {
			d.approvedAt, d.author = approvalOf(i), importer
			e.loaded.Approved++
		}
		for _, row := range d.rows {
			b.variant++
			row.id, row.approvedAt = b.variant, d.approvedAt
			row.options = row.values[:len(d.options)]
			d.variants = append(d.variants, row.variant)
		}
		d.category = e.tree.add(d.path)
		e.loaded.Images += len(d.images)
		e.loaded.Variants += len(d.variants)
		e.products = append(e.products, d.product)
	}
	if len(e.products) == 0 {
		return nil, &CSVError{File: b.sheet.file, Line: 2, Expected: "at least one product"}
	}
	e.tree.route()
	e.loaded.Products, e.loaded.Categories = len(e.products), len(e.tree.list)
	return e, nil
}

// finishOptions decides which options the product has; each variant must have a value of each.
func (b *builder) finishOptions(d *draft) error {
	count := 0
	for i := range d.optionNames {
		used := d.optionNames[i] != ""
		for _, row := range d.rows {
			used = used || row.values[i] != ""
		}
		if used {
			count = i + 1
		}
	}
	if count <= 1 && len(d.rows) == 1 && d.rows[0].values[0] == "" {
		d.options = []string{"Title"}
		d.rows[0].values[0] = "Default Title"
		return nil
	}
	for i := range count {
		name := d.optionNames[i]
		if name == "" {
			name = "Option " + optionNumber(i)
		}
		d.options = append(d.options, name)
		for _, row := range d.rows {
			if row.values[i] == "" {
				return &CSVError{
					File: b.sheet.file, Line: row.line, Column: headings[colOption1Value+column(i)],
					Expected: "a value of the option " + name + " of the product " + d.handle,
				}
			}
		}
	}
	return nil
}

// tree is the categories of a file.
type tree struct {
	list   []category
	byPath map[string]int
	used   []int // positions of the categories that hold products
	holds  map[int]bool
}

func newTree() *tree { return &tree{byPath: map[string]int{}, holds: map[int]bool{}} }

// add returns the id of the category at a path, which it makes where it is missing.
func (t *tree) add(path []string) int64 {
	at, parent := -1, int64(0)
	for depth, name := range path {
		key := strings.ToLower(strings.Join(path[:depth+1], "\x00"))
		i, ok := t.byPath[key]
		if !ok {
			i = len(t.list)
			t.byPath[key] = i
			t.list = append(t.list, category{id: int64(i + 1), parent: parent, depth: depth, name: name})
		}
		at, parent = i, t.list[i].id
	}
	if !t.holds[at] {
		t.holds[at] = true
		t.used = append(t.used, at)
	}
	return parent
}

// route gives the categories with products to north, south and both, in turn; a file with one goes to both.
func (t *tree) route() {
	routes := [][]int64{{northID}, {southID}, {northID, southID}}
	for n, at := range t.used {
		t.list[at].stores = routes[n%len(routes)]
		if len(t.used) == 1 {
			t.list[at].stores = routes[2]
		}
	}
}
