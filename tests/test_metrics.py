from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vkvdb import metrics
from vkvdb.types import TokenGrid

DRAW = np.random.default_rng(0)


def brute_shares(mask: np.ndarray, grid: TokenGrid, fine: int) -> np.ndarray:
    """Shares by sampling every pixel `fine` x `fine` times: exact where edges fall on the samples' borders."""
    height, width = mask.shape
    left, top, right, bottom = grid.window
    step = 1 / fine
    xs = np.arange(left, right, step) + step / 2
    ys = np.arange(top, bottom, step) + step / 2
    shares = np.zeros((grid.rows, grid.cols))
    per_cell = len(xs) / grid.cols * len(ys) / grid.rows
    for y in ys:
        for x in xs:
            if 0 <= x < width and 0 <= y < height and mask[int(y), int(x)]:
                cell = grid.cell(x, y)
                assert cell is not None
                shares[cell] += 1 / per_cell
    return shares


@pytest.mark.parametrize(
    ("rows", "cols", "window"),
    [
        (3, 4, (0.0, 0.0, 12.0, 9.0)),  # whole pixels
        (4, 5, (0.0, 0.0, 12.0, 9.0)),  # cells of 2.4 x 2.25 pixels
        (2, 3, (1.5, 0.75, 10.5, 8.75)),  # cropped inside pixels
        (4, 4, (-2.0, -3.5, 14.0, 12.5)),  # padded
    ],
)
def test_cell_shares_are_exact_areas(rows, cols, window):
    mask = DRAW.random((9, 12)) < 0.5
    grid = TokenGrid(rows, cols, window)
    assert np.allclose(metrics.cell_shares(mask, grid), brute_shares(mask, grid, 20), atol=1e-12)


def test_cell_shares_of_everything_are_one_inside_and_less_over_the_edge():
    assert np.allclose(metrics.cell_shares(np.ones((7, 5), bool), TokenGrid(3, 2, (0, 0, 5, 7))), 1)
    half_outside = metrics.cell_shares(np.ones((4, 4), bool), TokenGrid(1, 2, (-2, 0, 6, 4)))
    assert np.allclose(half_outside, 0.5)


@pytest.mark.parametrize(
    ("rows", "cols", "height", "width"), [(3, 5, 30, 31), (14, 14, 37, 112), (1, 2, 4, 9), (4, 4, 3, 2)]
)
def test_upsampling_is_torchs(rows, cols, height, width):
    cells = DRAW.normal(size=(rows, cols))
    ys, xs, down, across = metrics.upsampling(TokenGrid(rows, cols, (0, 0, width, height)), (width, height))
    assert (list(ys), list(xs)) == (list(range(height)), list(range(width)))
    wanted = torch.nn.functional.interpolate(
        torch.tensor(cells)[None, None], size=(height, width), mode="bilinear", align_corners=False
    )[0, 0]
    assert np.allclose(down @ cells @ across.T, wanted, atol=1e-12)


def test_upsampling_covers_the_pixels_whose_centre_is_in_window_and_image():
    ys, xs, down, across = metrics.upsampling(TokenGrid(2, 2, (1.5, -3.0, 9.2, 5.4)), (8, 6))
    assert (ys[0], ys[-1], xs[0], xs[-1]) == (0, 4, 1, 7)
    assert (down.shape, across.shape) == ((5, 2), (7, 2))
    assert np.allclose(down.sum(1), 1)
    # Without a size the window alone counts.
    ys, xs, *_ = metrics.upsampling(TokenGrid(2, 2, (1.5, -3.0, 9.2, 5.4)), None)
    assert (ys[0], ys[-1], xs[0], xs[-1]) == (-3, 4, 1, 8)


def test_inside_agrees_with_the_grid():
    grid = TokenGrid(3, 4, (2.0, 1.0, 10.0, 7.0))
    points = DRAW.uniform(-1, 12, (200, 2))
    points[:4] = [[2, 1], [10, 7], [2, 7], [9.999, 6.999]]
    assert metrics.inside(points, grid).tolist() == [grid.cell(x, y) is not None for x, y in points]


def test_right_points_count_the_border_as_dift_does():
    truth = np.array([[10.0, 10.0], [10.0, 10.0], [10.0, 10.0], [10.0, 10.0]])
    predicted = np.array([[13.0, 10.0], [10.0, 13.0001], [12.0, 12.0], [13.0, 14.0]])
    assert metrics.right_points(predicted, truth, 30.0, 0.1).tolist() == [True, False, True, False]
    assert metrics.right_points(np.stack([truth, predicted]), truth, 30.0, 0.1).shape == (2, 4)


def test_longer_side():
    assert metrics.longer_side((10.0, 20.0, 40.0, 25.0)) == 30.0


def test_iou_of_nothing_is_not_defined():
    assert metrics.iou([1, 0, 0], [4, 4, 0]).tolist()[:2] == [0.25, 0.0]
    assert math.isnan(metrics.iou([0], [0])[0])
