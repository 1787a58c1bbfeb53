"""What adapters share that read label images: colours, palettes, grey levels; sizes, lists of names, threads."""

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
    import PIL.Image

Item = TypeVar("Item")
Result = TypeVar("Result")

VOID = 255
"""The palette index that stands for pixels of no known label."""
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")


# --- files ------------------------------------------------------------------------------------------------------------


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


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder, by name; hidden files are not looked at."""
    found = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(path for path in found if path.suffix.lower() in _SUFFIXES)


def on_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map` on as many threads as there are cores, in order; decoding lets the others run."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            yield from pool.map(work, items)
        except BaseException:  # Ctrl-C too: what waits is not begun
            pool.shutdown(wait=False, cancel_futures=True)
            raise


# --- images -----------------------------------------------------------------------------------------------------------


def _decoded(path: Path) -> PIL.Image.Image:
    """A label image, decoded whole. Raises ValueError, saying why, where it can't be."""
    import PIL.Image

    try:
        with PIL.Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}") from None
    except PIL.UnidentifiedImageError:
        why = "it is no image"
    # The decoder may raise any of these on damaged bytes; SyntaxError is Pillow's word for a broken PNG.
    except (OSError, SyntaxError, ValueError, EOFError, PIL.Image.DecompressionBombError) as error:
        why = str(error)
    raise ValueError(f"the mask {path} can't be read: {why}")


def size_told(path: Path) -> tuple[int, int] | None:
    """(width, height) by an image's first bytes; None where they tell none, which decoding will report."""
    import PIL.Image

    try:
        with PIL.Image.open(path) as image:
            return image.size
    except (OSError, SyntaxError, ValueError, EOFError, PIL.Image.DecompressionBombError):
        return None


def read_labels(path: Path, *, grey: bool = False) -> npt.NDArray[np.uint8]:
    """A label image (height, width): palette indices, or grey levels where it has no palette.

    Raises ValueError where there is none, where it is truncated, or has colours instead of labels; with `grey` these
    are turned into grey levels.
    """
    import numpy as np

    image = _decoded(path)
    if not grey and image.mode not in ("P", "L", "1"):
        raise ValueError(f"the mask {path} holds colours ({image.mode}), where a palette or grey levels are needed")
    return np.asarray(image if image.mode in ("P", "L") else image.convert("L"))


def read_colours(path: Path) -> npt.NDArray[np.int32]:
    """A label image (height, width) of a palette, grey or RGB, by its colours: one number a pixel, `number`.

    Raises ValueError where there is none, or where it is truncated.
    """
    import numpy as np

    return np.asarray(_decoded(path).convert("RGB")).astype(np.int32) @ np.array([1, 256, 65536], dtype=np.int32)


def number(colour: tuple[int, int, int]) -> int:
    """What `read_colours` has for a colour: R + 256 G + 65536 B."""
    return colour[0] + 256 * colour[1] + 65536 * colour[2]


def colour(number: int) -> tuple[int, int, int]:
    """The colour (R, G, B) of a number."""
    return number & 255, number >> 8 & 255, number >> 16
