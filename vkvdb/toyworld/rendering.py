"""Drawing a scene of the toy world: image, instance and part maps, keypoints.

Everything that reaches a pixel is integer arithmetic or a draw of whole numbers, so that the same scene gives the
same bytes on every machine. Lengths inside this module are in *fine* pixels, `FINE` to a pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from vkvdb.toyworld.shapes import BUILDERS, FACING_CATEGORIES, FIXED_ONE, PARTS, UNIT, cosine, sine
from vkvdb.toyworld.styles import apply_style

UInt8Array = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

SIZE = 112
"""Side of an image, in pixels."""
PATCH = 8
"""Side of a patch of the vision tower, in pixels."""
GRID = SIZE // PATCH
"""Patches, and so image tokens, along a side."""
FINE = 2
FINE_SIZE = SIZE * FINE
_MAX_PIECES = 32

COLOURS: dict[str, Colour] = {
    "red": (214, 40, 40),
    "orange": (242, 140, 30),
    "yellow": (236, 218, 50),
    "green": (50, 165, 60),
    "cyan": (60, 205, 215),
    "blue": (45, 75, 205),
    "purple": (140, 50, 175),
    "white": (240, 240, 240),
}
TEXTURES = ("plain", "striped", "dotted")


class Keypoint(NamedTuple):
    """A named point of an object: pixels from the top left corner, and whether the object itself is what one sees
    there.
    """

    x: float
    y: float
    visible: bool


@dataclass(frozen=True)
class Thing:
    """One object of a scene. Lengths are in fine pixels, angles in degrees, `proportions` in 0..1000."""

    category: str
    colour: str
    texture: str
    centre: tuple[int, int]
    radius: int
    degrees: int
    mirrored: bool
    proportions: tuple[int, ...]
    tint: Colour
    stretch: int
    texture_period: int
    texture_degrees: int

    @property
    def facing(self) -> str | None:
        """`left` or `right`; None for a category without a front."""
        if self.category not in FACING_CATEGORIES:
            return None
        return "left" if self.mirrored else "right"


@dataclass(frozen=True)
class Scene:
    """What `render` draws: things from back to front on the background of `background_seed`, in one style."""

    seed: int
    style: str
    background_seed: int
    things: tuple[Thing, ...]


@dataclass(frozen=True)
class Rendered:
    """A drawn scene.

    `image`: uint8 (112, 112, 3). `instances`: uint8 (112, 112), 0 background, i + 1 the scene's thing i. `parts`: uint8
    (112, 112), 0 background, p + 1 the part `PARTS[category][p]` of the thing there. `keypoints`: one dict a thing.
    """

    image: UInt8Array
    instances: UInt8Array
    parts: UInt8Array
    keypoints: tuple[dict[str, Keypoint], ...]


def triple(values: Sequence[int] | npt.NDArray[np.integer]) -> Colour:
    """Three whole numbers."""
    red, green, blue = (int(value) for value in values)
    return red, green, blue


def shaded(colour: Sequence[int], shade: str) -> Colour:
    """The colour of a piece: the object's own in four strengths, or one of three fixed ones."""
    fixed: dict[str, Colour] = {"ink": (28, 28, 32), "glass": (165, 205, 225), "leaf": (40, 120, 50)}
    if shade in fixed:
        return fixed[shade]
    if shade == "outline":
        return triple([value * 2 // 5 for value in colour])
    if shade == "dark":
        return triple([value * 2 // 3 for value in colour])
    if shade == "light":
        return triple([(value + 255) // 2 for value in colour])
    return triple(colour)


def _background(seed: int) -> tuple[Image.Image, np.random.Generator]:
    """A saturated backdrop with clutter in the objects' own colours, at fine resolution."""
    generator = np.random.default_rng(seed)
    palette = np.array(list(COLOURS.values()), dtype=np.int64)
    cells = int(generator.integers(2, 8))
    picked = palette[generator.integers(0, len(palette), (cells, cells))]
    base = palette[int(generator.integers(len(palette)))]
    mixed = (picked * 2 + base * 2 + generator.integers(0, 160, (cells, cells, 1)) * 2) // 6
    smooth = (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.NEAREST)[int(generator.integers(3))]
    canvas = Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8)).resize((FINE_SIZE, FINE_SIZE), smooth)
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(generator.integers(3, 11))):
        colour = shaded(
            np.clip(palette[int(generator.integers(len(palette)))] + generator.integers(-30, 31), 0, 255),
            ("main", "main", "dark", "light", "ink")[int(generator.integers(5))],
        )
        x, y, kind = (int(value) for value in generator.integers(0, (FINE_SIZE, FINE_SIZE, 3)))
        reach = int(generator.integers(6, 30))
        corners = [(x + int(right), y + int(down)) for right, down in generator.integers(-reach, reach + 1, (4, 2))]
        if kind == 0:
            draw.polygon(corners, fill=colour, outline=shaded(colour, "outline"))
        elif kind == 1:
            draw.line([corners[0], corners[1], corners[2]], fill=colour, width=int(generator.integers(2, 9)))
        else:
            draw.polygon([(x - reach, y), (x, y - reach), (x + reach, y), (x, y + reach)], fill=colour)
    return canvas, generator


@cache
def _fine_axes() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    rows, columns = np.mgrid[:FINE_SIZE, :FINE_SIZE]
    return columns.astype(np.int64), rows.astype(np.int64)


def _to_canvas(thing: Thing, points: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Points of a shape's own square, (n, 2), in fine pixels of the canvas."""
    x = -points[:, 0] if thing.mirrored else points[:, 0]
    y = points[:, 1] * thing.stretch // 1000
    along, across = cosine(thing.degrees), sine(thing.degrees)
    turned = np.stack([x * along - y * across, x * across + y * along], axis=1)
    half = UNIT * FIXED_ONE // 2  # so that the floor division below rounds to the nearest fine pixel
    return np.asarray((turned * thing.radius + half) // (UNIT * FIXED_ONE) + np.array(thing.centre), dtype=np.int64)


def _texture(canvas: Image.Image, codes: Image.Image, thing: Thing, own: tuple[int, int]) -> None:
    """Draws stripes or dots over the pixels of `codes` in `own` (first, last)."""
    reach = thing.radius * 13 // 10
    left, top = (max(0, value - reach) for value in thing.centre)
    right, bottom = (min(FINE_SIZE, value + reach) for value in thing.centre)
    columns, rows = (axis[top:bottom, left:right] for axis in _fine_axes())
    x, y = columns - thing.centre[0], rows - thing.centre[1]
    along, across, period = cosine(thing.texture_degrees), sine(thing.texture_degrees), thing.texture_period
    u = (x * along + y * across) // FIXED_ONE % period
    if thing.texture == "striped":
        pattern = u * 5 < period * 2
    else:
        v = (y * along - x * across) // FIXED_ONE % period
        pattern = (2 * u - period) ** 2 + (2 * v - period) ** 2 < period * period * 2 // 5
    code = np.asarray(codes)[top:bottom, left:right]
    pattern &= (code >= own[0]) & (code <= own[1])
    region = np.asarray(canvas)[top:bottom, left:right].astype(np.int64)
    # Bright things get darker marks and dark things brighter ones, so that the texture shows on every colour.
    marked = region * 11 // 20 if sum(COLOURS[thing.colour]) > 270 else region // 2 + 110
    painted = np.where(pattern[..., None], marked, region).astype(np.uint8)
    canvas.paste(Image.fromarray(painted), (left, top))


def render(drawn: Scene) -> Rendered:
    """Draws a scene; a few milliseconds."""
    canvas, generator = _background(drawn.background_seed)
    codes = Image.new("L", (FINE_SIZE, FINE_SIZE), 0)  # thing * _MAX_PIECES + part + 1
    draw, draw_codes = ImageDraw.Draw(canvas), ImageDraw.Draw(codes)
    placed: list[tuple[list[str], npt.NDArray[np.int64]]] = []
    for index, thing in enumerate(drawn.things):
        shape = BUILDERS[thing.category](thing.proportions)
        parts = PARTS[thing.category]
        colour = [min(max(value + tint, 0), 255) for value, tint in zip(COLOURS[thing.colour], thing.tint, strict=True)]
        corners = [point for piece in shape.pieces for point in piece.polygon]
        points = _to_canvas(thing, np.array([*corners, *shape.keypoints.values()], dtype=np.int64))
        start = 0
        for piece in shape.pieces:
            stop = start + len(piece.polygon)
            polygon = [(int(x), int(y)) for x, y in points[start:stop]]
            draw.polygon(polygon, fill=shaded(colour, piece.shade), outline=shaded(colour, "outline"))
            draw_codes.polygon(polygon, fill=index * _MAX_PIECES + parts.index(piece.part) + 1)
            start = stop
        if thing.texture != "plain":
            _texture(canvas, codes, thing, (index * _MAX_PIECES + 1, (index + 1) * _MAX_PIECES))
        placed.append((list(shape.keypoints), points[start:]))
    fine = np.asarray(canvas).astype(np.int64).reshape(SIZE, FINE, SIZE, FINE, 3)
    image = fine.sum(axis=(1, 3)) // (FINE * FINE)
    image = apply_style(image, drawn.style) + generator.integers(-9, 10, image.shape)
    code = np.asarray(codes)
    coarse = code[FINE // 2 :: FINE, FINE // 2 :: FINE].astype(np.int64)
    instances = np.where(coarse > 0, (coarse - 1) // _MAX_PIECES + 1, 0).astype(np.uint8)
    part_map = np.where(coarse > 0, (coarse - 1) % _MAX_PIECES + 1, 0).astype(np.uint8)
    keypoints = []
    for index, (names, points) in enumerate(placed):
        found = {}
        for name, (x, y) in zip(names, points.tolist(), strict=True):
            inside = 0 <= x < FINE_SIZE and 0 <= y < FINE_SIZE
            visible = inside and int(instances[y // FINE, x // FINE]) == index + 1
            found[name] = Keypoint((2 * x + 1) / (2 * FINE), (2 * y + 1) / (2 * FINE), visible)
        keypoints.append(found)
    return Rendered(np.clip(image, 0, 255).astype(np.uint8), instances, part_map, tuple(keypoints))
