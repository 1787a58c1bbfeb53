"""Means, intervals and choices over samples that are not independent. Numpy only; every draw is seeded.

Throughout: `values` are (samples,) or (samples, columns), a column being a site and head; `weights` a number, or an
array that broadcasts to them; `groups` (samples,) the classes that a mean is taken over; `clusters` (samples,) what is
drawn and split together (an image, a clip). NaN is a value that is not defined: it counts nowhere. Results are floats
for values (samples,) and arrays (columns,) otherwise; they are NaN where nothing is defined.

The mean is that of the catalog's `results` view: over groups of the weighted mean inside a group. Its linearised
interval is the view's (summaries.sql says what is done where a group has one or two clusters); the bootstraps are what
charts print where the view has no formula: differences, and choices of a site and head. Percentiles of a bootstrap over
few clusters lie too close together. So they are moved away from the mean: by Student's t over the normal's, and by the
linearised error over the bootstrap's own where that is the smaller. Where no error can be told, no bootstrap says one.
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
    """A mean and its 95 % interval; floats or arrays (columns,). `n` samples in `clusters` clusters are behind it.

    `error` is the linearised standard error with `df` degrees of freedom; a choice has none.
    """

    mean: Any
    low: Any
    high: Any
    n: Any
    clusters: Any
    error: Any = float("nan")
    df: Any = float("nan")


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
    return sums.shaped(sums.mean())


def t975(df: Any) -> Any:
    """Student's t at 97.5 %, for one degree of freedom or more: the same expansion as the macro of views.sql."""
    x = 1 / np.asarray(df, dtype=np.float64)
    return 1.959964 + x * (2.372271 + x * (2.822501 + x * (2.555852 + x * (1.589536 + x * 1.406081))))


def linearised(values: Any, weights: Any, groups: Any, clusters: Any) -> Interval:
    """The mean with a cluster-linearised interval, as the catalog's `results` view has it: summaries.sql says how.

    One cluster has no interval, NaN, nor have clusters that agree by chance although their samples differ.
    """
    sums = _Sums(values, weights, groups, clusters)
    error, df = _error(sums.departures(), sums.inside(), sums.weight > 0, sums.spread)
    middle, wide = sums.mean(), t975(df) * error
    return sums.interval(middle, middle - wide, middle + wide, error, df)


def bootstrap(values: Any, weights: Any, groups: Any, clusters: Any, *, draws: int = 1000, seed: int = 0) -> Interval:
    """The mean with the 2.5 and 97.5 percentiles of its bootstrap over clusters, moved apart where clusters are few.

    A draw that misses a group averages over those that it has.
    """
    sums = _Sums(values, weights, groups, clusters)
    error, df = _error(sums.departures(), sums.inside(), sums.weight > 0, sums.spread)
    drawn = sums.means(_draw(sums.count, draws, seed))
    return sums.interval(sums.mean(), *_percentiles(drawn, sums.mean(), error, df), error, df)


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
    of_both = _Sums(one - two, np.minimum(of_one, of_two), groups, clusters)
    error, df = _error(a.departures() - b.departures(), a.inside() - b.inside(), of_both.weight > 0, of_both.spread)
    drawn, middle = _draw(a.count, draws, seed), a.mean() - b.mean()
    return a.interval(middle, *_percentiles(a.means(drawn) - b.means(drawn), middle, error, df), error, df)


def best_of_halves(values: Any, weights: Any, groups: Any, clusters: Any, *, splits: int = 20, seed: int = 0) -> Choice:
    """The best column by repeated two-fold splits of the clusters: values (samples, columns).

    Each split chooses twice, on one half and on the other, and reports each choice on the half that it was not made on;
    a split's value is the mean of the two.
    """
    sums = _Sums(values, weights, groups, clusters)
    if sums.count < 2:
        raise ValueError("one cluster can't be split into halves")
    reported, chosen = _reported(sums, np.ones((splits, sums.count)), np.random.default_rng(seed))
    whole = sums.mean()
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
    middle = best_of_halves(values, weights, groups, clusters, seed=seed).mean
    wider = math.sqrt(sums.count / (sums.count - 1)) * t975(sums.count - 1) / NORMAL
    low, high = middle + (np.nanpercentile(reported, [2.5, 97.5]) - middle) * wider
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
        counted = weight > 0
        self.spread = np.max(table, axis=0, initial=-np.inf, where=counted) - np.min(
            table, axis=0, initial=np.inf, where=counted
        )

    def inside(self) -> Floats:
        """Each group's weighted mean (groups, columns); NaN where it has none."""
        with np.errstate(invalid="ignore"):
            means: Floats = self.weighted.sum(0) / self.weight.sum(0)
        return means

    def departures(self) -> Floats:
        """How far each cluster moves each group's mean (clusters, groups, columns): sum w (v - M_g) / W_g."""
        with np.errstate(invalid="ignore"):
            parts = (self.weighted - self.weight * self.inside()) / self.weight.sum(0)
        departures: Floats = np.where(self.weight > 0, parts, 0.0)
        return departures

    def mean(self) -> Floats:
        """The mean over groups (columns,) of all clusters, each once."""
        every: Floats = self.means(np.ones((1, self.count)))[0]
        return every

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

    def interval(self, middle: Floats, low: Floats, high: Floats, error: Floats, df: Floats) -> Interval:
        n = self.defined.sum(0)
        clusters = (self.weight > 0).any(1).sum(0)
        return Interval(*(self.shaped(part) for part in (middle, low, high, n, clusters, error, df)))


def _draw(count: int, draws: int, seed: Any) -> Floats:
    """How often each of `count` clusters is drawn, in each of so many draws with replacement: (draws, count)."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws).astype(np.float64)


def _error(parts: Floats, means: Floats, present: npt.NDArray[np.bool_], spread: Floats) -> tuple[Floats, Floats]:
    """The standard error (columns,) of a mean over groups, and its degrees of freedom; NaN where there is none.

    As summaries.sql says. `parts` (clusters, groups, columns) is how far each cluster moves each group's mean, `means`
    (groups, columns) the groups' means, `present` (clusters, groups, columns) whether a cluster has weight in a group,
    and `spread` (columns,) largest less smallest value.
    """
    size, there = present.sum(0), present.any(0)  # (groups, columns)
    groups, clusters = there.sum(0), present.any(1).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        middle = np.where(there, means, 0.0).sum(0) / groups
        factor = np.where(size > 1, np.sqrt(size / (size - 1.0)), 0.0)
        variance = factor**2 * (parts**2).sum(0)
        apart = np.where(size == 1, means - middle, 0.0)
        least = np.minimum(clusters, groups)
        widened = np.where(least > 1, least / (least - 1.0), 0.0)
        moved = (factor * parts + np.sqrt(widened) * apart * present).sum(1)  # (clusters, columns)
        error = np.where(clusters > 1, np.sqrt((moved**2).sum(0)) / groups, np.nan)
        error = np.where((spread > 0) & (error <= 1e-9 * spread), np.nan, error)
        lone_df = np.minimum((size == 1).sum(0), least - 1)
        lone = widened * (apart**2).sum(0)
        welch = (variance.sum(0) + lone) ** 2 / ((variance**2 / (size + 1)).sum(0) + lone**2 / (lone_df + 2)) - 2
        most = np.minimum(clusters - 1, np.where(there, size - 1, 0).sum(0) + lone_df)
        # Without any variance Welch has nothing to say.
        df = np.where(np.isnan(error), np.nan, np.where(np.isnan(welch), most, np.clip(welch, 1, most)))
    return error, df


def _percentiles(drawn: Floats, middle: Floats, error: Floats, df: Floats) -> tuple[Floats, Floats]:
    """2.5 and 97.5 percentiles (columns,) of draws (draws, columns), moved away from the middle where clusters are few.

    NaN for a column that is never defined, or has no error.
    """
    result = np.full((2, drawn.shape[1]), np.nan)
    some = ~np.isnan(drawn).all(0) & ~np.isnan(error)
    result[:, some] = np.nanpercentile(drawn[:, some], [2.5, 97.5], axis=0)
    spread = np.full(drawn.shape[1], np.nan)
    spread[some] = np.nanstd(drawn[:, some], axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        wider = t975(df) / NORMAL * np.where(spread > 0, np.maximum(1.0, error / spread), 1.0)
    low, high = middle + (result - middle) * wider
    return low, high


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
