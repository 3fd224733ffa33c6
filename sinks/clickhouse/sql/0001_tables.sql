-- Every table of rows keeps what a Kafka record is known by: topic id, partition, offset. They end the sorting key, so
-- that a repeated row is the same row, and the partition is the month of the record's own timestamp, so that both
-- copies of a row always meet in one partition and are merged there. Only tables end in _rows; people query the views.

-- Which id each topic had, and since when. A topic that was deleted and created again has a new id and starts its
-- offsets at 0, so rows are put in order by (first seen, offset).
CREATE TABLE IF NOT EXISTS topics_rows
(
    topic    LowCardinality(String),
    topic_id UUID,
    seen_at  DateTime64(3, 'UTC')
)
ENGINE = ReplacingMergeTree
ORDER BY (topic, topic_id, seen_at);

CREATE TABLE IF NOT EXISTS changes_rows
(
    topic_id   UUID,
    partition  Int32,
    offset     UInt64 CODEC(Delta, ZSTD(1)),
    timestamp  DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    product_id String,
    table      LowCardinality(String),
    op         LowCardinality(String),
    pk         String,
    commit_lsn UInt64 CODEC(Delta, ZSTD(1)),
    ordinal    UInt64,
    xid        UInt64,
    batch_id   String,
    origin     LowCardinality(String),
    committed  Nullable(DateTime64(6, 'UTC')),
    value      String CODEC(ZSTD(3)),
    INDEX product product_id TYPE bloom_filter(0.01) GRANULARITY 4
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(timestamp)
ORDER BY (timestamp, topic_id, partition, offset)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS outcomes_rows
(
    topic_id         UUID,
    partition        Int32,
    offset           UInt64 CODEC(Delta, ZSTD(1)),
    timestamp        DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    id               String,
    product_id       String,
    shop             LowCardinality(String),
    status           LowCardinality(String),
    category         LowCardinality(String),
    reason           LowCardinality(String),
    message          String,
    field            String,
    shopify_id       String,
    variant_ids      Array(String),
    batch_ids        Array(String),
    lane             LowCardinality(String),
    attempt          Int32,
    plan             String,
    sent             String CODEC(ZSTD(3)),
    sent_hash        String,
    points_requested Float64,
    points_actual    Float64,
    changes          Int64,
    first_commit     Nullable(DateTime64(6, 'UTC')),
    last_commit      Nullable(DateTime64(6, 'UTC')),
    captured_at      Nullable(DateTime64(6, 'UTC')),
    due_at           Nullable(DateTime64(6, 'UTC')),
    read_at          Nullable(DateTime64(6, 'UTC')),
    sent_at          Nullable(DateTime64(6, 'UTC')),
    answered_at      Nullable(DateTime64(6, 'UTC')),
    settled_at       Nullable(DateTime64(6, 'UTC')),
    document_hash    String,
    next_attempt     Nullable(DateTime64(6, 'UTC')),
    INDEX product product_id TYPE bloom_filter(0.01) GRANULARITY 4,
    INDEX batches batch_ids TYPE bloom_filter(0.01) GRANULARITY 4
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(timestamp)
ORDER BY (timestamp, topic_id, partition, offset)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS batches_rows
(
    topic_id    UUID,
    partition   Int32,
    offset      UInt64 CODEC(Delta, ZSTD(1)),
    timestamp   DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    batch_id    String,
    type        LowCardinality(String),
    kind        LowCardinality(String),
    name        String,
    admin       String,
    xid         UInt64,
    commit_lsn  UInt64,
    commit_time Nullable(DateTime64(6, 'UTC')),
    rows        Int64,
    changes     Map(Int32, Int64),
    fanouts     Map(Int32, Int64),
    round       Int32,
    status      LowCardinality(String),
    total       Int64,
    succeeded   Int64,
    failed      Int64,
    skipped     Int64,
    cancelled   Int64,
    errors      Map(String, Int64),
    at          Nullable(DateTime64(6, 'UTC'))
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(timestamp)
ORDER BY (timestamp, topic_id, partition, offset)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1;

-- The last row of each key, as in the compacted topic. It has neither months nor retention: what the topic keeps, it
-- keeps. Offsets order rows of one key, because a key stays in one partition; a tombstone hides the key.
CREATE TABLE IF NOT EXISTS documents_rows
(
    key        String,
    topic_id   UUID,
    partition  Int32,
    offset     UInt64,
    timestamp  DateTime64(3, 'UTC'),
    product_id String,
    shop       LowCardinality(String),
    hash       String,
    document   String CODEC(ZSTD(3)),
    snapshot   String,
    read_at    Nullable(DateTime64(6, 'UTC')),
    deleted    UInt8
)
ENGINE = ReplacingMergeTree(offset, deleted)
ORDER BY (key, topic_id)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1;

-- Every version of every document that was read from the topic, reduced to what has a history: eligibility, prices and
-- stock. Prices are the document's own text; an empty one says that the document leaves the price alone or clears it.
-- The level_ columns are parallel: the stock of level_keys[i] at level_locations[i].
CREATE TABLE IF NOT EXISTS document_versions_rows
(
    topic_id          UUID,
    partition         Int32,
    offset            UInt64 CODEC(Delta, ZSTD(1)),
    timestamp         DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    product_id        String,
    shop              LowCardinality(String),
    hash              String,
    read_at           Nullable(DateTime64(6, 'UTC')),
    deleted           UInt8,
    eligible          Bool,
    reason            LowCardinality(String),
    variant_keys      Array(String),
    variant_skus      Array(String),
    variant_prices    Array(String),
    variant_compare   Array(String),
    level_keys        Array(String),
    level_locations   Array(String),
    level_names       Array(String),
    level_quantities  Array(Int64),
    INDEX product product_id TYPE bloom_filter(0.01) GRANULARITY 4
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(timestamp)
ORDER BY (timestamp, topic_id, partition, offset)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS deadletters_rows
(
    topic_id   UUID,
    partition  Int32,
    offset     UInt64 CODEC(Delta, ZSTD(1)),
    timestamp  DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    key        String,
    value      String CODEC(ZSTD(3)),
    reason     String,
    table      LowCardinality(String),
    op         LowCardinality(String),
    position   String,
    headers    Map(String, String)
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(timestamp)
ORDER BY (timestamp, topic_id, partition, offset)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1;

-- Records that stand in a topic and do not fit its table, with the reason and the original bytes.
CREATE TABLE IF NOT EXISTS malformed_rows
(
    topic     LowCardinality(String),
    topic_id  UUID,
    partition Int32,
    offset    UInt64 CODEC(Delta, ZSTD(1)),
    timestamp DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    reason    String,
    key       String,
    value     String CODEC(ZSTD(3)),
    headers   Map(String, String)
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(timestamp)
ORDER BY (timestamp, topic_id, partition, offset)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1;
