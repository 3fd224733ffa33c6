-- When the row was written. NULL: by a program that did not say it. A row that is written again, after tables were
-- emptied for instance, says when that was.
ALTER TABLE outcomes_rows ADD COLUMN IF NOT EXISTS loaded_at Nullable(DateTime64(6, 'UTC'));

CREATE OR REPLACE VIEW outcomes AS
SELECT *
FROM outcomes_rows FINAL
SETTINGS do_not_merge_across_partitions_select_final = 1;

-- How long each step of pushes took that changed a shop, in milliseconds. The first seven follow each other; together they
-- are commit_to_clickhouse. What counts from the first change that a push carries holds the debounce.
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
        ('settled_to_clickhouse', settled_at, loaded_at),
        ('commit_to_shop', first_commit, answered_at),
        ('last_commit_to_shop', last_commit, answered_at),
        ('commit_to_clickhouse', first_commit, loaded_at)
    ] AS part
WHERE status = 'SUCCESS' AND answered_at IS NOT NULL AND part.2 IS NOT NULL AND part.3 IS NOT NULL;

-- Offsets of two partitions may be equal, also within a millisecond: the example and its product are those of one row.
CREATE OR REPLACE VIEW failures_by_cause_hour AS
SELECT
    toStartOfHour(timestamp) AS hour,
    shop,
    category,
    countIf(status = 'FAILED') AS failed,
    countIf(status = 'RETRYING') AS retried,
    uniqExact(product_id) AS products,
    argMax(message, (timestamp, topic_id, partition, offset)) AS example,
    argMax(product_id, (timestamp, topic_id, partition, offset)) AS example_product
FROM outcomes
WHERE category != ''
GROUP BY hour, shop, category;

-- What went wrong in each batch: the last outcome of each product and shop decides.
CREATE OR REPLACE VIEW batch_failures AS
SELECT
    batch_id,
    category,
    count() AS products,
    argMax(message, (product_id, shop)) AS example,
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
