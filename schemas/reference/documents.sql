-- The documents of the products $1 (text[]): one row for each store that sells a product, with what the store's shop
-- shall have of it. A product that no store sells gives one row with shop '' and the reason NO_SHOP; a product that
-- does not exist gives none, and leaves the shops where it was.
WITH RECURSIVE
wanted AS MATERIALIZED (
    SELECT p.*
    FROM catalog.products p
    -- An array, so that products are looked up by their key however many are asked for. An id that is no number of
    -- this catalog finds nothing; an error here would fail the whole group.
    WHERE p.id = ANY (ARRAY(
        SELECT CASE WHEN a.id ~ '^[1-9][0-9]{0,17}$' THEN a.id::bigint END
        FROM unnest($1::text[]) AS a(id)))
),
-- From each category upwards. The limit ends the walk of a tree that has a cycle.
climb AS (
    SELECT c.id AS category_id, c.id AS ancestor_id, c.parent_id, 0 AS distance
    FROM (SELECT DISTINCT category_id AS id FROM wanted) w
    JOIN catalog.categories c ON c.id = w.id
    UNION ALL
    SELECT k.category_id, c.id, c.parent_id, k.distance + 1
    FROM climb k
    JOIN catalog.categories c ON c.id = k.parent_id
    WHERE k.distance < 32
),
routed AS (
    SELECT n.category_id, n.store_id
    FROM (
        SELECT k.category_id, r.store_id, rank() OVER (PARTITION BY k.category_id ORDER BY k.distance) AS nearness
        FROM climb k
        JOIN catalog.category_stores r ON r.category_id = k.ancestor_id
    ) n
    WHERE n.nearness = 1
),
ruled AS (
    SELECT DISTINCT ON (k.category_id) k.category_id, r.percent
    FROM climb k
    JOIN catalog.price_rules r ON r.category_id = k.ancestor_id AND r.active
    ORDER BY k.category_id, k.distance, r.id DESC
),
-- One row for each product and store, with the reason that speaks against it. Materialized, as all below asks for it.
judged AS MATERIALIZED (
    SELECT w.*, ruled.percent,
        s.id AS store_id, s.name AS store, s.publications, s.stock_quantity, s.sync_content, s.sync_prices, s.sync_stock,
        CASE
            WHEN s.id IS NULL THEN 'NO_SHOP'
            WHEN w.kind <> 'normal' THEN 'NOT_NORMAL'
            WHEN w.approved_at IS NULL THEN 'NOT_APPROVED'
            -- A look-up for each product; as NOT EXISTS it might be planned as one scan of all variants.
            WHEN (SELECT true FROM catalog.variants v
                  WHERE v.product_id = w.id AND v.approved_at IS NOT NULL AND v.price IS NOT NULL
                  LIMIT 1) IS NULL THEN 'NO_VARIANT'
        END AS reason
    FROM wanted w
    LEFT JOIN routed ON routed.category_id = w.category_id
    LEFT JOIN catalog.stores s ON s.id = routed.store_id
    LEFT JOIN ruled ON ruled.category_id = w.category_id
)
SELECT
    j.id::text AS product_id,
    coalesce(j.store, '') AS shop,
    CASE WHEN j.reason IS NOT NULL
         THEN jsonb_build_object('eligible', false, 'reason', j.reason)
         ELSE product.document || content.document || sold.document
    END AS document
FROM judged j
CROSS JOIN LATERAL (
    SELECT jsonb_build_object('eligible', true, 'title', j.title, 'handle', j.handle)
        || CASE WHEN j.publications IS NULL THEN '{}' ELSE jsonb_build_object('publications', j.publications) END
        AS document
) product
CROSS JOIN LATERAL (
    SELECT CASE WHEN j.reason IS NOT NULL OR NOT j.sync_content THEN '{}' ELSE jsonb_build_object(
        'descriptionHtml', j.description_html,
        'vendor', j.vendor,
        'productType', j.product_type,
        'tags', j.tags,
        'seo', jsonb_build_object('title', j.seo_title, 'description', j.seo_description),
        'metafields', jsonb_build_array(jsonb_build_object(
            'namespace', 'custom', 'key', 'material', 'type', 'single_line_text_field', 'value', j.material)),
        'images', (
            SELECT coalesce(jsonb_agg(jsonb_build_object('url', i.url, 'alt', i.alt) ORDER BY i.position, i.id), '[]')
            FROM catalog.images i WHERE i.product_id = j.id)
    ) END AS document
) content
-- Options and variants. A left join: whoever is not eligible has neither, and its variants are not read.
LEFT JOIN LATERAL (
    SELECT jsonb_build_object(
        'options', (
            SELECT jsonb_agg(jsonb_build_object('name', o.name, 'values', menu.list) ORDER BY o.i)
            FROM unnest(j.option_names) WITH ORDINALITY AS o(name, i)
            CROSS JOIN LATERAL (
                -- The menu of an option, in the order in which the variants name its values.
                SELECT jsonb_agg(one.value ORDER BY one.first) AS list
                FROM (
                    SELECT v.options[o.i] AS value, min(ARRAY[v.position, v.id]) AS first
                    FROM catalog.variants v
                    WHERE v.product_id = j.id AND v.approved_at IS NOT NULL AND v.price IS NOT NULL
                    GROUP BY v.options[o.i]
                ) one
            ) menu),
        'variants', (
            SELECT jsonb_agg(
                jsonb_build_object(
                    'key', v.id::text,
                    'options', v.options,
                    'sku', v.sku,
                    'barcode', v.barcode,
                    'policy', v.policy,
                    'taxable', v.taxable,
                    'requiresShipping', v.requires_shipping,
                    'weightGrams', v.weight_grams)
                || CASE WHEN j.sync_prices
                   THEN jsonb_build_object('price', sale.price::text, 'compareAtPrice', sale.compare_at::text, 'cost', v.cost::text)
                   -- The shop keeps its own prices; only a creation needs one.
                   ELSE jsonb_build_object('firstPrice', sale.price::text) END
                || CASE WHEN j.sync_stock THEN jsonb_build_object('stock', levels.list) ELSE '{}' END
                ORDER BY v.position, v.id)
            FROM catalog.variants v
            CROSS JOIN LATERAL (
                -- A rule never gives anything away: the least price of what has one is 0.01.
                SELECT
                    greatest(round(v.price * (100 + coalesce(j.percent, 0)) / 100, 2), least(v.price, 0.01)) AS price,
                    CASE WHEN j.percent < 0 THEN greatest(v.price, v.compare_at_price) ELSE v.compare_at_price END AS compare_at
            ) sale
            LEFT JOIN LATERAL (
                -- A level for each location of the store, 0 where the variant has no stock row.
                SELECT coalesce(jsonb_agg(jsonb_build_object(
                    'location', l.location, 'quantity', l.quantity, 'name', j.stock_quantity) ORDER BY l.location), '[]') AS list
                FROM (
                    SELECT m.location, coalesce(sum(
                        CASE j.stock_quantity WHEN 'on_hand' THEN k.physical
                        ELSE greatest(k.approved - k.reserved, 0) END), 0) AS quantity
                    FROM catalog.warehouse_locations m
                    LEFT JOIN catalog.stock k ON k.warehouse_id = m.warehouse_id AND k.variant_id = v.id
                    WHERE m.store_id = j.store_id
                    GROUP BY m.location
                ) l
            ) levels ON j.sync_stock
            WHERE v.product_id = j.id AND v.approved_at IS NOT NULL AND v.price IS NOT NULL)
    ) AS document
) sold ON j.reason IS NULL
ORDER BY j.id, j.store
