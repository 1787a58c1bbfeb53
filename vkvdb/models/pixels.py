"""Raw pixels, the floor of every curve: each cell's own colours as its token.

The image is stretched to a square (192 pixels unless `--square N`) and cut into cells of 8 x 8 pixels, so the default
grid is 24 x 24; a token is the cell's 192 values, scaled to -1 .. 1 as encoders are given them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from vkvdb.models._cells import CELL, Cells

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Pixels(Cells):
    """A cell's pixels as they are."""

    silent: ClassVar[Mapping[str, str]] = {"encoder": "pixels have no text side"}
    words: ClassVar[str] = "pixels"
    dim: ClassVar[int] = 3 * CELL * CELL

    @staticmethod
    def tokens(cells: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        rows, _, cols, *_ = cells.shape
        return cells.transpose(0, 2, 1, 3, 4).reshape(rows, cols, -1)


FAMILY = Pixels
