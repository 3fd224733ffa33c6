package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"runtime/debug"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spf13/cobra"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/config"
	"github.com/shelfwire/shelfwire/connectors/postgres"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/document"
)

// configFlag adds -c to a command.
func configFlag(cmd *cobra.Command) *string {
	return cmd.Flags().StringP("config", "c", "shelfwire.yaml", "configuration file")
}

// memoryTarget is what the process's memory is kept near by collecting more often, once it comes there: by itself the
// collector lets it grow to a multiple of what is in use. What is in use may be more; then half of the processor time goes
// to the collector at the most.
const memoryTarget = 384 << 20

// tuneMemory sets it where GOMEMLIMIT does not. GOGC stays Go's own 100: 300 spares a fifth of the processor under load, and
// took 60 MB more for a large transaction.
func tuneMemory() {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryTarget)
	}
}

func runCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the pipeline, or some of its roles, until it is stopped",
		Long: "Runs the pipeline until SIGINT or SIGTERM. Several processes share the work: each takes leases of\n" +
			"partitions, and a killed one's are taken over when they end. Services that are away are waited for, also at\n" +
			"the start; /readyz says which. A mistake in the configuration, and what the database lacks, end it at once.",
		Args: noArgs,
	}
	file := configFlag(cmd)
	only := cmd.Flags().String("only", "", "roles of this process, separated by commas: capture, expand, push, relay, load (default all)")
	accept := cmd.Flags().Bool("accept-source", false, "take a source with another system id than the state was made for")
	topics := cmd.Flags().Bool("accept-topics", false, "take over topics that belong to another state, which is gone for good")
	restart := cmd.Flags().Bool("restart-capture", false, "give up the position on record and take a whole snapshot")
	noHeal := cmd.Flags().Bool("no-heal", false, "where the slot is lost or the source was set back, stop and say what to run, instead of taking a whole snapshot")
	dry := cmd.Flags().Bool("dry-run", false, "log what would be sent for the changes that come now, send and settle nothing; "+
		"it reads what capture writes, in another process or with --only capture,push")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *dry && *only == "" {
			*only = string(rolePush)
		}
		roles, err := parseRoles(cmd, *only)
		if err != nil {
			return err
		}
		cfg, err := config.Load(*file, os.LookupEnv)
		if err != nil {
			return &exitCode{exitUsage, err}
		}
		tuneMemory()
		log := newLogger(cmd.ErrOrStderr(), cfg.Log)
		a := newApp(cfg, options{roles: roles, acceptSource: *accept, acceptTopics: *topics, restartCapture: *restart, noHeal: *noHeal, dryRun: *dry, wait: true}, log)
		defer a.close()
		return a.openAndRun(cmd.Context())
	}
	return cmd
}

// documents binds the documents query of the configuration.
type documents struct {
	source *postgres.Source
	sql    string
}

func (d documents) Documents(ctx context.Context, ids []change.ProductID) ([]document.Row, change.Snapshot, time.Time, error) {
	return d.source.Documents(ctx, d.sql, ids)
}

// loadApp reads the configuration of a command that works in silence. Nothing is opened yet.
func loadApp(file string) (*app, error) {
	cfg, err := config.Load(file, os.LookupEnv)
	if err != nil {
		return nil, &exitCode{exitUsage, err}
	}
	return newApp(cfg, options{}, slog.New(slog.DiscardHandler)), nil
}

// openState reads the configuration and opens its state, for a command that looks at it once. close must be called
// also after an error.
func openState(ctx context.Context, file string) (*app, error) {
	a, err := loadApp(file)
	if err != nil {
		return &app{}, err
	}
	if err := a.reach(ctx, "state.url", a.checkState); err != nil {
		return a, err
	}
	_, err = a.state.Incarnation(ctx)
	if noTable(err) {
		e := a.cfg.At("state.url", "the state database holds no state", "start shelfwire run, which makes it, or correct state.url")
		return a, e
	}
	return a, err
}

// noTable says that a table does not exist, as in a state that was never made.
func noTable(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Code == "42P01" // undefined_table
}
