"""Pairs of persons in different images, matched by COCO's 17 keypoints.

The pairing is ours, not the field's. A person takes part with at least `SHARED` visible keypoints (visibility 2:
neither hidden nor guessed) and a box whose longer side is at least `LARGE` of its image's; crowds do not. Of each
image the largest such person is taken, and every image is in one pair at most: so a pair is a cluster of its own. Two
persons are paired where they share `SHARED` visible keypoints and the longer sides of their boxes differ by a factor of
`COMPARABLE` at most. Pairs are drawn by seed, `PAIRS` at most.

Keypoints are named by the person's own left and right. COCO counts pixels from 0, so a pixel's centre is half a pixel
further (the first one's is (0.5, 0.5)).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vkvdb.datasets._coco import Entries, is_numbers
from vkvdb.samples import Box, ImagePair, Point
from vkvdb.types import Problem

GROUP = "person"
SEED = 0
SHARED = 8
LARGE = 0.25
COMPARABLE = 1.5
PAIRS = 1000
_VISIBLE = 2


@dataclass(frozen=True)
class Person:
    """An annotated person; `points` is {keypoint: (x, y)} of those that are visible."""

    annotation: int
    image: str
    box: Box
    points: dict[str, Point]

    @property
    def size(self) -> float:
        """The longer side of the box, in pixels."""
        left, top, right, bottom = self.box
        return max(right - left, bottom - top)


def pairs(
    images: Entries, categories: Entries, annotations: Entries, split: str, problems: list[Problem]
) -> list[ImagePair]:
    """The pairs, in the order in which they were drawn; what is wrong with an annotation goes to `problems`."""
    largest: dict[int, Person] = {}
    for key, annotation in sorted(annotations.items()):
        image, category = annotation["image_id"], annotation["category_id"]
        if image not in images:
            problems.append(Problem(f"annotation {key}", f"there is no image {image}"))
        elif category not in categories:
            problems.append(Problem(f"annotation {key}", f"there is no category {category}"))
        elif not annotation["iscrowd"]:
            try:
                person = _person(annotation, images[image], categories[category].get("keypoints"))
            except ValueError as error:
                problems.append(Problem(f"annotation {key} of {images[image]['file_name']}", str(error)))
                continue
            enough = person.size >= LARGE * max(images[image]["width"], images[image]["height"])
            if enough and len(person.points) >= SHARED:
                largest[image] = max(largest.get(image, person), person, key=lambda one: one.size)
    return _drawn([largest[image] for image in sorted(largest)], split)


def _person(annotation: dict[str, Any], image: dict[str, Any], names: Any) -> Person:
    """An annotation's person; ValueError where it is unsound."""
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError("its category has no list of keypoints")
    box: Any = annotation.get("bbox")
    flat: Any = annotation.get("keypoints")
    if not is_numbers(box) or len(box) != 4 or min(box[2:]) < 0:
        raise ValueError("its box is not four numbers, x, y, width and height")
    if not is_numbers(flat) or len(flat) != 3 * len(names):
        raise ValueError(f"its keypoints are not {len(names)} times x, y and visibility")
    width, height = image["width"], image["height"]
    points = {}
    for name, x, y, seen in zip(names, flat[::3], flat[1::3], flat[2::3], strict=True):
        if seen not in (0, 1, _VISIBLE):
            raise ValueError(f"its {name} has visibility {seen}, which is none of 0, 1 and 2")
        if seen == _VISIBLE:
            if not (0 <= x < width and 0 <= y < height):
                raise ValueError(f"its {name} lies at ({x:g}, {y:g}), outside the image of {width} x {height}")
            points[name] = (x + 0.5, y + 0.5)
    x, y, wide, high = map(float, box)
    return Person(annotation["id"], image["file_name"], (x, y, x + wide, y + high), points)


def _drawn(persons: Sequence[Person], split: str) -> list[ImagePair]:
    left = list(persons)
    random.Random(f"{SEED}/{split}/{GROUP}").shuffle(left)
    found: list[ImagePair] = []
    while left and len(found) < PAIRS:
        source = left.pop()
        partner = next((place for place, other in enumerate(left) if _comparable(source, other)), None)
        if partner is not None:
            found.append(_pair(source, left.pop(partner)))
    return found


def _comparable(one: Person, other: Person) -> bool:
    close = max(one.size, other.size) <= COMPARABLE * min(one.size, other.size)
    return close and len(one.points.keys() & other.points.keys()) >= SHARED


def _pair(source: Person, target: Person) -> ImagePair:
    names = tuple(name for name in source.points if name in target.points)
    key = f"{GROUP}/{source.annotation}/{target.annotation}"
    return ImagePair(
        id=key,
        group=GROUP,
        cluster=key,
        source=source.image,
        target=target.image,
        source_points=tuple(source.points[name] for name in names),
        target_points=tuple(target.points[name] for name in names),
        source_box=source.box,
        target_box=target.box,
        names=names,
    )
