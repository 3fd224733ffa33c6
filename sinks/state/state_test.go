package state

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

func TestMain(m *testing.M) { embeddedtest.Main(m) }

// newStore is a state of its own for one test.
func newStore(t *testing.T) *Store {
	t.Helper()
	s := openStore(t, embeddedtest.NewDatabase(t, embeddedtest.Postgres(t)))
	require.NoError(t, s.Migrate(t.Context()))
	return s
}

func openStore(t *testing.T, url string) *Store {
	t.Helper()
	s, err := Open(t.Context(), Config{URL: url})
	require.NoError(t, err)
	t.Cleanup(s.Close)
	return s
}

// own makes owner the holder of partitions 0 to n-1 of a stage.
func own(t require.TestingT, s *Store, stage work.Stage, owner string, n int32) []work.Fence {
	leases, err := s.Renew(context.Background(), stage, owner, n, time.Minute)
	require.NoError(t, err)
	require.Len(t, leases, int(n))
	return fencesOf(leases)
}

func fencesOf(leases []work.Lease) (f []work.Fence) {
	for _, l := range leases {
		f = append(f, l.Fence)
	}
	return f
}

// inHand is the settlement by which a push takes an item in hand.
func inHand(f []work.Fence, it work.Item) work.Settlement {
	it.Status = work.ItemProcessing
	return work.Settlement{Fences: f, Items: []work.Item{it}}
}

// exec runs SQL past the store, to bring about what time or other processes would.
func exec(t require.TestingT, s *Store, sql string, args ...any) {
	_, err := s.pool.Exec(context.Background(), sql, args...)
	require.NoError(t, err)
}

func count(t require.TestingT, s *Store, sql string, args ...any) (n int) {
	require.NoError(t, s.pool.QueryRow(context.Background(), sql, args...).Scan(&n))
	return n
}

func snapshot(xmin, xmax change.XID) change.Snapshot { return change.Snapshot{Xmin: xmin, Xmax: xmax} }

// records are outbox rows with these keys.
func records(keys ...string) (out []event.Record) {
	for _, k := range keys {
		out = append(out, event.Record{Topic: "t", Partition: -1, Key: []byte(k), Value: []byte("v" + k)})
	}
	return out
}

func TestProcessesThatStartTogetherMigrateOnce(t *testing.T) {
	url := embeddedtest.NewDatabase(t, embeddedtest.Postgres(t))
	done := make(chan error, 4)
	for range cap(done) {
		s := openStore(t, url)
		go func() { done <- s.Migrate(context.WithoutCancel(t.Context())) }()
	}
	for range cap(done) {
		require.NoError(t, <-done)
	}
	s := openStore(t, url)
	a, err := s.Incarnation(t.Context())
	require.NoError(t, err)
	require.Len(t, a.ID, 36)
	require.Empty(t, a.Former)
	exec(t, s, `UPDATE goose_db_version SET version_id = 999 WHERE version_id = (SELECT max(version_id) FROM goose_db_version)`)
	require.ErrorContains(t, s.Migrate(t.Context()), "run the newer binary")
}

func TestAnotherSourceIsRefused(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	fences := own(t, s, work.StagePush, "w", 1)
	require.NoError(t, s.BindSource(ctx, "7001", 1, false))
	require.NoError(t, s.BindSource(ctx, "7001", 1, false))
	require.NoError(t, s.BindSource(ctx, "7001", 3, false), "a promoted standby goes on in the same history")
	require.NoError(t, s.Settle(ctx, work.Settlement{Fences: fences, Products: []work.Settled{{Known: work.Known{
		ProductID: "p", Shop: "s", ShopifyID: "gid://1", Shadow: []byte(`{"a": 1}`), DocumentHash: "h", Snapshot: snapshot(5, 9),
	}}}}))

	var se *SourceError
	require.ErrorAs(t, s.BindSource(ctx, "7002", 3, false), &se)
	require.Equal(t, "7001", se.BoundSystemID)
	require.ErrorAs(t, s.BindSource(ctx, "7001", 2, false), &se, "an older timeline is a restored source")

	require.NoError(t, s.BindSource(ctx, "7002", 1, true))
	l, err := s.Load(ctx, []string{"p"})
	require.NoError(t, err)
	require.Equal(t, []work.Known{{ProductID: "p", Shop: "s", ShopifyID: "gid://1"}}, l.Known,
		"ids stay, what was true only of the old source does not")
	require.NoError(t, s.BindSource(ctx, "7002", 1, false))
}

func TestCreateMakesTheDatabaseOrSaysWhoMust(t *testing.T) {
	server := embeddedtest.Postgres(t)
	admin := embeddedtest.NewDatabase(t, server)
	ctx := t.Context()
	url, err := Create(ctx, admin, "shelfwire state's")
	require.NoError(t, err)
	t.Cleanup(func() {
		s := openStore(t, admin)
		exec(t, s, `DROP DATABASE "shelfwire state's" WITH (FORCE)`)
	})
	again, err := Create(ctx, admin, "shelfwire state's")
	require.NoError(t, err)
	require.Equal(t, url, again)
	s := openStore(t, url)
	require.NoError(t, s.Migrate(ctx))

	exec(t, s, `CREATE ROLE guest LOGIN PASSWORD 'x'`)
	t.Cleanup(func() { exec(t, openStore(t, admin), `DROP ROLE guest`) })
	conf, err := pgx.ParseConfig(admin)
	require.NoError(t, err)
	guest := "host=" + conf.Host + " user=guest password=x dbname=" + conf.Database + " port=" + strconv.Itoa(int(conf.Port))
	_, err = Create(ctx, guest, "other")
	if err != nil && !strings.Contains(err.Error(), "may not create") {
		t.Skipf("the server lets no other role in: %v", err)
	}
	require.ErrorContains(t, err, `CREATE DATABASE "other" OWNER "guest";`)
	url, err = Create(ctx, guest, "shelfwire state's")
	require.NoError(t, err)
	require.Contains(t, url, `dbname='shelfwire state\'s'`)
	got, err := pgx.ParseConfig(url)
	require.NoError(t, err)
	require.Equal(t, "shelfwire state's", got.Database)
}
