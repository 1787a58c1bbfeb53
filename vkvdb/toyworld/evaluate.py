"""How well a toy model answers scenes it has not seen, each kind of question against its majority prior."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration

from vkvdb.toyworld.choices import CHOICE_KINDS, Choice, choice
from vkvdb.toyworld.data import CHOICE_SLOT, SLOT, UInt8, slot
from vkvdb.toyworld.language import facts, stage1_phrases, true_phrases, vocabulary
from vkvdb.toyworld.packing import Batch, Layout, answer_logits
from vkvdb.toyworld.questions import KINDS, Asked, Question, question
from vkvdb.toyworld.world import GRID, render, scene, seeds

Cell = tuple[int, int]


class Score(NamedTuple):
    """Exactly right answers of `n`, as a share, and the share that the commonest answer alone would get."""

    accuracy: float
    prior: float
    n: int


class Located(NamedTuple):
    """How near `n` answers to `locate` are: shares in the very cell and within one cell of it (both axes), distances.

    `far` (n,) are distances in cells, Euclidean; an answer that is no cell is as far off as the grid allows.
    """

    exact: float
    near: float
    far: npt.NDArray[np.float64]

    @property
    def n(self) -> int:
        return len(self.far)


class Exam(NamedTuple):
    """A scene's image (112, 112, 3), one question of each kind that it allows, and the stage-1 phrases true of it."""

    image: UInt8
    questions: tuple[Question, ...]
    phrases: frozenset[str]


def exams(split: str, count: int, start: int = 0) -> list[Exam]:
    """Questions about `count` scenes of a split."""
    made = []
    for seed in seeds(split, count, start):
        drawn = scene(seed)
        rendered = render(drawn)
        known = facts(drawn, rendered)
        asked = Asked(drawn, rendered, known, held_out=False)
        generator = np.random.default_rng([seed, 4])
        found = [question(kind, asked, generator) for kind in KINDS]
        phrases = frozenset(true_phrases(known, drawn.style))
        made.append(Exam(rendered.image, tuple(one for one in found if one is not None), phrases))
    return made


def _right(model: LlavaOnevisionForConditionalGeneration, layout: Layout, batch: Batch) -> Tensor:
    """Which slots the model would answer exactly right by greedy decoding: bool (rows, slots).

    All words right under teacher forcing is the same as right under greedy decoding.
    """
    logits, tokens, where = answer_logits(model, layout, batch)
    wrong = logits.argmax(-1) != tokens
    right = torch.ones(batch.starts.shape, dtype=torch.bool, device=wrong.device)
    right[where[wrong, 0], where[wrong, 1]] = False
    return right


def _tally(kinds: Sequence[str], asked: Sequence[tuple[str, str, bool]]) -> dict[str, Score]:
    """Scores by kind of (kind, answer, right)."""
    scores = {}
    for kind in kinds:
        answers = Counter(answer for one, answer, _ in asked if one == kind)
        n = answers.total()
        if n:
            right = sum(good for one, _, good in asked if one == kind)
            scores[kind] = Score(right / n, max(answers.values()) / n, n)
    return scores


@torch.no_grad()
def answer_scores(
    model: LlavaOnevisionForConditionalGeneration, asked: Sequence[Exam], device: torch.device, *, anyres: bool = False
) -> dict[str, Score]:
    """Accuracy of each kind of question, packed behind each scene's image."""
    results: list[tuple[str, str, bool]] = []
    slots = len(KINDS)
    layout = Layout(0, 1, anyres, slots, SLOT)
    for first in range(0, len(asked), 20):
        part = asked[first : first + 20]
        filled = [[slot(one.text, one.answer) for one in exam.questions] for exam in part]
        # Rows with fewer questions are filled up with slots that hold no answer.
        filled = [row + [([0] * SLOT, SLOT)] * (slots - len(row)) for row in filled]
        batch = Batch(
            torch.from_numpy(np.stack([exam.image for exam in part]))[:, None].to(device),
            torch.zeros(len(part), 0, dtype=torch.uint8, device=device),
            torch.tensor([[tokens for tokens, _ in row] for row in filled], dtype=torch.uint8, device=device),
            torch.tensor([[start for _, start in row] for row in filled], dtype=torch.uint8, device=device),
        )
        right = _right(model, layout, batch).tolist()
        for exam, row in zip(part, right, strict=True):
            results += [(one.kind, one.answer, good) for one, good in zip(exam.questions, row, strict=False)]
    return _tally(KINDS, results)


@torch.no_grad()
def located(
    model: LlavaOnevisionForConditionalGeneration, asked: Sequence[Exam], device: torch.device
) -> tuple[list[Cell], list[Cell | None]]:
    """The cells (column, row) that `locate` questions ask for, and those answered by greedy decoding, word by word.

    None stands for an answer that is not a column and a row.
    """
    found = [(exam.image, one) for exam in asked for one in exam.questions if one.kind == "locate"]
    truth = [_cell(*one.answer.split()) for _, one in found]
    assert all(cell is not None for cell in truth)
    layout, words = Layout(0, 1, False, 1, SLOT), vocabulary()
    said: list[list[str]] = [[] for _ in found]
    for first in range(0, len(found), 20):
        part = found[first : first + 20]
        images = torch.from_numpy(np.stack([image for image, _ in part]))[:, None].to(device)
        for place in range(2):
            # A word depends on those before it alone: whatever stands where it will be.
            before = [[*said[first + n], "x0", "y0"][:2] if place else ["x0", "y0"] for n in range(len(part))]
            filled = [slot(one.text, " ".join(two)) for (_, one), two in zip(part, before, strict=True)]
            batch = Batch(
                images,
                torch.zeros(len(part), 0, dtype=torch.uint8, device=device),
                torch.tensor([[tokens] for tokens, _ in filled], dtype=torch.uint8, device=device),
                torch.tensor([[start] for _, start in filled], dtype=torch.uint8, device=device),
            )
            logits, _, where = answer_logits(model, layout, batch)
            starts = torch.tensor([start for _, start in filled], device=device)
            wanted = where[:, 2] == starts[where[:, 0]] + place
            for n, token in zip(where[wanted, 0].tolist(), logits[wanted].argmax(-1).tolist(), strict=True):
                said[first + n].append(words[token])
    return [cell for cell in truth if cell is not None], [_cell(*two) for two in said]


def _cell(column: str, row: str) -> Cell | None:
    """(3, 10) of `x3` and `y10`; None of other words."""
    if column[:1] == "x" and row[:1] == "y" and column[1:].isdigit() and row[1:].isdigit():
        return int(column[1:]), int(row[1:])
    return None


def nearness(truth: Sequence[Cell], given: Sequence[Cell | None]) -> Located:
    """How near answers are to the cells that were asked for."""
    wanted = np.array(truth, dtype=np.float64)
    corner = np.maximum(wanted, GRID - 1 - wanted)
    off = np.array(
        [
            np.abs(np.subtract(cell, right)) if cell is not None else worst
            for cell, right, worst in zip(given, wanted, corner, strict=True)
        ]
    )
    return Located(float((off.max(1) == 0).mean()), float((off.max(1) <= 1).mean()), np.hypot(off[:, 0], off[:, 1]))


def constant_nearness(truth: Sequence[Cell]) -> tuple[Located, Located]:
    """What one and the same answer gets: the commonest cell, and for each measure the cell that is best at it."""
    every = [nearness(truth, [(column, row)] * len(truth)) for column in range(GRID) for row in range(GRID)]
    commonest = nearness(truth, [Counter(truth).most_common(1)[0][0]] * len(truth))
    nearest = min(every, key=lambda one: float(one.far.mean()))
    return commonest, Located(max(one.exact for one in every), max(one.near for one in every), nearest.far)


def choice_exams(first_seed: int, count: int) -> dict[str, list[Choice]]:
    """BLINK-shaped questions of each kind, over `count` seeds a kind."""
    made = {kind: [choice(kind, seed) for seed in range(first_seed, first_seed + count)] for kind in CHOICE_KINDS}
    return {kind: [one for one in found if one is not None] for kind, found in made.items()}


@torch.no_grad()
def choice_scores(
    model: LlavaOnevisionForConditionalGeneration, puzzles: dict[str, list[Choice]], device: torch.device
) -> dict[str, Score]:
    """Accuracy of each kind of BLINK-shaped question."""
    results: list[tuple[str, str, bool]] = []
    for kind, asked in puzzles.items():
        for first in range(0, len(asked), 10):
            part = asked[first : first + 10]
            layout = Layout(0, len(part[0].images), False, 1, CHOICE_SLOT)
            filled = [slot(one.text, one.answer, CHOICE_SLOT) for one in part]
            batch = Batch(
                torch.from_numpy(np.stack([np.stack(one.images) for one in part])).to(device),
                torch.zeros(len(part), 0, dtype=torch.uint8, device=device),
                torch.tensor([[tokens] for tokens, _ in filled], dtype=torch.uint8, device=device),
                torch.tensor([[start] for _, start in filled], dtype=torch.uint8, device=device),
            )
            right = _right(model, layout, batch)[:, 0].tolist()
            results += [(kind, one.answer, good) for one, good in zip(part, right, strict=True)]
    return _tally(CHOICE_KINDS, results)


def phrase_precision(logits: Tensor, asked: Sequence[Exam]) -> dict[str, float]:
    """Mean average precision of stage-1 phrases by their number of words' group; `logits` (scenes, phrases)."""
    phrases = stage1_phrases()
    found: dict[str, list[float]] = {}
    for index, phrase in enumerate(phrases):
        truth = np.array([phrase in exam.phrases for exam in asked])
        if not truth.any():
            continue
        ranked = truth[np.argsort(-logits[:, index].cpu().numpy(), kind="stable")]
        places = np.nonzero(ranked)[0]
        precision = float(((np.arange(len(places)) + 1) / (places + 1)).mean())
        found.setdefault(_group(index), []).append(precision)
    return {group: float(np.mean(values)) for group, values in found.items()}


def _group(index: int) -> str:
    """Stage-1 phrases come in groups, in the order of `stage1_phrases`."""
    for group, size in (
        ("colour", 8),
        ("category", 10),
        ("colour_category", 80),
        ("texture_category", 30),
        ("category_zone", 90),
        ("facing", 14),
        ("style", 6),
        ("number", 5),
    ):
        if index < size:
            return group
        index -= size
    raise IndexError(index)
