package postgres_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/connectors/postgres"
	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/schemas/change"
)

// odd lists types, a value of each as SQL, and the JSON of the envelope; an empty one is not compared.
var odd = []struct{ typ, value, want string }{
	{"numeric", `repeat('9', 131072)::numeric`, `"` + strings.Repeat("9", 131072) + `"`},
	{"numeric", `('0.' || repeat('7', 16383))::numeric`, `"0.` + strings.Repeat("7", 16383) + `"`},
	{"numeric", `'NaN'`, `"NAN"`},
	{"numeric(5,-2)", `12345`, `"12300"`},
	{"float4", `'-Infinity'`, `"-Infinity"`},
	{"float8", `'-0'`, `-0`},
	{"date", `'4713-11-24 BC'`, `"-4712-11-24Z"`},
	{"timestamp", `'294276-12-31 23:59:59.999999'`, `"+294276-12-31T23:59:59.999999Z"`},
	{"timestamptz(3)", `'0044-03-15 12:00:00.5+00 BC'`, `"-0043-03-15T12:00:00.500Z"`},
	{"timestamptz", `'-infinity'`, `"-infinity"`},
	{"time", `'24:00'`, `"24:00:00Z"`},
	{"timetz", `'01:02:03+00:00:30'`, `"01:02:03+00:00:30"`},
	{"interval", `'-1 year +3 days -04:05:06.7'`, `"P-1Y0M3DT-4H-5M-6.7S"`},
	{"int[]", `'{{{1,NULL},{3,4}}}'`, `[[[1,null],[3,4]]]`},
	{"int[]", `'[-1:0][5:5]={{1},{2}}'`, `"[-1:0][5:5]={{1},{2}}"`},
	{"float8[]", `'{NaN,-0,1e300,NULL}'`, `["NaN",-0,1e+300,null]`},
	{"text[]", `array['', 'NULL', NULL, E'a"b\\', '{,}', '🦔']`, `["","NULL",null,"a\"b\\","{,}","\uD83E\uDD94"]`},
	{"numrange", `'[NaN,NaN]'`, `"[NaN,NaN]"`},
	{"tstzrange[]", `'{"[-infinity,2026-01-01 00:00Z)",empty}'`, `["[-infinity,\"2026-01-01 00:00:00+00\")","empty"]`},
	{"bit(12)", `B'000000000001'`, `"AQ=="`},
	{"varbit", `B'0000'`, `"0000"`},
	{"bytea[]", `array['\xdead'::bytea, '', NULL]`, `["3q0=","",null]`},
	{"xml", `'<a x="1">é</a>'`, `"<a x=\"1\">é</a>"`},
	{"money", `-1234567.89`, ""},
	{"name", `'ünï'`, `"ünï"`},
	{"pg_lsn", `'16/B374D848'`, `"16/B374D848"`},
	{"xid8", `'18446744073709551615'`, `"18446744073709551615"`},
	{"int2vector", `'1 2'`, `"1 2"`},
	{"jsonpath", `'$.a[*]'`, `"$.\"a\"[*]"`},
	{"box[]", `'{(1,1),(0,0);(2,2),(1,1)}'`, ""},
	{"path", `'((0,0),(1,NaN))'`, `{"wkb":"AQIAAAACAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAPA/AAAAAAAA+H8=","srid":null,"extensions":{"type":"path","closed":"true"}}`},
	{"point", `'(-0,1e-300)'`, `{"x":-0,"y":1e-300,"wkb":"AQEAAAAAAAAAAAAAgFnz+MIfbqUB","srid":null}`},
	{"polygon", `(SELECT polygon(100, '<(0,0),1>'))`, ""},
	{"mood", `'very "happy"'`, `"very \"happy\""`},
	{"mood[]", `'{ok,NULL,"very \"happy\""}'`, `["ok",null,"very \"happy\""]`},
	{"cents", `'NaN'`, `"NAN"`},
	{"cents[]", `'{1.5,NULL,NaN}'`, `["1.50",null,"NAN"]`},
	{"flags", `'{t,f}'`, `[true,false]`},
	{"flags[]", `array['{t,NULL}'::flags]`, `["{t,NULL}"]`},
	{"moment", `'2026-11-21 13:14:15Z'`, `"2026-11-21T13:14:15.000Z"`},
	{"pair", `row(1, 'x,"y')`, `"(1,\"x,\"\"y\")"`},
	{"pair[]", `array[row(1, NULL)::pair]`, `["(1,)"]`},
	{"floatrange", `'[1.5,2.5]'`, `"[1.5,2.5]"`},
	{"floatmultirange", `'{[1,2],[5,6]}'`, `"{[1,2],[5,6]}"`},
	{"information_schema.yes_or_no", `'YES'`, `"YES"`},
}

const oddTypes = `
	CREATE TYPE mood AS ENUM ('ok', 'very "happy"'); CREATE DOMAIN cents AS numeric(10,2); CREATE DOMAIN cent2 AS cents;
	CREATE DOMAIN flags AS bool[]; CREATE DOMAIN moment AS timestamptz(3); CREATE TYPE pair AS (a int, b text);
	CREATE TYPE floatrange AS RANGE (subtype = float8);`

// The same value gives the same bytes, in the stream and in a snapshot, and these bytes are what was promised.
func TestEveryTypeIsTheSameInStreamAndChunk(t *testing.T) {
	d := newDatabase(t, oddTypes)
	for i, o := range odd {
		d.exec(fmt.Sprintf("CREATE TABLE o%d (id int PRIMARY KEY, v %s)", i, o.typ))
	}
	src, tables := d.oddSource(len(odd))
	st := stream(t, src, 0)
	for i, o := range odd {
		d.exec(fmt.Sprintf("INSERT INTO o%d VALUES (1, %s), (2, NULL)", i, o.value))
	}
	d.compareRows(src, st, tables, func(table string, streamed string) {
		var i int
		_, err := fmt.Sscanf(table, "public.o%d", &i)
		require.NoError(t, err)
		if o := odd[i]; o.want != "" && strings.HasPrefix(streamed, `{"id":1,`) {
			require.Equal(t, `{"id":1,"v":`+o.want+`}`, streamed, o.typ)
		}
	})
}

// Types of extensions have no fixed OID: what is known of is written by its form, what is not as text.
func TestTypesOfExtensions(t *testing.T) {
	d := newDatabase(t)
	var have int
	require.NoError(t, d.conn.QueryRow(t.Context(), `SELECT count(*) FROM pg_available_extensions WHERE name IN ('hstore', 'citext', 'ltree')`).Scan(&have))
	if have < 3 {
		t.Skip("the server has no hstore, citext or ltree")
	}
	d.exec(`CREATE EXTENSION hstore; CREATE EXTENSION citext; CREATE EXTENSION ltree;
		CREATE TABLE o0 (id int PRIMARY KEY, h hstore, hs hstore[], c citext, cs citext[], l ltree, q lquery)`)
	src, tables := d.oddSource(1)
	st := stream(t, src, 0)
	many := make([]string, 40) // more than Java's smallest table
	for i := range many {
		many[i] = fmt.Sprintf("key%d=>%d", i, i)
	}
	d.exec(`INSERT INTO o0 VALUES (1, 'a=>1, "b c"=>"q\"\\x", n=>NULL, "🦔"=>"NULL", ""=>""', array['a=>1'::hstore, '', NULL], 'CaSe', '{Aa,NULL}', 'a.b', '*.b'),
		(2, '` + strings.Join(many, ",") + `', '{}', '', '{}', '', '*')`)
	d.compareRows(src, st, tables, func(_, streamed string) {
		var row struct {
			H  string
			Hs []*string
		}
		require.NoError(t, json.Unmarshal([]byte(streamed), &row))
		pairs := map[string]*string{}
		require.NoError(t, json.Unmarshal([]byte(row.H), &pairs))
		if !strings.HasPrefix(streamed, `{"id":1,`) {
			require.Len(t, pairs, len(many))
			require.Equal(t, "17", *pairs["key17"])
			return
		}
		require.Len(t, pairs, 5)
		require.Nil(t, pairs["n"])
		require.Equal(t, `q"\x`, *pairs["b c"])
		require.Equal(t, "NULL", *pairs["🦔"])
		require.Equal(t, []any{`{"a":"1"}`, "{}"}, []any{*row.Hs[0], *row.Hs[1]})
		require.Contains(t, streamed, `"c":"CaSe","cs":["Aa",null],"l":"a.b","q":"*.b"`)
	})
}

// A type may be younger than the slot, be made in the transaction that uses it, and be gone when its rows are read.
func TestTypesThatComeAndGo(t *testing.T) {
	d := newDatabase(t, `CREATE PUBLICATION shelfwire FOR ALL TABLES WITH (publish_via_partition_root = true)`)
	cfg := d.config()
	src := d.open(cfg)
	_, err := src.EnsureSlot(t.Context())
	require.NoError(t, err)
	d.exec(`BEGIN; CREATE DOMAIN cents AS numeric(10,2); CREATE TABLE a (id int PRIMARY KEY, v cents); INSERT INTO a VALUES (1, 5); COMMIT`)
	d.exec(`CREATE DOMAIN gone AS numeric(10,2); CREATE TABLE b (id int PRIMARY KEY, v gone); INSERT INTO b VALUES (1, 5)`)
	d.exec(`DROP TABLE b; DROP DOMAIN gone`)
	st := stream(t, src, 0)
	require.Equal(t, []string{`{"id":1,"v":"5.00"}`, `{"id":1,"v":"5.00"}`}, d.after(st))
	d.exec(`ALTER TABLE a ALTER v TYPE float8; INSERT INTO a VALUES (2, 6)`)
	d.exec(`CREATE DOMAIN number AS int; ALTER TABLE a ALTER v TYPE number; INSERT INTO a VALUES (3, 7)`)
	require.Equal(t, []string{`{"id":2,"v":6}`, `{"id":3,"v":7}`}, d.after(st))
}

// A database that has no encoding may hold any bytes. JSON cannot; they come as lone surrogates, so that two values
// stay two.
func TestBytesThatAreNoText(t *testing.T) {
	server := newDatabase(t)
	name := server.text("SELECT current_database()") + "_ascii"
	server.exec(`CREATE DATABASE ` + name + ` ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'`)
	t.Cleanup(func() { server.exec("DROP DATABASE " + name + " WITH (FORCE)") })
	url := embeddedtest.Postgres(t).URL(name)
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	d := &database{t: t, url: url, conn: conn}
	d.exec(`CREATE TABLE o0 (id int PRIMARY KEY, v text)`)
	src, tables := d.oddSource(1)
	st := stream(t, src, 0)
	t.Cleanup(func() {
		_ = st.Close(context.WithoutCancel(t.Context()))
		server.exec(`SELECT pg_drop_replication_slot('` + name + `')`)
	})
	d.exec(`INSERT INTO o0 VALUES (1, convert_from('\x4de46e6e65ff20c3a9', 'SQL_ASCII'))`)
	d.compareRows(src, st, tables, func(_, streamed string) {
		require.Contains(t, streamed, `"v":"M\uDCE4nne\uDCFF é"`) // a decoder would see U+FFFD
	})
}

// oddSource publishes the tables o0 to on.
func (d *database) oddSource(n int) (src *postgres.Source, tables []string) {
	d.t.Helper()
	for i := range n {
		tables = append(tables, fmt.Sprintf("public.o%d", i))
	}
	return d.capture(tables...), tables
}

// compareRows reads all new rows from the stream, and the tables by chunks, and holds the one against the other.
func (d *database) compareRows(src *postgres.Source, st *postgres.Stream, tables []string, check func(table, streamed string)) {
	d.t.Helper()
	by := map[string][]string{}
	d.each(st, func(c *change.Change) {
		by[c.Relation.Table()] = append(by[c.Relation.Table()], afterOf(d.t, c))
	})
	for _, table := range tables {
		chunk, err := src.ReadChunk(d.t.Context(), change.ChunkQuery{Selection: change.Selection{Table: table}, Limit: 10})
		require.NoError(d.t, err)
		require.NotEmpty(d.t, by[table])
		require.Len(d.t, by[table], len(chunk.Rows))
		for i, row := range chunk.Rows {
			require.Equal(d.t, afterOf(d.t, &change.Change{Op: change.Read, Relation: chunk.Relation, After: row}), by[table][i], table)
			check(table, by[table][i])
		}
	}
}

func (d *database) after(st *postgres.Stream) (rows []string) {
	d.t.Helper()
	d.each(st, func(c *change.Change) { rows = append(rows, afterOf(d.t, c)) })
	return rows
}

// each reads the stream up to now.
func (d *database) each(st *postgres.Stream, f func(*change.Change)) {
	d.t.Helper()
	d.exec("SELECT pg_logical_emit_message(true, 'end', 'here')")
	for {
		ev, err := st.Next(d.t.Context())
		require.NoError(d.t, err)
		switch {
		case ev.Kind == change.EventChange:
			f(ev.Change)
		case ev.Kind == change.EventMessage && ev.Message.Prefix == "end":
			return
		}
	}
}

// afterOf is the new row in the envelope.
func afterOf(t *testing.T, c *change.Change) string {
	t.Helper()
	raw := change.AppendEnvelope(nil, c, &change.Envelope{})
	var e struct{ After json.RawMessage }
	require.NoError(t, json.Unmarshal(raw, &e), "%s", raw)
	return string(e.After)
}
