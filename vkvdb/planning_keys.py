"""From what a person typed to the jobs about input-agnostic keys: their calibration, and what cutting them does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vkvdb.agnostic import DRAWS, TO_IMAGE, TO_TEXT, Edges, Head, above_last, find, knockouts
from vkvdb.calibrating import UNBIASED, VERSION, halves, key_sites, two_grids
from vkvdb.errors import BadOption, NotCalibrated
from vkvdb.extraction import image_list, limited_images
from vkvdb.jobs import Ask, Calibrate, Job, Spec, from_json
from vkvdb.models._checkpoint import Checkpoint, resolve, variants
from vkvdb.paths import Home
from vkvdb.planning import (
    Choices,
    Planned,
    _all_or,
    _capture,
    _edition,
    _provenance,
    find_dataset,
    publish_model,
    score_jobs,
)
from vkvdb.planning_ask import answering, ask_job
from vkvdb.store import ImageRow, Store
from vkvdb.toyworld import names as shipped_names
from vkvdb.types import Site

ENOUGH = 256  # images, unless a person says how many (method.md 3.4 asks for at least so many)
DATASET = "toyworld-val"


def default_calibration(model: str) -> str:
    """The dataset that a shipped model's keys are calibrated on: not the one that it is evaluated on.

    Raises BadOption for other models: a person names images that no score stands on.
    """
    base = model.partition("@")[0]
    if base in shipped_names():
        return DATASET
    why = "name images that no score stands on, like --dataset coco-train"
    raise BadOption(option="--dataset", value="not given", why=why)


def calibrate_jobs(
    home: Home, store: Store, *, model: str, dataset: str, choices: Choices, controls: bool = True
) -> list[Planned]:
    """The job that measures how much a model's keys vary over images, and the same of its random twin.

    Raises BadOption for a model without a decoder, and for images that do not give one grid.
    """
    manifest = find_dataset(store, dataset)
    every = store.images(manifest["hash"])
    limit = choices.limit or ENOUGH
    limit = min(limit, len(every))
    names = limited_images(every, limit, choices.seed)
    rows, selection = image_list(every, names)
    halves(rows, (s for _, s in store.samples(manifest["hash"])), choices.seed)  # refuses too few
    asked = resolve(model, home)
    parts = choices.parts or Calibrate.parts
    planned = []
    for found in [asked, *(resolve(twin, home) for twin in _twins(asked) if controls)]:
        shapes = key_sites(found.sites(), choices.layers, parts)
        _require_one_grid(found, rows, choices)
        spec = Calibrate(
            capture=_capture(found, manifest, choices, selection, shapes),
            calibrating_version=VERSION,
            layers=_all_or(choices.layers, found),
            parts=parts,
            seed=choices.seed,
            limit=None if names is None else limit,
        )
        job = Job(spec=spec, provenance=_provenance(found, dataset, choices, len(every)))
        plan = Planned(_edition(store, job, choices.again), found, rows, shapes, len(rows), len(every), dataset)
        planned.append(plan)
    for plan in planned:
        publish_model(store, plan.checkpoint)
    return planned


def _twins(asked: Checkpoint) -> list[str]:
    return [name for name in variants(asked) if "@random:" in name]


def _require_one_grid(found: Checkpoint, rows: Sequence[ImageRow], choices: Choices) -> None:
    """Refuse, before anything is queued, images that give different numbers of cells."""
    cells: dict[int, ImageRow] = {}
    for row in rows:
        size = row.width, row.height
        count = found.code.cells(found.config, found.processor, *size, choices.square, view=choices.view)
        cells.setdefault(count, row)
    if len(cells) > 1:
        raise two_grids(*map(str, sorted(cells)[:2]))


def calibration(store: Store, found: Checkpoint) -> list[dict[str, Any]]:
    """What a model's calibrate job measured of keys as they are before rotation: rows as `agnostic.find` takes them.

    Of several such jobs that of most images, then the latest; its job's id is in every row. Raises NotCalibrated.
    """
    jobs = [m for m in store.jobs() if m["spec"]["kind"] == Calibrate.kind and _fits(from_json(m["spec"]), found)]
    if not jobs:
        raise NotCalibrated(model=found.name, reference=found.reference)
    job = max(jobs, key=lambda m: (m["n"], m["finished"], m["job"]))
    rows = []
    for row in store.read_rows("key_variance", job["job"], job["edition"]).to_pylist():
        site = Site.from_number(row["site"])
        if site.part == UNBIASED and not row["unbiased"]:
            rows.append({**row, "layer": site.layer, "job": job["job"]})
    return rows


def group_of(store: Store, found: Checkpoint) -> tuple[frozenset[Head], str]:
    """A model's input-agnostic heads as they were calibrated, and a few words on them; none when it was not."""
    try:
        group = find(calibration(store, found))
    except NotCalibrated:
        return frozenset(), "not calibrated, so none is outlined"
    if not group.heads:
        return frozenset(), f"no group of input-agnostic ones ({group.why})"
    return group.heads, f"{len(group.heads)} input-agnostic ones outlined (S below {group.cut:.2g})"


def _fits(spec: Spec, found: Checkpoint) -> bool:
    """Whether a calibrate job is of that model, all its layers, unchanged and without a prefix."""
    capture = spec.capture
    whole = spec.layers is None and UNBIASED in spec.parts
    return whole and capture.model == found.spec and not capture.interventions and not capture.prefix


def conditions_of(
    home: Home, store: Store, *, model: str, draws: int = DRAWS, seed: int = 0, edges: Edges = TO_TEXT
) -> dict[str, tuple[str, ...]]:
    """{condition: interventions}: nothing cut (""), edges cut at a model's input-agnostic keys, and controls
    (`agnostic.knockouts`).

    Edges from image to image are cut above the last layer: no value comes after that. Raises NotCalibrated, and
    BadOption when the model has no decoder or no such group.
    """
    rows = calibration(store, answering(model, home) if edges == TO_TEXT else resolve(model, home))
    found = find(rows)
    if not found.heads:
        why = f"no group of input-agnostic keys was found ({found.why}), so there is nothing to cut"
        raise BadOption(option="--model", value=model, why=why)
    s = {(r["layer"], r["head"]): r["value"] for r in rows if r["half"] == 0}
    heads = found.heads
    if edges == TO_IMAGE:
        s = above_last(s)
        heads &= s.keys()
        if not heads:
            why = "all input-agnostic keys are in the last layer, and no image value comes after it"
            raise BadOption(option="--model", value=model, why=why)
    return {"": (), **knockouts(heads, s, draws=draws, seed=seed, edges=edges)}


def downstream_jobs(
    home: Home,
    store: Store,
    *,
    model: str,
    dataset: str,
    task: str,
    parameters: Mapping[str, Any],
    choices: Choices,
    draws: int = DRAWS,
) -> dict[str, Planned]:
    """{condition: the job that scores a task on a model's image values under it}: image -> image is cut.

    Without a cut it is the job of `vkvdb score`, of all parts; under cuts, image values alone are read. Draws that
    happen to be equal are one condition, the first of them.
    """
    planned: dict[str, Planned] = {}
    conditions = conditions_of(home, store, model=model, draws=draws, seed=choices.seed, edges=TO_IMAGE)
    for condition, cut in conditions.items():
        own = replace(choices, interventions=cut, parts=choices.parts or (("value",) if cut else None))
        (plan,) = score_jobs(
            home, store, task=task, model=model, dataset=dataset, parameters=parameters, choices=own, controls=False
        )
        if plan.job.id not in {p.job.id for p in planned.values()}:
            planned[condition] = plan
    return planned


def knockout_jobs(
    home: Home,
    store: Store,
    *,
    model: str,
    dataset: str,
    choices: Choices,
    draws: int = DRAWS,
    tokens: int = Ask.tokens,
) -> dict[str, Planned]:
    """{condition: the job that asks a model a dataset's questions, in their own order, under it}, of `conditions_of`.

    Draws that happen to be equal are one condition, the first of them.
    """
    planned: dict[str, Planned] = {}
    for condition, cut in conditions_of(home, store, model=model, draws=draws, seed=choices.seed).items():
        own = replace(choices, interventions=cut)
        plan = ask_job(home, store, model=model, dataset=dataset, choices=own, tokens=tokens, swaps=False)
        if plan.job.id not in {p.job.id for p in planned.values()}:
            planned[condition] = plan
    return planned
