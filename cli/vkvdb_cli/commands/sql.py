"""Ask the catalog in SQL, read-only."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

import click

from vkvdb.paths import find_home

if TYPE_CHECKING:
    from vkvdb.catalog import Rows

_TABLES = """
SELECT table_name AS name, 'table' AS kind, estimated_size AS rows, comment
FROM duckdb_tables() WHERE table_name <> 'alembic_version'
UNION ALL
SELECT view_name, 'view', NULL, comment FROM duckdb_views() WHERE NOT internal
ORDER BY kind, name
"""


class _Sql(click.Command):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # A query that begins with a comment is no option.
        return super().parse_args(ctx, [f"\n{arg}" if re.match(r"--\s", arg) else arg for arg in args])


@click.command(cls=_Sql)
@click.argument("query", required=False)
@click.option("-p", "parameters", nargs=2, multiple=True, metavar="NAME VALUE", help="Value of $NAME in the query.")
@click.option("--csv", "form", flag_value="csv", help="Print CSV.")
@click.option("--json", "form", flag_value="json", help="Print a JSON list of objects.")
@click.option("--table", "form", flag_value="table", default="table", help="Print a table (the default).")
def command(query: str | None, parameters: tuple[tuple[str, str], ...], form: str) -> None:
    """Run one SELECT on the catalog and print what it gives; `-` reads it from stdin.

    Without a query: the tables and views, and what they hold. New results are absorbed first. The file of an analysis
    runs as it is: a value that its comments describe (`-- $NAME: ...`) is NULL without a -p.
    """
    from vkvdb.syncing import patiently
    from vkvdb_cli._after import reading

    sql = _TABLES if query is None else sys.stdin.read() if query == "-" else query
    catalog = reading(find_home())
    given: dict[str, Any] = {name: typed(value) for name, value in parameters}
    described = dict.fromkeys(re.findall(r"^-- \$(\w+):", sql, re.MULTILINE))
    print_rows(patiently(lambda: catalog.query(sql, described | given)), form)


def typed(text: str) -> Any:
    """A value as typed on the command line: a whole or decimal number where it is written as one, else text."""
    if re.fullmatch(r"-?(0|[1-9]\d*)", text):
        return int(text)
    return float(text) if re.fullmatch(r"-?(0|[1-9]\d*)\.\d+", text) else text


def print_rows(found: Rows, form: str) -> None:
    """Print what a query gave as table, csv or json."""
    from vkvdb_cli.output import print_csv, print_json, print_table

    {"csv": print_csv, "json": print_json, "table": print_table}[form](found.columns, found.rows)
