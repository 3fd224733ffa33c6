package demo

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"
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
	nameLines   [document.MaxOptions]int // where the names stand
	rows        []variantRow
	bare        *variantRow                            // a row with the title and nothing of a variant
	seen        map[string]bool                        // option values of the rows
	spelling    [document.MaxOptions]map[string]string // of option values, by their folded text
	pictures    []picture
	addresses   map[string]int // where each stands in pictures
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
	taken   map[string]bool // handles as the shop writes them
	variant int64
	loaded  Loaded
}

func newBuilder(s *sheet) *builder {
	return &builder{sheet: s, byName: map[string]*draft{}, taken: map[string]bool{}}
}

// row takes in the sheet's current row.
func (b *builder) row() error {
	d, err := b.draft()
	if d == nil || err != nil {
		return err
	}
	titled := b.sheet.text(colTitle) != ""
	first := titled && d.title == ""
	switch {
	case first:
		if err := b.readProduct(d); err != nil {
			return err
		}
	case titled && b.sheet.single(colTitle) != d.title:
		b.sheet.note(noteSecondTitle, colTitle)
	}
	if err := b.readOptionNames(d); err != nil {
		return err
	}
	if first || b.isVariant() {
		if err := b.readVariant(d); err != nil {
			return err
		}
	}
	return b.readPictures(d)
}

// draft is the product of the current row; nil where the row belongs to none.
func (b *builder) draft() (*draft, error) {
	s := b.sheet
	handle := strings.ToLower(s.single(colHandle))
	name := strings.NewReplacer(" ", "-", "/", "-").Replace(handle)
	if handle == "" {
		if s.text(colTitle) == "" {
			s.note(noteNobody, colHandle)
			return nil, nil
		}
		s.note(noteNoHandle, colTitle)
		name = "\x00" + strconv.Itoa(len(b.order)) // nobody else's: each such row is a product
	}
	d := b.byName[name]
	if d == nil {
		d = &draft{line: s.line, seen: map[string]bool{}, addresses: map[string]int{}}
		d.id, d.handle, d.kind = int64(len(b.order)+1), shopHandle(handle), "normal"
		if utf8.RuneCountInString(d.handle) > 255 {
			return nil, s.wrong(colHandle, "a handle of at most 255 characters, which is Shopify's limit")
		}
		if handle != "" && d.handle != s.text(colHandle) {
			s.note(noteHandle, colHandle)
		}
		b.order = append(b.order, d)
		b.byName[name] = d
	}
	return d, nil
}

// shopHandle writes a handle as the shop does: letters, digits and underscores in lower case, everything else as one
// hyphen, none at the ends.
func shopHandle(text string) string {
	var h strings.Builder
	gap := false
	for _, r := range strings.ToLower(text) {
		switch {
		case unicode.IsLetter(r) || unicode.IsDigit(r) || r == '_':
			if gap && h.Len() > 0 {
				h.WriteByte('-')
			}
			gap = false
			h.WriteRune(r)
		case r == '\'' || r == '’': // men's is mens
		default:
			gap = true
		}
	}
	return h.String()
}

// isVariant tells a variant's row from one that only adds a picture.
func (b *builder) isVariant() bool {
	for _, c := range []column{colOption1Value, colOption2Value, colOption3Value, colSKU, colPrice, colBarcode} {
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
	}{{&d.title, colTitle}, {&d.vendor, colVendor}, {&d.typ, colType}} {
		if *cell.to, err = s.line255(cell.of); err != nil {
			return err
		}
	}
	d.seoTitle = s.cut(colSEOTitle, s.single(colSEOTitle), 255)
	d.seoDescription = s.cut(colSEODescription, s.text(colSEODescription), 5000)
	d.material = s.cut(colMaterial, s.single(colMaterial), 255)
	if d.html = s.raw(colBody); strings.TrimSpace(d.html) == "" {
		d.html = ""
	}
	if utf8.RuneCountInString(d.html) > 524288 {
		return s.wrong(colBody, "at most 524288 characters")
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
	if !s.onSale() {
		d.published = false
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
		if d.optionNames[i] != "" || name == "" {
			continue
		}
		if strings.Contains(name, " / ") {
			b.sheet.note(noteReserved, c)
			name = strings.ReplaceAll(name, " / ", "/")
		}
		d.optionNames[i], d.nameLines[i] = name, b.sheet.line
	}
	return nil
}

func (b *builder) readVariant(d *draft) (err error) {
	s := b.sheet
	v := variantRow{line: s.line}
	for i, c := range []column{colOption1Value, colOption2Value, colOption3Value} {
		if v.values[i], err = b.optionValue(d, i, c); err != nil {
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
	if !b.isVariant() {
		d.bare = &v
		return nil
	}
	key := strings.Join(v.values[:], "\x00")
	if d.seen[key] {
		b.loaded.Repeated++
		s.note(noteRepeated, colHandle)
		return nil
	}
	d.seen[key] = true
	if d.rows = append(d.rows, v); len(d.rows) > document.MaxVariants {
		return s.wrong(colHandle, "at most 2048 variants of a product, which is Shopify's limit")
	}
	return nil
}

// optionValue reads a value of an option, in the spelling in which the product has it first: to the shop, S and s are
// one value.
func (b *builder) optionValue(d *draft, i int, c column) (string, error) {
	value, err := b.sheet.line255(c)
	if value == "" || err != nil {
		return "", err
	}
	if d.spelling[i] == nil {
		d.spelling[i] = map[string]string{}
	}
	folded := fold(value)
	first, known := d.spelling[i][folded]
	switch {
	case !known && len(d.spelling[i]) == maxOptionValues:
		return "", b.sheet.wrong(c, "at most 100 values of an option, which is Shopify's limit")
	case !known:
		d.spelling[i][folded] = value
		return value, nil
	case first != value:
		b.sheet.note(noteSpelling, c)
	}
	return first, nil
}

// maxOptionValues is how many values an option of a product may have.
const maxOptionValues = 100

// fold makes texts equal that strings.EqualFold calls equal.
func fold(text string) string {
	return strings.Map(func(r rune) rune {
		least := r
		for next := unicode.SimpleFold(r); next != r; next = unicode.SimpleFold(next) {
			least = min(least, next)
		}
		return least
	}, text)
}

func (b *builder) readPrices(v *variantRow) (err error) {
	if v.price, err = b.sheet.price(colPrice); err != nil {
		return err
	}
	if !b.sheet.has(colPrice) {
		v.price = "10.00"
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
	units, err := s.whole(colQuantity, -1e9, 1e9, fallback)
	if err == nil && units < 0 {
		s.note(noteNegative, colQuantity)
	}
	// Below zero is sold more than there was: reserved passes approved.
	v.main, v.reserved, v.withoutStockOther = max(units, 0), max(-units, 0), true
	return err
}

// readPictures takes the row's picture and its variant's; one address counts once.
func (b *builder) readPictures(d *draft) error {
	s := b.sheet
	position, err := s.whole(colImagePosition, 0, 1e6, len(d.pictures)+1)
	if err != nil {
		return err
	}
	alt := s.cut(colImageAlt, s.single(colImageAlt), 512)
	b.addPicture(d, colImage, alt, position)
	b.addPicture(d, colVariantImage, "", math.MaxInt32)
	return nil
}

func (b *builder) addPicture(d *draft, c column, alt string, position int) {
	address := b.sheet.address(c)
	if address == "" {
		return
	}
	if i, known := d.addresses[address]; known {
		// A variant may name a picture before the picture's own row, which says where it belongs.
		if p := &d.pictures[i]; p.position == math.MaxInt32 && c == colImage {
			p.alt, p.position = alt, position
		}
		return
	}
	if len(d.pictures) == maxPictures {
		b.sheet.note(notePictures, c)
		return
	}
	d.addresses[address] = len(d.pictures)
	d.pictures = append(d.pictures, picture{image: image{url: address, alt: alt}, position: position})
}

// maxPictures is how many pictures a product of a shop may have.
const maxPictures = 250

// finish makes products of the drafts.
func (b *builder) finish() (*export, error) {
	e := &export{tree: newTree(), loaded: b.loaded}
	for i, d := range b.order {
		if d.title == "" {
			return nil, &CSVError{
				File: b.sheet.file, Line: d.line, Column: b.sheet.heading(colTitle),
				Expected: "a title on one of the rows of the product " + d.handle,
			}
		}
		if len(d.rows) == 0 {
			d.rows = []variantRow{*d.bare}
		}
		if err := b.finishOptions(d); err != nil {
			return nil, err
		}
		b.finishHandle(d)
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
			if row.price == "" {
				b.sheet.noteAt(noteNoPrice, row.line, b.sheet.heading(colPrice), "")
			}
			row.options = row.values[:len(d.options)]
			d.variants = append(d.variants, row.variant)
		}
		d.category = e.tree.add(d.path)
		e.loaded.Images += len(d.images)
		e.loaded.Variants += len(d.variants)
		e.products = append(e.products, d.product)
	}
	if len(e.products) == 0 {
		return nil, &CSVError{File: b.sheet.file, Line: b.sheet.line + 1, Expected: "at least one product"}
	}
	e.loaded.Notes = b.sheet.notes
	e.tree.route()
	e.loaded.Products, e.loaded.Categories = len(e.products), len(e.tree.list)
	return e, nil
}

// finishHandle gives a product a handle of its own: the file's, else one of its title, with a number where a shop could
// not tell it from another.
func (b *builder) finishHandle(d *draft) {
	given := d.handle
	if given == "" {
		if given = strings.Trim(string([]rune(shopHandle(d.title))[:min(len([]rune(shopHandle(d.title))), 240)]), "-"); given == "" {
			given = "product"
		}
	}
	d.handle = given
	for n := 1; b.taken[d.handle]; n++ {
		suffix := "-" + strconv.Itoa(n)
		runes := []rune(given)
		d.handle = strings.Trim(string(runes[:min(len(runes), 255-len(suffix))]), "-") + suffix
	}
	if d.handle != given {
		b.sheet.noteAt(noteTaken, d.line, b.sheet.heading(colHandle), given)
	}
	b.taken[d.handle] = true
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
		if slices.ContainsFunc(d.options, func(other string) bool { return strings.EqualFold(other, name) }) {
			return &CSVError{
				File: b.sheet.file, Line: d.nameLines[i], Column: b.sheet.heading(colOption1Name + column(i)), Got: shorten(name),
				Expected: "another name than that of the product's other options, as Shopify does",
			}
		}
		d.options = append(d.options, name)
		for _, row := range d.rows {
			if row.values[i] == "" {
				return &CSVError{
					File: b.sheet.file, Line: row.line, Column: b.sheet.heading(colOption1Value + column(i)),
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
