from __future__ import annotations

import csv
import io
import json
import subprocess
import sys

import pytest
import synthetic

from vkvdb import syncing
from vkvdb.catalog import Catalog
from vkvdb.paths import shipped
from vkvdb.store import Store
from vkvdb_cli import _after
from vkvdb_cli.commands.sql import typed
from vkvdb_cli.main import main


@pytest.fixture
def world(home):
    return synthetic.small(Store(home.store))


def said(capsys, *arguments, code=0):
    """What a command line prints on stdout, and on stderr."""
    assert main([*arguments]) == code
    return capsys.readouterr()


def test_a_query_absorbs_first_and_prints_a_table(home, world, capsys):
    out, err = said(
        capsys, "sql", "SELECT name, family_version AS v FROM models WHERE family = $f", "-p", "f", "dinov2"
    )
    assert (out, err) == ("name          v\ndinov2_small  1\n", "")
    world.model("another", "dinov2", layers=2, heads=0)
    assert "another" in said(capsys, "sql", "FROM models").out


def test_forms(home, world, capsys):
    query = "SELECT name, 1.5 AS x, NULL AS nothing FROM models ORDER BY name LIMIT 2"
    rows = list(csv.DictReader(io.StringIO(said(capsys, "sql", query, "--csv").out)))
    assert rows == [
        {"name": "dinov2_small", "x": "1.5", "nothing": ""},
        {"name": "onevision", "x": "1.5", "nothing": ""},
    ]
    objects = json.loads(said(capsys, "sql", query, "--json").out)
    assert objects[0] == {"name": "dinov2_small", "x": "1.5", "nothing": None} | {"x": objects[0]["x"]}


def test_a_query_from_stdin(home, world, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("SELECT count(*) AS n\nFROM jobs;\n"))
    assert said(capsys, "sql", "-").out == "n\n3\n"


def test_without_a_query_tables_and_views_are_listed(home, world, capsys):
    out = said(capsys, "sql").out
    for name in ("scores", "results", "best_layer", "newest", "summaries"):
        assert any(line.split()[0] == name and len(line.split()) > 5 for line in out.splitlines())
    assert "alembic" not in out


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-2", -2),
        ("0.05", 0.05),
        ("007", "007"),
        ("12e4", "12e4"),
        ("x y", "x y"),
        ("", ""),
        ("true", "true"),
    ],
)
def test_values_are_typed_as_they_are_written(text, value):
    assert typed(text) == value
    assert type(typed(text)) is type(value)


@pytest.mark.parametrize("query", ["SELECT nope FROM jobs", "DROP TABLE jobs", "SELECT $n", "SELECT * FROM 'x.csv'"])
def test_a_bad_query_is_one_line(home, world, capsys, query):
    out, err = said(capsys, "sql", query, code=1)
    assert out == ""
    assert err.startswith("vkvdb: the query was refused: ")
    assert err.count("\n") == 1


def shell(path, read_only: bool) -> subprocess.Popen[str]:
    code = f"import duckdb, sys; c = duckdb.connect({str(path)!r}, read_only={read_only})"
    code += "; print('open', flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "open\n"
    return process


def test_a_locked_catalog_is_one_line(home, world, capsys, monkeypatch):
    monkeypatch.setattr(syncing, "PATIENCE", 0.2)
    Catalog(home.catalog).absorb(world.store)
    with shell(home.catalog, read_only=False) as process:
        for arguments in (["sql", "FROM jobs"], ["db", "rebuild"], ["db", "upgrade"], ["sync"], ["analyze", "layers"]):
            out, err = said(capsys, *arguments, code=1)
            assert out == ""
            assert err.splitlines()[-1].startswith("vkvdb: the catalog is open in another process (")
            assert f"PID {process.pid}" in err
        process.communicate("")


def test_beside_a_reading_shell_what_is_absorbed_can_be_read(home, world, capsys, monkeypatch):
    monkeypatch.setattr(syncing, "PATIENCE", 0.2)
    Catalog(home.catalog).absorb(world.store)
    world.score("onevision", 0.1, task="foreground")
    with shell(home.catalog, read_only=True) as process:
        out, err = said(capsys, "sql", "SELECT count(*) AS n FROM jobs")
        assert out == "n\n3\n"
        assert "may lack the newest results" in err
        assert err.count("\n") == 1
        process.communicate("")
    assert said(capsys, "sql", "SELECT count(*) AS n FROM jobs").out == "n\n4\n"


def test_damage_is_told_beside_the_answer(home, world, capsys):
    (world.store.root / "models/ffffffffffff.json").write_text("{")
    out, err = said(capsys, "sql", "SELECT count(*) AS n FROM models")
    assert out == "n\n3\n"
    assert "ffffffffffff.json" in err
    assert err.count("\n") == 1


def test_a_catalog_that_can_not_be_used_fails_no_work(home, world, capsys):
    home.catalog.write_bytes(b"no database" * 1000)
    _after.absorb_and_mirror(home)
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "type vkvdb db rebuild (results are safe" in err
    assert said(capsys, "sql", "FROM jobs", code=1).err.endswith("type vkvdb db rebuild\n")
    assert said(capsys, "db", "rebuild").out.endswith("3 models, 1 datasets, 3 jobs\n")
    home.catalog.unlink()
    home.catalog.with_name("catalog.duckdb.lock").unlink()
    home.catalog.with_name("catalog.duckdb.lock").mkdir()
    err = said(capsys, "db", "upgrade", code=1).err
    assert (err.count("\n"), "Is a directory" in err) == (1, True)


# --- vkvdb db ---


def test_db_upgrade_says_what_it_did(home, capsys):
    assert said(capsys, "db", "upgrade").out == f"made {home.catalog} at revision 0003\n"
    assert said(capsys, "db", "upgrade").out == f"{home.catalog} is at revision 0003\n"


def test_db_check_exits_with_1_when_something_is_wrong(home, world, capsys):
    import duckdb

    assert said(capsys, "db", "check").out == "the catalog: nothing wrong\n"
    with duckdb.connect(home.catalog) as connection:
        connection.execute("DELETE FROM datasets")
    out = said(capsys, "db", "check", code=1).out
    assert "job-without-dataset" in out or "dataset" in out


def test_db_verify_compares_files_and_rows(home, world, capsys):
    assert said(capsys, "db", "verify").out == "the store: nothing wrong\nthe catalog: nothing wrong\n"
    data = next(world.store.root.glob("scores/*/0/0000.parquet"))
    body = bytearray(data.read_bytes())
    body[50] ^= 1
    data.unlink()
    data.write_bytes(body)
    out = said(capsys, "db", "verify", code=1).out
    assert str(data) in out
    assert "the catalog: nothing wrong" in out


def test_db_schema_says_what_columns_hold(home, capsys):
    out = said(capsys, "db", "schema", "scores").out
    assert [line.split()[1] for line in out.splitlines()[1:]] == [
        "job", "sample", "site", "head", "metric", "value", "weight"
    ]  # fmt: skip
    assert "results" in said(capsys, "db", "schema").out
    assert "did you mean 'scores'" in said(capsys, "db", "schema", "score", code=1).err


def test_db_rebuild(home, world, capsys):
    said(capsys, "sql", "FROM jobs")
    home.catalog.unlink()
    assert said(capsys, "db", "rebuild").out == f"rebuilt {home.catalog}: 3 models, 1 datasets, 3 jobs\n"
    assert said(capsys, "sql", "SELECT count(*) AS n FROM jobs").out == "n\n3\n"


@pytest.mark.parametrize("name", ["correlation", "encoder", "keys", "layers", "prefix", "surfacing"])
def test_the_file_of_an_analysis_runs_as_it_is(home, world, capsys, monkeypatch, name):
    query = (shipped("analyses") / f"{name}.sql").read_text(encoding="utf-8")
    pasted = said(capsys, "sql", query, "--json")
    monkeypatch.setattr("sys.stdin", io.StringIO(query))
    assert said(capsys, "sql", "-", "--json") == pasted
    assert json.loads(pasted.out) or name not in {"layers", "encoder"}


def test_a_value_that_is_described_is_null_unless_told(home, world, capsys):
    query = "-- $a: a number\n-- $b: another\nSELECT $a AS a, $b AS b"
    assert said(capsys, "sql", query, "-p", "a", "7", "--csv").out.split() == ["a,b", "7,"]
