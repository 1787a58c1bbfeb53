"""What the anyres families share: a base image stretched to the tower's square, and then tiles, with newline tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from vkvdb.errors import BadCheckpoint
from vkvdb.models._token_map import BASE, Mosaic, Panel, mosaic_of, stretched, tiles_panel
from vkvdb.models._vlm import Seen, tower_grid

if TYPE_CHECKING:
    import PIL.Image
    import torch

    from vkvdb.models._reader import Reader

# A canvas without size holds no tiles: this is how the model is told to look at the base image alone.
NO_TILES = [[0, 0]]


def panels(
    config: Mapping[str, Any], processor: Mapping[str, Any], width: int, height: int, *, most: int | None, whole: bool
) -> tuple[Panel, ...]:
    """Base panel and mosaic; without tiles the base panel ends in one newline."""
    side, patch, _ = tower_grid(config)
    x, y = stretched(width, side, patch), stretched(height, side, patch)
    if not whole:
        return (Panel(BASE, x, y, "end"),)
    laid = laid_out(config, processor, width, height, most)
    return Panel(BASE, x, y), tiles_panel(width, height, laid, side, patch)


def laid_out(
    config: Mapping[str, Any], processor: Mapping[str, Any], width: int, height: int, most: int | None
) -> Mosaic:
    """The tiles of an image of that size. Raises BadCheckpoint where model and processor would cut it differently."""
    pinpoints = config["image_grid_pinpoints"]
    made = processor.get("image_grid_pinpoints", pinpoints)
    if [list(p) for p in made] != [list(p) for p in pinpoints]:
        raise BadCheckpoint(
            name=config.get("_name_or_path") or config["model_type"],
            why="config.json and preprocessor_config.json name different image_grid_pinpoints",
            hint="its image processor is not the one it was trained with",
        )
    side, _, cells = tower_grid(config)
    return mosaic_of(width, height, pinpoints, side=side, cells=cells, most=most)


def inputs(
    reader: Reader, prompts: Sequence[Sequence[PIL.Image.Image]], view: str, *, most: int | None, whole: bool
) -> Seen:
    """Pixels (images, tiles, 3, side, side), tile 0 the base, and where the view's cells lie in the tower's output."""
    import torch

    from vkvdb.models._capture import Gather

    side, _, cells = tower_grid(reader.config)
    images = [image for prompt in prompts for image in prompt]
    base = torch.arange(cells * cells).view(cells, cells)
    if not whole:
        # One canvas of the base's own size: the processor then makes the base and a single tile, the least it can.
        made = reader.image_processor(images, image_grid_pinpoints=[[side, side]], return_tensors="pt")
        pixels = {"pixel_values": made["pixel_values"][:, :1], "image_sizes": made["image_sizes"]}
        gathers = tuple(Gather(base + i * cells * cells, (cells, cells)) for i in range(len(images)))
        return Seen(pixels, gathers, {"image_grid_pinpoints": NO_TILES})
    made = reader.image_processor(images, return_tensors="pt")
    laid = [laid_out(reader.config, reader.processor, *image.size, most) for image in images]
    # The tower is given each image's base and tiles, one image after another, without the padding to equal tile counts.
    starts = accumulate((cells * cells * (1 + m.down * m.across) for m in laid), initial=0)
    if view == BASE:
        gathers = tuple(Gather(base + start, (cells, cells)) for start, _ in zip(starts, laid, strict=False))
    else:
        gathers = tuple(
            Gather(_mosaic_index(m, cells) + start + cells * cells, m.size)
            for start, m in zip(starts, laid, strict=False)
        )
    return Seen({"pixel_values": made["pixel_values"], "image_sizes": made["image_sizes"]}, gathers)


def _mosaic_index(laid: Mosaic, cells: int) -> torch.Tensor:
    """(rows, cols) of the cells that remain: which of the tiles' tokens, tile by tile, lies there."""
    import torch

    tiles = torch.arange(laid.down * laid.across * cells * cells).view(laid.down, laid.across, cells, cells)
    whole = tiles.transpose(1, 2).reshape(laid.down * cells, laid.across * cells)
    return whole[slice(*laid.rows), slice(*laid.cols)]
