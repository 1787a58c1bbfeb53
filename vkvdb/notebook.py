"""vkvdb from Python: `vkvdb.open().sql("SELECT ...")` is a polars frame, `.analyze("layers")` an Altair chart.

Reading only. What is new in the store is absorbed before each question, as `vkvdb sql` does; what can't be absorbed is
a warning.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vkvdb.errors import BadOption
from vkvdb.paths import Home, find_home

if TYPE_CHECKING:
    import PIL.Image
    import polars as pl


@dataclass(frozen=True)
class Database:
    """An experiment database, to be asked. Nothing is held open between questions."""

    home: Home

    def sql(self, query: str, /, **parameters: Any) -> pl.DataFrame:
        """The rows of one SELECT; a keyword is the value of `$keyword` in it. Raises BadQuery, CatalogLocked."""
        from vkvdb.syncing import fresh, patiently

        catalog = fresh(self.home, _warn)
        return patiently(lambda: catalog.frame(query, parameters))

    def analyze(self, name: str, /, **parameters: Any) -> Any:
        """The Altair chart of an analysis (`analyses/NAME.sql`), or its rows as a polars frame if it draws none.

        Raises UnknownName, BadOption for a parameter that it does not have, NothingToDraw when no row matches.
        """
        from vkvdb import analysis
        from vkvdb.syncing import fresh, patiently

        fresh(self.home, _warn)
        found = patiently(lambda: analysis.run(self.home, name, parameters))
        return found.rows if found.chart is None else found.chart

    def show(self, sample: str, task: str, **options: Any) -> PIL.Image.Image:
        """The picture of a sample with what is read of it; options as of `vkvdb.showing.picture`."""
        from vkvdb.showing import picture
        from vkvdb.syncing import fresh

        fresh(self.home, _warn)
        return picture(self.home, sample, task, **options).image


def open(home: str | os.PathLike[str] | None = None) -> Database:  # noqa: A001 - as `io.open`: vkvdb.open(...)
    """The database of a home: of that folder, else found as the command line finds it (`vkvdb.paths.find_home`).

    Raises BadOption when the folder is no home, WrongHost when another host made it.
    """
    if home is None:
        return Database(find_home())
    root = Path(home).expanduser().resolve()
    if not (root / "home.json").is_file():
        why = "it is no home: home.json is not there; a home is made by the first command, like vkvdb demo"
        raise BadOption(option="home", value=root, why=why)
    return Database(find_home(root))


def analyze(name: str, /, **parameters: Any) -> Any:
    """The chart of an analysis of the default home: `vkvdb.analyze("layers", task="correspondence")`."""
    return open().analyze(name, **parameters)


def _warn(line: str) -> None:
    warnings.warn(line, stacklevel=3)
