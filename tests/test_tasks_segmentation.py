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
)  # fmt: skip
from sklearn.metrics import average_precision_score, roc_auc_score

from vkvdb import masks, statistics
from vkvdb.errors import BadOption
from vkvdb.samples import Image
from vkvdb.tasks import _ranking, _tokens
from vkvdb.tasks._masks import area_by_cell, cells_seen
from vkvdb.tasks.segmentation import Segmentation
from vkvdb.types import CEILING, POSITION, TokenGrid

METRICS = Segmentation.metrics


def image(region, ignore=None, **more):
    given = {"id": "s", "group": "cat", "cluster": "0", "image": "0", "category": "cat", **more}
    return Image(mask=encode(region), ignore=None if ignore is None else encode(ignore), **given)


def informed(region, grid, *, strength=1.0, sites=2, heads=3, dim=6, seed=0, dtype=torch.float32, size=None):
    """A capture and its text vectors."""
    towards = directions(sites, heads, dim, seed)
    tokens = tokens_of(region, grid, towards, strength=strength, seed=seed + 1).to(dtype)
    of = {"0": capture(grid, (SITES[:sites], tokens), size=size)}
    return of, {"cat": {site: towards[n].to(dtype) for n, site in enumerate(SITES[:sites])}}


# --- Otsu and ranking against brute force and scikit-learn ------------------------------------------------------------


@pytest.mark.parametrize("kind", ["normal", "two modes", "ties", "constant", "two values", "around a bias"])
def test_otsu_is_the_best_of_all_splits(kind):
    generator = np.random.default_rng(0)
    values = {
        "normal": generator.normal(size=(3, 5, 60)),
        "two modes": generator.normal(size=(3, 5, 60)) + 4 * (generator.random((3, 5, 60)) < 0.2),
        "ties": generator.integers(0, 6, (3, 5, 60)).astype(float),
        "constant": np.full((3, 5, 60), 2.5),
        "two values": np.tile([1.0, 1.0, 3.0], (3, 5, 20)),
        "around a bias": generator.normal(size=(3, 5, 60)) + 300,
    }[kind]
    given = torch.tensor(values, dtype=torch.float32)
    found = _ranking.otsu(given).numpy()
    for at in np.ndindex(3, 5):
        wanted = otsu_by_trying(given[at].double().numpy())
        assert ((given[at].numpy() > found[at]) == (given[at].numpy() > wanted)).all()
    assert _ranking.otsu(given[..., :1]).numpy() == pytest.approx(given[..., 0].numpy())


@pytest.mark.parametrize("ties", [False, True])
def test_ranking_is_scikit_learns(ties):
    generator = np.random.default_rng(1)
    scores = generator.normal(size=(4, 3, 50)).round(0 if ties else 9)
    positive, negative = generator.random((2, 51)) * (generator.random((2, 51)) < 0.6)
    areas, precisions = _ranking.ranking(torch.tensor(scores), positive, negative)
    for at in np.ndindex(4, 3):
        s = np.tile(np.append(scores[at], scores.min() - 1), 2)
        labels, weights = np.repeat([1, 0], 51), np.concatenate([positive, negative])
        assert areas[at] == pytest.approx(roc_auc_score(labels, s, sample_weight=weights), abs=1e-9)
        assert precisions[at] == pytest.approx(average_precision_score(labels, s, sample_weight=weights), abs=1e-9)


def test_ranking_of_one_kind_is_not_defined():
    nothing, something = np.zeros(10), np.ones(10)
    for positive, negative in ((nothing, something), (something, nothing)):
        assert all(np.isnan(found).all() for found in _ranking.ranking(torch.randn(2, 9), positive, negative))


def test_area_by_cell_is_all_there_is():
    region = shape(50, 40)
    for window in ((0.0, 0.0, 50.0, 40.0), (-3.0, 5.0, 30.0, 47.0), (10.5, 3.25, 20.0, 33.0)):
        areas = area_by_cell(region, TokenGrid(7, 6, window))
        assert areas.sum() == pytest.approx(region.sum())
        assert (areas >= 0).all()
    assert area_by_cell(region, whole(7, 6, 50, 40))[-1] == 0


# --- the task against a plain loop ------------------------------------------------------------------------------------


def plain(sample, of, texts, site, head):
    """One head's metrics by numpy, torch's interpolation and scikit-learn."""
    grid, truth = of["0"].grid, masks.decode(sample.mask)
    valid = np.ones_like(truth) if sample.ignore is None else ~masks.decode(sample.ignore)
    tokens = each_head(of["0"].tokens[site])[head]
    text = texts["cat"][site].double().numpy()
    text = text[head] if head < len(text) else text.ravel()
    moved = tokens - tokens.mean(0)
    found = {}
    for reading, cells in (("", tokens @ text), ("_centred", moved @ text / np.linalg.norm(moved, axis=1))):
        chosen = upsampled(cells - otsu_by_trying(cells), grid, *truth.shape) > 0
        union = ((chosen | truth) & valid).sum()
        found[f"iou{reading}"] = (chosen & truth & valid).sum() / union
        # Cells divide the image evenly here: pixel by pixel is cell by cell.
        height, width = truth.shape[0] // grid.rows, truth.shape[1] // grid.cols
        pixels = np.kron(cells.reshape(grid.rows, grid.cols), np.ones((height, width)))
        found[f"auroc{reading}"] = roc_auc_score(truth[valid], pixels[valid])
        found[f"ap{reading}"] = average_precision_score(truth[valid], pixels[valid])
    return found


def test_batched_is_the_plain_loop():
    grid, region = whole(6, 8, 48, 42), shape(48, 42)
    void = shape(48, 42, seed=5) & ~region
    sample = image(region, void)
    of, texts = informed(region, grid, sites=3)
    towards = directions(1, 1, 9, seed=3)
    single = (PROJECTOR,), tokens_of(region, grid, towards, seed=4)
    of["0"] = capture(grid, (of["0"].stacks[0].sites, of["0"].stacks[0].tokens), single)
    texts["cat"][PROJECTOR] = towards[0]
    got = rows_of(Segmentation(), sample, of, texts)
    assert {metric for metric, _ in got} == set(METRICS)
    for site, heads in ((SITES[0], 4), (SITES[2], 4), (PROJECTOR, 1)):
        for head in range(heads):
            wanted = plain(sample, of, texts, site, head)
            for metric in METRICS:
                assert got[metric, site][0].shape == (heads,)
                assert got[metric, site][0][head] == pytest.approx(wanted[metric], abs=1e-5), (metric, site, head)


def test_pieces_change_nothing(monkeypatch):
    grid, region = whole(9, 9, 56, 56), shape(56, 56)
    of, texts = informed(region, grid, sites=5)
    at_once = rows_of(Segmentation(), image(region), of, texts)
    monkeypatch.setattr(_tokens, "_ROOM", ({"cpu": 1}, 0))
    monkeypatch.setattr(_tokens, "_AT_ONCE", ({"cpu": 1}, 0))
    one_by_one = rows_of(Segmentation(), image(region), of, texts)
    assert at_once.keys() == one_by_one.keys()
    for key, (values, weights) in at_once.items():
        assert values == pytest.approx(one_by_one[key][0], abs=1e-3)
        assert weights == pytest.approx(one_by_one[key][1], rel=1e-3)


# --- what the numbers mean --------------------------------------------------------------------------------------------


def test_an_oracle_reaches_the_ceiling_and_noise_does_not():
    grid, regions = whole(14, 14, 112, 112), [shape(112, 112, n) for n in range(6)]
    oracle, noise = (
        [
            rows_of(Segmentation(), image(region), *informed(region, grid, strength=strength, seed=n))
            for n, region in enumerate(regions)
        ]
        for strength in (40, 0)
    )

    def mean(rows, metric, site):
        return np.mean([r[metric, site][0] for r in rows], 0)

    for reading in ("", "_centred"):
        assert mean(oracle, f"iou{reading}", CEILING) > 0.93
        # Cosines of what is only in part in the region are nearly as high as of what is in it wholly.
        short = 0.15 if reading else 0.08
        assert mean(oracle, f"iou{reading}", SITES[0]).min() > mean(oracle, f"iou{reading}", CEILING) - short
        assert mean(oracle, f"auroc{reading}", SITES[0]).min() > 0.98
        assert mean(oracle, f"ap{reading}", SITES[0]).min() > 0.95
        # Chance: half of the image is chosen, and nothing is ranked.
        share = np.mean([region.mean() for region in regions])
        assert mean(noise, f"iou{reading}", SITES[0]) == pytest.approx(share / (share + 1), abs=0.06)
        assert mean(noise, f"auroc{reading}", SITES[0]) == pytest.approx(0.5, abs=0.06)
        assert mean(noise, f"ap{reading}", SITES[0]) == pytest.approx(share, abs=0.06)
        assert 0.3 < mean(oracle, f"iou{reading}", POSITION) < 0.7
        assert mean(oracle, f"auroc{reading}", POSITION) > 0.7


def test_centred_sees_past_long_tokens():
    grid, region = whole(14, 14, 112, 112), shape(112, 112)
    of, texts = informed(region, grid, strength=4, sites=1)
    tokens = of["0"].stacks[0].tokens
    # A few long tokens in a corner.
    tokens[:, :, 0, :3] += 40 * directions(1)[:, :, None]
    got = rows_of(Segmentation(), image(region), of, texts)
    assert got["iou", SITES[0]][0].max() < 0.1
    assert got["iou_centred", SITES[0]][0].min() > 0.6


def test_weighted_mean_is_sum_of_intersections_over_sum_of_unions():
    grid, values, weights, hits = whole(8, 8, 60, 60), [], [], 0.0
    for n in range(3):
        region = shape(60, 60, n)
        value, weight = rows_of(Segmentation(), image(region), *informed(region, grid, seed=n))["iou", SITES[0]]
        values.append(value[0])
        weights.append(weight[0])
        hits += round(value[0] * weight[0])
    assert statistics.mean(values, weights, ["cat"] * 3) == pytest.approx(hits / sum(weights))


def test_the_ellipse_is_one():
    size, region = (80, 60), shape(80, 60)
    of, texts = informed(region, whole(30, 40, *size))
    drawn = ellipse(*size, 40, 30, 28, 21)
    value = rows_of(Segmentation(), image(drawn), of, texts)["iou", POSITION][0]
    assert value > 0.97
    smaller = rows_of(Segmentation(ellipse=0.35), image(drawn), of, texts)["iou", POSITION][0]
    assert smaller == pytest.approx(0.25, abs=0.02)


# --- where it is not defined ------------------------------------------------------------------------------------------


def test_a_site_without_text_has_no_value():
    grid, region = whole(6, 6, 36, 36), shape(36, 36)
    sites, towards = (TOWER, SITES[0], SITES[1]), directions(3, 2)
    of = {"0": capture(grid, (sites, tokens_of(region, grid, towards)))}
    got = rows_of(Segmentation(), image(region), of, {"cat": {SITES[0]: towards[1]}})
    for metric in METRICS:
        assert np.isnan(got[metric, TOWER][0]).all()
        assert np.isnan(got[metric, SITES[1]][0]).all()
        assert np.isfinite(got[metric, SITES[0]][0]).all()
    # A model without any text side: what needs no words is there.
    got = rows_of(Segmentation(), image(region), of, {"cat": {}})
    assert {site for (_, site), (v, _) in got.items() if np.isfinite(v).all()} == {POSITION, CEILING}


def test_no_object_all_void_and_all_object():
    grid, region, everything = whole(6, 6, 36, 36), shape(36, 36), np.ones((36, 36), bool)
    of, texts = informed(region, grid)
    got = rows_of(Segmentation(), image(~everything), of, texts)
    assert (got["iou", SITES[0]][0] == 0).all()  # what is chosen is wrong
    assert (got["iou", SITES[0]][1] > 0).all()
    assert np.isnan(got["iou", CEILING][0])
    assert all(np.isnan(got[m, SITES[0]][0]).all() for m in METRICS if not m.startswith("iou"))
    got = rows_of(Segmentation(), image(region, everything), of, texts)
    assert all(np.isnan(v).all() for v, _ in got.values())
    got = rows_of(Segmentation(), image(everything), of, texts)
    assert got["iou", CEILING][0] == 1
    assert np.isnan(got["auroc", SITES[0]][0]).all()


def test_equal_tokens_choose_nothing():
    grid, region = whole(6, 6, 36, 36), shape(36, 36)
    of, texts = informed(region, grid)
    of["0"].stacks[0].tokens[:] = 3.0
    got = rows_of(Segmentation(), image(region), of, texts)
    assert (got["iou", SITES[0]][0] == 0).all()
    assert (got["iou_centred", SITES[0]][0] == 0).all()
    assert got["auroc", SITES[0]][0] == pytest.approx(0.5)
    assert got["ap", SITES[0]][0] == pytest.approx(region.mean())


def test_an_image_without_a_mask_or_a_class_gives_nothing():
    grid, region = whole(6, 6, 36, 36), shape(36, 36)
    of, texts = informed(region, grid)
    nameless = image(region, category="")
    bare = Image(id="s", group="", cluster="", image="0", category="cat")
    assert rows_of(Segmentation(), nameless, of, texts) == rows_of(Segmentation(), bare, of, texts) == {}
    assert Segmentation().needs(nameless).texts == ()
    assert Segmentation().needs(image(region)).texts == ("cat",)


def test_void_is_in_no_count():
    grid, region = whole(10, 10, 60, 60), shape(60, 60)
    void = np.zeros((60, 60), bool)
    void[:30] = True
    of, texts = informed(region, grid)
    half = rows_of(Segmentation(), image(region, void), of, texts)
    lower = rows_of(Segmentation(), image(region & ~void, void), of, texts)
    for key in half:
        if key[1] != CEILING:
            assert np.array_equal(half[key], lower[key])
    assert (half["iou", SITES[0]][1] < rows_of(Segmentation(), image(region), of, texts)["iou", SITES[0]][1]).all()


def test_padding_has_no_say_and_a_crop_sees_nothing_outside():
    region = shape(60, 30)
    padded = TokenGrid(12, 12, (0.0, -15.0, 60.0, 45.0))
    assert cells_seen((60, 30), padded).sum() == 6 * 12
    of, texts = informed(region, padded, strength=30, size=(60, 30))
    before = rows_of(Segmentation(), image(region), of, texts)
    of["0"].stacks[0].tokens[:, :, :2] = 500.0
    after = rows_of(Segmentation(), image(region), of, texts)
    for key, (values, _) in before.items():
        assert values == pytest.approx(after[key][0], abs=1e-4)
    crop = TokenGrid(10, 10, (0.0, 0.0, 30.0, 30.0))
    of, texts = informed(region, crop, strength=30, size=(60, 30))
    got = rows_of(Segmentation(), image(region), of, texts)
    seen = region[:, :30].sum() / region.sum()
    assert got["iou", CEILING][0] == pytest.approx(seen, abs=0.05)
    assert got["auroc", CEILING][0] < 1  # pixels outside rank last


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_any_dtype_and_the_tokens_stay_as_they_are(dtype):
    grid, region = whole(9, 9, 56, 56), shape(56, 56)
    with torch.inference_mode():
        of, texts = informed(region, grid, dtype=dtype)
        before = of["0"].stacks[0].tokens.clone()
    got = rows_of(Segmentation(), image(region), of, texts)
    assert all(np.isfinite(v).all() for v, _ in got.values())
    assert torch.equal(before, of["0"].stacks[0].tokens)


def test_parameters_are_checked():
    for wrong in (0.0, 3.0):
        with pytest.raises(BadOption, match="ellipse"):
            Segmentation(ellipse=wrong)


# --- the toy world ----------------------------------------------------------------------------------------------------


def test_on_the_toy_world(tmp_path, monkeypatch):
    made = toy_samples(tmp_path, monkeypatch, pairs=4)
    samples = [s for s in made if isinstance(s, Image)]
    assert len(samples) == 24
    oracle, noise, ceiling = [], [], []
    for n, sample in enumerate(samples):
        region = masks.decode(sample.mask)
        grid = whole(14, 14, region.shape[1], region.shape[0])
        towards = directions(1, 2, 8, seed=n)
        texts = {sample.category: {SITES[0]: towards[0]}}
        for strength, kept in ((40.0, oracle), (0.0, noise)):
            tokens = tokens_of(region, grid, towards, strength=strength, seed=n)
            of = {sample.image: capture(grid, ((SITES[0],), tokens), name=sample.image)}
            got = rows_of(Segmentation(), sample, of, texts)
            kept.append([got["iou", SITES[0]][0].mean(), got["auroc", SITES[0]][0].mean()])
        ceiling.append(got["iou", CEILING][0])
    assert np.mean(oracle, 0)[0] > np.mean(ceiling) - 0.1
    assert np.mean(oracle, 0)[1] > 0.95
    assert np.mean(noise, 0)[0] < 0.35
    assert np.mean(noise, 0)[1] == pytest.approx(0.5, abs=0.05)
