"""Questions about one image, with their answers: fifteen kinds.

`question` asks one question of a kind, or returns None where the scene allows none. Questions that name a place on the
grid (`PLACED_KINDS`) leave out the held-out categories and parts unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from vkvdb.toyworld.language import BACKGROUND, NUMBERS, Fact, caption, cell_words, expressions
from vkvdb.toyworld.shapes import CATEGORIES, HELD_OUT_CATEGORIES, HELD_OUT_PARTS, PARTS
from vkvdb.toyworld.world import COLOURS, GRID, PATCH, Rendered, Scene

Item = TypeVar("Item")


class Question(NamedTuple):
    """A question of some kind and its answer, both words separated by single spaces."""

    kind: str
    text: str
    answer: str


class Asked(NamedTuple):
    """What a question may be asked of. `known` are the facts of the scene (`language.facts`)."""

    scene: Scene
    rendered: Rendered
    known: Sequence[Fact]
    held_out: bool

    def placed(self) -> list[Fact]:
        """The things that placed questions may be about."""
        return [fact for fact in self.known if self.held_out or fact.category not in HELD_OUT_CATEGORIES]


ROW_CELLS = 6
"""Cells that a `row` or `partrow` question reads."""


def _pick(generator: np.random.Generator, items: Sequence[Item]) -> Item | None:
    return items[int(generator.integers(len(items)))] if items else None


def _what(asked: Asked, generator: np.random.Generator) -> tuple[str, str] | None:
    colours = [fact.colour for fact in asked.known]
    fact = _pick(generator, [fact for fact in asked.known if colours.count(fact.colour) == 1])
    return (f"what is the {fact.colour} thing ?", fact.category) if fact else None


def _colour(asked: Asked, generator: np.random.Generator) -> tuple[str, str] | None:
    categories = [fact.category for fact in asked.known]
    fact = _pick(generator, [fact for fact in asked.known if categories.count(fact.category) == 1])
    return (f"what color is the {fact.category} ?", fact.colour) if fact else None


def _where(asked: Asked, generator: np.random.Generator) -> tuple[str, str] | None:
    fact = _pick(generator, asked.known)
    return (f"where is the {fact.name} ?", fact.zone) if fact else None


def _refer(asked: Asked, generator: np.random.Generator) -> tuple[str, str] | None:
    fact = _pick(generator, asked.known)
    if fact is None:
        return None
    # The plain name is what `where` asks by; here the expression is to be found out.
    text = _pick(generator, expressions(asked.known, fact)[1:])
    return (f"where is the {text} ?", fact.zone) if text else None


def _count(asked: Asked, generator: np.random.Generator) -> tuple[str, str] | None:
    if generator.integers(5) < 2:
        return "how many things are there ?", NUMBERS[len(asked.known)]
    named = [fact.category for fact in asked.known]
    category = _pick(generator, named if generator.integers(4) else CATEGORIES)
    return (f"how many {category} are there ?", NUMBERS[named.count(category)]) if category else None


def _exist(asked: Asked, generator: np.random.Generator) -> tuple[str, str] | None:
    fact = _pick(generator, asked.known)
    if fact is None:
        return None
    if generator.integers(2):
        return f"is there a {fact.name} ?", "yes"
    have = {other.name for other in asked.known}
    colours = [f"{colour} {fact.category}" for colour in COLOURS]
    categories = [f"{fact.colour} {category}" for category in CATEGORIES]
    name = _pick(generator, [name for name in (colours, categories)[int(generator.integers(2))] if name not in have])
    return (f"is there a {name} ?", "no") if name else None


_SIDES: dict[str, Callable[[Fact, Fact], float]] = {
    "left of": lambda fact, other: fact.x - other.x,
    "right of": lambda fact, other: other.x - fact.x,
    "above": lambda fact, other: fact.y - other.y,
    "below": lambda fact, other: other.y - fact.y,
}


def _relation(asked: Asked, generator: np.random.Generator) -> tuple[str, str] | None:
    fact = _pick(generator, asked.known)
    side = _pick(generator, tuple(_SIDES))
    if fact is None or side is None:
        return None
    beyond = [other for other in asked.known if other is not fact and _SIDES[side](fact, other) > 12]
    return (f"what is {side} the {fact.name} ?", beyond[0].name) if len(beyond) == 1 else None


def _texture(asked: Asked, generator: np.random.Generator) -> tuple[str, str] | None:
    fact = _pick(generator, asked.known)
    return (f"what texture is the {fact.name} ?", fact.texture) if fact else None


def _face(asked: Asked, generator: np.random.Generator) -> tuple[str, str] | None:
    fact = _pick(generator, [fact for fact in asked.known if fact.facing])
    return (f"which way does the {fact.name} face ?", str(fact.facing)) if fact else None


def _style(asked: Asked, _generator: np.random.Generator) -> tuple[str, str] | None:
    return "what style is the image ?", asked.scene.style


def _caption(asked: Asked, _generator: np.random.Generator) -> tuple[str, str] | None:
    return ("describe the image", caption(asked.known)) if 1 <= len(asked.known) <= 3 else None


def _locate(asked: Asked, generator: np.random.Generator) -> tuple[str, str] | None:
    visible = [
        (fact, name, point)
        for fact in asked.placed()
        for name, point in fact.keypoints.items()
        if point.visible and (asked.held_out or name not in HELD_OUT_PARTS)
    ]
    chosen = _pick(generator, visible)
    if chosen is None:
        return None
    fact, name, point = chosen
    return f"locate the {name} of the {fact.name}", cell_words(point.x, point.y)


class _Cell(NamedTuple):
    """What most of a cell shows: the thing (None for background) and its part, and their share of the cell."""

    fact: Fact | None
    part: str
    share: float


def _read_cell(asked: Asked, column: int, row: int) -> _Cell | None:
    """The cell at (column, row); None where training may not ask about it, or where an unspoken thing is."""
    window = np.s_[row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]
    codes = asked.rendered.instances[window].astype(np.int64) * 256 + asked.rendered.parts[window]
    values, counts = np.unique(codes, return_counts=True)
    most = int(counts.argmax())
    share = float(counts[most]) / codes.size
    thing, part = divmod(int(values[most]), 256)
    if thing == 0:
        return _Cell(None, BACKGROUND, share)
    fact = next((fact for fact in asked.known if fact.index == thing - 1), None)
    if fact is None:
        return None
    name = PARTS[fact.category][part - 1]
    if not asked.held_out and (fact.category in HELD_OUT_CATEGORIES or name in HELD_OUT_PARTS):
        return None
    return _Cell(fact, name, share)


def _thing_cell(asked: Asked, generator: np.random.Generator) -> tuple[int, int] | None:
    """A random cell (column, row) on a random thing that placed questions may be about."""
    fact = _pick(generator, asked.placed())
    if fact is None:
        return None
    rows, columns = np.nonzero(asked.rendered.instances == fact.index + 1)
    pixel = int(generator.integers(len(rows)))
    return int(columns[pixel]) // PATCH, int(rows[pixel]) // PATCH


def _at(asked: Asked, generator: np.random.Generator) -> tuple[str, str] | None:
    anywhere = (int(generator.integers(GRID)), int(generator.integers(GRID)))
    place = _thing_cell(asked, generator) if generator.integers(10) < 7 else anywhere
    cell = place and _read_cell(asked, *place)
    if not place or not cell or cell.share < 0.5:
        return None
    return f"what is at x{place[0]} y{place[1]} ?", cell.fact.name if cell.fact else BACKGROUND


def _part(asked: Asked, generator: np.random.Generator) -> tuple[str, str] | None:
    place = _thing_cell(asked, generator)
    cell = place and _read_cell(asked, *place)
    if not place or not cell or cell.fact is None or cell.share < 0.5:
        return None
    return f"which part is at x{place[0]} y{place[1]} ?", f"{cell.fact.category} {cell.part}"


def _row_cells(asked: Asked, generator: np.random.Generator) -> tuple[str, list[_Cell]] | None:
    place = _thing_cell(asked, generator)
    if place is None:
        return None
    column, row = place
    start = min(max(column - int(generator.integers(ROW_CELLS)), 0), GRID - ROW_CELLS)
    read = [_read_cell(asked, start + step, row) for step in range(ROW_CELLS)]
    cells = [cell for cell in read if cell is not None]
    return (f"y{row} from x{start}", cells) if len(cells) == ROW_CELLS else None


def _row(asked: Asked, generator: np.random.Generator) -> tuple[str, str] | None:
    found = _row_cells(asked, generator)
    if found is None:
        return None
    return f"read {found[0]}", " ".join(cell.fact.category if cell.fact else BACKGROUND for cell in found[1])


def _partrow(asked: Asked, generator: np.random.Generator) -> tuple[str, str] | None:
    found = _row_cells(asked, generator)
    return found and (f"parts {found[0]}", " ".join(cell.part for cell in found[1]))


_ASK: dict[str, Callable[[Asked, np.random.Generator], tuple[str, str] | None]] = {
    "what": _what,
    "where": _where,
    "locate": _locate,
    "count": _count,
    "colour": _colour,
    "refer": _refer,
    "exist": _exist,
    "relation": _relation,
    "texture": _texture,
    "at": _at,
    "part": _part,
    "caption": _caption,
    "face": _face,
    "style": _style,
    "row": _row,
    "partrow": _partrow,
}
KINDS = tuple(_ASK)
PLACED_KINDS = ("locate", "at", "part", "row", "partrow")
"""Kinds that name a place on the grid: the ones from which categories and parts are held out."""


def question(kind: str, asked: Asked, generator: np.random.Generator) -> Question | None:
    """A question of `kind` about a scene, drawn with `generator`; None where the scene allows none."""
    found = _ASK[kind](asked, generator)
    return Question(kind, *found) if found else None


def training_questions(
    asked: Asked, weights: dict[str, int], count: int, generator: np.random.Generator
) -> list[Question]:
    """`count` questions with kinds drawn by whole-number `weights`; fewer only for a scene that shows nothing."""
    kinds: npt.NDArray[np.int64] = np.repeat(np.arange(len(weights)), list(weights.values()))
    names = tuple(weights)
    found: list[Question] = []
    for _ in range(count * 6):
        if len(found) == count:
            break
        asked_now = question(names[int(kinds[int(generator.integers(len(kinds)))])], asked, generator)
        if asked_now is not None:
            found.append(asked_now)
    return found
