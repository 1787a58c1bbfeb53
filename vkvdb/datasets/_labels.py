"""What adapters of label images share: lists of names, palette images, sizes, work on several threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from vkvdb.datasets._layout import need_file
from vkvdb.errors import BadDataset

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

VOID = 255
"""The palette index that stands for pixels of no known label."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_lines(path: Path, layout: str) -> list[str]:
    """The lines of a list of names, without empty ones. Raises BadDataset where it is missing, empty or no text."""
    try:
        lines = need_file(path, layout).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BadDataset(what=f"{path} can't be read: {error.strerror}", expected=layout) from error
    except UnicodeDecodeError as error:
        raise BadDataset(what=f"{path} is no text: {error}", expected=layout) from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise BadDataset(what=f"{path} is empty", expected=layout)
    return names


def read_labels(path: Path, *, grey: bool = False) -> npt.NDArray[np.uint8]:
    """A label image (height, width): palette indices, or grey levels where it has no palette.

    Raises ValueError where there is none, where it is truncated, or has colours instead of labels; with `grey` these
    are turned into grey levels.
    """
    import numpy as np
    import PIL.Image

    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        with PIL.Image.open(path) as image:
            image.load()
            mode = image.mode
            labels = np.asarray(image if mode in ("P", "L") else image.convert("L"))
    # The decoder may raise any of these on damaged bytes; SyntaxError is Pillow's word for a broken PNG.
    except (OSError, SyntaxError, ValueError, EOFError, PIL.Image.DecompressionBombError) as error:
        raise ValueError(f"the mask {path} can't be read: {error}") from error
    if not grey and mode not in ("P", "L", "1"):
        raise ValueError(f"the mask {path} holds colours ({mode}), where a palette or grey levels are needed")
    return labels


def size_told(path: Path) -> tuple[int, int] | None:
    """(width, height) by an image's first bytes; None where they tell none, which decoding will report."""
    import PIL.Image

    try:
        with PIL.Image.open(path) as image:
            return image.size
    except (OSError, SyntaxError, ValueError, EOFError, PIL.Image.DecompressionBombError):
        return None


def on_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map` on as many threads as there are cores, in order; decoding lets the others run."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            yield from pool.map(work, items)
        except BaseException:  # Ctrl-C too: what waits is not begun
            pool.shutdown(wait=False, cancel_futures=True)
            raise
