-- +goose Up
-- Why capture had to give the batch up; empty for one that is whole.
ALTER TABLE batches ADD COLUMN reason text NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE batches DROP COLUMN reason;
