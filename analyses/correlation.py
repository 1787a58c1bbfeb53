"""Draws correlation.sql: a point a model; where models are too few to conclude anything, the relation over images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from vkvdb.charting import styled, wrapped
from vkvdb.errors import NothingToDraw
from vkvdb.statistics import NORMAL, Correlation, Interval, correlation, linearised

Row = dict[str, Any]

FEWEST = 5  # models: of fewer, nothing can be concluded
_SIZE = 340  # pixels of a panel's side
_BINS = 5
_GREY = "#767676"
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_CONTROL = "random"  # what the variants of random twins begin with


def chart(rows: pl.DataFrame) -> alt.VConcatChart:
    """Value and gain against answers, side by side, or the relation over images, a panel a model.

    Raises NothingToDraw when no model that was scored has a y.
    """
    models = [r for r in rows.filter(level="model").to_dicts() if r["y"] is not None]
    images = rows.filter(level="image")
    if not models and images.is_empty():
        hint = "answers come from vkvdb ask, numbers of other tools from vkvdb import and --benchmark NAME"
        raise NothingToDraw(what="a model that was both scored and asked", hint=hint)
    return _of_models(models) if len(models) >= FEWEST or images.is_empty() else _of_images(models, images)


# --- models ---


def _of_models(models: Sequence[Row]) -> alt.VConcatChart:
    first, enough = models[0], len(models) >= FEWEST
    families = sorted({r["family"] for r in models})
    # Where all are of one family there is none to leave out: then models are, one by one.
    left_out = "family" if len(families) > 1 else "model_name"
    words = {
        "x": f"value of {_part(first)} on {first['task']} ({first['metric']})",
        "gain": f"gain of {_part(first)} over the projector ({first['metric']})",
    }
    panels: list[alt.LayerChart | alt.FacetChart] = []
    findings = []
    for column, name in words.items():
        kept = [r for r in models if r[column] is not None]
        if not kept:  # nothing was read at the projector
            continue
        found = correlation([r[column] for r in kept], [r["y"] for r in kept], [r[left_out] for r in kept])
        if enough:
            findings.append(finding(found, column, first["task"], len(kept)))
        told = _told(found, families) if len(kept) >= FEWEST else [f"n = {len(kept)} models"]
        panels.append(_panel(kept, column, name, told, families, legend=len(families) > 1 and not panels))
    if not enough:
        findings = [_too_few(models), "No dataset has both questions and this task's samples."]
    parameters = "" if first["set_of_parameters"] == "{}" else f" {first['set_of_parameters']}"
    asked = f", {first['n_y']} of them" if first["n_y"] is not None else ""
    subtitle = [
        f"x: {first['dataset_name']}{parameters}, {_counts(models)}",
        "layer and head: chosen on one half of the clusters, reported on the other",
        f"y: {first['y_name']}{asked}; bars: 95 % intervals by cluster" + _without_interval(first),
        "p: permutation, two-sided, each test by itself; it takes models to be exchangeable",
        "(twins and checkpoints of one training run are not)",
        "circle: trained, diamond: random twin; "
        + (
            f"families: {', '.join(families)}; without one family: smallest and largest coefficient"
            if len(families) > 1
            else f"all are of one family, {families[0]}: without one model, smallest and largest coefficient"
        ),
        _jobs(models),
    ]
    return _page([alt.hconcat(*panels, spacing=40)], findings, subtitle)


def _panel(
    points: Sequence[Row], column: str, name: str, told: Sequence[str], families: Sequence[str], *, legend: bool
) -> alt.LayerChart | alt.FacetChart:
    """A point a model, with its name; a colour a family."""
    colours = alt.Scale(domain=list(families), range=list((_COLOURS * len(families))[: len(families)]))
    values = [
        {
            "x": r[column],
            "x_low": r[f"{column}_low"] if r[f"{column}_low"] is not None else r[column],
            "x_high": r[f"{column}_high"] if r[f"{column}_high"] is not None else r[column],
            "y": r["y"],
            "y_low": r["y_low"] if r["y_low"] is not None else r["y"],
            "y_high": r["y_high"] if r["y_high"] is not None else r["y"],
            "model": r["model_name"],
            "family": r["family"],
            "shape": "diamond" if r["variant"].startswith(_CONTROL) else "circle",
            "where": f"layer {r['layer']} head {r['head']} in {r['wins']} of {r['choices']} choices",
            "n": f"{r['n']} samples, {r['n_y'] if r['n_y'] is not None else 'unknown'} questions",
            "job": r["id"][:8],
        }
        for r in points
    ]
    x, y = (_scale([v for value in values for v in (value[c], value[f"{c}_low"], value[f"{c}_high"])]) for c in "xy")
    for value, height in zip(values, _heights(values, x, y), strict=True):
        value["label_y"] = height
    base = alt.Chart(alt.InlineData(values=values)).encode(
        x=alt.X("x:Q", scale=x, axis=alt.Axis(title=name, format=".2~f", tickCount=6)),
        y=alt.Y("y:Q", scale=y, axis=alt.Axis(title="share answered right" if points[0]["asked_id"] else "benchmark")),
        color=alt.Color(
            "family:N",
            scale=colours,
            legend=alt.Legend(title="family", orient="bottom", symbolType="circle") if legend else None,
        ),
        tooltip=[alt.Tooltip(f"{c}:N") for c in ("model", "family", "x", "y", "where", "n", "job")],
    )
    right = [v for v in values if v["x"] <= sum(x.domain) / 2]
    left = [v for v in values if v["x"] > sum(x.domain) / 2]
    marks: list[alt.Chart] = [
        base.mark_rule(opacity=0.45).encode(y="y_low:Q", y2="y_high:Q"),
        base.mark_rule(opacity=0.45).encode(x="x_low:Q", x2="x_high:Q"),
        base.mark_point(filled=True, size=80, opacity=1).encode(shape=alt.Shape("shape:N", scale=None)),
    ]
    named = (
        (right, base.mark_text(align="left", dx=6, dy=-8, fontSize=10)),
        (left, base.mark_text(align="right", dx=-6, dy=-8, fontSize=10)),
    )
    for some, drawn in named:
        texts = drawn.encode(text="model:N", y=alt.Y("label_y:Q", scale=y))
        texts.data = alt.InlineData(values=some)
        marks.append(texts)
    made: alt.LayerChart | alt.FacetChart = alt.layer(*marks).properties(
        width=_SIZE, height=_SIZE, title=alt.TitleParams(list(told), fontSize=11, fontWeight="normal", frame="bounds")
    )
    return made


def _heights(values: Sequence[Row], x: alt.Scale, y: alt.Scale) -> list[float]:
    """Where labels stand, in y: above or below their points where the labels of two would touch."""
    (left, right), (low, high) = x.domain, y.domain
    placed: list[tuple[float, float, float]] = []  # from, to, height in pixels
    heights = [0.0] * len(values)
    for n in sorted(range(len(values)), key=lambda n: values[n]["y"]):
        value, long = values[n], 5.6 * len(values[n]["model"]) + 12
        at = (value["x"] - left) / (right - left) * _SIZE
        start = at if value["x"] <= (left + right) / 2 else at - long
        height = (value["y"] - low) / (high - low) * _SIZE
        for begin, end, other in placed:
            if begin < start + long and start < end and abs(height - other) < 12:
                height = other + 12
        placed.append((start, start + long, height))
        placed.sort(key=lambda p: p[2])
        heights[n] = low + height / _SIZE * (high - low)
    return heights


def finding(found: Correlation, column: str, task: str, n: int) -> str:
    """What a coefficient and its p say, in words that they support."""
    if n < FEWEST:
        return f"{n} models have a {column}: too few to conclude anything."
    if math.isnan(found.spearman):
        return "Models do not differ in one of the two: no correlation is defined."
    p = f"rank correlation {_number(found.spearman)}, p {_p(found.spearman_p)}, n = {n}"
    if found.spearman_p >= 0.05:
        what = f"segmenting better ({task})" if column == "x" else "gaining more over the projector"
        return f"No relation of {what} to answering better is told from chance ({p})."
    what = f"segment better ({task})" if column == "x" else "gain more over their projector"
    return f"Models that {what} answer {'better' if found.spearman > 0 else 'worse'} ({p})."


def _told(found: Correlation, families: Sequence[str]) -> list[str]:
    several = len(families) > 1
    lines = [f"n = {found.n} models of {f'{found.families} families' if several else f'one family, {families[0]}'}"]
    for name, r, interval, p, without in (
        ("Pearson", found.pearson, found.pearson_interval, found.pearson_p, found.pearson_without),
        ("Spearman", found.spearman, found.spearman_interval, found.spearman_p, found.spearman_without),
    ):
        range_ = (
            ""
            if math.isnan(without[0])
            else f"; without one {'family' if several else 'model'} {_number(without[0])} to {_number(without[1])}"
        )
        lines.append(f"{name} {_number(r)}{_pair(interval)}, p {_p(p)}{range_}")
    return lines


# --- images ---


def _of_images(models: Sequence[Row], images: pl.DataFrame) -> alt.VConcatChart:
    """Where models are too few: accuracy of the questions about an image against the score on it."""
    parts = [part.to_dicts() for part in images.partition_by("model_name", "id", maintain_order=True)]
    parts.sort(key=lambda part: (part[0]["variant"] != "", part[0]["model_name"]))
    first = parts[0][0]
    found = [over_images(part) for part in parts]
    scores = [alt.hconcat(*(_bins(p, f) for p, f in row), spacing=40) for row in _twos(parts, found)]
    what = [
        f"Image by image, {first['task']} and answers: {part[0]['model_name']} {_relation(one)}"
        for part, one in zip(parts, found, strict=True)
    ]
    subtitle = [
        f"x: {first['dataset_name']}, an image's mean score at the layer and head that were chosen most often",
        f"y: {first['y_name']}, not adjusted for kinds of question",
        "points: a fifth of the images each; bars: 95 % intervals by cluster",
        "p: permutation of images (of clusters where they hold several), two-sided, each test by itself",
        _jobs([part[0] for part in parts]),
    ]
    return _page(scores, [_too_few(models), *what], subtitle)


def over_images(rows: Sequence[Row]) -> Correlation:
    """The correlation of score and accuracy over one model's images; over means of clusters that hold several."""
    table = pl.DataFrame(rows, infer_schema_length=None).group_by("cluster").agg(pl.mean("x"), pl.mean("y"))
    table = table.sort("cluster")
    return correlation(table["x"].to_numpy(), table["y"].to_numpy(), ["all"] * len(table), draws=1999)


def binned(rows: Sequence[Row]) -> list[Row]:
    """Fifths of the images by score; of each its range and mean of x, and mean y with an interval by cluster."""
    order = sorted(rows, key=lambda r: (r["x"], r["image"]))
    made = []
    for some in np.array_split(np.arange(len(order)), min(_BINS, len(order))):
        part = [order[n] for n in some]
        interval = linearised([r["y"] for r in part], 1.0, ["all"] * len(part), [r["cluster"] for r in part])
        low, high = _wilson(interval)
        made.append(
            {
                "x": sum(r["x"] for r in part) / len(part),
                "x_low": part[0]["x"],
                "x_high": part[-1]["x"],
                "y": interval.mean,
                "y_low": low,
                "y_high": high,
                "n": f"{interval.n} images in {interval.clusters} clusters, {sum(r['n_y'] for r in part)} questions",
            }
        )
    return made


def _wilson(found: Interval) -> tuple[float, float]:
    """Wilson's interval of a share with as many independent items as its error by cluster says.

    One a cluster where clusters do not differ (all right, say): the error would have it that nothing is uncertain.
    """
    share, error = found.mean, found.error
    n = share * (1 - share) / error**2 if error > 0 else found.clusters
    centre = (share + NORMAL**2 / (2 * n)) / (1 + NORMAL**2 / n)
    wide = NORMAL * math.sqrt(share * (1 - share) / n + NORMAL**2 / (4 * n * n)) / (1 + NORMAL**2 / n)
    return centre - wide, centre + wide


def _bins(rows: Sequence[Row], found: Correlation) -> alt.LayerChart | alt.FacetChart:
    first = rows[0]
    values = binned(rows)
    base = alt.Chart(alt.InlineData(values=values)).encode(
        x=alt.X(
            "x:Q",
            scale=_scale([v for value in values for v in (value["x_low"], value["x_high"])]),
            axis=alt.Axis(title=f"{first['task']} score of an image ({first['metric']})", format=".2~f", tickCount=6),
        ),
        y=alt.Y("y:Q", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(title="share answered right", format=".1~f")),
        tooltip=[alt.Tooltip(f"{c}:N") for c in ("x", "y", "y_low", "y_high", "n")],
    )
    colour = _GREY if first["variant"] else _COLOURS[0]
    marks: list[alt.Chart] = [
        base.mark_rule(color=colour, opacity=0.45).encode(x="x_low:Q", x2="x_high:Q"),
        base.mark_rule(color=colour, strokeWidth=2).encode(y="y_low:Q", y2="y_high:Q"),
        base.mark_point(color=colour, filled=True, size=80, opacity=1),
    ]
    title = [
        f"{first['model_name']}, {_part(first)} of layer {first['layer']} head {first['head']}",
        f"{len(rows)} images in {found.n} clusters",
        f"Spearman {_number(found.spearman)}{_pair(found.spearman_interval)}, p {_p(found.spearman_p)}",
    ]
    made: alt.LayerChart | alt.FacetChart = alt.layer(*marks).properties(
        width=_SIZE,
        height=_SIZE * 2 // 3,
        title=alt.TitleParams(title, fontSize=11, fontWeight="normal", frame="bounds"),
    )
    return made


def _relation(found: Correlation) -> str:
    if math.isnan(found.spearman):
        return "not defined"
    p = f"({_number(found.spearman)}, p {_p(found.spearman_p)})"
    if found.spearman_p >= 0.05:
        return f"no relation told from chance {p}"
    return f"{'better where read better' if found.spearman > 0 else 'worse where read better'} {p}"


# --- words ---


def _too_few(models: Sequence[Row]) -> str:
    have = f"{len(models) or 'No'} model{'s' if len(models) != 1 else ''} {'have' if len(models) != 1 else 'has'}"
    return f"{have} both numbers: nothing can be concluded over models ({FEWEST} are needed)."


def _part(row: Row) -> str:
    return "image values" if row["part"] == "value" else f"image tokens ({row['part']})"


def _counts(models: Sequence[Row]) -> str:
    n, clusters = sorted({r["n"] for r in models}), sorted({r["n_clusters"] for r in models})
    return f"n = {_span(n)} of {models[0]['of']} samples in {_span(clusters)} clusters a model"


def _span(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def _without_interval(row: Row) -> str:
    return "" if row["asked_id"] else "; the imported numbers say none"


def _jobs(rows: Sequence[Row]) -> str:
    jobs = ", ".join(
        f"{r['id'][:8]}{' and ' + r['asked_id'][:8] if r['asked_id'] else ''} {r['model_name']}".replace(" ", "\u00a0")
        for r in rows
    )
    return f"jobs: {jobs}"


def _page(panels: Sequence[Any], findings: Sequence[str], subtitle: Sequence[str]) -> alt.VConcatChart:
    title = alt.TitleParams(wrapped(findings, 100), subtitle=wrapped(subtitle, 130), offset=16)
    made: alt.VConcatChart = alt.vconcat(*panels, spacing=30, padding=16, title=title)
    return styled(made, [[one] for one in findings])


def _twos(parts: list[list[Row]], found: list[Correlation]) -> list[list[tuple[list[Row], Correlation]]]:
    both = list(zip(parts, found, strict=True))
    return [both[n : n + 2] for n in range(0, len(both), 2)]


def _scale(values: Sequence[float]) -> alt.Scale:
    """From the smallest to the largest, with room."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.1
    return alt.Scale(domain=[low - room, high + room], nice=False, zero=False)


def _number(value: float) -> str:
    if math.isnan(value):
        return "not defined"
    text = f"{abs(value):.2f}"
    return ("\u2212" if value < 0 and float(text) else "") + (text.removeprefix("0") if abs(value) < 0.995 else text)


def _pair(interval: tuple[float, float]) -> str:
    return "" if math.isnan(interval[0]) else f" [{_number(interval[0])}, {_number(interval[1])}]"


def _p(p: float) -> str:
    return "not defined" if math.isnan(p) else "< .001" if p < 0.001 else f"= {p:.3f}".replace("0.", ".", 1)
