"""What `vkvdb models check` keeps is rows of the catalog, one a comparison, and the verdict that is listed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vkvdb.models._checks import SILENTLY_WRONG, Finding, Report
from vkvdb.paths import Home
from vkvdb_cli.main import main

SQL = """
    SELECT models.name AS model, checks.name AS comparison, verdict, deviation, tolerance, worst,
        options ->> 'attention' AS attention, device
    FROM checks JOIN models USING (model) ORDER BY ALL
"""


def rows(capsys: pytest.CaptureFixture[str]) -> list[list[Any]]:
    """What a person sees who asks for the table."""
    capsys.readouterr()
    assert main(["sql", SQL, "--json"]) == 0
    return [list(row.values()) for row in json.loads(capsys.readouterr().out)]


def listed(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """{model: its verdict in the list}."""
    capsys.readouterr()
    assert main(["models", "list", "--json"]) == 0
    return {row["name"]: row["verdict"] for row in json.loads(capsys.readouterr().out)}


def test_a_check_is_a_row_for_each_comparison(
    home: Home, tiny_dinov2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "check", str(tiny_dinov2), "--attention", "eager"]) == 0
    before = listed(capsys)
    assert main(["sync"]) == 0
    found = rows(capsys)
    (kept,) = (home.store / "checks").glob("*.json")
    deviations = json.loads(kept.read_text())["deviations"]
    assert [row[1] for row in found] == sorted(deviations)
    assert len(found) >= 3
    for model, name, verdict, deviation, tolerance, worst, attention, device in found:
        assert (model, verdict, attention, device) == ("dinov2", "SUPPORTED", "eager", "cpu")
        told = deviations[name]
        assert [deviation, tolerance, worst] == pytest.approx([told["deviation"], told["tolerance"], told["where"]])
    assert listed(capsys) == before == {"dinov2": "SUPPORTED"}
    assert main(["sync"]) == 0
    assert rows(capsys) == found


def test_each_check_is_kept_and_what_could_not_be_compared_is_null(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    worse = Report(SILENTLY_WRONG, "cells deviates", (Finding("cells", float("inf"), 0.0, "here"),), "cpu")
    nothing = Report("ERROR", "it broke", (), "")
    for report in (worse, nothing):
        monkeypatch.setattr("vkvdb.models._checks.check", lambda *_, told=report: told)
        assert main(["models", "check", "pixels"]) == 1
    assert listed(capsys) == {"pixels": "ERROR"}  # the newest
    assert rows(capsys) == [
        ["pixels", "", "ERROR", None, None, "", "sdpa", ""],
        ["pixels", "cells", "SILENTLY WRONG", None, 0.0, "here", "sdpa", "cpu"],
    ]
    assert main(["db", "rebuild"]) == 0
    assert len(rows(capsys)) == 2
