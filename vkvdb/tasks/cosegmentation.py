"""Co-segmentation: the image tokens of all images of a class clustered together.

Protocol. For every site and head, the tokens of a set of images are clustered, and some clusters are the foreground of
all [S: Liu et al. 2025, arXiv 2510.04819]. Clusters are those of Amir et al. 2021 [C: cosegmentation.py of
dino-vit-features, commit 3f1ca01]: tokens divided by their length; k-means for k = 1, 2, ... on some of them, all
assigned to the centres; the first k whose mean squared distance is more than `elbow` = 0.975 times that of k - 1 is
taken, 14 at the latest; at most 300 steps a fit, the best of several.

Where we depart [D]. They fit on every 100th descriptor from 10 random beginnings; here on `fitted` tokens drawn at
random from `restarts` beginnings by k-means++. They let attention maps vote on clusters; keys and values have no such
map, so a border prior does it: a cluster is foreground where its cells lie on the image's border less than `border`
times as often as all cells do, counted over the whole set. GrabCut and Lanczos resizing are left out: a cluster map is
upsampled bilinearly to the image's pixels, above one half is foreground. Cells that lie mostly outside the image (where
a model pads) are not clustered, and outside the grid's window nothing is foreground.

Metrics, means over the set's images, weighted by their number. `iou`: Jaccard index. `precision`: the share of pixels
that are labelled rightly, foreground and background, which is what co-segmentation calls so. `iou_labels` and
`precision_labels`: an upper bound of the border prior, foreground being the clusters in whose cells most pixels are;
what the clusters could give if one knew which to take. Void is in no count.

Not defined, and so left out of a set's mean: the index of an image without a union; anything of an image that is all
void; no row where all are left out. Rows beside the model's: floor.0.position, an ellipse in the middle of the image,
its diameters `ellipse` of the image's sides (not fitted; to fit it, score another split with some values), and
ceiling.0.truth, the mask's cell shares above one half. Both have no clusters and stand under both choices of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from vkvdb.errors import BadOption
from vkvdb.metrics import Bools, Floats, iou
from vkvdb.samples import ImageSet, Labelled, Sample
from vkvdb.tasks._masks import Region, area_by_cell, as_maps, cells_seen, check_ellipse, ellipse
from vkvdb.tasks._tokens import float32, like, pieces, room
from vkvdb.types import CEILING, POSITION, Capture, Needs, Panel, Scores, Site

if TYPE_CHECKING:
    from torch import Tensor

CHOICES = ("", "_labels")


@dataclass(frozen=True)
class Cosegmentation:
    """Clusters of the tokens of a set of images.

    elbow: k is taken when one more cluster leaves more than this share of the distances, above 0 and below 1.
    most: the largest k, 1 to 64.
    fitted: how many tokens of a set clusters are fitted on, at least 1.
    restarts: how many beginnings a fit has, at least 1.
    iterations: how many steps a fit has at most, at least 1.
    border: a foreground cluster's cells lie on the border less than so many times as often as all, above 0.
    seed: of what is drawn, from 0.
    ellipse: the diameters of the floor's ellipse as a share of the image's sides, above 0 and at most 2.
    """

    version: ClassVar[int] = 1
    takes: ClassVar[type[Sample]] = ImageSet
    metrics: ClassVar[tuple[str, ...]] = ("iou", "precision", "iou_labels", "precision_labels")

    elbow: float = 0.975
    most: int = 14
    fitted: int = 512
    restarts: int = 3
    iterations: int = 300
    border: float = 0.5
    seed: int = 0
    ellipse: float = 0.7

    def __post_init__(self) -> None:
        for name, right, why in (
            ("elbow", 0 < self.elbow < 1, "above 0 and below 1"),
            ("most", 1 <= self.most <= 64, "1 to 64"),
            ("fitted", self.fitted >= 1, "at least 1"),
            ("restarts", self.restarts >= 1, "at least 1"),
            ("iterations", self.iterations >= 1, "at least 1"),
            ("border", self.border > 0, "above 0"),
            ("seed", self.seed >= 0, "0 or more"),
        ):
            if not right:
                raise BadOption(option="-p", value=f"{name} {getattr(self, name)}", why=f"it must be {why}")
        check_ellipse(self.ellipse)

    def needs(self, sample: ImageSet) -> Needs:
        return Needs(sample.images())

    def score(self, sample: ImageSet, captures: Mapping[str, Capture], texts: Mapping[str, Any]) -> Iterator[Scores]:
        of = [captures[member.image] for member in sample.members]
        truths = [_Truth(member, one) for member, one in zip(sample.members, of, strict=True)]
        votes = _Votes(truths)
        for stack, *others in zip(*(one.stacks for one in of), strict=True):
            assert all(o.sites == stack.sites for o in others)
            tokens = [s.tokens for s in (stack, *others)]
            # A float32 copy, each head's and all heads' tokens at length 1, and those that clusters are fitted on.
            each = 4 * votes.cells * stack.tokens.shape[1] * stack.tokens.shape[-1]
            for piece in pieces(len(stack.sites), each, room(stack.tokens)):
                labels = self._clusters([t[piece] for t in tokens], truths)
                for choice, chosen in zip(CHOICES, votes.foreground(labels, self.border), strict=True):
                    yield from _rows(stack.sites[piece], choice, truths, votes.maps(chosen))
        floor = [as_maps(ellipse(t.size, t.region.grid, self.ellipse)) for t in truths]
        ceiling = [as_maps(t.region.shares - 0.5) for t in truths]
        for site, maps in ((POSITION, floor), (CEILING, ceiling)):
            for choice in CHOICES:
                yield from _rows((site,), choice, truths, maps)

    def picture(self, sample: ImageSet, captures: Mapping[str, Capture], texts: Mapping[str, Any]) -> tuple[Panel, ...]:
        """Every image of the set with its foreground by the border prior."""
        of = [captures[member.image] for member in sample.members]
        truths = [_Truth(member, one) for member, one in zip(sample.members, of, strict=True)]
        votes = _Votes(truths)
        labels = self._clusters([one.stacks[0].tokens for one in of], truths)
        chosen, _ = votes.foreground(labels, self.border)
        return tuple(
            Panel(member.image, f"image {n}", found=[truth.region.chosen(logits[0, 0])], truth=[truth.region.mask])
            for n, (member, truth, logits) in enumerate(zip(sample.members, truths, votes.maps(chosen), strict=True), 1)
        )

    def _clusters(self, tokens: Sequence[Tensor], truths: Sequence[_Truth]) -> Tensor:
        """Clusters (sites, heads + 1, cells) of all images' cells; tokens are (sites, heads, rows, cols, dim)."""
        import torch

        from vkvdb.tasks._kmeans import elbow_clusters

        def clusters(x: Tensor) -> Tensor:
            return elbow_clusters(
                torch.nn.functional.normalize(x, dim=-1),
                elbow=self.elbow,
                most=self.most,
                fitted=self.fitted,
                restarts=self.restarts,
                iterations=self.iterations,
                seed=self.seed,
            )

        parts = []
        for one, truth in zip(tokens, truths, strict=True):
            cells = float32(one).flatten(2, 3)
            seen = torch.as_tensor(truth.seen.ravel(), device=cells.device)
            parts.append(cells if truth.seen.all() else cells[:, :, seen])
        x = torch.cat(parts, 2)
        labels = clusters(x.flatten(0, 1)).view(*x.shape[:2], -1)
        if x.shape[1] > 1:
            labels = torch.cat([labels, clusters(x.transpose(1, 2).flatten(2))[:, None]], 1)
        return labels


class _Truth:
    """The mask of one image of the set; which cells are clustered, and which of them are the border (cells seen,)."""

    def __init__(self, member: Labelled, capture: Capture) -> None:
        self.size = member.mask.width, member.mask.height
        self.region = Region(member.mask, member.ignore, capture.grid)
        self.seen = cells_seen(self.size, capture.grid)
        self.border = _rim(self.seen)[self.seen]
        inside = area_by_cell(self.region.mask, capture.grid)[:-1]
        outside = area_by_cell(self.region.valid & ~self.region.mask, capture.grid)[:-1]
        self.excess = (inside - outside)[self.seen.ravel()]


class _Votes:
    """Which clusters are foreground, from all cells of the set."""

    def __init__(self, truths: Sequence[_Truth]) -> None:
        self.truths = truths
        self.counts = [int(t.seen.sum()) for t in truths]
        self.cells = sum(self.counts)
        # What is summed over a cluster: its cells, those on the border, and how many more pixels are inside than not.
        self.sums = np.stack(
            [
                np.ones(self.cells),
                np.concatenate([t.border for t in truths]),
                np.concatenate([t.excess for t in truths]),
            ]
        )

    def foreground(self, labels: Tensor, border: float) -> tuple[Tensor, Tensor]:
        """Which cells (..., cells) are in a foreground cluster: by the border prior, and by the labels."""
        import torch

        flat = labels.flatten(0, -2)
        sums = like(self.sums, labels)
        per_cluster = sums.new_zeros(3, len(flat), int(labels.max()) + 1)
        per_cluster.scatter_add_(2, flat.expand(3, -1, -1), sums[:, None].expand(-1, len(flat), -1))
        cells, rim, excess = per_cluster
        usual = float(self.sums[1].sum() / self.sums[0].sum())
        chosen = torch.stack([rim < border * usual * cells, excess > 0])
        by_border, by_labels = chosen.gather(2, flat.expand(2, -1, -1))
        return by_border.view(labels.shape), by_labels.view(labels.shape)

    def maps(self, chosen: Tensor) -> list[Tensor]:
        """For each image a map (..., rows, cols), above 0 in the cells (..., cells) that are chosen."""
        import torch

        made = []
        for truth, part in zip(self.truths, torch.split(chosen, self.counts, -1), strict=True):
            grid = truth.region.grid
            cells = torch.full((*part.shape[:-1], grid.rows * grid.cols), -0.5, device=part.device)
            cells[..., torch.as_tensor(truth.seen.ravel(), device=part.device)] = part.float() - 0.5
            made.append(cells.view(*part.shape[:-1], grid.rows, grid.cols))
        return made


def _rim(seen: Bools) -> Bools:
    """The cells (rows, cols) that are seen, and beside which there is one that is not, or the grid ends."""
    wide = np.pad(seen, 1)
    rim: Bools = seen & ~(wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:])
    return rim


def _rows(sites: tuple[Site, ...], choice: str, truths: Sequence[_Truth], maps: Sequence[Tensor]) -> Iterator[Scores]:
    index, right = [], []
    for truth, logits in zip(truths, maps, strict=True):
        intersection, union = truth.region.counts(logits)
        valid = np.full(union.shape, float(truth.region.valid_area))
        index.append(iou(intersection, union))
        right.append(iou(valid - union + intersection, valid))
    for metric, values in (("iou", np.stack(index)), ("precision", np.stack(right))):
        value, count = _mean_defined(values)
        yield Scores(f"{metric}{choice}", sites, value, weight=count)


def _mean_defined(values: Floats) -> tuple[Floats, Floats]:
    """Means over the first axis of what is not NaN, and of how many; NaN where of none."""
    defined = ~np.isnan(values)
    count = defined.sum(0).astype(np.float64)
    return iou(np.where(defined, values, 0.0).sum(0), count), count


TASK = Cosegmentation
