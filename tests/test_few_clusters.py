"""Errors and intervals where groups have few clusters: the views against plain loops and statistics.py; coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
import synthetic
from by_hand import mean_and_error

from vkvdb import statistics
from vkvdb.catalog import Catalog
from vkvdb.store import Store

# {name: clusters of each group}; with "shared", a cluster lies in several groups.
LAYOUTS = {
    "eight sets of eight categories": [1] * 8,
    "twos": [2] * 8,
    "ones beside threes": [1, 1, 3, 3, 3],
    "a one beside a two": [1, 2],
    "shared by three groups": [4, 3, 2],
    "one group of two": [2],
}


def labels(layout, *, shared=False, samples=3):
    """[(group, cluster)] of each sample."""
    found = []
    for group, clusters in enumerate(layout):
        found += [
            (f"g{group}", f"c{c}" if shared else f"g{group}c{c}") for c in range(clusters) for _ in range(samples)
        ]
    return found


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    folder = tmp_path_factory.mktemp("few")
    world = synthetic.World(Store(folder / "store"))
    world.model("m", layers=2, heads=2)
    for name, layout in LAYOUTS.items():
        world.dataset(f"{name}-test", images=1, labels=labels(layout, shared="shared" in name))
        world.score("m", lambda s, h: 0.3 + 0.1 * s.layer, dataset=f"{name}-test", noise=0.1)
    world.dataset("one cluster-test", images=1, labels=[("a", "x"), ("b", "x")] * 3)
    world.score("m", dataset="one cluster-test")
    world.dataset("equal-test", images=1, labels=labels([3, 3]))
    world.score("m", dataset="equal-test", noise=0.0)
    catalog = Catalog(folder / "catalog.duckdb")
    catalog.absorb(world.store)
    return catalog


def rows(catalog, sql, **given):
    found = catalog.query(sql, given)
    return [dict(zip(found.columns, row, strict=True)) for row in found.rows]


def scores(catalog, name):
    """{(site, head, group or empty for all): (values, weights, groups, clusters)}."""
    sql = """SELECT site, head, value, weight, grp, cluster
             FROM scores JOIN jobs USING (job) JOIN samples USING (dataset, sample)
             WHERE dataset_name = $name ORDER BY sample"""
    found = {}
    for site, head, *score in catalog.query(sql, {"name": f"{name}-test"}).rows:
        for group in ("", score[2]):
            found.setdefault((site, head, group), []).append(score)
    return {key: tuple(zip(*part, strict=True)) for key, part in found.items()}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_view_says_what_plain_loops_and_statistics_say(catalog, name):
    found = rows(catalog, "FROM results_by_group WHERE dataset_name = $name", name=f"{name}-test")
    assert {row["grp"] for row in found} == {"", *(f"g{n}" for n in range(len(LAYOUTS[name])))}
    given = scores(catalog, name)
    for row in found:
        columns = given[row["site"], row["head"], row["grp"]]
        mean, error, clusters, df = mean_and_error(*columns)
        interval = statistics.linearised(*columns)
        assert (row["value"], row["n_clusters"]) == pytest.approx((mean, clusters), rel=1e-9)
        if error is None:
            assert (row["se"], row["low"], row["high"], row["df"]) == (None,) * 4
            assert math.isnan(interval.low)
            assert math.isnan(statistics.bootstrap(*columns, draws=50).high)
        else:
            assert (row["se"], row["df"]) == pytest.approx((error, df), rel=1e-6)
            assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high), rel=1e-6)
            assert row["low"] < row["value"] < row["high"]


@pytest.mark.parametrize("name", ["eight sets of eight categories", "twos", "ones beside threes"])
def test_a_bootstrap_is_about_as_wide_as_the_view(catalog, name):
    sql = "FROM results WHERE dataset_name = $name AND stage = 'decoder' AND part = 'value' AND layer = 1 AND head = 0"
    (row,) = rows(catalog, sql, name=f"{name}-test")
    found = statistics.bootstrap(*scores(catalog, name)[row["site"], 0, ""])
    assert 0.8 < (found.high - found.low) / (row["high"] - row["low"]) < 1.25


def test_one_cluster_has_no_interval(catalog):
    found = rows(catalog, "FROM results_by_group WHERE dataset_name = 'one cluster-test'")
    assert found
    assert all(row["value"] is not None and (row["se"], row["low"], row["df"]) == (None,) * 3 for row in found)
    assert rows(catalog, "FROM chosen WHERE dataset_name = 'one cluster-test' AND low IS NOT NULL") == []


def test_equal_scores_have_an_interval_without_width(catalog):
    found = rows(catalog, "FROM results_by_group WHERE dataset_name = 'equal-test'")
    assert all(row["low"] == row["value"] == row["high"] for row in found)
    assert [row["df"] for row in found if row["grp"] == ""] == [4.0] * len(found[::3])


def test_clusters_that_agree_by_chance_have_no_interval():
    values, clusters = [0.2, 0.6, 0.6, 0.2], ["a", "a", "b", "b"]
    for interval in (statistics.linearised, statistics.bootstrap):
        found = interval(values, 1.0, ["g"] * 4, clusters)
        assert found.mean == pytest.approx(0.4)
        assert math.isnan(found.low)
        assert interval([0.4] * 4, 1.0, ["g"] * 4, clusters).low == pytest.approx(0.4)
    assert math.isnan(statistics.difference(values, [0.1] * 4, 1.0, ["g"] * 4, clusters).low)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_choice_has_an_error_where_both_halves_have_one(catalog, name):
    found = rows(catalog, "FROM chosen WHERE dataset_name = $name AND stage = 'decoder'", name=f"{name}-test")
    if sum(LAYOUTS[name]) < 4:
        assert all((row["se"], row["low"], row["df"]) == (None,) * 3 for row in found)
        return
    # Two layers of two heads that differ by layer alone: nothing is lost by choosing, so the interval is an honest one.
    for row in found:
        assert row["low"] < row["value"] < row["high"]
        assert 1 <= row["df"] <= row["n_clusters"] - 1
    wide = np.median([row["high"] - row["low"] for row in found])
    (whole,) = rows(
        catalog,
        """SELECT median(high - low) AS width FROM results
           WHERE dataset_name = $name AND stage = 'decoder' AND layer = 1 AND head >= 0""",
        name=f"{name}-test",
    )
    assert 0.7 < wide / whole["width"] < 4


# --- coverage ---------------------------------------------------------------------------------------------------------

TRUTH = 0.5
WORLDS = 1500


def worlds(layout, spread=0.1, *, groups=0.0, shared=False):
    """`WORLDS` draws (samples, worlds) of the same layout, clusters scattered by `spread`, groups by `groups`."""
    draw = np.random.default_rng([7, *layout])
    told = labels(layout, shared=shared, samples=2)
    group, cluster = (np.unique(part, return_inverse=True)[1] for part in zip(*told, strict=True))
    scatter = np.asarray(spread)[group][:, None] if np.ndim(spread) else spread
    own = draw.standard_normal((cluster.max() + 1, WORLDS))[cluster]
    values = TRUTH + scatter * own + groups * draw.standard_normal((len(layout), WORLDS))[group]
    values += 0.03 * draw.standard_normal(values.shape)
    return values, draw.uniform(0.5, 2, len(told)), group, cluster


@pytest.mark.parametrize(
    "case",
    [
        {"layout": [3]},
        {"layout": [1] * 8},
        {"layout": [1] * 8, "groups": 0.2},
        {"layout": [2] * 8},
        {"layout": [1] * 4 + [3] * 4},
        {"layout": [2] * 3 + [20] * 3, "spread": [0.3] * 3 + [0.05] * 3},
        {"layout": [5] * 3, "shared": True},
    ],
    ids=str,
)
def test_of_a_hundred_intervals_about_95_hold_the_truth(case):
    found = statistics.linearised(*worlds(**case))
    assert 0.93 <= np.mean((found.low <= TRUTH) & (found.high >= TRUTH)) <= 0.97


@pytest.mark.parametrize("layout", [[4], [1] * 8, [2] * 6], ids=str)
def test_bootstraps_hold_it_as_often(layout):
    values, *rest = worlds(layout)
    for found in (
        statistics.bootstrap(values, *rest, draws=300),
        statistics.difference(2 * values, values, *rest, draws=300),
    ):
        assert 0.92 <= np.mean((found.low <= TRUTH) & (found.high >= TRUTH)) <= 0.98
