-- The summaries of one job ($job): for every site, head and metric the mean of each group and the mean over groups.
--
-- In a group g the mean is M_g = sum(w v) / W_g with W_g = sum(w); over G groups it is the mean of the M_g. Samples of one
-- cluster are not independent, so the error is linearised by cluster: e_c = sum over the groups and samples of cluster c
-- of w (v - M_g) / (W_g G), and se^2 = C / (C - 1) * sum(e_c^2) over C clusters. A value that is not finite is not
-- defined: it counts in n_undefined and nowhere else; a group without a defined value or without weight is no group.
-- Samples whose group has no name count in the mean over groups, but have no row of their own.
--
-- When this text changes, all summaries are computed anew.
INSERT INTO summaries
WITH labels AS MATERIALIZED (
    SELECT sample, dense_rank() OVER (ORDER BY grp) AS g, grp, dense_rank() OVER (ORDER BY cluster) AS c
    FROM samples
    WHERE dataset = (SELECT dataset FROM jobs WHERE job = $job)
),
points AS (
    SELECT site, head, metric, g, c, weight::DOUBLE AS w, if(isfinite(value), value::DOUBLE, NULL) AS v
    FROM scores JOIN labels USING (sample)
    WHERE job = $job
),
groups AS MATERIALIZED (
    SELECT site, head, metric, g,
        nullif(exact_sum(if(v IS NULL, 0, w)), 0) AS weight,
        exact_sum(w * v) / weight AS mean,
        count(v) AS n,
        count(*) - count(v) AS n_undefined
    FROM points
    GROUP BY ALL
),
residuals AS MATERIALIZED ( -- a row a cluster of a group
    SELECT site, head, metric, g, c, exact_sum(w * (v - mean) / weight) AS e
    FROM points JOIN groups USING (site, head, metric, g)
    WHERE v IS NOT NULL AND mean IS NOT NULL
    GROUP BY ALL
),
group_errors AS (
    SELECT site, head, metric, g, count(*) AS clusters,
        if(count(*) > 1, sqrt(count(*) / (count(*) - 1) * exact_sum(e * e)), NULL) AS se
    FROM residuals
    GROUP BY ALL
),
overall AS (
    SELECT site, head, metric,
        exact_sum(mean) / count(mean) AS mean,
        sum(n) AS n,
        sum(n_undefined) AS n_undefined,
        count(mean) AS groups
    FROM groups
    GROUP BY ALL
),
cluster_residuals AS ( -- a row a cluster, which may lie in several groups
    SELECT site, head, metric, c, exact_sum(e) AS e
    FROM residuals
    GROUP BY ALL
),
overall_errors AS (
    SELECT site, head, metric, count(*) AS clusters,
        if(count(*) > 1, sqrt(count(*) / (count(*) - 1) * exact_sum(e * e)), NULL) AS se
    FROM cluster_residuals
    GROUP BY ALL
)
SELECT $job, site, head, metric, grp, mean, se, n, n_undefined, (mean IS NOT NULL)::INTEGER, coalesce(clusters, 0)
FROM groups
    LEFT JOIN group_errors USING (site, head, metric, g)
    JOIN (SELECT DISTINCT g, grp FROM labels WHERE grp <> '') USING (g)
UNION ALL
SELECT $job, site, head, metric, '', mean, se / groups, n, n_undefined, groups, coalesce(clusters, 0)
FROM overall LEFT JOIN overall_errors USING (site, head, metric)
ORDER BY ALL
