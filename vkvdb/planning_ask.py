"""From what a person typed to an ask job: names resolved, options checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vkvdb import prefixes
from vkvdb.asking import VERSION, plan_images, questions_of
from vkvdb.errors import BadOption
from vkvdb.extraction import wanted_sites
from vkvdb.jobs import Ask, Job
from vkvdb.models._checkpoint import Checkpoint, resolve
from vkvdb.paths import Home
from vkvdb.planning import Choices, Planned, _all_or, _capture, _edition, _provenance, find_dataset, publish_model
from vkvdb.samples import Question
from vkvdb.scoring import changed, choose, make_task
from vkvdb.store import Store
from vkvdb.types import Task


def answering(model: str, home: Home) -> Checkpoint:
    """A model that can answer. Raises BadOption for one without a decoder, and what `resolve` raises."""
    found = resolve(model, home)
    if not any(s.site.stage == "decoder" for s in found.sites()):
        why = f"{found.family} has no decoder to answer with; ask a vision-language model"
        raise BadOption(option="--model", value=model, why=why)
    return found


def reading_task(name: str, parameters: Mapping[str, Any]) -> Task | None:
    """The task of `--read`; None without. Raises BadOption when it reads no questions, and what `make_task` raises."""
    if not name:
        if parameters:
            raise BadOption(option="-p", value=next(iter(parameters)), why="parameters are those of --read TASK")
        return None
    made = make_task(name, parameters)
    if not issubclass(Question, made.takes):
        why = f"it reads {made.takes.kind}, not question (vkvdb score --task {name} does)"
        raise BadOption(option="--read", value=name, why=why)
    return made


def ask_job(
    home: Home,
    store: Store,
    *,
    model: str,
    dataset: str,
    choices: Choices,
    tokens: int = Ask.tokens,
    swaps: bool = Ask.swaps,
    task: str = "",
    parameters: Mapping[str, Any] | None = None,
) -> Planned:
    """The job that asks a model a dataset's questions. Options of reading are refused where no task reads."""
    found = answering(model, home)
    made = reading_task(task, parameters or {})
    if made is None:
        given = (
            ("--layers", choices.layers),
            ("--parts", choices.parts),
            ("--view", choices.view.removeprefix("base")),
        )
        for option, value in given:
            if value:
                shown = value if isinstance(value, str) else ",".join(map(str, value))
                raise BadOption(option=option, value=shown, why="it says what --read TASK reads")
    if prefixes.parse(choices.prefix):
        why = "a question is asked after plain text, the same for all its images"
        raise BadOption(option="--prefix", value=choices.prefix, why=why)
    manifest = find_dataset(store, dataset)
    every = questions_of(store.samples(manifest["hash"]), dataset)
    chosen: Any = choose(every, choices.limit, choices.seed)
    limit = choices.limit if len(chosen) < len(every) else None
    rows, selection = plan_images(chosen, store.images(manifest["hash"]), limit)
    parts = choices.parts or Ask.parts
    shapes = wanted_sites(found.sites(), choices.layers, parts)
    capture = _capture(found, manifest, replace(choices, interventions=()), selection)
    spec = Ask(
        capture=replace(capture, interventions=_interventions(found, choices)),
        asking_version=VERSION,
        tokens=tokens,
        swaps=swaps,
        task=task,
        task_version=made.version if made else 0,
        parameters=changed(made) if made else (),
        layers=_all_or(choices.layers, found),
        parts=parts,
        seed=choices.seed if limit else 0,
        limit=limit,
    )
    job = Job(spec=spec, provenance=_provenance(found, dataset, choices, len(every)))
    publish_model(store, found)
    return Planned(_edition(store, job, choices.again), found, rows, shapes, len(chosen), len(every), dataset)


def _interventions(found: Checkpoint, choices: Choices) -> tuple[str, ...]:
    if not choices.interventions:
        return ()
    from vkvdb.models._changes import fitting

    return fitting(choices.interventions, found, found.sites(), whole=True)
