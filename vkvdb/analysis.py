"""Analyses: `NAME.sql` asks the catalog, `NAME.py`, if there is one, draws what came back (`chart(rows)`).

The files lie in `analyses/` or in the same folder of a plug-in. A query's parameters are the `$names` in it; one that
is not given is NULL. The comment `-- $name: what it is` at its top is what help says about it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vkvdb import registry
from vkvdb.errors import BadOption, NothingToDraw
from vkvdb.paths import Home

if TYPE_CHECKING:
    import polars as pl

FORMATS = ("html", "png", "svg")
_IDS = ("id", "read_id", "asked_id", "filler_id")  # columns that name jobs


@dataclass(frozen=True)
class Analysis:
    """What an analysis gave: its rows, and its Altair chart if it draws one."""

    name: str
    rows: pl.DataFrame
    chart: Any | None

    def jobs(self) -> set[str]:
        """The ids of the jobs that its rows stand on."""
        return {str(i) for name in _IDS if name in self.rows.columns for i in self.rows[name].drop_nulls().unique()}

    def picture(self, scale: float = 1.0) -> bytes:
        """Its chart as PNG. Raises ValueError where it draws none."""
        import io

        if self.chart is None:
            raise ValueError(f"{self.name} draws no chart")
        buffer = io.BytesIO()
        self.chart.save(buffer, format="png", scale_factor=scale)
        return buffer.getvalue()


def parameters(name: str) -> dict[str, str]:
    """{parameter: what it is} of an analysis, in the order of its comments, read without running anything."""
    text = registry.require("analyses", name).read_text(encoding="utf-8")
    told = dict(re.findall(r"^-- \$(\w+): (.+)$", text, re.MULTILINE))
    query = re.sub(r"--.*", "", text)
    # A name, not a path into JSON ('$.title').
    used = dict.fromkeys(re.findall(r"\$([a-z_]\w*)", query), "")
    return {parameter: told.get(parameter, "") for parameter in [*(t for t in told if t in used), *used]}


def run(home: Home, name: str, given: Mapping[str, Any] | None = None) -> Analysis:
    """Run an analysis on what the catalog holds.

    Raises UnknownName, BadOption for a parameter that it does not have, NothingToDraw when no row matches.
    """
    from vkvdb.catalog import Catalog

    given = {parameter: value for parameter, value in (given or {}).items() if value is not None}
    known = parameters(name)
    for parameter in given:
        if parameter not in known:
            raise BadOption(option="-p", value=parameter, why=f"analysis {name} has the parameters {', '.join(known)}")
    path = registry.require("analyses", name)
    rows = Catalog(home.catalog).frame(path.read_text(encoding="utf-8"), {p: given.get(p) for p in known})
    if rows.is_empty():
        asked = ", ".join(f"{parameter} {value}" for parameter, value in given.items()) or "the analysis"
        hint = "scored so far: vkvdb sql 'SELECT DISTINCT task, dataset_name, model_name, metric, part FROM results'"
        raise NothingToDraw(what=asked, hint=hint)
    drawing = path.with_suffix(".py")
    if not drawing.is_file():
        return Analysis(name, rows, None)
    module = registry.import_file(f"vkvdb_analyses.{name}", drawing)
    return Analysis(name, rows, module.chart(rows))


def save(analysis: Analysis, folder: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write the chart as NAME.html (self-contained), NAME.png, NAME.svg; rows without a chart as NAME.csv. The paths.

    Raises BadOption when the folder can't be written to.
    """
    paths = [folder / f"{analysis.name}.{suffix}" for suffix in (formats if analysis.chart is not None else ["csv"])]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in paths:
            if analysis.chart is None:
                analysis.rows.write_csv(path)
            elif path.suffix == ".html":
                # Without `inline` the page would fetch three scripts from the net.
                analysis.chart.save(str(path), inline=True)
            else:
                analysis.chart.save(str(path), **({"scale_factor": 2} if path.suffix == ".png" else {}))
    except OSError as error:
        raise BadOption(option="--out", value=folder, why=f"can't be written to: {error.strerror or error}") from error
    return paths
