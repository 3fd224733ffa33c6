SELECT
    product_id, shop, variant, sku, since,
    toFloat64(assumeNotNull(h.price)) AS price,
    toFloat64(assumeNotNull(h.previous_price)) AS previous
FROM price_history AS h
WHERE since >= now() - INTERVAL 1 DAY AND h.price IS NOT NULL AND h.previous_price IS NOT NULL
ORDER BY since DESC, product_id, variant
LIMIT 20
