-- The two-fold choices of one job ($job): 20 times its clusters are split into two halves; the layer and head that are best
-- on one half are reported on the other, both ways round, for every stage, part and metric.
--
-- Means, errors and degrees of freedom are those of summaries.sql. A head counts by itself; all heads concatenated only where there are none.
-- The halves follow from the clusters' names alone, so jobs on the same samples are split alike.
--
-- When this text changes, all choices are made anew.
INSERT INTO choices
WITH labels AS MATERIALIZED (
    SELECT sample, dense_rank() OVER (ORDER BY grp) AS g, dense_rank() OVER (ORDER BY cluster) AS c, cluster
    FROM samples
    WHERE dataset = (SELECT dataset FROM jobs WHERE job = $job)
        AND sample IN (SELECT sample FROM scores WHERE job = $job)
),
halves AS MATERIALIZED (
    SELECT c, split, row_number() OVER (PARTITION BY split ORDER BY md5(cluster || ':' || split), cluster) % 2 AS half
    FROM (SELECT DISTINCT c, cluster FROM labels), range(20) AS splits(split)
),
points AS MATERIALIZED ( -- a row a cluster of a group
    SELECT stage, part, layer, site, head, metric, g, c,
        exact_sum(weight::DOUBLE) AS w, exact_sum(weight::DOUBLE * value) AS wv, min(value) AS lowest, max(value) AS highest
    FROM scores JOIN labels USING (sample) JOIN sites USING (site)
    WHERE job = $job AND isfinite(value) AND weight > 0 AND metric NOT LIKE 'iou of %' AND stage IN ('encoder', 'projector', 'decoder')
    GROUP BY stage, part, layer, site, head, metric, g, c
    QUALIFY head >= 0 OR max(head) OVER (PARTITION BY site, metric) = -1
),
groups AS MATERIALIZED (
    SELECT stage, part, layer, site, head, metric, split, half, g, exact_sum(w) AS w, exact_sum(wv) / exact_sum(w) AS mean
    FROM points JOIN halves USING (c)
    GROUP BY ALL
),
means AS MATERIALIZED (
    SELECT stage, part, layer, site, head, metric, split, half, avg(mean ORDER BY g) AS value, count(*) AS groups
    FROM groups
    GROUP BY ALL
),
winners AS MATERIALIZED (
    SELECT stage, part, site, head, metric, split, half, value AS chosen
    FROM means
    QUALIFY row_number() OVER (
        PARTITION BY stage, part, metric, split, half ORDER BY round(value, 12) DESC, layer, head
    ) = 1
),
residuals AS MATERIALIZED ( -- of the winners, on the half that they were not chosen on: a row a cluster of a group
    SELECT winners.stage, winners.part, winners.metric, winners.split, winners.half, points.g, points.c,
        (points.wv - points.w * groups.mean) / groups.w AS e,
        groups.mean, means.value, means.groups, points.lowest, points.highest
    FROM winners
        JOIN points USING (site, head, metric)
        JOIN halves ON halves.c = points.c AND halves.split = winners.split AND halves.half = 1 - winners.half
        JOIN groups ON groups.site = winners.site AND groups.head = winners.head AND groups.metric = winners.metric
            AND groups.split = winners.split AND groups.half = 1 - winners.half AND groups.g = points.g
        JOIN means ON means.site = winners.site AND means.head = winners.head AND means.metric = winners.metric
            AND means.split = winners.split AND means.half = 1 - winners.half
),
strata AS (
    SELECT stage, part, metric, split, half, g, count(*) AS clusters,
        if(count(*) > 1, sqrt(count(*) / (count(*) - 1)), 0) AS factor,
        factor ** 2 * exact_sum(e * e) AS variance,
        if(count(*) = 1, any_value(mean) - any_value(value), 0) AS apart
    FROM residuals
    GROUP BY ALL
),
parts AS (
    SELECT stage, part, metric, split, half, c, exact_sum(factor * e) AS inside, exact_sum(apart) AS apart,
        any_value(groups) AS groups, min(lowest) AS lowest, max(highest) AS highest
    FROM residuals JOIN strata USING (stage, part, metric, split, half, g)
    GROUP BY ALL
),
squares AS (
    SELECT stage, part, metric, split, half, count(*) AS clusters, any_value(groups) AS groups,
        exact_sum(inside * inside) AS inside, exact_sum(inside * apart) AS mixed,
        exact_sum(apart * apart) AS apart, min(lowest) AS lowest, max(highest) AS highest
    FROM parts
    GROUP BY ALL
),
pools AS (
    SELECT stage, part, metric, split, half,
        exact_sum(variance) AS v, sum(variance ** 2 / (clusters + 1) ORDER BY g) AS v_squares,
        sum(clusters - 1) AS df, exact_sum(apart ** 2) AS v_lone, count(*) FILTER (clusters = 1) AS lone
    FROM strata
    GROUP BY ALL
),
errors AS (
    SELECT stage, part, metric, split, half, clusters, lowest, highest,
        least(clusters, groups) AS m, coalesce(m / nullif(m - 1, 0), 0) AS widened,
        sqrt(greatest(inside + 2 * sqrt(widened) * mixed + widened * apart, 0)) / groups AS error,
        least(lone, m - 1) AS lone_df, widened * v_lone AS v_apart,
        (v + v_apart) ** 2 / nullif(v_squares + v_apart ** 2 / (lone_df + 2), 0) - 2 AS welch,
        least(clusters - 1, pools.df + lone_df, if(welch < 1, 1, welch)) AS df
    FROM squares JOIN pools USING (stage, part, metric, split, half)
)
SELECT $job, stage, part, metric, split, winners.half, site, head, chosen, means.value,
    estimated(error, clusters, lowest, highest) AS se, clusters, if(se IS NULL, NULL, df)
FROM winners
    JOIN errors USING (stage, part, metric, split, half)
    JOIN means USING (stage, part, site, head, metric, split)
WHERE means.half = 1 - winners.half
ORDER BY ALL
