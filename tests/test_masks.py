"""Masks against pycocotools and plain arrays."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco

from vkvdb import masks
from vkvdb.samples import Mask


def noise(seed: int = 0, height: int = 13, width: int = 17) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width)) < 0.4


@pytest.mark.parametrize("region", [noise(), np.zeros((3, 5), bool), np.ones((5, 3), bool), noise(1, 200, 300)])
def test_an_array_survives(region: np.ndarray) -> None:
    mask = masks.encode(region)
    assert (mask.height, mask.width) == region.shape
    np.testing.assert_array_equal(masks.decode(mask), region)
    assert masks.area(mask) == region.sum()
    masks.check(mask)


def test_run_lengths_are_those_of_the_columns() -> None:
    region = noise(2, 40, 50)
    flat = np.concatenate([[0], region.T.ravel().astype(int), [2]])
    edges = np.flatnonzero(np.diff(flat))
    runs = masks.run_lengths(masks.encode(region).counts)
    first = [] if not region[0, 0] else [0]
    np.testing.assert_array_equal(runs, [*first, *np.diff([0, *edges[edges > 0]])])


def test_union_and_minus() -> None:
    a, b = noise(3), noise(4)
    both = masks.union([masks.encode(a), masks.encode(b)])
    np.testing.assert_array_equal(masks.decode(both), a | b)
    np.testing.assert_array_equal(masks.decode(masks.minus(masks.encode(a), masks.encode(b))), a & ~b)
    with pytest.raises(ValueError, match="different sizes"):
        masks.union([masks.encode(a), masks.encode(a.T)])


def test_polygons_are_filled_by_cocos_rule() -> None:
    polygons = [[2.0, 2.0, 10.0, 2.0, 10.0, 8.0, 2.0, 8.0], [12, 1, 16, 1, 14, 9]]
    mask = masks.from_polygons(polygons, 20, 12)
    expected = coco.decode(coco.merge(coco.frPyObjects([[*map(float, p)] for p in polygons], 12, 20)))
    np.testing.assert_array_equal(masks.decode(mask), expected.astype(bool))
    assert masks.decode(mask)[2:8, 2:10].all()


@pytest.mark.parametrize(
    ("polygons", "why"),
    [
        ([], "no polygon"),
        ([[1, 1, 5, 5]], "polygon of 4 numbers"),  # pycocotools would take it for a box
        ([[1, 1, 5, 5, 3, 3, 9]], "polygon of 7 numbers"),
        ([[1, 1, 25, 5, 3, 3]], r"corner at \(25, 5\), outside the image of 20 x 12"),
        ([[1, 1, -3, 5, 3, 3]], "outside"),
        ([[1, 1, float("nan"), 5, 3, 3]], "outside"),
    ],
)
def test_unsound_polygons_are_refused(polygons: list[list[float]], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        masks.from_polygons(polygons, 20, 12)


def test_a_polygon_may_touch_the_edge() -> None:
    assert masks.decode(masks.from_polygons([[0, 0, 20.4, 0, 20.4, 12, 0, 12]], 20, 12)).all()


def test_run_lengths_of_both_forms() -> None:
    region = noise(5, 12, 20)
    mask = masks.encode(region)
    assert masks.from_rle({"size": [12, 20], "counts": mask.counts}, 20, 12) == mask
    assert masks.from_rle({"size": [12, 20], "counts": masks.run_lengths(mask.counts)}, 20, 12) == mask


@pytest.mark.parametrize(
    ("rle", "why"),
    [
        ({"size": [20, 12], "counts": [240]}, "size"),
        ({"size": [12, 20], "counts": [100, 100]}, "do not add up"),
        ({"size": [12, 20], "counts": [100, -20, 160]}, "whole numbers"),
        ({"size": [12, 20], "counts": 240}, "whole numbers"),
        ({"size": [12, 20], "counts": masks.encode(noise(6, 12, 19)).counts}, "do not add up"),
        ({"size": [12, 20], "counts": "~~"}, "character"),
        ({"size": [12, 20], "counts": masks.encode(noise(6, 12, 20)).counts + "P"}, "middle of a number"),
    ],
)
def test_run_lengths_that_do_not_fit_are_refused(rle: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        masks.from_rle(rle, 20, 12)


def test_a_damaged_mask_is_seen() -> None:
    mask = masks.encode(noise(7, 12, 20))
    with pytest.raises(ValueError, match="do not add up"):
        masks.check(Mask(21, 12, mask.counts))
