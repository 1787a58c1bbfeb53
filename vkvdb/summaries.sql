-- The summaries of one job ($job): for every site, head and metric the mean of each group and the mean over groups.
--
-- In a group g the mean is M_g = sum(w v) / W_g with W_g = sum(w); over G groups it is M, the mean of the M_g. A value
-- that is not finite is not defined: it counts in n_undefined and nowhere else; a group without a defined value or
-- without weight is no group. Samples whose group has no name count in the mean over groups, but have no row of their own.
--
-- Errors. Samples of one cluster are not independent, so the error is linearised by cluster. Cluster c of group g departs
-- by e_cg = sum of w (v - M_g) / W_g. Groups are strata: in one of n_g clusters, V_g = n_g / (n_g - 1) * sum over c of
-- e_cg^2 is the squared error of M_g, with n_g - 1 degrees of freedom. A group of one cluster says nothing of its own
-- error; there e_cg is how far the group lies from the others, sqrt(m / (m - 1)) (M_g - M), m being the smaller of the
-- numbers of groups and of clusters: were all groups so, the squared error would be the variance over groups, over their
-- number. (It is too large rather than too small where groups differ in truth.) Since a cluster may lie in several
-- groups, its parts are summed before they are squared: se^2 = sum over c of (sum over g of
-- sqrt(n_g / (n_g - 1)) e_cg)^2 / G^2.
--
-- Intervals are Student's (`t975` of `df`, views.sql). The degrees of freedom of a mean over groups are Welch's (1947):
-- (sum V)^2 / sum(V^2 / (nu + 2)) - 2 over the strata, all groups of one cluster being one stratum; at most those of all
-- strata together, and clusters - 1. No error, NULL: with one cluster; and where clusters agree by chance although scores
-- differ, as an interval without width would have it that nothing is uncertain.
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
    WHERE job = $job AND metric NOT LIKE 'iou of %' -- a class in all images: the view `pooled` has its mean
),
groups AS MATERIALIZED (
    SELECT site, head, metric, g,
        nullif(exact_sum(if(v IS NULL, 0, w)), 0) AS weight,
        exact_sum(w * v) / weight AS mean,
        count(v) AS n,
        count(*) - count(v) AS n_undefined,
        min(v) FILTER (w > 0) AS lowest, max(v) FILTER (w > 0) AS highest
    FROM points
    GROUP BY ALL
),
overall AS MATERIALIZED (
    SELECT site, head, metric,
        exact_sum(mean) / count(mean) AS mean,
        sum(n) AS n, sum(n_undefined) AS n_undefined,
        count(mean) AS groups,
        min(lowest) AS lowest, max(highest) AS highest
    FROM groups
    GROUP BY ALL
),
residuals AS MATERIALIZED ( -- a row a cluster of a group
    SELECT site, head, metric, g, c, exact_sum(w * (v - mean) / weight) AS e
    FROM points JOIN groups USING (site, head, metric, g)
    WHERE v IS NOT NULL AND w > 0
    GROUP BY ALL
),
strata AS MATERIALIZED ( -- a row a group: V_g, or how far it lies from the others
    SELECT site, head, metric, g, count(*) AS clusters,
        if(count(*) > 1, sqrt(count(*) / (count(*) - 1)), 0) AS factor,
        factor ** 2 * exact_sum(e * e) AS variance,
        if(count(*) = 1, any_value(groups.mean) - any_value(overall.mean), 0) AS apart
    FROM residuals JOIN groups USING (site, head, metric, g) JOIN overall USING (site, head, metric)
    GROUP BY ALL
),
parts AS ( -- a row a cluster, which may lie in several groups
    SELECT site, head, metric, c, exact_sum(factor * e) AS inside, exact_sum(apart) AS apart
    FROM residuals JOIN strata USING (site, head, metric, g)
    GROUP BY ALL
),
squares AS (
    SELECT site, head, metric, count(*) AS clusters,
        exact_sum(inside * inside) AS inside, exact_sum(inside * apart) AS mixed, exact_sum(apart * apart) AS apart
    FROM parts
    GROUP BY ALL
),
pools AS ( -- V over the groups that have one, and of all groups of one cluster together
    SELECT site, head, metric,
        exact_sum(variance) AS v, sum(variance ** 2 / (clusters + 1) ORDER BY g) AS v_squares,
        sum(clusters - 1) AS df, exact_sum(apart ** 2) AS v_lone, count(*) FILTER (clusters = 1) AS lone
    FROM strata
    GROUP BY ALL
),
errors AS (
    SELECT overall.*, clusters, least(clusters, groups) AS m, coalesce(m / nullif(m - 1, 0), 0) AS widened,
        sqrt(greatest(inside + 2 * sqrt(widened) * mixed + widened * apart, 0)) / groups AS error,
        least(lone, m - 1) AS lone_df, widened * v_lone AS v_apart,
        (v + v_apart) ** 2 / nullif(v_squares + v_apart ** 2 / (lone_df + 2), 0) - 2 AS welch,
        least(clusters - 1, pools.df + lone_df, if(welch < 1, 1, welch)) AS df
    FROM overall LEFT JOIN squares USING (site, head, metric) LEFT JOIN pools USING (site, head, metric)
)
SELECT $job, site, head, metric, grp, mean, estimated(sqrt(variance), clusters, lowest, highest) AS se, n, n_undefined,
    (mean IS NOT NULL)::INTEGER, coalesce(clusters, 0), if(se IS NULL, NULL, clusters - 1)
FROM groups
    LEFT JOIN strata USING (site, head, metric, g)
    JOIN (SELECT DISTINCT g, grp FROM labels WHERE grp <> '') USING (g)
UNION ALL
SELECT $job, site, head, metric, '', mean, estimated(error, clusters, lowest, highest) AS se, n, n_undefined,
    groups, coalesce(clusters, 0), if(se IS NULL, NULL, df)
FROM errors
ORDER BY ALL
