from __future__ import annotations

import numpy as np
import pytest
import torch
from regions import (
    SITES,
    TOWER,
    capture,
    directions,
    each_head,
    ellipse,
    encode,
    rows_of,
    shape,
    tokens_of,
    toy_samples,
    upsampled,
    whole,
)
from sklearn.cluster import KMeans

from vkvdb import masks
from vkvdb.errors import BadOption
from vkvdb.metrics import cell_shares
from vkvdb.samples import ImageSet, Labelled
from vkvdb.tasks import _tokens
from vkvdb.tasks._kmeans import elbow_clusters
from vkvdb.tasks.cosegmentation import Cosegmentation, _rim
from vkvdb.types import CEILING, POSITION, TokenGrid

METRICS = Cosegmentation.metrics
USUAL = {"elbow": 0.975, "most": 14, "fitted": 1024, "restarts": 4, "iterations": 300, "seed": 0}


def image_set(regions, ignores=None):
    ignores = ignores or [None] * len(regions)
    members = tuple(
        Labelled(str(n), encode(region), None if void is None else encode(void))
        for n, (region, void) in enumerate(zip(regions, ignores, strict=True))
    )
    return ImageSet(id="s", group="cat", cluster="s", members=members)


def informed(regions, grids, *, strength=8.0, sites=2, heads=3, dim=6, sizes=None, offset=0.0):
    """Captures of a set, whose regions have the same in common."""
    towards = directions(sites, heads, dim)
    sizes = sizes or [None] * len(regions)
    made = {}
    for n, (region, grid) in enumerate(zip(regions, grids, strict=True)):
        tokens = tokens_of(region, grid, towards, strength=strength, offset=offset, seed=n)
        made[str(n)] = capture(grid, (SITES[:sites], tokens), size=sizes[n], name=str(n))
    return made


def blobs(problems, centres, n=300, *, dim=8, noise=0.1, seed=0):
    """Tokens of length 1 around some centres, and which one each belongs to."""
    generator = torch.Generator().manual_seed(seed)
    middles = torch.nn.functional.normalize(torch.randn(problems, centres, dim, generator=generator), dim=-1)
    of = torch.arange(n) % centres
    tokens = middles[:, of] + noise * torch.randn(problems, n, dim, generator=generator)
    return torch.nn.functional.normalize(tokens, dim=-1), of.numpy()


# --- k-means ----------------------------------------------------------------------------------------------------------


def objective(x, labels):
    return sum(((x[labels == c] - x[labels == c].mean(0)) ** 2).sum() for c in np.unique(labels))


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_fits_are_as_good_as_scikit_learns(k):
    x, _ = blobs(6, 5, noise=0.4)
    # A step before the first that is refused is never refused, so k is the largest that is asked for.
    labels = elbow_clusters(x, **{**USUAL, "elbow": 1.0, "most": k, "restarts": 8}).numpy()
    for tokens, found in zip(x.double().numpy(), labels, strict=True):
        wanted = KMeans(k, n_init=10, random_state=0).fit(tokens)
        assert len(np.unique(found)) == k
        assert objective(tokens, found) < wanted.inertia_ * 1.03
        # No token is nearer to another centre.
        centres = np.stack([tokens[found == c].mean(0) for c in range(k)])
        assert (((tokens[:, None] - centres) ** 2).sum(-1).argmin(1) == found).all()


def loop(x, *, elbow, most, fitted, restarts, iterations, seed):
    """One problem of `elbow_clusters`, step by step."""
    generator = torch.Generator().manual_seed(seed)
    some = torch.randperm(len(x), generator=generator)[:fitted].sort().values.numpy()
    draws = torch.rand(restarts, most, generator=generator).double().numpy()
    part = x[some]
    starts = []
    for restart in range(restarts):
        seeds, distance = [], np.ones(len(part))
        for draw in draws[restart]:
            reach = distance.cumsum()
            at = min(np.searchsorted(reach, draw * reach[-1], side="right"), len(part) - 1)
            apart = ((part - part[at]) ** 2).sum(1)
            distance = np.minimum(distance, apart) if seeds else apart
            seeds.append(part[at])
        starts.append(seeds)
    before = None
    for k in range(1, most + 1):
        fits = []
        for seeds in starts:
            centres, last = np.array(seeds[:k]), None
            for _ in range(iterations):
                labels = ((part[:, None] - centres) ** 2).sum(-1).argmin(1)
                if last is not None and (labels == last).all():
                    break
                last = labels
                centres = np.array([part[labels == c].mean(0) if (labels == c).any() else centres[c] for c in range(k)])
            fits.append((((part[:, None] - centres) ** 2).sum(-1).min(1).sum(), centres))
        distances = ((x[:, None] - min(fits, key=lambda f: f[0])[1]) ** 2).sum(-1)
        error = distances.min(1).mean()
        if before is not None and error > elbow * before:
            break
        before = error
    return distances.argmin(1)


@pytest.mark.parametrize("fitted", [60, 1024])
def test_batched_k_means_is_the_plain_loop(fitted):
    x = torch.cat([blobs(2, 2, 200)[0], blobs(2, 4, 200, noise=0.2)[0], blobs(1, 1, 200, noise=0.02)[0]])
    options = {**USUAL, "fitted": fitted, "restarts": 2, "elbow": 0.9}
    labels = elbow_clusters(x, **options).numpy()
    counts = set()
    for tokens, found in zip(x.double().numpy(), labels, strict=True):
        wanted = loop(tokens, **options)
        assert (found == wanted).all()
        counts.add(found.max())
    assert len(counts) > 1  # each stops by itself


def test_each_problem_stops_at_its_elbow():
    x, of = blobs(3, 3, noise=0.02)
    labels = elbow_clusters(x, **USUAL).numpy()
    for found in labels:
        # Clusters of the same blob are kept apart from others, and their number is not the largest.
        assert all(len(np.unique(of[found == c])) == 1 for c in np.unique(found))


def test_problems_do_not_know_their_neighbours_and_seeds_decide():
    x, _ = blobs(5, 4, noise=0.5)
    together = elbow_clusters(x, **USUAL)
    assert torch.equal(together, elbow_clusters(x, **USUAL))
    for n in range(5):
        assert torch.equal(together[n : n + 1], elbow_clusters(x[n : n + 1], **USUAL))
    assert not torch.equal(together, elbow_clusters(x, **{**USUAL, "seed": 1}))


def test_equal_and_empty_tokens_are_one_cluster():
    same = torch.nn.functional.normalize(torch.ones(2, 30, 4), dim=-1)
    assert elbow_clusters(same, **USUAL).unique(dim=1).shape[1] == 1
    assert elbow_clusters(torch.zeros(1, 30, 4), **USUAL).max() == 0
    assert elbow_clusters(same[:, :1], **USUAL).tolist() == [[0], [0]]
    assert elbow_clusters(blobs(1, 2, 3)[0], **USUAL).shape == (1, 3)


# --- the task against a plain loop ------------------------------------------------------------------------------------


def plain(task, sample, of, site, head):
    """One head's metrics, cluster by cluster and image by image."""
    tokens = [each_head(of[m.image].tokens[site])[head] for m in sample.members]
    x = np.concatenate(tokens)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    names = ("elbow", "most", "fitted", "restarts", "iterations", "seed")
    labels = loop(x, **{name: getattr(task, name) for name in names})
    grids, truths = [of[m.image].grid for m in sample.members], [masks.decode(m.mask) for m in sample.members]
    valid = [
        np.ones_like(t) if m.ignore is None else ~masks.decode(m.ignore)
        for m, t in zip(sample.members, truths, strict=True)
    ]
    rim, excess = [], []
    for grid, truth, counted in zip(grids, truths, valid, strict=True):
        edge = np.ones((grid.rows, grid.cols), bool)
        edge[1:-1, 1:-1] = False
        rim.append(edge.ravel())
        excess.append((cell_shares(truth & counted, grid) - cell_shares(counted & ~truth, grid)).ravel())
    rim, excess = np.concatenate(rim), np.concatenate(excess)
    found = {}
    for choice in ("", "_labels"):
        foreground = [
            c
            for c in np.unique(labels)
            if (excess[labels == c].sum() > 0 if choice else rim[labels == c].mean() < task.border * rim.mean())
        ]
        cells = np.split(np.isin(labels, foreground), np.cumsum([len(t) for t in tokens])[:-1])
        jaccard, right = [], []
        for chosen, grid, truth, counted in zip(cells, grids, truths, valid, strict=True):
            up = upsampled(chosen - 0.5, grid, *truth.shape) > 0
            jaccard.append((up & truth & counted).sum() / ((up | truth) & counted).sum())
            right.append((up == truth)[counted].mean())
        found[f"iou{choice}"], found[f"precision{choice}"] = np.mean(jaccard), np.mean(right)
    return found


def test_batched_is_the_plain_loop():
    sizes = [(48, 36), (40, 40), (36, 54)]
    grids = [whole(6, 8, 48, 36), whole(8, 8, 40, 40), whole(9, 6, 36, 54)]
    regions = [shape(*size, seed=n) for n, size in enumerate(sizes)]
    ignores = [None, shape(*sizes[1], seed=9) & ~regions[1], None]
    sample, of = image_set(regions, ignores), informed(regions, grids, strength=3.0)
    single = informed(regions, grids, sites=1, heads=1, dim=9, strength=4.0)
    for name, one in of.items():
        of[name] = capture(
            one.grid, (SITES[:2], one.stacks[0].tokens), ((TOWER,), single[name].stacks[0].tokens), name=name
        )
    task = Cosegmentation(restarts=2, fitted=100, elbow=0.9)
    got = rows_of(task, sample, of)
    assert {metric for metric, _ in got} == set(METRICS)
    for site, heads in ((SITES[0], 4), (SITES[1], 4), (TOWER, 1)):
        for head in range(heads):
            for metric, value in plain(task, sample, of, site, head).items():
                assert got[metric, site][0].shape == (heads,)
                assert got[metric, site][0][head] == pytest.approx(value, abs=1e-5), (metric, site, head)
                assert got[metric, site][1] == pytest.approx(3)


def test_pieces_change_nothing(monkeypatch):
    regions, grids = [shape(40, 40, n) for n in range(3)], [whole(7, 7, 40, 40)] * 3
    sample, of = image_set(regions), informed(regions, grids, sites=4)
    at_once = rows_of(Cosegmentation(), sample, of)
    monkeypatch.setattr(_tokens, "_ROOM", ({"cpu": 1}, 0))
    monkeypatch.setattr(_tokens, "_AT_ONCE", ({"cpu": 1}, 0))
    one_by_one = rows_of(Cosegmentation(), sample, of)
    assert at_once.keys() == one_by_one.keys()
    for key, (values, _) in at_once.items():
        assert values == pytest.approx(one_by_one[key][0], abs=1e-3)


# --- what the numbers mean --------------------------------------------------------------------------------------------


def test_an_oracle_reaches_the_ceiling_and_noise_does_not():
    regions, grids = [shape(112, 112, n) for n in range(6)], [whole(14, 14, 112, 112)] * 6
    sample = image_set(regions)
    oracle = rows_of(Cosegmentation(), sample, informed(regions, grids, strength=40))
    noise = rows_of(Cosegmentation(), sample, informed(regions, grids, strength=0))
    for choice in ("", "_labels"):
        iou, precision = f"iou{choice}", f"precision{choice}"
        assert oracle[iou, CEILING][0] > 0.93
        assert oracle[iou, SITES[0]][0].min() > oracle[iou, CEILING][0] - 0.1
        assert oracle[precision, SITES[0]][0].min() > 0.95
        assert noise[iou, SITES[0]][0].max() < 0.2
        assert noise[iou, SITES[0]][0].max() < oracle[iou, POSITION][0]
        assert noise[iou, CEILING] == oracle[iou, CEILING]
    share = np.mean([region.mean() for region in regions])
    assert noise["precision_labels", SITES[0]][0] == pytest.approx(1 - share, abs=0.05)


def test_the_border_prior_can_be_wrong_where_labels_are_not():
    # The object fills the image's border, the ground is in the middle.
    regions = [~ellipse(56, 56, 28, 28, 16, 16)] * 3
    got = rows_of(Cosegmentation(), image_set(regions), informed(regions, [whole(14, 14, 56, 56)] * 3, strength=40))
    assert got["iou", SITES[0]][0].max() < 0.2
    assert got["iou_labels", SITES[0]][0].min() > 0.8


# --- where it is not defined ------------------------------------------------------------------------------------------


def test_images_without_an_object_or_all_void():
    region, everything = shape(36, 36), np.ones((36, 36), bool)
    grids = [whole(6, 6, 36, 36)] * 3
    of = informed([region, ~everything, region], grids, strength=40)
    got = rows_of(Cosegmentation(), image_set([region, ~everything, region], [None, None, everything]), of)
    # The second has no object and nothing is chosen: it is right everywhere, and has no index. The third is void.
    value, count = got["iou", CEILING]
    assert (value > 0.75).all()
    assert count == pytest.approx(1)
    assert got["precision", CEILING][1] == pytest.approx(2)
    assert all(np.isfinite(v).all() for v, _ in got.values())
    got = rows_of(Cosegmentation(), image_set([region] * 3, [everything] * 3), of)
    assert all(np.isnan(v).all() and not w.any() for v, w in got.values())


def test_equal_tokens_choose_nothing():
    regions, grids = [shape(36, 36, n) for n in range(2)], [whole(6, 6, 36, 36)] * 2
    of = informed(regions, grids)
    for one in of.values():
        one.stacks[0].tokens[:] = 3.0
    got = rows_of(Cosegmentation(), image_set(regions), of)
    assert (got["iou", SITES[0]][0] == 0).all()
    assert (got["iou_labels", SITES[0]][0] == 0).all()
    share = np.mean([region.mean() for region in regions])
    assert got["precision", SITES[0]][0] == pytest.approx(1 - share)


def test_padding_is_not_clustered():
    regions = [shape(60, 30, n) for n in range(2)]
    padded = TokenGrid(12, 12, (0.0, -15.0, 60.0, 45.0))
    of = informed(regions, [padded] * 2, sizes=[(60, 30)] * 2, strength=20)
    before = rows_of(Cosegmentation(), image_set(regions), of)
    for one in of.values():
        one.stacks[0].tokens[:, :, :3] = torch.randn(2, 3, 3, 12, 6) * 50
        one.stacks[0].tokens[:, :, 9:] = 7.0
    after = rows_of(Cosegmentation(), image_set(regions), of)
    for key, (values, _) in before.items():
        assert np.array_equal(values, after[key][0])
    assert before["iou", SITES[0]][0].min() > 0.6


def test_the_rim_is_where_the_image_ends():
    seen = np.zeros((6, 5), bool)
    seen[1:5] = True
    wanted = seen.copy()
    wanted[2:4, 1:4] = False
    assert (_rim(seen) == wanted).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_any_dtype_and_the_tokens_stay_as_they_are(dtype):
    regions, grids = [shape(36, 36, n) for n in range(2)], [whole(6, 6, 36, 36)] * 2
    of = informed(regions, grids)
    given = {
        name: capture(one.grid, (SITES[:2], one.stacks[0].tokens.to(dtype)), name=name) for name, one in of.items()
    }
    before = [one.stacks[0].tokens.clone() for one in given.values()]
    got = rows_of(Cosegmentation(), image_set(regions), given)
    assert all(np.isfinite(v).all() for v, _ in got.values())
    assert all(torch.equal(a, one.stacks[0].tokens) for a, one in zip(before, given.values(), strict=True))


def test_parameters_are_checked():
    for wrong in (
        {"elbow": 1.0}, {"most": 0}, {"fitted": 0}, {"restarts": 0}, {"iterations": 0}, {"border": 0.0}, {"seed": -1},
        {"ellipse": 0.0},
    ):  # fmt: skip
        with pytest.raises(BadOption, match=next(iter(wrong))):
            Cosegmentation(**wrong)
    assert Cosegmentation().needs(image_set([shape(8, 8)] * 3)).images == ("0", "1", "2")


# --- the toy world ----------------------------------------------------------------------------------------------------


def test_on_the_toy_world(tmp_path, monkeypatch):
    made = toy_samples(tmp_path, monkeypatch, categories=2, pairs=4, pool=8)
    samples = [s for s in made if isinstance(s, ImageSet)]
    assert len(samples) == 2
    for sample in samples:
        regions = [masks.decode(m.mask) for m in sample.members]
        grids = [whole(14, 14, region.shape[1], region.shape[0]) for region in regions]
        names = [m.image for m in sample.members]
        for strength in (40.0, 0.0):
            of = dict(zip(names, informed(regions, grids, strength=strength, sites=1).values(), strict=True))
            got = rows_of(Cosegmentation(), sample, of)
            if strength:
                assert got["iou", SITES[0]][0].min() > got["iou", CEILING][0] - 0.15
                assert got["precision", SITES[0]][0].min() > 0.9
            else:
                assert got["iou", SITES[0]][0].max() < max(0.2, got["iou", POSITION][0])
