from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.preprocessing import StandardScaler

from vkvdb import masks, scoring, statistics
from vkvdb.errors import BadOption
from vkvdb.metrics import cell_shares
from vkvdb.samples import Episode, Labelled
from vkvdb.tasks import _linear, _masks, _tokens, foreground
from vkvdb.tasks.foreground import Foreground
from vkvdb.types import CEILING, POSITION, Capture, Site, TokenGrid, TokenStack

SITES = tuple(Site("decoder", n, "value") for n in range(8))
TOWER = (Site("encoder", 0, "hidden"),)


def whole(rows, cols, width, height):
    return TokenGrid(rows, cols, (0.0, 0.0, float(width), float(height)))


def ellipse(width, height, x, y, *radii):
    row, col = np.mgrid[:height, :width] + 0.5
    return ((col - x) / radii[0]) ** 2 + ((row - y) / radii[1]) ** 2 <= 1


def shapes(count, width, height, seed=0):
    generator = np.random.default_rng(seed)
    for _ in range(count):
        x, y = generator.uniform(0.3, 0.7, 2) * (width, height)
        yield ellipse(width, height, x, y, *generator.uniform(0.2, 0.3, 2) * (width, height))


def episode(regions, ignores=None):
    """Supports and, last, the query."""
    ignores = ignores or [None] * len(regions)
    labelled = [
        Labelled(str(n), masks.encode(m), None if i is None else masks.encode(i))
        for n, (m, i) in enumerate(zip(regions, ignores, strict=True))
    ]
    return Episode(id="e", group="cat", cluster="q", supports=tuple(labelled[:-1]), query=labelled[-1])


def captures(grids, *stacks, sizes=None):
    """{name: capture}; a stack is a list of tensors (sites, heads, rows, cols, dim), one an image."""
    found = {}
    for n, grid in enumerate(grids):
        pairs = [(SITES[: len(s[n])] if s[n].shape[1] > 1 else TOWER, s[n]) for s in stacks]
        size = sizes[n] if sizes else (int(grid.window[2]), int(grid.window[3]))
        found[str(n)] = Capture(str(n), "base", grid, tuple(TokenStack(*p) for p in pairs), size)
    return found


def informed(regions, grids, *, sites=2, heads=3, dim=6, strength=1.0, seed=0):
    """Tokens that know their cell's share of the region, in noise; the heads differ in how much."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(sites, heads, 1, 1, dim, generator=generator)
    grade = torch.linspace(0.3, 1, heads).view(1, heads, 1, 1, 1)
    made = []
    for region, grid in zip(regions, grids, strict=True):
        share = torch.tensor(cell_shares(region, grid), dtype=torch.float32)[..., None]
        noise = torch.randn(sites, heads, grid.rows, grid.cols, dim, generator=generator)
        made.append(strength * grade * (2 * share - 1) * directions + noise + 5)
    return made


def score(task, sample, of):
    return [row for row in task.score(sample, of, {}) if row.metric == "iou"]


def table(task, sample, of):
    """{site: (values, weights)}"""
    found = {}
    for row in score(task, sample, of):
        for n, site in enumerate(row.sites):
            found[site] = (row.values[n], np.broadcast_to(row.weight, row.values.shape)[n])
    return found


# --- the classifiers against scikit-learn -----------------------------------------------------------------------------


def problem(problems=5, tokens=300, dim=20, seed=0, scale=1.0):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(problems, tokens, dim)) * generator.uniform(0.2, 3, dim) + generator.normal(size=dim)
    y = x[0] @ generator.normal(size=dim) * scale + generator.logistic(size=tokens) > 1
    return x, y


@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
def test_logistic_is_scikit_learns(c):
    x, y = problem()
    given = torch.tensor(x, dtype=torch.float32)
    support, query = _linear.standardise(given, given[:, :50] * 1.5)
    found = _linear.logistic(support, torch.tensor(y, dtype=torch.float32), c)
    for n in range(len(x)):
        scaler = StandardScaler().fit(x[n])
        model = LogisticRegression(C=c, tol=1e-10, max_iter=1000).fit(scaler.transform(x[n]), y)
        logits = query[n].double() @ found[n, :-1].double() + found[n, -1]
        wanted = model.decision_function(scaler.transform(x[n][:50] * 1.5))
        assert np.abs(logits.numpy() - wanted).max() < 1e-4


@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
def test_ridge_is_scikit_learns(c):
    x, y = problem()
    found = _linear.ridge(torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32), c)
    for n in range(len(x)):
        wanted = RidgeClassifier(alpha=1 / c).fit(x[n], y).decision_function(x[n])
        assert np.abs(x[n] @ found[n, :-1].numpy() + found[n, -1].item() - wanted).max() < 1e-4


def hard(kind):
    generator = np.random.default_rng(3)
    x, y = problem(tokens=200, dim=150, seed=3)
    match kind:
        case "more channels than tokens":
            x, y = problem(tokens=60, dim=150, seed=3)
        case "separable":
            x[:, :, 0] = 100 * (2 * y - 1)
        case "one foreground token":
            y = np.arange(200) == 17
        case "outlier":
            x[:, 5] *= 1e4
        case "constant channels":
            x[:, :, :149] = generator.normal(size=149) * 100
        case "constant":
            x[:] = 7.0
        case "equal channels":
            x[:, :, 1:] = x[:, :, :1]
        case "bfloat16 around a bias":
            x = torch.tensor(x + 300).bfloat16().double().numpy()
    return x, y


@pytest.mark.parametrize(
    "kind",
    [
        "more channels than tokens", "separable", "one foreground token", "outlier", "constant channels", "constant",
        "equal channels", "bfloat16 around a bias",
    ],
)  # fmt: skip
def test_the_gradient_vanishes_on_hard_problems(kind):
    x, y = hard(kind)
    given = torch.tensor(x, dtype=torch.float32)
    support, _ = _linear.standardise(given, given)
    assert support.isfinite().all()
    for c in (0.01, 1.0, 100.0):
        found = _linear.logistic(support, torch.tensor(y, dtype=torch.float32), c).double()
        w, b = found[:, :-1], found[:, -1:]
        off = torch.sigmoid((support.double() @ w[:, :, None])[:, :, 0] + b) - torch.tensor(y).double()
        gradient = (support.double() * off[:, :, None]).sum(1) + w / c
        assert gradient.abs().max() / len(y) < 2e-6
        assert off.sum(1).abs().max() / len(y) < 2e-6
        w, b = _linear.ridge(support, torch.tensor(y, dtype=torch.float32), c).double().split([len(x[0, 0]), 1], 1)
        off = (support.double() @ w[:, :, None])[:, :, 0] + b - (2 * torch.tensor(y).double() - 1)
        assert ((support.double() * off[:, :, None]).sum(1) + w / c).abs().max() / len(y) < 2e-6


def test_a_problem_does_not_know_its_neighbours():
    x, y = hard("")
    easy, _ = problem(tokens=200, dim=150, seed=9, scale=0.01)
    both = torch.tensor(np.concatenate([x, easy]), dtype=torch.float32)
    labels = torch.tensor(y, dtype=torch.float32)
    for fit in (_linear.logistic, _linear.ridge):
        together = fit(both, labels, 1.0)
        for part in (slice(0, 1), slice(2, 7), slice(9, 10)):
            assert (together[part] - fit(both[part], labels, 1.0)).abs().max() < 1e-4 * together[part].abs().max()


def test_standardise_leaves_what_it_is_given():
    support, query = torch.randn(2, 30, 4) + 3, torch.randn(2, 9, 4)
    before = support.clone(), query.clone()
    made, moved = _linear.standardise(support, query)
    assert torch.equal(support, before[0])
    assert torch.equal(query, before[1])
    assert made.mean(1).abs().max() < 1e-6
    assert (made.square().mean(1) - 1).abs().max() < 1e-5
    assert torch.allclose(moved, (query - support.mean(1, keepdim=True)) / support.std(1, correction=0, keepdim=True))


# --- the task against a plain loop ------------------------------------------------------------------------------------


def hsnet(predicted, truth, ignore):
    """Evaluator.classify_prediction of hsnet: pixels of intersection and union of the foreground."""
    predicted, truth = torch.tensor(predicted).float(), torch.tensor(truth).float()
    if ignore is not None:
        truth = truth + 255 * torch.tensor(ignore).float()
        predicted[truth == 255] = 255
    same = predicted[predicted == truth]
    inter, area, real = (torch.histc(a, bins=2, min=0, max=1) for a in (same, predicted, truth))
    return inter[1].item(), (area + real - inter)[1].item()


def plain(classifier, sample, of, place, project=None):
    """One head's intersection and union by scikit-learn and torch's interpolation; project: (seed, channels)."""
    site, head = place

    def tokens(capture):
        t = capture.tokens[site].double()
        t = t[head] if head < len(t) else torch.cat(list(t), -1)
        t = t.flatten(0, 1).numpy()
        if project:
            seed, channels = project
            t = t @ np.random.default_rng((seed, t.shape[1], channels)).standard_normal((t.shape[1], channels))
        return t

    x, y = [], []
    for support in sample.supports:
        grid = of[support.image].grid
        share = cell_shares(masks.decode(support.mask), grid).ravel()
        void = 0 if support.ignore is None else cell_shares(masks.decode(support.ignore), grid).ravel()
        keep = np.broadcast_to(void <= 0.5, share.shape)
        x.append(tokens(of[support.image])[keep])
        y.append(share[keep] > 0.5)
    scaler = StandardScaler().fit(np.concatenate(x))
    model = LogisticRegression(tol=1e-10, max_iter=2000) if classifier == "logistic" else RidgeClassifier()
    model.fit(scaler.transform(np.concatenate(x)), np.concatenate(y))
    query = of[sample.query.image]
    logits = model.decision_function(scaler.transform(tokens(query))).reshape(1, 1, query.grid.rows, query.grid.cols)
    truth = masks.decode(sample.query.mask)
    up = torch.nn.functional.interpolate(torch.tensor(logits), size=truth.shape, mode="bilinear", align_corners=False)
    return hsnet(
        up[0, 0].numpy() > 0, truth, None if sample.query.ignore is None else masks.decode(sample.query.ignore)
    )


@pytest.mark.parametrize("project", [None, (0, 4), (3, 12)])  # a head has 6 channels, three heads 18
@pytest.mark.parametrize("classifier", foreground.CLASSIFIERS)
def test_batched_is_the_plain_loop(classifier, project):
    sizes = [(40, 30), (30, 44), (36, 36), (50, 41)]
    grids = [whole(6, 8, *sizes[0]), whole(8, 6, *sizes[1]), whole(7, 7, *sizes[2]), whole(8, 9, *sizes[3])]
    regions = [next(shapes(1, *size, seed=n)) for n, size in enumerate(sizes)]
    # Void around the objects, as in VOC, thick enough to swallow cells.
    ignores = [next(shapes(1, *size, seed=n + 10)) & ~m for n, (size, m) in enumerate(zip(sizes, regions, strict=True))]
    ignores[1] = None
    of = captures(grids, informed(regions, grids), informed(regions, grids, sites=1, heads=1, dim=9, seed=4))
    sample = episode(regions, ignores)
    seed, channels = project or (0, 0)
    got = table(Foreground(classifier=classifier, project=channels, seed=seed), sample, of)
    for site, heads in ((SITES[0], 4), (SITES[1], 4), (TOWER[0], 1)):
        values, unions = got[site]
        assert values.shape == (heads,)
        for head in range(heads):
            inter, union = plain(classifier, sample, of, (site, head), project)
            assert (values[head] * unions[head], unions[head]) == pytest.approx((inter, union), abs=1e-6)


def test_a_projection_is_drawn_by_its_seed_and_its_sizes_alone():
    task = Foreground(project=5, seed=3)
    assert np.array_equal(task.projection(18), Foreground(project=5, seed=3, classifier="ridge", c=2.0).projection(18))
    assert task.projection(18).shape == (18, 5)
    others = [Foreground(project=5, seed=4).projection(18), task.projection(19)[:18]]
    others.append(Foreground(project=6, seed=3).projection(18)[:, :5])
    assert not any(np.array_equal(task.projection(18), other) for other in others)


def test_a_projection_leaves_what_is_no_models_alone(several):
    sample, _, grids, tokens = several
    of = captures(grids, tokens)
    whole_tokens, projected = (table(Foreground(project=n), sample, of) for n in (0, 3))
    assert all(projected[s] == whole_tokens[s] for s in (POSITION, CEILING))
    assert not np.array_equal(projected[SITES[0]][0], whole_tokens[SITES[0]][0])
    again, other = (table(Foreground(project=3, seed=n), sample, of) for n in (0, 1))
    assert all(np.array_equal(projected[s], again[s]) for s in projected)
    assert not np.array_equal(projected[SITES[0]][0], other[SITES[0]][0])


def test_bands_count_the_same(monkeypatch):
    regions, grids = list(shapes(3, 50, 30)), [whole(5, 5, 50, 30)] * 3
    of, sample = captures(grids, informed(regions, grids)), episode(regions)
    at_once = table(Foreground(), sample, of)
    monkeypatch.setattr(_masks, "_COUNTED", 110)
    in_bands = table(Foreground(), sample, of)
    assert all(np.array_equal(at_once[s], in_bands[s]) for s in at_once)


# --- what the numbers mean --------------------------------------------------------------------------------------------


def test_an_oracle_reaches_the_ceiling_and_noise_does_not():
    regions, grids = list(shapes(6, 112, 112)), [whole(14, 14, 112, 112)] * 6
    sample = episode(regions)
    oracle = table(Foreground(), sample, captures(grids, informed(regions, grids, strength=30)))
    noise = table(Foreground(), sample, captures(grids, informed(regions, grids, strength=0)))
    ceiling = oracle[CEILING][0]
    assert ceiling > 0.93
    assert oracle[SITES[0]][0].min() > ceiling - 0.08
    assert noise[SITES[0]][0].max() < 0.1  # rarer than half, so background is the better guess
    assert noise[CEILING] == oracle[CEILING]
    assert oracle[POSITION][0] < 0.5


def test_the_concatenated_heads_know_more():
    regions, grids = list(shapes(6, 112, 112)), [whole(14, 14, 112, 112)] * 6
    values = table(Foreground(), episode(regions), captures(grids, informed(regions, grids, strength=0.8)))[SITES[0]][0]
    assert values[0] < values[2] < values[3]


def test_weighted_mean_is_sum_of_intersections_over_sum_of_unions():
    values, weights, hits = [], [], 0.0
    for n in range(3):
        regions, grids = list(shapes(3, 60, 60, seed=n)), [whole(8, 8, 60, 60)] * 3
        value, weight = table(Foreground(), episode(regions), captures(grids, informed(regions, grids)))[SITES[0]]
        values.append(value[0])
        weights.append(weight[0])
        hits += round(value[0] * weight[0])
    assert statistics.mean(values, weights, ["cat"] * 3) == pytest.approx(hits / sum(weights))


def test_position_is_the_mean_support_mask():
    regions = [ellipse(40, 40, 10, 20, 9, 9), ellipse(40, 40, 12, 20, 9, 9), ellipse(40, 40, 30, 20, 9, 9)]
    sample, grids = episode(regions), [whole(20, 20, 40, 40)] * 3
    got = table(Foreground(), sample, captures(grids, informed(regions, grids)))
    assert got[POSITION][0] < 0.02
    sample = episode([regions[0], regions[0], regions[0]])
    got = table(Foreground(), sample, captures(grids, informed(regions, grids)))
    assert got[POSITION][0] == got[CEILING][0] > 0.9


def test_an_object_smaller_than_half_a_cell_is_not_defined():
    small = np.zeros((40, 40), bool)
    small[18:21, 19:22] = True
    query = next(shapes(1, 40, 40))
    regions, grids = [small, small, query], [whole(4, 4, 40, 40)] * 3
    of = captures(grids, informed(regions, grids), informed(regions, grids, heads=1, sites=1))
    rows = score(Foreground(), episode(regions), of)
    assert [np.shape(r.values) for r in rows] == [(2, 4), (1, 1), (1, 1), (1, 1)]
    assert all(np.isnan(r.values).all() and r.weight == 0 for r in rows[:2])
    assert all(np.isfinite(r.values).all() for r in rows[2:])
    everywhere = [np.ones((40, 40), bool)] * 2 + [query]
    assert np.isnan(score(Foreground(), episode(everywhere), of)[0].values).all()


def test_void_inside_the_object_is_in_neither_sum():
    regions, grids = list(shapes(3, 60, 60)), [whole(10, 10, 60, 60)] * 3
    void = np.zeros((60, 60), bool)
    void[:30] = True
    of = captures(grids, informed(regions, grids, strength=30))
    whole_object = table(Foreground(), episode(regions), of)
    half = table(Foreground(), episode(regions, [None, None, void]), of)
    lower = table(Foreground(), episode([*regions[:2], regions[2] & ~void], [None, None, void]), of)
    for site in (*SITES[:2], POSITION):
        assert np.array_equal(half[site], lower[site])
        assert (half[site][1] < whole_object[site][1]).all()


def test_an_empty_union_is_not_defined():
    regions, grids = [*shapes(2, 40, 40), np.zeros((40, 40), bool)], [whole(4, 4, 40, 40)] * 3
    value, weight = table(Foreground(), episode(regions), captures(grids, informed(regions, grids)))[CEILING]
    assert np.isnan(value).all()
    assert (weight == 0).all()


def test_outside_the_window_is_background_and_padding_is_not_learned_from():
    # Cropped: half of the query's object is out of sight, so the ceiling is low.
    region = ellipse(60, 40, 30, 20, 20, 12)
    crop = TokenGrid(20, 15, (0.0, 0.0, 30.0, 40.0))
    of = captures([crop] * 3, informed([region] * 3, [crop] * 3), sizes=[(60, 40)] * 3)
    value, union = table(Foreground(), episode([region] * 3), of)[CEILING]
    assert value[0] == pytest.approx(0.5, abs=0.03)
    assert union[0] == pytest.approx(region.sum(), rel=0.03)
    # Padded: 6 of 12 rows of cells lie outside the image.
    padded = TokenGrid(12, 12, (0.0, -30.0, 60.0, 90.0))
    kept, labels = foreground._labels(episode([region] * 2).supports, [padded])
    assert (kept.sum(), len(kept)) == (4 * 12, 144)
    assert 0 < labels.sum() < len(labels) == kept.sum()


# --- invariances ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def several():
    regions, grids = list(shapes(4, 56, 56)), [whole(9, 9, 56, 56)] * 4
    return episode(regions), regions, grids, informed(regions, grids, sites=5, heads=3, dim=16)


@pytest.mark.parametrize("classifier", foreground.CLASSIFIERS)
def test_batching_and_neighbours_change_nothing(several, classifier, monkeypatch):
    sample, _, grids, tokens = several
    task = Foreground(classifier=classifier)

    def logits(which=slice(None)):
        kept, labels = foreground._labels(sample.supports, grids[:3])
        return task._logits([t[which] for t in tokens[:3]], kept, labels, tokens[3][which])

    together = logits()
    assert torch.equal(together, logits())
    for part in (slice(1, 2), slice(2, 5)):
        assert (together[part] - logits(part)).abs().max() < 1e-4 * together.abs().max()
    at_once = table(task, sample, captures(grids, tokens))
    monkeypatch.setattr(_tokens, "_ROOM", ({"cpu": 1}, 0))
    monkeypatch.setattr(_tokens, "_AT_ONCE", ({"cpu": 1}, 0))
    one_by_one = table(task, sample, captures(grids, tokens))
    for site, (values, unions) in at_once.items():
        assert np.allclose(values, one_by_one[site][0], atol=2e-3)
        assert np.allclose(unions, one_by_one[site][1], rtol=2e-3)


def test_permuted_heads_permute_columns(several):
    sample, _, grids, tokens = several
    order = [2, 0, 1]
    plain_rows = table(Foreground(), sample, captures(grids, tokens))
    moved = table(Foreground(), sample, captures(grids, [t[:, order] for t in tokens]))
    for site in SITES[:5]:
        assert np.array_equal(plain_rows[site][0][order], moved[site][0][:-1])
        assert plain_rows[site][0][-1] == pytest.approx(moved[site][0][-1], abs=2e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_any_dtype_and_the_tokens_stay_as_they_are(several, dtype):
    sample, _, grids, tokens = several
    with torch.inference_mode():
        given = [t.to(dtype) for t in tokens]
        before = [t.clone() for t in given]
    for classifier in foreground.CLASSIFIERS:
        values = table(Foreground(classifier=classifier), sample, captures(grids, given))[SITES[0]][0]
        assert np.isfinite(values).all()
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


# --- the task ---------------------------------------------------------------------------------------------------------


def test_parameters_are_checked():
    for wrong in ({"classifier": "svm"}, {"c": 0.0}, {"c": 1000.0}, {"project": -1}, {"seed": -1, "project": 8}):
        with pytest.raises(BadOption, match=next(iter(wrong))):
            Foreground(**wrong)
    with pytest.raises(BadOption, match=r"-p seed 3: .*-p project N"):
        Foreground(seed=3)
    assert Foreground() == Foreground(classifier="logistic", c=1.0, project=0)


def test_what_is_not_projected_keeps_its_jobs():
    assert scoring.changed(Foreground()) == ()
    assert scoring.changed(Foreground(project=128, seed=3)) == (("project", 128), ("seed", 3))


def test_needs_every_image_once(several):
    assert Foreground().needs(several[0]).images == ("0", "1", "2", "3")
