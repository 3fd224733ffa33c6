package torture

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	kafkatopics "github.com/shelfwire/shelfwire/connectors/kafka"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
)

// takeoverLimit is what a takeover may take: the server's patience with a silent reader (4 s), half a second until the
// standby looks again, and what a busy machine needs to start a session. It is said in the log how long it took.
const takeoverLimit = 8 * time.Second

// Two processes capture: one has the slot, one stands by. However the first one goes, the second takes over within
// seconds, nothing is doubled or left out, and the first one does no harm when it wakes up.
func TestTakeover(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for timeouts of the server")
	}
	w := newWorld(t, setup{seed: 1, products: 20, plain: true})
	p := newProxy(t, net.JoinHostPort("127.0.0.1", strconv.Itoa(w.postgresPort)))
	text, err := os.ReadFile(w.file)
	require.NoError(t, err)
	behind := filepath.Join(w.dir, "behind.yaml")
	port := ":" + strconv.Itoa(w.postgresPort)
	_, proxied, _ := net.SplitHostPort(p.addr())
	require.NoError(t, os.WriteFile(behind, []byte(strings.Replace(string(text), port, ":"+proxied, 1)), 0o600))
	d := &duel{t: t, w: w, first: behind, second: w.file}

	t.Run("killed", func(t *testing.T) {
		d.fight(t, func(a *process) { a.Kill() }, nil)
	})
	t.Run("stopped and woken", func(t *testing.T) {
		d.fight(t, func(a *process) { a.freeze() }, func(a *process) { a.thaw() })
	})
	t.Run("cut off and back", func(t *testing.T) {
		d.fight(t, func(*process) { p.cut() }, func(*process) { p.mend() })
	})
}

// duel is about the slot.
type duel struct {
	t             *testing.T
	w             *world
	first, second string // configurations
	runs          int
	titles        []string // committed, in order
}

// fight strikes the process that captures while rows are written, wakes it up again, and compares.
func (d *duel) fight(t *testing.T, strike, wake func(*process)) {
	t.Helper()
	a := d.start(t, d.first)
	defer a.Kill()
	d.await(t, a, 1)
	b := d.start(t, d.second)
	defer b.Kill()
	d.write(t, time.Second)
	require.Zero(t, d.sessions(t, b), "it stands by")

	strike(a)
	began := time.Now()
	wrote := make(chan []string, 1)
	ctx, stop := context.WithCancel(t.Context())
	go func() { wrote <- d.stream(ctx) }()
	d.await(t, b, 1)
	took := time.Since(began)
	t.Logf("taken over after %s", took.Round(10*time.Millisecond))
	require.Less(t, took, takeoverLimit)
	rest(ctx, time.Second)
	if wake != nil {
		wake(a)
		rest(ctx, 3*time.Second)
		require.Equal(t, 1, d.sessions(t, a), "the slot is taken: it stands by")
		select {
		case <-a.Done():
			t.Errorf("it has ended: %s", a.Log())
		default:
		}
		require.NoError(t, b.Stop())
		d.await(t, a, 2) // and takes over in its turn
	}
	rest(ctx, time.Second)
	stop()
	d.titles = append(d.titles, <-wrote...)
	d.compare(t)
	for _, p := range []*process{a, b} {
		select {
		case <-p.Done():
		default:
			require.NoError(t, p.Stop())
		}
	}
}

func (d *duel) start(t *testing.T, file string) *process {
	t.Helper()
	d.runs++
	p, err := startProcess(filepath.Join(d.w.dir, fmt.Sprintf("duel-%d.log", d.runs)), d.w.binary, "run", "-c", file, "--only", "capture")
	require.NoError(t, err)
	return p
}

// sessions counts how often a process has got the slot.
func (d *duel) sessions(t *testing.T, p *process) int {
	t.Helper()
	b, err := os.ReadFile(p.log)
	require.NoError(t, err)
	return strings.Count(string(b), `msg="capture goes on"`)
}

func (d *duel) await(t *testing.T, p *process, sessions int) {
	t.Helper()
	for end := time.Now().Add(time.Minute); d.sessions(t, p) < sessions; {
		select {
		case <-p.Done():
			require.FailNow(t, "it has ended", p.Log())
		case <-time.After(10 * time.Millisecond):
		}
		require.True(t, time.Now().Before(end), "does not capture: %s", p.Log())
	}
}

// write commits titles for a while.
func (d *duel) write(t *testing.T, span time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), span)
	defer cancel()
	d.titles = append(d.titles, d.stream(ctx)...)
}

// stream commits one title after the other until ctx ends, and returns them.
func (d *duel) stream(ctx context.Context) (titles []string) {
	whole := context.WithoutCancel(ctx) // a commit is never left in doubt
	conn, err := pgx.Connect(whole, d.w.sourceURL)
	if err != nil {
		d.t.Error(err)
		return nil
	}
	defer func() { _ = conn.Close(whole) }()
	for rest(ctx, 2*time.Millisecond) {
		title := fmt.Sprintf("title %d", time.Now().UnixNano())
		if _, err := conn.Exec(whole, `UPDATE catalog.products SET title = $1 WHERE id = (SELECT min(id) FROM catalog.products)`, title); err != nil {
			d.t.Error(err)
			return titles
		}
		titles = append(titles, title)
	}
	return titles
}

// compare waits until everything is captured, and finds each title once, in order.
func (d *duel) compare(t *testing.T) {
	t.Helper()
	end, err := one[string](t.Context(), d.w.sourceURL, `SELECT pg_current_wal_flush_lsn()::text`)
	require.NoError(t, err)
	lsn, err := change.ParseLSN(end)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		pos, ok, err := d.w.cluster.ReadPosition(t.Context(), kafkatopics.CapturePartition, "capture/"+d.w.cfg.Source.Slot)
		return err == nil && ok && pos.CommitLSN >= lsn
	}, time.Minute, 20*time.Millisecond)

	var got []string
	seen := map[string]bool{}
	topic := d.w.cluster.Topic(event.Changes)
	ends, err := d.w.cluster.EndOffsets(t.Context(), topic)
	require.NoError(t, err)
	for p := range int32(len(ends)) {
		_, err := d.w.cluster.Scan(t.Context(), topic, p, 0, ends[p], func(r event.Record) bool {
			at, _ := r.Header(event.HeaderPosition)
			if op, _ := r.Header(event.HeaderOp); op == "r" {
				return true
			}
			require.False(t, seen[at], "twice: %s", at)
			seen[at] = true
			var row struct{ After struct{ Title string } }
			require.NoError(t, json.Unmarshal(r.Value, &row))
			got = append(got, row.After.Title)
			return true
		})
		require.NoError(t, err)
	}
	require.Equal(t, d.titles, got)
	t.Logf("%d rows, each once and in order", len(got))
}
