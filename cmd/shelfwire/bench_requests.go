package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// spent is what one transaction has led to.
type spent struct {
	shopTotals
	reads int64 // documents queries
}

// worst keeps the larger of each count.
func (s spent) worst(o spent) spent {
	return spent{shopTotals{max(s.requests, o.requests), max(s.mutations, o.mutations), max(s.points, o.points)}, max(s.reads, o.reads)}
}

// measureRequests counts what shops and source are asked for one transaction. Each is repeated; the worst counts.
func measureRequests(ctx context.Context, b *bench, r *benchRig) ([]figure, error) {
	repeats := b.few(5, 1)
	byShop, err := r.perShop()
	if err != nil {
		return nil, err
	}
	one, err := r.widest(ctx)
	if err != nil {
		return nil, err
	}
	var biggest string
	for shop, ids := range byShop {
		if biggest == "" || len(ids) > len(byShop[biggest]) || len(ids) == len(byShop[biggest]) && shop < biggest {
			biggest = shop
		}
	}
	ten, fifty := byShop[biggest][:min(10, len(byShop[biggest]))], spread(byShop, 50)
	if len(ten) < 10 || len(fifty) < 50 || len(byShop) < 3 {
		return nil, fmt.Errorf("%d products in one shop and %d in %d shops are too few", len(ten), len(fifty), len(byShop))
	}
	var prices, products, shops spent
	for range repeats {
		for _, c := range []struct {
			into     *spent
			products []int64
			each     int
		}{{&prices, []int64{one}, 10}, {&products, ten, 1}, {&shops, fifty, 1}} {
			s, err := r.transaction(ctx, c.products, c.each)
			if err != nil {
				return nil, err
			}
			*c.into = c.into.worst(s)
		}
	}
	conditions := fmt.Sprintf("worst of %d transactions of single-row UPDATEs, counted by the simulated shops and the push worker's statistics, "+
		"shops without faults", repeats)
	return []figure{
		exactly("ten prices of one product", prices.mutations, "mutations", 1, conditions),
		exactly("ten products of one shop", products.requests, "requests", 1, conditions),
		exactly("50 products of three shops", shops.requests, "requests", 3, conditions),
		exactly("50 products of three shops, documents", int(shops.reads), "queries", 1, conditions),
	}, nil
}

// widest returns the product with the most variants for sale among those that one shop sells.
func (r *benchRig) widest(ctx context.Context) (widest int64, err error) {
	_, variants, err := r.forSale(ctx)
	if err != nil {
		return 0, err
	}
	for id, list := range variants {
		if n := len(variants[widest]); len(list) > n || len(list) == n && id < widest {
			widest = id
		}
	}
	return widest, nil
}

// transaction gives each product so many new prices in one transaction, taking its variants in turn, waits until
// everything is at rest, and returns what it took.
func (r *benchRig) transaction(ctx context.Context, products []int64, each int) (spent, error) {
	variants, err := r.soldVariants(ctx, products)
	if err != nil {
		return spent{}, err
	}
	before, reads := r.totals(), r.app.push.Stats().Reads.Load()
	err = pgx.BeginFunc(ctx, r.conn, func(tx pgx.Tx) error {
		for i := range each {
			for _, p := range products {
				list := variants[p]
				_, err := tx.Exec(ctx, `UPDATE catalog.variants SET price = $2::text::numeric WHERE id = $1`, list[i%len(list)], r.price())
				if err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return spent{}, err
	}
	if err := r.rest(ctx); err != nil {
		return spent{}, err
	}
	return spent{r.totals().minus(before), r.app.push.Stats().Reads.Load() - reads}, nil
}
