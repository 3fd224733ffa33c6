-- Texts that identify something are COLLATE "C": pages, locks and indexes then agree on one order, whatever the
-- cluster's locale, and comparisons cost nothing.

-- +goose Up
CREATE TABLE meta (
    one         boolean PRIMARY KEY DEFAULT true CHECK (one),
    -- A state that was created anew, or restored and renewed, must not be taken for its predecessor by the relay.
    incarnation uuid        NOT NULL DEFAULT gen_random_uuid(),
    system_id   text        NOT NULL DEFAULT '',
    timeline    integer     NOT NULL DEFAULT 0,
    created_at  timestamptz NOT NULL DEFAULT now()
);
INSERT INTO meta DEFAULT VALUES;

-- One row for each stage and partition: the only membership that there is. It is updated all the time and never
-- grows; room on the page and no index beside the key keep each update on its page (HOT).
CREATE TABLE leases (
    stage        text COLLATE "C" NOT NULL,
    partition    integer     NOT NULL,
    owner        text        NOT NULL DEFAULT '',
    epoch        bigint      NOT NULL DEFAULT 0,
    expires      timestamptz NOT NULL DEFAULT 'epoch',
    position     bigint      NOT NULL DEFAULT 0,
    taken_in     bigint      NOT NULL DEFAULT 0,
    cursor       text        NOT NULL DEFAULT '',
    wanted_by    text        NOT NULL DEFAULT '',
    wanted_until timestamptz NOT NULL DEFAULT 'epoch',
    PRIMARY KEY (stage, partition)
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- Writes that were applied, so that one whose answer was lost is not applied twice. Kept for minutes.
CREATE TABLE writes (
    token uuid PRIMARY KEY,
    at    timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
CREATE INDEX writes_at ON writes (at);

-- What is known of each product in each shop. The two indexes hold only columns that rarely change, so that a
-- settlement stays a HOT update.
CREATE TABLE products (
    product_id    text COLLATE "C" NOT NULL,
    shop          text COLLATE "C" NOT NULL,
    shopify_id    text        NOT NULL DEFAULT '',
    shadow        json,
    snapshot      text        NOT NULL DEFAULT '',
    document_hash text        NOT NULL DEFAULT '',
    off_sale      boolean     NOT NULL DEFAULT false,
    last_status   text        NOT NULL DEFAULT '',
    last_reason   text        NOT NULL DEFAULT '',
    attempt       integer     NOT NULL DEFAULT 0,
    attempted_at  timestamptz,
    settled_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (product_id, shop)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX products_shop ON products (shop, product_id);
-- Counts the live products of a shop for the guard without reading the table.
CREATE INDEX products_live ON products (shop) WHERE shopify_id <> '' AND NOT off_sale;

-- Requests that were begun and have no answer on record, one row for each product in them.
CREATE TABLE intents (
    product_id text COLLATE "C" NOT NULL,
    shop       text COLLATE "C" NOT NULL,
    key        text COLLATE "C" NOT NULL,
    mutation   text        NOT NULL,
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (product_id, shop, key)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
CREATE INDEX intents_key ON intents (key);

-- Products that wait here instead of in memory. A generation is never given twice, so that a row which was deleted
-- and parked again is not taken for the one that a push has seen.
CREATE SEQUENCE generations;
CREATE TABLE parked (
    product_id   text COLLATE "C" NOT NULL,
    shop         text COLLATE "C" NOT NULL,
    partition    integer     NOT NULL,
    lane         smallint    NOT NULL,
    due          timestamptz NOT NULL,
    generation   bigint      NOT NULL,
    reason       text COLLATE "C" NOT NULL,
    attempt      integer     NOT NULL DEFAULT 0,
    xids         bigint[]    NOT NULL DEFAULT '{}', -- ascending, each once
    changes      bigint      NOT NULL DEFAULT 0,
    first_commit timestamptz,
    last_commit  timestamptz,
    PRIMARY KEY (product_id, shop)
) WITH (fillfactor = 90, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000);
-- Pull walks (partition, lane, shop) by skipping, so that what waits for a shop that is not served costs one probe
-- and not one step for each of its rows.
CREATE INDEX parked_due ON parked (partition, lane, shop, due);
CREATE INDEX parked_blocked ON parked (shop, reason, due) WHERE reason IN ('SHOP_DEAD', 'HELD');

CREATE TABLE batches (
    id           text COLLATE "C" PRIMARY KEY,
    kind         text        NOT NULL DEFAULT '',
    name         text        NOT NULL DEFAULT '',
    admin        text        NOT NULL DEFAULT '',
    xid          bigint      NOT NULL DEFAULT 0,
    commit_lsn   pg_lsn      NOT NULL DEFAULT '0/0',
    commit_time  timestamptz,
    rows         bigint      NOT NULL DEFAULT 0,
    status       text COLLATE "C" NOT NULL DEFAULT 'PENDING'
        CHECK (status IN ('PENDING', 'PROCESSING', 'COMPLETED', 'FAILED', 'CANCELLED')),
    round        integer     NOT NULL DEFAULT 1,
    -- Offset of the batch's last record by partition of catalog.changes and catalog.fanouts; known once announced.
    changes      jsonb       NOT NULL DEFAULT '{}',
    fanouts      jsonb       NOT NULL DEFAULT '{}',
    announced    boolean     NOT NULL DEFAULT false,
    cancelling   boolean     NOT NULL DEFAULT false,
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    announced_at timestamptz,
    opened_at    timestamptz,
    started_at   timestamptz,
    ended_at     timestamptz
) WITH (fillfactor = 80);
CREATE INDEX batches_open ON batches (id) WHERE announced AND status IN ('PENDING', 'PROCESSING');
CREATE INDEX batches_created ON batches (created_at DESC, id DESC);
CREATE INDEX batches_xid ON batches (xid) WHERE xid <> 0;

-- No foreign key to batches: its row lock would make every settlement of a batch queue for one row.
CREATE TABLE batch_items (
    batch_id     text COLLATE "C" NOT NULL,
    product_id   text COLLATE "C" NOT NULL,
    shop         text COLLATE "C" NOT NULL,
    xid          bigint      NOT NULL DEFAULT 0,
    status       text COLLATE "C" NOT NULL CHECK (status IN
        ('PENDING', 'PROCESSING', 'RETRYING', 'HELD', 'SUCCESS', 'FAILED', 'SKIPPED', 'CANCELLED')),
    category     text        NOT NULL DEFAULT '',
    reason       text        NOT NULL DEFAULT '',
    message      text        NOT NULL DEFAULT '',
    field        text        NOT NULL DEFAULT '',
    shopify_id   text        NOT NULL DEFAULT '',
    variant_ids  text[]      NOT NULL DEFAULT '{}',
    attempt      integer     NOT NULL DEFAULT 0,
    retries      integer     NOT NULL DEFAULT 0,
    payload      text        NOT NULL DEFAULT '',
    processed_at timestamptz,
    PRIMARY KEY (batch_id, product_id, shop)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);
-- Load: the open items of a product. Complete and the counts: the items of a batch by status.
CREATE INDEX batch_items_open ON batch_items (product_id)
    WHERE status IN ('PENDING', 'PROCESSING', 'RETRYING', 'HELD');
CREATE INDEX batch_items_status ON batch_items (batch_id, status);

CREATE TABLE outbox (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic     text    NOT NULL,
    partition integer NOT NULL,
    key       bytea,
    value     bytea,
    headers   json, -- not jsonb, which refuses what a dead letter may hold: a NUL in a key
    at        timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

-- The rows that the relay has in hand: ids of the outbox, in the order of the numbers (number - cardinality(taken),
-- number]. One row is written for each group instead of a number into each record.
CREATE TABLE relay (
    one    boolean PRIMARY KEY DEFAULT true CHECK (one),
    number bigint   NOT NULL DEFAULT 0,
    taken  bigint[] NOT NULL DEFAULT '{}'
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
INSERT INTO relay DEFAULT VALUES;

CREATE TABLE shops (
    shop       text COLLATE "C" PRIMARY KEY,
    dead_since timestamptz,
    reason     text    NOT NULL DEFAULT '',
    next_probe timestamptz,
    paused     boolean NOT NULL DEFAULT false
) WITH (fillfactor = 70);

CREATE TABLE buckets (
    shop   text COLLATE "C" PRIMARY KEY,
    bucket json NOT NULL DEFAULT '{}'
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- The guard: a row is locked to count, products are counted once, and what a hold has caught is marked.
CREATE TABLE guards (
    shop       text COLLATE "C" NOT NULL,
    effect     text COLLATE "C" NOT NULL,
    held_since timestamptz,
    live       bigint NOT NULL DEFAULT 0,
    threshold  bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (shop, effect)
) WITH (fillfactor = 50);
CREATE TABLE guard_products (
    shop       text COLLATE "C" NOT NULL,
    effect     text COLLATE "C" NOT NULL,
    product_id text COLLATE "C" NOT NULL,
    at         timestamptz NOT NULL,
    held       boolean     NOT NULL DEFAULT false,
    -- Set when a person let the product go: it passes uncounted until this time.
    free_until timestamptz,
    PRIMARY KEY (shop, effect, product_id)
);

-- fence locks the rows of leases and fails with SQLSTATE SW001 unless each is still its owner's, in its epoch and
-- unexpired. FOR NO KEY UPDATE and not FOR SHARE: the same transaction moves the positions, and two holders of a
-- shared lock who both want to write wait for each other for ever.
-- +goose StatementBegin
CREATE FUNCTION fence(stages text[], partitions integer[], owners text[], epochs bigint[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    lost text;
BEGIN
    PERFORM 1 FROM leases l
        WHERE (l.stage, l.partition) IN (SELECT f.stage, f.partition FROM unnest(stages, partitions) f(stage, partition))
        ORDER BY l.stage, l.partition
        FOR NO KEY UPDATE;
    SELECT string_agg(f.stage || '/' || f.partition, ', ') INTO lost
        FROM unnest(stages, partitions, owners, epochs) f(stage, partition, owner, epoch)
        LEFT JOIN leases l ON l.stage = f.stage AND l.partition = f.partition AND l.owner = f.owner
            AND l.epoch = f.epoch AND l.expires > clock_timestamp()
        WHERE l.stage IS NULL;
    IF lost IS NOT NULL THEN
        RAISE EXCEPTION 'lease lost: %', lost USING ERRCODE = 'SW001', DETAIL = lost;
    END IF;
END
$$;
-- +goose StatementEnd

-- +goose Down
DROP FUNCTION fence(text[], integer[], text[], bigint[]);
DROP TABLE guard_products, guards, buckets, shops, relay, outbox, batch_items, batches, parked, intents, products,
    writes, leases, meta;
DROP SEQUENCE generations;
