"""Look after the catalog: upgrade, check, schema, verify, rebuild."""

from __future__ import annotations

import click

from vkvdb.paths import find_home

_SCHEMA = """
SELECT table_name AS "table", column_name AS "column", data_type AS type, comment
FROM duckdb_columns()
WHERE NOT internal AND table_name <> 'alembic_version' AND ($table IS NULL OR table_name = $table)
ORDER BY table_name, column_index
"""


@click.group()
def command() -> None:
    """Look after the catalog: a DuckDB file that indexes the store and can be made from it again."""


@command.command()
def upgrade() -> None:
    """Create the catalog, or bring its tables and views up to date (every command does so by itself)."""
    from vkvdb.catalog import Catalog
    from vkvdb.schema import REVISION
    from vkvdb.syncing import patiently

    home = find_home()
    before = patiently(Catalog(home.catalog).upgrade)
    if before is None:
        click.echo(f"made {home.catalog} at revision {REVISION}")
    elif before == REVISION:
        click.echo(f"{home.catalog} is at revision {REVISION}")
    else:
        click.echo(f"upgraded {home.catalog} from revision {before} to {REVISION}; as it was: {home.catalog}.{before}")


@command.command()
@click.pass_context
def check(ctx: click.Context) -> None:
    """Ask the catalog what must never be true; exit with 1 when something is."""
    from vkvdb.syncing import patiently
    from vkvdb_cli._after import reading

    catalog = reading(find_home())
    ctx.exit(_tell(patiently(lambda: list(catalog.check())), "the catalog"))


@command.command()
@click.argument("table", required=False)
@click.option("--csv", "form", flag_value="csv", help="Print CSV.")
@click.option("--json", "form", flag_value="json", help="Print a JSON list of objects.")
@click.option("--table", "form", flag_value="table", default="table", help="Print a table (the default).")
def schema(table: str | None, form: str) -> None:
    """List the columns of all tables and views, or of one, and what they hold."""
    from vkvdb.errors import UnknownName
    from vkvdb.registry import nearest
    from vkvdb.syncing import patiently
    from vkvdb_cli._after import reading
    from vkvdb_cli.commands.sql import print_rows

    catalog = reading(find_home())
    found = patiently(lambda: catalog.query(_SCHEMA, {"table": table}))
    if not found.rows:
        known = sorted({row[0] for row in catalog.query(_SCHEMA, {"table": None}).rows})
        raise UnknownName(kind="table", name=table, nearest=nearest(str(table), known), known=", ".join(known))
    print_rows(found, form)


@command.command()
@click.pass_context
def verify(ctx: click.Context) -> None:
    """Compare every file of the store with its hash, then check the catalog; exit with 1 when something is wrong."""
    from vkvdb.store import Store
    from vkvdb.syncing import patiently
    from vkvdb.verification import problems
    from vkvdb_cli._after import reading

    home = find_home()
    wrong = _tell(list(problems(Store(home.store))), "the store")
    catalog = reading(home)
    ctx.exit(_tell(patiently(lambda: list(catalog.check())), "the catalog") or wrong)


@command.command()
def rebuild() -> None:
    """Make the catalog anew from the store alone, and put it in the place of the old one."""
    from vkvdb.catalog import Catalog
    from vkvdb.store import Store
    from vkvdb.syncing import patiently
    from vkvdb_cli._after import tell_problems

    home = find_home()
    absorbed = patiently(lambda: Catalog(home.catalog).rebuild(Store(home.store)))
    tell_problems(absorbed)
    click.echo(f"rebuilt {home.catalog}: {absorbed}")


def _tell(problems: list[str], what: str) -> int:
    """Print problems, or that there are none; 1 where there are."""
    for line in problems:
        click.echo(line)
    if not problems:
        click.echo(f"{what}: nothing wrong")
    return int(bool(problems))
