package shopifysim

import (
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"
)

// Shop is one shop of a simulator. Its methods are safe for concurrent use; requests to one shop execute one at a
// time, as a mutation at Shopify sees all or nothing of another.
type Shop struct {
	sim    *Simulator
	cfg    ShopConfig
	mu     sync.Mutex
	store  *store
	bucket *bucket
	log    *journal // nil in memory
	stats  Stats
	health FaultKind
	next   []*Fault // injected for the next matching requests
}

// Stats counts what a shop has served since the simulator started.
type Stats struct {
	// Requests that reached the shop with a good token, whatever became of them.
	Requests int `json:"requests"`
	// Executed requests, Throttled and otherwise Refused ones (invalid documents, variables, cost), and Faulted ones.
	Executed  int `json:"executed"`
	Throttled int `json:"throttled"`
	Refused   int `json:"refused"`
	Faulted   int `json:"faulted"`
	// Mutations and Queries executed, by root field.
	Mutations map[string]int `json:"mutations"`
	Queries   map[string]int `json:"queries"`
	// PointsRequested and PointsUsed of executed requests.
	PointsRequested int `json:"points_requested"`
	PointsUsed      int `json:"points_used"`
	// UserErrors that mutations returned.
	UserErrors int `json:"user_errors"`
}

func newStats() Stats { return Stats{Mutations: map[string]int{}, Queries: map[string]int{}} }

// openShop builds a shop, from its journal where it has one.
func openShop(sim *Simulator, c ShopConfig) (*Shop, error) {
	s := &Shop{sim: sim, cfg: c, stats: newStats()}
	if sim.cfg.Dir == "" {
		s.found(sim.cfg.Now())
		return s, nil
	}
	if err := s.restore(); err != nil {
		return nil, fmt.Errorf("open shop %s: %w", c.Domain, err)
	}
	return s, nil
}

// found fills defaults and creates locations and publications. It is the first entry of a journal and repeats
// exactly.
func (s *Shop) found(now time.Time) {
	c := &s.cfg
	label, _, _ := strings.Cut(c.Domain, ".")
	if c.Name == "" {
		c.Name = label
	}
	if c.Currency == "" {
		c.Currency = "USD"
	}
	if len(c.Locations) == 0 {
		c.Locations = []string{"Shop location"}
	}
	if len(c.Publications) == 0 {
		c.Publications = []string{"Online Store"}
	}
	s.store = newStore(c.Domain, c.Name, c.Currency)
	s.store.now, s.store.mediaDelay = now, s.sim.cfg.MediaDelay
	for _, name := range c.Locations {
		s.store.addLocation(name, map[string]any{"countryCode": "US"}, true)
	}
	for _, name := range c.Publications {
		s.store.channels = append(s.store.channels, &publication{id: s.store.ids.take(), name: name})
	}
	s.bucket = newBucket(c.Plan, now)
}

// Domain names the shop.
func (s *Shop) Domain() string { return s.cfg.Domain }

// Stats returns a copy of the shop's counters.
func (s *Shop) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.stats
	out.Mutations, out.Queries = maps.Clone(s.stats.Mutations), maps.Clone(s.stats.Queries)
	return out
}

// ResetStats sets the counters to zero.
func (s *Shop) ResetStats() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats = newStats()
}

// Points returns what the bucket holds now.
func (s *Shop) Points() float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bucket.restore(s.sim.cfg.Now())
	return s.bucket.level
}

// SetPoints sets what the bucket holds, as if another app had used the rest.
func (s *Shop) SetPoints(points float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bucket.restore(s.sim.cfg.Now())
	s.bucket.level = min(points, s.bucket.max)
}

// SetRestoreRate changes the shop's rate limit in points a second, as Shopify does under load.
func (s *Shop) SetRestoreRate(rate float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bucket.setRate(rate, s.sim.cfg.Now())
}

func (s *Shop) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.log == nil {
		return nil
	}
	log := s.log
	s.log = nil
	return log.close()
}
