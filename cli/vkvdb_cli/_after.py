"""What commands do with the catalog: absorb what is new before they read, absorb and mirror after they have worked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vkvdb.errors import VkvdbError
from vkvdb.paths import Home
from vkvdb.syncing import patiently

if TYPE_CHECKING:
    from vkvdb.absorbing import Absorbed
    from vkvdb.catalog import Catalog


def absorb_and_mirror(home: Home) -> None:
    """Absorb what is new and mirror the jobs among it. Neither fails what was done: each says what went wrong."""
    absorbed = absorb(home)
    if absorbed is None or not absorbed.jobs:
        return
    mirror(home, absorbed.jobs)


def absorb(home: Home) -> Absorbed | None:
    """Absorb what is new; None, said in a line on stderr, when the catalog is locked or can't be used."""
    from vkvdb.catalog import Catalog
    from vkvdb.store import Store

    try:
        absorbed = Catalog(home.catalog).absorb(Store(home.store))
    except VkvdbError as error:
        _say(f"{error} (results are safe in the store, and a later command absorbs them)")
        return None
    tell_problems(absorbed)
    return absorbed


def mirror(home: Home, jobs: list[str] | None = None, uri: str | None = None) -> list[str]:
    """Mirror absorbed jobs to MLflow (all of them, or those of some ids); the ids that were new to it."""
    from vkvdb import tracking
    from vkvdb.catalog import Catalog

    try:
        return patiently(lambda: tracking.mirror(home, Catalog(home.catalog), jobs, uri))
    except VkvdbError as error:
        _say(str(error))
        return []


def reading(home: Home) -> Catalog:
    """The catalog, with everything absorbed that could be: what a locked one lacks is said in a line on stderr."""
    from vkvdb.syncing import fresh

    return fresh(home, _say)


def tell_problems(absorbed: Absorbed) -> None:
    """A line on stderr for each manifest that could not be absorbed."""
    for line in absorbed.problems:
        _say(line)


def _say(line: str) -> None:
    click.echo(f"vkvdb: {line}", err=True)
