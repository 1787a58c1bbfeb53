"""MSRC-21: its painted ground truth, and what is wrong with it told in a line each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pil

from vkvdb import masks
from vkvdb.datasets.msrc import COLOURS, LEFT_OUT, Msrc
from vkvdb.errors import BadDataset, UnsoundDataset
from vkvdb.ingestion import ingest
from vkvdb.paths import Home
from vkvdb.samples import Image, ImageSet
from vkvdb.store import Store

WIDTH, HEIGHT = 40, 30
COW, GRASS, HORSE, VOID, WHITE = COLOURS["cow"], COLOURS["grass"], LEFT_OUT["horse"], (0, 0, 0), (255, 255, 255)


def paint(*bands: tuple[int, int, int]) -> Pil.Image:
    """Bands of colour from left to right, of equal width."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    for band, colour in zip(np.array_split(np.arange(WIDTH), len(bands)), bands, strict=True):
        pixels[:, band] = colour
    return Pil.fromarray(pixels)


def add(root: Path, stem: str, truth: Pil.Image, folder: str = "", suffix: str = "_GT") -> None:
    rng = np.random.default_rng(0)
    for place in ("Images", "GroundTruth"):
        (root / place / folder).mkdir(parents=True, exist_ok=True)
    photograph = Pil.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    photograph.save(root / "Images" / folder / f"{stem}.bmp")
    truth.save(root / "GroundTruth" / folder / f"{stem}{suffix}.bmp")


def make(root: Path) -> Path:
    add(root, "1_1_s", paint(COW, GRASS, VOID, HORSE))
    add(root, "1_2_s", paint(COW, COW, COW, GRASS).quantize(4))
    add(root, "1_3_s", paint(GRASS))
    (root / "Images" / "Thumbs.db").write_bytes(b"what Windows leaves")
    return root


def coseg(root: Path) -> Path:
    add(root, "1_1_s", paint(COW, GRASS, VOID, HORSE), "cow", "")
    add(root, "1_2_s", paint(WHITE, VOID), "cow", "")
    add(root, "4_1_s", paint(HORSE, GRASS, VOID), "horse", "")
    return root


def test_a_sound_tree(tmp_path: Path) -> None:
    reading = Msrc().read(make(tmp_path / "msrc"), "21")
    assert reading.problems == []
    assert [image.path for image in reading.images] == [f"Images/1_{n}_s.bmp" for n in (1, 2, 3)]
    sets = {one.group: [member.image for member in one.members] for one in reading.samples if isinstance(one, ImageSet)}
    assert sets == {"cow": ["1_1_s", "1_2_s"], "grass": ["1_1_s", "1_2_s", "1_3_s"]}
    images = {one.id: one for one in reading.samples if isinstance(one, Image)}
    assert list(images) == ["cow/1_1_s", "cow/1_2_s", "grass/1_1_s", "grass/1_2_s", "grass/1_3_s"]
    cow = images["cow/1_1_s"]
    assert (cow.category, cow.group, cow.cluster) == ("cow", "cow", "1_1_s")
    assert cow.mask
    assert cow.ignore
    assert (masks.decode(cow.mask) == (np.arange(WIDTH) < 10)).all()
    assert (masks.decode(cow.ignore) == (np.arange(WIDTH) >= 20)).all()  # void and horse
    assert images["grass/1_3_s"].ignore is None


def test_folders_by_class(tmp_path: Path) -> None:
    reading = Msrc().read(coseg(tmp_path / "msrc"), "coseg")
    assert reading.problems == []
    assert [image.name for image in reading.images] == ["cow/1_1_s", "cow/1_2_s", "horse/4_1_s"]
    images = {one.image: one for one in reading.samples if isinstance(one, Image)}
    assert [one.group for one in images.values()] == ["cow", "cow", "horse"]
    painted, white, horse = images.values()
    assert painted.mask
    assert painted.ignore
    assert masks.area(painted.mask) == 10 * HEIGHT
    assert masks.area(painted.ignore) == 20 * HEIGHT
    assert white.mask
    assert masks.area(white.mask) == 20 * HEIGHT
    assert white.ignore is None
    assert horse.ignore  # void alone: the folder is called horse
    assert masks.area(horse.ignore) == 13 * HEIGHT
    assert [one.group for one in reading.samples if isinstance(one, ImageSet)] == ["cow"]


def test_photographs(shared: Path, home: Home, tmp_path: Path) -> None:
    """Three pictures of the database, put into its layout."""
    root = tmp_path / "msrc"
    for place in ("Images", "GroundTruth"):
        (root / place).mkdir(parents=True)
    for n in (1, 2, 3):
        (root / "Images" / f"{n}_1_s.png").symlink_to(shared / f"data/msrc21_from_pydensecrf/im{n}.png")
        (root / "GroundTruth" / f"{n}_1_s_GT.png").symlink_to(shared / f"data/msrc21_from_pydensecrf/anno{n}.png")
    reading = Msrc().read(root, "21")
    assert reading.problems == []
    found = {one.id for one in reading.samples if isinstance(one, Image)}
    assert found == {
        "bird/1_1_s",
        "water/1_1_s",
        "grass/2_1_s",
        "chair/2_1_s",
        "grass/3_1_s",
        "body/3_1_s",
        "face/3_1_s",
    }
    done = ingest("msrc-21", root, home, Store(home.store))
    assert done.manifest["samples"] == {"image": 7, "image_set": 1}


def cut(path: str) -> Callable[[Path], object]:
    return lambda root: (root / path).write_bytes((root / path).read_bytes()[:200])


def strange(root: Path) -> None:
    paint((1, 2, 3)).save(root / "GroundTruth/1_1_s_GT.bmp")


def another_truth(root: Path) -> None:
    paint(COW).save(root / "GroundTruth/1_1_s.png")


def another_size(root: Path) -> None:
    paint(COW).resize((20, 20)).save(root / "GroundTruth/1_1_s_GT.bmp")


@pytest.mark.parametrize(
    ("change", "where", "what", "samples"),
    [
        (cut("Images/1_1_s.bmp"), "Images/1_1_s.bmp", "truncated", {"image": 3, "image_set": 1}),
        (cut("GroundTruth/1_1_s_GT.bmp"), "GroundTruth/1_1_s_GT.bmp", "truncated", {"image": 3, "image_set": 1}),
        (
            strange,
            "GroundTruth/1_1_s_GT.bmp",
            r"colour \(1, 2, 3\), which is no category",
            {"image": 3, "image_set": 1},
        ),
        (lambda r: (r / "Images/1_1_s.bmp").unlink(), "1_1_s_GT.bmp", "no image 1_1_s", {"image": 3, "image_set": 1}),
        (
            lambda r: (r / "GroundTruth/1_1_s_GT.bmp").unlink(),
            "Images/1_1_s.bmp",
            "no ground truth",
            {"image": 3, "image_set": 1},
        ),
        (lambda r: paint(COW).save(r / "Images/1_1_s.png"), "Images/1_1_s.png", "two images are called 1_1_s", None),
        (another_truth, "1_1_s_GT.bmp", "has two ground truths", {"image": 4, "image_set": 2}),
        (lambda r: paint(COW).save(r / "GroundTruth/9.jpg"), "GroundTruth/9.jpg", "it is a JPEG", None),
        (another_size, "1_1_s_GT.bmp", "it is 20 x 20, its image 40 x 30", {"image": 3, "image_set": 1}),
    ],
)
def test_every_problem_is_told_and_the_rest_is_ingested(
    home: Home,
    tmp_path: Path,
    *,
    change: Callable[[Path], object],
    where: str,
    what: str,
    samples: dict[str, int] | None,
) -> None:
    root = make(tmp_path / "msrc")
    change(root)
    with pytest.raises(UnsoundDataset, match=what) as caught:
        ingest("msrc-21", root, home, Store(home.store))
    assert where in str(caught.value)
    done = ingest("msrc-21", root, home, Store(home.store), skip_bad=True)
    assert where in str(done.manifest["problems"])
    assert done.manifest["samples"] == (samples or {"image": 5, "image_set": 2})


@pytest.mark.parametrize(
    ("folder", "truth", "what"),
    [
        ("cow", paint(GRASS), "it has too few pixels of cow"),
        ("cow", paint(VOID), "it is white nowhere"),
        ("dragon", paint(COW), "there is no category dragon"),
        ("cow", paint(COW, WHITE), "which is no category"),
    ],
)
def test_a_folder_of_another_class(tmp_path: Path, folder: str, truth: Pil.Image, what: str) -> None:
    root = coseg(tmp_path / "msrc")
    add(root, "9_9_s", truth, folder, "")
    reading = Msrc().read(root, "coseg")
    assert [(one.where, what in one.what) for one in reading.problems] == [(f"GroundTruth/{folder}/9_9_s.bmp", True)]
    assert len([one for one in reading.samples if isinstance(one, Image)]) == 3


def test_what_is_missing_is_said_and_where_it_is_published(tmp_path: Path) -> None:
    root = make(tmp_path / "msrc")
    with pytest.raises(BadDataset, match=r"no images with ground truth; expected .*microsoft\.com"):
        Msrc().read(root, "coseg")
    (root / "Images/cow").mkdir()
    with pytest.raises(BadDataset, match=r"no folder .*GroundTruth/cow"):
        Msrc().read(root, "coseg")
    (root / "GroundTruth").rename(root / "Truth")
    with pytest.raises(BadDataset, match=r"no folder .*GroundTruth; expected Images/ and GroundTruth/"):
        Msrc().read(root, "21")


def test_colours_are_different() -> None:
    assert len(COLOURS) == 21
    assert len(set((COLOURS | LEFT_OUT).values())) == 23
