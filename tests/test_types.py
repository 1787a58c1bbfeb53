"""Sites, grids and samples."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vkvdb.samples import (
    Clip,
    Episode,
    Expression,
    ImagePair,
    Labelled,
    Mask,
    Question,
    Sample,
    sample_from_json,
    sample_to_json,
)
from vkvdb.types import CEILING, PARTS, POSITION, STAGES, Site, SiteShape, TokenGrid, group_sites


@given(st.sampled_from(STAGES), st.integers(0, 511), st.sampled_from(PARTS))
def test_a_site_is_a_small_number_and_back(stage: str, layer: int, part: str) -> None:
    site = Site(stage, layer, part)
    assert 0 <= site.number < 2**15
    assert Site.from_number(site.number) == site == Site.parse(str(site))


def test_site_numbers_are_stored_and_never_change() -> None:
    assert [Site("encoder", 0, "hidden").number, Site("decoder", 7, "value").number] == [3, 8250]
    assert [POSITION.number, CEILING.number] == [12292, 16389]


def test_sites_sort_in_the_order_of_the_flow() -> None:
    flow = [
        Site("encoder", 9, "hidden"),
        Site("projector", 0, "hidden"),
        Site("decoder", 2, "key"),
        Site("decoder", 10, "key"),
    ]
    assert sorted([flow[3], flow[1], flow[0], flow[2]]) == flow


@pytest.mark.parametrize("bad", [("encoders", 0, "key"), ("encoder", -1, "key"), ("encoder", 0, "values")])
def test_no_such_site(bad: tuple[str, int, str]) -> None:
    with pytest.raises(ValueError, match="no such site"):
        Site(*bad)


@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.tuples(st.floats(-50, 50), st.floats(-50, 50), st.floats(60, 900), st.floats(60, 900)),
)
def test_a_cell_holds_its_centre(rows: int, cols: int, window: tuple[float, float, float, float]) -> None:
    grid = TokenGrid(rows, cols, window)
    for row, col in {(0, 0), (rows - 1, cols - 1), (rows // 2, cols // 3)}:
        assert grid.cell(*grid.centre(row, col)) == (row, col)
        u, v = grid.to_grid(*grid.centre(row, col))
        assert (u, v) == pytest.approx((col + 0.5, row + 0.5))


def test_outside_the_window_is_no_cell() -> None:
    grid = TokenGrid(4, 4, (10, 0, 90, 80))
    assert grid.cell(9.9, 5) is None
    assert grid.cell(90, 5) is None
    assert grid.cell(10, 0) == (0, 0)


def test_grids_take_arrays() -> None:
    grid = TokenGrid(2, 4, (0, 0, 8, 4))
    x, y = grid.centre(np.array([0, 1]), np.array([3, 0]))
    assert x.tolist() == [7, 1]
    assert y.tolist() == [1, 3]


def test_positions_must_fill_the_grid() -> None:
    with pytest.raises(ValueError, match="3 positions on a grid of 2 x 2"):
        TokenGrid(2, 2, (0, 0, 1, 1), (1, 2, 3))


MASK = Mask(4, 3, "abc")
SAMPLES: list[Sample] = [
    ImagePair(
        id="p",
        group="cat",
        cluster="1",
        source="a",
        target="b",
        source_points=((1.5, 2.0),),
        target_points=((3.0, 4.0),),
        target_box=(0.0, 1.0, 2.0, 3.0),
        names=("ear",),
    ),
    Episode(
        id="e",
        group="dog",
        cluster="2",
        supports=(Labelled("a", MASK), Labelled("b", MASK, MASK)),
        query=Labelled("c", MASK),
    ),
    Expression(id="x", group="g", cluster="3", image="a", text="left cat", mask=MASK, others=(MASK,)),
    Clip(id="c", group="g", cluster="4", frames=("a", "b"), objects=((MASK, None), (None, MASK))),
    Question(
        id="q",
        group="count",
        cluster="5",
        shown=("a", "a"),
        text="how many?",
        answer="two",
        options=("one", "two"),
        marks=((1.0, 2.0),),
    ),
]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: s.kind)
def test_samples_survive_json(sample: Sample) -> None:
    body = json.loads(json.dumps(sample_to_json(sample)))
    assert sample_from_json(sample.kind, sample.id, sample.group, sample.cluster, body) == sample


def test_a_sample_names_each_image_once() -> None:
    assert SAMPLES[1].images() == ("a", "b", "c")
    assert SAMPLES[4].images() == ("a",)


def test_sites_are_stacked_by_shape_and_sorted() -> None:
    value, key, tower = (SiteShape(Site(*s), h, d) for s, h, d in (
        (("decoder", 0, "value"), 2, 4), (("decoder", 0, "key"), 2, 4), (("encoder", 1, "hidden"), 1, 8)))  # fmt: skip
    assert group_sites([value, tower, key]) == [(tower,), (key, value)]
