package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/demo"
	"github.com/shelfwire/shelfwire/sinks/state"
)

// demoFlags are what a person may ask of the demo.
type demoFlags struct {
	duration time.Duration
	products int
	seed     uint64
	catalog  string
	keep     bool
	data     string
	verbose  bool
}

func demoCommand() *cobra.Command {
	f := &demoFlags{}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run the whole pipeline on embedded parts, with a catalog and live traffic, and audit the result",
		Long: "Starts a real PostgreSQL, Kafka, the ClickHouse engine and two simulated shops in this process and its\n" +
			"children, loads a catalog, brings it into the shops, lets a back office work on it, and ends with an audit\n" +
			"of the shops against the database. Everything listens on loopback, on free ports, and goes away with it.",
		Args: noArgs,
	}
	cmd.Flags().DurationVar(&f.duration, "for", time.Minute, "how long the traffic lasts")
	cmd.Flags().IntVar(&f.products, "products", 1000, "how many products to generate")
	cmd.Flags().Uint64Var(&f.seed, "seed", 1, "decides catalog, traffic and faults")
	cmd.Flags().StringVar(&f.catalog, "catalog", "", "a Shopify product CSV export to load instead of generated products")
	cmd.Flags().BoolVar(&f.keep, "keep", false, "go on after the audit, print how to connect, and a line whenever something happens")
	cmd.Flags().StringVar(&f.data, "data", "", "directory for the services' data (default: a temporary one)")
	cmd.Flags().BoolVar(&f.verbose, "verbose", false, "print the pipeline's own log")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		switch {
		case f.duration <= 0:
			return usageError(cmd, "--for %s: give a time such as 20s", f.duration)
		case f.products < 3:
			return usageError(cmd, "--products %d: give at least 3", f.products)
		}
		ctx, stop := context.WithCancelCause(cmd.Context())
		defer stop(nil)
		go endWithParent(ctx, stop)
		err := runDemo(ctx, f, cmd.OutOrStdout())
		if cause := context.Cause(ctx); errors.Is(cause, errParentGone) {
			return cause // whatever else broke off, it did so because of this
		}
		return err
	}
	return cmd
}

// errParentGone ends what is not to outlive a terminal or a make.
var errParentGone = errors.New("stopped, as the process that started it is gone")

// endWithParent stops the demo when the process that started it is gone: `go run` and make do not pass a kill -9 on.
func endWithParent(ctx context.Context, stop context.CancelCauseFunc) {
	parent := os.Getppid()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if os.Getppid() != parent {
				stop(errParentGone)
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// demoRun is one demo.
type demoRun struct {
	demoFlags
	export *demo.Catalog // what --catalog names; nil for generated products
	out    io.Writer
	log    *slog.Logger
	parts  *demoParts
	app    *app
	began  time.Time
}

// runDemo is the story from start to end. It returns an exitCode error when the audit found drift.
func runDemo(ctx context.Context, f *demoFlags, out io.Writer) error {
	d := &demoRun{demoFlags: *f, out: out, log: slog.New(slog.DiscardHandler), began: time.Now()}
	if f.verbose {
		d.log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	var err error
	if d.export, err = readCatalog(f.catalog); err != nil {
		return err
	}
	dir, remove, err := d.directory(ctx)
	if err != nil {
		return err
	}
	defer remove()
	d.parts = &demoParts{dir: dir, seed: f.seed, say: d.say}
	defer d.parts.stop()
	if err := d.parts.start(ctx); err != nil {
		return err
	}
	if err := d.loadCatalog(ctx); err != nil {
		return err
	}
	cfg, err := d.parts.config()
	if err != nil {
		return err
	}
	d.app, err = openApp(ctx, cfg, options{roles: allRoles}, d.log)
	defer d.app.close()
	if err != nil {
		return err
	}
	// The pipeline outlives the story by its own clean stop.
	runCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	g, storyCtx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.app.run(runCtx) })
	g.Go(func() error {
		defer stop()
		return d.story(storyCtx)
	})
	return g.Wait()
}

// directory is where the services keep their data, and how it is removed.
func (d *demoRun) directory(ctx context.Context) (dir string, remove func(), err error) {
	if d.data != "" {
		dir, err = filepath.Abs(d.data)
		if err == nil {
			err = os.MkdirAll(dir, 0o755)
		}
		return dir, func() {}, err
	}
	return scratch(ctx, "demo")
}

func (d *demoRun) say(format string, args ...any) {
	_, _ = fmt.Fprintf(d.out, "%6.1fs  %s\n", time.Since(d.began).Seconds(), fmt.Sprintf(format, args...))
}

// story is what a person sees: first snapshot, traffic, calm, audit, queries.
func (d *demoRun) story(ctx context.Context) error {
	screen := &screen{d: d, batches: map[string]state.BatchStatus{}}
	stopScreen := screen.start(ctx, false)
	defer stopScreen()

	if err := d.firstSnapshot(ctx); err != nil {
		return err
	}
	d.parts.misbehave()
	traffic := demo.NewTraffic(demo.TrafficConfig{URL: d.parts.sourceURL, Duration: d.duration, Seed: d.seed})
	screen.traffic.Store(traffic)
	d.say("traffic    a back office works for %s; the shops throttle, fail and lose answers now and then", d.duration)
	if err := traffic.Run(ctx); err != nil {
		return err
	}
	d.say("traffic    over; waiting until everything has arrived")
	if err := d.calm(ctx); err != nil {
		return err
	}
	stopScreen()
	screen.tell(ctx) // the last state of each batch, which may be younger than the last look
	auditErr := d.audit(ctx, traffic.Marks())
	var code *exitCode
	if auditErr != nil && !errors.As(auditErr, &code) {
		return auditErr
	}
	if err := d.queries(ctx); err != nil {
		return errors.Join(auditErr, err)
	}
	if d.keep {
		stopScreen := screen.start(ctx, true) // before anybody can try anything
		defer stopScreen()
		if err := d.connections(ctx); err != nil {
			return errors.Join(auditErr, err)
		}
		<-ctx.Done()
	}
	return auditErr
}
