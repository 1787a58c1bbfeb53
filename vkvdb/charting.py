"""What all charts have in common: how they look, and what they say, kept beside the picture as text.

Nothing here knows Altair (`analyses/` does): a chart is any object with `config` and `usermeta`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

INK = "#333333"

_AXIS = {"labelColor": INK, "titleColor": INK, "gridColor": "#EEEEEE", "domainColor": "#AAA", "tickColor": "#AAA"}
_TITLE = {"anchor": "start", "frame": "group", "color": "#111", "subtitleColor": "#555"}
_CONFIG: dict[str, dict[str, Any]] = {
    "view": {"stroke": None},
    "axis": _AXIS,
    "title": {**_TITLE, "fontSize": 14, "subtitleFontSize": 11},
}
_KEY = "findings"

Finding = Sequence[str]
"""What one block of a chart says: a sentence, and those that go into detail."""


C = TypeVar("C")


def styled(chart: C, findings: Iterable[Finding]) -> C:
    """The whole chart in the look of all, with what its blocks say, unbroken into lines."""
    whole: Any = chart
    whole.config = {name: dict(value) for name, value in _CONFIG.items()}
    whole.usermeta = {_KEY: [list(finding) for finding in findings]}
    return chart


def wrapped(sentences: Iterable[str], width: int) -> list[str]:
    """Sentences as lines of a title, each beginning a line of its own."""
    return [line for text in sentences for line in textwrap.wrap(text, width, break_on_hyphens=False)]


def findings_of(spec: Mapping[str, Any]) -> list[list[str]]:
    """What a chart (as JSON) says: what `styled` was given, else the titles above its panels, each in one sentence."""
    kept = (spec.get("usermeta") or {}).get(_KEY)
    return [list(finding) for finding in kept] if kept is not None else [[title] for title in _titles(spec)]


def _titles(spec: Mapping[str, Any]) -> Iterator[str]:
    title = spec.get("title")
    text = title.get("text") if isinstance(title, Mapping) else title
    if text:
        yield "; ".join(text) if isinstance(text, list) else str(text)
        return
    for part in (*spec.get("vconcat", ()), *spec.get("hconcat", ())):
        yield from _titles(part)
