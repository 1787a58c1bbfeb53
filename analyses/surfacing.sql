-- How often the image tokens hold the answer that the model gets wrong, beside what independence and controls would give
--
-- $model: only this model (by name); else every model that was asked, without twins
-- $dataset: only this dataset (NAME-SPLIT)
-- $measure: likelihood (the likeliest letter) or text (what was written); else both
-- $part: this part; else value
--
-- Jobs: newest ask jobs without prefix and intervention on the model's own grid; of several alike, those with a reading
-- and of most questions, all of those. A row is one of them, a group, a measure of its answers and a place that its
-- questions were read at (the view `surfacing` has the questions themselves). Groups that no place reads have one row
-- without a place. `low` and `high` are the 95 % interval of the count when readings and answers are independent and both
-- margins of the 2x2 table fixed (hypergeometric); `share_*` that of the share of all questions (Wilson); `only_here` and
-- `only_value` count the questions that surface here and not in the model's own values, and the other way round.
WITH asked AS (
    SELECT
        job AS asked_job, id AS asked_id, model_name, dataset, dataset_name, limited, n AS n_asked, of AS n_there
    FROM newest
    WHERE kind = 'ask' AND prefix = '' AND json_array_length(interventions) = 0 AND square IS NULL
        AND if($model IS NULL, variant = '', model_name = $model)
        AND ($dataset IS NULL OR dataset_name = $dataset)
    QUALIFY rank() OVER (
        PARTITION BY model, dataset, dtype, quantisation, attention
        ORDER BY limited IS NOT NULL, task IS NULL, limited DESC, finished DESC
    ) = 1
),
questions AS (
    SELECT asked_job, grp, count(*) AS of, count(*) FILTER (answer IS NOT NULL AND choice IS NULL) AS n_unread
    FROM asked
        JOIN answers ON answers.job = asked_job AND answers.variant = 0
        JOIN samples USING (dataset, sample)
    GROUP BY ALL
),
found AS MATERIALIZED (
    SELECT
        asked_job, grp, measure, place, sample, values_right, answer_right, surfaces,
        read_job, read_id, read_name, stage, layer, head, fold, share_when_chosen
    FROM surfacing
    WHERE asked_job IN (SELECT asked_job FROM asked)
        AND (stage <> 'decoder' OR part = coalesce($part, 'value'))
        AND ($measure IS NULL OR measure = $measure)
),
kept AS ( -- of several jobs that read a place alike, those of most questions
    SELECT asked_job, place, read_job
    FROM (SELECT DISTINCT asked_job, place, read_job, read_name FROM found) AS pairs
        JOIN newest AS jobs ON jobs.job = read_job
    QUALIFY rank() OVER (
        PARTITION BY asked_job, place, read_name, parameters::VARCHAR, dtype, attention
        ORDER BY limited IS NOT NULL, json_array_length(parts) DESC, limited DESC, finished DESC
    ) = 1
),
read AS (
    SELECT found.* FROM found JOIN kept USING (asked_job, place, read_job)
),
own AS (
    SELECT asked_job, grp, measure, sample, surfaces
    FROM read
    WHERE place IN (coalesce($part, 'value'), coalesce($part, 'value') || ', isolated')
    QUALIFY place = min(place) OVER (PARTITION BY asked_job) AND read_job = min(read_job) OVER (PARTITION BY asked_job, place)
),
counted AS (
    SELECT
        read.asked_job, read.grp, read.measure, place, read_job, read_id, read_name,
        count(*) AS n,
        count(*) FILTER (values_right AND answer_right) AS right_right,
        count(*) FILTER (values_right AND NOT answer_right) AS surfacing,
        count(*) FILTER (NOT values_right AND answer_right) AS wrong_right,
        count(*) FILTER (NOT values_right AND NOT answer_right) AS wrong_wrong,
        count(*) FILTER (values_right) AS n_values_right,
        count(*) FILTER (NOT answer_right) AS n_wrong,
        count(own.sample) AS n_paired,
        count(*) FILTER (read.surfaces AND NOT own.surfaces) AS only_here,
        count(*) FILTER (NOT read.surfaces AND own.surfaces) AS only_value,
        string_agg(
            DISTINCT stage || ' ' || layer || if(head >= 0, ' head ' || head, '') || ' (right in '
            || printf('%.0f', 100 * share_when_chosen) || ' % of the fold it was chosen on)', ' and '
            ORDER BY stage || ' ' || layer || if(head >= 0, ' head ' || head, '') || ' (right in '
            || printf('%.0f', 100 * share_when_chosen) || ' % of the fold it was chosen on)'
        ) AS choice
    FROM read LEFT JOIN own USING (asked_job, grp, measure, sample)
    GROUP BY ALL
),
tables AS (
    SELECT DISTINCT n, n_values_right AS k, n_wrong AS w FROM counted
),
outcomes AS (
    SELECT *, unnest(range(greatest(0, k + w - n), least(k, w) + 1)) AS x FROM tables
),
chances AS (
    SELECT n, k, w, x, sum(exp(
        lgamma(k + 1) - lgamma(x + 1) - lgamma(k - x + 1) + lgamma(n - k + 1) - lgamma(w - x + 1)
        - lgamma(n - k - w + x + 1) - lgamma(n + 1) + lgamma(w + 1) + lgamma(n - w + 1)
    )) OVER (PARTITION BY n, k, w ORDER BY x) AS at_most
    FROM outcomes
),
intervals AS (
    SELECT n, k AS n_values_right, w AS n_wrong, k * w / n AS expected,
        min(x) FILTER (at_most >= 0.025) AS low, min(x) FILTER (at_most >= 0.975) AS high
    FROM chances GROUP BY ALL
)
SELECT
    asked.asked_id, asked.model_name, asked.dataset_name, questions.grp, measure, place, questions.of,
    n, right_right, surfacing, wrong_right, wrong_wrong, n_values_right, n_wrong, expected, low, high,
    surfacing / n AS share, wilson_low(surfacing, n) AS share_low, wilson_high(surfacing, n) AS share_high,
    surfacing / nullif(n_wrong, 0) AS share_of_wrong, wilson_low(surfacing, n_wrong) AS of_wrong_low,
    wilson_high(surfacing, n_wrong) AS of_wrong_high,
    n_paired, only_here, only_value, choice, n_unread, n_asked, n_there, asked.limited, read_id, read_name
FROM asked
    JOIN questions USING (asked_job)
    LEFT JOIN counted USING (asked_job, grp)
    LEFT JOIN intervals USING (n, n_values_right, n_wrong)
ORDER BY dataset_name, model_name, asked_id, measure, questions.grp, place, read_id
