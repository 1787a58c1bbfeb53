"""Ask, or score, with attention cut off from input-agnostic keys, and from others as controls."""

from __future__ import annotations

from typing import Any

import click

from vkvdb_cli._queueing import capture_options


@click.command()
@click.option("--draws", type=click.IntRange(1), default=5, show_default=True, help="Random choices of as many heads.")
@click.option(
    "--tokens", type=click.IntRange(1), default=16, show_default=True, help="The most that an answer may have."
)
@click.option("--task", help="Score this on the image values instead of asking, with image -> image attention cut.")
@click.option("-p", "parameters", nargs=2, multiple=True, metavar="NAME VALUE", help="A parameter of the task.")
@capture_options
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Ask a dataset's questions with text -> image attention cut at the heads whose keys are input-agnostic.

    With --task: score the image values with image -> image attention cut there, for what later layers' values lose
    (text comes after the image, so what it attends to changes no image value).

    Beside it: nothing cut; as many random heads of the same layers (--draws times); as many heads whose keys depend
    most on the image; all image keys. The model must be calibrated (vkvdb calibrate). Then: vkvdb analyze keys
    """
    from vkvdb.agnostic import TO_IMAGE, TO_TEXT
    from vkvdb.errors import BadOption
    from vkvdb.paths import find_home
    from vkvdb.planning import default_dataset, default_model
    from vkvdb.planning_keys import conditions_of, downstream_jobs, knockout_jobs
    from vkvdb.scoring import make_task
    from vkvdb.store import Store
    from vkvdb_cli._queueing import choices, ensure_made, queue

    chosen = choices({**_UNSAID, **options})
    home = find_home()
    store = Store(home.store)
    model = options["model"] or default_model()
    dataset = options["dataset"] or default_dataset()
    # What can be refused is refused before a dataset is made.
    task, parameters, draws = options["task"], dict(options["parameters"]), options["draws"]
    if task is not None:
        make_task(task, parameters)
    elif parameters:
        raise BadOption(
            option="-p", value=next(iter(parameters)), why="it is a parameter of a task: name one by --task"
        )
    edges = TO_TEXT if task is None else TO_IMAGE
    conditions_of(home, store, model=model, draws=draws, seed=chosen.seed, edges=edges)
    ensure_made(home, store, dataset)
    asked = {"model": model, "dataset": dataset, "choices": chosen, "draws": draws}
    planned = (
        knockout_jobs(home, store, tokens=options["tokens"], **asked)
        if task is None
        else downstream_jobs(home, store, task=task, parameters=parameters, **asked)
    )
    for condition, plan in planned.items():
        cut = ", ".join(plan.job.spec.capture.interventions) or "nothing"
        click.echo(f"{plan.job.id[:8]}  {condition or 'as it is'}: cuts {cut}")
    ctx.exit(queue(home, store, list(planned.values()), options["now"]))


# The conditions say what is cut, and nothing is read; a trial of 5 images says little about answers.
_UNSAID = {"layers": None, "parts": None, "view": "base", "interventions": ()}
command.params = [option for option in command.params if option.name not in {*_UNSAID, "dry_run"}]
