"""Measure which heads' keys hardly depend on the image."""

from __future__ import annotations

from typing import Any

import click

from vkvdb_cli._queueing import capture_options


@click.command()
@click.option("--controls/--no-controls", default=True, show_default=True, help="Queue the random twin too.")
@capture_options
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Measure how much the keys of every layer and KV head vary over images: those that hardly do are input-agnostic.

    Images are a seeded choice of 256 unless --limit says otherwise, and should be none that scores stand on. All must
    give the same grid. Then: vkvdb analyze keys
    """
    from vkvdb.models._checkpoint import resolve
    from vkvdb.paths import find_home
    from vkvdb.planning import default_model
    from vkvdb.planning_keys import calibrate_jobs, default_calibration
    from vkvdb.store import Store
    from vkvdb_cli._queueing import choices, dry_run, ensure_made, queue

    chosen = choices(options)
    home = find_home()
    store = Store(home.store)
    model = options["model"] or default_model()
    resolve(model, home)  # what can be refused is refused before a dataset is made
    dataset = options["dataset"] or default_calibration(model)
    ensure_made(home, store, dataset)
    controls = options["controls"]
    planned = calibrate_jobs(home, store, model=model, dataset=dataset, choices=chosen, controls=controls)
    if options["dry_run"]:
        dry_run(home, store, planned)
    else:
        ctx.exit(queue(home, store, planned, options["now"]))
