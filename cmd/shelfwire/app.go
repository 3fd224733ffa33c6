package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/config"
	"github.com/shelfwire/shelfwire/connectors/kafka"
	"github.com/shelfwire/shelfwire/connectors/postgres"
	"github.com/shelfwire/shelfwire/pipeline"
	"github.com/shelfwire/shelfwire/pipeline/debounce"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/route"
	"github.com/shelfwire/shelfwire/schemas/work"
	"github.com/shelfwire/shelfwire/sinks/clickhouse"
	"github.com/shelfwire/shelfwire/sinks/shopify"
	"github.com/shelfwire/shelfwire/sinks/state"
)

// role is a part of the pipeline that a process may run alone.
type role string

const (
	roleCapture role = "capture"
	roleExpand  role = "expand"
	rolePush    role = "push"
	roleRelay   role = "relay"
	roleLoad    role = "load"
)

var allRoles = []role{roleCapture, roleExpand, rolePush, roleRelay, roleLoad}

// parseRoles reads the value of --only.
func parseRoles(cmd *cobra.Command, only string) ([]role, error) {
	if only == "" {
		return allRoles, nil
	}
	var known []string
	for _, r := range allRoles {
		known = append(known, string(r))
	}
	var out []role
	for name := range strings.SplitSeq(only, ",") {
		name = strings.TrimSpace(name)
		if !slices.Contains(known, name) {
			return nil, usageError(cmd, "--only: %q is no role%s; roles are %s", name, didYouMean("", name, known), strings.Join(known, ", "))
		}
		out = append(out, role(name))
	}
	return out, nil
}

// options are what a command line says about one run.
type options struct {
	roles []role
	// acceptSource takes a source with another system id than the state was made for.
	acceptSource bool
	// acceptTopics takes over topics that belong to another state.
	acceptTopics bool
	// restartCapture gives up Capture's position and takes a whole snapshot.
	restartCapture bool
	// noHeal stops at a gap instead of healing it.
	noHeal bool
	// dryRun shows what Push would send instead of sending it.
	dryRun bool
	// wait makes a start wait for services that are away.
	wait bool
}

// app is the pipeline of one process.
type app struct {
	cfg     *config.Config
	log     *slog.Logger
	options options
	owner   string
	metrics *registry

	source  *postgres.Source
	cluster *kafka.Cluster
	state   *state.Store
	tables  *clickhouse.DB // nil where no ClickHouse is configured
	shops   *shopify.Shops

	capture *pipeline.Capture
	slot    *slotWatch
	expand  *pipeline.Expand
	push    *pipeline.Push
	batches *pipeline.Batches
	// passed and passedBatches heal stages whose records have gone.
	passed, passedBatches *pipeline.Passed
	// brake stops new pushes while the outbox is full.
	brake *pipeline.Brake
	dry   *pipeline.DryRun // in push's place; nil without --dry-run
	relay *pipeline.Relay
	load  *pipeline.Load
	// loadTopics are in the order in which the loader counts their partitions.
	loadTopics []pipeline.LoadTopic
	readers    []*kafka.Reader

	// opened is set when all of the above stands. waiting names the service that a start waits for, and why.
	opened  atomic.Bool
	waiting atomic.Pointer[string]
}

func newApp(cfg *config.Config, opts options, log *slog.Logger) *app {
	host, err := os.Hostname()
	if err != nil {
		host = "host"
	}
	return &app{cfg: cfg, log: log, options: opts, metrics: newRegistry(), owner: fmt.Sprintf("%s-%d-%s", host, os.Getpid(), rand.Text()[:8])}
}

// openApp connects to everything that the roles need, brings topics, state and source up to date, and starts
// nothing. close must be called also after an error.
func openApp(ctx context.Context, cfg *config.Config, opts options, log *slog.Logger) (*app, error) {
	a := newApp(cfg, opts, log)
	return a, a.open(ctx)
}

// open is what openApp does. A service that is away is waited for when the options say so.
func (a *app) open(ctx context.Context) error {
	for _, step := range []struct {
		service, key string // key names the service in the configuration; empty for what needs none
		do           func(context.Context) error
	}{
		{"the source database", "source.url", a.openSource},
		{"Kafka", "kafka.brokers", a.openKafka},
		{"the state database", "state.url", a.openState},
		{"ClickHouse", "clickhouse.url", a.openTables},
		{"the shops", "", func(context.Context) error {
			if !a.has(rolePush) { // whose schema alone takes a third of a second to read
				return nil
			}
			return a.openShops(a.state)
		}},
		{"the source database", "", a.checkSource},
		{"the stages", "", a.stages},
	} {
		if err := a.await(ctx, step.service, step.do); err != nil {
			return a.refused(ctx, step.key, err)
		}
	}
	a.opened.Store(true)
	return nil
}

// reach takes a step towards a service, for a command that waits for nothing.
func (a *app) reach(ctx context.Context, key string, step func(context.Context) error) error {
	if err := step(ctx); err != nil {
		return a.refused(ctx, key, err)
	}
	return nil
}

// refused gives the error of a service the place where it is named, unless it knows better itself: a stop, or an error
// that says what to do.
func (a *app) refused(ctx context.Context, key string, err error) error {
	_, partitions := errors.AsType[*kafka.TopicError](err)
	_, foreign := errors.AsType[*pipeline.ForeignTopicsError](err)
	var permanent interface{ Permanent() bool }
	if key == "" || ctx.Err() != nil || !partitions && !foreign && errors.As(err, &permanent) && permanent.Permanent() {
		return err
	}
	kind, e := a.serviceError(key, err)
	if kind == postgres.FindingMistake {
		return &exitCode{exitUsage, e}
	}
	return e
}

func (a *app) close() {
	for _, r := range a.readers {
		r.Close()
	}
	if a.tables != nil {
		_ = a.tables.Close() // nothing is in flight any more
	}
	if a.state != nil {
		a.state.Close()
	}
	if a.cluster != nil {
		a.cluster.Close()
	}
	if a.source != nil {
		a.source.Close()
	}
}

func (a *app) openSource(ctx context.Context) (err error) {
	c := a.cfg.Source
	return attempt(ctx, func(ctx context.Context) error {
		a.source, err = postgres.Open(ctx, postgres.Config{
			URL: c.URL.Reveal(), Slot: c.Slot, Publication: c.Publication, MaxConns: int32(c.MaxConnections),
			StatementTimeout: c.StatementTimeout, ApplicationName: "shelfwire", MessagePrefix: pipeline.MessagePrefix, OtherMessages: a.cfg.Mirror.On,
			SenderTimeout: c.SenderTimeout, SpillDir: c.SpillDir, SpillLimit: int64(c.SpillLimitMB) << 20, Logger: a.log,
		})
		return err
	})
}

func (a *app) openKafka(ctx context.Context) (err error) {
	if a.cluster == nil {
		if a.cluster, err = kafka.New(kafkaConfig(a.cfg, a.log)); err != nil {
			return err
		}
	}
	// Asked first, as it says at once what the creation of topics would try for long.
	if err := attempt(ctx, a.cluster.Ping); err != nil {
		return err
	}
	return a.cluster.EnsureTopics(ctx)
}

// openStateOnly connects to the state as it is.
func (a *app) openStateOnly(ctx context.Context) (err error) {
	if a.state != nil {
		return nil
	}
	a.state, err = state.Open(ctx, state.Config{
		URL: a.cfg.State.URL.Reveal(), MaxConns: int32(a.cfg.State.MaxConnections), BatchTopic: a.cfg.Kafka.Prefix + event.Batches,
	})
	return err
}

// checkState reaches the state without changing it.
func (a *app) checkState(ctx context.Context) error {
	if err := a.openStateOnly(ctx); err != nil {
		return err
	}
	return attempt(ctx, a.state.Ping)
}

// openMigratedState connects to the state and brings its schema up to date.
func (a *app) openMigratedState(ctx context.Context) error {
	if err := a.checkState(ctx); err != nil {
		return err
	}
	return a.state.Migrate(ctx)
}

func (a *app) openState(ctx context.Context) error {
	if err := a.openMigratedState(ctx); err != nil {
		return err
	}
	h, err := a.source.History(ctx)
	if err != nil {
		return err
	}
	if err := a.state.BindSource(ctx, h.SystemID, h.Timeline, a.options.acceptSource); err != nil {
		return err
	}
	return a.checkOwner(ctx)
}

// checkOwner refuses topics of another state before anything is read from them. The relay checks again: of two states
// that find new topics together, only one can have them.
func (a *app) checkOwner(ctx context.Context) error {
	if a.options.acceptTopics {
		return nil
	}
	incarnation, err := a.state.Incarnation(ctx)
	if err != nil {
		return err
	}
	return ownTopics(ctx, a.cluster, incarnation)
}

// ownTopics sees whether topics are those of a state.
func ownTopics(ctx context.Context, c *kafka.Cluster, state work.Incarnation) error {
	pos, ok, err := topicsOwner(ctx, c)
	if err != nil {
		return err
	}
	return pipeline.OwnTopics(c.Topic(event.Positions), pos, ok, state)
}

// topicsOwner is the position that says which state the topics belong to.
func topicsOwner(ctx context.Context, c *kafka.Cluster) (event.Position, bool, error) {
	return c.LastPosition(ctx, kafka.RelayPartition, pipeline.RelayWriter)
}

func (a *app) openTables(context.Context) error {
	if a.cfg.ClickHouse.URL == "" {
		return nil
	}
	c, err := clickhouse.ParseURL(a.cfg.ClickHouse.URL.Reveal())
	if err != nil {
		return err
	}
	c.Retention = time.Duration(a.cfg.ClickHouse.RetentionDays) * 24 * time.Hour
	a.tables, err = clickhouse.Open(c)
	return err
}

func (a *app) has(r role) bool { return slices.Contains(a.options.roles, r) }

// stages builds the stages of the roles. Nothing runs yet.
func (a *app) stages(ctx context.Context) error {
	lease := pipeline.LeaseConfig{Owner: a.owner, TTL: a.cfg.Push.Lease}
	n := a.cluster.Partitions()
	a.buildPassed()
	a.metrics.waiting("kafka", "", func() bool { reason, _ := a.cluster.Away(); return reason != "" })
	if a.has(roleCapture) {
		if err := a.buildCapture(ctx); err != nil {
			return err
		}
	}
	if a.has(roleExpand) {
		r, err := a.following(a.passed, work.StageExpand, event.Fanouts)
		if err != nil {
			return err
		}
		a.expand = pipeline.NewExpand(pipeline.ExpandConfig{
			Lease: lease, Prefix: a.cfg.Kafka.Prefix, Partitions: n, ChangePartitions: n, Routes: a.cfg.Routes,
		}, a.state, r, a.source, a.state, a.log)
	}
	if a.has(rolePush) {
		build := func() error { return a.buildPush(lease, n) }
		if a.options.dryRun {
			build = func() error { return a.buildDryRun(ctx, n) }
		}
		if err := build(); err != nil {
			return err
		}
	}
	if a.has(roleRelay) {
		a.buildRelay()
	}
	switch {
	case !a.has(roleLoad):
	case a.tables != nil:
		return a.buildLoad(lease, n)
	case len(a.options.roles) == 1:
		return &exitCode{exitUsage, a.cfg.At("clickhouse", "the role load needs clickhouse.url", "set it, or run other roles")}
	}
	return nil
}

func (a *app) reader(topic string) (*kafka.Reader, error) {
	r, err := a.cluster.NewReader(a.cluster.Topic(topic))
	if err == nil {
		a.readers = append(a.readers, r)
	}
	return r, err
}

func (a *app) buildPush(lease pipeline.LeaseConfig, n int32) error {
	a.brake = &pipeline.Brake{Log: a.log.With("stage", "push"), Measure: func(ctx context.Context) (int64, int64, error) {
		o, err := a.state.Outbox(ctx)
		return o.Rows, o.Bytes, err
	}}
	a.metrics.waiting("push", "outbox", func() bool { return a.brake.Waiting() != "" })
	changes, err := a.following(a.passed, work.StagePush, event.Changes)
	if err != nil {
		return err
	}
	batches, err := a.following(a.passedBatches, work.StageBatches, event.Batches)
	if err != nil {
		return err
	}
	cfg := a.pushConfig(n)
	cfg.Lease, cfg.RequestTimeout, cfg.Drain = lease, a.requestTimeout(), a.cfg.Push.Drain
	cfg.Guard = work.GuardLimits{Window: a.cfg.Guard.Window, Share: a.cfg.Guard.Share, Floor: a.cfg.Guard.Floor}
	a.push = pipeline.NewPush(cfg, pipeline.PushParts{
		Leases: a.state, Reader: a.brake.Reader(changes), Hold: a.brake.Waiting, Documents: documents{a.source, a.cfg.Documents},
		Snapshot: a.source.Snapshot, TellLate: a.state.TellLate,
		State: a.state, Fenced: a.state, Shops: a.state, Sender: a.shops, Log: a.log,
	})
	a.metrics.push(a.push.Stats())
	a.metrics.waiting("push", "", func() bool { return len(a.push.Waiting()) > 0 })
	a.batches = pipeline.NewBatches(1, lease, a.state, batches, a.state, a.log)
	return nil
}

// pushConfig says what is read and how it is gathered, for pushes and for showing them alike.
func (a *app) pushConfig(n int32) pipeline.PushConfig {
	c := pipeline.PushConfig{
		Prefix: a.cfg.Kafka.Prefix, Partitions: n,
		Debounce: debounce.Wait{Quiet: a.cfg.Push.Quiet, MaxWait: a.cfg.Push.MaxWait}, Content: debounce.Wait(a.cfg.Push.Content),
	}
	for _, r := range a.cfg.Routes {
		if r.Lane == route.LaneContent {
			c.ContentTables = append(c.ContentTables, r.Table)
		}
	}
	return c
}

func (a *app) requestTimeout() time.Duration {
	var d time.Duration
	for _, s := range a.cfg.Shops {
		d = max(d, s.Timeout)
	}
	return d
}

// partitionsOf is how many partitions a topic has where those by product have n.
func partitionsOf(kind string, n int32) int32 {
	if kind == event.Batches {
		return 1
	}
	return n
}

func (a *app) buildLoad(lease pipeline.LeaseConfig, n int32) error {
	for _, kind := range clickhouse.Topics() {
		name := a.cluster.Topic(kind)
		a.loadTopics = append(a.loadTopics, pipeline.LoadTopic{Kind: kind, Name: name, Partitions: partitionsOf(kind, n), Open: func() (pipeline.LoadReader, error) {
			return a.cluster.NewReader(name)
		}})
	}
	a.load = pipeline.NewLoad(pipeline.LoadConfig{Lease: lease}, a.loadTopics, a.state, a.state, a.cluster, a.tables, a.log)
	a.load.Step = a.metrics.step
	a.metrics.counter("load_rows_total", "Rows that ClickHouse has acknowledged.", a.load.Rows.Load)
	topics := []string{""} // what concerns all of them
	for _, t := range a.loadTopics {
		topics = append(topics, t.Name)
	}
	for _, topic := range topics {
		a.metrics.waiting("load", topic, func() bool { return a.load.Waiting()[topic] != "" })
	}
	return nil
}

// run starts every goroutine of a process that is open, and ends when ctx does or when one of them cannot go on.
func (a *app) run(ctx context.Context) error { return a.serve(ctx, a.runStages) }

// openAndRun is open and run. Metrics and health answer meanwhile.
func (a *app) openAndRun(ctx context.Context) error {
	return a.serve(ctx, func(ctx context.Context) error {
		if err := a.open(ctx); err != nil {
			return err
		}
		return a.runStages(ctx)
	})
}

// serve answers for metrics and health while main runs, and ends when ctx does or when one of them cannot go on.
func (a *app) serve(outer context.Context, main func(context.Context) error) error {
	g, ctx := errgroup.WithContext(outer)
	g.Go(func() error {
		if err := serveMetrics(ctx, a.cfg.Metrics.Listen, a.metrics, a.ready, a.log); err != nil {
			return a.cfg.At("metrics.listen", "metrics.listen: "+err.Error(), "choose another address for this process, or off")
		}
		return nil
	})
	g.Go(func() error { return main(ctx) })
	err := g.Wait()
	// Only the caller's own stop is no error. The group's context is ended by every error, with that error as its cause.
	if err != nil && outer.Err() != nil && errors.Is(err, context.Cause(outer)) {
		return nil
	}
	return err
}

// runStages runs the stages that were built.
func (a *app) runStages(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	if a.capture != nil {
		g.Go(func() error { return named("capture", a.capture.Run(ctx)) })
		g.Go(func() error { return a.slot.run(ctx) })
	}
	if a.expand != nil {
		g.Go(func() error { return named("expand", a.expand.Run(ctx)) })
	}
	if a.dry != nil {
		g.Go(func() error { return named("dry run", a.dry.Run(ctx)) })
	}
	if a.push != nil {
		g.Go(func() error { return named("shops", a.shops.Run(ctx)) })
		g.Go(func() error { return a.brake.Run(ctx) })
		g.Go(func() error { return named("push", a.push.Run(ctx)) })
		g.Go(func() error { return named("batches", a.batches.Run(ctx)) })
		g.Go(func() error { return a.forget(ctx) })
	}
	if a.relay != nil {
		g.Go(func() error { return named("relay", a.relay.Run(ctx)) })
	}
	if a.load != nil {
		g.Go(func() error { return named("load", a.load.Run(ctx)) })
	}
	a.log.InfoContext(ctx, "running", "roles", fmt.Sprint(a.options.roles), "owner", a.owner)
	return g.Wait()
}

func named(stage string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return nil
	}
	return fmt.Errorf("%s: %w", stage, err)
}

// ready asks every service that the roles need.
func (a *app) ready(ctx context.Context) error {
	if !a.opened.Load() {
		if w := a.waiting.Load(); w != nil {
			return errors.New("waiting for " + *w)
		}
		return errors.New("starting")
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	errs := []error{a.cluster.Ping(ctx), a.state.Ping(ctx)}
	if a.load != nil {
		errs = append(errs, a.tables.Ping(ctx))
	}
	return errors.Join(errs...)
}
