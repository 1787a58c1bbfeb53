"""Score a task at every layer and head of a model, beside its controls."""

from __future__ import annotations

from typing import Any

import click

from vkvdb import registry
from vkvdb_cli._queueing import POSITIVE, capture_options


class WithTasks(click.Command):
    """Lists the tasks that there are below its options: read from their files, without importing them."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list, then the epilog."""
        with formatter.section("Tasks"):
            formatter.write_dl([(name, registry.help_line("tasks", name)) for name in registry.names("tasks")])
        super().format_epilog(ctx, formatter)


@click.command(cls=WithTasks, epilog="Controls are raw pixels, random weights, a blank image and a random decoder.")
@click.option("--task", required=True, help="What to score.")
@click.option("-p", "parameters", nargs=2, multiple=True, metavar="NAME VALUE", help="A parameter of the task.")
@click.option("--encoder", "encoders", multiple=True, help="An encoder to score beside the model; may be repeated.")
@click.option("--controls/--no-controls", default=True, show_default=True, help="Queue the controls too.")
@click.option("--cache-gb", type=POSITIVE, default=8.0, show_default=True, help="Memory for captured blocks.")
@capture_options
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Score a task at every layer, KV head and part of a model, and at its tower and projector.

    Jobs are queued for `vkvdb work`, or run at once with --now. The same job is never run twice unless --again.
    """
    from vkvdb.models._checkpoint import resolve
    from vkvdb.paths import find_home
    from vkvdb.planning import default_dataset, default_encoders, default_model, score_jobs
    from vkvdb.scoring import make_task
    from vkvdb.store import Store
    from vkvdb_cli._queueing import choices, dry_run, ensure_made, queue

    chosen = choices(options)
    home = find_home()
    store = Store(home.store)
    model = options["model"] or default_model()
    dataset = options["dataset"] or default_dataset()
    # What can be refused is refused before a dataset is made.
    make_task(options["task"], dict(options["parameters"]))
    resolve(model, home)
    ensure_made(home, store, dataset)
    planned = score_jobs(
        home,
        store,
        task=options["task"],
        model=model,
        dataset=dataset,
        parameters=dict(options["parameters"]),
        choices=chosen,
        encoders=options["encoders"] or default_encoders(model),
        controls=options["controls"],
    )
    if options["dry_run"]:
        dry_run(home, store, planned)
    else:
        ctx.exit(queue(home, store, planned, options["now"]))
