"""Measures the toy model anew and writes its card: `python -m vkvdb_cli.card` (`make toyworld-card`).

Answers are asked here, of scenes that training never saw; scores are read from the catalog, where `vkvdb demo --full`
put them. What was not scored is said to be not measured.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import vkvdb
from vkvdb.toyworld import names, weights_dir

CARD = Path(vkvdb.__file__).parent / "toyworld" / "README.md"
SEEDS = 3
SCENES = 100
MODEL = "toy"

# One row a model, task and place: its best layer and head there, in-sample and labelled so.
_BEST = """
SELECT dataset_name, task, model_name,
    CASE stage WHEN 'decoder' THEN part ELSE stage END AS place,
    max_by(layer, value) AS layer, max_by(head, value) AS head, max(value) AS best,
    max_by(low, value) AS low, max_by(high, value) AS high, max_by(n, value) AS n
FROM results
WHERE dataset_name LIKE 'toyworld-%' AND metric IN ('pck_image', 'iou') AND parameters = '{}' AND prefix = ''
    AND (model_name = 'toy' OR stage NOT IN ('floor', 'ceiling'))
GROUP BY ALL
ORDER BY dataset_name, task, best DESC
"""

_ABOUT = """# The toy model

A small LLaVA-OneVision (SigLIP tower, projector, Qwen2 decoder), really trained on the synthetic world beside this
file, so that vkvdb runs anywhere and tests have something real to measure. It is an instrument, never evidence about
real models. This page is written by `make toyworld-card`.

## Training

Stage 1 trains the stand-alone encoder on image-level phrases; stage 2 the whole model on answers. No mask, keypoint or
coordinate enters a loss but as a word. `horse`, `truck` and `flower`, and the parts `wing` and `chimney`, are left out
of every training question that names a place."""
_SCORED = "The best layer and head of each place, chosen on the samples shown (in-sample); 95 % intervals by cluster."


def wilson(right: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson's)."""
    z2 = 1.96**2
    middle = (right + z2 / (2 * n)) / (1 + z2 / n)
    half = 1.96 / (1 + z2 / n) * math.sqrt(right * (1 - right) / n + z2 / (4 * n * n))
    return middle - half, middle + half


def answers(model: str) -> list[tuple[Any, ...]]:
    """(kind, n, prior, accuracy, low, high) of every kind of question, over SEEDS x SCENES scenes of the test split."""
    import torch

    from vkvdb.toyworld.evaluate import answer_scores, exams
    from vkvdb.toyworld.model import load_model

    loaded, device = load_model(weights_dir(model)), torch.device("cpu")
    right: dict[str, float] = {}
    count: dict[str, int] = {}
    prior: dict[str, float] = {}
    for seed in range(SEEDS):
        for kind, score in answer_scores(loaded, exams("test", SCENES, seed * 1_000_000), device).items():
            right[kind] = right.get(kind, 0.0) + score.accuracy * score.n
            prior[kind] = prior.get(kind, 0.0) + score.prior * score.n
            count[kind] = count.get(kind, 0) + score.n
    return [
        (kind, n, prior[kind] / n, right[kind] / n, *wilson(right[kind] / n, n)) for kind, n in sorted(count.items())
    ]


def table(columns: list[str], rows: list[tuple[Any, ...]]) -> str:
    """A Markdown table; numbers with two digits."""

    def text(value: Any) -> str:
        return f"{value:.2f}" if isinstance(value, float) else str(value)

    lines = [columns, ["---"] * len(columns), *([text(v) for v in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def listed(kinds: list[str]) -> str:
    """Names in a row, or "none"."""
    return ", ".join(kinds) or "none"


def trained(model: str) -> str:
    """What a checkpoint was trained on, from its log."""
    log = json.loads((weights_dir(model) / "training_log.json").read_text(encoding="utf-8"))
    last = log["log"][-1]["step"] if log["log"] else 0
    made = ", ".join(f"{name} {version}" for name, version in sorted(log["versions"].items()))
    return f"`{model}`: stage {log['stage']}, {log['image_draws']:,} image draws ({last} steps logged), {made}."


def trend(model: str) -> list[tuple[Any, ...]]:
    """(draws, mean accuracy, mean prior) along the training, on validation scenes."""
    log = json.loads((weights_dir(model) / "training_log.json").read_text(encoding="utf-8"))
    rows = []
    for record in log["log"]:
        scores = list(record["answers"].values())
        mean = [sum(s[field] for s in scores) / len(scores) for field in ("accuracy", "prior")]
        rows.append((record["draws"], *mean))
    return rows


def card() -> str:
    """The card's text."""
    from vkvdb.paths import find_home
    from vkvdb_cli._after import reading

    asked = answers(MODEL)
    above = [row[0] for row in asked if row[4] > row[2]]
    below = [row[0] for row in asked if row[4] <= row[2]]
    results = reading(find_home()).query(_BEST)
    rows = [(*row[:4], f"{row[4]}", "all" if row[5] == -1 else f"{row[5]}", *row[6:]) for row in results.rows]
    scores = table(["dataset", "task", "model", "place", "layer", "head", "best", "low", "high", "n"], rows)
    parts = [
        _ABOUT,
        "\n".join(f"- {trained(name)}" for name in names()),
        "Mean accuracy over all kinds of question on validation scenes, against the mean majority prior:",
        table(["draws", "accuracy", "prior"], trend(MODEL)),
        f"## Answers, on {SEEDS} x {SCENES} test scenes",
        f"Above their prior beyond the interval: {listed(above)}. **Not shown**: {listed(below)}.",
        table(["question", "n", "prior", "accuracy", "low", "high"], asked),
        "## Scores",
        _SCORED if rows else "Not measured: run `make figures` first, then this again.",
        scores if rows else "",
        "Not measured yet: the effect of a prefix, the variance of keys, surfacing, and held-out parts.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


if __name__ == "__main__":
    CARD.write_text(card(), encoding="utf-8")
    sys.stdout.write(f"{CARD}\n")
