"""SPair-71k: pairs of photographs of 18 categories with corresponding keypoints.

Origin: Min et al. 2019, *SPair-71k: A Large-scale Benchmark for Semantic Correspondence* (arXiv 1908.10543). The
photographs are PASCAL VOC 2012's and PASCAL 3D+'s and stay with their owners. To be had, with its terms, at
https://cvlab.postech.ac.kr/research/SPair-71k/: unpack `SPair-71k.tar.gz` and give its folder. The names of annotations
hold a colon, which some file systems and archivers replace.

The pairs of a split are those of `Layout/large`, in its order.

- Keypoints are whole pixels, counted from 0 as eval_spair.py of DIFT indexes them [C]: as points they are the centres
  of these pixels, half a pixel further right and down.
- Boxes stay as they are published, so that the longer side, which the tolerance is measured by, is DIFT's [C].
- An image is called CATEGORY/NAME: one photograph may serve two categories.
- The group is the category. The cluster is the source photograph [D]: pairs that share an image are not independent,
  but inside a category nearly all images hang together by shared pairs; clusters as large as that would be the groups
  themselves, inside which no variance is left to make an interval of. Pairs of two sources still share targets, so
  intervals are somewhat too narrow.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

from vkvdb.datasets._label_images import read_lines, size_told
from vkvdb.datasets._layout import need_folder, read_json
from vkvdb.errors import BadDataset
from vkvdb.samples import Box, ImagePair, Point
from vkvdb.types import ImageFile, Problem, Reading

CATEGORIES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dog", "horse"),
    *("motorbike", "person", "pottedplant", "sheep", "train", "tvmonitor"),
)

_SIDE = {"imname": str, "imsize": list, "bndbox": list, "kps": list}
_KEYS: dict[str, type] = {"category": str, **{f"{side}_{key}": _SIDE[key] for side in ("src", "trg") for key in _SIDE}}


class Spair:
    """The adapter."""

    version: ClassVar[int] = 1
    splits: ClassVar[tuple[str, ...]] = ("test", "val", "trn")
    layout: ClassVar[str] = (
        "Layout/large/SPLIT.txt, PairAnnotation/SPLIT/ and JPEGImages/CATEGORY/, unpacked from SPair-71k.tar.gz of "
        "https://cvlab.postech.ac.kr/research/SPair-71k/"
    )

    def read(self, root: Path, split: str) -> Reading:
        layout = self.layout.replace("SPLIT", split)
        listed = read_lines(root / "Layout" / "large" / f"{split}.txt", layout)
        folder = need_folder(root / "PairAnnotation" / split, layout)
        need_folder(root / "JPEGImages", layout)
        found: dict[str, tuple[int, int] | None] = {}
        reading = Reading()
        reading.problems += [
            Problem(name, "it is listed twice") for name, count in Counter(listed).items() if count > 1
        ]
        for name in dict.fromkeys(listed):
            try:
                pair, sizes = _pair(name, _annotation(folder, name))
                for image, size in sizes.items():
                    if image not in found:
                        found[image] = size_told(root / "JPEGImages" / image)
                    _check_size(image, found[image], size)
            except ValueError as error:
                reading.problems.append(Problem(name, str(error)))
            else:
                reading.samples.append(pair)
        used = {image for pair in reading.samples for image in pair.images()}
        reading.images = [ImageFile(image, f"JPEGImages/{image}") for image in sorted(used)]
        return reading


def _check_size(image: str, found: tuple[int, int] | None, told: tuple[int, int]) -> None:
    if found and found != told:
        raise ValueError(f"{image} is {found[0]} x {found[1]}, the annotation is for {told[0]} x {told[1]}")


def _annotation(folder: Path, name: str) -> dict[str, Any]:
    """A pair's annotation; ValueError where it is not there or lacks something."""
    if "/" in name:
        raise ValueError("it is no name of a pair")
    try:
        return read_json(folder / f"{name}.json", "", _KEYS)
    except BadDataset as error:  # one bad pair does not spoil the dataset
        raise ValueError(error.facts["what"]) from error


def _pair(name: str, body: dict[str, Any]) -> tuple[ImagePair, dict[str, tuple[int, int]]]:
    """The sample, and the sizes that the annotation gives its images; ValueError where something is wrong."""
    category = body["category"]
    if category not in CATEGORIES:
        raise ValueError(f"there is no category '{category}'")
    sizes: dict[str, tuple[int, int]] = {}
    boxes: list[Box] = []
    points: list[tuple[Point, ...]] = []
    for side in ("src", "trg"):
        image = body[f"{side}_imname"]
        if "/" in image:
            raise ValueError(f"it names the image '{image}', which is no file name")
        width, height = _size(body[f"{side}_imsize"])
        sizes[f"{category}/{image}"] = width, height
        boxes.append(_box(body[f"{side}_bndbox"], width, height))
        points.append(tuple(_point(point, width, height) for point in body[f"{side}_kps"]))
    if not points[0] or len(points[0]) != len(points[1]):
        raise ValueError(f"it has {len(points[0])} source points and {len(points[1])} target points")
    names = body.get("kps_ids", [])
    if not isinstance(names, list) or len(names) not in (0, len(points[0])):
        raise ValueError(f"it does not name each of its {len(points[0])} points")
    pair = ImagePair(
        id=name,
        group=category,
        cluster=body["src_imname"],
        source=f"{category}/{body['src_imname']}",
        target=f"{category}/{body['trg_imname']}",
        source_points=points[0],
        target_points=points[1],
        source_box=boxes[0],
        target_box=boxes[1],
        names=tuple(str(each) for each in names),
    )
    return pair, sizes


def _size(told: list[Any]) -> tuple[int, int]:
    """Width and height, as `[width, height, channels]` tells them."""
    if len(told) < 2 or any(type(side) is not int or side < 1 for side in told[:2]):
        raise ValueError(f"it gives an image the size {told}")
    return told[0], told[1]


def _box(told: list[Any], width: int, height: int) -> Box:
    """A box inside the image, edges included."""
    left, top, right, bottom = _numbers(told, 4, "box")
    if not (left < right and top < bottom):
        raise ValueError(f"its box {told} is empty")
    if left < 0 or top < 0 or right > width or bottom > height:
        raise ValueError(f"its box {told} lies outside an image of {width} x {height}")
    return left, top, right, bottom


def _point(told: Any, width: int, height: int) -> Point:
    """The centre of a pixel that is counted from 0."""
    x, y = _numbers(told, 2, "point")
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(f"its point {told} lies outside an image of {width} x {height}")
    return x + 0.5, y + 0.5


def _numbers(told: Any, count: int, what: str) -> tuple[float, ...]:
    if not isinstance(told, list) or len(told) != count or any(type(value) not in (int, float) for value in told):
        raise ValueError(f"its {what} {told} is not {count} numbers")
    if not all(math.isfinite(value) for value in told):
        raise ValueError(f"its {what} {told} is not finite")
    return tuple(float(value) for value in told)


DATASET = Spair
