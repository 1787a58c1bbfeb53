"""vkvdb from Python: the same answers as the command line, and an import that costs nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import synthetic

import vkvdb
from vkvdb import analysis, syncing
from vkvdb.catalog import Catalog
from vkvdb.errors import BadOption, BadQuery, NothingToDraw, UnknownName
from vkvdb.paths import Home
from vkvdb.store import Store


@pytest.fixture
def world(home: Home) -> synthetic.World:
    return synthetic.small(Store(home.store))


def test_importing_vkvdb_imports_nothing_else() -> None:
    code = "import sys, vkvdb; vkvdb.__version__; print([m for m in sys.modules if m.startswith('vkvdb')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['vkvdb']\n"
    assert {"open", "analyze"} <= set(vkvdb.__all__)
    with pytest.raises(AttributeError, match="no attribute 'analyse'"):
        vkvdb.analyse  # noqa: B018


def test_sql_gives_a_polars_frame_and_absorbs_first(home: Home, world: synthetic.World) -> None:
    db = vkvdb.open(home.root)
    found = db.sql("SELECT name, family FROM models WHERE family = $family", family="dinov2")
    assert isinstance(found, pl.DataFrame)
    assert found.to_dicts() == [{"name": "dinov2_small", "family": "dinov2"}]
    world.model("another", "dinov2", layers=2, heads=0)
    assert len(db.sql("SELECT name FROM models WHERE family = $family", family="dinov2")) == 2
    assert vkvdb.open().sql("SELECT count(*) AS n FROM models").item() == 4


def test_nothing_can_be_written(home: Home, world: synthetic.World) -> None:
    with pytest.raises(BadQuery):
        vkvdb.open(home.root).sql("DELETE FROM models")


def test_analyze_gives_the_chart_of_the_command_line(home: Home, world: synthetic.World) -> None:
    import altair as alt

    chart = vkvdb.analyze("layers", task="correspondence", metric="pck")
    assert isinstance(chart, alt.TopLevelMixin)
    own = analysis.run(home, "layers", {"task": "correspondence", "metric": "pck"}).chart
    assert own is not None
    assert chart.to_dict()["datasets"] == own.to_dict()["datasets"]
    with pytest.raises(UnknownName, match="did you mean 'layers'"):
        vkvdb.analyze("layer")
    with pytest.raises(BadOption, match="has the parameters"):
        vkvdb.analyze("layers", tasks="correspondence")
    with pytest.raises(NothingToDraw):
        vkvdb.analyze("layers", task="nothing")


def test_an_analysis_without_a_chart_gives_its_rows(
    home: Home, world: synthetic.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "analyses").mkdir()
    (tmp_path / "analyses" / "sizes.sql").write_text("-- How many.\nSELECT count(*) AS n FROM models\n")
    monkeypatch.setenv("VKVDB_PLUGINS", str(tmp_path))
    assert vkvdb.open().analyze("sizes").to_dicts() == [{"n": 3}]


def test_a_folder_that_is_no_home_is_refused_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(BadOption, match="it is no home"):
        vkvdb.open(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_what_can_not_be_absorbed_is_a_warning(home: Home, world: synthetic.World) -> None:
    (world.store.root / "models" / "ffffffffffff.json").write_text("{")
    with pytest.warns(UserWarning, match=r"ffffffffffff\.json"):
        assert vkvdb.open().sql("SELECT count(*) AS n FROM models").item() == 3


def test_beside_a_reading_shell_what_is_absorbed_can_be_read(
    home: Home, world: synthetic.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syncing, "PATIENCE", 0.1)
    Catalog(home.catalog).absorb(world.store)
    world.model("another", "dinov2", layers=2, heads=0)
    code = f"import duckdb, sys; c = duckdb.connect({str(home.catalog)!r}, read_only=True)"
    code += "; print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as shell:
        assert shell.stdout is not None
        assert shell.stdout.readline() == "open\n"
        with pytest.warns(UserWarning, match="may lack the newest results"):
            assert vkvdb.open().sql("SELECT count(*) AS n FROM models").item() == 3
        shell.communicate("")
