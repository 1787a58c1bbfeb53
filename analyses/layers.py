"""Draws layers.sql: a panel a model and part, heads thin, each layer's best thick, what it is compared with beside it.

Every panel has three zones: left of layer 0 what flows into the decoder (tower, projector), then the layers, then the
encoders that stand alone. Labels stand in one column at the right, pushed apart, each tied to what it names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import altair as alt
import polars as pl

from vkvdb.charting import INK, styled, wrapped
from vkvdb.errors import NothingToDraw

Row = dict[str, Any]

HEIGHT = 420
_SPAN = 520  # pixels of the layers, whatever the depth
_STEP = 16  # pixels from one stand-alone encoder to the next
_TIED = "\u00a0"  # a space at which no line is broken
_GAP = 14  # pixels between two labels
_LETTER = 6.2  # pixels that a letter of a label takes
_PARTS = {
    "value": "image value",
    "key_unrotated": "image key before rotation (key_unrotated)",
    "key": "image key as cached, after rotation (key)",
    "hidden": "hidden state",
}

# Okabe and Ito's colours, which colour-blind people tell apart; shape and dash say the same again.
_JOBS = ("#0072B2", "#CC79A7", "#56B4E9", "#000000", "#E69F00")
_TOWER, _PROJECTOR, _ENCODER, _GREY = "#B87F00", "#D55E00", "#009E73", "#767676"
_RULES = {  # role: (label, colour, dash)
    "ceiling": ("ceiling of the grid", INK, [6, 3]),
    "pixels": ("raw pixels", _GREY, [4, 2]),
    "colours": ("colour statistics", _GREY, [8, 2]),
    "position": ("same place (position only)", _GREY, [1, 3]),
    "chance": ("chance", INK, [2, 2]),
}
# Fields that jobs of one panel may differ in, each with what its NULL means.
_FIELDS = {
    "checkpoint": "",
    "dtype": "of the checkpoint",
    "quantisation": "none",
    "attention": "",
    "block": "",
    "limited": "no",
    "seed": "",
    "layers": "all",
    "parts": "",
}


def chart(rows: pl.DataFrame) -> alt.VConcatChart:
    """All panels, one above the other. Raises NothingToDraw when no job scored a part that is asked for."""
    keys = ["dataset_name", "task", "set_of_parameters", "metric", "subject"]
    groups = [_group(part) for part in rows.partition_by(keys, maintain_order=True)]
    drawn = [group for group in groups if group is not None]
    if not drawn:
        hint = "see vkvdb sql 'SELECT DISTINCT model_name, part FROM results'"
        raise NothingToDraw(what="the part that was asked for", hint=hint)
    made: alt.VConcatChart = alt.vconcat(*(group for group, _ in drawn), spacing=48, padding=16)
    return styled(made, (finding for _, finding in drawn))


def _group(rows: pl.DataFrame) -> tuple[alt.VConcatChart, list[str]] | None:
    """The panels of one model on one dataset and task, under one title, and what the title says."""
    parts = {name: rows.filter(panel_part=name).to_dicts() for name in _PARTS}
    panels = [Panel(name, found) for name, found in parts.items() if any(r["role"] == "model" for r in found)]
    if not panels:
        return None
    best = max(panels, key=lambda p: p.best["value"])
    first = best.best
    heads = any(p.has_heads for p in panels)
    subtitle = [
        f"{first['subject_name']}, task {first['task']}{_parameters(first)} on {first['dataset_name']}, "
        f"metric {first['metric']}" + (f": {first['title']}" if first["title"] else ""),
        f"{_counts(first)}; bands and bars are 95 % intervals by cluster; every best is chosen on the samples shown",
        "thick: each layer's best head; thin: every head; dashed: heads concatenated" if heads else "",
        *wrapped([_jobs(rows, first)], 140),
    ]
    finding = best.finding()
    title = alt.TitleParams(wrapped(finding, 100), subtitle=[line for line in subtitle if line])
    made: alt.VConcatChart = alt.vconcat(*(p.draw() for p in panels), spacing=24, title=title)
    return made, finding


class Panel:
    """One model, one part: its curves and what they are compared with."""

    def __init__(self, part: str, rows: Sequence[Row]) -> None:
        self.part = part
        self.rows = rows
        self.curves = [r for r in rows if r["role"] == "model"]
        self.jobs = list(dict.fromkeys(r["job"] for r in self.curves))
        self.colours = dict(zip(self.jobs, _JOBS * len(self.jobs), strict=False))
        self.best = max((r for r in self.curves if r["is_best"]), key=lambda r: r["value"])
        self.has_heads = any(r["head"] >= 0 for r in self.curves)
        self.last = max(1, *(r["layer"] for r in self.curves))
        self.unit = self.last / _SPAN  # layers a pixel: zones have a width in pixels
        self.left = 96 if self.of("tower") else 64 if self.of("projector") else 12
        self.encoders = self.tops("encoder")
        self.column = _SPAN + 34 + _STEP * len(self.encoders)  # pixels from layer 0 to the labels
        seen = [r for r in rows if r["role"] == "model" or r["is_best_of_layer"]]
        shown = [v for r in seen for v in (r["value"], r["low"], r["high"]) if v is not None]
        self.low, self.high = min(0.0, *shown), max(shown) * 1.03
        points = [r["value"] for r in seen]
        if min(points) >= 0 and max(points) <= 1:  # a share; the interval of two clusters may reach beyond
            self.low, self.high = 0.0, min(1.0, max(shown)) * 1.03

    def of(self, role: str) -> list[Row]:
        """The rows of a role."""
        return [r for r in self.rows if r["role"] == role]

    def own(self, role: str) -> list[Row]:
        """The one row of a role that the best job of the panel has, if it has one."""
        return [r for r in self.tops(role) if r["job"] == self.best["job"] or role in ("pixels", "colours")][:1]

    def tops(self, role: str) -> list[Row]:
        """The best row of each job that plays a role."""
        return [r for r in self.of(role) if r["is_best"]]

    def differences(self, row: Row) -> str:
        """What tells a job of the panel from the others: the fields of the specification that differ."""
        differ = [f for f in _FIELDS if len({str(r[f]) for r in self.curves}) > 1]
        return ", ".join(f"{f} {_FIELDS[f] if row[f] is None else row[f]}" for f in differ)

    def finding(self) -> list[str]:
        """What the numbers say, in words that they support: two intervals that overlap are not told apart."""
        others = [(role, r) for role in ("tower", "projector") for r in self.own(role)]
        others += [(r["model_name"], r) for r in self.encoders]
        others += [(_twin(r), r) for r in self.tops("random") + self.tops("blank")]
        others += [(_RULES[role][0], r) for role in ("pixels", "colours", "position", "chance") for r in self.own(role)]
        said: dict[str, list[str]] = {"above": [], "not told apart from": [], "below": []}
        for name, other in others:
            said[_compared(self.best, other)].append(f"{name}{_TIED}{_number(other['value'])}")
        clauses = "; ".join(f"{how} {', '.join(names)}" for how, names in said.items() if names)
        where = f"layer {self.best['layer']}" + (f", head {self.best['head']}" if self.has_heads else "")
        chosen = "; ".join(filter(None, [self.differences(self.best), "in-sample"]))
        first = f"Best {_PARTS[self.part]} at {where} ({chosen}): {_interval(self.best)}"
        return [first, *([clauses] if clauses else [])]

    def draw(self) -> alt.LayerChart:
        """The panel."""
        labels = self._labels()
        letters = max([len(r["label"]) for r in labels], default=0)
        width = self.left + self.column + round(letters * _LETTER)
        x = alt.Scale(domain=[-self.left * self.unit, (width - self.left) * self.unit], nice=False)
        y = alt.Scale(domain=[self.low, self.high], nice=False)
        step = next(s for s in (1, 2, 4, 8, 16, 32, 64) if self.last / s <= 16)
        marks = self._rules() + self._twins() + [m for job in self.jobs for m in self._curves(job)]
        marks += self._points() + self._texts(labels)
        layer = alt.layer(*marks).encode(
            x=alt.X(
                "x:Q",
                scale=x,
                axis=alt.Axis(
                    values=list(range(0, self.last + 1, step)),
                    grid=False,
                    title=f"{self.best['stage']} layer",
                    titleX=self.left + _SPAN / 2,
                ),
            ),
            y=alt.Y("y:Q", scale=y, axis=alt.Axis(title=self.best["metric"], tickCount=6, format=".2~f")),
        )
        made: alt.LayerChart = layer.properties(
            width=width, height=HEIGHT, title=alt.TitleParams(_PARTS[self.part], fontSize=12)
        )
        return made

    # --- lines and points ---

    def _rules(self) -> list[alt.Chart]:
        made = []
        for role, (_, colour, dash) in _RULES.items():
            rows = [{**r, "x": -self.left * self.unit, "to_x": self.last} for r in self.own(role)]
            made.append(_on(rows).mark_rule(color=colour, strokeDash=dash, size=1.2).encode(x2="to_x:Q"))
        return made

    def _twins(self) -> list[alt.Chart]:
        """Random twins, and the model that is shown blank images: thin and grey."""
        made = []
        for role, dash in (("random", [1, 0]), ("blank", [5, 2, 1, 2])):
            rows = [r for r in self.of(role) if r["is_best_of_layer"]]
            made.append(_on(rows).mark_line(color=_GREY, strokeWidth=1.2, strokeDash=dash).encode(detail="job:N"))
        return made

    def _curves(self, job: int) -> list[alt.Chart]:
        """One job of the panel's own model."""
        colour, mine = self.colours[job], [r for r in self.curves if r["job"] == job]
        best = [r for r in mine if r["is_best_of_layer"]]
        single = [r for r in mine if r["head"] >= 0]
        joined = [r for r in mine if r["head"] < 0] if single else []
        top = [r for r in mine if r["is_best"]]
        return [
            _on(best).mark_area(color=colour, opacity=0.15, clip=True).encode(y="low:Q", y2="high:Q"),
            _on(single).mark_line(color=colour, strokeWidth=0.8, opacity=0.5).encode(detail="head:N"),
            _on(joined).mark_line(color=colour, strokeWidth=1.5, strokeDash=[5, 3]),
            _on(best).mark_line(color=colour, strokeWidth=2.8, point=alt.OverlayMarkDef(size=22, color=colour)),
            _on(top).mark_point(color=colour, size=170, strokeWidth=1.6, opacity=1),
        ]

    def _points(self) -> list[alt.Chart]:
        """Tower and projector before layer 0, stand-alone encoders at their best layer after the last; intervals."""
        rows = self._inflow() + self._outside()
        base = _on(rows).encode(color=alt.Color("colour:N", scale=None))
        return [
            base.mark_rule(size=1.6, clip=True).encode(y="low:Q", y2="high:Q"),
            base.mark_point(filled=True, size=80, opacity=1).encode(shape=alt.Shape("shape:N", scale=None)),
        ]

    def _inflow(self) -> list[Row]:
        looks = {"tower": (-68, _TOWER, "square"), "projector": (-30, _PROJECTOR, "diamond")}
        return [
            {**r, "x": x * self.unit, "colour": colour, "shape": shape}
            for role, (x, colour, shape) in looks.items()
            for r in self.of(role)
        ]

    def _outside(self) -> list[Row]:
        return [
            {**r, "x": (_SPAN + 20 + _STEP * n) * self.unit, "colour": _ENCODER, "shape": "triangle-up"}
            for n, r in enumerate(self.encoders)
        ]

    # --- words ---

    def _texts(self, labels: list[Row]) -> list[alt.Chart]:
        colour = alt.Color("colour:N", scale=None)
        tied = _on(labels).encode(color=colour)
        first = {r["role"]: {**r, "label": r["role"], **self._ends(r)} for r in reversed(self._inflow())}
        # One above its bar, one below: side by side they would touch.
        tower = _on([first[k] for k in ("tower",) if k in first]).encode(color=colour, text="label:N", y="high:Q")
        projector = _on([first[k] for k in ("projector",) if k in first]).encode(
            color=colour, text="label:N", y="low:Q"
        )
        return [
            tied.mark_rule(size=0.7, opacity=0.8).encode(x2="line_x:Q", y2="text_y:Q"),
            tied.mark_text(align="left", fontSize=11).encode(x="text_x:Q", y="text_y:Q", text="label:N"),
            tower.mark_text(dy=-12, fontSize=11, fontWeight="bold"),
            projector.mark_text(dy=14, fontSize=11, fontWeight="bold"),
        ]

    def _ends(self, row: Row) -> Row:
        """Where a row's bar ends in the panel, with room for a label beyond."""
        room = 24 * (self.high - self.low) / HEIGHT
        low, high = (row["value"] if row[end] is None else row[end] for end in ("low", "high"))
        return {"low": max(low, self.low + room), "high": min(high, self.high - room)}

    def _labels(self) -> list[Row]:
        """Everything that is named at the right: where it ends, its label, and where that stands."""
        rows = list(self._named())
        # Not down to the axis, which would go through the label.
        limit = HEIGHT - _GAP / 2
        heights = _apart([HEIGHT * (1 - (r["value"] - self.low) / (self.high - self.low)) for r in rows], _GAP, limit)
        for row, height in zip(rows, heights, strict=True):
            row["text_y"] = self.low + (1 - height / HEIGHT) * (self.high - self.low)
            row["text_x"] = self.column * self.unit
            row["line_x"] = (self.column - 4) * self.unit
        return rows

    def _named(self) -> Iterator[Row]:
        for role, (label, colour, _) in _RULES.items():
            for r in self.own(role):
                yield {**r, "x": self.last, "label": f"{label} {_number(r['value'])}", "colour": colour}
        for r in self._outside():
            yield {**r, "label": f"{r['model_name'][:30]}, layer {r['layer']}: {_number(r['value'])}"}
        for r in self.of("random") + self.of("blank"):
            if r["is_best_of_layer"] and r["layer"] == self.last:
                yield {**r, "label": _twin(r) + ", best head" * self.has_heads, "colour": _GREY}
        for r in (r for r in self.curves if r["layer"] == self.last and (r["is_best_of_layer"] or not r["is_single"])):
            name = "heads concatenated" if not r["is_single"] else "best head" if self.has_heads else r["model_name"]
            fields = self.differences(r)
            yield {**r, "label": f"{name} ({fields})" if fields else name, "colour": self.colours[r["job"]]}


def _on(rows: Sequence[Row]) -> alt.Chart:
    """A chart on rows, each at its layer and value unless it says where."""
    values = [{"x": r["layer"], **_told(r), **{k: r[k] for k in _PLACED if k in r}} for r in rows]
    return alt.Chart(alt.InlineData(values=values)).encode(tooltip=_TOOLTIP)


_PLACED = ("x", "to_x", "text_x", "text_y", "line_x", "label", "colour", "shape")
_TOOLTIP = [
    alt.Tooltip(f"{name}:N", title=title)
    for name, title in {"model_name": "model", "what": "site", "shown": "value", "counts": "n", "id": "job"}.items()
]


def _told(row: Row) -> Row:
    """The fields of a row that marks and tooltips use."""
    head = f", head {row['head']}" if row["head"] >= 0 else ""
    return {
        "y": row["value"],
        "low": row["low"] if row["low"] is not None else row["value"],
        "high": row["high"] if row["high"] is not None else row["value"],
        "job": str(row["job"]),
        "head": row["head"],
        "model_name": row["model_name"],
        "what": f"{row['stage']} {row['layer']} {row['part']}{head}",
        "shown": _interval(row),
        "counts": _counts(row),
        "id": row["id"][:8],
    }


def _twin(row: Row) -> str:
    """`random twin`, `random decoder` or `blank image`, with the seed where it is not 0."""
    name, _, seed = row["variant"].partition(":")
    words = {"random": "random twin", "random-decoder": "random decoder", "blank": "blank image"}[name]
    return words if seed in ("", "0") else f"{words} {seed}"


def _compared(best: Row, other: Row) -> str:
    if None in (best["low"], other["low"]):
        return "not told apart from"
    if best["low"] > other["high"]:
        return "above"
    return "below" if best["high"] < other["low"] else "not told apart from"


def _number(value: float) -> str:
    """.43, as papers print shares; other numbers with three digits."""
    if abs(value) >= 10:
        return f"{value:.3g}"
    return f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.2f}"


def _interval(row: Row) -> str:
    if row["low"] is None:
        return f"{_number(row['value'])} (no interval: one cluster)"
    return f"{_number(row['value'])} [{_number(row['low'])}, {_number(row['high'])}]"


def _counts(row: Row) -> str:
    undefined = f", {row['n_undefined']} not defined" if row["n_undefined"] else ""
    return f"n = {row['n']} of {row['of']} samples in {row['n_clusters']} clusters{undefined}"


def _parameters(row: Row) -> str:
    return "" if row["set_of_parameters"] == "{}" else f" {row['set_of_parameters']}"


def _jobs(rows: pl.DataFrame, first: Row) -> str:
    """The jobs that are drawn, the panel's own first; with n where it is not that of the panel."""
    found = rows.unique(["job"], maintain_order=True).to_dicts()
    found.sort(key=lambda r: r["model_name"] != r["subject_name"])
    counts = [f" (n = {r['n']})".replace(" ", _TIED) if r["n"] != first["n"] else "" for r in found]
    return "jobs: " + ", ".join(f"{r['id'][:8]}{_TIED}{r['model_name']}{n}" for r, n in zip(found, counts, strict=True))


def _apart(heights: Sequence[float], gap: float, limit: float) -> list[float]:
    """Heights in pixels moved as little as it takes for neighbours to be `gap` apart, in the order that they had."""

    def top(members: list[int]) -> float:
        """Where the first of a run of labels stands, so that the run is centred on what it names, inside the panel."""
        long = gap * (len(members) - 1)
        middle = sum(heights[i] for i in members) / len(members)
        return max(0.0, min(middle - long / 2, limit - long))

    runs: list[list[int]] = []
    for i in sorted(range(len(heights)), key=lambda i: heights[i]):
        run = [i]
        while runs and top(run) < top(runs[-1]) + gap * len(runs[-1]):
            run = runs.pop() + run
        runs.append(run)
    placed = [0.0] * len(heights)
    for run in runs:
        for n, i in enumerate(run):
            placed[i] = top(run) + gap * n
    return placed
