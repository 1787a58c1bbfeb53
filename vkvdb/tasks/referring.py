"""Referring expressions: a phrase through the same model, compared with every image token.

Protocol. The expression goes through the model without an image, and its last token's vector at a site and head is
compared by dot product with each image token there [S: Liu et al. 2025, arXiv 2510.04819]. A site without a text vector
(vision tower, raw pixels, an encoder without text) has no map. The words are the sample's, as they are.

Our choices [D]. As in `segmentation`: Otsu's threshold over the image's own cells, bilinear upsampling to pixels,
nothing outside the grid's window. `reading=dot` takes the dot products; `reading=centred`, another job, cosines of
tokens taken from the image's mean token.

Metrics. `iou`: every expression the same weight, so that a group's mean is mIoU. `ciou`: the same numbers weighted by
the union, so that a group's mean is the sum of intersections over the sum of unions: cIoU is its mean over all where a
dataset's samples are one group (a split of RefCOCO); where they are several, `results` has the mean of the groups'
cIoU. `acc_box`: whether the box of the largest connected region of the mask, largest by its cells, meets the box of the
target's pixels with an IoU of `box_iou` or more; the region and its box are those of the upsampled map before it is cut
into pixels, inside the image. `pointing`: whether the centre of the highest cell lies on the target, of equals their
share. `auroc`: how well the map ranks the target above the rest of the image; `auroc_objects`: above the other
objects alone, which a map of "some object" can't do. Pixels have their cell's score, those outside the window rank
last.

Not defined: any metric at a site without a text vector; `iou`, `ciou` without a union; `acc_box`,
`pointing`, `auroc` without a target; `auroc` when the target is the image; `auroc_objects` without other objects.
Rows beside the model's: floor.0.position, an ellipse in the middle of the image, its diameters `ellipse` of the image's
sides (not fitted: a sample knows no others; to fit it, score another split with some values), and ceiling.0.truth, the
target's cell shares above one half.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from vkvdb.errors import BadOption
from vkvdb.masks import decode
from vkvdb.metrics import Floats, iou
from vkvdb.samples import Expression, Sample
from vkvdb.tasks._masks import Region, area_by_cell, as_maps, cells_seen, check_ellipse, ellipse
from vkvdb.tasks._ranking import Ranked, otsu
from vkvdb.tasks._words import columns, silent, word_maps
from vkvdb.types import CEILING, POSITION, Capture, Needs, Panel, Scores, Site

if TYPE_CHECKING:
    from torch import Tensor

READINGS = ("dot", "centred")


@dataclass(frozen=True)
class Referring:
    """An expression against every image token.

    reading: `dot` (dot products) or `centred` (cosines from the image's mean token).
    box_iou: the IoU from which on a box is right, above 0 and at most 1.
    ellipse: the diameters of the floor's ellipse as a share of the image's sides, above 0 and at most 2.
    """

    version: ClassVar[int] = 1
    takes: ClassVar[type[Sample]] = Expression
    metrics: ClassVar[tuple[str, ...]] = ("iou", "ciou", "acc_box", "pointing", "auroc", "auroc_objects")

    reading: str = "dot"
    box_iou: float = 0.5
    ellipse: float = 0.7

    def __post_init__(self) -> None:
        if self.reading not in READINGS:
            raise BadOption(option="-p", value=f"reading {self.reading}", why=f"there are: {', '.join(READINGS)}")
        if not 0 < self.box_iou <= 1:
            raise BadOption(option="-p", value=f"box_iou {self.box_iou}", why="it must be above 0 and at most 1")
        check_ellipse(self.ellipse)

    def needs(self, sample: Expression) -> Needs:
        return Needs(sample.images(), (sample.text,))

    def score(
        self, sample: Expression, captures: Mapping[str, Capture], texts: Mapping[str, Mapping[Site, Tensor]]
    ) -> Iterator[Scores]:
        capture = captures[sample.image]
        size = sample.mask.width, sample.mask.height
        truth = _Truth(sample, capture)
        vectors = texts[sample.text]
        for stack in capture.stacks:
            for sites, products, centred in word_maps(stack, vectors, truth.seen, lengths=self.reading == "centred"):
                maps = products if centred is None else centred
                yield from self._rows(truth, sites, maps, otsu(truth.cells(maps))[..., None, None])
            if without := silent(stack, vectors):
                undefined = np.full((len(without), columns(stack)), np.nan)
                yield from (Scores(metric, without, undefined, weight=0.0) for metric in self.metrics)
        for site, logits in (
            (POSITION, ellipse(size, capture.grid, self.ellipse)),
            (CEILING, truth.region.shares - 0.5),
        ):
            yield from self._rows(truth, (site,), as_maps(logits), 0.0)

    def picture(
        self, sample: Expression, captures: Mapping[str, Capture], texts: Mapping[str, Mapping[Site, Tensor]]
    ) -> tuple[Panel, ...]:
        """The image with what the expression finds in it."""
        truth = _Truth(sample, captures[sample.image])
        stack, vectors = captures[sample.image].stacks[0], texts[sample.text]
        for _, products, centred in word_maps(stack, vectors, truth.seen, lengths=self.reading == "centred"):
            maps = products if centred is None else centred
            found = truth.region.chosen((maps - otsu(truth.cells(maps))[..., None, None])[0, 0])
            return (Panel(sample.image, f'"{sample.text}"', found=[found], truth=[truth.region.mask]),)
        return (Panel(sample.image, f'"{sample.text}": not defined, no words here', truth=[truth.region.mask]),)

    def _rows(
        self, truth: _Truth, sites: tuple[Site, ...], maps: Tensor, threshold: Tensor | float
    ) -> Iterator[Scores]:
        logits = maps - threshold
        intersection, union = truth.region.counts(logits)
        value = iou(intersection, union)
        yield Scores("iou", sites, value)
        yield Scores("ciou", sites, value, weight=union)
        yield Scores("acc_box", sites, truth.boxes_met(logits, self.box_iou))
        yield Scores("pointing", sites, truth.pointed(maps))
        ranked = Ranked(maps.flatten(2))
        yield Scores("auroc", sites, ranked.against(truth.target, truth.rest)[0])
        yield Scores("auroc_objects", sites, ranked.against(truth.target, truth.others)[0])


class _Truth:
    """The target, the other objects, and what maps are worth."""

    def __init__(self, sample: Expression, capture: Capture) -> None:
        grid = capture.grid
        self.grid, self.size = grid, (sample.mask.width, sample.mask.height)
        self.region = Region(sample.mask, None, grid)
        self.seen = cells_seen(self.size, grid)
        mask = self.region.mask
        others = np.zeros_like(mask)
        for other in sample.others:
            others |= decode(other)
        self.target, self.rest = area_by_cell(mask, grid), area_by_cell(~mask, grid)
        self.others = area_by_cell(others & ~mask, grid)
        self.box = _box(mask)
        # Which cells have their centre on the target.
        x, y = (np.floor(part).astype(int) for part in grid.centre(*np.mgrid[: grid.rows, : grid.cols]))
        inside = (x >= 0) & (x < self.size[0]) & (y >= 0) & (y < self.size[1])
        self.hits = inside.copy()
        self.hits[inside] = mask[y[inside], x[inside]]

    def cells(self, maps: Tensor) -> Tensor:
        """What maps (sites, heads, rows, cols) are in the image's cells: (sites, heads, cells)."""
        import torch

        if self.seen.all():
            return maps.flatten(2)
        return maps.flatten(2)[:, :, torch.as_tensor(self.seen.ravel(), device=maps.device)]

    def pointed(self, maps: Tensor) -> Floats:
        """The share (sites, heads) of each map's highest cells that lie on the target; NaN without one."""
        import torch

        if self.box is None:
            return np.full(maps.shape[:2], np.nan)
        cells = self.cells(maps)
        highest = cells == cells.amax(-1, keepdim=True)
        hits = torch.as_tensor(self.hits[self.seen], device=maps.device)
        share: Floats = ((highest & hits).sum(-1).double() / highest.sum(-1)).cpu().numpy()
        return share

    def boxes_met(self, logits: Tensor, least: float) -> Floats:
        """Whether (sites, heads) the box of the largest region above 0 has that IoU with the target's; NaN without."""
        from vkvdb.tasks._components import largest_boxes

        if self.box is None:
            return np.full(logits.shape[:2], np.nan)
        u0, v0, u1, v1 = largest_boxes(logits.flatten(0, 1)).double().cpu().numpy().T
        width, height = self.size
        (x0, y0), (x1, y1) = self.grid.to_pixels(u0, v0), self.grid.to_pixels(u1, v1)
        x0, x1, y0, y1 = x0.clip(0, width), x1.clip(0, width), y0.clip(0, height), y1.clip(0, height)
        left, top, right, bottom = self.box
        common = (np.minimum(x1, right) - np.maximum(x0, left)).clip(0) * (
            np.minimum(y1, bottom) - np.maximum(y0, top)
        ).clip(0)
        union = (x1 - x0) * (y1 - y0) + (right - left) * (bottom - top) - common
        # Where nothing is chosen all is NaN, which is no more than anything.
        met: Floats = (common >= least * union).astype(np.float64).reshape(logits.shape[:2])
        return met


def _box(mask: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> tuple[int, int, int, int] | None:
    """Left, top, right and bottom of a mask's pixels; None where it has none."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1


TASK = Referring
