"""Multiple-choice questions in BLINK's shape: one to three images, options (A) to (D), one right.

Marked points and boxes are drawn into the images; their places are told beside (`marks`), for checks of whatever looks
for them. A question's text is words; its answer is the letter of the right option.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vkvdb.toyworld.language import LETTERS, MIN_AREA, NUMBERS, bounding_box, facts
from vkvdb.toyworld.questions import Asked, question
from vkvdb.toyworld.shapes import CATEGORIES, HELD_OUT_CATEGORIES, HELD_OUT_PARTS
from vkvdb.toyworld.styles import STYLES
from vkvdb.toyworld.world import SIZE, Scene, pair, render, scene

UInt8 = npt.NDArray[np.uint8]


class Mark(NamedTuple):
    """A letter (or `REF`) drawn into image `image` at a point, in pixels."""

    image: int
    label: str
    x: float
    y: float


@dataclass(frozen=True)
class Choice:
    """A question over `images` with its options; `answer` is the letter of `options[right]`."""

    kind: str
    images: tuple[UInt8, ...]
    text: str
    options: tuple[str, ...]
    right: int
    marks: tuple[Mark, ...] = ()

    @property
    def answer(self) -> str:
        """The letter of the right option, with its brackets."""
        return LETTERS[self.right]


_GLYPHS = {
    "A": ("010", "101", "111", "101", "101"),
    "B": ("110", "101", "110", "101", "110"),
    "C": ("011", "100", "100", "100", "011"),
    "D": ("110", "101", "101", "101", "110"),
    "REF": ("110", "101", "110", "101", "101"),
}
"""Letters of 3 x 5 pixels; the reference point is marked R."""


def draw_mark(image: UInt8, mark: Mark) -> None:
    """Draws a mark into `image`: a white disc of radius 5 with a red rim and its letter in black."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    # Twice the distances, so that pixel centres at .5 stay whole numbers.
    square = (2 * columns + 1 - round(2 * mark.x)) ** 2 + (2 * rows + 1 - round(2 * mark.y)) ** 2
    image[square <= 121] = (255, 0, 0)
    image[square <= 64] = (255, 255, 255)
    left, top = int(mark.x) - 1, int(mark.y) - 2
    for down, bits in enumerate(_GLYPHS[mark.label]):
        for right, bit in enumerate(bits):
            if bit == "1" and 0 <= top + down < SIZE and 0 <= left + right < SIZE:
                image[top + down, left + right] = (0, 0, 0)


def draw_box(image: UInt8, corners: tuple[int, int, int, int], label: str) -> None:
    """Draws a red box with its letter in the upper left corner."""
    x0, y0, x1, y1 = corners
    for rows, columns in ((y0, np.s_[x0:x1]), (y1 - 1, np.s_[x0:x1]), (np.s_[y0:y1], x0), (np.s_[y0:y1], x1 - 1)):
        image[rows, columns] = (255, 0, 0)
    draw_mark(image, Mark(0, label, min(max(x0 + 0.5, 5.5), SIZE - 5.5), min(max(y0 + 0.5, 5.5), SIZE - 5.5)))


def _lettered(words: list[str]) -> str:
    return " ".join(f"{letter} {word}" for letter, word in zip(LETTERS, words, strict=False))


def _ordered(right: str, wrong: list[str], generator: np.random.Generator) -> tuple[list[str], int]:
    """Options in random order, and the place of the right one."""
    place = int(generator.integers(len(wrong) + 1))
    return [*wrong[:place], right, *wrong[place:]], place


def _fresh(generator: np.random.Generator) -> int:
    """A scene's seed from beyond all splits: no such scene stands in training, validation or test."""
    return (1 << 40) + int(generator.integers(1 << 40))


def _art_style(generator: np.random.Generator) -> Choice | None:
    first, second = (STYLES[int(index)] for index in generator.permutation(len(STYLES))[:2])
    place = int(generator.integers(2))
    shown = [first, first, second] if place == 0 else [first, second, first]
    images = tuple(render(scene(_fresh(generator), style=style)).image for style in shown)
    text = f"which image has the style of the first image ? {_lettered(['second image', 'third image'])}"
    return Choice("art_style", images, text, ("second image", "third image"), place)


def _jittered(drawn: Scene, generator: np.random.Generator) -> Scene:
    """The same things, moved and turned a little, on another background."""
    things = tuple(
        replace(
            thing,
            centre=(
                thing.centre[0] + int(generator.integers(-14, 15)),
                thing.centre[1] + int(generator.integers(-14, 15)),
            ),
            degrees=thing.degrees + int(generator.integers(-8, 9)),
        )
        for thing in drawn.things
    )
    return replace(drawn, things=things, background_seed=int(generator.integers(1 << 30)))


def _visual_similarity(generator: np.random.Generator) -> Choice | None:
    reference = scene(_fresh(generator), style=STYLES[0])
    other = scene(_fresh(generator), style=STYLES[0])
    similar = _jittered(reference, generator)
    place = int(generator.integers(2))
    shown = [reference, similar, other] if place == 0 else [reference, other, similar]
    images = tuple(render(drawn).image for drawn in shown)
    text = f"which image is most similar to the first image ? {_lettered(['second image', 'third image'])}"
    return Choice("visual_similarity", images, text, ("second image", "third image"), place)


def _correspondence(generator: np.random.Generator) -> Choice | None:
    trained = [category for category in CATEGORIES if category not in HELD_OUT_CATEGORIES]
    matched = pair(_fresh(generator), trained)
    names = [name for name in matched.names if name not in HELD_OUT_PARTS]
    if len(names) < 4:
        return None
    chosen = [names[int(index)] for index in generator.permutation(len(names))[:4]]
    place = int(generator.integers(4))
    source, target = render(matched.source), render(matched.target)
    images = (source.image.copy(), target.image.copy())
    point = source.keypoints[0][chosen[place]]
    marks = [Mark(0, "REF", point.x, point.y)]
    for letter, name in zip("ABCD", chosen, strict=True):
        marks.append(Mark(1, letter, target.keypoints[0][name].x, target.keypoints[0][name].y))
    for mark in marks:
        draw_mark(images[mark.image], mark)
    options = tuple(f"point {letter}" for letter in LETTERS)
    text = f"which point in the second image matches REF ? {' '.join(LETTERS)}"
    return Choice("correspondence", images, text, options, place, tuple(marks))


def _counting(generator: np.random.Generator) -> Choice | None:
    drawn = scene(_fresh(generator))
    rendered = render(drawn)
    known = facts(drawn, rendered)
    asked = question("count", Asked(drawn, rendered, known, held_out=True), generator)
    if asked is None:
        return None
    wrong = [number for number in NUMBERS if number != asked.answer]
    del wrong[int(generator.integers(len(wrong)))]
    options, place = _ordered(asked.answer, [wrong[int(index)] for index in generator.permutation(3)], generator)
    return Choice("counting", (rendered.image,), f"{asked.text} {_lettered(options)}", tuple(options), place)


def _localization(generator: np.random.Generator) -> Choice | None:
    drawn = scene(_fresh(generator), count=2)
    rendered = render(drawn)
    known = [fact for fact in facts(drawn, rendered) if fact.area >= 2 * MIN_AREA]
    if len(known) != 2:
        return None
    order = [known[int(index)] for index in generator.permutation(2)]
    place = int(generator.integers(2))
    image = rendered.image.copy()
    marks = []
    for letter, fact in zip("AB", order, strict=True):
        corners = bounding_box(rendered, fact)
        draw_box(image, corners, letter)
        marks.append(Mark(0, letter, *(float(value) for value in corners[:2])))
    text = f"which box holds the {order[place].name} ? {' '.join(LETTERS[:2])}"
    return Choice("localization", (image,), text, ("box (A)", "box (B)"), place, tuple(marks))


def _relation(generator: np.random.Generator) -> Choice | None:
    drawn = scene(_fresh(generator), count=2)
    rendered = render(drawn)
    known = facts(drawn, rendered)
    if len(known) != 2 or abs(known[0].x - known[1].x) < 12:
        return None
    one, other = (known[int(index)] for index in generator.permutation(2))
    holds = one.x < other.x
    options, place = _ordered("yes" if holds else "no", ["no" if holds else "yes"], generator)
    text = f"is the {one.name} left of the {other.name} ? {_lettered(options)}"
    return Choice("relation", (rendered.image,), text, tuple(options), place)


_MAKE: dict[str, Callable[[np.random.Generator], Choice | None]] = {
    "art_style": _art_style,
    "visual_similarity": _visual_similarity,
    "correspondence": _correspondence,
    "counting": _counting,
    "localization": _localization,
    "relation": _relation,
}
CHOICE_KINDS = tuple(_MAKE)


def choice(kind: str, seed: int) -> Choice | None:
    """The question of a kind and a seed; None where the seed's scenes allow none.

    The scenes are drawn from the seed, and are none of those of `world.seeds`.
    """
    return _MAKE[kind](np.random.default_rng([seed, 3, CHOICE_KINDS.index(kind)]))
