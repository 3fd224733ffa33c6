-- What each routed table must write to the WAL of a row that is updated or deleted, so that routes can be taken for
-- the old image too. Tables that are not named keep the default (the primary key), which holds all that their route
-- reads: catalog.stock leads by variant_id, a part of its key.

-- batch_when compares approved_at before and after, and a nullable column cannot stand in an index identity. An update
-- then writes the old row as well, long descriptions included. Where that is too much WAL, keep the long texts in a
-- table of their own with a column route.
ALTER TABLE catalog.products REPLICA IDENTITY FULL;

-- The old product_id tells which product a variant or picture has left. 8 bytes more for each change.
ALTER TABLE catalog.variants REPLICA IDENTITY USING INDEX variants_identity;
ALTER TABLE catalog.images REPLICA IDENTITY USING INDEX images_identity;

-- Query routes read the whole old row. These tables are small and seldom change.
ALTER TABLE catalog.stores REPLICA IDENTITY FULL;
ALTER TABLE catalog.categories REPLICA IDENTITY FULL;
ALTER TABLE catalog.category_stores REPLICA IDENTITY FULL;
ALTER TABLE catalog.price_rules REPLICA IDENTITY FULL;
ALTER TABLE catalog.warehouse_locations REPLICA IDENTITY FULL;
