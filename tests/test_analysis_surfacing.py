from __future__ import annotations

import json

import answered
import numpy as np
import pytest
import synthetic
from scipy import stats

from vkvdb import analysis
from vkvdb.catalog import Catalog
from vkvdb.errors import NothingToDraw
from vkvdb.paths import Home, shipped
from vkvdb.statistics import mcnemar
from vkvdb.store import Store

INDEPENDENT = [f"independent_{n}" for n in range(24)]
PLANTED = [f"planted_{n}" for n in range(2)]
SIZE = 40
UNREADABLE = {"Counting": 5, "Jigsaw": 3}
BEST = (1, 1)  # the layer and head whose values hold the answer


def made(folder, independent, planted):
    """A model that is right in half of the questions. Its values read 55 % right at one head, whatever it answers; in
    the planted groups they also read what it gets wrong. Raw pixels read as much as values in the first of those.
    """
    home = Home(folder)
    world = synthetic.World(Store(home.store))
    groups = dict.fromkeys([*independent, *planted], SIZE) | UNREADABLE
    answered.questions(world, groups)
    draw = np.random.default_rng(5)
    readable = np.arange(SIZE * (len(independent) + len(planted)))
    right = draw.random(sum(groups.values())) < 0.5
    first = SIZE * len(independent)
    held = draw.random(len(readable)) < 0.55
    held[first:] |= ~right[first : len(readable)]

    def values(site, head):
        best = site.stage == "decoder" and (site.layer, head) == BEST
        return held if best else draw.random(len(readable)) < 0.25

    def pixels(site, head):
        return np.where((readable >= first) & (readable < first + SIZE), held, draw.random(len(readable)) < 0.5)

    world.model("onevision", layers=2)
    world.model("onevision@random:0", variant="random:0", layers=2)
    world.model("pixels", "pixels", layers=1, heads=0)
    answered.ask(world, "onevision", right, reading=values, samples=readable, unread=range(3))
    answered.read(world, "onevision", values, readable)
    answered.read(world, "onevision@random:0", lambda s, h: draw.random(len(readable)) < 0.5, readable)
    answered.read(world, "pixels", pixels, readable)
    Catalog(home.catalog).absorb(world.store)
    return home


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Many groups, for a rate."""
    return made(tmp_path_factory.mktemp("surfacing"), INDEPENDENT, PLANTED)


@pytest.fixture(scope="module")
def rows(home):
    query = (shipped("analyses") / "surfacing.sql").read_text(encoding="utf-8")
    return Catalog(home.catalog).frame(query, dict.fromkeys(analysis.parameters("surfacing")))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The title of the chart of few groups."""
    home = made(tmp_path_factory.mktemp("few"), INDEPENDENT[:1], PLANTED)
    (block,) = json.loads(analysis.run(home, "surfacing", {"measure": "likelihood"}).chart.to_json())["vconcat"]
    assert len(block["vconcat"]) == 3
    return {name: " ".join(block["title"][name]).replace("\u00a0", " ") for name in ("text", "subtitle")}


def places(rows, place, groups, measure="likelihood"):
    return [r for r in rows.filter(place=place, measure=measure).to_dicts() if r["grp"] in groups]


def test_answers_independent_of_the_values_surface_as_often_as_by_chance(rows):
    found = places(rows, "value", INDEPENDENT)
    assert len(found) == len(INDEPENDENT)
    outside = sum(not r["low"] <= r["surfacing"] <= r["high"] for r in found)
    # The interval leaves out at most 5 %; of 24 groups more than 4 would be outside in less than 1 % of draws.
    assert outside <= 4
    assert abs(sum(r["surfacing"] - r["expected"] for r in found)) < 24


def test_what_answers_lose_of_the_values_is_found(rows):
    for r in places(rows, "value", PLANTED):
        assert r["surfacing"] == r["n_wrong"] > r["high"]
        assert "decoder 1 head 1" in r["choice"]
    for r in places(rows, "value, random weights", PLANTED):
        assert r["surfacing"] < r["n_wrong"] * 0.75


def test_the_interval_is_that_of_fixed_margins(rows):
    for r in rows.filter(rows["place"].is_not_null()).to_dicts():
        law = stats.hypergeom(r["n"], r["n_values_right"], r["n_wrong"])
        assert (r["low"], r["high"]) == (law.ppf(0.025), law.ppf(0.975))
        assert r["expected"] == pytest.approx(law.mean())
        share = stats.binomtest(r["surfacing"], r["n"]).proportion_ci(method="wilson")
        assert (r["share_low"], r["share_high"]) == pytest.approx(share, abs=1e-5)
        assert r["right_right"] + r["surfacing"] + r["wrong_right"] + r["wrong_wrong"] == r["n"] == SIZE


def test_controls_are_paired_with_the_values_by_question(home, rows):
    (own,) = places(rows, "value", PLANTED[:1])
    (pixels,) = places(rows, "raw pixels", PLANTED[:1])
    assert (pixels["n_paired"], pixels["only_here"], pixels["only_value"]) == (SIZE, 0, 0)
    assert pixels["surfacing"] == own["surfacing"]
    (pixels,) = places(rows, "raw pixels", PLANTED[1:2])
    found = Catalog(home.catalog).query(
        "SELECT sample, place, surfaces FROM surfacing"
        " WHERE measure = 'likelihood' AND grp = 'planted_1' AND place IN ('value', 'raw pixels')"
    )
    own_ones, theirs = ({s for s, p, yes in found.rows if p == place and yes} for place in ("value", "raw pixels"))
    assert (pixels["only_here"], pixels["only_value"]) == (len(theirs - own_ones), len(own_ones - theirs))


def test_choice_and_report_are_on_different_folds(home):
    found = Catalog(home.catalog).query(
        "SELECT DISTINCT s.grp, s.fold, s.layer, s.head, s.share_when_chosen FROM surfacing AS s"
        " WHERE place = 'value' AND measure = 'likelihood' AND grp = 'planted_0'"
    )
    assert {row[1] for row in found.rows} == {0, 1}
    own = Catalog(home.catalog).query(
        "SELECT fold, avg(values_right::INT) FROM surfacing"
        " WHERE place = 'value' AND measure = 'likelihood' AND grp = 'planted_0' GROUP BY fold"
    )
    here = dict(own.rows)
    assert all(row[4] == pytest.approx(here[1 - row[1]]) for row in found.rows)


def test_groups_without_a_reading_are_listed(rows, drawn):
    unread = rows.filter(rows["place"].is_null())
    assert dict(zip(unread["grp"], unread["of"], strict=True)) == UNREADABLE
    assert "2 groups, 8 questions: Counting (5), Jigsaw (3)" in drawn["subtitle"]


def test_words_that_cannot_be_read_are_wrong(rows):
    text, letters = (
        sum(r["n_wrong"] for r in places(rows, "value", INDEPENDENT, measure)) for measure in ("text", "likelihood")
    )
    assert letters <= text <= letters + 3
    assert sum(r["n_unread"] for r in places(rows, "value", INDEPENDENT)) == 3


def test_the_title_says_what_the_numbers_support(drawn):
    words = drawn["text"]
    assert "in 2 of 3 groups image values hold more" in words
    told = {group: words[words.index(f"{group}, by") :][:220] for group in (INDEPENDENT[0], *PLANTED)}
    assert "no more than by independence" in told[INDEPENDENT[0]]
    assert "as much in raw pixels" in told[PLANTED[0]]
    assert "less in raw pixels" in told[PLANTED[1]]


def test_a_model_that_was_not_read_has_nothing_to_draw(home):
    with pytest.raises(NothingToDraw):
        analysis.run(home, "surfacing", {"model": "nobody"})


def test_mcnemar_is_the_binomial_test():
    for lost, gained in ((0, 0), (3, 9), (10, 10), (1, 0), (20, 4)):
        expected = stats.binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
        assert mcnemar(lost, gained) == pytest.approx(expected)
