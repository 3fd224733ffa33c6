-- +goose Up
-- +goose StatementBegin
-- hold is fence for who only adds: settlements of the same partitions go on beside it, while whoever takes a lease over
-- waits for its end.
CREATE FUNCTION hold(stages text[], partitions integer[], owners text[], epochs bigint[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    lost text;
BEGIN
    PERFORM 1 FROM leases l
        WHERE (l.stage, l.partition) IN (SELECT f.stage, f.partition FROM unnest(stages, partitions) f(stage, partition))
        ORDER BY l.stage, l.partition
        FOR KEY SHARE;
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
DROP FUNCTION hold(text[], integer[], text[], bigint[]);
