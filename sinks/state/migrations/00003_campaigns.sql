-- +goose Up
-- What was begun by a person or by a gap, and parks many products: a batch that fans out, a snapshot, a replay, a heal.
CREATE TABLE campaigns (
    no         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id         text COLLATE "C" NOT NULL UNIQUE, -- of the batch, or made by us: replay/..., heal/...
    kind       text        NOT NULL DEFAULT '',
    name       text        NOT NULL DEFAULT '',
    cancelled  boolean     NOT NULL DEFAULT false,
    -- Products parked in it; for campaigns without items. Those of a batch are counted by its items.
    total      bigint      NOT NULL DEFAULT 0,
    -- What was done by when it was begun or last resumed: the rate is measured from there.
    rate_from  timestamptz NOT NULL DEFAULT clock_timestamp(),
    rate_done  bigint      NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at   timestamptz
) WITH (fillfactor = 50);
CREATE INDEX campaigns_open ON campaigns (no) WHERE ended_at IS NULL;
CREATE INDEX campaigns_created ON campaigns (created_at DESC, no DESC);

-- A product that several campaigns want has a row for each, so that pausing, cancelling and counting one of them never
-- touches another. 0 is no campaign.
ALTER TABLE parked ADD COLUMN campaign bigint NOT NULL DEFAULT 0;
ALTER TABLE parked DROP CONSTRAINT parked_pkey, ADD PRIMARY KEY (product_id, shop, campaign);
DROP INDEX parked_due;
-- Pull walks (lane, campaign, shop) by skipping, so that what waits for a shop or a campaign that is not served costs
-- one probe and not one step for each of its rows; then it probes each partition. Counts of a campaign read a prefix.
CREATE INDEX parked_next ON parked (lane, campaign, shop, partition, due);

-- What people have stopped: 'all', 'lane/campaign', 'shop/main', 'campaign/' and its id.
CREATE TABLE pauses (
    what text COLLATE "C" PRIMARY KEY,
    by   text        NOT NULL DEFAULT '',
    at   timestamptz NOT NULL DEFAULT clock_timestamp()
);
INSERT INTO pauses (what) SELECT 'shop/' || shop FROM shops WHERE paused;
ALTER TABLE shops DROP COLUMN paused;

-- Products that people keep from being pushed; shop '' is every shop.
CREATE TABLE excluded (
    product_id text COLLATE "C" NOT NULL,
    shop       text COLLATE "C" NOT NULL DEFAULT '',
    by         text        NOT NULL DEFAULT '',
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (product_id, shop)
);

-- +goose Down
DROP TABLE excluded;
ALTER TABLE shops ADD COLUMN paused boolean NOT NULL DEFAULT false;
INSERT INTO shops AS s (shop, paused) SELECT substr(what, 6), true FROM pauses WHERE what LIKE 'shop/%'
    ON CONFLICT (shop) DO UPDATE SET paused = true;
DROP TABLE pauses;
DROP INDEX parked_next;
DELETE FROM parked p USING parked o WHERE o.product_id = p.product_id AND o.shop = p.shop AND o.campaign < p.campaign;
ALTER TABLE parked DROP CONSTRAINT parked_pkey, ADD PRIMARY KEY (product_id, shop);
ALTER TABLE parked DROP COLUMN campaign;
CREATE INDEX parked_due ON parked (partition, lane, shop, due);
DROP TABLE campaigns;
