"""Run the main job on the toy world, offline, and draw its charts."""

from __future__ import annotations

import click

TASKS = ("correspondence", "foreground")
MODEL = "toy"


@click.command()
@click.option("--full", is_flag=True, help="The whole test split instead of the small demo split; resumes.")
@click.pass_context
def command(ctx: click.Context, full: bool) -> None:
    """Ingest the toy world, score the toy model beside its controls, and draw how information flows through it.

    Jobs that are done are not run again: the second time it says so and points at the charts.
    """
    from vkvdb import analysis
    from vkvdb.paths import find_home
    from vkvdb.planning import Choices, default_encoders, score_jobs
    from vkvdb.store import Store
    from vkvdb_cli._after import reading
    from vkvdb_cli._queueing import enqueue, ensure_made
    from vkvdb_cli.commands.work import run_jobs

    home = find_home()
    store = Store(home.store)
    dataset = "toyworld-test" if full else "toyworld-demo"
    ensure_made(home, store, dataset)
    planned = [
        plan
        for task in TASKS
        for plan in score_jobs(
            home,
            store,
            task=task,
            model=MODEL,
            dataset=dataset,
            parameters={},
            choices=Choices(),
            encoders=default_encoders(MODEL),
        )
    ]
    todo = enqueue(home, store, planned)
    failed = run_jobs(home, todo) if todo else 0
    if failed:
        ctx.exit(failed)
    folder = home.charts / dataset
    drawn = sorted(folder.glob("layers.*"))
    if todo or not drawn:
        reading(home)
        drawn = analysis.save(analysis.run(home, "layers", {"model": MODEL, "dataset": dataset}), folder)
    else:
        click.echo("nothing to do: every job is done and drawn")
    for path in drawn:
        click.echo(str(path))
