package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// benchFlags are what a person may ask of the benchmark.
type benchFlags struct {
	out      string
	only     []string
	duration time.Duration
	seed     uint64
	rows     int // of the largest transaction
	verbose  bool
	strict   bool // a goal that is missed is an error
	quick    bool // fewer products and repetitions, for tests of what does not depend on them
}

func benchCommand() *cobra.Command {
	f := &benchFlags{}
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure speed, requests, points and memory on embedded parts",
		Long: "Runs the real pipeline against an embedded PostgreSQL, Kafka, ClickHouse and simulated shops, and measures it\n" +
			"from the outside: in the client that commits and in front of the shops. Prints a table; --out writes the\n" +
			"figures as JSON. Says of each figure whether its goal holds; a goal that is missed is no error without --strict,\n" +
			"a figure that could not be measured is. Latencies on a machine that does other work are that work's too.",
		Args: noArgs,
	}
	cmd.Flags().StringVar(&f.out, "out", "", "file for the figures, as JSON")
	cmd.Flags().StringSliceVar(&f.only, "only", nil, "what to measure: "+strings.Join(benchNames(), ", ")+" (default all but kafka, which needs Java)")
	cmd.Flags().DurationVar(&f.duration, "for", 30*time.Second, "how long the traffic of latency and memory lasts")
	cmd.Flags().Uint64Var(&f.seed, "seed", 1, "decides catalog, traces and faults")
	cmd.Flags().IntVar(&f.rows, "rows", largeTransaction, "rows of the one transaction whose memory is measured, from 200000 on")
	cmd.Flags().BoolVar(&f.strict, "strict", false, "exit with 1 when a goal is missed")
	cmd.Flags().BoolVar(&f.verbose, "verbose", false, "print the pipeline's own log")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, stop := context.WithCancelCause(cmd.Context())
		defer stop(nil)
		go endWithParent(ctx, stop)
		tuneMemory() // as run does: the pipeline is in this process
		err := runBench(ctx, f, cmd.OutOrStdout(), cmd.ErrOrStderr())
		if ctx.Err() != nil {
			cmd.PrintErrln("stopped")
			return &exitCode{code: 130}
		}
		return err
	}
	return cmd
}

// figure is one measured number against its goal.
type figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	// Goal is a comparison and a number in the same unit: "≤ 10", "= 1"; empty where there is none, and it holds.
	Goal  string `json:"goal"`
	Holds bool   `json:"holds"`
	// Conditions say what the number is true of: machine, counts, seconds, and how it was measured.
	Conditions string `json:"conditions"`
}

func atMost(name string, value float64, unit string, limit float64, conditions string) figure {
	return figure{Name: name, Value: round4(value), Unit: unit, Goal: fmt.Sprintf("≤ %g", round4(limit)), Holds: value <= limit, Conditions: conditions}
}

func atLeast(name string, value float64, unit string, limit float64, conditions string) figure {
	return figure{Name: name, Value: round4(value), Unit: unit, Goal: fmt.Sprintf("≥ %g", round4(limit)), Holds: value >= limit, Conditions: conditions}
}

func exactly(name string, value int, unit string, goal int, conditions string) figure {
	return figure{Name: name, Value: float64(value), Unit: unit, Goal: fmt.Sprintf("= %d", goal), Holds: value == goal, Conditions: conditions}
}

// shown is a figure without a goal.
func shown(name string, value float64, unit, conditions string) figure {
	return figure{Name: name, Value: round4(value), Unit: unit, Holds: true, Conditions: conditions}
}

// round4 keeps four digits, which is more than any of these numbers is worth.
func round4(v float64) float64 {
	var out float64
	_, _ = fmt.Sscan(fmt.Sprintf("%.4g", v), &out)
	return out
}

// benchMeasure is one entry of --only. Those with a rig share one pipeline; the others bring their own.
type benchMeasure struct {
	name string
	// asked: only when it is asked for by its name.
	asked bool
	alone func(ctx context.Context, b *bench) ([]figure, error)
	rig   func(ctx context.Context, b *bench, r *benchRig) ([]figure, error)
}

// benchMeasures are in the order of the table. Latency comes before everything that leaves the shops busy.
func benchMeasures() []benchMeasure {
	return []benchMeasure{
		{name: "start", alone: measureStart},
		{name: "latency", rig: measureLatency},
		{name: "requests", rig: measureRequests},
		{name: "points", rig: measurePoints},
		{name: "memory", alone: measureMemory},
		{name: "capture", alone: measureCapture},
		{name: "snapshot", alone: measureSnapshot},
		{name: "transaction", alone: measureTransaction},
		{name: "stream", alone: measureStream},
		{name: "unchanged", alone: measureUnchanged},
		{name: "parking", alone: measureParking},
		{name: "waiting", alone: measureWaiting},
		{name: "commit", alone: measureCommit},
		{name: "load", alone: measureLoad},
		{name: "kafka", asked: true, alone: measureKafka},
	}
}

func benchNames() []string {
	var out []string
	for _, m := range benchMeasures() {
		out = append(out, m.name)
	}
	return out
}

// bench is one run of the benchmark.
type bench struct {
	benchFlags
	errOut  io.Writer
	log     *slog.Logger
	machine string
	began   time.Time

	figures []figure
	missing []error // what could not be measured
}

func newBench(f *benchFlags, errOut io.Writer) *bench {
	b := &bench{benchFlags: *f, errOut: errOut, log: slog.New(slog.DiscardHandler), machine: describeMachine(), began: time.Now()}
	if f.verbose {
		b.log = slog.New(slog.NewTextHandler(errOut, nil))
	}
	return b
}

func runBench(ctx context.Context, f *benchFlags, out, errOut io.Writer) error {
	var wanted []string
	for _, m := range benchMeasures() {
		if !m.asked {
			wanted = append(wanted, m.name)
		}
	}
	if f.rows != 0 && f.rows < smallTransaction {
		return &exitCode{exitUsage, fmt.Errorf("--rows: %d are no large transaction; give %d or more", f.rows, smallTransaction)}
	}
	if len(f.only) > 0 {
		wanted = f.only
		for _, name := range f.only {
			if !slices.Contains(benchNames(), name) {
				return &exitCode{exitUsage, fmt.Errorf("--only: %q is no measurement; there are %s", name, strings.Join(benchNames(), ", "))}
			}
		}
	}
	for _, name := range []string{envPostgres, envKafka, envClickHouse} {
		if os.Getenv(name) != "" {
			return &exitCode{exitUsage, fmt.Errorf("%s is set: the benchmark fills and drops databases, and runs on embedded parts only; unset it", name)}
		}
	}
	b := newBench(f, errOut)
	b.say("machine: %s", b.machine)
	b.measure(ctx, wanted)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := b.report(out); err != nil {
		return err
	}
	return errors.Join(append(b.missing, b.missed())...)
}

// missed is nil unless somebody wants every goal to hold.
func (b *bench) missed() error {
	var names []string
	for _, f := range b.figures {
		if b.strict && !f.Holds {
			names = append(names, fmt.Sprintf("%s: %g %s, goal %s", f.Name, f.Value, f.Unit, f.Goal))
		}
	}
	if len(names) == 0 {
		return nil
	}
	return fmt.Errorf("missed: %s", strings.Join(names, "; "))
}

func (b *bench) say(format string, args ...any) {
	_, _ = fmt.Fprintf(b.errOut, "%6.1fs  %s\n", time.Since(b.began).Seconds(), fmt.Sprintf(format, args...))
}

// measure runs what is wanted, each also when another one could not be measured.
func (b *bench) measure(ctx context.Context, wanted []string) {
	var shared []benchMeasure
	var after []benchMeasure
	for _, m := range benchMeasures() {
		switch {
		case !slices.Contains(wanted, m.name):
		case m.rig != nil:
			shared = append(shared, m)
		case len(shared) > 0:
			after = append(after, m)
		default:
			b.book(ctx, m.name, func(ctx context.Context) ([]figure, error) { return m.alone(ctx, b) })
		}
	}
	if len(shared) > 0 {
		b.shared(ctx, shared)
	}
	for _, m := range after {
		b.book(ctx, m.name, func(ctx context.Context) ([]figure, error) { return m.alone(ctx, b) })
	}
}

// benchProducts is the catalog of the quiet measurements: enough to change 50 prices a second for as long as a
// product's debounce may last without ever touching one twice.
const benchProducts = 500

// shared measures on one pipeline, once its catalog stands in the shops.
func (b *bench) shared(ctx context.Context, list []benchMeasure) {
	left := list
	err := b.withPipeline(ctx, rigConfig{products: b.few(benchProducts, 200), stores: 3}, func(ctx context.Context, r *benchRig) error {
		if err := r.settle(ctx); err != nil {
			return err
		}
		for len(left) > 0 {
			m := left[0]
			left = left[1:]
			b.book(ctx, m.name, func(ctx context.Context) ([]figure, error) { return m.rig(ctx, b, r) })
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
		return nil
	})
	if err != nil {
		b.missing = append(b.missing, fmt.Errorf("measure on a pipeline (%d measurements left): %w", len(left), err))
	}
}

// few chooses between the benchmark's own count and the one of a quick run.
func (b *bench) few(n, quick int) int {
	if b.quick {
		return quick
	}
	return n
}

// book keeps the figures of one measurement, or why there are none.
func (b *bench) book(ctx context.Context, name string, run func(context.Context) ([]figure, error)) {
	if ctx.Err() != nil {
		return
	}
	b.say("measure %s", name)
	figures, err := run(ctx)
	if err != nil {
		b.missing = append(b.missing, fmt.Errorf("measure %s: %w", name, err))
		b.say("not measured: %v", err)
	}
	for _, f := range figures {
		f.Conditions += "; " + b.machine
		b.figures = append(b.figures, f)
	}
}

// report prints the table and writes the file.
func (b *bench) report(out io.Writer) error {
	t := &table{head: []string{"FIGURE", "VALUE", "UNIT", "GOAL", "HOLDS"}}
	for _, f := range b.figures {
		holds := "yes"
		switch {
		case f.Goal == "":
			holds = ""
		case !f.Holds:
			holds = "NO"
		}
		t.add(f.Name, fmt.Sprintf("%g", f.Value), f.Unit, f.Goal, holds)
	}
	if err := t.write(out); err != nil {
		return err
	}
	for _, f := range b.figures {
		_, _ = fmt.Fprintf(out, "\n%s: %s\n", f.Name, strings.TrimSuffix(f.Conditions, "; "+b.machine))
	}
	_, _ = fmt.Fprintf(out, "\nmachine: %s\n", b.machine)
	if b.out == "" {
		return nil
	}
	file, err := os.Create(b.out)
	if err != nil {
		return fmt.Errorf("--out: %w", err)
	}
	e := json.NewEncoder(file)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if b.figures == nil {
		b.figures = []figure{}
	}
	return errors.Join(e.Encode(b.figures), file.Close())
}

// describeMachine names what the figures were measured on, and how busy it was with other things.
func describeMachine() string {
	var s strings.Builder
	fmt.Fprintf(&s, "%s/%s, %d cores", runtime.GOOS, runtime.GOARCH, runtime.NumCPU())
	if f, err := os.Open("/proc/cpuinfo"); err == nil {
		defer func() { _ = f.Close() }()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if key, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(key) == "model name" {
				fmt.Fprintf(&s, " (%s)", strings.TrimSpace(value))
				break
			}
		}
	}
	s.WriteString(", " + runtime.Version())
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		one, _, _ := strings.Cut(string(load), " ")
		fmt.Fprintf(&s, ", load average %s before it began", one)
	}
	return s.String()
}
