-- Which heads' keys hardly depend on the image, what their values score, and what cutting them does to answers
--
-- $model: only this model (by name)
-- $dataset: calibrated on this dataset (NAME-SPLIT)
-- $task: values' scores of this task only
-- $unbiased: true for the group that is found with the key projection's bias subtracted; else as keys are
--
-- Jobs: newest; of several calibrate jobs of a model, that of most images, then the latest. Rows are of three kinds:
-- `head`, S of a (layer, head) of the model or of its random twin (`role`), in all images and in two halves; `score`, a
-- sample's scores of values, averaged over the heads below Otsu's cut on log S (`lower`), over all others (`other`) and
-- over the others in the same layers (`beside`); `answer`, a question answered as ever and under a knockout.
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
        AND len(list_filter(interventions::VARCHAR[], lambda text: NOT starts_with(text, 'knockout:text->image'))) = 0
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
ORDER BY ALL
