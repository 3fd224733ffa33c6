package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shelfwire/shelfwire/schemas/work"
)

func holdsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "holds",
		Short: "List what the guard holds, and release or reject it",
		Long: "The guard holds pushes that would take too much of a shop off sale, or give it away. Release lets what is\n" +
			"held go out; reject drops it, and the audit will name it. A mended document needs neither: it goes at once.",
		Args: cobra.NoArgs,
	}
	file := configFlag(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print JSON also on a terminal")
	release := cmd.Flags().String("release", "", "release a hold: SHOP/EFFECT, as the list shows it")
	reject := cmd.Flags().String("reject", "", "reject a hold: SHOP/EFFECT")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *release != "" && *reject != "" {
			return &exitCode{exitUsage, errors.New("--release and --reject: give one of them")}
		}
		_, st, err := openState(cmd.Context(), *file)
		if err != nil {
			return err
		}
		defer st.Close()
		for _, end := range []struct {
			what string
			do   func(shop string, effect work.Effect) error
		}{
			{*release, func(s string, e work.Effect) error { return st.ReleaseHold(cmd.Context(), s, e) }},
			{*reject, func(s string, e work.Effect) error { return st.RejectHold(cmd.Context(), s, e) }},
		} {
			if end.what == "" {
				continue
			}
			shop, effect, ok := strings.Cut(end.what, "/")
			if !ok {
				return &exitCode{exitUsage, fmt.Errorf("%q is no hold: write SHOP/EFFECT, such as main/%s", end.what, work.EffectOffSale)}
			}
			if err := end.do(shop, work.Effect(effect)); err != nil {
				return err
			}
		}
		holds, err := st.Holds(cmd.Context())
		if err != nil {
			return err
		}
		t := &table{head: []string{"HOLD", "SINCE", "PRODUCTS", "OF", "EXAMPLES"}}
		for _, h := range holds {
			t.add(h.Shop+"/"+string(h.Effect), h.Since.Format(time.RFC3339), fmt.Sprint(h.Products), fmt.Sprint(h.Live), strings.Join(h.Examples, ", "))
		}
		return show(cmd.OutOrStdout(), *asJSON, holds, t)
	}
	return cmd
}
