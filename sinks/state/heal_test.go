package state

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
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
	require.Equal(t, healPage+10+1, got, "p1 waits for the heal and by itself")

	var known, waiting int
	count := func() {
		require.NoError(t, s.pool.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM products WHERE snapshot <> ''),
			(SELECT count(*) FROM parked WHERE xids <> '{}')`).Scan(&known, &waiting))
	}
	count()
	require.Equal(t, []int{2*(healPage+10) + 1, 1}, []int{known, waiting})
	_, err = s.Touch(t.Context(), 8, true)
	require.NoError(t, err)
	count()
	require.Equal(t, []int{0, 0}, []int{known, waiting}, "the transactions of a lost history mean nothing")
	require.NoError(t, s.pool.QueryRow(t.Context(), `SELECT count(*) FROM products WHERE document_hash <> ''`).Scan(&known))
	require.Equal(t, 2*(healPage+10), known, "what the shops have stays known")
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

// Positions move to where records are, forward or back, and whoever held a partition has lost it.
func TestPassingPositionsEndsTheLeases(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	fences := own(t, s, work.StagePush, "w", 2)
	require.NoError(t, s.TakeIn(ctx, work.TakeIn{
		Fences: fences, Positions: map[int32]int64{0: 20, 1: 90}, TakenIn: map[int32]int64{0: 30, 1: 95}, Cursors: map[int32]string{1: "0:p"},
	}))
	from := map[int32]int64{0: 20, 1: 80}
	require.ErrorContains(t, s.Pass(ctx, work.StagePush, from, map[int32]int64{0: 50, 1: 10}), "moved meanwhile")
	require.NoError(t, s.TakeIn(ctx, work.TakeIn{Fences: fences, Positions: map[int32]int64{0: 21}}), "nothing was changed")
	from = map[int32]int64{0: 21, 1: 90}
	require.NoError(t, s.Pass(ctx, work.StagePush, from, map[int32]int64{0: 50, 1: 10}))
	require.ErrorIs(t, s.TakeIn(ctx, work.TakeIn{Fences: fences, Positions: map[int32]int64{0: 51}}), work.ErrLeaseLost)
	leases, err := s.Renew(ctx, work.StagePush, "w", 2, time.Minute)
	require.NoError(t, err)
	require.Len(t, leases, 2)
	for i, want := range []int64{50, 10} {
		require.Equal(t, []any{want, want, ""}, []any{leases[i].Position, leases[i].TakenIn, leases[i].Cursor})
		require.Equal(t, fences[i].Epoch+2, leases[i].Epoch)
	}
}

// A batch whose announcement nobody will ever read ends, and says why; one that has just begun may still be announced.
func TestBatchesWhoseAnnouncementsHaveGoneFail(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	push := own(t, s, work.StagePush, "w", 1)
	for _, id := range []string{"old", "new"} {
		item := work.Item{BatchID: id, ProductID: "p", Shop: "s", Status: work.ItemSuccess}
		require.NoError(t, s.TakeIn(ctx, work.TakeIn{Fences: push, Batches: []event.Batch{{ID: id}}, Items: []work.Item{item}}))
		require.NoError(t, s.Settle(ctx, work.Settlement{Fences: push, Items: []work.Item{item}}))
	}
	_, err := s.pool.Exec(ctx, `UPDATE batches SET opened_at = now() - interval '2 hours' WHERE id = 'old'`)
	require.NoError(t, err)
	for want := range 2 {
		n, err := s.Unannounced(ctx, "gone")
		require.NoError(t, err)
		require.EqualValues(t, 1-want, n)
	}
	ended, err := s.Complete(ctx)
	require.NoError(t, err)
	require.Len(t, ended, 1)
	require.Equal(t, []string{"old", event.BatchFailed, "gone"}, []string{ended[0].ID, ended[0].Type, ended[0].Reason})
}
