"""What the toy model's card asks of the catalog."""

from __future__ import annotations

# Image values against every other place, paired by sample, in the categories that training held out, in the others and
# in all; for each draw and pooled. As in the analysis encoder, a sample is read by the layer and head that were chosen
# on the half that it is not in (first split).
PLACES = """
WITH jobs_alike AS (
    SELECT *, parameters::VARCHAR AS set_of_parameters,
        model IN (SELECT model FROM layers WHERE stage = 'decoder') AS has_decoder
    FROM newest
    WHERE kind = 'score' AND prefix = '' AND json_array_length(interventions) = 0 AND square IS NULL AND view = 'base'
        AND dataset = (SELECT dataset FROM datasets WHERE name = $dataset ORDER BY created DESC LIMIT 1)
    QUALIFY row_number() OVER (
        PARTITION BY model, task, set_of_parameters
        ORDER BY limited IS NOT NULL, layers IS NOT NULL, json_array_length(parts) DESC, limited DESC, finished DESC
    ) = 1
),
members AS (
    SELECT other.job, other.task, own.notes->>'$.metrics[0]' AS metric,
        CASE
            WHEN other.job = own.job THEN 'own'
            WHEN other.family = 'pixels' THEN 'raw pixels'
            WHEN other.family = 'colours' THEN 'colour statistics'
            WHEN other.model_name = $model || '@random:0' THEN 'random weights'
            WHEN other.model_name = $model || '@random-decoder:0' THEN 'random decoder'
            WHEN other.model_name = $model || '@blank' THEN 'blank image'
            WHEN other.variant = '' AND NOT other.has_decoder THEN 'encoder ' || other.model_name
        END AS member
    FROM jobs_alike AS own JOIN jobs_alike AS other USING (task, set_of_parameters, selection)
    WHERE own.model_name = $model
),
picks AS (
    SELECT members.job, task, members.metric, half, site, head,
        CASE
            WHEN member = 'own' AND stage = 'decoder' THEN if(part = 'value', 'image values', NULL)
            WHEN member = 'own' THEN if(stage = 'encoder', 'tower', stage)
            WHEN member IN ('random weights', 'random decoder', 'blank image')
                THEN if(stage = 'decoder' AND part = 'value', member, NULL)
            WHEN stage = 'encoder' THEN member
        END AS place
    FROM members JOIN choices ON choices.job = members.job AND choices.metric = members.metric AND split = 0
    UNION ALL
    SELECT members.job, task, members.metric, unnest([0, 1]), summaries.site, head, 'position only'
    FROM members JOIN summaries ON summaries.job = members.job AND summaries.metric = members.metric AND grp = ''
        JOIN sites ON sites.site = summaries.site
    WHERE member = 'own' AND stage = 'floor'
),
labelled AS MATERIALIZED (
    SELECT job, sample, grp, cluster, regexp_extract(cluster, '^draw(\\d+)-', 1) AS draw,
        dense_rank() OVER (PARTITION BY job ORDER BY md5(cluster || ':0'), cluster) % 2 AS half
    FROM (SELECT DISTINCT job, sample FROM scores WHERE job IN (SELECT job FROM members))
        JOIN newest USING (job) JOIN samples USING (dataset, sample)
),
points AS MATERIALIZED (
    SELECT task, picks.metric, place, scores.sample, grp, cluster, draw, value::DOUBLE AS v, weight::DOUBLE AS w
    FROM picks
        JOIN scores ON scores.job = picks.job AND scores.site = picks.site AND scores.head = picks.head
            AND scores.metric = picks.metric
        JOIN labelled ON labelled.job = picks.job AND labelled.sample = scores.sample
            AND labelled.half = 1 - picks.half
    WHERE place IS NOT NULL AND isfinite(value) AND weight > 0
),
sets AS (
    SELECT *, unnest(['all', if(list_contains($held_out, grp), 'held out', 'trained')]) AS part_of FROM points
),
cut AS MATERIALIZED (
    SELECT * EXCLUDE (draw), unnest(list_distinct(['', draw])) AS draw FROM sets
),
pairs AS MATERIALIZED (
    SELECT other.*, one.v AS own_v, one.w AS own_w
    FROM cut AS other JOIN cut AS one USING (task, metric, sample, part_of, draw)
    WHERE one.place = 'image values'
),
groups AS (
    SELECT task, metric, place, part_of, draw, grp, count(*) AS n, count(DISTINCT cluster) AS apart,
        sum(w) AS sw, sum(w * v) / sw AS mean,
        sum(own_w) AS own_sw, sum(own_w * own_v) / own_sw AS own_mean
    FROM pairs GROUP BY ALL
),
sizes AS (
    SELECT task, metric, place, part_of, draw, count(*) AS groups, sum(n)::INTEGER AS n, min(apart) AS apart,
        avg(mean) AS value,
        avg(own_mean - mean) AS difference
    FROM groups GROUP BY ALL
),
residuals AS (
    SELECT task, metric, place, part_of, draw, cluster, sum(w * (v - mean) / sw / groups) AS e,
        sum((own_w * (own_v - own_mean) / own_sw - w * (v - mean) / sw) / groups) AS own_e
    FROM pairs JOIN groups USING (task, metric, place, part_of, draw, grp)
        JOIN sizes USING (task, metric, place, part_of, draw)
    GROUP BY ALL
),
errors AS (
    SELECT task, metric, place, part_of, draw, count(*) AS clusters,
        if(clusters > 1, t975(clusters - 1) * sqrt(clusters / (clusters - 1) * sum(e * e)), NULL) AS wide,
        if(clusters > 1, t975(clusters - 1) * sqrt(clusters / (clusters - 1) * sum(own_e * own_e)), NULL) AS own_wide
    FROM residuals JOIN sizes USING (task, metric, place, part_of, draw)
    WHERE apart > 1 -- a group of one cluster tells no error
    GROUP BY ALL
)
SELECT task, metric, place, part_of, draw, value, value - wide AS low, value + wide AS high, difference,
    difference - own_wide AS difference_low, difference + own_wide AS difference_high, groups, n
FROM sizes LEFT JOIN errors USING (task, metric, place, part_of, draw)
ORDER BY task, part_of, value DESC, place, draw
"""

# Each layer's best head (in-sample), and what it gives on each draw.
FLOW = """
WITH own AS (
    SELECT job, task, dataset, notes->>'$.metrics[0]' AS metric
    FROM newest
    WHERE model_name = $model AND kind = 'score' AND prefix = '' AND json_array_length(interventions) = 0
        AND square IS NULL AND view = 'base' AND task <> 'choices'
        AND dataset = (SELECT dataset FROM datasets WHERE name = $dataset ORDER BY created DESC LIMIT 1)
    QUALIFY row_number() OVER (
        PARTITION BY task, parameters::VARCHAR
        ORDER BY limited IS NOT NULL, layers IS NOT NULL, json_array_length(parts) DESC, limited DESC, finished DESC
    ) = 1
),
best AS (
    SELECT own.job, own.dataset, own.task, own.metric, site, layer, head, value, low, high, n
    FROM own JOIN results ON results.job = own.job AND results.metric = own.metric
    WHERE stage = 'decoder' AND part = 'value' AND head >= 0 AND value IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY own.job, layer ORDER BY value DESC, head) = 1
),
groups AS (
    SELECT best.job, best.site, regexp_extract(cluster, '^draw(\\d+)-', 1) AS draw, grp,
        sum(scores.weight * scores.value) / sum(scores.weight) AS mean
    FROM best
        JOIN scores ON scores.job = best.job AND scores.site = best.site AND scores.head = best.head
            AND scores.metric = best.metric
        JOIN samples ON samples.dataset = best.dataset AND samples.sample = scores.sample
    WHERE isfinite(scores.value) AND scores.weight > 0 AND draw <> ''
    GROUP BY ALL
),
draws AS (SELECT job, site, draw, avg(mean) AS value FROM groups GROUP BY ALL),
beside AS (SELECT job, site, list(value ORDER BY draw) AS by_draw FROM draws GROUP BY ALL)
SELECT task, metric, layer, value, low, high, n, by_draw
FROM best LEFT JOIN beside USING (job, site)
ORDER BY task, layer
"""

# The mean over layers of what a job gives on each draw, by the head that is best in each layer after the filler.
PREFIX = """
WITH heads AS (
    SELECT site, head, metric FROM results
    WHERE id = $filler AND stage = 'decoder' AND part = 'value' AND metric = $metric AND head >= 0
        AND value IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY site ORDER BY value DESC, head) = 1
),
groups AS (
    SELECT newest.id, scores.site, regexp_extract(cluster, '^draw(\\d+)-', 1) AS draw, grp,
        sum(scores.weight * scores.value) / sum(scores.weight) AS mean
    FROM newest
        JOIN scores ON scores.job = newest.job
        JOIN heads ON heads.site = scores.site AND heads.head = scores.head AND heads.metric = scores.metric
        JOIN samples ON samples.dataset = newest.dataset AND samples.sample = scores.sample
    WHERE (newest.id = $filler OR newest.id = $other) AND isfinite(scores.value) AND scores.weight > 0 AND draw <> ''
    GROUP BY ALL
),
layers_of AS (SELECT id, site, draw, avg(mean) AS value FROM groups GROUP BY ALL),
means AS (SELECT id, draw, avg(value) AS value FROM layers_of GROUP BY ALL)
SELECT draw, other.value - filler.value AS delta
FROM means AS other JOIN means AS filler USING (draw)
WHERE other.id = $other AND filler.id = $filler
ORDER BY draw
"""

# How many questions surface on each draw, and how many would if readings and answers were independent.
SURFACING = """
SELECT grp, place, read_id, regexp_extract(sample_id, '^draw(\\d+)-', 1) AS draw,
    count(*) FILTER (surfaces) - count(*) FILTER (values_right) * count(*) FILTER (NOT answer_right) / count(*) AS above
FROM surfacing
WHERE asked_id = $asked AND measure = 'likelihood' AND (stage <> 'decoder' OR part = 'value') AND draw <> ''
GROUP BY ALL
ORDER BY grp, place, read_id, draw
"""
