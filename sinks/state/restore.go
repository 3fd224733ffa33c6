package state

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// reasonRestored is why a product is parked of which a restored state may know too little.
const reasonRestored = "RESTORED"

// Restored is told the number of the last outbox row that is in Kafka, written by this incarnation of the state. Numbers
// are committed here before they are sent, so a number that this state has not given yet proves that it was restored
// from a backup, or that its server lost commits: the shops then have what it does not know of. It returns whether that
// is so, and how many products it has parked.
//
// What is known of the shops is then void and rebuilt from them before the next push, in which each product is compared
// anew: a shadow of yesterday would let pass as unchanged what must be sent. Shopify ids stay. What workers have in hand
// was judged by the old shadows, so their leases end. The state goes on as a new incarnation, whose numbers nobody
// compares with the old ones. Rows that the backup holds with numbers are in Kafka and forgotten; those that had none yet
// come there a second time, as nothing tells them from new ones.
//
// It may be called again when it has failed: the new incarnation is the last that it writes.
func (s *Store) Restored(ctx context.Context, number int64) (bool, int64, error) {
	var restored bool
	var partitions int32
	err := s.pool.QueryRow(ctx, `SELECT number < $1, (SELECT count(*) FROM leases WHERE stage = $2)::int FROM relay`,
		number, string(work.StagePush)).Scan(&restored, &partitions)
	if err != nil {
		return false, 0, fmt.Errorf("compare the relay's number with %d: %w", number, err)
	}
	if !restored {
		return false, 0, nil
	}
	n, err := s.rebuild(ctx, partitions, number)
	if err != nil {
		return true, n, fmt.Errorf("rebuild the restored state from the shops: %w", err)
	}
	return true, n, nil
}

func (s *Store) rebuild(ctx context.Context, partitions int32, number int64) (int64, error) {
	err := s.retry(ctx, "void what is known of the shops", func() error {
		return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
			var b pgx.Batch
			b.Queue(`WITH n AS (SELECT stage, partition FROM leases WHERE stage = $1 ORDER BY partition FOR UPDATE)
				UPDATE leases l SET owner = '', epoch = epoch + 1, expires = 'epoch' FROM n
				WHERE l.stage = n.stage AND l.partition = n.partition`, string(work.StagePush))
			b.Queue(`UPDATE products SET shadow = NULL, document_hash = '' WHERE shadow IS NOT NULL OR document_hash <> ''`)
			return tx.SendBatch(ctx, &b).Close()
		})
	})
	if err != nil {
		return 0, err
	}
	n := int64(0)
	if partitions > 0 { // else nobody has ever pushed
		campaign := "heal/restored-" + time.Now().UTC().Format("20060102T150405.000Z")
		if n, err = s.parkKnown(ctx, func(id string) work.Parked {
			return work.Parked{
				ProductID: id, Partition: change.Partition(change.ProductID(id), partitions), Lane: work.LaneCampaign,
				Reason: reasonRestored, CampaignID: campaign,
			}
		}); err != nil {
			return n, err
		}
	}
	err = s.retry(ctx, "go on as a new incarnation", func() error {
		return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
			var b pgx.Batch
			b.Queue(`DELETE FROM outbox WHERE id IN (SELECT unnest(taken) FROM relay)`)
			b.Queue(`UPDATE relay SET taken = '{}', number = greatest(number, $1)`, number)
			b.Queue(`UPDATE meta SET former = incarnation, incarnation = gen_random_uuid()`)
			return tx.SendBatch(ctx, &b).Close()
		})
	})
	return n, err
}

// parkKnown parks every product that a shop has, or may have, a page at a time, and returns their number.
func (s *Store) parkKnown(ctx context.Context, row func(id string) work.Parked) (n int64, err error) {
	for after := ""; ; {
		ids, err := s.productIDs(ctx, after)
		if err != nil || len(ids) == 0 {
			return n, err
		}
		rows := make([]work.Parked, len(ids))
		for i, id := range ids {
			rows[i] = row(id)
		}
		if err := s.Park(ctx, rows); err != nil {
			return n, err
		}
		n += int64(len(ids))
		after = ids[len(ids)-1]
	}
}
