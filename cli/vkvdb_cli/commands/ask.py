"""Ask a model every question of a dataset: greedy answers and letter likelihoods, with controls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vkvdb_cli._queueing import capture_options

if TYPE_CHECKING:
    from vkvdb.paths import Home
    from vkvdb.planning import Planned

_TABLE = """
SELECT grp AS "group", swap, n, n_unread AS unread, accuracy, low, high, by_likelihood, prior,
    consistency AS agrees, consistency_by_likelihood AS likeliest_agrees
FROM answers_by_group WHERE id = $id AND edition = $edition
ORDER BY grp, swap
"""


@click.command(epilog="An accuracy means something above its prior: what the best constant answer would get.")
@click.option(
    "--tokens", type=click.IntRange(1), default=16, show_default=True, help="The most that an answer may have."
)
@click.option("--swaps/--no-swaps", default=True, show_default=True, help="Ask in other orders too, as controls.")
@click.option("--read", default="", help="A task that reads questions; scored on the tokens of the pass that answers.")
@click.option("-p", "parameters", nargs=2, multiple=True, metavar="NAME VALUE", help="A parameter of that task.")
@capture_options
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Ask a model every question of a dataset, and keep what it writes and how likely it finds each option's letter.

    Controls are options in reversed order and, where options are images, images in reversed order; --model M@blank
    answers without seeing. Jobs are queued for `vkvdb work`, or run at once with --now.
    """
    from vkvdb.paths import find_home
    from vkvdb.planning import default_dataset, default_model
    from vkvdb.planning_ask import answering, ask_job, reading_task
    from vkvdb.store import Store
    from vkvdb_cli._queueing import choices, ensure_made, queue

    chosen = choices(options)
    home = find_home()
    store = Store(home.store)
    model = options["model"] or default_model()
    dataset = options["dataset"] or default_dataset()
    # What can be refused is refused before a dataset is made.
    answering(model, home)
    reading_task(options["read"], dict(options["parameters"]))
    ensure_made(home, store, dataset)
    plan = ask_job(
        home,
        store,
        model=model,
        dataset=dataset,
        choices=chosen,
        tokens=options["tokens"],
        swaps=options["swaps"],
        task=options["read"],
        parameters=dict(options["parameters"]),
    )
    code = queue(home, store, [plan], options["now"])
    if options["now"] and code == 0:
        _tell(home, plan)
    ctx.exit(code)


# A trial of 5 images says little about answers: --limit 20 --now asks some.
command.params = [option for option in command.params if option.name != "dry_run"]


def _tell(home: Home, plan: Planned) -> None:
    """Print the job's accuracy by group and order."""
    from vkvdb_cli._after import reading
    from vkvdb_cli.output import print_table

    job = plan.job
    found = reading(home).query(_TABLE, {"id": job.id, "edition": job.edition})
    print_table(found.columns, found.rows)
