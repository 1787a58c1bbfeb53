from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from vkvdb import boundaries, masks
from vkvdb.errors import BadOption
from vkvdb.samples import Clip
from vkvdb.tasks import _propagation, _tokens
from vkvdb.tasks.temporal_correspondence import TemporalCorrespondence
from vkvdb.types import CEILING, POSITION, Capture, Site, TokenGrid, TokenStack

SITES = tuple(Site("decoder", n, "key") for n in range(4))
TOWER = (Site("encoder", 0, "hidden"),)
METRICS = ("j", "f", "j_and_f")


def disc(width, height, x, y, r):
    row, col = np.mgrid[:height, :width] + 0.5
    return (col - x) ** 2 + (row - y) ** 2 <= r**2


def clip(frames=5, width=48, height=40, objects=2):
    """Discs that move; frames and, for each, every object's mask."""
    regions = [[disc(width, height, 12 + 3 * t, 12 + 18 * n + t, 8) for n in range(objects)] for t in range(frames)]
    for frame in regions:
        for n in range(1, objects):
            frame[n] &= ~np.any(frame[:n], axis=0)
    return sample([[masks.encode(m) for m in frame] for frame in regions]), regions


def sample(objects):
    names = tuple(f"c-{t}" for t in range(len(objects)))
    return Clip(id="c", group="davis", cluster="c", frames=names, objects=tuple(map(tuple, objects)))


def whole(rows, cols, width, height):
    return TokenGrid(rows, cols, (0.0, 0.0, float(width), float(height)))


def captures(of, grid, *stacks, size=(48, 40)):
    """{name: capture}; a stack is a list of tensors (sites, heads, rows, cols, dim), one a frame."""
    found = {}
    for t, name in enumerate(of.frames):
        pairs = [(SITES[: len(s[t])] if s[t].shape[1] > 1 else TOWER, s[t]) for s in stacks]
        found[name] = Capture(name, "base", grid, tuple(TokenStack(*p) for p in pairs), size)
    return found


def noise(frames, grid, *, sites=2, heads=3, dim=6, seed=0):
    """Frames that look like each other, more or less."""
    generator = torch.Generator().manual_seed(seed)
    still = torch.randn(sites, heads, grid.rows, grid.cols, dim, generator=generator)
    return [still + torch.randn(still.shape, generator=generator) for _ in range(frames)]


def table(task, of, held):
    """{(metric, site): values}"""
    rows = list(task.score(of, held, {}))
    return {(row.metric, site): row.values[n] for row in rows for n, site in enumerate(row.sites)}


# --- against a plain loop ---------------------------------------------------------------------------------------------


def plain_propagation(tokens, first, *, context, topk, temperature, reach):
    """eval_video_segmentation.py of DINO (7c446df) written out cell by cell: labels (cells, labels) of each frame."""
    rows, cols, _ = tokens[0].shape
    units = [torch.nn.functional.normalize(t.double().flatten(0, 1), dim=1).numpy() for t in tokens]
    labels = [first.double().numpy()]
    for time in range(1, len(tokens)):
        seen = [0, *range(max(1, time - context), time)]
        found = np.zeros_like(labels[0])
        for cell in range(rows * cols):
            near = [
                (frame, other)
                for frame in seen
                for other in range(rows * cols)
                if reach is None
                or (abs(other // cols - cell // cols) <= reach[0] and abs(other % cols - cell % cols) <= reach[1])
            ]
            affinities = np.exp([units[time][cell] @ units[f][o] / temperature for f, o in near])
            # float32 in the original: what is equal but for rounding takes part
            least = np.sort(affinities)[::-1][:topk][-1] * (1 - 1e-6)
            weights = np.where(affinities >= least, affinities, 0)
            found[cell] = sum(w * labels[f][o] for w, (f, o) in zip(weights / weights.sum(), near, strict=True) if w)
        labels.append(found)
    return labels[1:]


def plain_masks(labels, grid, width, height):
    """Which object each pixel is, by torch's interpolation and DINO's stretching."""
    maps = torch.tensor(labels).T.reshape(1, -1, grid.rows, grid.cols)
    wide = torch.nn.functional.interpolate(maps, (height, width), mode="bilinear", align_corners=False)[0]
    stretched = [(w - w.min()) / (w - w.min()).max() if w.max() > w.min() else w for w in wide]
    return torch.stack(stretched).argmax(0).numpy()


def plain_score(tokens, regions, grid, task, head):
    """J and F of one head (or, past the last, of all)."""
    height, width = regions[0][0].shape
    feats = [t[head] if head < len(t) else torch.cat(list(t), -1) for t in tokens]
    at = [(int(y), int(x)) for y, x in ((grid.centre(r, c)[::-1]) for r in range(grid.rows) for c in range(grid.cols))]
    first = torch.tensor([[not any(m[p] for m in regions[0]), *(m[p] for m in regions[0])] for p in at]).double()
    labels = plain_propagation(
        feats, first, context=task.context, topk=task.topk, temperature=task.temperature,
        reach=_propagation.reach(task.neighbourhood, grid.rows, grid.cols),
    )  # fmt: skip
    found = []
    for time in range(1, len(tokens) - 1):
        chosen = plain_masks(labels[time - 1], grid, width, height)
        for n, truth in enumerate(regions[time]):
            predicted = chosen == n + 1
            j = (predicted & truth).sum() / (predicted | truth).sum() if (predicted | truth).any() else 1
            found.append((j, boundaries.ObjectTruth(truth).f(torch.tensor(predicted)[None])[0]))
    return np.mean(found, 0)


RULES = [
    {},
    {"context": 2, "topk": 3, "temperature": 0.5},
    {"context": 0, "neighbourhood": 0},
    {"neighbourhood": 3, "topk": 40},
    {"context": 1, "topk": 1, "neighbourhood": 9},
]


@pytest.mark.parametrize("parameters", RULES, ids=str)
def test_labels_are_those_of_a_plain_loop(parameters):
    task, grid = TemporalCorrespondence(**parameters), whole(6, 7, 48, 40)
    tokens = noise(7, grid)  # so many that a context of 7 would lose one, were it counted wrongly
    first = torch.eye(3)[torch.arange(42) % 3]
    rule = _propagation.Rule(
        task.context, task.topk, task.temperature, _propagation.reach(task.neighbourhood, grid.rows, grid.cols)
    )
    found = list(_propagation.propagate(iter([t.clone() for t in tokens]), first, rule))
    for site, head in ((0, 0), (1, 2), (1, 3)):
        feats = [t[site, head] if head < 3 else torch.cat(list(t[site]), -1) for t in tokens]
        wanted = plain_propagation(feats, first, **dataclasses.asdict(rule))
        assert np.abs(np.stack(wanted) - torch.stack(found)[:, site, head].numpy()).max() < 1e-5


def test_frames_that_are_equal_all_take_part():
    grid = whole(5, 5, 40, 40)
    still = noise(1, grid, sites=1, heads=1)[0]
    first = torch.eye(2)[torch.arange(25) % 2]
    rule = _propagation.Rule(7, 5, 0.1, (2, 2))
    found = list(_propagation.propagate(iter([still] * 5), first, rule))
    wanted = plain_propagation([still[0, 0]] * 5, first, context=7, topk=5, temperature=0.1, reach=(2, 2))
    assert np.abs(np.stack(wanted) - torch.stack(found)[:, 0, 0].numpy()).max() < 1e-5


@pytest.mark.parametrize("parameters", RULES[:2], ids=str)
def test_scores_are_those_of_a_plain_loop(parameters):
    task, grid = TemporalCorrespondence(**parameters), whole(7, 8, 48, 40)
    of, regions = clip()
    tokens, tower = noise(5, grid, dim=4), noise(5, grid, sites=1, heads=1, seed=1)
    got = table(task, of, captures(of, grid, tokens, tower))
    for site in (0, 1):
        for head in range(4):
            wanted = plain_score([t[site] for t in tokens], regions, grid, task, head)
            values = [got[metric, SITES[site]][head] for metric in METRICS]
            assert values == pytest.approx([*wanted, wanted.mean()], abs=1e-5)
    assert got["j", TOWER[0]] == pytest.approx(plain_score([t[0] for t in tower], regions, grid, task, 0)[:1])


# --- chance, floor and ceiling ----------------------------------------------------------------------------------------


def oracle(regions, grid):
    """Tokens that say which object is at their centre."""
    found = []
    for frame in regions:
        x, y = (a.astype(int) for a in grid.centre(*np.mgrid[: grid.rows, : grid.cols]))
        objects = np.stack([m[y, x] for m in frame], -1)
        token = np.concatenate([~objects.any(-1, keepdims=True), objects], -1)
        found.append(torch.tensor(token, dtype=torch.float32)[None, None])
    return found


def test_an_oracle_is_at_the_ceiling_and_noise_is_not():
    grid = whole(20, 24, 48, 40)
    of, regions = clip(7)
    unlike = [torch.randn(2, 3, 20, 24, 16, generator=torch.Generator().manual_seed(t)) for t in range(7)]
    got = table(TemporalCorrespondence(), of, captures(of, grid, oracle(regions, grid), unlike))
    for metric in METRICS:
        ceiling, known = got[metric, CEILING][0], got[metric, TOWER[0]][0]
        assert 0.85 < ceiling <= 1
        assert known == pytest.approx(ceiling, abs=0.02)
        assert (got[metric, SITES[0]] < ceiling / 2).all()
    assert 0.2 < got["j", POSITION][0] < 0.8


def test_a_still_clip_is_held_perfectly():
    _, regions = clip(1)
    of = sample([[masks.encode(m) for m in regions[0]]] * 4)
    grid = whole(10, 12, 48, 40)
    got = table(TemporalCorrespondence(), of, captures(of, grid, noise(1, grid, sites=1, heads=1) * 4))
    assert [got[metric, POSITION][0] for metric in METRICS] == [1, 1, 1]
    assert got["j", CEILING][0] > 0.8


def test_the_held_mask_of_blackswan(shared):
    paths = sorted((shared / "data/DAVIS2016/Annotations/480p/blackswan").glob("*.png"))
    if not paths:
        pytest.skip("the samples have no blackswan")
    regions = [np.array(Image.open(path).convert("L")) > 127 for path in (paths[0], *paths[1:-1:6], paths[-1])]
    of, grid = sample([[masks.encode(region)] for region in regions]), whole(27, 27, 854, 480)
    blank = [torch.ones(1, 1, 27, 27, 1)] * len(regions)
    got = table(TemporalCorrespondence(), of, captures(of, grid, blank, size=(854, 480)))
    assert got["j", POSITION][0] == pytest.approx(0.55, abs=0.02)
    assert got["j", TOWER[0]][0] < 0.7 < got["j", CEILING][0]


# --- what is not defined, windows -------------------------------------------------------------------------------------


def test_short_and_empty_clips_are_not_defined():
    grid = whole(5, 6, 48, 40)
    of, _ = clip(2)
    rows = list(TemporalCorrespondence().score(of, captures(of, grid, noise(2, grid)), {}))
    assert [np.shape(r.values) for r in rows] == [(2, 4)] * 3
    assert all(np.isnan(r.values).all() for r in rows)
    of, _ = clip(4)
    of = dataclasses.replace(of, objects=((None, None), *of.objects[1:]))
    rows = list(TemporalCorrespondence().score(of, captures(of, grid, noise(4, grid)), {}))
    assert all(np.isnan(r.values).all() for r in rows)


def test_frames_without_a_mask_and_objects_that_come_later_are_left_out():
    grid = whole(5, 6, 48, 40)
    of, regions = clip(5)
    held = captures(of, grid, noise(5, grid))
    alone = sample([[masks.encode(frame[0])] for frame in regions])
    later = dataclasses.replace(of, objects=((of.objects[0][0], None), *of.objects[1:]))
    one, other = (table(TemporalCorrespondence(), s, held) for s in (alone, later))
    assert all(np.array_equal(one[key], other[key]) for key in one)
    gap = dataclasses.replace(of, objects=(*of.objects[:2], (None, of.objects[2][1]), *of.objects[3:]))
    rows = {(r.metric, r.sites[0]): r for r in TemporalCorrespondence().score(gap, held, {})}
    assert rows["j", POSITION].weight == 2
    at = [boundaries.ObjectTruth(regions[t][0]).j(torch.tensor(regions[0][0])[None])[0] for t in (1, 3)]
    second = [boundaries.ObjectTruth(regions[t][1]).j(torch.tensor(regions[0][1])[None])[0] for t in (1, 2, 3)]
    assert rows["j", POSITION].values.item() == pytest.approx((np.mean(at) + np.mean(second)) / 2)


def test_beyond_the_window_is_background_and_padding_holds_no_object():
    of, _ = clip(5)
    crop = TokenGrid(20, 12, (0.0, 0.0, 24.0, 40.0))
    padded = TokenGrid(24, 24, (0.0, -4.0, 48.0, 44.0))
    cut = table(TemporalCorrespondence(), of, captures(of, crop, noise(5, crop, sites=1, heads=1)))
    full = table(TemporalCorrespondence(), of, captures(of, padded, noise(5, padded, sites=1, heads=1)))
    assert cut["j", CEILING][0] < 0.8 < full["j", CEILING][0]


def test_frames_of_different_grids_are_refused():
    of, _ = clip(3)
    grid, other = whole(5, 6, 48, 40), whole(6, 5, 48, 40)
    held = captures(of, grid, noise(3, grid))
    held[of.frames[1]] = captures(of, other, noise(3, other))[of.frames[1]]
    with pytest.raises(ValueError, match="not of one size"):
        list(TemporalCorrespondence().score(of, held, {}))


# --- invariances ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_one_by_one_is_the_same_and_tokens_stay_as_they_are(monkeypatch, dtype):
    grid = whole(7, 8, 48, 40)
    of, _ = clip(4)
    with torch.inference_mode():
        tokens = [t.to(dtype) for t in noise(4, grid, sites=3)]
        before = [t.clone() for t in tokens]
    at_once = table(TemporalCorrespondence(), of, captures(of, grid, tokens))
    monkeypatch.setattr(_tokens, "_ROOM", ({"cpu": 1}, 0))
    monkeypatch.setattr(_tokens, "_AT_ONCE", ({"cpu": 1}, 0))
    one_by_one = table(TemporalCorrespondence(), of, captures(of, grid, tokens))
    assert all(np.allclose(at_once[key], one_by_one[key], atol=2e-3) for key in at_once)
    assert all(torch.equal(a, b) for a, b in zip(tokens, before, strict=True))
    order = [2, 0, 1]
    moved = table(TemporalCorrespondence(), of, captures(of, grid, [t[:, order] for t in tokens]))
    assert np.allclose(at_once["j", SITES[0]][order], moved["j", SITES[0]][:3], atol=2e-3)


def test_parameters_are_checked_and_the_neighbourhood_is_scaled():
    for wrong in ({"context": -1}, {"topk": 0}, {"temperature": 0.0}, {"neighbourhood": -2}):
        with pytest.raises(BadOption, match=next(iter(wrong))):
            TemporalCorrespondence(**wrong)
    assert _propagation.reach(6, 27, 27) == (6, 6)
    assert _propagation.reach(6, 14, 36) == (3, 8)
    assert _propagation.reach(6, 2, 3) == (1, 1)
    assert _propagation.reach(0, 27, 27) is None
    of, _ = clip(3)
    assert TemporalCorrespondence().needs(of).images == of.frames
