"""Run everything on the toy world, offline: six tasks, answers, keys, prefixes, six analyses, one report."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from vkvdb.paths import Home
    from vkvdb.planning import Planned
    from vkvdb.store import Store

MODEL = "toy"
ANALYSES = ("layers", "encoder", "correlation", "keys", "prefix", "surfacing")
# How many samples the short demo scores: enough for a curve, few enough for two cores and three minutes. The full one
# scores all, but for FULL_TASKS, in about a quarter of an hour.
TASKS = {
    "segmentation": 30,
    "foreground": 24,
    "cosegmentation": 3,
    "referring": 24,
    "correspondence": 40,
    "temporal_correspondence": 2,
}
FULL_TASKS = {"segmentation": 300}
VALUES = ("value",)
PARTS = {"cosegmentation": VALUES}  # clustering is dear; the others are read at what charts show
ACROSS = "foreground"  # the task that all models of the correlation are scored on
PREFIXED = "segmentation"
CALIBRATED, PREFIXES, CUT = 64, 24, 60
FULL_PREFIXES, FULL_CUT = 300, 600  # the first as many as are scored without a prefix
# In the full demo only: a floor of its own, and what held-out parts are told by, with the controls that it takes.
FLOOR = "colours"
HELD_OUT_PARTS = "toyworld-parts"
BESIDE_PARTS = (MODEL, "toy-siglip", "pixels", f"{MODEL}@random:0")


@click.command()
@click.option("--full", is_flag=True, help="The whole test split instead of the small demo split; resumes.")
@click.pass_context
def command(ctx: click.Context, full: bool) -> None:
    """Ingest the toy world, measure the toy model beside its controls, draw every analysis and write the report.

    Jobs that are done are not run again: the second time it says so and points at charts and report.
    """
    from vkvdb.paths import find_home
    from vkvdb.planning_keys import default_calibration
    from vkvdb.store import Store
    from vkvdb_cli._queueing import enqueue, ensure_made
    from vkvdb_cli.commands.work import run_side_by_side

    home = find_home()
    store = Store(home.store)
    dataset = "toyworld-test" if full else "toyworld-demo"
    for name in (dataset, default_calibration(MODEL), *((HELD_OUT_PARTS,) if full else ())):
        ensure_made(home, store, name)
    worked = False
    # What is cut off in the second half follows from what the first one measured.
    for plans in (_measured, _cut):
        # Two studies may want the very same job.
        todo = list(dict.fromkeys(enqueue(home, store, list(plans(home, store, dataset, full=full)))))
        failed = run_side_by_side(home, todo, os.cpu_count() or 1) if todo else 0
        if failed:
            ctx.exit(failed)
        worked = worked or bool(todo)
    if not worked:
        click.echo("nothing to do: every job is done")
    for path in _drawn(home, home.charts / dataset, dataset, anew=worked):
        click.echo(str(path))


def _measured(home: Home, store: Store, dataset: str, *, full: bool) -> Iterator[Planned]:
    """The jobs that stand on nothing but the model."""
    from vkvdb.planning import Choices, default_encoders, score_jobs
    from vkvdb.planning_ask import ask_job
    from vkvdb.planning_keys import calibrate_jobs, default_calibration
    from vkvdb.planning_prefix import prefix_jobs
    from vkvdb.toyworld import names

    def scored(
        task: str, model: str = MODEL, *, on: str = dataset, parts: tuple[str, ...] | None = None, controls: bool = True
    ) -> list[Planned]:
        parts = parts or PARTS.get(task, ("key_unrotated", "value"))
        return score_jobs(
            home,
            store,
            task=task,
            model=model,
            dataset=on,
            parameters={},
            choices=Choices(parts=parts, limit=(FULL_TASKS if full else TASKS).get(task)),
            encoders=default_encoders(MODEL) if controls else (),
            controls=controls,
        )

    tasks = (*TASKS, "choices")
    for task in tasks:
        yield from scored(task)
    siblings = [name for name in names() if name.startswith(f"{MODEL}-") and name not in default_encoders(MODEL)]
    for model in siblings:
        yield from scored(ACROSS, model, parts=VALUES, controls=False)
    for model in (MODEL, f"{MODEL}@random:0", *siblings):
        swaps, reading = (full, "choices") if model == MODEL else (False, "")
        yield ask_job(home, store, model=model, dataset=dataset, choices=Choices(), swaps=swaps, task=reading)
    calibration, images = default_calibration(MODEL), Choices(limit=None if full else CALIBRATED)
    yield from calibrate_jobs(home, store, model=MODEL, dataset=calibration, choices=images)
    chosen = Choices(parts=("key_unrotated", "value"), limit=FULL_PREFIXES if full else PREFIXES)
    yield from prefix_jobs(home, store, model=MODEL, dataset=dataset, task=PREFIXED, parameters={}, choices=chosen)
    if not full:
        return
    for task in tasks:
        yield from scored(task, FLOOR, controls=False)
    beside = scored("correspondence", on=HELD_OUT_PARTS, parts=VALUES)
    yield from (plan for plan in beside if plan.checkpoint.name in BESIDE_PARTS)
    yield from scored("correspondence", FLOOR, on=HELD_OUT_PARTS, parts=VALUES, controls=False)


def _cut(home: Home, store: Store, dataset: str, *, full: bool) -> Iterator[Planned]:
    """Answers without the input-agnostic keys, where there are such."""
    from vkvdb.models._checkpoint import resolve
    from vkvdb.planning import Choices
    from vkvdb.planning_keys import group_of, knockout_jobs

    if group_of(store, resolve(MODEL, home))[0]:
        some = Choices(limit=FULL_CUT if full else CUT)
        yield from knockout_jobs(home, store, model=MODEL, dataset=dataset, choices=some).values()


def _drawn(home: Home, folder: Path, dataset: str, *, anew: bool) -> list[Path]:
    """Charts and report; drawn where something is new."""
    from vkvdb import analysis, report
    from vkvdb.errors import NothingToDraw
    from vkvdb_cli._after import reading

    page = folder / "report.html"
    there = sorted(folder.glob("*.*"))
    if page in there and not anew:
        return there
    reading(home)
    paths: list[Path] = []
    for name in ANALYSES:
        given = {"model": MODEL, "dataset": dataset}
        known = analysis.parameters(name)
        if name in ("correlation", "keys"):  # of all models; calibrated on other images
            given = {}
        try:
            found = analysis.run(home, name, {k: v for k, v in given.items() if k in known})
            paths += analysis.save(found, folder, ["html", "png"])
        except NothingToDraw as nothing:
            click.echo(f"{name}: {nothing}", err=True)
    return [*paths, report.write(home, MODEL, dataset, page, tell=lambda line: click.echo(f"vkvdb: {line}", err=True))]
