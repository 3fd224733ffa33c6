-- +goose Up
-- lean says that what was sent is not kept any more for the items of the batch.
ALTER TABLE batches ADD COLUMN lean boolean NOT NULL DEFAULT false;
CREATE INDEX batches_ended ON batches (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX batches_fat ON batches (ended_at) WHERE ended_at IS NOT NULL AND NOT lean;
CREATE INDEX campaigns_ended ON campaigns (ended_at) WHERE ended_at IS NOT NULL;

-- +goose Down
DROP INDEX campaigns_ended, batches_fat, batches_ended;
ALTER TABLE batches DROP COLUMN lean;
