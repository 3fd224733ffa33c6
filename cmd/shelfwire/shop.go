package main

import (
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/config"
	"github.com/shelfwire/shelfwire/sinks/shopify/shopifysim"
)

func shopCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "shop",
		Short: "Run simulated Shopify shops",
		Long: "Serves the Shopify Admin API of simulated shops. A shop answers at http://ADDRESS/NAME; use that as its\n" +
			"url in the configuration. A shop that is given no locations has one, named \"Shop location\", as a new shop has.",
		Args: noArgs,
	}
	listen := cmd.Flags().String("listen", "127.0.0.1:0", "address to listen on; port 0 takes a free one")
	plan := cmd.Flags().String("plan", "standard", "rate limits: standard, advanced, plus or enterprise")
	token := cmd.Flags().String("token", "", "access token that requests must carry (default: any)")
	dir := cmd.Flags().String("data", "", "directory that keeps the shops between runs (default: memory only)")
	shops := cmd.Flags().StringArray("shop", []string{"north=Hamburg,Rostock"}, "shop as NAME or NAME=LOCATION,LOCATION; may be given several times")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg := shopifysim.Config{Dir: *dir, Logger: newLogger(cmd.ErrOrStderr(), config.Log{Level: "info", Format: "text"})}
		p, err := shopifysim.ParsePlan(*plan)
		if err != nil {
			return usageError(cmd, "--plan: %s", err)
		}
		for _, s := range *shops {
			name, locations, given := strings.Cut(s, "=")
			c := shopifysim.ShopConfig{Domain: name, Token: *token, Plan: p, Publications: []string{"Online Store"}}
			if given {
				c.Locations = strings.Split(locations, ",")
			}
			switch {
			case name == "" || strings.ContainsAny(name, "/?# ") || slices.Contains(c.Locations, ""):
				return usageError(cmd, "--shop %q: write NAME or NAME=LOCATION,LOCATION, such as north=Hamburg,Rostock", s)
			case slices.ContainsFunc(cfg.Shops, func(o shopifysim.ShopConfig) bool { return o.Domain == name }):
				return usageError(cmd, "--shop %s is given twice", name)
			}
			cfg.Shops = append(cfg.Shops, c)
		}
		l, err := (&net.ListenConfig{}).Listen(cmd.Context(), "tcp", *listen)
		if err != nil {
			return fmt.Errorf("--listen: %w", err)
		}
		for _, s := range cfg.Shops {
			cmd.Printf("http://%s/%s\n", l.Addr(), s.Domain)
		}
		return shopifysim.Run(cmd.Context(), l, cfg)
	}
	return cmd
}
