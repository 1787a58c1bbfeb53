from __future__ import annotations

import numpy as np
import pytest
import torch

from vkvdb.errors import BadOption
from vkvdb.metrics import bilinear, inside
from vkvdb.samples import ImagePair
from vkvdb.tasks import _nearest, _tokens, correspondence
from vkvdb.tasks.correspondence import Correspondence
from vkvdb.types import CEILING, POSITION, Capture, Site, TokenGrid, TokenStack

PARTS = ("key", "value")


def sites(count, stage="decoder"):
    return tuple(Site(stage, n // 2, PARTS[n % 2]) for n in range(count))


def capture(name, grid, *tokens, size=None):
    """A capture with one stack for each tensor (sites, heads, rows, cols, dim)."""
    stages = ("decoder", "encoder", "projector")
    stacks = tuple(TokenStack(sites(len(t), stage), t) for t, stage in zip(tokens, stages, strict=False))
    return Capture(name, "base", grid, stacks, size)


def whole(rows, cols, width, height):
    return TokenGrid(rows, cols, (0.0, 0.0, float(width), float(height)))


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pair(points, truth, box=(0.0, 0.0, 100.0, 80.0), group="cat"):
    as_points = [tuple(tuple(map(float, p)) for p in side) for side in (points, truth)]
    return ImagePair(
        id="p", group=group, cluster="a", source="a", target="b",
        source_points=as_points[0], target_points=as_points[1], target_box=box,
    )  # fmt: skip


def whole_pixels(count, width, height, seed=0):
    generator = np.random.default_rng(seed)
    return np.stack([generator.integers(0, width, count), generator.integers(0, height, count)], 1) + 0.5


def scored(task, sample, source, target):
    return list(task.score(sample, {"a": source, "b": target}, {}))


def table(task, sample, source, target, metric="pck_image"):
    """{site: values}"""
    rows = [s for s in scored(task, sample, source, target) if s.metric == metric]
    return {site: s.values[n] for s in rows for n, site in enumerate(s.sites)}


def each_head(tokens):
    """Features (rows, cols, dim) of every site, head and all heads concatenated."""
    for site in tokens:
        yield from ((n, head) for n, head in enumerate(site))
        if len(site) > 1:
            yield len(site), torch.cat(list(site), -1)


def dift(source, target, source_size, target_size, points):
    """eval_spair.py of DIFT in float64: the cosine maps (points, h, w) of one feature map (rows, cols, dim)."""
    resize = torch.nn.functional.interpolate
    up = [
        resize(f.double().permute(2, 0, 1)[None], size=size[::-1], mode="bilinear", align_corners=False)[0]
        for f, size in ((source, source_size), (target, target_size))
    ]
    maps = []
    for x, y in points:
        vector = torch.nn.functional.normalize(up[0][:, int(y), int(x)], dim=0)
        maps.append(torch.einsum("chw,c->hw", torch.nn.functional.normalize(up[1], dim=0), vector))
    return torch.stack(maps)


# --- readouts against plain loops -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source_grid", "target_grid", "source_size", "target_size"),
    [
        ((7, 7), (7, 7), (40, 40), (40, 40)),
        ((4, 6), (5, 3), (33, 21), (20, 47)),  # grids of Qwen's kind
        ((6, 5), (4, 5), (50, 60), (90, 61)),
        ((3, 3), (2, 2), (9, 9), (64, 48)),
        ((3, 3), (1, 4), (9, 9), (80, 10)),
        ((3, 3), (4, 1), (9, 9), (10, 30)),
        ((8, 8), (9, 9), (16, 16), (7, 5)),  # fewer pixels than cells
    ],
)
def test_dift_is_the_plain_loop(source_grid, target_grid, source_size, target_size):
    source, target = draw(3, 2, *source_grid, 6), draw(3, 2, *target_grid, 6, seed=1)
    # Smooth features as well as rough ones, and one head around a common direction, as keys are.
    target[1] = target[1].cumsum(1).cumsum(2)
    target[2] += 3
    points = whole_pixels(5, *source_size)
    captures = (
        capture("a", whole(*source_grid, *source_size), source, size=source_size),
        capture("b", whole(*target_grid, *target_size), target, size=target_size),
    )
    predicted = correspondence._predict(correspondence._Pixels(*captures, points), source, target)
    pairs = zip(each_head(source), each_head(target), strict=True)
    for n, ((head, of_source), (_, of_target)) in enumerate(pairs):
        maps = dift(of_source, of_target, source_size, target_size, points)
        for k, cosines in enumerate(maps):
            x, y = (predicted[n // 3, head, k] - 0.5).astype(int)
            assert cosines[y, x] >= cosines.max() - 1e-6


def test_dift_counts_as_its_script():
    source, target, size = draw(2, 2, 6, 6, 8), draw(2, 2, 6, 6, 8, seed=1), (48, 36)
    points, truth = whole_pixels(40, *size), whole_pixels(40, *size, seed=3)
    box = (2.0, 3.0, 47.0, 30.0)
    grid = whole(6, 6, *size)
    got = table(
        Correspondence(alpha=0.3, readout="dift"),
        pair(points, truth, box),
        capture("a", grid, source),
        capture("b", grid, target),
    )
    loops = zip(each_head(source), each_head(target), strict=True)
    wanted = []
    for (_, of_source), (_, of_target) in loops:
        correct = 0
        for (x, y), cosines in zip(truth - 0.5, dift(of_source, of_target, size, size, points), strict=True):
            row, column = np.unravel_index(int(cosines.argmax()), cosines.shape)
            distance = ((column - x) ** 2 + (row - y) ** 2) ** 0.5
            correct += distance / max(box[3] - box[1], box[2] - box[0]) <= 0.3
        wanted.append(correct / len(points))
    assert np.concatenate([got[s] for s in sites(2)]).tolist() == pytest.approx(wanted, abs=1e-6)
    assert 0.1 < np.mean(wanted) < 0.9


@pytest.mark.parametrize("window", [(3.0, 2.25, 39.5, 30.0), (-10.0, -4.0, 52.0, 41.0), (0.0, -20.5, 48.0, 56.5)])
def test_pixels_lie_in_window_and_image(window):
    grid, size = TokenGrid(5, 4, window), (48, 36)
    tokens = draw(1, 3, 5, 4, 6)
    asked = draw(1, 3, 2, 6, seed=1)
    pixels = _nearest.Pixels(grid, size)
    products = torch.einsum("shkd,shrcd->shkrc", asked, tokens)[0]
    found = pixels.nearest(products, _nearest.neighbour_products(tokens)[0])
    ys, xs = np.mgrid[: size[1], : size[0]] + 0.5
    u, v = grid.to_grid(xs[0], 0.0)[0], grid.to_grid(0.0, ys[:, 0])[1]
    features = np.einsum("yr,hrcd,xc->hyxd", bilinear(v, 5), tokens[0].double().numpy(), bilinear(u, 4))
    cosines = (
        np.einsum("hyxd,hkd->hkyx", features, asked[0].double().numpy()) / np.linalg.norm(features, axis=-1)[:, None]
    )
    seen = inside(np.stack([xs, ys], -1).reshape(-1, 2), grid).reshape(size[::-1])
    best = np.where(seen, cosines, -np.inf).reshape(3, 2, -1).argmax(-1)
    assert np.allclose(found, np.stack([xs.ravel()[best], ys.ravel()[best]], -1))


def test_grid_is_the_plain_loop():
    source, target = draw(3, 4, 5, 6, 7), draw(3, 4, 8, 3, 7, seed=1)
    grids = whole(5, 6, 60, 50), whole(8, 3, 33, 80)
    points = np.random.default_rng(0).uniform(0, 50, (6, 2))
    captures = capture("a", grids[0], source), capture("b", grids[1], target)
    predicted = correspondence._predict(correspondence._Cells(*captures, points), source, target)
    for n, ((head, of_source), (_, of_target)) in enumerate(zip(each_head(source), each_head(target), strict=True)):
        for k, (x, y) in enumerate(points):
            row, column = grids[0].cell(x, y)
            cosines = torch.cosine_similarity(of_target, of_source[row, column], dim=-1)
            best = divmod(int(cosines.argmax()), 3)
            assert tuple(predicted[n // 5, head, k]) == grids[1].centre(*best)


def test_padding_is_no_candidate():
    # The image fills the middle of the window; the best token lies in the padding.
    tokens = torch.zeros(1, 1, 4, 4, 2)
    tokens[..., 0] = 1
    tokens[0, 0, 0, 0] = torch.tensor([0.0, 1.0])
    tokens[0, 0, 2, 1] = torch.tensor([1.0, 1.0])
    asked = torch.zeros(1, 1, 4, 4, 2)
    asked[..., 1] = 1
    grid = TokenGrid(4, 4, (0.0, -20.0, 40.0, 60.0))
    points = [(15.0, 15.0)]
    truth = {"grid": (15.0, 30.0), "dift": (15.5, 29.5)}
    for readout, wanted in truth.items():
        task = Correspondence(alpha=0.01, readout=readout)
        of = [capture(name, grid, t, size=(40, 40)) for name, t in (("a", asked), ("b", tokens))]
        assert table(task, pair(points, [wanted]), *of)[sites(1)[0]] == 1.0
        without_size = [capture(name, grid, t) for name, t in (("a", asked), ("b", tokens))]
        assert table(task, pair(points, [wanted]), *without_size)[sites(1)[0]] == 0.0


# --- what the numbers mean --------------------------------------------------------------------------------------------


def place_features(grid, where, dim=48, seed=0):
    """Tokens (1, 2, rows, cols, dim) that say where on the object a cell lies: random waves of `where(x, y)`."""
    rows, cols = np.divmod(np.arange(grid.rows * grid.cols), grid.cols)
    place = np.stack(where(*grid.centre(rows, cols)), -1) / 100
    generator = np.random.default_rng(seed)
    waves = generator.normal(0, 4, (2, 2, dim))
    features = np.cos(place @ waves + generator.uniform(0, 6.28, (2, 1, dim)))
    return torch.tensor(features, dtype=torch.float32).view(1, 2, grid.rows, grid.cols, dim)


@pytest.mark.parametrize("readout", ["dift", "grid"])
def test_an_oracle_reaches_the_ceiling(readout):
    # The target shows the source mirrored, and its grid is another.
    grids = whole(14, 14, 112, 112), whole(12, 16, 112, 112)
    source = place_features(grids[0], lambda x, y: (x, y))
    target = place_features(grids[1], lambda x, y: (112 - x, y))
    points = np.random.default_rng(1).uniform(5, 107, (200, 2))
    truth = points * [-1, 1] + [112, 0]
    sample = pair(points, truth, (0.0, 0.0, 80.0, 60.0))
    got = table(Correspondence(readout=readout), sample, capture("a", grids[0], source), capture("b", grids[1], target))
    assert got[CEILING] == [1.0]
    assert (got[sites(1)[0]] > 0.95).all()
    assert got[POSITION] < 0.15


@pytest.mark.parametrize("readout", ["dift", "grid"])
def test_random_vectors_are_at_chance(readout):
    grid = whole(10, 10, 60, 60)
    source, target = draw(20, 4, 10, 10, 8), draw(20, 4, 10, 10, 8, seed=1)
    points = np.random.default_rng(1).uniform(0, 60, (30, 2))
    truth = np.random.default_rng(2).uniform(15, 45, (30, 2))
    sample = pair(points, truth, (0, 0, 60, 30))
    got = table(Correspondence(readout=readout), sample, capture("a", grid, source), capture("b", grid, target))
    chance = np.pi * 6**2 / 60**2
    assert np.mean([got[s] for s in sites(20)]) == pytest.approx(chance, abs=0.008)


def test_metrics_weights_and_shapes():
    grid = whole(4, 4, 100, 80)
    several, one = draw(3, 2, 4, 4, 5), draw(2, 1, 4, 4, 9)
    points = whole_pixels(7, 100, 80)
    rows = scored(
        Correspondence(readout="dift"),
        pair(points, points),
        capture("a", grid, several, one),
        capture("b", grid, several, one),
    )
    assert [(s.metric, s.values.shape, s.weight) for s in rows[:4]] == [
        ("pck_image", (3, 3), 1.0),
        ("pck_point", (3, 3), 7.0),
        ("pck_image", (2, 1), 1.0),
        ("pck_point", (2, 1), 7.0),
    ]
    assert [s.sites for s in rows[4:]] == [(POSITION,), (POSITION,), (CEILING,), (CEILING,)]
    assert {s.metric for s in rows} == set(Correspondence.metrics)
    for image, point in zip(rows[::2], rows[1::2], strict=True):
        assert np.array_equal(image.values, point.values)
        assert image.values.shape == (len(image.sites), image.values.shape[1])
    # An image beside itself: every point is found again.
    assert (rows[0].values == 1).all()


def test_position_is_the_same_place_of_the_image():
    source = capture("a", TokenGrid(4, 4, (10.0, 0.0, 90.0, 80.0)), draw(1, 1, 4, 4, 3), size=(100, 80))
    target = capture("b", whole(4, 4, 50, 160), draw(1, 1, 4, 4, 3), size=(50, 160))
    points = [(20.0, 10.0), (60.0, 40.0), (50.0, 70.0)]
    truth = [(10.0, 20.0), (30.0, 80.0), (30.0, 140.0)]
    got = table(Correspondence(alpha=0.1, readout="dift"), pair(points, truth, (0.0, 0.0, 40.0, 40.0)), source, target)
    assert got[POSITION] == pytest.approx(2 / 3)


@pytest.mark.parametrize("readout", ["dift", "grid"])
def test_points_outside_a_window_are_wrong(readout):
    tokens = draw(2, 2, 6, 6, 8)
    crop, full = TokenGrid(6, 6, (20.0, 0.0, 80.0, 80.0)), whole(6, 6, 100, 80)
    points = whole_pixels(60, 100, 80)
    hidden = (points[:, 0] < 20) | (points[:, 0] > 80)
    assert 0 < hidden.sum() < 60
    for grids in ((crop, full), (full, crop)):
        a, b = (capture(name, grid, tokens, size=(100, 80)) for name, grid in zip("ab", grids, strict=True))
        got = table(Correspondence(alpha=1.0, readout=readout), pair(points, points, (0, 0, 400, 400)), a, b)
        for values in got.values():
            assert values == pytest.approx(1 - hidden.mean())


def test_the_ceiling_of_the_grid_is_its_coarseness():
    points = np.random.default_rng(0).uniform(0, 100, (500, 2))
    tokens = draw(1, 1, 2, 2, 3)
    of = [capture(n, whole(2, 2, 100, 100), tokens) for n in "ab"]
    sample = pair(points, points, (0.0, 0.0, 100.0, 100.0))
    # A circle of radius 10 around each centre of four cells of 50 x 50.
    assert table(Correspondence(readout="grid"), sample, *of)[CEILING] == pytest.approx(np.pi * 100 / 2500, abs=0.03)
    assert table(Correspondence(readout="dift"), sample, *of)[CEILING] == 1.0


# --- invariances ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("readout", ["dift", "grid"])
def test_batching_changes_nothing(readout, monkeypatch):
    source, target = draw(4, 3, 7, 7, 16), draw(4, 3, 7, 7, 16, seed=1)
    grid = whole(7, 7, 60, 40)
    points, truth = whole_pixels(5, 60, 40), whole_pixels(5, 60, 40, seed=1)
    sample, task = pair(points, truth), Correspondence(alpha=0.3, readout=readout)

    def predictions(which=slice(None)):
        of = [capture(n, grid, t[which]) for n, t in (("a", source), ("b", target))]
        reader = (correspondence._Pixels if readout == "dift" else correspondence._Cells)(*of, points)
        return table(task, sample, *of), correspondence._predict(reader, of[0].stacks[0].tokens, of[1].stacks[0].tokens)

    at_once, predicted = predictions()
    for most in (1, 20_000):
        monkeypatch.setattr(_tokens, "_ROOM", ({"cpu": most}, 0))
        monkeypatch.setattr(_tokens, "_AT_ONCE", ({"cpu": most}, 0))
        in_pieces, again = predictions()
        assert np.array_equal(predicted, again)
        assert all(np.array_equal(at_once[s], in_pieces[s]) for s in at_once)
    monkeypatch.undo()
    assert np.array_equal(predictions(slice(2, 3))[1], predicted[2:3])


@pytest.mark.parametrize("readout", ["dift", "grid"])
def test_permuted_heads_permute_columns(readout):
    source, target, order = draw(2, 4, 6, 6, 8), draw(2, 4, 6, 6, 8, seed=1), [2, 0, 3, 1]
    grid, sample = whole(6, 6, 60, 60), pair(whole_pixels(30, 60, 60), whole_pixels(30, 60, 60, seed=1), (0, 0, 99, 9))
    task = Correspondence(alpha=0.2, readout=readout)
    plain = table(task, sample, capture("a", grid, source), capture("b", grid, target))
    moved = table(task, sample, capture("a", grid, source[:, order]), capture("b", grid, target[:, order]))
    for site in sites(2):
        assert np.array_equal(plain[site][order], moved[site][:-1])
        assert plain[site][-1] == pytest.approx(moved[site][-1], abs=1 / 30)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_dtype_and_the_tokens_stay_as_they_are(dtype):
    with torch.inference_mode():
        tokens = draw(2, 2, 5, 5, 6).to(dtype)
        before = tokens.clone()
    grid = whole(5, 5, 50, 50)
    for readout in correspondence.READOUTS:
        points = whole_pixels(20, 50, 50)
        got = table(
            Correspondence(readout=readout),
            pair(points, points),
            capture("a", grid, tokens),
            capture("b", grid, tokens),
        )
        assert (got[sites(1)[0]] == 1).all()
    assert torch.equal(tokens, before)


def test_zero_constant_and_opposite_tokens():
    tokens = torch.zeros(3, 1, 3, 4, 2)
    tokens[1] = 1
    # Halfway between opposite neighbours, at the pixels 2.5 and 7.5, the interpolated token is nothing.
    tokens[2, ..., 0] = torch.tensor([0.7, -0.7, 0.7, -0.7])
    tokens[2, 0, 1, 2] = torch.tensor([0.0, 5.0])
    asked = torch.tensor([0.3, 1.0]).expand(3, 1, 1, 2)
    products = torch.einsum("shkd,shrcd->shkrc", asked, tokens).flatten(0, 1)
    squares = _nearest.neighbour_products(tokens).flatten(0, 1)
    found = _nearest.Pixels(whole(3, 4, 10, 30), None).nearest(products, squares)
    assert np.isfinite(found).all()
    assert abs(found[2, 0, 0] - 6.25) < 2.5
    assert abs(found[2, 0, 1] - 15) < 10


def test_same_inputs_same_bits():
    source, target = draw(4, 4, 14, 14, 32), draw(4, 4, 14, 14, 32, seed=1)
    grid, points = whole(14, 14, 112, 112), whole_pixels(12, 112, 112)
    of = capture("a", grid, source), capture("b", grid, target)
    first = correspondence._predict(correspondence._Pixels(*of, points), source, target)
    assert np.array_equal(first, correspondence._predict(correspondence._Pixels(*of, points), source, target))


# --- the task ---------------------------------------------------------------------------------------------------------


def test_parameters_are_checked():
    for wrong in ({"alpha": 0}, {"alpha": 1.5}, {"readout": "nearest"}):
        with pytest.raises(BadOption, match=next(iter(wrong))):
            Correspondence(**wrong)
    assert Correspondence() == Correspondence(alpha=0.1, readout="grid")


def test_needs_and_title():
    sample = pair([(1, 1)], [(2, 2)])
    assert Correspondence().needs(sample).images == ("a", "b")
    assert Correspondence().title(sample) == ""
    assert "not semantic" in Correspondence().title(pair([(1, 1)], [(2, 2)], group="self-warp"))
