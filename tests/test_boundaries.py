"""J and F against plain counts; against the official evaluator: test_official_evaluators.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from vkvdb import boundaries
from vkvdb.boundaries import ObjectTruth


def noise(seed, height=40, width=33, share=0.3):
    return np.random.default_rng(seed).random((height, width)) < share


def disk(size):
    return np.hypot(*np.mgrid[-size : size + 1, -size : size + 1]) <= size


@pytest.mark.parametrize("size", [0, 1, 2, 5, 50])
def test_dilation_is_by_a_disk(size):
    edges = noise(0, share=0.01)
    assert np.array_equal(boundaries.dilate(edges, size), ndimage.binary_dilation(edges, disk(size)))


def test_a_boundary_lies_half_a_pixel_towards_the_origin():
    mask = np.zeros((5, 6), bool)
    mask[2:4, 2:] = True
    wanted = np.zeros((5, 6), bool)
    wanted[[1, 3], 1:] = wanted[1:4, 1] = True
    assert np.array_equal(boundaries.boundary(mask), wanted)
    assert np.array_equal(boundaries.boundary(torch.tensor(mask)).numpy(), wanted)


def test_the_tolerance_is_of_the_diagonal():
    assert boundaries.radius(480, 854) == 8
    assert boundaries.radius(30, 40) == 1


@pytest.mark.parametrize("shape", [(400, 333), (7, 300)])
def test_many_predictions_at_once_are_each_by_itself(shape):
    truth = ObjectTruth(ndimage.binary_opening(noise(1, *shape, 0.9), iterations=2))
    guesses = np.stack([noise(n, *shape, 0.02 * n) for n in range(5)])
    edges, right = boundaries.boundary(guesses), boundaries.boundary(truth.mask)
    together = truth.f(torch.tensor(guesses))
    for guess, edge, f in zip(guesses, edges, together, strict=True):
        hits = (edge & ndimage.binary_dilation(right, disk(truth.size))).sum() / edge.sum() if edge.any() else 1
        reached = (right & ndimage.binary_dilation(edge, disk(truth.size))).sum() / right.sum()
        wanted = 2 * hits * reached / (hits + reached) if hits + reached else 0
        assert f == pytest.approx(wanted, abs=1e-12)
        assert truth.f(torch.tensor(guess)[None]) == pytest.approx(wanted, abs=1e-12)


def test_nothing_found_where_nothing_is_is_right():
    empty = torch.zeros(1, 9, 9, dtype=torch.bool)
    some = empty.clone()
    some[0, 3:5, 3:5] = True
    nothing, thing = ObjectTruth(empty[0].numpy()), ObjectTruth(some[0].numpy())
    assert [nothing.j(empty)[0], nothing.f(empty)[0]] == [1, 1]
    assert [nothing.j(some)[0], nothing.f(some)[0]] == [0, 0]
    assert [thing.j(empty)[0], thing.f(empty)[0]] == [0, 0]
    assert [thing.j(some)[0], thing.f(some)[0]] == [1, 1]
