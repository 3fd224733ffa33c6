-- +goose Up
-- counted is how many products of guard_products have no free_until, kept under the row's lock; measured is what was
-- live at measured_at.
ALTER TABLE guards ADD COLUMN counted bigint NOT NULL DEFAULT 0, ADD COLUMN measured bigint NOT NULL DEFAULT 0,
    ADD COLUMN measured_at timestamptz NOT NULL DEFAULT 'epoch';
UPDATE guards g SET counted = (SELECT count(*) FROM guard_products p WHERE p.shop = g.shop AND p.effect = g.effect
    AND p.free_until IS NULL);
CREATE INDEX guard_expires ON guard_products (shop, effect, at) WHERE NOT held;
CREATE INDEX guard_held ON guard_products (shop, effect, product_id) WHERE held;
CREATE INDEX guard_free ON guard_products (shop, effect, free_until) WHERE free_until IS NOT NULL;

-- +goose Down
DROP INDEX guard_free, guard_held, guard_expires;
ALTER TABLE guards DROP COLUMN counted, DROP COLUMN measured, DROP COLUMN measured_at;
