-- The two-fold choices of one job ($job): 20 times its clusters are split into two halves; the layer and head that are best
-- on one half are reported on the other, both ways round, for every stage, part and metric.
--
-- Means and errors are those of summaries.sql. A head counts by itself; all heads concatenated only where there are none.
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
        exact_sum(weight::DOUBLE) AS w, exact_sum(weight::DOUBLE * value) AS wv
    FROM scores JOIN labels USING (sample) JOIN sites USING (site)
    WHERE job = $job AND isfinite(value) AND weight > 0 AND stage IN ('encoder', 'projector', 'decoder')
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
residuals AS ( -- of the winners, on the half that they were not chosen on
    SELECT winners.stage, winners.part, winners.metric, winners.split, winners.half, points.c,
        exact_sum((points.wv - points.w * groups.mean) / (groups.w * means.groups)) AS e
    FROM winners
        JOIN points USING (site, head, metric)
        JOIN halves ON halves.c = points.c AND halves.split = winners.split AND halves.half = 1 - winners.half
        JOIN groups ON groups.site = winners.site AND groups.head = winners.head AND groups.metric = winners.metric
            AND groups.split = winners.split AND groups.half = 1 - winners.half AND groups.g = points.g
        JOIN means ON means.site = winners.site AND means.head = winners.head AND means.metric = winners.metric
            AND means.split = winners.split AND means.half = 1 - winners.half
    GROUP BY ALL
),
errors AS (
    SELECT stage, part, metric, split, half, count(*) AS clusters,
        if(count(*) > 1, sqrt(count(*) / (count(*) - 1) * sum(e * e ORDER BY c)), NULL) AS se
    FROM residuals
    GROUP BY ALL
)
SELECT $job, stage, part, metric, split, winners.half, site, head, chosen, means.value, se, clusters
FROM winners
    JOIN errors USING (stage, part, metric, split, half)
    JOIN means USING (stage, part, site, head, metric, split)
WHERE means.half = 1 - winners.half
ORDER BY ALL
