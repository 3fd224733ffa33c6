package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/config"
	"github.com/shelfwire/shelfwire/cmd/shelfwire/demo"
	"github.com/shelfwire/shelfwire/deploy/embedded"
	"github.com/shelfwire/shelfwire/deploy/embedded/clickhouse"
	"github.com/shelfwire/shelfwire/deploy/embedded/kafka"
	"github.com/shelfwire/shelfwire/deploy/embedded/postgres"
	"github.com/shelfwire/shelfwire/schemas/reference"
	"github.com/shelfwire/shelfwire/sinks/shopify/shopifysim"
	"github.com/shelfwire/shelfwire/sinks/state"
)

// The environment variables that replace an embedded part by a running service.
const (
	envPostgres   = "SHELFWIRE_POSTGRES_URL"
	envKafka      = "SHELFWIRE_KAFKA"
	envClickHouse = "SHELFWIRE_CLICKHOUSE_URL"
)

// demoParts are the services that the demo runs on.
type demoParts struct {
	dir  string
	seed uint64
	say  func(format string, args ...any)

	sourceURL, stateURL, kafkaAddr, clickhouseURL string
	shopAddr                                      string
	sim                                           *shopifysim.Simulator

	stops []func()
}

// scratch makes a directory that every embedded part can use, and returns how to remove it. What a kill leaves behind
// is removed by the next one.
func scratch(ctx context.Context, name string) (dir string, remove func(), err error) {
	s, err := embedded.NewScratch(ctx, "shelfwire", name)
	if err != nil {
		return "", nil, err
	}
	return s.Path, func() { _ = s.Remove() }, nil
}

// start brings all parts up side by side.
func (p *demoParts) start(ctx context.Context) error {
	progress := func(m string) { p.say("%s", m) }
	var pg *postgres.Server
	var ch *clickhouse.Server
	var broker *kafka.Broker
	// Servers live until stop, not until the group's context ends; but what cannot be had is told at once.
	g, starting := errgroup.WithContext(ctx)
	if p.sourceURL = os.Getenv(envPostgres); p.sourceURL == "" {
		g.Go(func() (err error) {
			pg, err = postgres.Start(starting, postgres.Config{Dir: filepath.Join(p.dir, "postgres"), Progress: progress})
			return err
		})
	}
	if p.clickhouseURL = os.Getenv(envClickHouse); p.clickhouseURL == "" {
		g.Go(func() (err error) {
			ch, err = clickhouse.Start(starting, clickhouse.Config{Dir: filepath.Join(p.dir, "clickhouse"), Progress: progress})
			if errors.Is(err, clickhouse.ErrNoLibrary) { // all but the analyst's questions can be seen without it
				p.say("clickhouse %v; the demo goes on without it", err)
				return nil
			}
			return err
		})
	}
	if p.kafkaAddr = os.Getenv(envKafka); p.kafkaAddr == "" {
		g.Go(func() (err error) {
			broker, err = kafka.Start(starting, kafka.Config{Dir: filepath.Join(p.dir, "kafka")})
			return err
		})
	}
	g.Go(func() error { return p.startShops(ctx) })
	err := g.Wait()
	if pg != nil {
		p.stops = append(p.stops, func() { _ = pg.Stop() })
	}
	if ch != nil {
		p.stops = append(p.stops, func() { _ = ch.Stop() })
		p.clickhouseURL = ch.URL("shelfwire")
	}
	if broker != nil {
		p.stops = append(p.stops, broker.Close)
		p.kafkaAddr = broker.Addr()
	}
	if err != nil {
		return err
	}
	if pg != nil {
		if p.sourceURL, err = state.Create(ctx, pg.URL("postgres"), "shop"); err != nil {
			return err
		}
	}
	if p.stateURL, err = state.Create(ctx, p.sourceURL, "shelfwire"); err != nil {
		return err
	}
	if p.clickhouseURL == "" {
		p.say("services   PostgreSQL, Kafka and two shops are up")
		return nil
	}
	p.say("services   PostgreSQL, Kafka, ClickHouse and two shops are up")
	return nil
}

// startShops serves the simulated shops. They have the largest plan, so that a first snapshot of thousands of
// products takes a minute and not the half hour that a small plan's rate limit asks for.
func (p *demoParts) startShops(ctx context.Context) error {
	cfg := shopifysim.Config{
		Dir: filepath.Join(p.dir, "shops"), Latency: shopifysim.Latency{Min: 20 * time.Millisecond, Max: 60 * time.Millisecond},
	}
	for _, s := range demo.Stores() {
		cfg.Shops = append(cfg.Shops, shopifysim.ShopConfig{
			Domain: s.Name, Token: "simulated", Plan: shopifysim.Enterprise, Locations: s.Locations, Publications: s.Publications,
		})
	}
	sim, err := shopifysim.New(cfg)
	if err != nil {
		return err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	p.sim, p.shopAddr = sim, l.Addr().String()
	serveCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = sim.Serve(serveCtx, l) // the pipeline says what it thinks of a shop that is gone
	}()
	p.stops = append(p.stops, func() { stop(); <-done })
	return nil
}

// misbehave makes the shops as unreliable as the network between here and there can be.
func (p *demoParts) misbehave() {
	p.sim.SetFaults(shopifysim.Faults{
		Seed: p.seed, ThrottleRate: 0.01, ServerErrorRate: 0.01, InternalRate: 0.005, LostResponseRate: 0.01, LostRequestRate: 0.005,
	})
}

// stop ends the parts, the last one first.
func (p *demoParts) stop() {
	for _, stop := range slices.Backward(p.stops) {
		stop()
	}
}

// config is the configuration that a user would write for these parts.
func (p *demoParts) config() (*config.Config, error) {
	routes, err := reference.Routes()
	if err != nil {
		return nil, err
	}
	c := &config.Config{
		Source:     config.Source{URL: config.Secret(p.sourceURL), SnapshotChunk: 2000},
		Kafka:      config.Kafka{Brokers: []string{p.kafkaAddr}},
		State:      config.State{URL: config.Secret(p.stateURL)},
		ClickHouse: config.ClickHouse{URL: config.Secret(p.clickhouseURL)},
		Shops:      map[string]config.Shop{},
		Documents:  reference.DocumentsSQL(),
		Routes:     routes,
		Metrics:    config.Metrics{Listen: "127.0.0.1:0"},
		Push:       config.Push{Drain: 3 * time.Second, StaleWait: time.Second}, // nobody buys in the simulated shops
	}
	for _, s := range demo.Stores() {
		c.Shops[s.Name] = config.Shop{URL: fmt.Sprintf("http://%s/%s", p.shopAddr, s.Name), Token: "simulated"}
	}
	return c, c.Complete()
}
