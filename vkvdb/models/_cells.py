"""Floors that are read off an image's pixels, cell by cell: what raw pixels and colour statistics have in common.

The image is stretched to a square (192 pixels unless `--square N`) and cut into cells of 8 x 8 pixels, so the default
grid is 24 x 24; pixels are scaled to -1 .. 1 as encoders are given them. A family says what a cell's token is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vkvdb.errors import BadOption
from vkvdb.types import LoadOptions, Site, SiteShape, Stacks, TokenGrid

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import PIL.Image
    import torch

CELL = 8
SQUARE = 192
SITE = Site("encoder", 0, "hidden")


class Cells:
    """A family of one site and no files."""

    version: ClassVar[int] = 1
    checkpoint: ClassVar[bool] = False
    views: ClassVar[tuple[str, ...]] = ("base",)
    silent: ClassVar[Mapping[str, str]]
    words: ClassVar[str]
    """What its tokens are called in messages, in the plural."""
    dim: ClassVar[int]

    @staticmethod
    def tokens(cells: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The tokens (rows, cols, dim) of cells (rows, 8, cols, 8, 3)."""
        raise NotImplementedError

    @classmethod
    def sites(cls, config: Mapping[str, Any]) -> tuple[SiteShape, ...]:  # noqa: ARG003 - as every family
        return (SiteShape(SITE, 1, cls.dim),)

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

    @classmethod
    def load(cls, checkpoint: Any, options: LoadOptions) -> Reader:  # noqa: ARG003 - no files
        return Reader(cls, options)


class Reader:
    """Cells as tokens; nothing is loaded."""

    device = "cpu"

    def __init__(self, family: type[Cells], options: LoadOptions) -> None:
        self._family = family
        self.grid = (options.square or SQUARE) // CELL
        if self.grid < 1:
            raise BadOption(option="--square", value=options.square, why=f"a cell is {CELL} pixels")
        if options.prefix:
            raise BadOption(option="--prefix", value=options.prefix, why=f"{family.words} read no text")
        if options.interventions:
            why = f"{family.words} have no decoder to change"
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
            tokens = self._family.tokens(array.reshape(self.grid, CELL, self.grid, CELL, 3))
            window = (0.0, 0.0, float(image.width), float(image.height))
            stacks = of({SITE: torch.from_numpy(np.ascontiguousarray(tokens[None]))}, self._family.sites({}))
            read.append((TokenGrid(self.grid, self.grid, window), stacks))
        return read

    def text(self, words: str, sites: Sequence[Site]) -> dict[Site, torch.Tensor]:
        """Not defined: there is no text side."""
        return {}
