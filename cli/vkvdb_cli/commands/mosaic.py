"""Draw the keys of two images at every layer and head."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("images", nargs=2, type=click.Path(path_type=Path))
@click.option("--model", "name", help="A folder, a hub id or toy; then @random:SEED or @random-decoder:SEED.")
@click.option("--part", default="key_unrotated", show_default=True, help="key or key_unrotated.")
@click.option("--square", type=click.IntRange(1), help="Stretch images to N x N pixels first.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1 ...")
@click.option("--out", type=click.Path(path_type=Path), default=Path("keys.png"), show_default=True, help="A PNG file.")
def command(  # noqa: PLR0917 - an option each
    images: tuple[Path, Path], name: str | None, part: str, square: int | None, device: str, out: Path
) -> None:
    """Draw two image files' keys at every layer and KV head: three principal components as red, green and blue.

    Input-agnostic ones look alike in both. They are outlined where the model was calibrated (vkvdb calibrate).
    """
    from vkvdb.calibrating import key_sites
    from vkvdb.errors import BadOption
    from vkvdb.images import decode, read_bytes
    from vkvdb.models._checkpoint import load, resolve
    from vkvdb.mosaic import mosaic
    from vkvdb.paths import find_home
    from vkvdb.planning import default_model
    from vkvdb.planning_keys import group_of
    from vkvdb.store import Store
    from vkvdb.types import Capture, LoadOptions

    home = find_home()
    found = resolve(name or default_model(), home)
    sites = [s.site for s in key_sites(found.sites(), None, [part])]
    opened = [decode(read_bytes(path), path) for path in images]
    read = load(found, LoadOptions(square=square, device=device)).capture(opened, sites)
    captures = [Capture(p.name, "base", grid, stacks) for p, (grid, stacks) in zip(images, read, strict=True)]
    group, words = group_of(Store(home.store), found)
    try:
        mosaic(captures, opened, part=part, outlined=group, words=words).save(out)
    except (OSError, ValueError) as error:  # Pillow's ValueError: a suffix that is no picture's
        raise BadOption(option="--out", value=out, why=f"can't be written: {error}") from error
    click.echo(out)
