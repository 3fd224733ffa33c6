package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sync/errgroup"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/demo"
	"github.com/shelfwire/shelfwire/schemas/reference"
)

// measureMemory runs `shelfwire run` in a process of its own against the parts of this one: once through the first
// snapshot and the demo's traffic, and once with nothing to do.
func measureMemory(ctx context.Context, b *bench) (out []figure, err error) {
	const products = 1000
	r, err := b.startParts(ctx, rigConfig{products: products, stores: 2})
	defer r.close()
	if err != nil {
		return nil, err
	}
	file, err := r.writeConfig()
	if err != nil {
		return nil, err
	}
	r.app = &app{cfg: r.cfg, log: b.log, metrics: newRegistry()} // to look at the state; nothing runs in this process
	defer r.app.close()
	var busy, after memory
	err = r.withProcess(ctx, file, func(ctx context.Context, p *process) error {
		if err := r.app.waitForState(ctx); err != nil {
			return err
		}
		if err := r.firstSnapshot(ctx); err != nil {
			return err
		}
		r.parts.misbehave()
		b.say("memory: %s of the demo's traffic", b.duration)
		t := demo.NewTraffic(demo.TrafficConfig{URL: r.parts.sourceURL, Duration: b.duration, Seed: b.seed})
		if err := t.Run(ctx); err != nil {
			return err
		}
		if err := r.drained(ctx); err != nil {
			return err
		}
		if busy, err = p.memory(); err != nil {
			return err
		}
		after, err = p.watch(ctx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("during the demo: %w", err)
	}
	var rest memory
	err = r.withProcess(ctx, file, func(ctx context.Context, p *process) error {
		if err := r.drained(ctx); err != nil {
			return err
		}
		b.say("memory: at rest")
		rest, err = p.watch(ctx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("at rest: %w", err)
	}
	return []figure{
		atMost("memory of shelfwire run at rest", rest.resident, "MB", 64, fmt.Sprintf(
			"median resident set of the last %s of %s after a start on a catalog of %d products that is in the shops, all roles, in a "+
				"process of its own; of it %.0f MB anonymous, the rest pages of the binary; %.0f MB so long after the traffic below",
			restSampled, restSettle+restSampled, products, rest.anonymous, after.resident)),
		atMost("memory of shelfwire run during the demo", busy.peak, "MB", 256, fmt.Sprintf(
			"peak resident set, from the start over the first snapshot of %d products and %.0f s of the demo's traffic, faults included, "+
				"until all has arrived; the same process", products, b.duration.Seconds())),
	}, nil
}

// waitForState opens the state once another process has made it.
func (a *app) waitForState(ctx context.Context) error {
	if err := a.openStateOnly(ctx); err != nil {
		return err
	}
	return poll(ctx, 100*time.Millisecond, func(ctx context.Context) (bool, error) {
		return query[bool](ctx, a.cfg.State.URL.Reveal(), `SELECT to_regclass('batches') IS NOT NULL AND to_regclass('parked') IS NOT NULL`)
	})
}

// drained waits until no product and no record waits in the state, for two seconds on end.
func (r *benchRig) drained(ctx context.Context) error {
	since := time.Now()
	return poll(ctx, 100*time.Millisecond, func(ctx context.Context) (bool, error) {
		n, err := r.parked(ctx)
		if err != nil {
			return false, err
		}
		o, err := r.app.state.Outbox(ctx)
		if n > 0 || o.Rows > 0 {
			since = time.Now()
		}
		return time.Since(since) > 2*time.Second, err
	})
}

// writeConfig writes the rig's configuration as a user would, and returns the file.
func (r *benchRig) writeConfig() (string, error) {
	shops := map[string]any{}
	for name, s := range r.cfg.Shops {
		shops[name] = map[string]any{"url": s.URL, "token": s.Token.Reveal()}
	}
	text, err := yaml.Marshal(map[string]any{
		"source":         map[string]any{"url": r.parts.sourceURL},
		"kafka":          map[string]any{"brokers": r.cfg.Kafka.Brokers},
		"state":          map[string]any{"url": r.parts.stateURL},
		"clickhouse":     map[string]any{"url": r.parts.clickhouseURL},
		"shops":          shops,
		"documents_file": "documents.sql",
		"routes_file":    "routes.yaml",
		"metrics":        map[string]any{"listen": "127.0.0.1:0"},
	})
	if err != nil {
		return "", err
	}
	file := filepath.Join(r.parts.dir, "shelfwire.yaml")
	return file, errors.Join(
		os.WriteFile(file, text, 0o600),
		os.WriteFile(filepath.Join(r.parts.dir, "documents.sql"), []byte(reference.DocumentsSQL()), 0o600),
		os.WriteFile(filepath.Join(r.parts.dir, "routes.yaml"), reference.RoutesYAML(), 0o600))
}

// process is a `shelfwire run`.
type process struct{ pid int }

// processGrace is how long a process may take to stop; beyond it, it is killed.
const processGrace = 30 * time.Second

// withProcess runs measure beside a `shelfwire run` in a process of its own, and ends when either does.
func (r *benchRig) withProcess(ctx context.Context, file string, measure func(context.Context, *process) error) error {
	return withRun(ctx, []string{"-c", file}, measure)
}

// withRun is withProcess with any arguments of `shelfwire run`.
func withRun(ctx context.Context, args []string, measure func(context.Context, *process) error) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	runCtx, stop := context.WithCancel(ctx)
	defer stop()
	var log bytes.Buffer
	cmd := exec.CommandContext(runCtx, self, append([]string{"run"}, args...)...)
	cmd.Stderr = &log
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = processGrace
	endWithUs(cmd)
	if err := cmd.Start(); err != nil {
		return err
	}
	g, measureCtx := errgroup.WithContext(ctx)
	g.Go(func() error {
		err := cmd.Wait()
		if runCtx.Err() != nil { // it was told to
			return nil
		}
		text := log.String()
		return fmt.Errorf("shelfwire run ended by itself: %w: %s", err, text[max(0, len(text)-2000):])
	})
	g.Go(func() error {
		defer stop()
		return measure(measureCtx, &process{pid: cmd.Process.Pid})
	})
	return g.Wait()
}

// memory is what a process holds, in MB of 2^20 bytes.
type memory struct {
	resident, peak, anonymous float64
}

// memory reads the process's own account, as Linux keeps it (proc(5), /proc/pid/status).
func (p *process) memory() (m memory, err error) {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.pid), "status"))
	if err != nil {
		return m, fmt.Errorf("read the memory of process %d (Linux only): %w", p.pid, err)
	}
	for name, to := range map[string]*float64{"VmRSS": &m.resident, "VmHWM": &m.peak, "RssAnon": &m.anonymous} {
		_, rest, ok := strings.Cut(string(text), name+":")
		if !ok {
			return m, fmt.Errorf("read the memory of process %d: there is no %s", p.pid, name)
		}
		kb, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
		if err != nil {
			return m, fmt.Errorf("read the memory of process %d: %s: %w", p.pid, name, err)
		}
		*to = kb / 1024
	}
	return m, nil
}

// A process is at rest when what its start or its work has left behind was collected: Go does so at least every two
// minutes, and gives pages back in the background.
const (
	restSettle  = 20 * time.Second
	restSampled = 10 * time.Second
)

// watch lets the process come to rest and returns the median of what it holds then.
func (p *process) watch(ctx context.Context) (memory, error) {
	const every = 500 * time.Millisecond
	var samples []memory
	err := pace(ctx, int((restSettle+restSampled)/every), every, func(i int) error {
		m, err := p.memory()
		if time.Duration(i)*every >= restSettle {
			samples = append(samples, m)
		}
		return err
	})
	if err != nil {
		return memory{}, err
	}
	slices.SortFunc(samples, func(a, b memory) int { return cmp.Compare(a.resident, b.resident) })
	return samples[len(samples)/2], nil
}
