package postgres_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/connectors/postgres"
	"github.com/shelfwire/shelfwire/schemas/change"
)

var recordings = filepath.Join("..", "..", "..", "shared", "debezium")

// recording reads a file beside the repository; where it is absent the test is skipped, except in CI.
func recording(t *testing.T, name string) []byte {
	t.Helper()
	t.Helper()
	b, err := os.ReadFile(filepath.Join(recordings, name))
	if err != nil && os.Getenv("CI") != "true" {
		t.Skip("the Debezium recording is not here")
	}
	require.NoError(t, err)
	return b
}

// differences lists, by table and column, where we do not write what the connector wrote, and why. A table.column
// stands for all rows, table.column/note for one.
var differences = map[string]string{
	"t_numeric.n5_neg2":         "2046 decimals of zeros are invented",
	"t_time.t/24:00":            "24:00 is not 00:00",
	"t_time.t0/24:00":           "24:00 is not 00:00",
	"t_time.t3/24:00":           "24:00 is not 00:00",
	"t_time.tz3/whole seconds":  "an offset with seconds is not null",
	"t_float.f4/min subnormal":  "1e-45 and 1.4E-45 are the same float4",
	"t_text.n":                  "name is always null there",
	"t_date.d/infinity":         "infinity is no year",
	"t_date.d/-infinity":        "infinity is no year",
	"t_timestamp.*/infinity":    "infinity is no year",
	"t_timestamp.*/-infinity":   "infinity is no year",
	"t_interval.*":              "microseconds with a month of 30.4375 days are not invertible; held against the ISO mode below",
	"t_bit.vb":                  "base64 loses the length of a varbit",
	"t_bit.vb9":                 "base64 loses the length of a varbit",
	"t_array.i2d":               "null for the inner arrays",
	"t_array.n/null elements":   "an array with NaN is null there",
	"t_array.i/lower bound":     "the bounds are lost there",
	"t_array.t/2-d text":        "a Java address",
	"t_array.d/infinite times":  "infinity is no year",
	"t_array.ts/infinite times": "infinity is no year, and the other date is two days off",
	"t_array.tz/infinite times": "infinity is no year",
	"t_range.mr":                "the column is missing there",
	"t_search.q":                "the column is missing there",
	"t_sys.l":                   "the column is missing there",
	"t_sys.x":                   "the column is missing there",
	"t_sys.s":                   "the column is missing there",
	"t_sys.r":                   "the column is missing there",
	"t_domain.ps":               "the column is missing there",
	"t_composite.c":             "the column is missing there",
	"t_composite.cs":            "the column is missing there",
	"t_enum.ms":                 "arrays of enums are text so far; there null as soon as one element is",
	"t_default.*/<nil>":         "NULL is replaced by the default there",
}

func explanation(table, column, note string) string {
	for _, key := range []string{table + "." + column, table + "." + column + "/" + note, table + ".*", table + ".*/" + note} {
		if differences[key] != "" {
			return key
		}
	}
	return ""
}

// later counts the records that come from the part about schema changes, which is not replayed here.
var later = map[string]int{"t_enum": 1, "op_default": 2}

type debezium struct {
	Topic string
	Key   json.RawMessage
	Value *struct {
		Before, After map[string]json.RawMessage
		Op            string
	}
}

// recorded gives the row records of a recording by table, in order.
func recorded(t *testing.T, name string) map[string][]debezium {
	t.Helper()
	t.Helper()
	by := map[string][]debezium{}
	sc := bufio.NewScanner(bytes.NewReader(recording(t, name)))
	sc.Buffer(nil, 64<<20)
	for sc.Scan() {
		var r debezium
		require.NoError(t, json.Unmarshal(sc.Bytes(), &r))
		_, table, ok := strings.Cut(r.Topic, ".public.")
		if ok && r.Value != nil {
			by[table] = append(by[table], r)
		}
	}
	require.NoError(t, sc.Err())
	return by
}

// TestDebeziumGolden runs the catalog of types and operations through the stream and the encoder and compares each
// record with what the real connector wrote for the same SQL.
func TestDebeziumGolden(t *testing.T) {
	schema := recording(t, "schema.sql")
	want, iso := recorded(t, "debezium.jsonl"), recorded(t, "debezium-modes.jsonl")
	tables := []string{
		"t_int", "t_numeric", "t_float", "t_money", "t_bool", "t_text", "t_bytea", "t_date", "t_time", "t_timestamp", "t_timestamptz", "t_interval", "t_uuid", "t_json", "t_net",
		"t_geo", "t_range", "t_bit", "t_search", "t_sys", "t_enum", "t_domain", "t_composite", "t_ext", "t_array", "t_default",
		"op_default", "op_full", "op_multikey", "op_textkey", "op_charkey", "op_numkey", "op_tskey", "op_uuidkey", "op_toast", "op_toast_full", "op_toast_types",
		"op_trunc_a", "op_trunc_b", "op_part", "op_save", "op_tx1", "op_tx2", "op_copy",
	}
	d := newDatabase(t, withoutMeta(string(schema)))
	d.exec(`DROP PUBLICATION pub_leaf; ALTER PUBLICATION pub_root RENAME TO shelfwire`)
	cfg := d.config()
	src := d.open(cfg)
	_, err := src.EnsureSlot(t.Context())
	require.NoError(t, err)
	st := stream(t, src, 0)
	d.replay(string(recording(t, "types.sql")))
	got := mirrored(t, d, st)

	compared, differ, used := 0, 0, map[string]bool{}
	for _, table := range tables {
		rows := got[table]
		expect := want[table]
		require.NotEmpty(t, expect, table)
		require.Len(t, rows, len(expect)-later[table], "records of %s", table)
		for i := range rows {
			at := fmt.Sprintf("%s record %d", table, i)
			require.Equal(t, expect[i].Value.Op, rows[i].Value.Op, at)
			if string(expect[i].Key) != "null" || rows[i].Key != nil {
				require.Equal(t, string(expect[i].Key), string(rows[i].Key), at)
			}
			note := strings.Trim(string(rows[i].Value.After["note"]), `"`)
			if note == "null" {
				note = "<nil>"
			}
			compared += len(rows[i].Value.After)
			if expect[i].Value.After == nil {
				require.Nil(t, rows[i].Value.After, at)
			}
			for column, v := range rows[i].Value.After {
				w, ok := expect[i].Value.After[column]
				if ok && sameJSON(w, v) {
					continue
				}
				differ++
				why := explanation(table, column, note)
				used[why] = true
				if why == "" {
					t.Errorf("%s (%s): column %s: %s, there %s", at, note, column, v, w)
				}
			}
			for column := range expect[i].Value.After {
				require.Contains(t, rows[i].Value.After, column, at)
			}
			for column, v := range rows[i].Value.Before { // and never a value that was not sent
				if w := expect[i].Value.Before[column]; !sameJSON(w, v) && explanation(table, column, note) == "" {
					t.Errorf("%s: before: column %s: %s, there %s", at, column, v, w)
				}
			}
		}
	}
	for key := range differences {
		require.True(t, used[key], "%s is listed as different and is not", key)
	}
	intervals := 0
	for _, r := range iso["t_interval"] {
		for _, g := range got["t_interval"] {
			if string(g.Key) == string(r.Key) {
				require.Equal(t, r.Value.After, g.Value.After)
				intervals++
			}
		}
	}
	require.NotZero(t, intervals)
	t.Logf("%d values compared, %d differ for a listed reason, %d rows of intervals equal to the ISO mode", compared, differ, intervals)
}

// sameJSON compares values as a reader sees them: escapes do not count, nor how a float is written.
func sameJSON(a, b json.RawMessage) bool {
	var x, y any
	for _, v := range []struct {
		text json.RawMessage
		into *any
	}{{a, &x}, {b, &y}} {
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

// mirrored reads the stream and writes it as the connector's topics would have it: a changed key is a delete and a
// create.
func mirrored(t *testing.T, d *database, st *postgres.Stream) map[string][]debezium {
	t.Helper()
	t.Helper()
	d.exec("SELECT pg_logical_emit_message(true, 'end', 'here')")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	by := map[string][]debezium{}
	add := func(c *change.Change, tx *change.Transaction) {
		var r debezium
		value := change.AppendEnvelope(nil, c, &change.Envelope{Transaction: tx})
		require.NoError(t, json.Unmarshal(value, &r.Value), "%s", value)
		row := c.After
		if row == nil {
			row = c.Before
		}
		if key, ok := change.AppendKey(nil, c.Relation, row); ok {
			r.Key = key
		}
		by[c.Relation.Name] = append(by[c.Relation.Name], r)
	}
	for {
		ev, err := st.Next(ctx)
		require.NoError(t, err)
		switch {
		case ev.Kind == change.EventMessage && ev.Message.Prefix == "end":
			return by
		case ev.Kind != change.EventChange:
		case ev.Change.Op == change.Update:
			c := *ev.Change
			old, ok1 := change.AppendKey(nil, c.Relation, c.Before)
			now, ok2 := change.AppendKey(nil, c.Relation, c.After)
			if ok1 && ok2 && !bytes.Equal(old, now) {
				add(&change.Change{Op: change.Delete, Relation: c.Relation, Before: c.Before, LSN: c.LSN}, ev.Transaction)
				add(&change.Change{Op: change.Create, Relation: c.Relation, After: c.After, LSN: c.LSN}, ev.Transaction)
				continue
			}
			add(&c, ev.Transaction)
		default:
			add(ev.Change, ev.Transaction)
		}
	}
}

// replay runs types.sql as psql does, each statement for itself, up to the part about schema changes.
func (d *database) replay(sql string) {
	d.t.Helper()
	sql, _, _ = strings.Cut(sql, "-- ---------- schema changes")
	before, rest, _ := strings.Cut(sql, "copy op_copy from stdin;\n")
	data, after, _ := strings.Cut(rest, "\\.\n")
	d.statements(before)
	_, err := d.conn.PgConn().CopyFrom(d.t.Context(), strings.NewReader(data), "copy op_copy from stdin")
	require.NoError(d.t, err)
	d.statements(after)
	d.exec("RESET timezone; RESET datestyle")
}

// statements cuts at semicolons outside quotes and comments: the server takes several statements of one message for
// one transaction, and the recording was made with psql.
func (d *database) statements(sql string) {
	d.t.Helper()
	sql = strings.ReplaceAll(withoutMeta(sql), `\g /dev/null`, ";")
	quoted, start := false, 0
	for i := 0; i < len(sql); i++ {
		switch {
		case sql[i] == '\'':
			quoted = !quoted
		case !quoted && strings.HasPrefix(sql[i:], "--"):
			n := strings.IndexByte(sql[i:], '\n')
			sql = sql[:i] + sql[i+n:]
		case !quoted && sql[i] == ';':
			d.exec(sql[start:i])
			start = i + 1
		}
	}
}
