-- What a text before the image changes in the image values, layer by layer, against filler of the same length
--
-- $task: only this task
-- $model: only this model (by name)
-- $dataset: only this dataset (NAME-SPLIT)
-- $metric: this metric; else the task's first
-- $part: this part; else value
--
-- Jobs: newest, without intervention, on the model's own grid: those of `vkvdb prefix`, whose texts are of one number of
-- tokens (`tokens=N:`), and the one without any text. Each is held against the filler of its length that was scored alike;
-- of several fillers alike, that of most samples. A row is a condition and a layer; without a layer it is the mean over
-- all layers. A layer is read at one head in both conditions: the one that is best under filler on the other half of the
-- clusters (one split, by a hash of their names). `delta` is the condition minus filler, over the samples that both have,
-- mean over groups of the weighted mean inside a group; `low` and `high` its 95 % interval, paired, by cluster.
WITH scored AS (
    SELECT
        *, parameters::VARCHAR AS set_of_parameters,
        try_cast(regexp_extract(prefix, '^tokens=(\d+):', 1) AS INTEGER) AS tokens,
        regexp_replace(prefix, '^tokens=\d+:', '') AS words
    FROM newest
    WHERE kind = 'score' AND json_array_length(interventions) = 0 AND square IS NULL AND view = 'base'
        AND ($task IS NULL OR task = $task)
        AND ($model IS NULL OR model_name = $model)
        AND ($dataset IS NULL OR dataset_name = $dataset)
),
fillers AS (
    SELECT * FROM scored
    WHERE tokens IS NOT NULL AND words = ''
    QUALIFY row_number() OVER (
        PARTITION BY model, dataset, task, set_of_parameters, tokens, dtype, quantisation, attention, block
        ORDER BY limited IS NOT NULL, layers IS NOT NULL, limited DESC, json_array_length(parts) DESC, finished DESC
    ) = 1
),
pairs AS (
    SELECT
        fillers.job AS filler, others.job, others.id, others.words, others.n AS n_other,
        CASE
            WHEN others.prefix = '' THEN 'none'
            WHEN others.words LIKE '%{category}%' THEN 'right class'
            WHEN others.words LIKE '%{wrong}%' THEN 'wrong class'
            WHEN others.words = '{random}' THEN 'random words'
            ELSE 'generic'
        END AS condition
    FROM fillers JOIN scored AS others
        ON others.model = fillers.model AND others.dataset = fillers.dataset AND others.task = fillers.task
        AND others.set_of_parameters = fillers.set_of_parameters
        AND others.attention = fillers.attention AND others.block = fillers.block
        AND (others.dtype, others.quantisation) IS NOT DISTINCT FROM (fillers.dtype, fillers.quantisation)
    WHERE others.prefix = '' OR (others.tokens = fillers.tokens AND others.words <> '')
    QUALIFY row_number() OVER (
        PARTITION BY fillers.job, others.prefix
        ORDER BY others.limited IS DISTINCT FROM fillers.limited, others.seed <> fillers.seed,
            others.limited IS NOT NULL, others.layers IS NOT NULL, others.finished DESC
    ) = 1
),
heads AS MATERIALIZED ( -- a head by itself; all heads concatenated only where there are none
    SELECT fillers.job AS filler, fillers.dataset, sites.site, sites.layer, sites.part, summaries.head, summaries.metric
    FROM fillers JOIN summaries USING (job) JOIN sites USING (site)
    WHERE grp = '' AND sites.stage = 'decoder' AND sites.part = coalesce($part, 'value')
        AND summaries.metric = coalesce($metric, notes->>'$.metrics[0]', summaries.metric)
    QUALIFY summaries.head >= 0 OR max(summaries.head) OVER (PARTITION BY job, sites.site) = -1
),
folds AS MATERIALIZED (
    SELECT
        dataset, sample, grp, cluster,
        dense_rank() OVER (PARTITION BY dataset ORDER BY md5(cluster), cluster) % 2 AS fold
    FROM samples
    WHERE dataset IN (SELECT dataset FROM fillers)
),
base AS MATERIALIZED (
    SELECT filler, heads.metric, part, layer, heads.site, heads.head, sample, grp, cluster, fold,
        scores.value::DOUBLE AS value, scores.weight::DOUBLE AS weight
    FROM scores
        JOIN heads ON heads.filler = scores.job AND heads.site = scores.site AND heads.head = scores.head
            AND heads.metric = scores.metric
        JOIN folds USING (dataset, sample)
    WHERE scores.job IN (SELECT job FROM fillers) AND isfinite(scores.value) AND scores.weight > 0
),
best AS (
    SELECT filler, site, 1 - made_on AS fold, head
    FROM (
        SELECT filler, site, head, fold AS made_on, grp, sum(weight * value) / sum(weight) AS mean
        FROM base GROUP BY ALL
    ) AS means
    GROUP BY filler, site, made_on, head
    QUALIFY row_number() OVER (PARTITION BY filler, site, made_on ORDER BY round(avg(mean), 12) DESC, head) = 1
),
chosen AS MATERIALIZED (
    SELECT base.* FROM base JOIN best USING (filler, site, fold, head)
),
paired AS MATERIALIZED (
    SELECT pairs.filler, pairs.job, chosen.metric, part, layer, grp, cluster,
        chosen.value AS before, chosen.weight AS before_weight,
        scores.value::DOUBLE AS after, scores.weight::DOUBLE AS after_weight
    FROM scores
        JOIN pairs ON pairs.job = scores.job
        JOIN chosen ON chosen.filler = pairs.filler AND chosen.site = scores.site AND chosen.head = scores.head
            AND chosen.sample = scores.sample AND chosen.metric = scores.metric
    WHERE scores.job IN (SELECT job FROM pairs) AND isfinite(scores.value) AND scores.weight > 0
),
groups AS (
    SELECT filler, job, metric, part, layer, grp, count(*) AS n, count(DISTINCT cluster) AS k,
        sum(before_weight) AS before_weight, sum(before_weight * before) / sum(before_weight) AS before,
        sum(after_weight) AS after_weight, sum(after_weight * after) / sum(after_weight) AS after,
        count(*) OVER (PARTITION BY filler, job, metric, part, layer) AS n_groups
    FROM paired GROUP BY filler, job, metric, part, layer, grp
),
layers_of AS (
    SELECT filler, job, metric, part, layer, avg(before) AS before, avg(after) AS after, sum(n) AS n
    FROM groups GROUP BY ALL
),
parts AS ( -- a cluster's part of the difference's error; of a group of one cluster, how far it lies from the mean
    SELECT filler, job, metric, part, layer, cluster, sum(if(
        k > 1,
        paired.after_weight * (paired.after - groups.after) / groups.after_weight
        - paired.before_weight * (paired.before - groups.before) / groups.before_weight,
        paired.before_weight / groups.before_weight
        * (groups.after - groups.before - layers_of.after + layers_of.before)
    )) / any_value(n_groups) AS e
    FROM paired JOIN groups USING (filler, job, metric, part, layer, grp)
        JOIN layers_of USING (filler, job, metric, part, layer)
    GROUP BY filler, job, metric, part, layer, cluster
),
means AS (
    SELECT filler, job, metric, part, layer, before, after, n FROM layers_of
    UNION ALL BY NAME
    SELECT filler, job, metric, part, avg(before) AS before, avg(after) AS after, max(n) AS n FROM layers_of GROUP BY ALL
),
errors AS (
    SELECT filler, job, metric, part, layer, count(*) AS n_clusters, sum(e * e) AS squares FROM parts GROUP BY ALL
    UNION ALL BY NAME
    SELECT filler, job, metric, part, count(*) AS n_clusters, sum(e * e) AS squares
    FROM (
        SELECT filler, job, metric, part, cluster, sum(e) / max(n_layers) AS e
        FROM parts JOIN (
            SELECT filler, job, metric, part, count(*) AS n_layers FROM layers_of GROUP BY ALL
        ) AS counts USING (filler, job, metric, part)
        GROUP BY filler, job, metric, part, cluster
    ) AS over_layers
    GROUP BY ALL
),
choices_made AS (
    SELECT filler, layer, part, string_agg(DISTINCT chosen.head::VARCHAR, ', ' ORDER BY chosen.head::VARCHAR) AS read_heads
    FROM chosen GROUP BY ALL
)
SELECT
    fillers.dataset_name, fillers.task, fillers.set_of_parameters, means.metric, fillers.model_name, fillers.id AS filler_id,
    fillers.tokens, means.part, condition, pairs.words, means.layer, read_heads, before, after, after - before AS delta,
    if(n_clusters > 1, sqrt(n_clusters / (n_clusters - 1) * squares), NULL) AS se,
    delta - t975(n_clusters - 1) * se AS low, delta + t975(n_clusters - 1) * se AS high,
    means.n::INTEGER AS n, fillers.n AS n_filler, n_other, fillers.of, n_clusters, fillers.limited, fillers.dtype, fillers.attention,
    fillers.quantisation, fillers.block, pairs.id
FROM means
    JOIN errors ON errors.filler = means.filler AND errors.job = means.job AND errors.metric = means.metric
        AND errors.part = means.part AND errors.layer IS NOT DISTINCT FROM means.layer
    JOIN pairs ON pairs.filler = means.filler AND pairs.job = means.job
    JOIN fillers ON fillers.job = means.filler
    LEFT JOIN choices_made ON choices_made.filler = means.filler AND choices_made.layer = means.layer
        AND choices_made.part = means.part
ORDER BY dataset_name, fillers.task, set_of_parameters, means.metric, model_name, filler_id, condition, pairs.words, means.layer NULLS FIRST
