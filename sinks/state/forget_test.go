package state

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// TestTheStateForgetsWhatNobodyAsksFor, and nothing else.
func TestTheStateForgetsWhatNobodyAsksFor(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	const keep = 40 * 24 * time.Hour
	for id, days := range map[string]int{"old": 41, "aging": 11, "fresh": 9} {
		exec(t, s, `INSERT INTO batches (id, status, ended_at) VALUES ($1, 'COMPLETED', now() - $2 * interval '1 day')`, id, days)
		exec(t, s, `INSERT INTO campaigns (id, ended_at) VALUES ($1, now() - $2 * interval '1 day')`, id, days)
		exec(t, s, `INSERT INTO batch_items (batch_id, product_id, shop, status, payload)
			SELECT $1, 'p' || i, 's', 'SUCCESS', 'sent' FROM generate_series(1, $2::int) i`, id, cancelPiece+7)
	}
	exec(t, s, `INSERT INTO batches (id) VALUES ('open')`)
	exec(t, s, `INSERT INTO batch_items (batch_id, product_id, shop, status, payload) VALUES ('open', 'p', 's', 'PENDING', 'sent')`)
	exec(t, s, `INSERT INTO campaigns (id, ended_at) VALUES ('replay/old', now() - interval '41 days'), ('replay/waits', now() - interval '41 days')`)
	exec(t, s, `INSERT INTO pauses (what) VALUES ('campaign/replay/old'), ('all')`)
	require.NoError(t, s.Park(ctx, []work.Parked{{ProductID: "waits", CampaignID: "replay/waits"}}))
	exec(t, s, `INSERT INTO products (product_id, shop, settled_at) SELECT p, z, now() - interval '41 days'
		FROM (VALUES ('gone', ''), ('waits', ''), ('sold', ''), ('sold', 's')) v(p, z)`)
	exec(t, s, `INSERT INTO products (product_id, shop) VALUES ('young', '')`)
	exec(t, s, `INSERT INTO guards (shop, effect, counted) VALUES ('s', 'off_sale', 3)`)
	exec(t, s, `INSERT INTO guard_products (shop, effect, product_id, at, held) VALUES ('s', 'off_sale', 'a', now() - interval '3 days', false),
		('s', 'off_sale', 'b', now(), false), ('s', 'off_sale', 'c', now() - interval '3 days', true)`)

	f, err := s.Forget(ctx, keep)
	require.NoError(t, err)
	n := int64(cancelPiece + 7)
	require.Equal(t, Forgotten{Batches: 1, Items: n, Payloads: 2 * n, Campaigns: 2, Products: 1, Guarded: 1}, f)
	require.Equal(t, 3, count(t, s, `SELECT count(*) FROM batches WHERE id IN ('aging', 'fresh', 'open')`))
	require.Equal(t, 3, count(t, s, `SELECT count(*) FROM batches`))
	require.Zero(t, count(t, s, `SELECT count(*) FROM batch_items WHERE batch_id = 'aging' AND payload <> ''`))
	require.Equal(t, cancelPiece+8, count(t, s, `SELECT count(*) FROM batch_items WHERE payload = 'sent'`))
	require.Equal(t, 1, count(t, s, `SELECT count(*) FROM campaigns WHERE id = 'replay/waits'`))
	require.Equal(t, 1, count(t, s, `SELECT count(*) FROM pauses WHERE what = 'all'`))
	require.Equal(t, 1, count(t, s, `SELECT count(*) FROM pauses`))
	require.Equal(t, 4, count(t, s, `SELECT count(*) FROM products WHERE product_id <> 'gone'`))
	require.Equal(t, 2, count(t, s, `SELECT counted FROM guards`))
	f, err = s.Forget(ctx, keep)
	require.NoError(t, err)
	require.Equal(t, Forgotten{}, f)
}

// countingConn counts the round trips: a read that had to wait for the server after something was sent.
type countingConn struct {
	net.Conn
	trips *atomic.Int32
	sent  atomic.Bool // written and read by different goroutines
}

func (c *countingConn) Write(b []byte) (int, error) {
	c.sent.Store(true)
	return c.Conn.Write(b)
}

func (c *countingConn) Read(b []byte) (int, error) {
	if c.sent.Swap(false) {
		c.trips.Add(1)
	}
	return c.Conn.Read(b)
}

// TestSettlingAHundredItemsIsOneRoundTrip, and so are its neighbours; statements are prepared once before.
func TestSettlingAHundredItemsIsOneRoundTrip(t *testing.T) {
	url := embeddedtest.NewDatabase(t, embeddedtest.Postgres(t))
	plain := openStore(t, url)
	require.NoError(t, plain.Migrate(t.Context()))
	f := own(t, plain, work.StagePush, "w", 4)
	var trips atomic.Int32
	s, err := open(t.Context(), Config{URL: url, MaxConns: 1}, func(c *pgxpool.Config) {
		dial := c.ConnConfig.DialFunc
		c.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dial(ctx, network, addr)
			return &countingConn{Conn: conn, trips: &trips}, err
		}
	})
	require.NoError(t, err)
	defer s.Close()
	settle := work.Settlement{Fences: f, Positions: map[int32]int64{}}
	var ids []string
	for i := range 100 {
		id := fmt.Sprintf("p%03d", i)
		ids = append(ids, id)
		settle.Positions[int32(i%4)]++
		settle.Products = append(settle.Products, work.Settled{Known: work.Known{ProductID: id, Shop: "s", Shadow: []byte(`{}`), Snapshot: snapshot(5, 9)}})
		settle.Items = append(settle.Items, work.Item{BatchID: "b", ProductID: id, Shop: "s", Status: work.ItemSuccess, Category: event.Validation})
		settle.SplitItems = append(settle.SplitItems, work.Item{BatchID: "b", ProductID: id})
		settle.Park = append(settle.Park, work.Parked{ProductID: id, Shop: "z", Reason: "RETRY"})
		settle.Outbox = append(settle.Outbox, records(id, id)...)
	}
	for name, call := range map[string]func() error{
		"settle": func() error { return s.Settle(t.Context(), settle) },
		"load":   func() error { _, err := s.Load(t.Context(), ids); return err },
		"take in": func() error {
			return s.TakeIn(t.Context(), work.TakeIn{Fences: f, Items: settle.Items, Parked: settle.Park})
		},
		"intend": func() error {
			return s.Intend(t.Context(), f, []work.Intent{{Key: "k", Shop: "s", ProductIDs: ids, Mutation: "m"}})
		},
	} {
		require.NoError(t, call()) // prepares
		before := trips.Load()
		require.NoError(t, call())
		t.Logf("%s: %d", name, trips.Load()-before)
		require.Equal(t, int32(1), trips.Load()-before, name)
	}
}

// TestSettlementsStayOnTheirPages: an update that stays on its page (HOT) touches no index and is cleaned up in passing.
// One that does not makes every index grow, and work for vacuum.
func TestSettlementsStayOnTheirPages(t *testing.T) {
	s := newStore(t)
	f := own(t, s, work.StagePush, "w", 1)
	const products, rounds = 500, 30
	for round := range rounds {
		st := work.Settlement{Fences: f, Positions: map[int32]int64{0: int64(round)}}
		for i := range products {
			st.Products = append(st.Products, work.Settled{Known: work.Known{
				ProductID: fmt.Sprintf("p%04d", i), Shop: "s", ShopifyID: "gid://shopify/Product/1", Shadow: []byte(`{"title":"a8f5f167f44f4964e6c998dee827110c"}`),
				Snapshot: snapshot(10, 20), DocumentHash: fmt.Sprintf("a8f5f167f44f4964e6c998dee8271%03d", round), LastStatus: event.Success,
			}, Attempted: true})
		}
		require.NoError(t, s.Settle(t.Context(), st))
	}
	exec(t, s, `SELECT pg_stat_force_next_flush()`)
	s.pool.Reset() // sessions flush what they have counted when they end
	var updates, hot int
	require.Eventually(t, func() bool {
		require.NoError(t, s.pool.QueryRow(t.Context(), `SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'products'`).Scan(&updates, &hot))
		return updates >= products*(rounds-1)
	}, 10*time.Second, 20*time.Millisecond)
	t.Logf("%d of %d updates stayed on their pages", hot, updates)
	require.Greater(t, float64(hot), 0.9*float64(updates))
	exec(t, s, `VACUUM products`)
	pages := count(t, s, `SELECT relpages FROM pg_class WHERE relname = 'products'`)
	require.Less(t, pages, 100, "%d rows of 300 bytes are 25 pages", products)
}
