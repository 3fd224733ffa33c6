package torture

import (
	"fmt"
	"math/rand/v2"
)

// neverCommitted stands in what is rolled back, and so nowhere else.
const neverCommitted = "NEVER-COMMITTED"

// writeCatalog draws a transaction of a back office on the reference schema.
func writeCatalog(rng *rand.Rand) []string {
	sql := []string{"BEGIN"}
	for range 1 + rng.IntN(3) {
		if rng.IntN(8) == 0 {
			sql = append(sql, "SAVEPOINT a", fmt.Sprintf(`UPDATE catalog.products SET title = '%s' WHERE id = %s`, neverCommitted, anyProduct(rng)), "ROLLBACK TO a")
		}
		sql = append(sql, changeCatalog(rng))
	}
	if rng.IntN(7) == 0 {
		return append(sql, fmt.Sprintf(`UPDATE catalog.products SET title = '%s' WHERE id = %s`, neverCommitted, anyProduct(rng)), "ROLLBACK")
	}
	return append(sql, "COMMIT")
}

func anyProduct(rng *rand.Rand) string {
	return fmt.Sprintf("(SELECT id FROM catalog.products ORDER BY id OFFSET %d LIMIT 1)", rng.IntN(middleProducts))
}

func anyCategory(rng *rand.Rand) string {
	return fmt.Sprintf("(SELECT id FROM catalog.categories ORDER BY id OFFSET %d LIMIT 1)", rng.IntN(6))
}

// changeCatalog draws a statement. Those that concern many products are rare.
func changeCatalog(rng *rand.Rand) string {
	n := rng.IntN(100)
	switch {
	case n < 30:
		return fmt.Sprintf(`UPDATE catalog.variants SET price = round(price + %d.25, 2) WHERE product_id = %s`, rng.IntN(3), anyProduct(rng))
	case n < 50:
		return fmt.Sprintf(`UPDATE catalog.stock SET approved = %d WHERE variant_id IN (SELECT id FROM catalog.variants WHERE product_id = %s)`, rng.IntN(90), anyProduct(rng))
	case n < 60:
		return fmt.Sprintf(`UPDATE catalog.products SET title = left(title, 60) || ' %d' WHERE id = %s`, rng.IntN(1000), anyProduct(rng))
	case n < 66:
		return fmt.Sprintf(`UPDATE catalog.products SET approved_at = CASE WHEN approved_at IS NULL THEN now() END, approved_by = 'clerk' WHERE id = %s`, anyProduct(rng))
	case n < 70:
		return fmt.Sprintf(`UPDATE catalog.products SET approved_at = now(), approved_by = 'clerk' WHERE id %% 3 = %d AND kind = 'normal'`, rng.IntN(3))
	case n < 74:
		return fmt.Sprintf(`UPDATE catalog.products SET tags = array_append(tags[:5], 't%d'), vendor = 'v%d' WHERE id = %s`, rng.IntN(100), rng.IntN(5), anyProduct(rng))
	case n < 78:
		return fmt.Sprintf(`UPDATE catalog.variants SET approved_at = CASE WHEN approved_at IS NULL THEN now() END WHERE id = (SELECT id FROM catalog.variants ORDER BY id OFFSET %d LIMIT 1)`, rng.IntN(60))
	case n < 80:
		return fmt.Sprintf(`DELETE FROM catalog.variants WHERE id = (SELECT id FROM catalog.variants ORDER BY id OFFSET %d LIMIT 1)`, rng.IntN(60))
	case n < 82:
		return fmt.Sprintf(`WITH p AS (INSERT INTO catalog.products (category_id, handle, title, approved_at, approved_by)
			SELECT %s, 'new-' || g || '-' || pg_current_xact_id(), 'new ' || g, now(), 'importer' FROM generate_series(1, %d) g RETURNING id)
			INSERT INTO catalog.variants (product_id, position, sku, price, approved_at) SELECT id, 1, 'sku-' || id, 5, now() FROM p`, anyCategory(rng), 1+rng.IntN(3))
	case n < 84:
		return fmt.Sprintf(`DELETE FROM catalog.products WHERE id = %s`, anyProduct(rng))
	case n < 86:
		return fmt.Sprintf(`UPDATE catalog.products SET category_id = %s WHERE id = %s`, anyCategory(rng), anyProduct(rng))
	case n < 88:
		return fmt.Sprintf(`INSERT INTO catalog.price_rules (category_id, name, percent) VALUES (%s, 'sale', -%d)`, anyCategory(rng), 1+rng.IntN(50))
	case n < 90:
		return fmt.Sprintf(`UPDATE catalog.price_rules SET percent = -%d, category_id = %s WHERE id = (SELECT max(id) FROM catalog.price_rules)`, 1+rng.IntN(50), anyCategory(rng))
	case n < 92:
		return `DELETE FROM catalog.price_rules WHERE id = (SELECT min(id) FROM catalog.price_rules)`
	case n < 94:
		return fmt.Sprintf(`UPDATE catalog.stores SET %[1]s = NOT %[1]s WHERE id = %[2]d`, []string{"sync_prices", "sync_stock", "sync_content"}[rng.IntN(3)], 1+rng.IntN(2))
	case n < 96:
		return fmt.Sprintf(`SELECT catalog.move_category(%s, %s)`, anyCategory(rng), anyCategory(rng))
	case n < 97:
		return fmt.Sprintf(`INSERT INTO catalog.category_stores VALUES (%s, %d) ON CONFLICT DO NOTHING`, anyCategory(rng), 1+rng.IntN(2))
	case n < 98:
		return fmt.Sprintf(`DELETE FROM catalog.category_stores WHERE category_id = %s AND store_id = %d`, anyCategory(rng), 1+rng.IntN(2))
	}
	return fmt.Sprintf(`INSERT INTO catalog.images (product_id, position, url) SELECT id, 9, 'https://images.example/%d.jpg' FROM catalog.products WHERE id = %s`,
		rng.IntN(1e9), anyProduct(rng))
}
