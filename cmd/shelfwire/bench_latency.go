package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// measureStart times the demo's start, downloads apart, until the first product stands in a shop.
func measureStart(ctx context.Context, b *bench) ([]figure, error) {
	const starts, products = 3, 1000
	var took []time.Duration
	for range starts {
		began := time.Now()
		err := b.withPipeline(ctx, rigConfig{products: products, stores: 2}, func(ctx context.Context, r *benchRig) error {
			ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Minute, errors.New("no product was in a shop after 2 minutes"))
			defer cancel()
			select {
			case <-r.tap.created:
				took = append(took, time.Since(began))
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})
		if err != nil {
			return nil, err
		}
	}
	slices.Sort(took)
	return []figure{atMost("warm start until the first change is in the shop", took[starts/2].Seconds(), "s", 10, fmt.Sprintf(
		"median of %d starts in fresh directories (%s), binaries cached; from the start of PostgreSQL, Kafka, ClickHouse and two "+
			"shops over generating %d products to the shop's answer to the first creation of the snapshot",
		starts, durations(took, time.Second), products))}, nil
}

// durations lists d in a unit.
func durations(list []time.Duration, unit time.Duration) string {
	var out []string
	for _, d := range list {
		out = append(out, fmt.Sprintf("%.3g", d.Seconds()/unit.Seconds()))
	}
	name := "s"
	if unit == time.Millisecond {
		name = "ms"
	}
	return strings.Join(out, ", ") + " " + name
}

// quantile returns the smallest value that at least q of the sorted list do not exceed.
func quantile(sorted []time.Duration, q float64) time.Duration {
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}

// latencyRound is what one round of changes has shown.
type latencyRound struct {
	changes  int
	p50, p99 time.Duration
	shop     time.Duration // median time that a request spent in the simulator
	behind   time.Duration // how late the last change was committed
}

// measureLatency changes prices at a steady rate in a catalog where nothing else happens.
func measureLatency(ctx context.Context, b *bench, r *benchRig) ([]figure, error) {
	const rate, rounds = 50, 3
	products, variants, err := r.forSale(ctx)
	if err != nil {
		return nil, err
	}
	// A product that is changed again within its debounce would have its changes coalesced, and show less work.
	if least := rate * int(r.cfg.Push.Quiet.Seconds()*2+1); len(products) < least {
		return nil, fmt.Errorf("%d products are for sale; changing one of them at most once a second needs %d", len(products), least)
	}
	var all []latencyRound
	for range rounds {
		l, err := r.latencyRound(ctx, products, variants, rate, b.duration/rounds)
		if err != nil {
			return nil, err
		}
		b.say("latency: p50 %d ms, p99 %d ms, shop %d ms", l.p50.Milliseconds(), l.p99.Milliseconds(), l.shop.Milliseconds())
		all = append(all, l)
	}
	slices.SortFunc(all, func(a, b latencyRound) int { return cmp.Compare(a.p99, b.p99) })
	middle := all[rounds/2]
	var p50s, p99s []time.Duration
	for _, l := range all {
		p50s, p99s = append(p50s, l.p50), append(p99s, l.p99)
	}
	conditions := func(list []time.Duration) string {
		return fmt.Sprintf("%d single price changes a second for %.0f s over %d products of three shops, nothing else going on, shops without "+
			"faults; from COMMIT's answer in the client to the shop's answer, seen in front of the shop; of %d rounds (%s) the one with "+
			"the median p99; goal: quiet period %d ms + the simulator's median latency %d ms + 100 ms for p50, and 500 ms more for p99; "+
			"the last change was committed %d ms late",
			rate, (b.duration / rounds).Seconds(), len(products), rounds, durations(list, time.Millisecond), r.cfg.Push.Quiet.Milliseconds(),
			middle.shop.Milliseconds(), middle.behind.Milliseconds())
	}
	limit := r.cfg.Push.Quiet + middle.shop + 100*time.Millisecond
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return []figure{
		atMost("commit to shop, p50", ms(middle.p50), "ms", ms(limit), conditions(p50s)),
		atMost("commit to shop, p99", ms(middle.p99), "ms", ms(limit+500*time.Millisecond), conditions(p99s)),
	}, nil
}

func (r *benchRig) latencyRound(ctx context.Context, products []int64, variants map[int64][]int64, rate int, d time.Duration) (l latencyRound, err error) {
	l.changes = int(d.Seconds() * float64(rate))
	if l.changes == 0 {
		return l, fmt.Errorf("%s is too short for one change", d)
	}
	committed := map[string]time.Time{}
	mark, began := r.tap.mark(), time.Now()
	interval := time.Second / time.Duration(rate)
	err = pace(ctx, l.changes, interval, func(i int) error {
		price := r.price()
		_, err := r.conn.Exec(ctx, `UPDATE catalog.variants SET price = $2::text::numeric WHERE id = $1`, variants[products[i%len(products)]][0], price)
		committed[price] = time.Now()
		return err
	})
	if err != nil {
		return l, err
	}
	l.behind = time.Since(began) - time.Duration(l.changes-1)*interval
	if err := r.rest(ctx); err != nil {
		return l, err
	}
	requests := r.tap.since(mark)
	arrived, err := prices(requests)
	if err != nil {
		return l, err
	}
	var took []time.Duration
	for price, at := range committed {
		in, ok := arrived[price]
		if !ok {
			return l, fmt.Errorf("price %s was committed and never came to a shop", price)
		}
		took = append(took, in.Sub(at))
	}
	var inShop []time.Duration
	for _, q := range requests {
		inShop = append(inShop, q.took)
	}
	slices.Sort(took)
	slices.Sort(inShop)
	l.p50, l.p99, l.shop = quantile(took, 0.5), quantile(took, 0.99), quantile(inShop, 0.5)
	return l, nil
}
