"""Draws encoder.sql: a panel a task, a row a place, and beside each how far the image values are from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import altair as alt
import polars as pl

from vkvdb.charting import styled, wrapped

Row = dict[str, Any]

_ROW = 22  # pixels
_WIDTH = 430
_GREY = "#767676"
_PLACES = {  # place: (label, colour); those of an encoder begin with `encoder`
    "subject": ("image values, best head", "#0072B2"),
    "tower": ("its vision tower", "#B87F00"),
    "projector": ("its projector", "#D55E00"),
    "random decoder": ("random decoder under it", _GREY),
    "random weights": ("random weights", _GREY),
    "blank image": ("blank image", _GREY),
    "raw pixels": ("raw pixels", _GREY),
    "colour statistics": ("colour statistics", _GREY),
}
_ENCODER = "#009E73"


def chart(rows: pl.DataFrame) -> alt.VConcatChart:
    """A panel for each task of each model, one above the other."""
    keys = ["dataset_name", "task", "set_of_parameters", "metric", "subject_name", "subject"]
    parts = [part.to_dicts() for part in rows.partition_by(keys, maintain_order=True)]
    made: alt.VConcatChart = alt.vconcat(*(panel(part) for part in parts), spacing=36, padding=16)
    return styled(made, ([finding(part)] for part in parts))


def panel(rows: Sequence[Row]) -> alt.LayerChart | alt.FacetChart:
    """One task of one model."""
    first = next((r for r in rows if r["place"] == "subject"), rows[0])
    labels = {r["place"]: _label(r["place"]) for r in rows}
    values = [
        {
            "y": labels[r["place"]][0],
            "colour": labels[r["place"]][1],
            "value": r["value"],
            "low": r["value"] if r["low"] is None else max(0.0, r["low"]),
            "high": r["value"] if r["high"] is None else r["high"],
            "in_sample": r["in_sample"],
            "told": f"{_interval(r['value'], r['low'], r['high'])}  {_where(r)}",
            "apart": ""
            if r["difference"] is None
            else _interval(r["difference"], r["difference_low"], r["difference_high"], sign=True),
            "model": r["model_name"],
            "job": r["id"][:8],
            "n": f"{r['n']} in {r['n_clusters']} clusters",
        }
        for r in sorted(rows, key=lambda r: (-r["value"], r["place"]))
    ]
    top = max(v["high"] for v in values) * 1.02
    if max(v["value"] for v in values) <= 1:  # a share; the interval of two clusters may reach beyond
        top = min(top, 1.02)
    base = alt.Chart(alt.InlineData(values=values)).encode(
        y=alt.Y(
            "y:N",
            sort=[v["y"] for v in values],
            title=None,
            axis=alt.Axis(labelLimit=320, domain=False, ticks=False, labelFontSize=11),
        ),
        color=alt.Color("colour:N", scale=None),
        tooltip=[alt.Tooltip(f"{c}:N") for c in ("model", "told", "apart", "n", "job")],
    )
    scale = alt.Scale(domain=[0, top], nice=False)
    x = alt.X("value:Q", scale=scale, axis=alt.Axis(title=first["metric"], format=".2~f", tickCount=6))
    texts = [
        base.mark_text(align="left", x=_WIDTH + 14, fontSize=11).encode(text="told:N"),
        base.mark_text(align="left", x=_WIDTH + 275, fontSize=11).encode(text="apart:N"),
    ]
    heads = alt.Chart(alt.InlineData(values=[{}]))
    texts += [
        heads.mark_text(align="left", x=at, y=-8, fontSize=11, fontStyle="italic", color=_GREY, text=words).encode()
        for at, words in ((_WIDTH + 14, "mean of two-fold choices"), (_WIDTH + 275, "image values less this, paired"))
    ]
    marks = [
        base.mark_rule(strokeWidth=2, clip=True).encode(x=alt.X("low:Q", scale=scale), x2="high:Q"),
        base.mark_point(filled=True, size=70, opacity=1).encode(x=x),
        base.mark_tick(thickness=1, size=10, opacity=0.6).encode(x=alt.X("in_sample:Q", scale=scale)),
    ]
    made: alt.LayerChart | alt.FacetChart = alt.layer(*marks, *texts).properties(
        width=_WIDTH,
        height=_ROW * len(values),
        title=alt.TitleParams(wrapped([finding(rows)], 110), subtitle=_subtitle(rows, first), offset=18),
    )
    return made


def finding(rows: Sequence[Row]) -> str:
    """What the paired differences say, in words that they support: zero in the interval is no difference."""
    said: dict[str, list[str]] = {"more than": [], "as much as": [], "less than": []}
    for row in rows:
        if row["difference"] is None or row["difference_low"] is None:
            continue
        name = _label(row["place"])[0]
        how = "more than" if row["difference_low"] > 0 else "less than" if row["difference_high"] < 0 else "as much as"
        if row["place"] in ("tower", "projector") or (row["place"].startswith("encoder") and row["is_chosen"]):
            said[how].append(name)
    verbs = {"more than": "hold more than", "less than": "hold less than", "as much as": "are not told apart from"}
    clauses = [f"{verb} {_listed(said[how])}" for how, verb in verbs.items() if said[how]]
    subject = next((r for r in rows if r["place"] == "subject"), None)
    if subject is None or not clauses:
        return f"{rows[0]['task']}: nothing to compare the image values with"
    return f"{subject['task']}: the image values of {subject['subject_name']} {', '.join(clauses)}"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _label(place: str) -> tuple[str, str]:
    """What a place is called, and its colour; of a twin with another seed, the seed behind it."""
    known = next((known for known in _PLACES if place == known or place.startswith(f"{known} ")), None)
    return (_PLACES[known][0] + place.removeprefix(known), _PLACES[known][1]) if known else (place, _ENCODER)


def _subtitle(rows: Sequence[Row], first: Row) -> list[str]:
    parameters = "" if first["set_of_parameters"] == "{}" else f" {first['set_of_parameters']}"
    counted = f"n = {first['n']} of {first['of']} samples in {first['n_clusters']} clusters"
    jobs = ", ".join(dict.fromkeys(f"{r['id'][:8]} {r['model_name']}" for r in rows))
    return [
        f"{first['dataset_name']}{parameters}, {counted}; bars: 95 % intervals by cluster; small tick: in-sample best",
        *wrapped([f"jobs: {jobs}"], 140),
    ]


def _where(row: Row) -> str:
    if not row["is_chosen"]:
        return f"(layer {row['layer']}, fixed)"
    if row["choices"] is None or row["place"] in ("tower", "projector", "raw pixels", "colour statistics"):
        return ""
    head = f" head {row['head']}" if row["head"] >= 0 else ""
    return f"(layer {row['layer']}{head} in {row['wins']} of {row['choices']})"


def _number(value: float, *, sign: bool = False) -> str:
    if math.isnan(value):
        return "-"
    text = f"{abs(value):.2f}"
    text = text.removeprefix("0") if abs(value) < 0.995 else text
    return ("\u2212" if value < 0 else "+" if sign else "") + text


def _interval(value: float, low: float | None, high: float | None, *, sign: bool = False) -> str:
    if low is None or high is None:
        return _number(value, sign=sign)
    return f"{_number(value, sign=sign)} [{_number(low, sign=sign)}, {_number(high, sign=sign)}]"
