"""Pictures out of panels: images side by side with points, matches and masks drawn over them, and words around them.

Right is green and wrong is red; a white line goes around the truth. Objects of which there are several have a colour
each (Okabe and Ito's, which colour-blind people can tell apart).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
from PIL import ImageDraw, ImageFilter, ImageFont

if TYPE_CHECKING:
    from vkvdb.samples import Point
    from vkvdb.types import Panel

HEIGHT = 360  # of a panel's image, in pixels
MOST = 8  # panels of a picture; of more, so many are taken at even steps
WIDTH = 1520  # of a picture; a row of panels is broken beyond

RIGHT, WRONG, TRUTH = (64, 200, 90), (235, 60, 50), (255, 255, 255)
OBJECTS = ((230, 159, 0), (86, 180, 233), (204, 121, 167), (0, 158, 115), (240, 228, 66), (213, 94, 0), (0, 114, 178))
_INK, _PAPER, _FAINT = (20, 20, 20), (255, 255, 255), (100, 100, 100)
_MARGIN, _GAP = 16, 12


def draw(panels: Sequence[tuple[Panel, PIL.Image.Image]], title: str, lines: Sequence[str]) -> PIL.Image.Image:
    """One picture of panels, each with its image; `title` and `lines` stand above them."""
    every = len(panels)
    if every > MOST:
        panels = [panels[round(n * (every - 1) / (MOST - 1))] for n in range(MOST)]
        lines = [*lines, f"{MOST} of {every} images"]
    tiles = [_tile(panel, image) for panel, image in panels]
    rows = _rows([tile.width for tile in tiles])
    heading, text = ImageFont.load_default(20), ImageFont.load_default(15)
    across = max(sum(tiles[n].width for n in row) + _GAP * (len(row) - 1) for row in rows)
    wrapped = [piece for line in lines for piece in _wrap(line, text, max(across, 480))]
    titles = _wrap(title, heading, max(across, 480))
    words = max([heading.getlength(t) for t in titles] + [text.getlength(t) for t in wrapped])
    top = _MARGIN + 28 * len(titles) + 21 * len(wrapped) + 8
    width = round(max(across, words)) + 2 * _MARGIN
    canvas = PIL.Image.new("RGB", (width, top + len(rows) * (HEIGHT + 22 + _GAP) + _MARGIN - _GAP), _PAPER)
    pen = ImageDraw.Draw(canvas)
    for n, line in enumerate(titles):
        pen.text((_MARGIN, _MARGIN + 28 * n), line, _INK, heading)
    for n, line in enumerate(wrapped):
        pen.text((_MARGIN, _MARGIN + 28 * len(titles) + 21 * n), line, _FAINT, text)
    corners = []
    for number, row in enumerate(rows):
        x, y = _MARGIN, top + number * (HEIGHT + 22 + _GAP)
        for n in row:
            pen.text((x, y), _cut(panels[n][0].title, text, tiles[n].width), _INK, text)
            canvas.paste(tiles[n], (x, y + 22))
            corners.append((x, y + 22))
            x += tiles[n].width + _GAP
    _points(canvas, panels, corners)
    return canvas


def _rows(widths: Sequence[int]) -> list[list[int]]:
    """Panels by rows no wider than a picture may be, as even as they can."""
    total = sum(widths) + _GAP * (len(widths) - 1)
    count = -(-len(widths) // max(1, -(-total // WIDTH)))
    return [list(range(len(widths)))[n : n + count] for n in range(0, len(widths), count)]


def _scale(image: PIL.Image.Image) -> float:
    return min(HEIGHT / image.height, (WIDTH - _GAP) / 2 / image.width)


def _tile(panel: Panel, image: PIL.Image.Image) -> PIL.Image.Image:
    """A panel's image at its size, with its masks, on a ground of the panels' common height."""
    scale = _scale(image)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    shown = image.convert("RGB").resize(size, PIL.Image.Resampling.BICUBIC)
    if panel.found:  # colours are what was found: the image has little of its own beside them
        shown = PIL.Image.blend(shown, shown.convert("L").convert("RGB"), 0.75)
    pixels = np.asarray(shown, dtype=np.float32).copy()
    single = len(panel.found) == 1 and len(panel.truth) == 1
    for n, found in enumerate(panel.found):
        if found is None:
            continue
        if single:
            _tint(pixels, _resized(found & panel.truth[0], size), RIGHT)
            _tint(pixels, _resized(found & ~panel.truth[0], size), WRONG)
        else:
            _tint(pixels, _resized(found, size), OBJECTS[n % len(OBJECTS)])
    shown = PIL.Image.fromarray(pixels.round().astype(np.uint8))
    for n, mask in enumerate(panel.truth):
        if mask is not None:
            _outline(shown, mask, TRUTH if len(panel.truth) == 1 else OBJECTS[n % len(OBJECTS)])
    ground = PIL.Image.new("RGB", (size[0], HEIGHT), (235, 235, 235))
    ground.paste(shown, (0, 0))
    return ground


def _resized(mask: Any, size: tuple[int, int]) -> Any:
    """A mask (height, width) at the size of what is shown."""
    return np.asarray(PIL.Image.fromarray(mask).resize(size, PIL.Image.Resampling.NEAREST))


def _tint(pixels: Any, where: Any, colour: tuple[int, int, int]) -> None:
    pixels[where] = 0.45 * pixels[where] + 0.55 * np.array(colour, dtype=np.float32)


def _outline(shown: PIL.Image.Image, mask: Any, colour: tuple[int, int, int]) -> None:
    """A line along the inner edge of a mask, with a dark one outside it: seen on any ground."""
    whole = PIL.Image.fromarray(_resized(mask, shown.size)).convert("L")
    # The edge of the image is an edge of the mask too.
    wide = PIL.Image.new("L", (shown.width + 10, shown.height + 10))
    wide.paste(whole, (5, 5))
    box = (5, 5, 5 + shown.width, 5 + shown.height)
    inside, outside = wide.filter(ImageFilter.MinFilter(5)).crop(box), wide.filter(ImageFilter.MaxFilter(3)).crop(box)
    line = PIL.Image.fromarray(np.asarray(whole) - np.asarray(inside))
    shadow = PIL.Image.fromarray(np.asarray(outside) - np.asarray(whole))
    shown.paste((0, 0, 0), mask=shadow)
    shown.paste(colour, mask=line)


def _points(
    canvas: PIL.Image.Image,
    panels: Sequence[tuple[Panel, PIL.Image.Image]],
    corners: Sequence[tuple[int, int]],
) -> None:
    """Points of every panel; where they are judged, lines to them from the same points of the panel before."""
    # Drawn at twice the size and shrunk: ImageDraw's own lines and circles have steps.
    layer = PIL.Image.new("RGBA", (2 * canvas.width, 2 * canvas.height))
    pen = ImageDraw.Draw(layer)
    before: list[Point] = []
    for (panel, image), (left, top) in zip(panels, corners, strict=True):
        scale = _scale(image)
        at = [(2 * (left + x * scale), 2 * (top + y * scale)) for x, y in panel.points]
        true = [(2 * (left + x * scale), 2 * (top + y * scale)) for x, y in panel.true_points]
        colours = [RIGHT if r else WRONG for r in panel.right] or [OBJECTS[1]] * len(at)
        if panel.right and len(before) == len(at):
            for start, end, colour in zip(before, at, colours, strict=True):
                pen.line((*start, *end), (*colour, 210), 4)
        for (x, y), (u, v), right in zip(at, true, panel.right, strict=bool(true and panel.right)):
            if not right:
                pen.line((x, y, u, v), (*TRUTH, 230), 3)
        for u, v in true:
            pen.ellipse((u - 13, v - 13, u + 13, v + 13), outline=(0, 0, 0, 160), width=7)
            pen.ellipse((u - 12, v - 12, u + 12, v + 12), outline=(*TRUTH, 255), width=4)
        for (x, y), colour in zip(at, colours, strict=True):
            pen.ellipse((x - 9, y - 9, x + 9, y + 9), (*colour, 255), (0, 0, 0, 255), 2)
        before = at
    canvas.paste(
        layer.resize(canvas.size, PIL.Image.Resampling.LANCZOS), mask=layer.resize(canvas.size).getchannel("A")
    )


def _wrap(text: str, font: Any, width: float) -> list[str]:
    """A text in lines no wider than that, broken between words."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _cut(text: str, font: Any, width: float) -> str:
    """A text no wider than that; what is too long ends in dots."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."
