"""Connected regions of many maps at once, exact on their bilinear interpolation, without making a pixel of it.

Between four cells' centres a bilinear map has no maximum of its own. So every connected region in which it is above 0
holds a cell's centre: neighbouring centres above 0 are connected, and diagonal ones where the saddle between them is,
which is where the product of the two is larger than that of the other two. Along a curve on which the map is 0 one
coordinate is a monotone function of the other, so a region's leftmost point, and likewise the others, lies on a line
through cells' centres, where the map is piecewise linear. Beyond the outermost centres it goes on unchanged.
"""

from __future__ import annotations

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
    """Labels (n, rows, cols): equal inside a region, 1 + the number of one of its cells, and 0 where not above 0."""
    n, rows, cols = maps.shape
    inside = maps > 0
    numbers = torch.arange(1, rows * cols + 1, device=maps.device).view(rows, cols)
    labels = torch.where(inside, numbers, 0)
    whole, low, high = slice(None), slice(None, -1), slice(1, None)
    falling = maps[:, :-1, :-1] * maps[:, 1:, 1:]
    rising = maps[:, :-1, 1:] * maps[:, 1:, :-1]
    links = [
        ((whole, low), (whole, high), None),
        ((low, whole), (high, whole), None),
        ((low, low), (high, high), falling > rising),
        ((low, high), (high, low), rising > falling),
    ]
    pairs = []
    for a, b, saddle in links:
        both = inside[:, *a] & inside[:, *b]
        pairs.append((a, b, both if saddle is None else both & saddle))
    while True:
        before = labels.clone()
        for a, b, linked in pairs:
            both = torch.maximum(labels[:, *a], labels[:, *b]).mul_(linked)
            for end in (a, b):
                view = labels[:, *end]
                torch.maximum(view, both, out=view)
        # A label names a cell of the region, whose own label may have grown.
        named = torch.nn.functional.pad(labels.flatten(1), (1, 0))
        labels = named.gather(1, labels.flatten(1)).view(n, rows, cols)
        if torch.equal(labels, before):
            return labels
