-- The two simulated shops as stores, and which of their locations serves which warehouse.
INSERT INTO catalog.stores (id, name, publications) VALUES
    (1, 'north', '{Online Store}'),
    (2, 'south', '{Online Store}');
INSERT INTO catalog.warehouses (id, name) VALUES (1, 'main'), (2, 'reserve');
INSERT INTO catalog.warehouse_locations (warehouse_id, store_id, location) VALUES
    (1, 1, 'Hamburg'), (2, 1, 'Rostock'),
    (1, 2, 'Munich'),  (2, 2, 'Ulm');
-- The ids above were given, not drawn.
ALTER TABLE catalog.stores ALTER COLUMN id RESTART WITH 3;
ALTER TABLE catalog.warehouses ALTER COLUMN id RESTART WITH 3;
