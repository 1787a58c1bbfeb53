"""`vkvdb score` and `vkvdb extract` as a person types them: a mistake is one line, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import plugins
import pytest
from fakes import tree

from vkvdb.paths import Home
from vkvdb_cli.main import main


@pytest.fixture
def dots(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home that knows the plug-in dataset, which is made when it is first asked for."""
    monkeypatch.setenv("VKVDB_PLUGINS", str(plugins.write(tmp_path / "plugins")))
    monkeypatch.setenv("VKVDB_DATASET", "dots-test")
    return home


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["score", "--task", "correspondance"], "did you mean 'correspondence'"),
        (["score", "--task", "correspondence", "--model", "/nowhere"], "no such folder"),
        (["score", "--task", "correspondence", "--dataset", "coco-val"], "is not ingested"),
        (["score", "--task", "correspondence", "--dataset", "dots-tast"], "did you mean 'dots-test'"),
        (["score", "--task", "correspondence", "--layers", "7-2"], "numbers and ranges are expected"),
        (["score", "--task", "correspondence", "--parts", "values"], "there are key, key_unrotated, value, hidden"),
        (["score", "--task", "correspondence", "-p", "alpha", "large"], "a value like 0.1 is expected"),
        (["extract", "--model", "/nowhere"], "no such folder"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    dots: Home, small_onevision: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    if "--model" not in arguments:
        arguments = [*arguments, "--model", str(small_onevision)]
    assert main(arguments) == 1
    told = capsys.readouterr().err
    assert says in told
    assert told.count("\n") == 1
    assert not dots.store.exists()


def test_the_short_command_makes_its_dataset_and_queues_the_controls(
    dots: Home, small_onevision: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", "--task", "correspondence", "--model", str(small_onevision)]) == 0
    first = capsys.readouterr().out
    assert [line.split()[3] for line in first.splitlines() if line.startswith("queued")] == [
        "small",
        "pixels",
        "small@random:0",
        "small@blank",
        "small@random-decoder:0",
    ]
    assert main(["score", "--task", "correspondence", "--model", str(small_onevision)]) == 0
    assert capsys.readouterr().out.count("already queued") == 5


def test_a_dry_run_measures_and_queues_nothing(
    dots: Home, small_onevision: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["score", "--task", "correspondence", "--model", str(small_onevision), "--no-controls", "--dry-run"]
    assert main(arguments) == 0
    assert "images to capture" in capsys.readouterr().out
    assert not dots.queue.exists()


def test_extract_says_what_it_will_weigh_and_asks_above_the_budget(
    dots: Home, small_onevision: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["extract", "--model", str(small_onevision), "--now", "--budget-gb", "1e-6"]
    assert main(arguments) == 1
    told = capsys.readouterr()
    assert "40 images x 0.02 MB at 8 sites" in told.out
    assert "add --yes" in told.err
    assert not (dots.store / "captures").exists()
    assert main([*arguments, "--yes"]) == 0
    kept = tree(dots.store / "captures")
    assert sum(len(data) for data in kept.values() if data) >= 40 * 18432
