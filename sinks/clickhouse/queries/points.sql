SELECT
    shop, lane,
    toInt64(sum(p.pushes)) AS pushes,
    toInt64(sum(p.answered)) AS answered,
    toInt64(sum(p.changes_coalesced)) AS changes,
    changes / greatest(pushes, 1) AS changes_per_push,
    sum(p.actual) AS points,
    points / greatest(answered, 1) AS points_per_push
FROM points_spent AS p
WHERE hour >= now() - INTERVAL 1 DAY
GROUP BY shop, lane
ORDER BY shop, lane
