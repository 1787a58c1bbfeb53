"""Measures of a video's masks: region similarity J and boundary accuracy F, as davis2017-evaluation counts them.

J is intersection over union; where both masks are empty it is 1. F is the harmonic mean of two shares: of the
prediction's boundary pixels that lie near the truth's boundary, and of the truth's near the prediction's [C:
davis2017/metrics.py of davisvideochallenge/davis2017-evaluation, ac7c43f]. Near is within a disk of radius 0.008 x the
image's diagonal, rounded up to whole pixels.

The truth's boundary is dilated once; the prediction's is not dilated but looked up around the truth's boundary pixels,
row of the disk by row, in running sums along the image's rows. That gives the same counts and takes many predictions at
once, where they lie. Only what is counted of the prediction alone is counted over the whole image: what is compared
with the truth lies in the truth's box, that of its boundary grown by the radius.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

TOLERANCE = 0.008
"""How far off a boundary may lie, as a share of the image's diagonal."""


def boundary(masks: Any) -> Any:
    """Pixels that differ from the next one to the right, below or diagonally: boolean (..., height, width).

    Numpy array or torch tensor alike. At the right and lower edge there is only one such neighbour, at the corner none.
    """
    edges = masks ^ masks
    edges[..., :, :-1] |= masks[..., :, :-1] ^ masks[..., :, 1:]
    edges[..., :-1, :] |= masks[..., :-1, :] ^ masks[..., 1:, :]
    edges[..., :-1, :-1] |= masks[..., :-1, :-1] ^ masks[..., 1:, 1:]
    return edges


def radius(height: int, width: int) -> int:
    """The tolerance in pixels, of the image's size."""
    return math.ceil(TOLERANCE * math.hypot(height, width))


def disk_widths(size: int) -> npt.NDArray[np.int64]:
    """How far a disk of that radius reaches to each side, in its rows from the centre down: (radius + 1,)."""
    return np.array([math.isqrt(size**2 - row**2) for row in range(size + 1)])


def dilate(edges: Bools, size: int) -> Bools:
    """The pixels (height, width) within a disk of a radius around any pixel that is set."""
    height = len(edges)
    grown = np.zeros_like(edges)
    for row, reach in enumerate(disk_widths(size)):
        wide = _runs(edges, int(reach)) > 0
        grown[min(row, height) :] |= wide[: max(height - row, 0)]
        grown[: max(height - row, 0)] |= wide[min(row, height) :]
    return grown


def _runs(edges: Bools, reach: int) -> npt.NDArray[np.int32]:
    """How many pixels of (height, width) are set from `reach` left to `reach` right of each."""
    width = edges.shape[1]
    sums = np.pad(np.cumsum(edges, 1, dtype=np.int32), ((0, 0), (1, 0)))
    at = np.arange(width)
    count: npt.NDArray[np.int32] = sums[:, np.minimum(at + reach + 1, width)] - sums[:, np.maximum(at - reach, 0)]
    return count


class ObjectTruth:
    """One object's mask (height, width) in one frame, and what predictions of it are worth."""

    def __init__(self, mask: Bools) -> None:
        self.mask, self.area, self.size = mask, int(mask.sum()), radius(*mask.shape)
        edges = boundary(mask)
        self.wanted = int(edges.sum())
        self.inside = _box(mask, 0)
        self.around = _box(edges, self.size)
        self.near = dilate(edges[self.around], self.size)
        self.runs = _runs_around(edges[self.around], self.size)

    def j(self, masks: Tensor) -> Floats:
        """Region similarity of boolean masks (n, height, width): (n,)."""
        import torch

        truth = torch.as_tensor(self.mask[self.inside], device=masks.device)
        both = _count(masks[:, *self.inside] & truth)
        union = _count(masks) + self.area - both
        share: Floats = np.where(union > 0, both / np.maximum(union, 1), 1.0)
        return share

    def f(self, masks: Tensor) -> Floats:
        """Boundary accuracy of boolean masks (n, height, width): (n,)."""
        import torch

        edges = boundary(masks)
        found = _count(edges)
        edges = edges[:, *self.around]
        hits = _count(edges & torch.as_tensor(self.near, device=masks.device))
        # A side without any boundary pixel is right by definition.
        precision = np.where(found > 0, hits / np.maximum(found, 1), 1.0)
        recall = self._reached(edges) / self.wanted if self.wanted else np.ones(len(masks))
        total = precision + recall
        share: Floats = np.where(total > 0, 2 * precision * recall / np.where(total > 0, total, 1), 0.0)
        return share

    def _reached(self, edges: Tensor) -> Floats:
        """How many of the truth's boundary pixels have one of `edges` (n, rows, cols) in their disk: (n,).

        `edges` are those of the truth's box: nothing that lies beyond it is near enough.
        """
        import torch

        sums = edges.new_zeros((*edges.shape[:2], edges.shape[2] + 1), dtype=torch.int32)
        torch.cumsum(edges, 2, dtype=torch.int32, out=sums[:, :, 1:])
        flat = sums.flatten(1)
        reached = edges.new_zeros(len(edges), self.wanted)
        for first, last in torch.as_tensor(self.runs, device=edges.device):
            reached |= flat.index_select(1, last) > flat.index_select(1, first)
        return _count(reached)


def _box(pixels: Bools, margin: int) -> tuple[slice, slice]:
    """The rows and columns that hold all pixels that are set, and a margin where the image has it; empty for none."""
    slices = []
    for along in (1, 0):
        places = np.flatnonzero(pixels.any(along))
        low, high = (int(places[0]) - margin, int(places[-1]) + 1 + margin) if len(places) else (0, 0)
        slices.append(slice(max(low, 0), min(high, pixels.shape[1 - along])))
    return slices[0], slices[1]


def _runs_around(edges: Bools, size: int) -> npt.NDArray[np.int64]:
    """Where the rows of the disks around the boundary's pixels begin and end: (2 radius + 1, 2, pixels).

    Places in running sums of (height, width + 1), flattened; a row outside the image is an empty run.
    """
    height, width = edges.shape
    row, col = np.argwhere(edges).T
    step = np.arange(-size, size + 1)[:, None]
    reach = disk_widths(size)[np.abs(step)]
    line = row + step
    ends = np.stack([np.maximum(col - reach, 0), np.minimum(col + reach + 1, width)], 1)
    runs: npt.NDArray[np.int64] = np.where(
        ((line >= 0) & (line < height))[:, None], line[:, None] * (width + 1) + ends, 0
    )
    return runs


def _count(pixels: Tensor) -> Floats:
    """How many are set of each of boolean (n, ...): (n,)."""
    import torch

    if pixels.device.type == "cpu":  # numpy's counting is several times as fast
        return np.array([np.count_nonzero(one) for one in pixels.numpy()], dtype=np.float64)
    count: Floats = pixels.flatten(1).sum(1, dtype=torch.int32).cpu().numpy().astype(np.float64)
    return count
