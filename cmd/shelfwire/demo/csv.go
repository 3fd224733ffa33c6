package demo

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
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
}

// LoadCSV fills the empty reference schema from a Shopify product export, as the admin writes it (in its wording
// before or after 2025): several rows for a product, adjacent or not, rows with a picture only, option names on the
// first row, any further columns. Products that were not active or published are loaded as not approved; variants
// without a price are not for sale. Where the file has no stock column, each variant gets 10 units.
//
// The categories of the file become the tree; its leaves are sold in the north, in the south, in both, in turn.
//
// The file is held in memory, about twice its size. Nothing is written unless all of it can be read; what cannot be
// is a *[CSVError].
func LoadCSV(ctx context.Context, conn *pgx.Conn, r io.Reader, file string) (Loaded, error) {
	e, err := readExport(r, file)
	if err != nil {
		return Loaded{}, err
	}
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if err := insertStores(ctx, tx); err != nil {
			return err
		}
		if err := insertCategories(ctx, tx, e.tree.list); err != nil {
			return err
		}
		for at := 0; at < len(e.products); at += chunk {
			if err := insertProducts(ctx, tx, e.products[at:min(at+chunk, len(e.products))]); err != nil {
				return err
			}
		}
		return moveSequences(ctx, tx)
	})
	if err != nil {
		return Loaded{}, fmt.Errorf("load %s: %w", file, err)
	}
	return e.loaded, analyze(ctx, conn)
}

// export is a CSV file as products.
type export struct {
	products []product
	tree     *tree
	loaded   Loaded
}

// readExport reads a whole file. It does no I/O but r.
func readExport(r io.Reader, file string) (*export, error) {
	text, comma, err := openText(r)
	if err != nil {
		return nil, &CSVError{File: file, Line: 1, Expected: err.Error()}
	}
	cr := csv.NewReader(text)
	cr.Comma = comma
	cr.FieldsPerRecord = -1 // some tools cut the empty cells off the end of a row
	cr.ReuseRecord = true
	s := sheet{file: file, csv: cr}
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
	names   []string       // as the header has them
	columns map[column]int // where each known column stands
	cells   []string       // of the current row
	line    int            // where the current row begins
}

func (s *sheet) readHeader() error {
	cells, err := s.csv.Read()
	if errors.Is(err, io.EOF) {
		return &CSVError{File: s.file, Line: 1, Expected: "a header row; the file is empty"}
	}
	if err != nil {
		return s.syntax(err)
	}
	s.columns = map[column]int{}
	for i, cell := range cells {
		name := clean(cell)
		s.names = append(s.names, name)
		if c, known := columnNames[normalize(name)]; known {
			if _, twice := s.columns[c]; !twice {
				s.columns[c] = i
			}
		}
	}
	for _, c := range []column{colHandle, colTitle} {
		if _, ok := s.columns[c]; !ok {
			return &CSVError{
				File: s.file, Line: 1, Column: headings[c], Got: shorten(firstOf(s.names)),
				Expected: "this column in the header of a Shopify product export",
			}
		}
	}
	return nil
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
			if cell == "" {
				continue
			}
			blank = false
			if i >= len(s.names) {
				return false, &CSVError{
					File: s.file, Line: s.line, Got: shorten(cell),
					Expected: fmt.Sprintf("at most %d cells, as many as the header has; this row has %d", len(s.names), len(cells)),
				}
			}
		}
		if !blank {
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

// raw is a cell of the current row with its spaces; empty where the column or the cell is missing.
func (s *sheet) raw(c column) string {
	i, ok := s.columns[c]
	if !ok || i >= len(s.cells) {
		return ""
	}
	return clean(s.cells[i])
}

// wrong is an error at a cell of the current row.
func (s *sheet) wrong(c column, expected string) error {
	e := &CSVError{File: s.file, Line: s.line, Column: headings[c], Expected: expected}
	if i, ok := s.columns[c]; ok {
		e.Column = s.names[i]
		if i < len(s.cells) {
			e.Got = shorten(clean(s.cells[i]))
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
