package torture

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	kafkatopics "github.com/shelfwire/shelfwire/connectors/kafka"
	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/sinks/state"
)

// siege is a schedule with real processes: a source, a broker, and two of `shelfwire run --only capture`, of which one
// stands by. Each is killed, and comes back by itself.
type siege struct {
	*world
	plan     siegePlan
	database string // connection string of the source
	files    map[string]string
	proxies  map[string]*proxy
	clerks   *clerks
	evidence evidence
	blows    map[string]int
}

// siegePlan is the schedule of one siege. It follows from the seed alone.
type siegePlan struct {
	seed           uint64
	ddl, truncates bool
	blows          []blow
}

var siegeKinds = []string{
	"kill capture-a", "kill capture-b", "kill capture-a", "kill capture-b", "kill both captures", "freeze capture-a", "freeze capture-b",
	"kill postgres", "kill kafka", "freeze kafka", "silence a", "silence b", "cut a", "cut b", "delays", "end backends", "drop the slot",
	"request by message", "request by command", "checkpoint",
}

func planSiege(seed uint64) siegePlan {
	rng := rand.New(rand.NewPCG(seed, 0x51e6e))
	p := siegePlan{seed: seed, ddl: rng.IntN(3) > 0, truncates: rng.IntN(4) == 0}
	dropped := false
	for range 8 + rng.IntN(4) {
		b := blow{
			after: 300*time.Millisecond + time.Duration(rng.IntN(1500))*time.Millisecond, kind: siegeKinds[rng.IntN(len(siegeKinds))],
			span: time.Duration(rng.IntN(1500)) * time.Millisecond, pick: rng.Uint64(),
		}
		if b.kind == "drop the slot" {
			if dropped {
				b.kind = siegeKinds[0]
			}
			dropped = true
		}
		p.blows = append(p.blows, b)
	}
	return p
}

func (p *siegePlan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: ddl %t, truncates %t\n", p.seed, p.ddl, p.truncates)
	for _, bl := range p.blows {
		fmt.Fprintf(&b, "  after %s %s, for %s (%d)\n", bl.after, bl.kind, bl.span, bl.pick)
	}
	return b.String()
}

// siegeTimeout is the sender_timeout of the captures: so long a silence costs one of them the slot.
const siegeTimeout = 2 * time.Second

// TestCaptureTortureProcesses tortures the capture of the real program, in processes that are killed by signals.
func TestCaptureTortureProcesses(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	seeds := trialSeeds(t, 1)
	if os.Getenv("SCHEDULES") == "" && len(seeds) > 3 {
		seeds = seeds[:3]
	}
	results := openResults(t)
	binary := &world{t: t, dir: t.TempDir()}
	require.NoError(t, binary.build(t.Context()))
	for _, seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			began := time.Now()
			s := newSiege(t, planSiege(seed), binary.binary)
			f := &findings{}
			defer func() { results.add(t, seed, s.line(f, time.Since(began))) }() // also of one that gives up
			s.run(f)
		})
	}
}

func newSiege(t *testing.T, p siegePlan, binary string) *siege {
	t.Helper()
	s := &siege{
		world: &world{t: t, dir: embeddedtest.Dir(t), binary: binary, byName: map[string]*part{}}, plan: p,
		files: map[string]string{}, proxies: map[string]*proxy{}, blows: map[string]int{},
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("SEED=%d repeats this schedule:\n%s", p.seed, &p)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	for _, port := range []*int{&s.postgresPort, &s.kafkaPort} {
		var err error
		*port, err = freePort(ctx)
		require.NoError(t, err)
	}
	t.Cleanup(s.keepLogs)
	t.Cleanup(s.stopServices)
	s.add("postgres", s.launchPostgres)
	s.add("kafka", s.launchKafka)
	require.NoError(t, s.waitAll(ctx))
	var err error
	s.database, err = state.Create(ctx, s.admin, "shop")
	require.NoError(t, err)
	s.stateURL, err = state.Create(ctx, s.admin, "shelfwire")
	require.NoError(t, err)
	s.evidence.witness = witness{slot: "witness", commits: map[uint32]change.LSN{}}
	conn, err := pgx.Connect(ctx, s.database)
	require.NoError(t, err)
	defer func() { _ = conn.Close(ctx) }()
	// Transactions are streamed before their end from 64 kB on.
	for _, sql := range []string{
		`ALTER SYSTEM SET logical_decoding_work_mem = '64kB'`, `SELECT pg_reload_conf()`, trialTables,
		`SELECT pg_create_logical_replication_slot('witness', 'pgoutput')`,
	} {
		_, err = conn.Exec(ctx, sql)
		require.NoError(t, err)
	}
	s.evidence.topics, err = s.openCluster()
	require.NoError(t, err)
	t.Cleanup(s.evidence.topics.Close)
	for _, name := range []string{"a", "b"} {
		s.proxies[name] = newProxy(t, net.JoinHostPort("127.0.0.1", strconv.Itoa(s.postgresPort)))
		s.files[name] = s.write(name)
	}
	s.clerks = &clerks{seed: p.seed, ddl: p.ddl, truncates: p.truncates, whole: true}
	return s
}

// write writes the configuration of one capture, whose way to the source is its own.
func (s *siege) write(name string) string {
	t := s.t
	t.Helper()
	_, port, err := net.SplitHostPort(s.proxies[name].addr())
	require.NoError(t, err)
	through := strings.Replace(s.database, ":"+strconv.Itoa(s.postgresPort), ":"+port, 1)
	routes, err := yaml.Marshal(map[string]any{"routes": trialRoutes})
	require.NoError(t, err)
	text := fmt.Sprintf("source: {url: %q, heartbeat: 1s, snapshot_chunk: 10, snapshot_readers: 2, sender_timeout: %s, spill_dir: %q, heal: {most: 1000}}\n",
		through, siegeTimeout, s.dir) +
		fmt.Sprintf("kafka: {brokers: [\"127.0.0.1:%d\"], partitions: %d}\nstate: {url: %q}\n", s.kafkaPort, partitions, s.stateURL) +
		"shops: {main: {url: \"http://127.0.0.1:1\", token: none}}\ndocuments: \"SELECT id AS product_id, 'main' AS shop, '{}'::jsonb AS document FROM items WHERE id = ANY ($1)\"\n" +
		"batches: {rows: 40, products: 20}\nmetrics: {listen: \"off\"}\nlog: {format: text}\n" + string(routes)
	file := filepath.Join(s.dir, name+".yaml")
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	return file
}

func (s *siege) capture(name string) {
	s.add("capture-"+name, func(context.Context) (running, error) {
		return startProcess(filepath.Join(s.dir, "capture-"+name+".log"), s.binary, "run", "-c", s.files[name], "--only", "capture")
	})
}

func (s *siege) run(f *findings) {
	t := s.t
	s.capture("a")
	writer := "capture/shelfwire"
	require.Eventually(t, func() bool {
		pos, ok, err := s.evidence.topics.ReadPosition(t.Context(), kafkatopics.CapturePartition, writer)
		return err == nil && ok && pos.CommitLSN != 0
	}, 90*time.Second, 5*time.Millisecond, "no position")
	s.evidence.first = s.end()
	s.clerks.start(func() string { return s.database })
	s.capture("b")
	for _, b := range s.plan.blows {
		rest(t.Context(), b.after)
		s.blows[b.kind]++
		s.strike(b)
	}
	rest(t.Context(), time.Second)
	s.clerks.stop()
	require.NoError(t, s.clerks.fatal)
	s.settle()
	// Topics are read one after the other, and a capture may still find a reason to read a table again.
	for _, name := range []string{"capture-a", "capture-b"} {
		_, _, exits := s.byName[name].account()
		for _, e := range exits {
			t.Errorf("%s has ended by itself: %s", name, tail(e, 800))
		}
		require.NoError(t, s.endPart(name), "clean stop")
	}
	require.NoError(t, s.evidence.compare(t.Context(), f, s.database))
	f.report(t, 12)
}

// strike does what a blow says.
func (s *siege) strike(b blow) {
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*time.Minute)
	defer cancel()
	rng := rand.New(rand.NewPCG(b.pick, 0xb10))
	what, who, _ := strings.Cut(b.kind, " ")
	switch {
	case b.kind == "kill both captures":
		for _, name := range []string{"capture-a", "capture-b"} {
			require.NoError(s.t, s.byName[name].kill(ctx, strike{down: b.span}))
		}
	case what == "kill" && who != "":
		require.NoError(s.t, s.byName[who].kill(ctx, strike{down: b.span}))
	case b.kind == "freeze kafka":
		require.NoError(s.t, s.byName[who].kill(ctx, strike{down: b.span, freeze: true}))
	case what == "freeze":
		require.NoError(s.t, s.byName[who].kill(ctx, strike{down: siegeTimeout + b.span, freeze: true}))
	case what == "silence":
		s.proxies[who].cut()
		rest(ctx, b.span*3)
		s.proxies[who].mend()
	case what == "cut":
		s.proxies[who].drop()
	case b.kind == "delays":
		for _, p := range s.proxies {
			p.slow(time.Duration(1+rng.IntN(20)) * time.Millisecond)
		}
		rest(ctx, b.span)
		for _, p := range s.proxies {
			p.slow(0)
		}
	case b.kind == "end backends":
		s.sql(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'shelfwire%'`)
	case b.kind == "drop the slot":
		s.sql(dropSlot("shelfwire"))
	case b.kind == "request by message":
		id := fmt.Sprintf("r%d", len(s.evidence.asked))
		s.sql(`SELECT pg_logical_emit_message(true, 'shelfwire.snapshot', '{"id": "` + id + `", "products": ["p1", "p2"]}')`)
		s.evidence.asked = append(s.evidence.asked, id)
	case b.kind == "request by command":
		if s.command(ctx, "snapshot", "-c", s.files["a"], "public.items", "--where", "price > 3") {
			s.evidence.asked = append(s.evidence.asked, "by command")
		}
	case b.kind == "checkpoint":
		s.sql("CHECKPOINT")
	default:
		require.FailNow(s.t, "no such blow", b.kind)
	}
}

// command runs the program once, while the source is there.
func (w *world) command(ctx context.Context, args ...string) bool {
	require.NoError(w.t, w.byName["postgres"].wait(ctx))
	out, err := exec.CommandContext(ctx, w.binary, args...).CombinedOutput()
	if err != nil {
		w.t.Logf("%s: %v: %s", args, err, out)
	}
	return err == nil
}

// sql runs a statement on the source, past the proxies, as soon as the source is there.
func (s *siege) sql(sql string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	require.NoError(s.t, s.byName["postgres"].wait(ctx))
	conn, err := pgx.Connect(ctx, s.database)
	require.NoError(s.t, err)
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.Exec(ctx, sql)
	require.NoError(s.t, err)
}

func (s *siege) end() change.LSN {
	s.t.Helper()
	text, err := one[string](s.t.Context(), s.database, `SELECT pg_current_wal_insert_lsn()::text`)
	require.NoError(s.t, err)
	end, err := change.ParseLSN(text)
	require.NoError(s.t, err)
	return end
}

// settle waits until everything that was committed is in Kafka and no snapshot runs.
func (s *siege) settle() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*time.Minute)
	defer cancel()
	require.NoError(s.t, s.waitAll(ctx))
	end := s.end()
	s.sql(`INSERT INTO unrouted VALUES (1)`)
	for {
		pos, ok, err := s.evidence.topics.ReadPosition(ctx, kafkatopics.CapturePartition, "capture/shelfwire")
		if err == nil && ok && pos.CommitLSN >= end && len(pos.Snapshots) == 0 {
			return
		}
		if !rest(ctx, 20*time.Millisecond) {
			for _, name := range []string{"a", "b"} {
				s.byName["capture-"+name].quit() // and says where it stands
				log, _ := os.ReadFile(filepath.Join(s.dir, "capture-"+name+".log"))
				s.t.Logf("capture-%s: %s", name, tail(string(log), 40_000))
			}
			require.FailNow(s.t, "capture does not come to the end", "%s: %+v %v", end, pos, err)
		}
	}
}

func (s *siege) line(f *findings, took time.Duration) string {
	var kinds []string
	for kind, n := range s.blows {
		kinds = append(kinds, fmt.Sprintf("%s x%d", kind, n))
	}
	slices.Sort(kinds)
	broker := "embedded Kafka"
	if os.Getenv("SHELFWIRE_TEST_KAFKA") == "apache" {
		broker = "Apache Kafka"
	}
	return fmt.Sprintf("processes, %s: %d committed, %d rolled back, %d refused; %d rows owed, %d rows in gaps, %d records, %d rows compared; %d healings, %d snapshots asked for; %s; %.1f s",
		broker, s.clerks.commits.Load(), s.clerks.rolls.Load(), s.clerks.fails.Load(), f.compared["rows of the history"], f.compared["rows in gaps"],
		f.compared["records of the stream"], f.compared["rows of the tables"], f.compared["healings"], len(s.evidence.asked), kinds, took.Seconds())
}
