"""Draws keys.sql: S of every layer and head with the group outlined, its histogram with the cut, and what follows.

Below the maps stand, where there are jobs for them, the values' scores of the group's heads against other heads, and
the answers when text -> image is cut at the group, beside four controls. Where there are none, or no group, words say
so.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from vkvdb.agnostic import FLOOR, Found, Head, find, heads_cut, knockouts
from vkvdb.errors import NothingToDraw
from vkvdb.statistics import Interval, difference, mcnemar

Row = dict[str, Any]

_CELL = 18  # pixels, and more where there are few layers
_WIDTH = 520
_POINTS = 260
_BINS = 16
_GROUP, _REST, _TWIN, _INK = "#D55E00", "#0072B2", "#767676", "#333333"
_MAPS = (("model", False, "as keys are"), ("model", True, "key bias subtracted"), ("random", False, "random twin"))


def chart(rows: pl.DataFrame) -> alt.VConcatChart:
    """All models, one below the other. Raises NothingToDraw where none was calibrated."""
    subjects = rows.filter(kind="head")["subject"].unique(maintain_order=True).to_list()
    drawn = [_Model(rows.filter(subject=subject)).draw() for subject in subjects]
    if not drawn:
        raise NothingToDraw(what="keys", hint="type: vkvdb calibrate --model MODEL")
    axis = {"labelColor": _INK, "titleColor": _INK, "gridColor": "#EEEEEE", "domainColor": "#AAA", "tickColor": "#AAA"}
    title = {"anchor": "start", "frame": "group", "color": "#111", "subtitleColor": "#555"}
    made: alt.VConcatChart = alt.vconcat(*drawn, spacing=48, padding=16)
    made.config = alt.Config(view={"stroke": None}, axis=axis, title={**title, "fontSize": 14, "subtitleFontSize": 11})
    return made


class _Model:
    """One model: what is found, and its panels."""

    def __init__(self, rows: pl.DataFrame) -> None:
        heads = rows.filter(kind="head").to_dicts()
        self.first = next(r for r in heads if r["role"] == "model")
        self.rows = {
            (role, unbiased): [r for r in heads if (r["role"], r["unbiased"]) == (role, unbiased)]
            for role, unbiased, _ in _MAPS
        }
        self.found = {key: find(those) for key, those in self.rows.items() if those}
        self.asked = "model", bool(rows.filter(kind="head")["group_unbiased"][0])
        self.s = {(r["layer"], r["head"]): r["value"] for r in self.rows[self.asked] if r["half"] == 0}
        self.scores = rows.filter(kind="score")
        self.answers = rows.filter(kind="answer")

    @property
    def group(self) -> Found:
        """What is found in the model as it was asked for."""
        return self.found[self.asked]

    def draw(self) -> alt.VConcatChart:
        """The panels under their title."""
        maps = [one for one in _MAPS if one[:2] in self.found]
        drawn = [self._map(*one, legend=one is maps[-1]) for one in maps]
        beside = len(maps) if len({layer for layer, _ in self.s}) <= 12 else 1
        panels: list[Any] = [alt.concat(*drawn, columns=beside, spacing=16).resolve_legend(color="independent")]
        panels += [self._histogram()]
        if self.group.heads:
            panels += self._compared() + self._cut()
        title = alt.TitleParams(self._finding(), subtitle=self._subtitle())
        made: alt.VConcatChart = alt.vconcat(*panels, spacing=22, title=title).resolve_legend(color="independent")
        return made

    # --- words ---

    def _finding(self) -> list[str]:
        found, name = self.group, self.first["subject_name"]
        total = len(self.s)
        if found.heads:
            layers = _ranges({layer for layer, _ in found.heads})
            first = f"{name}: the keys of {len(found.heads)} of {total} heads hardly depend on the image, in {layers}"
        else:
            first = f"{name}: no group of input-agnostic keys among {total} heads ({found.why})"
        twin = self.found.get(("random", False))
        if twin is None:
            return [first, "no random twin was calibrated beside it"]
        same = f"has such a group too: {len(twin.heads)} heads" if twin.heads else f"has none ({twin.why})"
        return [first, f"its random twin {same}"]

    def _subtitle(self) -> list[str]:
        first, found = self.first, self.group
        values = sorted(self.s.values())
        images = f"n = {first['n']} of {first['of']} images of {first['dataset_name']}, seed {first['seed']}"
        spread = f"S from {_short(values[0])} to {_short(values[-1])}; Otsu's cut {_short(found.cut)}"
        below = f"{len(found.below)} heads below it, half of it {len(found.strict)}, twice {len(found.loose)}"
        told = [
            f"S = variance of a key over images / its mean squared norm, averaged over positions of the grid; {images}",
            f"{spread} has {below}; one mode: p = {found.p_value:.3f} (dip and gap)",
            f"stability: what lies below the cut in two halves of the images has Jaccard {_short(found.jaccard)}",
        ]
        other = self.found.get(("model", not self.asked[1]))
        if not first["has_bias"]:
            told.append("the key projection has no bias: nothing is subtracted")
        elif other is not None:
            how = "with the key bias" if self.asked[1] else "with the key bias subtracted"
            told.append(f"{how}: " + (f"{len(other.heads)} heads" if other.heads else f"no such group ({other.why})"))
        if found.heads:
            told += [] if len(self.scores) else ["values: not scored yet (vkvdb score --task ...)"]
            told += [] if len(self.answers) else ["answers: no knockout was asked yet (vkvdb knockout)"]
        else:
            told.append("there is no group: neither values are compared nor anything is cut")
        jobs = {r["id"][:8]: r["model_name"] for those in self.rows.values() for r in those}
        told.append("jobs: " + ", ".join(f"{job} {name}" for job, name in jobs.items()))
        return [line for text in told for line in textwrap.wrap(text, 120, break_on_hyphens=False)]

    # --- S ---

    def _map(self, role: str, unbiased: bool, words: str, *, legend: bool) -> Any:
        found = self.found[role, unbiased]
        s = {(r["layer"], r["head"]): r["value"] for r in self.rows[role, unbiased] if r["half"] == 0}
        low = min(max(r["value"], FLOOR) for those in self.rows.values() for r in those if r["half"] == 0)
        values = [
            {"layer": layer, "head": head, "S": value, "drawn": max(value, FLOOR), "in": (layer, head) in found.heads}
            for (layer, head), value in s.items()
        ]
        x = alt.X("layer:O", axis=alt.Axis(title="decoder layer", labelAngle=0))
        base = alt.Chart(alt.InlineData(values=values)).encode(x=x, y=alt.Y("head:O", title="KV head"))
        scale = alt.Scale(scheme="viridis", type="log", domain=[min(low, 0.1), 1], clamp=True)
        shown = alt.Legend(title="S (log)", gradientLength=90) if legend else None
        cells = base.mark_rect().encode(
            color=alt.Color("drawn:Q", scale=scale, legend=shown),
            tooltip=["layer:O", "head:O", alt.Tooltip("S:Q", format=".3g")],
        )
        outlined = base.transform_filter("datum.in").mark_rect(fill=None, stroke=_GROUP, strokeWidth=2.5)
        layers, heads = ({key[i] for key in s} for i in (0, 1))
        cell = max(_CELL, min(30, 240 // len(layers)))
        size = {"width": cell * len(layers), "height": cell * len(heads)}
        count = f"{len(found.heads)} outlined" if found.heads else "no group"
        made: Any = alt.layer(cells, outlined).properties(
            **size, title=alt.TitleParams(f"S, {words} ({count})", fontSize=12)
        )
        return made

    def _histogram(self) -> Any:
        """How many heads have which S, in the model and its twin, with the cut and half and twice of it."""
        found = self.group
        twin = [max(r["value"], FLOOR) for r in self.rows["random", False] if r["half"] == 0]
        own = [max(v, FLOOR) for v in self.s.values()]
        low, high = math.log10(min(own + twin)) - 0.05, math.log10(max(own + twin)) + 0.05
        edges = np.linspace(low, high, _BINS + 1)

        def bars(values: Sequence[float], **more: Any) -> list[Row]:
            counts = np.histogram(np.log10(values), edges)[0]
            spans = zip(counts, edges[:-1], edges[1:], strict=True)
            return [{"heads": int(n), "from": 10**a, "to": 10**b, "zero": 0, **more} for n, a, b in spans]

        scale = alt.Scale(type="log", domain=[10**low, 10**high], nice=False)
        x = alt.X("from:Q", scale=scale, axis=alt.Axis(title="S (log)", tickCount=8, grid=False, format="~g"))
        y = alt.Y("heads:Q", axis=alt.Axis(title="heads", tickMinStep=1, tickCount=5))
        marks = []
        groups = [
            ([h for h in self.s if h in found.heads], _GROUP),
            ([h for h in self.s if h not in found.heads], _REST),
        ]
        for those, colour in groups:
            values = bars([max(self.s[h], FLOOR) for h in those]) if those else []
            bar = alt.Chart(alt.InlineData(values=[v for v in values if v["heads"]])).mark_rect(
                color=colour, opacity=0.75
            )
            marks.append(bar.encode(x=x, x2="to:Q", y=y, y2="zero:Q", tooltip=["heads:Q"]))
        if twin:
            outline = alt.Chart(alt.InlineData(values=bars(twin))).mark_line(color=_TWIN, interpolate="step-after")
            marks.append(outline.encode(x=x, y=y))
        cuts = [(found.cut, [1, 0], "cut"), (found.cut / 2, [3, 3], "cut / 2"), (found.cut * 2, [3, 3], "2 x cut")]
        for at, dash, label in cuts:
            side: Any = "right" if at < found.cut else "left"  # the labels would touch
            if 10**low < at < 10**high:
                one = alt.Chart(alt.InlineData(values=[{"from": at, "label": label}])).encode(x=x)
                marks += [
                    one.mark_rule(color=_INK, strokeDash=dash),
                    one.mark_text(color=_INK, align=side, dx=3 if side == "left" else -3, fontSize=10).encode(
                        y=alt.value(-5), text="label:N"
                    ),
                ]
        words = "heads by S: blue the model" + (", orange the group" if found.heads else "")
        words += ", grey line its random twin" if twin else ""
        title = alt.TitleParams(words, fontSize=12, offset=14)
        made: Any = alt.layer(*marks).properties(width=_WIDTH, height=150, title=title)
        return made

    # --- what follows ---

    def _compared(self) -> list[Any]:
        """Scores of the values of the group's heads minus those of others."""
        rows = []
        keys = ["dataset_name", "task", "metric", "job"]
        for part in self.scores.partition_by(keys, maintain_order=True):
            one = part.row(0, named=True)
            for name, column in (("all other heads", "other"), ("other heads of these layers", "beside")):
                both = part.filter(pl.col(column).is_not_null())
                if len(both):
                    weights = both["lower_weight"].to_numpy(), both[f"{column}_weight"].to_numpy()
                    found = difference(both["lower"], both[column], weights, both["grp"], both["cluster"])
                    words = f"{one['task']}, {one['dataset_name']}, {one['metric']}"
                    rows.append({**_interval(found), "what": words, "against": f"minus {name}"})
        if not rows:
            return []
        how = "mean score minus that of others (paired by sample, 95 % intervals)"
        title = f"values of the {len(self.group.heads)} heads, {how}"
        return [_points(rows, title, "difference of the score")]

    def _cut(self) -> list[Any]:
        """Accuracy of answers under each knockout minus that without."""
        names: dict[frozenset[Head], str] = {}
        for name, texts in knockouts(self.group.heads, self.s, seed=0).items():
            names.setdefault(heads_cut(texts, self.s), name)  # draws may be equal
        rows = []
        for part in self.answers.partition_by(["dataset_name", "condition", "id"], maintain_order=True):
            one = part.row(0, named=True)
            cut = heads_cut(json.loads(one["condition"]), self.s)
            before, after = (part[c].to_numpy().astype(float) for c in ("right_before", "right_after"))
            found = difference(after, before, 1.0, np.zeros(len(part)), part["cluster"])
            lost, gained = int((before > after).sum()), int((before < after).sum())
            name = names.get(cut) or ("others of these layers" if self._is_control(cut) else "another cut")
            words = f"{name} ({len(cut)} heads), {one['dataset_name']}"
            test = f"{before.mean():.2f} to {after.mean():.2f}, McNemar p = {mcnemar(lost, gained):.3g}"
            rows.append({**_interval(found), "name": name, "what": words, "against": test})
        if not rows:
            return []
        order = {name: place for place, name in enumerate(names.values())}
        rows.sort(key=lambda r: order.get(r["name"], len(order)))
        title = "accuracy of answers when text -> image is cut, minus that without (paired by question, 95 % intervals)"
        return [_points(rows, title, "difference of accuracy")]

    def _is_control(self, cut: frozenset[Head]) -> bool:
        """Whether these are as many other heads of the group's layers: a draw by another seed."""
        layers = [sorted(layer for layer, _ in heads) for heads in (cut, self.group.heads)]
        return layers[0] == layers[1] and not cut & self.group.heads


def _interval(found: Interval) -> Row:
    return {"value": found.mean, "low": found.low, "high": found.high, "n": found.n, "clusters": found.clusters}


def _points(rows: Sequence[Mapping[str, Any]], title: str, axis: str) -> Any:
    """A line of points with intervals a row, and zero."""
    values = []
    for r in rows:
        interval = f"{r['value']:+.3f} [{r['low']:+.3f}, {r['high']:+.3f}], n = {r['n']}"
        values.append({**r, "label": f"{r['what']}, {r['against']}: {interval}"})
    y = alt.Y("label:N", sort=None, axis=None)
    base = alt.Chart(alt.InlineData(values=values)).encode(y=y)
    zero = alt.Chart(alt.InlineData(values=[{"x": 0}])).mark_rule(color="#999", strokeDash=[3, 3]).encode(x="x:Q")
    x = alt.X("value:Q", axis=alt.Axis(title=axis, tickCount=5))
    bars = base.mark_rule(color=_GROUP, size=1.6).encode(x=alt.X("low:Q"), x2="high:Q")
    points = base.mark_point(color=_GROUP, filled=True, size=60, opacity=1).encode(x=x)
    labels = base.mark_text(align="left", fontSize=11).encode(x=alt.value(_POINTS + 12), text="label:N")
    made: Any = alt.layer(zero, bars, points, labels).properties(
        width=_POINTS, height=22 * len(values), title=alt.TitleParams(title, fontSize=12)
    )
    return made


def _ranges(layers: Iterable[int]) -> str:
    """`layer 5`, or `layers 3-5, 8`."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    words = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"layer {words}" if words.isdigit() else f"layers {words}"


def _short(value: float) -> str:
    return "not defined" if math.isnan(value) else f"{value:.2g}"
