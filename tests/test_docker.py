"""What can be seen of the images without building them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from vkvdb_cli.main import command_names

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"


@pytest.fixture(scope="module")
def dockerfile() -> list[tuple[str, str]]:
    """(instruction, rest) in order, comments dropped and continued lines joined."""
    text = re.sub(r"^#.*\n", "", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return loaded


def rest(dockerfile: list[tuple[str, str]], instruction: str) -> list[str]:
    return [words for name, words in dockerfile if name == instruction]


def test_only_known_instructions(dockerfile: list[tuple[str, str]]) -> None:
    known = {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "USER", "VOLUME", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in dockerfile} <= known
    assert dockerfile[0] == ("FROM", "python:3.11-slim")


def test_copied_files_exist_and_are_not_ignored(dockerfile: list[tuple[str, str]]) -> None:
    allowed = {
        line[1:] for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")
    }
    copied = {source for words in rest(dockerfile, "COPY") for source in words.split()[:-1]}
    assert copied == allowed
    assert all((ROOT / source).exists() for source in copied)


def test_all_that_the_wheel_needs_is_copied(dockerfile: list[tuple[str, str]]) -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {Path(path).parts[0] for path in wheel["only-include"]}
    needed |= {project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml", "constraints.txt"}
    assert needed == {source for words in rest(dockerfile, "COPY") for source in words.split()[:-1]}


def test_image_is_pinned_and_not_root(dockerfile: list[tuple[str, str]]) -> None:
    assert any("pip install -c constraints.txt" in words for words in rest(dockerfile, "RUN"))
    names = [name for name, _ in dockerfile]
    assert rest(dockerfile, "USER") == ["vkvdb"]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name in {"RUN", "COPY"})
    assert json.loads(rest(dockerfile, "ENTRYPOINT")[0]) == ["vkvdb"]
    assert json.loads(rest(dockerfile, "CMD")[0]) == ["--help"]
    assert rest(dockerfile, "VOLUME") == ["/data"]
    assert "VKVDB_HOME=/data" in rest(dockerfile, "ENV")[0]


def test_compose_stands_on_the_image(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {"worker", "mlflow"}
    for service in compose["services"].values():
        assert (DOCKER / service["build"]["context"]).resolve() == ROOT
        assert (ROOT / service["build"]["dockerfile"]).is_file()
        named = [volume.partition(":")[0] for volume in service["volumes"] if re.match(r"[\w-]+:", volume)]
        assert named == ["home"]
        assert set(named) <= set(compose["volumes"])
        assert "home:/data" in service["volumes"]


def test_compose_worker_waits_for_mlflow(compose: dict[str, Any]) -> None:
    worker, mlflow = compose["services"]["worker"], compose["services"]["mlflow"]
    assert worker["command"][0] in command_names()
    assert worker["hostname"], "the home's host must outlive the container"
    assert worker["environment"]["VKVDB_HOME"] == "/data"
    assert worker["depends_on"]["mlflow"]["condition"] == "service_healthy"
    assert "healthcheck" in mlflow
    assert all(port.startswith("127.0.0.1:") for port in mlflow["ports"]), "MLflow has no password"


def test_both_use_the_same_mlflow_database(compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from vkvdb.paths import Home

    command = compose["services"]["mlflow"]["command"]
    assert command[command.index("--backend-store-uri") + 1] == f"sqlite:///{Home(Path('/data')).mlflow}"
