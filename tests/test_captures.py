"""Stored captures come back bit for bit, whatever their dtype, their grids and the order they are asked in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import tree

from vkvdb.errors import DamagedStore
from vkvdb.store import Store
from vkvdb.types import Site, TokenGrid
from vkvdb.verification import problems


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


KEY, VALUE = Site("decoder", 3, "key"), Site("decoder", 12, "value")
TOWER = Site("encoder", 0, "hidden")
GRIDS = [(2, 3), (5, 1), (1, 1), (7, 4)]


def grid(image: int) -> TokenGrid:
    rows, cols = GRIDS[image % len(GRIDS)]
    return TokenGrid(rows, cols, (-0.5, 1 / 3, 640.25, 480.0 + image), tuple(range(image, image + rows * cols)))


def tokens(site: Site, image: int, dtype: torch.dtype) -> torch.Tensor:
    """Any bits at all, NaNs of every kind among them."""
    heads, dim = (1, 6) if site == TOWER else (3, 8)
    shape = (heads, grid(image).rows, grid(image).cols, dim * dtype.itemsize)
    maker = np.random.default_rng([site.number, image])
    return torch.from_numpy(maker.integers(0, 256, shape, np.uint8)).view(dtype)


def write(store: Store, shard: int, images: list[int], sites: list[Site], dtype: torch.dtype) -> bool:
    stored = {site: [tokens(site, i, dtype) for i in images] for site in sites}
    return store.write_capture("cap", shard, images, [grid(i) for i in images], stored, {"device": "cpu"})


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_captures_come_back_bit_for_bit(store: Store, dtype: torch.dtype) -> None:
    """Odd grids, several shards and row groups, any order, the same image twice."""
    sites = [KEY, VALUE, TOWER]
    assert write(store, 0, list(range(19)), sites, dtype)
    assert write(store, 1, [40, 21, 33], sites, dtype)
    assert not write(store, 1, [40, 21, 33], sites, dtype)
    stored = store.open_capture("cap")
    wanted = [33, 0, 18, 7, 8, 40, 0]
    assert stored.has(wanted, sites)
    read = stored.read(wanted, sites)
    for image, (found, by_site) in zip(wanted, read, strict=True):
        assert found == grid(image)
        assert list(by_site) == sites
        for site in sites:
            assert same_bits(by_site[site], tokens(site, image, dtype))
    assert list(problems(store)) == []


def test_the_layout_is_one_that_reads_little(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file a site, a column a head, small row groups, nothing packed; files of other row groups are read as well."""
    import pyarrow.parquet as pq

    write(store, 0, list(range(19)), [KEY], torch.bfloat16)
    (path,) = store.root.glob("captures/cap/0000-*/decoder-03-key.parquet")
    file = pq.ParquetFile(path)
    assert file.schema_arrow.names[-3:] == ["key_0", "key_1", "key_2"]
    assert file.num_row_groups == 3
    column = file.metadata.row_group(0).column(file.metadata.num_columns - 1)
    assert (column.compression, column.statistics, column.has_dictionary_page) == ("UNCOMPRESSED", None, False)
    monkeypatch.setattr("vkvdb.captures.ROW_GROUP", 16)
    for image, (_, read) in enumerate(store.open_capture("cap").read(range(19), [KEY])):
        assert same_bits(read[KEY], tokens(KEY, image, torch.bfloat16))


def test_tokens_that_lie_scattered_in_memory_are_stored_in_order(store: Store) -> None:
    scattered = torch.arange(48, dtype=torch.bfloat16).view(4, 3, 2, 2).permute(1, 2, 3, 0)  # (3, 2, 2, 4)
    assert not scattered.is_contiguous()
    store.write_capture("cap", 0, [5], [TokenGrid(2, 2, (0, 0, 1, 1))], {KEY: [scattered]}, {})
    ((_, read),) = store.open_capture("cap").read([5], [KEY])
    assert torch.equal(read[KEY], scattered)
    read[KEY] += 1  # it is the reader's own memory
    ((_, again),) = store.open_capture("cap").read([5], [KEY])
    assert torch.equal(again[KEY], scattered)


def test_sites_are_added_later(store: Store) -> None:
    images = list(range(10))
    write(store, 0, images, [KEY], torch.float16)
    stored = store.open_capture("cap")
    assert not stored.has([0], [KEY, VALUE])
    with pytest.raises(KeyError, match=r"decoder\.12\.value of image 3 is not stored"):
        stored.read([3], [VALUE])
    before = tree(store.root)
    assert write(store, 0, images, [KEY, VALUE], torch.float16)
    assert before.items() <= tree(store.root).items()
    assert store.open_capture("cap").has(images, [KEY, VALUE])
    assert not store.open_capture("cap").has([*images, 10], [KEY])
    ((_, read),) = stored.read([9], [VALUE, KEY])
    assert same_bits(read[VALUE], tokens(VALUE, 9, torch.float16))
    assert [m["sites"] for m in store.capture_shards("cap")].count([str(KEY)]) == 1
    assert list(problems(store)) == []


def test_runs_that_were_cut_differently_lie_side_by_side(store: Store) -> None:
    """A shard's size depends on what is asked for: shard 1 of two jobs may hold different images."""
    write(store, 1, [4, 5], [KEY], torch.float16)  # shard 0, of images 0 to 3, is not there yet
    for shard, images in enumerate([[0, 1], [2, 3], [4, 5]]):
        write(store, shard, images, [KEY, VALUE], torch.float16)
    for image, (found, read) in enumerate(store.open_capture("cap").read(range(6), [KEY, VALUE])):
        assert found == grid(image)
        assert same_bits(read[KEY], tokens(KEY, image, torch.float16))
        assert same_bits(read[VALUE], tokens(VALUE, image, torch.float16))


def test_equal_captures_are_equal_files(store: Store, tmp_path: Path) -> None:
    again = Store(tmp_path / "again")
    for one in (store, again):
        write(one, 0, [3, 4], [VALUE, KEY], torch.bfloat16)
    assert tree(store.root) == tree(again.root)


def test_captures_that_do_not_fit_are_refused(store: Store) -> None:
    good, other = tokens(KEY, 0, torch.float16), tokens(KEY, 1, torch.float16)
    refused: list[tuple[list[int], list[TokenGrid], list[torch.Tensor]]] = [
        ([0, 1], [grid(0)], [good, other]),
        ([0, 0], [grid(0), grid(0)], [good, good]),
        ([0, 1], [grid(0), grid(1)], [good, good]),
        ([0, 1], [grid(0), grid(1)], [good, other.view(torch.bfloat16)]),
        ([], [], []),
    ]
    for images, grids, values in refused:
        with pytest.raises(ValueError, match=r"do not fit|expected"):
            store.write_capture("cap", 0, images, grids, {KEY: values}, {})
    assert not store.root.exists()


def test_a_cleared_cache_is_noticed(store: Store) -> None:
    write(store, 0, [0, 1], [KEY], torch.float16)
    assert store.open_capture("cap").has([0], [KEY])
    shutil.rmtree(store.root / "captures")
    assert not store.open_capture("cap").has([0], [KEY])


def test_a_damaged_capture_is_told(store: Store) -> None:
    write(store, 0, [0, 1], [KEY], torch.float16)
    stored = store.open_capture("cap")
    (path,) = store.root.glob("captures/cap/*/*.parquet")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DamagedStore, match=r"decoder-03-key\.parquet"):
        stored.read([0], [KEY])
    path.unlink()
    with pytest.raises(DamagedStore, match=r"No such file|not exist"):
        stored.read([0], [KEY])


def test_manifests_are_plain_json(store: Store) -> None:
    write(store, 0, [0, 1], [KEY], torch.float16)
    (path,) = store.root.glob("captures/cap/*.json")
    body = json.loads(path.read_text(encoding="utf-8"))
    assert body["images"] == [0, 1]
    assert '"images": [0, 1]' in path.read_text(encoding="utf-8")
