package torture

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/demo"
	"github.com/shelfwire/shelfwire/schemas/change"
	"github.com/shelfwire/shelfwire/schemas/document"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
	"github.com/shelfwire/shelfwire/sinks/shopify"
)

// endingsSQL keeps, of each end of a batch, what stood open in that very transaction.
const endingsSQL = `
	CREATE TABLE endings (batch_id text, round integer, status text, products bigint, open bigint);
	CREATE FUNCTION ended() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO endings SELECT NEW.id, NEW.round, NEW.status, count(DISTINCT product_id),
			count(*) FILTER (WHERE status IN ('PENDING', 'PROCESSING', 'RETRYING', 'HELD')) FROM batch_items WHERE batch_id = NEW.id;
		RETURN NULL;
	END $$;
	CREATE TRIGGER ended AFTER UPDATE ON batches FOR EACH ROW WHEN (NEW.ended_at IS NOT NULL AND OLD.ended_at IS NULL) EXECUTE FUNCTION ended()`

// lastKnown is what the state has on record of a product in a shop.
type lastKnown struct {
	Product, Shop, ShopifyID, Status, Hash string
}

// compareLast holds the state against the last records of its own topics: what it believes to have happened is what it
// has told.
func (w *world) compareLast(ctx context.Context, f *findings, topics map[string][]event.Record) error {
	conn, err := pgx.Connect(ctx, w.stateURL)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	rows, err := conn.Query(ctx, `SELECT product_id, shop, shopify_id, last_status, document_hash FROM products WHERE shop <> ''`)
	if err != nil {
		return err
	}
	known, err := pgx.CollectRows(rows, pgx.RowToStructByPos[lastKnown])
	if err != nil {
		return err
	}
	outcomes, hashes := map[string]event.Outcome{}, map[string]string{}
	for _, r := range topics[event.Outcomes] {
		o := decoded[event.Outcome](&r)
		outcomes[o.ProductID+"|"+o.Shop] = o
	}
	for _, r := range topics[event.Documents] {
		hashes[string(r.Key)] = decoded[event.Document](&r).Hash
	}
	f.count("last outcomes", len(known))
	for _, k := range known {
		key := k.Product + "|" + k.Shop
		if o := outcomes[key]; string(o.Status) != k.Status {
			f.add(fmt.Sprintf("state: the last outcome of %s is %q, and in the topic %q (%s)", key, k.Status, o.Status, o.ID))
		} else if o.ShopifyID != k.ShopifyID && k.Status != string(event.Skipped) {
			f.add(fmt.Sprintf("state: %s is %q, and in its last outcome %q", key, k.ShopifyID, o.ShopifyID))
		}
		if hashes[key] != k.Hash {
			f.add(fmt.Sprintf("state: the last document of %s is %q, and in the topic %q", key, k.Hash, hashes[key]))
		}
	}
	return nil
}

// compareEndings looks that no batch has ended before all of it was settled.
func (w *world) compareEndings(ctx context.Context, f *findings) error {
	early, err := query[string](ctx, w.stateURL, `
		SELECT format('batch %s ended as %s in round %s with %s products, %s items open; now it has %s products', e.batch_id, e.status, e.round, e.products, e.open, i.products)
		FROM endings e JOIN (SELECT batch_id, count(DISTINCT product_id) products FROM batch_items GROUP BY 1) i USING (batch_id)
		WHERE e.open > 0 OR e.products < i.products`)
	if err != nil {
		return err
	}
	for _, e := range early {
		f.add("too early: " + e)
	}
	n, err := one[int](ctx, w.stateURL, `SELECT count(*) FROM endings`)
	f.count("ends of batches", n)
	return err
}

// compareMembers looks that each product of which a record carries a batch is an item of it.
func (w *world) compareMembers(ctx context.Context, f *findings, topics map[string][]event.Record) error {
	items, err := query[string](ctx, w.stateURL, `SELECT DISTINCT batch_id || ' ' || product_id FROM batch_items`)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, i := range items {
		known[i] = true
	}
	for _, r := range topics[event.Changes] {
		batch, ok := r.Header(event.HeaderBatch)
		if member := batch + " " + string(r.Key); ok && !known[member] {
			f.add(fmt.Sprintf("batch %s: product %s of catalog.changes %d/%d is no item of it", batch, r.Key, r.Partition, r.Offset))
			known[member] = true // once
		}
	}
	f.count("items", len(items))
	return nil
}

// compareShadows holds what the state believes that the shops have against the shops and the source: by its shadows
// nothing is left to send, and each product is the one that it takes it for.
func (w *world) compareShadows(ctx context.Context, f *findings) error {
	src, err := w.openSource(ctx)
	if err != nil {
		return err
	}
	defer src.Close()
	ids, err := query[string](ctx, w.stateURL, `SELECT DISTINCT product_id FROM products`)
	if err != nil {
		return err
	}
	there, err := query[string](ctx, w.sourceURL, `SELECT id::text FROM catalog.products`)
	if err != nil {
		return err
	}
	ids = append(ids, there...)
	products := make([]change.ProductID, len(ids))
	for i, id := range ids {
		products[i] = change.ProductID(id)
	}
	rows, _, _, err := src.Documents(ctx, w.cfg.Documents, products)
	if err != nil {
		return err
	}
	loaded, err := w.state.Load(ctx, ids)
	if err != nil {
		return err
	}
	known := map[string]work.Known{}
	for _, k := range loaded.Known {
		known[k.ProductID+"|"+k.Shop] = k
	}
	shops := map[string]shopify.ShopConfig{}
	for name, s := range w.cfg.Shops {
		shops[name] = shopify.ShopConfig{URL: s.URL, Token: func(context.Context) (string, error) { return "simulated", nil }}
	}
	planner, err := shopify.New(shopify.Config{Shops: shops, Budget: w.state, Holder: "planner"})
	if err != nil {
		return err
	}
	for _, row := range rows {
		if row.Shop == "" {
			continue
		}
		key := row.ProductID + "|" + row.Shop
		d, err := document.Parse(row.Document)
		if err != nil {
			return fmt.Errorf("document of %s: %w", key, err)
		}
		f.count("shadows", 1)
		k, ok := known[key]
		if !ok {
			k = work.Known{ProductID: row.ProductID, Shop: row.Shop}
		}
		delete(known, key)
		if len(k.Intents) > 0 { // a request may still land, and the shop is read after that
			continue
		}
		plan := planner.Plan(work.Push{ProductID: row.ProductID, Shop: row.Shop, Document: &d, Raw: row.Document, Hash: document.Hash(d), Known: k})
		if !plan.Nothing {
			f.add(fmt.Sprintf("state: by its shadow %s still needs: %s (last %s %s)", key, plan.Words, k.LastStatus, k.LastReason))
		}
	}
	for key, k := range known {
		if k.Shop != "" && k.ShopifyID != "" && !k.OffSale {
			f.add(fmt.Sprintf("state: %s belongs there no more and is not on record as off sale", key))
		}
	}
	return w.compareIDs(ctx, f, loaded.Known)
}

// compareIDs looks that each product of a shop that the state knows is the one that it takes it for, and knows all of them.
func (w *world) compareIDs(ctx context.Context, f *findings, known []work.Known) error {
	ids := map[string]string{}
	for _, k := range known {
		if k.ShopifyID != "" {
			ids[k.Shop+" "+k.ShopifyID] = k.ProductID
		}
	}
	f.count("known ids", len(ids))
	for _, s := range demo.Stores() {
		_, products, err := w.shopProducts(ctx, s.Name)
		if err != nil {
			return err
		}
		for _, p := range products {
			at := s.Name + " " + p.ID
			switch id := customID(p); {
			case ids[at] == "" && p.Status != "ACTIVE": // it has left the shop for good, and is forgotten
			case ids[at] != id:
				f.add(fmt.Sprintf("state: %s is product %q, and the state takes it for %q", at, id, ids[at]))
			}
			delete(ids, at)
		}
	}
	for at, id := range ids {
		f.add(fmt.Sprintf("state: %s, product %q, is not in the shop", at, id))
	}
	return nil
}
