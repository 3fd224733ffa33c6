package postgres_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestSlotStatus(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE p (id int PRIMARY KEY)`)
	src := d.open(d.config())
	none, err := src.SlotStatus(t.Context())
	require.NoError(t, err)
	require.False(t, none.Exists)
	require.NotZero(t, none.End)
	require.Zero(t, none.Held())

	src = d.capture("public.p")
	st := stream(t, src, 0)
	d.exec(`INSERT INTO p SELECT generate_series(1, 1000)`)
	d.rows(st)
	got, err := src.SlotStatus(t.Context())
	require.NoError(t, err)
	require.True(t, got.Exists)
	require.True(t, got.Active)
	require.NotZero(t, got.ActivePID)
	require.Equal(t, "reserved", got.WALStatus)
	require.EqualValues(t, -1, got.SafeWAL)
	require.Positive(t, got.Lag(), "nothing was confirmed")
	require.GreaterOrEqual(t, got.Held(), got.Lag())
	require.NotEmpty(t, got.State)
	require.NotZero(t, got.Sent)
	require.Zero(t, got.OldestTransaction)
	require.GreaterOrEqual(t, got.Connections, 2, "a walsender, and the one that asks")
	require.Less(t, got.ClockOffset.Abs(), time.Second, "it is the same clock")

	d.exec(`BEGIN; INSERT INTO p VALUES (0)`)
	require.Eventually(t, func() bool {
		s, err := src.SlotStatus(t.Context())
		return err == nil && s.OldestTransaction > 0 && s.OldestTransaction < time.Minute
	}, 20*time.Second, 10*time.Millisecond)
	d.exec(`ROLLBACK`)
}

func TestDropPublicationLeavesThoseOfOthers(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE p (id int PRIMARY KEY)`, `CREATE PUBLICATION other FOR TABLE p`)
	src := d.capture("public.p")
	tables, ok, err := src.PublishedTables(t.Context())
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, []string{"public.p"}, tables)
	for range 2 {
		require.NoError(t, src.DropPublication(t.Context()))
		require.Equal(t, "other", d.text(`SELECT string_agg(pubname, ',') FROM pg_publication`))
	}
	_, ok, err = src.PublishedTables(t.Context())
	require.NoError(t, err)
	require.False(t, ok)
}
