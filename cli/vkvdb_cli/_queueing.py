"""What `score` and `extract` share: their options, the queueing, and running at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from vkvdb.paths import Home
    from vkvdb.planning import Choices, Planned
    from vkvdb.store import Store

BUDGET_GB = 10.0
POSITIVE = click.FloatRange(0, min_open=True)

_OPTIONS = (
    click.option(
        "--model", help="A folder, a hub id, toy or pixels; then @random:SEED, @random-decoder:SEED or @blank."
    ),
    click.option("--dataset", help="An ingested dataset, NAME-SPLIT."),
    click.option("--limit", type=click.IntRange(1), help="A seeded choice of N, in the groups' proportions."),
    click.option("--layers", help="Which layers, like 0,7,14-20; all unless told."),
    click.option("--parts", help="Which parts, of key,key_unrotated,value,hidden."),
    click.option("--prefix", default="", help="Text before the image."),
    click.option("--square", type=click.IntRange(1), help="Stretch images to N x N pixels first."),
    click.option(
        "--view", default="base", show_default=True, help="base, or tiles where a model cuts images into them."
    ),
    click.option(
        "--intervene",
        "interventions",
        multiple=True,
        metavar="TEXT",
        help="Change the decoder: knockout:image->image@3:h0 or replace:base=zero@input; may be repeated.",
    ),
    click.option("--dtype", help="float32, float16 or bfloat16; the checkpoint's own unless told."),
    click.option("--attention", default="sdpa", show_default=True, help="The attention implementation."),
    click.option("--quantisation", type=click.Choice(["4bit", "8bit"]), help="Load with bitsandbytes."),
    click.option("--block", type=click.IntRange(1), default=8, show_default=True, help="Images in one forward pass."),
    click.option("--seed", type=int, default=0, show_default=True, help="Of the choice that --limit makes."),
    click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1 ..."),
    click.option("--device-map", default="", help="Spread a large model, as accelerate does: auto."),
    click.option("--now", is_flag=True, help="Run at once, here."),
    click.option("--again", is_flag=True, help="Run a job that is done once more."),
    click.option("--dry-run", is_flag=True, help="Say what it would take, from 5 images; queue nothing."),
)


def capture_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what is read of which model."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def choices(options: dict[str, Any]) -> Choices:
    """Checked options as the planner wants them."""
    from vkvdb.planning import Choices, parse_layers, parse_parts

    return Choices(
        layers=parse_layers(options["layers"]) if options["layers"] else None,
        parts=parse_parts(options["parts"]) if options["parts"] else None,
        prefix=options["prefix"],
        square=options["square"],
        view=options["view"],
        dtype=options["dtype"],
        quantisation=options["quantisation"],
        attention=options["attention"],
        interventions=_interventions(options["interventions"]),
        block=options["block"],
        limit=options["limit"],
        seed=options["seed"],
        device=options["device"],
        device_map=options["device_map"],
        cache_gb=options.get("cache_gb", 8.0),
        again=options["again"],
    )


def _interventions(texts: Sequence[str]) -> tuple[str, ...]:
    """Interventions in their one form. Raises BadIntervention."""
    if not texts:
        return ()
    from vkvdb.interventions import canonical

    return canonical(texts)


def ensure_made(home: Home, store: Store, dataset: str) -> None:
    """Ingest a dataset that is made, not downloaded, when it isn't there yet; said once."""
    from vkvdb.ingestion import adapter, ingest
    from vkvdb_cli.progress import progress

    if store.dataset_named(dataset) is None and not adapter(dataset)[2].layout:
        click.echo(f"making {dataset} (once)", err=True)
        ingest(dataset, None, home, store, progress=progress)


def describe(planned: Planned) -> str:
    """A job in a line: what, of which model, on what, how much of it."""
    from vkvdb.jobs import to_json
    from vkvdb_cli._jobs import what

    size = str(planned.n) if planned.n == planned.of else f"{planned.n} of {planned.of}"
    return f"{what(to_json(planned.job.spec))}  {planned.checkpoint.name}  {planned.dataset}  n={size}"


def queue(home: Home, store: Store, planned: Sequence[Planned], now: bool) -> int:
    """Queue what isn't done, a line each; with `now` run these jobs here. Gives the exit code."""
    todo = enqueue(home, store, planned)
    if not todo:
        click.echo(f"nothing to do: see vkvdb jobs show {planned[0].job.id[:8]}, or add --again")
        return 0
    if now:
        from vkvdb_cli.commands.work import run_jobs

        return run_jobs(home, todo)
    click.echo("run with: vkvdb work")
    return 0


def enqueue(home: Home, store: Store, planned: Sequence[Planned]) -> list[str]:
    """Queue what isn't done, a line each; the ids of the jobs that are to do."""
    from vkvdb.queue import Queue

    waiting = Queue(home.queue)
    todo = []
    for plan in planned:
        job = plan.job
        if store.job(job.id, job.edition) is not None:
            click.echo(f"already done    {job.id[:8]}  {describe(plan)}")
            continue
        added = waiting.enqueue(job)
        click.echo(f"{'queued        ' if added else 'already queued'}  {job.id[:8]}  {describe(plan)}")
        todo.append(job.id)
    return todo


def dry_run(home: Home, store: Store, planned: Sequence[Planned]) -> None:
    """Print captures, weight and time of each job, from a probe of 5 images."""
    from vkvdb.probing import probe
    from vkvdb_cli.output import print_table

    rows = []
    for plan in planned:
        found = probe(plan, home, store)
        rows.append(
            (
                describe(plan),
                found.captures,
                f"{found.gigabytes:.2f}",
                f"{found.seconds_per_image:.3f}",
                f"{found.minutes:.1f}",
            )
        )
    print_table(["job", "images to capture", "GB of tokens", "s an image", "minutes of capture"], rows)
