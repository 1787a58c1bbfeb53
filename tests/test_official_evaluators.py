"""The field's evaluators and this project on the same predictions: equal to 1e-6.

The evaluators were run outside this tree on what `official.py` makes from seeds; goldens/official.json has what they
said, which code at which commit, and which part of it ran. Nothing of them is copied here. pycocotools is a dependency
and is asked directly.

lichengunc/refer measures no masks (its `evaluation` is of generated sentences). Segmentation of its data is counted as
by MAttNet's tools/eval_masks.py, of refer's author (cIoU), and by LAVT's test.py (cIoU and mIoU).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import official
import pytest
import synthetic
import torch
from pycocotools.coco import COCO

from vkvdb import masks, metrics, statistics
from vkvdb.catalog import Catalog
from vkvdb.jobs import CaptureSpec, Job, Provenance, Score
from vkvdb.samples import Clip, ImagePair
from vkvdb.store import ScoreRows, Store
from vkvdb.tasks import foreground, temporal_correspondence
from vkvdb.tasks._masks import Region
from vkvdb.tasks.correspondence import Correspondence
from vkvdb.types import Capture, Site, TokenGrid, TokenStack

GOLDENS = json.loads((Path(__file__).parent / "goldens/official.json").read_text(encoding="utf-8"))
SITE = Site("decoder", 0, "key")


def said(evaluator):
    """What an evaluator said."""
    return GOLDENS[evaluator]["values"]


def same(value):
    return pytest.approx(value, abs=1e-6, rel=0)


def pixels(height, width):
    """A grid whose cells are the pixels: predictions pass through it unchanged."""
    return TokenGrid(height, width, (0.0, 0.0, float(width), float(height)))


def test_every_golden_names_its_evaluator():
    for golden in GOLDENS.values():
        assert golden.keys() == {"repo", "commit", "ran", "values"}
        assert len(golden["commit"]) == 40


# --- J and F: davis2017-evaluation ------------------------------------------------------------------------------------


def clip(name, truth, objects):
    of_frames = tuple(tuple(masks.encode(frame == n + 1) for n in range(objects)) for frame in truth)
    frames = tuple(f"{name}-{t}" for t in range(len(truth)))
    return Clip(id=name, group="davis", cluster=name, frames=frames, objects=of_frames)


def test_j_and_f_are_davis_2017_evaluations():
    values, weights, by_object = [], [], {"j": {}, "f": {}}
    for name, (predicted, truth) in official.clips().items():
        objects = int(truth[0].max())
        grid = pixels(*truth[0].shape)

        def score(kept, name=name, predicted=predicted, truth=truth, grid=grid):
            """J and F of some of the objects, by what the task does with the labels of its cells."""
            of = clip(name, np.where(np.isin(truth, kept), np.searchsorted(kept, truth) + 1, 0), len(kept))
            frames = np.where(np.isin(predicted, kept), np.searchsorted(kept, predicted) + 1, 0)[1:-1]
            labels = (torch.eye(len(kept) + 1)[frame.ravel()][None, None] for frame in frames)
            return temporal_correspondence._Truth(of, grid).score(labels)[:, 0]

        values.append(score(np.arange(1, objects + 1)))
        weights.append(objects)
        for number in range(1, objects + 1):
            by_object["j"][f"{name}_{number}"], by_object["f"][f"{name}_{number}"] = score(np.array([number]))
    j, f = statistics.mean(np.array(values), np.array(weights)[:, None], ["davis"] * len(values))
    golden = said("davis2017-evaluation")
    assert {"j": j, "f": f, "j_and_f": (j + f) / 2} == {key: same(golden[key]) for key in ("j", "f", "j_and_f")}
    for metric, found in by_object.items():
        assert found == same(golden[f"{metric}_objects"])


# --- PCK: DIFT and sd-dino --------------------------------------------------------------------------------------------


def pair(of):
    source, target = (tuple((x + 0.5, y + 0.5) for x, y in of[which]) for which in ("source", "target"))
    return ImagePair(
        id=of["name"], group=of["category"], cluster=of["name"], source="source", target="target",
        source_points=source, target_points=target, target_box=tuple(map(float, of["box"])),
    )  # fmt: skip


def test_pck_per_image_and_per_point_are_difts():
    found = {"pck_image": [], "pck_point": []}
    weights = []
    for of in official.pairs():
        held = {}
        for name, tokens in zip(("source", "target"), official.features(of), strict=True):
            grid = TokenGrid(*tokens.shape[:2], (0.0, 0.0, *map(float, of["size"])))
            stack = TokenStack((SITE,), torch.tensor(tokens)[None, None])
            held[name] = Capture(name, "base", grid, (stack,), of["size"])
        for row in Correspondence(readout="dift").score(pair(of), held, {}):
            if row.sites == (SITE,):
                found[row.metric].append(row.values.item())
        weights.append(row.weight)
    groups = np.array([of["category"] for of in official.pairs()])
    for how, weight in (("image", np.ones(len(groups))), ("point", np.array(weights))):
        values = np.array(found[f"pck_{how}"])
        golden = said("dift")[how]
        assert statistics.mean(values, weight, ["all"] * len(values)) == same(golden["All"])
        for category in official.CATEGORIES:
            of = groups == category
            assert statistics.mean(values[of], weight[of], groups[of]) == same(golden[category])
    assert 0.2 < golden["All"] < 0.8


def test_pck_per_category_is_sd_dinos():
    shares, points, groups = [], [], []
    for of, guess in zip(official.pairs(), official.guesses(), strict=True):
        sample = pair(of)
        truth = np.array(sample.target_points)
        side = metrics.longer_side(sample.target_box)
        shares.append(metrics.right_points(guess + 0.5, truth, side, 0.1).mean())
        points.append(len(truth))
        groups.append(of["category"])
    golden = said("sd-dino")
    assert statistics.mean(np.array(shares), np.array(points), groups) == same(golden["average"])
    by_category = {
        category: statistics.mean(
            np.array([s for s, g in zip(shares, groups, strict=True) if g == category]),
            np.array([p for p, g in zip(points, groups, strict=True) if g == category]),
            [category] * groups.count(category),
        )
        for category in official.CATEGORIES
    }
    assert by_category == same(golden["categories"])
    pairs = [groups.count(category) for category in by_category]
    assert np.average(list(by_category.values()), weights=pairs) == same(golden["weighted"])


# --- IoU: hsnet, MAttNet and LAVT, ImageNet-S -------------------------------------------------------------------------


def rows(predicted, truth, void=None):
    """{metric: (value, weight)} of one mask, as `foreground` counts it: (1, 1) arrays."""
    region = Region(masks.encode(truth), None if void is None else masks.encode(void), pixels(*truth.shape))
    logits = torch.tensor(predicted, dtype=torch.float32)[None, None] - 0.5
    found = foreground._rows((SITE,), region, *region.counts(logits))
    return {row.metric: (row.values.item(), np.asarray(row.weight).item()) for row in found}


def mean(found, metric, groups, *, weighted=True):
    values, weights = np.array([each[metric] for each in found]).T
    return statistics.mean(values, weights if weighted else np.ones(len(values)), groups)


def test_miou_and_fb_iou_over_episodes_are_hsnets():
    found = [rows(*of) for _, *of in official.episodes()]
    classes = [number for number, *_ in official.episodes()]
    golden = said("hsnet")
    assert mean(found, "iou", classes) == same(golden["miou"])
    fold = ["fold"] * len(found)
    both = [mean(found, metric, fold) for metric in ("iou", "iou_background")]
    assert np.mean(both) == same(golden["fb_iou"])


@pytest.fixture(scope="module")
def pooled(tmp_path_factory):
    """A catalog with the episodes as a dataset of one cluster an episode, scored at one site."""
    folder = tmp_path_factory.mktemp("pooled")
    world = synthetic.World(Store(folder / "store"))
    told = official.episodes()
    world.dataset("pascal-fold1", 1, labels=[(str(number), f"c{n}") for n, (number, *_) in enumerate(told)])
    world.model("m")
    found = [rows(*of) for _, *of in told]
    table = [(n, metric, *pair) for n, each in enumerate(found) for metric, pair in each.items()]
    numbers, metrics, values, unions = zip(*table, strict=True)
    spec = Score(
        capture=CaptureSpec(model=world.models["m"].spec, dataset=world.datasets["pascal-fold1"]),
        task="foreground",
        task_version=2,
    )
    job = Job(spec=spec, provenance=Provenance(model="m", dataset="pascal-fold1"))
    columns = ScoreRows(
        sample=np.array(numbers, np.int32),
        site=np.full(len(table), SITE.number, np.int16),
        head=np.zeros(len(table), np.int8),
        metric=list(metrics),
        value=np.array(values, np.float32),
        weight=np.array(unions, np.float32),
    )
    world.store.write_scores(job.id, 0, 0, columns, {})
    world.publish_job(job, n=len(told), of=len(told))
    catalog = Catalog(folder / "catalog.duckdb")
    catalog.absorb(world.store)
    return catalog


def test_miou_and_fb_iou_are_hsnets_in_the_views_too(pooled):
    golden = said("hsnet")
    assert pooled.query("SELECT value FROM results WHERE metric = 'iou'").rows == [(same(golden["miou"]),)]
    found = {row["metric"]: row for row in pooled.frame("FROM pooled").to_dicts()}
    assert found.keys() == {"iou", "iou_background", "fb_iou"}
    row = found["fb_iou"]
    assert row["value"] == same(golden["fb_iou"])
    assert (row["n"], row["n_undefined"], row["n_clusters"]) == (17, 0, 17)
    assert row["low"] < row["value"] < row["high"]
    # The interval of a mean of two ratios, by the jackknife over episodes.
    both = [rows(*of) for _, *of in official.episodes()]
    without = []
    for n in range(len(both)):
        rest = both[:n] + both[n + 1 :]
        without.append(np.mean([mean(rest, m, ["fold"] * len(rest)) for m in ("iou", "iou_background")]))
    jackknife = np.sqrt((len(both) - 1) ** 2 / len(both) * np.var(without, ddof=1))
    assert row["se"] == pytest.approx(jackknife, rel=0.15)


def test_ciou_and_miou_of_expressions_are_mattnets_and_lavts():
    found = [rows(*of) for of in official.expressions()]
    split = ["val"] * len(found)
    assert mean(found, "iou", split) == same(said("mattnet")["ciou"])
    assert mean(found, "iou", split) == same(said("lavt")["ciou"])
    assert mean(found, "iou", split, weighted=False) == same(said("lavt")["miou"])


def test_iou_of_classes_is_imagenet_s():
    found = [rows(*of) for _, *of in official.labelled()]
    classes = [number for number, *_ in official.labelled()]
    golden = said("imagenet-s")
    by_class = []
    for number in range(1, official.KINDS + 1):
        some = [each for each, of in zip(found, classes, strict=True) if of == number]
        by_class.append(mean(some, "iou", [number] * len(some)))
    assert by_class == same(golden["ious"][1:])
    assert mean(found, "iou", classes) == same(np.mean(golden["ious"][1:]))
    # Its mIoU counts what is of no class as one more.
    background = mean(found, "iou_background", ["all"] * len(found))
    assert (background + sum(by_class)) / (official.KINDS + 1) == same(golden["miou"])


# --- masks: pycocotools -----------------------------------------------------------------------------------------------


def test_masks_and_areas_are_pycocotools():
    height, width, outlines = official.outlines()
    coco = COCO()
    coco.dataset = {
        "images": [{"id": 1, "height": height, "width": width}],
        "annotations": [{"id": n, "image_id": 1, "segmentation": of} for n, of in enumerate(outlines, 1)],
    }
    coco.createIndex()
    for n, of in enumerate(outlines, 1):
        read = masks.from_rle if isinstance(of, dict) else masks.from_polygons
        mask = read(of, width, height)
        wanted = coco.annToMask(coco.anns[n])
        assert np.array_equal(masks.decode(mask), wanted.astype(bool))
        assert masks.area(mask) == wanted.sum() > 0
        assert mask.counts.encode() == coco.annToRLE(coco.anns[n])["counts"]
