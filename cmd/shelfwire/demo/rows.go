package demo

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// category is a row of catalog.categories, with the stores that it is sold in by its own routing.
type category struct {
	id, parent int64 // parent 0: a top category
	depth      int
	name       string
	stores     []int64
}

// product is a product with all that belongs to it. Empty texts are NULL in the database.
type product struct {
	id, category                               int64 // category 0: none
	kind, handle, title, html, vendor, typ     string
	seoTitle, seoDescription, material, author string
	tags, options                              []string
	approvedAt                                 time.Time // zero: not approved
	images                                     []image
	variants                                   []variant
}

type image struct{ url, alt string }

type variant struct {
	id                              int64
	options                         []string
	sku, barcode                    string
	price, compareAt, cost          string // decimals
	grams                           float64
	policy                          string // empty: DENY
	untaxed, digital                bool
	approvedAt                      time.Time
	main, reserve                   int  // approved units in the two warehouses
	reserved                        int  // of the main warehouse
	withoutStock, withoutStockOther bool // no row in the main or the reserve warehouse
}

// insertCategories writes a tree, parents first, and its routing.
func insertCategories(ctx context.Context, tx pgx.Tx, tree []category) error {
	var routing [][]any
	rows := make([][]any, 0, len(tree))
	for _, c := range tree {
		rows = append(rows, []any{c.id, nullID(c.parent), c.depth, c.name})
		for _, store := range c.stores {
			routing = append(routing, []any{c.id, store})
		}
	}
	err := copyRows(ctx, tx, "categories", []string{"id", "parent_id", "depth", "name"}, rows)
	if err != nil {
		return err
	}
	return copyRows(ctx, tx, "category_stores", []string{"category_id", "store_id"}, routing)
}

// insertProducts writes products with their pictures, variants and stock, by COPY. Their ids must be set.
func insertProducts(ctx context.Context, tx pgx.Tx, list []product) error {
	var products, images, variants, stock [][]any
	for _, p := range list {
		products = append(products, []any{
			p.id, nullID(p.category), p.kind, p.handle, p.title, null(p.html), null(p.vendor), null(p.typ), orEmpty(p.tags),
			null(p.seoTitle), null(p.seoDescription), null(p.material), p.options, nullTime(p.approvedAt), null(p.author),
		})
		for i, picture := range p.images {
			images = append(images, []any{p.id, i + 1, picture.url, null(picture.alt)})
		}
		for i, v := range p.variants {
			variants = append(variants, v.row(p, i+1))
			if !v.withoutStock {
				stock = append(stock, []any{v.id, mainWarehouse, v.main, v.main, v.reserved})
			}
			if !v.withoutStockOther {
				stock = append(stock, []any{v.id, reserveWarehouse, v.reserve, v.reserve, 0})
			}
		}
	}
	for _, table := range []struct {
		name    string
		columns []string
		rows    [][]any
	}{
		{"products", []string{
			"id", "category_id", "kind", "handle", "title", "description_html", "vendor", "product_type", "tags",
			"seo_title", "seo_description", "material", "option_names", "approved_at", "approved_by",
		}, products},
		{"images", []string{"product_id", "position", "url", "alt"}, images},
		{"variants", []string{
			"id", "product_id", "position", "options", "sku", "barcode", "price", "compare_at_price", "cost", "weight_grams",
			"policy", "taxable", "requires_shipping", "approved_at", "approved_by",
		}, variants},
		{"stock", []string{"variant_id", "warehouse_id", "physical", "approved", "reserved"}, stock},
	} {
		if err := copyRows(ctx, tx, table.name, table.columns, table.rows); err != nil {
			return err
		}
	}
	return nil
}

// row is the variant's row at a position of its product.
func (v variant) row(p product, position int) []any {
	policy := v.policy
	if policy == "" {
		policy = "DENY"
	}
	author := null(p.author)
	if v.approvedAt.IsZero() {
		author = nil
	}
	return []any{
		v.id, p.id, position, v.options, null(v.sku), null(v.barcode), null(v.price), null(v.compareAt), null(v.cost),
		v.grams, policy, !v.untaxed, !v.digital, nullTime(v.approvedAt), author,
	}
}

func copyRows(ctx context.Context, tx pgx.Tx, table string, columns []string, rows [][]any) error {
	if len(rows) == 0 {
		return nil
	}
	if _, err := tx.CopyFrom(ctx, pgx.Identifier{"catalog", table}, columns, pgx.CopyFromRows(rows)); err != nil {
		return fmt.Errorf("copy %d rows into catalog.%s: %w", len(rows), table, err)
	}
	return nil
}

// moveSequences lets the tables that were filled with ids of our own go on behind them.
func moveSequences(ctx context.Context, tx pgx.Tx) error {
	for _, table := range []string{"stores", "warehouses", "categories", "products", "variants"} {
		name := "catalog." + table
		_, err := tx.Exec(ctx, `SELECT setval(pg_get_serial_sequence($1, 'id'), greatest(max(id), 1)) FROM `+name, name)
		if err != nil {
			return fmt.Errorf("move the sequence of %s: %w", name, err)
		}
	}
	return nil
}

// analyze makes the planner know the new rows at once: autovacuum would come a minute late, with the demo at its end.
func analyze(ctx context.Context, conn *pgx.Conn) error {
	for _, table := range []string{"categories", "category_stores", "products", "images", "variants", "stock"} {
		if _, err := conn.Exec(ctx, "ANALYZE catalog."+table); err != nil {
			return fmt.Errorf("analyze catalog.%s: %w", table, err)
		}
	}
	return nil
}

func null(s string) any {
	if s == "" {
		return nil
	}
	return s
}

func nullID(id int64) any {
	if id == 0 {
		return nil
	}
	return id
}

func nullTime(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t
}

func orEmpty(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}
