"""Score a task after texts before the image, all of one length: right, wrong, generic and random ones, and filler."""

from __future__ import annotations

from typing import Any

import click

from vkvdb_cli._queueing import POSITIVE, capture_options


@click.command(epilog="The deltas against filler, layer by layer: vkvdb analyze prefix.")
@click.option("--task", required=True, help="What to score.")
@click.option("-p", "parameters", nargs=2, multiple=True, metavar="NAME VALUE", help="A parameter of the task.")
@click.option(
    "--tokens",
    type=click.IntRange(2),
    help="How long the texts are; else as long as the longest that names a category.",
)
@click.option("--cache-gb", type=POSITIVE, default=8.0, show_default=True, help="Memory for captured blocks.")
@capture_options
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Score a task at every layer of a model after texts before the image, of equal numbers of tokens.

    The right category of the image, a generic text, a wrong category and random words are held against filler, which is
    as long and says nothing; without any text the image stands elsewhere, so that is scored beside. Where a task's
    images have no category of their own, right and wrong are left out.
    """
    from vkvdb.paths import find_home
    from vkvdb.planning import default_dataset, default_model
    from vkvdb.planning_prefix import prefix_jobs
    from vkvdb.scoring import make_task
    from vkvdb.store import Store
    from vkvdb_cli._queueing import choices, dry_run, ensure_made, queue

    chosen = choices({**options, "prefix": ""})
    home = find_home()
    store = Store(home.store)
    dataset = options["dataset"] or default_dataset()
    make_task(options["task"], dict(options["parameters"]))
    ensure_made(home, store, dataset)
    planned = prefix_jobs(
        home,
        store,
        model=options["model"] or default_model(),
        dataset=dataset,
        task=options["task"],
        parameters=dict(options["parameters"]),
        choices=chosen,
        tokens=options["tokens"],
    )
    if options["dry_run"]:
        dry_run(home, store, planned)
    else:
        ctx.exit(queue(home, store, planned, options["now"]))


# The conditions are the prefixes.
command.params = [option for option in command.params if option.name != "prefix"]
