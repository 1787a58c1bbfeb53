"""The toy model's card: its tables against planted truths, and what its words stand on."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import answered
import numpy as np
import pytest
import synthetic

from vkvdb import analysis
from vkvdb.catalog import Catalog
from vkvdb.paths import Home
from vkvdb.store import Store
from vkvdb.toyworld import evaluate
from vkvdb_cli import _card_tables, card
from vkvdb_cli._card_words import UNMEASURED, by_seed, number, wilson

GROUPS = ("fish", "dog", "horse", "truck")
BEST = (1, 1)  # layer and head of the image values
NOTES = {"metrics": ["pck"]}


def planted(best: float, others: float) -> synthetic.Truth:
    """Image values of one head that are better than all else."""

    def truth(site: Any, head: int) -> float:
        own = site.stage == "decoder" and site.part == "value" and (site.layer, head) == BEST
        return best if own else 0.05 if site.stage == "floor" else others

    return truth


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A model, its controls and a text before the image, on samples of three draws."""
    home = Home(tmp_path_factory.mktemp("card"))
    world = synthetic.World(Store(home.store))
    labels = [(GROUPS[n % 4], f"draw{n % 3}-{n // 2}") for n in range(96)]
    world.dataset("toyworld-test", labels=labels)
    world.model("toy")
    world.model("toy@random:0", variant="random:0")
    world.model("pixels", "pixels", layers=1, heads=0)
    world.model("colours", "colours", layers=1, heads=0)
    world.model("toy-siglip", "siglip", layers=3, heads=0)
    given: dict[str, Any] = {"dataset": "toyworld-test", "notes": NOTES, "noise": 0.05}
    world.score("toy", planted(0.6, 0.3), **given)
    world.score("toy@random:0", 0.1, **given)
    world.score("pixels", 0.2, **given)
    world.score("colours", 0.7, **given)
    world.score("toy-siglip", lambda site, _: 0.2 + 0.1 * site.layer, **given)
    for prefix, value in (("tokens=5:", 0.5), ("tokens=5:a thing", 0.54)):
        world.score("toy", planted(value, 0.3), prefix=prefix, **{**given, "noise": 0.0})
    Catalog(home.catalog).absorb(world.store)
    return home


@pytest.fixture(autouse=True)
def here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "home" in request.fixturenames:
        monkeypatch.setenv("VKVDB_HOME", str(request.getfixturevalue("home").root))


def cells(text: str) -> list[list[str]]:
    """The rows of a Markdown table, without its head."""
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines()[2:]]


def numbers(home: Home, model: str, site: int, head: int) -> dict[int, tuple[float, float, str, str]]:
    """{sample: (value, weight, group, cluster)} at a site and head."""
    found = Catalog(home.catalog).query(
        "SELECT sample, scores.value, weight, grp, cluster FROM scores JOIN jobs USING (job) JOIN samples USING "
        "(dataset, sample) WHERE model_name = $model AND prefix = '' AND site = $site AND head = $head",
        {"model": model, "site": site, "head": head},
    )
    return {row[0]: row[1:] for row in found.rows}


def paired(one: Any, other: Any, groups: Sequence[str], draw: str) -> tuple[float, float]:
    """The mean difference of two places and its error, clustered; computed from scores alone."""
    names = sorted({g for s, (_, _, g, c) in one.items() if g in groups and c.startswith(draw)})
    parts: dict[str, float] = {}
    means = []
    for group in names:
        rows = [s for s, (_, _, g, c) in one.items() if g == group and c.startswith(draw)]
        ends = []
        for side, sign in ((one, 1), (other, -1)):
            v, w = (np.array([side[s][k] for s in rows], dtype=float) for k in (0, 1))
            mean = (v * w).sum() / w.sum()
            ends.append(sign * mean)
            for s, e in zip(rows, sign * w * (v - mean) / w.sum() / len(names), strict=True):
                parts[one[s][3]] = parts.get(one[s][3], 0.0) + e
        means.append(sum(ends))
    count = len(parts)
    return float(np.mean(means)), float(np.sqrt(count / (count - 1) * sum(e * e for e in parts.values())))


def test_differences_are_those_of_the_scores(home: Home) -> None:
    from vkvdb.types import Site

    rows = {(r["place"], r["part_of"], r["draw"]): r for r in _card_tables.places("toyworld-test")}
    assert {place for place, _, _ in rows} == {
        "image values", "tower", "projector", "raw pixels", "colour statistics", "random weights", "position only",
        "encoder toy-siglip",
    }  # fmt: skip
    own = numbers(home, "toy", Site("decoder", 1, "value").number, 1)
    pixels = numbers(home, "pixels", Site("encoder", 0, "hidden").number, -1)
    sets = {"all": GROUPS, "held out": GROUPS[2:], "trained": GROUPS[:2]}
    for part_of, groups in sets.items():
        for draw in ("", "0", "1", "2"):
            row = rows["raw pixels", part_of, draw]
            mean, error = paired(own, pixels, groups, f"draw{draw}" if draw else "")
            assert row["difference"] == pytest.approx(mean, abs=1e-6)
            wide = row["difference_high"] - row["difference"]
            assert wide / error == pytest.approx(2.0, abs=0.2)  # Student's t of 7 clusters and more
            assert (row["groups"], rows["image values", part_of, draw]["difference"]) == (len(groups), 0)
    for place, less in (("colour statistics", -0.1), ("random weights", 0.5), ("position only", 0.55)):
        assert rows[place, "all", ""]["difference"] == pytest.approx(less, abs=0.03)
    assert sum(rows["tower", "all", draw]["n"] for draw in "012") == rows["tower", "all", ""]["n"] == 96


def test_values_against_others_are_told_for_each_seed(home: Home) -> None:
    told = {row[2]: row for row in cells(_card_tables.against_others())}
    assert told["image values"][5:8] == ["", "", ""]
    assert told["colour statistics"][7] == "values hold less"
    assert told["raw pixels"][7] == "values hold more"
    seeds = told["raw pixels"][6].split()
    assert len(seeds) == 3
    assert [float(one) for one in seeds] == pytest.approx([0.4] * 3, abs=0.06)
    assert told["encoder toy-siglip, last layer"][6] == "-"  # a layer that was not chosen


def test_colour_statistics_are_a_line_of_the_flow(home: Home) -> None:
    rows = _card_tables.rows_of("layers", model="toy", dataset="toyworld-test")
    values = [row["value"] for row in rows if row["role"] == "colours" and row["panel_part"] == "value"]
    assert values == [pytest.approx(0.7, abs=0.02)]
    chart = json.dumps(analysis.run(home, "layers", {"model": "toy"}).chart.to_dict())
    assert "colour statistics .7" in chart


def test_held_out_categories_stand_apart(home: Home) -> None:
    rows = cells(_card_tables.held_out_categories())
    assert {row[1] for row in rows} == {"held out", "trained"}
    (pixels,) = (row for row in rows if row[1:3] == ["held out", "raw pixels"])
    assert (pixels[6], pixels[7], pixels[8]) == ("values hold more", "2", "48")
    (colours,) = (row for row in rows if row[1:3] == ["trained", "colour statistics"])
    assert colours[6] == "values hold less"
    assert _card_tables.held_out_parts() == UNMEASURED


def test_rise_and_fall_are_told_for_each_seed(home: Home) -> None:
    ((task, metric, *_, best, _, rise, by_seed, fall, falls, n),) = cells(_card_tables.flow())
    assert (task, metric, rise, fall, n) == ("correspondence", "pck", "shown", "shown", "96")
    assert best.endswith("in layer 1")
    for seeds in (by_seed, falls):
        assert [float(one.replace("\u2212", "-")) for one in seeds.split()] == pytest.approx([0.3] * 3, abs=0.06)


def test_a_text_before_the_image_is_told_for_each_seed(home: Home) -> None:
    rows = [row for row in cells(_card_tables.prefixes()) if row[2] != "none"]
    ((_, _, _, delta, seeds, effect, n),) = rows
    assert delta.startswith("+0.0133")  # one layer of three, .04 there
    assert (seeds, effect, n) == ("+0.0133 +0.0133 +0.0133", "shown", "96")


def test_surfacing_is_told_for_each_seed_and_against_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path)
    world = synthetic.World(Store(home.store))
    answered.questions(world, {"draw0-easy": 40})
    world.model("toy", layers=2)
    right = np.arange(40) % 2 == 0

    def values(site: Any, head: int) -> Any:
        """At one head they read all that the model gets wrong, elsewhere nothing."""
        return ~right if (site.stage, site.layer, head) == ("decoder", 1, 1) else np.zeros(40)

    answered.ask(world, "toy", right, reading=values, samples=range(40))
    for name in ("pixels", "colours"):
        world.model(name, name, layers=1, heads=0)
        answered.read(world, name, lambda *_: np.arange(40) % 4 == 1, range(40))
    Catalog(home.catalog).absorb(world.store)
    monkeypatch.setenv("VKVDB_HOME", str(home.root))
    monkeypatch.setattr(_card_tables, "DATASET", answered.DATASET)
    told = {row[1]: row for row in cells(_card_tables.surfacing())}
    assert told["value"][2:9] == ["40", "20", "20", "20", "10.0 [7, 13]", "+10.0", "shown"]
    assert (
        told["raw pixels"][5:]
        == told["colour statistics"][5:]
        == ["10", "5.0 [2, 8]", "+5.0", "shown", "10 : 0", "more"]
    )


def test_what_was_not_scored_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VKVDB_HOME", str(tmp_path))
    Catalog(Home(tmp_path).catalog).absorb(Store(Home(tmp_path).store))
    for name in ("against_others", "held_out_categories", "held_out_parts", "flow", "keys", "prefixes", "surfacing"):
        assert getattr(_card_tables, name)() == UNMEASURED


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training log of two records."""

    def record(draws: int, what: float, locate: float) -> dict[str, Any]:
        scores = {"what": what, "locate": locate}
        return {"draws": draws, "answers": {k: {"accuracy": a, "prior": 0.25, "n": 9} for k, a in scores.items()}}

    (tmp_path / "training_log.json").write_text(json.dumps({"log": [record(100, 0.3, 0.1), record(200, 0.5, 0.2)]}))
    monkeypatch.setattr(card, "weights_dir", lambda _: tmp_path)


def test_the_trend_is_told_of_all_and_of_those_below_their_prior(log: None) -> None:
    assert card.trend("toy") == [(100, pytest.approx(0.2), 0.25), (200, pytest.approx(0.35), 0.25)]
    assert cells(card.trend_of("toy", ["locate", "part"])) == [
        ["prior", ".25", "-"],
        ["100", ".10", "-"],
        ["200", ".20", "-"],
    ]
    assert card.trend_of("toy", []) == ""


def test_the_prior_is_that_of_the_commonest_answer_of_all_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    from vkvdb.toyworld.questions import Question

    def exam(*given: str) -> evaluate.Exam:
        questions = tuple(Question("what", "what is it ?", answer) for answer in given)
        return evaluate.Exam(np.zeros((112, 112, 3), dtype=np.uint8), questions, frozenset())

    assert card.prior("what", [[exam("dog"), exam("cat", "dog")], [exam("cat", "cat")]]) == 3 / 5


def test_scenes_begin_where_the_draws_begin() -> None:
    from vkvdb.datasets.toyworld import DRAW_APART, SIZES
    from vkvdb.toyworld.world import seeds

    assert SIZES["test"].draws == card.SEEDS
    taken = [set(seeds("test", card.SCENES, draw * DRAW_APART)) for draw in range(card.SEEDS)]
    assert len(set.union(*taken)) == card.SEEDS * card.SCENES


def test_nearness_by_hand() -> None:
    truth = [(3, 3), (3, 3), (0, 0), (13, 13)]
    found = evaluate.nearness(truth, [(3, 3), (4, 2), (0, 2), None])
    assert (found.exact, found.near, found.n) == (0.25, 0.5, 4)
    np.testing.assert_allclose(found.far, [0, 2**0.5, 2, 13 * 2**0.5])  # no cell: as far off as there is
    commonest, best = evaluate.constant_nearness(truth)
    assert (commonest.exact, commonest.near) == (0.5, 0.5)
    assert commonest.far.mean() == pytest.approx((3 * 2**0.5 + 10 * 2**0.5) / 4)
    assert (best.exact, best.near) == (0.5, 0.5)
    assert best.far.mean() <= commonest.far.mean()


def test_cells_are_decoded_word_by_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """The row follows from the column that was said, not from the right one."""
    import torch

    from vkvdb.toyworld.language import vocabulary

    words = vocabulary()
    says = {"assistant": "x5", "x5": "y7"}  # behind any other word: y1

    def logits(_model: Any, layout: Any, batch: Any) -> tuple[Any, Any, Any]:
        where = [
            (row, 0, place)
            for row, slots in enumerate(batch.slots.tolist())
            for place in range(batch.starts[row, 0].item(), layout.slot)
            if slots[0][place]
        ]
        tokens = [batch.slots[row, 0, place - 1].item() for row, _, place in where]
        said = torch.tensor([words.index(says.get(words[token], "y1")) for token in tokens])
        return torch.nn.functional.one_hot(said, len(words)), said, torch.tensor(where)

    monkeypatch.setattr(evaluate, "answer_logits", logits)
    exams = evaluate.exams("test", 6)
    truth, given = evaluate.located(None, exams, torch.device("cpu"))  # type: ignore[arg-type]
    asked = [one.answer for exam in exams for one in exam.questions if one.kind == "locate"]
    assert [f"x{column} y{row}" for column, row in truth] == asked
    assert len(asked) > 2
    assert given == [(5, 7)] * len(asked)


@pytest.mark.parametrize(
    ("off", "says"), [(0, "names the very cell"), (1, "names the place, not the cell"), (5, "Not learned")]
)
def test_words_on_locate_follow_from_its_numbers(off: int, says: str) -> None:
    draw = np.random.default_rng(0)
    truth = [(int(x), int(y)) for x, y in draw.integers(0, 8, (200, 2))]
    text = card.locating(truth, [(x + off, y) for x, y in truth])
    assert says in text.partition("\n")[0]
    model, commonest, _ = cells(text.partition("\n\n")[2])
    assert model[1] == commonest[1] == "200"
    assert float(model[4].split()[0]) == float(off)


def test_numbers_as_the_card_writes_them() -> None:
    assert [number(v) for v in (0.425, -0.1, 1.0, None, float("nan"))] == [".42", "\u2212.10", "1.00", "-", "-"]
    assert by_seed([0.05, -0.01, None]) == "+.05 \u2212.01 -"
    assert by_seed([2.04, -1.0], digits=1) == "+2.0 \u22121.0"
    assert by_seed([]) == by_seed(None) == "-"
    low, high = wilson(0.5, 100)
    assert (low, high) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))


def test_the_card_tells_how_training_went(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that is measured stubbed out: the words, and that siblings are named as they ship."""
    cell = [(1, 1)] * 4
    monkeypatch.setattr(card, "scenes", list)
    monkeypatch.setattr(
        card, "answers", lambda *_: [("what", 9, 0.2, 0.6, 0.5, 0.7, ""), ("face", 9, 0.5, 0.5, 0.4, 0.6, "")]
    )
    monkeypatch.setattr(card, "located", lambda *_: (cell, cell))
    for name in ("against_others", "held_out_categories", "held_out_parts", "flow", "keys", "prefixes", "surfacing"):
        monkeypatch.setattr(_card_tables, name, lambda: UNMEASURED)
    text = card.card()
    assert card._HOW in text
    assert "`grid_waves`" in text
    assert "Above their prior beyond the interval: what. **Not shown**: face." in text
    assert re.search(r"earlier stages of the same run:\n`toy-\w+`", text)
    assert "toy-siglip`" not in text.partition("- `toy`")[0]
    assert "{" not in text


def test_a_group_of_one_cluster_tells_no_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path)
    world = synthetic.World(Store(home.store))
    world.dataset("toyworld-test", labels=[("fish", f"draw0-{n}") for n in range(8)] + [("horse", "draw0-8")])
    for name, family, value in (("toy", "llava_onevision", 0.5), ("pixels", "pixels", 0.2)):
        world.model(name, family, heads=2 if name == "toy" else 0)
        world.score(name, value, dataset="toyworld-test", notes=NOTES)
    Catalog(home.catalog).absorb(world.store)
    monkeypatch.setenv("VKVDB_HOME", str(home.root))
    rows = {(r["place"], r["part_of"]): r for r in _card_tables.places("toyworld-test") if not r["draw"]}
    assert rows["raw pixels", "held out"]["difference_low"] is rows["raw pixels", "held out"]["low"] is None
    assert rows["raw pixels", "trained"]["difference_low"] is not None
    told = {(row[1], row[2]): row for row in cells(_card_tables.held_out_categories())}
    assert told["held out", "raw pixels"][6] == "one cluster tells nothing"
