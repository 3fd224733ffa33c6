package torture

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/audit"
	"github.com/shelfwire/shelfwire/cmd/shelfwire/demo"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/sinks/shopify/shopifysim"
)

// compareShops holds the shops against the source, three times over: by the audit that users run, by SQL that shares
// nothing with the documents query, and for what must never be there.
func (w *world) compareShops(ctx context.Context, f *findings, marks demo.Marks) error {
	if err := w.runAudit(ctx, f); err != nil {
		return err
	}
	sold := map[sale]shopifysim.Variant{}
	for _, s := range demo.Stores() {
		raw, products, err := w.shopProducts(ctx, s.Name)
		if err != nil {
			return err
		}
		f.count("products in the shops", len(products))
		seek(f, "shop "+s.Name, raw, marks)
		ids := map[string]string{}
		for _, p := range products {
			id := customID(p)
			if other, twice := ids[id]; twice || id == "" {
				f.add(fmt.Sprintf("shop %s: product %q: %s and %s are both there", s.Name, id, p.ID, other))
			}
			ids[id] = p.ID
			if p.Status == "ACTIVE" && slices.Contains(marks.DeletedProducts, id) {
				f.add(fmt.Sprintf("shop %s: product %s was deleted and is on sale", s.Name, id))
			}
			sell(sold, s.Name, p)
		}
	}
	return w.compareSales(ctx, f, sold)
}

// sale is a variant in a shop.
type sale struct{ shop, product, sku string }

// sell adds the variants of a product that is on sale.
func sell(sold map[sale]shopifysim.Variant, shop string, p shopifysim.Product) {
	for _, v := range p.Variants {
		if p.Status == "ACTIVE" {
			sold[sale{shop, customID(p), v.SKU}] = v
		}
	}
}

func customID(p shopifysim.Product) string {
	for _, m := range p.Metafields {
		if m.Namespace == "shelfwire" && m.Key == "product_id" {
			return m.Value
		}
	}
	return ""
}

// runAudit is `shelfwire audit`.
func (w *world) runAudit(ctx context.Context, f *findings) error {
	cmd := exec.CommandContext(ctx, w.binary, "audit", "-c", w.file, "--json")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	runErr := cmd.Run()
	var r audit.Report
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		return fmt.Errorf("shelfwire audit: %w: %w: %s", runErr, err, errs.Bytes())
	}
	f.count("audit: products", r.Products)
	f.count("audit: prices", r.Prices)
	f.count("audit: stock levels", r.Levels)
	for _, d := range slices.Concat(r.Drifts, r.Excluded, r.Cancelled) {
		f.add(fmt.Sprintf("audit: %s: product %s: %s %s should be %q and is %q", d.Shop, d.ProductID, d.Kind, d.Field, tail(d.Want, 200), tail(d.Have, 200)))
	}
	if r.Clean() != (runErr == nil) {
		f.add(fmt.Sprintf("audit: %d drifts, %d products, and it ended with: %v", len(r.Drifts), r.Products, runErr))
	}
	return nil
}

// shopProducts is what a shop has, not through the API that is judged.
func (w *world) shopProducts(ctx context.Context, shop string) ([]byte, []shopifysim.Product, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.shopURL("_sim/"+shop+"/products"), nil)
	if err != nil {
		return nil, nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, nil, err
	}
	var products []shopifysim.Product
	if err := json.Unmarshal(raw, &products); err != nil {
		return nil, nil, fmt.Errorf("products of %s: %w", shop, err)
	}
	return raw, products, nil
}

func (w *world) compareSales(ctx context.Context, f *findings, sold map[sale]shopifysim.Variant) error {
	conn, err := pgx.Connect(ctx, w.sourceURL)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	err = demo.Expectations(ctx, conn, func(e demo.Expectation) error {
		f.count("variants on sale", 1)
		k := sale{e.Shop, e.ProductID, e.SKU}
		v, ok := sold[k]
		delete(sold, k)
		switch {
		case !ok:
			f.add(fmt.Sprintf("shop %s: product %s, SKU %s is not on sale", e.Shop, e.ProductID, e.SKU))
			return nil
		case e.PriceOwned && v.Price != e.Price:
			f.add(fmt.Sprintf("shop %s: SKU %s costs %s, not %s", e.Shop, e.SKU, v.Price, e.Price))
		}
		for location, n := range e.Levels {
			i := slices.IndexFunc(v.Levels, func(l shopifysim.Level) bool { return l.Location == location && l.Active })
			if i < 0 {
				f.add(fmt.Sprintf("shop %s: SKU %s has no stock at %s", e.Shop, e.SKU, location))
			} else if got := v.Levels[i].Quantities["available"]; got != n {
				f.add(fmt.Sprintf("shop %s: SKU %s has %d at %s, not %d", e.Shop, e.SKU, got, location, n))
			}
		}
		return nil
	})
	for k := range sold {
		f.add(fmt.Sprintf("shop %s: product %s, SKU %s is on sale and should not be", k.shop, k.product, k.sku))
	}
	return err
}

// seek looks for texts that were rolled back, and so may stand nowhere.
func seek(f *findings, where string, raw []byte, marks demo.Marks) {
	for _, text := range marks.RolledBack {
		if bytes.Contains(raw, []byte(text)) {
			f.add(fmt.Sprintf("%s: %s was rolled back and is there", where, text))
		}
	}
}

// seekTopics does so in all topics. What ClickHouse has is compared with them.
func seekTopics(f *findings, topics map[string][]event.Record, marks demo.Marks) {
	f.count("rolled back texts", len(marks.RolledBack))
	for name, records := range topics {
		for _, r := range records {
			if !bytes.Contains(r.Value, []byte("NEVER-COMMITTED")) { // what every such text begins with
				continue
			}
			seek(f, fmt.Sprintf("catalog.%s %d/%d", name, r.Partition, r.Offset), r.Value, marks)
		}
	}
}
