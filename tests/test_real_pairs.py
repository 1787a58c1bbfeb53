"""Every family on real pairs of SPair-71k, by the command; a real ViT against its random twin."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from vkvdb.catalog import Catalog
from vkvdb.paths import Home
from vkvdb.store import Store
from vkvdb_cli.main import main

pytestmark = pytest.mark.slow

FAMILIES = ("llava", "llava_next", "llava_onevision", "qwen2_5_vl", "siglip", "clip", "dinov2")


@pytest.fixture
def pairs(home: Home, shared: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("VKVDB_HOME", str(home.root))
    assert main(["ingest", "spair-test", "--root", str(shared / "data/SPair-71k")]) == 0
    return home


def score(model: Path, *more: str) -> int:
    options = ["--task", "correspondence", "--dataset", "spair-test", "--model", str(model), "--now", *more]
    return int(main(["score", *options]))


def chosen(home: Home, stage: str) -> dict[str, tuple[float, float, float, int]]:
    catalog = Catalog(home.catalog)
    catalog.absorb(Store(home.store))
    sql = "SELECT model_name, value, low, high, n FROM chosen WHERE metric = 'pck_point' AND stage = $stage"
    return {name: tuple(row) for name, *row in catalog.query(sql, {"stage": stage}).rows}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_scored(family, pairs, tmp_path):
    path = getattr(tiny, family)(tmp_path / family)
    assert score(path, "--no-controls") == 0
    stage = "encoder" if family in ("siglip", "clip", "dinov2") else "decoder"
    value, _, _, n = chosen(pairs, stage)[path.name]
    assert n == 9
    assert 0 <= value < 0.5


def test_a_real_encoder_beats_its_random_twin(pairs, shared, record_property):
    path = shared / "weights/dinov2_small"
    assert score(path) == 0
    found = chosen(pairs, "encoder")
    real, twin = found[path.name], found[f"{path.name}@random:0"]
    record_property("pck_point", f"real {real}, random twin {twin}")
    assert real[0] > twin[2]  # the intervals of so few pairs are wide and touch
