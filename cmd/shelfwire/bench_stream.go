package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/config"
	"github.com/shelfwire/shelfwire/sinks/shopify/shopifysim"
)

// streamShops are the stores of the rig besides those of the demo's catalog, and what is sold in each of them.
const streamShops = 50

// streamCatalog moves every product to a category of its own shop, and puts it on sale.
const streamCatalog = `
	DELETE FROM catalog.price_rules;
	INSERT INTO catalog.stores (name, publications) SELECT 'shop' || i, '{Online Store}' FROM generate_series(1, %[1]d) i;
	INSERT INTO catalog.categories (depth, name) SELECT 0, 'sold by shop' || i FROM generate_series(1, %[1]d) i;
	INSERT INTO catalog.category_stores (category_id, store_id)
	SELECT c.id, s.id FROM catalog.stores s JOIN catalog.categories c ON c.name = 'sold by ' || s.name;
	INSERT INTO catalog.warehouse_locations (warehouse_id, store_id, location)
	SELECT w.id, s.id, 'Cologne' FROM catalog.stores s JOIN catalog.warehouses w ON w.name = 'main' WHERE s.name LIKE 'shop%%';
	UPDATE catalog.products p SET kind = 'normal', approved_at = coalesce(approved_at, now()), category_id = c.id
	FROM catalog.categories c WHERE c.name = 'sold by shop' || (1 + p.id %% %[1]d);
	UPDATE catalog.variants SET approved_at = coalesce(approved_at, now()), price = coalesce(price, 10);
	ANALYZE`

// startStream brings up the parts with many shops, and a configuration without ClickHouse: what it does beside Push
// would take the two cores of a small machine for itself.
func (b *bench) startStream(ctx context.Context, products int) (*benchRig, error) {
	r, err := b.startParts(ctx, rigConfig{products: products, stores: 2})
	if err != nil {
		return r, err
	}
	if _, err := r.conn.PgConn().Exec(ctx, fmt.Sprintf(streamCatalog, streamShops)).ReadAll(); err != nil {
		return r, fmt.Errorf("spread the catalog over %d shops: %w", streamShops, err)
	}
	base := ""
	for name, s := range r.cfg.Shops { // all are behind the tap
		base = strings.TrimSuffix(s.URL, name)
	}
	for i := 1; i <= streamShops; i++ {
		name := fmt.Sprintf("shop%d", i)
		if _, err := r.parts.sim.AddShop(shopifysim.ShopConfig{
			Domain: name, Token: "simulated", Plan: shopifysim.Plus, Locations: []string{"Cologne"}, Publications: []string{"Online Store"},
		}); err != nil {
			return r, err
		}
		r.cfg.Shops[name] = config.Shop{URL: base + name, Token: "simulated"}
	}
	r.cfg.ClickHouse.URL = ""
	return r, r.cfg.Complete()
}

// streamRate is how many changes a second are committed.
const streamRate = 1000

// measureStream commits changes at a high rate over many shops, with nothing else waiting and with a million parked
// products of campaigns, by turns.
func measureStream(ctx context.Context, b *bench) (out []figure, err error) {
	r, err := b.startStream(ctx, b.few(4000, 500))
	defer r.close()
	if err != nil {
		return nil, err
	}
	err = b.runPipeline(ctx, r, func(ctx context.Context, r *benchRig) error {
		if err := r.settle(ctx); err != nil {
			return err
		}
		b.say("stream: the catalog is in %d shops", streamShops)
		out, err = b.stream(ctx, r)
		return err
	})
	return out, err
}

func (b *bench) stream(ctx context.Context, r *benchRig) ([]figure, error) {
	rounds, lasts, rate := b.few(3, 1), time.Duration(b.few(6, 2))*time.Second, b.few(streamRate, 100)
	parked := b.few(1_000_000, 10_000)
	products, variants, err := r.forSale(ctx)
	if err != nil {
		return nil, err
	}
	if least := rate * int(r.cfg.Push.Quiet.Seconds()*2+1); len(products) < least {
		return nil, fmt.Errorf("%d products are for sale; changing one of them at most once a second needs %d", len(products), least)
	}
	if err := r.fillAside(ctx, parked); err != nil {
		return nil, err
	}
	if _, err := r.streamRound(ctx, products, variants, rate, lasts/4); err != nil { // plans and connections are made
		return nil, err
	}
	var slower []figure
	for _, share := range []int{4, 2} { // the highest rate takes both cores of a small machine: this is where it begins to
		run, err := r.streamRound(ctx, products, variants, rate/share, lasts)
		if err != nil {
			return nil, err
		}
		how := fmt.Sprintf("as at %d changes/s, one round; the last change was committed %.0f ms late; %.1f products a request", rate, run.behind, run.shared)
		slower = append(slower,
			shown(fmt.Sprintf("the same at %d changes/s, p50", rate/share), run.p50, "ms", how),
			shown(fmt.Sprintf("the same at %d changes/s, p99", rate/share), run.p99, "ms", how))
	}
	var alone, beside []streamRun
	for range rounds {
		for _, list := range []*[]streamRun{&alone, &beside} {
			run, err := r.streamRound(ctx, products, variants, rate, lasts)
			if err != nil {
				return nil, err
			}
			*list = append(*list, run)
			if err := r.swapParked(ctx); err != nil {
				return nil, err
			}
		}
		b.say("stream: p50 %.0f ms, p99 %.0f ms; with %d parked p50 %.0f ms, p99 %.0f ms", last(alone).p50, last(alone).p99, parked, last(beside).p50, last(beside).p99)
	}
	figures := streamFigures(r, alone, beside, rate, lasts, parked, len(products))
	return slices.Insert(figures, 2, slower...), nil
}

func last(list []streamRun) streamRun { return list[len(list)-1] }

func streamFigures(r *benchRig, alone, beside []streamRun, rate int, lasts time.Duration, parked, products int) []figure {
	values := func(list []streamRun, f func(streamRun) float64) []float64 {
		out := make([]float64, len(list))
		for i := range list {
			out[i] = f(list[i])
		}
		return out
	}
	p50 := func(s streamRun) float64 { return s.p50 }
	p99 := func(s streamRun) float64 { return s.p99 }
	ratios := func(f func(streamRun) float64) (out []float64) {
		for i := range alone {
			out = append(out, f(beside[i])/f(alone[i]))
		}
		return out
	}
	how := func(f func(streamRun) float64) string {
		return fmt.Sprintf("%d single price changes a second, each a transaction of its own by one of %d clients, for %.0f s over %d products of %d simulated shops that "+
			"answer in 20 to 60 ms; the whole pipeline but Load in one process with the shops, the reference schema and its documents query; from COMMIT's answer in the "+
			"client to the request's arrival in front of the shop, less the quiet period of %d ms; median of %d rounds (%s ms); the last change was committed %.0f ms "+
			"late; %.1f products a request", rate, streamClients, lasts.Seconds(), products, streamShops, r.cfg.Push.Quiet.Milliseconds(), len(alone), listed(values(alone, f)),
			medianOf(values(alone, func(s streamRun) float64 { return s.behind })), medianOf(values(alone, func(s streamRun) float64 { return s.shared })))
	}
	beside50, beside99 := medianOf(values(beside, p50)), medianOf(values(beside, p99))
	while := func(f func(streamRun) float64, v float64) string {
		return fmt.Sprintf("%d rounds by turns with those above; %d parked products: half of ten paused campaigns, a quarter of five dead shops, a quarter due in a day; "+
			"median of the rounds' ratios (%s); %.0f ms", len(alone), parked, listed(ratios(f)), v)
	}
	return []figure{
		atMost("commit to request less quiet, 1,000 changes/s over 50 shops, p50", medianOf(values(alone, p50)), "ms", 50, how(p50)),
		atMost("commit to request less quiet, 1,000 changes/s over 50 shops, p99", medianOf(values(alone, p99)), "ms", 250, how(p99)),
		atMost("the same p50 while 1,000,000 products are parked ÷ without", medianOf(ratios(p50)), "ratio", 1.2, while(p50, beside50)),
		atMost("the same p99 while 1,000,000 products are parked ÷ without", medianOf(ratios(p99)), "ratio", 1.2, while(p99, beside99)),
	}
}

func listed(list []float64) string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = fmt.Sprintf("%.3g", v)
	}
	return strings.Join(out, ", ")
}

// streamRun is what one round has shown, in ms less the quiet period.
type streamRun struct {
	p50, p99 float64
	behind   float64 // how late the last change was committed
	shared   float64 // changes a request
}

// streamClients commit at the same time: one alone might not keep the rate.
const streamClients = 4

func (r *benchRig) streamRound(ctx context.Context, products []int64, variants map[int64][]int64, rate int, d time.Duration) (s streamRun, err error) {
	conns := make([]*pgx.Conn, streamClients)
	for i := range conns {
		if conns[i], err = pgx.Connect(ctx, r.parts.sourceURL); err != nil {
			return s, err
		}
		defer func() { _ = conns[i].Close(context.WithoutCancel(ctx)) }()
	}
	var mu sync.Mutex
	committed := map[string]time.Time{}
	mark := r.tap.mark()
	changes := int(d.Seconds()*float64(rate)) / streamClients
	interval := time.Second * streamClients / time.Duration(rate)
	first := r.cents + 1
	r.cents += changes * streamClients
	g, gctx := errgroup.WithContext(ctx)
	for c, conn := range conns {
		g.Go(func() error {
			began := time.Now()
			err := pace(gctx, changes, interval, func(i int) error {
				n := i*streamClients + c
				price := fmt.Sprintf("%d.%02d", (first+n)/100, (first+n)%100)
				_, err := conn.Exec(gctx, `UPDATE catalog.variants SET price = $2::text::numeric WHERE id = $1`, variants[products[n%len(products)]][0], price)
				at := time.Now()
				mu.Lock()
				committed[price] = at
				mu.Unlock()
				return err
			})
			late := time.Since(began) - time.Duration(changes-1)*interval
			mu.Lock()
			s.behind = max(s.behind, float64(late.Milliseconds()))
			mu.Unlock()
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return s, err
	}
	if err := r.streamed(ctx); err != nil {
		return s, err
	}
	requests := r.tap.since(mark)
	arrived, err := pricesAt(requests, func(t tapped) time.Time { return t.answered.Add(-t.took) })
	if err != nil {
		return s, err
	}
	var took []time.Duration
	for price, at := range committed {
		in, ok := arrived[price]
		if !ok {
			return s, fmt.Errorf("price %s was committed and never came to a shop", price)
		}
		took = append(took, in.Sub(at)-r.cfg.Push.Quiet)
	}
	slices.Sort(took)
	ms := func(q float64) float64 { return float64(quantile(took, q).Microseconds()) / 1000 }
	s.p50, s.p99, s.shared = ms(0.5), ms(0.99), float64(len(committed))/float64(max(1, len(requests)))
	return s, nil
}

// streamed waits until every change is settled. What is parked for other reasons stays.
func (r *benchRig) streamed(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Minute, errors.New("not at rest after 2 minutes"))
	defer cancel()
	end, err := query[string](ctx, r.parts.sourceURL, `SELECT pg_current_wal_flush_lsn()::text`)
	if err != nil {
		return err
	}
	err = poll(ctx, 100*time.Millisecond, func(ctx context.Context) (bool, error) {
		return query[bool](ctx, r.parts.sourceURL, `SELECT confirmed_flush_lsn >= $1::pg_lsn FROM pg_replication_slots WHERE slot_name = $2`, end, r.cfg.Source.Slot)
	})
	if err == nil {
		quiet := time.Now()
		err = poll(ctx, 50*time.Millisecond, func(ctx context.Context) (bool, error) {
			n, err := query[int64](ctx, r.parts.stateURL, `SELECT count(*) FROM parked WHERE campaign = 0 AND lane < 3`)
			if p := r.app.push.Stats(); n+p.Hot.Load()+p.Flying.Load() > 0 {
				quiet = time.Now()
			}
			return time.Since(quiet) > r.cfg.Push.Quiet, err
		})
	}
	return errors.Join(err, context.Cause(ctx))
}

// fillAside makes a table of parked products that takes the place of the state's own by swapParked.
func (r *benchRig) fillAside(ctx context.Context, n int) error {
	conn, err := pgx.Connect(ctx, r.parts.stateURL)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	_, err = conn.PgConn().Exec(ctx, fmt.Sprintf(`
		CREATE TABLE parked_aside (LIKE parked INCLUDING ALL);
		INSERT INTO campaigns (id, kind, total) SELECT 'bench/' || i, 'replay', %[1]d / 20 FROM generate_series(0, 9) i;
		INSERT INTO pauses (what, by) SELECT 'campaign/bench/' || i, 'bench' FROM generate_series(0, 9) i;
		INSERT INTO shops (shop, dead_since, reason, next_probe)
		SELECT 'dead' || i, now(), 'HTTP 402', now() + interval '1 day' FROM generate_series(0, 4) i;
		INSERT INTO campaigns (id, kind, total) VALUES ('bench/open', 'replay', %[1]d / 2);
		INSERT INTO parked_aside (product_id, shop, campaign, partition, lane, due, generation, reason, changes)
		SELECT 'parked-' || i, CASE WHEN i %% 4 = 3 THEN 'dead' || i %% 5 ELSE '' END,
			(SELECT no FROM campaigns WHERE id = CASE WHEN i %% 2 = 0 THEN 'bench/' || i / 2 %% 10 ELSE 'bench/open' END),
			i %% 8, 3, now() + CASE WHEN i %% 4 = 1 THEN interval '1 day' ELSE interval '0' END, nextval('generations'), 'replay', 1
		FROM generate_series(1, %[1]d) i;
		ANALYZE parked_aside`, n)).ReadAll()
	if err != nil {
		return fmt.Errorf("fill a table of parked products: %w", err)
	}
	return nil
}

// swapParked exchanges the two tables of parked products.
func (r *benchRig) swapParked(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, r.parts.stateURL)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	_, err = conn.PgConn().Exec(ctx, `BEGIN; ALTER TABLE parked RENAME TO parked_now; ALTER TABLE parked_aside RENAME TO parked;
		ALTER TABLE parked_now RENAME TO parked_aside; COMMIT`).ReadAll()
	if err != nil {
		return fmt.Errorf("exchange the tables of parked products: %w", err)
	}
	return nil
}
