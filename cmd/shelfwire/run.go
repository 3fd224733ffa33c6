package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/config"
	"github.com/shelfwire/shelfwire/connectors/postgres"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/work"
	"github.com/shelfwire/shelfwire/sinks/state"
)

// configFlag adds -c to a command.
func configFlag(cmd *cobra.Command) *string {
	return cmd.Flags().StringP("config", "c", "shelfwire.yaml", "configuration file")
}

func runCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the pipeline, or some of its roles, until it is stopped",
		Long: "Runs the pipeline until SIGINT or SIGTERM. Several processes share the work: each takes leases of\n" +
			"partitions, and a killed one's are taken over when they end.",
		Args: cobra.NoArgs,
	}
	file := configFlag(cmd)
	only := cmd.Flags().String("only", "", "roles of this process, separated by commas: capture, expand, push, relay, load (default all)")
	accept := cmd.Flags().Bool("accept-source", false, "take a source with another system id than the state was made for")
	restart := cmd.Flags().Bool("restart-capture", false, "give up the position on record and take a whole snapshot")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := config.Load(*file, os.LookupEnv)
		if err != nil {
			return &exitCode{exitUsage, err}
		}
		roles, err := parseRoles(*only)
		if err != nil {
			return err
		}
		log := newLogger(cmd.ErrOrStderr(), cfg.Log)
		a, err := openApp(cmd.Context(), cfg, options{roles: roles, acceptSource: *accept, restartCapture: *restart}, log)
		defer a.close()
		if err != nil {
			return err
		}
		return a.run(cmd.Context())
	}
	return cmd
}

func checkCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Test the configuration and every service it names, without changing anything",
		Args:  cobra.NoArgs,
	}
	file := configFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := config.Load(*file, os.LookupEnv)
		if err != nil {
			return &exitCode{exitUsage, err}
		}
		ctx := cmd.Context()
		a := &app{cfg: cfg, log: slog.New(slog.DiscardHandler), metrics: newRegistry(), owner: "check"}
		defer a.close()
		bad := 0
		report := func(what string, err error) {
			if err != nil {
				bad++
				cmd.Printf("✗ %s: %v\n", what, err)
				return
			}
			cmd.Printf("✓ %s\n", what)
		}
		err = a.openSource(ctx)
		if err == nil {
			err = a.checkSource(ctx)
		}
		report("source, routes and documents query", err)
		report("kafka", a.checkKafka(ctx))
		report("state", a.checkState(ctx))
		report("clickhouse", a.checkTables(ctx))
		report("shops", a.checkShops(ctx))
		if bad > 0 {
			return &exitCode{exitError, fmt.Errorf("%d of 5 checks failed", bad)}
		}
		return nil
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

// openState reads the configuration and opens its state, for a command that looks at it once.
func openState(ctx context.Context, file string) (*config.Config, *state.Store, error) {
	cfg, err := config.Load(file, os.LookupEnv)
	if err != nil {
		return nil, nil, &exitCode{exitUsage, err}
	}
	st, err := state.Open(ctx, state.Config{URL: cfg.State.URL.Reveal(), MaxConns: 2})
	return cfg, st, err
}

func replayCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "replay",
		Short: "Push products again from their current documents",
		Long: "Parks products in the campaign lane, so that the worker that owns each of them evaluates it again. A\n" +
			"product that is already as it should be costs nothing at the shop.",
		Args: cobra.NoArgs,
	}
	file := configFlag(cmd)
	products := cmd.Flags().StringSlice("product", nil, "product id; may be given several times")
	wait := cmd.Flags().Duration("wait", 0, "wait this long for the products to be settled, and say what became of them")
	asJSON := cmd.Flags().Bool("json", false, "print JSON also on a terminal")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if len(*products) == 0 {
			return &exitCode{exitUsage, errors.New("name the products to push again: --product ID")}
		}
		cfg, st, err := openState(cmd.Context(), *file)
		if err != nil {
			return err
		}
		defer st.Close()
		out, err := replay(cmd.Context(), st, *products, int32(cfg.Kafka.Partitions), *wait)
		if err != nil {
			return err
		}
		t := &table{head: []string{"PRODUCT", "SHOP", "STATUS", "REASON"}}
		for _, r := range out {
			t.add(r.Product, r.Shop, r.Status, r.Reason)
		}
		return show(cmd.OutOrStdout(), *asJSON, out, t)
	}
	return cmd
}

// replayed is what became of a product in a shop.
type replayed struct {
	Product string `json:"product"`
	Shop    string `json:"shop,omitempty"`
	Status  string `json:"status"`
	Reason  string `json:"reason,omitempty"`
}

// replay parks the products and, when it may wait, follows them until no parked row is left.
func replay(ctx context.Context, st *state.Store, products []string, partitions int32, wait time.Duration) ([]replayed, error) {
	rows := make([]work.Parked, len(products))
	now := time.Now()
	for i, p := range products {
		rows[i] = work.Parked{
			ProductID: p, Partition: change.Partition(change.ProductID(p), partitions), Lane: work.LaneCampaign,
			Due: now, Reason: "REPLAY", Changes: 1, FirstCommit: now, LastCommit: now,
		}
	}
	if err := st.Park(ctx, rows); err != nil {
		return nil, err
	}
	for end := now.Add(wait); ; {
		l, err := st.Load(ctx, products)
		if err != nil {
			return nil, err
		}
		if len(l.Parked) == 0 || time.Now().After(end) {
			return describeReplay(products, l), nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func describeReplay(products []string, l work.Loaded) []replayed {
	waiting := map[string]bool{}
	for _, p := range l.Parked {
		waiting[p.ProductID] = true
	}
	var out []replayed
	for _, p := range products {
		if waiting[p] {
			out = append(out, replayed{Product: p, Status: "PARKED", Reason: "a running push worker takes it next"})
			continue
		}
		n := len(out)
		for _, k := range l.Known {
			if k.ProductID == p && k.Shop != "" {
				out = append(out, replayed{Product: p, Shop: k.Shop, Status: string(k.LastStatus), Reason: k.LastReason})
			}
		}
		if len(out) == n {
			out = append(out, replayed{Product: p, Status: "UNKNOWN", Reason: "neither the source nor a shop knows it"})
		}
	}
	return out
}

func batchesCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "batches [ID]",
		Short: "List upload batches, or show one with what failed in it",
		Args:  cobra.MaximumNArgs(1),
	}
	file := configFlag(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print JSON also on a terminal")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		_, st, err := openState(cmd.Context(), *file)
		if err != nil {
			return err
		}
		defer st.Close()
		var list []state.Batch
		if len(args) == 1 {
			b, err := st.Batch(cmd.Context(), args[0])
			if errors.Is(err, state.ErrNoBatch) {
				return fmt.Errorf("there is no batch %q; shelfwire batches lists them", args[0])
			}
			if err != nil {
				return err
			}
			list = []state.Batch{b}
		} else if list, err = st.Batches(cmd.Context(), state.BatchFilter{}); err != nil {
			return err
		}
		return show(cmd.OutOrStdout(), *asJSON, list, batchTable(list))
	}
	return cmd
}

func batchTable(list []state.Batch) *table {
	t := &table{head: []string{"BATCH", "NAME", "ADMIN", "STATUS", "TOTAL", "OK", "FAILED", "SKIPPED", "OPEN", "TOOK", "ERRORS"}}
	for _, b := range list {
		took := ""
		if !b.EndedAt.IsZero() && !b.StartedAt.IsZero() {
			took = b.EndedAt.Sub(b.StartedAt).Round(10 * time.Millisecond).String()
		}
		var errs []string
		for _, e := range b.Errors {
			errs = append(errs, fmt.Sprintf("%d %s (%s: %s)", e.Count, e.Category, e.ProductID, firstLine(e.Message)))
		}
		n := func(v int) string { return fmt.Sprint(v) }
		t.add(b.ID, b.Name, b.Admin, string(b.Status), n(b.Total), n(b.Succeeded), n(b.Failed), n(b.Skipped), n(b.Processing),
			took, strings.Join(errs, "; "))
	}
	return t
}

// firstLine keeps a table's row on one line.
func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	if r := []rune(s); len(r) > 80 {
		s = string(r[:79]) + "…"
	}
	return s
}
