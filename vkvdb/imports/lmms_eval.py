"""Results of lmms-eval: `DATE_results.json`, as a run with --output_path writes it.

Format [C: EvolvingLMMs-Lab/lmms-eval, 75571cf: `EvaluationTracker.save_results_aggregated` in
lmms_eval/loggers/evaluation_tracker.py writes the file, `evaluate` in lmms_eval/evaluator.py and `consolidate_results`
in lmms_eval/evaluator_utils.py what is in it]. `results` is {task or group: {"METRIC,FILTER": number}}; the key `alias`
and the single blank of a group without numbers are no metrics; `METRIC_stderr,FILTER`, `_stderr_clt` and
`_stderr_clustered` are errors, not results, and are left out; "N/A", an empty list or null is a metric that has no
number. NumPy's narrow floats come as text, since JSON has no word for them. `n-samples` is {task: {original,
effective}}, for tasks but not for groups, where a run's --limit stands as it is: a count, a share of all, or -1 for
all; without it n is not known. `model_name` is cut out of the model's arguments and may be empty, then `config.model`
is the name of the code that ran it.

A metric keeps its filter in its name unless that is `none`. The samples' own file (`DATE_samples_TASK.jsonl`) holds
answers, no means: it is refused, and the results file of the same run is what to import.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vkvdb.errors import BadImport
from vkvdb.imports._numbers import Number, flat, json_of, unique

EXPECTED = "the DATE_results.json of an lmms-eval run"
_ERRORS = ("_stderr", "_stderr_clt", "_stderr_clustered")


def read(path: Path, benchmark: str | None = None) -> list[Number]:
    """The numbers of a file; those of one task when `benchmark` is given. Raises BadImport."""
    if path.suffix == ".jsonl":
        raise BadImport(path=path, why="it holds samples, no means", expected=EXPECTED)
    body = json_of(path, EXPECTED)
    results = body.get("results") if isinstance(body, dict) else None
    if not isinstance(results, dict) or not all(isinstance(found, dict) for found in results.values()):
        raise BadImport(path=path, why="it has no results of tasks", expected=EXPECTED)
    model = _model(path, body)
    if benchmark is not None and benchmark not in results:
        raise BadImport(path=path, why=f"its tasks are {', '.join(results)}", expected=f"one called {benchmark}")
    chosen = results if benchmark is None else {benchmark: results[benchmark]}
    return [
        Number(model, task, metric, value, _count(path, body, task))
        for task, found in chosen.items()
        for metric, value in unique(_metrics(found))
    ]


def _metrics(found: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in found.items():
        metric, _, kind = key.partition(",")
        if key == "alias" or not metric.strip() or metric.endswith(_ERRORS):
            continue
        yield from flat(value, metric if kind in ("", "none") else key)


def _model(path: Path, body: Mapping[str, Any]) -> str:
    config = body.get("config")
    names = (body.get("model_name"), config.get("model") if isinstance(config, dict) else None)
    name = next((n for n in names if isinstance(n, str) and n.strip()), None)
    if name is None:
        raise BadImport(path=path, why="it names no model", expected=EXPECTED)
    return name.strip()


def _count(path: Path, body: Mapping[str, Any], task: str) -> int | None:
    counts = body.get("n-samples", {})
    of = counts.get(task) if isinstance(counts, dict) else counts
    if of is None:
        return None
    n, every = (of.get("effective"), of.get("original")) if isinstance(of, dict) else (None, None)
    if not isinstance(n, int | float) or not isinstance(every, int) or every < 0:
        raise BadImport(path=path, why=f"n-samples of {task} is {of}", expected="effective and original counts")
    # What stands there is what --limit was: a count, a share of all, or -1 for no limit.
    return every if n < 0 else math.ceil(every * n) if n < 1 else int(n)


IMPORT = read
