"""The two-fold choices of choices.sql, against numpy and against statistics.py."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import synthetic

from vkvdb import statistics
from vkvdb.catalog import Catalog
from vkvdb.store import Store

SCORES = """
SELECT site, head, grp, cluster, value, weight
FROM scores JOIN jobs USING (job) JOIN samples USING (dataset, sample) JOIN sites USING (site)
WHERE job = $job AND stage = 'decoder' AND part = 'value' AND head >= 0 AND metric = $metric ORDER BY ALL
"""


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    folder = tmp_path_factory.mktemp("choices")
    catalog = Catalog(folder / "catalog.duckdb")
    catalog.absorb(synthetic.rich(Store(folder / "store"), layers=4, heads=3, images=30).store)
    return catalog


def one(catalog, sql, **given):
    found = catalog.query(sql, given)
    return [dict(zip(found.columns, row, strict=True)) for row in found.rows]


def job_and_metric(catalog):
    (row,) = one(
        catalog,
        """SELECT job, metric FROM choices JOIN jobs USING (job) WHERE stage = 'decoder' AND part = 'value'
           AND variant = '' GROUP BY ALL ORDER BY ALL LIMIT 1""",
    )
    return row


def means(rows, clusters):
    """{(site, head): mean over groups of the weighted means} of the rows whose cluster is among some."""
    sums = {}
    for row in rows:
        if row["cluster"] in clusters and not math.isnan(row["value"]):
            key = (row["site"], row["head"]), row["grp"]
            weight, weighted = sums.get(key, (0.0, 0.0))
            sums[key] = (weight + row["weight"], weighted + row["weight"] * row["value"])
    found = {}
    for (place, _), (weight, weighted) in sums.items():
        found.setdefault(place, []).append(weighted / weight)
    return {place: float(np.mean(each)) for place, each in found.items()}


def halves(clusters, split):
    """The two halves of a split, as the file says: every second cluster in the order of a hash."""
    ordered = sorted(clusters, key=lambda c: (hashlib.md5(f"{c}:{split}".encode()).hexdigest(), c))
    return {1: set(ordered[::2]), 0: set(ordered[1::2])}


def test_every_choice_is_the_plain_one(catalog):
    asked = job_and_metric(catalog)
    rows = one(catalog, SCORES, **asked)
    clusters = {row["cluster"] for row in rows}
    found = one(
        catalog,
        "SELECT * FROM choices WHERE job = $job AND metric = $metric AND stage = 'decoder' AND part = 'value'",
        **asked,
    )
    assert len(found) == 40
    for row in found:
        split = halves(clusters, row["split"])
        on, off = means(rows, split[row["half"]]), means(rows, split[1 - row["half"]])
        best = max(on, key=lambda place: (on[place], -place[0], -place[1]))
        assert (row["site"], row["head"]) == best
        assert row["chosen"] == pytest.approx(on[best], rel=1e-6)
        assert row["value"] == pytest.approx(off[best], rel=1e-6)


def test_its_error_is_that_of_the_view_of_results(catalog):
    asked = job_and_metric(catalog)
    rows = one(catalog, SCORES, **asked)
    clusters = {row["cluster"] for row in rows}
    sql = """SELECT * FROM choices WHERE job = $job AND metric = $metric AND stage = 'decoder' AND part = 'value'
             AND split = 3 AND half = 0"""
    (row,) = one(catalog, sql, **asked)
    place, half = (row["site"], row["head"]), halves(clusters, 3)[1]
    other = [r for r in rows if (r["site"], r["head"]) == place and r["cluster"] in half]
    columns = {name: [r[name] for r in other] for name in ("value", "weight", "grp", "cluster")}
    interval = statistics.linearised(*(columns[c] for c in ("value", "weight", "grp", "cluster")))
    assert row["value"] == pytest.approx(interval.mean, rel=1e-6)
    assert (row["se"], row["df"]) == pytest.approx((interval.error, interval.df), rel=1e-6)
    assert row["n_clusters"] == interval.clusters


def test_the_view_agrees_with_the_bootstrap_that_repeats_the_choice(catalog):
    asked = job_and_metric(catalog)
    rows = one(catalog, SCORES, **asked)
    places = sorted({(r["site"], r["head"]) for r in rows})
    per_place = {place: [r for r in rows if (r["site"], r["head"]) == place] for place in places}
    values = np.array([[r["value"] for r in per_place[place]] for place in places]).T
    first = per_place[places[0]]
    weights, groups, clusters = ([r[c] for r in first] for c in ("weight", "grp", "cluster"))
    wide = statistics.bootstrap_of_choice(values, weights, groups, clusters, draws=400)
    (row,) = one(
        catalog,
        "SELECT * FROM chosen WHERE job = $job AND metric = $metric AND stage = 'decoder' AND part = 'value'",
        **asked,
    )
    assert row["choices"] == 40
    assert row["value"] == pytest.approx(wide.mean, abs=0.25 * (wide.high - wide.low))
    # The bootstrap draws clusters and halves at once, so its interval is the wider one, but not by much.
    assert 0.5 < (row["high"] - row["low"]) / (wide.high - wide.low) < 1.3
    assert 10 < row["df"] < row["n_clusters"]
    assert row["high"] - row["value"] == pytest.approx(row["se"] * statistics.t975(row["df"]), rel=1e-6)
    assert row["low"] < row["value"] < row["high"]
    assert row["value"] <= row["in_half"]


def test_a_place_with_one_candidate_has_no_optimism(catalog):
    rows = one(catalog, "SELECT in_half - value AS bias, wins FROM chosen WHERE stage = 'projector'")
    assert rows
    assert all(abs(row["bias"]) < 1e-9 and row["wins"] == 40 for row in rows)
