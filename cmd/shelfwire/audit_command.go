package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/audit"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/sinks/shopify"
	"github.com/shelfwire/shelfwire/sinks/state"
)

func auditCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Compare the shops with the database, product by product",
		Long: "Reads every product of the source and the whole catalog of every shop, and reports each difference.\n" +
			"Exits with 3 when something differs, or when nothing was compared. Differences that people wanted are listed and do\n" +
			"not count: of products that shelfwire exclude keeps from being pushed, and of those whose push was cancelled with\n" +
			"their batch and that have not been pushed since.",
		Args: noArgs,
	}
	file := configFlag(cmd)
	products := cmd.Flags().StringSlice("product", nil, "audit only these products")
	asJSON := cmd.Flags().Bool("json", false, "print JSON also on a terminal")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		a, err := loadApp(*file)
		if err != nil {
			return err
		}
		defer a.close()
		if err := a.reach(cmd.Context(), "source.url", a.openSource); err != nil {
			return err
		}
		if err := a.reach(cmd.Context(), "state.url", a.openMigratedState); err != nil {
			return err
		}
		if err := a.openShops(a.state); err != nil {
			return err
		}
		r, err := a.audit(cmd.Context(), *products)
		if err != nil {
			return err
		}
		if err := showAudit(cmd, *asJSON, r); err != nil {
			return err
		}
		if !r.Clean() {
			return &exitCode{code: exitDrift}
		}
		return nil
	}
	return cmd
}

func showAudit(cmd *cobra.Command, asJSON bool, r *audit.Report) error {
	out := cmd.OutOrStdout()
	if asJSON || !isTerminal(out) {
		return show(out, true, r, nil)
	}
	if err := auditTable(r, 50).write(out); err != nil {
		return err
	}
	cmd.Println(auditSentence(r))
	return nil
}

// auditSentence says what an audit has compared and found.
func auditSentence(r *audit.Report) string {
	s := fmt.Sprintf("compared %d products in %d shops, %d variants, %d prices, %d stock levels: ",
		r.Products, r.Shops, r.Variants, r.Prices, r.Levels)
	switch {
	case len(r.Drifts) == 0 && (r.Products == 0 || r.Prices == 0):
		return s + "that proves nothing; do the shops have products, and does the documents query name these shops?"
	case len(r.Drifts) == 0:
		return s + "no drift" + asideSentence(r)
	}
	kinds := map[audit.Kind]int{}
	for _, d := range r.Drifts {
		kinds[d.Kind]++
	}
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(kinds)) {
		parts = append(parts, fmt.Sprintf("%d %s", kinds[k], k))
	}
	return s + fmt.Sprintf("%d drifts (%s)", len(r.Drifts), strings.Join(parts, ", ")) + asideSentence(r)
}

// asideSentence says what differs because people wanted it; empty where nothing does.
func asideSentence(r *audit.Report) (s string) {
	for _, aside := range []struct {
		why    string
		drifts []audit.Drift
	}{{asideExcluded, r.Excluded}, {asideCancelled, r.Cancelled}} {
		if len(aside.drifts) == 0 {
			continue
		}
		products := map[[2]string]struct{}{}
		for _, d := range aside.drifts {
			products[[2]string{d.Shop, d.ProductID}] = struct{}{}
		}
		s += fmt.Sprintf("; %s: %s of %s", aside.why, count(len(aside.drifts), "difference"), count(len(products), "product"))
	}
	return s
}

// Why differences are no drift.
const (
	asideExcluded  = "excluded"
	asideCancelled = "cancelled"
)

func auditTable(r *audit.Report, most int) *table {
	t := &table{elastic: []string{"FIELD", "WANT", "HAVE"}}
	if len(r.Drifts)+len(r.Excluded)+len(r.Cancelled) > 0 {
		t.head = []string{"SHOP", "PRODUCT", "DRIFT", "FIELD", "WANT", "HAVE"}
	}
	for _, list := range []struct {
		why    string
		drifts []audit.Drift
	}{{"", r.Drifts}, {" (" + asideExcluded + ")", r.Excluded}, {" (" + asideCancelled + ")", r.Cancelled}} {
		for i, d := range list.drifts {
			if i == most {
				t.add(fmt.Sprintf("... and %d more%s", len(list.drifts)-most, list.why))
				break
			}
			t.add(d.Shop, d.ProductID, string(d.Kind)+list.why, d.Field, firstLine(d.Want), firstLine(d.Have))
		}
	}
	return t
}

// audit compares all shops of the configuration with the source.
func (a *app) audit(ctx context.Context, only []string) (*audit.Report, error) {
	r, err := audit.Run(ctx, &auditSource{app: a}, auditShops{a.shops, slices.Sorted(maps.Keys(a.cfg.Shops))}, only)
	if err != nil || len(r.Drifts) == 0 {
		return r, err
	}
	return r, setAside(ctx, a.state, r)
}

// setAside tells apart what differs because people wanted it.
func setAside(ctx context.Context, s *state.Store, r *audit.Report) error {
	list, err := s.Excluded(ctx)
	if err != nil {
		return err
	}
	excluded := map[[2]string]struct{}{}
	for _, e := range list {
		excluded[[2]string{e.ProductID, e.Shop}] = struct{}{}
	}
	r.Excluded = r.SetAside(func(d audit.Drift) bool {
		_, all := excluded[[2]string{d.ProductID, ""}]
		_, here := excluded[[2]string{d.ProductID, d.Shop}]
		return all || here
	})
	differs := map[[2]string]struct{}{}
	for _, d := range r.Drifts {
		differs[[2]string{d.ProductID, d.Shop}] = struct{}{}
	}
	cancelled, err := s.CancelledProducts(ctx, slices.Collect(maps.Keys(differs)))
	if err != nil {
		return err
	}
	r.Cancelled = r.SetAside(func(d audit.Drift) bool { return cancelled[[2]string{d.ProductID, d.Shop}] })
	return nil
}

// auditSource asks the source by SQL of its own: every id in the key column of a routed table is a product.
type auditSource struct {
	app *app
	ids []string
}

// ProductIDs lists all ids at its first call: one scan of each table, instead of one for each page.
func (s *auditSource) ProductIDs(ctx context.Context, after string, n int) ([]string, error) {
	if s.ids == nil {
		if err := s.list(ctx); err != nil {
			return nil, err
		}
	}
	i := sort.SearchStrings(s.ids, after)
	if i < len(s.ids) && s.ids[i] == after {
		i++
	}
	return s.ids[i:min(i+n, len(s.ids))], nil
}

func (s *auditSource) list(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, s.app.cfg.Source.URL.Reveal())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	all := map[string]struct{}{}
	for _, r := range s.app.cfg.Routes {
		if r.Key == "" {
			continue
		}
		schema, table, _ := strings.Cut(r.Table, ".")
		col := pgx.Identifier{r.Key}.Sanitize()
		rows, err := conn.Query(ctx, fmt.Sprintf("SELECT DISTINCT %s::text FROM %s WHERE %s IS NOT NULL",
			col, pgx.Identifier{schema, table}.Sanitize(), col))
		if err != nil {
			return fmt.Errorf("list products of %s: %w", r.Table, err)
		}
		ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return fmt.Errorf("list products of %s: %w", r.Table, err)
		}
		for _, id := range ids {
			all[id] = struct{}{}
		}
	}
	s.ids = slices.Sorted(maps.Keys(all))
	if s.ids == nil {
		s.ids = []string{}
	}
	return nil
}

// Documents reads what the shops shall have.
func (s *auditSource) Documents(ctx context.Context, ids []string) ([]document.Row, error) {
	products := make([]change.ProductID, len(ids))
	for i, id := range ids {
		products[i] = change.ProductID(id)
	}
	rows, _, _, err := s.app.source.Documents(ctx, s.app.cfg.Documents, products)
	return rows, err
}

// auditShops reads the catalogs.
type auditShops struct {
	shops *shopify.Shops
	names []string
}

func (s auditShops) Names() []string { return s.names }

// Products streams the catalog of one shop.
func (s auditShops) Products(ctx context.Context, shop string, yield func(audit.Product) bool) error {
	return s.shops.ReadCatalog(ctx, shop, func(p shopify.ShopProduct) bool { return yield(auditProduct(p)) })
}

// auditProduct translates a shop's product for the audit.
func auditProduct(p shopify.ShopProduct) audit.Product {
	out := audit.Product{
		ID: p.ID, ProductID: p.ProductID, Status: p.Status, Title: p.Title, DescriptionHTML: p.DescriptionHTML,
		Vendor: p.Vendor, ProductType: p.ProductType, Handle: p.Handle, SEOTitle: p.SEOTitle, SEODescription: p.SEODescription,
		Tags: p.Tags, Publications: p.Publications, Metafields: map[string]string{},
	}
	for key, m := range p.Metafields {
		out.Metafields[key] = m.Value
	}
	for _, o := range p.Options {
		out.Options = append(out.Options, document.Option{Name: o.Name, Values: o.Values})
	}
	for _, v := range p.Variants {
		levels := map[string]map[string]int{}
		for _, l := range v.Levels {
			levels[l.Location] = map[string]int{"available": l.Available, "on_hand": l.OnHand}
		}
		out.Variants = append(out.Variants, audit.Variant{
			ID: v.ID, Key: v.Key, Options: v.Options, SKU: v.SKU, Barcode: v.Barcode, Price: v.Price, CompareAtPrice: v.CompareAtPrice,
			Levels: levels,
		})
	}
	return out
}
