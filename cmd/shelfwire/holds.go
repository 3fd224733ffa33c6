package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shelfwire/shelfwire/schemas/work"
	"github.com/shelfwire/shelfwire/sinks/state"
)

func holdsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "holds",
		Short: "List what the guard holds, and release or reject it",
		Long: "The guard holds pushes that would take too much of a shop off sale, or give it away. Release lets what is\n" +
			"held go out; reject drops it, and the audit will name it. A mended document needs neither: it goes at once.\n" +
			"As JSON the list is an array; since is RFC 3339 in UTC.",
		Args: noArgs,
	}
	file := configFlag(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print JSON also on a terminal")
	release := cmd.Flags().String("release", "", "release a hold: SHOP/EFFECT, as the list shows it")
	reject := cmd.Flags().String("reject", "", "reject a hold: SHOP/EFFECT")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *release != "" && *reject != "" {
			return usageError(cmd, "--release and --reject: give one of them")
		}
		end, name := (*state.Store).ReleaseHold, *release
		if *reject != "" {
			end, name = (*state.Store).RejectHold, *reject
		}
		shop, effect, ok := strings.Cut(name, "/")
		if name != "" && !ok {
			return usageError(cmd, "%q is no hold: write SHOP/EFFECT, such as main/%s", name, work.EffectOffSale)
		}
		a, err := openState(cmd.Context(), *file)
		defer a.close()
		if err != nil {
			return err
		}
		if name != "" {
			err := end(a.state, cmd.Context(), shop, work.Effect(effect))
			if errors.Is(err, state.ErrNoHold) {
				return fmt.Errorf("there is no hold %q; shelfwire holds lists them", name)
			}
			if err != nil {
				return err
			}
		}
		holds, err := a.state.Holds(cmd.Context())
		if err != nil {
			return err
		}
		t := &table{head: []string{"HOLD", "SINCE", "PRODUCTS", "OF", "EXAMPLES"}, elastic: []string{"EXAMPLES"}, empty: "nothing is held"}
		views := make([]holdView, len(holds))
		for i := range holds {
			v := viewHold(&holds[i])
			views[i] = v
			t.add(v.Hold, v.Since.Format(time.RFC3339), fmt.Sprint(v.Products), fmt.Sprint(v.Live), strings.Join(v.Examples, ", "))
		}
		return show(cmd.OutOrStdout(), *asJSON, views, t)
	}
	return cmd
}

// holdView is a hold as this command prints it. Its names are a promise: programs read them.
type holdView struct {
	// Hold is what --release and --reject take.
	Hold   string    `json:"hold"`
	Shop   string    `json:"shop"`
	Effect string    `json:"effect"`
	Since  time.Time `json:"since"`
	// Products are held; Live and Threshold are what was counted against when the hold began.
	Products  int      `json:"products"`
	Live      int      `json:"live"`
	Threshold int      `json:"threshold"`
	Examples  []string `json:"examples"`
}

func viewHold(h *state.Hold) holdView {
	return holdView{
		Hold: h.Shop + "/" + string(h.Effect), Shop: h.Shop, Effect: string(h.Effect), Since: h.Since.UTC(),
		Products: h.Products, Live: h.Live, Threshold: h.Threshold, Examples: append([]string{}, h.Examples...),
	}
}
