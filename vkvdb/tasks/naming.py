"""Naming: each pixel's class among all classes of the dataset, by their names through the same model.

Protocol. As `segmentation`, where the image's class is given; here it is not. The name of every class goes through the
model without an image, its last token's vector at a site and head is the class vector, and a pixel's class is the one
whose dot product with the image token there is largest: the argmax over the 50 classes of ImageNet-S. That vectors
are compared so is the protocol's [S: Liu et al. 2025, arXiv 2510.04819], the argmax over all classes a variant [D].
Products are upsampled bilinearly to the image's pixels before it; outside the grid's window nothing is named.

Our choices [D]. `reading=dot` takes the dot products as they are; `reading=cosine`, another job, first divides each
class vector by its length, so that no class wins by having a long vector. Classes are the categories of all the
dataset's images, or `classes`, names with commas between. There are at most 100, as each has a score of its own in
every image.

Metrics. `accuracy`: of the pixels of the image's class those that are named so, weighted by their number; chance is
one over the number of classes. `iou`: intersection over union of the image's class in the image alone. ImageNet-S
counts over all images, so that what is wrongly named a class in images of others weighs in its union [C:
LUSSeg/ImageNet-S at commit b2312ba]. For that each class has a score in every image where it is or is found, `iou of
CLASS`, weighted by the union; the view `pooled` sums them, and their mean over classes is its `miou`. Void is in no
count. Pixels of no class are always named something here, so that the evaluator's further class, what is of no class,
would be 0: its mIoU is ours times classes / (classes + 1) [D].

Not defined: any metric at a site without text vectors; an image without a mask, or whose class is not among the
classes, has no row. Rows beside the model's: floor.0.position names every pixel by the first class, whose accuracy is
that of chance; ceiling.0.truth names the cells that the mask covers by more than half, upsampled, and no others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from vkvdb.errors import BadDataset, BadOption
from vkvdb.metrics import Floats, iou
from vkvdb.samples import Image, Sample
from vkvdb.tasks._masks import Region, as_maps
from vkvdb.tasks._tokens import at_once, float32, like, pieces, room, upsample, with_all_heads
from vkvdb.tasks._words import columns, silent
from vkvdb.types import CEILING, POSITION, Capture, Needs, Scores, Site, TokenStack

if TYPE_CHECKING:
    from torch import Tensor

READINGS = ("dot", "cosine")
MOST = 100
OF = "iou of "


@dataclass(frozen=True)
class Naming:
    """All classes' names against every image token.

    reading: `dot` (dot products) or `cosine` (each class vector divided by its length first).
    classes: the names to choose among, with commas between; empty for all of the dataset.
    """

    version: ClassVar[int] = 1
    takes: ClassVar[type[Sample]] = Image
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "iou")

    reading: str = "dot"
    classes: str = ""

    def __post_init__(self) -> None:
        if self.reading not in READINGS:
            raise BadOption(option="-p", value=f"reading {self.reading}", why=f"there are: {', '.join(READINGS)}")
        if self.classes and not 2 <= len(self.names) <= MOST:
            value = f"classes {self.classes[:40]}"
            raise BadOption(option="-p", value=value, why=f"2 to {MOST} classes are expected, not {len(self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """The classes, in order."""
        return tuple(dict.fromkeys(name.strip() for name in self.classes.split(",") if name.strip()))

    def among(self, samples: Iterable[Image]) -> Naming:
        """This task with the classes of these images, unless it has some. Raises BadDataset, BadOption."""
        if self.classes:
            return self
        there = sorted({sample.category for sample in samples} - {""})
        if len(there) < 2 or any("," in name for name in there):
            what = f"the images' classes are {', '.join(map(repr, there)) or 'none'}"
            raise BadDataset(what=what, expected="images of several classes, like imagenet_s-50-validation")
        return replace(self, classes=",".join(there))

    def needs(self, sample: Image) -> Needs:
        return Needs(sample.images(), self.names)

    def score(
        self, sample: Image, captures: Mapping[str, Capture], texts: Mapping[str, Mapping[Site, Tensor]]
    ) -> Iterator[Scores]:
        if sample.mask is None or sample.category not in self.names:
            return
        capture = captures[sample.image]
        own = self.names.index(sample.category)
        region = Region(sample.mask, sample.ignore, capture.grid)
        for stack in capture.stacks:
            spoken = texts[sample.category]
            for sites, products in self._products(stack, texts):
                yield from self._rows(sites, region, own, *_named(region, own, products))
            if without := silent(stack, spoken):
                undefined = np.full((len(without), columns(stack)), np.nan)
                yield from (Scores(metric, without, undefined, weight=0.0) for metric in self.metrics)
        inside, union = region.counts(as_maps(region.shares - 0.5))
        named = np.zeros((1, 1, len(self.names)))
        named[..., own] = union - region.area + inside
        yield from self._rows((CEILING,), region, own, inside, named)
        everywhere = np.zeros_like(named)
        everywhere[..., 0] = region.valid_area
        yield from self._rows((POSITION,), region, own, np.full((1, 1), region.area * float(own == 0)), everywhere)

    def _products(
        self, stack: TokenStack, texts: Mapping[str, Mapping[Site, Tensor]]
    ) -> Iterator[tuple[tuple[Site, ...], Tensor]]:
        """Sites with words, piece by piece: (sites, products (sites, heads + 1, classes, rows, cols))."""
        import torch

        heads, rows, cols, dim = stack.tokens.shape[1:]
        spoken = [n for n, site in enumerate(stack.sites) if site in texts[self.names[0]]]
        each = heads * rows * cols * (dim + 2 * len(self.names))
        for piece in pieces(len(spoken), each, room(stack.tokens)):
            of = spoken[piece]
            sites = tuple(stack.sites[n] for n in of)
            x = float32(stack.tokens[of]).flatten(2, 3)
            vectors = torch.stack([torch.stack([texts[name][site] for name in self.names], 1) for site in sites]).to(x)
            products = with_all_heads(torch.matmul(vectors, x.transpose(2, 3)))
            if self.reading == "cosine":
                squares = with_all_heads(vectors.square().sum(-1))
                products = products * squares.clamp_min(1e-24).rsqrt()[..., None]
            yield sites, products.view(*products.shape[:-1], rows, cols)

    def _rows(
        self, sites: tuple[Site, ...], region: Region, own: int, inside: Floats, named: Floats
    ) -> Iterator[Scores]:
        """Scores from pixels (sites, heads) of the class that are named so, and from all that are, by class."""
        yield Scores("accuracy", sites, iou(inside, np.full_like(inside, region.area)), weight=float(region.area))
        for number, name in enumerate(self.names):
            found = inside if number == own else np.zeros_like(inside)
            union = named[..., number] + (region.area if number == own else 0) - found
            if number == own:
                yield Scores("iou", sites, iou(found, union), weight=union)
            if union.any():
                yield Scores(f"{OF}{name}", sites, iou(found, union), weight=union)


def _named(region: Region, own: int, products: Tensor) -> tuple[Floats, Floats]:
    """Pixels by the class that is largest there, for products (sites, heads, classes, rows, cols).

    Those of the region named `own` (sites, heads), and all that are not void by class (sites, heads, classes).
    """
    import torch

    maps = products.flatten(0, 1)
    classes = maps.shape[1]
    down, across = like(region.down, maps), like(region.across, maps)
    height, width = region.pixels.shape[1:]
    mask, valid = (torch.as_tensor(part, device=maps.device) for part in region.pixels)
    inside, named = np.zeros(len(maps)), np.zeros((len(maps), classes))
    for piece in pieces(len(maps), classes * width, at_once(maps)):
        count = piece.stop - piece.start
        first = torch.arange(count, device=maps.device)[:, None, None] * classes
        for band in pieces(height, count * classes * width, at_once(maps)):
            large = upsample(maps[piece].flatten(0, 1), down[band], across)
            # Of equals the first class.
            largest = large.view(count, classes, *large.shape[1:]).argmax(1) + first
            found = torch.bincount(largest[:, valid[band]].flatten(), minlength=count * classes)
            named[piece] += found.view(count, classes).cpu().numpy()
            inside[piece] += (largest[:, mask[band]] == first[..., 0] + own).sum(1).cpu().numpy()
    return inside.reshape(products.shape[:2]), named.reshape(*products.shape[:2], classes)


TASK = Naming
