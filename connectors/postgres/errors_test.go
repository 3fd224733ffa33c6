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
		{Code: "54000", Message: "Speicher aufgebraucht", Detail: "Kann Stringpuffer mit 1073741808 Bytes nicht um 41 Bytes vergrößern.", Routine: "enlargeStringInfo"},
		{Code: "54000", Message: "string buffer exceeds maximum allowed length (1073741823 bytes)", Routine: "enlargeStringInfo"},
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

// A server says what is wrong in its own language; the code and the function that raised the error have none.
func TestSlotErrorsAreKnownInEveryLanguage(t *testing.T) {
	st := &Stream{src: &Source{cfg: Config{Slot: "s", Publication: "p"}}}
	for _, c := range []struct {
		pg   pgconn.PgError
		want SlotKind // empty: no trouble of the slot
	}{
		{pgconn.PgError{Code: "55006", Message: "Replikations-Slot »s« ist aktiv für PID 7", Routine: "ReplicationSlotAcquire"}, SlotActive},
		{pgconn.PgError{Code: "42704", Message: "Replikations-Slot »s« existiert nicht", Routine: "ReplicationSlotAcquire"}, SlotMissing},
		{pgconn.PgError{Code: "42704", Message: "Publikation »p« existiert nicht", Routine: "get_publication_oid"}, SlotStale},
		{pgconn.PgError{Code: "42704", Message: "Typ »x« existiert nicht", Routine: "typenameType"}, ""},
		{pgconn.PgError{Code: "58P01", Message: "das angeforderte WAL-Segment 000000010000000000000001 wurde schon entfernt", Routine: "WalSndSegmentOpen"}, SlotLost},
		{pgconn.PgError{Code: "58P01", Message: "konnte Datei »x« nicht öffnen", Routine: "mdopenfork"}, ""},
		{pgconn.PgError{Code: "0A000", Message: "logische Dekodierung kann nicht während der Wiederherstellung verwendet werden", Routine: "CheckLogicalDecodingRequirements"}, SlotStandby},
		{pgconn.PgError{Code: "55000", Message: "logische Dekodierung erfordert wal_level >= logical", Routine: "CheckLogicalDecodingRequirements"}, ""},
	} {
		trouble, ok := errors.AsType[*SlotError](st.ended(&c.pg))
		require.Equal(t, c.want != "", ok, c.pg.Message)
		if ok {
			require.Equal(t, c.want, trouble.Kind, c.pg.Message)
		}
	}
}
