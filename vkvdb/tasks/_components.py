"""Connected regions of many maps at once, exact on their bilinear interpolation, without making a pixel of it.

Between four cells' centres a bilinear map has no maximum of its own. So every connected region in which it is above 0
holds a cell's centre: neighbouring centres above 0 are connected, and diagonal ones where the saddle between them is,
which is where the product of the two is larger than that of the other two. Along a curve on which the map is 0 one
coordinate is a monotone function of the other, so a region's leftmost point, and likewise the others, lies on a line
through cells' centres, where the map is piecewise linear. Beyond the outermost centres it goes on unchanged.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def largest_boxes(maps: Tensor) -> Tensor:
    """Boxes (n, 4) of the largest region above 0 of maps (n, rows, cols), largest by its number of cells.

    Left, top, right and bottom in grid coordinates; of regions of one size one is taken; NaN where nothing is above 0.
    """
    labels = _labels(maps)
    flat = labels.flatten(1)
    sizes = torch.zeros(len(maps), flat.shape[1] + 1, dtype=torch.int64, device=maps.device)
    sizes.scatter_add_(1, flat, torch.ones_like(flat))
    sizes[:, 0] = 0
    inside = (labels == sizes.argmax(1)[:, None, None]) & (labels > 0)
    right, bottom = _reach(maps, inside), _reach(maps.transpose(1, 2), inside.transpose(1, 2))
    mirrored, turned = maps.flip(2), maps.flip(1).transpose(1, 2)
    left = maps.shape[2] - _reach(mirrored, inside.flip(2))
    top = maps.shape[1] - _reach(turned, inside.flip(1).transpose(1, 2))
    return torch.stack([left, top, right, bottom], 1)


def _reach(maps: Tensor, inside: Tensor) -> Tensor:
    """The rightmost place (n,), in columns, of the regions marked in maps (n, rows, cols)."""
    cols = maps.shape[2]
    here, beyond = maps[:, :, :-1], maps[:, :, 1:]
    step = torch.where(beyond > 0, 0.0, here / (here - beyond))
    ends = torch.arange(cols, device=maps.device) + 0.5 + torch.nn.functional.pad(step, (0, 1), value=0.5)
    rightmost = torch.where(inside, ends, -torch.inf).flatten(1).amax(1)
    return torch.where(inside.flatten(1).any(1), rightmost, torch.nan)


def _labels(maps: Tensor) -> Tensor:
    """Labels (n, rows, cols): equal inside a region, 1 + the number of its last cell, and 0 where not above 0."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    values = maps.cpu().numpy()
    inside = values > 0
    numbers = np.arange(values.size, dtype=np.int32).reshape(values.shape)
    whole, low, high = slice(None), slice(None, -1), slice(1, None)
    falling = values[:, :-1, :-1] * values[:, 1:, 1:]
    rising = values[:, :-1, 1:] * values[:, 1:, :-1]
    links = [
        ((whole, low), (whole, high), None),
        ((low, whole), (high, whole), None),
        ((low, low), (high, high), falling > rising),
        ((low, high), (high, low), rising > falling),
    ]
    ends: tuple[list[npt.NDArray[np.int32]], ...] = ([], [])
    for a, b, saddle in links:
        linked = inside[:, *a] & inside[:, *b]
        if saddle is not None:
            linked &= saddle
        for found, end in zip(ends, (a, b), strict=True):
            found.append(numbers[:, *end][linked])
    first, second = (np.concatenate(part) for part in ends)
    # In the format and type that it would be brought to, more slowly.
    graph = coo_array((np.ones(len(first)), (first, second)), shape=(values.size, values.size)).tocsr()
    count, region = connected_components(graph, directed=False)
    last = np.zeros(count, np.int64)
    np.maximum.at(last, region, np.tile(np.arange(1, maps[0].numel() + 1), len(maps)))
    return torch.as_tensor(np.where(inside, last[region].reshape(values.shape), 0), device=maps.device)
