"""Answer a question about all results: one SQL query, one chart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vkvdb import registry
from vkvdb.paths import find_home

_FORMATS = ("html", "png", "svg")


class AnalysisFiles(click.Group):
    """A group whose commands are the files in `analyses/`; a query's parameters are its options."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the files."""
        return registry.names("analyses")

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """Make the command of an analysis; UnknownName suggests the nearest."""
        from vkvdb.analysis import parameters

        options: list[click.Parameter] = [
            click.Option([f"--{name.replace('_', '-')}"], metavar="TEXT", help=about.capitalize())
            for name, about in parameters(cmd_name).items()
        ]
        options += [
            click.Option(
                ["--out"],
                metavar="DIR",
                type=click.Path(path_type=Path),
                help="Folder of the files (else charts in the home).",
            ),
            click.Option(
                ["--format", "formats"],
                metavar="LIST",
                default=",".join(_FORMATS),
                show_default=True,
                help="Which of them to write.",
            ),
            click.Option(["--rows"], is_flag=True, help="Print the rows as CSV instead."),
            click.Option(
                ["--track/--no-track"],
                default=True,
                show_default=True,
                help="Keep the chart with the jobs' runs in MLflow too.",
            ),
        ]
        return click.Command(
            cmd_name,
            params=options,
            callback=lambda **given: _analyze(cmd_name, **given),
            help=registry.help_line("analyses", cmd_name) + ".",
            short_help=registry.help_line("analyses", cmd_name),
        )


@click.command(cls=AnalysisFiles)
def command() -> None:
    """Ask a question of all results. New results are absorbed first; charts say which jobs they draw."""


def _analyze(name: str, out: Path | None, formats: str, rows: bool, track: bool, **given: Any) -> None:
    """Run an analysis, write its files, and print where they are and which jobs they draw."""
    from vkvdb import analysis
    from vkvdb.errors import BadOption, TrackingFailed
    from vkvdb.syncing import patiently
    from vkvdb_cli._after import reading
    from vkvdb_cli.output import print_csv, print_table

    wanted = [f.strip() for f in formats.split(",")]
    if set(wanted) - set(_FORMATS):
        raise BadOption(option="--format", value=formats, why=f"there are {', '.join(_FORMATS)}")
    home = find_home()
    reading(home)
    found = patiently(lambda: analysis.run(home, name, given))
    if rows:
        print_csv(found.rows.columns, found.rows.rows())
        return
    paths = analysis.save(found, out or home.charts, wanted)
    if {"id", "model_name", "n", "of"} <= set(found.rows.columns):
        jobs = found.rows.select("id", "model_name", "dataset_name", "task", "n", "of").unique(
            ["id"], maintain_order=True
        )
        print_table(["job", "model", "dataset", "task", "n", "of"], [(r[0][:8], *r[1:]) for r in jobs.rows()])
    for path in paths:
        click.echo(str(path))
    if track and found.chart is not None:
        from vkvdb import tracking

        try:
            tracking.log_chart(home, found.name, found.jobs(), found.picture())
        except TrackingFailed as error:
            click.echo(f"vkvdb: {error}", err=True)
