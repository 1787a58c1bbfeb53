"""What the adapters of COCO's annotation files share: entries with an id, and an instance's region."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vkvdb import masks
from vkvdb.datasets._layout import lacks
from vkvdb.samples import Mask
from vkvdb.types import Problem

IMAGE = {"id": int, "file_name": str, "width": int, "height": int}
ANNOTATION = {"id": int, "image_id": int, "category_id": int, "iscrowd": int}
CATEGORY = {"id": int, "name": str}

Entries = dict[int, dict[str, Any]]


def unique(entries: list[Any], what: str, keys: Mapping[str, type], problems: list[Problem]) -> Entries:
    """{id: entry} of the sound entries, the first of each id; what is wrong with the others goes to `problems`."""
    found: Entries = {}
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


def region(segmentation: Any, width: int, height: int) -> Mask:
    """An instance's polygons, or run lengths, as a mask; ValueError where they are unsound."""
    if isinstance(segmentation, dict) and segmentation.keys() >= {"size", "counts"}:
        return masks.from_rle(segmentation, width, height)
    if isinstance(segmentation, list) and all(is_numbers(polygon) for polygon in segmentation):
        return masks.from_polygons(segmentation, width, height)
    raise ValueError("its segmentation is neither polygons nor run lengths")


def is_numbers(values: Any) -> bool:
    """Whether it is a list of numbers."""
    return isinstance(values, list) and all(isinstance(value, int | float) for value in values)
