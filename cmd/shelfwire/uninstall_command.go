package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/config"
	"github.com/shelfwire/shelfwire/connectors/postgres"
)

func uninstallCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove slot and publication from the database, and with --state the state",
		Long: "Shows what it would remove, and removes it with --yes: the replication slot, so that the server keeps no WAL for it\n" +
			"any more, and the publication, unless it publishes tables that are neither routed nor mirrored: it is not ours alone then. With --state\n" +
			"also all that Shelfwire has made in the state database. Roles, replica identities, the state database itself, the\n" +
			"topics and what stands in shops and ClickHouse stay. Stop every shelfwire run before.",
		Args: noArgs,
	}
	file := configFlag(cmd)
	yes := cmd.Flags().Bool("yes", false, "remove it")
	withState := cmd.Flags().Bool("state", false, "also what stands in the state database")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		a, err := loadApp(*file)
		if err != nil {
			return err
		}
		defer a.close()
		u, err := a.planUninstall(cmd.Context(), *withState)
		if err != nil {
			return err
		}
		u.describe(cmd.OutOrStdout(), a.cfg, *yes)
		if !*yes || u.empty() {
			return nil
		}
		return u.do(cmd.Context(), a)
	}
	return cmd
}

// uninstall is what there is to remove.
type uninstall struct {
	slot        postgres.SlotStatus
	publication bool
	owned       bool // so that it can be dropped
	// foreign are published tables that nobody asked us to capture.
	published, foreign []string
	state              bool
	products, batches  int64
}

func (u *uninstall) empty() bool { return !u.slot.Exists && !u.dropsPublication() && !u.state }

func (u *uninstall) dropsPublication() bool { return u.publication && u.owned && len(u.foreign) == 0 }

func (a *app) planUninstall(ctx context.Context, withState bool) (*uninstall, error) {
	u := &uninstall{}
	err := a.reach(ctx, "source.url", func(ctx context.Context) (err error) {
		if err = a.openSource(ctx); err != nil {
			return err
		}
		if u.slot, err = a.source.SlotStatus(ctx); err != nil {
			return err
		}
		if u.published, u.publication, err = a.source.PublishedTables(ctx); err != nil {
			return err
		}
		u.owned, err = a.source.OwnsPublication(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	ours := a.captureTables()
	for _, t := range u.published {
		if !slices.Contains(ours, t) {
			u.foreign = append(u.foreign, t)
		}
	}
	if withState {
		err = a.reach(ctx, "state.url", func(ctx context.Context) (err error) {
			if err = a.checkState(ctx); err == nil {
				u.products, u.batches, u.state, err = a.state.Contents(ctx)
			}
			return err
		})
	}
	return u, err
}

// describe says what will go, and what is left to do by hand.
func (u *uninstall) describe(w io.Writer, cfg *config.Config, yes bool) {
	say := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }
	verb := "would remove"
	if yes {
		verb = "removes"
	}
	if u.slot.Exists {
		say("%s the slot %s, which holds back %s of WAL", verb, cfg.Source.Slot, bytesText(u.slot.Held()))
		if u.slot.Active {
			say("  it is being read by server process %d: stop shelfwire run first", u.slot.ActivePID)
		}
	}
	switch {
	case u.dropsPublication():
		say("%s the publication %s of %s", verb, cfg.Source.Publication, strings.Join(u.published, ", "))
	case u.publication && len(u.foreign) == 0:
		say("leaves the publication %s, which belongs to another role: let its owner run DROP PUBLICATION %q;", cfg.Source.Publication, cfg.Source.Publication)
	case u.publication:
		say("keeps the publication %s: it also publishes %s, which are neither routed nor mirrored", cfg.Source.Publication, strings.Join(u.foreign, ", "))
	}
	if u.state {
		say("%s the state: what is known of %d products, and %d batches", verb, u.products, u.batches)
	}
	if u.empty() {
		say("there is nothing to remove")
		return
	}
	say("stays: roles, replica identities, the topics %s*, and what stands in shops and ClickHouse", cfg.Kafka.Prefix)
	if !yes {
		say("run it again with --yes")
	}
}

// slotGrace is how long the walsender of a process that has just been stopped may take to let go of the slot.
const slotGrace = 5 * time.Second

// do removes the slot first: it is what costs the database something.
func (u *uninstall) do(ctx context.Context, a *app) error {
	for end := time.Now().Add(slotGrace); ; {
		err := a.source.DropSlot(ctx)
		if err == nil {
			break
		}
		if trouble, ok := errors.AsType[*postgres.SlotError](err); !ok || trouble.Kind != postgres.SlotActive || time.Now().After(end) {
			return err
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if u.dropsPublication() {
		if err := a.source.DropPublication(ctx); err != nil {
			return err
		}
	}
	if u.state {
		return a.state.Remove(ctx)
	}
	return nil
}
