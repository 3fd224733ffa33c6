package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"golang.org/x/term"
)

// table is what a command shows: rows of text on a terminal, or the values behind them as JSON.
type table struct {
	head []string
	rows [][]string
	// elastic are the columns, by their heads, whose cells are cut where a terminal is too narrow. The others hold what
	// is copied or compared, and stay whole.
	elastic []string
	// empty is said instead of a head without rows.
	empty string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

// write aligns the columns. Numbers read well enough flush left.
func (t *table) write(w io.Writer) error {
	if len(t.rows) == 0 && t.empty != "" {
		_, err := fmt.Fprintln(w, t.empty)
		return err
	}
	rows := t.rows
	if isTerminal(w) {
		rows = t.fit(width(w))
	}
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	if len(t.head) > 0 {
		_, _ = fmt.Fprintln(tw, strings.Join(t.head, "\t"))
	}
	for _, r := range rows {
		_, _ = fmt.Fprintln(tw, strings.Join(r, "\t"))
	}
	return tw.Flush()
}

// leastWidth is what is left of an elastic column at the least.
const leastWidth = 8

// fit cuts elastic columns, the widest first, until the rows need no more than so many columns of a terminal, or until
// there is nothing more to cut.
func (t *table) fit(columns int) [][]string {
	need := make([]int, len(t.head))
	total := 0
	for i, h := range t.head {
		need[i] = len([]rune(h))
		for _, r := range t.rows {
			if i < len(r) {
				need[i] = max(need[i], len([]rune(r[i])))
			}
		}
		total += need[i] + 2 // the gap
	}
	for total -= 2; total > columns; total-- {
		widest := -1
		for i, h := range t.head {
			if slices.Contains(t.elastic, h) && need[i] > leastWidth && (widest < 0 || need[i] > need[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			break
		}
		need[widest]--
	}
	rows := make([][]string, len(t.rows))
	for i, r := range t.rows {
		rows[i] = slices.Clone(r)
		for c := range r {
			if text := []rune(r[c]); c < len(need) && len(text) > need[c] {
				rows[i][c] = string(text[:need[c]-1]) + "…"
			}
		}
	}
	return rows
}

// show writes v as JSON when it was asked for or when w is no terminal, and the table otherwise.
func show(w io.Writer, asJSON bool, v any, t *table) error {
	if asJSON || !isTerminal(w) {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	return t.write(w)
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// firstLine keeps a table's row on one line.
func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	if r := []rune(s); len(r) > 80 {
		s = string(r[:79]) + "…"
	}
	return s
}
