package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/shelfwire/shelfwire/schemas/change"
)

// conditionError makes what goes wrong while a condition of somebody's is evaluated an error that is Permanent: it is
// the condition that must be changed, also where it took too long.
func conditionError(ctx context.Context, sel *change.Selection, err error) error {
	q, ok := errors.AsType[*QueryError](err)
	if sel.All() || !ok || ctx.Err() != nil {
		return err
	}
	if q.SQLSTATE == "57014" {
		return tableError("the condition takes longer than the statement timeout: " + err.Error())
	}
	return err
}

// selectionSQL gives the conditions of a selection.
func selectionSQL(sel *change.Selection) ([]string, error) {
	var all []string
	if sel.Where != "" {
		if err := checkCondition(sel.Where); err != nil {
			return nil, err
		}
		all = append(all, "(\n"+sel.Where+"\n)") // a comment of one line ends with its line
	}
	if len(sel.Products) == 0 {
		return all, nil
	}
	var ways []string
	// A literal takes the type of the column, without its length.
	ids := quoteLiteral(string(arrayLiteral(sel.Products)))
	for _, r := range sel.Routes {
		switch {
		case r.Table != sel.Table:
		case r.Key != "":
			ways = append(ways, quoteIdent(r.Key)+" = ANY ("+ids+")")
		case r.Parent != nil:
			parent, err := quoteTable(r.Parent.Table)
			if err != nil {
				return nil, err
			}
			ways = append(ways, fmt.Sprintf("%s IN (SELECT parent.%s FROM %s parent WHERE parent.%s = ANY (%s))",
				quoteIdent(r.Parent.Column), quoteIdent(r.Parent.ID), parent, quoteIdent(r.Parent.Key), ids))
		}
	}
	if len(ways) == 0 {
		return nil, tableError("no route leads from a row of " + sel.Table + " to one product")
	}
	return append(all, "("+strings.Join(ways, " OR ")+")"), nil
}

// checkCondition makes sure that a text which is put between parentheses stays there: what it opens it closes, and
// it closes nothing else. Whether it is SQL is for the server to say.
func checkCondition(where string) error {
	depth := 0
	for i := 0; i < len(where); {
		n := 1
		switch rest := where[i:]; {
		case rest[0] == 0:
			return tableError("the condition has a byte of value zero")
		case rest[0] == ';':
			return tableError("the condition is more than one statement")
		case rest[0] == '(':
			depth++
		case rest[0] == ')':
			depth--
		case rest[0] == '\'':
			n = literalLength(where, i)
		case rest[0] == '"':
			n = quotedLength(rest, false)
		case strings.HasPrefix(rest, "--"):
			n = strings.IndexAny(rest, "\r\n")
			if n < 0 {
				n = len(rest)
			}
		case strings.HasPrefix(rest, "/*"):
			n = commentLength(rest)
		case rest[0] == '$' && (i == 0 || !identifierByte(where[i-1])):
			n = dollarLength(rest)
		}
		if n < 0 {
			return tableError("the condition has a quote or a comment that does not end, or a backslash before a quote")
		}
		if depth < 0 {
			break
		}
		i += n
	}
	if depth != 0 {
		return tableError("the condition's parentheses do not match")
	}
	return nil
}

// literalLength is the length of the text literal at a place, -1 where it does not end, or where a backslash in it may
// mean one thing or the other: what it means depends on an E before it, and on a setting of the session.
func literalLength(where string, at int) int {
	plain, escaped := quotedLength(where[at:], false), quotedLength(where[at:], true)
	e := at > 0 && (where[at-1] == 'E' || where[at-1] == 'e') && (at == 1 || !identifierByte(where[at-2]))
	switch {
	case e:
		return escaped
	case plain != escaped:
		return -1
	}
	return plain
}

// quotedLength is the length of a quoted text, -1 where it does not end.
func quotedLength(s string, escapes bool) int {
	for i := 1; i < len(s); i++ {
		switch {
		case escapes && s[i] == '\\':
			i++
		case s[i] != s[0]:
		case i+1 < len(s) && s[i+1] == s[0]:
			i++
		default:
			return i + 1
		}
	}
	return -1
}

// commentLength is the length of a comment, in which others may be nested.
func commentLength(s string) int {
	depth := 0
	for i := 0; i+1 < len(s); i++ {
		switch s[i : i+2] {
		case "/*":
			depth++
			i++
		case "*/":
			depth--
			i++
			if depth == 0 {
				return i + 1
			}
		}
	}
	return -1
}

// dollarLength is the length of a text in dollar quotes; 1 for a dollar that begins none.
func dollarLength(s string) int {
	end := 1
	for end < len(s) && s[end] != '$' {
		if !identifierByte(s[end]) || end == 1 && s[end] >= '0' && s[end] <= '9' {
			return 1
		}
		end++
	}
	if end == len(s) {
		return 1
	}
	tag := s[:end+1]
	n := strings.Index(s[len(tag):], tag)
	if n < 0 {
		return -1
	}
	return len(tag) + n + len(tag)
}

// identifierByte reports whether a byte can stand within a name.
func identifierByte(b byte) bool {
	return b == '_' || b == '$' || b >= 0x80 || b >= '0' && b <= '9' || b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z'
}
