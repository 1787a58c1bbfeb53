"""Keep a model's image tokens in the store."""

from __future__ import annotations

from typing import Any

import click

from vkvdb_cli._queueing import BUDGET_GB, POSITIVE, capture_options


@click.command()
@click.option("--budget-gb", type=POSITIVE, default=BUDGET_GB, show_default=True, help="Ask for --yes above this.")
@click.option("--yes", is_flag=True, help="Write more than the budget.")
@capture_options
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Keep the keys and values of a dataset's image tokens, with tower and projector, as Parquet in the store.

    What they will weigh is printed first. Scoring reads them from there instead of running the model.
    """
    from vkvdb.errors import TooLarge
    from vkvdb.models._checkpoint import resolve
    from vkvdb.paths import find_home
    from vkvdb.planning import default_dataset, default_model, extract_job
    from vkvdb.store import Store
    from vkvdb_cli._queueing import choices, dry_run, ensure_made, queue

    chosen = choices(options)
    home = find_home()
    store = Store(home.store)
    dataset = options["dataset"] or default_dataset()
    model = options["model"] or default_model()
    resolve(model, home)  # what can be refused is refused before a dataset is made
    ensure_made(home, store, dataset)
    planned = extract_job(home, store, model=model, dataset=dataset, choices=chosen)
    size = planned.bytes_per_image * planned.n / 1e9
    click.echo(
        f"{planned.n} images x {planned.bytes_per_image / 1e6:.2f} MB at {len(planned.shapes)} sites = {size:.2f} GB"
    )
    if options["dry_run"]:
        dry_run(home, store, [planned])
        return
    if size > options["budget_gb"] and not options["yes"]:
        raise TooLarge(size=f"{size:.1f} GB", budget=f"{options['budget_gb']:g} GB")
    ctx.exit(queue(home, store, [planned], options["now"]))
