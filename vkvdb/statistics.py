"""Means, intervals and choices over samples that are not independent. Numpy only; every draw is seeded.

Throughout: `values` are (samples,) or (samples, columns), a column being a site and head; `weights` a number, or an
array that broadcasts to them; `groups` (samples,) the classes that a mean is taken over; `clusters` (samples,) what is
drawn and split together (an image, a clip). NaN is a value that is not defined: it counts nowhere. Results are floats
for values (samples,) and arrays (columns,) otherwise; they are NaN where nothing is defined.

The mean is that of the catalog's `results` view: over groups of the weighted mean inside a group. Its linearised
interval is the view's; the bootstraps are what charts print where the view has no formula: differences, and choices of
a site and head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
NORMAL = 1.96  # half the width of 95 % of the normal distribution, in standard deviations


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval; floats or arrays (columns,). `n` samples in `clusters` clusters are behind it."""

    mean: Any
    low: Any
    high: Any
    n: Any
    clusters: Any


@dataclass(frozen=True)
class Choice:
    """The best column, chosen on one half of the clusters and reported on the other.

    `mean` over all splits of the value reported, `spread` its standard deviation between splits, `wins` (columns,) how
    often each column was chosen, of `choices`. `in_sample` is the largest mean over all samples and `best` its column:
    not an honest number, for the comparison only.
    """

    mean: float
    spread: float
    wins: npt.NDArray[np.int64]
    choices: int
    in_sample: float
    best: int


@dataclass(frozen=True)
class Correlation:
    """How two numbers of each of `n` items go together, by Pearson's and Spearman's coefficients.

    Pairs (low, high): 95 % intervals, of Fisher's z with Bonett and Wright's error for ranks, which are rough for few
    items; and the smallest and largest coefficient when one family is left out, NaN where no family can be. `p` are
    two-sided, by permutation. All are NaN where a coefficient is not defined (a constant, fewer than 3 items).
    """

    n: int
    families: int
    pearson: float
    pearson_interval: tuple[float, float]
    pearson_p: float
    pearson_without: tuple[float, float]
    spearman: float
    spearman_interval: tuple[float, float]
    spearman_p: float
    spearman_without: tuple[float, float]


def mean(values: Any, weights: Any, groups: Any) -> Any:
    """The mean over groups of the weighted means inside them."""
    sums = _Sums(values, weights, groups, np.zeros(len(np.asarray(values))))
    return sums.shaped(sums.means(np.ones((1, sums.count)))[0])


def linearised(values: Any, weights: Any, groups: Any, clusters: Any) -> Interval:
    """The mean with a cluster-linearised interval, as the catalog's `results` view has it.

    With W_g the weight of a group, M_g its mean and G the number of groups, a cluster's part is e_c = sum over its
    samples of w (v - M_g) / (W_g G), and the squared standard error C / (C - 1) times the sum of e_c^2. One cluster has
    no interval: NaN.
    """
    sums = _Sums(values, weights, groups, clusters)
    totals, weight = sums.weighted.sum(0), sums.weight.sum(0)
    present = weight > 0
    inside = np.divide(totals, weight, out=np.zeros_like(totals), where=present)
    share = np.divide(1.0, weight * present.sum(0), out=np.zeros_like(weight), where=present)
    parts = ((sums.weighted - sums.weight * inside) * share).sum(1)
    clusters_present = (sums.weight > 0).any(1).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.sqrt(clusters_present / (clusters_present - 1.0) * (parts**2).sum(0))
    middle = sums.means(np.ones((1, sums.count)))[0]
    return sums.interval(middle, middle - NORMAL * error, middle + NORMAL * error)


def bootstrap(values: Any, weights: Any, groups: Any, clusters: Any, *, draws: int = 1000, seed: int = 0) -> Interval:
    """The mean with the 2.5 and 97.5 percentiles of its bootstrap over clusters.

    A draw that misses a group averages over those that it has.
    """
    sums = _Sums(values, weights, groups, clusters)
    drawn = sums.means(_draw(sums.count, draws, seed))
    return sums.interval(sums.means(np.ones((1, sums.count)))[0], *_percentiles(drawn))


def difference(
    first: Any, second: Any, weights: Any, groups: Any, clusters: Any, *, draws: int = 1000, seed: int = 0
) -> Interval:
    """first - second, paired: both means over the samples where both are defined, and in every draw over the same
    clusters.

    `weights` may be a pair, one for each, where they differ (IoU).
    """
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    of_one, of_two = weights if isinstance(weights, tuple) else (weights, weights)
    undefined = np.isnan(one) | np.isnan(two)
    a = _Sums(np.where(undefined, np.nan, one), of_one, groups, clusters)
    b = _Sums(np.where(undefined, np.nan, two), of_two, groups, clusters)
    drawn, all_once = _draw(a.count, draws, seed), np.ones((1, a.count))
    middle = (a.means(all_once) - b.means(all_once))[0]
    return a.interval(middle, *_percentiles(a.means(drawn) - b.means(drawn)))


def best_of_halves(values: Any, weights: Any, groups: Any, clusters: Any, *, splits: int = 20, seed: int = 0) -> Choice:
    """The best column by repeated two-fold splits of the clusters: values (samples, columns).

    Each split chooses twice, on one half and on the other, and reports each choice on the half that it was not made on;
    a split's value is the mean of the two.
    """
    sums = _Sums(values, weights, groups, clusters)
    if sums.count < 2:
        raise ValueError("one cluster can't be split into halves")
    reported, chosen = _reported(sums, np.ones((splits, sums.count)), np.random.default_rng(seed))
    whole = sums.means(np.ones((1, sums.count)))[0]
    best = int(np.nanargmax(whole))
    return Choice(
        mean=float(np.nanmean(reported)),
        spread=float(np.nanstd(reported, ddof=1)) if splits > 1 else float("nan"),
        wins=np.bincount(chosen[chosen >= 0], minlength=len(whole)),
        choices=int((chosen >= 0).sum()),
        in_sample=float(whole[best]),
        best=best,
    )


def bootstrap_of_choice(
    values: Any, weights: Any, groups: Any, clusters: Any, *, draws: int = 1000, seed: int = 0
) -> Interval:
    """The value that `best_of_halves` reports, with a bootstrap that repeats the choice: one split a draw.

    Copies of a drawn cluster stay in one half, or the choice would be made on what it is reported on.
    """
    sums = _Sums(values, weights, groups, clusters)
    generator = np.random.default_rng(seed)
    drawn = _draw(sums.count, draws, generator.integers(2**32))
    reported, _ = _reported(sums, drawn, generator)
    low, high = np.nanpercentile(reported, [2.5, 97.5])
    middle = best_of_halves(values, weights, groups, clusters, seed=seed).mean
    return Interval(middle, float(low), float(high), int(sums.defined.any(1).sum()), sums.count)


def mcnemar(lost: int, gained: int) -> float:
    """The exact two-sided p-value of so many yes-or-no answers lost and gained, under equal chances of both."""
    n, k = lost + gained, min(lost, gained)
    return min(1.0, float(2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n))


def correlation(x: Any, y: Any, families: Any, *, draws: int = 9999, seed: int = 0) -> Correlation:
    """The correlation of x and y (items,); families (items,) are left out one by one.

    p is the share of the permutations of y with a coefficient as large in absolute value, the observed one among them:
    of all permutations where there are no more than `draws`, else of so many drawn. Items are taken to be exchangeable.
    """
    one, two, of = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64), np.asarray(families)
    names = np.unique(of)
    plain = _of_pairs(one, two, [of != name for name in names], draws, seed)
    ranked = _of_pairs(one, two, [of != name for name in names], draws, seed, ranked=True)
    return Correlation(len(one), len(names), *plain, *ranked)


def _of_pairs(x: Floats, y: Floats, kept: list[Any], draws: int, seed: int, *, ranked: bool = False) -> Any:
    """A coefficient, its interval, its p and its extremes over the items kept, as `Correlation` has them."""
    prepared = _ranks if ranked else np.asarray
    r = _coefficient(prepared(x), prepared(y))
    nothing = float("nan")
    interval = (nothing, nothing)
    if len(x) > 3 and abs(r) < 1 - 1e-12:
        z, error = math.atanh(r), math.sqrt((1 + r * r / 2 if ranked else 1) / (len(x) - 3))
        interval = (math.tanh(z - NORMAL * error), math.tanh(z + NORMAL * error))
    without = [_coefficient(prepared(x[some]), prepared(y[some])) for some in kept if len(kept) > 1]
    defined = [each for each in without if not math.isnan(each)]
    extremes = (min(defined), max(defined)) if defined else (nothing, nothing)
    return r, interval, _permuted(prepared(x), prepared(y), draws, seed), extremes


def _ranks(values: Floats) -> Floats:
    """Ranks from 0; equal values share the mean of theirs."""
    _, place, times = np.unique(values, return_inverse=True, return_counts=True)
    shared: Floats = (np.cumsum(times) - (times + 1) / 2)[place]
    return shared


def _scaled(values: Floats) -> Floats:
    """Centred and of length 1; NaN for fewer than 3 values, or equal ones."""
    centred = values - values.mean() if len(values) > 2 else np.full(len(values), np.nan)
    length = float(np.sqrt(centred @ centred))
    even = np.isnan(length) or length <= 1e-12 * (1 + np.abs(values).max(initial=0))
    return np.full(len(values), np.nan) if even else centred / length


def _coefficient(x: Floats, y: Floats) -> float:
    """Pearson's coefficient; NaN where it is not defined."""
    return float(np.clip(_scaled(x) @ _scaled(y), -1, 1)) if len(x) > 2 else float("nan")


def _permuted(x: Floats, y: Floats, draws: int, seed: int) -> float:
    """The two-sided p-value of Pearson's coefficient by permutation."""
    a, b = _scaled(x), _scaled(y)
    least = abs(a @ b) - 1e-12
    if np.isnan(least):
        return float("nan")
    if math.factorial(min(len(a), 20)) <= draws:
        every = np.array(list(permutations(range(len(a)))))
        return float((np.abs(b[every] @ a) >= least).mean())
    generator = np.random.default_rng(seed)
    as_large = 0
    step = max(1, 1_000_000 // len(a))  # permutations at a time, so that memory stays small
    for first in range(0, draws, step):
        drawn = generator.permuted(np.broadcast_to(b, (min(step, draws - first), len(b))), axis=1)
        as_large += int((np.abs(drawn @ a) >= least).sum())
    return (1 + as_large) / (1 + draws)


class _Sums:
    """Values summed inside (cluster, group), from which every mean under any choice of clusters is one product."""

    def __init__(self, values: Any, weights: Any, groups: Any, clusters: Any) -> None:
        given = np.asarray(values, dtype=np.float64)
        self.single = given.ndim == 1
        table = given[:, None] if self.single else given
        weight = np.asarray(weights, dtype=np.float64)
        weight = np.broadcast_to(weight[:, None] if weight.ndim == 1 else weight, table.shape)
        self.defined = ~np.isnan(table)
        weight = np.where(self.defined, weight, 0.0)
        _, group = np.unique(np.asarray(groups), return_inverse=True)
        names, cluster = np.unique(np.asarray(clusters), return_inverse=True)
        self.cluster, self.count = cluster, len(names)
        shape = (self.count, int(group.max(initial=-1)) + 1, table.shape[1])
        self.weight, self.weighted = np.zeros(shape), np.zeros(shape)
        np.add.at(self.weight, (cluster, group), weight)
        np.add.at(self.weighted, (cluster, group), weight * np.where(self.defined, table, 0.0))

    def means(self, times: Floats) -> Floats:
        """The means (draws, columns) when each cluster is taken so many times (draws, clusters)."""
        shape = (len(times), *self.weight.shape[1:])
        weight = (times @ self.weight.reshape(self.count, -1)).reshape(shape)
        weighted = (times @ self.weighted.reshape(self.count, -1)).reshape(shape)
        present = weight > 0
        inside = np.divide(weighted, weight, out=np.zeros(shape), where=present)
        with np.errstate(invalid="ignore"):
            averaged: Floats = inside.sum(1) / present.sum(1)
        return averaged

    def shaped(self, result: npt.NDArray[Any]) -> Any:
        """A column's number alone where values had no columns."""
        return result[0].item() if self.single else result

    def interval(self, middle: Floats, low: Floats, high: Floats) -> Interval:
        n = self.defined.sum(0)
        clusters = (self.weight > 0).any(1).sum(0)
        return Interval(*(self.shaped(part) for part in (middle, low, high, n, clusters)))


def _draw(count: int, draws: int, seed: Any) -> Floats:
    """How often each of `count` clusters is drawn, in each of so many draws with replacement: (draws, count)."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws).astype(np.float64)


def _percentiles(drawn: Floats) -> tuple[Floats, Floats]:
    """2.5 and 97.5 percentiles (columns,) of draws (draws, columns); NaN for a column that is never defined."""
    result = np.full((2, drawn.shape[1]), np.nan)
    some = ~np.isnan(drawn).all(0)
    result[:, some] = np.nanpercentile(drawn[:, some], [2.5, 97.5], axis=0)
    return result[0], result[1]


def _reported(sums: _Sums, times: Floats, generator: np.random.Generator) -> tuple[Floats, npt.NDArray[np.int64]]:
    """For each draw (draws, clusters) one split: the value (draws,) and the two choices (draws, 2).

    Halves are of the clusters that the draw has. Where nothing is defined in a half, its choice is -1 and the value
    NaN.
    """
    taken = times > 0
    order = np.where(taken, generator.random(times.shape), np.inf).argsort(1).argsort(1)
    first = taken & (order < (taken.sum(1, keepdims=True) + generator.integers(2, size=(len(times), 1))) // 2)
    halves = [sums.means(times * half) for half in (first, taken & ~first)]
    rows = np.arange(len(times))
    chosen = np.stack(
        [np.where(np.isnan(h).all(1), -1, np.where(np.isnan(h), -np.inf, h).argmax(1)) for h in halves], 1
    )
    values = np.stack([halves[1][rows, chosen[:, 0]], halves[0][rows, chosen[:, 1]]], 1)
    averaged: Floats = np.where((chosen >= 0).all(1), values.mean(1), np.nan)
    return averaged, chosen
