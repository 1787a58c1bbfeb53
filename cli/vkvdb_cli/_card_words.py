"""How the toy model's card writes numbers, intervals and tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

UNMEASURED = "Not measured: run `make figures` first, then `make toyworld-card`."


def wilson(right: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson's)."""
    z2 = 1.96**2
    middle = (right + z2 / (2 * n)) / (1 + z2 / n)
    half = 1.96 / (1 + z2 / n) * math.sqrt(right * (1 - right) / n + z2 / (4 * n * n))
    return middle - half, middle + half


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table, numbers with two digits; without rows, how to get some."""
    if not rows:
        return UNMEASURED

    def text(value: Any) -> str:
        return f"{value:.2f}" if isinstance(value, float) else str(value)

    lines = [columns, ["---"] * len(columns), *([text(v) for v in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def listed(kinds: Sequence[str]) -> str:
    """Names in a row, or "none"."""
    return ", ".join(kinds) or "none"


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


def by_seed(values: Sequence[float | None] | None, *, digits: int = 2) -> str:
    """One signed number a seed of evaluation data: +.05 +.04 −.01."""
    if not values:
        return "-"
    if digits == 2:
        return " ".join(number(value, sign=True) for value in values)
    return " ".join("-" if v is None else f"{v:+.{digits}f}".replace("-", "\u2212") for v in values)


def verdict(*, shown: bool) -> str:
    """The words of the card."""
    return "shown" if shown else "**not shown**"
