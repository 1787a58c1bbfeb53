"""One group or two, which heads are input-agnostic, what is cut, and what the analysis says of it."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import synthetic
from hypothesis import given, settings
from hypothesis import strategies as st

from vkvdb import agnostic, analysis, charting, modes
from vkvdb.agnostic import find, heads_cut, knockouts
from vkvdb.catalog import Catalog
from vkvdb.interventions import canonical
from vkvdb.jobs import Ask, Calibrate, CaptureSpec, Job, Provenance
from vkvdb.paths import Home
from vkvdb.store import Store
from vkvdb.types import Site

LAYERS, HEADS = 7, 4
PLANTED = {(5, 1), (6, 0), (6, 3)}
EVERY = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]


def s_of(planted: set[tuple[int, int]] = PLANTED, seed: int = 0, noise: float = 0.03) -> list[dict[str, Any]]:
    """Rows of S in all images and two halves: one broad group, and heads planted far below it."""
    draw = np.random.default_rng(seed)
    logs = {h: math.log(0.004) if h in planted else -1.2 + 0.4 * draw.standard_normal() for h in EVERY}
    return [
        {"layer": h[0], "head": h[1], "half": half, "value": math.exp(logs[h] + noise * draw.standard_normal())}
        for half in (0, 1, 2)
        for h in EVERY
    ]


# --- modes ---


def test_the_dip_of_known_samples():
    assert modes.dip(np.arange(20)) == pytest.approx(1 / 40)  # evenly spread: the least that n numbers can
    assert modes.dip([0.0, 0.0, 0.0, 0.0]) == pytest.approx(1 / 8)
    # Two far points of equal mass: a function with one mode is a quarter off at one of them.
    assert modes.dip([0.0] * 10 + [1.0] * 10) == pytest.approx(0.25)
    assert modes.dip([0.0] * 15 + [1.0] * 5) == pytest.approx(0.125)  # half the share of the smaller


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=4, max_size=30), st.floats(0.1, 50), st.floats(-100, 100))
def test_the_dip_knows_no_scale_place_or_direction(numbers, scale, shift):
    given_ = np.array(numbers, dtype=float)
    found = modes.dip(given_)
    assert 1 / (2 * len(numbers)) - 1e-12 <= found <= 0.25 + 1e-12
    assert modes.dip(given_ * scale + shift) == pytest.approx(found)
    assert modes.dip(-given_) == pytest.approx(found)


def test_otsu_cuts_where_variance_between_is_largest():
    draw = np.random.default_rng(0)
    numbers = np.r_[draw.normal(0, 1, 30), draw.normal(4, 1, 9)]
    cut = modes.otsu(numbers)
    tried = [
        len(low) * len(high) * (high.mean() - low.mean()) ** 2
        for one in np.sort(numbers)[:-1]
        for low, high in [(numbers[numbers <= one], numbers[numbers > one])]
    ]
    ordered = np.sort(numbers)
    best = int(np.argmax(tried))
    assert cut == pytest.approx((ordered[best] + ordered[best + 1]) / 2)
    assert math.isnan(modes.otsu([2.0, 2.0, 2.0]))


@pytest.mark.parametrize("name", ["normal", "uniform", "exponential", "laplace"])
def test_one_mode_is_seldom_taken_for_two(name):
    draw = getattr(np.random.default_rng(5), name)
    wrong = sum(modes.two_modes(draw(size=28)) < 0.05 for _ in range(100))
    assert wrong <= 11  # 5 are expected at most; more than 11 come up once in 200


@pytest.mark.parametrize(("few", "many"), [(1, 27), (3, 25), (10, 18)])
def test_two_modes_are_seen_whatever_their_shares(few, many):
    draw = np.random.default_rng(1)
    assert modes.two_modes(np.r_[draw.normal(-20, 0.3, few), draw.normal(0, 0.5, many)]) < 0.05


# --- the group ---


@pytest.mark.parametrize("planted", [{(6, 2)}, PLANTED, {h for h in EVERY if h[0] >= 4}])
def test_planted_heads_are_found_exactly(planted):
    found = find(s_of(planted))
    assert found.heads == found.below == found.loose == planted
    assert (found.why, found.jaccard) == ("", 1.0)
    assert found.p_value < 0.05
    assert 0.004 < found.cut < 0.3


@pytest.mark.parametrize("seed", range(3))
def test_without_a_plant_there_is_no_group(seed):
    found = find(s_of(set(), seed))
    assert not found.heads
    assert found.why == "log S has one mode"
    assert found.below  # Otsu always cuts


def test_a_lower_group_that_varies_much_is_not_agnostic():
    rows = [{**r, "value": r["value"] ** 0.05} for r in s_of()]
    found = find(rows)
    assert not found.heads
    assert "varies too much" in found.why


def test_keys_that_never_vary_are_no_group_of_their_own():
    found = find([{"layer": n, "head": 0, "half": half, "value": 0.0} for n in range(6) for half in (0, 1, 2)])
    assert (found.heads, found.why) == (frozenset(), "all heads vary alike")
    assert math.isnan(found.jaccard)


def test_halves_that_disagree_show():
    rows = [r for r in s_of() if r["half"] != 2]
    other = [{**r, "half": 2} for r in s_of({(0, 0), (5, 1)}) if r["half"] == 0]
    assert find([*rows, *other]).jaccard == pytest.approx(1 / 4)


# --- what is cut ---


def test_the_knockout_and_its_four_controls():
    s = {(r["layer"], r["head"]): r["value"] for r in s_of() if r["half"] == 0}
    texts = knockouts(PLANTED, s, draws=5, seed=3)
    assert texts == knockouts(PLANTED, s, draws=5, seed=3)
    assert list(texts) == ["agnostic", *(f"random {n}" for n in range(5)), "dependent", "all"]
    assert texts["agnostic"] == ("knockout:text->image@5:h1", "knockout:text->image@6:h0,3")
    assert texts["all"] == ("knockout:text->image",)
    cut = {name: heads_cut(those, s) for name, those in texts.items()}
    assert all(those == canonical(those) for those in texts.values())
    assert cut["agnostic"] == PLANTED
    assert cut["all"] == set(EVERY)
    assert cut["dependent"] == set(sorted(s, key=lambda h: -s[h])[:3])
    for number in range(5):
        drawn = cut[f"random {number}"]
        assert sorted(layer for layer, _ in drawn) == [5, 6, 6]
        assert not drawn & PLANTED
    assert len({cut[f"random {n}"] for n in range(5)}) > 1
    assert knockouts(set(), s) == {}


def test_layers_that_lose_the_same_heads_are_one_text():
    assert agnostic.cut_of([(3, 1), (4, 1), (5, 1), (5, 0)]) == (
        "knockout:text->image@3-4:h1",
        "knockout:text->image@5:h0-1",
    )


def test_a_cut_of_all_heads_written_short_is_the_same():
    assert heads_cut(["knockout:text->image@2"], EVERY) == {(2, h) for h in range(HEADS)}
    assert heads_cut(["knockout:last->image@2", "replace:image=zero@2"], EVERY) == frozenset()


def test_what_is_cut_for_values_is_above_the_last_layer():
    s = {(r["layer"], r["head"]): r["value"] for r in s_of() if r["half"] == 0}
    above = agnostic.above_last(s)
    assert s.keys() - above.keys() == {(LAYERS - 1, h) for h in range(HEADS)}
    texts = knockouts(PLANTED & above.keys(), above, edges=agnostic.TO_IMAGE)
    assert texts["agnostic"] == ("knockout:image->image@5:h1",)
    assert texts["all"] == ("knockout:image->image",)
    assert heads_cut(texts["agnostic"], s, agnostic.TO_IMAGE) == {(5, 1)}
    assert heads_cut(texts["agnostic"], s) == frozenset()
    assert {layer for n in range(5) for layer, _ in heads_cut(texts[f"random {n}"], s, agnostic.TO_IMAGE)} == {5}


# --- the analysis ---


def calibrated(world: synthetic.World, model: str, rows: list[dict[str, Any]]) -> None:
    """Publish a calibrate job's rows, with and without bias."""
    made = world.models[model]
    capture = CaptureSpec(model=made.spec, dataset=world.datasets["coco-val"])
    job = Job(
        spec=Calibrate(capture=capture, calibrating_version=1),
        provenance=Provenance(model=model, dataset="coco-val"),
    )
    whole = [
        {**r, "site": Site("decoder", r["layer"], "key_unrotated").number, "unbiased": unbiased, "n": 24}
        for r in rows
        for unbiased in (False, True)
    ]
    names = ("site", "head", "half", "unbiased", "n", "value")
    columns = {name: [r[name] for r in whole] for name in names}
    world.store.write_rows("key_variance", job.id, 0, 0, columns, {})
    world.publish_job(job, n=24, of=24, notes={"bias": True})


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Home:
    """A model with three planted heads, whose values are worse by .2, and a twin without."""
    home = Home(tmp_path_factory.mktemp("keys"))
    world = synthetic.World(Store(home.store))
    world.dataset()
    for name, variant, heads in (("m", "", PLANTED), ("m@random:0", "random:0", set())):
        world.model(name, layers=LAYERS, heads=HEADS, variant=variant)
        calibrated(world, name, s_of(heads))
    world.score("m", lambda s, h: 0.5 - 0.2 * (s.part == "value" and (s.layer, h) in PLANTED), noise=0.05)
    Catalog(home.catalog).absorb(world.store)
    return home


def title(chart: Any) -> str:
    made = chart.to_dict()["vconcat"][0]["title"]
    return " ".join([*made["text"], *made["subtitle"]])


def test_the_analysis_finds_the_planted_heads_and_says_so(planted):
    found = analysis.run(planted, "keys")
    words = title(found.chart)
    assert "the keys of 3 of 28 heads hardly depend on the image, in layers 5-6" in words
    assert "its random twin has none (log S has one mode)" in words
    assert "n = 24 of 24 images of coco-val" in words
    assert "answers: no knockout was asked yet" in words
    text = json.dumps(found.chart.to_dict())
    assert "(3 outlined)" in text


def test_the_query_cuts_where_python_does(planted):
    """The values below the cut, worked out in SQL, are those of the heads that `find` gives."""
    rows = analysis.run(planted, "keys").rows.filter(kind="score")
    assert len(rows) == 48
    assert rows["lower"].mean() == pytest.approx(0.3, abs=0.02)
    assert rows["other"].mean() == pytest.approx(0.5, abs=0.02)
    assert rows["beside"].mean() == pytest.approx(0.5, abs=0.02)


def test_values_of_the_group_are_compared_with_the_rest(planted):
    made = analysis.run(planted, "keys").chart.to_dict()
    labels = [r for r in _rows(made) if "against" in r]
    assert {r["against"] for r in labels} == {"minus all other heads", "minus other heads of these layers"}
    for row in labels:
        assert row["value"] == pytest.approx(-0.2, abs=0.02)
        assert row["low"] < row["value"] < row["high"] < 0
        assert row["n"] == 48


def test_without_a_group_nothing_is_compared(home):
    world = synthetic.World(Store(home.store))
    world.dataset()
    world.model("m", layers=LAYERS, heads=HEADS)
    calibrated(world, "m", s_of(set()))
    world.score("m", 0.5)
    Catalog(home.catalog).absorb(world.store)
    found = analysis.run(home, "keys")
    words = title(found.chart)
    assert "no group of input-agnostic keys among 28 heads (log S has one mode)" in words
    assert "no random twin was calibrated" in words
    assert "there is no group" in words
    assert not [r for r in _rows(found.chart.to_dict()) if "against" in r]


def _rows(node: Any) -> list[dict[str, Any]]:
    """Every object in a chart, the rows of its data among them."""
    if isinstance(node, dict):
        return [node, *(r for v in node.values() for r in _rows(v))]
    return [r for v in node for r in _rows(v)] if isinstance(node, list) else []


def test_mcnemar_is_the_binomial_test():
    from vkvdb import registry
    from vkvdb.paths import shipped

    keys = registry.import_file("vkvdb_analyses.keys", shipped("analyses") / "keys.py")
    assert keys.mcnemar(0, 0) == 1.0
    assert keys.mcnemar(1, 9) == pytest.approx(2 * 11 / 1024)
    assert keys.mcnemar(5, 5) == 1.0


def asked(world: synthetic.World, wrong: int, interventions: tuple[str, ...] = ()) -> None:
    """Publish answers of the model `m` to 40 questions, the first `wrong` of them wrong."""
    made = world.models["m"]
    capture = CaptureSpec(model=made.spec, dataset=world.datasets["coco-val"], interventions=interventions)
    job = Job(spec=Ask(capture=capture, asking_version=1), provenance=Provenance(model="m", dataset="coco-val"))
    samples = list(range(40))
    columns: dict[str, Any] = {
        **{name: [0] * 40 for name in ("variant", "choice", "likeliest", "answer")},
        **{name: [""] * 40 for name in ("prompt", "prompt_id", "raw")},
        "sample": samples,
        "likelihoods": [[0.0]] * 40,
        "correct": [None if n == 0 < wrong else n >= wrong for n in samples],  # what can't be read is wrong
    }
    world.store.write_rows("answers", job.id, 0, 0, columns, {})
    world.publish_job(job, n=40, of=48)


def test_answers_under_the_cut_stand_beside_its_controls(home):
    world = synthetic.World(Store(home.store))
    world.dataset()
    world.model("m", layers=LAYERS, heads=HEADS)
    calibrated(world, "m", s_of())
    s = {(r["layer"], r["head"]): r["value"] for r in s_of() if r["half"] == 0}
    texts = knockouts(PLANTED, s)
    asked(world, 4)
    asked(world, 14, texts["agnostic"])
    asked(world, 4, texts["random 0"])
    asked(world, 30, texts["all"])
    asked(world, 9, ("knockout:last->image@0",))  # another experiment
    Catalog(home.catalog).absorb(world.store)
    chart = analysis.run(home, "keys").chart
    rows = {r["what"].partition(" (")[0]: r for r in _rows(chart.to_dict()) if "against" in r}
    assert rows.keys() == {"agnostic", "random 0", "all"}
    found = rows["agnostic"]
    assert found["what"] == "agnostic (3 heads), coco-val"
    assert found["value"] == pytest.approx(-10 / 40)
    assert found["low"] < -0.25 < found["high"] < 0
    assert found["against"] == "0.90 to 0.65, McNemar p = 0.00195"
    assert rows["random 0"]["against"] == "0.90 to 0.90, McNemar p = 1"
    assert rows["all"]["what"] == "all (28 heads), coco-val"
    assert "values: not scored yet" in title(chart)
    said = charting.findings_of(chart.to_dict())[0]
    assert said[2].startswith("cutting text -> image there changes the accuracy of answers (coco-val) by -0.250 [")
    assert said[2].endswith("; as many random heads: +0.000")


def test_what_values_of_later_layers_lose_stands_beside_its_controls(home):
    """A cut in layer 4 that takes .1 from all later layers; as many random heads take nothing."""
    world = synthetic.World(Store(home.store))
    world.dataset()
    world.model("m", layers=LAYERS, heads=HEADS)
    heads = {(4, 1), (5, 0), (6, 3)}
    calibrated(world, "m", s_of(heads))
    s = {(r["layer"], r["head"]): r["value"] for r in s_of(heads) if r["half"] == 0}
    above = agnostic.above_last(s)
    texts = knockouts(heads & above.keys(), above, edges=agnostic.TO_IMAGE)
    world.score("m", 0.5, noise=0.02)
    world.score("m", lambda site, _: 0.4 if site.layer > 4 else 0.5, noise=0.02, interventions=texts["agnostic"])
    world.score("m", 0.5, noise=0.02, interventions=texts["random 0"])
    world.score("m", 0.2, noise=0.02, interventions=texts["all"])
    world.score("m", 0.1, noise=0.02, interventions=("knockout:image->image1@4",))  # other edges
    world.score("m", 0.1, noise=0.02, interventions=("replace:image=zero@4",))
    Catalog(home.catalog).absorb(world.store)
    found = analysis.run(home, "keys")
    rows = found.rows.filter(kind="downstream")
    assert set(rows["condition"].unique()) == {json.dumps(list(texts[n])) for n in ("agnostic", "random 0", "all")}
    mine = rows.filter(condition=json.dumps(list(texts["agnostic"])))
    by_layer = dict(mine.select("layer", "value").rows())
    assert by_layer == pytest.approx({None: -0.1, **{n: -0.1 * (n > 4) for n in range(LAYERS)}}, abs=0.01)
    assert (mine["n"].unique().to_list(), mine["n_clusters"].min() > 1) == ([48], True)
    # Paired, by cluster: as the mean over later layers of what `difference` gives.
    drawn = {r["what"].partition(" (")[0]: r for r in _rows(found.chart.to_dict()) if "against" in r and "of" in r}
    assert {"agnostic", "random 0", "all"} <= drawn.keys()
    assert drawn["agnostic"]["low"] < -0.1 < drawn["agnostic"]["high"] < -0.05
    assert drawn["agnostic"]["what"] == "agnostic (2 heads), correspondence, coco-val, pck"
    said = " ".join(charting.findings_of(found.chart.to_dict())[0])
    assert (
        "cutting image -> image there changes what values of later layers score (correspondence, coco-val, pck) by"
        in said
    )
    assert "not told apart from none" not in said
