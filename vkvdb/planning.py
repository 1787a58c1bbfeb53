"""From what a person typed to jobs: names resolved, options checked, the controls that belong to a score added.

No weights are loaded here; a model's facts are published in the store, so that a catalog can be rebuilt.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from vkvdb import prefixes
from vkvdb.errors import BadOption, NotIngested
from vkvdb.extraction import bytes_per_image, image_list, limited_images, wanted_sites
from vkvdb.jobs import CaptureSpec, Extract, Job, Provenance, Score
from vkvdb.models._checkpoint import Checkpoint, resolve, variants
from vkvdb.paths import Home
from vkvdb.scoring import among, changed, choose, make_task, plan_images, prefixed, samples_of
from vkvdb.store import Store
from vkvdb.types import PARTS, SiteShape

if TYPE_CHECKING:
    from vkvdb.store import ImageRow

DEFAULT_MODEL = "toy"
DEFAULT_DATASET = "toyworld-test"
READABLE = PARTS[:4]


def default_model() -> str:
    """What a person set as `VKVDB_MODEL`, else the model that ships."""
    return os.environ.get("VKVDB_MODEL") or DEFAULT_MODEL


def default_dataset() -> str:
    """What a person set as `VKVDB_DATASET`, else the world that ships."""
    return os.environ.get("VKVDB_DATASET") or DEFAULT_DATASET


def default_encoders(model: str) -> tuple[str, ...]:
    """The stand-alone encoder that a model which ships started from; for others a person names it."""
    from vkvdb.toyworld import STANDALONE

    return (STANDALONE[model],) if model in STANDALONE else ()


@dataclass(frozen=True, kw_only=True)
class Choices:
    """The options that `score` and `extract` share. Fields mean what `CaptureSpec` and `Provenance` say."""

    layers: tuple[int, ...] | None = None
    parts: tuple[str, ...] | None = None
    prefix: str = ""
    square: int | None = None
    view: str = "base"
    dtype: str | None = None
    quantisation: str | None = None
    attention: str = "sdpa"
    interventions: tuple[str, ...] = ()
    block: int = 8
    limit: int | None = None
    seed: int = 0
    device: str = "auto"
    device_map: str = ""
    cache_gb: float = 8.0
    again: bool = False


@dataclass(frozen=True)
class Planned:
    """A job with what is known about it before it runs."""

    job: Job
    checkpoint: Checkpoint
    rows: Sequence[ImageRow]
    shapes: tuple[SiteShape, ...]
    n: int
    of: int
    dataset: str

    @property
    def bytes_per_image(self) -> int:
        """What an image's tokens weigh."""
        return bytes_per_image(self.checkpoint, self.shapes, self.job.spec.capture, self.rows)


def parse_layers(text: str) -> tuple[int, ...]:
    """`0,7,14-20` as numbers. Raises BadOption."""
    found: set[int] = set()
    for piece in text.split(","):
        first, dash, last = piece.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()) or (dash and int(last) < int(first)):
            raise BadOption(option="--layers", value=text, why="numbers and ranges are expected, like 0,7,14-20")
        found.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(found))


def parse_parts(text: str) -> tuple[str, ...]:
    """`key,value` as parts, sorted. Raises BadOption."""
    parts = {p.strip() for p in text.split(",")}
    if bad := sorted(parts - set(READABLE)):
        raise BadOption(option="--parts", value=bad[0], why=f"there are {', '.join(READABLE)}")
    return tuple(sorted(parts))


def find_dataset(store: Store, name: str) -> dict[str, Any]:
    """The manifest of an ingested dataset. Raises UnknownName or NotIngested."""
    from vkvdb.ingestion import adapter

    found = store.dataset_named(name)
    if found is None:
        known = sorted({m["name"] for m in store.datasets()})
        hint = " --root DIR" if adapter(name)[2].layout else ""
        raise NotIngested(name=name, known=", ".join(known) or "none", hint=hint)
    return dict(found)


def score_jobs(
    home: Home,
    store: Store,
    *,
    task: str,
    model: str,
    dataset: str,
    parameters: Mapping[str, Any],
    choices: Choices,
    encoders: Sequence[str] = (),
    controls: bool = True,
) -> list[Planned]:
    """The job that was asked for, then those of the encoders named beside it, then its controls.

    Controls are raw pixels, the random twin, a blank image and a random decoder (method.md 2); position and ceiling are
    rows of every job.
    """
    manifest = find_dataset(store, dataset)
    made = make_task(task, parameters)
    every = samples_of(made, store.samples(manifest["hash"]), task, dataset)
    among(made, every)  # refuses what it can't be told of; the parameters stay as they were given
    chosen = choose(every, choices.limit, choices.seed)
    limit = choices.limit if len(chosen) < len(every) else None
    checkpoint = resolve(model, home)
    names = [model, *encoders]
    if controls:
        names += [*(f"{e}@random:0" for e in encoders if resolve(e, home).path), *variants(checkpoint)]
    planned = []
    for name in dict.fromkeys(names):
        found = checkpoint if name == model else resolve(name, home)
        own = choices if name == model or _same_code(found, checkpoint) else _for_encoder(choices)
        shapes = wanted_sites(found.sites(), own.layers, own.parts or Score.parts)
        kept = prefixed(own.prefix, made, chosen, store.samples(manifest["hash"]))
        rows, selection = plan_images(made, kept, store.images(manifest["hash"]), limit, own.prefix)
        spec = Score(
            capture=_capture(found, manifest, own, selection, shapes),
            task=task,
            task_version=made.version,
            parameters=changed(made),
            layers=_all_or(own.layers, found),
            parts=own.parts or Score.parts,
            seed=own.seed if limit else 0,
            limit=limit,
        )
        job = Job(spec=spec, provenance=_provenance(found, dataset, own, len(every)))
        planned.append(Planned(_edition(store, job, own.again), found, rows, shapes, len(kept), len(every), dataset))
    # Only now that nothing can be refused any more.
    for plan in planned:
        publish_model(store, plan.checkpoint)
    return planned


def extract_job(home: Home, store: Store, *, model: str, dataset: str, choices: Choices) -> Planned:
    """The job that keeps a model's tokens of a dataset."""
    manifest = find_dataset(store, dataset)
    every = store.images(manifest["hash"])
    chosen = limited_images(every, choices.limit, choices.seed)
    rows, selection = image_list(every, chosen)
    found = resolve(model, home)
    prefixes.texts(choices.prefix, (row.name for row in rows), (s for _, s in store.samples(manifest["hash"])))
    parts = choices.parts or Extract.parts
    shapes = wanted_sites(found.sites(), choices.layers, parts)
    limit = None if chosen is None else choices.limit
    spec = Extract(
        capture=_capture(found, manifest, choices, selection, shapes),
        layers=_all_or(choices.layers, found),
        parts=parts,
        seed=choices.seed if limit else 0,
        limit=limit,
    )
    job = Job(spec=spec, provenance=_provenance(found, dataset, choices, len(every)))
    publish_model(store, found)
    return Planned(_edition(store, job, choices.again), found, rows, shapes, len(rows), len(every), dataset)


def _same_code(found: Checkpoint, asked: Checkpoint) -> bool:
    return found.path == asked.path and found.family == asked.family


def _for_encoder(choices: Choices) -> Choices:
    """What another model is read with: all its layers, its own type, no prefix and its own square, unchanged."""
    own: dict[str, Any] = {"prefix": "", "square": None, "view": "base", "interventions": ()}
    return replace(choices, layers=None, dtype=None, quantisation=None, **own)


def _all_or(layers: tuple[int, ...] | None, found: Checkpoint) -> tuple[int, ...] | None:
    """None when the layers named are all there are: the same job must not have two ids."""
    if layers is None:
        return None
    main = "decoder" if any(s.site.stage == "decoder" for s in found.sites()) else "encoder"
    there = {s.site.layer for s in found.sites() if s.site.stage == main}
    return None if set(layers) >= there else layers


def _capture(
    found: Checkpoint,
    manifest: Mapping[str, Any],
    choices: Choices,
    selection: str,
    shapes: Sequence[SiteShape] | None = None,
) -> CaptureSpec:
    """What is read how; `shapes` are the sites that the job reads, all that the model has unless told."""
    if choices.block < 1:
        raise BadOption(option="--block", value=choices.block, why="at least one image is expected")
    if choices.view not in found.code.views:
        raise BadOption(option="--view", value=choices.view, why=f"{found.family} has {', '.join(found.code.views)}")
    if prefixes.parse(choices.prefix) and not any(s.site.stage == "decoder" for s in found.sites()):
        raise BadOption(option="--prefix", value=choices.prefix, why=f"{found.family} reads no text before an image")
    return CaptureSpec(
        model=found.spec,
        dataset=manifest["hash"],
        square=choices.square,
        view=choices.view,
        prefix=choices.prefix,
        dtype=None if choices.dtype == found.dtype else choices.dtype,
        quantisation=choices.quantisation,
        attention=choices.attention,
        interventions=_interventions(found, choices, found.sites() if shapes is None else shapes),
        block=choices.block,
        selection=selection,
    )


def _interventions(found: Checkpoint, choices: Choices, shapes: Sequence[SiteShape]) -> tuple[str, ...]:
    if not choices.interventions:
        return ()
    from vkvdb.models._changes import fitting

    return fitting(choices.interventions, found, shapes, view=choices.view)


def _provenance(found: Checkpoint, dataset: str, choices: Choices, of: int) -> Provenance:
    return Provenance(
        model=found.reference,
        dataset=dataset,
        device=choices.device,
        device_map=choices.device_map,
        cache_gb=choices.cache_gb,
        of=of,
    )


def _edition(store: Store, job: Job, again: bool) -> Job:
    newest = store.newest_edition(job.id)
    return replace(job, edition=0 if newest is None else newest + int(again))


def publish_model(store: Store, found: Checkpoint) -> bool:
    """Publish a model's facts, once: what it is, its sites and the hashes of its files."""
    body = {
        "kind": "model",
        "hash": found.id,
        "name": found.name,
        "path": found.reference if found.path else "",
        "checkpoint": found.hash,
        "family": found.family,
        "family_version": found.spec.family_version,
        "variant": found.variant,
        "dtype": found.dtype,
        "sites": [
            {"stage": s.site.stage, "layer": s.site.layer, "part": s.site.part, "heads": s.heads, "dim": s.dim}
            for s in found.sites()
        ],
        "parameters": None,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "files": found.files,
    }
    return store.publish_json(store.model_path(found.id), body)
