SELECT
    category, shop,
    toInt64(countIf(status = 'FAILED')) AS failed,
    toInt64(countIf(status = 'RETRYING')) AS retried,
    toInt64(uniqExact(product_id)) AS products,
    argMax(product_id, (timestamp, topic_id, partition, offset)) AS example_product,
    argMax(message, (timestamp, topic_id, partition, offset)) AS example
FROM outcomes
WHERE category != '' AND timestamp >= now() - INTERVAL 1 DAY
GROUP BY category, shop
ORDER BY failed + retried DESC, category, shop
LIMIT 20
