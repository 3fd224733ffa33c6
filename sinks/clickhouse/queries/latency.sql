SELECT
    step,
    toInt64(count()) AS pushes,
    quantileExact(0.5)(ms) AS p50_ms,
    quantileExact(0.9)(ms) AS p90_ms,
    quantileExact(0.99)(ms) AS p99_ms
FROM latencies
WHERE timestamp >= now() - INTERVAL 1 DAY
GROUP BY step
ORDER BY indexOf(
    ['commit_to_kafka', 'kafka_to_due', 'due_to_read', 'read_to_sent', 'sent_to_answered', 'answered_to_settled',
     'settled_to_clickhouse', 'commit_to_shop', 'last_commit_to_shop', 'commit_to_clickhouse'], step)
