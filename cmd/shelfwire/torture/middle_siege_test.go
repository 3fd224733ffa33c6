package torture

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/demo"
	"github.com/shelfwire/shelfwire/sinks/shopify/shopifysim"
)

// middleSiege is a schedule with real processes: a role each, two or three of what there may be several of, every one
// behind proxies of its own to Postgres, ClickHouse and the shops.
type middleSiege struct {
	*world
	plan    middleSiegePlan
	proxies map[string]map[string]*proxy // of a process, by service
	lobbies map[string]*lobby            // of a process, to the shops
	blows   map[string]int
	mended  time.Duration // until the shops were true again, from the end of the traffic
	commits int64
}

// middleSiegePlan is the schedule of one siege. It follows from the seed alone.
type middleSiegePlan struct {
	seed  uint64
	late  bool
	blows []blow
}

// middleRoles are the processes of a siege.
var middleRoles = []struct{ name, only string }{
	{"capture", "capture"},
	{"expand-a", "expand"},
	{"expand-b", "expand"},
	{"push-a", "push"},
	{"push-b", "push"},
	{"push-c", "push"},
	{"relay-a", "relay"},
	{"relay-b", "relay"},
	{"load", "load"},
}

var middleSiegeKinds = []string{
	"kill", "kill", "kill", "kill", "freeze", "freeze", "freeze", "kill service", "kill service", "silence", "silence", "cut", "cut", "delays",
	"end backends", "join and leave", "shop dead", "pause", "pause", "cancel", "replay", "exclude", "clock", "lobby",
}

func planMiddleSiege(seed uint64) middleSiegePlan {
	rng := rand.New(rand.NewPCG(seed, 0x3ddd51e6e))
	p := middleSiegePlan{seed: seed, late: rng.IntN(4) == 0}
	for range 9 + rng.IntN(5) {
		p.blows = append(p.blows, blow{
			after: 200*time.Millisecond + time.Duration(rng.IntN(1200))*time.Millisecond, kind: middleSiegeKinds[rng.IntN(len(middleSiegeKinds))],
			span: time.Duration(rng.IntN(1500)) * time.Millisecond, pick: rng.Uint64(),
		})
	}
	return p
}

func (p *middleSiegePlan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: late %t\n", p.seed, p.late)
	for _, bl := range p.blows {
		fmt.Fprintf(&b, "  after %s %s, for %s (%d)\n", bl.after, bl.kind, bl.span, bl.pick)
	}
	return b.String()
}

// TestMiddleTortureProcesses tortures the stages between Kafka and the shops in processes that are killed by signals.
func TestMiddleTortureProcesses(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	seeds := trialSeeds(t, 1)
	if os.Getenv("SCHEDULES") == "" && len(seeds) > 2 {
		seeds = seeds[:2]
	}
	results := openResults(t)
	for _, seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			began := time.Now()
			s := newMiddleSiege(t, planMiddleSiege(seed))
			f := &findings{}
			defer func() { results.add(t, seed, s.line(f, time.Since(began))) }() // also of one that gives up
			s.run(f)
		})
	}
}

func newMiddleSiege(t *testing.T, p middleSiegePlan) *middleSiege {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("SEED=%d repeats this schedule:\n%s", p.seed, &p)
		}
	})
	s := &middleSiege{
		world: newWorld(t, setup{seed: p.seed, products: 60, late: p.late}), plan: p, proxies: map[string]map[string]*proxy{},
		lobbies: map[string]*lobby{}, blows: map[string]int{},
	}
	for _, r := range middleRoles {
		s.enlist(r.name, r.only)
	}
	return s
}

// enlist starts a process with a configuration of its own, in which every service but Kafka is behind a proxy.
func (s *middleSiege) enlist(name, only string) {
	t := s.t
	t.Helper()
	text, err := os.ReadFile(s.file)
	require.NoError(t, err)
	file := filepath.Join(s.dir, name+".yaml")
	s.proxies[name] = map[string]*proxy{}
	for service, port := range map[string]int{"postgres": s.postgresPort, "clickhouse": s.clickhousePort} {
		real := ":" + strconv.Itoa(port)
		p := newProxy(t, "127.0.0.1"+real)
		_, through, _ := net.SplitHostPort(p.addr())
		text = []byte(strings.ReplaceAll(string(text), real+"/", ":"+through+"/"))
		s.proxies[name][service] = p
	}
	s.lobbies[name] = newLobby(t, s.shopURL(""), s.plan.seed)
	text = []byte(strings.ReplaceAll(string(text), s.shopURL(""), s.lobbies[name].url))
	require.NoError(t, os.WriteFile(file, text, 0o600))
	s.add(name, func(context.Context) (running, error) {
		return startProcess(filepath.Join(s.dir, name+".log"), s.binary, "run", "-c", file, "--only", only)
	})
}

func (s *middleSiege) run(f *findings) {
	t := s.t
	s.awaitSlot("capture")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	office := &backOffice{url: s.sourceURL, seed: s.plan.seed}
	wrote := make(chan struct{})
	go func() { defer close(wrote); office.run(ctx) }()
	rest(ctx, time.Second)
	for _, b := range s.plan.blows {
		rest(ctx, b.after)
		s.blows[b.kind]++
		s.strike(ctx, b)
	}
	rest(ctx, time.Second)
	stop()
	<-wrote
	s.commits = office.stats.Committed
	s.settle()
	var makers, others []string
	for _, r := range middleRoles {
		if r.only == "relay" || r.only == "load" {
			others = append(others, r.name)
		} else {
			makers = append(makers, r.name)
		}
	}
	s.account()
	limited, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	s.settleDown(limited, makers, others)
	s.compare(limited, f, office)
}

// settle lets everything go and waits until all is at rest.
func (s *middleSiege) settle() {
	t := s.t
	ctx, cancel := context.WithTimeout(t.Context(), 12*time.Minute)
	defer cancel()
	for name := range s.proxies {
		for _, p := range s.proxies[name] {
			p.mend()
		}
		s.lobbies[name].set(lobbyOpen)
	}
	require.NoError(t, s.waitAll(ctx))
	s.tidy()
	require.NoError(t, s.misbehave(ctx, false))
	for _, shop := range demo.Stores() {
		require.NoError(t, s.health(ctx, shop.Name, shopifysim.Healthy))
	}
	require.NoError(t, s.calmDown(ctx))
	quiet := time.Now()
	done := make(chan struct{})
	watching, stop := context.WithCancel(ctx)
	go func() {
		defer close(done)
		for rest(watching, 250*time.Millisecond) {
			_ = s.hurry(watching) // a failed one is followed by others
			if sold, err := s.sold(watching); err == nil {
				f := &findings{}
				if err := s.compareSales(watching, f, sold); err == nil && len(f.wrong) > 0 {
					s.mended = time.Since(quiet)
				}
			}
		}
	}()
	err := s.calm(ctx, 11*time.Minute)
	stop()
	<-done
	require.NoError(t, err)
	t.Logf("calm after %s; the shops were true after %s", time.Since(quiet).Round(100*time.Millisecond), s.mended.Round(100*time.Millisecond))
}

// strike does what a blow says.
func (s *middleSiege) strike(ctx context.Context, b blow) {
	limited, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	rng := rand.New(rand.NewPCG(b.pick, 0xb10))
	name := middleRoles[rng.IntN(len(middleRoles))].name
	way := []string{"postgres", "postgres", "clickhouse"}[rng.IntN(3)]
	if !strings.HasPrefix(name, "load") {
		way = "postgres"
	}
	p := s.proxies[name][way]
	switch b.kind {
	case "kill":
		require.NoError(s.t, s.byName[name].kill(limited, strike{down: b.span}))
	case "freeze":
		down := time.Second + b.span
		if rng.IntN(2) == 0 {
			down = lease + b.span
		}
		require.NoError(s.t, s.byName[name].kill(limited, strike{down: down, freeze: true}))
	case "kill service":
		service := []string{"postgres", "kafka", "clickhouse", "shop"}[rng.IntN(4)]
		require.NoError(s.t, s.byName[service].kill(limited, strike{down: b.span, freeze: service == "kafka" && rng.IntN(2) == 0}))
	case "silence":
		p.cut()
		rest(ctx, 3*b.span)
		p.mend()
	case "cut":
		p.drop()
	case "delays":
		p.slow(time.Duration(1+rng.IntN(20)) * time.Millisecond)
		rest(ctx, 2*b.span)
		p.slow(0)
	case "lobby":
		l := s.lobbies[[]string{"push-a", "push-b", "push-c"}[rng.IntN(3)]]
		l.set([]int32{lobbyTwice, lobbySlow, lobbyLost, lobbyShut}[rng.IntN(4)])
		rest(ctx, 2*b.span)
		l.set(lobbyOpen)
	case "join and leave":
		for i := range 2 {
			guest := fmt.Sprintf("push-guest-%d-%d", s.blows[b.kind], i)
			s.enlist(guest, "push")
			for rest(limited, 50*time.Millisecond) { // before it runs, SIGTERM is no clean stop
				if log, _ := os.ReadFile(filepath.Join(s.dir, guest+".log")); strings.Contains(string(log), "msg=running") {
					break
				}
			}
			rest(ctx, b.span)
			require.NoError(s.t, s.endPart(guest), "clean stop")
		}
	default:
		s.intervene(limited, b, rng)
	}
}

// intervene is what shops and people do. A command that meets a service that is away is not given again.
func (s *middleSiege) intervene(ctx context.Context, b blow, rng *rand.Rand) {
	shop := demo.Stores()[rng.IntN(2)].Name
	switch b.kind {
	case "end backends":
		_, _ = query[bool](ctx, s.admin, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname IN ('shop', 'shelfwire')`)
	case "shop dead":
		kinds := []shopifysim.FaultKind{shopifysim.Unauthorized, shopifysim.Locked, shopifysim.Unavailable, shopifysim.LostResponse, shopifysim.GatewayTimeout}
		_ = s.health(ctx, shop, kinds[rng.IntN(len(kinds))])
		rest(ctx, 2*b.span)
		_ = s.health(ctx, shop, shopifysim.Healthy)
	case "pause":
		flags := [][]string{{"--all"}, {"--shop", shop}, {"--lane", "campaign"}, {"--lane", "live"}}[rng.IntN(4)]
		if id := s.openCampaign(ctx, rng); id != "" && rng.IntN(2) == 0 {
			flags = []string{"--campaign", id}
		}
		s.command(ctx, append([]string{"pause", "-c", s.file}, flags...)...)
		rest(ctx, 2*b.span)
		if rng.IntN(3) > 0 { // else it stays so until the end
			s.command(ctx, append([]string{"resume", "-c", s.file}, flags...)...)
		}
	case "cancel":
		id := s.openCampaign(ctx, rng)
		if id == "" || !s.command(ctx, "campaigns", "-c", s.file, id, "--cancel") {
			return
		}
		replayed := false // or what was cancelled would stay as it is; refused while one of them is deleted
		for !replayed && rest(ctx, 10*time.Millisecond) {
			ids, err := query[string](ctx, s.sourceURL, `SELECT id::text FROM catalog.products`)
			replayed = err == nil && s.command(ctx, "replay", "-c", s.file, "--product", strings.Join(ids, ","))
		}
		require.True(s.t, replayed)
	case "replay":
		s.command(ctx, "replay", "-c", s.file, "--product", fmt.Sprintf("%d,%d,%d", 1+rng.IntN(60), 1+rng.IntN(60), 1+rng.IntN(60)))
	case "exclude":
		id := strconv.Itoa(1 + rng.IntN(60))
		s.command(ctx, "exclude", "-c", s.file, id)
		rest(ctx, b.span)
		if rng.IntN(2) == 0 {
			s.command(ctx, "include", "-c", s.file, id)
		}
	case "clock":
		_ = s.stepClock(ctx, !s.plan.late && rng.IntN(2) == 0)
	default:
		require.FailNow(s.t, "no such blow", b.kind)
	}
}

// openCampaign draws one, empty where there is none or the state is away.
func (s *middleSiege) openCampaign(ctx context.Context, rng *rand.Rand) string {
	ids, err := query[string](ctx, s.stateURL, `SELECT id FROM campaigns WHERE ended_at IS NULL AND NOT cancelled ORDER BY no`)
	if err != nil || len(ids) == 0 {
		return ""
	}
	return ids[rng.IntN(len(ids))]
}

// health has a shop fail in one way, or no more.
func (s *middleSiege) health(ctx context.Context, shop string, kind shopifysim.FaultKind) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.shopURL("_sim/"+shop+"/health"), strings.NewReader(`{"kind": "`+string(kind)+`"}`))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

func (s *middleSiege) line(f *findings, took time.Duration) string {
	var kinds []string
	for kind, n := range s.blows {
		kinds = append(kinds, fmt.Sprintf("%s x%d", kind, n))
	}
	slices.Sort(kinds)
	late := "no late requests"
	if s.plan.late {
		late = "late requests"
	}
	return fmt.Sprintf("processes, %s: %d committed; %d records, %d fan-outs, %d batches, %d outcomes, %d products in shops, %d rows in tables; "+
		"the shops were true %.1f s after the last commit; [%s]; %.1f s", late, s.commits, f.compared["live records of catalog.changes"],
		f.compared["fan-outs"], f.compared["batches"], f.compared["outcomes"], f.compared["products in the shops"],
		f.compared["rows of view changes"]+f.compared["rows of view outcomes"], s.mended.Seconds(), strings.Join(kinds, ", "), took.Seconds())
}
