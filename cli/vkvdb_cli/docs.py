"""The parts of README.md that the code knows best: between `<!-- generated: NAME -->` and `<!-- end -->`.

`python -m vkvdb_cli.docs --write` renews them; `--check` exits with 1 where they are out of date (`make check`).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from vkvdb import registry
from vkvdb_cli.main import command_names, help_line

_PART = re.compile(r"(<!-- generated: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = [head, ("---", "---"), *((f"`{name}`", text.replace("|", "\\|")) for name, text in rows)]
    return "".join(f"| {left} | {right} |\n" for left, right in lines)


def commands() -> str:
    """Every command with its help line."""
    return _table(("command", "does"), [(f"vkvdb {name}", help_line(name)) for name in command_names()])


def kind(name: str) -> str:
    """Every file of a kind of the registry with its help line."""
    return _table(("name", "is"), [(each, registry.help_line(name, each)) for each in registry.names(name)])


def tables() -> str:
    """Every table of the catalog with its columns, from the comments of the schema."""
    from vkvdb.schema import metadata

    parts = []
    for table in metadata.sorted_tables:
        rows = [(column.name, column.comment or "") for column in table.columns]
        parts.append(f"**`{table.name}`** — {table.comment}\n\n{_table(('column', 'holds'), rows)}")
    return "\n".join(parts)


# name in the marker -> what stands there
PARTS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "tasks": partial(kind, "tasks"),
    "datasets": partial(kind, "datasets"),
    "models": partial(kind, "models"),
    "analyses": partial(kind, "analyses"),
    "tables": tables,
}


def renewed(text: str) -> str:
    """A page with its generated parts made anew; an unknown part is a KeyError."""
    return _PART.sub(lambda part: f"{part[1]}\n{PARTS[part['name']]()}\n{part[3]}", text)


@click.command()
@click.option("--write/--check", default=False, help="Renew the page, or only say whether it is current (the default).")
@click.argument("page", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=Path("README.md"))
def main(write: bool, page: Path) -> None:
    """Renew or check the generated parts of PAGE."""
    old = page.read_text(encoding="utf-8")
    new = renewed(old)
    if write:
        page.write_text(new, encoding="utf-8")
    elif new != old:
        click.echo(f"{page} is out of date; type: make docs", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
