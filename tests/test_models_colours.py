"""Colour statistics: six numbers a cell, on the grid of raw pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from vkvdb.errors import BadOption
from vkvdb.models._checkpoint import load, resolve, variants
from vkvdb.paths import Home
from vkvdb.types import LoadOptions, TokenGrid, TokenStack


def read(
    home: Home, array: np.ndarray, name: str = "colours", square: int | None = None
) -> tuple[TokenGrid, TokenStack]:
    ((grid, (stack,)),) = load(resolve(name, home), LoadOptions(square=square)).capture([Image.fromarray(array)], [])
    return grid, stack


def test_a_token_is_mean_and_spread_of_its_cell(home: Home) -> None:
    array = np.zeros((192, 192, 3), dtype=np.uint8)
    array[8:16, 16:24] = (255, 0, 51)
    array[0:4, 0:8] = (255, 255, 0)  # half of the first cell
    grid, stack = read(home, array)
    assert (grid.rows, grid.cols, stack.tokens.shape) == (24, 24, (1, 1, 24, 24, 6))
    tokens = stack.tokens[0, 0]
    assert torch.allclose(tokens[1, 2], torch.tensor([1.0, -1.0, -0.6, 0.0, 0.0, 0.0]), atol=1e-6)
    assert torch.allclose(tokens[0, 0], torch.tensor([0.0, 0.0, -1.0, 1.0, 1.0, 0.0]), atol=1e-6)
    assert grid.centre(1, 2) == (20.0, 12.0)


def test_it_is_what_the_cells_of_raw_pixels_give(home: Home) -> None:
    array = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    (grid, stack), (whole, pixels) = (read(home, array, name, square=64) for name in ("colours", "pixels"))
    assert grid == whole
    cells = pixels.tokens.unflatten(-1, (64, 3))
    expected = torch.cat([cells.mean(-2), cells.std(-2, correction=0)], -1)
    torch.testing.assert_close(stack.tokens, expected, atol=1e-5, rtol=0)
    # No arrangement inside a cell is told from another.
    turned = array[:64, :64].copy()
    turned[:8, :8] = turned[:8, :8][::-1, ::-1]
    assert (turned != array[:64, :64]).any()
    (_, a), (_, b) = (read(home, one, square=64) for one in (array[:64, :64], turned))
    torch.testing.assert_close(a.tokens, b.tokens, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (LoadOptions(square=7), "a cell is 8 pixels"),
        (LoadOptions(prefix="Look."), "read no text"),
        (LoadOptions(interventions=("knockout:image->image",)), "no decoder to change"),
    ],
)
def test_what_it_has_not_is_refused(home: Home, options: LoadOptions, says: str) -> None:
    with pytest.raises(BadOption, match=says):
        load(resolve("colours", home), options)


def test_it_has_no_files_and_no_controls_of_its_own(home: Home) -> None:
    found = resolve("colours", home)
    assert (found.path, found.files, variants(found)) == (None, {}, [])
    assert found.code.cells({}, {}, 640, 480, None) == 576
