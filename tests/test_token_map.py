"""Token maps: counted against transformers' own formulas, and proven by painting what they say a token looks at."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from vkvdb.models import _checkpoint
from vkvdb.models._checks_vlm import cells_of, processor_of
from vkvdb.models._token_map import TokenMap, best_canvas, even, mosaic, processed, stretched
from vkvdb.paths import Home
from vkvdb.samples import Box
from vkvdb.types import LoadOptions

FAMILIES = list(tiny.VLMS)
GROUND, PAINT = 110, 200  # the grey of an image, and of a painted cell


def sizes(count: int, low: int, high: int, seed: int = 0) -> list[tuple[int, int]]:
    """Random (width, height), as many small as large ones, no side more than five times the other."""
    draw = np.random.default_rng(seed)
    made: list[tuple[int, int]] = []
    while len(made) < count:
        width, height = (round(math.exp(x)) for x in draw.uniform(math.log(low), math.log(high), 2))
        if max(width, height) <= 5 * min(width, height):
            made.append((width, height))
    return made


@pytest.fixture(scope="module")
def models(
    tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Any, Any]]:
    """{family: (its reader, transformers' own processor)}; in the tower each patch sees itself alone."""
    home = Home(tmp_path_factory.mktemp("home"))
    made: dict[str, tuple[Any, Any]] = {}

    def load(family: str) -> tuple[Any, Any]:
        if family not in made:
            checkpoint = _checkpoint.resolve(str(tiny_model(family)), home)
            reader: Any = _checkpoint.load(checkpoint, LoadOptions())
            see_oneself_alone(reader)
            made[family] = reader, processor_of(reader, checkpoint)
        return made[family]

    return load


def see_oneself_alone(reader: Any) -> None:
    """Replace the tower's attention by the identity, so that a token depends on the pixels of its own patch only."""
    body = reader.parts.body
    for module in (body.vision_tower if hasattr(body, "vision_tower") else body.visual).modules():
        if type(module).__name__ in ("CLIPAttention", "SiglipAttention"):
            module.forward = lambda hidden_states, **_: (hidden_states, None)
        elif type(module).__name__ == "Qwen2_5_VLVisionAttention":
            module.forward = lambda hidden_states, **_: hidden_states


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_the_processors_for_200_sizes(models: Any, family: str) -> None:
    reader, processor = models(family)
    chosen = sizes(200, 30, 4000)
    counts = processor._get_num_multimodal_tokens(image_sizes=[(h, w) for w, h in chosen])["num_image_tokens"]
    for (width, height), count in zip(chosen, counts, strict=True):
        told = reader.family.token_map(reader.config, reader.processor, width, height)
        assert told.count == count == sum(1 for _ in told.tokens()), (width, height)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_grids_positions_are_its_cells_in_the_sequence(models: Any, family: str) -> None:
    reader, _ = models(family)
    for width, height in sizes(20, 30, 3000, seed=1):
        told = reader.family.token_map(reader.config, reader.processor, width, height)
        for panel in told.panels:
            grid = told.grid(panel.view, 7)
            assert list(grid.positions) == [7 + k for k, _ in cells_of(told, panel.view)]
            for (_, token), position in zip(cells_of(told, panel.view), range(10**6), strict=False):
                assert (token.row, token.col) == divmod(position, grid.cols)


def test_known_counts(models: Any) -> None:
    """LLaVA-OneVision: 5, 2 and 25 tiles."""
    reader, _ = models("llava_onevision")
    counts = {(640, 480): 2929, (384, 384): 1485, (3000, 2000): 7329}
    for size, count in counts.items():
        assert reader.family.token_map(reader.config, reader.processor, *size).count == count


def test_the_canvas_is_transformers_own() -> None:
    from transformers.image_processing_utils import select_best_resolution

    steps = range(384, 2305, 384)
    for pinpoints in (tiny.NEXT_PINPOINTS, [[h, w] for h in steps for w in steps]):
        for width, height in sizes(300, 20, 5000, seed=2):
            assert best_canvas(width, height, pinpoints) == select_best_resolution((height, width), pinpoints)


def test_kinds_tiles_and_boxes(models: Any) -> None:
    """672 x 336 fills LLaVA-NeXT's 336 x 672 canvas: two tiles side by side, no padding, 14 pixels a cell."""
    reader, _ = models("llava_next")
    tokens = list(reader.family.token_map(reader.config, reader.processor, 672, 336).tokens())
    assert [t.kind for t in tokens].count("newline") == 24
    base, tiles = tokens[:576], tokens[576:]
    assert {t.kind for t in base} == {"base"}
    assert {t.tile for t in base} == {-1}
    assert base[25].box == (28.0, 14.0, 56.0, 28.0)
    assert [t.tile for t in tiles[:49]] == [0] * 24 + [1] * 24 + [-1]
    assert tiles[24].box == (336.0, 0.0, 350.0, 14.0)
    assert tiles[48].box is None
    assert (tiles[49].row, tiles[49].col, tiles[48].row, tiles[48].col) == (1, 0, 0, 48)


def test_padding_is_told_apart() -> None:
    panel = processed(640, 320, {"size": {"shortest_edge": 336}}, 14, padded=True)
    kinds = [t.kind for t in TokenMap(640, 320, (panel,)).tokens()]
    assert kinds[: 24 * 6] == ["padding"] * 24 * 6  # 160 of 640 pixels above, and below
    assert kinds[24 * 6 : -24 * 6] == ["base"] * 24 * 12
    assert (panel.y.window, panel.x.window) == ((-160.0, 480.0), (0.0, 640.0))


def test_gaps_between_tiles() -> None:
    """SigLIP's 384 = 27 x 14 + 6: a tile's last 6 pixels belong to no cell; the even window is half of that off."""
    axis = mosaic(768, canvas=768, resized=768, side=384, patch=14, kept=(0, 54), count=54)
    assert axis.spans[26] == (364.0, 378.0)
    assert axis.spans[27] == (384.0, 398.0)
    assert axis.window == (-3.0, 765.0)
    step = (axis.window[1] - axis.window[0]) / 54
    off = [axis.window[0] + (k + 0.5) * step - (a + b) / 2 for k, (a, b) in enumerate(axis.spans)]
    assert max(map(abs, off)) < 3
    assert even(0.0, 2.0, 3).spans == ((0.0, 2.0), (2.0, 4.0), (4.0, 6.0))
    assert stretched(768, 384, 14).spans[26] == (728.0, 756.0)


def test_a_square_scales_the_boxes_back(models: Any) -> None:
    reader, _ = models("qwen2_5_vl")
    told = reader.family.token_map(reader.config, reader.processor, 600, 200, square=280)
    boxes = [t.box for t in told.tokens()]
    assert len(boxes) == 100
    assert boxes[0] == pytest.approx((0, 0, 60, 20))
    assert boxes[-1] == pytest.approx((540, 180, 600, 200))


def test_the_module_needs_no_torch() -> None:
    code = "import sys, vkvdb.models._token_map; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- painting ---------------------------------------------------------------------------------------------------------


def painted(width: int, height: int, boxes: list[Box]) -> Image.Image:
    """A grey image with some boxes painted; pixels that a box covers in part are blended."""
    cover = np.zeros((height, width))
    for left, top, right, bottom in boxes:
        x, y = np.arange(width), np.arange(height)
        across = np.clip(np.minimum(x + 1, right) - np.maximum(x, left), 0, 1)
        down = np.clip(np.minimum(y + 1, bottom) - np.maximum(y, top), 0, 1)
        cover = np.maximum(cover, down[:, None] * across[None])
    grey = np.round(GROUND + (PAINT - GROUND) * cover).astype(np.uint8)
    return Image.fromarray(np.repeat(grey[:, :, None], 3, axis=2))


@torch.inference_mode()
def features(reader: Any, processor: Any, image: Image.Image) -> torch.Tensor:
    """The model's own features of an image alone in its prompt, (positions, dim)."""
    made = processor(images=[[image]], text=[reader.beginning], return_tensors="pt")
    wanted = {k: v for k, v in made.items() if k in ("pixel_values", "image_sizes", "image_grid_thw")}
    return reader.parts.body.get_image_features(**wanted, return_dict=True).pooler_output[0]


def hits(
    reader: Any, processor: Any, size: tuple[int, int], draw: np.random.Generator, off: int = 0
) -> tuple[int, int]:
    """(cells hit, cells painted) on one image: a cell is hit when, of its neighbourhood, it changes most.

    Every fifth cell of every fifth row is painted at once, one panel after another. `off` paints that many cells
    beside.
    """
    told = reader.map_of(Image.new("RGB", size))
    before = features(reader, processor, Image.new("RGB", size, (GROUND,) * 3))
    assert len(before) == told.count
    hit = count = 0
    for panel in told.panels:
        cells, cols = cells_of(told, panel.view), len(panel.x)
        first, second = (int(draw.integers(0, min(5, len(axis)))) for axis in (panel.y, panel.x))
        chosen = [(r, c) for r in range(first, len(panel.y), 5) for c in range(second, cols - off, 5)]
        boxes = {(r, c): cells[r * cols + c + off][1].box for r, c in chosen}
        # Cells that reach beyond the image can't be painted.
        boxes = {at: b for at, b in boxes.items() if b[0] >= 0 <= b[1] and b[2] <= size[0] and b[3] <= size[1]}
        after = features(reader, processor, painted(*size, list(boxes.values())))
        change = (after - before).norm(dim=-1)[torch.tensor([k for k, _ in cells])].view(-1, cols)
        for r, c in boxes:
            hit += int(change[r, c] >= change[max(0, r - 2) : r + 3, max(0, c - 2) : c + 3].max())
        count += len(boxes)
    return hit, count


@pytest.mark.parametrize("family", FAMILIES)
def test_painting_a_cell_changes_its_own_token_most(models: Any, family: str) -> None:
    draw = np.random.default_rng(0)
    # The first is resampled by LLaVA-OneVision; 200 sizes are painted by the slow test.
    chosen = [(1400, 1000) if family == "llava_onevision" else (700, 500), (333, 250), (150, 320)]
    found = [hits(*models(family), size, draw) for size in chosen]
    hit, count = (sum(column) for column in zip(*found, strict=True))
    assert count >= 20
    assert hit >= 0.99 * count, found


def test_painting_finds_a_map_that_is_one_cell_off(models: Any) -> None:
    hit, count = hits(*models("llava_next"), (400, 300), np.random.default_rng(0), off=1)
    assert count >= 40
    assert hit <= 0.01 * count


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("family", FAMILIES)
def test_painting_200_sizes(models: Any, family: str, capsys: pytest.CaptureFixture[str]) -> None:
    draw = np.random.default_rng(0)
    found = [hits(*models(family), size, draw) for size in sizes(200, 100, 1600, seed=3)]
    hit, count = (sum(column) for column in zip(*found, strict=True))
    with capsys.disabled():
        sys.stdout.write(f"\n{family}: {hit} of {count} painted cells changed most, over {len(found)} sizes\n")
    assert hit >= 0.99 * count
