"""The self-warp: points and pixels agree, copying the same place fails, an oracle on a grid does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from vkvdb.datasets import _warp
from vkvdb.samples import ImagePair
from vkvdb.types import ImageFile, TokenGrid

SIZES = [(640, 480), (480, 640), (640, 427), (500, 500), (240, 320), (112, 112), (640, 200)]
PLAIN = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "gamma": 1.0}


def pck(predicted: np.ndarray, pair: ImagePair) -> float:
    """The share of points within a tenth of the target box's longer side."""
    left, top, right, bottom = pair.target_box
    off = np.hypot(*(predicted - np.array(pair.target_points)).T)
    return float((off <= 0.1 * max(right - left, bottom - top)).mean())


def through_grid(pair: ImagePair, side: int) -> np.ndarray:
    """The target's points, each at the centre of its cell."""
    grid = TokenGrid(side, side, pair.target_box)
    cells = [grid.cell(x, y) for x, y in pair.target_points]
    return np.array([grid.centre(*cell) for cell in cells if cell])


def _far(point: tuple[float, float], width: int, height: int) -> bool:
    return 15 < point[0] < width - 15 and 15 < point[1] < height - 15


@pytest.mark.parametrize("size", SIZES)
def test_a_dot_lands_on_its_point(size: tuple[int, int]) -> None:
    width, height = size
    warped, pair = _warp.pair(ImageFile("dot", "dot.png"), width, height)
    # Dots that the edge does not cut.
    inner = [(a, b) for a, b in zip(pair.source_points, pair.target_points, strict=True) if _far(b, width, height)]
    for (x, y), (u, v) in inner[:: len(inner) // 3]:
        rows, columns = np.mgrid[:height, :width] + 0.5
        dot = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 1.5**2))
        image = Image.fromarray((255 * dot).astype(np.uint8)).convert("RGB")
        found = np.asarray(_warp.apply(image, {**warped.recipe, **PLAIN}).convert("L")).astype(float)
        found[found < 20] = 0
        centre = np.array([(found * columns).sum(), (found * rows).sum()]) / found.sum()
        # A large dot's centre moves a little under perspective; half a pixel off would be the wrong convention.
        assert np.hypot(*(centre - (u, v))) < 0.3


def test_the_target_is_filled_to_its_edges() -> None:
    for n, (width, height) in enumerate(SIZES * 5):
        warped, _ = _warp.pair(ImageFile(f"white{n}", ""), width, height)
        white = Image.new("RGB", (width, height), "white")
        assert np.asarray(_warp.apply(white, {**warped.recipe, **PLAIN})).min() == 255


def test_copying_the_place_fails_and_an_oracle_does_not() -> None:
    pairs = [_warp.pair(ImageFile(f"image{n}", ""), *SIZES[n % 6])[1] for n in range(120)]
    copied = [pck(np.array(pair.source_points), pair) for pair in pairs]
    assert np.mean(copied) < 0.05
    assert max(copied) <= _warp.STAYING
    for side in (16, 27):
        assert np.mean([pck(through_grid(pair, side), pair) for pair in pairs]) > 0.95
    assert min(len(pair.source_points) for pair in pairs) >= _warp.SEEN


def test_on_photographs(shared: Path, record_property: Callable[[str, object], None]) -> None:
    content = json.loads((shared / "data/coco/annotations/instances_val2017.json").read_text())
    pairs = [
        _warp.pair(ImageFile(image["file_name"], ""), image["width"], image["height"])[1] for image in content["images"]
    ]
    copied = np.mean([pck(np.array(pair.source_points), pair) for pair in pairs])
    oracle = {side: np.mean([pck(through_grid(pair, side), pair) for pair in pairs]) for side in (16, 27)}
    record_property("same place, oracle", f"{copied:.4f}, {oracle}")
    assert copied < 0.05
    assert min(oracle.values()) > 0.95


def test_a_warp_depends_on_seed_and_name_only() -> None:
    first = _warp.pair(ImageFile("a", "x/a.jpg"), 640, 480)
    assert _warp.pair(ImageFile("a", "x/a.jpg"), 640, 480) == first
    assert _warp.pair(ImageFile("b", "x/a.jpg"), 640, 480)[0].recipe != first[0].recipe
    assert _warp.pair(ImageFile("a", "x/a.jpg"), 640, 480, seed=1)[0].recipe != first[0].recipe


def test_the_golden_recipe() -> None:
    """Another warp is another dataset: then the version of the adapters that use it goes up."""
    recipe = _warp.pair(ImageFile("000000000139.jpg", ""), 640, 426)[0].recipe
    assert json.loads(json.dumps(dict(recipe))) == GOLDEN


def test_a_recipe_survives_json() -> None:
    warped, _ = _warp.pair(ImageFile("a", ""), 64, 48)
    image = Image.effect_noise((64, 48), 80).convert("RGB").filter(ImageFilter.BLUR)
    again = json.loads(json.dumps(dict(warped.recipe)))
    assert _warp.apply(image, again).tobytes() == _warp.apply(image, warped.recipe).tobytes()


def test_the_homography_inverts() -> None:
    warped, pair = _warp.pair(ImageFile("a", ""), 640, 480)
    a, b, c, d, e, f, g, h, _ = warped.recipe["to_source"]
    for (x, y), (u, v) in zip(pair.source_points, pair.target_points, strict=True):
        scale = g * u + h * v + 1
        assert (a * u + b * v + c) / scale == pytest.approx(x, abs=0.02)
        assert (d * u + e * v + f) / scale == pytest.approx(y, abs=0.02)


def test_an_image_that_admits_no_warp_says_so() -> None:
    with pytest.raises(ValueError, match="admits no warp"):
        _warp.pair(ImageFile("a", ""), 3000, 5)


GOLDEN: dict[str, object] = {
    "size": [640, 426],
    "to_source": [
        -0.4342477018,
        0.1024321713,
        475.3509182088,
        0.1523192232,
        0.3233329894,
        114.7436162098,
        4.3216e-05,
        -0.0002026277,
        1.0,
    ],
    "brightness": 1.013,
    "contrast": 1.267,
    "saturation": 1.208,
    "gamma": 1.204,
}
