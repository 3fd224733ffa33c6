-- Aggregates for dashboards. Each refresh computes the whole again from the view, and replaces the old result in one
-- step: a row that arrives twice or late can not leave a trace in them.

CREATE MATERIALIZED VIEW IF NOT EXISTS hourly_failures
REFRESH AFTER 10 MINUTE
ENGINE = MergeTree ORDER BY (hour, shop, category)
AS SELECT * FROM failures_by_cause_hour;

CREATE MATERIALIZED VIEW IF NOT EXISTS hourly_latency
REFRESH AFTER 10 MINUTE
ENGINE = MergeTree ORDER BY (hour, shop, lane, step)
AS SELECT * FROM latency_by_step_hour;

CREATE MATERIALIZED VIEW IF NOT EXISTS hourly_points
REFRESH AFTER 10 MINUTE
ENGINE = MergeTree ORDER BY (hour, shop, lane)
AS SELECT * FROM points_spent;
