from __future__ import annotations

import numpy as np
import pytest
import torch
from regions import (
    PROJECTOR,
    SITES,
    TOWER,
    capture,
    directions,
    each_head,
    ellipse,
    encode,
    otsu_by_trying,
    rows_of,
    shape,
    tokens_of,
    toy_samples,
    upsampled,
    whole,
)
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from vkvdb import masks, statistics
from vkvdb.errors import BadOption
from vkvdb.samples import Expression
from vkvdb.tasks import _tokens
from vkvdb.tasks._components import largest_boxes
from vkvdb.tasks.referring import READINGS, Referring
from vkvdb.types import CEILING, POSITION, TokenGrid

METRICS = Referring.metrics
WORDS = "the cat on the left"


def expression(region, *others):
    return Expression(
        id="s", group="all", cluster="0", image="0", text=WORDS, mask=encode(region), others=tuple(map(encode, others))
    )


def informed(region, grid, *, strength=1.0, sites=2, heads=3, dim=6, seed=0, size=None):
    """A capture and its text vectors."""
    towards = directions(sites, heads, dim, seed)
    tokens = tokens_of(region, grid, towards, strength=strength, seed=seed + 1)
    of = {"0": capture(grid, (SITES[:sites], tokens), size=size)}
    return of, {WORDS: {site: towards[n] for n, site in enumerate(SITES[:sites])}}


# --- connected regions against brute force ----------------------------------------------------------------------------

FINE = 41  # odd: lines through cells' centres are lines of pixels


def fine_boxes(cells):
    """Boxes of the regions of a map's fine upsampling, by their number of cells' centres, most first."""
    rows, cols = cells.shape
    fine = upsampled(cells, whole(rows, cols, cols, rows), rows * FINE, cols * FINE) > 0
    labels, count = ndimage.label(fine, np.ones((3, 3)))
    centres = labels[FINE // 2 :: FINE, FINE // 2 :: FINE]
    found = []
    for n in range(1, count + 1):
        at = np.argwhere(labels == n)
        top, left = at.min(0) / FINE
        bottom, right = (at.max(0) + 1) / FINE
        found.append((int((centres == n).sum()), (left, top, right, bottom)))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("bias", [-0.8, -0.2, 0.3])
def test_boxes_are_those_of_the_fine_map(bias):
    generator = np.random.default_rng(0)
    maps = (generator.normal(size=(40, 7, 9)) + bias).astype(np.float32)
    found = largest_boxes(torch.tensor(maps)).numpy()
    compared = 0
    for cells, box in zip(maps, found, strict=True):
        wanted = fine_boxes(cells)
        if len(wanted) == 1 or wanted[0][0] > wanted[1][0]:
            compared += 1
            assert box == pytest.approx(np.array(wanted[0][1]), abs=1.6 / FINE)
    assert compared > 10


def snake(size):
    """A path through all rows, as long as there is."""
    cells = -np.ones((size, size), np.float32)
    cells[::2] = 1
    for row in range(1, size, 2):
        cells[row, -1 if row % 4 == 1 else 0] = 1
    return cells


def test_boxes_of_long_paths_saddles_and_nothing():
    maps = torch.tensor(np.stack([snake(15), -snake(15), -np.ones((15, 15)), np.ones((15, 15))]), dtype=torch.float32)
    boxes = largest_boxes(maps).numpy()
    assert boxes[0] == pytest.approx([0, 0, 15, 15])
    assert boxes[1] == pytest.approx([0, 1, 14, 2]) or boxes[1] == pytest.approx([1, 3, 15, 4]) or boxes[1][3] < 15
    assert np.isnan(boxes[2]).all()
    assert boxes[3] == pytest.approx([0, 0, 15, 15])
    saddle = torch.tensor([[[2.0, -1.0], [-1.0, 2.0]], [[1.0, -2.0], [-2.0, 1.0]]])
    connected, apart = largest_boxes(saddle).numpy()
    assert connected == pytest.approx([0, 0, 2, 2])
    assert (apart[2:] - apart[:2]).max() < 1
    one = torch.full((1, 5, 6), -1.0)
    one[0, 2, 3] = 1
    assert largest_boxes(one)[0].tolist() == [3, 2, 4, 3]
    assert largest_boxes(torch.ones(1, 1, 1))[0].tolist() == [0, 0, 1, 1]


# --- the task against a plain loop ------------------------------------------------------------------------------------


def plain(sample, of, texts, reading, *, site, head):
    """One head's metrics by numpy, torch's interpolation, scipy's labels and scikit-learn."""
    grid, truth = of["0"].grid, masks.decode(sample.mask)
    others = np.any([masks.decode(o) for o in sample.others], 0) & ~truth
    tokens = each_head(of["0"].tokens[site])[head]
    text = texts[WORDS][site].double().numpy()
    text = text[head] if head < len(text) else text.ravel()
    moved = tokens - tokens.mean(0)
    cells = tokens @ text if reading == "dot" else moved @ text / np.linalg.norm(moved, axis=1)
    logits = cells - otsu_by_trying(cells)
    chosen = upsampled(logits, grid, *truth.shape) > 0
    height, width = truth.shape[0] // grid.rows, truth.shape[1] // grid.cols
    pixels = np.kron(cells.reshape(grid.rows, grid.cols), np.ones((height, width)))
    highest = np.unravel_index(cells.argmax(), (grid.rows, grid.cols))
    found = {
        "iou": (chosen & truth).sum() / (chosen | truth).sum(),
        "pointing": float(truth[int((highest[0] + 0.5) * height), int((highest[1] + 0.5) * width)]),
        "auroc": roc_auc_score(truth.ravel(), pixels.ravel()),
        "auroc_objects": roc_auc_score(truth[truth | others], pixels[truth | others]),
    }
    boxes = fine_boxes(logits.reshape(grid.rows, grid.cols))
    if len(boxes) == 1 or boxes[0][0] > boxes[1][0]:
        x0, y0, x1, y1 = np.array(boxes[0][1]) * (width, height, width, height)
        at = np.argwhere(truth)
        (top, left), (bottom, right) = at.min(0), at.max(0) + 1
        common = max(0, min(x1, right) - max(x0, left)) * max(0, min(y1, bottom) - max(y0, top))
        share = common / ((x1 - x0) * (y1 - y0) + (right - left) * (bottom - top) - common)
        if abs(share - 0.5) > 0.02:
            found["acc_box"] = float(share >= 0.5)
    return found


@pytest.mark.parametrize("reading", READINGS)
def test_batched_is_the_plain_loop(reading):
    grid, region = whole(6, 8, 48, 42), shape(48, 42)
    sample = expression(region, shape(48, 42, seed=7), shape(48, 42, seed=8))
    of, texts = informed(region, grid, sites=4, strength=2)
    towards = directions(1, 1, 9, seed=3)
    single = (PROJECTOR,), tokens_of(region, grid, towards, seed=4)
    of["0"] = capture(grid, (of["0"].stacks[0].sites, of["0"].stacks[0].tokens), single)
    texts[WORDS][PROJECTOR] = towards[0]
    got = rows_of(Referring(reading=reading), sample, of, texts)
    assert {metric for metric, _ in got} == set(METRICS)
    boxes = set()
    for site, heads in ((SITES[0], 4), (SITES[1], 4), (SITES[3], 4), (PROJECTOR, 1)):
        for head in range(heads):
            wanted = plain(sample, of, texts, reading, site=site, head=head)
            boxes.add(wanted.get("acc_box"))
            for metric, value in wanted.items():
                assert got[metric, site][0].shape == (heads,)
                assert got[metric, site][0][head] == pytest.approx(value, abs=1e-5), (metric, site, head)
            assert got["ciou", site][0][head] == got["iou", site][0][head]
    assert boxes >= {0.0, 1.0}


def test_pieces_change_nothing(monkeypatch):
    grid, region = whole(9, 9, 56, 56), shape(56, 56)
    of, texts = informed(region, grid, sites=5)
    sample = expression(region, shape(56, 56, 3))
    at_once = rows_of(Referring(), sample, of, texts)
    monkeypatch.setattr(_tokens, "_ROOM", ({"cpu": 1}, 0))
    monkeypatch.setattr(_tokens, "_AT_ONCE", ({"cpu": 1}, 0))
    one_by_one = rows_of(Referring(), sample, of, texts)
    assert at_once.keys() == one_by_one.keys()
    for key, (values, weights) in at_once.items():
        assert values == pytest.approx(one_by_one[key][0], abs=1e-3)
        assert weights == pytest.approx(one_by_one[key][1], rel=1e-3)


# --- what the numbers mean --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reading", READINGS)
def test_an_oracle_reaches_the_ceiling_and_noise_does_not(reading):
    grid = whole(14, 14, 112, 112)
    regions = [ellipse(112, 112, *np.random.default_rng(n).uniform(30, 80, 2), 20, 16) for n in range(8)]
    found = {0: [], 40: []}
    for n, region in enumerate(regions):
        sample = expression(region, ellipse(112, 112, 95, 95, 10, 10), ellipse(112, 112, 12, 12, 8, 8))
        for strength, kept in found.items():
            kept.append(rows_of(Referring(reading=reading), sample, *informed(region, grid, strength=strength, seed=n)))

    def mean(strength, metric, site):
        return np.mean([r[metric, site][0] for r in found[strength]], 0)

    assert mean(40, "iou", CEILING) > 0.9
    # Cosines of what is only in part in the region are nearly as high as of what is in it wholly.
    short = 0.25 if reading == "centred" else 0.1
    assert mean(40, "iou", SITES[0]).min() > mean(40, "iou", CEILING) - short
    for metric in ("acc_box", "pointing", "auroc", "auroc_objects"):
        assert mean(40, metric, CEILING) > 0.97
        assert mean(40, metric, SITES[0]).min() > 0.95
    share = np.mean([region.mean() for region in regions])
    assert mean(0, "iou", SITES[0]) == pytest.approx(share / (1 + share), abs=0.05)
    assert mean(0, "acc_box", SITES[0]).max() < 0.2
    assert mean(0, "pointing", SITES[0]).mean() == pytest.approx(share, abs=0.2)
    assert mean(0, "auroc", SITES[0]) == pytest.approx(0.5, abs=0.1)
    assert mean(0, "auroc_objects", SITES[0]) == pytest.approx(0.5, abs=0.2)
    assert mean(0, "auroc", POSITION) > 0.6


def test_some_object_is_not_the_one_that_is_meant():
    grid = whole(14, 14, 112, 112)
    target, other = ellipse(112, 112, 30, 60, 18, 18), ellipse(112, 112, 80, 60, 18, 18)
    got = rows_of(Referring(), expression(target, other), *informed(target | other, grid, strength=40))
    for site in SITES[:2]:
        assert got["auroc", site][0].min() > 0.9
        assert got["auroc_objects", site][0] == pytest.approx(0.5, abs=0.2)


def test_ciou_is_sum_of_intersections_over_sum_of_unions_and_iou_a_mean():
    grid, values, unions, hits = whole(8, 8, 60, 60), [], [], 0.0
    for n in range(3):
        region = shape(60, 60, n)
        got = rows_of(Referring(), expression(region), *informed(region, grid, seed=n))
        assert got["iou", SITES[0]][1] == pytest.approx(1)
        value, union = got["ciou", SITES[0]]
        values.append(value[0])
        unions.append(union[0])
        hits += round(value[0] * union[0])
    assert statistics.mean(values, unions, ["all"] * 3) == pytest.approx(hits / sum(unions))
    assert statistics.mean(values, [1.0] * 3, ["all"] * 3) == pytest.approx(np.mean(values))


# --- where it is not defined ------------------------------------------------------------------------------------------


def test_a_site_without_text_has_no_row():
    grid, region = whole(6, 6, 36, 36), shape(36, 36)
    towards = directions(2, 2)
    of = {"0": capture(grid, ((TOWER, SITES[0]), tokens_of(region, grid, towards)))}
    got = rows_of(Referring(), expression(region, ~region), of, {WORDS: {SITES[0]: towards[1]}})
    for metric in METRICS:
        assert np.isnan(got[metric, TOWER][0]).all()
        for site in (SITES[0], POSITION, CEILING):
            assert np.isfinite(got[metric, site][0]).all()


def test_no_target_no_others_and_all_target():
    grid, region, everything = whole(6, 6, 36, 36), shape(36, 36), np.ones((36, 36), bool)
    of, texts = informed(region, grid)
    got = rows_of(Referring(), expression(~everything, region), of, texts)
    assert (got["iou", SITES[0]][0] == 0).all()
    assert np.isnan(got["iou", CEILING][0])
    assert all(np.isnan(got[m, SITES[0]][0]).all() for m in METRICS if not m.endswith("iou"))
    got = rows_of(Referring(), expression(region), of, texts)
    assert np.isnan(got["auroc_objects", SITES[0]][0]).all()
    assert np.isfinite(got["auroc", SITES[0]][0]).all()
    # An object that the target covers is none to tell it from.
    covered = rows_of(Referring(), expression(region, region), of, texts)
    assert np.isnan(covered["auroc_objects", SITES[0]][0]).all()
    got = rows_of(Referring(), expression(everything, region), of, texts)
    assert np.isnan(got["auroc", SITES[0]][0]).all()
    assert all(got[m, CEILING][0] == 1 for m in ("iou", "ciou", "acc_box", "pointing"))


def test_equal_tokens_choose_nothing():
    grid, region = whole(6, 6, 36, 36), shape(36, 36)
    of, texts = informed(region, grid)
    of["0"].stacks[0].tokens[:] = 3.0
    for reading in READINGS:
        got = rows_of(Referring(reading=reading), expression(region, ~region), of, texts)
        assert (got["iou", SITES[0]][0] == 0).all()
        assert (got["acc_box", SITES[0]][0] == 0).all()
        assert got["auroc", SITES[0]][0] == pytest.approx(0.5)
        assert got["auroc_objects", SITES[0]][0] == pytest.approx(0.5)
        assert got["pointing", SITES[0]][0] == pytest.approx(region.mean(), abs=0.05)


def test_an_object_of_one_cell():
    grid, region = whole(8, 8, 64, 64), np.zeros((64, 64), bool)
    region[24:32, 40:48] = True
    got = rows_of(Referring(), expression(region), *informed(region, grid, strength=100))
    for site in (*SITES[:2], CEILING):
        assert (got["pointing", site][0] == 1).all()
        assert (got["acc_box", site][0] == 1).all()
    # Smaller than half a cell, it is below what the grid can show.
    speck = np.zeros((64, 64), bool)
    speck[26:28, 42:44] = True
    got = rows_of(Referring(), expression(speck), *informed(speck, grid))
    assert got["iou", CEILING][0] == got["acc_box", CEILING][0] == 0
    assert all(np.isfinite(v).all() for (m, _), (v, _) in got.items() if m != "auroc_objects")


def test_padding_is_not_pointed_at():
    region = shape(60, 30)
    padded = TokenGrid(12, 12, (0.0, -15.0, 60.0, 45.0))
    of, texts = informed(region, padded, strength=30, size=(60, 30))
    before = rows_of(Referring(), expression(region), of, texts)
    of["0"].stacks[0].tokens[:, :, :2] = 500 * directions()[:, :, None, None]
    after = rows_of(Referring(), expression(region), of, texts)
    for key, (values, _) in before.items():
        if key[0] not in ("acc_box", "auroc_objects"):
            assert values == pytest.approx(after[key][0], abs=1e-4)


def test_parameters_are_checked():
    for wrong in ({"reading": "cosine"}, {"box_iou": 0.0}, {"box_iou": 1.5}, {"ellipse": -1.0}):
        with pytest.raises(BadOption, match=next(iter(wrong))):
            Referring(**wrong)
    task = Referring()
    needs = task.needs(expression(shape(8, 8)))
    assert (needs.images, needs.texts) == (("0",), (WORDS,))


# --- the toy world ----------------------------------------------------------------------------------------------------


def test_on_the_toy_world(tmp_path, monkeypatch):
    made = toy_samples(tmp_path, monkeypatch, categories=0, scenes=8)
    samples = [s for s in made if isinstance(s, Expression)]
    assert len(samples) > 8
    found = {0: [], 40: []}
    for n, sample in enumerate(samples):
        region = masks.decode(sample.mask)
        grid = whole(14, 14, region.shape[1], region.shape[0])
        towards = directions(1, 2, 8, seed=n)
        for strength, kept in found.items():
            tokens = tokens_of(region, grid, towards, strength=strength, seed=n)
            of = {sample.image: capture(grid, ((SITES[0],), tokens), name=sample.image)}
            got = rows_of(Referring(), sample, of, {sample.text: {SITES[0]: towards[0]}})
            kept.append([got[m, site][0].mean() for m in METRICS for site in (SITES[0], CEILING)])
    oracle, noise = (np.array(kept).mean(0).reshape(len(METRICS), 2) for kept in (found[40], found[0]))
    assert (oracle[:, 0] > oracle[:, 1] - 0.1).all()
    assert (oracle[:, 1] > 0.7).all()
    assert noise[:, 0] == pytest.approx([0.05, 0.05, 0.05, 0.05, 0.5, 0.5], abs=0.1)
