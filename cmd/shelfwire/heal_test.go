package main

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// status reads what the command prints for programs.
func (s *site) status() (int, statusView) {
	s.t.Helper()
	code, out := shelfwire(s.t, "status", "-c", s.file, "--for", "100ms")
	var v statusView
	require.NoError(s.t, json.NewDecoder(strings.NewReader(out)).Decode(&v), out)
	return code, v
}

// value asks a database for one value as text; empty for none.
func (s *site) value(url, sql string) string {
	s.t.Helper()
	conn, err := pgx.Connect(s.t.Context(), url)
	require.NoError(s.t, err)
	defer func() { _ = conn.Close(context.WithoutCancel(s.t.Context())) }()
	var v *string
	require.NoError(s.t, conn.QueryRow(s.t.Context(), sql).Scan(&v))
	if v == nil {
		return ""
	}
	return *v
}

// The slot is dropped behind our back, and products are changed and deleted before anybody notices: the shops are true
// to the database all the same. Then everything is taken down again.
func TestALostSlotIsHealedAndUninstallLeavesNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("runs the whole pipeline")
	}
	s := newSite(t, 30)
	code, out := shelfwire(t, "status", "-c", s.file, "--for", "1ms")
	require.Equal(t, exitError, code)
	require.Contains(t, out, "shelfwire run makes it")
	stop := s.run()
	clean := func() bool { code, _ := s.audit(); return code == exitOK }
	require.Eventually(t, clean, time.Minute, 500*time.Millisecond, "the first snapshot")
	code, v := s.status()
	require.Equal(t, exitOK, code)
	require.True(t, v.Slot.Active)
	require.Equal(t, "reserved", v.Slot.WALStatus)
	require.NotNil(t, v.Capture)
	require.Nil(t, v.Healed)
	require.LessOrEqual(t, v.Slot.Connections, 1+4+1+4, "the stream, the pool, and those of this command")
	require.Eventually(t, func() bool {
		_, body := s.get("/metrics")
		return strings.Contains(body, `shelfwire_slot_wal_status{status="reserved"} 1`) && strings.Contains(body, "shelfwire_capture_active 1")
	}, time.Minute, 200*time.Millisecond)
	stop()

	victim := s.value(s.parts.stateURL, `SELECT min(product_id) FROM products WHERE shopify_id <> '' AND NOT off_sale`)
	require.NotEmpty(t, victim)
	s.exec(`SELECT pg_drop_replication_slot('shelfwire')`)
	s.exec(`DELETE FROM catalog.products WHERE id::text = '` + victim + `'`)
	s.exec(`UPDATE catalog.variants SET price = 1234 WHERE product_id IN (SELECT product_id FROM catalog.variants LIMIT 3)`)
	code, _ = s.status()
	require.Equal(t, exitError, code)
	var o output
	require.Equal(t, exitError, execute(t.Context(), []string{"run", "-c", s.file, "--no-heal"}, &o, &o))
	require.Contains(t, o.String(), "run: shelfwire run --restart-capture")
	require.NotEmpty(t, s.value(s.parts.stateURL, `SELECT product_id FROM products WHERE product_id = '`+victim+`' AND NOT off_sale AND shop <> '' LIMIT 1`))

	stop = s.run()
	require.Eventually(t, func() bool {
		return s.value(s.parts.stateURL, `SELECT count(*)::text FROM products WHERE product_id = '`+victim+`' AND shop <> ''`) == "0"
	}, time.Minute, 200*time.Millisecond, "archived, and no longer ours")
	require.Eventually(t, clean, time.Minute, 500*time.Millisecond)
	code, v = s.status()
	require.Equal(t, exitOK, code)
	require.NotNil(t, v.Healed)
	require.Equal(t, "missing", v.Healed.Cause)
	require.Positive(t, v.Healed.Touched)
	require.False(t, v.Healed.Begun)
	code, body := s.get("/metrics")
	require.Equal(t, http.StatusOK, code)
	require.Contains(t, body, "shelfwire_capture_healings_total 1")
	stop()

	left := `SELECT (SELECT count(*) FROM pg_replication_slots WHERE database = current_database()) || ' ' || (SELECT count(*) FROM pg_publication)`
	code, out = shelfwire(t, "uninstall", "-c", s.file, "--state")
	require.Equal(t, exitOK, code, out)
	require.Contains(t, out, "would remove the slot shelfwire")
	require.Contains(t, out, "run it again with --yes")
	require.Equal(t, "1 1", s.value(s.parts.sourceURL, left), "nothing is removed yet")
	code, out = shelfwire(t, "uninstall", "-c", s.file, "--state", "--yes")
	require.Equal(t, exitOK, code, out)
	require.Equal(t, "0 0", s.value(s.parts.sourceURL, left))
	require.Equal(t, "0", s.value(s.parts.stateURL, `SELECT count(*)::text FROM pg_class WHERE relnamespace = 'public'::regnamespace`))
	code, out = shelfwire(t, "uninstall", "-c", s.file, "--state", "--yes")
	require.Equal(t, exitOK, code, out)
	require.Contains(t, out, "there is nothing to remove")

	s.exec(`CREATE TABLE public.theirs (id int); CREATE PUBLICATION shelfwire FOR TABLE public.theirs`)
	code, out = shelfwire(t, "uninstall", "-c", s.file, "--yes")
	require.Equal(t, exitOK, code, out)
	require.Contains(t, out, "keeps the publication shelfwire")
	require.Equal(t, "0 1", s.value(s.parts.sourceURL, left))
}
