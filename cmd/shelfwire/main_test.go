package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/audit"
	"github.com/shelfwire/shelfwire/cmd/shelfwire/demo"
	"github.com/shelfwire/shelfwire/connectors/kafka"
	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/sinks/state"
)

func TestMain(m *testing.M) { embeddedtest.Main(m) }

// output is a writer that goroutines may share.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// shelfwire runs one command line.
func shelfwire(t *testing.T, args ...string) (code int, out string) {
	t.Helper()
	var o output
	code = execute(t.Context(), args, &o, &o)
	return code, o.String()
}

func TestDemo(t *testing.T) {
	if testing.Short() {
		t.Skip("runs the whole pipeline for half a minute")
	}
	code, out := shelfwire(t, "demo", "--for", "8s", "--products", "60", "--seed", "3")
	require.Equal(t, exitOK, code, out)
	for _, want := range []string{
		"no drift", "0 wrong", `"Spring import 3"`, "is COMPLETED", "What fails, where, and an example?", "commit_to_shop",
	} {
		require.Contains(t, out, want)
	}
}

// What a person tries after the audit shows on the screen, and only then.
func TestDemoKeepShowsWhatArrives(t *testing.T) {
	if testing.Short() {
		t.Skip("runs the whole pipeline")
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var o output
	done := make(chan int, 1)
	go func() { done <- execute(ctx, []string{"demo", "--for", "1s", "--products", "5", "--keep"}, &o, &o) }()
	require.Eventually(t, func() bool { return strings.Contains(o.String(), "approved_at = NULL") }, 2*time.Minute, 100*time.Millisecond)
	source := regexp.MustCompile(`PostgreSQL  (\S+)`).FindStringSubmatch(o.String())
	require.NotNil(t, source)
	conn, err := pgx.Connect(t.Context(), source[1])
	require.NoError(t, err)
	try := regexp.MustCompile(`UPDATE catalog.products SET title.*;`).FindString(o.String()) // as it was printed
	tag, err := conn.Exec(t.Context(), try)
	require.NoError(t, err)
	require.EqualValues(t, 1, tag.RowsAffected())
	require.NoError(t, conn.Close(t.Context()))
	require.Eventually(t, func() bool {
		_, after, _ := strings.Cut(o.String(), "approved_at = NULL")
		return strings.Contains(after, "captured")
	}, time.Minute, 100*time.Millisecond, "%s", &o)
	cancel()
	require.Equal(t, exitOK, <-done, "the audit was clean: %s", &o)
}

// A mistake in the file is told before anything is started.
func TestDemoRefusesABadCatalog(t *testing.T) {
	file := filepath.Join(t.TempDir(), "bad.csv")
	require.NoError(t, os.WriteFile(file, []byte("Handle,Title,Option1 Name,Option1 Value,Variant Price\nshirt,Shirt,Title,Default Title,many\n"), 0o600))
	t.Setenv(envPostgres, "postgres://x@127.0.0.1:1/x") // whoever went on would not come far
	code, out := shelfwire(t, "demo", "--catalog", file)
	require.Equal(t, exitError, code)
	require.Contains(t, out, "shelfwire: "+file+":2: ")
	require.Contains(t, out, "Variant Price")
	require.Equal(t, 1, strings.Count(out, "\n"), out)
	code, _ = shelfwire(t, "demo", "--catalog", file+".nowhere")
	require.Equal(t, exitUsage, code)
	code, out = shelfwire(t, "demo", "--catalog", filepath.Dir(file))
	require.Equal(t, exitUsage, code)
	require.Contains(t, out, "is a directory")

	require.NoError(t, os.WriteFile(file, []byte("Handle,Title,Option1 Name,Option1 Value,Variant Price\nshirt,Shirt,Title,Default Title,5\n"), 0o600))
	export, err := readCatalog(file)
	require.NoError(t, err)
	require.Equal(t, 1, export.Loaded().Products)
}

// site is what a user has before the first run: services, a catalog, a configuration of init's, and the environment.
type site struct {
	t     *testing.T
	parts *demoParts
	file  string
	http  string
}

// newSite follows the README: init, describe, setup.
func newSite(t *testing.T, products int) *site {
	t.Helper()
	s := &site{t: t, parts: &demoParts{dir: embeddedtest.Dir(t), seed: 1, say: func(string, ...any) {}}, http: freeAddr(t)}
	t.Cleanup(s.parts.stop)
	require.NoError(t, s.parts.start(t.Context()))
	conn, err := pgx.Connect(t.Context(), s.parts.sourceURL)
	require.NoError(t, err)
	require.NoError(t, demo.Install(t.Context(), conn))
	require.NoError(t, demo.Generate(t.Context(), conn, demo.Config{Products: products, Seed: 1}))
	require.NoError(t, conn.Close(t.Context()))

	dir := filepath.Join(t.TempDir(), "conf")
	code, out := shelfwire(t, "init", dir)
	require.Equal(t, exitOK, code, out)
	code, out = shelfwire(t, "init", dir)
	require.Equal(t, exitError, code, "nothing is overwritten")
	require.Contains(t, out, "exists already")
	s.file = filepath.Join(dir, "shelfwire.yaml")
	text, err := os.ReadFile(s.file)
	require.NoError(t, err)
	shops := ""
	for _, st := range demo.Stores() {
		shops += fmt.Sprintf("  %s: {url: \"http://%s/%s\", token: \"${SHOP_TOKEN}\"}\n", st.Name, s.parts.shopAddr, st.Name)
	}
	from, to := strings.Index(string(text), "  main:\n"), strings.Index(string(text), "# What a shop shall have")
	edited := string(text[:from]) + shops + "\n" + string(text[to:]) + "\nmetrics: {listen: \"" + s.http + "\"}\nlog: {format: text}\n"
	require.NoError(t, os.WriteFile(s.file, []byte(edited), 0o600))
	for name, value := range map[string]string{
		"SOURCE_URL": s.parts.sourceURL, "KAFKA_BROKER": s.parts.kafkaAddr, "STATE_URL": s.parts.stateURL,
		"CLICKHOUSE_URL": s.parts.clickhouseURL, "SHOP_TOKEN": "simulated",
	} {
		t.Setenv(name, value)
	}
	return s
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// run starts `shelfwire run` and returns how to stop it as SIGTERM does.
func (s *site) run(args ...string) (stop func()) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	var o output
	done := make(chan int, 1)
	go func() { done <- execute(ctx, append([]string{"run", "-c", s.file}, args...), &o, &o) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			code := <-done
			if code != exitOK {
				s.t.Errorf("run ended with %d:\n%s", code, o.String())
			}
		})
	}
	s.t.Cleanup(stop)
	return stop
}

func (s *site) exec(sql string) {
	s.t.Helper()
	conn, err := pgx.Connect(s.t.Context(), s.parts.sourceURL)
	require.NoError(s.t, err)
	_, err = conn.Exec(s.t.Context(), sql)
	require.NoError(s.t, err)
	require.NoError(s.t, conn.Close(s.t.Context()))
}

func (s *site) audit() (int, audit.Report) {
	s.t.Helper()
	code, out := shelfwire(s.t, "audit", "-c", s.file, "--json")
	var r audit.Report
	require.NoError(s.t, json.Unmarshal([]byte(out), &r), out)
	return code, r
}

func (s *site) get(path string) (int, string) {
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, "http://"+s.http+path, nil)
	require.NoError(s.t, err)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	require.NoError(s.t, err)
	return resp.StatusCode, string(b)
}

// The README's way from init to a shop that follows the database, and an audit that notices when it does not.
func TestInitCheckRunAuditReplay(t *testing.T) {
	if testing.Short() {
		t.Skip("runs the whole pipeline")
	}
	s := newSite(t, 40)
	code, out := shelfwire(t, "check", "-c", s.file)
	require.Equal(t, exitOK, code, out)
	code, r := s.audit()
	require.Equal(t, exitDrift, code, "nothing is in the shops yet")
	require.NotEmpty(t, r.Drifts)

	stop := s.run()
	clean := func() bool { code, _ := s.audit(); return code == exitOK }
	require.Eventually(t, clean, time.Minute, time.Second, "the first snapshot")
	code, body := s.get("/readyz")
	require.Equal(t, http.StatusOK, code, body)
	_, body = s.get("/metrics")
	require.Contains(t, body, "shelfwire_push_succeeded_total")

	s.exec(`UPDATE catalog.products SET title = 'Hello, shop' WHERE id = 1`)
	s.exec(`UPDATE catalog.variants SET price = 4711 WHERE product_id = 1`)
	require.Eventually(t, func() bool {
		_, out := shelfwire(t, "replay", "-c", s.file, "--product", "1", "--wait", "10s")
		return strings.Contains(out, "SKIPPED") || strings.Contains(out, "SUCCESS")
	}, time.Minute, 200*time.Millisecond)
	require.Eventually(t, clean, 30*time.Second, 500*time.Millisecond)
	require.Contains(t, body, `shelfwire_waiting{stage="relay",topic=""} 0`)
	require.Contains(t, body, `shelfwire_waiting{stage="load",topic="catalog.outcomes"} 0`)
	s.lists(t)
	s.envelope(t)
	stop()

	s.alterations(t)
}

// lists reads what the commands that list things print for programs.
func (s *site) lists(t *testing.T) {
	t.Helper()
	code, out := shelfwire(t, "batches", "-c", s.file)
	require.Equal(t, exitOK, code, out)
	var list []batchView
	require.NoError(t, json.Unmarshal([]byte(out), &list), out)
	require.NotEmpty(t, list)
	require.Equal(t, "COMPLETED", string(list[0].Status))
	code, out = shelfwire(t, "batches", "-c", s.file, list[0].ID)
	require.Equal(t, exitOK, code, out)
	var one batchView
	require.NoError(t, json.Unmarshal([]byte(out), &one), out)
	require.Equal(t, list[0].ID, one.ID)
	code, out = shelfwire(t, "batches", "-c", s.file, "nowhere")
	require.Equal(t, exitError, code)
	require.Contains(t, out, `there is no batch with the id or the name "nowhere"`)

	code, out = shelfwire(t, "holds", "-c", s.file)
	require.Equal(t, exitOK, code)
	require.JSONEq(t, "[]", out)
	code, out = shelfwire(t, "holds", "-c", s.file, "--release", "north/OFF_SALE")
	require.Equal(t, exitError, code)
	require.Contains(t, out, `there is no hold "north/OFF_SALE"`)

	for _, args := range [][]string{{"batches"}, {"holds"}, {"audit"}, {"replay", "--product", "1"}} {
		t.Run("no state for "+args[0], func(t *testing.T) {
			t.Setenv("STATE_URL", "postgres://x@127.0.0.1:1/x")
			code, out := shelfwire(t, append(args, "-c", s.file)...)
			require.Equal(t, exitError, code)
			require.Contains(t, out, "shelfwire.yaml:36:8: ")
			require.Contains(t, out, "start the service, or correct host and port in state.url")
		})
	}
	t.Run("empty state", func(t *testing.T) {
		empty, err := state.Create(t.Context(), s.parts.sourceURL, "empty")
		require.NoError(t, err)
		t.Setenv("STATE_URL", empty)
		code, out := shelfwire(t, "batches", "-c", s.file)
		require.Equal(t, exitError, code)
		require.Contains(t, out, "the state database holds no state; start shelfwire run, which makes it")
	})

	t.Run("another number of partitions", func(t *testing.T) {
		text, err := os.ReadFile(s.file)
		require.NoError(t, err)
		other := s.file + ".other.yaml"
		changed := strings.NewReplacer("# partitions: 8 ", "partitions: 4 ", s.http, "off").Replace(string(text)) // run stands beside
		require.NoError(t, os.WriteFile(other, []byte(changed), 0o600))
		for _, command := range []string{"check", "run"} {
			code, out := shelfwire(t, command, "-c", other)
			require.Equal(t, exitUsage, code, out)
			require.Contains(t, strings.Join(strings.Fields(out), " "), "topic catalog.changes has 8 partitions and 4 are configured")
			require.Contains(t, out, "set kafka.partitions to 8")
		}
	})

	// An id that nobody knows is parked for nobody.
	code, out = shelfwire(t, "replay", "-c", s.file, "--product", "999999", "--product", "no number")
	require.Equal(t, exitError, code, out)
	require.Contains(t, out, `"status": "UNKNOWN"`)
	require.Contains(t, out, "2 products unknown to the source and to every shop: 999999, no number")
	conn, err := pgx.Connect(t.Context(), s.parts.stateURL)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	var parked int
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT count(*) FROM parked WHERE product_id IN ('999999', 'no number')").Scan(&parked))
	require.Zero(t, parked)
}

// envelope reads what a change says of where it comes from.
func (s *site) envelope(t *testing.T) {
	t.Helper()
	c, err := kafka.New(kafka.Config{Brokers: []string{s.parts.kafkaAddr}})
	require.NoError(t, err)
	defer c.Close()
	ends, err := c.EndOffsets(t.Context(), c.Topic(event.Changes))
	require.NoError(t, err)
	var source struct {
		Source struct{ Version, DB string } `json:"source"`
	}
	for part, end := range ends {
		_, err := c.Scan(t.Context(), c.Topic(event.Changes), part, 0, end, func(r event.Record) bool {
			require.NoError(t, json.Unmarshal(r.Value, &source))
			return false
		})
		require.NoError(t, err)
	}
	require.Equal(t, "shop", source.Source.DB)
	require.Equal(t, version(), source.Source.Version)
}

// A start while services are away waits for them, says so, and answers for its health meanwhile.
func TestRunWaitsForServicesThatAreAway(t *testing.T) {
	if testing.Short() {
		t.Skip("starts all services")
	}
	s := newSite(t, 3)
	later := freeAddr(t)
	u, err := url.Parse(s.parts.sourceURL)
	require.NoError(t, err)
	real := u.Host
	u.Host = later
	t.Setenv("SOURCE_URL", u.String())
	stop := s.run("--only", "capture,relay")
	require.Eventually(t, func() bool {
		code, body := s.get("/readyz")
		return code == http.StatusServiceUnavailable && strings.Contains(body, "waiting for the source database")
	}, 20*time.Second, 50*time.Millisecond)
	health, _ := s.get("/healthz")
	require.Equal(t, http.StatusOK, health)

	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", later)
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	go forward(t.Context(), l, real)
	require.Eventually(t, func() bool { code, _ := s.get("/readyz"); return code == http.StatusOK }, 30*time.Second, 50*time.Millisecond)
	stop()

	// What waits at work is on record as well.
	clickhouse := s.parts.clickhouseURL
	t.Setenv("CLICKHOUSE_URL", "clickhouse://x@127.0.0.1:1/x")
	stop = s.run("--only", "load")
	require.Eventually(t, func() bool {
		_, body := s.get("/metrics")
		return strings.Contains(body, `shelfwire_waiting{stage="load",topic=""} 1`)
	}, 30*time.Second, 100*time.Millisecond)
	code, out := shelfwire(t, "run", "-c", s.file, "--only", "push")
	require.Equal(t, exitError, code)
	require.Contains(t, out, "metrics.listen: listen tcp "+s.http+": bind: address already in use; choose another address for this process, or off")
	stop()
	t.Setenv("CLICKHOUSE_URL", "")
	code, out = shelfwire(t, "run", "-c", s.file, "--only", "load")
	require.Equal(t, exitUsage, code)
	require.Contains(t, out, "the role load needs clickhouse.url")
	code, out = shelfwire(t, "check", "-c", s.file)
	require.Equal(t, exitOK, code, out)
	require.Contains(t, out, "✓ clickhouse (none is configured")
	t.Setenv("CLICKHOUSE_URL", clickhouse)

	// A stop ends the waiting at once, and is no error.
	require.NoError(t, l.Close())
	t.Setenv("SOURCE_URL", strings.Replace(u.String(), later, freeAddr(t), 1))
	stop = s.run()
	require.Eventually(t, func() bool { _, body := s.get("/readyz"); return strings.Contains(body, "waiting") }, 20*time.Second, 50*time.Millisecond)
	began := time.Now()
	stop()
	require.Less(t, time.Since(began), 5*time.Second)
}

// A source that ends connections while a start looks at it is waited for like one that does not answer.
func TestRunWaitsForASourceThatGoesAwayDuringItsChecks(t *testing.T) {
	if testing.Short() {
		t.Skip("starts all services")
	}
	s := newSite(t, 3)
	u, err := url.Parse(s.parts.sourceURL)
	require.NoError(t, err)
	server := u.Host
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	u.Host = l.Addr().String()
	t.Setenv("SOURCE_URL", u.String())
	// It ends one in each look, where one of these questions is asked.
	questions := []string{"pg_stat_replication", "relpersistence", "EXPLAIN"}
	var mu sync.Mutex
	armed, ended := false, 0
	end := func(asked string) bool {
		mu.Lock()
		defer mu.Unlock()
		armed = armed || strings.Contains(asked, questions[0])
		if !armed || ended == len(questions) || !strings.Contains(asked, questions[ended]) {
			return false
		}
		armed = false
		ended++
		return true
	}
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go relay(t.Context(), in, server, end)
		}
	}()
	stop := s.run("--only", "capture")
	require.Eventually(t, func() bool { code, _ := s.get("/readyz"); return code == http.StatusOK }, time.Minute, 50*time.Millisecond)
	stop()
	require.Len(t, questions, ended)
}

// relay passes one connection on. Where end says so, the client is told in the place of an answer that an administrator
// has ended it.
func relay(ctx context.Context, in net.Conn, to string, end func(asked string) bool) {
	defer func() { _ = in.Close() }()
	out, err := (&net.Dialer{}).DialContext(ctx, "tcp", to)
	if err != nil {
		return
	}
	defer func() { _ = out.Close() }()
	go func() { _, _ = io.Copy(in, out) }()
	buf := make([]byte, 64<<10)
	for {
		n, err := in.Read(buf)
		if err != nil {
			return
		}
		if end(string(buf[:n])) {
			e := pgproto3.ErrorResponse{Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: "57P01", Message: "terminating connection"}
			if raw, err := e.Encode(nil); err == nil {
				_, _ = in.Write(raw)
			}
			return
		}
		if _, err := out.Write(buf[:n]); err != nil {
			return
		}
	}
}

// forward passes connections on until l closes.
func forward(ctx context.Context, l net.Listener, to string) {
	for {
		in, err := l.Accept()
		if err != nil {
			return
		}
		out, err := (&net.Dialer{}).DialContext(ctx, "tcp", to)
		if err != nil {
			_ = in.Close()
			continue
		}
		go func() { _, _ = io.Copy(out, in); _ = out.Close() }()
		go func() { _, _ = io.Copy(in, out); _ = in.Close() }()
	}
}

// alterations change one thing in a shop at a time; the audit must name each.
func (s *site) alterations(t *testing.T) {
	t.Helper()
	_, r := s.audit()
	require.Empty(t, r.Drifts)
	for _, shop := range s.parts.sim.Shops() {
		for _, p := range shop.Products() {
			if p.Status != "ACTIVE" || len(p.Variants) < 2 || len(p.Tags) == 0 {
				continue
			}
			v := p.Variants[0]
			for kind, mutation := range map[audit.Kind]string{
				audit.Price:          fmt.Sprintf(`mutation { productVariantsBulkUpdate(productId: %q, variants: [{id: %q, price: "0.99"}]) { userErrors { message } } }`, p.ID, v.ID),
				audit.Tag:            fmt.Sprintf(`mutation { tagsRemove(id: %q, tags: [%q]) { userErrors { message } } }`, p.ID, p.Tags[0]),
				audit.Stock:          fmt.Sprintf(`mutation { inventoryAdjustQuantities(input: {name: "available", reason: "correction", changes: [{delta: 3, changeFromQuantity: null, inventoryItemId: %q, locationId: %q}]}) @idempotent(key: "alter") { userErrors { message } } }`, v.InventoryItemID, shop.Locations()[0].ID),
				audit.VariantMissing: fmt.Sprintf(`mutation { productVariantsBulkDelete(productId: %q, variantsIds: [%q]) { userErrors { message } } }`, p.ID, p.Variants[1].ID),
			} {
				s.mutate(shop.Domain(), mutation)
				code, r := s.audit()
				require.Equal(t, exitDrift, code)
				require.Condition(t, func() bool {
					for _, d := range r.Drifts {
						if d.Kind == kind && d.Shop == shop.Domain() {
							return true
						}
					}
					return false
				}, "%s is not among %v", kind, r.Drifts)
			}
			s.aside(t)
			return
		}
	}
	t.Fatal("no product with two variants and a tag is in a shop")
}

// aside excludes the product that differs, which ends what the audit has to complain of.
func (s *site) aside(t *testing.T) {
	t.Helper()
	_, r := s.audit()
	id := r.Drifts[0].ProductID
	code, out := shelfwire(t, "exclude", id, "-c", s.file)
	require.Equal(t, exitOK, code, out)
	code, now := s.audit()
	require.Equal(t, exitOK, code)
	require.Empty(t, now.Drifts)
	require.Equal(t, r.Drifts, now.Excluded)
	code, out = shelfwire(t, "include", id, "-c", s.file)
	require.Equal(t, exitOK, code, out)
	code, now = s.audit()
	require.Equal(t, exitDrift, code)
	require.Equal(t, r.Drifts, now.Drifts)
}

func (s *site) mutate(shop, mutation string) {
	s.t.Helper()
	body, err := json.Marshal(map[string]string{"query": mutation})
	require.NoError(s.t, err)
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost,
		fmt.Sprintf("http://%s/%s/admin/api/2026-10/graphql.json", s.parts.shopAddr, shop), bytes.NewReader(body))
	require.NoError(s.t, err)
	req.Header.Set("X-Shopify-Access-Token", "simulated")
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	require.NoError(s.t, err)
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	require.NoError(s.t, err)
	require.NotContains(s.t, string(b), `"errors"`)
	require.NotContains(s.t, string(b), `"message"`)
}
