package main

import (
	"errors"
	"fmt"
	"os/user"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shelfwire/shelfwire/schemas/work"
	"github.com/shelfwire/shelfwire/sinks/state"
)

func pauseCommand() *cobra.Command {
	return pausing("pause", "Stop pushes to a shop, of a lane, of a campaign, or all",
		"What is on its way lands. What comes is parked, and goes on absorbing changes; what is parked stays so. Nothing\n"+
			"else waits. Without a flag it lists what is paused.",
		func(cmd *cobra.Command, a *app, what string) error {
			news, err := a.state.Pause(cmd.Context(), what, whoAmI())
			switch {
			case errors.Is(err, state.ErrNoCampaign):
				return fmt.Errorf("there is no campaign %q; shelfwire campaigns lists them", nameOf(what))
			case err == nil && !news:
				return fmt.Errorf("%s is paused already", what)
			}
			return err
		})
}

func resumeCommand() *cobra.Command {
	return pausing("resume", "Let go on what was paused",
		"Lets go on what shelfwire pause has stopped, with the flags that it was stopped with: a shop that is paused by\n"+
			"itself stays so when everything is resumed. Without a flag it lists what is paused.",
		func(cmd *cobra.Command, a *app, what string) error {
			was, err := a.state.Resume(cmd.Context(), what)
			if err == nil && !was {
				return fmt.Errorf("%s is not paused; shelfwire pause lists what is", what)
			}
			return err
		})
}

// pausing makes pause and resume, which differ in what they do only.
func pausing(use, short, long string, change func(cmd *cobra.Command, a *app, what string) error) *cobra.Command {
	cmd := &cobra.Command{
		Use:   use + " [--shop NAME | --lane LANE | --campaign ID | --all]",
		Short: short,
		Long:  long + "\nAs JSON the list is an array; since is RFC 3339 in UTC.",
		Args:  noArgs,
	}
	file := configFlag(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print JSON also on a terminal")
	shop := cmd.Flags().String("shop", "", "a shop, by its name in the configuration")
	lane := cmd.Flags().String("lane", "", "a lane: "+strings.Join(laneNames(), ", "))
	campaign := cmd.Flags().String("campaign", "", "a campaign, as shelfwire campaigns lists them")
	all := cmd.Flags().Bool("all", false, "everything")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var whats []string
		if *all {
			whats = append(whats, state.PauseAll)
		}
		if *shop != "" {
			whats = append(whats, state.PauseShop(*shop))
		}
		if *lane != "" {
			if !slices.Contains(laneNames(), *lane) {
				return usageError(cmd, "--lane: %q is no lane%s; lanes are %s", *lane, didYouMean("", *lane, laneNames()), strings.Join(laneNames(), ", "))
			}
			whats = append(whats, "lane/"+*lane)
		}
		if *campaign != "" {
			whats = append(whats, state.PauseCampaign(*campaign))
		}
		if len(whats) > 1 {
			return usageError(cmd, "--all, --shop, --lane and --campaign: give one of them")
		}
		a, err := openState(cmd.Context(), *file)
		defer a.close()
		if err != nil {
			return err
		}
		if _, ok := a.cfg.Shops[*shop]; *shop != "" && !ok && use == "pause" {
			return unknownShop(a, *shop)
		}
		for _, what := range whats {
			if err := change(cmd, a, what); err != nil {
				return err
			}
		}
		list, err := a.state.Paused(cmd.Context())
		if err != nil {
			return err
		}
		t := &table{head: []string{"PAUSED", "SINCE", "BY"}, elastic: []string{"BY"}, empty: "nothing is paused"}
		views := make([]pauseView, len(list))
		for i, p := range list {
			views[i] = viewPause(p)
			t.add(p.What, p.At.Format(time.RFC3339), p.By)
		}
		return show(cmd.OutOrStdout(), *asJSON, views, t)
	}
	return cmd
}

// pauseView is something that is paused, as these commands print it. Its names are a promise: programs read them.
type pauseView struct {
	// Kind is all, shop, lane or campaign; Name is empty for all.
	Kind  string    `json:"kind"`
	Name  string    `json:"name,omitempty"`
	Since time.Time `json:"since"`
	By    string    `json:"by,omitempty"`
}

func viewPause(p state.Pause) pauseView {
	kind, name, _ := strings.Cut(p.What, "/")
	return pauseView{Kind: kind, Name: name, Since: p.At.UTC(), By: p.By}
}

// nameOf is what a pause names, without its kind.
func nameOf(what string) string {
	_, name, _ := strings.Cut(what, "/")
	return name
}

func laneNames() (names []string) {
	for l := work.LaneLive; l <= work.LaneCampaign; l++ {
		names = append(names, l.String())
	}
	return names
}

// unknownShop is a mistake in a shop's name.
func unknownShop(a *app, name string) error {
	var known []string
	for s := range a.cfg.Shops {
		known = append(known, s)
	}
	slices.Sort(known)
	return fmt.Errorf("there is no shop %q in the configuration%s; shops are %s", name, didYouMean("", name, known), strings.Join(known, ", "))
}

// whoAmI is who runs the command, for those who ask later who has paused or excluded something.
func whoAmI() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return ""
}
