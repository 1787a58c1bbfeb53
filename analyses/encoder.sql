-- What the image values hold against the vision encoder: tower, projector, stand-alone encoders and controls, paired
--
-- $task: only this task
-- $model: only this language model (by name); else every one
-- $dataset: only this dataset (NAME-SPLIT)
-- $metric: this metric; else the task's first
-- $part: the part of the decoder that is compared; else value
--
-- Jobs as in the analysis layers: newest, without prefix and intervention, native grid; of several alike, the fullest. `value`
-- is that of the best layer and head of a place, chosen on one half of the clusters and reported on the other (view chosen;
-- 20 splits). `difference` is the subject's value less that of the place, paired by sample, over the samples that both
-- define, each sample read by the layer and head that were chosen on the half that it is not in (first split). Of an encoder
-- that stands alone there are also its last layer, and the layer whose output a language model's projector reads (no choice).
WITH jobs_alike AS (
    SELECT *, parameters::VARCHAR AS set_of_parameters,
        model IN (SELECT model FROM layers WHERE stage = 'decoder') AS has_decoder,
        if(regexp_matches(variant, ':[1-9]'), ' ' || regexp_extract(variant, ':(\d+)', 1), '') AS seed_of_twin
    FROM newest
    WHERE kind = 'score' AND prefix = '' AND json_array_length(interventions) = 0 AND square IS NULL AND view = 'base'
        AND ($task IS NULL OR task = $task)
        AND ($dataset IS NULL OR dataset_name = $dataset)
    QUALIFY row_number() OVER (
        PARTITION BY model, dataset, task, set_of_parameters
        ORDER BY
            limited IS NOT NULL, layers IS NOT NULL, json_array_length(parts) DESC, limited DESC,
            dtype NULLS FIRST, quantisation NULLS FIRST, finished DESC
    ) = 1
),
subjects AS (
    SELECT * FROM jobs_alike
    WHERE has_decoder AND if($model IS NULL, variant = '', model_name = $model)
),
-- Every job that is held against a subject, and what each of its stages is called beside it.
members AS (
    SELECT subjects.job AS subject, subjects.model_name AS subject_name, other.job,
        other.model_name || if(count(DISTINCT other.job) OVER (PARTITION BY subjects.job, other.model_name) > 1,
            ' ' || other.id[:8], '') AS model_name,
        -- A twin with random weights reads none of the checkpoint's, so it is told by its name.
        other.family = subjects.family AND (other.checkpoint = subjects.checkpoint
            OR other.model_name = subjects.model_name || '@' || other.variant) AS is_twin,
        CASE
            WHEN other.job = subjects.job THEN 'own'
            WHEN other.family = 'pixels' THEN 'raw pixels'
            WHEN other.family = 'colours' THEN 'colour statistics'
            WHEN is_twin AND other.variant LIKE 'random-decoder%' THEN 'random decoder' || other.seed_of_twin
            WHEN is_twin AND other.variant LIKE 'random%' THEN 'random weights' || other.seed_of_twin
            WHEN is_twin AND other.variant = 'blank' THEN 'blank image'
            WHEN other.variant = '' AND NOT other.has_decoder THEN 'encoder'
        END AS member
    FROM subjects JOIN jobs_alike AS other USING (dataset, task, set_of_parameters, selection)
),
metrics AS (
    SELECT job, coalesce($metric, any_value(notes->>'$.metrics[0]'), min(metric)) AS metric
    FROM choices JOIN newest USING (job) WHERE job IN (SELECT job FROM members) GROUP BY job
),
places AS (
    SELECT subject, subject_name, members.job, model_name, stage, part, metric,
        CASE
            WHEN member = 'own' AND stage = 'decoder' THEN if(part = coalesce($part, 'value'), 'subject', NULL)
            WHEN member = 'own' THEN if(stage = 'encoder', 'tower', stage)
            WHEN member = 'encoder' THEN if(stage = 'encoder', 'encoder ' || model_name, NULL)
            WHEN member IN ('raw pixels', 'colour statistics') THEN if(stage = 'encoder', member, NULL)
            WHEN stage = 'decoder' AND part = coalesce($part, 'value') THEN member
        END AS place
    FROM members JOIN metrics USING (job)
        JOIN (SELECT DISTINCT job, stage, part, metric FROM choices) AS chosen_places USING (job, metric)
    WHERE place IS NOT NULL
),
-- Which half of the first split each cluster is in (choices.sql), and what was chosen on the other.
halves AS (
    SELECT job, sample, grp, cluster,
        dense_rank() OVER (PARTITION BY job ORDER BY md5(cluster || ':0'), cluster) % 2 AS half
    FROM (SELECT DISTINCT job, sample FROM scores WHERE job IN (SELECT job FROM places))
        JOIN newest USING (job) JOIN samples USING (dataset, sample)
),
fixed AS (
    SELECT subject, subject_name, places.job, metric, layers.site, layers.layer,
        place || if(layers.layer = max(layers.layer) OVER (PARTITION BY subject, places.job), ', last layer',
            ', layer ' || layers.layer) AS place,
        layers.layer = tower.layer AS is_read
    FROM places
        JOIN newest USING (job)
        JOIN layers ON layers.model = newest.model AND layers.stage = 'encoder'
        JOIN newest AS of_subject ON of_subject.job = subject
        JOIN layers AS tower ON tower.model = of_subject.model AND tower.stage = 'encoder'
    WHERE place LIKE 'encoder %'
    QUALIFY is_read OR layers.layer = max(layers.layer) OVER (PARTITION BY subject, places.job)
),
picks AS (
    SELECT subject, places.place, places.job, metric, half, site, head
    FROM places JOIN choices USING (job, stage, part, metric) WHERE split = 0
    UNION ALL
    SELECT subject, place, job, metric, unnest([0, 1]), site, -1 FROM fixed
),
crossed AS MATERIALIZED (
    SELECT picks.subject, picks.place, scores.sample, halves.grp, halves.cluster, scores.value::DOUBLE AS v,
        scores.weight::DOUBLE AS w
    FROM scores JOIN halves USING (job, sample)
        JOIN picks ON picks.job = scores.job AND picks.site = scores.site AND picks.head = scores.head
            AND picks.metric = scores.metric AND picks.half = 1 - halves.half
    WHERE isfinite(scores.value) AND scores.weight > 0 AND scores.job IN (SELECT job FROM places)
),
pairs AS MATERIALIZED (
    SELECT one.subject, other.place, one.grp, one.cluster, one.v AS v1, one.w AS w1, other.v AS v2, other.w AS w2
    FROM crossed AS one JOIN crossed AS other USING (subject, sample)
    WHERE one.place = 'subject' AND other.place <> 'subject'
),
groups AS (
    SELECT subject, place, grp, count(DISTINCT cluster) AS k, sum(w1) AS sw1, sum(w1 * v1) / sw1 AS m1, sum(w2) AS sw2,
        sum(w2 * v2) / sw2 AS m2
    FROM pairs GROUP BY ALL
),
sizes AS (SELECT subject, place, count(*) AS g, avg(m1 - m2) AS difference FROM groups GROUP BY ALL),
residuals AS ( -- a group of one cluster says nothing of its own error: there it is how far the group lies from the mean
    SELECT subject, place, cluster, sum(
        if(k > 1, w1 * (v1 - m1) / sw1 - w2 * (v2 - m2) / sw2, w1 / sw1 * (m1 - m2 - difference)) / g
    ) AS e
    FROM pairs JOIN groups USING (subject, place, grp) JOIN sizes USING (subject, place)
    GROUP BY ALL
),
differences AS (
    SELECT subject, place, any_value(difference) AS difference, count(*) AS clusters,
        if(clusters > 1, sqrt(clusters / (clusters - 1) * sum(e * e)), NULL) AS error
    FROM residuals JOIN sizes USING (subject, place) GROUP BY subject, place
)
SELECT
    chosen.dataset_name, chosen.task, chosen.parameters::VARCHAR AS set_of_parameters, chosen.metric,
    places.subject, places.subject_name, places.place, chosen.model_name, chosen.id, chosen.stage, chosen.part,
    chosen.layer, chosen.head,
    true AS is_chosen, chosen.value, chosen.low, chosen.high, chosen.spread, chosen.in_sample, chosen.wins, chosen.choices,
    chosen.n, chosen.of, chosen.n_clusters,
    difference, difference - error * t975(clusters - 1) AS difference_low,
    difference + error * t975(clusters - 1) AS difference_high
FROM places
    JOIN chosen ON chosen.job = places.job AND chosen.stage = places.stage AND chosen.part = places.part
        AND chosen.metric = places.metric
    LEFT JOIN differences ON differences.subject = places.subject AND differences.place = places.place
UNION ALL
SELECT
    results.dataset_name, results.task, results.parameters::VARCHAR, results.metric,
    fixed.subject, fixed.subject_name, fixed.place, results.model_name, results.id, results.stage, results.part, results.layer,
    results.head, false, results.value, results.low, results.high, NULL, results.value, NULL, NULL,
    results.n, results.of, results.n_clusters,
    difference, difference - error * t975(clusters - 1), difference + error * t975(clusters - 1)
FROM fixed
    JOIN results ON results.job = fixed.job AND results.site = fixed.site AND results.metric = fixed.metric
        AND results.head = -1
    LEFT JOIN differences ON differences.subject = fixed.subject AND differences.place = fixed.place
ORDER BY dataset_name, task, set_of_parameters, metric, subject_name, value DESC, place
