package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/config"
	"github.com/shelfwire/shelfwire/connectors/kafka"
	"github.com/shelfwire/shelfwire/connectors/postgres"
	"github.com/shelfwire/shelfwire/pipeline"
	"github.com/shelfwire/shelfwire/pipeline/debounce"
	"github.com/shelfwire/shelfwire/schemas/event"
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
func parseRoles(only string) ([]role, error) {
	if only == "" {
		return allRoles, nil
	}
	var out []role
	for name := range strings.SplitSeq(only, ",") {
		r := role(strings.TrimSpace(name))
		if !slices.Contains(allRoles, r) {
			return nil, &exitCode{exitUsage, fmt.Errorf("--only: %q is no role; roles are %v", name, allRoles)}
		}
		out = append(out, r)
	}
	return out, nil
}

// options are what a command line says about one run.
type options struct {
	roles []role
	// acceptSource takes a source with another system id than the state was made for.
	acceptSource bool
	// restartCapture gives up Capture's position and takes a whole snapshot.
	restartCapture bool
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
	expand  *pipeline.Expand
	push    *pipeline.Push
	batches *pipeline.Batches
	relay   *pipeline.Relay
	load    *pipeline.Load
	// loadTopics are in the order in which the loader counts their partitions.
	loadTopics []pipeline.LoadTopic
	readers    []*kafka.Reader
}

// openApp connects to everything that the roles need, brings topics, state and source up to date, and starts
// nothing. close must be called also after an error.
func openApp(ctx context.Context, cfg *config.Config, opts options, log *slog.Logger) (*app, error) {
	host, err := os.Hostname()
	if err != nil {
		host = "host"
	}
	a := &app{cfg: cfg, log: log, options: opts, metrics: newRegistry(), owner: fmt.Sprintf("%s-%d-%s", host, os.Getpid(), rand.Text()[:8])}
	for _, step := range []func(context.Context) error{
		a.openSource, a.openKafka,
		a.openState, a.openTables,
		func(context.Context) error { return a.openShops(a.state) },
		a.checkSource, a.stages,
	} {
		if err := step(ctx); err != nil {
			return a, err
		}
	}
	return a, nil
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
	a.source, err = postgres.Open(ctx, postgres.Config{
		URL: c.URL.Reveal(), Slot: c.Slot, Publication: c.Publication, MaxConns: int32(c.MaxConnections),
		StatementTimeout: c.StatementTimeout, ApplicationName: "shelfwire", Logger: a.log,
	})
	return err
}

func (a *app) openKafka(ctx context.Context) (err error) {
	c := a.cfg.Kafka
	kc := kafka.Config{
		Brokers: c.Brokers, Prefix: c.Prefix, Partitions: int32(c.Partitions), Replication: int16(c.Replication), Logger: a.log,
	}
	if c.TLS {
		kc.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if c.Username != "" {
		kc.SASL = kafka.SASL{Mechanism: "SCRAM-SHA-512", User: c.Username, Password: c.Password.Reveal()}
	}
	if a.cluster, err = kafka.New(kc); err != nil {
		return err
	}
	return a.cluster.EnsureTopics(ctx)
}

// openStateOnly connects to the state as it is.
func (a *app) openStateOnly(ctx context.Context) (err error) {
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
	return a.state.Ping(ctx)
}

// openMigratedState connects to the state and brings its schema up to date.
func (a *app) openMigratedState(ctx context.Context) error {
	if err := a.openStateOnly(ctx); err != nil {
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
	return a.state.BindSource(ctx, h.SystemID, h.Timeline, a.options.acceptSource)
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

// checkSource refuses to start half: routes, documents query and replica identities are looked at first.
func (a *app) checkSource(ctx context.Context) error {
	var errs []error
	for _, f := range a.source.Check(ctx, a.cfg.Routes, a.cfg.Documents) {
		errs = append(errs, fmt.Errorf("%s: %s; %s", f.Where, f.Problem, f.Mend))
	}
	return errors.Join(errs...)
}

func (a *app) has(r role) bool { return slices.Contains(a.options.roles, r) }

// stages builds the stages of the roles. Nothing runs yet.
func (a *app) stages(ctx context.Context) error {
	lease := pipeline.LeaseConfig{Owner: a.owner, TTL: a.cfg.Push.Lease}
	n := a.cluster.Partitions()
	if a.has(roleCapture) {
		if err := a.buildCapture(ctx); err != nil {
			return err
		}
	}
	if a.has(roleExpand) {
		r, err := a.reader(event.Fanouts)
		if err != nil {
			return err
		}
		a.expand = pipeline.NewExpand(pipeline.ExpandConfig{
			Lease: lease, Prefix: a.cfg.Kafka.Prefix, Partitions: n, ChangePartitions: n, Routes: a.cfg.Routes,
		}, a.state, r, a.source, a.state, a.log)
	}
	if a.has(rolePush) {
		if err := a.buildPush(lease, n); err != nil {
			return err
		}
	}
	if a.has(roleRelay) {
		a.buildRelay()
	}
	if a.has(roleLoad) && a.tables != nil {
		return a.buildLoad(lease, n)
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
	changes, err := a.reader(event.Changes)
	if err != nil {
		return err
	}
	batches, err := a.reader(event.Batches)
	if err != nil {
		return err
	}
	a.push = pipeline.NewPush(pipeline.PushConfig{
		Lease: lease, Prefix: a.cfg.Kafka.Prefix, Partitions: n,
		Debounce:       debounce.Config{Quiet: a.cfg.Push.Quiet, MaxWait: a.cfg.Push.MaxWait},
		RequestTimeout: a.requestTimeout(), Drain: a.cfg.Push.Drain,
		Guard: work.GuardLimits{Window: a.cfg.Guard.Window, Share: a.cfg.Guard.Share, Floor: a.cfg.Guard.Floor},
	}, pipeline.PushParts{
		Leases: a.state, Reader: changes, Documents: documents{a.source, a.cfg.Documents},
		State: a.state, Fenced: a.state, Shops: a.state, Sender: a.shops, Log: a.log,
	})
	a.metrics.push(a.push.Stats())
	a.batches = pipeline.NewBatches(1, lease, a.state, batches, a.state, a.log)
	return nil
}

func (a *app) requestTimeout() time.Duration {
	var d time.Duration
	for _, s := range a.cfg.Shops {
		d = max(d, s.Timeout)
	}
	return d
}

func (a *app) buildLoad(lease pipeline.LeaseConfig, n int32) error {
	for _, kind := range clickhouse.Topics() {
		parts := n
		if kind == event.Batches {
			parts = 1
		}
		name := a.cluster.Topic(kind)
		a.loadTopics = append(a.loadTopics, pipeline.LoadTopic{Kind: kind, Name: name, Partitions: parts, Open: func() (pipeline.LoadReader, error) {
			return a.cluster.NewReader(name)
		}})
	}
	a.load = pipeline.NewLoad(pipeline.LoadConfig{Lease: lease}, a.loadTopics, a.state, a.state, a.cluster, a.tables, a.log)
	a.metrics.counter("load_rows_total", "Rows that ClickHouse has acknowledged.", a.load.Rows.Load)
	return nil
}

// run starts every goroutine of the process, and ends when ctx does or when one of them cannot go on.
func (a *app) run(outer context.Context) error {
	g, ctx := errgroup.WithContext(outer)
	g.Go(func() error { return serveMetrics(ctx, a.cfg.Metrics.Listen, a.metrics, a.ready, a.log) })
	if a.capture != nil {
		g.Go(func() error { return named("capture", a.capture.Run(ctx)) })
	}
	if a.expand != nil {
		g.Go(func() error { return named("expand", a.expand.Run(ctx)) })
	}
	if a.push != nil {
		g.Go(func() error { return named("shops", a.shops.Run(ctx)) })
		g.Go(func() error { return named("push", a.push.Run(ctx)) })
		g.Go(func() error { return named("batches", a.batches.Run(ctx)) })
	}
	if a.relay != nil {
		g.Go(func() error { return named("relay", a.relay.Run(ctx)) })
	}
	if a.load != nil {
		g.Go(func() error { return named("load", a.load.Run(ctx)) })
	}
	a.log.InfoContext(ctx, "running", "roles", fmt.Sprint(a.options.roles), "owner", a.owner)
	err := g.Wait()
	// Only the caller's own stop is no error. The group's context is ended by every error, with that error as its cause.
	if err != nil && outer.Err() != nil && errors.Is(err, context.Cause(outer)) {
		return nil
	}
	return err
}

func named(stage string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return nil
	}
	return fmt.Errorf("%s: %w", stage, err)
}

// ready asks every service that the roles need.
func (a *app) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	errs := []error{a.cluster.Ping(ctx), a.state.Ping(ctx)}
	if a.load != nil {
		errs = append(errs, a.tables.Ping(ctx))
	}
	return errors.Join(errs...)
}
