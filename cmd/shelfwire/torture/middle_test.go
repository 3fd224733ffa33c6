package torture

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/demo"
	"github.com/shelfwire/shelfwire/deploy/embedded/clickhouse"
	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/sinks/shopify/shopifysim"
	"github.com/shelfwire/shelfwire/sinks/state"
)

// middle is one schedule of the stages between Kafka and the shops, in this process: a source, a state, a broker and
// shops of their own; hands that capture, expand, push, relay and load; blows, and a comparison.
type middle struct {
	*world
	plan   middlePlan
	ground *middleGround
	server *sourceServer
	broker *broker
	sim    *shopifysim.Simulator
	clerks *clerks
	log    safeLog

	hands   map[string]*hand // who is in a place now
	all     []*hand          // who ever was
	entered int

	unlucky   atomic.Pointer[[]*misstep] // what goes wrong, once somebody comes to its step
	documents atomic.Int32               // what is wrong with the query
	calmShops atomic.Bool
	requests  atomic.Int64
	doubled   atomic.Int64
	hits      atomic.Int64 // steps that went wrong

	blows    map[string]int
	asked    []string // snapshots
	replayed int
}

// misstep is what goes wrong at one step, so many times.
type misstep struct {
	step, what string
	span       time.Duration
	left       atomic.Int64
}

// middleGround is what all trials of a run stand on.
type middleGround struct {
	t      *testing.T
	server *sourceServer
	binary string
	engine *clickhouse.Server // nil until somebody asks for it
}

// The databases that every trial begins with a copy of.
const sourceTemplate, stateTemplate = "source_template", "state_template"

const middleProducts = 24

func newMiddleGround(t *testing.T) *middleGround {
	t.Helper()
	g := &middleGround{t: t, server: newSourceServer(t)}
	w := &world{t: t, dir: embeddedtest.Dir(t), admin: g.server.url("postgres"), setup: setup{products: middleProducts, seed: 3}}
	require.NoError(t, w.build(t.Context()))
	g.binary = w.binary
	for _, sql := range []string{`ALTER SYSTEM SET fsync = off`, `ALTER SYSTEM SET max_connections = 300`} { // kills of the server lose nothing by that
		g.server.exec("postgres", sql)
	}
	g.server.now().Kill()
	g.server.port = g.server.now().Port()
	g.server.start(nil)
	g.server.exec("postgres", "CREATE DATABASE "+sourceTemplate)
	g.server.exec("postgres", "CREATE DATABASE "+stateTemplate)
	g.server.with(sourceTemplate, func(ctx context.Context, conn *pgx.Conn) error {
		if err := demo.Install(ctx, conn); err != nil {
			return err
		}
		return demo.Generate(ctx, conn, demo.Config{Products: middleProducts, Seed: 3})
	})
	store, err := state.Open(t.Context(), state.Config{URL: g.server.url(stateTemplate)})
	require.NoError(t, err)
	defer store.Close()
	require.NoError(t, store.Migrate(t.Context()))
	return g
}

// tables is the engine, started for the first one who asks.
func (g *middleGround) tables(database string) string {
	if g.engine == nil {
		var err error
		g.engine, err = clickhouse.Start(g.t.Context(), clickhouse.Config{Dir: embeddedtest.Dir(g.t)})
		require.NoError(g.t, err)
		g.t.Cleanup(func() { _ = g.engine.Stop() })
	}
	return g.engine.URL(database)
}

// TestMiddleTorture runs schedules against Expand, Push, Relay and Load: kills and freezes at any step, takeovers and
// storms, cuts, delays, doubled and lost answers, dead shops, broken documents, steps of the clock, campaigns that are
// paused and cancelled, during random transactions. Then all copies of the data are held against each other, row by row.
func TestMiddleTorture(t *testing.T) {
	seeds := trialSeeds(t, 10)
	ground := newMiddleGround(t)
	results := openResults(t)
	for _, seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			began := time.Now()
			m := newMiddle(t, planMiddle(seed), ground)
			f := &findings{}
			defer func() { results.add(t, seed, m.line(f, time.Since(began))) }() // also of one that gives up
			m.play()
			m.compare(f)
		})
	}
}

func newMiddle(t *testing.T, p middlePlan, g *middleGround) *middle {
	t.Helper()
	m := &middle{
		world: &world{t: t, dir: embeddedtest.Dir(t), binary: g.binary, byName: map[string]*part{}, setup: setup{seed: p.seed, late: true}},
		plan:  p, ground: g, server: g.server, hands: map[string]*hand{}, blows: map[string]int{},
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("SEED=%d repeats this schedule:\n%s", p.seed, &p)
			if dir := os.Getenv("SHELFWIRE_TORTURE_KEEP"); dir != "" {
				require.NoError(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("middle-%d.log", p.seed)), []byte(m.log.String()), 0o600))
			}
		}
	})
	g.server.t = t
	g.server.revive()
	source, store := fmt.Sprintf("source_%d", p.seed), fmt.Sprintf("state_%d", p.seed)
	g.server.exec("postgres", "CREATE DATABASE "+source+" TEMPLATE "+sourceTemplate)
	g.server.exec("postgres", "CREATE DATABASE "+store+" TEMPLATE "+stateTemplate)
	t.Cleanup(func() {
		m.clear()
		hangUp(m.sourceURL, m.stateURL)
		for _, database := range []string{source, store} {
			if err := g.server.drop(database); err != nil {
				t.Error(err)
			}
		}
	})
	m.sourceURL, m.stateURL = g.server.url(source), g.server.url(store)
	if p.tables {
		m.clickhouseURL = g.tables(fmt.Sprintf("middle_%d", p.seed))
	}
	m.broker = newBroker(t)
	_, port, err := net.SplitHostPort(m.broker.addrs[0])
	require.NoError(t, err)
	m.kafkaPort, err = strconv.Atoi(port)
	require.NoError(t, err)
	m.openShops()
	m.configure()
	m.prepare(t.Context())
	require.NoError(t, m.cluster.EnsureTopics(t.Context()))
	m.clerks = &clerks{seed: p.seed, write: writeCatalog, pace: 12 * time.Millisecond}
	return m
}

// openShops opens the shops, to hands through their doors, and to those who compare by a port.
func (m *middle) openShops() {
	cfg := shopifysim.Config{}
	for _, s := range demo.Stores() {
		cfg.Shops = append(cfg.Shops, shopifysim.ShopConfig{Domain: s.Name, Plan: shopifysim.Enterprise, Locations: s.Locations, Publications: s.Publications})
	}
	var err error
	m.sim, err = shopifysim.New(cfg)
	require.NoError(m.t, err)
	l, err := (&net.ListenConfig{}).Listen(m.t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(m.t, err)
	m.shopPort = l.Addr().(*net.TCPAddr).Port
	server := &http.Server{Handler: m.sim, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(l) }()
	m.t.Cleanup(func() { _ = server.Close(); _ = m.sim.Close() })
	m.trouble(true)
}

// trouble has the shops fail now and then, or no more.
func (m *middle) trouble(on bool) {
	f := shopifysim.Faults{}
	if on {
		f = shopifysim.Faults{
			Seed: m.plan.seed, ThrottleRate: 0.02, ServerErrorRate: 0.02, InternalRate: 0.02, LostResponseRate: 0.03, LostRequestRate: 0.02,
			GarbageRate: 0.01, HangRate: 0.01, LateBy: middleLateBy,
		}
		if m.plan.late {
			f.LateRate = 0.03
		}
	}
	m.calmShops.Store(!on)
	m.sim.SetFaults(f)
	for _, s := range demo.Stores() {
		m.sim.Shop(s.Name).SetHealth(shopifysim.Healthy)
	}
}

// clear ends what runs.
func (m *middle) clear() {
	m.clerks.stop()
	m.unlucky.Store(nil)
	for _, h := range m.all {
		h.strike()
	}
	for _, h := range m.all {
		<-h.done
	}
}

// play has the plan happen, and ends when everything has come to rest and nobody is at work any more.
func (m *middle) play() {
	t := m.t
	for _, place := range m.plan.places {
		m.enter(place)
	}
	m.awaitSlot()
	m.clerks.start(func() string { return m.sourceURL })
	rest(t.Context(), 300*time.Millisecond)
	for _, b := range m.plan.blows {
		rest(t.Context(), b.after)
		m.blows[b.kind]++
		_, _ = fmt.Fprintf(&m.log, "%s === %s\n", time.Now().Format(time.RFC3339Nano), b.kind)
		m.strike(b)
		m.tend()
	}
	rest(t.Context(), 200*time.Millisecond)
	m.clerks.stop()
	require.NoError(t, m.clerks.fatal)
	m.settle()
	for _, h := range m.all {
		h.stop()
		if !h.dead.Load() {
			require.NoError(t, h.err, "clean stop of %s", h.name)
		}
	}
}

// tend puts somebody in the place of everybody who was killed. Nobody may have ended by himself.
func (m *middle) tend() {
	m.t.Helper()
	for _, place := range slices.Sorted(maps.Keys(m.hands)) {
		h := m.hands[place]
		if h.dead.Load() {
			m.enter(place)
			continue
		}
		select {
		case <-h.done:
			require.FailNow(m.t, "a hand has ended by itself", "%s: %v", h.name, h.err)
		default:
		}
	}
}

// settle lets everything go and waits until nothing is left to do.
func (m *middle) settle() {
	t := m.t
	t.Helper()
	_, _ = fmt.Fprintf(&m.log, "%s === settle\n", time.Now().Format(time.RFC3339Nano))
	m.unlucky.Store(nil)
	m.tend()
	for _, h := range m.hands {
		h.thaw()
		h.proxy.mend()
	}
	m.trouble(false)
	m.documents.Store(documentsRight)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	require.NoError(t, m.calmDown(ctx))
	end, err := one[string](ctx, m.sourceURL, `SELECT pg_current_wal_insert_lsn()::text`)
	require.NoError(t, err)
	_, err = query[string](ctx, m.sourceURL, `SELECT pg_logical_emit_message(true, 'torture', 'the end')::text`)
	require.NoError(t, err)
	waiting := ""
	for rest(ctx, 200*time.Millisecond) {
		m.tend()
		if err = m.hurry(ctx); err == nil {
			waiting, err = m.waiting(ctx, end)
		}
		if err == nil && waiting == "" {
			return
		}
	}
	if dir := os.Getenv("SHELFWIRE_TORTURE_KEEP"); dir == "" {
		t.Log(tail(m.log.String(), 6000))
	}
	require.FailNow(t, "no calm", "%s %v\n%s", waiting, err, m.dump(context.WithoutCancel(ctx)))
}

// compare holds all copies of the data against each other.
func (m *middle) compare(f *findings) {
	topics, err := m.topics(m.t.Context())
	require.NoError(m.t, err)
	require.NoError(m.t, m.collect(m.t.Context(), f, topics))
	for _, must := range []string{"live records of catalog.changes", "outcomes", "audit: products", "batches", "items", "shadows", "last outcomes"} {
		require.Positive(m.t, f.compared[must], "nothing was compared: %s", must)
	}
	f.report(m.t, 12)
}

func (m *middle) collect(ctx context.Context, f *findings, topics map[string][]event.Record) error {
	return m.world.collect(ctx, f, topics, demo.Marks{RolledBack: []string{neverCommitted}}, m.asked)
}

// line is what the results say of a trial.
func (m *middle) line(f *findings, took time.Duration) string {
	var kinds []string
	for kind, n := range m.blows {
		kinds = append(kinds, fmt.Sprintf("%s x%d", kind, n))
	}
	slices.Sort(kinds)
	tables := "no tables"
	if m.plan.tables {
		tables = fmt.Sprint(f.compared["rows of view changes"]+f.compared["rows of view outcomes"], " rows in tables")
	}
	return fmt.Sprintf("%d committed, %d rolled back, %d refused; %d records, %d fan-outs, %d batches, %d outcomes, %d products in shops, %s; "+
		"%d requests, %d doubled; %d hands, %d steps went wrong, %d products replayed; [%s]; %.1f s",
		m.clerks.commits.Load(), m.clerks.rolls.Load(), m.clerks.fails.Load(), f.compared["live records of catalog.changes"],
		f.compared["fan-outs"], f.compared["batches"], f.compared["outcomes"], f.compared["products in the shops"], tables,
		m.requests.Load(), m.doubled.Load(), m.entered, m.hits.Load(), m.replayed, strings.Join(kinds, ", "), took.Seconds())
}
