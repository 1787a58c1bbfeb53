"""Semantic segmentation by words: the class's name through the same model, compared with every image token.

Protocol. The image's class is given. Its name goes through the model without an image, and the last token's vector at a
site and head is the class vector; its dot product with each image token there is the map [S: Liu et al. 2025, arXiv
2510.04819]. A vector comes from where its tokens do; a site that has none (vision tower, raw pixels, an encoder
without text) has no map.

Our choices [D]. A map becomes a mask by Otsu's threshold over the image's own cells, exact, without a histogram; cells
that lie mostly outside the image (where a model pads) have no say in it. What is above the threshold, upsampled
bilinearly to the image's pixels, is the class; outside the grid's window nothing is. Void is in no count. Naming the
class among others is not this task.

Metrics. `iou`: intersection over union of an image, weighted by the union, so that a class's mean is the sum of
intersections over the sum of unions, and the mean over classes mIoU. `auroc` and `ap`: how well the map ranks pixels of
the class above others, without a threshold; each pixel has its cell's score, cells on an edge count by their parts,
pixels outside the window rank last. `iou_centred`, `auroc_centred`, `ap_centred`: the same of the map of cosines, in
which each token is taken from the image's mean token and divided by its length. (Taking the mean from tokens or maps
alone would change no threshold and no ranking.)

Not defined: any metric at a site without a text vector; `iou` without a union; `auroc` and `ap` where
all pixels are of one kind; an image without a mask or a class. Rows beside the model's: floor.0.position, an ellipse in
the middle of the image, its diameters `ellipse` of the image's sides (not fitted: a sample knows no others; to fit it,
score another split with some values); and ceiling.0.truth, the mask's cell shares above one half. Both know no words
and stand under both readings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from vkvdb.metrics import Bools, iou
from vkvdb.samples import Image, Sample
from vkvdb.tasks._masks import Region, area_by_cell, as_maps, cells_seen, check_ellipse, ellipse
from vkvdb.tasks._ranking import otsu, ranking
from vkvdb.tasks._words import columns, silent, word_maps
from vkvdb.types import CEILING, POSITION, Capture, Needs, Panel, Scores, Site

if TYPE_CHECKING:
    from torch import Tensor

READINGS = ("", "_centred")


@dataclass(frozen=True)
class Segmentation:
    """A class's name against every image token.

    ellipse: the diameters of the floor's ellipse as a share of the image's sides, above 0 and at most 2.
    """

    version: ClassVar[int] = 1
    takes: ClassVar[type[Sample]] = Image
    metrics: ClassVar[tuple[str, ...]] = ("iou", "auroc", "ap", "iou_centred", "auroc_centred", "ap_centred")

    ellipse: float = 0.7

    def __post_init__(self) -> None:
        check_ellipse(self.ellipse)

    def needs(self, sample: Image) -> Needs:
        return Needs(sample.images(), (sample.category,) if sample.category else ())

    def score(
        self, sample: Image, captures: Mapping[str, Capture], texts: Mapping[str, Mapping[Site, Tensor]]
    ) -> Iterator[Scores]:
        if sample.mask is None or not sample.category:
            return
        capture = captures[sample.image]
        size = sample.mask.width, sample.mask.height
        truth = _Truth(Region(sample.mask, sample.ignore, capture.grid), cells_seen(size, capture.grid))
        for stack in capture.stacks:
            for sites, *maps in word_maps(stack, texts[sample.category], truth.seen, lengths=True):
                for reading, of in zip(READINGS, maps, strict=True):
                    assert of is not None
                    yield from truth.rows(sites, reading, of, truth.thresholds(of))
            if without := silent(stack, texts[sample.category]):
                undefined = np.full((len(without), columns(stack)), np.nan)
                yield from (Scores(metric, without, undefined, weight=0.0) for metric in self.metrics)
        for site, logits in (
            (POSITION, ellipse(size, capture.grid, self.ellipse)),
            (CEILING, truth.region.shares - 0.5),
        ):
            for reading in READINGS:
                yield from truth.rows((site,), reading, as_maps(logits), 0.0)

    def picture(
        self, sample: Image, captures: Mapping[str, Capture], texts: Mapping[str, Mapping[Site, Tensor]]
    ) -> tuple[Panel, ...]:
        """The image with what is found in it, by either reading."""
        if sample.mask is None or not sample.category:
            return (Panel(sample.image, "not defined: it has no mask or no class"),)
        capture = captures[sample.image]
        size = sample.mask.width, sample.mask.height
        truth = _Truth(Region(sample.mask, sample.ignore, capture.grid), cells_seen(size, capture.grid))
        shown = []
        for _, *maps in word_maps(capture.stacks[0], texts[sample.category], truth.seen, lengths=True):
            for reading, of in zip(("dot product", "centred cosine"), maps, strict=True):
                assert of is not None
                found = truth.region.chosen((of - truth.thresholds(of))[0, 0])
                title = f'"{sample.category}", {reading}'
                shown.append(Panel(sample.image, title, found=[found], truth=[truth.region.mask]))
        silence = Panel(sample.image, "not defined: no words here", truth=[truth.region.mask])
        return tuple(shown) or (silence,)


class _Truth:
    """The class's mask, and what maps are worth."""

    def __init__(self, region: Region, seen: Bools) -> None:
        self.region, self.seen = region, seen
        self.positive = area_by_cell(region.mask, region.grid)
        self.negative = area_by_cell(region.valid & ~region.mask, region.grid)

    def thresholds(self, maps: Tensor) -> Tensor:
        """Otsu's thresholds (sites, heads, 1, 1) of maps (sites, heads, rows, cols)."""
        import torch

        cells = maps.flatten(2)
        if not self.seen.all():
            cells = cells[:, :, torch.as_tensor(self.seen.ravel(), device=maps.device)]
        return otsu(cells)[..., None, None]

    def rows(self, sites: tuple[Site, ...], reading: str, maps: Tensor, threshold: Tensor | float) -> Iterator[Scores]:
        intersection, union = self.region.counts(maps - threshold)
        yield Scores(f"iou{reading}", sites, iou(intersection, union), weight=union)
        area, precision = ranking(maps.flatten(2), self.positive, self.negative)
        yield Scores(f"auroc{reading}", sites, area)
        yield Scores(f"ap{reading}", sites, precision)


TASK = Segmentation
