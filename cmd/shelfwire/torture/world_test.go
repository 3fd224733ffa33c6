package torture

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/config"
	"github.com/shelfwire/shelfwire/cmd/shelfwire/demo"
	kafkatopics "github.com/shelfwire/shelfwire/connectors/kafka"
	source "github.com/shelfwire/shelfwire/connectors/postgres"
	"github.com/shelfwire/shelfwire/deploy/embedded/clickhouse"
	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/deploy/embedded/postgres"
	"github.com/shelfwire/shelfwire/schemas/reference"
	"github.com/shelfwire/shelfwire/sinks/shopify/shopifysim"
	"github.com/shelfwire/shelfwire/sinks/state"
)

const (
	partitions = 8
	// lease is short enough for several takeovers within a run, and longer than three requests of timeout.
	lease   = 6 * time.Second
	timeout = 2 * time.Second
	// lateRequest is pipeline.PushConfig's default: so long a request whose answer was lost may still land.
	lateRequest = 2 * time.Minute

	oracleSlot = "oracle"
)

// world is everything that runs in one test.
type world struct {
	t      *testing.T
	setup  setup
	dir    string
	binary string
	file   string // the configuration

	parts  []*part
	byName map[string]*part

	postgresPort, kafkaPort, clickhousePort, shopPort int
	admin, sourceURL, stateURL, clickhouseURL         string

	cluster *kafkatopics.Cluster
	state   *state.Store
	cfg     *config.Config
	shifted bool // the state's clock was set back
}

// setup is what a test wants of its world.
type setup struct {
	seed     uint64
	products int
	// plain leaves ClickHouse out and has shops without faults.
	plain bool
	// late has requests that land long after they were given up. What they leave behind is mended 2 min later.
	late bool
}

// newWorld starts the services and prepares their contents. Nothing of Shelfwire runs yet.
func newWorld(t *testing.T, s setup) *world {
	t.Helper()
	w := &world{t: t, setup: s, dir: embeddedtest.Dir(t), byName: map[string]*part{}}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute) // a first download and a first build included
	defer cancel()
	for _, port := range []*int{&w.postgresPort, &w.kafkaPort, &w.clickhousePort, &w.shopPort} {
		var err error
		*port, err = freePort(ctx)
		require.NoError(t, err)
	}
	t.Cleanup(w.keepLogs)
	t.Cleanup(w.stopServices)
	var g errgroup.Group
	g.Go(func() error { return w.build(ctx) })
	w.add("postgres", w.launchPostgres)
	w.add("kafka", w.launchKafka)
	if !s.plain {
		w.add("clickhouse", w.launchClickHouse)
	}
	require.NoError(t, w.waitAll(ctx))
	require.NoError(t, g.Wait())
	w.add("shop", w.launchShop)
	require.NoError(t, w.waitAll(ctx))
	require.NoError(t, w.fill(ctx))
	w.configure()
	w.prepare(ctx)
	return w
}

func (w *world) add(name string, launch func(context.Context) (running, error)) *part {
	p := newPart(name, launch)
	w.parts = append(w.parts, p)
	w.byName[name] = p
	p.begin(w.t.Context())
	return p
}

func (w *world) waitAll(ctx context.Context) error {
	for _, p := range w.parts {
		if err := p.wait(ctx); err != nil {
			_, _, exits := p.account()
			return fmt.Errorf("%w: %s", err, strings.Join(exits, "\n"))
		}
	}
	return nil
}

func (w *world) build(ctx context.Context) error {
	w.binary = filepath.Join(w.dir, "shelfwire")
	out, err := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-o", w.binary, "..").CombinedOutput()
	if err != nil {
		return fmt.Errorf("build shelfwire: %w: %s", err, out)
	}
	return nil
}

func (w *world) launchPostgres(ctx context.Context) (running, error) {
	s, err := embeddedtest.StartPostgres(ctx, postgres.Config{Dir: filepath.Join(w.dir, "postgres"), Port: w.postgresPort})
	if err != nil {
		return nil, err // not s, which would be a running that is not nil
	}
	if w.admin == "" { // the first start, which everyone waits for
		w.admin = s.URL("postgres")
	}
	return s, nil
}

// launchKafka runs the broker that tests are to run on.
func (w *world) launchKafka(ctx context.Context) (running, error) {
	return embeddedtest.StartKafka(ctx, filepath.Join(w.dir, "kafka"), w.kafkaPort)
}

func (w *world) openCluster() (*kafkatopics.Cluster, error) {
	return kafkatopics.New(kafkatopics.Config{Brokers: []string{fmt.Sprintf("127.0.0.1:%d", w.kafkaPort)}, Partitions: partitions})
}

func (w *world) launchClickHouse(ctx context.Context) (running, error) {
	s, err := clickhouse.Start(ctx, clickhouse.Config{Dir: filepath.Join(w.dir, "clickhouse"), Port: w.clickhousePort})
	if err != nil {
		return nil, err
	}
	if w.clickhouseURL == "" {
		w.clickhouseURL = s.URL("shelfwire")
	}
	return s, nil
}

func (w *world) shopURL(path string) string {
	return fmt.Sprintf("http://127.0.0.1:%d/%s", w.shopPort, path)
}

// launchShop runs the simulated shops, large ones whose budget is not what a run waits for.
func (w *world) launchShop(ctx context.Context) (running, error) {
	args := []string{
		"shop", "--listen", fmt.Sprintf("127.0.0.1:%d", w.shopPort), "--plan", "enterprise", "--data", filepath.Join(w.dir, "shops"),
	}
	for _, s := range demo.Stores() {
		args = append(args, "--shop", s.Name+"="+strings.Join(s.Locations, ","))
	}
	p, err := startProcess(filepath.Join(w.dir, "shop.log"), w.binary, args...)
	if err != nil {
		return nil, err
	}
	for w.misbehave(ctx, !w.setup.plain) != nil {
		select {
		case <-p.Done():
			return nil, errors.New(p.Log())
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			p.Kill()
			return nil, ctx.Err()
		}
	}
	return p, nil
}

// misbehave makes the shops fail now and then, or no more.
func (w *world) misbehave(ctx context.Context, on bool) error {
	f := shopifysim.Faults{}
	if on {
		f = shopifysim.Faults{
			Seed: w.setup.seed, ThrottleRate: 0.02, ServerErrorRate: 0.01, InternalRate: 0.01, LostResponseRate: 0.02, LostRequestRate: 0.01,
			GarbageRate: 0.005,
		}
		if w.setup.late {
			f.LateRate = 0.01
		}
	}
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.shopURL("_sim/faults"), bytes.NewReader(b))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("set the shops' faults: %s", resp.Status)
	}
	return nil
}

// fill makes source and state, and their contents.
func (w *world) fill(ctx context.Context) (err error) {
	if w.sourceURL, err = state.Create(ctx, w.admin, "shop"); err != nil {
		return err
	}
	if w.stateURL, err = state.Create(ctx, w.admin, "shelfwire"); err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, w.sourceURL)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if err := demo.Install(ctx, conn); err != nil {
		return err
	}
	return demo.Generate(ctx, conn, demo.Config{Products: w.setup.products, Seed: w.setup.seed})
}

// configure writes the file that a user would write for these services.
func (w *world) configure() {
	var b strings.Builder
	fmt.Fprintf(&b, "source: {url: %q, heartbeat: 1s, snapshot_chunk: 200}\n", w.sourceURL)
	fmt.Fprintf(&b, "kafka: {brokers: [\"127.0.0.1:%d\"], partitions: %d}\n", w.kafkaPort, partitions)
	fmt.Fprintf(&b, "state: {url: %q}\n", w.stateURL)
	if w.clickhouseURL != "" {
		fmt.Fprintf(&b, "clickhouse: {url: %q}\n", w.clickhouseURL)
	}
	b.WriteString("shops:\n")
	for _, s := range demo.Stores() {
		fmt.Fprintf(&b, "  %s: {url: %q, token: simulated, timeout: %s}\n", s.Name, w.shopURL(s.Name), timeout)
	}
	// The guard is not what is tested here: a run of many segments takes more off sale than it would let pass.
	fmt.Fprintf(&b, "documents_file: documents.sql\nroutes_file: routes.yaml\npush: {lease: %s}\nguard: {floor: 1000000}\n", lease)
	b.WriteString("metrics: {listen: \"off\"}\nlog: {format: text}\n")
	w.file = filepath.Join(w.dir, "shelfwire.yaml")
	for name, text := range map[string][]byte{
		"shelfwire.yaml": []byte(b.String()), "documents.sql": []byte(reference.DocumentsSQL()), "routes.yaml": reference.RoutesYAML(),
	} {
		require.NoError(w.t, os.WriteFile(filepath.Join(w.dir, name), text, 0o600))
	}
	var err error
	w.cfg, err = config.Load(w.file, os.LookupEnv)
	require.NoError(w.t, err)
}

// prepare sets up what the comparison needs to see from the beginning: a slot beside Shelfwire's own, and a record of
// what goes into the outbox.
func (w *world) prepare(ctx context.Context) {
	src, err := w.openSource(ctx)
	require.NoError(w.t, err)
	defer src.Close()
	require.NoError(w.t, src.EnsurePublication(ctx, w.cfg.Tables()))
	_, err = src.EnsureSlot(ctx)
	require.NoError(w.t, err)

	w.state, err = state.Open(ctx, state.Config{URL: w.stateURL, MaxConns: 2})
	require.NoError(w.t, err)
	require.NoError(w.t, w.state.Migrate(ctx))
	w.t.Cleanup(w.state.Close)
	conn, err := pgx.Connect(ctx, w.stateURL)
	require.NoError(w.t, err)
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.Exec(ctx, `
		CREATE TABLE emitted AS SELECT id, topic, partition, key, value FROM outbox;
		CREATE FUNCTION emit() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			INSERT INTO emitted SELECT id, topic, partition, key, value FROM added;
			RETURN NULL;
		END $$;
		CREATE TRIGGER emit AFTER INSERT ON outbox REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION emit()`)
	require.NoError(w.t, err)
	_, err = conn.Exec(ctx, endingsSQL)
	require.NoError(w.t, err)

	w.cluster, err = w.openCluster()
	require.NoError(w.t, err)
	w.t.Cleanup(w.cluster.Close)
}

// openSource reaches the source by the oracle's slot.
func (w *world) openSource(ctx context.Context) (*source.Source, error) {
	return source.Open(ctx, source.Config{URL: w.sourceURL, Slot: oracleSlot, Publication: w.cfg.Source.Publication, MaxConns: 2})
}

// run starts a process of Shelfwire.
func (w *world) run(name string, flags ...string) *part {
	args := append([]string{"run", "-c", w.file}, flags...)
	return w.add(name, func(context.Context) (running, error) {
		return startProcess(filepath.Join(w.dir, name+".log"), w.binary, args...)
	})
}

// endPart stops one part cleanly and takes it off the list.
func (w *world) endPart(name string) error {
	p := w.byName[name]
	for i := range w.parts {
		if w.parts[i] == p {
			w.parts = append(w.parts[:i:i], w.parts[i+1:]...)
			break
		}
	}
	return p.end()
}

// stopServices ends what still runs, the last part first. Only a part that was ended before must have ended cleanly.
func (w *world) stopServices() {
	hangUp(w.sourceURL, w.stateURL, w.admin)
	for _, p := range slices.Backward(w.parts) {
		if err := p.end(); err != nil {
			w.t.Log(err)
		}
	}
}

// keepLogs copies the logs to where they outlive the run.
func (w *world) keepLogs() {
	to := os.Getenv("SHELFWIRE_TORTURE_KEEP")
	if to == "" {
		return
	}
	files, err := filepath.Glob(filepath.Join(w.dir, "*.log"))
	require.NoError(w.t, err)
	to = filepath.Join(to, strings.ReplaceAll(w.t.Name(), "/", "-"))
	require.NoError(w.t, os.MkdirAll(to, 0o755))
	for _, f := range files {
		b, err := os.ReadFile(f)
		require.NoError(w.t, err)
		require.NoError(w.t, os.WriteFile(filepath.Join(to, filepath.Base(f)), b, 0o600))
	}
	w.t.Logf("logs are in %s", to)
}

// spare are connections of earlier questions, by connection string: a new one costs the server a process each.
var spare struct {
	sync.Mutex
	idle map[string][]*pgx.Conn
}

// query asks a database one question. A connection that a kill has broken since the last question is replaced.
func query[T any](ctx context.Context, url, sql string, args ...any) ([]T, error) {
	spare.Lock()
	var conn *pgx.Conn
	if idle := spare.idle[url]; len(idle) > 0 {
		conn, spare.idle[url] = idle[len(idle)-1], idle[:len(idle)-1]
	}
	spare.Unlock()
	if conn != nil && conn.Ping(ctx) != nil {
		_ = conn.Close(context.WithoutCancel(ctx))
		conn = nil
	}
	if conn == nil {
		var err error
		if conn, err = pgx.Connect(ctx, url); err != nil {
			return nil, err
		}
	}
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		_ = conn.Close(context.WithoutCancel(ctx))
		return nil, err
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[T])
	if err != nil {
		_ = conn.Close(context.WithoutCancel(ctx))
		return nil, err
	}
	spare.Lock()
	defer spare.Unlock()
	if spare.idle == nil {
		spare.idle = map[string][]*pgx.Conn{}
	}
	spare.idle[url] = append(spare.idle[url], conn)
	return list, nil
}

// hangUp ends the spare connections to databases that go.
func hangUp(urls ...string) {
	spare.Lock()
	defer spare.Unlock()
	for _, url := range urls {
		for _, conn := range spare.idle[url] {
			_ = conn.Close(context.Background())
		}
		delete(spare.idle, url)
	}
}

// one asks for a single value.
func one[T any](ctx context.Context, url, sql string, args ...any) (v T, err error) {
	list, err := query[T](ctx, url, sql, args...)
	if err != nil {
		return v, err
	}
	if len(list) != 1 {
		return v, fmt.Errorf("%d rows for %q", len(list), sql)
	}
	return list[0], nil
}
