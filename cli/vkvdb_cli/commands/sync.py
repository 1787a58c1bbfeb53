"""Absorb new results into the catalog and mirror them to MLflow."""

from __future__ import annotations

import click

from vkvdb.paths import find_home


@click.command()
@click.option(
    "--tracking-uri", metavar="URI", help="MLflow's server (else MLFLOW_TRACKING_URI, else a file in the home)."
)
def command(tracking_uri: str | None) -> None:
    """Absorb every manifest of the store that the catalog lacks, and mirror every score job that MLflow lacks."""
    from vkvdb.catalog import Catalog
    from vkvdb.store import Store
    from vkvdb.syncing import patiently
    from vkvdb.tracking import mirror
    from vkvdb_cli._after import tell_problems

    home = find_home()
    catalog = Catalog(home.catalog)
    absorbed = patiently(lambda: catalog.absorb(Store(home.store)))
    tell_problems(absorbed)
    click.echo(f"absorbed: {absorbed}")
    mirrored = mirror(home, catalog, uri=tracking_uri)
    click.echo(f"mirrored: {len(mirrored)} jobs" if mirrored else "mirrored: nothing new")
