"""COCO 2017: photographs with masks of 80 categories; self-warp pairs and few-shot episodes are made of them.

Origin: Lin et al. 2014, *Microsoft COCO: Common Objects in Context* (arXiv 1405.0312). Annotations: CC BY 4.0; the
photographs stay with their owners on Flickr. To be had at https://cocodataset.org/#download: unpack `val2017.zip` (or
`train2017.zip`) and `annotations_trainval2017.zip` side by side.

What is made of it is ours, not the field's:

- `ImagePair`: COCO has no corresponding points, so each image is matched with a homography of itself (`_warp.py`).
  This is self-warp (geometric), not semantic, correspondence; its group is `self-warp`.
- `Episode`: for each category, up to ten query images with five support images each, drawn by seed among the images
  of which the category's instances cover at least 1 %. Crowd regions of the category count neither as it nor as
  background.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from vkvdb import masks
from vkvdb.datasets import _warp
from vkvdb.datasets._layout import lacks, need_folder, read_json
from vkvdb.samples import Episode, Labelled, Mask
from vkvdb.types import ImageFile, Problem, Reading

SEED = 0
SUPPORTS = 5
QUERIES = 10
COVERED = 0.01

_IMAGE = {"id": int, "file_name": str, "width": int, "height": int}
_ANNOTATION = {"id": int, "image_id": int, "category_id": int, "iscrowd": int}
_CATEGORY = {"id": int, "name": str}


class Coco:
    """The adapter. Info and licences in the annotation file are not needed."""

    version: ClassVar[int] = 1
    splits: ClassVar[tuple[str, ...]] = ("val", "train")
    layout: ClassVar[str] = (
        "SPLIT2017/ and annotations/instances_SPLIT2017.json side by side, unpacked from SPLIT2017.zip and "
        "annotations_trainval2017.zip of https://cocodataset.org/#download"
    )

    def read(self, root: Path, split: str) -> Reading:
        layout = self.layout.replace("SPLIT", split)
        need_folder(root / f"{split}2017", layout)
        file = root / "annotations" / f"instances_{split}2017.json"
        content = read_json(file, layout, {"images": list, "annotations": list, "categories": list})
        reading = Reading()
        images = _unique(content["images"], "image", _IMAGE, reading.problems)
        categories = _unique(content["categories"], "category", _CATEGORY, reading.problems)
        annotations = _unique(content["annotations"], "annotation", _ANNOTATION, reading.problems)

        names = {key: image["file_name"] for key, image in sorted(images.items())}
        warps = []
        for key, name in names.items():
            original = ImageFile(name, f"{split}2017/{name}")
            reading.images.append(original)
            try:
                warped, pair = _warp.pair(original, images[key]["width"], images[key]["height"])
            except ValueError as error:
                reading.problems.append(Problem(f"image {key}", str(error)))
            else:
                warps.append(warped)
                reading.samples.append(pair)
        reading.images += warps

        regions = _regions(images, categories, annotations, reading.problems)
        for category in sorted(categories):
            reading.samples += _episodes(categories[category]["name"], split, regions[category], names)
        return reading


def _unique(
    entries: list[Any], what: str, keys: Mapping[str, type], problems: list[Problem]
) -> dict[int, dict[str, Any]]:
    """{id: entry} of the sound entries, the first of each id."""
    found: dict[int, dict[str, Any]] = {}
    for place, entry in enumerate(entries):
        if missing := lacks(entry, keys):
            problems.append(Problem(f"{what} at place {place}", f"it {missing}"))
        elif entry["id"] in found:
            problems.append(Problem(f"{what} {entry['id']}", "its id is there twice"))
        elif what == "image" and min(entry["width"], entry["height"]) < 1:
            problems.append(Problem(f"{what} {entry['id']}", f"its size is {entry['width']} x {entry['height']}"))
        else:
            found[entry["id"]] = entry
    return found


def _regions(
    images: dict[int, dict[str, Any]],
    categories: dict[int, dict[str, Any]],
    annotations: dict[int, dict[str, Any]],
    problems: list[Problem],
) -> dict[int, dict[int, tuple[Mask, Mask | None]]]:
    """{category: {image: (mask of its instances, its crowds)}} where the instances cover enough and none is unsound."""
    parts: dict[tuple[int, int], list[Mask]] = defaultdict(list)
    crowds: dict[tuple[int, int], list[Mask]] = defaultdict(list)
    spoiled = set()
    for key, annotation in annotations.items():
        category, image = annotation["category_id"], annotation["image_id"]
        where = (category, image)
        if image not in images:
            problems.append(Problem(f"annotation {key}", f"there is no image {image}"))
        elif category not in categories:
            problems.append(Problem(f"annotation {key}", f"there is no category {category}"))
        else:
            try:
                mask = _mask(annotation.get("segmentation"), images[image]["width"], images[image]["height"])
            except ValueError as error:
                problems.append(Problem(f"annotation {key} of {images[image]['file_name']}", str(error)))
                spoiled.add(where)
            else:
                (crowds if annotation["iscrowd"] else parts)[where].append(mask)
    regions: dict[int, dict[int, tuple[Mask, Mask | None]]] = defaultdict(dict)
    for where in sorted(parts.keys() - spoiled):
        mask = masks.union(parts[where])
        if masks.area(mask) >= COVERED * mask.width * mask.height:
            # Where an instance lies over a crowd, it is known to be an instance.
            crowd = masks.minus(masks.union(crowds[where]), mask) if where in crowds else None
            regions[where[0]][where[1]] = mask, crowd
    return regions


def _mask(segmentation: Any, width: int, height: int) -> Mask:
    """An instance's polygons, or run lengths, as a mask; ValueError where they are unsound."""
    if isinstance(segmentation, dict) and segmentation.keys() >= {"size", "counts"}:
        return masks.from_rle(segmentation, width, height)
    if isinstance(segmentation, list) and all(_is_numbers(polygon) for polygon in segmentation):
        return masks.from_polygons(segmentation, width, height)
    raise ValueError("its segmentation is neither polygons nor run lengths")


def _is_numbers(polygon: Any) -> bool:
    return isinstance(polygon, list) and all(isinstance(value, int | float) for value in polygon)


def _episodes(
    category: str, split: str, regions: dict[int, tuple[Mask, Mask | None]], names: dict[int, str]
) -> list[Episode]:
    """The episodes of a category: none where there are too few images."""
    if len(regions) <= SUPPORTS:
        return []
    labelled = {key: Labelled(names[key], *region) for key, region in sorted(regions.items())}
    rng = random.Random(f"{SEED}/{split}/{category}")
    return [
        Episode(
            id=f"{category}/{names[query]}",
            group=category,
            cluster=names[query],
            supports=tuple(labelled[key] for key in rng.sample([k for k in labelled if k != query], SUPPORTS)),
            query=labelled[query],
        )
        for query in sorted(rng.sample(list(labelled), min(QUERIES, len(labelled))))
    ]


DATASET = Coco
