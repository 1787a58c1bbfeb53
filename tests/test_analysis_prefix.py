from __future__ import annotations

import hashlib
import json

import numpy as np
import polars as pl
import pytest
import synthetic

from vkvdb import analysis
from vkvdb.catalog import Catalog
from vkvdb.errors import NothingToDraw
from vkvdb.paths import Home, shipped
from vkvdb.store import Store
from vkvdb.types import Site

RIGHT, WRONG, GENERIC = "tokens=6:a {category}", "tokens=6:a {wrong}", "tokens=6:a thing"
FILLER, RANDOM, NONE = "tokens=6:", "tokens=6:{random}", ""
LAYERS, DEEP = 4, 40


def truth(gain=0.0, layers=range(LAYERS)):
    """Head 1 reads better; values of some layers gain."""

    def of(site, head):
        here = site.stage == "decoder" and site.part == "value"
        return 0.4 + 0.2 * (here and head == 1) + gain * (here and site.layer in layers)

    return of


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The right class gains .3 in two layers, the wrong class loses as much in all; the rest changes nothing."""
    home = Home(tmp_path_factory.mktemp("prefix"))
    world = synthetic.World(Store(home.store))
    world.dataset(images=40)
    world.model("onevision", layers=LAYERS)
    world.score("onevision", truth(), prefix=FILLER, noise=0.1)
    world.score("onevision", truth(0.3, (2, 3)), prefix=RIGHT, noise=0.1)
    world.score("onevision", truth(-0.3), prefix=WRONG, noise=0.1)
    for prefix in (GENERIC, RANDOM, NONE):
        world.score("onevision", truth(), prefix=prefix, noise=0.1)
    # What must not be drawn: another length, plain text, another model without a filler, a change of the model.
    world.score("onevision", 0.9, prefix="tokens=9:a thing", noise=0.1)
    world.score("onevision", 0.9, prefix="a thing", noise=0.1)
    world.score("onevision", 0.9, prefix=GENERIC, interventions=("knockout:text->image",), noise=0.1)
    world.model("onevision@random:0", layers=LAYERS, variant="random:0")
    world.score("onevision@random:0", 0.9, prefix=GENERIC, noise=0.1)
    # Deep, for a rate: layers have noise of their own.
    world.model("deep", layers=DEEP)
    for prefix in (FILLER, GENERIC):
        world.score("deep", truth(), prefix=prefix)
    Catalog(home.catalog).absorb(world.store)
    return home


def rows_of(home, **given):
    query = (shipped("analyses") / "prefix.sql").read_text(encoding="utf-8")
    return Catalog(home.catalog).frame(query, dict.fromkeys(analysis.parameters("prefix")) | given)


@pytest.fixture(scope="module")
def rows(world):
    return rows_of(world, model="onevision")


def test_each_condition_is_drawn_once_and_nothing_else(rows):
    assert set(rows["condition"]) == {"right class", "wrong class", "generic", "random words", "none"}
    assert rows.group_by("condition").len()["len"].to_list() == [LAYERS + 1] * 5
    assert set(rows["tokens"]) == {6}
    assert rows["delta"].abs().max() < 0.4


def test_a_planted_delta_is_recovered_where_it_is(rows):
    for condition, planted in (("right class", [0, 0, 0.3, 0.3]), ("wrong class", [-0.3] * 4)):
        found = rows.filter(pl.col("layer").is_not_null(), condition=condition).sort("layer").to_dicts()
        for row, delta in zip(found, planted, strict=True):
            assert row["low"] < delta < row["high"]
            assert (row["low"] > 0 or row["high"] < 0) == (delta != 0)
            assert row["high"] - row["low"] < 0.12
        (mean,) = rows.filter(pl.col("layer").is_null(), condition=condition).to_dicts()
        assert mean["low"] < np.mean(planted) < mean["high"]


def test_without_a_delta_the_interval_holds_nought(world):
    found = rows_of(world, model="deep").filter(pl.col("layer").is_not_null())
    assert len(found) == DEEP
    outside = found.filter((pl.col("low") > 0) | (pl.col("high") < 0))
    # At 5 % of 40: more than 5 outside would be seen in 1.4 % of draws.
    assert len(outside) <= 5
    assert abs(found["delta"].mean()) < 0.02


def test_the_head_is_chosen_under_filler_on_the_other_half(world, rows):
    """One layer, one condition, computed in the plain way."""
    store = Store(world.store)
    (dataset,) = (manifest["hash"] for manifest in store.datasets())
    samples = [sample for _, sample in store.samples(dataset)]
    clusters = sorted({s.cluster for s in samples}, key=lambda c: (hashlib.md5(c.encode()).hexdigest(), c))
    fold = np.array([(clusters.index(s.cluster) + 1) % 2 for s in samples])
    group = np.array([s.group for s in samples])
    jobs = {m["spec"]["capture"].get("prefix", ""): m["job"] for m in store.jobs() if _of_onevision(m)}
    site = Site("decoder", 2, "value").number

    def table(job):
        made = pl.from_arrow(store.read_scores(job, 0)).filter(site=site).sort("sample")
        heads = [made.filter(head=h) for h in (0, 1)]
        return np.stack([h["value"].to_numpy() for h in heads], 1), heads[0]["weight"].to_numpy()

    def mean(values, weights, keep):
        return np.mean(
            [np.average(values[keep & (group == g)], weights=weights[keep & (group == g)]) for g in set(group)]
        )

    (before, weights), (after, _) = table(jobs[FILLER]), table(jobs[RIGHT])
    best = [max((0, 1), key=lambda h: mean(before[:, h], weights, fold == half)) for half in (0, 1)]
    read = np.array([best[1 - f] for f in fold])
    at = np.arange(len(samples)), read
    every = np.full(len(samples), fill_value=True)
    (row,) = rows.filter(layer=2, condition="right class").to_dicts()
    assert row["before"] == pytest.approx(mean(before[at], weights, every))
    assert row["after"] == pytest.approx(mean(after[at], weights, every))
    assert row["read_heads"] == ", ".join(sorted({str(h) for h in best}))
    error = 0.0
    for cluster in clusters:
        part = 0.0
        for n in np.flatnonzero([s.cluster == cluster for s in samples]):
            mine = group == group[n]
            change = after[at] - before[at]
            part += weights[n] * (change[n] - np.average(change[mine], weights=weights[mine])) / weights[mine].sum()
        error += (part / len(set(group))) ** 2
    assert row["se"] == pytest.approx(np.sqrt(len(clusters) / (len(clusters) - 1) * error))


def _of_onevision(manifest):
    return manifest["provenance"]["model"] == "onevision" and not manifest["spec"]["capture"].get("interventions")


def test_the_title_says_what_the_numbers_support(world):
    (block,) = json.loads(analysis.run(world, "prefix", {"model": "onevision"}).chart.to_json())["vconcat"]
    words = "\n".join(block["title"]["text"])
    assert "right class 'a CLASS': +0.1" in words
    assert "above filler; above it in 2, below it in 0 of 4" in words
    assert "below filler; above it in 0, below it in 4 of 4" in words
    assert words.count("not told apart from filler") >= 2
    assert [panel["title"]["text"][0][:5] for panel in block["hconcat"]] == [
        "fille", "right", "gener", "wrong", "rando", "no te",
    ]  # fmt: skip


def test_without_a_filler_there_is_nothing_to_draw(world):
    with pytest.raises(NothingToDraw):
        analysis.run(world, "prefix", {"model": "onevision@random:0"})
