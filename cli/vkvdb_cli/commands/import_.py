"""Take in benchmark numbers that another tool measured."""

from __future__ import annotations

from pathlib import Path

import click

from vkvdb import registry


class Tools(click.Group):
    """A group whose commands are the files in `vkvdb/imports`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the tools."""
        return [name.replace("_", "-") for name in registry.names("imports")]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """Make the command of a tool; UnknownName suggests the nearest."""
        tool = cmd_name.replace("-", "_")
        line = registry.help_line("imports", tool)

        def run(file: Path, model: str | None, benchmark: str | None) -> None:
            _import(tool, file, model, benchmark)

        return click.Command(
            cmd_name,
            params=[
                click.Argument(["file"], type=click.Path(path_type=Path)),
                click.Option(["--model"], help="The model here whose numbers these are: its name or hash."),
                click.Option(["--benchmark"], metavar="NAME", help="Only that one; or what the file's name ends with."),
            ],
            callback=run,
            help=f"{line}\n\nRows go into the table benchmarks. A file is imported once, whatever it is called.",
            short_help=line,
        )


@click.command(cls=Tools)
def command() -> None:
    """Take in benchmark numbers that another tool measured, from its own result files."""


def _import(tool: str, file: Path, model: str | None, benchmark: str | None) -> None:
    """Import a file, absorb it, and print what it says."""
    from vkvdb.importing import import_file
    from vkvdb.paths import find_home
    from vkvdb.store import Store
    from vkvdb_cli._after import absorb
    from vkvdb_cli.output import print_table

    home = find_home()
    done = import_file(Store(home.store), tool, file, model=model, benchmark=benchmark)
    rows = done.manifest["rows"]
    columns = ("model_name", "benchmark", "metric", "value", "n")
    print_table(columns, [[row[c] for c in columns] for row in rows])
    tied = f", tied to {model}" if model else ", tied to no model here; to tie them: --model NAME" if done.new else ""
    click.echo(f"{'imported' if done.new else 'already imported'}  {len(rows)} numbers{tied}")
    absorb(home)
