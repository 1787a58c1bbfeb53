"""The toy world: scenes drawn from a seed, with perfect ground truth.

A scene holds one to four articulated objects of ten categories on a saturated, cluttered background in the same
colours, so that neither colour nor raw pixels tell what is where. `render` gives the image, the instance and part
maps and the named keypoints. `pair` gives two scenes that share a category, `clip` a short video.

The same seed gives the same bytes on every machine: geometry, textures and noise are integer arithmetic, random
numbers are integer draws only. Coordinates: `Keypoint` and boxes are in pixels from the image's top left corner,
pixel centres at .5; inside this module lengths are in *fine* pixels, `FINE` to a pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from vkvdb.toyworld.rendering import (
    COLOURS,
    FINE_SIZE,
    GRID,
    PATCH,
    SIZE,
    TEXTURES,
    Keypoint,
    Rendered,
    Scene,
    Thing,
    UInt8Array,
    render,
    triple,
)
from vkvdb.toyworld.shapes import (
    CATEGORIES,
    FACING_CATEGORIES,
    HELD_OUT_CATEGORIES,
    HELD_OUT_PARTS,
    MAX_DEGREES,
    PARTS,
)
from vkvdb.toyworld.styles import STYLES

__all__ = [
    "CATEGORIES",
    "COLOURS",
    "FACING_CATEGORIES",
    "GRID",
    "HELD_OUT_CATEGORIES",
    "HELD_OUT_PARTS",
    "PARTS",
    "PATCH",
    "SIZE",
    "STYLES",
    "TEXTURES",
    "Keypoint",
    "Pair",
    "Rendered",
    "Scene",
    "Thing",
    "box",
    "cell_shares",
    "clip",
    "pair",
    "render",
    "scene",
    "seeds",
]

SPLITS = {"train": 0, "val": 100_000_000, "test": 200_000_000}
"""First seed of each split; a split's seeds are the hundred million from there on."""


@dataclass(frozen=True)
class Pair:
    """Two scenes whose first things are of one category; `names` are the keypoints visible in both."""

    seed: int
    category: str
    source: Scene
    target: Scene
    names: tuple[str, ...]


def seeds(split: str, count: int, start: int = 0) -> range:
    """`count` seeds of `train`, `val` or `test`; the splits never overlap."""
    first = SPLITS[split] + start
    return range(first, first + count)


_RADII = {1: (44, 84), 2: (38, 60), 3: (32, 48), 4: (30, 40)}
"""Smallest and largest half extent of a thing by the number of things, in fine pixels."""


def _draw_thing(
    generator: np.random.Generator, category: str, colour: str, radius: int, centre: tuple[int, int]
) -> Thing:
    """A thing with everything else at random."""
    most = MAX_DEGREES[category]
    return Thing(
        category=category,
        colour=colour,
        texture=TEXTURES[(0, 0, 1, 2)[int(generator.integers(4))]],
        centre=centre,
        radius=radius,
        degrees=int(generator.integers(-most, most + 1)),
        mirrored=bool(generator.integers(2)) and category in FACING_CATEGORIES,
        proportions=tuple(int(value) for value in generator.integers(0, 1001, 4)),
        tint=triple(generator.integers(-16, 17, 3)),
        stretch=int(generator.integers(850, 1151)),
        texture_period=int(generator.integers(8, 15)),
        texture_degrees=int(generator.integers(180)),
    )


def _place(generator: np.random.Generator, radius: int, others: Sequence[Thing]) -> tuple[int, int] | None:
    """A centre for a thing of `radius` that overlaps the others little; None if forty tries found none."""
    margin = radius * 3 // 4
    for _ in range(40):
        x, y = (int(value) for value in generator.integers(margin, FINE_SIZE - margin, 2))
        if all(
            (x - other.centre[0]) ** 2 + (y - other.centre[1]) ** 2 > ((radius + other.radius) * 9 // 10) ** 2
            for other in others
        ):
            return x, y
    return None


def scene(
    seed: int, count: int | None = None, categories: Sequence[str] = CATEGORIES, style: str | None = None
) -> Scene:
    """The scene of a seed; `count` (1-4), `categories` and `style` restrict what may be drawn.

    Attributes are shared on purpose: a third of the further things repeat the first one's category and a third its
    colour, so that naming one thing takes more than one word. No two things share both.
    """
    generator = np.random.default_rng(seed)
    drawn = (1, 1, 1, 2, 2, 2, 3, 3, 4, 4)[int(generator.integers(10))]
    wanted = drawn if count is None else count
    names = tuple(COLOURS)
    things: list[Thing] = []
    for _ in range(wanted):
        radius = int(generator.integers(*_RADII[wanted]))
        centre = _place(generator, radius, things)
        category = categories[int(generator.integers(len(categories)))]
        colour = int(generator.integers(len(names)))
        share = int(generator.integers(3))
        if things and share == 0:
            category = things[0].category
        elif things and share == 1:
            colour = names.index(things[0].colour)
        while any(other.category == category and other.colour == names[colour] for other in things):
            colour = (colour + 3) % len(names)
        if centre is not None:
            things.append(_draw_thing(generator, category, names[colour], radius, centre))
    # Three scenes in four stay untreated: questions about objects should seldom be asked through a filter.
    chosen = STYLES[max(0, int(generator.integers(-3 * len(STYLES) + 3, len(STYLES))))]
    return Scene(seed, style or chosen, int(generator.integers(1 << 30)), tuple(things))


def pair(seed: int, categories: Sequence[str] = CATEGORIES) -> Pair:
    """Two scenes of one category for semantic correspondence: other instance, colour, texture, pose and background.

    The first thing of each scene is the one that is matched. It is large, so that a cell of the 14 x 14 grid is finer
    than a tenth of its box; behind it stands a smaller thing of another category half of the time.
    """
    generator = np.random.default_rng(seed)
    category = categories[int(generator.integers(len(categories)))]
    first, second = (int(value) for value in generator.permutation(len(COLOURS))[:2])
    scenes = []
    for colour in (first, second):
        radius = int(generator.integers(60, 86))
        centre = _place(generator, radius, ()) or (FINE_SIZE // 2, FINE_SIZE // 2)
        things = [_draw_thing(generator, category, tuple(COLOURS)[colour], radius, centre)]
        if generator.integers(2):
            others = [name for name in CATEGORIES if name != category]
            small = int(generator.integers(26, 36))
            spot = _place(generator, small, things)
            other = others[int(generator.integers(len(others)))]
            shade = tuple(COLOURS)[int(generator.integers(len(COLOURS)))]
            if spot is not None:
                things.append(_draw_thing(generator, other, shade, small, spot))
        scenes.append(Scene(seed, STYLES[0], int(generator.integers(1 << 30)), tuple(things)))
    source, target = scenes
    seen = [render(drawn).keypoints[0] for drawn in scenes]
    names = tuple(name for name in seen[0] if seen[0][name].visible and seen[1][name].visible)
    return Pair(seed, category, source, target, names)


def clip(seed: int, frames: int = 8) -> tuple[Scene, ...]:
    """A short video: one to three things drift, turn and grow before a still background. Thing i is the same in every
    frame.
    """
    generator = np.random.default_rng(seed)
    first = scene(seed, count=1 + int(generator.integers(3)), style=STYLES[0])
    motions = [
        (triple(generator.integers(-7, 8, 3)), int(generator.integers(-5, 6)), int(generator.integers(-2, 3)))
        for _ in first.things
    ]
    result = []
    for time in range(frames):
        things = []
        for thing, ((right, down, _), turn, grow) in zip(first.things, motions, strict=True):
            x = min(max(thing.centre[0] + right * time, 20), FINE_SIZE - 20)
            y = min(max(thing.centre[1] + down * time, 20), FINE_SIZE - 20)
            things.append(
                replace(
                    thing,
                    centre=(x, y),
                    degrees=thing.degrees + turn * time,
                    radius=max(20, thing.radius + grow * time),
                )
            )
        result.append(replace(first, things=tuple(things)))
    return tuple(result)


def box(instances: UInt8Array, index: int) -> tuple[int, int, int, int] | None:
    """Box (x0, y0, x1, y1) of thing `index` in pixels, ends exclusive; None if nothing of it is seen."""
    rows, columns = np.nonzero(instances == index + 1)
    if not len(rows):
        return None
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def cell_shares(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Share of each cell of the 14 x 14 grid that a (112, 112) mask covers."""
    cells = mask.reshape(GRID, PATCH, GRID, PATCH)
    return np.asarray(cells.mean(axis=(1, 3)), dtype=np.float64)
