package postgres

import (
	"errors"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
)

// The server's words for a row that it cannot send, by version; the first is what 15 to 18 say of a large bytea.
func TestRowErrorIsRecognised(t *testing.T) {
	st := &Stream{src: &Source{cfg: Config{Slot: "s", Publication: "p"}}}
	for _, pg := range []pgconn.PgError{
		{Code: "XX000", Message: "invalid memory alloc request size 1258291203"},
		{Code: "54000", Message: "out of memory", Detail: "Cannot enlarge string buffer containing 1073741808 bytes by 41 more bytes."},
		{Code: "54000", Message: "string buffer exceeds maximum allowed length (1073741823 bytes)"},
	} {
		var row *RowError
		err := st.ended(&pg)
		require.ErrorAs(t, err, &row)
		require.ErrorAs(t, err, new(*pgconn.PgError))
		// Neither passes by itself nor ends the process: what a person does is seen by the next try.
		require.NotErrorAs(t, err, new(interface{ Temporary() bool }))
		require.NotErrorAs(t, err, new(interface{ Permanent() bool }))
	}
	require.False(t, tooLarge(errors.New("invalid memory alloc request size")), "only the server says it")
}
