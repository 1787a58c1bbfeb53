"""Images that lie as bytes in a parquet file, as datasets of the Hugging Face hub are published; they are not copied.

Such an image has the path `FILE.parquet/ROW/COLUMN`: the file, the row from 0, and a column of `{bytes, path}`. Rows
are read by row group, and the last few columns of groups are kept, for a dataset's images are asked for in its order.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIX = ".parquet"
KEPT = 4  # columns of a row group in memory, each of some tens of MB

_kept: OrderedDict[tuple[Path, int, int, str], pa.ChunkedArray] = OrderedDict()
_lock = threading.Lock()


class Cell(NamedTuple):
    """A cell of a parquet file: a row, from 0, of a column."""

    file: Path
    row: int
    column: str


def cell_of(path: Path) -> Cell | None:
    """The cell that a path names; None for the path of a file."""
    file, row = path.parent.parent, path.parent.name
    return Cell(file, int(row), path.name) if file.suffix == SUFFIX and row.isdecimal() else None


def read(cell: Cell) -> bytes:
    """The bytes of an image in a cell.

    Raises OSError where there is no such file, ValueError where it is no parquet file or has no such image.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    changed = cell.file.stat().st_mtime_ns  # FileNotFoundError, in Python's words
    try:
        with pq.ParquetFile(cell.file) as file:
            group, row = _group(file.metadata, cell)
            key = (cell.file, changed, group, cell.column)
            with _lock:
                values = _kept.get(key)
                if values is None:
                    values = _kept[key] = file.read_row_group(group, columns=[f"{cell.column}.bytes"]).column(0)
                _kept.move_to_end(key)
                while len(_kept) > KEPT:
                    _kept.popitem(last=False)
            image = values[row].as_py()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"it can't be read from its parquet file: {str(error).splitlines()[0]}") from error
    data = image.get("bytes") if isinstance(image, dict) else None
    if isinstance(data, bytes):
        return data
    raise ValueError(f"row {cell.row} holds no image in {cell.column}")


def _group(metadata: pa._parquet.FileMetaData, cell: Cell) -> tuple[int, int]:
    """The row group that a row lies in, and its place there."""
    columns = {metadata.schema.column(index).path for index in range(metadata.num_columns)}
    if f"{cell.column}.bytes" not in columns:
        raise ValueError(f"there is no column {cell.column} of images")
    left = cell.row
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if left < rows:
            return group, left
        left -= rows
    raise ValueError(f"there is no row {cell.row}, the file has {metadata.num_rows}")
