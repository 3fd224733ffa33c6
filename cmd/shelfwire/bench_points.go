package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// pointsTrace is a fixed series of events: rows that change, each of which a naive integration would answer with one
// productSet of its product.
type pointsTrace struct {
	name     string
	limit    float64 // of the ratio
	words    string
	interval time.Duration // between transactions
	// transactions hold the variants that each of them changes, in order.
	transactions [][]benchVariant
	change       func(ctx context.Context, tx pgx.Tx, variant int64) error
}

type benchVariant struct{ product, variant int64 }

// measurePoints compares the points of the pipeline's requests with those of one productSet for each event.
func measurePoints(ctx context.Context, b *bench, r *benchRig) ([]figure, error) {
	products, variants, err := r.forSale(ctx)
	if err != nil {
		return nil, err
	}
	var all []benchVariant
	for _, p := range products {
		for _, v := range variants[p] {
			all = append(all, benchVariant{p, v})
		}
	}
	if err := r.fillStock(ctx, all); err != nil {
		return nil, err
	}
	made, err := creations(r.tap.since(0))
	if err != nil {
		return nil, err
	}
	single := map[int64]int{}
	for c, points := range made {
		id, err := strconv.ParseInt(c.product, 10, 64)
		if err != nil {
			return nil, err
		}
		single[id] += points
	}
	var out []figure
	for _, t := range b.traces(r, all) {
		f, err := r.trace(ctx, t, single)
		if err != nil {
			return out, fmt.Errorf("%s: %w", t.name, err)
		}
		out = append(out, f)
	}
	return out, nil
}

// fillStock gives every variant enough to book from: what falls below 0 changes nothing in a shop, and costs nothing.
func (r *benchRig) fillStock(ctx context.Context, all []benchVariant) error {
	ids := make([]int64, len(all))
	for i, v := range all {
		ids[i] = v.variant
	}
	_, err := r.conn.Exec(ctx, `
		INSERT INTO catalog.stock (variant_id, warehouse_id, physical, approved, reserved)
		SELECT unnest($1::bigint[]), 1, 100000, 100000, 0
		ON CONFLICT (variant_id, warehouse_id) DO UPDATE SET physical = 100000, approved = 100000, reserved = 0`, ids)
	if err != nil {
		return fmt.Errorf("fill the stock: %w", err)
	}
	return r.rest(ctx)
}

// traces are the change classes. What the goals are set on is how such changes come: orders are booked by warehouse
// systems in waves, and prices are saved one by one while somebody works through a product. The third shows the
// other end: bookings that share nothing with each other but the shop.
func (b *bench) traces(r *benchRig, all []benchVariant) []pointsTrace {
	const lines = 200
	const burstProducts, saves = 5, 10
	waves, bursts, singles := b.few(20, 3), b.few(8, 2), b.few(500, 50)
	rng := rand.New(rand.NewPCG(b.seed, 0xbe7c))
	stock := pointsTrace{
		name: "points, stock bookings in waves", limit: 1.0 / 50, interval: time.Second,
		words:  fmt.Sprintf("%d transactions, one a second, each booking %d order lines of random variants", waves, lines),
		change: bookOne,
	}
	for range waves {
		var wave []benchVariant
		for range lines {
			wave = append(wave, all[rng.IntN(len(all))])
		}
		stock.transactions = append(stock.transactions, wave)
	}
	price := pointsTrace{
		name: "points, price bursts", limit: 1.0 / 8, interval: 20 * time.Millisecond,
		words: fmt.Sprintf("%d bursts of %d products, %d saves of a price for each, one transaction every 20 ms", bursts, burstProducts, saves),
		change: func(ctx context.Context, tx pgx.Tx, variant int64) error {
			_, err := tx.Exec(ctx, `UPDATE catalog.variants SET price = $2::text::numeric WHERE id = $1`, variant, r.price())
			return err
		},
	}
	byProduct := map[int64][]benchVariant{}
	var order []int64
	for _, v := range all {
		if byProduct[v.product] == nil {
			order = append(order, v.product)
		}
		byProduct[v.product] = append(byProduct[v.product], v)
	}
	rng.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	for i := range bursts {
		for save := range saves {
			for k := range burstProducts {
				list := byProduct[order[(i*burstProducts+k)%len(order)]]
				price.transactions = append(price.transactions, []benchVariant{list[save%len(list)]})
			}
		}
	}
	alone := pointsTrace{
		name: "points, stock bookings one by one", limit: 1, interval: 20 * time.Millisecond,
		words:  fmt.Sprintf("%d transactions of one booking of a random variant, 50 a second; no goal but never to be dearer", singles),
		change: bookOne,
	}
	for range singles {
		alone.transactions = append(alone.transactions, []benchVariant{all[rng.IntN(len(all))]})
	}
	return []pointsTrace{stock, price, alone}
}

func bookOne(ctx context.Context, tx pgx.Tx, variant int64) error {
	_, err := tx.Exec(ctx, `SELECT catalog.book_stock($1, 1, 1)`, variant)
	return err
}

// trace plays a trace and compares.
func (r *benchRig) trace(ctx context.Context, t pointsTrace, single map[int64]int) (figure, error) {
	before, naive, events := r.totals(), 0, 0
	err := pace(ctx, len(t.transactions), t.interval, func(i int) error {
		return pgx.BeginFunc(ctx, r.conn, func(tx pgx.Tx) error {
			for _, v := range t.transactions[i] {
				if err := t.change(ctx, tx, v.variant); err != nil {
					return err
				}
				naive += single[v.product]
				events++
			}
			return nil
		})
	})
	if err != nil {
		return figure{}, err
	}
	if err := r.rest(ctx); err != nil {
		return figure{}, err
	}
	s := r.totals().minus(before)
	if naive == 0 || s.points == 0 {
		return figure{}, fmt.Errorf("nothing to compare: %d points of %d events against %d", s.points, events, naive)
	}
	return atMost(t.name, float64(s.points)/float64(naive), "ratio", t.limit, fmt.Sprintf(
		"%s: %d events, %d requests, %d points requested (1/%.0f); one productSet for each event, priced as the one that created the "+
			"product: %d points", t.words, events, s.requests, s.points, float64(naive)/float64(s.points), naive)), nil
}
