"""Finds the points that are drawn into an image and told nowhere: BLINK's correspondence marks, and the toy world's.

BLINK's look [C: Fu et al. 2024, arXiv 2404.12390], learnt from three example pairs on its page (repository zeyofu/
blink, `static/images/example/Slide1.png`, `Slide10.png`, `Slide11.png`): a hollow red circle, and above it, or below
where there is no room, the label in white capitals on a black box, about as high as the circle is wide, its centre
about 1.8 diameters from the circle's. The toy world's look is that of `toyworld.choices.draw_mark`.

The method is ours [D]. Red regions that are closed round rings are candidates; the label beside each is told by
correlation with drawn labels at several sizes. A label that no ring or more than one has, or that can't be told from
another, makes the image unreadable: None, never a guess. A ring that is cut by the image's edge, touches another, or
lies on red ground is not seen. `benchmarks/marks.py` measures it on drawn marks; the dataset's own images were not at
hand but for those three pairs, re-scaled, so its accuracy on BLINK is not known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import PIL.Image
from PIL import ImageDraw, ImageFont

Floats = npt.NDArray[np.float32]

KNOWN = ("A", "B", "C", "D", "REF")
SMALLEST = 7  # px, a ring's diameter; smaller ones are no longer rings
LARGEST = 0.25  # of the image's longer side
LIKE = 0.62  # the least correlation of a label
AHEAD = 0.06  # by which it must be above that of any other label

_REDNESS = (90, 130, 170)  # how far red must be above green and blue; a ground that is somewhat red drops out in turn
_UNIT = 16  # px, a ring's diameter where its label is read
_HEIGHTS = tuple(range(10, 20))  # px of a label at that scale
_TOY = ((255, 0, 0), (255, 255, 255), (0, 0, 0))  # rim, disc, letter
_TOY_SEEN = 0.6  # of a toy mark's pixels, the rest may lie under other marks
_STROKES = {
    "A": (((0, 6), (2, 0), (4, 6)), ((0.7, 4), (3.3, 4))),
    "B": (
        ((0, 0), (0, 6)),
        ((0, 0), (2.8, 0), (4, 1.4), (2.8, 2.8), (0, 2.8)),
        ((2.8, 2.8), (4, 4.4), (2.8, 6), (0, 6)),
    ),
    "C": (((4, 1.4), (3, 0), (1, 0), (0, 1.5), (0, 4.5), (1, 6), (3, 6), (4, 4.6)),),
    "D": (((0, 0), (2.5, 0), (4, 1.6), (4, 4.4), (2.5, 6), (0, 6), (0, 0)),),
    "R": (((0, 6), (0, 0), (2.8, 0), (4, 1.5), (2.8, 3), (0, 3)), ((2, 3), (4, 6))),
    "E": (((4, 0), (0, 0), (0, 6), (4, 6)), ((0, 3), (2.6, 3))),
    "F": (((4, 0), (0, 0), (0, 6)), ((0, 3), (2.6, 3))),
}
"""Capitals of one stroke width as lines in a box of 4 x 6, as plotter fonts draw them."""


class Ring(NamedTuple):
    """A candidate: its centre and outer diameter in pixels."""

    x: float
    y: float
    diameter: float


def find(image: PIL.Image.Image, labels: Sequence[str]) -> dict[str, tuple[float, float]] | None:
    """The centre (x, y) in pixels of each label's mark, the upper left corner of the image being (0, 0).

    None where one is missing, is there twice or can't be told from another. Raises ValueError for a label that is none
    of `KNOWN`.
    """
    if not labels or len(set(labels)) < len(labels) or not set(labels) <= set(KNOWN):
        raise ValueError(f"labels {tuple(labels)} must be some of {KNOWN}, each once")
    pixels = np.asarray(image.convert("RGB")).astype(np.int16)
    if min(pixels.shape[:2]) < SMALLEST:
        return None
    found = _toy(pixels) or _circled(pixels)
    if found is None or sorted(found) != sorted(labels):
        return None
    return {label: found[label] for label in labels}


def _circled(pixels: npt.NDArray[np.int16]) -> dict[str, tuple[float, float]] | None:
    """The labels of all rings that have one; None if one is ambiguous or there twice."""
    found: dict[str, tuple[float, float]] = {}
    grey = PIL.Image.fromarray((pixels @ np.array([0.299, 0.587, 0.114])).astype(np.uint8))
    for ring in rings(pixels):
        likeness = _likeness(grey, ring)
        best, second = sorted(likeness, key=lambda label: -likeness[label])[:2]
        if likeness[best] < LIKE:
            continue  # a red ring of the picture's own
        if likeness[best] - likeness[second] < AHEAD or best in found:
            return None
        found[best] = (ring.x, ring.y)
    return found


def rings(pixels: npt.NDArray[np.int16]) -> list[Ring]:
    """Closed round red rings in an image (height, width, 3), each once."""
    from scipy import ndimage

    found: list[Ring] = []
    redness = pixels[..., 0] - pixels[..., 1:].max(-1)
    for least in _REDNESS:
        regions, _ = ndimage.label(redness >= least, np.ones((3, 3)))
        for index, box in enumerate(ndimage.find_objects(regions), 1):
            rows, columns = box
            high, wide = rows.stop - rows.start, columns.stop - columns.start
            if min(high, wide) < SMALLEST or max(high, wide) > LARGEST * max(pixels.shape[:2]):
                continue
            if abs(high - wide) > max(2, 0.15 * max(high, wide)) or not _round(regions[box] == index):
                continue
            ring = Ring((columns.start + columns.stop) / 2, (rows.start + rows.stop) / 2, (high + wide) / 2)
            if all(np.hypot(ring.x - one.x, ring.y - one.y) > 0.5 * one.diameter for one in found):
                found.append(ring)
    return found


def _round(region: npt.NDArray[np.bool_]) -> bool:
    """Whether a region is a closed ring around its box's centre."""
    from scipy import ndimage

    high, wide = region.shape
    filled = ndimage.binary_fill_holes(region)
    rows, columns = np.mgrid[:high, :wide]
    distance = np.hypot((rows + 0.5 - high / 2) / (high / 2), (columns + 0.5 - wide / 2) / (wide / 2))
    whole, hollow = filled.sum() / (np.pi / 4 * high * wide), 1 - region.sum() / filled.sum()
    return bool(
        0.8 < whole < 1.2 and hollow > 0.12 and not region[distance < 0.3].any() and filled[distance < 0.3].all()
    )


def _likeness(grey: PIL.Image.Image, ring: Ring) -> dict[str, float]:
    """For each known label, its highest correlation with what stands above or below a ring."""
    best = dict.fromkeys(KNOWN, -1.0)
    scale = ring.diameter / _UNIT
    across, down = 2.4 * ring.diameter, 3.0 * ring.diameter
    size = (round(2 * across / scale), round(2 * down / scale))
    # Beyond the image's edge is black.
    corners = (ring.x - across, ring.y - down, ring.x + across, ring.y + down)
    data = (scale, 0, corners[0], 0, scale, corners[1])
    if scale > 1:  # an affine transform does not average
        patch = grey.crop(corners).resize(size, PIL.Image.Resampling.BOX)
    else:
        patch = grey.transform(size, PIL.Image.Transform.AFFINE, data, PIL.Image.Resampling.BILINEAR)
    seen = np.asarray(patch, dtype=np.float32)
    middle = (size[0] / 2, size[1] / 2)
    for label, drawn in _templates():
        high, wide = drawn.shape
        left = round(middle[0] - wide / 2)
        for near, far in ((-2.4, -1.2), (1.2, 2.4)):
            top, bottom = (round(middle[1] + share * _UNIT - high / 2) for share in (near, far))
            part = seen[max(top, 0) : bottom + high, max(left - 6, 0) : left + wide + 6]
            if part.shape[0] >= high and part.shape[1] >= wide:
                best[label] = max(best[label], _correlation(part, drawn))
    return best


def _correlation(part: Floats, drawn: Floats) -> float:
    """The highest normalised correlation of a picture (of mean 0 and length 1) with any place of a part."""
    windows = np.lib.stride_tricks.sliding_window_view(part, drawn.shape)
    mean = windows.mean((-1, -2))
    spread = np.sqrt(np.maximum((windows**2).mean((-1, -2)) - mean**2, 0) * drawn.size)
    products = np.einsum("ijkl,kl->ij", windows, drawn)
    # A contrast of 25 grey levels is the least that a label in white on black has, small and blurred.
    return float(np.max(np.where(spread > 25 * np.sqrt(drawn.size), products / np.maximum(spread, 1e-6), -1)))


@cache
def _templates() -> tuple[tuple[str, Floats], ...]:
    """Labels in white on black, of every height and two fonts, with mean 0 and length 1."""
    found = []
    for label in KNOWN:
        for high in _HEIGHTS:
            for picture in _drawn(label, high):
                values = np.asarray(picture, dtype=np.float32)
                values = values - values.mean()
                found.append((label, values / np.sqrt((values**2).sum())))
    return tuple(found)


def _drawn(label: str, high: int) -> Iterator[PIL.Image.Image]:
    """A label of a height in pixels, with a margin: of strokes, and in Pillow's font. Drawn four times as large."""
    unit, margin = 4 * high / 6, 8
    step = 5.4 * unit
    picture = PIL.Image.new("L", (round(4 * unit + step * (len(label) - 1)) + 2 * margin, 4 * high + 2 * margin))
    pen = ImageDraw.Draw(picture)
    width = round(0.95 * unit)
    for place, letter in enumerate(label):
        for line in _STROKES[letter]:
            # The strokes' middles lie half a width inside.
            x, y = margin + place * step + width / 2, margin + width / 2
            inner = (4 * unit - width) / 4, (6 * unit - width) / 6
            points = [(x + inner[0] * a, y + inner[1] * b) for a, b in line]
            pen.line(points, 255, width, "curve")
    yield picture.resize((-(-picture.width // 4), -(-picture.height // 4)), PIL.Image.Resampling.BOX)
    font = ImageFont.load_default(round(4 * high / 0.72))
    left, top, right, bottom = font.getbbox(label, stroke_width=2)
    picture = PIL.Image.new("L", (round(right - left) + 2 * margin, round(bottom - top) + 2 * margin))
    ImageDraw.Draw(picture).text((margin - left, margin - top), label, 255, font, stroke_width=2)
    yield picture.resize((-(-picture.width // 4), -(-picture.height // 4)), PIL.Image.Resampling.BOX)


def _toy(pixels: npt.NDArray[np.int16]) -> dict[str, tuple[float, float]] | None:
    """Marks of the toy world, pixel for pixel, in an image of its size; None without any or where one is ambiguous."""
    from scipy import ndimage

    from vkvdb.toyworld.world import SIZE

    if pixels.shape[:2] != (SIZE, SIZE):
        return None
    near = [(np.abs(np.pad(pixels, ((6, 6), (6, 6), (0, 0)), constant_values=99) - c) <= 24).all(-1) for c in _TOY]
    discs = []
    for stencil, x, y in _discs():
        # A letter hides the white that it stands on.
        share = ndimage.correlate(near[0] * 1.0, (stencil == 1) * 1.0, mode="constant")
        share += ndimage.correlate((near[1] | near[2]) * 1.0, (stencil == 2) * 1.0, mode="constant")
        share /= (stencil > 0).sum()
        discs += [(share[at[0], at[1]], at[1] - 12 + x, at[0] - 12 + y) for at in np.argwhere(share >= _TOY_SEEN)]
    kept: list[tuple[float, float]] = []
    found: dict[str, tuple[float, float]] = {}
    for _, x, y in sorted(discs, reverse=True):
        if any(np.hypot(x - a, y - b) < 3 for a, b in kept):
            continue
        letters = _letters(near[2], x + 6, y + 6)
        if not letters:
            continue
        kept.append((x, y))
        if len(letters) > 1 or letters[0] in found:
            return None
        found[letters[0]] = (float(x), float(y))
    return found or None


def _letters(black: npt.NDArray[np.bool_], x: float, y: float) -> list[str]:
    """The labels whose letter stands, to the pixel, in the disc around a point."""
    found = set()
    for column in {int(np.ceil(x)) - 1, int(x)}:
        for row in {int(np.ceil(y)) - 1, int(y)}:
            part = black[row - 2 : row + 3, column - 1 : column + 2]
            found |= {label for label, glyph in _glyphs() if np.array_equal(part, glyph)}
    return sorted(found)


@cache
def _discs() -> tuple[tuple[npt.NDArray[np.uint8], float, float], ...]:
    """The toy's disc at every place between pixels: (13, 13) of 1 red, 2 white, 0 nothing; and its centre there."""
    found = []
    for x in (6.0, 6.5):
        for y in (6.0, 6.5):
            canvas = _marked("A", x, y)
            drawn = (canvas != 7).any(-1)
            rim = (canvas == _TOY[0]).all(-1)
            found.append((np.where(rim, 1, np.where(drawn, 2, 0)).astype(np.uint8)[:13, :13], x, y))
    return tuple(found)


@cache
def _glyphs() -> tuple[tuple[str, npt.NDArray[np.bool_]], ...]:
    """The toy's letters as (5, 3) of black."""
    return tuple((label, (_marked(label, 6.5, 6.5)[4:9, 5:8] == 0).all(-1)) for label in KNOWN)


def _marked(label: str, x: float, y: float) -> npt.NDArray[np.uint8]:
    from vkvdb.toyworld.choices import Mark, draw_mark
    from vkvdb.toyworld.world import SIZE

    canvas = np.full((SIZE, SIZE, 3), 7, dtype=np.uint8)
    draw_mark(canvas, Mark(0, label, x, y))
    return canvas
