"""Shared by the tasks that segment: a mask on an image and on a grid, what maps are worth, where there is no model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vkvdb.errors import BadOption
from vkvdb.masks import decode
from vkvdb.metrics import Bools, Floats, cell_shares, upsampling
from vkvdb.samples import Mask
from vkvdb.tasks._tokens import at_once, like, pieces, upsample
from vkvdb.types import TokenGrid

if TYPE_CHECKING:
    from torch import Tensor

_COUNTED = 1 << 24  # what a float32 counts to exactly; a larger image is taken in bands


class Region:
    """A mask that is to be found, and what predictions on a grid are worth.

    `mask` and `valid` are (height, width): the region without void, and all that is not void. `shares` (rows, cols) is
    the part of each cell that the whole region covers.
    """

    def __init__(self, mask: Mask, ignore: Mask | None, grid: TokenGrid) -> None:
        region = decode(mask)
        self.grid = grid
        self.shares = cell_shares(region, grid)
        self.valid = np.ones_like(region) if ignore is None else ~decode(ignore)
        self.mask = region & self.valid
        self.area, self.valid_area = int(self.mask.sum()), int(self.valid.sum())
        height, width = region.shape
        rows, cols, self.down, self.across = upsampling(grid, (width, height))
        window = np.ix_(rows, cols)
        self.pixels = np.stack([self.mask[window], self.valid[window]])

    def counts(self, logits: Tensor) -> tuple[Floats, Floats]:
        """Pixels of intersection and union for logits (..., rows, cols): (...) each, where the logit is above 0.

        Logits are upsampled bilinearly to the image's pixels; outside the grid's window nothing is chosen.
        """
        maps = logits.reshape(-1, *logits.shape[-2:])
        down, across = like(self.down, maps), like(self.across, maps)
        height, width = self.pixels.shape[1:]
        both = np.zeros((len(maps), 2))
        for band in pieces(height, width, _COUNTED):
            # Counted as a product, both kinds as rows: exact, since sums stay whole numbers below 2^24.
            pixels = like(self.pixels[:, band].reshape(2, -1), maps)
            for piece in pieces(len(maps), pixels.shape[1], at_once(maps)):
                chosen = upsample(maps[piece], down[band], across).gt_(0)
                both[piece] += (chosen.flatten(1) @ pixels.t()).cpu().numpy()
        intersection, chosen_area = both.reshape(*logits.shape[:-2], 2).transpose(-1, *range(logits.dim() - 2))
        return intersection, chosen_area + self.area - intersection

    def chosen(self, logits: Tensor) -> Bools:
        """Which pixels (height, width) one map of logits (rows, cols) chooses, by the same rule; void is left out."""
        rows, cols, down, across = upsampling(self.grid, self.mask.shape[::-1])
        found = np.zeros_like(self.mask)
        found[np.ix_(rows, cols)] = (upsample(logits[None], like(down, logits), like(across, logits))[0] > 0).cpu()
        return found & self.valid


def as_maps(logits: Floats) -> Tensor:
    """A map (rows, cols) as those of one site with one head: (1, 1, rows, cols)."""
    import torch

    return torch.as_tensor(logits, dtype=torch.float32)[None, None]


def cells_seen(size: tuple[int, int], grid: TokenGrid) -> Bools:
    """Which cells (rows, cols) lie at least half inside the image of that (width, height): not what a model pads.

    Half of what the best cell has inside, where cells are larger than the image.
    """
    shares = cell_shares(np.ones(size[::-1], dtype=bool), grid)
    seen: Bools = shares >= 0.5 * shares.max()
    return seen


def ellipse(size: tuple[int, int], grid: TokenGrid, diameter: float) -> Floats:
    """What is guessed from the position alone: a map (rows, cols) above 0 in an ellipse in the middle of the image.

    Its diameters are that share of the image's (width, height); towards the middle the map grows.
    """
    x, y = grid.centre(*np.mgrid[: grid.rows, : grid.cols])
    width, height = size
    distance: Floats = np.hypot((x - width / 2) / width, (y - height / 2) / height)
    return diameter / 2 - distance


def check_ellipse(diameter: float) -> None:
    """Raise BadOption unless the floor's ellipse has a size."""
    if not 0 < diameter <= 2:
        raise BadOption(option="-p", value=f"ellipse {diameter}", why="it must be above 0 and at most 2")


def area_by_cell(region: Bools, grid: TokenGrid) -> Floats:
    """The pixels of a region (height, width) by cell, parts of pixels as such, and last those outside: (cells + 1,)."""
    left, top, right, bottom = grid.window
    cell = (right - left) / grid.cols * (bottom - top) / grid.rows
    inside = cell_shares(region, grid).ravel() * cell
    outside = region.sum() - inside.sum()
    # What is left by rounding is no pixel.
    return np.append(inside, outside if outside > 1e-6 * max(region.sum(), 1) else 0.0)
