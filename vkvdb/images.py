"""The one door to the images of a dataset: bytes as they were ingested, decoded to RGB, warped where a recipe says so.

An image is a file of its own, or a cell of a parquet file (`FILE.parquet/ROW/COLUMN`, see `vkvdb.datasets._parquet`).
EXIF orientation is **not** applied: the annotations of COCO and of the other datasets count pixels as they are stored.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vkvdb.datasets import _parquet, _warp
from vkvdb.errors import BadImage

if TYPE_CHECKING:
    import PIL.Image


class Row(Protocol):
    """What is known of an ingested image (`store.ImageRow` has it): where it lies, its recipe as JSON, its content."""

    @property
    def path(self) -> str: ...
    @property
    def recipe(self) -> str: ...
    @property
    def sha256(self) -> str: ...


def open_image(root: Path, row: Row) -> PIL.Image.Image:
    """The image of a row as RGB; `root` is what `extraction.dataset_root` gives.

    Raises BadImage when the file is not there, can't be decoded, or is not the file that was ingested.
    """
    path = root / row.path
    data = read_bytes(path)
    if hashlib.sha256(data).hexdigest() != row.sha256:
        raise BadImage(path=path, why="it is not the file that was ingested", hint="; ingest the dataset again")
    image = decode(data, path)
    if not row.recipe:
        return image
    try:
        return _warp.apply(image, json.loads(row.recipe))
    except ValueError as error:
        raise BadImage(path=path, why=error, hint="") from error


def file_of(path: Path) -> Path:
    """The file on disk that holds an image's bytes: its own, or the parquet file that it is a cell of."""
    cell = _parquet.cell_of(path)
    return cell.file if cell else path


def read_bytes(path: Path) -> bytes:
    """An image's bytes; BadImage where there are none or they can't be read."""
    try:
        cell = _parquet.cell_of(path)
        return _parquet.read(cell) if cell else path.read_bytes()
    except FileNotFoundError:
        raise BadImage(path=path, why="there is no such file", hint="") from None
    except OSError as error:
        raise BadImage(path=path, why=error.strerror or error, hint="") from error
    except ValueError as error:
        raise BadImage(path=path, why=error, hint="") from error


def decode(data: bytes, path: Path) -> PIL.Image.Image:
    """Decode a whole file to RGB; BadImage where it is truncated or no image."""
    import PIL.Image

    try:
        # The decoder may raise any of these on damaged bytes; SyntaxError is Pillow's word for a broken PNG.
        with PIL.Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB")
    except PIL.UnidentifiedImageError:
        raise BadImage(path=path, why="it is no image", hint="") from None
    except (OSError, SyntaxError, ValueError, EOFError, PIL.Image.DecompressionBombError) as error:
        raise BadImage(path=path, why=error, hint="") from error
