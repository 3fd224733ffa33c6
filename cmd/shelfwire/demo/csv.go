package demo

import (
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/text/encoding/charmap"
)

// CSVError says which cell of a CSV file cannot be loaded, and what was expected there.
type CSVError struct {
	File string
	// Line is the line of the file on which the cell begins, from 1. A row may span many.
	Line int
	// Column is the name of the column as the file's header has it; empty where the row as a whole is meant.
	Column string
	// Got is what stands there, shortened.
	Got string
	// Expected is what should.
	Expected string
}

func (e *CSVError) Error() string {
	at := fmt.Sprintf("%s:%d: ", e.File, e.Line)
	if e.Column != "" {
		at += fmt.Sprintf("column %q: ", e.Column)
	}
	if e.Got != "" {
		at += fmt.Sprintf("%q stands there, ", e.Got)
	}
	return at + "expected " + e.Expected
}

// Loaded counts what a CSV file has given.
type Loaded struct {
	Products, Approved, Variants, Images, Categories int
	// Repeated are rows whose variant stood in the file before (the same handle and option values); the first counts.
	Repeated int
	// Notes is what had to be mended, left out or supplied, in the order of the file; empty where nothing was.
	Notes []Note
}

// Catalog is a CSV file as products. Nothing of it stands in a database before Load.
type Catalog struct {
	file string
	export
}

// ReadCSV reads a Shopify product export, as the admin writes it (in its wording before or after 2025) or as a
// spreadsheet has saved it since (in UTF-8, UTF-16, Windows-1252 or Mac OS Roman, with commas, semicolons or tabs):
// several rows for a product, adjacent or not, rows with a picture only, option names on the first row, any further
// columns. Products that were not active or published are not approved; variants without a price are not for sale.
// Where the file has no stock column, each variant gets 10 units; without a price column, each costs 10.00.
//
// The categories of the file become the tree; its leaves are sold in the north, in the south, in both, in turn.
//
// The file is held in memory, about three times its size. What can be mended without a doubt is, and is counted in
// Loaded.Notes; anything else is a *[CSVError]. Errors of r are returned as they are, with the file's name.
func ReadCSV(r io.Reader, file string) (*Catalog, error) {
	e, err := readExport(r, file)
	if err != nil {
		return nil, err
	}
	return &Catalog{file: file, export: *e}, nil
}

// Loaded counts what the catalog holds.
func (c *Catalog) Loaded() Loaded { return c.loaded }

// Load fills the empty reference schema with the catalog, in one transaction.
func (c *Catalog) Load(ctx context.Context, conn *pgx.Conn) error {
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if err := insertStores(ctx, tx); err != nil {
			return err
		}
		if err := insertCategories(ctx, tx, c.tree.list); err != nil {
			return err
		}
		for at := 0; at < len(c.products); at += chunk {
			if err := insertProducts(ctx, tx, c.products[at:min(at+chunk, len(c.products))]); err != nil {
				return err
			}
		}
		return moveSequences(ctx, tx)
	})
	if err != nil {
		return fmt.Errorf("load %s: %w", c.file, err)
	}
	return analyze(ctx, conn)
}

// LoadCSV reads an export ([ReadCSV]) and fills the empty reference schema with it. Nothing is written unless all of
// the file can be read.
func LoadCSV(ctx context.Context, conn *pgx.Conn, r io.Reader, file string) (Loaded, error) {
	c, err := ReadCSV(r, file)
	if err != nil {
		return Loaded{}, err
	}
	return c.Loaded(), c.Load(ctx, conn)
}

// export is a CSV file as products.
type export struct {
	products []product
	tree     *tree
	loaded   Loaded
}

// readExport reads a whole file. It does no I/O but r, whose errors are the only ones that are no *CSVError.
func readExport(r io.Reader, file string) (*export, error) {
	all, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	p, err := decodeText(all)
	if err != nil {
		return nil, &CSVError{File: file, Line: 1, Expected: err.Error()}
	}
	cr := csv.NewReader(bytes.NewReader(p.text))
	cr.Comma = p.comma
	cr.FieldsPerRecord = -1 // some tools cut the empty cells off the end of a row
	cr.ReuseRecord = true
	s := sheet{file: file, csv: cr, legacy: p.legacy}
	for _, what := range p.mended {
		s.noteFile(what)
	}
	if err := s.readHeader(); err != nil {
		return nil, err
	}
	b := newBuilder(&s)
	for {
		more, err := s.next()
		if err != nil {
			return nil, err
		}
		if !more {
			return b.finish()
		}
		if err := b.row(); err != nil {
			return nil, err
		}
	}
}

// sheet is a CSV file with named columns, at one of its rows.
type sheet struct {
	file    string
	csv     *csv.Reader
	legacy  *charmap.Charmap // for cells that are not UTF-8
	names   []string         // as the header has them
	columns map[column]int   // where each known column stands
	known   []int            // the values of columns
	cells   []string         // of the current row; those of known columns are clean
	line    int              // where the current row begins
	notes   []Note
	noted   map[string]int // by what: where it stands in notes
}

// maxLeading is how many lines before the header may hold something else, such as a table's name.
const maxLeading = 5

func (s *sheet) readHeader() error {
	for leading := 0; ; leading++ {
		cells, err := s.csv.Read()
		if errors.Is(err, io.EOF) && leading == 0 {
			return &CSVError{File: s.file, Line: 1, Expected: "a header row; the file is empty"}
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return s.syntax(err)
		}
		if err == nil {
			s.cells = cells
			s.line, _ = s.csv.FieldPos(0)
			s.readNames(cells)
		}
		if s.has(colTitle) {
			return s.checkKind()
		}
		// Numbers writes the name of the table there, people write a heading.
		if err == nil && leading < maxLeading && filled(cells) <= 1 {
			s.noteAt(noteLeading, s.line, "", shorten(strings.TrimSpace(strings.Join(cells, " "))))
			continue
		}
		return &CSVError{
			File: s.file, Line: max(s.line, 1), Column: headings[colTitle], Got: shorten(firstOf(s.names)),
			Expected: "this column in the header of a Shopify product export" + otherExport(s.names),
		}
	}
}

func (s *sheet) readNames(cells []string) {
	s.columns, s.names, s.known = map[column]int{}, nil, nil
	for i, cell := range cells {
		name := strings.TrimSpace(strings.TrimPrefix(s.clean(cell), "\uFEFF"))
		s.names = append(s.names, name)
		c, known := columnOf(name)
		if _, twice := s.columns[c]; known && !twice {
			s.columns[c] = i
			s.known = append(s.known, i)
		}
	}
}

func filled(cells []string) (n int) {
	for _, cell := range cells {
		if strings.TrimSpace(cell) != "" {
			n++
		}
	}
	return n
}

// checkKind refuses the exports that have titles too, and says which columns are supplied.
func (s *sheet) checkKind() error {
	if kind := otherExport(s.names); kind != "" && !s.has(colPrice) {
		return &CSVError{File: s.file, Line: s.line, Got: shorten(firstOf(s.names)), Expected: "a Shopify product export" + kind}
	}
	if !s.has(colPrice) {
		s.noteFile(notePriceAll)
	}
	if !s.has(colQuantity) {
		s.noteFile(noteNoStock)
	}
	return nil
}

// otherExport says which other export of the admin a header belongs to; empty where it knows none.
func otherExport(names []string) string {
	have := map[string]bool{}
	for _, name := range names {
		have[normalize(name)] = true
	}
	for _, k := range []struct {
		marks []string
		name  string
	}{
		{[]string{"lineitemname"}, "an export of orders"},
		{[]string{"firstname", "email"}, "an export of customers"},
		{[]string{"location", "handle", "hscode"}, "an export of inventory"},
		{[]string{"redirectfrom"}, "an export of redirects"},
		{[]string{"discountvalue"}, "an export of discounts"},
	} {
		all := true
		for _, mark := range k.marks {
			all = all && have[mark]
		}
		if all {
			return "; this is " + k.name + ": in the admin, choose Products, then Export"
		}
	}
	return ""
}

// next goes to the next row that is not blank.
func (s *sheet) next() (bool, error) {
	for {
		cells, err := s.csv.Read()
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return false, s.syntax(err)
		}
		s.cells = cells
		s.line, _ = s.csv.FieldPos(0)
		blank := true
		for i, cell := range cells {
			if strings.TrimSpace(cell) == "" {
				continue
			}
			blank = false
			if i >= len(s.names) {
				return false, &CSVError{
					File: s.file, Line: s.line, Got: shorten(s.clean(cell)),
					Expected: fmt.Sprintf("at most %d cells, as many as the header has; this row has %d", len(s.names), len(cells)),
				}
			}
		}
		if !blank {
			s.cleanRow()
			return true, nil
		}
	}
}

// syntax turns an error of encoding/csv into ours.
func (s *sheet) syntax(err error) error {
	var p *csv.ParseError
	if !errors.As(err, &p) {
		return fmt.Errorf("read %s: %w", s.file, err)
	}
	e := &CSVError{File: s.file, Line: p.StartLine, Expected: p.Err.Error()}
	switch {
	case errors.Is(p.Err, csv.ErrQuote):
		e.Expected = fmt.Sprintf("a closing quote, and after it a separator (the row goes wrong on line %d, at byte %d)", p.Line, p.Column)
	case errors.Is(p.Err, csv.ErrBareQuote):
		e.Expected = fmt.Sprintf(`a cell with quotes to stand in quotes, each of its own doubled ("") (line %d, byte %d)`, p.Line, p.Column)
	}
	return e
}

// has reports whether the file has a column.
func (s *sheet) has(c column) bool {
	_, ok := s.columns[c]
	return ok
}

// heading is the name of a column in this file, or in Shopify's where the file lacks it.
func (s *sheet) heading(c column) string {
	if i, ok := s.columns[c]; ok {
		return s.names[i]
	}
	return headings[c]
}

// raw is a cell of the current row with its spaces; empty where the column or the cell is missing.
func (s *sheet) raw(c column) string {
	i, ok := s.columns[c]
	if !ok || i >= len(s.cells) {
		return ""
	}
	return s.cells[i]
}

// wrong is an error at a cell of the current row.
func (s *sheet) wrong(c column, expected string) error {
	e := &CSVError{File: s.file, Line: s.line, Column: headings[c], Expected: expected}
	if i, ok := s.columns[c]; ok {
		e.Column = s.names[i]
		if i < len(s.cells) {
			e.Got = shorten(s.cells[i])
			e.Line, _ = s.csv.FieldPos(i)
		}
	}
	return e
}

func shorten(s string) string {
	if runes := []rune(s); len(runes) > 60 {
		return string(runes[:60]) + "…"
	}
	return s
}

func firstOf(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

// approvalOf is the approval of the i-th product of a file: a minute apart, so that they differ.
func approvalOf(i int) time.Time { return epoch.Add(time.Duration(i) * time.Minute) }

// importer is who has approved the products of a file.
const importer = "csv import"

// optionNumber is the number of an option in headings, from 1.
func optionNumber(i int) string { return strconv.Itoa(i + 1) }
