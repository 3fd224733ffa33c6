package postgres_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/connectors/postgres"
	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	server "github.com/shelfwire/shelfwire/deploy/embedded/postgres"
)

// german starts a server that speaks German, if it has the translations.
func german(t *testing.T) *database {
	t.Helper()
	bin := newDatabase(t).text("SELECT setting FROM pg_config WHERE name = 'BINDIR'")
	dir := embeddedtest.Dir(t)
	require.NoError(t, os.Symlink(filepath.Join(bin, "initdb"), filepath.Join(dir, "initdb")))
	script := "#!/bin/sh\nLANGUAGE=de exec '" + filepath.Join(bin, "postgres") + "' \"$@\"\n"
	require.NoError(t, os.WriteFile(filepath.Join(dir, "postgres"), []byte(script), 0o755)) //nolint:gosec // the server's user runs it
	srv, err := embeddedtest.StartPostgres(t.Context(), server.Config{
		Dir: filepath.Join(dir, "data"), BinDir: dir, Params: map[string]string{"lc_messages": "C.UTF-8", "max_slot_wal_keep_size": "1MB"},
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = srv.Stop() })
	conn, err := pgx.Connect(t.Context(), srv.URL("postgres"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	if _, err = conn.Exec(t.Context(), "SELECT 1/0"); !strings.Contains(err.Error(), "Null") {
		t.Skipf("no translations: %v", err)
	}
	return &database{t: t, url: srv.URL("postgres"), conn: conn}
}

// The trouble of a slot is known as well where the server speaks another language.
func TestSlotTroubleIsTypedInGerman(t *testing.T) {
	d := german(t)
	d.exec(`CREATE TABLE p (id int PRIMARY KEY)`)
	src := d.open(d.config())
	_, err := src.EnsureSlot(t.Context())
	require.NoError(t, err)
	d.exec(`INSERT INTO p VALUES (1)`)
	require.NoError(t, src.EnsurePublication(t.Context(), []string{"public.p"}))
	st := stream(t, src, 0)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for err == nil {
		_, err = st.Next(ctx)
	}
	require.Equal(t, postgres.SlotStale, slotKind(t, err))

	free := func(what func(context.Context) error) { // the server says what is wrong before it lets go of the slot
		require.Eventually(t, func() bool { return what(t.Context()) == nil }, 20*time.Second, 20*time.Millisecond)
	}
	free(src.RenewSlot)
	st = stream(t, src, 0)
	_, err = src.Stream(t.Context(), 0)
	require.Equal(t, postgres.SlotActive, slotKind(t, err))
	require.NoError(t, st.Close(t.Context()))
	for range 4 {
		d.exec(`INSERT INTO p SELECT max(id) + 1 FROM p`)
		d.exec(`SELECT pg_switch_wal()`)
	}
	d.exec(`CHECKPOINT`)
	_, err = src.Stream(t.Context(), 0)
	require.Equal(t, postgres.SlotLost, slotKind(t, err))
	free(src.DropSlot)
	_, err = src.Stream(t.Context(), 0)
	require.Equal(t, postgres.SlotMissing, slotKind(t, err))
}
