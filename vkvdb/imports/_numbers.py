"""Shared by the readers of result files: what a number is, and the file as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vkvdb.errors import BadImport


@dataclass(frozen=True)
class Number:
    """One number of a result file: the model and the benchmark as the file calls them, what is measured, of how many.

    `value` is as the file has it: some tools write shares, some percent. `n` is None where the file does not say.
    """

    model_name: str
    benchmark: str
    metric: str
    value: float
    n: int | None = None


def as_number(value: Any) -> float | None:
    """A finite number, or a text that is one (what JSON has no type for, tools write as text); else None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def flat(value: Any, name: str = "", between: str = "|") -> Iterator[tuple[str, float]]:
    """(name, number) of every number in nested objects and lists, names joined by `between`; the rest is left out."""
    if isinstance(value, Mapping):
        parts: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list):
        parts = enumerate(value) if len(value) > 1 else [("", part) for part in value]
    else:
        number = as_number(value)
        if number is not None:
            yield name or "value", number
        return
    for key, part in parts:
        yield from flat(part, between.join(p for p in (name, str(key).strip()) if p), between)


def unique(names: Iterator[tuple[str, float]]) -> Iterator[tuple[str, float]]:
    """The same, a name that comes again marked `#2`, `#3`: no number is lost."""
    seen: dict[str, int] = {}
    for name, value in names:
        seen[name] = seen.get(name, 0) + 1
        yield (name if seen[name] == 1 else f"{name}#{seen[name]}"), value


def text_of(path: Path) -> str:
    """The file as UTF-8 text, however it marks its beginning. Raises BadImport."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadImport(path=path, why=error.strerror or error, expected="a file that can be read") from error
    except UnicodeDecodeError as error:
        raise BadImport(path=path, why="it is no text", expected="JSON or CSV in UTF-8") from error


def json_of(path: Path, expected: str) -> Any:
    """The file as JSON. Raises BadImport, which says what was expected."""
    try:
        return json.loads(text_of(path))
    except (ValueError, RecursionError) as error:
        raise BadImport(path=path, why=f"it is no JSON ({error})", expected=expected) from error
