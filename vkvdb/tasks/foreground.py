"""Few-shot foreground segmentation: a linear classifier on the image tokens of a few labelled images.

Protocol. For every site and head, a classifier is fitted on the tokens of the support images (five in Pascal-5i) and
applied to those of the query [S: Liu et al. 2025, arXiv 2510.04819]. Episodes and counting are hsnet's [C:
common/evaluation.py of HSNet, Min et al. 2021]: void pixels are left out, and IoU is the sum of intersections over the
sum of unions inside a class, averaged over classes. So a row's value is the episode's intersection over union and its
weight the union in pixels: the weighted mean is that quotient. `iou_background` is the same of the background. hsnet's
FB-IoU is the mean of both weighted means, each taken over all episodes of a fold, whatever their class [C:
common/logger.py].

Our choices [D]. A cell is foreground where the mask covers more than half of it; cells mostly void or mostly outside
the image are left out. Channels are standardised on the support tokens. `classifier=logistic`: L2 logistic regression,
scikit-learn's C, gradient of the mean loss at most 1e-6. `classifier=ridge`: least squares on -1 and 1, closed form,
another job and never in one chart with the first. The query's logits are upsampled bilinearly to the original pixels
over the grid's window; above 0 is foreground, outside the window is background. hsnet resizes masks to 400 pixels
unless told; here they stay as they are.

Control of capacity [D]. A classifier has as many weights as tokens have channels, and sites differ in these. With
`project=N` every head's tokens, and all heads concatenated, are first multiplied by a random matrix to N channels,
whether they have more than that or fewer; then they are standardised. Its numbers are drawn from a normal distribution
by (`seed`, channels, N) alone, so heads and sites of as many channels share a matrix. Each `seed` is a job of its own.

Not defined: an episode whose support cells are all background (the object is smaller than half a cell
everywhere) or all foreground; and an empty union. Rows beside the model's, which are always there: floor.0.position
takes the supports' mean cell shares less one half as logits, ceiling.0.truth the query's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from vkvdb.errors import BadOption
from vkvdb.masks import decode
from vkvdb.metrics import Bools, Floats, cell_shares, iou
from vkvdb.samples import Episode, Labelled, Sample
from vkvdb.tasks._masks import Region, as_maps
from vkvdb.tasks._tokens import float32, like, pieces, room
from vkvdb.types import CEILING, POSITION, Capture, Needs, Panel, Scores, Site, TokenGrid

if TYPE_CHECKING:
    from torch import Tensor

CLASSIFIERS = ("logistic", "ridge")
WIDEST = 4096  # channels to project to; a classifier's second derivatives are that squared


@dataclass(frozen=True)
class Foreground:
    """A linear classifier of foreground against background.

    classifier: `logistic` or `ridge`.
    c: the weight of the loss against the penalty, as scikit-learn's C; above 0 and at most 100.
    project: how many random channels tokens are projected to, at most 4096; 0: tokens as they are.
    seed: which projection, 0 or more; only with `project`.
    """

    version: ClassVar[int] = 2
    takes: ClassVar[type[Sample]] = Episode
    metrics: ClassVar[tuple[str, ...]] = ("iou", "iou_background")

    classifier: str = "logistic"
    c: float = 1.0
    project: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.classifier not in CLASSIFIERS:
            why = f"there are: {', '.join(CLASSIFIERS)}"
            raise BadOption(option="-p", value=f"classifier {self.classifier}", why=why)
        if not 0 < self.c <= 100:
            raise BadOption(option="-p", value=f"c {self.c}", why="it must be above 0 and at most 100")
        if not 0 <= self.project <= WIDEST:
            raise BadOption(option="-p", value=f"project {self.project}", why=f"it must be from 0 to {WIDEST}")
        if self.seed < 0 or (self.seed and not self.project):
            why = "it must be at least 0" if self.seed < 0 else "it is the projection's: give -p project N too"
            raise BadOption(option="-p", value=f"seed {self.seed}", why=why)

    def needs(self, sample: Episode) -> Needs:
        return Needs(sample.images())

    def score(self, sample: Episode, captures: Mapping[str, Capture], texts: Mapping[str, Any]) -> Iterator[Scores]:
        supports = [captures[s.image] for s in sample.supports]
        query = captures[sample.query.image]
        truth = Region(sample.query.mask, sample.query.ignore, query.grid)
        kept, labels = _labels(sample.supports, [c.grid for c in supports])
        defined = 0 < labels.sum() < len(labels)
        for stack, *others in zip(query.stacks, *(c.stacks for c in supports), strict=True):
            assert all(o.sites == stack.sites for o in others)
            if not defined:
                columns = stack.tokens.shape[1] + (stack.tokens.shape[1] > 1)
                undefined = np.full((len(stack.sites), columns), np.nan)
                yield from (Scores(metric, stack.sites, undefined, weight=0.0) for metric in self.metrics)
                continue
            tokens = [o.tokens for o in others]
            each = self._room(stack.tokens.shape[1], stack.tokens.shape[-1], len(labels))
            found = [
                truth.counts(self._logits([t[piece] for t in tokens], kept, labels, stack.tokens[piece]))
                for piece in pieces(len(stack.sites), each, room(stack.tokens))
            ]
            yield from _rows(stack.sites, truth, *(np.concatenate(part) for part in zip(*found, strict=True)))
        for site, logits in ((POSITION, _mean_shares(sample.supports, supports, query.grid)), (CEILING, truth.shares)):
            yield from _rows((site,), truth, *truth.counts(as_maps(logits - 0.5)))

    def picture(self, sample: Episode, captures: Mapping[str, Capture], texts: Mapping[str, Any]) -> tuple[Panel, ...]:
        """The query with what is found in it, then the supports."""
        supports = [captures[s.image] for s in sample.supports]
        query = captures[sample.query.image]
        truth = Region(sample.query.mask, sample.query.ignore, query.grid)
        kept, labels = _labels(sample.supports, [c.grid for c in supports])
        found: list[Bools] = []
        if 0 < labels.sum() < len(labels):
            tokens = [c.stacks[0].tokens for c in supports]
            found = [truth.chosen(self._logits(tokens, kept, labels, query.stacks[0].tokens)[0, 0])]
        shown = [Panel(sample.query.image, "query" if found else "query: not defined", found=found, truth=[truth.mask])]
        shown += [Panel(s.image, f"support {n}", truth=[decode(s.mask)]) for n, s in enumerate(sample.supports, 1)]
        return tuple(shown)

    def _logits(self, supports: Sequence[Tensor], kept: Bools, labels: Bools, query: Tensor) -> Tensor:
        """The query's logits (sites, heads + 1, rows, cols); tokens are (sites, heads, rows, cols, dim)."""
        import torch

        from vkvdb.tasks import _linear

        fit = _linear.logistic if self.classifier == "logistic" else _linear.ridge
        where = torch.as_tensor(kept, device=query.device)
        x = torch.cat([t.flatten(2, 3) for t in supports], 2)[:, :, where]
        x, q = float32(x), float32(query).flatten(2, 3)
        if not self.project:
            x, q = _linear.standardise(x, q)
        y = like(labels, x)

        def apply(x: Tensor, q: Tensor) -> Tensor:
            """Logits (problems, cells); tokens are (problems, tokens, dim) and (problems, cells, dim)."""
            if self.project:
                matrix = like(self.projection(x.shape[-1]), x)
                x, q = _linear.standardise(x @ matrix, q @ matrix)
            v = fit(x, y, self.c)
            return torch.bmm(v[:, None, :-1], q.transpose(1, 2))[:, 0] + v[:, -1:]

        sites, heads = x.shape[:2]
        logits = apply(x.flatten(0, 1), q.flatten(0, 1)).view(sites, heads, -1)
        if heads > 1:
            together = apply(x.transpose(1, 2).flatten(2), q.transpose(1, 2).flatten(2))
            logits = torch.cat([logits, together[:, None]], 1)
        return logits.view(*logits.shape[:2], *query.shape[2:4])

    def projection(self, dim: int) -> Floats:
        """The matrix (dim, project) that tokens of `dim` channels are multiplied by; equal for equal seeds."""
        return np.random.default_rng((self.seed, dim, self.project)).standard_normal((dim, self.project))

    def _room(self, heads: int, dim: int, tokens: int) -> int:
        """Numbers that a site takes: both layouts of the support tokens, their weighted copy, second derivatives."""
        if not self.project:
            return 8 * tokens * heads * dim + 3 * (heads * dim) ** 2
        return 2 * tokens * heads * dim + 8 * tokens * heads * self.project + 3 * heads * self.project**2


def _labels(supports: Sequence[Labelled], grids: Sequence[TokenGrid]) -> tuple[Bools, Bools]:
    """Of all support cells in order which are kept (all,), and of those which are foreground (kept,)."""
    kept, labels = [], []
    for support, grid in zip(supports, grids, strict=True):
        mask = decode(support.mask)
        countable = np.ones_like(mask) if support.ignore is None else ~decode(support.ignore)
        # What is void or outside the image covers the rest of the cell.
        kept.append((cell_shares(countable, grid) >= 0.5).ravel())
        labels.append((cell_shares(mask, grid) > 0.5).ravel())
    keep = np.concatenate(kept)
    return keep, np.concatenate(labels)[keep]


def _mean_shares(supports: Sequence[Labelled], captures: Sequence[Capture], grid: TokenGrid) -> Floats:
    """The supports' mean cell shares (rows, cols), each image's window divided as the query's grid is."""
    shares = [
        cell_shares(decode(s.mask), TokenGrid(grid.rows, grid.cols, c.grid.window))
        for s, c in zip(supports, captures, strict=True)
    ]
    mean: Floats = np.mean(shares, 0)
    return mean


def _rows(sites: tuple[Site, ...], truth: Region, intersection: Floats, union: Floats) -> Iterator[Scores]:
    """Scores of the foreground and of its complement among the pixels that are not void."""
    yield Scores("iou", sites, iou(intersection, union), weight=union)
    whole = truth.valid_area - intersection
    yield Scores("iou_background", sites, iou(truth.valid_area - union, whole), weight=whole)


TASK = Foreground
