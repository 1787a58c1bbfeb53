"""What the demo measures: the short one no more than it can in three minutes, the full one all that the card tells."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vkvdb import planning, planning_ask, planning_keys, planning_prefix
from vkvdb.toyworld import STANDALONE
from vkvdb_cli.commands import demo


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict[str, Any]]]:
    """The calls of each planner; a plan is (task, model, dataset)."""
    calls: dict[str, list[dict[str, Any]]] = {}

    def score(*_: Any, **given: Any) -> list[Any]:
        calls.setdefault("score", []).append(given)
        names = [given["model"], *given["encoders"]]
        names += ["pixels", "toy@random:0", "toy@blank"] if given["controls"] else []
        return [
            SimpleNamespace(told=(given["task"], name, given["dataset"]), checkpoint=SimpleNamespace(name=name))
            for name in names
        ]

    def other(name: str, result: Any) -> Any:
        def call(*_: Any, **given: Any) -> Any:
            calls.setdefault(name, []).append(given)
            return result

        return call

    monkeypatch.setattr(planning, "score_jobs", score)
    monkeypatch.setattr(planning_ask, "ask_job", other("ask", SimpleNamespace(told="ask")))
    monkeypatch.setattr(planning_keys, "calibrate_jobs", other("calibrate", []))
    monkeypatch.setattr(planning_prefix, "prefix_jobs", other("prefix", []))
    return calls


def told(*, full: bool) -> list[Any]:
    dataset = "toyworld-test" if full else "toyworld-demo"
    return [plan.told for plan in demo._measured(None, None, dataset, full=full)]  # type: ignore[arg-type]


def test_the_short_demo_scores_few_samples_and_no_floor_of_its_own(planned: dict[str, list[dict[str, Any]]]) -> None:
    made = told(full=False)
    assert {dataset for _, _, dataset in (plan for plan in made if plan != "ask")} == {"toyworld-demo"}
    assert "colours" not in {plan[1] for plan in made if plan != "ask"}
    limits = {call["task"]: call["choices"].limit for call in planned["score"]}
    assert limits == {**demo.TASKS, "choices": None}
    assert [call["choices"].limit for call in (*planned["calibrate"], *planned["prefix"])] == [64, 24]
    assert not any(call["swaps"] for call in planned["ask"])


def test_the_full_demo_scores_all_with_colours_and_parts(planned: dict[str, list[dict[str, Any]]]) -> None:
    made = told(full=True)
    for task in (*demo.TASKS, "choices"):
        assert ("colours", "toyworld-test") in {(model, on) for name, model, on in set(made) - {"ask"} if name == task}
    parts = [(name, model) for name, model, on in (plan for plan in made if plan != "ask") if on == "toyworld-parts"]
    wanted = ["toy", "toy-siglip", "pixels", "toy@random:0", "colours"]
    assert parts == [("correspondence", model) for model in wanted]
    limits = {call["task"]: call["choices"].limit for call in planned["score"]}
    assert limits == {**dict.fromkeys([*demo.TASKS, "choices"]), "segmentation": 300}
    # What no chart shows is not read, and a model is asked twice over only where the swaps are told.
    assert all("key" not in call["choices"].parts for call in planned["score"])
    assert [call["model"] for call in planned["ask"] if call["swaps"]] == ["toy"]


def test_models_of_the_correlation_are_scored_on_one_task(planned: dict[str, list[dict[str, Any]]]) -> None:
    told(full=False)
    siblings = [call for call in planned["score"] if call["model"] not in ("toy", "colours")]
    assert siblings
    assert {call["task"] for call in siblings} == {demo.ACROSS}
    assert not {call["model"] for call in siblings} & set(STANDALONE.values())
    asked = {call["model"] for call in planned["ask"]}
    assert asked == {"toy", "toy@random:0", *(call["model"] for call in siblings)}


def test_answers_under_a_cut_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []

    def jobs(*_: Any, choices: Any, **__: Any) -> dict[str, Any]:
        limits.append(choices.limit)
        return {}

    monkeypatch.setattr("vkvdb.models._checkpoint.resolve", lambda *_: None)
    monkeypatch.setattr(planning_keys, "group_of", lambda *_: (frozenset({(0, 0)}), ""))
    monkeypatch.setattr(planning_keys, "knockout_jobs", jobs)
    for full in (False, True):
        assert list(demo._cut(None, None, "toyworld-demo", full=full)) == []  # type: ignore[arg-type]
    assert limits == [demo.CUT, demo.FULL_CUT]
