"""Draws prefix.sql: what each text before the image changes, layer by layer, against filler of the same length.

A block is one model, dataset and task. Its first panel is the score under filler; the others, one a condition, are the
difference to it. The number that a block is named after is the mean over all layers, which nobody chose.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import altair as alt
import polars as pl

from vkvdb.charting import INK, styled, wrapped
from vkvdb.errors import NothingToDraw

Row = dict[str, Any]

_WIDTH, _HEIGHT = 170, 190
_GREY = "#767676"
_CONDITIONS = {  # name: colour
    "right class": "#0072B2",
    "generic": "#E69F00",
    "wrong class": "#D55E00",
    "random words": "#009E73",
    "none": _GREY,
}
_PARTS = {
    "value": "image values",
    "key_unrotated": "image keys before rotation (key_unrotated)",
    "key": "image keys as cached, after rotation (key)",
    "hidden": "hidden states",
}


def chart(rows: pl.DataFrame) -> alt.VConcatChart:
    """All blocks, one below the other. Raises NothingToDraw where nothing was scored beside a filler."""
    parts = rows.partition_by("filler_id", "metric", "part", maintain_order=True)
    blocks = [_Block(part.to_dicts()) for part in parts]
    if not blocks:
        raise NothingToDraw(what="the prefix conditions", hint="type: vkvdb prefix --model MODEL --task TASK")
    made: alt.VConcatChart = alt.vconcat(*(one.draw() for one in blocks), spacing=48, padding=16)
    return styled(made, (one.finding() for one in blocks))


class _Block:
    """One filler job and all that is held against it, at one part."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.first = rows[0]
        order = list(_CONDITIONS)
        keys = sorted({(order.index(r["condition"]), r["words"], r["id"]) for r in rows})
        self.curves = [[r for r in rows if r["id"] == job and r["layer"] is not None] for _, _, job in keys]
        self.means = [next(r for r in rows if r["id"] == job and r["layer"] is None) for _, _, job in keys]
        shown = [v for r in rows for v in (r["delta"], r["low"], r["high"]) if v is not None]
        edge = max(0.005, *(abs(v) for v in shown)) * 1.08
        self.domain = [-edge, edge]
        self.last = max(r["layer"] for curve in self.curves for r in curve)

    # --- words ---

    def finding(self) -> list[str]:
        """What the numbers say of the mean over layers, and how many layers' intervals leave out 0."""
        first = self.first
        lines = [
            f"{first['model_name']}, {first['task']}: a text before the image against filler as long, mean over layers"
        ]
        for mean, curve in zip(self.means, self.curves, strict=True):
            apart = [r for r in curve if _told_apart(r)]
            up = sum(r["delta"] > 0 for r in apart)
            counts = f"above it in {up}, below it in {len(apart) - up} of {len(curve)} layers"
            lines.append(f"{_name(mean)}: {_interval(mean)}, {_verdict(mean)}; {counts}")
        return lines

    def subtitle(self) -> list[str]:
        """What was compared, how each layer was read, and which jobs are drawn."""
        first = self.first
        parameters = "" if first["set_of_parameters"] == "{}" else f" {first['set_of_parameters']}"
        counts = sorted({r["n"] for r in self.means})
        n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        what = f"task {first['task']}{parameters} on {first['dataset_name']}, metric {first['metric']}"
        clusters = max(r["n_clusters"] for r in self.means)
        jobs = ", ".join(f"{r['condition']} {r['id'][:8]}" for r in self.means)
        told = [
            f"{_PARTS[first['part']]}, {what}; all texts are {first['tokens']} tokens, which move the image",
            f"n = {n} of {first['of']} samples in {clusters} clusters, paired; bands: 95 % by cluster, layer by layer",
            "each layer is read at the head that is best under filler on the other half of the clusters",
            f"jobs: filler {first['filler_id'][:8]}, {jobs}",
        ]
        return wrapped(told, 150)

    # --- panels ---

    def draw(self) -> alt.HConcatChart:
        """The panels under their title."""
        panels = [self._filler(), *(self._condition(n) for n in range(len(self.curves)))]
        title = alt.TitleParams(wrapped(self.finding(), 150), subtitle=self.subtitle())
        made: alt.HConcatChart = alt.hconcat(*panels, spacing=14, title=title)
        return made

    def _x(self) -> alt.X:
        step = next(s for s in (1, 2, 4, 8, 16, 32, 64) if self.last / s <= 8)
        axis = alt.Axis(values=list(range(0, self.last + 1, step)), grid=False, title="decoder layer")
        return alt.X("layer:Q", scale=alt.Scale(domain=[0, max(1, self.last)], nice=False), axis=axis)

    def _filler(self) -> alt.LayerChart:
        """The score under filler, of the condition with most samples."""
        curve = max(self.curves, key=lambda c: c[0]["n"])
        y = alt.Y("before:Q", scale=alt.Scale(zero=True), axis=alt.Axis(title=self.first["metric"], tickCount=5))
        base = _on(curve).encode(x=self._x(), y=y)
        return self._panel([base.mark_line(color=INK, strokeWidth=2)], "filler: score")

    def _condition(self, number: int) -> alt.LayerChart:
        mean, curve = self.means[number], self.curves[number]
        colour = _CONDITIONS[mean["condition"]]
        scale = alt.Scale(domain=self.domain, nice=False)
        axis = (
            alt.Axis(title="difference to filler", tickCount=5, format="+.3~f")
            if number == 0
            else alt.Axis(title=None, tickCount=5, labels=False, ticks=False, domain=False)
        )
        base = _on(curve).encode(x=self._x())
        zero = alt.Chart(alt.InlineData(values=[{"delta": 0}])).mark_rule(color="#999", strokeDash=[3, 3])
        marks: list[alt.Chart] = [
            zero.encode(y=alt.Y("delta:Q", scale=scale, axis=axis)),
            base.mark_area(color=colour, opacity=0.2).encode(y=alt.Y("low:Q", scale=scale, axis=axis), y2="high:Q"),
            base.mark_line(color=colour, strokeWidth=2, point=alt.OverlayMarkDef(size=18, color=colour)).encode(
                y=alt.Y("delta:Q", scale=scale, axis=axis)
            ),
        ]
        return self._panel(marks, f"{_name(mean)}")

    def _panel(self, marks: Sequence[alt.Chart], words: str) -> alt.LayerChart:
        title = alt.TitleParams(textwrap.wrap(words, 28), fontSize=11)
        layer: Any = alt.layer(*marks)
        made: alt.LayerChart = layer.properties(width=_WIDTH, height=_HEIGHT, title=title)
        return made


_TOOLTIP = [
    alt.Tooltip(f"{name}:N", title=title)
    for name, title in {
        "name": "condition",
        "layer": "layer",
        "shown": "difference",
        "scores": "score",
        "counts": "n",
        "read_heads": "heads of the two halves",
        "job": "job",
    }.items()
]


def _on(rows: Sequence[Row]) -> alt.Chart:
    values = [
        {
            **{k: r[k] for k in ("layer", "before", "delta", "read_heads")},
            "low": r["delta"] if r["low"] is None else r["low"],
            "high": r["delta"] if r["high"] is None else r["high"],
            "name": _name(r),
            "shown": _interval(r),
            "scores": f"{r['before']:.3f} under filler, {r['after']:.3f}",
            "counts": f"{r['n']} samples in {r['n_clusters']} clusters",
            "job": r["id"][:8],
        }
        for r in rows
    ]
    return alt.Chart(alt.InlineData(values=values)).encode(tooltip=_TOOLTIP)


def _name(row: Row) -> str:
    """The condition, with its text where there is one."""
    if row["condition"] in ("none", "random words"):
        return "no text" if row["condition"] == "none" else "random words"
    return f"{row['condition']} '{row['words'].replace('{category}', 'CLASS').replace('{wrong}', 'OTHER')}'"


def _told_apart(row: Row) -> bool:
    return row["low"] is not None and (row["low"] > 0 or row["high"] < 0)


def _verdict(row: Row) -> str:
    if row["low"] is None:
        return "one cluster, so not tested"
    return (
        "not told apart from filler" if not _told_apart(row) else "above filler" if row["delta"] > 0 else "below filler"
    )


def _interval(row: Row) -> str:
    delta, low, high = (None if row[k] is None else f"{round(row[k], 4) + 0.0:+.4f}" for k in ("delta", "low", "high"))
    return f"{delta}" if low is None else f"{delta} [{low}, {high}]"  # adding 0 makes -0 plain
