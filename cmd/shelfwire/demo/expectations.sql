-- What should be on sale, one row for each variant in each shop. Stores and rules are handed down the category tree,
-- where the documents query looks for them upwards.
WITH RECURSIVE down AS (
    SELECT c.id, own.stores, own.percent
    FROM catalog.categories c
    CROSS JOIN LATERAL (
        SELECT (SELECT array_agg(store_id) FROM catalog.category_stores WHERE category_id = c.id) AS stores,
               (SELECT percent FROM catalog.price_rules WHERE category_id = c.id AND active ORDER BY id DESC LIMIT 1) AS percent
    ) own
    WHERE c.parent_id IS NULL
    UNION ALL
    SELECT c.id, coalesce(own.stores, d.stores), coalesce(own.percent, d.percent)
    FROM down d
    JOIN catalog.categories c ON c.parent_id = d.id
    CROSS JOIN LATERAL (
        SELECT (SELECT array_agg(store_id) FROM catalog.category_stores WHERE category_id = c.id) AS stores,
               (SELECT percent FROM catalog.price_rules WHERE category_id = c.id AND active ORDER BY id DESC LIMIT 1) AS percent
    ) own
)
SELECT
    s.name,
    p.id::text,
    p.title,
    v.id::text,
    v.options,
    coalesce(v.sku, ''),
    CASE WHEN v.price = 0 THEN '0.00'
         ELSE greatest(round(v.price + v.price * coalesce(d.percent, 0) / 100, 2), 0.01)::text END,
    s.sync_prices,
    CASE WHEN s.sync_stock THEN (
        SELECT jsonb_object_agg(location, units)
        FROM (
            SELECT l.location, sum(coalesce(CASE WHEN s.stock_quantity = 'on_hand' THEN k.physical
                WHEN k.approved > k.reserved THEN k.approved - k.reserved ELSE 0 END, 0)) AS units
            FROM catalog.warehouse_locations l
            LEFT JOIN catalog.stock k ON (k.warehouse_id, k.variant_id) = (l.warehouse_id, v.id)
            WHERE l.store_id = s.id
            GROUP BY l.location
        ) levels
    ) END
FROM catalog.products p
JOIN down d ON d.id = p.category_id
JOIN catalog.stores s ON s.id = ANY (d.stores)
JOIN catalog.variants v ON v.product_id = p.id
WHERE p.kind = 'normal' AND p.approved_at IS NOT NULL AND v.approved_at IS NOT NULL AND v.price IS NOT NULL
ORDER BY s.name, p.id, v.position, v.id
