"""Check a dataset that lies on disk, or make one, and put it into the store."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(epilog="Names: see vkvdb datasets list.")
@click.argument("dataset", metavar="NAME-SPLIT")
@click.option("--root", type=click.Path(path_type=Path), metavar="DIR", help="Where it was unpacked; it is only read.")
@click.option("--skip-bad", is_flag=True, help="Leave out what is not sound and ingest the rest.")
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Threads that decode; one a core unless told.")
def command(dataset: str, root: Path | None, skip_bad: bool, workers: int | None) -> None:
    """Ingest a dataset: find its files, check them, decode every image once, and publish what it holds.

    Images are not copied. Interrupted, it goes on where it was. Ingesting it again from another folder moves it there.
    """
    from vkvdb.ingestion import WORKERS, ingest
    from vkvdb.paths import find_home
    from vkvdb.store import Store
    from vkvdb_cli._after import absorb_and_mirror
    from vkvdb_cli.progress import progress

    home = find_home()
    done = ingest(
        dataset,
        root,
        home,
        Store(home.store),
        skip_bad=skip_bad,
        workers=workers or WORKERS,
        progress=progress,
    )
    manifest = done.manifest
    samples = ", ".join(f"{count} {kind}" for kind, count in manifest["samples"].items())
    click.echo(
        f"{'ingested' if done.new else 'already ingested'}  {manifest['hash'][:8]}  {dataset}: "
        f"{manifest['images']} images, samples: {samples or 'none'}"
    )
    if manifest["problems"]:
        left_out = sum(manifest["left_out"].values())
        click.echo(
            f"left out: {len(manifest['problems'])} problems, and {left_out} samples on images that are not sound; "
            f"see: vkvdb datasets show {dataset} --problems"
        )
    absorb_and_mirror(home)
