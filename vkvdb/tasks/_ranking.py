"""Many maps at once: Otsu's threshold, and how well a map ranks weighted positives above weighted negatives."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vkvdb.metrics import Floats


def otsu(values: Tensor) -> Tensor:
    """Otsu's threshold (...) of values (..., n): of all splits the one with the largest variance between its parts.

    Exact, without a histogram: half way between the two values that it comes between. Where all values are equal it is
    their value, above which there is nothing.
    """
    ordered = _ascending(values)
    n = ordered.shape[-1]
    if n == 1:
        return ordered[..., 0]
    # With the mean at 0 and c the sum of the k lowest, the variance between is c^2 / (k (n - k)).
    centred = ordered.double()
    below = (centred - centred.mean(-1, keepdim=True)).cumsum(-1)[..., :-1]
    k = torch.arange(1, n, device=values.device)
    between = below.square_() / (k * (n - k))
    between.masked_fill_(ordered[..., 1:] <= ordered[..., :-1], -1.0)
    largest, at = between.max(-1, keepdim=True)
    split = (ordered.gather(-1, at) + ordered.gather(-1, at + 1)) / 2
    return torch.where(largest < 0, ordered[..., -1:], split)[..., 0]


def ranking(scores: Tensor, positive: Floats, negative: Floats) -> tuple[Floats, Floats]:
    """Area under the ROC curve and average precision, (...) each, of scores (..., cells).

    Weights are (cells + 1,): how many pixels of a cell are to be found and how many are not; the last weight is that of
    pixels without a score, which rank below all. Ties count half, and share their precision, as in scikit-learn. NaN
    where one kind has no weight.
    """
    return Ranked(scores).against(positive, negative)


class Ranked:
    """Scores (..., cells) put in order once, to be measured by several weights."""

    def __init__(self, scores: Tensor) -> None:
        self._shape = scores.shape[:-1]
        flat = torch.nn.functional.pad(scores.reshape(-1, scores.shape[-1]), (0, 1), value=-torch.inf)
        self._order = _descending(flat)
        ordered = flat.gather(-1, self._order)
        same = ordered[:, 1:] == ordered[:, :-1]
        self._ties = _ties(same) if bool(same.any()) else None

    def against(self, positive: Floats, negative: Floats) -> tuple[Floats, Floats]:
        """What `ranking` says of these scores."""
        if not (positive.sum() > 0 and negative.sum() > 0):
            return np.full(self._shape, np.nan), np.full(self._shape, np.nan)
        p, q = (torch.as_tensor(w / w.sum(), device=self._order.device)[self._order] for w in (positive, negative))
        true, false = p.cumsum(-1), q.cumsum(-1)
        before = false - q
        if self._ties:
            first, last = self._ties
            true, false, before = true.gather(-1, last), false.gather(-1, last), before.gather(-1, first)
        area = 1 - (p * (before + false)).sum(-1) / 2
        found, wrong = true * positive.sum(), false * negative.sum()
        precision = (p * found / (found + wrong).clamp_min(torch.finfo(torch.float64).tiny)).sum(-1)
        return area.reshape(self._shape).cpu().numpy(), precision.reshape(self._shape).cpu().numpy()


def _ascending(values: Tensor) -> Tensor:
    """Values (..., n) in order; where they lie in the host's memory by numpy, which is many times as fast."""
    return torch.from_numpy(np.sort(values.numpy(), -1)) if values.device.type == "cpu" else values.sort(-1).values


def _descending(values: Tensor) -> Tensor:
    """The order (n, m) of values (n, m) from the largest; of equals, any."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.argsort(values.numpy(), -1)).flip(-1)
    return values.argsort(-1, descending=True)


def _ties(same: Tensor) -> tuple[Tensor, Tensor]:
    """First and last place (n, m) of everyone's tie, from which of m places is equal to that before it (n, m - 1)."""
    m = same.shape[1] + 1
    places = torch.arange(m, device=same.device).expand(len(same), m)
    starts = torch.nn.functional.pad(~same, (1, 0), value=True)
    ends = torch.nn.functional.pad(~same, (0, 1), value=True)
    first = torch.where(starts, places, 0).cummax(-1).values
    last = torch.where(ends, places, m - 1).flip(-1).cummin(-1).values.flip(-1)
    return first, last
