"""Draws surfacing.sql: for every group and place, the share of questions read right and answered wrong.

A block is one ask job; a panel in it a group of questions, with a column a measure of the answers and a row a place
that the questions were read at. What raw pixels, random weights and an encoder read too is no hidden knowledge of a
decoder, so the title says how the model's own values compare with each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import polars as pl

from vkvdb.charting import INK, styled, wrapped
from vkvdb.errors import NothingToDraw
from vkvdb.statistics import mcnemar

Row = dict[str, Any]

_WIDTH, _ROW = 380, 20
_TIED = "\u00a0"  # a space at which no line is broken
_MEASURES = {"likelihood": "answer: the likeliest letter", "text": "answer: what was written"}
_SAID = {"likelihood": "letter likelihood", "text": "text"}
_OWN, _FLOW, _ENCODER, _GREY = "#0072B2", "#D55E00", "#009E73", "#767676"


def chart(rows: pl.DataFrame) -> alt.VConcatChart:
    """All ask jobs, one below the other. Raises NothingToDraw when nothing was read of what was asked."""
    every = [_Block(part.to_dicts()) for part in rows.partition_by("asked_id", maintain_order=True)]
    blocks = [block for block in every if block.rows]
    if not blocks:
        raise NothingToDraw(
            what="questions that were asked and read (two or more of a group)",
            hint="type: vkvdb ask --model MODEL --read choices",
        )
    made: alt.VConcatChart = alt.vconcat(*(one.draw() for one in blocks), spacing=48, padding=16)
    return styled(made, (one.finding() for one in blocks))


class _Block:
    """One ask job: its groups, and what is found in them."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.first = rows[0]
        self.rows = [r for r in rows if r["place"] is not None]
        self.unread = {r["grp"]: r["of"] for r in rows if r["place"] is None}
        there = {r["measure"] for r in self.rows}
        self.measures = [m for m in _MEASURES if m in there]
        self.groups = list(dict.fromkeys(r["grp"] for r in self.rows))
        shown = [v for r in self.rows for v in (r["share_high"], r["high"] / r["n"])]
        self.end = min(1.0, max(shown, default=1.0) * 1.04)

    def of(self, group: str, measure: str) -> list[Row]:
        """The rows of a group and measure, the model's own places first, then controls.

        Tower and projector of images alone are left out beside those of the pass that answered: they are the same.
        """
        found = [r for r in self.rows if (r["grp"], r["measure"]) == (group, measure)]
        places = {r["place"] for r in found}
        kept = [
            r
            for r in found
            if r["place"] not in ("tower, isolated", "projector, isolated")
            or r["place"].removesuffix(", isolated") not in places
        ]
        jobs = [r["place"] for r in kept]
        named = [{**r, "label": _label(r, several=jobs.count(r["place"]) > 1)} for r in kept]
        return sorted(named, key=lambda r: (_rank(r["place"]), r["label"]))

    def own(self, group: str, measure: str) -> Row | None:
        """The row of the model's own values: of the pass that answered, else of each image alone."""
        return next((r for r in self.of(group, measure) if _rank(r["place"]) < 2), None)

    # --- words ---

    def finding(self) -> list[str]:
        """What the numbers say, a line a group and measure."""
        lines, more = [], set()
        for group in self.groups:
            said: dict[str, list[str]] = {}
            for measure in self.measures:
                own = self.own(group, measure)
                if own is None:
                    words = "the model's own values were not read"
                else:
                    more |= {group} if own["surfacing"] > own["high"] else set()
                    words = f"{_count(own)}, {_verdict(own)}{self._beside(group, measure)}"
                said.setdefault(words, []).append(_SAID[measure])
            lines += [f"{group}, by {' and by '.join(how)}: {words}" for words, how in said.items()]
        n, there = len(more), len(self.groups)
        how = f"in {n} of {there} groups" if n else "in no group do"
        words = "image values hold more of what the model gets wrong than independence would give"
        first = f"{self.first['model_name']}, {self.first['dataset_name']}: {how} {words}"
        return [first, *lines]

    def _beside(self, group: str, measure: str) -> str:
        """How the controls compare with the model's own values, paired by question."""
        said: dict[str, list[str]] = {"as much in": [], "less in": [], "more in": []}
        for r in self.of(group, measure):
            if _rank(r["place"]) >= 4 and r["n_paired"]:
                told_apart = mcnemar(r["only_here"], r["only_value"]) < 0.05
                how = "as much in" if not told_apart else "less in" if r["only_here"] < r["only_value"] else "more in"
                name = r["label"].removeprefix("image value, ").replace(" ", _TIED)
                said[how].append(f"{name}{_TIED}{r['surfacing']}")
        clauses = "; ".join(f"{how} {', '.join(names)}" for how, names in said.items() if names)
        return f"; {clauses}" if clauses else "; no control was read"

    def subtitle(self) -> list[str]:
        """What was done, and what can't be read."""
        first = self.first
        count = f"{first['n_asked']} of {first['n_there']} questions were asked (job {first['asked_id'][:8]})"
        unread = sum({r["grp"]: r["n_unread"] for r in self.rows}.values())
        independence = (
            "grey: what independence of reading and answer would give with these margins, 95 % (hypergeometric); "
            "questions count as independent, nothing is corrected for the number of groups"
        )
        choice = (
            "layer and head are those that read most of the other fold right; as much: not told apart, paired by "
            "question (McNemar, p >= .05)"
        )
        told = [
            f"{count}; x: share of a group's questions read right and answered wrong, with its 95 % interval (Wilson)",
            independence,
            choice,
        ]
        if unread and "text" in self.measures:
            told.append(f"{unread} answers in words can't be read and count as wrong")
        if self.unread:
            names = ", ".join(f"{name}{_TIED}({n})".replace(" ", _TIED) for name, n in self.unread.items())
            told.append(
                f"out of reach of a reading without training: {len(self.unread)} groups, {sum(self.unread.values())} "
                f"questions: {names}"
            )
        jobs = dict.fromkeys(f"{r['read_id'][:8]}{_TIED}{r['read_name']}" for r in self.rows)
        told.append(f"read by jobs {', '.join(jobs)}")
        return wrapped(told, 150)

    # --- panels ---

    def draw(self) -> alt.VConcatChart:
        """A panel a group, under one title."""
        panels = [
            alt.hconcat(
                *(self._panel(g, m, first=m == self.measures[0]) for m in self.measures), spacing=12
            ).properties(title=alt.TitleParams(self._named(g), fontSize=12))
            for g in self.groups
        ]
        title = alt.TitleParams(wrapped(self.finding(), 128), subtitle=self.subtitle())
        made: alt.VConcatChart = alt.vconcat(*panels, spacing=14, title=title)
        return made

    def _named(self, group: str) -> str:
        mine = next(r for r in self.rows if r["grp"] == group)
        unreadable = mine["of"] - max(r["n"] for r in self.rows if r["grp"] == group)
        return f"{group}, n = {mine['of'] - unreadable}" + (f" ({unreadable} unreadable)" if unreadable else "")

    def _panel(self, group: str, measure: str, *, first: bool) -> alt.LayerChart:
        rows = self.of(group, measure)
        last = group == self.groups[-1]
        scale = alt.Scale(domain=[0, self.end], nice=False)
        axis = alt.Axis(
            title=_MEASURES[measure] if last else None, format="%", tickCount=6, labels=last, ticks=last, domain=last
        )
        x = alt.X("share:Q", scale=scale, axis=axis)
        labels = [r["label"] for r in rows]
        left = alt.Axis(title=None, labelLimit=260, ticks=False, domain=False) if first else None
        y = alt.Y("label:N", sort=labels, scale=alt.Scale(domain=labels), axis=left)
        base = alt.Chart(alt.InlineData(values=[_told(r) for r in rows])).encode(
            y=y, color=alt.Color("colour:N", scale=None), tooltip=_TOOLTIP
        )
        marks: list[alt.Chart] = [
            base.mark_bar(color="#CCCCCC", height=14, opacity=0.8).encode(
                x=alt.X("low:Q", scale=scale, axis=axis), x2="high:Q", color=alt.value("#D6D6D6")
            ),
            base.mark_tick(thickness=2, size=14).encode(x=alt.X("expected:Q"), color=alt.value("#555555")),
            base.mark_rule(size=1.6).encode(x=alt.X("share_low:Q"), x2="share_high:Q"),
            base.mark_point(filled=True, size=60, opacity=1).encode(x=x),
            base.mark_text(align="left", fontSize=10, color=INK).encode(
                x=alt.value(_WIDTH + 6), text="told:N", color=alt.value(INK)
            ),
        ]
        layer: Any = alt.layer(*marks)
        made: alt.LayerChart = layer.properties(width=_WIDTH, height=_ROW * len(rows))
        return made


_ORDER = ("tower", "projector")
_TOOLTIP = [
    alt.Tooltip(f"{name}:N", title=title)
    for name, title in {
        "label": "place",
        "table": "2x2",
        "told": "count",
        "of_all": "of all questions",
        "of_wrong": "of wrong answers",
        "choice": "layer and head",
        "paired": "against values",
        "job": "job",
    }.items()
]


def _rank(place: str) -> int:
    """Own values of the pass that answered, of images alone, what flows in, then the controls."""
    if "random" in place:
        return 5
    if place.startswith("encoder "):
        return 6
    if place in ("raw pixels", "colour statistics"):
        return 4
    stage = place.removesuffix(", isolated")
    if stage in _ORDER:
        return 2 + _ORDER.index(stage)
    return int(place.endswith(", isolated"))


def _colour(place: str) -> str:
    return (_OWN, _OWN, _FLOW, _FLOW, _GREY, _GREY, _ENCODER)[_rank(place)]


def _label(row: Row, *, several: bool) -> str:
    """What a place is called, with the job where several read it."""
    place = str(row["place"])
    stage, _, how = place.partition(", ")
    if stage in _ORDER or _rank(place) in (4, 6):
        words = stage
    else:
        words = f"image {'value' if stage == 'value' else stage}, {how or 'of the pass that answered'}"
    return f"{words} ({row['read_id'][:8]})" if several else words


def _told(row: Row) -> Row:
    """The fields of a row that marks and tooltips use; positions are shares of all questions."""
    n = row["n"]
    return {
        **{k: row[k] for k in ("label", "share", "share_low", "share_high", "choice")},
        "low": row["low"] / n,
        "high": row["high"] / n,
        "expected": row["expected"] / n,
        "colour": _colour(row["place"]),
        "told": f"{row['surfacing']} of {n}, independent {row['expected']:.1f} [{row['low']}, {row['high']}]",
        "table": f"read right: {row['right_right']} answered right, {row['surfacing']} wrong; "
        f"read wrong: {row['wrong_right']} right, {row['wrong_wrong']} wrong",
        "of_all": _share(row["share"], row["share_low"], row["share_high"]),
        "of_wrong": _share(row["share_of_wrong"], row["of_wrong_low"], row["of_wrong_high"]) + f" of {row['n_wrong']}",
        "paired": f"{row['only_here']} only here, {row['only_value']} only in the values, of {row['n_paired']}",
        "job": f"{row['read_id'][:8]} {row['read_name']}",
    }


def _share(value: float | None, low: float | None, high: float | None) -> str:
    if value is None or low is None or high is None:
        return "none"
    return f"{100 * value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def _count(row: Row) -> str:
    return f"{row['surfacing']} of {row['n']} ({100 * row['share']:.1f} %) are read right and answered wrong"


def _verdict(row: Row) -> str:
    how = "more" if row["surfacing"] > row["high"] else "fewer" if row["surfacing"] < row["low"] else "no more"
    return f"{how} than by independence ({row['low']} to {row['high']})"
