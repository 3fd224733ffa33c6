package main

import (
	"fmt"
	"net"
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
			"url in the configuration.",
		Args: cobra.NoArgs,
	}
	listen := cmd.Flags().String("listen", "127.0.0.1:0", "address to listen on; port 0 takes a free one")
	plan := cmd.Flags().String("plan", "standard", "rate limits: standard, advanced, plus or enterprise")
	token := cmd.Flags().String("token", "", "access token that requests must carry (default: any)")
	dir := cmd.Flags().String("data", "", "directory that keeps the shops between runs (default: memory only)")
	shops := cmd.Flags().StringArray("shop", []string{"north=Hamburg,Rostock"}, "shop as NAME=LOCATION,LOCATION; may be given several times")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg := shopifysim.Config{Dir: *dir, Logger: newLogger(cmd.ErrOrStderr(), config.Log{Level: "info", Format: "text"})}
		p, err := shopifysim.ParsePlan(*plan)
		if err != nil {
			return &exitCode{exitUsage, err}
		}
		var names []string
		for _, s := range *shops {
			name, locations, _ := strings.Cut(s, "=")
			c := shopifysim.ShopConfig{Domain: name, Token: *token, Plan: p, Publications: []string{"Online Store"}}
			if locations != "" {
				c.Locations = strings.Split(locations, ",")
			}
			cfg.Shops = append(cfg.Shops, c)
			names = append(names, name)
		}
		l, err := (&net.ListenConfig{}).Listen(cmd.Context(), "tcp", *listen)
		if err != nil {
			return fmt.Errorf("--listen: %w", err)
		}
		for _, name := range names {
			cmd.Printf("http://%s/%s\n", l.Addr(), name)
		}
		return shopifysim.Run(cmd.Context(), l, cfg)
	}
	return cmd
}
