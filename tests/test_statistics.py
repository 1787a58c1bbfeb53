from __future__ import annotations

import math

import numpy as np
import pytest
from by_hand import mean_and_error
from scipy import stats

from vkvdb import statistics


def table(seed=0, clusters=40, columns=None, groups=3):
    """Samples of clusters of 1 to 4, each cluster with a mean of its own; weights from .5 to 2."""
    draw = np.random.default_rng(seed)
    cluster = np.repeat(np.arange(clusters), draw.integers(1, 5, clusters))
    n = len(cluster)
    shape = (n,) if columns is None else (n, columns)
    own = draw.normal(size=clusters)[cluster]
    values = 0.5 + 0.1 * (own if columns is None else own[:, None]) + 0.1 * draw.normal(size=shape)
    return values, draw.uniform(0.5, 2, n), draw.integers(0, groups, n).astype(str), cluster.astype(str)


def plain_mean(values, weights, groups):
    return np.mean([np.average(values[groups == g], weights=weights[groups == g]) for g in np.unique(groups)])


def test_mean_is_over_groups_of_weighted_means():
    values, weights, groups, _ = table()
    assert statistics.mean(values, weights, groups) == pytest.approx(plain_mean(values, weights, groups), rel=1e-12)
    # IoU: value I / U with weight U gives sum I / sum U inside the class.
    unions, hits = np.array([4.0, 6.0, 10.0]), np.array([1.0, 3.0, 5.0])
    assert statistics.mean(hits / unions, unions, ["cat", "cat", "dog"]) == pytest.approx((4 / 10 + 5 / 10) / 2)


def test_columns_are_independent_and_nan_counts_nowhere():
    values, weights, groups, clusters = table(columns=3)
    values[::5, 1] = np.nan
    values[:, 2] = np.nan
    means = statistics.mean(values, weights, groups)
    some = ~np.isnan(values[:, 1])
    assert means[0] == pytest.approx(plain_mean(values[:, 0], weights, groups))
    assert means[1] == pytest.approx(plain_mean(values[some, 1], weights[some], groups[some]))
    assert math.isnan(means[2])
    for interval in (statistics.linearised, statistics.bootstrap):
        found = interval(values, weights, groups, clusters)
        assert found.n.tolist() == [len(values), some.sum(), 0]
        assert found.low[1] < means[1] < found.high[1]
        assert math.isnan(found.low[2])
        alone = interval(values[:, 1], weights, groups, clusters)
        assert (alone.mean, alone.low) == pytest.approx((found.mean[1], found.low[1]))


def test_weights_may_differ_by_column():
    values, _, groups, _ = table(columns=2)
    weights = np.random.default_rng(1).uniform(1, 5, values.shape)
    for column in range(2):
        assert statistics.mean(values, weights, groups)[column] == pytest.approx(
            plain_mean(values[:, column], weights[:, column], groups)
        )


def test_linearised_is_the_formula_of_the_view():
    values, weights, groups, clusters = table()
    found = statistics.linearised(values, weights, groups, clusters)
    mean, error, count, df = mean_and_error(values, weights, groups, clusters)
    assert (found.mean, found.error, found.clusters, found.df) == pytest.approx((mean, error, count, df), rel=1e-10)
    assert found.low == pytest.approx(mean - stats.t.ppf(0.975, df) * error, rel=1e-4)
    assert math.isnan(statistics.linearised([0.1, 0.9], 1.0, ["a", "a"], ["x", "x"]).low)


def test_intervals_hold_the_truth_as_often_as_they_say():
    held = {statistics.linearised: 0, statistics.bootstrap: 0}
    for seed in range(200):
        values, weights, groups, clusters = table(seed + 1, groups=1)
        for interval in held:
            found = interval(values, weights, groups, clusters)
            held[interval] += found.low <= 0.5 <= found.high
    assert all(180 <= n <= 199 for n in held.values()), held


def test_clusters_widen_the_interval():
    values, weights, groups, clusters = table()
    alone = np.arange(len(values))
    for interval in (statistics.linearised, statistics.bootstrap):
        together = interval(values, weights, groups, clusters)
        apart = interval(values, weights, groups, alone)
        assert together.high - together.low > 1.1 * (apart.high - apart.low)


def test_seeds_decide():
    samples = table(columns=2)
    assert np.array_equal(statistics.bootstrap(*samples).low, statistics.bootstrap(*samples).low)
    assert not np.array_equal(statistics.bootstrap(*samples).low, statistics.bootstrap(*samples, seed=1).low)


def test_a_paired_difference_is_narrower_than_two_intervals():
    values, weights, groups, clusters = table()
    better = values + 0.02 + 0.005 * np.random.default_rng(5).normal(size=len(values))
    found = statistics.difference(better, values, weights, groups, clusters)
    assert found.low > 0
    assert found.mean == pytest.approx(
        statistics.mean(better, weights, groups) - statistics.mean(values, weights, groups)
    )
    assert (
        statistics.bootstrap(better, weights, groups, clusters).low
        < statistics.bootstrap(values, weights, groups, clusters).high
    )
    # Where one is not defined the other does not count.
    better[0] = np.nan
    found = statistics.difference(better, values, (weights, weights), groups, clusters)
    assert found.mean == pytest.approx(plain_mean((better - values)[1:], weights[1:], groups[1:]))
    assert found.n == len(values) - 1


def test_choice_finds_a_clear_best_and_reports_it_without_bias():
    values, weights, groups, clusters = table(columns=6)
    values[:, 4] += 0.5
    choice = statistics.best_of_halves(values, weights, groups, clusters)
    assert (choice.best, choice.wins.tolist(), choice.choices) == (4, [0, 0, 0, 0, 40, 0], 40)
    assert choice.mean == pytest.approx(choice.in_sample, abs=0.02)
    assert 0 < choice.spread < 0.05


def test_choice_among_equals_is_lower_than_the_maximum():
    draw = np.random.default_rng(0)
    values = draw.normal(size=(60, 50))
    args = (values, 1.0, np.zeros(60), np.arange(60))
    choice = statistics.best_of_halves(*args)
    assert choice.in_sample > 0.1
    assert choice.mean < 0
    assert choice.wins.sum() == 40
    interval = statistics.bootstrap_of_choice(*args, draws=300)
    assert interval.low < 0 < interval.high
    assert interval.low < choice.mean < interval.high
    assert statistics.bootstrap_of_choice(*args, draws=300) == interval


def test_halves_keep_clusters_whole():
    # Column c is 1 exactly on cluster c: were a cluster torn apart, its column would be chosen and reported above 0.
    clusters = np.repeat(np.arange(8), 5)
    values = (clusters[:, None] == np.arange(8)).astype(float)
    assert statistics.best_of_halves(values, 1.0, np.zeros(40), clusters).mean == 0
    assert statistics.bootstrap_of_choice(values, 1.0, np.zeros(40), clusters, draws=100).high == 0


def test_one_cluster_has_no_halves():
    with pytest.raises(ValueError, match="one cluster"):
        statistics.best_of_halves(np.ones((3, 2)), 1.0, ["a"] * 3, ["x"] * 3)
