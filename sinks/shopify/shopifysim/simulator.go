package shopifysim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/shelfwire/shelfwire/schemas/admin"
)

// Config configures a Simulator. The zero value is a simulator in memory, without faults, with the machine's clock.
type Config struct {
	// Dir keeps each shop's journal, so that a killed simulator loses no acknowledged mutation. Empty: in memory.
	Dir string
	// Now is the clock for buckets, timestamps and idempotency keys. Default time.Now.
	Now func() time.Time
	// Faults are injected at random by seed; the zero value injects none.
	Faults Faults
	// Latency is how long an answer takes, evenly between Min and Max. Zero answers at once.
	Latency Latency
	// MediaDelay is how long a new file takes from UPLOADED to READY. Default 0: at once.
	MediaDelay time.Duration
	// Shops exist from the start. Shops found in Dir exist too; a shop in both keeps what the journal says of its
	// locations and publications and takes token and plan from here.
	Shops []ShopConfig
	// Logger reports what New restored and what a fault did. Default: discard.
	Logger *slog.Logger
}

// Latency is a range of answer times.
type Latency struct{ Min, Max time.Duration }

// ShopConfig describes one shop.
type ShopConfig struct {
	// Domain names the shop, as in "acme.myshopify.com". Required.
	Domain string `json:"domain"`
	// Token is the access token that requests must carry. Empty: any token that is not empty.
	Token string `json:"token"`
	// Plan decides the rate limit. Default Standard.
	Plan Plan `json:"plan"`
	// Name is what shop.name answers, and the vendor of products that name none. Default: the domain's first label.
	Name string `json:"name"`
	// Currency is the shop's currency. Default "USD".
	Currency string `json:"currency"`
	// Locations are the names of the shop's locations; the first is the primary one, where new variants are
	// stocked. Default: one, "Shop location".
	Locations []string `json:"locations"`
	// Publications are the names of the shop's sales channels. Default: one, "Online Store".
	Publications []string `json:"publications"`
}

// Simulator is a set of shops behind one API. It is an http.Handler; RoundTripper serves it without a network.
type Simulator struct {
	cfg    Config
	log    *slog.Logger
	api    *api
	faults *faultSource
	late   sync.WaitGroup // requests that execute after their connection was cut

	mu    sync.RWMutex
	shops map[string]*Shop
}

// New builds a simulator and restores the shops of cfg.Dir. It starts nothing; Close it to release the journals.
func New(cfg Config) (*Simulator, error) {
	schema, err := admin.Schema()
	if err != nil {
		return nil, err
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	sim := &Simulator{
		cfg: cfg, log: cfg.Logger, api: newAPI(schema), faults: newFaultSource(cfg.Faults), shops: map[string]*Shop{},
	}
	for _, c := range cfg.Shops {
		if _, err := sim.AddShop(c); err != nil {
			return nil, errors.Join(err, sim.Close())
		}
	}
	if err := sim.restoreAll(); err != nil {
		return nil, errors.Join(err, sim.Close())
	}
	return sim, nil
}

// restoreAll opens the shops that have a journal and are not configured.
func (sim *Simulator) restoreAll() error {
	if sim.cfg.Dir == "" {
		return nil
	}
	if err := os.MkdirAll(sim.cfg.Dir, 0o755); err != nil {
		return fmt.Errorf("make the simulator's directory: %w", err)
	}
	paths, err := filepath.Glob(filepath.Join(sim.cfg.Dir, "*"+journalSuffix))
	if err != nil {
		return fmt.Errorf("list journals: %w", err)
	}
	for _, p := range paths {
		domain := strings.TrimSuffix(filepath.Base(p), journalSuffix)
		if sim.Shop(domain) != nil {
			continue
		}
		if _, err := sim.AddShop(ShopConfig{Domain: domain}); err != nil {
			return err
		}
	}
	return nil
}

// AddShop adds a shop, or restores it from its journal. A shop that exists already is an error.
func (sim *Simulator) AddShop(c ShopConfig) (*Shop, error) {
	if c.Domain == "" || strings.ContainsAny(c.Domain, `/\`) {
		return nil, fmt.Errorf("add shop: %q is no domain", c.Domain)
	}
	shop, err := openShop(sim, c)
	if err != nil {
		return nil, err
	}
	sim.mu.Lock()
	defer sim.mu.Unlock()
	if sim.shops[c.Domain] != nil {
		return nil, errors.Join(fmt.Errorf("add shop %s: it exists already", c.Domain), shop.close())
	}
	sim.shops[c.Domain] = shop
	return shop, nil
}

// Shop returns a shop by its domain or the domain's first label; nil where there is none.
func (sim *Simulator) Shop(name string) *Shop {
	sim.mu.RLock()
	defer sim.mu.RUnlock()
	if s := sim.shops[name]; s != nil {
		return s
	}
	for domain, s := range sim.shops {
		if label, _, _ := strings.Cut(domain, "."); label == name {
			return s
		}
	}
	return nil
}

// Shops returns all shops, ordered by domain.
func (sim *Simulator) Shops() []*Shop {
	sim.mu.RLock()
	defer sim.mu.RUnlock()
	out := make([]*Shop, 0, len(sim.shops))
	for _, s := range sim.shops {
		out = append(out, s)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Domain() < out[j].Domain() })
	return out
}

// Close waits for late requests and closes the journals.
func (sim *Simulator) Close() error {
	sim.late.Wait()
	var errs []error
	for _, s := range sim.Shops() {
		errs = append(errs, s.close())
	}
	return errors.Join(errs...)
}

// shutdownGrace is how long Serve lets running requests finish after ctx ends.
const shutdownGrace = 2 * time.Second

// Serve answers on ln until ctx ends, then closes the simulator.
func (sim *Simulator) Serve(ctx context.Context, ln net.Listener) error {
	server := &http.Server{Handler: sim, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan error, 1)
	go func() { done <- server.Serve(ln) }()
	select {
	case err := <-done:
		return errors.Join(fmt.Errorf("serve the simulator on %s: %w", ln.Addr(), err), sim.Close())
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer cancel()
	if err := server.Shutdown(grace); err != nil {
		_ = server.Close() // a hanging request is cut: that is what it was there for
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return errors.Join(fmt.Errorf("serve the simulator on %s: %w", ln.Addr(), err), sim.Close())
	}
	return sim.Close()
}

// Run builds a simulator and serves it on ln until ctx ends.
func Run(ctx context.Context, ln net.Listener, cfg Config) error {
	sim, err := New(cfg)
	if err != nil {
		return errors.Join(err, ln.Close())
	}
	return sim.Serve(ctx, ln)
}
