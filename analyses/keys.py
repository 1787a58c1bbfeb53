"""Draws keys.sql: S of every layer and head with the group outlined, its histogram with the cut, and what follows.

Below the maps stand, where there are jobs for them, the values' scores of the group's heads against other heads, and
the answers when text -> image is cut at the group, beside four controls. Where there are none, or no group, words say
so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from vkvdb.agnostic import FLOOR, TO_IMAGE, TO_TEXT, Edges, Found, Head, above_last, find, heads_cut, knockouts
from vkvdb.charting import INK, styled, wrapped
from vkvdb.errors import NothingToDraw
from vkvdb.statistics import Interval, difference, mcnemar

Row = dict[str, Any]

_CELL = 18  # pixels, and more where there are few layers
_WIDTH = 520
_POINTS = 260
_BINS = 16
_GROUP, _REST, _TWIN = "#D55E00", "#0072B2", "#767676"
_MAPS = (("model", False, "as keys are"), ("model", True, "key bias subtracted"), ("random", False, "random twin"))


def chart(rows: pl.DataFrame) -> alt.VConcatChart:
    """All models, one below the other. Raises NothingToDraw where none was calibrated."""
    subjects = rows.filter(kind="head")["subject"].unique(maintain_order=True).to_list()
    models = [_Model(rows.filter(subject=subject)) for subject in subjects]
    if not models:
        raise NothingToDraw(what="keys", hint="type: vkvdb calibrate --model MODEL")
    made: alt.VConcatChart = alt.vconcat(*(one.draw() for one in models), spacing=48, padding=16)
    return styled(made, (one.finding() for one in models))


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
        self.downstream = rows.filter(kind="downstream")

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
            panels += self._compared() + self._answers() + self._values()
        title = alt.TitleParams(wrapped(self.finding(), 110), subtitle=self._subtitle())
        made: alt.VConcatChart = alt.vconcat(*panels, spacing=22, title=title).resolve_legend(color="independent")
        return made

    # --- words ---

    def finding(self) -> list[str]:
        """What is found in the model, and in its random twin."""
        found, name = self.group, self.first["subject_name"]
        total = len(self.s)
        if found.heads:
            layers = _ranges({layer for layer, _ in found.heads})
            first = f"{name}: the keys of {len(found.heads)} of {total} heads hardly depend on the image, in {layers}"
        else:
            first = f"{name}: no group of input-agnostic keys among {total} heads ({found.why})"
        twin = self.found.get(("random", False))
        if twin is None:
            beside = "no random twin was calibrated beside it"
        elif twin.heads:
            beside = f"its random twin has such a group too: {len(twin.heads)} heads"
        else:
            beside = f"its random twin has none ({twin.why})"
        return [first, beside, *(self._effects() if found.heads else [])]

    def _effects(self) -> Iterator[str]:
        """What cutting the group changes, beside as many random heads of its layers."""
        changed = (
            ("text -> image", self._cut_answers(), "the accuracy of answers"),
            ("image -> image", self._cut_values(), "what values of later layers score"),
        )
        for cut, rows, what in changed:
            for own in (r for r in rows if r["name"] == "agnostic"):
                drawn = [r for r in rows if r["of"] == own["of"] and r["name"].startswith("random")]
                apart = "" if own["low"] > 0 or own["high"] < 0 else ", not told apart from none"
                beside = f"; as many random heads: {_range(drawn)}" if drawn else "; no control was run"
                yield f"cutting {cut} there changes {what} ({own['of']}) by {_told(own)}{apart}{beside}"

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
            if not len(self.downstream):
                told.append("values of later layers: no knockout was scored yet (vkvdb knockout --task correspondence)")
        else:
            told.append("there is no group: neither values are compared nor anything is cut")
        jobs = {r["id"][:8]: r["model_name"] for those in self.rows.values() for r in those}
        told.append("jobs: " + ", ".join(f"{job} {name}" for job, name in jobs.items()))
        return wrapped(told, 120)

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
                    one.mark_rule(color=INK, strokeDash=dash),
                    one.mark_text(color=INK, align=side, dx=3 if side == "left" else -3, fontSize=10).encode(
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

    def _names(self, edges: Edges) -> dict[frozenset[Head], str]:
        """{heads that are cut: what the condition is called}; of edges from image to image, above the last layer."""
        s = above_last(self.s) if edges == TO_IMAGE else self.s
        names: dict[frozenset[Head], str] = {}
        for name, texts in knockouts(self.group.heads & s.keys(), s, seed=0, edges=edges).items():
            names.setdefault(heads_cut(texts, self.s, edges), name)  # draws may be equal
        return names

    def _cut_answers(self) -> list[Row]:
        """Accuracy of answers under each knockout minus that without, in the order of conditions."""
        names, rows = self._names(TO_TEXT), []
        for part in self.answers.partition_by(["dataset_name", "condition", "id"], maintain_order=True):
            one = part.row(0, named=True)
            cut = heads_cut(json.loads(one["condition"]), self.s)
            before, after = (part[c].to_numpy().astype(float) for c in ("right_before", "right_after"))
            found = difference(after, before, 1.0, np.zeros(len(part)), part["cluster"])
            lost, gained = int((before > after).sum()), int((before < after).sum())
            name = names.get(cut) or _other(cut, self.group.heads)
            words = f"{name} ({len(cut)} heads), {one['dataset_name']}"
            test = f"{before.mean():.2f} to {after.mean():.2f}, McNemar p = {mcnemar(lost, gained):.3g}"
            rows.append({**_interval(found), "name": name, "of": one["dataset_name"], "what": words, "against": test})
        return _ordered(rows, names.values())

    def _answers(self) -> list[Any]:
        rows = self._cut_answers()
        title = "accuracy of answers when text -> image is cut, minus that without (paired by question, 95 % intervals)"
        return [_points(rows, title, "difference of accuracy")] if rows else []

    def _cut_values(self, *, by_layer: bool = False) -> list[Row]:
        """What image values score under each knockout minus what they score without: later layers, or every layer."""
        names, rows = self._names(TO_IMAGE), []
        own = self.group.heads & above_last(self.s).keys()
        layers = pl.col("layer").is_not_null() if by_layer else pl.col("layer").is_null()
        for one in self.downstream.filter(layers).to_dicts():
            cut = heads_cut(json.loads(one["condition"]), self.s, TO_IMAGE)
            name = names.get(cut) or _other(cut, own)
            parameters = "" if one["set_of_parameters"] == "{}" else f" {one['set_of_parameters']}"
            of = f"{one['task']}{parameters}, {one['dataset_name']}, {one['metric']}"
            ends = {end: one["value"] if one[end] is None else one[end] for end in ("low", "high")}
            counts = {"n": one["n"], "clusters": one["n_clusters"], "layer": one["layer"], "job": one["id"][:8]}
            told = {"against": f"{one['score_before']:.3f} to {one['score_after']:.3f}"}
            words = {"name": name, "of": of, "what": f"{name} ({len(cut)} heads), {of}"}
            rows.append({**counts, **ends, **told, **words, "value": one["value"]})
        return _ordered(rows, names.values())

    def _values(self) -> list[Any]:
        """What values of later layers lose: by condition, and by layer."""
        rows, curves = self._cut_values(), self._cut_values(by_layer=True)
        if not rows:
            return []
        title = [
            "what image values score when image -> image is cut, minus what they score without: mean over all heads",
            "of the layers after the first one that the group is cut in (paired by sample, 95 % intervals)",
        ]
        tasks = dict.fromkeys(r["of"] for r in rows)
        by_layer = [_curves([r for r in curves if r["of"] == of], of) for of in tasks]
        return [_points(rows, title, "difference of the score"), *by_layer]


def _other(cut: frozenset[Head], group: frozenset[Head]) -> str:
    """What a cut is called that is no condition by the seed 0: as many other heads of the group's layers are a draw."""
    layers = [sorted(layer for layer, _ in heads) for heads in (cut, group)]
    return "others of these layers" if layers[0] == layers[1] and not cut & group else "another cut"


def _ordered(rows: list[Row], names: Iterable[str]) -> list[Row]:
    order = {name: place for place, name in enumerate(names)}
    return sorted(rows, key=lambda r: (r["of"], order.get(r["name"], len(order))))


def _told(row: Row) -> str:
    return f"{_signed(row['value'])} [{_signed(row['low'])}, {_signed(row['high'])}], n = {row['n']}"


def _signed(value: float) -> str:
    return f"{round(value, 3) + 0.0:+.3f}"  # adding 0 makes -0 plain


def _range(rows: Sequence[Row]) -> str:
    values = [_signed(value) for value in sorted(r["value"] for r in rows)]
    return values[0] if len(values) == 1 else f"{values[0]} to {values[-1]} in {len(values)} draws"


def _interval(found: Interval) -> Row:
    return {"value": found.mean, "low": found.low, "high": found.high, "n": found.n, "clusters": found.clusters}


def _curves(rows: Sequence[Row], of: str) -> Any:
    """The difference layer by layer: the group, random draws and those that depend most on the image; not all heads."""
    colours = {"agnostic": _GROUP, "dependent": _REST}
    shown = [{**r, "colour": colours.get(r["name"], _TWIN)} for r in rows if r["name"] != "all"]
    last = max(r["layer"] for r in shown)
    step = next(s for s in (1, 2, 4, 8, 16, 32, 64) if last / s <= 16)
    axis = alt.Axis(title="decoder layer", values=list(range(0, last + 1, step)), grid=False)
    x = alt.X("layer:Q", scale=alt.Scale(domain=[0, max(1, last)], nice=False), axis=axis)
    y = alt.Y("value:Q", axis=alt.Axis(title="difference of the score", tickCount=5))
    told = [alt.Tooltip(f"{c}:N") for c in ("name", "layer", "value", "low", "high", "n", "clusters", "job")]
    zero = alt.Chart(alt.InlineData(values=[{"y": 0}])).mark_rule(color="#999", strokeDash=[3, 3]).encode(y="y:Q")
    marks = [zero]
    for colour in (_TWIN, _REST, _GROUP):  # the group last, so on top
        those = [r for r in shown if r["colour"] == colour]
        base = alt.Chart(alt.InlineData(values=those)).encode(x=x, detail="job:N", tooltip=told)
        if colour == _GROUP:
            marks.append(base.mark_area(color=colour, opacity=0.2).encode(y="low:Q", y2="high:Q"))
        point = alt.OverlayMarkDef(size=22, color=colour)
        marks.append(base.mark_line(color=colour, strokeWidth=1 if colour == _TWIN else 2, point=point).encode(y=y))
    words = "orange the group with its interval, blue the heads that depend most on the image, grey random ones"
    title = alt.TitleParams(f"the same by layer: {of}", subtitle=words, fontSize=12)
    made: Any = alt.layer(*marks).properties(width=_WIDTH, height=170, title=title)
    return made


def _points(rows: Sequence[Mapping[str, Any]], title: str | list[str], axis: str) -> Any:
    """A line of points with intervals a row, and zero."""
    values = [{**r, "label": f"{r['what']}, {r['against']}: {_told(dict(r))}"} for r in rows]
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
