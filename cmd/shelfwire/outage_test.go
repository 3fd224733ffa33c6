package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	embeddedkafka "github.com/shelfwire/shelfwire/deploy/embedded/kafka"
)

// gate stands before a service. Shut, it cuts what goes through, and answers every newcomer by a cut, or with refusal.
type gate struct {
	addr string
	to   string
	l    net.Listener

	mu      sync.Mutex
	shut    bool
	refusal string // what newcomers are told; empty: nothing
	open    map[net.Conn]struct{}
	knocks  int // newcomers while it was shut
}

func newGate(t *testing.T, to string) *gate {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	g := &gate{addr: l.Addr().String(), to: to, l: l, open: map[net.Conn]struct{}{}}
	t.Cleanup(func() { _ = l.Close(); g.set(true, "") })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go g.pass(t.Context(), in)
		}
	}()
	return g
}

func (g *gate) pass(ctx context.Context, in net.Conn) {
	defer func() { _ = in.Close() }()
	if !g.enter(in) {
		g.mu.Lock()
		refusal := g.refusal
		g.mu.Unlock()
		if refusal != "" { // to somebody who has asked
			_, _ = in.Read(make([]byte, 64<<10))
			_, _ = io.WriteString(in, refusal)
		}
		return
	}
	out, err := (&net.Dialer{}).DialContext(ctx, "tcp", g.to)
	if err != nil {
		return
	}
	defer func() { _ = out.Close() }()
	go func() { _, _ = io.Copy(out, in); _ = out.Close() }()
	_, _ = io.Copy(in, out)
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.open, in)
}

func (g *gate) enter(in net.Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut {
		g.knocks++
		return false
	}
	g.open[in] = struct{}{}
	return true
}

// set shuts or opens the gate and returns how many have knocked meanwhile.
func (g *gate) set(shut bool, refusal string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut, g.refusal = shut, refusal
	for c := range g.open {
		_ = c.Close()
		delete(g.open, c)
	}
	defer func() { g.knocks = 0 }()
	return g.knocks
}

// gated puts a gate before the service that an URL leads to.
func gated(t *testing.T, raw string) (*gate, string) {
	t.Helper()
	u, err := url.Parse(raw)
	require.NoError(t, err)
	g := newGate(t, u.Host)
	u.Host = g.addr
	return g, u.String()
}

// outage is one service that goes away under a running pipeline.
type outage struct {
	service string
	// down and up take the service away and bring it back; up returns how many connections were tried meanwhile.
	down func()
	up   func() int
	// metric is shown while it is away.
	metric *regexp.Regexp
}

// Each service goes away for some seconds under traffic. Nobody ends, nobody storms the door, the status and the metrics
// say what is waited for, and afterwards everything is as if nothing had been, without a restart.
func TestEveryServiceMayGoAway(t *testing.T) {
	if testing.Short() {
		t.Skip("runs the whole pipeline")
	}
	s, outages := newOutageSite(t)
	s.run()
	clean := func() bool { code, _ := s.audit(); return code == exitOK }
	require.Eventually(t, clean, time.Minute, 500*time.Millisecond, "the first snapshot")
	calm := func() bool { code, v := s.status(); return code == exitOK && done(v) }
	require.Eventually(t, calm, time.Minute, 500*time.Millisecond)
	goroutines := runtime.NumGoroutine()
	price := 1000
	for _, o := range outages {
		t.Run(o.service, func(t *testing.T) {
			down := time.Now()
			o.down()
			up := sync.OnceValue(o.up)
			defer up()
			for range 8 { // the applications go on
				price++
				s.writeDirectly(fmt.Sprintf(`UPDATE catalog.variants SET price = %d WHERE id %% 3 = %d`, price, price%3))
				<-time.After(500 * time.Millisecond)
			}
			require.Eventually(t, func() bool { _, body := s.get("/metrics"); return o.metric.MatchString(body) }, time.Minute, 100*time.Millisecond, o.metric)
			code, v := s.status()
			require.Equal(t, exitError, code)
			require.NotEmpty(t, v.Away)
			require.Contains(t, v.Away[0].Service, o.service)
			require.NotEmpty(t, v.Away[0].Reason)
			knocks := up()
			perSecond := float64(knocks) / time.Since(down).Seconds()
			require.Less(t, perSecond, 40.0, "a storm of connections")
			require.Eventually(t, clean, 3*time.Minute, time.Second)
			require.Eventually(t, calm, 3*time.Minute, time.Second)
			health, body := s.get("/readyz")
			require.Equal(t, 200, health, body)
			require.Eventually(t, func() bool { return runtime.NumGoroutine() < goroutines+100 }, time.Minute, time.Second, "%d before", goroutines)
		})
	}
}

// done says that no stage is behind and nothing waits for anything.
func done(v statusView) bool {
	if v.Pipeline == nil || len(v.Pipeline.Stages) != 8 || v.Pipeline.Outbox > 0 || v.Pipeline.Intents > 0 || len(v.Pipeline.Parked) > 0 {
		return false
	}
	for _, st := range v.Pipeline.Stages {
		if st.Behind != 0 || st.Held != st.Partitions {
			return false
		}
	}
	return true
}

// direct is the source past its gate.
const direct = "SOURCE_PAST_THE_GATE"

func (s *site) writeDirectly(sql string) {
	s.t.Helper()
	conn, err := pgx.Connect(s.t.Context(), os.Getenv(direct))
	require.NoError(s.t, err)
	defer func() { _ = conn.Close(context.WithoutCancel(s.t.Context())) }()
	_, err = conn.Exec(s.t.Context(), sql)
	require.NoError(s.t, err)
}

// newOutageSite is a site whose services stand behind gates. The broker is a process-like one of the test's own: its
// clients learn its address from itself, so that it is closed and started again instead.
func newOutageSite(t *testing.T) (*site, []outage) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "kafka")
	broker, err := embeddedkafka.Start(t.Context(), embeddedkafka.Config{Dir: dir})
	require.NoError(t, err)
	t.Cleanup(func() { broker.Close() })
	t.Setenv(envKafka, broker.Addr())
	s := newSite(t, 40)
	t.Setenv(direct, s.parts.sourceURL)
	source, sourceURL := gated(t, s.parts.sourceURL)
	store, stateURL := gated(t, s.parts.stateURL)
	tables, tablesURL := gated(t, s.parts.clickhouseURL)
	shops := newGate(t, s.parts.shopAddr)
	t.Setenv("SOURCE_URL", sourceURL)
	t.Setenv("STATE_URL", stateURL)
	t.Setenv("CLICKHOUSE_URL", tablesURL)
	text, err := os.ReadFile(s.file)
	require.NoError(t, err)
	text = []byte(strings.ReplaceAll(string(text), "http://"+s.parts.shopAddr, "http://"+shops.addr))
	require.NoError(t, os.WriteFile(s.file, text, 0o600))
	shut := func(g *gate, refusal string) (down func(), up func() int) {
		return func() { g.set(true, refusal) }, func() int { return g.set(false, "") }
	}
	var out []outage
	add := func(service, metric string, down func(), up func() int) {
		out = append(out, outage{service: service, metric: regexp.MustCompile(metric), down: down, up: up})
	}
	down, up := shut(source, "")
	add("source", `shelfwire_capture_active 0`, down, up)
	down, up = shut(store, "")
	add("state", `shelfwire_waiting{stage="push",topic=""} 1\b`, down, up)
	add("kafka", `shelfwire_waiting{stage="kafka",topic=""} 1`, func() { broker.Close() }, func() int {
		_, port, err := net.SplitHostPort(broker.Addr())
		require.NoError(t, err)
		n, err := strconv.Atoi(port)
		require.NoError(t, err)
		broker, err = embeddedkafka.Start(context.WithoutCancel(t.Context()), embeddedkafka.Config{Dir: dir, Port: n})
		require.NoError(t, err)
		return 0
	})
	down, up = shut(tables, "")
	add("clickhouse", `shelfwire_waiting{stage="load",topic="[^"]*"} 1\b`, down, up)
	down, up = shut(shops, "HTTP/1.1 402 Payment Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
	add("shop/", `shelfwire_shop_dead{shop=`, down, up)
	return s, out
}
