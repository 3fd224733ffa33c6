package postgres

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/schemas/change"
)

// corpus holds the pgoutput messages of a real session, one in a line, in hex: every kind of message, with
// every kind of tuple. go test -run TestRecordCorpus -record writes it anew.
var corpus = filepath.Join("testdata", "pgoutput.hex")

// padding is what a ~ stands for in a recording.
var padding = hex.EncodeToString(bytes.Repeat([]byte("x"), 1000))

var record = flag.Bool("record", false, "write the corpus of the decoder anew")

const corpusSQL = `
	CREATE TABLE p (id int PRIMARY KEY, t text, n numeric, big text);
	ALTER TABLE p ALTER big SET STORAGE external;
	CREATE TABLE f (a int, "B c" text, PRIMARY KEY ("B c", a)); ALTER TABLE f REPLICA IDENTITY FULL;
	CREATE TABLE e (x mood);
	CREATE PUBLICATION shelfwire FOR ALL TABLES WITH (publish_via_partition_root = true);`

func TestRecordCorpus(t *testing.T) {
	if !*record {
		t.Skip("writes the corpus only when asked to")
	}
	url := embeddedtest.NewDatabase(t, embeddedtest.Postgres(t))
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer func() { _ = conn.Close(t.Context()) }()
	run := func(sql string) {
		t.Helper()
		_, err := conn.PgConn().Exec(t.Context(), sql).ReadAll()
		require.NoError(t, err)
	}
	run(`CREATE TYPE mood AS ENUM ('ok');` + corpusSQL)
	src, err := Open(t.Context(), Config{URL: url, Slot: "corpus"})
	require.NoError(t, err)
	defer src.Close()
	_, err = src.EnsureSlot(t.Context())
	require.NoError(t, err)
	st, err := src.Stream(t.Context(), 0)
	require.NoError(t, err)
	defer func() { _ = st.Close(t.Context()) }()
	run(`INSERT INTO p VALUES (1, 'é"', 1.50, repeat('x', 3000)), (2, NULL, 'NaN', '')`)
	run(`UPDATE p SET t = 'y' WHERE id = 1`)
	run(`UPDATE p SET id = 3 WHERE id = 1`)
	run(`DELETE FROM p WHERE id = 3`)
	run(`BEGIN; INSERT INTO f VALUES (1, 'a'); UPDATE f SET a = 2; DELETE FROM f; SELECT pg_logical_emit_message(true, 'pre', 'fix'); TRUNCATE p, f; COMMIT`)
	run(`INSERT INTO e VALUES ('ok'); SELECT pg_logical_emit_message(false, '', '\x00'::bytea)`)
	run(`SELECT pg_logical_emit_message(true, 'end', '')`)

	recordTo(t, st, corpus)
}

// recordTo writes the messages of a stream up to the logical message "end" into a file.
func recordTo(t *testing.T, st *Stream, path string) {
	t.Helper()
	var lines strings.Builder
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for end := false; !end; {
		typ, body, err := st.wire.next()
		require.NoError(t, err)
		if typ == 0 {
			require.NoError(t, st.wait(ctx, time.Now().Add(time.Minute)))
			continue
		}
		if typ == 'd' && body[0] == 'w' {
			lines.WriteString(strings.ReplaceAll(hex.EncodeToString(body[25:]), padding, "~") + "\n")
			end = bytes.Contains(body, []byte("end\x00"))
		}
	}
	require.NoError(t, os.MkdirAll("testdata", 0o755))
	require.NoError(t, os.WriteFile(path, []byte(lines.String()), 0o644))
}

func readCorpus(tb testing.TB) [][]byte {
	tb.Helper()
	return readRecording(tb, corpus)
}

func readRecording(tb testing.TB, path string) [][]byte {
	tb.Helper()
	text, err := os.ReadFile(path)
	require.NoError(tb, err)
	var all [][]byte
	for line := range strings.Lines(string(text)) {
		b, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(line), "~", padding))
		require.NoError(tb, err)
		all = append(all, b)
	}
	return all
}

// TestDecodeAgreesWithPglogrepl holds both decoders against the same real messages.
func TestDecodeAgreesWithPglogrepl(t *testing.T) {
	d := newDecoder()
	var m message
	seen := map[byte]int{}
	for _, b := range readCorpus(t) {
		require.NoError(t, d.decode(b, &m))
		theirs, err := pglogrepl.Parse(b)
		require.NoError(t, err)
		seen[m.kind]++
		agree(t, theirs, &m)
	}
	for _, kind := range []byte{msgBegin, msgCommit, msgRelation, msgInsert, msgUpdate, msgDelete, msgTruncate, msgMessage, msgType} {
		require.NotZero(t, seen[kind], "the corpus has no %q", kind)
	}
}

func agree(t *testing.T, theirs pglogrepl.Message, m *message) {
	t.Helper()
	switch x := theirs.(type) {
	case *pglogrepl.BeginMessage:
		require.Equal(t, x.FinalLSN, pglogrepl.LSN(m.lsn))
		require.Equal(t, x.Xid, m.xid)
		sameTime(t, x.CommitTime, m.at)
	case *pglogrepl.CommitMessage:
		require.Equal(t, x.TransactionEndLSN, pglogrepl.LSN(m.lsn))
		sameTime(t, x.CommitTime, m.at)
	case *pglogrepl.RelationMessage:
		require.Equal(t, x.RelationID, m.relation.OID)
		require.Equal(t, cmp.Or(x.Namespace, "pg_catalog")+"."+x.RelationName, m.relation.Table())
		require.Equal(t, x.ReplicaIdentity, m.relation.ReplicaIdentity)
		for i, c := range x.Columns {
			require.Equal(t, change.Column{Name: c.Name, TypeOID: c.DataType, TypeMod: c.TypeModifier, Identity: c.Flags&1 != 0}, m.relation.Columns[i])
		}
	case *pglogrepl.InsertMessage:
		agreeTuple(t, x.Tuple, m.after, nil, m.relation)
	case *pglogrepl.UpdateMessage:
		agreeTuple(t, x.NewTuple, m.after, m.before, m.relation)
		if x.OldTuple != nil {
			agreeTuple(t, x.OldTuple, m.before, nil, m.relation)
		}
	case *pglogrepl.DeleteMessage:
		agreeTuple(t, x.OldTuple, m.before, nil, m.relation)
	case *pglogrepl.TruncateMessage:
		require.Len(t, m.truncated, len(x.RelationIDs))
		for i, oid := range x.RelationIDs {
			require.Equal(t, oid, m.truncated[i].OID)
		}
	case *pglogrepl.LogicalDecodingMessage:
		require.Equal(t, x.Transactional, m.transactional)
		require.Equal(t, x.Prefix, m.prefix)
		require.Equal(t, string(x.Content), string(m.content))
	}
}

// sameTime compares in nanoseconds, where pglogrepl's times overflow after the year 2262 and ours do not.
func sameTime(t *testing.T, theirs, ours time.Time) {
	t.Helper()
	require.Equal(t, theirs.UnixNano(), ours.UnixNano())
}

func agreeTuple(t *testing.T, theirs *pglogrepl.TupleData, ours, before change.Tuple, rel *change.Relation) {
	t.Helper()
	require.Len(t, ours, len(theirs.Columns))
	for i, c := range theirs.Columns {
		switch {
		case ours[i].Kind == change.Missing:
			require.Contains(t, "nt", string(c.DataType), "outside of a key, or NULL")
			require.True(t, c.DataType == 'n' || !rel.Columns[i].Identity)
		case c.DataType == 'u' && before != nil && before[i].Kind != change.Missing:
			require.Equal(t, before[i], ours[i])
		default:
			require.Equal(t, c.DataType, byte(ours[i].Kind))
			require.Equal(t, string(c.Data), string(ours[i].Data))
		}
	}
}

// TestDecodeSurvivesEveryCut decodes every beginning of every message, and every message with one byte changed.
func TestDecodeSurvivesEveryCut(t *testing.T) {
	var m message
	d := newDecoder()
	for _, b := range readCorpus(t) {
		if b[0] != msgType && b[0] != msgOrigin {
			for n := range b {
				require.Error(t, d.decode(b[:n], &m), "%q cut to %d bytes", b, n)
			}
			require.Error(t, d.decode(append(bytes.Clone(b), 0), &m), "a byte too many")
		}
		require.NoError(t, d.decode(b, &m))
		for i := 1; i < len(b); i++ {
			bad := bytes.Clone(b)
			bad[i] ^= 0xff
			_ = d.decode(bad, &m) // an error or another message, never a panic
		}
		d = newDecoder()
		for _, b := range readCorpus(t) { // undo what changed descriptions have done
			require.NoError(t, d.decode(b, &m))
		}
	}
}

// FuzzDecode feeds the decoder a sequence of messages, each behind its length.
func FuzzDecode(f *testing.F) {
	var all []byte
	for _, b := range readCorpus(f) {
		f.Add(frame(nil, b))
		all = frame(all, b)
	}
	f.Add(all)
	f.Fuzz(func(t *testing.T, data []byte) {
		d := newDecoder()
		var m message
		for len(data) >= 2 {
			n := min(int(binary.BigEndian.Uint16(data)), len(data)-2)
			b := data[2 : 2+n]
			data = data[2+n:]
			if d.decode(b, &m) != nil {
				continue
			}
			for _, row := range []change.Tuple{m.before, m.after} {
				if row != nil {
					require.Len(t, row, len(m.relation.Columns))
				}
			}
			flags := m.kind == msgMessage && b[1] > 1 // of which pglogrepl takes the whole byte for one
			if theirs, err := parse(b); err == nil && !flags {
				agree(t, theirs, &m)
			}
		}
	})
}

// parse is pglogrepl's decoder, which panics on some of what the fuzzer makes.
func parse(b []byte) (m pglogrepl.Message, err error) {
	defer func() {
		if recover() != nil {
			err = errShort
		}
	}()
	return pglogrepl.Parse(b)
}

func frame(dst, b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(dst, uint16(len(b))), b...)
}

func TestResolvePrimaryKey(t *testing.T) {
	columns := func(flagged ...string) (list []change.Column) {
		for _, name := range []string{"a", "b", "c"} {
			list = append(list, change.Column{Name: name, Identity: strings.Contains(strings.Join(flagged, ""), name)})
		}
		return list
	}
	for name, c := range map[string]struct {
		identity byte
		flagged  []string
		live     []string
		want     []string
		asks     bool
	}{
		"one column needs no question":          {'d', []string{"b"}, nil, []string{"b"}, false},
		"no primary key":                        {'d', nil, nil, nil, false},
		"several are ordered by the catalog":    {'d', []string{"a", "b"}, []string{"b", "a"}, []string{"b", "a"}, true},
		"a catalog that is ahead is not asked":  {'d', []string{"a", "b"}, []string{"c"}, []string{"a", "b"}, true},
		"nor one that has another key":          {'d', []string{"a", "b"}, []string{"a", "c"}, []string{"a", "b"}, true},
		"full flags all, so the catalog says":   {'f', []string{"a", "b", "c"}, []string{"c"}, []string{"c"}, true},
		"an index says nothing of the key":      {'i', []string{"b"}, []string{"a"}, []string{"a"}, true},
		"a key column that is renamed is none":  {'f', []string{"a", "b", "c"}, []string{"new"}, nil, true},
		"the table may be gone in the meantime": {'f', []string{"a", "b", "c"}, nil, nil, true},
	} {
		asked := false
		st := &Stream{
			unresolved: &change.Relation{ReplicaIdentity: c.identity, Columns: columns(c.flagged...)},
			liveTable:  func(context.Context, uint32) ([]string, bool, error) { asked = true; return c.live, false, nil },
		}
		rel := st.unresolved
		require.NoError(t, st.resolve(t.Context()), name)
		require.Equal(t, c.want, rel.PrimaryKey, name)
		require.Equal(t, c.asks, asked, name)
		require.Nil(t, st.unresolved)
	}
}
