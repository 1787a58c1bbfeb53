"""The toy world's words: vocabulary, facts about a drawn scene, captions, expressions and the phrases of stage 1.

Everything that training learns about a scene passes through this module and `questions`: words only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vkvdb.toyworld.shapes import ALL_KEYPOINTS, ALL_PARTS, CATEGORIES, FACING_CATEGORIES
from vkvdb.toyworld.styles import STYLES
from vkvdb.toyworld.world import COLOURS, GRID, PATCH, SIZE, TEXTURES, Keypoint, Rendered, Scene, box

SPECIAL_TOKENS = ("<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
NUMBERS = ("zero", "one", "two", "three", "four")
LETTERS = ("(A)", "(B)", "(C)", "(D)")
BACKGROUND = "background"
_PLAIN_WORDS = """
user assistant system what color is the thing things how many are there where a yes no left right top bottom middle
center of above below texture at which part locate way does face facing style image first second third in describe
and , . ? read parts from leftmost rightmost highest lowest largest smallest find this picture see you it list most
similar marked point matches box holds or to with has that same does not show can REF an on both please name tell me
about
"""
MIN_AREA = 60
"""A thing of which fewer pixels are seen is not spoken of."""


def vocabulary() -> tuple[str, ...]:
    """All words, special tokens first; a word's place is its token id (fewer than 256, so that ids fit a byte)."""
    cells = [f"{axis}{index}" for axis in "xy" for index in range(GRID)]
    words = [
        *SPECIAL_TOKENS,
        *_PLAIN_WORDS.split(),
        *COLOURS,
        *CATEGORIES,
        *ALL_PARTS,
        *ALL_KEYPOINTS,
        *TEXTURES,
        *STYLES,
    ]
    return tuple(dict.fromkeys([*words, *NUMBERS, *LETTERS, *cells, BACKGROUND]))


@dataclass(frozen=True)
class Fact:
    """What may be said about one thing that is seen. `x`, `y`: centroid of its visible pixels; `area` in pixels."""

    index: int
    category: str
    colour: str
    texture: str
    x: float
    y: float
    area: int
    facing: str | None
    keypoints: dict[str, Keypoint]

    @property
    def name(self) -> str:
        """Colour and category, unique in a scene."""
        return f"{self.colour} {self.category}"

    @property
    def zone(self) -> str:
        """One of nine fields of the image, such as `top left`."""
        row = ("top", "middle", "bottom")[min(2, int(self.y * 3 / SIZE))]
        return f"{row} {('left', 'center', 'right')[min(2, int(self.x * 3 / SIZE))]}"


def facts(drawn: Scene, rendered: Rendered) -> list[Fact]:
    """Facts about the things of which enough is seen, in the scene's order."""
    found = []
    for index, thing in enumerate(drawn.things):
        rows, columns = np.nonzero(rendered.instances == index + 1)
        if len(rows) < MIN_AREA:
            continue
        found.append(
            Fact(
                index,
                thing.category,
                thing.colour,
                thing.texture,
                float(columns.mean()) + 0.5,
                float(rows.mean()) + 0.5,
                len(rows),
                thing.facing,
                rendered.keypoints[index],
            )
        )
    return found


def cell_words(x: float, y: float) -> str:
    """The cell of the 14 x 14 grid that holds a point, as two words: `x3 y10`."""
    return f"x{min(GRID - 1, int(x / PATCH))} y{min(GRID - 1, int(y / PATCH))}"


_EXTREMES: dict[str, Callable[[Fact], float]] = {
    "leftmost": lambda fact: fact.x,
    "rightmost": lambda fact: -fact.x,
    "highest": lambda fact: fact.y,
    "lowest": lambda fact: -fact.y,
    "largest": lambda fact: -fact.area / 20,
    "smallest": lambda fact: fact.area / 20,
}
_MARGIN = 6
"""An extreme must lead by this much: pixels, or twenties of pixels of area."""


def expressions(known: Sequence[Fact], target: Fact) -> list[str]:
    """Every expression (without article) that fits `target` and nothing else in the scene."""
    same_category = [fact for fact in known if fact.category == target.category]
    found = [target.name]
    if len(same_category) == 1:
        found.append(target.category)
    if sum(fact.colour == target.colour for fact in known) == 1:
        found.append(f"{target.colour} thing")
    if sum(fact.texture == target.texture for fact in same_category) == 1:
        found.append(f"{target.texture} {target.category}")
    for word, key in _EXTREMES.items():
        for group, noun in ((known, "thing"), (same_category, target.category)):
            others = [key(fact) for fact in group if fact is not target]
            if others and key(target) + _MARGIN < min(others):
                found.append(f"{word} {noun}")
    return found


@dataclass(frozen=True)
class Expression:
    """A referring expression: the thing it picks out and the things it must be told from (indices into the scene)."""

    text: str
    target: int
    distractors: tuple[int, ...]


def referring(drawn: Scene, rendered: Rendered) -> list[Expression]:
    """One expression for each thing that is seen, drawn by the scene's seed; distractors are the other things seen."""
    known = facts(drawn, rendered)
    generator = np.random.default_rng([drawn.seed, 1])
    result = []
    for fact in known:
        fitting = expressions(known, fact)
        text = fitting[int(generator.integers(len(fitting)))]
        result.append(Expression(text, fact.index, tuple(other.index for other in known if other is not fact)))
    return result


def caption(known: Sequence[Fact]) -> str:
    """The things from left to right: `red fish and blue car`."""
    return " and ".join(fact.name for fact in sorted(known, key=lambda fact: fact.x))


def bounding_box(rendered: Rendered, fact: Fact) -> tuple[int, int, int, int]:
    """The fact's box in pixels; a fact always has visible pixels."""
    found = box(rendered.instances, fact.index)
    assert found is not None
    return found


def stage1_phrases() -> tuple[str, ...]:
    """The phrases against which stage 1 trains: image-level words, each true or false of a whole image."""
    zones = [f"{row} {column}" for row in ("top", "middle", "bottom") for column in ("left", "center", "right")]
    return (
        *COLOURS,
        *CATEGORIES,
        *(f"{colour} {category}" for colour in COLOURS for category in CATEGORIES),
        *(f"{texture} {category}" for texture in TEXTURES for category in CATEGORIES),
        *(f"{category} {zone}" for category in CATEGORIES for zone in zones),
        *(f"{category} facing {way}" for category in FACING_CATEGORIES for way in ("left", "right")),
        *(f"{style} style" for style in STYLES),
        *(f"{number} things" for number in NUMBERS),
    )


def true_phrases(known: Sequence[Fact], style: str) -> set[str]:
    """Those of `stage1_phrases` that are true of an image."""
    found = {f"{style} style", f"{NUMBERS[len(known)]} things"}
    for fact in known:
        found |= {
            fact.colour,
            fact.category,
            fact.name,
            f"{fact.texture} {fact.category}",
            f"{fact.category} {fact.zone}",
        }
        if fact.facing is not None:
            found.add(f"{fact.category} facing {fact.facing}")
    return found
