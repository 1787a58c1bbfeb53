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
- Splits `val-persons` and `train-persons`: `ImagePair`s of two persons in different images, matched by their keypoints
  (`_persons.py`). They are datasets of their own, so that what lies in `annotations/` does not change the others.

Captions are not read: no task takes them.
"""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path
from typing import ClassVar

from vkvdb import masks
from vkvdb.datasets import _persons, _warp
from vkvdb.datasets._coco import ANNOTATION, CATEGORY, IMAGE, Entries, region, unique
from vkvdb.datasets._layout import need_folder, read_json
from vkvdb.samples import Episode, Labelled, Mask
from vkvdb.types import ImageFile, Problem, Reading

SEED = 0
SUPPORTS = 5
QUERIES = 10
COVERED = 0.01

_LAYOUT = (
    "SPLIT2017/ and annotations/KINDSPLIT2017.json side by side, unpacked from SPLIT2017.zip and "
    "annotations_trainval2017.zip of https://cocodataset.org/#download"
)
_KEYS = {"images": list, "annotations": list, "categories": list}


class Coco:
    """The adapter. Info and licences in the annotation file are not needed."""

    version: ClassVar[int] = 1
    splits: ClassVar[tuple[str, ...]] = ("val", "train", "val-persons", "train-persons")
    layout: ClassVar[str] = (
        "val2017/ (or train2017/) and annotations/, with instances_val2017.json (or instances_train2017.json), for "
        "persons person_keypoints_val2017.json (or person_keypoints_train2017.json), side by side, unpacked from "
        "val2017.zip (or train2017.zip) and annotations_trainval2017.zip of https://cocodataset.org/#download"
    )

    def read(self, root: Path, split: str) -> Reading:
        year, _, persons = split.partition("-")
        kind = "person_keypoints_" if persons else "instances_"
        layout = _LAYOUT.replace("SPLIT", year).replace("KIND", kind)
        need_folder(root / f"{year}2017", layout)
        content = read_json(root / "annotations" / f"{kind}{year}2017.json", layout, _KEYS)
        reading = Reading()
        images = unique(content["images"], "image", IMAGE, reading.problems)
        categories = unique(content["categories"], "category", CATEGORY, reading.problems)
        annotations = unique(content["annotations"], "annotation", ANNOTATION, reading.problems)
        if persons:
            drawn = _persons.pairs(images, categories, annotations, year, reading.problems)
            shown = sorted({name for pair in drawn for name in pair.images()})
            reading.images += [ImageFile(name, f"{year}2017/{name}") for name in shown]
            reading.samples += drawn
        else:
            _add_masks(reading, year, images, categories, annotations)
        return reading


def _add_masks(reading: Reading, split: str, images: Entries, categories: Entries, annotations: Entries) -> None:
    """Every image with its warp, then the episodes of each category."""
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


def _regions(
    images: Entries,
    categories: Entries,
    annotations: Entries,
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
                mask = region(annotation.get("segmentation"), images[image]["width"], images[image]["height"])
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
