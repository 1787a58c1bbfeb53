"""Raw pixels, the floor of every curve: each cell's own colours as its token.

The image is stretched to a square (192 pixels unless `--square N`) and cut into cells of 8 x 8 pixels, so the default
grid is 24 x 24; a token is the cell's 192 values, scaled to -1 .. 1 as encoders are given them.
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
_SHAPE = SiteShape(Site("encoder", 0, "hidden"), 1, 3 * CELL * CELL)


class Pixels:
    """One site, no files."""

    version: ClassVar[int] = 1
    checkpoint: ClassVar[bool] = False
    views: ClassVar[tuple[str, ...]] = ("base",)
    silent: ClassVar[Mapping[str, str]] = {"encoder": "pixels have no text side"}

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
    """Pixels as tokens; nothing is loaded."""

    device = "cpu"

    def __init__(self, options: LoadOptions) -> None:
        self.grid = (options.square or SQUARE) // CELL
        if self.grid < 1:
            raise BadOption(option="--square", value=options.square, why=f"a cell is {CELL} pixels")
        if options.prefix:
            raise BadOption(option="--prefix", value=options.prefix, why="pixels read no text")
        if options.interventions:
            why = "pixels have no decoder to change"
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
            cells = array.reshape(self.grid, CELL, self.grid, CELL, 3).transpose(0, 2, 1, 3, 4)
            tokens = torch.from_numpy(np.ascontiguousarray(cells.reshape(1, self.grid, self.grid, -1)))
            window = (0.0, 0.0, float(image.width), float(image.height))
            read.append((TokenGrid(self.grid, self.grid, window), of({_SHAPE.site: tokens}, [_SHAPE])))
        return read

    def text(self, words: str, sites: Sequence[Site]) -> dict[Site, torch.Tensor]:
        """Not defined: pixels have no text side."""
        return {}


FAMILY = Pixels
