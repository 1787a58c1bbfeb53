"""`make` makes .venv by itself, and tells a complete one from an interrupted one. A stand-in for Python: no network."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Writes its arguments to `log`; `-m venv` copies itself into .venv, as the real one does; PIP=1 makes pip fail.
STAND_IN = """#!/bin/sh
echo "$*" >> log
case "$*" in
  "-m venv --clear .venv") rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
  "-m pip"*) exit "${PIP:-0}" ;;
esac
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The requirement files and the Makefile, in a folder with a space in its name."""
    folder = tmp_path / "a tree"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / "python").write_text(STAND_IN)
    (folder / "python").chmod(0o755)
    return folder


def make(tree: Path, *words: str, **environment: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run make; give what it said and what Python was asked to do."""
    log = tree / "log"
    log.unlink(missing_ok=True)
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ARGS", "MAKE", "PIP", "PYTHON", "VKVDB"))
    }
    done = subprocess.run(
        ["make", *words],
        cwd=tree,
        env=clean | {"PYTHON": "./python"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done, log.read_text().splitlines() if log.exists() else []


def steps(asked: list[str]) -> list[str]:
    return [line.split()[1] for line in asked if line.startswith("-m")]


def test_a_target_installs_once(tree: Path) -> None:
    done, asked = make(tree, "test", PIP_ARGS="--extra-index-url https://example.org/simple")
    assert done.returncode == 0, done.stderr
    assert steps(asked) == ["venv", "pip", "pytest"]
    assert asked[2].endswith("-c constraints.txt -e .[dev] --extra-index-url https://example.org/simple")
    assert len(list((tree / ".venv").glob(".stamp-*"))) == 1
    assert steps(make(tree, "test")[1]) == ["pytest"]
    assert steps(make(tree, "docs")[1]) == ["vkvdb_cli.docs"]


def test_an_interrupted_install_starts_afresh(tree: Path) -> None:
    done, asked = make(tree, "test", PIP="1")
    assert done.returncode != 0
    assert steps(asked) == ["venv", "pip"]
    assert not list((tree / ".venv").glob(".stamp-*"))
    assert steps(make(tree, "test")[1]) == ["venv", "pip", "pytest"]


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_changed_requirement_is_installed_into_the_complete_one(tree: Path, name: str) -> None:
    make(tree, "venv")
    with (tree / name).open("a") as file:
        file.write("# changed\n")
    assert steps(make(tree, "venv", PIP="1")[1]) == ["pip"]
    assert steps(make(tree, "venv")[1]) == ["venv", "pip"], "the failed one before left nothing to trust"
    assert steps(make(tree, "venv")[1]) == []
    assert len(list((tree / ".venv").glob(".stamp-*"))) == 1


def test_no_python_is_one_line(tree: Path) -> None:
    done, _ = make(tree, "test", PYTHON="python3.99")
    assert done.returncode != 0
    assert done.stderr.splitlines()[0].startswith("vkvdb needs Python 3.11 or newer")
    assert make(tree, "clean", PYTHON="python3.99")[0].returncode == 0


def test_python_is_found(tree: Path) -> None:
    done, _ = make(tree, "-n", "venv", PYTHON="")
    assert "python3" in done.stdout
    assert "venv --clear .venv" in done.stdout


@pytest.mark.parametrize(("home", "used"), [("", "{tree}/.vkvdb"), ("/some/home dir", "/some/home dir")])
def test_demo_has_a_home(tree: Path, home: str, used: str) -> None:
    make(tree, "venv")
    script = tree / ".venv/bin/vkvdb"
    script.write_text('#!/bin/sh\necho "home=$VKVDB_HOME $*"\n')
    script.chmod(0o755)
    done, _ = make(tree, "demo", **({"VKVDB_HOME": home} if home else {}))
    assert f"home={used.format(tree=tree)} demo\n" in done.stdout


def test_clean_keeps_homes(tree: Path) -> None:
    make(tree, "venv")
    (tree / ".vkvdb").mkdir()
    make(tree, "clean")
    assert not (tree / ".venv").exists()
    assert (tree / ".vkvdb").exists()


def test_ci_runs_what_the_readme_says() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[-1] == "exec make test"
    assert "make test" in (ROOT / "README.md").read_text()
