"""What commands do with the catalog: absorb what is new before they read, absorb and mirror after they have worked."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import click

from vkvdb.errors import CatalogLocked, VkvdbError
from vkvdb.paths import Home

if TYPE_CHECKING:
    from vkvdb.absorbing import Absorbed
    from vkvdb.catalog import Catalog

T = TypeVar("T")

_PATIENCE = 3.0  # seconds: another command's absorbing is over by then, a person's shell is not


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
    from vkvdb.catalog import Catalog
    from vkvdb.store import Store

    catalog = Catalog(home.catalog)
    try:
        tell_problems(patiently(lambda: catalog.absorb(Store(home.store))))
    except CatalogLocked as error:
        if not home.catalog.exists():
            raise
        _say(f"{error}; what follows may lack the newest results")
    return catalog


def patiently(act: Callable[[], T]) -> T:
    """Do it; while another process has the catalog open, try again for a moment. Raises CatalogLocked after that."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return act()
        except CatalogLocked:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def tell_problems(absorbed: Absorbed) -> None:
    """A line on stderr for each manifest that could not be absorbed."""
    for line in absorbed.problems:
        _say(line)


def _say(line: str) -> None:
    click.echo(f"vkvdb: {line}", err=True)
