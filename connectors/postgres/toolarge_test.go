package postgres_test

import (
	"errors"
	"flag"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/connectors/postgres"
	"github.com/shelfwire/shelfwire/schemas/change"
)

var large = flag.Bool("large", false, "also test what takes gigabytes of memory")

// A row whose text is larger than Postgres can make is named, with what mends it, and the slot is free again for that.
func TestRowThatTheServerCannotSend(t *testing.T) {
	if !*large {
		t.Skip("the server needs 2 GB of memory; -large runs it")
	}
	d := newDatabase(t, `CREATE TABLE p (id int PRIMARY KEY, b bytea)`)
	src := d.capture("public.p")
	d.exec(`INSERT INTO p VALUES (1, repeat('a', 600 << 20)::bytea)`)
	d.exec(`INSERT INTO p VALUES (2, '')`)
	var row *postgres.RowError
	for row == nil { // one that is busy for longer than the sender's timeout gets more patience each time
		st := again(t, src)
		var err error
		for err == nil {
			_, err = st.Next(t.Context())
		}
		t.Log(err)
		errors.As(err, &row)
		require.NoError(t, st.Close(t.Context()))
	}
	require.ErrorContains(t, row, "larger than 1 GB")
	require.ErrorContains(t, row, "SELECT pg_drop_replication_slot('"+d.config().Slot+"')")
	query := change.ChunkQuery{Selection: change.Selection{Table: "public.p"}, Limit: 10}
	_, err := src.ReadChunk(t.Context(), query)
	row = nil
	require.ErrorAs(t, err, &row)
	require.True(t, row.Unreadable())
	require.NotErrorAs(t, err, new(interface{ Temporary() bool }))
	query.After = []string{"1"}
	chunk, err := src.ReadChunk(t.Context(), query)
	require.NoError(t, err)
	require.Len(t, chunk.Rows, 1)
	d.exec(`ALTER PUBLICATION shelfwire DROP TABLE p; ALTER PUBLICATION shelfwire ADD TABLE p (id)`)
	require.NoError(t, src.RenewSlot(t.Context()))
	d.exec(`UPDATE p SET id = id + 10`)
	require.Len(t, d.rows(again(t, src)), 2)
}
