"""A family, a dataset, a task imports no other one, only code that says it is shared by an underscore (`_warp.py`)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import vkvdb

PACKAGE = Path(vkvdb.__file__).parent


def imported(path: Path, package: str) -> set[str]:
    """The modules of a package that a file imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {
            name.removeprefix(f"{package}.").partition(".")[0] for name in names if name.startswith(f"{package}.")
        }
    return found


@pytest.mark.parametrize(
    "path",
    [each for kind in ("models", "datasets", "tasks", "imports") for each in sorted((PACKAGE / kind).glob("*.py"))],
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_siblings_share_only_shared_code(path: Path) -> None:
    package = f"vkvdb.{path.parent.name}"
    assert [name for name in imported(path, package) if not name.startswith("_")] == []


def test_an_import_of_a_sibling_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import vkvdb.models.a\nfrom vkvdb.models import b\ndef f():\n    from vkvdb.models.c import d\n"
        "from vkvdb.models._e import x\nfrom vkvdb.tasks.g import y\n"
    )
    assert imported(file, "vkvdb.models") == {"a", "b", "c", "_e"}
