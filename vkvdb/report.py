"""One page of everything that was measured of a model on a dataset: a file to be sent, and opened without a network.

Vega's scripts stand in it once (the bundle of vl-convert, of the Vega-Lite version that the charts are written in),
images are data URIs, and a content security policy forbids the page to load anything. Text of people, models and
datasets is escaped by the template (`report.html`, autoescaped).
"""

from __future__ import annotations

import math
import os
import re
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vkvdb import __version__, analysis, registry
from vkvdb.charting import findings_of
from vkvdb.errors import BadOption, NothingToDraw, TrackingFailed
from vkvdb.findings import Compared, Row, Subject, compare, interval, number, provenance, subject
from vkvdb.paths import Home
from vkvdb.pictures import Case, Shown, cases_of, shown_of

if TYPE_CHECKING:
    from vkvdb.catalog import Catalog

_SHOWN = 40  # rows of an analysis that draws nothing
_PLACES = {
    ("decoder", "value"): "image values",
    ("decoder", "key_unrotated"): "image keys before rotation",
    ("decoder", "key"): "image keys as cached",
    ("decoder", "hidden"): "hidden states",
    ("projector", "hidden"): "projector",
    ("floor", "position"): "position only (floor)",
    ("ceiling", "truth"): "truth on the grid (ceiling)",
}
# What to type where an analysis has nothing to draw.
_TYPED = {
    "layers": "vkvdb score --task correspondence --model {model} --dataset {dataset}",
    "encoder": "vkvdb score --task correspondence --model {model} --dataset {dataset}",
    "correlation": "vkvdb ask --model {model} --dataset {dataset}, and the same of other models",
    "keys": "vkvdb calibrate --model {model}",
    "prefix": "vkvdb prefix --task segmentation --model {model} --dataset {dataset}",
    "surfacing": "vkvdb ask --read choices --model {model} --dataset {dataset}",
}
# These ask of another dataset than the report does: keys are calibrated on images that nothing is measured on.
_ELSEWHERE = {"keys": "dataset"}


@dataclass(frozen=True)
class Drawn:
    """An analysis on the page: its chart as Vega-Lite, else rows as a table, else a line on why there is neither."""

    name: str
    about: str
    spec: dict[str, Any] | None = None
    findings: Sequence[Sequence[str]] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    more: int = 0
    line: str = ""
    ids: frozenset[str] = frozenset()
    records: Sequence[Row] = ()


@dataclass(frozen=True)
class Measured:
    """A task's table: rows of the model and of what it is held against, and its sentence in the summary."""

    task: str
    metric: str
    title: str
    rows: Sequence[Row]
    others: Sequence[Row]
    sentence: str


@dataclass(frozen=True)
class Page:
    """What the template is given."""

    subject: Subject
    measured: Sequence[Measured]
    charts: Sequence[Drawn]
    against: Subject | None
    compared: Sequence[Compared]
    charts_against: Sequence[Drawn]
    provenance: dict[str, list[Row]]
    summary: Sequence[tuple[str, Sequence[str]]]
    cases: Mapping[str, Sequence[Case]]
    made: dict[str, str] = field(default_factory=dict)


def write(
    home: Home,
    model: str,
    dataset: str,
    out: Path,
    against: str | None = None,
    *,
    pictures: int = 1,
    device: str = "auto",
    track: bool = True,
    tell: Callable[[str], None] = warnings.warn,
) -> Path:
    """Write the report of a model on a dataset as one HTML file, beside another model if one is named; its path.

    `pictures` samples of each task are drawn, which reads them anew; 0 reads no model. With `track` page and charts
    become artifacts of a run in MLflow. `tell` is given a line for what cost no report: what can't be absorbed, MLflow
    that fails.
    Raises NothingToDraw when nothing was measured, BadOption when the file can't be written.
    """
    from vkvdb.syncing import fresh, patiently

    catalog = fresh(home, tell)
    page = patiently(lambda: _page(home, catalog, model, dataset, against))
    shown = list(shown_of(home, catalog, page.subject, pictures, device)) if pictures else []
    text = _render(page, shown)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        private = out.with_name(f".{out.name}.{os.getpid()}")
        private.write_text(text, encoding="utf-8")
        private.replace(out)
    except OSError as error:
        raise BadOption(option="--out", value=out, why=f"can't be written to: {error.strerror or error}") from error
    if track:
        _track(home, page, out, tell)
    return out


# --- what is on the page ---


def _page(home: Home, catalog: Catalog, model: str, dataset: str, against: str | None) -> Page:
    one = subject(catalog, model, dataset)
    two = subject(catalog, against, dataset) if against is not None else None
    charts = [_drawn(home, name, one) for name in registry.names("analyses")]
    beside = [r for d in charts if d.name == "encoder" for r in d.records]
    measured = [_measured(one, *task, beside) for task in one.tasks()]
    again = [_drawn(home, "layers", two)] if two else []
    compared = compare(catalog, one, two) if two else []
    cases: dict[str, list[Case]] = {}
    for case in cases_of(home, catalog, one, [r for d in charts if d.name == "surfacing" for r in d.records]):
        cases.setdefault(case.group, []).append(case)
    subjects = [s for s in (one, two) if s is not None]
    ids = {i for d in (*charts, *again) for i in d.ids}
    ids |= {r["id"] for s in subjects for r in (*s.values, *s.answers)}
    return Page(
        subject=one,
        measured=measured,
        charts=charts,
        against=two,
        compared=compared,
        charts_against=again,
        provenance=dict(provenance(catalog, ids, subjects)),
        summary=list(_summary(catalog, one, measured, charts)),
        cases=cases,
        made={
            "version": __version__,
            "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "host": socket.gethostname(),
            "command": f"vkvdb report --model {model} --dataset {dataset}"
            + (f" --against {against}" if against else ""),
        },
    )


def _given(name: str, of: Subject) -> dict[str, str]:
    """The parameters of an analysis that make it one of this model on this dataset."""
    known = analysis.parameters(name)
    mine = {"model": _typed(of), "dataset": of.dataset}
    return {k: v for k, v in mine.items() if k in known and _ELSEWHERE.get(name) != k}


def _typed(of: Subject) -> str:
    """The name that its jobs have."""
    return str(next((r["model_name"] for r in (*of.values, *of.answers)), of.name))


def _drawn(home: Home, name: str, of: Subject) -> Drawn:
    about = registry.help_line("analyses", name)
    try:
        found = analysis.run(home, name, _given(name, of))
    except NothingToDraw as nothing:
        typed = _TYPED.get(name, "").format(model=_typed(of), dataset=of.dataset)
        return Drawn(name, about, line=f"nothing to draw yet; type: {typed}" if typed else str(nothing))
    ids = frozenset(found.jobs())
    if found.chart is None:
        rows = found.rows.head(_SHOWN)
        return Drawn(name, about, columns=rows.columns, rows=rows.rows(), more=found.rows.height - rows.height, ids=ids)
    spec = _finite(found.chart.to_dict())
    return Drawn(name, about, spec=spec, findings=findings_of(spec), ids=ids, records=found.rows.to_dicts())


def _finite(value: Any) -> Any:
    """The same as JSON can say it: what is not a finite number is null."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _measured(of: Subject, task: str, parameters: str, encoder: Sequence[Row]) -> Measured:
    rows = of.rows(task, parameters)
    has_decoder = any(r["stage"] == "decoder" for r in rows)
    tower = "tower" if has_decoder else "encoder"
    beside = [r for r in encoder if (r["task"], r["set_of_parameters"]) == (task, parameters) and r["is_chosen"]]
    paired = {r["place"]: r for r in beside if r["difference"] is not None}
    named = []
    for row in rows:
        place = _PLACES.get((row["stage"], row["part"]), tower if row["stage"] == "encoder" else row["part"])
        named.append({**row, "place": place, **_paired(paired.pop(place, None))})
    named += [{**row, **_paired(row)} for row in paired.values()]
    words = task if parameters == "{}" else f"{task} {parameters}"
    best = of.best(task, parameters)
    metric, title = (rows[0]["metric"], rows[0]["title"]) if rows else ("", "")
    sentence = _sentence(words, best, named) if best else f"{words}: not defined at image values"
    others = [
        {**r, "place": _PLACES.get((r["stage"], r["part"]), tower)} for r in of.rows(task, parameters, main=False)
    ]
    return Measured(words, metric, title, named, others, sentence)


def _paired(row: Row | None) -> Row:
    names = ("difference", "difference_low", "difference_high")
    return {name: row[name] if row else None for name in names}


def _sentence(task: str, best: Row, rows: Sequence[Row]) -> str:
    """A task in words that its numbers support: two that an interval around zero leaves open are not told apart."""
    what = _PLACES.get((best["stage"], best["part"]), "tokens")
    where = f"layer {best['layer']}" + (f", head {best['head']}" if best["head"] >= 0 else "")
    said = f"{task} ({best['metric']}): {what} {interval(best)}, n = {best['n']} of {best['of']}, most often at {where}"
    groups: dict[str, list[str]] = {}
    for row in rows:
        if row["difference"] is not None:
            groups.setdefault(_apart(row), []).append(row["place"])
    clauses = [f"{how} {', '.join(groups[how])}" for how in ("above", "not told apart from", "below") if how in groups]
    floors = [f"{r['place'].capitalize()} {number(r['value'])}" for r in rows if r["stage"] in ("floor", "ceiling")]
    return ". ".join(
        filter(None, [said, "Paired by sample: " + "; ".join(clauses) if clauses else "", ", ".join(floors)])
    )


def _apart(row: Row) -> str:
    low, high = row["difference_low"], row["difference_high"]
    if low is None or high is None or low <= 0 <= high:
        return "not told apart from"
    return "above" if low > 0 else "below"


def _summary(
    catalog: Catalog, of: Subject, measured: Sequence[Measured], charts: Sequence[Drawn]
) -> Iterator[tuple[str, Sequence[str]]]:
    """Sentences, each with those that go into its detail."""
    held = [r for m in measured for r in m.rows if r["place"] == "projector" and r["difference"] is not None]
    if held:
        counts = {how: sum(_apart(r) == how for r in held) for how in ("above", "not told apart from", "below")}
        told = ", ".join(f"{how} it in {n}" for how, n in counts.items())
        yield f"Of {len(held)} tasks that both define, image values are, against the projector's output: {told}.", ()
    straight = [r for r in of.answers if r["swap"] == 0]
    if straight:
        n = sum(r["n"] for r in straight)
        right = round(sum(r["n"] * r["accuracy"] for r in straight))
        low, high = catalog.query("SELECT wilson_low($k, $n), wilson_high($k, $n)", {"k": right, "n": n}).rows[0]
        share = {"value": right / n, "low": low, "high": high}
        prior = number(sum(r["n"] * r["prior"] for r in straight) / n)
        yield (
            f"Answers: {right} of {n} questions right in words, {interval(share)}; best constant answers: {prior}.",
            (),
        )
    for drawn in charts:
        if drawn.name not in ("layers", "encoder"):
            for first, *more in drawn.findings:
                yield (f"{drawn.name}: {first}", more)


# --- the file ---


def _bundle(specs: Sequence[dict[str, Any]]) -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, in the version that the charts name; empty without charts."""
    import vl_convert

    if not specs:
        return ""
    versions = {found[1] for s in specs if (found := re.search(r"/v(\d+\.\d+)[\d.]*\.json$", s.get("$schema", "")))}
    known = vl_convert.get_vegalite_versions()
    # Charts of one Altair name one version; a newer one than the bundle has is drawn by the newest that it has.
    chosen = max(versions & set(known) or {known[-1]}, key=known.index)
    # Its stub asks for a snippet, without which the bundle puts `vegaEmbed` where a page finds it.
    script = vl_convert.javascript_bundle(vl_version=chosen)  # type: ignore[call-arg]
    return str(script).replace("</script", "<\\/script")


def _render(page: Page, shown: Sequence[Shown]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    specs = [d.spec for d in (*page.charts, *page.charts_against) if d.spec is not None]
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=number, interval=interval)
    # Without its schema, an address that nothing needs.
    environment.filters["bare"] = lambda spec: {k: v for k, v in spec.items() if k != "$schema"}
    return environment.get_template("report.html").render(
        page=page,
        pictures=[s for s in shown if s.uri],
        missing=[s.caption for s in shown if not s.uri],
        charts=len(specs),
        bundle=Markup(_bundle(specs)),  # noqa: S704 - it is a script, and made safe to stand in a page
    )


def _track(home: Home, page: Page, out: Path, tell: Callable[[str], None]) -> None:
    """Page and charts as artifacts of a run; what goes wrong costs a line."""
    import vl_convert

    from vkvdb import tracking

    pictures = {
        f"charts/{d.name}.png": vl_convert.vegalite_to_png(d.spec, scale=1.5) for d in page.charts if d.spec is not None
    }
    name = f"report {page.subject.name} {page.subject.dataset}"
    name += f" against {page.against.name}" if page.against else ""
    try:
        tracking.log_page(home, f"{page.subject.dataset}/report", name, out, pictures)
    except TrackingFailed as error:
        tell(str(error))
