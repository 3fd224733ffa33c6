package demo

import "fmt"

// Note is something of a file that was mended, left out or supplied, so that the file could be loaded.
type Note struct {
	// What says it in words: what was found, and what was made of it.
	What string
	// Count is how many cells, rows or products it concerns; 1 where the file as a whole is meant.
	Count int
	// Line is where it was first, from 1; Column and Example are that cell's column and text. Each is zero where it
	// does not apply.
	Line            int
	Column, Example string
}

// String is the note as one line.
func (n Note) String() string {
	if n.Line == 0 {
		return n.What
	}
	at := fmt.Sprintf("line %d", n.Line)
	if n.Column != "" {
		at += fmt.Sprintf(", %q", n.Column)
	}
	if n.Example != "" {
		at += fmt.Sprintf(": %q", n.Example)
	}
	return fmt.Sprintf("%d× %s (first at %s)", n.Count, n.What, at)
}

// What can be noted of a cell, a row or a product.
const (
	noteEncoding    = "cells that are not UTF-8, read as "
	noteControl     = "cells with control characters, which no shop takes: left out"
	noteApostrophe  = "codes behind an apostrophe or in =\"...\", which spreadsheets add: taken off"
	noteScientific  = "codes such as 4.0E+12: a spreadsheet has cut their digits; loaded as they stand"
	noteNumber      = "numbers with thousands separators, a decimal comma or a currency: read as plain numbers"
	noteCents       = "prices with more than two decimals: rounded to cents"
	noteUnits       = "stock levels with a fraction: cut to whole units"
	noteNegative    = "stock levels below zero: 0 units for sale, the rest is reserved"
	noteNoPrice     = "variants without a price: not for sale"
	noteAddress     = "pictures whose address does not begin with http:// or https://: left out"
	noteScheme      = "addresses that begin with //: read as https://"
	notePictures    = "pictures after a product's 250th, which is Shopify's limit: left out"
	noteCut         = "texts longer than the shop takes: cut"
	noteStatus      = "unknown statuses: taken for drafts"
	noteHandle      = "handles that a shop writes in another way: written as it would"
	noteTaken       = "handles that a shop could not tell from another product's: numbered"
	noteNoHandle    = "products without a handle: made of the title"
	noteNobody      = "rows without handle and title: left out, as Shopify does"
	noteRepeated    = "rows with a variant that stood before (same handle and option values): the first counts"
	noteSpelling    = "option values that differ from another of the product only in case: the first spelling counts"
	noteReserved    = "option names with \" / \", which Shopify keeps for itself: written without the spaces"
	noteSecondTitle = "rows with another title for a handle that has one: the first counts"
	noteLeading     = "lines before the header: left out"

	noteNoStock  = "no stock column: each variant gets 10 units"
	notePriceAll = "no price column: each variant costs 10.00"
)

// note counts something at a cell of the current row.
func (s *sheet) note(what string, c column) {
	name, example := "", ""
	if i, ok := s.columns[c]; ok {
		name = s.names[i]
		if i < len(s.cells) {
			example = shorten(s.cells[i])
		}
	}
	s.noteAt(what, s.line, name, example)
}

// noteAt counts something at a line. Notes keep the order in which they were first made.
func (s *sheet) noteAt(what string, line int, name, example string) {
	if s.noted == nil {
		s.noted = map[string]int{}
	}
	i, ok := s.noted[what]
	if !ok {
		i = len(s.notes)
		s.noted[what] = i
		s.notes = append(s.notes, Note{What: what, Line: line, Column: name, Example: example})
	}
	s.notes[i].Count++
}

// noteFile notes something of the file as a whole.
func (s *sheet) noteFile(what string) { s.notes = append(s.notes, Note{What: what, Count: 1}) }
