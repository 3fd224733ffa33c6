package pipeline

import (
	"context"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	embedded "github.com/shelfwire/shelfwire/deploy/embedded/clickhouse"
	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/sinks/clickhouse"
)

// loadEngine is an engine of a test's own, which is allowed to suffer.
type loadEngine struct {
	*embedded.Server
	t   *testing.T
	cfg embedded.Config
	// small says that its disk is one that can be filled up.
	small bool
	// relieve undoes fill.
	relieve func()
}

func startLoadEngine(t *testing.T) *loadEngine {
	t.Helper()
	dir := embeddedtest.Dir(t)
	e := &loadEngine{t: t, cfg: embedded.Config{Dir: filepath.Join(dir, "engine")}}
	if os.Geteuid() == 0 && syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256m") == nil {
		e.small = true
		t.Cleanup(func() { require.NoError(t, syscall.Unmount(dir, syscall.MNT_DETACH)) })
	}
	e.start()
	e.cfg.Port, e.cfg.HTTPPort = e.Port(), e.HTTPPort()
	t.Cleanup(func() { e.Kill() })
	return e
}

func (e *loadEngine) start() {
	s, err := embedded.Start(context.WithoutCancel(e.t.Context()), e.cfg)
	require.NoError(e.t, err)
	e.Server = s
}

func (e *loadEngine) signal(s syscall.Signal) { require.NoError(e.t, syscall.Kill(e.PID(), s)) }

// fill leaves no room on the engine's disk until relieve, also none that the engine makes itself by removing what it has
// merged.
func (e *loadEngine) fill() {
	f, err := os.Create(filepath.Join(filepath.Dir(e.cfg.Dir), "filler"))
	require.NoError(e.t, err)
	ctx := e.t.Context()
	full, relieved, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	e.relieve = func() {
		close(relieved)
		<-done
		require.NoError(e.t, os.Remove(f.Name()))
	}
	go func() {
		defer close(done)
		defer f.Close()
		whole := make([]byte, 1<<20)
		for first := full; ; {
			for piece := whole; len(piece) > 0; {
				if _, err := f.Write(piece); err != nil {
					piece = piece[:len(piece)/2]
				}
			}
			if first != nil {
				close(first)
				first = nil
			}
			select {
			case <-relieved:
				return
			case <-ctx.Done():
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	<-full
}

// loadKiller ends the engine while an insert is on its way.
type loadKiller struct {
	*clickhouse.DB
	kill atomic.Pointer[func()]
}

func (k *loadKiller) Insert(ctx context.Context, topic string, id [16]byte, records []event.Record, token string) (event.Inserted, error) {
	if kill := k.kill.Swap(nil); kill != nil {
		go (*kill)()
	}
	return k.DB.Insert(ctx, topic, id, records, token)
}

// loadTrouble is what may befall an engine.
type loadTrouble struct {
	name string
	// begin and end it; end may be nil.
	begin, end func()
	// reasons are what loading may say that it waits for; none: it goes on.
	reasons []string
	// answers: the loader may hear of some inserts.
	answers bool
}

const loadTroubleRows = 50

// One loader lives through everything, and is never started again.
func TestLoadThroughEveryTroubleOfTheEngine(t *testing.T) {
	if testing.Short() {
		t.Skip("lets an engine die, stop and starve")
	}
	rng := loadRandom(t)
	e := startLoadEngine(t)
	proxy := newLoadProxy(t, e.Addr())
	w := newLoadWorldOn(t, proxy.url(e.URL("troubled")), e.URL("troubled"), 2*time.Second)
	tables := &loadKiller{DB: w.db}
	w.produce(rng, 0, 100)
	l, stop := w.start(LoadConfig{MaxRows: loadTroubleRows, Linger: 10 * time.Millisecond}, tables, w.leases)
	w.loaded(l)
	for i, trouble := range loadTroubles(w, e, proxy, tables, rng) {
		if !t.Run(trouble.name, func(t *testing.T) {
			if trouble.begin == nil {
				t.Skip("mounting a small disk is not allowed here")
			}
			w.t, e.t = t, t
			w.produce(rng, 1000*(2*i+1), 100)
			trouble.begin()
			w.produce(rng, 1000*(2*i+2), 250)
			if len(trouble.reasons) > 0 {
				w.waits(l, trouble)
			}
			if trouble.end != nil {
				trouble.end()
			}
			w.loaded(l)
			require.Eventually(t, func() bool { return len(l.Waiting()) == 0 }, time.Minute, 10*time.Millisecond)
			w.requireEqual()
		}) {
			return
		}
		w.t, e.t = t, t
	}

	// The topic is made anew while the engine is away, and has grown past what was read of the old one.
	e.Kill()
	_, err := w.adm.DeleteTopics(t.Context(), w.kafka.Topic(event.Outcomes))
	require.NoError(t, err)
	require.NoError(t, w.kafka.EnsureTopics(t.Context()))
	w.produce(rng, 100_000, 100)
	e.start()
	w.viewsEqual()
	stop()
}

func loadTroubles(w *loadWorld, e *loadEngine, proxy *loadProxy, tables *loadKiller, rng *rand.Rand) []loadTrouble {
	gone := []string{"does not answer", "the connection to ClickHouse ended"}
	kill := func() {
		dead, after := make(chan struct{}), time.Duration(rng.IntN(20_000))*time.Microsecond
		f := func() {
			<-time.After(after)
			e.Kill()
			close(dead)
		}
		tables.kill.Store(&f)
		w.produce(rng, 50_000, 100)
		<-dead
	}
	alter := func(what string) {
		for _, table := range []string{"changes_rows", "outcomes_rows", "batches_rows", "documents_rows", "document_versions_rows", "deadletters_rows", "malformed_rows"} {
			require.NoError(w.t, w.conn.Exec(w.t.Context(), "ALTER TABLE "+table+" "+what))
		}
	}
	troubles := []loadTrouble{
		{name: "killed", begin: kill, end: e.start, reasons: gone},
		{name: "killed again", begin: kill, end: e.start, reasons: gone},
		{name: "restarted", begin: func() { require.NoError(w.t, e.Stop()) }, end: e.start, reasons: gone},
		{name: "stopped", begin: func() { e.signal(syscall.SIGSTOP) }, end: func() { e.signal(syscall.SIGCONT) }, reasons: []string{"has not answered in time"}},
		{name: "answers lost", begin: func() { proxy.mute.Store(true) }, end: func() { proxy.mute.Store(false) }, reasons: []string{"has not answered in time"}, answers: true},
		{name: "slow", begin: func() { proxy.delay.Store(int64(200 * time.Millisecond)) }, end: func() { proxy.delay.Store(0) }},
		{
			name: "too many parts", reasons: []string{"the server merges too slowly"},
			begin: func() {
				alter("MODIFY SETTING parts_to_delay_insert = 1, parts_to_throw_insert = 1, max_delay_to_insert = 1")
				require.NoError(w.t, w.conn.Exec(w.t.Context(), "SYSTEM STOP MERGES"))
			},
			end: func() {
				require.NoError(w.t, w.conn.Exec(w.t.Context(), "SYSTEM START MERGES"))
				alter("RESET SETTING parts_to_delay_insert, parts_to_throw_insert, max_delay_to_insert")
			},
		},
		{
			name: "read-only", reasons: []string{"read-only"},
			begin: func() { alter("MODIFY SETTING table_readonly = 1") }, end: func() { alter("RESET SETTING table_readonly") },
		},
		{name: "disk full", reasons: []string{"make room"}, end: func() { e.relieve() }},
	}
	if e.small {
		troubles[len(troubles)-1].begin = e.fill
	}
	return troubles
}

// waits looks on while loading stands still: it says why, tries neither never nor all the time, and reads nothing more.
func (w *loadWorld) waits(l *Load, trouble loadTrouble) {
	w.t.Helper()
	began, before := time.Now(), l.Retries.Load()
	var said string
	require.Eventually(w.t, func() bool {
		for _, said = range l.Waiting() {
			for _, r := range trouble.reasons {
				if strings.Contains(said, r) {
					return true
				}
			}
		}
		return false
	}, time.Minute, 10*time.Millisecond, "it says %v", loadWhy{l})
	w.t.Logf("waits: %s", said)
	require.Eventually(w.t, func() bool { return l.Retries.Load()-before >= 6 }, time.Minute, 10*time.Millisecond)
	tries := 1
	for pause, at := loadFirstPause, time.Duration(0); at < time.Since(began); pause = loadNextPause(pause) {
		at += pause
		tries++
	}
	if !trouble.answers { // each insert that is heard of is followed by one without a pause
		require.LessOrEqual(w.t, l.Retries.Load()-before, int64(tries*len(l.topics)), "a hot loop")
	}
	require.LessOrEqual(w.t, w.polled.Load()-l.Rows.Load(), int64(len(l.topics)*loadTroubleRows), "it reads while it cannot insert")
}

// A loader is stopped when its inserts have gone out and not yet arrived. They come when another one has loaded the same
// records, cut in another way, and more.
func TestAnInsertThatComesTooLateChangesNothing(t *testing.T) {
	rng := loadRandom(t)
	w := newLoadWorld(t)
	u, err := url.Parse(w.url)
	require.NoError(t, err)
	late := newLoadProxy(t, u.Host)
	require.NoError(t, w.db.Migrate(t.Context())) // its statements are as long as blocks
	w.produce(rng, 0, 200)
	late.hold()
	first, stopFirst := w.start(LoadConfig{Linger: time.Millisecond}, openLoadTables(t, late.url(w.url), 0), w.leases)
	require.Eventually(t, func() bool { return late.held.Load() >= 1 }, time.Minute, 10*time.Millisecond)
	w.leases.expire()
	w.produce(rng, 1000, 50)
	second, stop := w.start(LoadConfig{MaxRows: 30, Linger: time.Millisecond}, w.db, w.leases)
	w.loaded(second)
	before := first.Rows.Load()
	late.release()
	require.Eventually(t, func() bool { return first.Rows.Load() > before }, time.Minute, 10*time.Millisecond)
	w.requireEqual()
	stopFirst()
	stop()
	w.requireEqual()
}
