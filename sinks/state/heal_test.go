package state

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/work"
)

func TestTouchParksWhatShopsHave(t *testing.T) {
	s := newStore(t)
	_, err := s.pool.Exec(t.Context(), `INSERT INTO products (product_id, shop, shopify_id, snapshot, document_hash)
		SELECT 'p' || i, shop, 'gid', '10:20:', 'h' FROM generate_series(1, $1::int) i, (VALUES ('a'), ('b')) s(shop)
		UNION ALL SELECT 'own', '', '', '10:20:', ''`, healPage+10)
	require.NoError(t, err)
	require.NoError(t, s.Park(t.Context(), []work.Parked{{ProductID: "p1", Lane: work.LaneCampaign, Due: time.Now(), Reason: "X", XIDs: []change.XID{15}}}))
	for range 2 { // a second call changes nothing
		n, err := s.Touch(t.Context(), 8, false)
		require.NoError(t, err)
		require.EqualValues(t, healPage+10, n)
	}
	rows, err := s.pool.Query(t.Context(), `SELECT product_id, partition FROM parked WHERE reason = 'HEALED' OR product_id = 'p1'`)
	require.NoError(t, err)
	got := 0
	var id string
	var partition int32
	_, err = pgx.ForEachRow(rows, []any{&id, &partition}, func() error {
		got++
		if want := change.Partition(change.ProductID(id), 8); want != partition && id != "p1" {
			return fmt.Errorf("%s is in partition %d, not %d", id, partition, want)
		}
		return nil
	})
	require.NoError(t, err)
	require.Equal(t, healPage+10, got)

	var known, waiting int
	count := func() {
		require.NoError(t, s.pool.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM products WHERE snapshot <> '' OR document_hash <> ''),
			(SELECT count(*) FROM parked WHERE xids <> '{}')`).Scan(&known, &waiting))
	}
	count()
	require.Equal(t, []int{2*(healPage+10) + 1, 1}, []int{known, waiting})
	_, err = s.Touch(t.Context(), 8, true)
	require.NoError(t, err)
	count()
	require.Equal(t, []int{0, 0}, []int{known, waiting}, "the transactions of a lost history mean nothing")
}

func TestRemoveLeavesNothingBehindAndNothingElse(t *testing.T) {
	s := newStore(t)
	_, err := s.pool.Exec(t.Context(), `CREATE TABLE mine (id int)`)
	require.NoError(t, err)
	products, batches, ok, err := s.Contents(t.Context())
	require.NoError(t, err)
	require.True(t, ok)
	require.Zero(t, products+batches)
	for range 2 {
		require.NoError(t, s.Remove(t.Context()))
		var left string
		require.NoError(t, s.pool.QueryRow(t.Context(), `SELECT string_agg(relname, ',') FROM pg_class
			WHERE relnamespace = 'public'::regnamespace`).Scan(&left))
		require.Equal(t, "mine", left)
		_, _, ok, err = s.Contents(t.Context())
		require.NoError(t, err)
		require.False(t, ok)
	}
	require.NoError(t, s.Migrate(t.Context()))
}
