package state

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/shelfwire/shelfwire/schemas/work"
)

// TellLate records, outside of any lease, requests that have reached a shop or may still do so although their lease was
// lost: intents that stand beside those of the present owner, and the parked products that see to it that somebody
// looks. Both stand, or none: whoever finds the row finds the intents too, and they outlast whatever the row is merged
// with. An intent's At is in the caller's clock; its Key must be one that nobody has seen yet.
func (s *Store) TellLate(ctx context.Context, parked []work.Parked, intents []work.Intent) error {
	if len(parked) == 0 && len(intents) == 0 {
		return nil
	}
	var ids, shops, keys, mutations []string
	var ages []time.Duration
	now := time.Now()
	for _, in := range intents {
		for _, id := range in.ProductIDs {
			ids, shops, keys, mutations = append(ids, id), append(shops, in.Shop), append(keys, in.Key), append(mutations, in.Mutation)
			ages = append(ages, max(now.Sub(in.At), 0))
		}
	}
	return s.applyOnce(ctx, "tell of late requests", work.Token{}, func(b *pgx.Batch) {
		queuePark(b, parked)
		b.Queue(`INSERT INTO intents (product_id, shop, key, mutation, at)
			SELECT n.product_id, n.shop, n.key, n.mutation, clock_timestamp() - n.age
			FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::interval[]) n(product_id, shop, key, mutation, age)
			ORDER BY n.product_id COLLATE "C", n.shop COLLATE "C", n.key COLLATE "C"
			ON CONFLICT (product_id, shop, key) DO UPDATE SET at = greatest(intents.at, EXCLUDED.at)`, ids, shops, keys, mutations, ages)
	})
}
