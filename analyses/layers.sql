-- How a score flows through the layers: every head, each layer's best, and the reference points beside them
--
-- $task: only this task
-- $model: only this model (by name); else every language model, or every encoder where no language model was scored
-- $dataset: only this dataset (NAME-SPLIT)
-- $metric: this metric; else the task's first
-- $part: this part; else key_unrotated and value
--
-- Jobs: newest, without prefix and intervention, on the model's own grid; of several alike, those of most samples, layers
-- and parts. A panel is one model on one dataset and task with one set of parameters, read at one part. Every row of a
-- panel has a role: `model` (the panel's own curve), tower, projector, position, ceiling, and of questions chance, the mean
-- of one over the number of options (the same job); random, blank
-- (twins of the model); encoder, pixels, colours (other models).
WITH jobs_alike AS (
    SELECT
        *,
        parameters::VARCHAR AS set_of_parameters,
        model IN (SELECT model FROM layers WHERE stage = 'decoder') AS has_decoder,
        regexp_replace(model_name, '@(random|random-decoder|blank)(:\d+)?$', '') AS base_name
    FROM newest
    WHERE kind = 'score' AND prefix = '' AND json_array_length(interventions) = 0 AND square IS NULL AND view = 'base'
        AND ($task IS NULL OR task = $task)
        AND ($dataset IS NULL OR dataset_name = $dataset)
    QUALIFY rank() OVER (
        PARTITION BY model, dataset, task, set_of_parameters, dtype, quantisation, attention, block
        ORDER BY limited IS NOT NULL, layers IS NOT NULL, json_array_length(parts) DESC, limited DESC
    ) = 1
),
candidates AS (
    SELECT
        *,
        if($model IS NULL, variant = '' AND family NOT IN ('pixels', 'colours'), model_name = $model) AS asked_for,
        bool_or(has_decoder AND variant = '') OVER (PARTITION BY dataset, task, set_of_parameters) AS beside_decoder
    FROM jobs_alike
),
subjects AS (
    SELECT DISTINCT dataset, dataset_name, task, set_of_parameters, model, model_name, base_name, family, has_decoder
    FROM candidates
    WHERE asked_for AND ($model IS NOT NULL OR has_decoder OR NOT beside_decoder)
),
panels AS (
    SELECT *, unnest(CASE
        WHEN NOT has_decoder THEN ['hidden']
        WHEN $part IS NOT NULL THEN [$part]
        ELSE ['key_unrotated', 'value']
    END) AS panel_part
    FROM subjects
),
members AS (
    SELECT
        panels.model AS subject, panels.model_name AS subject_name, panels.panel_part, panels.has_decoder,
        jobs_alike.job, jobs_alike.set_of_parameters,
        CASE
            WHEN jobs_alike.model = panels.model THEN 'model'
            WHEN jobs_alike.family IN ('pixels', 'colours') THEN jobs_alike.family
            WHEN jobs_alike.variant = '' THEN 'encoder'
            WHEN jobs_alike.variant = 'blank' THEN 'blank'
            ELSE 'random'
        END AS member
    FROM panels JOIN jobs_alike USING (dataset, task, set_of_parameters)
    WHERE jobs_alike.model = panels.model
        OR jobs_alike.family IN ('pixels', 'colours')
        OR (jobs_alike.variant = '' AND NOT jobs_alike.has_decoder)
        OR (jobs_alike.variant <> '' AND jobs_alike.base_name = panels.base_name AND jobs_alike.family = panels.family)
),
placed AS (
    SELECT
        members.* EXCLUDE (job), results.*,
        CASE
            WHEN member IN ('encoder', 'pixels', 'colours') THEN if(stage = 'encoder', member, NULL)
            WHEN stage = if(has_decoder, 'decoder', 'encoder') THEN if(part = panel_part, member, NULL)
            WHEN member <> 'model' THEN NULL
            WHEN stage = 'encoder' THEN 'tower'
            WHEN stage = 'floor' THEN part
            ELSE stage
        END AS role
    FROM members JOIN results USING (job)
    WHERE value IS NOT NULL
        AND ($metric IS NULL OR metric = $metric)
    QUALIFY $metric IS NOT NULL OR metric = coalesce(notes->>'$.metrics[0]', min(metric) OVER (PARTITION BY job))
),
guessed AS (
    SELECT job, avg(share) AS chance
    FROM (
        SELECT read.job, grp, avg(1 / json_array_length(body->'$.options')) AS share
        FROM (
            SELECT DISTINCT job, sample FROM scores
            WHERE job IN (SELECT job FROM placed WHERE task = 'choices' AND metric = 'correct') AND isfinite(value)
        ) AS read JOIN newest ON newest.job = read.job
            JOIN samples ON samples.dataset = newest.dataset AND samples.sample = read.sample
        GROUP BY ALL
    ) AS groups
    GROUP BY job
),
chances AS (
    SELECT placed.* REPLACE (
        'chance' AS role, 'floor' AS stage, 'chance' AS part, 0 AS layer, -1 AS site, -1 AS head,
        chance AS value, chance AS low, chance AS high
    )
    FROM placed JOIN guessed USING (job)
    WHERE role = 'model' AND metric = 'correct'
    QUALIFY row_number() OVER (PARTITION BY subject, panel_part, job ORDER BY site, head) = 1
),
-- A head by itself counts as a layer's best; all heads concatenated only where there are no heads.
ranked AS (
    SELECT *, head >= 0 OR max(head) OVER (PARTITION BY subject, panel_part, job, site) = -1 AS is_single
    FROM (SELECT * FROM placed UNION ALL BY NAME SELECT * FROM chances)
    WHERE role IS NOT NULL
)
SELECT
    dataset_name, task, set_of_parameters, metric, subject, subject_name, panel_part, role,
    job, id, edition, model_name, variant, stage, layer, part, head, value, low, high, n, n_undefined, of, n_clusters,
    is_single,
    is_single AND row_number() OVER of_layer = 1 AS is_best_of_layer,
    is_single AND row_number() OVER of_job = 1 AS is_best,
    dtype, quantisation, attention, block, seed, limited, layers, parts, checkpoint,
    coalesce(notes->>'$.title', '') AS title
FROM ranked
WINDOW
    of_layer AS (PARTITION BY subject, panel_part, role, job, site, is_single ORDER BY value DESC, head),
    of_job AS (PARTITION BY subject, panel_part, role, job, is_single ORDER BY value DESC, layer, head)
ORDER BY dataset_name, task, set_of_parameters, metric, subject_name, subject, panel_part, role, finished, id, site, head
