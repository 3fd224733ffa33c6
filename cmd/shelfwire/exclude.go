package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/shelfwire/shelfwire/sinks/state"
)

func excludeCommand() *cobra.Command {
	return excluding("exclude", "Keep a product from being pushed",
		"Keeps a product from being pushed to any shop, or to one. Each push of it is SKIPPED with the reason EXCLUDED; the\n"+
			"shop keeps what it has, and the audit names what differs. Without a product it lists what is excluded.",
		func(cmd *cobra.Command, a *app, product, shop string) error {
			if _, ok := a.cfg.Shops[shop]; shop != "" && !ok {
				return unknownShop(a, shop)
			}
			news, err := a.state.Exclude(cmd.Context(), product, shop, whoAmI())
			if err == nil && !news {
				return fmt.Errorf("product %s is excluded already", product)
			}
			return err
		})
}

func includeCommand() *cobra.Command {
	return excluding("include", "Push a product again that was excluded",
		"Ends what shelfwire exclude has begun, with the same product and shop, and makes the product due: its shops get what\n"+
			"they have missed. Without a product it lists what is excluded.",
		func(cmd *cobra.Command, a *app, product, shop string) error {
			err := a.state.Include(cmd.Context(), product, shop, int32(a.cfg.Kafka.Partitions))
			if errors.Is(err, state.ErrNotExcluded) {
				where := "every shop"
				if shop != "" {
					where = "the shop " + shop
				}
				return fmt.Errorf("product %s is not excluded from %s; shelfwire exclude lists what is", product, where)
			}
			return err
		})
}

// excluding makes exclude and include, which differ in what they do only.
func excluding(use, short, long string, change func(cmd *cobra.Command, a *app, product, shop string) error) *cobra.Command {
	cmd := &cobra.Command{
		Use:   use + " [PRODUCT] [--shop NAME]",
		Short: short,
		Long:  long + "\nAs JSON the list is an array; since is RFC 3339 in UTC.",
		Args:  atMostOne("product id"),
	}
	file := configFlag(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print JSON also on a terminal")
	shop := cmd.Flags().String("shop", "", "this shop alone, by its name in the configuration")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 && *shop != "" {
			return usageError(cmd, "--shop needs a product")
		}
		a, err := openState(cmd.Context(), *file)
		defer a.close()
		if err != nil {
			return err
		}
		if len(args) == 1 {
			if err := change(cmd, a, args[0], *shop); err != nil {
				return err
			}
		}
		list, err := a.state.Excluded(cmd.Context())
		if err != nil {
			return err
		}
		t := &table{head: []string{"PRODUCT", "SHOP", "SINCE", "BY"}, elastic: []string{"BY"}, empty: "nothing is excluded"}
		views := make([]excludedView, len(list))
		for i, e := range list {
			views[i] = excludedView{Product: e.ProductID, Shop: e.Shop, Since: e.At.UTC(), By: e.By}
			where := e.Shop
			if where == "" {
				where = "(all)"
			}
			t.add(e.ProductID, where, e.At.Format(time.RFC3339), e.By)
		}
		return show(cmd.OutOrStdout(), *asJSON, views, t)
	}
	return cmd
}

// excludedView is an excluded product as these commands print it. Its names are a promise: programs read them.
type excludedView struct {
	Product string `json:"product_id"`
	// Shop is absent for every shop.
	Shop  string    `json:"shop,omitempty"`
	Since time.Time `json:"since"`
	By    string    `json:"by,omitempty"`
}
