"""A sample as a picture: what is read of it at one site and head, beside the truth.

The picture stands on the same tokens as the score: a job's specification says how its images are captured, in the same
blocks, and the task reads them at one site and head by the same code. Where a job has been scored, its settings are
taken, and the best site and head of its results unless a person names others.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vkvdb.errors import BadOption, NoSuchSample
from vkvdb.extraction import Source, dataset_root
from vkvdb.jobs import Job, Provenance, Score, from_json
from vkvdb.models._checkpoint import Checkpoint, resolve
from vkvdb.paths import Home
from vkvdb.planning import Choices, default_dataset, default_model, find_dataset, score_jobs
from vkvdb.samples import Sample
from vkvdb.scoring import changed, choose, make_task, plan_images, prefixed, samples_of
from vkvdb.store import Store
from vkvdb.types import CEILING, POSITION, Capture, Pictured, Site, SiteShape, Task, TokenStack

if TYPE_CHECKING:
    import PIL.Image
    import torch

_BEST = """
SELECT concat_ws('.', stage, layer, part) AS place, head, value FROM results
WHERE id = $job AND metric = $metric AND stage = $stage AND value IS NOT NULL
    AND ($site IS NULL OR place = $site) AND ($head IS NULL OR head = $head)
ORDER BY head < 0, value DESC, layer, part, head LIMIT 1
"""


@dataclass(frozen=True)
class Picture:
    """A sample, drawn. `head` is -1 for all heads together; `job` is None where nothing was scored.

    `scores` are {metric: value} of this sample at this site and head, without those that are not defined. `chosen`
    says how site and head came about.
    """

    image: PIL.Image.Image
    sample: Sample
    site: Site
    head: int
    job: str | None
    scores: Mapping[str, float]
    chosen: str


@dataclass(frozen=True)
class _Asked:
    """What a picture is of, but for the sample: `dataset` is its hash."""

    home: Home
    store: Store
    checkpoint: Checkpoint
    dataset: str
    name: str
    task: Task
    samples: Sequence[tuple[int, Sample]]


def picture(
    home: Home,
    sample: str,
    task: str,
    *,
    model: str | None = None,
    dataset: str | None = None,
    site: str | None = None,
    head: int | None = None,
    parameters: Mapping[str, Any] | None = None,
    device: str = "auto",
    tell: Callable[[str], None] = warnings.warn,
) -> Picture:
    """Draw a sample, named by its id or the beginning of it; images are captured anew where the store has no tokens.

    Of what is not scored yet, the model's facts are published, as by queueing the job; nothing is scored or kept.
    `tell` is given what can't be absorbed. Raises UnknownName, NotIngested, NoSuchSample, BadOption for a site or head
    that the model does not have or a task that draws nothing, and whatever reading the model raises.
    """
    store = Store(home.store)
    made = make_task(task, parameters or {})
    if not isinstance(made, Pictured):
        raise BadOption(option="--task", value=task, why="this task draws no pictures")
    checkpoint = resolve(model or default_model(), home)
    manifest = find_dataset(store, dataset or default_dataset())
    samples = samples_of(made, store.samples(manifest["hash"]), task, manifest["name"])
    asked = _Asked(home, store, checkpoint, manifest["hash"], task, made, samples)
    number, found = _find(samples, sample, manifest["name"])
    scored = _scored(asked, number)
    job = scored or _planned(asked, model, parameters)
    shape, chosen_head, chosen = _where(asked, scored, site, head, tell=tell)
    job = replace(job, provenance=replace(job.provenance, device=device, model=checkpoint.reference))
    captures, texts = _read(asked, job, found, shape, chosen_head)
    panels = made.picture(found, captures, texts)
    values, beside = _scores(made, found, captures, texts, shape.site)
    from vkvdb.drawing import draw
    from vkvdb.images import open_image

    rows = {row.name: row for row in store.images(manifest["hash"])}
    root = dataset_root(home, store, manifest)
    opened = {p.image: open_image(root, rows[p.image]) for p in panels}
    of_head = "" if shape.heads == 1 else ", all heads together" if chosen_head < 0 else f", head {chosen_head}"
    title = f"{task}: {checkpoint.name}, {shape.site}{of_head}"
    lines = [
        ", ".join(f"{metric} {value:.3f}" for metric, value in values.items()) or "not defined for this sample",
        *([beside] if beside else []),
        f"sample {found.id} of {manifest['name']}, {found.group}; {chosen}",
        _legend(panels),
    ]
    image = draw([(p, opened[p.image]) for p in panels], title, [line for line in lines if line])
    return Picture(image, found, shape.site, chosen_head, job.id if scored else None, values, chosen)


def _find(samples: Sequence[tuple[int, Sample]], name: str, dataset: str) -> tuple[int, Sample]:
    """A sample by its id or the beginning of it. Raises NoSuchSample."""
    exact = [item for item in samples if item[1].id == name]
    begun = exact or [item for item in samples if item[1].id.startswith(name)]
    if len(begun) == 1:
        return begun[0]
    told = ", ".join(s.id for _, s in (begun or samples)[:5])
    what = f"{len(begun)} samples begin with it" if begun else "no sample begins with it"
    raise NoSuchSample(sample=name, dataset=dataset, what=what, some=told)


def _planned(asked: _Asked, model: str | None, parameters: Mapping[str, Any] | None) -> Job:
    """The job that would score the sample, with default settings."""
    (planned,) = score_jobs(
        asked.home,
        asked.store,
        task=asked.name,
        model=model or default_model(),
        dataset=asked.store.dataset(asked.dataset)["name"],
        parameters=parameters or {},
        choices=Choices(),
        controls=False,
    )
    return planned.job


def _scored(asked: _Asked, number: int) -> Job | None:
    """The newest job that scored this sample with this model, task and parameters, on an unchanged model."""
    found = []
    for manifest in asked.store.jobs():
        spec = from_json(manifest["spec"])
        if not isinstance(spec, Score) or (spec.task, spec.task_version) != (asked.name, asked.task.version):
            continue
        capture = spec.capture
        if capture.model != asked.checkpoint.spec or capture.dataset != asked.dataset or capture.interventions:
            continue
        chosen = {n for n, _ in choose(asked.samples, spec.limit, spec.seed)}
        if spec.parameters == changed(asked.task) and number in chosen:
            found.append((spec.limit is None, manifest["finished"], manifest, spec))
    if not found:
        return None
    _, _, manifest, spec = max(found, key=lambda f: f[:2])
    return Job(spec=spec, provenance=Provenance(**manifest["provenance"]), edition=manifest["edition"])


def _where(
    asked: _Asked, scored: Job | None, site: str | None, head: int | None, *, tell: Callable[[str], None]
) -> tuple[SiteShape, int, str]:
    """The site and head to show, and how they came about. Raises BadOption for what the model does not have."""
    checkpoint, task = asked.checkpoint, asked.task
    shapes = {str(s.site): s for s in checkpoint.sites()}
    main = "decoder" if any(s.site.stage == "decoder" for s in shapes.values()) else "encoder"
    if site is not None and site not in shapes:
        last = max(s.site for s in shapes.values() if s.site.stage == main)
        raise BadOption(option="--site", value=site, why=f"{checkpoint.name} has sites like {last}")
    stage = shapes[site].site.stage if site else main
    best, job = None, ""
    if scored is not None and (site is None or head is None):
        given = {"job": scored.id, "metric": task.metrics[0], "stage": stage, "site": site, "head": head}
        best = _best(asked.home, given, tell)
        job = scored.id[:8]
    chosen = -1 if head is None else head
    if best is not None:
        place, chosen, value = best
        at = f" at {site}" if site else ""
        how = f"the best{at} of job {job}, {task.metrics[0]} {value:.3f} on what it is chosen on"
    elif site is not None:
        place, how = site, "the site that was asked for"
    else:
        place, how = _middle(shapes.values(), main), "not scored yet: the middle layer"
    shape = shapes[place]
    if not -1 <= chosen < shape.heads:
        raise BadOption(
            option="--head", value=chosen, why=f"{shape.site} has heads 0 to {shape.heads - 1}, or -1 for all"
        )
    return shape, chosen, how


def _best(home: Home, given: Mapping[str, Any], tell: Callable[[str], None]) -> tuple[str, int, float] | None:
    """The site, head and value that are best in a job's results; None where none fits. Raises CatalogLocked."""
    from vkvdb.syncing import fresh, patiently

    catalog = fresh(home, tell)
    rows = patiently(lambda: catalog.query(_BEST, given)).rows
    return (rows[0][0], int(rows[0][1]), float(rows[0][2])) if rows else None


def _middle(shapes: Iterable[SiteShape], stage: str) -> str:
    """The middle of a stage's layers: its values where it has some."""
    sites = sorted(s.site for s in shapes if s.site.stage == stage)
    sites = [s for s in sites if s.part == "value"] or sites
    return str(sites[len(sites) // 2])


def _read(
    asked: _Asked, job: Job, sample: Sample, shape: SiteShape, head: int
) -> tuple[dict[str, Capture], dict[str, dict[Site, torch.Tensor]]]:
    """What the task needs for the sample, at one site and head: captured in the job's blocks, as it was scored."""
    spec = job.spec
    assert isinstance(spec, Score)
    chosen = choose(asked.samples, spec.limit, spec.seed)
    prefix = spec.capture.prefix
    chosen = prefixed(prefix, asked.task, chosen, asked.store.samples(asked.dataset))
    rows, selection = plan_images(asked.task, chosen, asked.store.images(asked.dataset), spec.limit, prefix)
    assert selection == spec.capture.selection
    source = Source(job, asked.home, asked.store, rows, (shape,))
    needs = asked.task.needs(sample)
    block = spec.capture.block
    places = {row.name: divmod(n, block) for n, row in enumerate(rows)}
    blocks = {n: source.read(n) for n in sorted({places[name][0] for name in needs.images})}
    captures = {name: _one(blocks[places[name][0]][places[name][1]], shape.site, head) for name in needs.images}
    texts = {words: source.model.text(words, [shape.site]) for words in needs.texts}
    return captures, {words: {s: _head(v, head) for s, v in of.items()} for words, of in texts.items()}


def _one(capture: Capture, site: Site, head: int) -> Capture:
    """A capture with one site and one head; all heads together are one head of all their dimensions."""
    tokens = capture.tokens[site]
    heads, rows, cols, dim = tokens.shape
    kept = tokens[head : head + 1] if head >= 0 else tokens.permute(1, 2, 0, 3).reshape(1, rows, cols, heads * dim)
    return replace(capture, stacks=(TokenStack((site,), kept[None]),))


def _head(vectors: torch.Tensor, head: int) -> torch.Tensor:
    """The same of a text's vectors (heads, dim)."""
    return vectors[head : head + 1] if head >= 0 else vectors.reshape(1, -1)


def _scores(task: Task, sample: Sample, captures: Any, texts: Any, site: Site) -> tuple[dict[str, float], str]:
    """{metric: value} at the site, and the first metric's floor and ceiling in words."""
    values: dict[Site, dict[str, float]] = {}
    for scores in task.score(sample, captures, texts):
        for at, row in zip(scores.sites, scores.values, strict=True):
            value = float(row[0])
            if value == value:  # noqa: PLR0124 - NaN is what is not defined
                values.setdefault(at, {})[scores.metric] = value
    told = [
        f"{name} {values[at][task.metrics[0]]:.3f}"
        for at, name in ((POSITION, "from the position alone"), (CEILING, "ceiling of the grid"))
        if task.metrics[0] in values.get(at, {})
    ]
    return values.get(site, {}), f"{task.metrics[0]} " + ", ".join(told) if told else ""


def _legend(panels: Sequence[Any]) -> str:
    """What the colours mean, of those that are there."""
    if any(p.right for p in panels):
        return "green: right; red: wrong, with a white line to where it should be; white ring: the truth"
    if any(len(p.found) == 1 and len(p.truth) == 1 for p in panels):
        return "green: found and right; red: found and wrong; white line: the truth"
    if any(p.found for p in panels):
        return "colours: the objects as they were carried; lines: the truth"
    return ""
