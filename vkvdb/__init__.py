"""The experiment database for what vision-language models see.

In a notebook: `vkvdb.open().sql("SELECT ...")` gives a polars frame, `vkvdb.analyze("layers", task="correspondence")`
an Altair chart (`vkvdb.notebook`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vkvdb.notebook import Database, analyze, open  # noqa: A004 - vkvdb.open, as io.open

__version__ = "0.1.0"
__all__ = ["Database", "__version__", "analyze", "open"]


def __getattr__(name: str) -> Any:
    # Only when they are asked for: every module of ours imports this one, and the command line's help is instant.
    if name in ("Database", "analyze", "open"):
        return getattr(import_module("vkvdb.notebook"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
