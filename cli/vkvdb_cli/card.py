"""Measures the toy model anew and writes its card: `python -m vkvdb_cli.card` (`make toyworld-card`).

Answers are asked here, of scenes that training never saw; scores are read from the catalog, where `vkvdb demo --full`
put them. What was not scored is said to be not measured.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vkvdb
from vkvdb.toyworld import STANDALONE, names, weights_dir
from vkvdb_cli import _card_tables as tables
from vkvdb_cli._card_tables import DATASET, MODEL, PARTS
from vkvdb_cli._card_words import interval, listed, number, table, wilson

if TYPE_CHECKING:
    from vkvdb.toyworld.evaluate import Cell, Exam, Located

CARD = Path(vkvdb.__file__).parent / "toyworld" / "README.md"
SEEDS = 3
SCENES = 300
Asked = list[tuple[Any, ...]]

_ABOUT = """# The toy model

A small LLaVA-OneVision (SigLIP tower, projector, Qwen2 decoder), really trained on the synthetic world beside this
file, so that vkvdb runs anywhere and tests have something real to measure. It is an instrument, never evidence about
real models. This page is written by `make toyworld-card`.

## Training

Stage 1 trains the stand-alone encoder on image-level phrases; stage 2 the whole model on answers. No mask, keypoint or
coordinate enters a loss but as a word. `horse`, `truck` and `flower`, and the parts `wing` and `chimney`, are left out
of every training question that names a place. For the correlation over models there are earlier stages of the same run:
{siblings}."""
# How training went, in words that no log holds: to be kept true by hand.
_HOW = """\
What ships was trained in pieces, the learning rate falling at the end of each. The encoder: 102,400 draws, 153,600 more
and, its position embedding given `grid_waves`, a last 51,200. The model: 36,000 draws on the encoder as it was after
256,000, and no column could be read off its tokens; then its own position embedding was given the same waves, its
projector was replaced by one that is nearly linear (a fit to the old one plus a random rotation of the tower's tokens),
and 19,200 draws followed with more questions about places. So the tower began as the encoder that ships, one piece
earlier. `make toyworld-train` trains in one piece, begins with `grid_waves` and an open projector, and asks these
questions from the start; in whole it has not been run."""


def trained(model: str) -> str:
    """What a checkpoint was trained on, from its log."""
    log = training_log(model)
    last = log["log"][-1]["step"] if log["log"] else 0
    made = ", ".join(f"{name} {version}" for name, version in sorted(log["versions"].items()))
    return f"`{model}`: stage {log['stage']}, {log['image_draws']:,} image draws ({last} steps logged), {made}."


def training_log(model: str) -> dict[str, Any]:
    """What a checkpoint's training wrote down."""
    return dict(json.loads((weights_dir(model) / "training_log.json").read_text(encoding="utf-8")))


def trend(model: str) -> Asked:
    """(draws, mean accuracy, mean prior) along the training, on validation scenes."""
    rows = []
    for record in training_log(model)["log"]:
        scores = list(record["answers"].values())
        mean = [sum(s[field] for s in scores) / len(scores) for field in ("accuracy", "prior")]
        rows.append((record["draws"], *mean))
    return rows


def trend_of(model: str, kinds: Sequence[str]) -> str:
    """The accuracy of some kinds of question along the training, below their priors, on validation scenes."""
    log = training_log(model)["log"]
    if not kinds or not log:
        return ""

    def row(record: dict[str, Any], field: str) -> list[str]:
        return [number(record["answers"][kind][field]) if kind in record["answers"] else "-" for kind in kinds]

    rows = [["prior", *row(log[-1], "prior")], *([str(r["draws"]), *row(r, "accuracy")] for r in log)]
    return table(["draws", *kinds], rows)


# --- answers ----------------------------------------------------------------------------------------------------------


def scenes() -> list[list[Exam]]:
    """Questions on SCENES scenes of each seed, from where the draws of DATASET begin."""
    from vkvdb.datasets.toyworld import DRAW_APART
    from vkvdb.toyworld.evaluate import exams

    return [exams("test", SCENES, seed * DRAW_APART) for seed in range(SEEDS)]


def answers(model: str, asked: Sequence[Sequence[Exam]]) -> Asked:
    """(kind, n, prior, accuracy, low, high, accuracy by seed) of every kind of question.

    The prior is what the commonest answer of all scenes would get.
    """
    import torch

    from vkvdb.toyworld.evaluate import answer_scores
    from vkvdb.toyworld.model import load_model

    loaded, device = load_model(weights_dir(model)), torch.device("cpu")
    by_seed = [answer_scores(loaded, one, device) for one in asked]
    told = []
    for kind in sorted({kind for scores in by_seed for kind in scores}):
        each = [scores[kind] for scores in by_seed if kind in scores]
        n = sum(score.n for score in each)
        accuracy = sum(score.accuracy * score.n for score in each) / n
        ends = wilson(accuracy, n)
        told.append((kind, n, prior(kind, asked), accuracy, *ends, " ".join(number(s.accuracy) for s in each)))
    return told


def prior(kind: str, asked: Sequence[Sequence[Exam]]) -> float:
    """The share of a kind's questions whose answer is the commonest one."""
    given = Counter(q.answer for one in asked for exam in one for q in exam.questions if q.kind == kind)
    return max(given.values()) / given.total()


def located(model: str, asked: Sequence[Sequence[Exam]]) -> tuple[list[Cell], list[Cell | None]]:
    """The cells that `locate` asks for on all these scenes, and those that the model gives."""
    import torch

    from vkvdb.toyworld.evaluate import located
    from vkvdb.toyworld.model import load_model

    every = [exam for one in asked for exam in one]
    return located(load_model(weights_dir(model)), every, torch.device("cpu"))


def locating(truth: Sequence[Cell], given: Sequence[Cell | None]) -> str:
    """Where `locate` stands: the very cell, within one cell, the mean distance; against what one answer would get."""
    from vkvdb.toyworld.evaluate import constant_nearness, nearness

    own, (commonest, best) = nearness(truth, given), constant_nearness(truth)
    rows = [
        ("the model", *_located(own)),
        ("the commonest cell", *_located(commonest)),
        ("whichever cell is best at it", *_located(best)),
    ]
    off = _mean(own)
    learned = wilson(own.near, own.n)[0] > best.near and off[2] < _mean(best)[0]
    exact = wilson(own.exact, own.n)[0] > best.exact
    words = (
        "It names the very cell more often than any one answer would."
        if exact
        else "It names the place, not the cell: nearer than any one answer would, but seldom exact."
        if learned
        else "**Not learned**: one and the same answer would come as near."
    )
    columns = ["answer", "n", "the very cell", "within one cell", "mean distance in cells"]
    return f"{words}\n\n{table(columns, rows)}"


def _located(found: Located) -> tuple[Any, ...]:
    shares = [interval(share, *wilson(share, found.n)) for share in (found.exact, found.near)]
    return found.n, *shares, interval(*_mean(found))


def _mean(found: Located) -> tuple[float, float, float]:
    """The mean distance and its 95 % interval."""
    mean = float(found.far.mean())
    wide = 1.96 * float(found.far.std(ddof=1)) / math.sqrt(found.n) if found.n > 1 else math.inf
    return mean, mean - wide, mean + wide


# --- the card ---------------------------------------------------------------------------------------------------------


_OTHERS = f"""Samples of `{DATASET}`, as many as n says, drawn from {SEEDS} seeds far apart; each seed's own difference
stands beside the pooled one. The best layer and head is chosen on one half and reported on the other; 95 % intervals,
differences paired by sample."""
_CATEGORIES = """Differences as above, over the categories that training left out of every question that names a place
(`horse`, `truck`, `flower`) and over the others. Layer and head are chosen over all of them."""
_PARTS = f"""The same on `{PARTS}`, a point at a time: parts that no training question named (`wing`, `chimney`), and
the others, of categories that were not held out."""
_FLOW = """Each layer's best head, in-sample; shown where the intervals of the two layers do not overlap. By seed: the
best layer less the first, and less the last."""
_SURFACING = """By the likeliest letter; layer and head chosen on the other fold; the interval is that of independence.
Last: questions that surface in the image values only, those that do at this place only, and whether that tells the two
apart (McNemar)."""


def card() -> str:
    """The card's text."""
    asked = scenes()
    told = answers(MODEL, asked)
    above = [row[0] for row in told if row[4] > row[2]]
    below = [row[0] for row in told if row[4] <= row[2]]
    siblings = [f"`{name}`" for name in names() if name != MODEL and name not in STANDALONE.values()]
    parts = [
        _ABOUT.format(siblings=listed(siblings)),
        _HOW,
        "\n".join(f"- {trained(name)}" for name in names()),
        "Mean accuracy over all kinds of question on validation scenes, against the mean majority prior:",
        table(["draws", "accuracy", "prior"], trend(MODEL)),
        "Accuracy of the kinds that are not above their prior (see below), along the training:" if below else "",
        trend_of(MODEL, below),
        f"## Answers, on {SEEDS} x {SCENES} test scenes",
        f"Above their prior beyond the interval: {listed(above)}. **Not shown**: {listed(below)}.",
        table(["question", "n", "prior", "accuracy", "low", "high", "by seed"], told),
        "How near the answers to `locate` come (within one cell: column and row are off by one at most):",
        locating(*located(MODEL, asked)),
        "## Image values against everything else",
        _OTHERS,
        tables.against_others(),
        "## Held-out categories",
        _CATEGORIES,
        tables.held_out_categories(),
        "## Held-out parts",
        _PARTS,
        tables.held_out_parts(),
        "## Rise and fall over the layers",
        _FLOW,
        tables.flow(),
        "## Keys that do not depend on the image",
        tables.keys(),
        "## A text before the image",
        "By seed: at the head that is best in each layer after the filler.",
        tables.prefixes(),
        "## Answers in the tokens but not in the output",
        _SURFACING,
        tables.surfacing(),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


if __name__ == "__main__":
    CARD.write_text(card(), encoding="utf-8")
    sys.stdout.write(f"{CARD}\n")
