"""Stored captures: the tokens that `vkvdb extract` keeps, in the model's own dtype, bit for bit.

captures/CAPTURE/NNNN-IMAGES/STAGE-LL-PART.parquet   tokens of a run of images at one site
captures/CAPTURE/NNNN-IMAGES-SITES.json              the manifest of what one job added: sites, images, file hashes

IMAGES and SITES are short hashes of the lists, so runs that were cut differently, and sites that are added later, lie
side by side. A file has a row an image: its number, its grid, and a BINARY column a head with the (rows x cols x dim)
bytes of its tokens, row by row. Heads are columns so that one can be read without the others.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vkvdb.errors import DamagedStore
from vkvdb.jobs import digest
from vkvdb.types import Site, TokenGrid

if TYPE_CHECKING:
    import torch

# A row group is what a read takes at least: as many images as a block has by default.
ROW_GROUP = 8
_GRID = ("image", "tokens", "rows", "cols", "window", "positions")
_ABOUT = b"vkvdb"


def plan(
    folder: Path,
    shard: int,
    images: Sequence[int],
    grids: Sequence[TokenGrid],
    tokens: Mapping[Site, Sequence[torch.Tensor]],
) -> tuple[dict[Path, Callable[[Path], None]], Path, dict[str, Any]]:
    """What publishing a shard takes: {file: how to write it}, the manifest's path, and what it says.

    Raises ValueError when the lists do not fit each other.
    """
    counts = {len(images), len(set(images)), len(grids), *map(len, tokens.values())}
    if len(counts) > 1 or not images or not tokens:
        raise ValueError(f"images, grids and tokens do not fit each other: {sorted(counts)} of them")
    sites = [str(site) for site in sorted(tokens)]
    run = f"{shard:04d}-{digest(list(images))[:8]}"
    files = {folder / run / _name(site): _writer(site, images, grids, tokens[site]) for site in sorted(tokens)}
    body = {"shard": shard, "images": list(images), "sites": sites}
    return files, folder / f"{run}-{digest(sites)[:8]}.json", body


def _name(site: Site) -> str:
    return f"{site.stage}-{site.layer:02d}-{site.part}.parquet"


def _writer(
    site: Site, images: Sequence[int], grids: Sequence[TokenGrid], tokens: Sequence[torch.Tensor]
) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        heads, _, _, dim = tokens[0].shape
        dtype = str(tokens[0].dtype).removeprefix("torch.")
        for grid, t in zip(grids, tokens, strict=True):
            found, wanted = (tuple(t.shape), str(t.dtype)), ((heads, grid.rows, grid.cols, dim), f"torch.{dtype}")
            if found != wanted:
                raise ValueError(f"tokens at {site} are {found}, expected {wanted}")
        columns: dict[str, pa.Array] = {
            "image": pa.array(images, pa.int32()),
            "tokens": pa.array([g.rows * g.cols for g in grids], pa.int32()),
            "rows": pa.array([g.rows for g in grids], pa.int32()),
            "cols": pa.array([g.cols for g in grids], pa.int32()),
            "window": pa.array([g.window for g in grids], pa.list_(pa.float64(), 4)),
            "positions": pa.array([g.positions for g in grids], pa.list_(pa.int32())),
        }
        for head in range(heads):
            columns[f"{site.part}_{head}"] = pa.array([_bytes(t[head]) for t in tokens], pa.binary())
        about = {"format": 1, "site": str(site), "heads": heads, "dim": dim, "dtype": dtype, "row_group": ROW_GROUP}
        table = pa.table(columns).replace_schema_metadata({_ABOUT: json.dumps(about, sort_keys=True)})
        pq.write_table(
            table, path, row_group_size=ROW_GROUP, compression="none", use_dictionary=False, write_statistics=["image"]
        )

    return write


def _bytes(tokens: torch.Tensor) -> bytes:
    """A tensor's elements as they lie in memory, row by row; numpy knows no bfloat16, but it knows bytes."""
    import torch

    raw: bytes = tokens.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return raw


class StoredCapture:
    """What is stored of one capture. `manifests` are those of its shards."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, dict[str, Any]] = {}
        self._runs: dict[int, list[tuple[Path, frozenset[str]]]] = {}  # image -> runs that hold it, with their sites

    @property
    def manifests(self) -> list[dict[str, Any]]:
        return [self._known[name] for name in sorted(self._known)]

    def refresh(self, read_json: Callable[[Path], dict[str, Any]]) -> None:
        """Take note of shards that were published, or removed, since."""
        there = sorted(path.name for path in self._folder.glob("*.json"))
        if set(self._known) - set(there):  # captures are a cache: a person may have cleared it
            self._known, self._runs = {}, {}
        for name in there:
            if name in self._known:
                continue
            body = self._known[name] = read_json(self._folder / name)
            run = self._folder / name.rpartition("-")[0]
            for image in body["images"]:
                self._runs.setdefault(image, []).append((run, frozenset(body["sites"])))

    def has(self, images: Iterable[int], sites: Iterable[Site]) -> bool:
        """Whether all of these sites of all of these images are stored."""
        wanted = {str(site) for site in sites}
        return all(wanted <= set().union(*(there for _, there in self._runs.get(i, []))) for i in images)

    def read(self, images: Sequence[int], sites: Sequence[Site]) -> list[tuple[TokenGrid, dict[Site, torch.Tensor]]]:
        """For each image its grid and {site: (H, R, C, D)}, in the dtype that was stored.

        Raises KeyError for what is not stored (ask `has`), DamagedStore for a file that can't be read.
        """
        found: dict[int, tuple[TokenGrid, dict[Site, torch.Tensor]]] = {}
        for site in sites:
            files: dict[Path, list[int]] = defaultdict(list)
            for image in dict.fromkeys(images):
                files[self._file(image, site)].append(image)
            for path, wanted in files.items():
                for image, grid, tokens in _read(path, site, wanted):
                    found.setdefault(image, (grid, {}))[1][site] = tokens
        return [found[image] for image in images]

    def _file(self, image: int, site: Site) -> Path:
        for run, sites in self._runs.get(image, []):
            if str(site) in sites:
                return run / _name(site)
        raise KeyError(f"{site} of image {image} is not stored")


def _read(path: Path, site: Site, images: Sequence[int]) -> list[tuple[int, TokenGrid, torch.Tensor]]:
    """Some images of a file, reading the row groups that hold them."""
    try:
        file = pq.ParquetFile(path, memory_map=True)
        about = json.loads(file.schema_arrow.metadata[_ABOUT])
        numbers = file.read(columns=["image"])["image"].to_pylist()
        where = {number: divmod(row, about["row_group"]) for row, number in enumerate(numbers)}
        columns = [*_GRID, *(f"{site.part}_{head}" for head in range(about["heads"]))]
        groups = {where[image][0] for image in images}
        tables = {g: file.read_row_group(g, columns=columns).combine_chunks() for g in groups}
    except (OSError, ValueError, KeyError) as error:  # Arrow's errors are OSError or ValueError
        raise DamagedStore(path=path, why=" ".join(str(error).split())) from error
    return [(image, *_row(tables[where[image][0]], where[image][1], about)) for image in images]


def _row(table: pa.Table, row: int, about: Mapping[str, Any]) -> tuple[TokenGrid, torch.Tensor]:
    import torch

    cells = {name: table[name][row].as_py() for name in _GRID}
    grid = TokenGrid(cells["rows"], cells["cols"], tuple(cells["window"]), tuple(cells["positions"]))
    # The one copy after Arrow's own decoding is the one that puts the heads side by side.
    heads = np.stack([_view(column.chunk(0), row) for column in table.columns[len(_GRID) :]])
    tokens = torch.from_numpy(heads).view(getattr(torch, about["dtype"]))
    return grid, tokens.view(about["heads"], grid.rows, grid.cols, about["dim"])


def _view(column: pa.BinaryArray, row: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A cell of a BINARY column as bytes, without copying it."""
    _, offsets, data = column.buffers()
    begin, end = np.frombuffer(offsets, np.int32, 2, (column.offset + row) * 4)
    return np.frombuffer(data, np.uint8, end - begin, begin)
