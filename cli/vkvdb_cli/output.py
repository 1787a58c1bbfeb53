"""Rows on stdout: a table for people, CSV and JSON for programs."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click

Row = Sequence[Any]


def print_table(columns: Sequence[str], rows: Iterable[Row]) -> None:
    """An aligned table, numbers to the right; with lines and wrapping where stdout is a terminal."""
    rows = list(rows)
    cells = [[_shown(value) for value in row] for row in rows]
    right = [
        bool(rows) and all(value is None or _is_number(value) for value in column)
        for column in (zip(*rows, strict=True) if rows else [()] * len(columns))
    ]
    if sys.stdout.isatty():
        _print_rich(columns, cells, right)
        return
    widths = [max(len(line[i]) for line in [columns, *cells]) for i in range(len(columns))]
    for line in [columns, *cells]:
        aligned = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True))
        click.echo("  ".join(aligned).rstrip())


def print_csv(columns: Sequence[str], rows: Iterable[Row]) -> None:
    """CSV with a header; nothing is an empty field."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)


def print_json(columns: Sequence[str], rows: Iterable[Row]) -> None:
    """A JSON list of objects; what JSON has no word for is null (NaN, infinity) or text (times)."""
    objects = [{name: _finite(value) for name, value in zip(columns, row, strict=True)} for row in rows]
    click.echo(json.dumps(objects, indent=2, ensure_ascii=False, default=str, allow_nan=False))


def _print_rich(columns: Sequence[str], cells: list[list[str]], right: list[bool]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold")
    for name, is_right in zip(columns, right, strict=True):
        table.add_column(Text(name), justify="right" if is_right else "left", overflow="fold")
    for line in cells:
        table.add_row(*(Text(cell) for cell in line))  # Text: brackets in a value are no markup
    Console().print(table)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split())


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
