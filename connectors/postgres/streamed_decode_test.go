package postgres

import (
	"bytes"
	"encoding/binary"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/schemas/change"
)

// streamedCorpus is as corpus, of transactions that are streamed before their end and take turns.
var streamedCorpus = filepath.Join("testdata", "streamed.hex")

func TestRecordStreamedCorpus(t *testing.T) {
	if !*record {
		t.Skip("writes the corpus only when asked to")
	}
	url := embeddedtest.NewDatabase(t, embeddedtest.Postgres(t))
	var conns [2]*pgx.Conn
	for i := range conns {
		var err error
		conns[i], err = pgx.Connect(t.Context(), url)
		require.NoError(t, err)
		defer func() { _ = conns[i].Close(t.Context()) }()
	}
	run := func(conn int, sql string) {
		t.Helper()
		_, err := conns[conn].PgConn().Exec(t.Context(), sql).ReadAll()
		require.NoError(t, err)
	}
	run(0, `CREATE TYPE mood AS ENUM ('ok');`+corpusSQL)
	src, err := Open(t.Context(), Config{URL: url, Slot: "streamed_corpus", DecodingMemory: "64kB", OtherMessages: true})
	require.NoError(t, err)
	defer src.Close()
	_, err = src.EnsureSlot(t.Context())
	require.NoError(t, err)
	st, err := src.Stream(t.Context(), 0)
	require.NoError(t, err)
	defer func() { _ = st.Close(t.Context()) }()
	// Few rows, each so wide that every other one makes the server stream.
	const wide = `repeat('x', 40000)`
	run(0, `BEGIN; INSERT INTO p VALUES (1, 'a', 1, `+wide+`), (2, 'b', 'NaN', `+wide+`)`)
	run(1, `BEGIN; INSERT INTO f VALUES (1, repeat('k', 1500)); INSERT INTO p VALUES (10, 'c', 1, `+wide+`), (11, 'd', 1, `+wide+`)`)
	run(0, `UPDATE p SET n = 2; SAVEPOINT s; UPDATE p SET big = `+wide+` || id; DELETE FROM p WHERE id = 2; ROLLBACK TO s; INSERT INTO e VALUES ('ok')`)
	run(1, `UPDATE p SET id = 12 WHERE id = 10; UPDATE f SET a = 2; SELECT pg_logical_emit_message(true, 'pre', 'fix'); INSERT INTO p VALUES (13, 'e', 1, `+wide+`), (14, 'e', 1, `+wide+`)`)
	run(0, `INSERT INTO p VALUES (3, 'f', 1, `+wide+`), (4, 'f', 1, `+wide+`); COMMIT`)
	run(1, `DELETE FROM f; TRUNCATE p, f; INSERT INTO p VALUES (15, 'g', 1, `+wide+`), (16, 'g', 1, `+wide+`); COMMIT`)
	run(0, `BEGIN; INSERT INTO p VALUES (5, 'f', 1, `+wide+`), (6, 'f', 1, `+wide+`); ROLLBACK; INSERT INTO p VALUES (7, 'whole', 1, '')`)
	run(0, `SELECT pg_logical_emit_message(true, 'end', '')`)
	recordTo(t, st, streamedCorpus)
}

// offline is a stream without a server: what comes is given to its decode.
func offline(tb testing.TB, dir string) *Stream {
	tb.Helper()
	src := &Source{cfg: Config{OtherMessages: true}}
	st := &Stream{src: src, decoder: newDecoder(), spill: newSpill(dir, 64<<20, &src.spillStats)}
	tb.Cleanup(st.spill.closeAll)
	return st
}

// drain reads a streamed transaction that has committed back, and the events that it is.
func drain(st *Stream) (kinds []byte, err error) {
	for st.replay != nil {
		ev, ok, err := st.nextReplayed()
		if err != nil {
			st.replay.close()
			st.replay, st.open = nil, false
			return kinds, err
		}
		if ok && ev.Change != nil {
			kinds = append(kinds, byte(ev.Change.Op))
		}
		for range st.truncated {
			kinds = append(kinds, byte(change.Truncate))
		}
		st.truncated, st.unresolved = nil, nil
	}
	return kinds, nil
}

// agreeStreamed holds what the stream has made of a message against pglogrepl's reading of it.
func agreeStreamed(t *testing.T, st *Stream, theirs pglogrepl.Message, b []byte) {
	t.Helper()
	inside := func(xid uint32) {
		if len(st.spill.buf) == 0 {
			return // just written to the file
		}
		var sub uint32
		var kept []byte
		for rest := st.spill.buf; len(rest) > 0; { // the last one
			n := binary.BigEndian.Uint32(rest)
			sub, kept = binary.BigEndian.Uint32(rest[4:]), rest[spillHeader:spillHeader+n]
			rest = rest[spillHeader+n:]
		}
		require.Equal(t, xid, sub)
		require.Equal(t, append([]byte{b[0]}, b[5:]...), kept, "as it would have come without being streamed")
	}
	switch x := theirs.(type) {
	case *pglogrepl.StreamStartMessageV2:
		require.Equal(t, x.Xid, st.chunk)
	case *pglogrepl.StreamStopMessageV2:
		require.Zero(t, st.chunk)
	case *pglogrepl.StreamAbortMessageV2:
		tx := st.spill.txs[x.Xid]
		if x.Xid == x.SubXid {
			require.Nil(t, tx)
		}
		if tx == nil {
			return // it had nothing to void
		}
		require.Equal(t, x.SubXid, tx.aborted[len(tx.aborted)-1])
	case *pglogrepl.StreamCommitMessageV2:
		require.NotNil(t, st.replay)
		require.Equal(t, x.TransactionEndLSN, pglogrepl.LSN(st.replay.end))
		require.Equal(t, x.CommitLSN, pglogrepl.LSN(st.tx.CommitLSN))
		require.Equal(t, x.Xid, uint32(st.tx.XID))
		sameTime(t, x.CommitTime, st.tx.CommitTime)
	case *pglogrepl.RelationMessageV2:
		inside(x.Xid)
	case *pglogrepl.InsertMessageV2:
		inside(x.Xid)
	case *pglogrepl.UpdateMessageV2:
		inside(x.Xid)
	case *pglogrepl.DeleteMessageV2:
		inside(x.Xid)
	case *pglogrepl.TruncateMessageV2:
		inside(x.Xid)
	case *pglogrepl.LogicalDecodingMessageV2:
		inside(x.Xid)
	}
}

// parseV2 is pglogrepl's decoder of streamed messages, which panics on some of what the fuzzer makes.
func parseV2(b []byte, inside bool) (m pglogrepl.Message, err error) {
	defer func() {
		if recover() != nil {
			err = errShort
		}
	}()
	return pglogrepl.ParseV2(b, inside)
}

// TestStreamedMessagesAgreeWithPglogrepl holds both decoders against the same real messages: the frames of chunks, the
// subtransaction of everything inside, and what comes out at the commit.
func TestStreamedMessagesAgreeWithPglogrepl(t *testing.T) {
	st := offline(t, t.TempDir())
	seen := map[string]int{}
	var all []string
	for _, b := range readRecording(t, streamedCorpus) {
		inside := st.chunk != 0
		_, _, err := st.decode(1, b)
		require.NoError(t, err, "%q", b)
		st.unresolved = nil
		theirs, err := pglogrepl.ParseV2(b, inside)
		require.NoError(t, err)
		where := ""
		if inside {
			where = "inside "
		}
		seen[where+string(b[0])]++
		agreeStreamed(t, st, theirs, b)
		if st.replay != nil {
			kinds, err := drain(st)
			require.NoError(t, err)
			all = append(all, string(kinds))
		}
	}
	for kind := range strings.FieldsSeq("S A c I C B inside-E inside-R inside-I inside-U inside-D inside-T inside-M inside-Y") {
		kind = strings.ReplaceAll(kind, "-", " ")
		require.NotZero(t, seen[kind], "the corpus has no %s", kind)
	}
	require.Equal(t, []string{"ccuuccc", "cccuuccdttcc"}, all, "without what was rolled back")
}

// FuzzStreamed feeds a stream a sequence of messages, each behind its length, and holds it against pglogrepl: no panic,
// no memory beyond a small multiple of the input, and the same reading of whatever both take.
func FuzzStreamed(f *testing.F) {
	var all []byte
	for _, b := range readRecording(f, streamedCorpus) {
		b = narrow(b) // the width is of no interest, and slows the fuzzer
		f.Add(frame(nil, b))
		all = frame(all, b)
	}
	f.Add(all)
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		st := offline(t, dir)
		for len(data) >= 2 {
			n := min(int(binary.BigEndian.Uint16(data)), len(data)-2)
			b := data[2 : 2+n]
			data = data[2+n:]
			inside := st.chunk != 0
			if _, _, err := st.decode(1, b); err != nil {
				require.NotErrorIs(t, err, io.EOF)
				return // final for a stream
			}
			st.truncated, st.unresolved = nil, nil
			require.LessOrEqual(t, cap(st.spill.buf), 4*spillBuffer+len(b)*2)
			if theirs, err := parseV2(b, inside); err == nil && len(b) > 0 {
				agreeStreamed(t, st, theirs, b)
			}
			if st.replay != nil {
				if _, err := drain(st); err != nil {
					require.NotErrorIs(t, err, io.ErrUnexpectedEOF, "a spill file is read as it was written")
					return
				}
			}
		}
	})
}

// narrow makes the wide values of the corpus short.
func narrow(b []byte) []byte {
	for more := range uint32(2) {
		long := append(binary.BigEndian.AppendUint32(nil, 40000+more), bytes.Repeat([]byte("x"), 40000)...)
		b = bytes.ReplaceAll(b, long, append(binary.BigEndian.AppendUint32(nil, 5+more), "xxxxx"...))
	}
	return b
}
