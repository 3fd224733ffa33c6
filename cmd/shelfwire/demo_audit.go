package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/audit"
	"github.com/shelfwire/shelfwire/cmd/shelfwire/demo"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
	"github.com/shelfwire/shelfwire/sinks/state"
)

// poll asks until it is told that it is so; it ends with ctx.
func poll(ctx context.Context, every time.Duration, so func(context.Context) (bool, error)) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		ok, err := so(ctx)
		if ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// query opens a connection for one question.
func query[T any](ctx context.Context, url, sql string, args ...any) (v T, err error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return v, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	return v, conn.QueryRow(ctx, sql, args...).Scan(&v)
}

// firstSnapshot waits until the whole catalog stands in the shops.
func (d *demoRun) firstSnapshot(ctx context.Context) error {
	if list, err := d.app.state.Batches(ctx, state.BatchFilter{Kind: event.KindSnapshot, Limit: 1}); err == nil && len(list) > 0 && !list[0].EndedAt.IsZero() {
		d.say("snapshot   an earlier run has brought the catalog to the shops")
		return nil
	}
	d.say("snapshot   the catalog goes to the shops, through Kafka")
	var snap state.Batch
	began, said := time.Now(), time.Now()
	err := poll(ctx, 200*time.Millisecond, func(ctx context.Context) (bool, error) {
		list, err := d.app.state.Batches(ctx, state.BatchFilter{Kind: event.KindSnapshot, Limit: 1})
		if err != nil || len(list) == 0 {
			return false, err
		}
		snap = list[0]
		if now := time.Now(); snap.EndedAt.IsZero() && now.Sub(said) >= 10*time.Second {
			said = now
			done := snap.Succeeded + snap.Skipped + snap.Failed
			d.say("snapshot   %d of about %d items are done%s", done, snap.Total, remaining(now.Sub(began), int64(done), int64(snap.Total)))
		}
		return !snap.EndedAt.IsZero(), nil
	})
	if err == nil {
		d.say("snapshot   %s: %d items, %d pushed, %d skipped (not approved, without a price, sold nowhere), %d failed",
			snap.Status, snap.Total, snap.Succeeded, snap.Skipped, snap.Failed)
	}
	return err
}

// remaining says how long the rest takes at the speed so far; nothing while that is a guess.
func remaining(elapsed time.Duration, done, total int64) string {
	if done < 500 || done >= total {
		return ""
	}
	left := (elapsed * time.Duration(total-done) / time.Duration(done)).Round(10 * time.Second)
	if left == 0 {
		return ""
	}
	return fmt.Sprintf(", %s left at this speed", left)
}

// parked counts the products that wait in the state. What only waits for a late answer to be ruled out is done.
func (d *demoRun) parked(ctx context.Context) (int64, error) {
	return query[int64](ctx, d.parts.stateURL, `SELECT count(*) FROM parked WHERE reason <> 'LATE_REQUEST'`)
}

// calm waits until every commit has been captured, every record taken in, every product settled and every outcome
// loaded.
func (d *demoRun) calm(ctx context.Context) error {
	end, err := query[string](ctx, d.parts.sourceURL, `SELECT pg_current_wal_flush_lsn()::text`)
	if err != nil {
		return err
	}
	said := false
	steps := []func(context.Context) (bool, error){
		func(ctx context.Context) (bool, error) {
			return query[bool](ctx, d.parts.sourceURL, `SELECT confirmed_flush_lsn >= $1::pg_lsn FROM pg_replication_slots WHERE slot_name = $2`,
				end, d.app.cfg.Source.Slot)
		},
		func(ctx context.Context) (bool, error) { return d.passed(ctx, work.StageExpand, event.Fanouts) },
		func(ctx context.Context) (bool, error) { return d.passed(ctx, work.StagePush, event.Changes) },
		func(ctx context.Context) (bool, error) {
			n, err := d.parked(ctx)
			p := d.app.push.Stats()
			if err != nil || p.Hot.Load()+p.Flying.Load() > 0 {
				return false, err
			}
			if n == 0 {
				return true, nil
			}
			held, err := query[int64](ctx, d.parts.stateURL, `SELECT count(*) FROM parked WHERE reason = 'HELD'`)
			if held == n && !said {
				said = true
				d.say("guard      %d pushes are held: they would take too many products off sale, or set their prices to 0; the audit lists them", n)
			}
			return held == n, err
		},
		func(ctx context.Context) (bool, error) {
			b, err := d.app.state.Outbox(ctx)
			return b.Rows == 0, err
		},
		d.loaded,
	}
	for _, step := range steps {
		if err := poll(ctx, 100*time.Millisecond, step); err != nil {
			return err
		}
	}
	return nil
}

// passed reports whether a stage has finished everything that its topic holds.
func (d *demoRun) passed(ctx context.Context, stage work.Stage, topic string) (bool, error) {
	at, err := d.app.state.Positions(ctx, stage)
	if err != nil {
		return false, err
	}
	return d.finished(ctx, topic, func(part int32) int64 { return at[part] })
}

// finished reports whether no record of a topic stands at or after these positions.
func (d *demoRun) finished(ctx context.Context, topic string, at func(part int32) int64) (bool, error) {
	ends, err := d.app.cluster.EndOffsets(ctx, d.app.cluster.Topic(topic))
	if err != nil {
		return false, err
	}
	for part, end := range ends {
		// The last offsets of a partition may be transaction markers, which no reader ever sees.
		if at(part) < end {
			open, err := d.lastRecord(ctx, topic, part, at(part), end)
			if err != nil || open {
				return false, err
			}
		}
	}
	return true, nil
}

// lastRecord reports whether a record stands in [from, to) of a partition.
func (d *demoRun) lastRecord(ctx context.Context, topic string, part int32, from, to int64) (found bool, err error) {
	_, err = d.app.cluster.Scan(ctx, d.app.cluster.Topic(topic), part, from, to, func(event.Record) bool {
		found = true
		return false
	})
	return found, err
}

// loaded reports whether ClickHouse holds every outcome.
func (d *demoRun) loaded(ctx context.Context) (bool, error) {
	at, err := d.app.state.Positions(ctx, work.StageLoad)
	if err != nil {
		return false, err
	}
	var first int32
	for _, t := range d.app.loadTopics {
		done, err := d.finished(ctx, t.Kind, func(part int32) int64 { return at[first+part] })
		if err != nil || !done {
			return false, err
		}
		first += t.Partitions
	}
	return true, nil
}

// audit compares, twice over: all that the documents query says against the shops, and what the reference schema's
// own expectations and the traffic's marks say.
func (d *demoRun) audit(ctx context.Context, marks demo.Marks) error {
	d.say("audit      reading both shops")
	// Both comparisons look at one reading of the shops.
	catalogs := &readOnce{shops: auditShops{d.app.shops, slices.Sorted(maps.Keys(d.app.cfg.Shops))}, read: map[string][]audit.Product{}, say: d.say}
	r, err := audit.Run(ctx, &auditSource{app: d.app}, catalogs, nil)
	if err != nil {
		return err
	}
	if err := auditTable(r, 20).write(d.out); err != nil {
		return err
	}
	d.say("audit      %s", auditSentence(r))
	wrong, compared, err := d.expectations(ctx, catalogs, marks)
	if err != nil {
		return err
	}
	for i, w := range wrong {
		if i == 20 {
			d.say("           ... and %d more", len(wrong)-i)
			break
		}
		d.say("           %s", w)
	}
	d.say("audit      by SQL of its own: %d variants on sale as they should be, %d rolled back texts seen nowhere, %d wrong",
		compared, len(marks.RolledBack), len(wrong))
	if !r.Clean() || len(wrong) > 0 || compared == 0 {
		return &exitCode{code: exitDrift}
	}
	return nil
}

// readOnce keeps the catalogs that it has read.
type readOnce struct {
	shops audit.Shops
	read  map[string][]audit.Product
	// say tells how far the first reading is, every thousand products.
	say func(format string, args ...any)
}

// Names lists the shops.
func (o *readOnce) Names() []string { return o.shops.Names() }

// Products reads a catalog at its first call.
func (o *readOnce) Products(ctx context.Context, shop string, yield func(audit.Product) bool) error {
	if o.read[shop] == nil {
		err := o.shops.Products(ctx, shop, func(p audit.Product) bool {
			o.read[shop] = append(o.read[shop], p)
			if n := len(o.read[shop]); n%1000 == 0 {
				o.say("audit      %d products of %s read", n, shop)
			}
			return true
		})
		if err != nil {
			return err
		}
	}
	for _, p := range o.read[shop] {
		if !yield(p) {
			break
		}
	}
	return nil
}

// expectations checks the shops against SQL that shares nothing with the documents query.
func (d *demoRun) expectations(ctx context.Context, catalogs audit.Shops, marks demo.Marks) (wrong []string, compared int, err error) {
	// By their option values: a large product is created without its variants' keys.
	type key struct{ shop, product, options string }
	have := map[key]audit.Variant{}
	var texts strings.Builder
	for _, s := range demo.Stores() {
		err := catalogs.Products(ctx, s.Name, func(p audit.Product) bool {
			texts.WriteString(p.Title + "\n")
			for _, v := range p.Variants {
				texts.WriteString(v.SKU + "\n")
				if p.Status == "ACTIVE" {
					have[key{s.Name, p.ProductID, strings.Join(v.Options, "\x00")}] = v
				}
			}
			return true
		})
		if err != nil {
			return nil, 0, err
		}
	}
	conn, err := pgx.Connect(ctx, d.parts.sourceURL)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	err = demo.Expectations(ctx, conn, func(e demo.Expectation) error {
		compared++
		at := key{e.Shop, e.ProductID, strings.Join(e.Options, "\x00")}
		v, ok := have[at]
		delete(have, at)
		switch {
		case !ok:
			wrong = append(wrong, fmt.Sprintf("%s: product %s, variant %s (SKU %q) is not on sale", e.Shop, e.ProductID, e.VariantKey, e.SKU))
		case v.Key != "" && v.Key != e.VariantKey:
			wrong = append(wrong, fmt.Sprintf("%s: the variant %s of product %s bears the key %s", e.Shop, e.VariantKey, e.ProductID, v.Key))
		case v.SKU != e.SKU:
			wrong = append(wrong, fmt.Sprintf("%s: variant %s has SKU %q, not %q", e.Shop, e.VariantKey, v.SKU, e.SKU))
		case e.PriceOwned && v.Price != e.Price:
			wrong = append(wrong, fmt.Sprintf("%s: SKU %s costs %s, not %s", e.Shop, e.SKU, v.Price, e.Price))
		}
		for location, n := range e.Levels {
			if got := v.Levels[location]["available"]; ok && int64(got) != n {
				wrong = append(wrong, fmt.Sprintf("%s: SKU %s has %d at %s, not %d", e.Shop, e.SKU, got, location, n))
			}
		}
		return nil
	})
	for k := range have {
		wrong = append(wrong, fmt.Sprintf("%s: product %s, variant %s is on sale and should not be", k.shop, k.product, strings.ReplaceAll(k.options, "\x00", " / ")))
	}
	all := texts.String()
	for _, text := range marks.RolledBack {
		if strings.Contains(all, text) {
			wrong = append(wrong, fmt.Sprintf("%q was rolled back and is in a shop", text))
		}
	}
	return wrong, compared, err
}

// connections says how to go on by hand, with products that the traffic has left on sale.
func (d *demoRun) connections(ctx context.Context) error {
	ids, err := query[[]int64](ctx, d.parts.stateURL, `SELECT array(SELECT DISTINCT product_id::bigint AS id FROM products
		WHERE shop <> '' AND shopify_id <> '' AND NOT off_sale ORDER BY id LIMIT 2)`)
	if err != nil {
		return err
	}
	for len(ids) < 2 { // nothing is left on sale; any product will do
		ids = append(ids, int64(len(ids)+1))
	}
	d.say("keep       everything goes on until Ctrl-C")
	for _, l := range []string{
		"PostgreSQL  " + d.parts.sourceURL,
		"Kafka       " + d.parts.kafkaAddr + "  (topics catalog.*)",
		"ClickHouse  " + d.parts.clickhouseURL,
		"shops       http://" + d.parts.shopAddr + "/{north,south}  (Admin API, X-Shopify-Access-Token: simulated), such as",
		"            curl -s " + d.parts.shopAddr + "/north/admin/api/2026-10/graphql.json -H 'X-Shopify-Access-Token: simulated' " +
			"-H 'Content-Type: application/json' -d '{\"query\": \"{ products(first: 3, query: \\\"Hello\\\") { nodes { title status updatedAt } } }\"}'",
		"",
		"Try, in PostgreSQL, and watch the shop:",
		fmt.Sprintf("  UPDATE catalog.variants SET price = price * 1.1 WHERE product_id = %d;", ids[0]),
		fmt.Sprintf("  UPDATE catalog.products SET title = 'Hello, shop' WHERE id = %d;", ids[0]),
		fmt.Sprintf("  UPDATE catalog.products SET approved_at = NULL WHERE id = %d;", ids[1]),
	} {
		_, _ = fmt.Fprintln(d.out, "         ", l)
	}
	return nil
}
