from __future__ import annotations

import subprocess
import sys

import pytest
import synthetic

from vkvdb import analysis, tracking
from vkvdb.catalog import Catalog
from vkvdb.errors import BadOption, BadQuery, NothingToDraw, TrackingFailed, UnknownName
from vkvdb.store import Store
from vkvdb_cli.main import main

MINE = """-- Models by family
-- $family: only this family
-- $least: at least so many heads
SELECT name, '$.no parameter' AS text -- nor $this
FROM models WHERE ($family IS NULL OR family = $family) AND $least IS NULL
"""


@pytest.fixture
def plugged(home, tmp_path, monkeypatch):
    """A home with results, and a plug-in folder with an analysis of one's own."""
    Catalog(home.catalog).absorb(synthetic.small(Store(home.store)).store)
    (tmp_path / "plugins/analyses").mkdir(parents=True)
    (tmp_path / "plugins/analyses/mine.sql").write_text(MINE)
    monkeypatch.setenv("VKVDB_PLUGINS", str(tmp_path / "plugins"))
    return home


def test_parameters_are_read_from_the_query(plugged):
    assert analysis.parameters("mine") == {"family": "only this family", "least": "at least so many heads"}
    assert set(analysis.parameters("layers")) == {"task", "model", "dataset", "metric", "part"}
    assert all(analysis.parameters("layers").values())


def test_a_query_alone_is_an_analysis(plugged, tmp_path):
    found = analysis.run(plugged, "mine", {"family": "dinov2", "least": None})
    assert (found.chart, found.rows["name"].to_list()) == (None, ["dinov2_small"])
    (path,) = analysis.save(found, tmp_path / "out")
    assert path.read_text().splitlines() == ["name,text", "dinov2_small,$.no parameter"]


def test_a_file_beside_the_query_draws(plugged, tmp_path):
    (tmp_path / "plugins/analyses/mine.py").write_text("def chart(rows):\n    return f'{len(rows)} drawn'\n")
    assert analysis.run(plugged, "mine").chart == "3 drawn"


@pytest.mark.parametrize(
    ("name", "given", "error", "words"),
    [
        ("mine", {"family": "none such"}, NothingToDraw, "family none such"),
        ("mine", {"colour": 1}, BadOption, "has the parameters family, least"),
        ("layer", {}, UnknownName, "did you mean 'layers'"),
        ("layers", {"task": "no such task"}, NothingToDraw, "task no such task"),
        ("layers", {"part": "key_rotated"}, NothingToDraw, "part"),
    ],
)
def test_what_can_not_be_answered_is_one_line(plugged, name, given, error, words):
    with pytest.raises(error, match=words) as refused:
        analysis.run(plugged, name, given)
    assert "\n" not in str(refused.value)


def test_an_analysis_only_reads(plugged, tmp_path):
    (tmp_path / "plugins/analyses/mine.sql").write_text("DELETE FROM models")
    with pytest.raises(BadQuery):
        analysis.run(plugged, "mine")


def test_a_file_where_the_folder_should_be(plugged, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadOption, match="--out"):
        analysis.save(analysis.run(plugged, "mine"), tmp_path / "file")


def test_the_command_prints_jobs_and_paths(home, tmp_path, capsys):
    jobs = [m["job"] for m in synthetic.small(Store(home.store)).store.jobs()]
    arguments = ["analyze", "layers", "--task", "correspondence", "--part", "value", "--format", "svg"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0  # absorbs by itself
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[-1] == str(tmp_path / "out/layers.svg")
    assert {line[:8] for line in out.splitlines()[1:-1]} == {job[:8] for job in jobs}
    assert (tmp_path / "out/layers.svg").read_text().startswith("<svg")
    assert main(["analyze", "layers", "--format", "gif"]) == 1
    assert capsys.readouterr().err == "vkvdb: --format gif: there are html, png, svg\n"
    assert main(["analyze", "layers", "--rows", "--model", "onevision"]) == 0
    assert capsys.readouterr().out.startswith("dataset_name,task,")
    assert main(["analyze", "layers", "--dataset", "spair-test"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_the_chart_is_kept_in_mlflow_or_it_says_why_not(home, tmp_path, capsys, monkeypatch):
    jobs = {m["job"] for m in synthetic.small(Store(home.store)).store.jobs()}
    kept = []
    monkeypatch.setattr(tracking, "log_chart", lambda *given: kept.append(given))
    arguments = ["analyze", "layers", "--format", "svg", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--no-track"]) == 0
    assert kept == []
    assert main(arguments) == 0
    ((_, name, of, picture),) = kept
    assert (name, of, picture[:4]) == ("layers", jobs, b"\x89PNG")

    def failing(*_):
        raise TrackingFailed(uri="x", why="y")

    monkeypatch.setattr(tracking, "log_chart", failing)
    capsys.readouterr()
    assert main(arguments) == 0
    assert capsys.readouterr().err.count("\n") == 1


def test_a_plug_ins_analysis_is_a_command(plugged, capsys):
    assert main(["analyze", "--help"]) == 0
    listed = capsys.readouterr().out
    assert "Models by family" in listed
    assert "layers" in listed
    assert main(["analyze", "mine", "--help"]) == 0
    assert "--least TEXT" in capsys.readouterr().out


def test_help_is_light():
    code = (
        "import sys; from vkvdb_cli.main import main; main(['analyze', 'layers', '--help']); main(['sql', '--help']);"
        "main(['db', '--help']); main(['sync', '--help']); main(['ui', '--help']);"
        "heavy = ('duckdb', 'sqlalchemy', 'polars', 'altair', 'mlflow', 'torch', 'pyarrow');"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
