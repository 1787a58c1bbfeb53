"""The file system is the registry: `vkvdb/tasks/correspondence.py` is the task `correspondence`.

Kinds: tasks, datasets, models, imports, analyses. A file whose name starts with `_` is shared code.
`VKVDB_PLUGINS=DIR[:DIR...]` adds folders of one's own, with the same sub-folders (`DIR/tasks/mine.py`). Names and help
lines are read without importing anything.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import sys
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from vkvdb.errors import UnknownName
from vkvdb.paths import shipped

# kind -> the variable at the end of each of its files (an analysis is a pair of files and has none)
_VARIABLE = {"tasks": "TASK", "datasets": "DATASET", "models": "FAMILY", "imports": "IMPORT", "analyses": ""}
_SINGULAR = {
    "tasks": "task",
    "datasets": "dataset",
    "models": "model family",
    "imports": "tool",
    "analyses": "analysis",
}


def _folders(kind: str) -> list[Path]:
    own = shipped("analyses") if kind == "analyses" else Path(__file__).parent / kind
    plugins = [Path(d) / kind for d in os.environ.get("VKVDB_PLUGINS", "").split(os.pathsep) if d]
    return [own, *(d for d in plugins if d.is_dir())]


def files(kind: str) -> dict[str, Path]:
    """{name: its file} of a kind, in the order of names; an own file wins over a plug-in's."""
    suffix = ".sql" if kind == "analyses" else ".py"
    found: dict[str, Path] = {}
    for folder in _folders(kind):
        for path in sorted(folder.glob(f"*{suffix}")):
            if not path.stem.startswith("_"):
                found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def names(kind: str) -> list[str]:
    """The names of a kind."""
    return list(files(kind))


def require(kind: str, name: str) -> Path:
    """The file of a name; raises UnknownName with the nearest."""
    known = files(kind)
    if name not in known:
        raise UnknownName(
            kind=_SINGULAR[kind], name=name, nearest=nearest(name, list(known)), known=", ".join(known) or "none"
        )
    return known[name]


def nearest(name: str, known: list[str]) -> str:
    """`, did you mean 'x'?` or nothing."""
    close = get_close_matches(name, known, n=1)
    return f", did you mean '{close[0]}'?" if close else ""


def help_line(kind: str, name: str) -> str:
    """The first line of a file's docstring, or of an SQL file's comment, read without running it."""
    path = require(kind, name)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".sql":
        return next((line.removeprefix("--").strip() for line in text.splitlines() if line.startswith("--")), "")
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]


def module(kind: str, name: str) -> ModuleType:
    """Import the file of a name. An error in it is the caller's to see."""
    path = require(kind, name)
    if path.parent == Path(__file__).parent / kind:
        return importlib.import_module(f"vkvdb.{kind}.{name}")
    return import_file(f"vkvdb_plugins.{kind}.{name}", path)


def import_file(qualified: str, path: Path) -> ModuleType:
    """Import a Python file that lies outside any package."""
    if qualified in sys.modules:
        return sys.modules[qualified]
    spec = importlib.util.spec_from_file_location(qualified, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[qualified] = loaded
    try:
        spec.loader.exec_module(loaded)
    except BaseException:
        del sys.modules[qualified]
        raise
    return loaded


def load(kind: str, name: str) -> Any:
    """The class that a file defines: `load("tasks", "correspondence")`."""
    return getattr(module(kind, name), _VARIABLE[kind])
