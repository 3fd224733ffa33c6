package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shelfwire/shelfwire/connectors/postgres"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
	"github.com/shelfwire/shelfwire/sinks/state"
)

func replayCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "replay --product ID",
		Short: "Push products again from their current documents",
		Long: "Parks products in the campaign lane, so that the worker that owns each of them evaluates it again. A\n" +
			"product that is already as it should be costs nothing at the shop.\n\n" +
			"An id that has no row in the source and that no shop knows is UNKNOWN, and nothing is parked for it. Exits\n" +
			"with 1 when an id is unknown, or when after --wait a product is still parked or has failed.",
		Args: noArgs,
	}
	file := configFlag(cmd)
	products := cmd.Flags().StringSlice("product", nil, "product id; may be given several times")
	wait := cmd.Flags().Duration("wait", 0, "wait this long for the products to be settled, and say what became of them")
	asJSON := cmd.Flags().Bool("json", false, "print JSON also on a terminal")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if len(*products) == 0 {
			return usageError(cmd, "name the products to push again: --product ID")
		}
		a, err := openState(cmd.Context(), *file)
		defer a.close()
		if err != nil {
			return err
		}
		if err := a.reach(cmd.Context(), "source.url", a.openSource); err != nil {
			return err
		}
		r := &replay{
			state: a.state, documents: documents{a.source, a.cfg.Documents}, partitions: int32(a.cfg.Kafka.Partitions),
			products: slices.Compact(slices.Sorted(slices.Values(*products))), wait: *wait,
		}
		out, err := r.run(cmd.Context())
		if err != nil {
			return err
		}
		t := &table{head: []string{"PRODUCT", "SHOP", "STATUS", "REASON"}, elastic: []string{"REASON"}}
		for _, o := range out {
			t.add(o.Product, o.Shop, o.Status, o.Reason)
		}
		return errors.Join(show(cmd.OutOrStdout(), *asJSON, out, t), replayError(out, *wait))
	}
	return cmd
}

// replayed is what became of a product in a shop.
type replayed struct {
	Product string `json:"product_id"`
	Shop    string `json:"shop,omitempty"`
	// Status is that of the last push; PARKED before it, UNKNOWN where there is none to come, DROPPED where there was
	// nothing to push.
	Status string `json:"status"`
	Reason string `json:"reason,omitempty"`
}

const (
	replayParked  = "PARKED"
	replayUnknown = "UNKNOWN"
	replayDropped = "DROPPED"
)

// replayError is not nil when somebody should look at a product.
func replayError(out []replayed, wait time.Duration) error {
	by := map[string][]string{}
	for _, o := range out {
		if !slices.Contains(by[o.Status], o.Product) {
			by[o.Status] = append(by[o.Status], o.Product)
		}
	}
	var errs []string
	say := func(status, text string) {
		if ids := by[status]; len(ids) > 0 {
			errs = append(errs, fmt.Sprintf("%s %s: %s", count(len(ids), "product"), text, strings.Join(ids, ", ")))
		}
	}
	say(replayUnknown, "unknown to the source and to every shop")
	if wait > 0 {
		say(replayParked, fmt.Sprintf("still parked after %s (does shelfwire run?)", wait))
		say(string(event.Failed), "failed")
	}
	if len(errs) == 0 {
		return nil
	}
	return errors.New(strings.Join(errs, "; "))
}

// replay pushes some products again.
type replay struct {
	state      *state.Store
	documents  documents
	partitions int32
	products   []string
	wait       time.Duration
}

// run parks the products that anybody knows and, when it may wait, follows them until no parked row is left.
func (r *replay) run(ctx context.Context) ([]replayed, error) {
	before, err := r.state.Load(ctx, r.products)
	if err != nil {
		return nil, err
	}
	there, err := r.inSource(ctx)
	if err != nil {
		return nil, err
	}
	var rows []work.Parked
	now := time.Now()
	campaign := "replay/" + now.UTC().Format("20060102T150405.000Z")
	for _, p := range r.products {
		if !there[p] && !inAnyShop(before, p) {
			continue
		}
		rows = append(rows, work.Parked{
			ProductID: p, Partition: change.Partition(change.ProductID(p), r.partitions), Lane: work.LaneCampaign,
			Due: now, Reason: "REPLAY", CampaignID: campaign, Changes: 1, FirstCommit: now, LastCommit: now,
		})
	}
	if len(rows) > 0 {
		if err := r.state.Park(ctx, rows); err != nil {
			return nil, err
		}
	}
	for end := now.Add(r.wait); ; {
		l, err := r.state.Load(ctx, r.products)
		if err != nil {
			return nil, err
		}
		if len(l.Parked) == 0 || time.Now().After(end) {
			return r.describe(l, before, there), nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// inSource says which products the documents query returns. A product that breaks the query is there as well.
func (r *replay) inSource(ctx context.Context) (map[string]bool, error) {
	there := map[string]bool{}
	for _, p := range r.products {
		rows, _, _, err := r.documents.Documents(ctx, []change.ProductID{change.ProductID(p)})
		if q, ok := errors.AsType[*postgres.QueryError](err); ok && q.Data() {
			there[p] = true
			continue
		}
		if err != nil {
			return nil, err
		}
		there[p] = len(rows) > 0
	}
	return there, nil
}

// inAnyShop reports whether a shop has, or may have, the product.
func inAnyShop(l work.Loaded, product string) bool {
	return slices.ContainsFunc(l.Known, func(k work.Known) bool {
		return k.ProductID == product && k.Shop != "" && (k.ShopifyID != "" || len(k.Intents) > 0)
	})
}

func (r *replay) describe(l, before work.Loaded, there map[string]bool) []replayed {
	var out []replayed
	for _, p := range r.products {
		n := len(out)
		switch {
		case !there[p] && !inAnyShop(before, p):
			out = append(out, replayed{Product: p, Status: replayUnknown, Reason: "the documents query returns no row, and no shop has it"})
			continue
		case slices.ContainsFunc(l.Parked, func(k work.ParkedRef) bool { return k.ProductID == p }):
			reason := "a running push worker takes it next"
			if !there[p] {
				reason += "; without a row in the source it will be archived"
			}
			out = append(out, replayed{Product: p, Status: replayParked, Reason: reason})
			continue
		}
		for _, k := range l.Known {
			if k.ProductID == p && k.LastStatus != "" {
				out = append(out, replayed{Product: p, Shop: k.Shop, Status: string(k.LastStatus), Reason: k.LastReason})
			}
		}
		if len(out) == n {
			out = append(out, replayed{Product: p, Status: replayDropped, Reason: "there was nothing to push"})
		}
	}
	return out
}
