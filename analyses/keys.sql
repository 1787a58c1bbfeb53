-- Which heads' keys hardly depend on the image, what their values score, and what cutting them does to answers
--
-- $model: only this model (by name)
-- $dataset: calibrated on this dataset (NAME-SPLIT)
-- $task: values' scores of this task only
-- $unbiased: true for the group that is found with the key projection's bias subtracted; else as keys are
--
-- Jobs: newest; of several calibrate jobs of a model, that of most images, then the latest. Rows are of four kinds:
-- `head`, S of a (layer, head) of the model or of its random twin (`role`), in all images and in two halves; `score`, a
-- sample's scores of values, averaged over the heads below Otsu's cut on log S (`lower`), over all others (`other`) and
-- over the others in the same layers (`beside`); `answer`, a question answered as ever and under a knockout of
-- text -> image; `downstream`, what the image values of a layer score under a knockout of image -> image, less what they
-- score without: the mean over the layer's heads, paired by sample, with its 95 % interval by cluster; without a layer, the
-- mean over all layers after the first one that has a head below the cut.
WITH calibrated AS (
    SELECT *, regexp_replace(model_name, '@random(:\d+)?$', '') AS base_name
    FROM newest
    WHERE kind = 'calibrate' AND (variant = '' OR variant LIKE 'random:%')
        AND ($dataset IS NULL OR dataset_name = $dataset)
    QUALIFY (spec->>'$.calibrating_version')::INTEGER = max((spec->>'$.calibrating_version')::INTEGER) OVER ()
        AND row_number() OVER (
            PARTITION BY model
            ORDER BY json_array_length(interventions), prefix <> '', layers IS NOT NULL, n DESC, finished DESC
        ) = 1
),
subjects AS (
    SELECT * FROM calibrated WHERE variant = '' AND ($model IS NULL OR model_name = $model)
),
members AS (
    SELECT subjects.model AS subject, subjects.model_name AS subject_name, calibrated.*,
        if(calibrated.variant = '', 'model', 'random') AS role
    FROM subjects JOIN calibrated USING (base_name, family, dataset, selection)
),
heads AS (
    SELECT
        subject, subject_name, role, job, id, model_name, dataset_name, seed, dtype, attention, prefix, square, of,
        coalesce((notes->>'$.bias')::BOOLEAN, false) AS has_bias,
        part, layer, head, half, unbiased, key_variance.n, key_variance.value
    FROM members JOIN key_variance USING (job) JOIN sites USING (site)
    WHERE part = 'key_unrotated'
),
-- Otsu's cut: of all ways to part the sorted numbers, the one that leaves the two means farthest apart.
logs AS (
    SELECT subject, layer, head, ln(greatest(value, 1e-6)) AS s
    FROM heads
    WHERE role = 'model' AND half = 0 AND unbiased = coalesce($unbiased::BOOLEAN, false)
),
parted AS (
    SELECT subject, s, lead(s) OVER sorted AS next, row_number() OVER sorted AS n_below,
        count(*) OVER everything AS n_all, avg(s) OVER sorted AS below, sum(s) OVER everything AS total
    FROM logs
    WINDOW everything AS (PARTITION BY subject),
        sorted AS (PARTITION BY subject ORDER BY s, layer, head ROWS UNBOUNDED PRECEDING)
),
cuts AS (
    SELECT subject, (s + next) / 2 AS cut
    FROM parted
    WHERE next > s
    QUALIFY row_number() OVER (
        PARTITION BY subject
        ORDER BY n_below * (n_all - n_below) * ((total - n_below * below) / (n_all - n_below) - below) ** 2 DESC, s
    ) = 1
),
sides AS (
    SELECT subject, layer, head, s < cut AS is_lower, bool_or(s < cut) OVER (PARTITION BY subject, layer) AS is_beside
    FROM logs JOIN cuts USING (subject)
),
scored AS (
    SELECT *, model AS subject, notes->>'$.metrics[0]' AS main
    FROM newest
    WHERE kind = 'score' AND model IN (SELECT model FROM subjects)
        AND prefix = '' AND json_array_length(interventions) = 0 AND square IS NULL AND view = 'base'
        AND list_contains(parts::VARCHAR[], 'value')
        AND ($task IS NULL OR task = $task)
    QUALIFY row_number() OVER (
        PARTITION BY model, dataset, task, parameters::VARCHAR
        ORDER BY limited IS NOT NULL, layers IS NOT NULL, limited DESC, finished DESC
    ) = 1
),
averaged AS (
    SELECT
        subject, job, sample, metric,
        sum(value * weight) FILTER (is_lower) / sum(weight) FILTER (is_lower) AS lower,
        avg(weight) FILTER (is_lower) AS lower_weight,
        sum(value * weight) FILTER (NOT is_lower) / sum(weight) FILTER (NOT is_lower) AS other,
        avg(weight) FILTER (NOT is_lower) AS other_weight,
        sum(value * weight) FILTER (is_beside AND NOT is_lower) / sum(weight) FILTER (is_beside AND NOT is_lower) AS beside,
        avg(weight) FILTER (is_beside AND NOT is_lower) AS beside_weight
    FROM scored JOIN scores USING (job) JOIN sites USING (site) JOIN sides USING (subject, layer, head)
    WHERE stage = 'decoder' AND sites.part = 'value' AND NOT isnan(value)
        AND metric = coalesce(main, metric)
    GROUP BY ALL
),
-- Pairs of ask jobs that differ in their interventions alone, all of which cut text -> image.
asked AS (
    SELECT *, model AS subject, spec->>'$.tokens' AS tokens
    FROM newest
    WHERE kind = 'ask' AND model IN (SELECT model FROM subjects)
),
cut AS (
    SELECT * FROM asked
    WHERE json_array_length(interventions) > 0
        AND len(list_filter(
            interventions::VARCHAR[], lambda text: NOT regexp_matches(text, '^knockout:text->image(@|:|$)')
        )) = 0
),
pairs AS (
    SELECT whole.subject, whole.job AS whole, cut.job AS cut, cut.id, cut.dataset, cut.dataset_name,
        cut.interventions::VARCHAR AS condition
    FROM asked AS whole JOIN cut
        ON whole.model = cut.model AND whole.dataset = cut.dataset AND whole.selection = cut.selection
        AND whole.prefix = cut.prefix AND whole.view = cut.view AND whole.attention = cut.attention
        AND (whole.square, whole.dtype, whole.quantisation, whole.tokens, whole.limited)
            IS NOT DISTINCT FROM (cut.square, cut.dtype, cut.quantisation, cut.tokens, cut.limited)
    WHERE json_array_length(whole.interventions) = 0
    QUALIFY row_number() OVER (PARTITION BY cut.job ORDER BY whole.finished DESC) = 1
),
-- Pairs of score jobs that differ in their interventions alone, all of which cut image -> image.
read AS (
    SELECT *, model AS subject, parameters::VARCHAR AS set_of_parameters, notes->>'$.metrics[0]' AS main
    FROM newest
    WHERE kind = 'score' AND model IN (SELECT model FROM subjects) AND list_contains(parts::VARCHAR[], 'value')
        AND ($task IS NULL OR task = $task)
),
severed AS (
    SELECT * FROM read
    WHERE json_array_length(interventions) > 0
        AND len(list_filter(
            interventions::VARCHAR[], lambda text: NOT regexp_matches(text, '^knockout:image->image(@|:|$)')
        )) = 0
),
read_pairs AS (
    SELECT whole.subject, whole.job AS whole, severed.job AS cut, severed.main, severed.set_of_parameters,
        severed.interventions::VARCHAR AS condition
    FROM read AS whole JOIN severed
        ON whole.model = severed.model AND whole.dataset = severed.dataset AND whole.selection = severed.selection
        AND whole.task = severed.task AND whole.set_of_parameters = severed.set_of_parameters
        AND whole.prefix = severed.prefix AND whole.view = severed.view AND whole.attention = severed.attention
        AND (whole.square, whole.dtype, whole.quantisation, whole.limited)
            IS NOT DISTINCT FROM (severed.square, severed.dtype, severed.quantisation, severed.limited)
    WHERE json_array_length(whole.interventions) = 0
    QUALIFY row_number() OVER (PARTITION BY severed.job ORDER BY whole.finished DESC) = 1
),
layer_scores AS MATERIALIZED (
    SELECT scores.job, sites.layer, sample, metric, sum(value * weight) / sum(weight) AS v, avg(weight) AS w
    FROM scores JOIN sites USING (site)
    WHERE scores.job IN (SELECT whole FROM read_pairs UNION ALL SELECT cut FROM read_pairs)
        AND sites.stage = 'decoder' AND sites.part = 'value' AND head >= 0 AND isfinite(value) AND weight > 0
    GROUP BY ALL
),
changes AS MATERIALIZED (
    SELECT cut, severed.layer, severed.metric, samples.grp, samples.cluster, whole.v AS v1, whole.w AS w1,
        severed.v AS v2, severed.w AS w2
    FROM read_pairs
        JOIN layer_scores AS severed ON severed.job = cut AND severed.metric = coalesce(main, severed.metric)
        JOIN layer_scores AS whole ON whole.job = read_pairs.whole AND whole.layer = severed.layer
            AND whole.sample = severed.sample AND whole.metric = severed.metric
        JOIN newest ON newest.job = cut
        JOIN samples ON samples.dataset = newest.dataset AND samples.sample = severed.sample
),
change_groups AS (
    SELECT cut, layer, metric, grp, count(*) AS n, count(DISTINCT cluster) AS k, sum(w1) AS sw1, sum(w1 * v1) / sw1 AS m1,
        sum(w2) AS sw2, sum(w2 * v2) / sw2 AS m2
    FROM changes GROUP BY ALL
),
change_layers AS (
    SELECT cut, layer, metric, avg(m1) AS score_before, avg(m2) AS score_after, sum(n) AS n_samples, count(*) AS g
    FROM change_groups GROUP BY ALL
),
change_parts AS ( -- a cluster's part of the difference's error; of a group of one cluster, how far it lies from the mean
    SELECT cut, layer, metric, cluster, sum(if(
        k > 1, w2 * (v2 - m2) / sw2 - w1 * (v1 - m1) / sw1, w1 / sw1 * (m2 - m1 - score_after + score_before)
    )) / any_value(g) AS e
    FROM changes JOIN change_groups USING (cut, layer, metric, grp) JOIN change_layers USING (cut, layer, metric)
    GROUP BY cut, layer, metric, cluster
),
later AS ( -- the layers that the mean is over
    SELECT cut, layer, metric, count(*) OVER (PARTITION BY cut, metric) AS n_layers
    FROM change_layers
        JOIN read_pairs USING (cut)
        JOIN (SELECT subject, min(layer) AS first FROM sides WHERE is_lower GROUP BY subject) AS lowest USING (subject)
    WHERE layer > first
),
downstream AS (
    SELECT cut, layer, metric, any_value(score_before) AS score_before, any_value(score_after) AS score_after,
        any_value(n_samples) AS n_samples, count(*) AS n_clusters, sum(e * e) AS squares
    FROM change_parts JOIN change_layers USING (cut, layer, metric)
    GROUP BY cut, layer, metric
    UNION ALL
    SELECT cut, NULL, metric, score_before, score_after, n_samples, n_clusters, squares
    FROM (
        SELECT cut, metric, avg(score_before) AS score_before, avg(score_after) AS score_after,
            max(n_samples) AS n_samples
        FROM change_layers JOIN later USING (cut, layer, metric) GROUP BY ALL
    ) AS means JOIN (
        SELECT cut, metric, count(*) AS n_clusters, sum(e * e) AS squares
        FROM (
            SELECT cut, metric, cluster, sum(e) / any_value(n_layers) AS e
            FROM change_parts JOIN later USING (cut, layer, metric) GROUP BY cut, metric, cluster
        ) AS over_layers
        GROUP BY ALL
    ) AS errors USING (cut, metric)
),
bounded AS (
    SELECT *, score_after - score_before AS change,
        if(n_clusters > 1, t975(n_clusters - 1) * sqrt(n_clusters / (n_clusters - 1) * squares), NULL) AS wide
    FROM downstream
)
SELECT 'head' AS kind, *, coalesce($unbiased::BOOLEAN, false) AS group_unbiased, NULL::INTEGER AS sample, NULL AS task, NULL AS metric, NULL AS grp, NULL AS cluster,
    NULL::DOUBLE AS lower, NULL::DOUBLE AS lower_weight, NULL::DOUBLE AS other, NULL::DOUBLE AS other_weight,
    NULL::DOUBLE AS beside, NULL::DOUBLE AS beside_weight, NULL AS condition, NULL::BOOLEAN AS right_before,
    NULL::BOOLEAN AS right_after
FROM heads
UNION ALL BY NAME
SELECT 'score' AS kind, subject, job, scored.id, scored.dataset_name, scored.task, metric, sample, samples.grp,
    samples.cluster, lower, lower_weight, other, other_weight, beside, beside_weight
FROM averaged JOIN scored USING (subject, job) JOIN samples USING (dataset, sample)
WHERE lower IS NOT NULL AND other IS NOT NULL
UNION ALL BY NAME
SELECT 'answer' AS kind, subject, cut AS job, pairs.id, dataset_name, condition, before.sample, samples.grp, samples.cluster,
    coalesce(before.correct, false) AS right_before, coalesce(after.correct, false) AS right_after
FROM pairs JOIN answers AS before ON before.job = whole
    JOIN answers AS after ON after.job = cut AND after.sample = before.sample AND after.variant = before.variant
    JOIN samples ON samples.dataset = pairs.dataset AND samples.sample = before.sample
WHERE before.variant = 0
UNION ALL BY NAME
SELECT 'downstream' AS kind, read_pairs.subject, cut AS job, newest.id, newest.dataset_name, newest.task,
    read_pairs.set_of_parameters, metric, layer, condition, score_before, score_after, change AS value,
    change - wide AS low, change + wide AS high, n_samples::INTEGER AS n, newest.of, n_clusters
FROM bounded JOIN read_pairs USING (cut) JOIN newest ON newest.job = cut
ORDER BY ALL
