"""Measures on arrays, in numpy: shares of cells, bilinear weights, right points, intersection over union.

Pixels are (x, y) from the corner of the image, the first pixel's centre at (.5, .5); see `vkvdb.types.TokenGrid`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from vkvdb.samples import Box
from vkvdb.types import TokenGrid

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def overlaps(edges: Floats, pixels: int) -> Floats:
    """How much of each of `pixels` pixels lies between two neighbouring edges (cells + 1,): (cells, pixels), 0 to 1."""
    left = np.arange(pixels)
    common: Floats = np.clip(np.minimum(edges[1:, None], left + 1) - np.maximum(edges[:-1, None], left), 0, 1)
    return common


def cell_shares(mask: Bools, grid: TokenGrid) -> Floats:
    """The share of each cell's area that a mask (height, width) covers: (rows, cols), pixels counted by their parts.

    What lies outside the image is not covered.
    """
    height, width = mask.shape
    left, top, right, bottom = grid.window
    down = overlaps(np.linspace(top, bottom, grid.rows + 1), height)
    across = overlaps(np.linspace(left, right, grid.cols + 1), width)
    area = (right - left) / grid.cols * (bottom - top) / grid.rows
    covered: Floats = down @ mask.astype(np.float64) @ across.T / area
    return covered


def pixels_seen(low: float, high: float, length: int | None) -> npt.NDArray[np.int64]:
    """Indices of an axis's pixels whose centre lies in [low, high) and, where a length is given, in the image."""
    first, stop = math.ceil(low - 0.5), math.ceil(high - 0.5)
    if length is not None:
        first, stop = max(first, 0), min(stop, length)
    return np.arange(first, stop)


def between(positions: Floats, cells: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats]:
    """For grid coordinates along an axis the two cells whose centres they lie between, and the share of the second.

    Beyond the outermost centres both are the nearest cell.
    """
    place = np.clip(np.asarray(positions, dtype=np.float64) - 0.5, 0, cells - 1)
    first = place.astype(np.int64)
    return first, np.minimum(first + 1, cells - 1), place - first


def bilinear(positions: Floats, cells: int) -> Floats:
    """Weights (positions, cells) of the cells at grid coordinates along an axis.

    This is bilinear upsampling with `align_corners=False`, an axis at a time.
    """
    first, second, share = between(positions, cells)
    weights = np.zeros((len(first), cells))
    rows = np.arange(len(first))
    weights[rows, first] = 1 - share
    weights[rows, second] += share
    return weights


def upsampling(
    grid: TokenGrid, size: tuple[int, int] | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats, Floats]:
    """From the grid to the pixels of the image of that (width, height) that the grid covers.

    Pixel rows (h,) and columns (w,), and the bilinear weights (h, rows) and (w, cols): `down @ cells @ across.T` is the
    upsampled map (h, w). Without a size the image ends where the window does.
    """
    width, height = size or (None, None)
    left, top, right, bottom = grid.window
    xs, ys = pixels_seen(left, right, width), pixels_seen(top, bottom, height)
    u, v = grid.to_grid(xs + 0.5, 0.0)[0], grid.to_grid(0.0, ys + 0.5)[1]
    return ys, xs, bilinear(v, grid.rows), bilinear(u, grid.cols)


def inside(points: Floats, grid: TokenGrid) -> Bools:
    """Which points (n, 2) lie in the grid's window: (n,)."""
    u, v = grid.to_grid(points[:, 0], points[:, 1])
    within: Bools = (u >= 0) & (u < grid.cols) & (v >= 0) & (v < grid.rows)
    return within


def longer_side(box: Box) -> float:
    """The longer side of a box (left, top, right, bottom)."""
    return max(box[2] - box[0], box[3] - box[1])


def right_points(predicted: Floats, truth: Floats, side: float, alpha: float) -> Bools:
    """Which predictions (..., points, 2) lie within alpha x side of the truth (points, 2): (..., points).

    Compared as DIFT's eval_spair.py does: the distance over the side, at most alpha.
    """
    offset = predicted - truth
    near: Bools = np.hypot(offset[..., 0], offset[..., 1]) / side <= alpha
    return near


def iou(intersection: Any, union: Any) -> Floats:
    """Intersection over union, arrays of one shape; NaN where the union is empty."""
    union = np.asarray(union, dtype=np.float64)
    share: Floats = np.divide(intersection, union, out=np.full(union.shape, np.nan), where=union > 0)
    return share
