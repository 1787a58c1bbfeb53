"""What several tests share: an empty home, photographs, tiny checkpoints."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from vkvdb.paths import Home, find_home

# Set before anything imports them: no test may reach a hub, a telemetry host or a GPU.
os.environ.update(HF_HUB_OFFLINE="1", MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true", CUDA_VISIBLE_DEVICES="")
# Tests run side by side: more threads each would only stand in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A process that was started in the background is born deaf to Ctrl-C, and so are the tests that press it.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).parents[1].parent / "shared"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """An empty home of this test's own."""
    monkeypatch.setenv("VKVDB_HOME", str(tmp_path / "home"))
    for name in ("VKVDB_STORE", "VKVDB_PLUGINS", "VKVDB_MODEL", "VKVDB_DATASET", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return find_home()


@pytest.fixture(scope="session")
def onevision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA-OneVision with the real processor's settings (729 cells)."""
    return tiny.llava_onevision(tmp_path_factory.mktemp("models") / "onevision")


@pytest.fixture(scope="session")
def small_onevision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tinier LLaVA-OneVision: 56 pixels, 16 cells."""
    return tiny.llava_onevision(tmp_path_factory.mktemp("models") / "small", side=56)


@pytest.fixture(scope="session")
def tiny_dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DINOv2."""
    return tiny.dinov2(tmp_path_factory.mktemp("models") / "dinov2")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny checkpoint of a family with the real processor's settings; each is made once."""
    folder = tmp_path_factory.mktemp("tiny")

    def make(family: str) -> Path:
        path = folder / family
        if not path.exists():
            {**tiny.VLMS, **tiny.ENCODERS}[family](path)
        return path

    return make


@pytest.fixture(scope="session")
def readers(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """{family: its tiny checkpoint, loaded}, each loaded once; what a test changes in one, it puts back."""
    from reading import loaded

    home = Home(tmp_path_factory.mktemp("home"))
    made: dict[str, Any] = {}

    def read(family: str) -> Any:
        if family not in made:
            made[family] = loaded(tiny_model(family), home)
        return made[family]

    return read


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real samples of public datasets, where they lie beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"no samples at {SHARED}")
    return SHARED
