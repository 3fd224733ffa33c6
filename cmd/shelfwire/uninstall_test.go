package main

import (
	"bytes"
	"context"
	"log/slog"
	neturl "net/url"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/config"
	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/schemas/route"
)

// A publication goes when all of its tables are ours, those that are only mirrored and parents among them, and stays when
// it publishes somebody else's as well.
func TestUninstallLeavesAPublicationOfOthers(t *testing.T) {
	url := embeddedtest.NewDatabase(t, embeddedtest.Postgres(t))
	db, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = db.Close(context.WithoutCancel(t.Context())) })
	exec := func(sql string) {
		t.Helper()
		_, err := db.Exec(t.Context(), sql)
		require.NoError(t, err, sql)
	}
	for _, table := range []string{"product", "variant", "stock", "orders", "theirs"} {
		exec(`CREATE TABLE ` + table + ` (id int PRIMARY KEY)`)
	}
	exec(`CREATE PUBLICATION un_pub FOR TABLE product, variant, stock, orders`)
	cfg := &config.Config{
		Source: config.Source{URL: config.Secret(url), Slot: "un_slot", Publication: "un_pub"},
		Routes: []route.Route{
			{Table: "public.product", Key: "id"},
			{Table: "public.stock", Parent: &route.Parent{Column: "id", Table: "public.variant", ID: "id", Key: "id"}},
		},
		Mirror: config.Mirror{On: true, Tables: []string{"public.orders"}},
	}
	plan := func() (*uninstall, string) {
		a := newApp(cfg, options{}, slog.New(slog.DiscardHandler))
		u, err := a.planUninstall(t.Context(), false)
		require.NoError(t, err)
		t.Cleanup(a.source.Close)
		var out bytes.Buffer
		u.describe(&out, cfg, false)
		return u, out.String()
	}
	u, text := plan()
	require.True(t, u.dropsPublication())
	require.Contains(t, text, "would remove the publication un_pub of public.orders, public.product, public.stock, public.variant\n")

	cfg.Mirror.On = false // then nobody has asked for the orders
	u, text = plan()
	require.False(t, u.dropsPublication())
	require.Contains(t, text, "keeps the publication un_pub: it also publishes public.orders,")
	cfg.Mirror.On = true
	exec(`ALTER PUBLICATION un_pub ADD TABLE theirs`)
	u, text = plan()
	require.False(t, u.dropsPublication())
	require.Contains(t, text, "it also publishes public.theirs,")
}

// A publication that an administrator has made stays, with the statement for its owner; all else goes, and again changes
// nothing.
func TestUninstallLeavesThePublicationOfAnotherRole(t *testing.T) {
	pg := embeddedtest.Postgres(t)
	url := embeddedtest.NewDatabase(t, pg)
	db, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = db.Close(context.WithoutCancel(t.Context())) })
	_, err = db.Exec(t.Context(), `CREATE TABLE product (id int PRIMARY KEY); CREATE PUBLICATION un_pub FOR TABLE product;
		CREATE ROLE un_role LOGIN REPLICATION PASSWORD 'x'; GRANT USAGE ON SCHEMA public TO un_role; GRANT SELECT ON product TO un_role`)
	require.NoError(t, err)
	_, err = db.Exec(t.Context(), `SELECT pg_create_logical_replication_slot('un_other', 'pgoutput')`)
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := db.Exec(context.WithoutCancel(t.Context()), `DROP PUBLICATION un_pub; DROP OWNED BY un_role; DROP ROLE un_role`)
		require.NoError(t, err)
	})
	u, err := neturl.Parse(url)
	require.NoError(t, err)
	u.User = neturl.UserPassword("un_role", "x")
	cfg := &config.Config{
		Source: config.Source{URL: config.Secret(u.String()), Slot: "un_other", Publication: "un_pub"},
		Routes: []route.Route{{Table: "public.product", Key: "id"}},
	}
	for _, first := range []bool{true, false} {
		a := newApp(cfg, options{}, slog.New(slog.DiscardHandler))
		plan, err := a.planUninstall(t.Context(), false)
		require.NoError(t, err)
		require.Equal(t, first, plan.slot.Exists)
		require.False(t, plan.dropsPublication())
		var out bytes.Buffer
		plan.describe(&out, cfg, true)
		require.Contains(t, out.String(), `leaves the publication un_pub, which belongs to another role: let its owner run DROP PUBLICATION "un_pub";`)
		require.NoError(t, plan.do(t.Context(), a))
		a.source.Close()
	}
}

// A table that should be captured and is not is the first thing that somebody should hear of.
func TestStatusNamesTablesThatAreNotCaptured(t *testing.T) {
	v := &statusView{Slot: slotView{Name: "s", Exists: true}, Capture: &captureView{}, Unpublished: []string{"app.orders"}}
	var out bytes.Buffer
	require.NoError(t, statusSheet(v).write(&out))
	require.Regexp(t, `not captured +app.orders`, out.String())
	require.NotContains(t, out.String(), "large")
	require.EqualError(t, v.err(), "not captured, as they are not there or not published: app.orders; shelfwire check says more")
	v.Unpublished = nil
	require.NoError(t, v.err())
}

func TestStatusTellsOfTheLargestOpenTransaction(t *testing.T) {
	text := func(open int64) string {
		var out bytes.Buffer
		require.NoError(t, statusSheet(&statusView{Capture: &captureView{LargestOpen: open}}).write(&out))
		return out.String()
	}
	require.Regexp(t, `largest open +3.0 MB of a transaction that has not ended`, text(3<<20))
	require.NotContains(t, text(0), "largest open")
}
