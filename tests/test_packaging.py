"""The wheel holds the library, its command line and its data, and works outside the tree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as opened:
        yield opened


def tree(folder: str, suffixes: str) -> set[str]:
    """Files of the checkout with one of these suffixes."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*")
        if path.suffix in suffixes.split() and "__pycache__" not in path.parts
    }


def test_wheel_holds_all_of_the_tree(wheel: zipfile.ZipFile) -> None:
    inside = set(wheel.namelist())
    assert tree("vkvdb", ".py .sql .safetensors .json .jinja") <= inside
    assert {path.removeprefix("cli/") for path in tree("cli", ".py")} <= inside
    assert {f"vkvdb/_{path}" for path in tree("analyses", ".py .sql")} <= inside
    assert {f"vkvdb/_{path}" for path in tree("migrations", ".py .mako")} <= inside
    assert "vkvdb/_migrations/env.py" in inside


def test_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    assert {name.split("/")[0] for name in wheel.namelist()} == {"vkvdb", "vkvdb_cli", "vkvdb-0.1.0.dist-info"}
    assert not [name for name in wheel.namelist() if "__pycache__" in name or name.endswith(".pyc")]


def test_metadata(wheel: zipfile.ZipFile) -> None:
    metadata = wheel.read("vkvdb-0.1.0.dist-info/METADATA").decode()
    assert "Requires-Python: >=3.11" in metadata
    assert "License-Expression: Apache-2.0" in metadata
    assert wheel.read("vkvdb-0.1.0.dist-info/licenses/LICENSE").startswith(
        b"\n                                 Apache License"
    )
    assert b"vkvdb = vkvdb_cli.main:main" in wheel.read("vkvdb-0.1.0.dist-info/entry_points.txt")


def test_sdist_can_be_tested(dist: Path) -> None:
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"Makefile", "constraints.txt", "README.md", "LICENSE", "tests/test_packaging.py"} <= inside
    assert not [name for name in inside if name.startswith((".venv", ".git/", "build/", ".vkvdb"))]


def test_wheel_works_outside_the_tree(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "site")
    plugins = tmp_path / "plugins/tasks"
    plugins.mkdir(parents=True)
    (plugins / "throwaway.py").write_text('"""A task of one\'s own."""\n')
    code = (
        "import vkvdb, vkvdb_cli; from vkvdb import paths, registry;"
        "print(vkvdb.__file__, vkvdb_cli.__file__, paths.shipped('analyses'), paths.shipped('migrations'), sep='\\n');"
        "print(registry.names('analyses'), registry.help_line('tasks', 'throwaway'));"
        "from vkvdb_cli.main import main; main(['--help'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "VKVDB_PLUGINS": str(tmp_path / "plugins")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert all(line.startswith(str(tmp_path / "site")) for line in lines[:4]), lines
    assert "layers" in lines[4]
    assert "A task of one's own." in lines[4]
    assert "Usage: vkvdb" in done.stdout


def test_constraints_name_every_requirement() -> None:
    import tomllib

    def plain(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {
        plain(re.match(r"[\w.-]+", each)[0])
        for each in [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    }
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = {plain(line.partition("==")[0]): line.partition("==")[2] for line in lines}
    assert wanted <= set(pinned)
    assert all(re.fullmatch(r"[\w.]+", version) for version in pinned.values()), "exact versions without a local suffix"
    assert pinned["torch"] == "2.13.0"
