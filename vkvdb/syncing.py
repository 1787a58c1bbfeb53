"""The catalog as people read it: what is new in the store is absorbed first, unless another process has it open."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from vkvdb.errors import CatalogLocked
from vkvdb.paths import Home

if TYPE_CHECKING:
    from vkvdb.catalog import Catalog

T = TypeVar("T")

PATIENCE = 3.0  # seconds: another command's absorbing is over by then, a person's shell is not


def fresh(home: Home, tell: Callable[[str], None]) -> Catalog:
    """The catalog, with everything absorbed that could be; `tell` is given a line for each thing that could not.

    Raises CatalogLocked when it is locked and was never made.
    """
    from vkvdb.catalog import Catalog
    from vkvdb.store import Store

    catalog = Catalog(home.catalog)
    try:
        absorbed = patiently(lambda: catalog.absorb(Store(home.store)))
    except CatalogLocked as error:
        if not home.catalog.exists():
            raise
        tell(f"{error}; what follows may lack the newest results")
    else:
        for line in absorbed.problems:
            tell(line)
    return catalog


def patiently(act: Callable[[], T]) -> T:
    """Do it; while another process has the catalog open, try again for a moment. Raises CatalogLocked after that."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return act()
        except CatalogLocked:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
