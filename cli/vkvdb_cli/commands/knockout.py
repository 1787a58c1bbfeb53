"""Ask with text cut off from input-agnostic keys, and from others as controls."""

from __future__ import annotations

from typing import Any

import click

from vkvdb_cli._queueing import capture_options


@click.command()
@click.option("--draws", type=click.IntRange(1), default=5, show_default=True, help="Random choices of as many heads.")
@click.option(
    "--tokens", type=click.IntRange(1), default=16, show_default=True, help="The most that an answer may have."
)
@capture_options
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Ask a dataset's questions with text -> image attention cut at the heads whose keys are input-agnostic.

    Beside it: nothing cut; as many random heads of the same layers (--draws times); as many heads whose keys depend
    most on the image; all image keys. The model must be calibrated (vkvdb calibrate). Then: vkvdb analyze keys
    """
    from vkvdb.paths import find_home
    from vkvdb.planning import default_dataset, default_model
    from vkvdb.planning_keys import conditions_of, knockout_jobs
    from vkvdb.store import Store
    from vkvdb_cli._queueing import choices, ensure_made, queue

    chosen = choices({**_UNSAID, **options})
    home = find_home()
    store = Store(home.store)
    model = options["model"] or default_model()
    dataset = options["dataset"] or default_dataset()
    # What can be refused is refused before a dataset is made.
    conditions_of(home, store, model=model, draws=options["draws"], seed=chosen.seed)
    ensure_made(home, store, dataset)
    how = {"draws": options["draws"], "tokens": options["tokens"]}
    planned = knockout_jobs(home, store, model=model, dataset=dataset, choices=chosen, **how)
    for condition, plan in planned.items():
        cut = ", ".join(plan.job.spec.capture.interventions) or "nothing"
        click.echo(f"{plan.job.id[:8]}  {condition or 'as it is'}: cuts {cut}")
    ctx.exit(queue(home, store, list(planned.values()), options["now"]))


# The conditions say what is cut, and nothing is read; a trial of 5 images says little about answers.
_UNSAID = {"layers": None, "parts": None, "view": "base", "interventions": ()}
command.params = [option for option in command.params if option.name not in {*_UNSAID, "dry_run"}]
