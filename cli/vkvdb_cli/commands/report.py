"""Write all results of a model as one HTML file that needs no network."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--model", metavar="NAME", help="As in vkvdb jobs list, or the beginning of its id.")
@click.option("--dataset", metavar="NAME", help="An ingested dataset, NAME-SPLIT.")
@click.option("--against", metavar="NAME", help="Another model, or another revision of it by the beginning of its id.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The HTML file (else in the folder charts of the home).",
)
@click.option(
    "--pictures",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Samples of each task that are drawn, which reads them anew; 0 loads no model.",
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1 ...")
@click.option("--track/--no-track", default=True, show_default=True, help="Keep page and charts in MLflow too.")
def command(
    *,
    model: str | None,
    dataset: str | None,
    against: str | None,
    out: Path | None,
    pictures: int,
    device: str,
    track: bool,
) -> None:
    """Write a page of a model on a dataset: summary, tables, charts, pictures, provenance; a comparison if asked."""
    from vkvdb.paths import find_home
    from vkvdb.planning import default_dataset, default_model
    from vkvdb.report import write

    home = find_home()
    model, dataset = model or default_model(), dataset or default_dataset()
    words = "-".join(["report", model, dataset, *([against] if against else [])])
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in words)
    path = write(
        home,
        model,
        dataset,
        out or home.charts / f"{name}.html",
        against,
        pictures=pictures,
        device=device,
        track=track,
        tell=lambda line: click.echo(f"vkvdb: {line}", err=True),
    )
    click.echo(str(path))
