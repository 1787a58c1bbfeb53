"""What a report says in numbers: the values of one model on one dataset, its answers, and another model beside it.

Jobs are those that the analyses draw: newest, without prefix and intervention, on the model's own grid; of several
alike, the fullest. Values are two-fold: the layer and head are chosen on one half of the clusters and reported on the
other (view `chosen`); the in-sample value stands beside them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vkvdb.errors import NothingToDraw

if TYPE_CHECKING:
    from vkvdb.catalog import Catalog

Row = dict[str, Any]

# By name, or by the beginning of its id: two revisions of a checkpoint have one name. The one with the newest result.
_MODELS = """
SELECT models.*, count(DISTINCT jobs.job) AS jobs, max(jobs.finished) AS latest
FROM models JOIN jobs USING (model)
WHERE jobs.dataset_name = $dataset
    AND (models.name = $model OR jobs.model_name = $model OR length($model) >= 6 AND starts_with(models.id, $model))
GROUP BY ALL ORDER BY latest DESC, models.id
"""

_KNOWN = "SELECT DISTINCT model_name, dataset_name FROM newest WHERE kind IN ('score', 'ask') ORDER BY ALL"

_VALUES = """
WITH kept AS (
    SELECT job,
        coalesce(notes->>'$.metrics[0]', (SELECT min(metric) FROM choices WHERE choices.job = newest.job)) AS main,
        coalesce(notes->>'$.title', '') AS title, provenance->>'$.model' AS reference
    FROM newest
    WHERE kind = 'score' AND model = $model AND dataset_name = $dataset
        AND prefix = '' AND json_array_length(interventions) = 0 AND square IS NULL AND view = 'base'
    QUALIFY row_number() OVER (
        PARTITION BY dataset, task, parameters::VARCHAR
        ORDER BY
            limited IS NOT NULL, layers IS NOT NULL, json_array_length(parts) DESC, limited DESC, dtype, finished DESC
    ) = 1
),
found AS (
    SELECT job, id, model_name, task, parameters::VARCHAR AS parameters, title, reference, metric,
        metric = main AS is_main,
        stage, part, layer, head, value, low, high, spread, in_sample, wins, choices, n, of, dataset
    FROM chosen JOIN kept USING (job)
    UNION ALL BY NAME
    SELECT job, id, model_name, task, parameters::VARCHAR AS parameters, title, reference, metric,
        metric = main AS is_main,
        stage, part, layer, head, value, low, high, n, of, dataset
    FROM results JOIN kept USING (job)
    WHERE stage IN ('floor', 'ceiling') AND value IS NOT NULL
)
SELECT * FROM found
ORDER BY task, parameters, NOT is_main, metric,
    list_position(['ceiling', 'decoder', 'projector', 'encoder', 'floor'], stage), part DESC
"""

_ANSWERS = """
SELECT id, model_name, grp, swap, n, n_unread, accuracy, low, high, by_likelihood, prior, consistency
FROM answers_by_group
WHERE model = $model AND dataset_name = $dataset
    AND prefix = '' AND json_array_length(interventions) = 0 AND square IS NULL
QUALIFY row_number() OVER (PARTITION BY grp, swap ORDER BY limited IS NOT NULL, limited DESC, finished DESC) = 1
ORDER BY swap, grp
"""

# Each sample as both jobs read it, by the layer and head that were chosen on the half that it is not in (first split).
_PAIRED = """
WITH picks AS (
    SELECT job, half, site, head FROM choices
    WHERE split = 0 AND metric = $metric
        AND (job = $one AND stage = $stage_one AND part = $part_one
            OR job = $two AND stage = $stage_two AND part = $part_two)
),
halves AS (
    SELECT job, sample, grp, cluster,
        dense_rank() OVER (PARTITION BY job ORDER BY md5(cluster || ':0'), cluster) % 2 AS half
    FROM (SELECT DISTINCT job, sample FROM scores WHERE job IN ($one, $two))
        JOIN newest USING (job) JOIN samples USING (dataset, sample)
),
crossed AS (
    SELECT job, sample, grp, cluster, scores.value::DOUBLE AS v, scores.weight::DOUBLE AS w
    FROM scores JOIN halves USING (job, sample)
        JOIN picks ON picks.job = scores.job AND picks.site = scores.site AND picks.head = scores.head
            AND picks.half = 1 - halves.half
    WHERE metric = $metric AND isfinite(scores.value) AND scores.weight > 0
)
SELECT a.grp, a.cluster, a.v AS one, b.v AS two, a.w AS weight_one, b.w AS weight_two
FROM crossed AS a JOIN crossed AS b USING (sample)
WHERE a.job = $one AND b.job = $two ORDER BY sample
"""

_JOBS = """
SELECT jobs.id, edition, kind, coalesce(task, '') AS task, model_name, dataset_name, n, of,
    jobs.family, jobs.family_version, task_version,
    jobs.parameters::VARCHAR AS parameters, prefix, coalesce(jobs.dtype, models.dtype) AS dtype, attention,
    jobs.interventions::VARCHAR AS interventions, seed, jobs.host, device, started, finished, seconds,
    jobs.versions::VARCHAR AS versions, jobs.checkpoint, jobs.model, jobs.dataset
FROM newest AS jobs LEFT JOIN models USING (model)
WHERE list_contains($ids, jobs.id) ORDER BY finished, jobs.id
"""

_CHECKPOINTS = """
SELECT name, id, checkpoint, family, family_version, variant, dtype, parameters, host, created, path
FROM models WHERE list_contains($models, model) ORDER BY name, id
"""

_DATASETS = """
SELECT name, id, adapter, adapter_version, images, samples::VARCHAR AS samples, json_array_length(problems) AS problems,
    seed, host, created
FROM datasets WHERE list_contains($datasets, dataset) ORDER BY name, id
"""


@dataclass(frozen=True)
class Subject:
    """One model on one dataset: `model` is its row of the table models, `values` and `answers` are rows as queried.

    `others` are ids of further models that the same name stands for.
    """

    model: Row
    dataset: str
    values: Sequence[Row]
    answers: Sequence[Row]
    others: Sequence[str]

    @property
    def name(self) -> str:
        return str(self.model["name"])

    def tasks(self) -> list[tuple[str, str]]:
        """(task, parameters) of every job, in order."""
        return list(dict.fromkeys((r["task"], r["parameters"]) for r in self.values))

    def rows(self, task: str, parameters: str, *, main: bool = True) -> list[Row]:
        """The rows of a task, of its main metric or of its others."""
        return [r for r in self.values if (r["task"], r["parameters"], r["is_main"]) == (task, parameters, main)]

    def best(self, task: str, parameters: str) -> Row | None:
        """What stands for the model: the image values of a language model, the tokens of an encoder."""
        rows = self.rows(task, parameters)
        found = [r for r in rows if (r["stage"], r["part"]) == ("decoder", "value")]
        if not found and all(r["stage"] != "decoder" for r in rows):
            found = [r for r in rows if r["stage"] == "encoder"]
        return next(iter(found), None)


@dataclass(frozen=True)
class Compared:
    """A task by two models: their rows (`two` is None where it was not scored), and the paired difference one - two.

    `difference` is (mean, low, high, number of samples); None where the datasets' contents or the metrics differ.
    """

    task: str
    one: Row | None
    two: Row | None
    difference: tuple[float, float, float, int] | None


def subject(catalog: Catalog, model: str, dataset: str) -> Subject:
    """A model, named or by the beginning of its id, on a dataset. Raises NothingToDraw where it was not measured."""
    found = catalog.frame(_MODELS, {"model": model, "dataset": dataset}).to_dicts()
    if not found:
        known = [f"{r['model_name']} on {r['dataset_name']}" for r in catalog.frame(_KNOWN).to_dicts()]
        there = f"there are: {', '.join(known[:12])}{', ...' * (len(known) > 12)}" if known else "nothing is"
        hint = there if known else "nothing was scored or asked yet: vkvdb score --help, or vkvdb demo"
        raise NothingToDraw(what=f"model {model} on dataset {dataset}", hint=hint)
    first = found[0]
    given = {"model": first["model"], "dataset": dataset}
    return Subject(
        model=first,
        dataset=dataset,
        values=catalog.frame(_VALUES, given).to_dicts(),
        answers=catalog.frame(_ANSWERS, given).to_dicts(),
        others=[r["id"] for r in found[1:]],
    )


def compare(catalog: Catalog, one: Subject, two: Subject) -> list[Compared]:
    """Every task that one of them has, with the same parameters."""
    made = []
    for task, parameters in sorted({*one.tasks(), *two.tasks()}):
        a, b = one.best(task, parameters), two.best(task, parameters)
        paired = a is not None and b is not None and (a["dataset"], a["metric"]) == (b["dataset"], b["metric"])
        made.append(Compared(task, a, b, _difference(catalog, a, b) if a and b and paired else None))
    return made


def _difference(catalog: Catalog, one: Row, two: Row) -> tuple[float, float, float, int] | None:
    """(mean, low, high, n), the interval by a bootstrap over clusters; None where they share no sample."""
    from vkvdb.statistics import difference

    given = {"metric": one["metric"], "one": one["job"], "two": two["job"]}
    given |= {"stage_one": one["stage"], "part_one": one["part"], "stage_two": two["stage"], "part_two": two["part"]}
    rows = catalog.frame(_PAIRED, given)
    if rows.is_empty():
        return None
    column = {name: rows[name].to_numpy() for name in rows.columns}
    weights = (column["weight_one"], column["weight_two"])
    found = difference(column["one"], column["two"], weights, column["grp"], column["cluster"])
    return float(found.mean), float(found.low), float(found.high), rows.height


def provenance(catalog: Catalog, ids: Iterable[str], subjects: Sequence[Subject]) -> Mapping[str, list[Row]]:
    """{"jobs", "models", "datasets"}: where every number comes from, of the jobs with these ids."""
    jobs = catalog.frame(_JOBS, {"ids": sorted(set(ids))}).to_dicts()
    models = sorted({j["model"] for j in jobs} | {s.model["model"] for s in subjects})
    datasets = sorted({j["dataset"] for j in jobs})
    return {
        "jobs": jobs,
        "models": catalog.frame(_CHECKPOINTS, {"models": models}).to_dicts(),
        "datasets": catalog.frame(_DATASETS, {"datasets": datasets}).to_dicts(),
    }


def number(value: float | None) -> str:
    """Three digits after the point; a dash for none."""
    return "\u2013" if value is None or not math.isfinite(value) else f"{value:.3f}"


def interval(row: Row, name: str = "") -> str:
    """`0.431 [0.402, 0.460]`; `name` is what stands before low and high, and names the value (`difference`)."""
    value, low, high = (
        row.get(k) for k in ((name, f"{name}_low", f"{name}_high") if name else ("value", "low", "high"))
    )
    if value is None:
        return "\u2013"
    return number(value) if low is None else f"{number(value)} [{number(low)}, {number(high)}]"
