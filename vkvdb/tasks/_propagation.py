"""Labels carried from frame to frame by the nearest tokens of earlier frames, heads and sites at once.

A row of the frame's cells is compared with the rows of the context frames that its neighbourhood holds, nothing else is
ever multiplied. What takes part in the top k is found in two steps: each place of the neighbourhood by its best frame,
then, of the k best places, all frames. The k largest products are among those, and equal ones of the same place, as in
a clip that stands still, are all there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """How labels are carried; `reach` is the neighbourhood in (rows, columns) to each side, None for everywhere."""

    context: int
    topk: int
    temperature: float
    reach: tuple[int, int] | None


class _Frames:
    """Tokens and labels of the context: the first frame in slot 0, the others in turn in the slots behind it."""

    def __init__(self, tokens: Tensor, labels: Tensor, context: int) -> None:
        sites, heads, rows, cols, _ = tokens.shape
        columns = heads + (heads > 1)
        self.tokens = tokens.new_empty(context + 1, *tokens.shape)
        self.labels = tokens.new_empty(context + 1, sites, columns, rows * cols, labels.shape[-1])
        # One over the lengths of tokens, by head and, last, of all heads concatenated.
        self.inverse = tokens.new_empty(context + 1, sites, columns, rows, cols)
        self.filled = self.next = 0
        self.push(tokens, labels)

    def push(self, tokens: Tensor, labels: Tensor) -> None:
        """Add a frame; the oldest one but the first gives way."""
        self.tokens[self.next], self.labels[self.next] = tokens, labels
        self.inverse[self.next] = inverse_lengths(tokens)
        self.filled = max(self.filled, self.next + 1)
        slots = len(self.tokens)
        self.next = 1 + self.next % (slots - 1) if slots > 1 else 0


def inverse_lengths(tokens: Tensor) -> Tensor:
    """One over the lengths of tokens (sites, heads, rows, cols, dim): (sites, heads + 1, rows, cols)."""
    squares = tokens.square().sum(-1)
    if squares.shape[1] > 1:
        squares = torch.cat([squares, squares.sum(1, keepdim=True)], 1)
    return squares.clamp_min_(1e-24).rsqrt_()


def propagate(frames: Iterator[Tensor], labels: Tensor, rule: Rule) -> Iterator[Tensor]:
    """Soft labels (sites, heads + 1, cells, labels) of every frame but the first.

    `frames` are float32 tokens (sites, heads, rows, cols, dim), one a frame, `labels` (cells, labels) the first one's.
    """
    first = next(frames)
    context = _Frames(first, labels.to(first), rule.context)
    for tokens in frames:
        found = _label(tokens, context, rule)
        if rule.context:
            context.push(tokens, found)
        yield found


def _label(tokens: Tensor, context: _Frames, rule: Rule) -> Tensor:
    """Labels (sites, heads + 1, cells, labels) of one frame's tokens."""
    rows, cols = tokens.shape[2:4]
    down, across = rule.reach or (rows, cols)
    place = torch.arange(cols, device=tokens.device)
    far = (place[:, None] - place).abs() > across
    own = inverse_lengths(tokens)
    found = []
    for row in range(rows):
        low, high = max(row - down, 0), min(row + down + 1, rows)
        barred = far.repeat(1, high - low) if across < cols - 1 else None
        per_head = _products(tokens[:, :, row], context.tokens[: context.filled, :, :, low:high])
        inverse = context.inverse[: context.filled, :, :, low:high].flatten(3)[:, :, :, None]
        heads = per_head.shape[2]
        groups = [per_head] if heads == 1 else [per_head, per_head.sum(2, keepdim=True)]
        lengths = torch.split(inverse, [g.shape[2] for g in groups], 2)
        parts = [_candidates(g.mul_(one), barred, rule.topk) for g, one in zip(groups, lengths, strict=True)]
        values = torch.cat([part[0] for part in parts], 2) * own[:, :, row, :, None]
        chosen = torch.cat([part[1] for part in parts], 1) + low * cols
        found.append(_mean(values, chosen, context.labels[: context.filled], rule))
    return torch.cat(found, 2)


def _products(tokens: Tensor, others: Tensor) -> Tensor:
    """Products of tokens (sites, heads, cols, dim) with those of frames (frames, sites, heads, rows, cols, dim).

    The result is (frames, sites, heads, cols, cells).
    """
    asked = tokens.expand(len(others), *tokens.shape).flatten(0, 2)
    products = torch.bmm(asked, others.flatten(3, 4).flatten(0, 2).transpose(1, 2))
    return products.view(*others.shape[:3], *products.shape[1:])


def _candidates(cosines: Tensor, barred: Tensor | None, topk: int) -> tuple[Tensor, Tensor]:
    """Of (frames, sites, heads, cols, cells) the values (frames, ..., k) at the k cells (...) that are best."""
    largest = cosines.amax(0)
    if barred is not None:
        largest.masked_fill_(barred, -torch.inf)
    reached, cells = largest.topk(min(topk, largest.shape[-1]), sorted=False)
    values = cosines.gather(-1, cells.expand(len(cosines), *cells.shape))
    return values.masked_fill_(reached.isinf(), -torch.inf), cells


def _mean(values: Tensor, cells: Tensor, labels: Tensor, rule: Rule) -> Tensor:
    """Labels (sites, heads, cols, labels): the mean over the top k of all frames' values (frames, ..., cols, k).

    As eval_video_segmentation.py does, all that equals the k-th value takes part.
    """
    everything = values.movedim(0, -2).flatten(-2)
    top = everything.topk(min(rule.topk, everything.shape[-1]))[0]
    weights = ((values - top[..., :1]) / rule.temperature).exp_()
    weights.masked_fill_(values < top[..., -1:], 0)
    weights /= weights.sum((0, -1), keepdim=True)
    wanted = cells.flatten(2)[..., None].expand(len(labels), *(-1,) * 3, labels.shape[-1])
    of_cells = labels.gather(3, wanted).view(*weights.shape, -1)
    return of_cells.mul_(weights[..., None]).sum((0, -2))


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
