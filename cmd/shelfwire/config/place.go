package config

import (
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// files are the decoders of the files that a configuration came from. They know where each key stands.
type files struct {
	main *decoder
	// routes is set where the routes stand in a file of their own.
	routes *decoder
	// documents is the path of the documents query's own file; empty where it stands in the main file.
	documents string
}

// At is an error at the place of a key, written as in "push.max_wait" or "routes.3.parent.table", or of its nearest
// parent that a file has. It is for what shows only when the configuration is tried: a table that does not exist.
func (c *Config) At(key, problem, mend string) *Error {
	if key == "documents" && c.files.documents != "" {
		return &Error{File: c.files.documents, Problem: problem, Mend: mend}
	}
	return c.decoderOf(key).at(key, problem, mend)
}

// AtText is At for a place inside the text of a key: the character at offset, counted from 1, of the SQL that the key
// holds. Where the text does not stand in the file as it is (it is quoted, or folded), the place is the key's.
func (c *Config) AtText(key string, offset int, problem, mend string) *Error {
	e := c.At(key, problem, mend)
	if key == "documents" && c.files.documents != "" {
		e.Line, e.Column = position(c.Documents, offset)
		return e
	}
	d := c.decoderOf(key)
	n := d.places[key]
	if n == nil || n.Kind != yaml.ScalarNode || n.Style&yaml.LiteralStyle == 0 {
		return e
	}
	line, column := position(n.Value, offset)
	text := strings.Split(n.Value, "\n")[line-1]
	if at := n.Line + line; at <= len(d.lines) { // the text of | begins on the next line
		if indent := strings.Index(d.lines[at-1], text); text != "" && indent >= 0 {
			e.Line, e.Column = at, column+utf8.RuneCountInString(d.lines[at-1][:indent])
		}
	}
	return e
}

// decoderOf is the decoder of the file that holds a key.
func (c *Config) decoderOf(key string) *decoder {
	if top, _, _ := strings.Cut(key, "."); top == "routes" && c.files.routes != nil {
		return c.files.routes
	}
	if c.files.main == nil {
		return &decoder{file: "configuration"}
	}
	return c.files.main
}

// position is the line and column of a character, all counted from 1. One that is outside of the text is its nearest.
func position(text string, offset int) (line, column int) {
	line, column = 1, 1
	for _, r := range text {
		if offset--; offset < 1 {
			break
		}
		if column++; r == '\n' {
			line, column = line+1, 1
		}
	}
	return line, column
}
