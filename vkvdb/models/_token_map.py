"""The token map: what each position of an image is, and which pixels of the original image it covers. Needs no torch.

An image's tokens come in *panels*: grids whose cells follow each other row by row. LLaVA-1.5 and Qwen2.5-VL send one
panel, the anyres families a base panel and then the mosaic of all tiles, each row of which ends in a newline token.
Rows and columns are independent of each other, so a panel is two axes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from vkvdb.samples import Box
from vkvdb.types import TokenGrid

BASE, TILES = "base", "tiles"


@dataclass(frozen=True)
class ImageToken:
    """One position of an image in the sequence; the row of a table.

    `kind` is base, tile, newline or padding (a cell that lies outside the image). `view` names the panel; `row` and
    `col` are on its grid, and a newline's `col` is the one past the last. `tile` counts tiles row by row; it is -1 in
    the base panel and for a newline. `box` is (left, top, right, bottom) in pixels of the original image, None for a
    newline.
    """

    kind: str
    view: str
    tile: int
    row: int
    col: int
    box: Box | None


@dataclass(frozen=True)
class Axis:
    """The cells along one axis of a panel, in pixels of the original image.

    `spans` are each cell's (from, to), `tiles` the number along this axis of the tile that its centre lies in, and
    `window` what the cells cover when they are taken to divide it evenly.
    """

    spans: tuple[tuple[float, float], ...]
    tiles: tuple[int, ...]
    window: tuple[float, float]

    def __len__(self) -> int:
        return len(self.spans)

    def scaled(self, by: float) -> Axis:
        """The same axis of an image that is larger by a factor."""
        spans = tuple((a * by, b * by) for a, b in self.spans)
        return Axis(spans, self.tiles, (self.window[0] * by, self.window[1] * by))


@dataclass(frozen=True)
class Panel:
    """A grid of an image's tokens: columns along `x`, rows along `y`.

    `newlines` says where newline tokens stand: none, one at the `end`, or one after each `row`. `across` is how many
    tiles lie side by side, 0 where there are none.
    """

    view: str
    x: Axis
    y: Axis
    newlines: str = ""
    across: int = 0

    @property
    def count(self) -> int:
        """Positions in the sequence, newlines included."""
        return len(self.y) * len(self.x) + {"": 0, "end": 1, "row": len(self.y)}[self.newlines]


@dataclass(frozen=True)
class TokenMap:
    """All positions of an image of (width, height) in the order of the sequence."""

    width: int
    height: int
    panels: tuple[Panel, ...]

    @property
    def count(self) -> int:
        """How many positions the image takes in the sequence."""
        return sum(p.count for p in self.panels)

    def panel(self, view: str) -> Panel:
        """The panel of a view; a KeyError where there is none."""
        return {p.view: p for p in self.panels}[view]

    def grid(self, view: str, start: int = 0) -> TokenGrid:
        """A view's grid, with the positions of its cells when the image begins at position `start` of the sequence."""
        panel = self.panel(view)
        first = start + sum(p.count for p in self.panels[: self.panels.index(panel)])
        stride = len(panel.x) + (panel.newlines == "row")
        positions = tuple(first + r * stride + c for r in range(len(panel.y)) for c in range(len(panel.x)))
        (left, right), (top, bottom) = panel.x.window, panel.y.window
        return TokenGrid(len(panel.y), len(panel.x), (left, top, right, bottom), positions)

    def tokens(self) -> Iterator[ImageToken]:
        """Every position, in order."""
        for panel in self.panels:
            for row, (top, bottom) in enumerate(panel.y.spans):
                for col, (left, right) in enumerate(panel.x.spans):
                    seen = left < self.width and right > 0 and top < self.height and bottom > 0
                    kind = ("tile" if panel.across else "base") if seen else "padding"
                    tile = panel.y.tiles[row] * panel.across + panel.x.tiles[col] if panel.across else -1
                    yield ImageToken(kind, panel.view, tile, row, col, (left, top, right, bottom))
                if panel.newlines == "row":
                    yield ImageToken("newline", panel.view, -1, row, len(panel.x), None)
            if panel.newlines == "end":
                yield ImageToken("newline", panel.view, -1, len(panel.y) - 1, len(panel.x), None)

    def groups(self, start: int = 0) -> dict[str, list[int]]:
        """Positions by the name of their group, of an image that begins at `start`: the cells of each view (those of
        padding too), and `newline`. Only groups that are not empty.
        """
        found: dict[str, list[int]] = {}
        for position, token in enumerate(self.tokens(), start):
            found.setdefault("newline" if token.kind == "newline" else token.view, []).append(position)
        return found

    def scaled_to(self, width: int, height: int) -> TokenMap:
        """The map of an image that was stretched to this map's size before the model saw it (`--square`)."""
        x, y = width / self.width, height / self.height
        panels = tuple(replace(p, x=p.x.scaled(x), y=p.y.scaled(y)) for p in self.panels)
        return TokenMap(width, height, panels)


# --- axes -------------------------------------------------------------------------------------------------------------


def even(start: float, step: float, count: int) -> Axis:
    """`count` cells of `step` pixels each, one after another."""
    spans = tuple((start + k * step, start + (k + 1) * step) for k in range(count))
    return Axis(spans, (0,) * count, (start, start + count * step))


def stretched(length: int, side: int, patch: int) -> Axis:
    """An axis of `length` pixels resized to `side`, in whole patches; what is left over at the end is never seen."""
    return even(0.0, patch * length / side, side // patch)


def mosaic(length: int, *, canvas: int, resized: int, side: int, patch: int, kept: tuple[int, int], count: int) -> Axis:
    """An axis of the tile mosaic.

    `length` pixels are resized to `resized`, put in the middle of `canvas`, and cut into tiles of `side` pixels, each
    of which gives `side // patch` cells. Of all cells those of `kept` (from, to) remain, resampled to `count`. Where
    patches do not fill a tile (384 = 27 x 14 + 6), the pixels after its last patch are not seen: `spans` has these
    gaps, `window` spreads them evenly, which puts a cell's centre off by less than half such a gap.
    """
    cells = side // patch
    unseen = side - cells * patch
    pasted, scale = (canvas - resized) // 2, length / resized

    def original(pixel: float) -> float:
        return (pixel - pasted) * scale

    def start(at: float) -> float:
        return at * patch + math.floor(at / cells) * unseen

    def end(at: float) -> float:
        return at * patch + (math.ceil(at / cells) - 1) * unseen

    first, last = kept
    step = (last - first) / count
    edges = [first + k * step for k in range(count + 1)]
    spans = tuple((original(start(a)), original(end(b))) for a, b in pairwise(edges))
    tiles = tuple(int((a + b) / 2 // cells) for a, b in pairwise(edges))
    window = tuple(original(at * side / cells - unseen / 2) for at in kept)
    return Axis(spans, tiles, (window[0], window[1]))


# --- anyres -----------------------------------------------------------------------------------------------------------


def best_canvas(width: int, height: int, pinpoints: Sequence[Sequence[int]]) -> tuple[int, int]:
    """(height, width) of the canvas that keeps most of the image's pixels and, of those, wastes least."""

    def merit(pinpoint: Sequence[int]) -> tuple[int, int]:
        high, wide = pinpoint
        scale = min(wide / width, high / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - high * wide

    high, wide = max(pinpoints, key=merit)
    return high, wide


@dataclass(frozen=True)
class Mosaic:
    """The tiles of an image, `down` x `across` of them, and the cells of them that become tokens.

    `rows` and `cols` are the (from, to) of the cells that remain when the padding is cut off; these are resampled to
    `size` (rows, cols), which differs from them only where they would be too many.
    """

    height: int
    width: int
    down: int
    across: int
    rows: tuple[int, int]
    cols: tuple[int, int]
    size: tuple[int, int]


def mosaic_of(
    width: int, height: int, pinpoints: Sequence[Sequence[int]], *, side: int, cells: int, most: int | None
) -> Mosaic:
    """How an anyres family lays an image of (width, height) out in tiles of `side` pixels and `cells` x `cells` cells.

    `most` is how many tiles' worth of cells there may be before they are resampled (anyres_max_9), None for no limit.
    """
    high, wide = best_canvas(width, height, pinpoints)
    down, across = high // side, wide // side
    rows, cols = (0, down * cells), (0, across * cells)
    # 7 digits, as transformers rounds them: a product that misses a whole number by the last bit would lose a row.
    if width / height > cols[1] / rows[1]:
        cut = (rows[1] - int(round(height * (cols[1] / width), 7))) // 2
        rows = (cut, rows[1] - cut)
    else:
        cut = (cols[1] - int(round(width * (rows[1] / height), 7))) // 2
        cols = (cut, cols[1] - cut)
    size = (rows[1] - rows[0], cols[1] - cols[0])
    ratio = math.sqrt(size[0] * size[1] / (most * cells * cells)) if most else 0.0
    if ratio > 1.1:
        size = (int(size[0] // ratio), int(size[1] // ratio))
    return Mosaic(high, wide, down, across, rows, cols, size)


def tiles_panel(width: int, height: int, laid: Mosaic, side: int, patch: int) -> Panel:
    """The panel of a mosaic: the image is resized into the canvas, keeping its shape, and centred on it."""
    wide, high = laid.width / width, laid.height / height
    if wide < high:
        resized = (laid.width, min(math.ceil(height * wide), laid.height))
    else:
        resized = (min(math.ceil(width * high), laid.width), laid.height)

    def axis(length: int, canvas: int, resized: int, kept: tuple[int, int], count: int) -> Axis:
        return mosaic(length, canvas=canvas, resized=resized, side=side, patch=patch, kept=kept, count=count)

    x = axis(width, laid.width, resized[0], laid.cols, laid.size[1])
    y = axis(height, laid.height, resized[1], laid.rows, laid.size[0])
    return Panel(TILES, x, y, "row", laid.across)


# --- resize, then crop or pad -----------------------------------------------------------------------------------------


def processed(width: int, height: int, processor: Mapping[str, Any], patch: int, *, padded: bool = False) -> Panel:
    """The panel of an image that is perhaps padded to a square, then resized, then perhaps cropped.

    `processor` are the full settings: `do_resize` and `size`, `do_center_crop` and `crop_size`.
    """
    margins = (0, 0)
    if padded:
        longest = max(width, height)
        margins = ((longest - width) // 2, (longest - height) // 2)
        width = height = longest
    resized = resized_to(width, height, processor["size"]) if processor.get("do_resize", True) else (width, height)
    crop = processor["crop_size"] if processor.get("do_center_crop") else {"width": resized[0], "height": resized[1]}

    def axis(length: int, resized: int, crop: int, margin: int) -> Axis:
        scale = length / resized
        return even(((resized - crop) // 2) * scale - margin, patch * scale, crop // patch)

    x = axis(width, resized[0], crop["width"], margins[0])
    y = axis(height, resized[1], crop["height"], margins[1])
    return Panel(BASE, x, y)


def resized_to(width: int, height: int, size: Mapping[str, Any]) -> tuple[int, int]:
    """(width, height) after a resize to `size`, which names the shortest edge, or height and width."""
    if not size.get("shortest_edge"):
        return size["width"], size["height"]
    short, longest = size["shortest_edge"], max(width, height)
    long = int(short * longest / min(width, height))
    return (short, long) if width <= height else (long, short)
