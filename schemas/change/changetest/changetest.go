// Package changetest holds records against a recording of the Debezium Postgres connector: what it wrote for the SQL of
// schema.sql and types.sql, in debezium.jsonl. It is for tests.
package changetest

import (
	"bufio"
	"bytes"
	"cmp"
	_ "embed"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// DirVariable names the environment variable that leads to another recording of the same form.
const DirVariable = "SHELFWIRE_DEBEZIUM"

// Dir is where the recording lies. Where there is none the test is skipped, except in CI and where one was named.
func Dir(tb testing.TB, getenv func(string) string, fallback string) string {
	tb.Helper()
	dir := cmp.Or(getenv(DirVariable), fallback)
	if _, err := os.Stat(filepath.Join(dir, "debezium.jsonl")); err != nil {
		if getenv("CI") == "true" || getenv(DirVariable) != "" {
			tb.Fatalf("the Debezium recording: %v", err)
		}
		tb.Skip("the Debezium recording is not here")
	}
	return dir
}

// Record is one record of a topic.
type Record struct {
	Topic   string
	Key     json.RawMessage // nil or null for none
	Value   *Value          // nil for a tombstone
	Headers map[string]json.RawMessage
}

// Value is what is compared of an envelope.
type Value struct {
	Before, After map[string]json.RawMessage
	Op            string
	Source        struct{ Name, Schema, Table string }
	Message       json.RawMessage
}

// Table is "schema.table"; empty for a message.
func (v *Value) Table() string {
	if v.Source.Table == "" {
		return ""
	}
	return v.Source.Schema + "." + v.Source.Table
}

// Read gives the records of a file in its order.
func Read(tb testing.TB, file string) []Record {
	tb.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		tb.Fatal(err)
	}
	var list []Record
	sc := bufio.NewScanner(bytes.NewReader(b))
	sc.Buffer(nil, 64<<20)
	for sc.Scan() {
		var r Record
		if err := json.Unmarshal(sc.Bytes(), &r); err != nil {
			tb.Fatalf("%s: %v: %.200s", file, err, sc.Bytes())
		}
		list = append(list, r)
	}
	if err := sc.Err(); err != nil {
		tb.Fatal(err)
	}
	return list
}

// Same compares values as a reader sees them: escapes do not count, nor how a float is written.
func Same(a, b json.RawMessage) bool {
	var x, y any
	for _, v := range []struct {
		text json.RawMessage
		into *any
	}{{a, &x}, {b, &y}} {
		if len(v.text) == 0 {
			continue // absent is null
		}
		dec := json.NewDecoder(bytes.NewReader(v.text))
		dec.UseNumber()
		if dec.Decode(v.into) != nil {
			return false
		}
	}
	return sameValue(x, y)
}

func sameValue(x, y any) bool {
	switch x := x.(type) {
	case json.Number:
		y, ok := y.(json.Number)
		if ok && strings.ContainsAny(string(x+y), ".eE") {
			fx, err1 := x.Float64()
			fy, err2 := y.Float64()
			return err1 == nil && err2 == nil && fx == fy
		}
		return ok && x == y
	case []any:
		y, ok := y.([]any)
		return ok && slices.EqualFunc(x, y, sameValue)
	case map[string]any:
		y, ok := y.(map[string]any)
		return ok && maps.EqualFunc(x, y, sameValue)
	}
	return reflect.DeepEqual(x, y)
}

//go:embed differences.txt
var differences string

// Comparison collects what is different, and which lines of the list have been of use.
type Comparison struct {
	tb      testing.TB
	reasons map[string]string
	used    map[string]bool
	// Values counts the compared ones, Listed those of them that differ for a reason.
	Values, Listed int
}

// NewComparison reads the list of differences.
func NewComparison(tb testing.TB) *Comparison {
	tb.Helper()
	c := &Comparison{tb: tb, reasons: map[string]string{}, used: map[string]bool{}}
	for line := range strings.Lines(differences) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		place, reason, ok := strings.Cut(line, ": ")
		if !ok || c.reasons[place] != "" {
			tb.Fatalf("differences.txt: %q is no line of it, or stands twice", line)
		}
		c.reasons[place] = reason
	}
	return c
}

// listed reports whether a difference has a reason.
func (c *Comparison) listed(table, column, note string) bool {
	for _, place := range []string{table + "." + column, table + "." + column + "/" + note, table + ".*", table + ".*/" + note, "*." + column} {
		if c.reasons[place] != "" {
			c.used[place] = true
			c.Listed++
			return true
		}
	}
	return false
}

// Unused lists the lines that no difference has needed.
func (c *Comparison) Unused() []string {
	var list []string
	for place := range c.reasons {
		if !c.used[place] {
			list = append(list, place)
		}
	}
	slices.Sort(list)
	return list
}

// Topic holds the records of one topic against the recording's, one by one.
func (c *Comparison) Topic(topic string, got, want []Record) {
	c.tb.Helper()
	if len(got) != len(want) {
		c.tb.Errorf("%s: %d records, there %d", topic, len(got), len(want))
		return
	}
	for i := range got {
		c.record(topic, i, &got[i], &want[i])
	}
}

func (c *Comparison) record(topic string, i int, got, want *Record) {
	c.tb.Helper()
	table := topic[strings.LastIndexByte(topic, '.')+1:]
	if (got.Value == nil) != (want.Value == nil) {
		c.tb.Errorf("%s record %d: tombstone %t, there %t", topic, i, got.Value == nil, want.Value == nil)
		return
	}
	if !sameBytes(got.Key, want.Key) && !c.listed(table, "key", "") {
		c.tb.Errorf("%s record %d: key %s, there %s", topic, i, got.Key, want.Key)
	}
	for _, h := range []string{"__debezium.newkey", "__debezium.oldkey"} {
		if !Same(got.Headers[h], want.Headers[h]) && !c.listed(table, "key", "") {
			c.tb.Errorf("%s record %d: header %s %s, there %s", topic, i, h, got.Headers[h], want.Headers[h])
		}
	}
	if got.Value == nil {
		return
	}
	g, w := got.Value, want.Value
	if g.Op != w.Op || !Same(g.Message, w.Message) || (g.Before == nil) != (w.Before == nil) || (g.After == nil) != (w.After == nil) {
		c.tb.Errorf("%s record %d: %+v, there %+v", topic, i, g, w)
		return
	}
	note := strings.Trim(string(g.After["note"]), `"`)
	if note == "null" {
		note = "<nil>"
	}
	c.row(topic, i, table, "", note, g.After, w.After)
	c.row(topic, i, table, "before ", note, g.Before, w.Before)
}

// row compares an image. A column that is missing here is one of an old row whose value was not sent.
func (c *Comparison) row(topic string, i int, table, image, note string, got, want map[string]json.RawMessage) {
	c.tb.Helper()
	for column, v := range got {
		c.Values++
		if w, ok := want[column]; (!ok || !Same(v, w)) && !c.listed(table, column, note) {
			c.tb.Errorf("%s record %d (%s): %s%s: %s, there %s", topic, i, note, image, column, v, w)
		}
	}
	for column, w := range want {
		if _, ok := got[column]; !ok && (image == "" || !c.listed("", "absent in before", "")) {
			c.tb.Errorf("%s record %d (%s): %s%s is not here, there %s", topic, i, note, image, column, w)
		}
	}
}

// sameBytes compares keys, whose bytes decide on the partition.
func sameBytes(a, b json.RawMessage) bool {
	none := func(k json.RawMessage) bool { return len(k) == 0 || string(k) == "null" }
	return none(a) && none(b) || bytes.Equal(a, b)
}

// Statement is one of a script for psql.
type Statement struct {
	SQL string
	// Data is what a COPY FROM STDIN takes. Pause asks to let the reader catch up.
	Data  string
	Pause bool
}

// Statements cuts a script as psql does, which makes a transaction of each statement. Its own commands are left out.
func Statements(script string) []Statement {
	var list []Statement
	var data *strings.Builder
	var pending strings.Builder
	for line := range strings.Lines(strings.ReplaceAll(script, `\g /dev/null`, ";")) {
		switch {
		case data != nil && strings.TrimSpace(line) == `\.`:
			list[len(list)-1].Data, data = data.String(), nil
		case data != nil:
			data.WriteString(line)
		case strings.HasPrefix(line, `\`):
		default:
			pending.WriteString(line)
			whole, rest := cut(pending.String())
			for _, sql := range whole {
				list = append(list, Statement{SQL: sql, Pause: strings.Contains(sql, "pg_sleep(:pause)")})
			}
			if len(whole) > 0 {
				pending.Reset()
				pending.WriteString(rest)
			}
			if len(whole) > 0 && strings.HasSuffix(strings.ToLower(whole[len(whole)-1]), "from stdin") {
				data = &strings.Builder{}
			}
		}
	}
	return list
}

// cut gives the statements that are complete, and the rest.
func cut(sql string) (whole []string, rest string) {
	start := 0
	var quote byte
	for i := 0; i < len(sql); i++ {
		switch c := sql[i]; {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '\'' || c == '"':
			quote = c
		case strings.HasPrefix(sql[i:], "--"):
			n := strings.IndexByte(sql[i:], '\n')
			if n < 0 {
				n = len(sql) - i
			}
			sql = sql[:i] + sql[i+n:]
			i--
		case c == ';':
			if s := strings.TrimSpace(sql[start:i]); s != "" {
				whole = append(whole, s)
			}
			start = i + 1
		}
	}
	return whole, sql[start:]
}
