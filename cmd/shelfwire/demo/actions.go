package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// action is one thing that a back office does, by one code path. run returns the number of rows that it has changed;
// 0 where it found nothing to do.
type action struct {
	kind   Kind
	path   Path
	weight int
	run    func(ctx context.Context, w *writer) (int64, error)
}

// chores are the small transactions, with how often each is drawn. Stock moves most, then prices, then the rest, as in
// a shop. An approval is revoked before the first is given, so that a catalog that is all approved has one to give.
var chores = []action{
	{KindRevocation, PathUpdate, 1, revokeApproval},
	{KindPrice, PathUpdate, 12, changePrice},
	{KindBooking, PathFunction, 20, bookStock},
	{KindOrder, PathHTTP, 8, placeOrder},
	{KindReceipt, PathScript, 4, receiveGoods},
	{KindCount, PathMerge, 10, countStock},
	{KindPriceList, PathBulk, 4, applyPriceList},
	{KindContent, PathUpdate, 5, changeContent},
	{KindImage, PathCopy, 3, copyImages},
	{KindRollback, PathUpdate, 4, rollBack},
	{KindSavepoint, PathUpdate, 4, rollBackSavepoint},
	{KindApproval, PathUpdate, 3, approveOne},
	{KindApproval, PathHTTP, 2, approveByHTTP},
	{KindVariantDelete, PathCascade, 1, deleteVariant},
	{KindProductDelete, PathCascade, 1, deleteProduct},
}

// event is an action of the story; at is when, as a share of the duration.
type event struct {
	at float64
	action
}

// events are the story, in its order. Prices change while their sync is off, and must reach the shop when it is on.
var events = []event{
	{0.08, action{KindApproval, PathBulk, 0, approveMany}},
	{0.15, action{KindPriceRule, PathUpdate, 0, startRule}},
	{0.20, action{KindMistake, PathUpdate, 0, mistypeTitle}},
	{0.25, action{KindSwitch, PathUpdate, 0, switchPrices(false)}},
	{0.35, action{KindImport, PathCopy, 0, importBatch}},
	{0.45, action{KindVariantDelete, PathCascade, 0, deleteVariant}},
	{0.50, action{KindRevocation, PathUpdate, 0, revokeApproval}},
	{0.55, action{KindSwitch, PathUpdate, 0, switchPrices(true)}},
	{0.65, action{KindPriceRule, PathUpdate, 0, changeRule}},
	{0.75, action{KindMistake, PathUpdate, 0, mendTitle}},
}

// mistypeTitle gives a product that is on sale a title that no shop takes: somebody has pasted the description.
func mistypeTitle(ctx context.Context, w *writer) (int64, error) {
	return w.exec(ctx, `
		UPDATE catalog.products SET title = title || repeat(' and more', 40)
		WHERE id = (SELECT id FROM catalog.products WHERE kind = 'normal' AND approved_at IS NOT NULL ORDER BY id LIMIT 1)`)
}

// mendTitle is the merchandiser who has read why it failed.
func mendTitle(ctx context.Context, w *writer) (int64, error) {
	return w.exec(ctx, `UPDATE catalog.products SET title = rtrim(left(title, 60)) WHERE length(title) > 255`)
}

func changePrice(ctx context.Context, w *writer) (int64, error) {
	return w.exec(ctx, `
		UPDATE catalog.variants SET price = greatest(round(price * $2::numeric, 2), 1)
		WHERE id = (SELECT id FROM catalog.variants WHERE id >= $1 AND price > 0 ORDER BY id LIMIT 1)`, w.anyVariant(), w.factor())
}

func bookStock(ctx context.Context, w *writer) (int64, error) {
	return w.exec(ctx, `
		SELECT catalog.book_stock(variant_id, warehouse_id, $2)
		FROM (SELECT variant_id, warehouse_id FROM catalog.stock WHERE variant_id >= $1 ORDER BY variant_id LIMIT 1) s`,
		w.anyVariant(), 1+w.rng.IntN(3))
}

// countStock writes what somebody has counted on the shelves of a few variants.
func countStock(ctx context.Context, w *writer) (int64, error) {
	const merge = `
		MERGE INTO catalog.stock s
		USING (SELECT id FROM catalog.variants WHERE id >= $1 ORDER BY id LIMIT 3 FOR KEY SHARE) v
		ON s.variant_id = v.id AND s.warehouse_id = $2
		WHEN MATCHED THEN UPDATE SET physical = $3, approved = $3
		WHEN NOT MATCHED THEN INSERT (variant_id, warehouse_id, physical, approved) VALUES (v.id, $2, $3, $3)`
	const upsert = `
		INSERT INTO catalog.stock (variant_id, warehouse_id, physical, approved)
		SELECT id, $2, $3, $3 FROM catalog.variants WHERE id >= $1 ORDER BY id LIMIT 3 FOR KEY SHARE
		ON CONFLICT (variant_id, warehouse_id) DO UPDATE SET physical = excluded.physical, approved = excluded.approved`
	sql := upsert
	if w.scene.merge {
		sql = merge
	}
	return w.exec(ctx, sql, w.anyVariant(), int64(mainWarehouse+w.rng.IntN(2)), w.rng.IntN(80))
}

func applyPriceList(ctx context.Context, w *writer) (int64, error) {
	var ids []int64
	var factors []string
	from := w.anyVariant()
	for i := range 10 + w.rng.Int64N(30) {
		ids, factors = append(ids, from+i), append(factors, w.factor())
	}
	return w.exec(ctx, `
		UPDATE catalog.variants v SET price = greatest(round(v.price * n.factor, 2), 1)
		FROM unnest($1::bigint[], $2::numeric[]) AS n(id, factor)
		WHERE v.id = n.id AND v.price > 0`, ids, factors)
}

func changeContent(ctx context.Context, w *writer) (int64, error) {
	return w.exec(ctx, `
		UPDATE catalog.products
		SET description_html = coalesce(description_html, '') || $2, tags = array_append(array_remove(tags, $3), $3)
		WHERE id = (SELECT id FROM catalog.products WHERE id >= $1 AND length(description_html) < 20000 AND cardinality(tags) < 200
			ORDER BY id LIMIT 1)`,
		w.anyProduct(), "\n<p>"+pick(w.rng, sentences)+"</p>", pick(w.rng, seasons))
}

// copyImages brings a new picture each for three products by COPY.
func copyImages(ctx context.Context, w *writer) (int64, error) {
	token := w.rng.Uint64()
	return w.commit(ctx, func(tx pgx.Tx) (int64, error) {
		ids, err := collect[int64](ctx, tx, `
			SELECT p.id FROM catalog.products p WHERE p.id >= $1
			AND (SELECT count(*) FROM catalog.images i WHERE i.product_id = p.id) < 20
			ORDER BY p.id LIMIT 3 FOR KEY SHARE`, w.anyProduct())
		var rows [][]any
		for _, id := range ids {
			rows = append(rows, []any{id, 100, fmt.Sprintf("https://images.shelfwire.example/%d/%x.jpg", id, token)})
		}
		if err != nil || len(rows) == 0 {
			return 0, err
		}
		return int64(len(rows)), copyRows(ctx, tx, "images", []string{"product_id", "position", "url"}, rows)
	})
}

func collect[T any](ctx context.Context, tx pgx.Tx, sql string, args ...any) ([]T, error) {
	rows, err := tx.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[T])
}

func approveOne(ctx context.Context, w *writer) (int64, error) {
	return w.exec(ctx, `
		UPDATE catalog.products SET approved_at = now(), approved_by = $2
		WHERE id = (SELECT id FROM catalog.products WHERE id >= $1 AND approved_at IS NULL ORDER BY id LIMIT 1)`,
		w.anyProduct(), pick(w.rng, admins))
}

// approveMany approves 25 products and their variants in one transaction: one batch of one admin.
func approveMany(ctx context.Context, w *writer) (int64, error) {
	admin := pick(w.rng, admins)
	return w.commit(ctx, func(tx pgx.Tx) (int64, error) {
		ids, err := collect[int64](ctx, tx, `
			UPDATE catalog.products p SET approved_at = now(), approved_by = $1
			FROM (SELECT id FROM catalog.products WHERE approved_at IS NULL ORDER BY id LIMIT 25 FOR UPDATE SKIP LOCKED) todo
			WHERE p.id = todo.id RETURNING p.id`, admin)
		if err != nil {
			return 0, err
		}
		tag, err := tx.Exec(ctx, `
			UPDATE catalog.variants SET approved_at = now(), approved_by = $1 WHERE product_id = ANY ($2) AND approved_at IS NULL`, admin, ids)
		return int64(len(ids)) + tag.RowsAffected(), err
	})
}

func revokeApproval(ctx context.Context, w *writer) (int64, error) {
	if !w.tally.allow(KindRevocation, w.scene.maxRevokes) {
		return 0, nil
	}
	return w.exec(ctx, `
		UPDATE catalog.products SET approved_at = NULL, approved_by = $2
		WHERE id = (SELECT id FROM catalog.products WHERE id >= $1 AND approved_at IS NOT NULL ORDER BY id LIMIT 1)`,
		w.anyProduct(), pick(w.rng, admins))
}

// deleteVariant deletes a variant that is not its product's first; its stock goes by cascade.
func deleteVariant(ctx context.Context, w *writer) (int64, error) {
	if !w.tally.allow(KindVariantDelete, w.scene.maxDrops) {
		return 0, nil
	}
	return w.delete(ctx, `
		DELETE FROM catalog.variants
		WHERE id = (SELECT id FROM catalog.variants WHERE id >= $1 AND position > 1 ORDER BY id LIMIT 1) RETURNING id`,
		w.anyVariant(), func(m *Marks, id string) { m.DeletedVariants = append(m.DeletedVariants, id) })
}

// deleteProduct deletes a product; variants, pictures and stock go by cascade.
func deleteProduct(ctx context.Context, w *writer) (int64, error) {
	if !w.tally.allow(KindProductDelete, w.scene.maxDeletes) {
		return 0, nil
	}
	return w.delete(ctx, `
		DELETE FROM catalog.products
		WHERE id = (SELECT id FROM catalog.products WHERE id >= $1 ORDER BY id LIMIT 1) RETURNING id`,
		w.anyProduct(), func(m *Marks, id string) { m.DeletedProducts = append(m.DeletedProducts, id) })
}

// delete commits a statement that returns the ids of what it has deleted, and notes them.
func (w *writer) delete(ctx context.Context, sql string, from int64, note func(*Marks, string)) (int64, error) {
	var ids []int64
	rows, err := w.commit(ctx, func(tx pgx.Tx) (n int64, err error) {
		ids, err = collect[int64](ctx, tx, sql, from)
		return int64(len(ids)), err
	})
	for _, id := range ids {
		if err == nil {
			w.tally.mark(func(m *Marks) { note(m, strconv.FormatInt(id, 10)) })
		}
	}
	return rows, err
}

// startRule begins a price rule on hundreds of products: one row, one transaction.
func startRule(ctx context.Context, w *writer) (int64, error) {
	return w.exec(ctx, `INSERT INTO catalog.price_rules (category_id, name, percent) VALUES ($1, 'demo sale', -15)`, w.scene.ruleCategory)
}

func changeRule(ctx context.Context, w *writer) (int64, error) {
	return w.exec(ctx, `UPDATE catalog.price_rules SET percent = -20 WHERE category_id = $1 AND name = 'demo sale'`, w.scene.ruleCategory)
}

// maxFree is how many free products the southern store may have when its price sync is switched: when it is on again,
// each is a price that becomes 0, and past 50 of them the shop's guard would rightly hold them for a person.
const maxFree = 40

// switchPrices turns the price sync of the southern store on or off.
func switchPrices(on bool) func(context.Context, *writer) (int64, error) {
	return func(ctx context.Context, w *writer) (int64, error) {
		if w.scene.free > maxFree {
			return 0, nil
		}
		return w.exec(ctx, `UPDATE catalog.stores SET sync_prices = $2 WHERE id = $1`, int64(southID), on)
	}
}

// importBatch brings new, approved products in one transaction that bears a name, by COPY.
func importBatch(ctx context.Context, w *writer) (int64, error) {
	size := min(int64(w.config.Import), max(w.scene.products, 3))
	name := fmt.Sprintf("Spring import %d", w.config.Seed)
	admin := pick(w.rng, admins)
	message, err := json.Marshal(map[string]string{"name": name, "admin": admin})
	if err != nil {
		return 0, err
	}
	rows, err := w.commit(ctx, func(tx pgx.Tx) (int64, error) {
		if _, err := tx.Exec(ctx, `SELECT pg_logical_emit_message(true, 'shelfwire.batch', $1)`, string(message)); err != nil {
			return 0, err
		}
		list, rows, err := w.newProducts(ctx, tx, int(size), admin)
		if err != nil {
			return 0, err
		}
		return rows, insertProducts(ctx, tx, list)
	})
	if err == nil {
		w.tally.mark(func(m *Marks) { m.Batches = append(m.Batches, name) })
		w.tally.change(func() { w.tally.newRows += size })
	}
	return rows, err
}

// newProducts draws products in categories of the catalog, with ids from the sequences, and counts their rows.
func (w *writer) newProducts(ctx context.Context, tx pgx.Tx, size int, admin string) (list []product, rows int64, err error) {
	ids, err := reserve(ctx, tx, "products", size)
	if err != nil {
		return nil, 0, err
	}
	_, leaves := departments()
	g := newGenerator(w.config.Seed+1, leaves) // +1: not the products of the catalog again
	count := 0
	for _, id := range ids {
		g.nextProduct = id
		p := g.product()
		p.kind, p.category = "normal", pick(w.rng, w.scene.importCategories)
		p.approvedAt, p.author = time.Now(), admin
		list = append(list, p)
		count += len(p.variants)
		rows += int64(1 + len(p.images) + len(p.variants))
	}
	if ids, err = reserve(ctx, tx, "variants", count); err != nil {
		return nil, 0, err
	}
	for i := range list {
		for j := range list[i].variants {
			v := &list[i].variants[j]
			v.id, ids = ids[0], ids[1:]
			v.barcode, v.approvedAt = fmt.Sprintf("40%011d", v.id), list[i].approvedAt
		}
	}
	return list, rows, nil
}

// reserve takes ids from the sequence of a table.
func reserve(ctx context.Context, tx pgx.Tx, table string, n int) ([]int64, error) {
	ids, err := collect[int64](ctx, tx,
		`SELECT nextval(pg_get_serial_sequence($1, 'id')) FROM generate_series(1, $2)`, "catalog."+table, n)
	if err != nil {
		return nil, fmt.Errorf("reserve ids of catalog.%s: %w", table, err)
	}
	return ids, nil
}

// secret is a text that is never committed.
func (w *writer) secret() string {
	text := fmt.Sprintf("NEVER-COMMITTED-%d-%016x", w.config.Seed, w.rng.Uint64())
	w.tally.mark(func(m *Marks) { m.RolledBack = append(m.RolledBack, text) })
	return text
}

// scribble changes a product and a variant to a text, and adds a product of that name.
func (w *writer) scribble(ctx context.Context, tx pgx.Tx, text string) (int64, error) {
	var rows int64
	for _, change := range []struct {
		sql  string
		from int64
	}{
		{`UPDATE catalog.products SET title = $2 WHERE id = (SELECT id FROM catalog.products WHERE id >= $1 ORDER BY id LIMIT 1)`, w.anyProduct()},
		{`UPDATE catalog.variants SET sku = $2, price = 0 WHERE id = (SELECT id FROM catalog.variants WHERE id >= $1 ORDER BY id LIMIT 1)`, w.anyVariant()},
		{`INSERT INTO catalog.products (category_id, handle, title, approved_at) VALUES ($1, $2, $2, now())`, pick(w.rng, w.scene.importCategories)},
	} {
		tag, err := tx.Exec(ctx, change.sql, change.from, text)
		if err != nil {
			return 0, err
		}
		rows += tag.RowsAffected()
	}
	return rows, nil
}

func rollBack(ctx context.Context, w *writer) (int64, error) {
	tx, err := w.conn.Begin(ctx)
	if err != nil {
		return 0, err
	}
	rows, err := w.scribble(ctx, tx, w.secret())
	if back := tx.Rollback(context.WithoutCancel(ctx)); back != nil || err != nil {
		return 0, errors.Join(err, back)
	}
	w.tally.rolledBack()
	return rows, nil
}

// rollBackSavepoint changes a price, rolls back what it did after it, and commits the price.
func rollBackSavepoint(ctx context.Context, w *writer) (int64, error) {
	return w.commit(ctx, func(tx pgx.Tx) (int64, error) {
		tag, err := tx.Exec(ctx, `
			UPDATE catalog.variants SET price = greatest(round(price * $2::numeric, 2), 1)
			WHERE id = (SELECT id FROM catalog.variants WHERE id >= $1 AND price > 0 ORDER BY id LIMIT 1)`, w.anyVariant(), w.factor())
		if err != nil {
			return 0, err
		}
		inner, err := tx.Begin(ctx)
		if err != nil {
			return 0, err
		}
		if _, err := w.scribble(ctx, inner, w.secret()); err != nil {
			return 0, err
		}
		return tag.RowsAffected(), inner.Rollback(ctx)
	})
}
