"""Colour statistics, a floor that knows no shape: mean and spread of each cell's red, green and blue as its token.

The grid is that of raw pixels (`pixels`): the image is stretched to a square (192 pixels unless `--square N`) and cut
into cells of 8 x 8 pixels, so 24 x 24 unless told. A token is six numbers of the cell's pixels, which are scaled to
-1 .. 1: the means of the three channels, then their standard deviations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vkvdb.errors import BadOption
from vkvdb.types import LoadOptions, Site, SiteShape, Stacks, TokenGrid

if TYPE_CHECKING:
    import PIL.Image
    import torch

CELL = 8
SQUARE = 192
_SHAPE = SiteShape(Site("encoder", 0, "hidden"), 1, 6)


class Colours:
    """One site, no files."""

    version: ClassVar[int] = 1
    checkpoint: ClassVar[bool] = False
    views: ClassVar[tuple[str, ...]] = ("base",)
    silent: ClassVar[Mapping[str, str]] = {"encoder": "colours have no text side"}

    @staticmethod
    def sites(config: Mapping[str, Any]) -> tuple[SiteShape, ...]:
        return (_SHAPE,)

    @staticmethod
    def cells(
        config: Mapping[str, Any],
        processor: Mapping[str, Any],
        width: int,
        height: int,
        square: int | None,
        *,
        view: str = "base",
    ) -> int:
        return int(((square or SQUARE) // CELL) ** 2)

    @staticmethod
    def load(checkpoint: Any, options: LoadOptions) -> Reader:
        return Reader(options)


class Reader:
    """Colours as tokens; nothing is loaded."""

    device = "cpu"

    def __init__(self, options: LoadOptions) -> None:
        self.grid = (options.square or SQUARE) // CELL
        if self.grid < 1:
            raise BadOption(option="--square", value=options.square, why=f"a cell is {CELL} pixels")
        if options.prefix:
            raise BadOption(option="--prefix", value=options.prefix, why="colour statistics read no text")
        if options.interventions:
            why = "colour statistics have no decoder to change"
            raise BadOption(option="--intervene", value=options.interventions[0], why=why)

    def capture(self, images: Sequence[PIL.Image.Image], sites: Sequence[Site]) -> list[tuple[TokenGrid, Stacks]]:
        import numpy as np
        import torch

        from vkvdb.models._capture import of

        side = self.grid * CELL
        read = []
        for image in images:
            # 2 = bilinear, antialiased when it shrinks
            array = np.asarray(image.convert("RGB").resize((side, side), 2), dtype=np.float32) / 127.5 - 1
            cells = array.reshape(self.grid, CELL, self.grid, CELL, 3)
            six = np.concatenate([cells.mean((1, 3)), cells.std((1, 3))], axis=-1)
            window = (0.0, 0.0, float(image.width), float(image.height))
            stacks = of({_SHAPE.site: torch.from_numpy(six[None])}, [_SHAPE])
            read.append((TokenGrid(self.grid, self.grid, window), stacks))
        return read

    def text(self, words: str, sites: Sequence[Site]) -> dict[Site, torch.Tensor]:
        """Not defined: colours have no text side."""
        return {}


FAMILY = Colours
