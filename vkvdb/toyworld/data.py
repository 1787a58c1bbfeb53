"""Training data: scenes and questions as byte arrays.

A data set is a folder of `.npy` files of uint8, written once and then mapped into memory, so that a training step
only gathers rows. What reaches a loss is words alone: images, token ids of questions and answers, and true or false
of phrases. No mask, no keypoint and no coordinate is stored.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vkvdb.toyworld.choices import CHOICE_KINDS, Choice, choice
from vkvdb.toyworld.language import NUMBERS, Fact, facts, stage1_phrases, true_phrases, vocabulary
from vkvdb.toyworld.questions import Asked, Question, training_questions
from vkvdb.toyworld.world import SIZE, render, scene, seeds

UInt8 = npt.NDArray[np.uint8]

SLOT = 16
"""Tokens of a question slot: question, end of turn, start of the answer's turn, answer, end of turn, padding."""
BANK = 24
"""Questions kept of each scene."""
CHOICE_SLOT = 40
CHOICE_IMAGES = 3

KIND_WEIGHTS = {
    "what": 3,
    "where": 3,
    "locate": 8,
    "count": 2,
    "colour": 2,
    "refer": 3,
    "exist": 2,
    "relation": 2,
    "texture": 1,
    "at": 5,
    "part": 6,
    "caption": 2,
    "face": 1,
    "style": 1,
    "row": 4,
    "partrow": 4,
}
"""How often each kind is asked in training. Questions by place are many: they make a token say what is where it is."""

_IDS = {word: index for index, word in enumerate(vocabulary())}
_TURN = "<|im_end|> <|im_start|> assistant"


class Prefix(NamedTuple):
    """A text before the image, and what is asked behind it."""

    text: str
    question: str
    answer: str


PREFIX_LENGTHS = (1, 2, 4, 5, 6)
"""Words of the prefix forms below: a batch uses one form, so that all its rows are equally long."""


def prefixes(known: Sequence[Fact], generator: np.random.Generator) -> tuple[Prefix, ...] | None:
    """One prefix of each form about one thing: a class name, a name, a task and two whole questions; None if nothing
    is seen.
    """
    if not known:
        return None
    fact = known[int(generator.integers(len(known)))]
    number = NUMBERS[sum(other.category == fact.category for other in known)]
    return (
        Prefix(fact.category, "how many are there ?", number),
        Prefix(fact.name, "where is it ?", fact.zone),
        Prefix(f"find the {fact.name}", "where is it ?", fact.zone),
        Prefix(f"how many {fact.category} are there", "", number),
        Prefix(f"where is the {fact.name} ?", "", fact.zone),
    )


def encode(text: str) -> list[int]:
    """Token ids of words separated by spaces."""
    return [_IDS[word] for word in text.split()]


def slot(question: str, answer: str, length: int = SLOT) -> tuple[list[int], int]:
    """A question slot, padded to `length`, and the place of the answer's first token in it."""
    asked = encode(f"{question} {_TURN}")
    tokens = asked + encode(f"{answer} <|im_end|>")
    if len(tokens) > length:
        raise ValueError(f"a slot holds {length} tokens, not {len(tokens)}: {question} {answer}")
    return tokens + [0] * (length - len(tokens)), len(asked)


_PHRASES = {phrase: index for index, phrase in enumerate(stage1_phrases())}


def scene_rows(seed: int) -> dict[str, UInt8] | None:
    """What training keeps of the scene of a seed; None for the rare scene of which nothing is seen.

    `image` (112, 112, 3); `phrases` (phrases) 0 or 1; `bank` (BANK, SLOT) token ids and `starts` (BANK) the place of
    each answer's first token; `prefix` (forms, 6) token ids, and `prefix_bank` (forms, SLOT), `prefix_starts` (forms)
    the slot asked behind each.
    """
    drawn = scene(seed)
    rendered = render(drawn)
    known = facts(drawn, rendered)
    generator = np.random.default_rng([seed, 2])
    asked = training_questions(Asked(drawn, rendered, known, held_out=False), KIND_WEIGHTS, BANK, generator)
    before = prefixes(known, generator)
    if before is None or len(asked) < BANK:
        return None
    rows: dict[str, UInt8] = {"image": rendered.image}
    flags = np.zeros(len(_PHRASES), dtype=np.uint8)
    flags[[_PHRASES[phrase] for phrase in true_phrases(known, drawn.style)]] = 1
    rows["phrases"] = flags
    rows["bank"], rows["starts"] = _slots([(question.text, question.answer) for question in asked])
    rows["prefix_bank"], rows["prefix_starts"] = _slots([(prefix.question, prefix.answer) for prefix in before])
    texts = [encode(prefix.text) for prefix in before]
    rows["prefix"] = np.array([text + [0] * (max(PREFIX_LENGTHS) - len(text)) for text in texts], dtype=np.uint8)
    return rows


def _slots(pairs: Sequence[tuple[str, str]], length: int = SLOT) -> tuple[UInt8, UInt8]:
    made = [slot(question, answer, length) for question, answer in pairs]
    return np.array([tokens for tokens, _ in made], dtype=np.uint8), np.array([at for _, at in made], dtype=np.uint8)


def choice_rows(seed: int) -> dict[str, UInt8] | None:
    """A BLINK-shaped question: `images` (3, 112, 112, 3), unused ones black, `count` (1), `bank` (1, CHOICE_SLOT),
    `starts` (1).
    """
    made: Choice | None = choice(CHOICE_KINDS[seed % len(CHOICE_KINDS)], seed)
    if made is None:
        return None
    images = np.zeros((CHOICE_IMAGES, SIZE, SIZE, 3), dtype=np.uint8)
    images[: len(made.images)] = np.stack(made.images)
    bank, starts = _slots([(made.text, made.answer)], CHOICE_SLOT)
    return {"images": images, "count": np.array([len(made.images)], dtype=np.uint8), "bank": bank, "starts": starts}


RowMaker = Callable[[int], dict[str, UInt8] | None]


def build(folder: Path, make: RowMaker, split: str, count: int, processes: int) -> dict[str, UInt8]:
    """The arrays of a data set of `count` rows, from `folder`, made there first where they are not yet.

    Rows come in the order of the seeds, whatever the number of processes, and seeds that give none are passed over.
    """
    done = folder / "done"
    if not done.exists() or done.read_text(encoding="utf-8") != f"{count}\n":
        folder.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, np.memmap[Any, np.dtype[np.uint8]]] = {}
        filled = 0
        taken = 0
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            # A few seeds in a hundred give no row: go on with as many more seeds as rows are missing.
            while filled < count:
                wanted = seeds(split, count - filled, taken)
                taken += len(wanted)
                for row in pool.imap(make, wanted, chunksize=16):
                    if row is None:
                        continue
                    for name, value in row.items():
                        if name not in arrays:
                            shape = (count, *value.shape)
                            arrays[name] = np.lib.format.open_memmap(
                                folder / f"{name}.npy", mode="w+", dtype=np.uint8, shape=shape
                            )
                        arrays[name][filled] = value
                    filled += 1
        for array in arrays.values():
            array.flush()
        done.write_text(f"{count}\n", encoding="utf-8")
    # "c": copy on write, which torch takes without a warning; nothing is ever written.
    return {path.stem: np.load(path, mmap_mode="c") for path in sorted(folder.glob("*.npy"))}


__all__ = ["BANK", "KIND_WEIGHTS", "SLOT", "Prefix", "Question", "build", "choice_rows", "encode", "scene_rows", "slot"]
