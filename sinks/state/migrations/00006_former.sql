-- +goose Up
-- The incarnation that a restored state had before: topics that belong to it are this state's own.
ALTER TABLE meta ADD COLUMN former uuid;

-- +goose Down
ALTER TABLE meta DROP COLUMN former;
