"""Open MLflow's user interface on the mirrored results."""

from __future__ import annotations

import click

from vkvdb.paths import find_home


@click.command()
@click.option("--port", default=5000, show_default=True, help="Port on 127.0.0.1.")
@click.pass_context
def command(ctx: click.Context, port: int) -> None:
    """Run MLflow's user interface on the runs in the home, until Ctrl-C."""
    from vkvdb.tracking import serve

    click.echo(f"MLflow on http://127.0.0.1:{port} (Ctrl-C ends it)")
    ctx.exit(serve(find_home(), port))
