"""k-means on many problems at once, k of each by its elbow.

Random are which tokens clusters are fitted on and where they begin. All problems are given the same draws, so that what
becomes of one does not depend on those beside it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def elbow_clusters(
    tokens: Tensor, *, elbow: float, most: int, fitted: int, restarts: int, iterations: int, seed: int
) -> Tensor:
    """Clusters (problems, n), counted from 0, of tokens (problems, n, dim) of length 1 (or 0).

    k grows from 1 until the mean squared distance to the nearest centre is more than `elbow` times what it was with one
    cluster less, or k is `most`; that last k counts, as in Amir et al.'s cosegmentation.py. Centres are fitted on at
    most `fitted` tokens, the same of every problem; of `restarts` the one with the smallest distances counts.
    """
    generator = torch.Generator().manual_seed(seed)
    some = torch.randperm(tokens.shape[1], generator=generator)[:fitted].sort().values.to(tokens.device)
    draws = torch.rand(restarts, most, generator=generator).to(tokens.device)
    x = tokens if len(some) == tokens.shape[1] else tokens[:, some]
    seeds = _Seeds(x, draws)
    labels = torch.zeros(tokens.shape[:2], dtype=torch.int64, device=tokens.device)
    left = torch.arange(len(tokens), device=tokens.device)
    before: Tensor | None = None
    for k in range(1, most + 1):
        seeds.grow()
        labels[left], error = _assign(tokens, _lloyd(x, seeds.centres, iterations))
        going = torch.ones_like(left, dtype=torch.bool) if before is None else error <= elbow * before
        if k == most or not bool(going.any()):
            break
        before = error[going]
        if not bool(going.all()):
            same, tokens, left = x is tokens, tokens[going], left[going]
            x = tokens if same else x[going]
            seeds.keep(x, going)
    return labels


class _Seeds:
    """Where centres begin, one more with each step: tokens drawn by their squared distance from those there are.

    This is k-means++ (Arthur and Vassilvitskii 2007), all restarts at once; k centres are the first k of k + 1.
    """

    def __init__(self, x: Tensor, draws: Tensor) -> None:
        self.x, self.draws = x, draws
        self.squares = x.square().sum(-1)[:, None]
        self.centres = x.new_empty(len(x), len(draws), 0, x.shape[2])
        self.distance = x.new_ones(len(x), len(draws), x.shape[1])

    def grow(self) -> None:
        """One more centre for every problem and restart."""
        reach = self.distance.cumsum(-1)
        wanted = self.draws[:, self.centres.shape[2], None] * reach[..., -1:]
        at = torch.searchsorted(reach, wanted, right=True)[..., 0].clamp_max(self.x.shape[1] - 1)
        new = self.x.gather(1, at[..., None].expand(-1, -1, self.x.shape[2]))
        apart = self.squares + new.square().sum(-1, keepdim=True) - 2 * torch.bmm(new, self.x.transpose(1, 2))
        first = self.centres.shape[2] == 0
        self.distance = (apart if first else torch.minimum(self.distance, apart)).clamp_min_(0)
        self.centres = torch.cat([self.centres, new[:, :, None]], 2)

    def keep(self, x: Tensor, which: Tensor) -> None:
        """Go on with some of the problems, whose tokens are now `x`."""
        self.x = x
        self.squares, self.centres, self.distance = self.squares[which], self.centres[which], self.distance[which]


def _lloyd(x: Tensor, centres: Tensor, iterations: int) -> Tensor:
    """The best centres (problems, k, dim) of all restarts, from those (problems, restarts, k, dim) to begin with.

    A cluster that loses its last token stays where it is. A problem's result is that of as many steps as it needs
    until no token moves, at most `iterations`.
    """
    problems, restarts, k, dim = centres.shape
    at = centres.flatten(1, 2).clone()
    if k == 1:
        return x.mean(1, keepdim=True)
    done = at.clone()
    objective = x.new_empty(problems, restarts)
    active = torch.arange(problems, device=x.device)
    numbers = torch.arange(k, device=x.device)[:, None]
    before = torch.full((problems, restarts, x.shape[1]), -1, device=x.device)
    for step in range(iterations + 1):
        scores = _closeness(x, at).view(len(at), restarts, k, -1)
        best, nearest = scores.max(2)
        moving = (nearest != before).flatten(1).any(1)
        done[active], objective[active] = at, best.sum(-1)
        if step == iterations or not bool(moving.any()):
            break
        if int(moving.sum()) <= len(moving) // 2:
            x, at, nearest, active = x[moving], at[moving], nearest[moving], active[moving]
        before = nearest
        member = (nearest[:, :, None] == numbers).to(x.dtype).flatten(1, 2)
        sizes = member.sum(-1, keepdim=True)
        at = torch.where(sizes > 0, torch.bmm(member, x) / sizes.clamp_min(1), at)
    winner = objective.argmax(1)
    return done.view(problems, restarts, k, dim)[torch.arange(problems, device=done.device), winner]


def _closeness(x: Tensor, centres: Tensor) -> Tensor:
    """Half the squared length less half the squared distance: (problems, centres, n)."""
    return torch.baddbmm(-0.5 * centres.square().sum(-1, keepdim=True), centres, x.transpose(1, 2))


def _assign(x: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centre (problems, n), and the mean squared distance to it (problems,)."""
    best, nearest = _closeness(x, centres).max(1)
    return nearest, (x.square().sum(-1) - 2 * best).clamp_min(0).mean(1)
