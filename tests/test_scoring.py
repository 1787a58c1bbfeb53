"""The plan of a score job: which samples, in which order, with which blocks in memory."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from vkvdb.caching import Cache
from vkvdb.errors import BadOption, UnknownName
from vkvdb.samples import Image
from vkvdb.scoring import Columns, choose, make_task, order
from vkvdb.types import Scores, Site


def captures(blocks: list[tuple[int, ...]], room: int) -> Counter[int]:
    """How often each block is captured when `room` blocks fit into memory, samples in the planned order."""
    ranked = [blocks[n] for n in order(blocks)]
    cache, count = Cache(ranked, room), Counter[int]()
    for when, wanted in enumerate(ranked):
        for block in wanted:
            if cache.get(block) is None:
                count[block] += 1
                cache.put(block, block, 1, set(wanted))
        assert all(cache.get(b) == b for b in wanted)
        cache.used(when)
    return count


def spair(seed: int = 0) -> list[tuple[int, ...]]:
    """Pairs shaped as SPair-71k's test split: 12,234 over 1,800 images, 18 classes of 100, blocks of 8."""
    draw = random.Random(seed)
    return [
        tuple(sorted({draw.randrange(c * 100, c * 100 + 100) // 8, draw.randrange(c * 100, c * 100 + 100) // 8}))
        for c in range(18)
        for _ in range(680 if c else 674)
    ]


def test_an_image_of_spair_is_captured_once_where_a_class_fits() -> None:
    # 16 blocks of 8 images are 5 GB of a 7B model's keys and values, the default is 8 GB.
    count = captures(spair(), 16)
    assert sum(count.values()) / len(count) <= 1.05


def test_and_at_most_one_and_a_half_times_where_half_of_it_fits() -> None:
    count = captures(spair(), 10)
    assert sum(count.values()) / len(count) <= 1.5


def test_no_block_of_the_sample_at_hand_gives_way() -> None:
    assert sum(captures([(0, 1, 2, 3), (0, 1, 2, 3)], 1).values()) == 4


def test_a_block_that_no_sample_needs_again_is_let_go() -> None:
    cache = Cache([(0,), (1,)], 10)
    cache.put(0, "zero", 1, {0})
    cache.used(0)
    assert cache.get(0) is None


def samples(groups: dict[str, int]) -> list[tuple[int, Any]]:
    names = [g for g, n in groups.items() for _ in range(n)]
    return [(i, Image(id=str(i), group=g, cluster=str(i), image="x")) for i, g in enumerate(names)]


def test_a_limit_keeps_the_groups_proportions() -> None:
    chosen = choose(samples({"cat": 60, "dog": 30, "cow": 10}), 20, 0)
    assert Counter(s.group for _, s in chosen) == {"cat": 12, "dog": 6, "cow": 2}
    assert [n for n, _ in chosen] == sorted(n for n, _ in chosen)


def test_a_limit_is_seeded_and_a_larger_one_keeps_the_smaller() -> None:
    every = samples({"cat": 60, "dog": 40})
    assert choose(every, 10, 0) == choose(every, 10, 0) != choose(every, 10, 1)
    assert {n for n, _ in choose(every, 10, 0)} < {n for n, _ in choose(every, 30, 0)}
    assert choose(every, None, 0) == choose(every, 1000, 5) == every


def test_parameters_are_typed_and_checked() -> None:
    assert make_task("correspondence", {"alpha": "0.05"}) == make_task("correspondence", {"alpha": 0.05})
    with pytest.raises(BadOption, match=r"task correspondence has the parameters alpha=0\.1"):
        make_task("correspondence", {"beta": "1"})
    with pytest.raises(BadOption, match=r"a value like 0\.1 is expected"):
        make_task("correspondence", {"alpha": "small"})
    with pytest.raises(UnknownName, match="did you mean 'correspondence'"):
        make_task("correspondance", {})


def test_what_is_not_defined_is_a_row_without_a_value() -> None:
    sites = (Site("decoder", 0, "key"), Site("decoder", 1, "key"))
    columns = Columns()
    columns.add(7, Scores("iou", sites, [[0.5, float("nan")], [float("nan"), 0.25]], [[2.0, 0.0], [0.0, 4.0]]))
    rows = columns.done()
    assert (rows.sample.tolist(), rows.site.tolist()) == ([7] * 4, [s.number for s in sites for _ in range(2)])
    assert rows.head.tolist() == [0, -1, 0, -1]
    assert [str(v) for v in rows.value.tolist()] == ["0.5", "nan", "nan", "0.25"]
    assert rows.weight.tolist() == [2.0, 0.0, 0.0, 4.0]
    assert rows.metric == ["iou"] * 4


def test_values_must_fit_the_sites() -> None:
    with pytest.raises(ValueError, match="for 1 sites"):
        Columns().add(0, Scores("iou", (Site("decoder", 0, "key"),), [[0.5], [0.5]]))
