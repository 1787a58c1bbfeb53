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
Row = dict[str, Any]
_UNMEASURED = "Not measured: run `make figures` first, then `make toyworld-card`."

DATASET = "toyworld-test"

# Means over the categories that training held out of every question that names a place, and over the others, at the
# layer and head that were chosen most often in two-fold choices over all of them.
_GROUPS = """
WITH places AS (
    SELECT job, task, metric, site, head,
        CASE
            WHEN model_name = $model AND stage = 'decoder' AND part = 'value' THEN 'image values'
            WHEN family = 'pixels' THEN 'raw pixels'
            WHEN model_name = $model || '@random:0' AND stage = 'decoder' AND part = 'value' THEN 'random weights'
        END AS place
    FROM chosen
    WHERE dataset_name = $dataset AND kind = 'score' AND prefix = '' AND json_array_length(interventions) = 0
    UNION ALL
    SELECT job, task, metric, site, head, 'position only' FROM results
    WHERE dataset_name = $dataset AND model_name = $model AND stage = 'floor' AND kind = 'score' AND prefix = ''
)
SELECT job, task, metric, if(list_contains($held_out, grp), 'held out', 'trained') AS categories, place,
    avg(value) AS value, avg(value) - 1.96 * sqrt(sum(se * se)) / count(*) AS low,
    avg(value) + 1.96 * sqrt(sum(se * se)) / count(*) AS high, sum(n) AS n, count(*) AS groups
FROM places JOIN results_by_group USING (job, task, metric, site, head)
WHERE place IS NOT NULL AND grp <> '' AND value IS NOT NULL
    AND (task, metric) IN (('correspondence', 'pck_image'), ('foreground', 'iou'), ('segmentation', 'iou'))
GROUP BY ALL
ORDER BY task, metric, categories, value DESC
"""

# Each layer's best head (in-sample), to be compared with the first layer's and the last one's.
_FLOW = """
SELECT task, metric, layer, max(value) AS value, max_by(low, value) AS low, max_by(high, value) AS high,
    any_value(n) AS n
FROM results
WHERE dataset_name = $dataset AND model_name = $model AND kind = 'score' AND prefix = '' AND stage = 'decoder'
    AND part = 'value' AND head >= 0 AND json_array_length(interventions) = 0 AND metric = (notes->>'$.metrics[0]')
    AND task <> 'choices'
GROUP BY ALL
ORDER BY task, layer
"""

_ABOUT = """# The toy model

A small LLaVA-OneVision (SigLIP tower, projector, Qwen2 decoder), really trained on the synthetic world beside this
file, so that vkvdb runs anywhere and tests have something real to measure. It is an instrument, never evidence about
real models. This page is written by `make toyworld-card`.

## Training

Stage 1 trains the stand-alone encoder on image-level phrases; stage 2 the whole model on answers. No mask, keypoint or
coordinate enters a loss but as a word. `horse`, `truck` and `flower`, and the parts `wing` and `chimney`, are left out
of every training question that names a place. `toy-3k`, `toy-12k` and `toy-24k` are the same run earlier on, for the
correlation over models. The encoder that ships was trained in two pieces, its learning rate falling at the end of both
(after 102,400 draws and at the end); `make toyworld-train` trains in one."""
_HELD_OUT = ["horse", "truck", "flower"]


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


def number(value: float | None, *, sign: bool = False) -> str:
    """.43; with a sign where asked for; - where there is none."""
    if value is None or math.isnan(value):
        return "-"
    text = f"{abs(value):.2f}"
    return ("\u2212" if value < 0 else "+" if sign else "") + (text.removeprefix("0") if abs(value) < 0.995 else text)


def interval(value: float | None, low: float | None, high: float | None, *, sign: bool = False) -> str:
    """.43 [.40, .46]."""
    if low is None or high is None:
        return number(value, sign=sign)
    return f"{number(value, sign=sign)} [{number(low, sign=sign)}, {number(high, sign=sign)}]"


def rows_of(name: str, **given: str) -> list[Row]:
    """The rows of an analysis; none where there is nothing to draw."""
    from vkvdb import analysis
    from vkvdb.errors import NothingToDraw
    from vkvdb.paths import find_home

    try:
        return analysis.run(find_home(), name, given).rows.to_dicts()
    except NothingToDraw:
        return []


def asked_of_catalog(sql: str, **given: object) -> list[Row]:
    """The rows of a query."""
    from vkvdb.paths import find_home
    from vkvdb_cli._after import reading

    found = reading(find_home()).query(sql, given)
    return [dict(zip(found.columns, row, strict=True)) for row in found.rows]


def verdict(*, shown: bool) -> str:
    """The words of the card."""
    return "shown" if shown else "**not shown**"


# --- phenomena --------------------------------------------------------------------------------------------------------


def against_others() -> str:
    """Image values against what they are held against, paired by sample."""
    rows = rows_of("encoder", model=MODEL, dataset=DATASET)
    told = []
    for row in rows:
        if row["place"] == "subject":
            told.append(
                (
                    row["task"],
                    row["metric"],
                    "image values",
                    f"{row['layer']}",
                    interval(row["value"], row["low"], row["high"]),
                    "",
                    "",
                    row["n"],
                )
            )
        elif row["difference"] is not None and row["difference_low"] is not None:
            shown = row["difference_low"] > 0
            told.append(
                (
                    row["task"],
                    row["metric"],
                    row["place"],
                    f"{row['layer']}",
                    interval(row["value"], row["low"], row["high"]),
                    interval(row["difference"], row["difference_low"], row["difference_high"], sign=True),
                    "values hold more"
                    if shown
                    else "values hold less"
                    if row["difference_high"] < 0
                    else "not told apart",
                    row["n"],
                )
            )
    columns = ["task", "metric", "place", "layer", "value", "image values less this", "", "n"]
    return table(columns, told) if told else _UNMEASURED


def held_out() -> str:
    """Trained and held-out categories apart."""
    found = asked_of_catalog(_GROUPS, model=MODEL, dataset=DATASET, held_out=_HELD_OUT)
    # Of several jobs alike, the one of most samples.
    most: dict[tuple[str, str, str], Row] = {}
    for row in sorted(found, key=lambda r: r["n"]):
        most[row["task"], row["categories"], row["place"]] = row
    rows = [row for row in found if row in most.values()]
    told = []
    for row in rows:
        others = {r["place"]: r for r in rows if (r["task"], r["categories"]) == (row["task"], row["categories"])}
        values = others.get("image values")
        above = ""
        if values is not None and row is not values:
            above = "values are above" if values["low"] > row["high"] else "**values are not above**"
        told.append(
            (
                row["task"],
                row["categories"],
                row["place"],
                interval(row["value"], row["low"], row["high"]),
                above,
                row["groups"],
                row["n"],
            )
        )
    return table(["task", "categories", "place", "value", "", "categories counted", "n"], told) if told else _UNMEASURED


def flow() -> str:
    """Rise and fall of the image values over the layers."""
    told = []
    rows = asked_of_catalog(_FLOW, model=MODEL, dataset=DATASET)
    for task in dict.fromkeys(row["task"] for row in rows):
        layers = [row for row in rows if row["task"] == task]
        first, last, best = layers[0], layers[-1], max(layers, key=lambda r: r["value"])
        told.append(
            (
                task,
                best["metric"],
                interval(first["value"], first["low"], first["high"]),
                f"{interval(best['value'], best['low'], best['high'])} in layer {best['layer']}",
                interval(last["value"], last["low"], last["high"]),
                verdict(shown=best["low"] > first["high"]),
                verdict(shown=best["low"] > last["high"]),
                best["n"],
            )
        )
    columns = ["task", "metric", "first layer", "best layer", "last layer", "rise", "fall", "n"]
    return table(columns, told) if told else _UNMEASURED


def keys() -> str:
    """Input-agnostic keys."""
    from vkvdb.agnostic import find

    rows = [r for r in rows_of("keys") if r["kind"] == "head" and r["subject_name"] == MODEL and not r["unbiased"]]
    told = []
    for role, name in (("model", MODEL), ("random", "its random twin")):
        own = [r for r in rows if r["role"] == role]
        if not own:
            continue
        found = find(own)
        whole = [r["value"] for r in own if r["half"] == 0]
        told.append(
            (
                name,
                number(min(whole)),
                number(max(whole)),
                f"{len(found.heads)} of {len(whole)}",
                found.why,
                number(found.jaccard),
                own[0]["n"],
            )
        )
    columns = ["model", "least S", "largest S", "input-agnostic heads", "why none", "Jaccard of halves", "n images"]
    return table(columns, told) if told else _UNMEASURED


def surfacing() -> str:
    """Questions that the tokens answer and the model does not."""
    told = []
    for row in rows_of("surfacing", model=MODEL, dataset=DATASET, measure="likelihood"):
        if row["place"] is None:
            continue
        told.append(
            (
                row["grp"].removeprefix("choice-"),
                row["place"],
                row["n"],
                row["n_values_right"],
                row["n"] - row["n_wrong"],
                row["surfacing"],
                f"{row['expected']:.1f} [{row['low']:.0f}, {row['high']:.0f}]",
                verdict(shown=row["surfacing"] > row["high"]),
            )
        )
    columns = ["question", "place", "n", "read right", "answered right", "surfacing", "independence alone", ""]
    return table(columns, told) if told else _UNMEASURED


def prefixes() -> str:
    """What a text before the image does, against filler of the same length."""
    told = []
    for row in rows_of("prefix", model=MODEL, dataset=DATASET):
        if row["layer"] is not None or row["part"] != "value":
            continue
        delta = f"{row['delta']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"
        shown = row["low"] > 0 or row["high"] < 0
        told.append((row["task"], row["metric"], row["condition"], delta, verdict(shown=shown), row["n"]))
    columns = ["task", "metric", "text before the image", "difference to filler, mean over layers", "effect", "n"]
    return table(columns, told) if told else _UNMEASURED


def card() -> str:
    """The card's text."""
    asked = answers(MODEL)
    above = [row[0] for row in asked if row[4] > row[2]]
    below = [row[0] for row in asked if row[4] <= row[2]]
    parts = [
        _ABOUT,
        "\n".join(f"- {trained(name)}" for name in names()),
        "Mean accuracy over all kinds of question on validation scenes, against the mean majority prior:",
        table(["draws", "accuracy", "prior"], trend(MODEL)),
        f"## Answers, on {SEEDS} x {SCENES} test scenes",
        f"Above their prior beyond the interval: {listed(above)}. **Not shown**: {listed(below)}.",
        table(["question", "n", "prior", "accuracy", "low", "high"], asked),
        "## Image values against everything else",
        f"On samples of `{DATASET}`, as many as n says.",
        "The best layer and head is chosen on one half and reported on the other; 95 % intervals.",
        against_others(),
        "## Held-out categories",
        "At the layer and head chosen most often over all categories. No task here tells held-out parts apart.",
        held_out(),
        "## Rise and fall over the layers",
        "Each layer's best head, in-sample; shown where the intervals of the two layers do not overlap.",
        flow(),
        "## Keys that do not depend on the image",
        keys(),
        "## A text before the image",
        prefixes(),
        "## Answers in the tokens but not in the output",
        "By the likeliest letter; layer and head chosen on the other fold; the interval is that of independence.",
        surfacing(),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


if __name__ == "__main__":
    CARD.write_text(card(), encoding="utf-8")
    sys.stdout.write(f"{CARD}\n")
