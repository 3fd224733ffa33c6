package postgres_test

import (
	"encoding/binary"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/connectors/postgres"
)

// What a peer that is no Postgres, or a line that changes bytes, sends in the place of rows ends the stream with an error
// that names the position. Nothing is confirmed beyond it, so that the rows come whole from a peer in good health.
func TestGarbageEndsTheStreamAtItsPosition(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE p (id int PRIMARY KEY, s text)`)
	d.capture("public.p")
	d.exec(`INSERT INTO p VALUES (1, 'before')`)
	d.exec(`INSERT INTO p VALUES (2, 'garbage')`)
	d.exec(`INSERT INTO p VALUES (3, 'after')`)
	const head = 1 + 8 + 8 + 8 // w, start, end, clock
	length := func(n uint32) func([]byte) []byte {
		return func(m []byte) []byte { // of the second value
			binary.BigEndian.PutUint32(m[len(m)-len("garbage")-4:], n)
			return m
		}
	}
	for name, spoil := range map[string]func(m []byte) []byte{
		"unknown message":              func(m []byte) []byte { m[0] = 'Q'; return m },
		"cut":                          func(m []byte) []byte { return m[:len(m)-3] },
		"empty":                        func([]byte) []byte { return nil },
		"a byte too many":              func(m []byte) []byte { return append(m, 0) },
		"a value of 4 GB":              length(1<<32 - 1),
		"a value of 2 GB":              length(1<<31 - 1),
		"a table never described":      func(m []byte) []byte { m[1] ^= 0xff; return m },
		"65535 columns":                func(m []byte) []byte { m[6], m[7] = 0xff, 0xff; return m },
		"unknown kind of row":          func(m []byte) []byte { m[5] = 'Z'; return m },
		"unknown kind of value":        func(m []byte) []byte { m[8] = 'z'; return m },
		"a chunk within a transaction": func([]byte) []byte { return []byte{'S', 0, 0, 0, 9, 1} },
		"a begin within a transaction": func(m []byte) []byte { return append([]byte{'B'}, make([]byte, 20)...) },
		"rows in two billion columns": func(m []byte) []byte {
			return []byte{'R', 0, 0, 0, 1, 0, 'p', 0, 'd', 0xff, 0xff}
		},
		"a truncate of 4 billion tables": func([]byte) []byte { return []byte{'T', 0xff, 0xff, 0xff, 0xff, 0} },
	} {
		var spoilt atomic.Bool
		m := &between{data: func(b []byte) []byte {
			if b[0] != 'w' || b[head] != 'I' || string(b[len(b)-7:]) != "garbage" {
				return b
			}
			spoilt.Store(true)
			return append(b[:head:head], spoil(append([]byte(nil), b[head:]...))...)
		}}
		cfg := d.config()
		cfg.URL = m.url(t, d.url)
		st := again(t, d.open(cfg))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		var err error
		for rows := 0; err == nil; {
			ev, nextErr := st.Next(t.Context())
			if err = nextErr; ev.Change != nil {
				rows++
				require.Equal(t, 1, rows, name)
			}
		}
		runtime.ReadMemStats(&after)
		require.True(t, spoilt.Load(), name)
		require.Regexp(t, `^replication stream at [0-9A-F]+/[0-9A-F]+: (decode|message|WAL)`, err.Error(), name)
		require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(32<<20), name)
		var q *postgres.QueryError
		require.NotErrorAs(t, err, &q, "the server has not said it")
		_, again := st.Next(t.Context())
		require.Equal(t, err, again, "it is final")
		require.NoError(t, st.Close(t.Context()))
	}
	rows := d.rows(again(t, d.open(d.config())))
	require.Len(t, rows, 3)
	require.Equal(t, "garbage", rows[1].After["s"])
}
