from __future__ import annotations

import numpy as np
import pytest
import torch
from regions import PROJECTOR, SITES, TOWER, capture, directions, encode, rows_of, shape, tokens_of, whole

from vkvdb import statistics
from vkvdb.errors import BadDataset, BadOption
from vkvdb.samples import Image
from vkvdb.scoring import among, changed, make_task
from vkvdb.tasks.naming import Naming
from vkvdb.types import CEILING, POSITION, TokenGrid

CLASSES = ("ape", "bee", "cat", "dog")
TASK = Naming(classes=",".join(CLASSES))


def image(region, category, ignore=None, **more):
    given = {"id": "s", "group": category, "cluster": "0", "image": "0", "category": category, **more}
    return Image(mask=encode(region), ignore=None if ignore is None else encode(ignore), **given)


def texts_of(sites=2, heads=3, dim=6, seed=0, length=False):
    """{class: {site: (heads, dim)}}; with `length` each class's vectors are longer than those before."""
    return {
        name: {
            site: directions(sites, heads, dim, seed + 10 * k)[n] * (1 + 3 * k * length) for n, site in enumerate(SITES)
            if n < sites
        }
        for k, name in enumerate(CLASSES)
    }  # fmt: skip


def seen(category, seed, *, size=(40, 30), strength=1.5, sites=2, texts=None):
    """(sample, captures): tokens in the region lean to its class, all in noise."""
    region, grid = shape(*size, seed), whole(5, 7, *size)
    texts = texts or texts_of()
    towards = torch.stack([texts[category][site] for site in SITES[:sites]])
    tokens = tokens_of(region, grid, towards, strength=strength, seed=seed, offset=0.0)
    void = np.zeros_like(region)
    void[:4] = True
    return image(region, category, void & ~region), {"0": capture(grid, (SITES[:sites], tokens), size=size)}


def named_by_hand(tokens, vectors, size):
    """The number of each pixel's class (height, width): products upsampled by PyTorch, tokens (rows, cols, dim)."""
    products = torch.einsum("rcd,kd->krc", tokens.double(), vectors.double())
    wide = torch.nn.functional.interpolate(products[None], size[::-1], mode="bilinear", align_corners=False)
    return wide[0].argmax(0).numpy()


@pytest.mark.parametrize("reading", ["dot", "cosine"])
@pytest.mark.parametrize("head", [0, 2, -1])
def test_it_counts_as_the_evaluator_of_imagenet_s(reading, head):
    """Sums of intersections and unions by class over all images, in plain loops."""
    texts = texts_of(length=True)
    task = Naming(classes=",".join(CLASSES), reading=reading)
    common, union, hits, rows = np.zeros(4), np.zeros(4), [], []
    for n in range(6):
        category = CLASSES[n % 3]  # of the last class there is no image
        sample, of = seen(category, n, size=(40 + n, 30), texts=texts_of())
        rows.append(rows_of(task, sample, of, texts))
        tokens = of["0"].stacks[0].tokens[1]
        vectors = torch.stack([texts[name][SITES[1]] for name in CLASSES])
        if head < 0:
            tokens, vectors = tokens.movedim(0, 2).flatten(2), vectors.flatten(1)
        else:
            tokens, vectors = tokens[head], vectors[:, head]
        if reading == "cosine":
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        found = named_by_hand(tokens, vectors, (40 + n, 30))
        truth = np.where(shape(40 + n, 30, n), n % 3, -1)
        counted = np.ones_like(truth, dtype=bool)
        counted[:4] = truth[:4] >= 0
        for k in range(4):
            common[k] += ((found == k) & (truth == k) & counted).sum()
            union[k] += (((found == k) | (truth == k)) & counted).sum()
        hits.append((found == truth)[truth >= 0].mean())
    for k, name in enumerate(CLASSES):
        given = [row[f"iou of {name}", SITES[1]] for row in rows if (f"iou of {name}", SITES[1]) in row]
        values, weights = (np.array([part[which][head] for part in given]) for which in (0, 1))
        assert weights.sum() == union[k]
        if union[k]:
            assert statistics.mean(values, weights, ["all"] * len(given)) == pytest.approx(common[k] / union[k])
    assert [row["accuracy", SITES[1]][0][head] for row in rows] == pytest.approx(hits)
    assert union[3] > 0 or reading == "cosine"


def test_who_knows_the_class_names_it_and_noise_is_chance():
    texts, told, noise = texts_of(), [], []
    for n in range(12):
        for strength, kept in ((30.0, told), (0.0, noise)):
            sample, of = seen(CLASSES[n % 4], n, strength=strength)
            kept.append(rows_of(TASK, sample, of, texts)["accuracy", SITES[0]][0].mean())
    assert np.mean(told) > 0.8
    assert np.mean(noise) == pytest.approx(0.25, abs=0.1)


def test_floor_is_chance_and_the_ceiling_names_nothing_else():
    floors = []
    for n, name in enumerate(CLASSES):
        sample, of = seen(name, n)
        got = rows_of(TASK, sample, of, texts_of())
        floors.append(got["accuracy", POSITION][0].item())
        assert got["iou", CEILING][0] > 0.6
        assert {metric for metric, site in got if site == CEILING} == {"accuracy", "iou", f"iou of {name}"}
    assert floors == [1.0, 0.0, 0.0, 0.0]


def test_without_words_there_is_nothing_but_a_row():
    sample, of = seen("bee", 0)
    tokens = of["0"].stacks[0].tokens
    of = {"0": capture(of["0"].grid, (SITES[:2], tokens), ((TOWER, PROJECTOR), torch.randn(2, 1, 5, 7, 4)))}
    texts = {name: {**by_site, PROJECTOR: torch.ones(1, 4)} for name, by_site in texts_of().items()}
    got = rows_of(TASK, sample, of, texts)
    for metric in TASK.metrics:
        assert np.isnan(got[metric, TOWER][0]).all()
        assert np.isfinite(got[metric, PROJECTOR][0]).all()
    assert ("iou of bee", TOWER) not in got
    assert rows_of(TASK, image(shape(40, 30), "fox"), of, texts) == {}


def test_outside_the_window_nothing_is_named():
    region = np.zeros((30, 60), dtype=bool)
    region[5:25, 40:55] = True
    grid = TokenGrid(6, 6, (0.0, 0.0, 30.0, 30.0))
    of = {"0": capture(grid, (SITES[:1], torch.randn(1, 1, 6, 6, 6)), size=(60, 30))}
    texts = texts_of(1, 1)
    got = rows_of(TASK, image(region, "dog"), of, texts)
    assert got["accuracy", SITES[0]][0].item() == 0
    named = sum(w.item() for (metric, site), (_, w) in got.items() if metric.startswith("iou of") and site == SITES[0])
    assert named == 30 * 30 + region.sum()


def test_classes_are_those_of_the_dataset():
    samples = [(n, image(shape(40, 30), name)) for n, name in enumerate(("dog", "ape", "dog"))]
    task = make_task("naming", {})
    told = among(task, samples)
    assert told.needs(samples[0][1]).texts == ("ape", "dog")
    assert told.needs(samples[0][1]).images == task.needs(samples[0][1]).images
    assert changed(task) == ()
    few = make_task("naming", {"classes": "dog, cat"})
    assert among(few, samples) is few
    assert few.names == ("dog", "cat")
    with pytest.raises(BadDataset, match="the images' classes are 'dog'"):
        among(task, samples[:1])
    with pytest.raises(BadOption, match="2 to 100 classes are expected, not 101"):
        among(task, [(n, image(shape(40, 30), f"c{n}")) for n in range(101)])
    with pytest.raises(BadOption, match="there are: dot, cosine"):
        make_task("naming", {"reading": "loud"})
