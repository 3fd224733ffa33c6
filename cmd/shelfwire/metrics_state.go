package main

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shelfwire/shelfwire/schemas/work"
	"github.com/shelfwire/shelfwire/sinks/state"
)

// stateGauges shows what waits in the state. Every process could; the one that relays does, so that sums over processes
// are right. A state that is away leaves the gauges out.
type stateGauges struct {
	store  *state.Store
	active func() bool

	parked, outbox, oldest, intents, dead, held *prometheus.Desc

	mu    sync.Mutex
	at    time.Time
	known []prometheus.Metric
}

func newStateGauges(store *state.Store, active func() bool) *stateGauges {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("shelfwire_"+name, help, labels, nil)
	}
	return &stateGauges{
		store: store, active: active,
		parked: desc("parked_products", "Products that wait in the state, by lane and reason; 200,000 of them are counted, the rest is an estimate with the reason OTHER.",
			"lane", "reason"),
		outbox:  desc("outbox_records", "Records that wait for the relay."),
		oldest:  desc("outbox_oldest_seconds", "How long the first of them has waited."),
		intents: desc("unanswered_requests", "Products on their way to a shop, of which no answer is on record."),
		dead:    desc("shop_dead", "1 for each shop that refuses everything.", "shop"),
		held:    desc("held_products", "Products that the guard holds.", "shop", "effect"),
	}
}

// Describe implements prometheus.Collector.
func (g *stateGauges) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{g.parked, g.outbox, g.oldest, g.intents, g.dead, g.held} {
		ch <- d
	}
}

// Scrapes within stateFresh share a look at the state, which gives up after stateLook.
const (
	stateFresh = 10 * time.Second
	stateLook  = 3 * time.Second
)

// Collect implements prometheus.Collector.
func (g *stateGauges) Collect(ch chan<- prometheus.Metric) {
	if !g.active() {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if time.Since(g.at) > stateFresh {
		ctx, cancel := context.WithTimeout(context.Background(), stateLook)
		defer cancel()
		g.at, g.known = time.Now(), g.look(ctx)
	}
	for _, m := range g.known {
		ch <- m
	}
}

func (g *stateGauges) look(ctx context.Context) []prometheus.Metric {
	b, err := g.store.Backlog(ctx)
	if err != nil {
		return nil
	}
	var out []prometheus.Metric
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out = append(out, prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...))
	}
	type why struct {
		lane   work.Lane
		reason string
	}
	parked := map[why]int64{}
	for _, p := range b.Parked {
		parked[why{p.Lane, p.Reason}] += p.Products
	}
	if b.ParkedMore > 0 {
		parked[why{work.LaneCampaign, "OTHER"}] += b.ParkedMore
	}
	for w, n := range parked {
		gauge(g.parked, float64(n), w.lane.String(), w.reason)
	}
	gauge(g.outbox, float64(b.Outbox.Rows))
	gauge(g.oldest, b.Outbox.Oldest.Seconds())
	gauge(g.intents, float64(b.Intents))
	if shops, err := g.store.Shops(ctx); err == nil {
		for i := range shops {
			if !shops[i].DeadSince.IsZero() {
				gauge(g.dead, 1, shops[i].Shop)
			}
		}
	}
	if holds, err := g.store.Holds(ctx); err == nil {
		for i := range holds {
			gauge(g.held, float64(holds[i].Products), holds[i].Shop, string(holds[i].Effect))
		}
	}
	return out
}
