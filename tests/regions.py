"""Made-up masks, tokens that know them, and text vectors that point at them, for the tasks that segment."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from vkvdb import masks
from vkvdb.datasets.toyworld import SIZES, Sizes, ToyWorld
from vkvdb.metrics import cell_shares
from vkvdb.toyworld import world
from vkvdb.types import Capture, Site, TokenGrid, TokenStack

SITES = tuple(Site("decoder", n, "value") for n in range(8))
PROJECTOR = Site("projector", 0, "hidden")
TOWER = Site("encoder", 0, "hidden")


def whole(rows, cols, width, height):
    return TokenGrid(rows, cols, (0.0, 0.0, float(width), float(height)))


def ellipse(width, height, x, y, *radii):
    row, col = np.mgrid[:height, :width] + 0.5
    return ((col - x) / radii[0]) ** 2 + ((row - y) / radii[1]) ** 2 <= 1


def shape(width, height, seed=0):
    generator = np.random.default_rng(seed)
    x, y = generator.uniform(0.3, 0.7, 2) * (width, height)
    return ellipse(width, height, x, y, *generator.uniform(0.2, 0.3, 2) * (width, height))


def directions(sites=2, heads=3, dim=6, seed=0):
    """What tokens of the region have in common: (sites, heads, dim)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(sites, heads, dim, generator=generator), dim=-1)


def tokens_of(region, grid, towards, *, strength=1.0, offset=2.0, seed=0):
    """Tokens (sites, heads, rows, cols, dim) that know their cell's share of the region, in noise around an offset."""
    generator = torch.Generator().manual_seed(seed)
    sites, heads, dim = towards.shape
    share = torch.tensor(cell_shares(region, grid), dtype=torch.float32)[..., None]
    noise = torch.randn(sites, heads, grid.rows, grid.cols, dim, generator=generator)
    return strength * (2 * share - 1) * towards[:, :, None, None] + noise + offset


def capture(grid, *stacks, size=None, name="0"):
    """A capture of stacks (sites, tokens)."""
    size = size or (int(grid.window[2]), int(grid.window[3]))
    return Capture(name, "base", grid, tuple(TokenStack(*stack) for stack in stacks), size)


def rows_of(task, sample, captures, texts=None):
    """{(metric, site): (values, weights)}"""
    found = {}
    for row in task.score(sample, captures, texts or {}):
        for n, site in enumerate(row.sites):
            assert (row.metric, site) not in found
            found[row.metric, site] = row.values[n], np.broadcast_to(row.weight, np.shape(row.values))[n]
    return found


def each_head(tokens):
    """Features (cells, dim) in float64 of every head of (heads, rows, cols, dim), and of all heads concatenated."""
    heads = [t.flatten(0, 1).double().numpy() for t in tokens]
    return [*heads, np.concatenate(heads, -1)] if len(heads) > 1 else heads


def upsampled(cells, grid, height, width):
    """A map on a grid that covers the whole image, by torch's interpolation."""
    maps = torch.as_tensor(np.asarray(cells, dtype=np.float64)).view(1, 1, grid.rows, grid.cols)
    return torch.nn.functional.interpolate(maps, (height, width), mode="bilinear", align_corners=False)[0, 0].numpy()


def otsu_by_trying(values):
    """The threshold between two values whose parts differ most."""
    ordered = np.unique(values)
    if len(ordered) == 1:
        return ordered[0]

    def between(threshold):
        above = values > threshold
        return above.mean() * (~above).mean() * (values[above].mean() - values[~above].mean()) ** 2

    return max(((a + b) / 2 for a, b in pairwise(ordered)), key=between)


def encode(region):
    return masks.encode(np.asarray(region, dtype=bool))


def toy_samples(root, monkeypatch, *, categories=3, **sizes):
    """Samples of a toy world of few categories and sizes."""
    none = {"pairs": 0, "pool": 0, "episodes": 0, "scenes": 0, "asked": 0, "clips": 0, "choices": 0}
    monkeypatch.setitem(SIZES, "demo", Sizes(**{**none, **sizes}))
    monkeypatch.setattr(world, "CATEGORIES", world.CATEGORIES[:categories])
    return ToyWorld().read(root, "demo").samples
