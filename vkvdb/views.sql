-- The views and macros. Each statement replaces what the catalog has under that name; one that is given up is dropped here.

-- Student's t at 97.5 %: few clusters, wide intervals. Cornish and Fisher's expansion around the normal's 1.96, with a last
-- term that makes it right for df = 1; from there on it errs by 0.6 % at most. The same is in statistics.py.
CREATE OR REPLACE MACRO t975(df) AS
    1.959964 + 2.372271 / df + 2.822501 / df ** 2 + 2.555852 / df ** 3 + 1.589536 / df ** 4 + 1.406081 / df ** 5;

-- An error that scores between lowest and highest have, or NULL where so many clusters can't tell one (summaries.sql).
CREATE OR REPLACE MACRO estimated(error, clusters, lowest, highest) AS
    if(coalesce(clusters, 0) < 2 OR (highest > lowest AND error <= 1e-9 * (highest - lowest)), NULL, error);

-- The 95 % interval of a share, k of n (Wilson's); NULL where n is 0.
CREATE OR REPLACE MACRO wilson_low(k, n) AS
    (k + 1.920729 - 1.959964 * sqrt(k * (n - k) / nullif(n, 0) + 0.960365)) / (nullif(n, 0) + 3.841459);
CREATE OR REPLACE MACRO wilson_high(k, n) AS
    (k + 1.920729 + 1.959964 * sqrt(k * (n - k) / nullif(n, 0) + 0.960365)) / (nullif(n, 0) + 3.841459);

-- A sum that is the same in whatever order DuckDB's threads add: in fixed point, with 60 binary digits after the point.
CREATE OR REPLACE MACRO exact_sum(x) AS sum((x * 2.0 ** 60)::HUGEINT) / 2.0 ** 60;

-- Every number that a site can have, spelled out (`Site.number` in vkvdb/types.py).
CREATE OR REPLACE VIEW sites AS
SELECT number::SMALLINT AS site,
    ['encoder', 'projector', 'decoder', 'floor', 'ceiling'][1 + number // (512 * 8)] AS stage,
    (number // 8 % 512)::SMALLINT AS layer,
    ['key', 'key_unrotated', 'value', 'hidden', 'position', 'truth'][1 + number % 8] AS part
FROM range(5 * 512 * 8) AS numbers(number) WHERE number % 8 < 6;

CREATE OR REPLACE VIEW newest AS
SELECT *
FROM jobs
QUALIFY edition = max(edition) OVER (PARTITION BY id)
    AND task_version IS NOT DISTINCT FROM max(task_version) OVER (PARTITION BY task)
    AND family_version = max(family_version) OVER (PARTITION BY family);

CREATE OR REPLACE VIEW results_by_group AS
SELECT
    job, jobs.id, jobs.edition,
    jobs.kind, jobs.model_name, jobs.family, jobs.variant, jobs.dataset_name, jobs.task,
    sites.stage, sites.layer, sites.part, summaries.head, summaries.metric, summaries.grp,
    summaries.value, summaries.se,
    value - se * t975(summaries.df) AS low,
    value + se * t975(summaries.df) AS high,
    summaries.n, summaries.n_undefined,
    if(summaries.n = 0, jobs.notes->'undefined'->>(stage || '.' || sites.layer || '.' || part), NULL) AS why_undefined,
    summaries.df, jobs.of, summaries.n_groups, summaries.n_clusters,
    summaries.site, jobs.model, jobs.checkpoint, jobs.family_version, jobs.dataset, jobs.task_version, jobs.parameters,
    jobs.prefix, jobs.square, jobs.view, jobs.dtype, jobs.quantisation, jobs.attention, jobs.block, jobs.interventions,
    jobs.selection, jobs.layers, jobs.parts, jobs.seed, jobs.limited, jobs.capture, jobs.finished, jobs.notes
FROM summaries JOIN newest AS jobs USING (job) JOIN sites USING (site);

CREATE OR REPLACE VIEW results AS
SELECT * FROM results_by_group WHERE grp = '';

-- Ratios of sums over all samples, whatever their group, as several official evaluators report them: weights are the
-- denominators, so sum(w v) / sum(w) is sum of I over sum of U. `fb_iou` is the mean of two such ratios, `iou` and
-- `iou_background`: FB-IoU as hsnet counts it over the episodes of a fold (a dataset pascal-fold0 to pascal-fold3). `miou`
-- is the mean of those of classes, metrics `iou of CLASS` (task naming), where false finds in images of other classes
-- count as well. Errors are linearised by cluster, as in summaries.sql with all samples in one group.
CREATE OR REPLACE VIEW pooled AS
WITH by_cluster AS (
    SELECT job, site, head, metric, cluster,
        exact_sum(if(isfinite(value), weight::DOUBLE, 0)) AS w,
        exact_sum(if(isfinite(value), weight::DOUBLE * value, 0)) AS wv,
        count(*) FILTER (isfinite(value)) AS n, count(*) FILTER (NOT isfinite(value)) AS n_undefined,
        min(value) FILTER (isfinite(value) AND weight > 0) AS lowest,
        max(value) FILTER (isfinite(value) AND weight > 0) AS highest
    FROM scores JOIN newest USING (job) JOIN samples USING (dataset, sample)
    GROUP BY ALL
),
ratios AS (
    SELECT job, site, head, metric, exact_sum(wv) / nullif(exact_sum(w), 0) AS value, exact_sum(w) AS w,
        sum(n) AS n, sum(n_undefined) AS n_undefined, min(lowest) AS lowest, max(highest) AS highest
    FROM by_cluster
    GROUP BY ALL
),
means AS ( -- which ratios stand in which mean; a ratio by itself stands in one of its own
    SELECT job, site, head, metric, metric AS mean, 1 AS of FROM ratios
    UNION ALL
    SELECT job, site, head, metric, if(metric LIKE 'iou of %', 'miou', 'fb_iou') AS mean,
        count(*) OVER (PARTITION BY job, site, head, mean) AS of
    FROM ratios
    WHERE value IS NOT NULL AND (metric LIKE 'iou of %' OR metric IN ('iou', 'iou_background'))
    QUALIFY mean = 'miou' OR of = 2
),
parts AS (
    SELECT job, site, head, mean, cluster,
        exact_sum((by_cluster.wv - by_cluster.w * ratios.value) / (ratios.w * of)) AS e
    FROM by_cluster JOIN ratios USING (job, site, head, metric) JOIN means USING (job, site, head, metric)
    WHERE by_cluster.w > 0
    GROUP BY ALL
),
errors AS (
    SELECT job, site, head, mean, count(*) AS clusters, sqrt(clusters / (clusters - 1) * exact_sum(e * e)) AS error
    FROM parts
    GROUP BY ALL
),
totals AS (
    SELECT job, site, head, mean, exact_sum(value) / count(value) AS value, max(n) AS n, max(n_undefined) AS n_undefined,
        min(lowest) AS lowest, max(highest) AS highest
    FROM ratios JOIN means USING (job, site, head, metric)
    GROUP BY ALL
)
SELECT
    job, jobs.id, jobs.edition, jobs.kind, jobs.model_name, jobs.family, jobs.variant, jobs.dataset_name, jobs.task,
    sites.stage, sites.layer, sites.part, head, mean AS metric,
    totals.value, estimated(error, clusters, lowest, highest) AS se,
    totals.value - se * t975(clusters - 1) AS low, totals.value + se * t975(clusters - 1) AS high,
    totals.n, totals.n_undefined, jobs.of, coalesce(clusters, 0) AS n_clusters,
    site, jobs.model, jobs.dataset, jobs.task_version, jobs.parameters, jobs.prefix, jobs.square, jobs.view, jobs.dtype,
    jobs.attention, jobs.interventions, jobs.selection, jobs.layers, jobs.seed, jobs.limited, jobs.finished
FROM totals LEFT JOIN errors USING (job, site, head, mean) JOIN newest AS jobs USING (job) JOIN sites USING (site);

CREATE OR REPLACE VIEW best_layer AS
WITH candidates AS (
    SELECT * FROM results
    WHERE stage IN ('encoder', 'projector', 'decoder') AND value IS NOT NULL
    -- A head by itself; all heads concatenated only where there are no heads.
    QUALIFY head >= 0 OR max(head) OVER (PARTITION BY job, site, metric) = -1
)
SELECT *, 'in-sample' AS choice
FROM candidates
QUALIFY row_number() OVER (PARTITION BY job, stage, part, metric ORDER BY value DESC, layer, head) = 1;

CREATE OR REPLACE VIEW chosen AS
WITH splits AS ( -- no error unless both halves have one; degrees of freedom are Welch's, as in summaries.sql
    SELECT job, stage, part, metric, split, avg(value) AS value, avg(chosen) AS in_half, sum(n_clusters) AS n_clusters,
        if(count(se) = 2, sum(se * se) / 4, NULL) AS variance,
        min(value) AS lowest, max(value) AS highest,
        sum(se * se) ** 2 / nullif(sum(se ** 4 / (df + 2)), 0) - 2 AS welch,
        if(variance IS NULL, NULL, least(sum(df), if(welch < 1, 1, welch))) AS df
    FROM choices GROUP BY ALL
),
wins AS (
    SELECT job, stage, part, metric, site, head, count(*) AS wins
    FROM choices GROUP BY job, stage, part, metric, site, head
    QUALIFY row_number() OVER (PARTITION BY job, stage, part, metric ORDER BY wins DESC, site, head) = 1
),
means AS (
    SELECT job, stage, part, metric, avg(value ORDER BY split) AS value, avg(in_half ORDER BY split) AS in_half,
        stddev_samp(value ORDER BY split) AS spread, avg(df ORDER BY split) AS df,
        count(*) AS splits, max(n_clusters) AS n_clusters,
        estimated(
            sqrt(avg(variance ORDER BY split) + stddev_samp(value ORDER BY split) ** 2 / count(*)),
            max(n_clusters), min(lowest), max(highest)
        ) AS error
    FROM splits GROUP BY ALL
)
SELECT
    job, jobs.id, jobs.edition, jobs.kind,
    jobs.model_name, jobs.family, jobs.variant, jobs.dataset_name, jobs.task,
    means.stage, means.part, means.metric,
    means.value, means.error AS se,
    means.value - means.error * t975(means.df) AS low,
    means.value + means.error * t975(means.df) AS high,
    means.spread, means.in_half, sites.layer, wins.head, wins.wins, 2 * splits AS choices,
    summaries.value AS in_sample, summaries.n, summaries.n_undefined, jobs.of, means.n_clusters, means.df,
    wins.site, jobs.model, jobs.dataset, jobs.task_version, jobs.parameters, jobs.prefix, jobs.square, jobs.view,
    jobs.dtype, jobs.attention, jobs.interventions, jobs.selection, jobs.layers, jobs.seed, jobs.limited, jobs.finished
FROM means
    JOIN wins USING (job, stage, part, metric)
    JOIN newest AS jobs USING (job)
    JOIN sites USING (site)
    JOIN summaries ON summaries.job = means.job AND summaries.site = wins.site AND summaries.head = wins.head
        AND summaries.metric = means.metric AND summaries.grp = '';

-- Accuracy as if a group's questions were independent of one another; the interval is Wilson's.
CREATE OR REPLACE VIEW answers_by_group AS
WITH labelled AS (
    SELECT
        answers.job, samples.grp, answers.variant AS swap, answers.correct, answers.answer, answers.likeliest,
        samples.body->>'$.answer' AS words,
        coalesce(answers.choice = straight.choice, false) AS agrees, answers.likeliest = straight.likeliest AS likeliest_agrees
    FROM answers
        JOIN jobs USING (job)
        JOIN samples ON samples.dataset = jobs.dataset AND samples.sample = answers.sample
        JOIN answers AS straight
            ON straight.job = answers.job AND straight.sample = answers.sample AND straight.variant = 0
),
constants AS (
    SELECT job, grp, swap, answer::VARCHAR AS given, count(*) AS times FROM labelled WHERE answer IS NOT NULL GROUP BY ALL
    UNION ALL
    SELECT job, grp, swap, words AS given, count(*) AS times FROM labelled GROUP BY ALL
),
priors AS (SELECT job, grp, swap, max(times) AS most FROM constants GROUP BY ALL),
counted AS (
    SELECT
        job, grp, swap, count(*) AS n, count(*) - count(correct) AS n_unread,
        avg(coalesce(correct, false)::INTEGER) AS accuracy,
        avg((likeliest = answer)::INTEGER) AS by_likelihood,
        avg(agrees::INTEGER) FILTER (swap > 0) AS consistency,
        avg(likeliest_agrees::INTEGER) FILTER (swap > 0) AS consistency_by_likelihood
    FROM labelled GROUP BY job, grp, swap
),
widths AS (
    SELECT *, 1.959964 * sqrt(accuracy * (1 - accuracy) / n + 0.9604 / n ** 2) AS wide FROM counted
)
SELECT
    job, jobs.id, jobs.edition,
    jobs.model_name, jobs.family, jobs.variant, jobs.dataset_name, jobs.task, widths.grp, widths.swap,
    widths.n, widths.n_unread, widths.accuracy,
    (accuracy + 1.9208 / widths.n - wide) / (1 + 3.8415 / widths.n) AS low,
    (accuracy + 1.9208 / widths.n + wide) / (1 + 3.8415 / widths.n) AS high,
    widths.by_likelihood, priors.most / widths.n AS prior, widths.consistency, widths.consistency_by_likelihood,
    jobs.model, jobs.checkpoint, jobs.family_version, jobs.dataset, jobs.prefix, jobs.square, jobs.dtype,
    jobs.quantisation, jobs.attention, jobs.block, jobs.interventions, jobs.seed, jobs.limited, jobs.finished
FROM widths JOIN priors USING (job, grp, swap) JOIN newest AS jobs USING (job)
-- Of answers that were read by other rules, none.
QUALIFY (jobs.spec->>'$.asking_version')::INTEGER = max((jobs.spec->>'$.asking_version')::INTEGER) OVER ();

COMMENT ON VIEW answers_by_group IS 'One row a newest ask job, group and order (swap 0 as in the dataset, 1 options reversed, 2 images reversed): accuracy of what was written, unread answers wrong, with its 95 % interval and n; accuracy of the likeliest letter; prior: that of the best constant answer; how often answers agree with swap 0';
COMMENT ON VIEW chosen IS 'One row a newest job, stage, part and metric: the value of the best layer and head, chosen on one half of the clusters and reported on the other, mean over 20 splits; the layer and head that won most often, and its value on all samples (in-sample)';
-- Questions read from the tokens (task choices), each by the layer and head that read most of the other fold right.
CREATE OR REPLACE VIEW readings AS
WITH of_task AS (
    SELECT * FROM newest WHERE task = 'choices'
),
folds AS ( -- the clusters of a group, every second one in the order of a hash: equal for all jobs on a dataset
    SELECT dataset, sample, grp,
        dense_rank() OVER (PARTITION BY dataset, grp ORDER BY md5(cluster), cluster) % 2 AS fold
    FROM samples WHERE kind = 'question' AND dataset IN (SELECT dataset FROM of_task)
),
curves AS ( -- a head by itself; all heads concatenated only where there are none
    SELECT summaries.job, dataset, stage, part, layer, site, head
    FROM summaries JOIN of_task USING (job) JOIN sites USING (site)
    WHERE metric = 'correct' AND grp = ''
    QUALIFY head >= 0 OR max(head) OVER (PARTITION BY summaries.job, site) = -1
),
points AS MATERIALIZED (
    SELECT scores.job, dataset, sample, grp, fold, stage, part, layer, site, head, scores.value AS correct
    FROM scores JOIN curves USING (job, site, head) JOIN folds USING (dataset, sample)
    WHERE metric = 'correct' AND isfinite(scores.value) AND scores.job IN (SELECT job FROM of_task)
),
best AS (
    SELECT job, grp, stage, part, fold, site, head, avg(correct) AS share
    FROM points
    GROUP BY job, grp, stage, part, layer, fold, site, head
    QUALIFY row_number() OVER (PARTITION BY job, grp, stage, part, fold ORDER BY share DESC, layer, head) = 1
)
SELECT
    points.job, of_task.id, of_task.kind, of_task.model, of_task.model_name, of_task.checkpoint, of_task.family,
    of_task.variant, of_task.prefix, of_task.interventions, of_task.square, of_task.limited,
    points.dataset, sample, points.grp, points.fold, points.stage, points.part, points.layer, points.site, points.head,
    best.share AS share_when_chosen, points.correct = 1 AS correct
FROM points
    JOIN best ON best.job = points.job AND best.grp = points.grp AND best.stage = points.stage
        AND best.part = points.part AND best.site = points.site AND best.head = points.head
        AND best.fold = 1 - points.fold
    JOIN of_task ON of_task.job = points.job;

-- A question that the model was asked, beside every reading of it. `place` says of what: image values of the very pass that
-- answered (value), of each image alone (value, isolated), its tower and projector, its twins, raw pixels, an encoder.
-- The layer and head are those that read most of the other fold right (`share_when_chosen`). An answer in words that can't
-- be read counts as wrong. Twins and isolated values are of the same prefix and square as the answer.
CREATE OR REPLACE VIEW surfacing AS
WITH asked AS (
    SELECT
        answers.job AS asked_job, newest.id AS asked_id, newest.model AS asked_model, newest.model_name AS asked_name,
        newest.checkpoint, newest.family,
        newest.dataset, newest.dataset_name, newest.prefix, newest.interventions, newest.square,
        sample, prompt, prompt_id, raw, likelihoods, choice, likeliest, answer,
        unnest([
            {measure: 'likelihood', is_right: likeliest = answer}, {measure: 'text', is_right: choice = answer}
        ], recursive := true)
    FROM answers JOIN newest USING (job)
    WHERE answers.variant = 0 AND answer IS NOT NULL
),
paired AS (
    SELECT
        asked.*, readings.job AS read_job, readings.id AS read_id, readings.model_name AS read_name, readings.grp,
        readings.stage, readings.part, readings.layer, readings.site, readings.head, readings.fold,
        readings.share_when_chosen,
        coalesce(asked.is_right, false) AS answer_right,
        readings.correct AS values_right,
        readings.prefix = asked.prefix AND readings.square IS NOT DISTINCT FROM asked.square AS is_seen_alike,
        CASE
            WHEN readings.job = asked_job THEN if(stage = 'decoder', part, if(stage = 'encoder', 'tower', stage))
            WHEN readings.kind = 'ask' THEN NULL
            WHEN readings.family = 'pixels' THEN 'raw pixels'
            WHEN readings.family = 'colours' THEN 'colour statistics'
            WHEN readings.model = asked_model AND is_seen_alike
                THEN if(stage = 'decoder', part, if(stage = 'encoder', 'tower', stage)) || ', isolated'
            WHEN readings.family = asked.family AND is_seen_alike AND stage = 'decoder'
                AND readings.variant LIKE 'random%'
                -- A twin with random weights reads none of the checkpoint's, so it is told by its name.
                AND (readings.checkpoint = asked.checkpoint
                    OR readings.model_name = asked.asked_name || '@' || readings.variant)
                THEN part || ', ' || if(readings.variant LIKE 'random-decoder%', 'random decoder', 'random weights')
            WHEN readings.variant = '' AND stage = 'encoder'
                AND readings.model NOT IN (SELECT model FROM layers WHERE stage = 'decoder')
                THEN 'encoder ' || readings.model_name
        END AS place
    FROM asked JOIN readings USING (dataset, sample)
    WHERE readings.job = asked_job OR json_array_length(readings.interventions) = 0
)
SELECT
    asked_job, asked_id, asked_name AS model_name, dataset_name, paired.grp, measure, place, paired.sample,
    samples.id AS sample_id,
    values_right, answer_right, values_right AND NOT answer_right AS surfaces,
    read_job, read_id, read_name, stage, part, layer, site, head, fold, share_when_chosen,
    samples.body->>'$.text' AS question, samples.body->'$.options' AS options, answer,
    if(measure = 'text', choice, likeliest) AS given, raw, prompt, prompt_id, paired.dataset, prefix, interventions
FROM paired JOIN samples ON samples.dataset = paired.dataset AND samples.sample = paired.sample
WHERE place IS NOT NULL;

COMMENT ON VIEW readings IS 'One row a question, reading job, stage and part: whether the tokens pick the right option, at the layer and head that are best on the other fold of that group';
COMMENT ON VIEW surfacing IS 'One row a question that a model was asked, a measure of its answer (likelihood or text) and a reading of it: right in the tokens, right in the answer, and surfaces (right in the tokens, wrong in the answer)';
COMMENT ON VIEW sites IS 'One row a number that a site can have: its stage, layer and part';
COMMENT ON VIEW newest IS 'The jobs that the other views show: newest edition, newest version of task and family';
COMMENT ON VIEW results_by_group IS 'One row a newest job, site, head, metric and group (empty for the mean over groups): value, error, 95 % interval, n, why nothing is defined, and every field of the specification';
COMMENT ON VIEW pooled IS 'One row a newest job, site, head and metric, pooled over all samples whatever their group: sum of intersections over sum of unions (cIoU), and the means fb_iou (foreground and background, hsnet) and miou (metrics iou of CLASS); with 95 % interval and n';
COMMENT ON VIEW results IS 'One row a newest job, site, head and metric: results_by_group where the group is empty';
COMMENT ON VIEW best_layer IS 'One row a newest job, stage, part and metric: the layer and head with the highest value, chosen on the very samples that it is reported for';
