"""Draw a sample: matches, masks or carried objects beside the truth, as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("sample")
@click.option("--task", required=True, help="What is read of it.")
@click.option("--model", help="As in vkvdb score.")
@click.option("--dataset", help="An ingested dataset, NAME-SPLIT.")
@click.option("--site", metavar="SITE", help="Like decoder.4.value; the best one scored unless told.")
@click.option("--head", type=int, help="A key-value head, or -1 for all of them together.")
@click.option("-p", "parameters", nargs=2, multiple=True, metavar="NAME VALUE", help="A parameter of the task.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1 ...")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE", help="The PNG (else in the folder charts of the home)."
)
def command(sample: str, task: str, parameters: tuple[tuple[str, str], ...], out: Path | None, **options: Any) -> None:
    """Draw SAMPLE, an id of a sample or the beginning of one, with what is read of it beside the truth.

    Tokens are those that a score of the task stands on; unless told, the site and head that score best are shown.
    """
    from vkvdb.errors import BadOption
    from vkvdb.paths import find_home
    from vkvdb.showing import picture

    home = find_home()
    shown = picture(
        home,
        sample,
        task,
        parameters=dict(parameters),
        tell=lambda line: click.echo(f"vkvdb: {line}", err=True),
        **options,
    )
    name = "".join(c if c.isalnum() or c in "-_" else "-" for c in f"{task}-{shown.sample.id}")
    path = out or home.charts / f"{name}.png"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shown.image.save(path, format="PNG")
    except OSError as error:
        raise BadOption(option="--out", value=path, why=f"can't be written to: {error.strerror or error}") from error
    head = "" if shown.head < 0 else f", head {shown.head}"
    click.echo(f"{shown.site}{head}: {shown.chosen}")
    click.echo("  ".join(f"{metric} {value:.3f}" for metric, value in shown.scores.items()) or "not defined")
    click.echo(str(path))
