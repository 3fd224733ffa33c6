-- The stable layer that people query. Every view reads through FINAL, so that a row that was inserted twice counts once.
-- do_not_merge_across_partitions_select_final is sound here: the copies of a row share their month.

CREATE OR REPLACE VIEW topics AS
SELECT topic, topic_id, min(seen_at) AS first_seen
FROM topics_rows
GROUP BY topic, topic_id;

CREATE OR REPLACE VIEW changes AS
SELECT
    topic_id, partition, offset, timestamp, product_id, table, op, pk, commit_lsn, ordinal, xid, batch_id, origin,
    committed, JSONExtractRaw(value, 'before') AS before, JSONExtractRaw(value, 'after') AS after, value
FROM changes_rows FINAL
SETTINGS do_not_merge_across_partitions_select_final = 1;

CREATE OR REPLACE VIEW outcomes AS
SELECT *
FROM outcomes_rows FINAL
SETTINGS do_not_merge_across_partitions_select_final = 1;

CREATE OR REPLACE VIEW batches AS
SELECT *
FROM batches_rows FINAL
SETTINGS do_not_merge_across_partitions_select_final = 1;

CREATE OR REPLACE VIEW document_versions AS
SELECT *
FROM document_versions_rows FINAL
SETTINGS do_not_merge_across_partitions_select_final = 1;

CREATE OR REPLACE VIEW deadletters AS
SELECT *
FROM deadletters_rows FINAL
SETTINGS do_not_merge_across_partitions_select_final = 1;

CREATE OR REPLACE VIEW malformed AS
SELECT *
FROM malformed_rows FINAL
SETTINGS do_not_merge_across_partitions_select_final = 1;

-- Only the newest topic of that name: keys of a topic that was deleted got no tombstone.
CREATE OR REPLACE VIEW documents AS
SELECT product_id, shop, hash, document, snapshot, read_at, key, topic_id, partition, offset, timestamp
FROM documents_rows FINAL
WHERE topic_id = (SELECT argMax(topic_id, first_seen) FROM topics WHERE topic = 'documents');

-- One row for each batch. Capture's announcement may stand before or after what the state writes, so it never decides
-- the status; of the others the last one does.
CREATE OR REPLACE VIEW batch_status AS
SELECT
    batch_id,
    argMax(b.kind, (place, b.kind != '')) AS kind,
    maxIf(b.name, b.name != '') AS name,
    maxIf(b.admin, b.admin != '') AS admin,
    max(b.xid) AS xid,
    max(b.commit_lsn) AS commit_lsn,
    max(b.commit_time) AS commit_time,
    maxIf(b.rows, b.type = 'announced') AS rows,
    countIf(b.type = 'announced') > 0 AS announced,
    argMaxIf(b.type, place, b.type != 'announced') AS last_type,
    argMaxIf(b.status, place, b.type != 'announced') AS last_status,
    multiIf(
        last_type = '', 'PENDING',
        last_status != '', last_status,
        last_type = 'completed', 'COMPLETED',
        last_type = 'failed', 'FAILED',
        last_type = 'cancelled', 'CANCELLED',
        'PROCESSING') AS status,
    max(b.round) AS round,
    argMaxIf(b.total, place, b.type != 'announced') AS total,
    argMaxIf(b.succeeded, place, b.type != 'announced') AS succeeded,
    argMaxIf(b.failed, place, b.type != 'announced') AS failed,
    argMaxIf(b.skipped, place, b.type != 'announced') AS skipped,
    argMaxIf(b.cancelled, place, b.type != 'announced') AS cancelled,
    if(succeeded + failed = 0, NULL, succeeded / (succeeded + failed)) AS success_rate,
    argMaxIf(b.errors, place, b.type != 'announced') AS errors,
    minIf(b.at, b.type = 'opened') AS started,
    if(status IN ('COMPLETED', 'FAILED', 'CANCELLED'), argMaxIf(b.at, place, b.type != 'announced'), NULL) AS ended,
    dateDiff('millisecond', started, ended) / 1000 AS seconds
FROM
(
    SELECT r.*, (seen.first_seen, r.offset) AS place
    FROM batches AS r
    LEFT JOIN topics AS seen ON seen.topic_id = r.topic_id
) AS b
GROUP BY batch_id;

-- What went wrong in each batch: the last outcome of each product and shop decides.
CREATE OR REPLACE VIEW batch_failures AS
SELECT
    batch_id,
    category,
    count() AS products,
    argMax(message, product_id) AS example,
    max(product_id) AS example_product
FROM
(
    SELECT
        arrayJoin(r.batch_ids) AS batch_id,
        r.product_id AS product_id,
        r.shop AS shop,
        argMax((r.status, r.category, r.message), (seen.first_seen, r.offset)) AS last,
        last.2 AS category,
        last.3 AS message
    FROM outcomes AS r
    LEFT JOIN topics AS seen ON seen.topic_id = r.topic_id
    WHERE notEmpty(r.batch_ids)
    GROUP BY batch_id, product_id, shop
    HAVING last.1 = 'FAILED'
)
GROUP BY batch_id, category;

CREATE OR REPLACE VIEW failures_by_cause_hour AS
SELECT
    toStartOfHour(timestamp) AS hour,
    shop,
    category,
    countIf(status = 'FAILED') AS failed,
    countIf(status = 'RETRYING') AS retried,
    uniqExact(product_id) AS products,
    argMax(message, (timestamp, offset)) AS example,
    argMax(product_id, (timestamp, offset)) AS example_product
FROM outcomes
WHERE category != ''
GROUP BY hour, shop, category;

-- How long each step of pushes took that changed a shop, in milliseconds. commit_to_shop counts from the first change
-- that a push carries, so it holds the debounce.
CREATE OR REPLACE VIEW latencies AS
SELECT
    timestamp, shop, lane, product_id, part.1 AS step, dateDiff('microsecond', part.2, part.3) / 1000 AS ms
FROM outcomes
ARRAY JOIN
    [
        ('commit_to_kafka', first_commit, captured_at),
        ('kafka_to_due', captured_at, due_at),
        ('due_to_read', due_at, read_at),
        ('read_to_sent', read_at, sent_at),
        ('sent_to_answered', sent_at, answered_at),
        ('answered_to_settled', answered_at, settled_at),
        ('commit_to_shop', first_commit, answered_at),
        ('last_commit_to_shop', last_commit, answered_at)
    ] AS part
WHERE status = 'SUCCESS' AND answered_at IS NOT NULL AND part.2 IS NOT NULL AND part.3 IS NOT NULL;

CREATE OR REPLACE VIEW latency_by_step_hour AS
SELECT
    toStartOfHour(timestamp) AS hour, shop, lane, step,
    count() AS pushes,
    quantileExact(0.5)(ms) AS p50_ms,
    quantileExact(0.9)(ms) AS p90_ms,
    quantileExact(0.99)(ms) AS p99_ms
FROM latencies
GROUP BY hour, shop, lane, step;

CREATE OR REPLACE VIEW points_spent AS
SELECT
    toStartOfHour(timestamp) AS hour, shop, lane,
    count() AS pushes,
    countIf(answered_at IS NOT NULL) AS answered,
    sum(changes) AS changes_coalesced,
    round(sum(points_requested), 3) AS requested,
    round(sum(points_actual), 3) AS actual
FROM outcomes
GROUP BY hour, shop, lane;

-- A row for each time that the price of a variant in a shop became another one.
CREATE OR REPLACE VIEW price_history AS
SELECT
    product_id, shop, variant, sku, timestamp AS since,
    toDecimal64OrNull(now, 4) AS price, toDecimal64OrNull(before, 4) AS previous_price,
    toDecimal64OrNull(compare_now, 4) AS compare_at_price, hash
FROM
(
    SELECT
        *,
        lagInFrame(now, 1, '') OVER w AS before,
        lagInFrame(compare_now, 1, '') OVER w AS compare_before
    FROM
    (
        SELECT
            v.product_id AS product_id, v.shop AS shop, v.timestamp AS timestamp, v.hash AS hash,
            (seen.first_seen, v.offset) AS place,
            variant, sku, now, compare_now
        FROM document_versions AS v
        LEFT JOIN topics AS seen ON seen.topic_id = v.topic_id
        ARRAY JOIN
            v.variant_keys AS variant, v.variant_skus AS sku,
            v.variant_prices AS now, v.variant_compare AS compare_now
        WHERE now != ''
    )
    WINDOW w AS (
        PARTITION BY product_id, shop, variant ORDER BY place ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
)
WHERE now != before OR compare_now != compare_before;

-- A row for each time that the stock of a variant at a location of a shop became another one.
CREATE OR REPLACE VIEW stock_history AS
SELECT
    product_id, shop, variant, location, name, timestamp AS since, quantity,
    if(first, NULL, previous) AS previous_quantity, hash
FROM
(
    SELECT
        *,
        lagInFrame(quantity, 1, 0) OVER w AS previous,
        row_number() OVER w = 1 AS first
    FROM
    (
        SELECT
            v.product_id AS product_id, v.shop AS shop, v.timestamp AS timestamp, v.hash AS hash,
            (seen.first_seen, v.offset) AS place,
            variant, location, name, quantity
        FROM document_versions AS v
        LEFT JOIN topics AS seen ON seen.topic_id = v.topic_id
        ARRAY JOIN
            v.level_keys AS variant, v.level_locations AS location,
            v.level_names AS name, v.level_quantities AS quantity
    )
    WINDOW w AS (
        PARTITION BY product_id, shop, variant, location, name ORDER BY place
        ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
)
WHERE first OR quantity != previous;
