"""The door to a dataset's images."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vkvdb.datasets import _warp
from vkvdb.errors import BadImage
from vkvdb.images import open_image
from vkvdb.store import ImageRow
from vkvdb.types import ImageFile


def row(path: Path, recipe: str = "") -> ImageRow:
    """The row that ingesting a file gives."""
    data = path.read_bytes() if path.is_file() else b""
    return ImageRow(
        image=0,
        name="a",
        path=path.name,
        recipe=recipe,
        width=1,
        height=1,
        sha256=hashlib.sha256(data).hexdigest(),
        bytes=1,
    )


def picture(path: Path, mode: str = "RGB", **options: object) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGB", "jpg"), ("L", "jpg"), ("CMYK", "jpg"), ("P", "png"), ("RGBA", "png")]
)
def test_every_mode_comes_as_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    image = open_image(tmp_path, row(picture(tmp_path / f"a.{suffix}", mode)))
    assert (image.mode, image.size) == ("RGB", (64, 48))


def test_orientation_is_left_as_the_pixels_are_stored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees to show"
    assert open_image(tmp_path, row(picture(tmp_path / "a.jpg", exif=exif))).size == (64, 48)


def test_a_recipe_is_applied(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    warped, _ = _warp.pair(ImageFile("a", "a.png"), 64, 48)
    image = open_image(tmp_path, row(path, json.dumps(dict(warped.recipe))))
    assert image.size == (64, 48)
    assert np.abs(np.asarray(image).astype(int) - np.asarray(Image.open(path))).mean() > 20


def test_a_recipe_for_another_size_is_refused(tmp_path: Path) -> None:
    warped, _ = _warp.pair(ImageFile("a", "a.png"), 48, 64)
    with pytest.raises(BadImage, match="made for"):
        open_image(tmp_path, row(picture(tmp_path / "a.png"), json.dumps(dict(warped.recipe))))


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    whole = picture(tmp_path / "a.jpg").read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("no image")
    png = bytearray(picture(tmp_path / "b.png").read_bytes())
    png[len(png) // 2] ^= 0xFF
    (tmp_path / "damaged.png").write_bytes(png)
    (tmp_path / "folder.jpg").mkdir()
    for name, why in {
        "truncated.jpg": "truncated",
        "text.jpg": "no image",
        "damaged.png": "damaged.png",
        "folder.jpg": "directory",
        "missing.jpg": "no such file",
    }.items():
        with pytest.raises(BadImage, match=why) as caught:
            open_image(tmp_path, row(tmp_path / name))
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_another_file_than_was_ingested_is_refused(tmp_path: Path) -> None:
    known = row(picture(tmp_path / "a.png"))
    picture(tmp_path / "a.png", "L")
    with pytest.raises(BadImage, match="not the file that was ingested"):
        open_image(tmp_path, known)
