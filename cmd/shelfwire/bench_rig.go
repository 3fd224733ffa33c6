package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/config"
	"github.com/shelfwire/shelfwire/sinks/shopify/shopifysim"
)

// rigConfig says what to measure on.
type rigConfig struct {
	products int
	// stores is 2, as in the demo, or 3: the products that the demo sells nowhere go to a store of their own.
	stores int
}

// benchRig is a demo's parts with a tap in front of the shops, and perhaps a pipeline in this process.
type benchRig struct {
	*demoRun
	tap  *shopTap
	cfg  *config.Config
	conn *pgx.Conn // the client that commits
	// cents is the last price given, so that every price of a run is another one.
	cents int

	stops []func()
}

// westStore is the third store: what the generated catalog sells nowhere.
const westStore = `
	WITH s AS (INSERT INTO catalog.stores (name, publications) VALUES ('west', '{Online Store}') RETURNING id),
	     l AS (INSERT INTO catalog.warehouse_locations (warehouse_id, store_id, location)
	           SELECT w.id, s.id, CASE w.name WHEN 'main' THEN 'Cologne' ELSE 'Aachen' END FROM s, catalog.warehouses w)
	INSERT INTO catalog.category_stores (category_id, store_id)
	SELECT c.id, s.id FROM s, catalog.categories c
	WHERE c.parent_id IS NULL AND NOT EXISTS (SELECT FROM catalog.category_stores r WHERE r.category_id = c.id)`

// startParts brings up the parts, the catalog and the tap. close must be called also after an error.
func (b *bench) startParts(ctx context.Context, c rigConfig) (*benchRig, error) {
	r := &benchRig{cents: 100_000, demoRun: &demoRun{
		demoFlags: demoFlags{products: c.products, seed: b.seed}, out: io.Discard, log: b.log, began: b.began,
	}}
	if b.verbose {
		r.out = b.errOut
	}
	dir, remove, err := scratch(ctx, "bench")
	if err != nil {
		return r, err
	}
	r.stops = append(r.stops, remove)
	r.parts = &demoParts{dir: dir, seed: b.seed, say: r.say}
	r.stops = append(r.stops, r.parts.stop)
	if err := r.parts.start(ctx); err != nil {
		return r, err
	}
	if err := r.loadCatalog(ctx); err != nil {
		return r, err
	}
	if r.conn, err = pgx.Connect(ctx, r.parts.sourceURL); err != nil {
		return r, err
	}
	r.stops = append(r.stops, func() { _ = r.conn.Close(context.WithoutCancel(ctx)) })
	if c.stores == 3 {
		if _, err := r.conn.Exec(ctx, westStore); err != nil {
			return r, fmt.Errorf("add a third store: %w", err)
		}
		if _, err := r.parts.sim.AddShop(shopifysim.ShopConfig{
			Domain: "west", Token: "simulated", Plan: shopifysim.Plus,
			Locations: []string{"Cologne", "Aachen"}, Publications: []string{"Online Store"},
		}); err != nil {
			return r, err
		}
	}
	addr, err := r.serveTap(ctx)
	if err != nil {
		return r, err
	}
	if r.cfg, err = r.parts.config(); err != nil {
		return r, err
	}
	for _, s := range r.parts.sim.Shops() {
		r.cfg.Shops[s.Domain()] = config.Shop{URL: fmt.Sprintf("http://%s/%s", addr, s.Domain()), Token: "simulated"}
	}
	return r, r.cfg.Complete()
}

// serveTap puts the tap in front of the shops and returns its address.
func (r *benchRig) serveTap(ctx context.Context) (string, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	r.tap = newShopTap(r.parts.sim)
	// What a cut connection leaves in the server's log is what the faults are there for.
	server := &http.Server{
		Handler: r.tap, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(r.log.Handler(), slog.LevelDebug),
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l) // ends with Close below
	}()
	r.stops = append(r.stops, func() { _ = server.Close(); <-done })
	return l.Addr().String(), nil
}

// close ends everything, the last one first.
func (r *benchRig) close() {
	for _, stop := range slices.Backward(r.stops) {
		stop()
	}
}

// withPipeline runs measure beside a whole pipeline in this process, and ends when either does.
func (b *bench) withPipeline(ctx context.Context, c rigConfig, measure func(context.Context, *benchRig) error) error {
	r, err := b.startParts(ctx, c)
	defer r.close()
	if err != nil {
		return err
	}
	return b.runPipeline(ctx, r, measure)
}

// runPipeline runs measure beside a whole pipeline in this process on parts that stand.
func (b *bench) runPipeline(ctx context.Context, r *benchRig, measure func(context.Context, *benchRig) error) (err error) {
	r.app, err = openApp(ctx, r.cfg, options{roles: allRoles}, b.log)
	defer r.app.close()
	if err != nil {
		return err
	}
	runCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, measureCtx := errgroup.WithContext(ctx)
	g.Go(func() error {
		err := r.app.run(runCtx)
		if runCtx.Err() == nil && err == nil {
			err = errors.New("the pipeline ended by itself")
		}
		return err
	})
	g.Go(func() error {
		defer stop()
		return measure(measureCtx, r)
	})
	return g.Wait()
}

// settle waits until the whole catalog stands in the shops and nothing is on its way.
func (r *benchRig) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 5*time.Minute, errors.New("the catalog was not in the shops after 5 minutes"))
	defer cancel()
	if err := r.firstSnapshot(ctx); err != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	return errors.Join(r.calm(ctx), context.Cause(ctx))
}

// rest waits until what was committed has arrived everywhere.
func (r *benchRig) rest(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Minute, errors.New("not at rest after 2 minutes"))
	defer cancel()
	if err := r.calm(ctx); err != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	return nil
}

// price returns a price that no other change of this run has.
func (r *benchRig) price() string {
	r.cents++
	return fmt.Sprintf("%d.%02d", r.cents/100, r.cents%100)
}

// perShop lists, in order of their ids, the products that exactly one shop sells, by shop.
func (r *benchRig) perShop() (map[string][]int64, error) {
	made, err := creations(r.tap.since(0))
	if err != nil {
		return nil, err
	}
	shops := map[string][]string{}
	for c := range made {
		shops[c.product] = append(shops[c.product], c.shop)
	}
	out := map[string][]int64{}
	for product, in := range shops {
		id, err := strconv.ParseInt(product, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("a shop has product %q: %w", product, err)
		}
		if len(in) == 1 {
			out[in[0]] = append(out[in[0]], id)
		}
	}
	for _, ids := range out {
		slices.Sort(ids)
	}
	return out, nil
}

// spread returns n products that one shop sells each, taking the shops in turn.
func spread(byShop map[string][]int64, n int) []int64 {
	shops := slices.Sorted(maps.Keys(byShop))
	var out []int64
	for i := 0; len(out) < n; i++ {
		before := len(out)
		for _, s := range shops {
			if i < len(byShop[s]) && len(out) < n {
				out = append(out, byShop[s][i])
			}
		}
		if len(out) == before {
			break
		}
	}
	return out
}

// forSale returns the products that exactly one shop sells, taking the shops in turn, and their variants that are for
// sale.
func (r *benchRig) forSale(ctx context.Context) (products []int64, variants map[int64][]int64, err error) {
	byShop, err := r.perShop()
	if err != nil {
		return nil, nil, err
	}
	products = spread(byShop, math.MaxInt)
	variants, err = r.soldVariants(ctx, products)
	return products, variants, err
}

// soldVariants returns the variants of products that are for sale, in order of product and position.
func (r *benchRig) soldVariants(ctx context.Context, products []int64) (map[int64][]int64, error) {
	rows, err := r.conn.Query(ctx, `
		SELECT product_id, id FROM catalog.variants
		WHERE product_id = ANY($1) AND approved_at IS NOT NULL AND price IS NOT NULL
		ORDER BY product_id, position, id`, products)
	if err != nil {
		return nil, err
	}
	out := map[int64][]int64{}
	var product, variant int64
	_, err = pgx.ForEachRow(rows, []any{&product, &variant}, func() error {
		out[product] = append(out[product], variant)
		return nil
	})
	return out, err
}

// shopTotals is what the simulated shops have counted, all together.
type shopTotals struct{ requests, mutations, points int }

func (r *benchRig) totals() (t shopTotals) {
	for _, s := range r.parts.sim.Shops() {
		st := s.Stats()
		t.requests += st.Requests
		t.points += st.PointsRequested
		for _, n := range st.Mutations {
			t.mutations += n
		}
	}
	return t
}

func (t shopTotals) minus(o shopTotals) shopTotals {
	return shopTotals{t.requests - o.requests, t.mutations - o.mutations, t.points - o.points}
}

// pace calls do n times, every interval from the first call on; a late call does not move the next.
func pace(ctx context.Context, n int, interval time.Duration, do func(i int) error) error {
	began := time.Now()
	for i := range n {
		t := time.NewTimer(time.Until(began.Add(time.Duration(i) * interval)))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
		if err := do(i); err != nil {
			return err
		}
	}
	return nil
}
