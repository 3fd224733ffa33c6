package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/shelfwire/shelfwire/sinks/state"
)

func campaignsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "campaigns [ID]",
		Short: "List what pushes many products, with its progress, and cancel it",
		Long: "A campaign is what parks many products: a fan-out, a snapshot, a replay, a heal. Lists the newest 50, or shows\n" +
			"one. Pause and resume one with shelfwire pause --campaign ID. Cancelling drops what it has not sent; what another\n" +
			"campaign or a change of their own wants of the same products is still pushed.\n\n" +
			"The rate is measured since the campaign began or was last resumed. As JSON a list is an array and one campaign an\n" +
			"object; times are RFC 3339 in UTC and absent while unknown, left_seconds as well.",
		Args: atMostOne("campaign id"),
	}
	file := configFlag(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print JSON also on a terminal")
	cancel := cmd.Flags().Bool("cancel", false, "cancel the campaign")
	open := cmd.Flags().Bool("open", false, "list only what has not ended")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if *cancel && len(args) == 0 {
			return usageError(cmd, "--cancel: name the campaign")
		}
		a, err := openState(cmd.Context(), *file)
		defer a.close()
		if err != nil {
			return err
		}
		if len(args) == 0 {
			list, err := a.state.Campaigns(cmd.Context(), state.CampaignFilter{Open: *open})
			if err != nil {
				return err
			}
			views := make([]campaignView, len(list))
			for i := range list {
				views[i] = viewCampaign(&list[i])
			}
			return show(cmd.OutOrStdout(), *asJSON, views, campaignTable(views))
		}
		if *cancel {
			err = a.state.CancelCampaign(cmd.Context(), args[0])
		}
		var c state.Campaign
		if err == nil {
			c, err = a.state.Campaign(cmd.Context(), args[0])
		}
		switch {
		case errors.Is(err, state.ErrNoCampaign):
			return fmt.Errorf("there is no campaign %q; shelfwire campaigns lists them", args[0])
		case errors.Is(err, state.ErrCampaignEnded):
			return fmt.Errorf("campaign %s has ended; there is nothing to cancel", args[0])
		case err != nil:
			return err
		}
		v := viewCampaign(&c)
		return show(cmd.OutOrStdout(), *asJSON, v, campaignTable([]campaignView{v}))
	}
	return cmd
}

// campaignView is a campaign as this command prints it. Its names are a promise: programs read them.
type campaignView struct {
	ID    string `json:"id"`
	Kind  string `json:"kind"`
	Name  string `json:"name,omitempty"`
	Admin string `json:"admin,omitempty"`
	// Status is RUNNING, PAUSED, CANCELLED or ENDED.
	Status  string     `json:"status"`
	Created time.Time  `json:"created_at"`
	Ended   *time.Time `json:"ended_at,omitempty"`
	// Whole says that Total grows no more.
	Whole bool `json:"whole"`
	// Total counts items of a batch, else products; Parked the rows that wait in the state.
	Total  int64 `json:"total"`
	Done   int64 `json:"done"`
	Parked int64 `json:"parked"`
	// Rate is Done a second; Left is how long the rest takes at this rate.
	Rate float64  `json:"rate"`
	Left *float64 `json:"left_seconds,omitempty"`
}

func viewCampaign(c *state.Campaign) campaignView {
	v := campaignView{
		ID: c.ID, Kind: c.Kind, Name: c.Name, Admin: c.Admin, Status: "RUNNING", Created: c.CreatedAt.UTC(), Ended: timeView(c.EndedAt),
		Whole: c.Whole, Total: c.Total, Done: c.Done, Parked: c.Parked, Rate: c.Rate,
	}
	switch {
	case c.Cancelled:
		v.Status = "CANCELLED"
	case !c.EndedAt.IsZero():
		v.Status = "ENDED"
	case c.Paused:
		v.Status = "PAUSED"
	}
	if left, ok := c.ETA(); ok {
		v.Left = new(left.Seconds())
	}
	return v
}

func campaignTable(list []campaignView) *table {
	t := &table{
		head:    []string{"CAMPAIGN", "KIND", "STATUS", "DONE", "OF", "RATE", "LEFT", "NAME"},
		elastic: []string{"NAME"},
		empty:   "there is no campaign yet",
	}
	for _, c := range list {
		of, left := fmt.Sprint(c.Total), ""
		if !c.Whole {
			of += "+"
		}
		if c.Left != nil {
			left = time.Duration(*c.Left * float64(time.Second)).Round(time.Second).String()
		}
		t.add(c.ID, c.Kind, c.Status, fmt.Sprint(c.Done), of, fmt.Sprintf("%.1f/s", c.Rate), left, c.Name)
	}
	return t
}
