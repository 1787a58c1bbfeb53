"""Ground truth that is painted: a label image as colours, a label for each colour."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_In = TypeVar("_In")
_Out = TypeVar("_Out")

WORKERS = 4
IMAGES = (".jpg", ".jpeg", ".png", ".bmp")


def read_colours(path: Path) -> npt.NDArray[np.uint8]:
    """A label image, of a palette, grey or RGB, as an array (height, width, 3) of colours.

    Raises ValueError, saying why, where it can't be decoded whole.
    """
    import numpy as np
    import PIL.Image

    try:
        with PIL.Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise ValueError("there is no such file") from None
    except PIL.UnidentifiedImageError:
        raise ValueError("it is no image") from None
    # The decoder may raise any of these on damaged bytes; SyntaxError is Pillow's word for a broken PNG.
    except (OSError, SyntaxError, EOFError, PIL.Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error


def packed(colours: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """Colours (height, width, 3) as one number a pixel, R + 256 G + 65536 B."""
    import numpy as np

    return colours.astype(np.int32) @ np.array([1, 256, 65536], dtype=np.int32)


def unpacked(number: int) -> tuple[int, int, int]:
    """The colour (R, G, B) of a number."""
    return number & 255, number >> 8 & 255, number >> 16


def side_by_side(work: Callable[[_In], _Out], items: Iterable[_In]) -> Iterator[_Out]:
    """What `work` gives for each item, in their order, some of them at a time: decoding is done outside Python."""
    with ThreadPoolExecutor(WORKERS) as pool:
        yield from pool.map(work, items)


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder, by name; hidden files are not looked at."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGES and not path.name.startswith("."))
