"""What each task's algorithm can't do without beside matrix products, as bare operations for `tasks.py` to time.

Counted are passes over all that is to be looked at: one comparison a pixel and map, one sort of a map's cells, one
top-k of a cell's neighbourhood, and so on; of solvers, the factorisations and solutions that the task's own run had.
Each is torch's, numpy's or scipy's own function, the fastest that we found, on numbers of that size, in blocks that
stay in cache. Not counted: copies, gathering, masks and shares of the truth, rows of results, Python. So this is less
than what any program in these libraries takes.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from vkvdb import boundaries
from vkvdb.tasks import _propagation
from vkvdb.tasks.temporal_correspondence import TemporalCorrespondence

Run = Callable[[], Any]
BLOCK = 1 << 18  # numbers worked on at a time
SOLVERS = (torch.ops.aten.linalg_cholesky_ex.default, torch.ops.aten.cholesky_solve.default)
ELEMENTS: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Any]] = {  # of two blocks, into a third
    "compare": lambda a, b, out: torch.gt(a, b, out=out),
    "interpolate": lambda a, b, out: torch.addcmul(a, b, b, out=out),
    "multiply": lambda a, b, out: torch.mul(a, b, out=out),
    "larger": lambda a, b, out: torch.maximum(a, b, out=out),
    "subtract": lambda a, b, out: torch.sub(a, b, out=out),
    "sum": lambda a, b, out: (a.sum(), b, out),
}


def passes(numbers: int, *names: str) -> Run:
    """Operations on so many numbers, a block at a time."""
    blocks = [torch.rand(min(numbers, BLOCK)) for _ in range(3)]
    operations = [ELEMENTS[name] for name in names]
    times = math.ceil(numbers / BLOCK)

    def run() -> None:
        for _ in range(times):
            for one in operations:
                one(*blocks)

    return run


def on_rows(count: int, length: int, operation: Callable[[torch.Tensor], Any]) -> Run:
    """An operation on so many rows of a length, some rows at a time."""
    some = max(1, min(count, BLOCK // length))
    block = torch.randn(some, length)

    def run() -> None:
        for _ in range(math.ceil(count / some)):
            operation(block)

    return run


def solutions(seen: Sequence[tuple[Any, tuple[Any, ...]]]) -> Run:
    """The factorisations and solutions of a run, on identities: how long they take is the same for all numbers."""
    made: dict[Any, torch.Tensor] = {}
    for _, factors in seen:
        for shape, dtype in factors:
            made[shape, dtype] = torch.eye(*shape[-2:], dtype=dtype).expand(shape).contiguous()
    calls = [(func, [made[factor] for factor in factors]) for func, factors in seen]

    def run() -> None:
        for func, factors in calls:
            func(*factors)

    return run


class Needs:
    """What tasks need at some shape of the data."""

    def __init__(self, options: argparse.Namespace, regions: Sequence[np.ndarray[Any, Any]]) -> None:
        o = options
        self.regions, self.points, self.grid, self.dim = regions, o.points, o.grid, o.dim
        self.sites = o.layers * o.parts
        self.each_head = self.sites * o.heads
        self.maps = self.each_head + self.sites
        self.cells, self.pixels = o.grid**2, o.pixels**2

    def of(self, name: str, solved: Sequence[Any], closeness: Sequence[tuple[int, ...]]) -> Run:
        """The operations of one sample of a task.

        `solved` are its run's solver steps, `closeness` the shapes (problems, centres, tokens) of k-means.
        """
        runs = getattr(self, "_" + name.split(",", maxsplit=1)[0])(name, closeness)
        runs.append(solutions(solved))

        def run() -> None:
            for one in runs:
                one()

        return run

    def _correspondence(self, name: str, _: Any) -> list[Run]:
        asked = self.maps * self.points
        if name.endswith("grid"):
            # Lengths of all tokens, and the best cell of each point.
            best = on_rows(asked, self.cells, lambda x: x.argmax(-1))
            return [on_rows(self.each_head * self.cells, self.dim, _lengths), best]
        # The cosine of each point with each pixel, interpolated along rows, and the largest of them.
        return [passes(asked * self.pixels, "interpolate", "multiply", "larger")]

    def _foreground(self, name: str, _: Any) -> list[Run]:
        # Tokens in standard units: as many numbers of all heads together as of each by itself.
        tokens = 2 * self.each_head * self.cells * self.dim
        supports = len(self.regions) - 1
        return [
            passes(tokens * supports // 2, "sum", "subtract", "multiply", "sum", "multiply"),
            passes(tokens // 2, "subtract", "multiply"),
            passes(self.maps * self.pixels, "compare"),
        ]

    def _words(self) -> list[Run]:
        # The mean token taken from all; of each map a threshold, a ranking, and a comparison a pixel.
        return [
            passes(self.each_head * self.cells * self.dim, "sum", "subtract"),
            on_rows(self.maps, self.cells, lambda x: np.sort(x.numpy(), -1)),
            on_rows(self.maps, self.cells, lambda x: np.argsort(x.numpy(), -1)),
            passes(self.maps * self.pixels, "compare"),
        ]

    def _segmentation(self, name: str, _: Any) -> list[Run]:
        # Two readings, of which one has the tokens' lengths.
        _, *each_reading = self._words()
        return [*self._words(), *each_reading, on_rows(self.each_head * self.cells, self.dim, _lengths)]

    def _referring(self, name: str, _: Any) -> list[Run]:
        # Connected regions too: half of the cells chosen, each with two neighbours.
        nodes = self.maps * self.cells
        first = np.flatnonzero(np.random.default_rng(0).random(nodes - self.grid) < 0.5)
        ends = np.concatenate([first, first]), np.concatenate([first + 1, first + self.grid])
        graph = coo_array((np.ones(len(ends[0])), ends), shape=(nodes, nodes)).tocsr()
        return [*self._words(), lambda: connected_components(graph, directed=False)]

    def _cosegmentation(self, name: str, closeness: Sequence[tuple[int, ...]]) -> list[Run]:
        # The nearest centre of each token at each step, lengths and tokens of length 1, two choices' pixels.
        images = len(self.regions)
        nearest = [on_rows(problems, centres * tokens, _nearest(centres)) for problems, centres, tokens in closeness]
        tokens = 2 * self.each_head * self.cells * images
        made = [on_rows(tokens, self.dim, _lengths), passes(tokens * self.dim, "multiply")]
        return [*nearest, *made, passes(2 * images * self.maps * self.pixels, "compare")]

    def _temporal_correspondence(self, name: str, _: Any) -> list[Run]:
        task, frames = TemporalCorrespondence(), len(self.regions)
        reach = _propagation.reach(task.neighbourhood, self.grid, self.grid)
        assert reach is not None
        near = sum(min(row + reach[0], self.grid - 1) - max(row - reach[0], 0) + 1 for row in range(self.grid))
        # Frames that a frame is compared with, all scored ones together; the last is not carried to.
        seen = sum(min(time, task.context + 1) for time in range(1, frames - 1))
        cosines = seen * self.maps * near * near  # within the neighbourhood, none beside it
        queries = (frames - 2) * self.maps * self.cells
        wide = (frames - 2) * self.maps * self.pixels
        truth = boundaries.ObjectTruth(self.regions[0])
        masks = torch.as_tensor(self.regions[1])[None].repeat(8, 1, 1)
        times = math.ceil((frames - 2) * self.maps / len(masks))
        return [
            # Products of all heads together, cosines of products, each place's best frame, a top-k of the places.
            passes(cosines, "larger", "multiply", "larger"),
            on_rows(queries, (2 * reach[0] + 1) * (2 * reach[1] + 1), lambda x: x.topk(task.topk, sorted=False)),
            # Of two labels a pixel the least and the most, both stretched, the larger.
            passes(2 * wide, "sum", "sum", "subtract", "multiply"),
            passes(wide, "compare"),
            lambda: [(truth.j(masks), truth.f(masks)) for _ in range(times)],
        ]


def _lengths(tokens: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(tokens, dim=-1)


def _nearest(centres: int) -> Callable[[torch.Tensor], Any]:
    return lambda x: x.view(len(x), centres, -1).max(1)
