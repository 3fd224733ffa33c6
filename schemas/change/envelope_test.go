package change

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestValuesHaveTheirJSONForm(t *testing.T) {
	for _, c := range []struct {
		oid  uint32
		mod  int32
		text string
		want string
	}{
		{oidInt8, -1, "-9223372036854775808", `-9223372036854775808`},
		{oidBool, -1, "t", `true`},
		{oidBool, -1, "f", `false`},
		{oidFloat8, -1, "1.7976931348623157e+308", `1.7976931348623157e+308`},
		{oidFloat8, -1, "-0", `-0`},
		{oidFloat4, -1, "-Infinity", `"-Infinity"`},
		{oidNumeric, -1, "1.5000", `"1.5000"`},
		{oidNumeric, -1, "NaN", `"NAN"`},
		{oidMoney, -1, "-$1,234,567.89", `"-1234567.89"`},
		{oidMoney, -1, "1.234,50 €", `"1.234,50 €"`},
		{oidBytea, -1, `\xdeadbeef`, `"3q2+7w=="`},
		{oidBit, 1, "1", `true`},
		{oidBit, 12, "101010101010", `"qgo="`},
		{oidBit, 8, "00000000", `""`},
		{1562, -1, "0000", `"0000"`},
		{oidDate, -1, "2026-11-21", `"2026-11-21Z"`},
		{oidDate, -1, "0044-03-15 BC", `"-0043-03-15Z"`},
		{oidDate, -1, "0001-12-31 BC", `"0000-12-31Z"`},
		{oidDate, -1, "5874897-12-31", `"+5874897-12-31Z"`},
		{oidDate, -1, "-infinity", `"-infinity"`},
		{oidTimestamp, -1, "2026-11-21 13:14:15.1", `"2026-11-21T13:14:15.1Z"`},
		{oidTimestamp, -1, "0044-03-15 12:00:00.5 BC", `"-0043-03-15T12:00:00.5Z"`},
		{oidTimestamptz, -1, "2026-11-21 13:14:15+00", `"2026-11-21T13:14:15.000000Z"`},
		{oidTimestamptz, 3, "2026-11-21 13:14:15.1+00", `"2026-11-21T13:14:15.100Z"`},
		{oidTimestamptz, 0, "2026-11-21 13:14:15+00", `"2026-11-21T13:14:15Z"`},
		{oidTimestamptz, -1, "infinity", `"infinity"`},
		{oidTime, -1, "24:00:00", `"24:00:00Z"`},
		{oidTimetz, -1, "13:14:15.123456+02", `"13:14:15.123456+02:00"`},
		{oidTimetz, -1, "00:00:00+14", `"00:00:00+14:00"`},
		{oidTimetz, -1, "24:00:00+00", `"24:00:00Z"`},
		{oidTimetz, -1, "24:00:00-12", `"24:00:00-12:00"`},
		{oidTimetz, -1, "01:02:03+00:00:30", `"01:02:03+00:00:30"`},
		{oidTimetz, -1, "23:59:59.999-03:30", `"23:59:59.999-03:30"`},
		{oidInterval, -1, "1 year 2 mons 3 days 04:05:06.789012", `"P1Y2M3DT4H5M6.789012S"`},
		{oidInterval, -1, "-1 years -2 mons -3 days -04:05:06.789", `"P-1Y-2M-3DT-4H-5M-6.789S"`},
		{oidInterval, -1, "1 year -3 days +04:00:00", `"P1Y0M-3DT4H0M0S"`},
		{oidInterval, -1, "00:00:00.000001", `"P0Y0M0DT0H0M0.000001S"`},
		{oidInterval, -1, "00:00:00", `"P0Y0M0DT0H0M0S"`},
		{oidInterval, -1, "infinity", `"infinity"`},
		{1009, -1, `{a,NULL,"NULL","",nu}`, `["a",null,"NULL","","nu"]`},
		{1009, -1, `{"a,b","q\"x","back\\slash","{brace}"}`, `["a,b","q\"x","back\\slash","{brace}"]`},
		{1009, -1, `{{a,b},{c,NULL}}`, `[["a","b"],["c",null]]`},
		{1007, -1, `{}`, `[]`},
		{1007, -1, `[0:2]={1,2,3}`, `"[0:2]={1,2,3}"`},
		{1231, -1, `{NULL,NaN}`, `[null,"NAN"]`},
		{1001, -1, `{"\\xdead"}`, `["3q0="]`},
		{1182, -1, `{infinity,2026-11-21}`, `["infinity","2026-11-21Z"]`},
		{1020, -1, `{(1,1),(0,0);NULL}`, `[{"wkb":"AQMAAAABAAAABQAAAAAAAAAAAPA/AAAAAAAA8D8AAAAAAADwPwAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA8D8AAAAAAADwPwAAAAAAAPA/","srid":null,"extensions":{"type":"box"}},null]`},
		{oidCircle, -1, `<(0,-0),2.5>`, `{"center":{"x":0,"y":-0,"wkb":"AQEAAAAAAAAAAAAAAAAAAAAAAACA","srid":null},"radius":2.5}`},
		{oidLine, -1, `{1,-2,Infinity}`, `{"a":1,"b":-2,"c":"Infinity"}`},
		{oidPoint, -1, `(1)`, `"(1)"`},
		{oidLseg, -1, `[(0,0),(1,1),(2,2)]`, `"[(0,0),(1,1),(2,2)]"`},
		{oidMoney, -1, "$1,5", `"$1,5"`},
		{oidMoney, -1, "1.234.567", `"1.234.567"`},
		{oidMoney, -1, "$12,34,567.80", `"$12,34,567.80"`},
		{99999, -1, "(1,\"x\")\x01", `"(1,\"x\")\u0001"`},
		{25, -1, "e\u0301\U0001F994", "\"e\u0301\\uD83E\\uDD94\""},
		{25, -1, "<é\u2028>\xff", "\"<é\u2028>\\uDCFF\""},
	} {
		got := string(appendText(nil, BuiltIn(c.oid, c.mod), []byte(c.text)))
		require.Equal(t, c.want, got, c.text)
		require.True(t, json.Valid([]byte(got)), got)
	}
}

// FuzzAppendText: whatever a value looks like, the record stays JSON, and text comes back as it was.
// A timetz keeps its offset, but in the connector's form, which records of the mirror have, keys among them.
func TestTimetz(t *testing.T) {
	for text, want := range map[string]string{
		"13:14:15.123456+02": `"11:14:15.123456Z"`, "00:00:00+14": `"10:00:00Z"`, "24:00:00+00": `"24:00:00Z"`,
		"24:00:00-12": `"12:00:00Z"`, "01:02:03+00:00:30": `"01:01:33Z"`, "23:59:59.999-03:30": `"03:29:59.999Z"`,
	} {
		require.Equal(t, want, string(appendScalar(nil, formTimetzUTC, -1, []byte(text))))
	}
	rel := &Relation{Columns: []Column{{Name: "z", TypeOID: oidTimetz, TypeMod: -1}, {Name: "zs", TypeOID: 1270, TypeMod: -1}}, PrimaryKey: []string{"z"}}
	require.True(t, rel.OwnForm())
	c := &Change{Op: Create, Relation: rel, After: Tuple{text("13:14:15+02"), text("{01:00:00-03,NULL}")}}
	require.Contains(t, string(AppendEnvelope(nil, c, &Envelope{})), `"after":{"z":"13:14:15+02:00","zs":["01:00:00-03:00",null]}`)
	require.Contains(t, string(AppendEnvelope(nil, c, &Envelope{UTC: true})), `"after":{"z":"11:14:15Z","zs":["04:00:00Z",null]}`)
	key, ok := AppendKey(nil, rel, c.After)
	require.True(t, ok)
	require.JSONEq(t, `{"z":"13:14:15+02:00"}`, string(key))
	key, ok = AppendMessageKey(nil, rel, c.After)
	require.True(t, ok)
	require.JSONEq(t, `{"z":"11:14:15Z"}`, string(key))
	require.False(t, (&Relation{Columns: []Column{{Name: "z", TypeOID: 25}}}).OwnForm())
}

func FuzzAppendText(f *testing.F) {
	for _, s := range []string{"1", "-0", "01", "1e", "{a,{b}}", `{"`, `{"\`, "2026-11-21 BC", "0044-03-15 12:00:00+00 BC", "1 year \"", "13:14:15\"+02", `\xZZ`, "$1.2.3", "--:::", "-", "{{{{{{{{{{"} {
		f.Add(uint32(oidInt4), int32(-1), s)
		f.Add(uint32(1115), int32(3), s)
	}
	oids := []uint32{16, 17, 20, 21, 23, 25, 26, 700, 701, 790, 1082, 1083, 1114, 1184, 1186, 1266, 1560, 1700, 1000, 1001, 1009, 1115, 1185, 1187, 1231, 1270, 1561, 600}
	f.Fuzz(func(t *testing.T, oid uint32, mod int32, text string) {
		if text == "" {
			return
		}
		for _, o := range append(oids, oid) {
			out := appendText(nil, BuiltIn(o, min(mod, 6)), []byte(text))
			require.True(t, json.Valid(out), "%d %q: %s", o, text, out)
		}
		var back string
		require.NoError(t, json.Unmarshal(appendString(nil, []byte(text)), &back))
		require.Equal(t, string([]rune(text)), back, "each byte that is no UTF-8 is one U+FFFD")
	})
}

func relation() *Relation {
	return &Relation{
		OID: 1, Schema: "public", Name: "p", ReplicaIdentity: 'd', PrimaryKey: []string{"z", "id"},
		Columns: []Column{{Name: "id", TypeOID: oidInt8, TypeMod: -1, Identity: true}, {Name: `a"b`, TypeOID: 25, TypeMod: -1}, {Name: "z", TypeOID: 25, TypeMod: -1, Identity: true}, {Name: "arr", TypeOID: 1009, TypeMod: -1}, {Name: "by", TypeOID: oidBytea, TypeMod: -1}},
	}
}

func text(s string) Value { return Value{Kind: Text, Data: []byte(s)} }

func TestEnvelope(t *testing.T) {
	rel := relation()
	at := time.UnixMicro(1795249358462477)
	c := Change{
		Op: Update, Relation: rel, LSN: 4060361056, Position: Position{CommitLSN: 4060361500, Ordinal: 7},
		Before: Tuple{text("1"), {}, text("k"), {}, {}},
		After:  Tuple{text("2"), {Kind: Null}, text(""), {Kind: Unchanged}, {Kind: Unchanged}},
	}
	e := Envelope{Version: "1.0", Name: "catalog", Database: "shop", Transaction: &Transaction{XID: 1221947, CommitLSN: 4060361500, CommitTime: at}, At: at.Add(time.Second + 9)}
	//nolint:testifylint // the bytes are the promise: the order of fields and each number as it was written
	require.Equal(t, `{"before":{"id":1,"z":"k"},"after":{"id":2,"a\"b":null,"z":"","arr":["__debezium_unavailable_value"],"by":"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ=="},`+
		`"source":{"version":"1.0","connector":"postgresql","name":"catalog","ts_ms":1795249358462,"snapshot":"false","db":"shop","sequence":"[null,\"4060361056\"]",`+
		`"ts_us":1795249358462477,"ts_ns":1795249358462477000,"schema":"public","table":"p","txId":1221947,"lsn":4060361056,"xmin":null,"origin":null,"origin_lsn":null},`+
		`"transaction":null,"op":"u","ts_ms":1795249359462,"ts_us":1795249359462477,"ts_ns":1795249359462477009}`, string(AppendEnvelope(nil, &c, &e)))

	e.LastCommit, e.TableOrdinal = 17, 3
	require.Contains(t, string(AppendEnvelope(nil, &c, &e)), `"sequence":"[\"17\",\"4060361056\"]"`)
	require.Contains(t, string(AppendEnvelope(nil, &c, &e)), `"transaction":{"id":"1221947:4060361500","total_order":7,"data_collection_order":3}`)

	read := Change{Op: Read, Relation: rel, After: c.After}
	out := AppendEnvelope(nil, &read, &Envelope{At: at, ReadAt: at})
	require.True(t, json.Valid(out))
	require.Contains(t, string(out), `"before":null,`)
	require.Contains(t, string(out), `"snapshot":"incremental"`)
	require.Contains(t, string(out), `"txId":null`)
}

func TestKeyAndImage(t *testing.T) {
	rel := relation()
	key, ok := AppendKey([]byte("x"), rel, Tuple{text("1"), {}, text("k"), {}, {}})
	require.True(t, ok)
	require.Equal(t, `x{"z":"k","id":1}`, string(key), "in the order of the key, not of the columns")
	key, ok = AppendKey([]byte("x"), rel, Tuple{text("1"), {}, {}, {}, {}})
	require.False(t, ok)
	require.Equal(t, "x", string(key))
	_, ok = AppendKey(nil, rel, nil)
	require.False(t, ok)

	image := Image(rel, Tuple{text("1"), {Kind: Null}, {}, {Kind: Unchanged}, text("")})
	require.Len(t, image, 3)
	require.Equal(t, "1", *image["id"])
	require.Nil(t, image[`a"b`])
	require.Contains(t, image, `a"b`)
	require.Empty(t, *image["by"])
	require.Nil(t, Image(rel, nil))
}

// TestArraysComeBack writes arrays as Postgres does and reads the JSON.
func TestArraysComeBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		items := rapid.SliceOf(rapid.StringMatching(`[a-zN,{}" \\é]{0,6}`)).Draw(t, "items")
		lit := "{"
		for i, s := range items {
			if i > 0 {
				lit += ","
			}
			lit += `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
		}
		var back []string
		if err := json.Unmarshal(appendText(nil, BuiltIn(1009, -1), []byte(lit+"}")), &back); err != nil {
			t.Fatal(err)
		}
		if len(items) > 0 {
			require.Equal(t, items, back)
		}
	})
}

// TestHstore gives the order of a HashMap of Java, and keys of a table that has grown.
func TestHstore(t *testing.T) {
	hstore := Form{OID: FormHstore, Mod: -1}
	for text, want := range map[string]string{
		``:                                   `"{}"`,
		`"a"=>"1", "n"=>NULL, "b c"=>"q\"x"`: `"{\"a\":\"1\",\"b c\":\"q\\\"x\",\"n\":null}"`,
		`"Aa"=>"1", "BB"=>"2"`:               `"{\"Aa\":\"1\",\"BB\":\"2\"}"`, // one hash: in the order of insertion
		`"🦔"=>"\\ é"`:                        `"{\"\uD83E\uDD94\":\"\\\\ é\"}"`,
		`"a"=>`:                              `"\"a\"=>"`,
		`a=>1`:                               `"a=>1"`,
	} {
		got := string(appendText(nil, hstore, []byte(text)))
		require.Equal(t, want, got, text)
		require.True(t, json.Valid([]byte(got)))
	}
	require.EqualValues(t, 2112, javaHash([]byte("BB")), "as String.hashCode")
	require.EqualValues(t, 33825, javaHash([]byte(`\"\"a`)))
}

func FuzzHstore(f *testing.F) {
	for _, s := range []string{`"a"=>"1", "n"=>NULL`, `"`, `"\`, `"a"=>"`, `"a"=>NULL, `, `"a"=>"b"x`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		out := appendText(nil, Form{OID: FormHstore}, []byte(text))
		require.True(t, json.Valid(out), "%q: %s", text, out)
	})
}

// TestPlainCountsBytesThatNeedNoEscape holds the count by eight bytes against one by one.
func TestPlainCountsBytesThatNeedNoEscape(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.SliceOfN(rapid.OneOf(rapid.ByteRange('a', 'z'), rapid.ByteRange(0, 255)), 0, 40).Draw(t, "text")
		n := 0
		for n < len(s) && s[n] >= ' ' && s[n] != '"' && s[n] != '\\' && s[n] < 0x80 {
			n++
		}
		require.Equal(t, n, plain(s))
	})
}

// TestBytesComeBack reads the bytes of a text that is no UTF-8 out of its JSON.
func TestBytesComeBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.SliceOfN(rapid.OneOf(rapid.Byte(), rapid.SampledFrom([]byte("é\xed\xa0\x80"))), 0, 20).Draw(t, "bytes")
		var back []byte
		out := appendString(nil, s)
		require.True(t, json.Valid(out))
		for inside := out[1 : len(out)-1]; len(inside) > 0; {
			if len(inside) >= 6 && string(inside[:4]) == `\uDC` && inside[4] >= '8' {
				b, err := strconv.ParseUint(string(inside[4:6]), 16, 8)
				require.NoError(t, err)
				back, inside = append(back, byte(b)), inside[6:]
				continue
			}
			n := 1
			if inside[0] == '\\' {
				for n = 2; n < len(inside) && !json.Valid(append(append([]byte{'"'}, inside[:n]...), '"')); n++ {
				}
			}
			var text string
			require.NoError(t, json.Unmarshal(append(append([]byte{'"'}, surrogates(inside, &n)...), '"'), &text))
			if n == 1 && inside[0] >= 0x80 {
				text = string(inside[:1])
			}
			back, inside = append(back, text...), inside[n:]
		}
		require.Equal(t, append([]byte{}, s...), append([]byte{}, back...))
	})
}

// surrogates takes one escape or, of a character beyond U+FFFF, two off the front.
func surrogates(inside []byte, n *int) []byte {
	if len(inside) >= 12 && inside[0] == '\\' && inside[1] == 'u' && inside[2] == 'D' && inside[3] >= '8' && inside[3] < 'C' {
		*n = 12
	}
	return inside[:*n]
}

// TestNoAllocationForARow encodes a row of every type that has a form, and its key.
func TestNoAllocationForARow(t *testing.T) {
	rel := &Relation{Schema: "public", Name: "p", PrimaryKey: []string{"c0"}}
	var row Tuple
	for i, c := range []struct {
		oid  uint32
		text string
	}{
		{oidInt8, "12"},
		{25, "a \"text\" \U0001F994"},
		{oidBool, "t"},
		{oidFloat8, "1.5"},
		{oidNumeric, "12.50"},
		{oidMoney, "$1,234.50"},
		{oidBytea, `\xdeadbeef`},
		{oidBit, "101"},
		{oidDate, "0044-03-15 BC"},
		{oidTime, "13:14:15"},
		{oidTimetz, "13:14:15+05:30"},
		{oidTimestamp, "2026-11-21 13:14:15"},
		{oidTimestamptz, "2026-11-21 13:14:15+00"},
		{oidInterval, "1 year -3 days +04:00:00"},
		{oidPoint, "(1,2)"},
		{oidPolygon, "((0,0),(1,1),(2,0))"},
		{oidCircle, "<(0,0),1>"},
		{1009, `{a,"b \"c",NULL}`},
		{1231, "{1.5,NaN}"},
	} {
		rel.Columns = append(rel.Columns, Column{Name: "c" + strconv.Itoa(i), TypeOID: c.oid, TypeMod: -1})
		row = append(row, text(c.text))
	}
	rel.Columns = append(rel.Columns, Column{Name: "h", TypeOID: 99999, TypeMod: -1, Form: Form{OID: FormHstore}})
	row = append(row, text(`"a"=>"1", "b"=>NULL`))
	e := Envelope{Version: "1", Name: "n", Database: "d", Transaction: &Transaction{XID: 1, CommitTime: time.UnixMicro(1)}, TableOrdinal: 1, At: time.Now()}
	c := Change{Op: Update, Relation: rel, Before: row, After: row}
	buf, key := make([]byte, 0, 1<<14), make([]byte, 0, 64)
	require.Zero(t, testing.AllocsPerRun(100, func() {
		buf = AppendEnvelope(buf[:0], &c, &e)
		key, _ = AppendKey(key[:0], rel, row)
	}))
	require.True(t, json.Valid(buf))
}

// TestEnvelopeForgetsTheTransactionBefore changes each thing that the source block is made of.
func TestEnvelopeForgetsTheTransactionBefore(t *testing.T) {
	rel := relation()
	c := Change{Op: Create, Relation: rel, LSN: 5, After: Tuple{text("1"), {}, text("k"), {}, {}}}
	kept := &Envelope{Version: "1", Name: "n", Database: "d"}
	rapid.Check(t, func(t *rapid.T) {
		now := time.UnixMicro(rapid.Int64Range(-5, 1<<50).Draw(t, "at"))
		kept.LastCommit, kept.At, kept.ReadAt = LSN(rapid.Uint64Range(0, 2).Draw(t, "last")), now, now
		kept.Name = rapid.SampledFrom([]string{"n", "m"}).Draw(t, "name")
		kept.Transaction, c.Op = nil, Read
		if rapid.Bool().Draw(t, "tx") {
			kept.Transaction, c.Op = &Transaction{XID: XID(rapid.Uint64Range(1, 2).Draw(t, "xid")), CommitLSN: LSN(rapid.Uint64Range(1, 2).Draw(t, "lsn")), CommitTime: now}, Create
		}
		fresh := &Envelope{
			Version: kept.Version, Name: kept.Name, Database: kept.Database, Transaction: kept.Transaction, LastCommit: kept.LastCommit,
			At: kept.At, ReadAt: kept.ReadAt,
		}
		require.Equal(t, string(AppendEnvelope(nil, &c, fresh)), string(AppendEnvelope(nil, &c, kept)))
	})
}

// TestMessageKey: a key that every record of the table can have.
func TestMessageKey(t *testing.T) {
	rel := relation()
	row := Tuple{text("1"), text("x"), text("k"), {}, {}}
	key, _ := AppendMessageKey(nil, rel, row)
	primary, _ := AppendKey(nil, rel, row)
	require.Equal(t, primary, key)
	for _, c := range []struct {
		identity, primary []string
		want              string
	}{
		{[]string{"z"}, []string{"id"}, `{"z":"k"}`},      // old rows lack id
		{[]string{"id", "z"}, []string{"z"}, `{"z":"k"}`}, // they have all of it
		{[]string{"id", "z"}, nil, `{"id":1,"z":"k"}`},    // no primary key
		{[]string{"id"}, []string{"id", "z"}, `{"id":1}`}, // only part of it
	} {
		rel := &Relation{Columns: slices.Clone(relation().Columns), ReplicaIdentity: 'i', PrimaryKey: c.primary}
		for i := range rel.Columns {
			rel.Columns[i].Identity = slices.Contains(c.identity, rel.Columns[i].Name)
		}
		key, ok := AppendMessageKey(nil, rel, row)
		require.True(t, ok)
		require.Equal(t, c.want, string(key))
	}
	_, ok := AppendMessageKey(nil, &Relation{Columns: relation().Columns, ReplicaIdentity: 'f'}, row)
	require.False(t, ok)
}
