"""Masks: COCO's compressed run lengths, as `types.Mask` keeps them, to and from arrays and polygons.

Run lengths go down the columns, beginning with background, as in pycocotools, which does the work. What it accepts
silently and gets wrong (runs that do not fill the image, polygons that leave it, four numbers taken for a box) is
refused here with a ValueError that says why.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from vkvdb.samples import Mask

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

OVERHANG = 1.0
"""How far, in pixels, a polygon may reach over the image's edge: annotation tools are not exact there."""


def encode(region: npt.NDArray[np.bool_]) -> Mask:
    """A boolean array (height, width) as a mask."""
    import numpy as np
    from pycocotools import mask as coco

    height, width = region.shape
    return _from_coco(coco.encode(np.asfortranarray(region, dtype=np.uint8)), width, height)


def decode(mask: Mask) -> npt.NDArray[np.bool_]:
    """A mask as a boolean array (height, width)."""
    from pycocotools import mask as coco

    region: npt.NDArray[np.bool_] = coco.decode(_to_coco(mask)).astype(bool)
    return region


def area(mask: Mask) -> int:
    """The pixels of a mask."""
    from pycocotools import mask as coco

    return int(coco.area(_to_coco(mask)))


def union(masks: Sequence[Mask]) -> Mask:
    """The pixels that are in any of the masks, at least one, all of one size."""
    from pycocotools import mask as coco

    first = masks[0]
    if any((m.width, m.height) != (first.width, first.height) for m in masks):
        raise ValueError("masks of different sizes have no union")
    return _from_coco(coco.merge([_to_coco(m) for m in masks]), first.width, first.height)


def minus(mask: Mask, other: Mask) -> Mask:
    """The pixels of a mask that are not in the other."""
    return encode(decode(mask) & ~decode(other))


def from_polygons(polygons: Sequence[Sequence[float]], width: int, height: int) -> Mask:
    """The union of polygons, each `[x, y, x, y, ...]` in pixels, filled by COCO's rule.

    Raises ValueError for a polygon with fewer than three corners or one that leaves the image by more than OVERHANG.
    """
    from pycocotools import mask as coco

    if not polygons:
        raise ValueError("it has no polygon")
    for polygon in polygons:
        _check_polygon(polygon, width, height)
    parts = coco.frPyObjects([[float(value) for value in polygon] for polygon in polygons], height, width)
    return _from_coco(coco.merge(parts), width, height)


def from_rle(rle: Mapping[str, Any], width: int, height: int) -> Mask:
    """Run lengths as COCO's files hold them, `{"size": [height, width], "counts": list or text}`.

    Raises ValueError where they do not fit the image.
    """
    from pycocotools import mask as coco

    if rle["size"] != [height, width]:
        raise ValueError(f"its run lengths are of size {rle['size']}, the image is [{height}, {width}]")
    counts = rle["counts"]
    if isinstance(counts, str):
        mask = Mask(width, height, counts)
        check(mask)
        return mask
    if not isinstance(counts, list) or any(not isinstance(run, int) or run < 0 for run in counts):
        raise ValueError("its run lengths are neither text nor a list of whole numbers")
    if sum(counts) != width * height:
        raise ValueError(f"its run lengths do not add up to {width} x {height} pixels")
    return _from_coco(coco.frPyObjects({"size": [height, width], "counts": counts}, height, width), width, height)


@lru_cache(maxsize=4096)  # the masks of a few images stand in thousands of episodes
def check(mask: Mask) -> None:
    """Raise ValueError unless the run lengths fill the mask's width and height exactly."""
    runs = run_lengths(mask.counts)
    if any(run < 0 for run in runs) or sum(runs) != mask.width * mask.height:
        raise ValueError(f"its run lengths do not add up to {mask.width} x {mask.height} pixels")


def run_lengths(counts: str) -> list[int]:
    """The runs of a compressed text: six bits a character, five of them digits, from the third on as differences.

    The inverse of `rleToString` in cocoapi's maskApi.c. Raises ValueError where the text is not one.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        digit = ord(character) - 48
        if not 0 <= digit < 64:
            raise ValueError(f"its run lengths hold the character {character!r}")
        value |= (digit & 0x1F) << shift
        shift += 5
        if not digit & 0x20:
            if digit & 0x10:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError("its run lengths end in the middle of a number")
    return runs


def _check_polygon(polygon: Sequence[float], width: int, height: int) -> None:
    if len(polygon) < 6 or len(polygon) % 2:
        raise ValueError(f"it has a polygon of {len(polygon)} numbers")
    for x, y in zip(polygon[::2], polygon[1::2], strict=True):
        inside = -OVERHANG <= x <= width + OVERHANG and -OVERHANG <= y <= height + OVERHANG
        if not inside or not math.isfinite(x + y):
            raise ValueError(f"its polygon has a corner at ({x:g}, {y:g}), outside the image of {width} x {height}")


def _to_coco(mask: Mask) -> dict[str, Any]:
    return {"size": [mask.height, mask.width], "counts": mask.counts.encode("ascii")}


def _from_coco(rle: Mapping[str, Any], width: int, height: int) -> Mask:
    return Mask(width, height, rle["counts"].decode("ascii"))
