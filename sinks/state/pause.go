package state

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// PauseAll stops every push. What can be stopped besides is named by [PauseShop], [PauseLane] and [PauseCampaign].
const PauseAll = "all"

// PauseShop names all pushes to a shop.
func PauseShop(shop string) string { return "shop/" + shop }

// PauseLane names all pushes of a lane.
func PauseLane(l work.Lane) string { return "lane/" + l.String() }

// PauseCampaign names all that a campaign has parked.
func PauseCampaign(id string) string { return "campaign/" + id }

// Pause is something that people have stopped.
type Pause struct {
	// What is as [PauseAll] and its like name it.
	What string
	// By is who did it, as the caller said.
	By string
	At time.Time
}

// Pause stops what is named. What is on its way lands, what comes is parked, and what is parked is not pulled. It says
// whether that is news: what is stopped already stays as it is. A campaign must exist: else it is [ErrNoCampaign].
func (s *Store) Pause(ctx context.Context, what, by string) (bool, error) {
	if id, ok := strings.CutPrefix(what, PauseCampaign("")); ok {
		if _, err := s.Campaign(ctx, id); err != nil {
			return false, err
		}
	}
	tag, err := s.pool.Exec(ctx, `INSERT INTO pauses (what, by) VALUES ($1, $2) ON CONFLICT DO NOTHING`, what, clean(by))
	if err != nil {
		return false, fmt.Errorf("pause %s: %w", what, err)
	}
	return tag.RowsAffected() == 1, nil
}

// Resume lets go on what [Store.Pause] has stopped, and says whether it was. The rate of campaigns is measured anew:
// the time in which they stood says nothing.
func (s *Store) Resume(ctx context.Context, what string) (bool, error) {
	var was bool
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `DELETE FROM pauses WHERE what = $1`, what)
		if was = err == nil && tag.RowsAffected() == 1; !was || strings.HasPrefix(what, PauseShop("")) {
			return err
		}
		_, err = tx.Exec(ctx, `UPDATE campaigns o SET rate_from = clock_timestamp(), rate_done = n.done
			FROM (SELECT c.no, d.done FROM campaigns c LEFT JOIN batches b ON b.id = c.id `+campaignDone+`
				WHERE c.ended_at IS NULL AND ($1 NOT LIKE 'campaign/%' OR 'campaign/' || c.id = $1)) n
			WHERE o.no = n.no`, what)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("resume %s: %w", what, err)
	}
	return was, nil
}

// Paused lists what is stopped, the oldest first.
func (s *Store) Paused(ctx context.Context) ([]Pause, error) {
	rows, err := s.pool.Query(ctx, `SELECT what, by, at FROM pauses ORDER BY at, what`)
	var out []Pause
	if err == nil {
		out, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (p Pause, err error) {
			err = row.Scan(&p.What, &p.By, &p.At)
			p.At = p.At.UTC()
			return p, err
		})
	}
	if err != nil {
		return nil, fmt.Errorf("list what is paused: %w", err)
	}
	return out, nil
}

// Pauses is what is stopped as a push looks at it.
func (s *Store) Pauses(ctx context.Context) (work.Pauses, error) {
	out := work.Pauses{Lanes: map[work.Lane]bool{}, Shops: map[string]bool{}}
	list, err := s.Paused(ctx)
	if err != nil {
		return out, err
	}
	for _, p := range list {
		kind, name, _ := strings.Cut(p.What, "/")
		switch kind {
		case PauseAll:
			out.All = true
		case "shop":
			out.Shops[name] = true
		case "lane":
			for l := work.LaneLive; l <= work.LaneCampaign; l++ {
				if l.String() == name {
					out.Lanes[l] = true
				}
			}
		}
	}
	return out, nil
}

// ErrNotExcluded says that a product is not excluded.
var ErrNotExcluded = errors.New("the product is not excluded")

// Exclusion is a product that a person keeps from being pushed.
type Exclusion struct {
	work.Exclusion
	By string
	At time.Time
}

// Exclude keeps a product from being pushed to a shop, or to any where shop is empty: it is SKIPPED with the reason
// EXCLUDED. A push that has read it already is not stopped. It says whether that is news.
func (s *Store) Exclude(ctx context.Context, product, shop, by string) (bool, error) {
	tag, err := s.pool.Exec(ctx, `INSERT INTO excluded (product_id, shop, by) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`,
		product, shop, clean(by))
	if err != nil {
		return false, fmt.Errorf("exclude product %s: %w", product, err)
	}
	return tag.RowsAffected() == 1, nil
}

// reasonIncluded is why a product is parked that is pushed again.
const reasonIncluded = "INCLUDED"

// Include ends an exclusion and makes the product due, so that its shops get what they have missed. Without one it is
// [ErrNotExcluded]. partitions is the number of partitions of catalog.changes.
func (s *Store) Include(ctx context.Context, product, shop string, partitions int32) error {
	err := s.transactOnce(ctx, "include", func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `DELETE FROM excluded WHERE product_id = $1 AND shop = $2`, product, shop)
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 {
			return ErrNotExcluded
		}
		var b pgx.Batch
		queuePark(&b, []work.Parked{{
			ProductID: product, Shop: shop, Partition: change.Partition(change.ProductID(product), partitions),
			Lane: work.LaneRetry, Reason: reasonIncluded,
		}})
		return tx.SendBatch(ctx, &b).Close()
	})
	if err != nil {
		return fmt.Errorf("include product %s: %w", product, err)
	}
	return nil
}

// Excluded lists what is excluded, in the order of products.
func (s *Store) Excluded(ctx context.Context) ([]Exclusion, error) {
	rows, err := s.pool.Query(ctx, `SELECT product_id, shop, by, at FROM excluded ORDER BY product_id, shop`)
	var out []Exclusion
	if err == nil {
		out, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (e Exclusion, err error) {
			err = row.Scan(&e.ProductID, &e.Shop, &e.By, &e.At)
			e.At = e.At.UTC()
			return e, err
		})
	}
	if err != nil {
		return nil, fmt.Errorf("list what is excluded: %w", err)
	}
	return out, nil
}
