"""An image's known warp of itself: a homography and a change of colours, drawn from a seed and the image's name.

The target is a window of the image, 1.5 to 2.3 times enlarged, rotated, seen in perspective and perhaps mirrored; it
is filled to its edges and has the original's size. Warps are drawn until copying the same place fails and enough of a
lattice is seen. Such a map always has a fixed point inside; a mirrored one moves more of what lies around it, so most
are mirrored. Points are pixels (x, y) from the corner, the first pixel's centre at (.5, .5), as Pillow counts in
`Image.transform`.

The recipe holds rounded numbers that only elementary operations come after: the same on every machine.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vkvdb.samples import ImagePair, Point
from vkvdb.types import ImageFile

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import PIL.Image

GROUP = "self-warp"
SEED = 0
ZOOM = (1.5, 2.3)
DEGREES = 40.0
PERSPECTIVE = 0.1  # a window's corner moves by up to this share of the window's sides
BORDER = 1.0  # pixels between the window and the image's edge
LATTICE = 16  # points of the source along a side
MARGIN = 0.02  # points closer than this share of a side to the target's edge are left out
TOLERANCE = 0.1  # a point that moves by less than this share of the longer side stays in place
STAYING = 0.045  # the share of points that may stay in place
SEEN = 40  # the points that must be seen in the target
DRAWS = 300

Matrix = tuple[float, ...]


def pair(image: ImageFile, width: int, height: int, seed: int = SEED) -> tuple[ImageFile, ImagePair]:
    """The warp of an image of this size as a derived image `NAME#warp`, and the lattice of points that correspond.

    A narrow image may admit no warp that moves enough points; it gets the one that moves the most.
    """
    recipe, source, target = _draw(random.Random(f"{seed}/{image.name}"), width, height)
    warped = ImageFile(f"{image.name}#warp", image.path, recipe)
    sample = ImagePair(
        id=f"{image.name}#warp",
        group=GROUP,
        cluster=image.name,
        source=image.name,
        target=warped.name,
        source_points=_points(source),
        target_points=_points(target),
        source_box=(0.0, 0.0, float(width), float(height)),
        target_box=(0.0, 0.0, float(width), float(height)),
    )
    return warped, sample


def apply(image: PIL.Image.Image, recipe: Mapping[str, Any]) -> PIL.Image.Image:
    """The warped image, RGB, of the original's size. Raises ValueError for an image of another size."""
    from PIL import Image, ImageEnhance

    if list(image.size) != list(recipe["size"]):
        raise ValueError(f"its size is {image.size}, its warp was made for {tuple(recipe['size'])}")
    warped = image.transform(image.size, Image.Transform.PERSPECTIVE, recipe["to_source"][:8], Image.Resampling.BICUBIC)
    warped = ImageEnhance.Brightness(warped).enhance(recipe["brightness"])
    warped = ImageEnhance.Contrast(warped).enhance(recipe["contrast"])
    warped = ImageEnhance.Color(warped).enhance(recipe["saturation"])
    curve = [round(255 * (value / 255) ** recipe["gamma"]) for value in range(256)]
    return warped.point(curve * 3)


def to_target(matrix: Matrix, x: Any, y: Any) -> tuple[Any, Any]:
    """Pixels of the original (floats or arrays) to pixels of its warp; `matrix` is a recipe's `to_source`."""
    return _project(_inverse(matrix), x, y)


def _draw(
    rng: random.Random, width: int, height: int
) -> tuple[dict[str, Any], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The first warp drawn that moves enough and shows enough, else the one that moves most; its points (2, n)."""
    import numpy as np

    steps = (np.arange(LATTICE) + 0.5) / LATTICE
    x, y = (axis.ravel() for axis in np.meshgrid(steps * width, steps * height))
    margin_x, margin_y = MARGIN * width, MARGIN * height
    best = None
    least = math.inf
    for _ in range(DRAWS):
        quad = _window(rng, width, height)
        if quad is None:
            continue
        matrix = _to_quad(quad, width, height)
        u, v = to_target(matrix, x, y)
        seen = (u >= margin_x) & (u <= width - margin_x) & (v >= margin_y) & (v <= height - margin_y)
        if seen.sum() < SEEN:
            continue
        moved = np.hypot(u - x, v - y)[seen] > TOLERANCE * max(width, height)
        staying = float(1 - moved.mean())
        if staying < least:
            least = staying
            best = matrix, np.stack([x[seen], y[seen]]), np.stack([u[seen], v[seen]])
        if staying <= STAYING:
            break
    if best is None:
        raise ValueError(f"an image of {width} x {height} pixels admits no warp")
    colours = {name: round(rng.uniform(low, high), 3) for name, (low, high) in _COLOURS.items()}
    return {"size": [width, height], "to_source": list(best[0]), **colours}, best[1], best[2]


_COLOURS = {"brightness": (0.7, 1.3), "contrast": (0.7, 1.3), "saturation": (0.4, 1.6), "gamma": (0.8, 1.25)}


def _window(rng: random.Random, width: int, height: int) -> list[Point] | None:
    """Where the target's corners lie on the image: top left, top right, bottom right, bottom left; None if outside."""
    zoom = rng.uniform(*ZOOM)
    angle = math.radians(rng.uniform(-DEGREES, DEGREES))
    mirror = rng.choice((1, -1))
    half_w, half_h = width / zoom / 2, height / zoom / 2
    corners = []
    for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
        dx = half_w * (sx * mirror + 2 * rng.uniform(-PERSPECTIVE, PERSPECTIVE))
        dy = half_h * (sy + 2 * rng.uniform(-PERSPECTIVE, PERSPECTIVE))
        corners.append((math.cos(angle) * dx - math.sin(angle) * dy, math.sin(angle) * dx + math.cos(angle) * dy))
    xs, ys = zip(*corners, strict=True)
    room_x = width - 2 * BORDER - (max(xs) - min(xs))
    room_y = height - 2 * BORDER - (max(ys) - min(ys))
    left, top = rng.random(), rng.random()
    if room_x < 0 or room_y < 0:
        return None
    shift_x, shift_y = BORDER + left * room_x - min(xs), BORDER + top * room_y - min(ys)
    return [(cx + shift_x, cy + shift_y) for cx, cy in corners]


def _to_quad(quad: list[Point], width: int, height: int) -> Matrix:
    """The homography, row by row, that takes a rectangle of this size to four corners (Heckbert 1989, 2.2.3)."""
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = quad
    dx1, dx2, sx = x1 - x2, x3 - x2, x0 - x1 + x2 - x3
    dy1, dy2, sy = y1 - y2, y3 - y2, y0 - y1 + y2 - y3
    area = dx1 * dy2 - dx2 * dy1
    g, h = (sx * dy2 - dx2 * sy) / area, (dx1 * sy - sx * dy1) / area
    a, b = x1 - x0 + g * x1, x3 - x0 + h * x3
    d, e = y1 - y0 + g * y1, y3 - y0 + h * y3
    matrix = (a / width, b / height, x0, d / width, e / height, y0, g / width, h / height, 1.0)
    return tuple(round(value, 10) for value in matrix)


def _project(matrix: Matrix, x: Any, y: Any) -> tuple[Any, Any]:
    a, b, c, d, e, f, g, h, i = matrix
    scale = g * x + h * y + i
    return (a * x + b * y + c) / scale, (d * x + e * y + f) / scale


def _inverse(matrix: Matrix) -> Matrix:
    """The inverse up to a factor, which a homography does not have: the adjugate."""
    a, b, c, d, e, f, g, h, i = matrix
    return (
        *(e * i - f * h, c * h - b * i, b * f - c * e),
        *(f * g - d * i, a * i - c * g, c * d - a * f),
        *(d * h - e * g, b * g - a * h, a * e - b * d),
    )


def _points(xy: npt.NDArray[np.float64]) -> tuple[Point, ...]:
    return tuple((round(x, 2), round(y, 2)) for x, y in xy.T.tolist())
