"""Labels carried from frame to frame by the nearest tokens of earlier frames, heads and sites at once.

A row of the frame's cells is compared with the rows of the context frames that its neighbourhood holds, nothing else is
ever multiplied. What takes part in the top k is found in three steps: the k columns of the neighbourhood that are best
by their best place and frame; of those columns, the k places that are best by their best frame; then, of those places,
all frames. The k largest products are among those, and equal ones of the same place, as in a clip that stands still,
are all there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """How labels are carried; `reach` is the neighbourhood in (rows, columns) to each side, None for everywhere."""

    context: int
    topk: int
    temperature: float
    reach: tuple[int, int] | None


class _Frame(NamedTuple):
    """A frame that others are compared with; `heads + 1` is each head and, last, all heads concatenated.

    `tokens` are (heads x sites, cells, dim), `inverse` one over their lengths (heads + 1, sites, rows x cols), and
    `labels` (heads + 1, sites, labels, cells).
    """

    tokens: Tensor
    inverse: Tensor
    labels: Tensor


class _Clip:
    """Where a clip's cells look: the shape of its frames, and the rule."""

    def __init__(self, tokens: Tensor, rule: Rule) -> None:
        self.sites, self.heads, self.rows, self.cols, self.dim = tokens.shape
        self.rule = rule
        self.down, across = rule.reach or (self.rows, self.cols)
        # In a corner there are fewest columns and cells to look at.
        self.columns = min(across + 1, self.cols)
        self.cells = self.columns * min(self.down + 1, self.rows)
        self.barred: Tensor | None = None
        if across < self.cols - 1:
            place = torch.arange(self.cols, device=tokens.device)
            self.barred = (place[:, None] - place).abs() > across
        self.starts = torch.arange(0, self.rows * self.cols, self.cols, device=tokens.device)[:, None]

    def flat(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Of tokens (sites, heads, rows, cols, dim) what a frame's `tokens` and `inverse` are."""
        of_heads = tokens.transpose(0, 1).reshape(-1, self.rows * self.cols, self.dim)
        squares = torch.linalg.vector_norm(of_heads, dim=-1).square_().view(self.heads, self.sites, -1)
        if self.heads > 1:
            squares = torch.cat([squares, squares.sum(0, keepdim=True)])
        return of_heads, squares.clamp_min_(1e-24).rsqrt_()

    def label(self, tokens: Tensor, inverse: Tensor, context: Sequence[_Frame]) -> Tensor:
        """Labels (heads + 1, sites, labels, cells) of the frame with those tokens and lengths."""
        lengths = torch.stack([frame.inverse for frame in context])[:, :, :, None]
        others = [frame.tokens.transpose(1, 2) for frame in context]
        found = []
        for row in range(self.rows):
            own = slice(row * self.cols, (row + 1) * self.cols)
            low, high = max(row - self.down, 0), min(row + self.down + 1, self.rows)
            near = slice(low * self.cols, high * self.cols)
            cosines = self._products(tokens[:, own], [other[:, :, near] for other in others])
            values, cells = self._candidates(cosines.mul_(lengths[..., near]))
            found.append((values, cells.add_(low * self.cols)))
        # At the edges a row may have fewer candidates than inside.
        most = max(cells.shape[-1] for _, cells in found)
        values = torch.cat([_pad(values, most, -torch.inf) for values, _ in found], 3)
        cells = torch.cat([_pad(cells, most, 0) for _, cells in found], 2)
        values *= inverse[..., None]
        return _mean(values, cells, torch.stack([frame.labels for frame in context]), self.rule)

    def _products(self, tokens: Tensor, others: Sequence[Tensor]) -> Tensor:
        """Products (frames, heads + 1, sites, n, m) of tokens (heads x sites, n, dim) with others' (..., dim, m)."""
        shape = self.sites, tokens.shape[1], others[0].shape[2]
        products = tokens.new_empty(len(others), self.heads + (self.heads > 1), *shape)
        per_head = products[:, : self.heads]
        for other, out in zip(others, per_head.flatten(1, 2), strict=True):
            torch.bmm(tokens, other, out=out)
        if self.heads > 1:
            torch.sum(per_head, 1, out=products[:, -1])
        return products

    def _candidates(self, cosines: Tensor) -> tuple[Tensor, Tensor]:
        """Of (frames, heads, sites, cols, cells) the values (frames, ..., k) at the k cells (...) that are best.

        Cells are those of whole rows of the grid, in which some columns are barred.
        """
        topk = self.rule.topk
        largest = cosines.amax(0)
        largest = largest.view(*largest.shape[:3], -1, self.cols)
        columns = largest.amax(-2)
        if self.barred is not None:
            columns.masked_fill_(self.barred, -torch.inf)
        reached, column = columns.topk(min(topk, self.cols), sorted=False)
        column = column[..., None, :]
        among = largest.gather(-1, column.expand(*largest.shape[:-1], -1))
        if self.columns < column.shape[-1]:
            among.masked_fill_(reached[..., None, :] == -torch.inf, -torch.inf)
        among = among.flatten(-2)
        reached, place = among.topk(min(topk, among.shape[-1]), sorted=False)
        cells = (column + self.starts[: largest.shape[-2]]).flatten(-2).gather(-1, place)
        values = cosines.gather(-1, cells.expand(len(cosines), *cells.shape))
        if self.cells < place.shape[-1]:
            values.masked_fill_(reached == -torch.inf, -torch.inf)
        return values, cells


def propagate(frames: Iterator[Tensor], labels: Tensor, rule: Rule) -> Iterator[Tensor]:
    """Soft labels (sites, heads + 1, cells, labels) of every frame but the first.

    `frames` are float32 tokens (sites, heads, rows, cols, dim), one a frame, `labels` (cells, labels) the first one's.
    """
    first = next(frames)
    clip = _Clip(first, rule)
    tokens, inverse = clip.flat(first)
    context = [_Frame(tokens, inverse, labels.to(first).t().expand(*inverse.shape[:2], -1, -1))]
    for frame in frames:
        tokens, inverse = clip.flat(frame)
        found = clip.label(tokens, inverse, context)
        if rule.context:
            context.append(_Frame(tokens, inverse, found))
            if len(context) > rule.context + 1:
                del context[1]  # the oldest but the first
        yield found.permute(1, 0, 3, 2)


def _pad(candidates: Tensor, most: int, value: float) -> Tensor:
    """Candidates (..., k) made `most`."""
    short = most - candidates.shape[-1]
    return torch.nn.functional.pad(candidates, (0, short), value=value) if short else candidates


def _mean(values: Tensor, cells: Tensor, labels: Tensor, rule: Rule) -> Tensor:
    """Labels (heads, sites, labels, cells): the mean over the top k of all frames' values (frames, ..., cells, k).

    As eval_video_segmentation.py does, all that equals the k-th value takes part.
    """
    everything = values.movedim(0, -2).flatten(-2)
    top = everything.topk(min(rule.topk, everything.shape[-1]))[0]
    weights = ((values - top[..., :1]) / rule.temperature).exp_()
    weights.masked_fill_(values < top[..., -1:], 0)
    weights /= weights.sum(0).sum(-1)[..., None]
    wanted = cells.flatten(2)[:, :, None].expand(len(labels), *labels.shape[1:4], -1)
    of_cells = labels.gather(4, wanted).view(*labels.shape[:4], *cells.shape[2:])
    return of_cells.mul_(weights[:, :, :, None]).sum(0).sum(-1)


def reach(cells: int, rows: int, cols: int, standard: int = 27) -> tuple[int, int] | None:
    """A neighbourhood given in cells of a standard grid, in those of a grid at hand; at least one, None for 0."""
    if not cells:
        return None
    down, across = (max(1, round(cells * side / standard)) for side in (rows, cols))
    return down, across


def one_hot(objects: Sequence[Tensor]) -> Tensor:
    """Labels (cells, objects + 1) of boolean cells (objects, cells): background first; a later object hides others."""
    labels = torch.zeros(len(objects[0]), len(objects) + 1)
    which = torch.zeros(len(objects[0]), dtype=torch.long)
    for number, cells in enumerate(objects, 1):
        which[cells] = number
    return labels.scatter_(1, which[:, None], 1)
