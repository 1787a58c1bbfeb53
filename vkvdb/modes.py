"""One group of numbers or two: where to cut them, and whether there is anything to cut. Numpy only; draws are seeded.

The cut is Otsu's. That there are two modes is asked twice [D]:

- **the dip** (Hartigan and Hartigan 1985): how far the numbers' distribution is from the nearest one with one mode,
  against uniform numbers, which of all distributions with one mode dip most. It sees two groups of any shape, but not
  a small one: a share f of all numbers, however far off, dips by f / 2 at most;
- **the gap**: how far apart the two numbers beside the cut are, in median absolute deviations, against numbers of the
  exponential distribution and of the double one, whichever has the larger gaps: no log-concave density has heavier
  tails, on one side or on both. A few numbers far from all others are a group, and the tail of one group is none.

`two_modes` is the smaller p-value of the two, doubled since there are two.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
DRAWS = 1000


def otsu(values: Any) -> float:
    """The cut that puts most of the variance between the two sides: the middle between the two numbers beside it.

    NaN where all numbers are equal.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n = np.arange(1, len(ordered))
    below = ordered.cumsum()[:-1] / n
    above = (ordered.sum() - ordered.cumsum()[:-1]) / (len(ordered) - n)
    between = n * (len(ordered) - n) * (above - below) ** 2
    between[ordered[1:] == ordered[:-1]] = -1.0  # equal numbers are on one side
    if not (between > 0).any():
        return float("nan")
    best = int(between.argmax())
    return float((ordered[best] + ordered[best + 1]) / 2)


def dip(values: Any) -> float:
    """The largest distance of the numbers' distribution function from the nearest with one mode; at least 1 / 2n.

    Inside an interval that holds the mode, such a function fits between the greatest convex minorant and the least
    concave majorant. The interval shrinks to where these two are farthest apart, until what it leaves outside fits
    worse than what is inside.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    x, counts = np.unique(ordered, return_counts=True)
    after = counts.cumsum() / len(ordered)
    before = after - counts / len(ordered)
    low, high, worst = 0, len(x) - 1, 1 / len(ordered)
    while low < high:
        part = slice(low, high + 1)
        convex = _hull(x[part], before[part]) + low
        concave = _hull(x[part], -after[part]) + low
        under = np.interp(x[part], x[convex], before[convex])
        over = np.interp(x[part], x[concave], after[concave])
        knots = np.union1d(convex, concave)
        widest = int(knots[(over - under)[knots - low].argmax()])
        if (over - under)[widest - low] <= worst + 1e-12:
            break
        left = int(convex[convex <= widest].max())
        right = int(concave[concave >= widest].min())
        outside = [0.0]
        if left > low:
            outside.append(float((after[low:left] - under[: left - low]).max()))
        if right < high:
            outside.append(float((over[right + 1 - low :] - before[right + 1 : high + 1]).max()))
        worst = max(worst, *outside)
        if (left, right) == (low, high):
            break
        low, high = left, right
    return worst / 2


def _hull(x: Floats, y: Floats) -> npt.NDArray[np.int64]:
    """Where the greatest convex function below the points touches them; `x` ascends strictly."""
    kept: list[int] = []
    across, up = x.tolist(), y.tolist()
    for i in range(len(across)):
        while len(kept) > 1:
            a, b = kept[-2], kept[-1]
            if (up[b] - up[a]) * (across[i] - across[b]) < (up[i] - up[b]) * (across[b] - across[a]):
                break
            kept.pop()
        kept.append(i)
    return np.array(kept)


def gap(values: Any) -> float:
    """How far apart the numbers beside Otsu's cut are, in median absolute deviations from the median."""
    numbers = np.asarray(values, dtype=np.float64)
    cut = otsu(numbers)
    if np.isnan(cut):
        return 0.0
    wide = numbers[numbers > cut].min() - numbers[numbers < cut].max()
    deviation = float(np.median(np.abs(numbers - np.median(numbers))))
    return float(wide / deviation) if deviation else float("inf")


def two_modes(values: Any, *, draws: int = DRAWS, seed: int = 0) -> float:
    """The p-value of "one mode": the smaller of the dip's and the gap's, doubled. 1 for fewer than 4 numbers."""
    numbers = np.asarray(values, dtype=np.float64)
    if len(numbers) < 4:
        return 1.0
    uniform, one_tail, two_tails = _null(len(numbers), draws, seed)
    wide = gap(numbers)
    larger = (uniform >= dip(numbers)).sum(), max((one_tail >= wide).sum(), (two_tails >= wide).sum())
    return min(1.0, *(2 * (1 + int(count)) / (1 + draws) for count in larger))


@cache
def _null(n: int, draws: int, seed: int) -> tuple[Floats, Floats, Floats]:
    """Dips of so many uniform samples of n numbers, gaps of as many exponential and double exponential ones."""
    generator = np.random.default_rng(seed)
    dips = np.array([dip(one) for one in generator.random((draws, n))])
    gaps = [
        np.array([gap(one) for one in draw(size=(draws, n))]) for draw in (generator.exponential, generator.laplace)
    ]
    return dips, gaps[0], gaps[1]
