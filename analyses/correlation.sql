-- Whether models that segment better by their image values, or gain more over the projector, answer better
--
-- $task: x is the value on this task; else foreground, or the first segmentation task that was scored
-- $dataset: on this dataset (NAME-SPLIT); else the one with most models that have a point
-- $metric: by this metric; else the task's first
-- $part: at this part; else value
-- $questions: y is the accuracy on this dataset's questions (NAME-SPLIT); else those that most models were asked
-- $measure: text (what was written; the default) or likelihood (the likeliest letter)
-- $benchmark: y is this imported benchmark instead
-- $benchmark_metric: by this metric of it; else the one that most models have
--
-- A row of level `model` is a language model, with its random twins and checkpoints of its training (not with blank images:
-- that is no other model). `x` is the value of the best layer and head, chosen on one half of the clusters and reported on
-- the other (view chosen); `gain` that of the image values less the projector's, paired by sample as in encoder.sql; `y` the
-- mean over groups of questions as in the view answers_by_group, with an error by cluster (where none differ, Wilson's).
-- All models are scored on the same samples and asked the same questions, of all that there are those with most models; no
-- prefix or intervention, native grid. With fewer than 5 models that have x and y there are rows of level `image`: x is the mean
-- score of the samples on an image, at the layer and head that were chosen most often, y the share of the questions about
-- it that are answered right.
WITH decoders AS (
    SELECT * FROM newest
    WHERE model IN (SELECT model FROM layers WHERE stage = 'decoder') AND variant NOT LIKE 'blank%'
        AND prefix = '' AND json_array_length(interventions) = 0 AND square IS NULL AND view = 'base'
),
-- What was asked, by the newest rules of reading answers. Questions without options have no likelihood.
asked AS (
    SELECT * FROM decoders
    WHERE kind = 'ask' AND ($questions IS NULL OR dataset_name = $questions)
    QUALIFY (spec->>'$.asking_version')::INTEGER = max((spec->>'$.asking_version')::INTEGER) OVER ()
        AND row_number() OVER (
            PARTITION BY model, dataset, selection
            ORDER BY (spec->>'$.asking_version')::INTEGER DESC, limited DESC NULLS FIRST, dtype NULLS FIRST, finished DESC
        ) = 1
),
graded AS MATERIALIZED (
    SELECT answers.job, samples.sample, samples.grp, samples.cluster, samples.images,
        if($measure = 'likelihood', likeliest = answer, coalesce(correct, false))::INTEGER AS is_right
    FROM answers JOIN asked USING (job) JOIN samples ON samples.dataset = asked.dataset AND samples.sample = answers.sample
    WHERE answers.variant = 0 AND answers.job IN (SELECT job FROM asked)
        AND coalesce($measure, 'text') IN ('text', 'likelihood') AND (coalesce($measure, 'text') = 'text' OR answer IS NOT NULL)
),
kinds AS (
    SELECT job, grp, avg(is_right) AS mean, count(*) AS n, count(*) OVER (PARTITION BY job) AS kinds
    FROM graded GROUP BY job, grp
),
question_parts AS (
    SELECT job, cluster, sum((is_right - mean) / (kinds.n * kinds)) AS e FROM graded JOIN kinds USING (job, grp) GROUP BY ALL
),
accuracies AS (
    SELECT job, any_value(y) AS y, any_value(n) AS n_y, count(*) AS clusters,
        if(clusters > 1, sqrt(clusters / (clusters - 1) * sum(e * e)) * t975(clusters - 1), NULL) AS wide,
        -- All wrong, or all right, is not certain: Wilson's interval of a question a cluster.
        if(wide = 0, wilson_low(any_value(y) * clusters, clusters), any_value(y) - wide) AS y_low,
        if(wide = 0, wilson_high(any_value(y) * clusters, clusters), any_value(y) + wide) AS y_high
    FROM question_parts JOIN (SELECT job, avg(mean) AS y, sum(n)::INTEGER AS n FROM kinds GROUP BY job) AS overall USING (job)
    GROUP BY job
),
asked_set AS (
    SELECT dataset, selection FROM asked JOIN accuracies USING (job)
    GROUP BY ALL ORDER BY count(*) DESC, max(n_y) DESC, max(dataset_name) LIMIT 1
),
-- What was imported: the newest number of a model, told by its checkpoint, or by its very name.
imported AS (
    SELECT models.checkpoint, models.family, models.variant, metric, benchmark, value, n, benchmarks.created
    FROM benchmarks JOIN models ON if(benchmarks.model IS NULL, models.name = model_name, models.model = benchmarks.model)
    WHERE benchmark = $benchmark AND ($benchmark_metric IS NULL OR metric = $benchmark_metric)
    QUALIFY row_number() OVER (
        PARTITION BY checkpoint, models.family, models.variant, metric ORDER BY benchmarks.created DESC, source
    ) = 1
),
perception AS (
    SELECT asked.checkpoint, asked.family, asked.variant, asked.id AS asked_id, y, y_low, y_high, n_y,
        dataset_name || ' questions, ' || if($measure = 'likelihood', 'likeliest letter', 'what was written') AS y_name
    FROM asked JOIN accuracies USING (job) JOIN asked_set USING (dataset, selection)
    WHERE $benchmark IS NULL
    UNION ALL
    SELECT checkpoint, family, variant, NULL, value, NULL, NULL, n, benchmark || ', ' || metric
    FROM imported
    WHERE metric = (SELECT metric FROM imported GROUP BY metric ORDER BY count(*) DESC, metric LIMIT 1)
),
-- What was scored.
task_order AS (
    SELECT unnest(['foreground', 'segmentation', 'referring', 'cosegmentation']) AS task, unnest(range(4)) AS place
    WHERE $task IS NULL
    UNION ALL
    SELECT $task, 0 WHERE $task IS NOT NULL
),
scored AS (
    SELECT decoders.*, place, parameters::VARCHAR AS set_of_parameters,
        coalesce($metric, notes->>'$.metrics[0]', first_metric) AS metric
    FROM decoders JOIN task_order USING (task)
        JOIN (SELECT job, min(metric) AS first_metric FROM choices GROUP BY job) AS scored_metrics USING (job)
    WHERE kind = 'score'
    QUALIFY row_number() OVER (
        PARTITION BY model, dataset, task, set_of_parameters, selection
        ORDER BY layers IS NOT NULL, json_array_length(parts) DESC, limited DESC NULLS FIRST, dtype NULLS FIRST, finished DESC
    ) = 1
),
scored_set AS (
    SELECT dataset, task, set_of_parameters, selection, metric
    FROM scored LEFT JOIN perception USING (checkpoint, family, variant)
    WHERE $dataset IS NULL OR dataset_name = $dataset
    GROUP BY dataset, task, set_of_parameters, selection, metric
    ORDER BY min(place), count(y) DESC, count(*) DESC, set_of_parameters = '{}' DESC, max(n) DESC, max(dataset_name),
        dataset, set_of_parameters, selection, metric
    LIMIT 1
),
subjects AS (SELECT scored.* FROM scored JOIN scored_set USING (dataset, task, set_of_parameters, selection, metric)),
-- The gain: image values and projector, each sample read by what was chosen on the half that it is not in (first split).
halves AS (
    SELECT job, sample, grp, cluster,
        dense_rank() OVER (PARTITION BY job ORDER BY md5(cluster || ':0'), cluster) % 2 AS half
    FROM (SELECT DISTINCT job, sample FROM scores WHERE job IN (SELECT job FROM subjects))
        JOIN subjects USING (job) JOIN samples USING (dataset, sample)
),
picks AS (
    SELECT job, metric, stage, half, site, head FROM choices JOIN subjects USING (job, metric)
    WHERE split = 0 AND (stage = 'projector' OR (stage = 'decoder' AND part = coalesce($part, 'value')))
),
crossed AS (
    SELECT picks.job, picks.stage, scores.sample, halves.grp, halves.cluster,
        scores.value::DOUBLE AS v, scores.weight::DOUBLE AS w
    FROM scores JOIN halves USING (job, sample)
        JOIN picks ON picks.job = scores.job AND picks.site = scores.site AND picks.head = scores.head
            AND picks.metric = scores.metric AND picks.half = 1 - halves.half
    WHERE isfinite(scores.value) AND scores.weight > 0 AND scores.job IN (SELECT job FROM subjects)
),
pairs AS MATERIALIZED (
    SELECT one.job, one.grp, one.cluster, one.v AS v1, one.w AS w1, other.v AS v2, other.w AS w2
    FROM crossed AS one JOIN crossed AS other USING (job, sample)
    WHERE one.stage = 'decoder' AND other.stage = 'projector'
),
groups AS (
    SELECT job, grp, count(DISTINCT cluster) AS k, sum(w1) AS sw1, sum(w1 * v1) / sw1 AS m1, sum(w2) AS sw2,
        sum(w2 * v2) / sw2 AS m2
    FROM pairs GROUP BY ALL
),
sizes AS (SELECT job, count(*) AS g, avg(m1 - m2) AS gain FROM groups GROUP BY job),
pair_parts AS ( -- of a group of one cluster, how far it lies from the mean, as in encoder.sql
    SELECT job, cluster, sum(
        if(k > 1, w1 * (v1 - m1) / sw1 - w2 * (v2 - m2) / sw2, w1 / sw1 * (m1 - m2 - gain)) / g
    ) AS e
    FROM pairs JOIN groups USING (job, grp) JOIN sizes USING (job) GROUP BY ALL
),
gains AS (
    SELECT job, any_value(gain) AS gain,
        if(count(*) > 1, sqrt(count(*) / (count(*) - 1) * sum(e * e)) * t975(count(*) - 1), NULL) AS wide
    FROM pair_parts JOIN sizes USING (job) GROUP BY job
),
points AS (
    SELECT subjects.job, chosen.value AS x, chosen.low, chosen.high, chosen.layer, chosen.head, chosen.wins, chosen.choices,
        chosen.n, chosen.n_clusters, gain, wide, asked_id, y, y_low, y_high, n_y, y_name
    FROM subjects
        JOIN chosen ON chosen.job = subjects.job AND chosen.metric = subjects.metric AND chosen.stage = 'decoder'
            AND chosen.part = coalesce($part, 'value')
        LEFT JOIN gains ON gains.job = subjects.job
        LEFT JOIN perception ON perception.checkpoint = subjects.checkpoint AND perception.family = subjects.family
            AND perception.variant = subjects.variant
),
-- Image by image, where a task and questions stand on the same images.
told AS (
    SELECT asked.model, asked.dataset, asked.id AS asked_id, image, avg(is_right) AS y, count(*) AS n_y
    FROM graded JOIN (
        FROM asked QUALIFY row_number() OVER (PARTITION BY model, dataset ORDER BY n DESC, selection) = 1
    ) AS asked USING (job), unnest(graded.images) AS of_question(image)
    WHERE (SELECT count(*) FROM points WHERE y IS NOT NULL) < 5
    GROUP BY ALL
),
shared_jobs AS (
    SELECT scored.* FROM scored
    WHERE ($dataset IS NULL OR dataset_name = $dataset) AND (model, dataset) IN (SELECT model, dataset FROM told)
    QUALIFY row_number() OVER (PARTITION BY model, dataset, task ORDER BY scored.n DESC, set_of_parameters = '{}' DESC) = 1
),
modal AS (
    SELECT job, metric, chosen.site, chosen.head, chosen.layer, chosen.wins, chosen.choices
    FROM shared_jobs JOIN chosen USING (job, metric)
    WHERE chosen.stage = 'decoder' AND chosen.part = coalesce($part, 'value')
),
seen AS (
    SELECT job, image, avg(scores.value::DOUBLE) AS x, count(*) AS n, min(cluster) AS cluster
    FROM scores JOIN modal USING (job, site, head, metric) JOIN shared_jobs USING (job)
        JOIN samples ON samples.dataset = shared_jobs.dataset AND samples.sample = scores.sample,
        unnest(samples.images) AS of_sample(image)
    WHERE isfinite(scores.value) AND scores.job IN (SELECT job FROM shared_jobs)
    GROUP BY ALL
),
pictured AS (
    SELECT
        shared_jobs.*, modal.layer, modal.head, wins, choices, told.asked_id, seen.image, seen.x, seen.n AS n_x,
        seen.cluster, told.y, told.n_y
    FROM seen JOIN shared_jobs USING (job) JOIN modal USING (job)
        JOIN told ON told.model = shared_jobs.model AND told.dataset = shared_jobs.dataset AND told.image = seen.image
    QUALIFY place = min(place) OVER (PARTITION BY shared_jobs.dataset) AND shared_jobs.dataset = min(shared_jobs.dataset) OVER ()
)
SELECT
    'model' AS level, dataset_name, task, set_of_parameters, subjects.metric, y_name, model_name, family, variant,
    id, asked_id, NULL::INTEGER AS image, '' AS cluster,
    coalesce($part, 'value') AS part, x, low AS x_low, high AS x_high, gain, gain - wide AS gain_low, gain + wide AS gain_high,
    y, y_low, y_high, points.n, subjects.of, points.n_clusters, n_y, layer, head, wins, choices
FROM points JOIN subjects USING (job)
UNION ALL
SELECT
    'image', dataset_name, task, set_of_parameters, metric,
    dataset_name || ' questions, ' || if($measure = 'likelihood', 'likeliest letter', 'what was written'), model_name, family,
    variant, id, asked_id, image, cluster,
    coalesce($part, 'value'), x, NULL, NULL, NULL, NULL, NULL, y, NULL, NULL,
    n_x, pictured.of, NULL, n_y, layer, head, wins, choices
FROM pictured
ORDER BY level DESC, model_name, id, image
