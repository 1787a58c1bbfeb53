"""Colour statistics, a floor that knows no shape: mean and spread of each cell's red, green and blue as its token.

The grid is that of raw pixels (`pixels`): 24 x 24 cells of 8 x 8 pixels unless `--square N`. A token is six numbers of
the cell's pixels, which are scaled to -1 .. 1: the means of the three channels, then their standard deviations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from vkvdb.models._cells import Cells

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Colours(Cells):
    """A cell's means and standard deviations."""

    silent: ClassVar[Mapping[str, str]] = {"encoder": "colours have no text side"}
    words: ClassVar[str] = "colour statistics"
    dim: ClassVar[int] = 6

    @staticmethod
    def tokens(cells: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        import numpy as np

        return np.concatenate([cells.mean((1, 3)), cells.std((1, 3))], axis=-1)


FAMILY = Colours
