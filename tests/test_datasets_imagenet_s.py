"""ImageNet-S: the layout that its scripts make, and what is wrong with it told in a line each."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pil

from vkvdb import masks
from vkvdb.datasets.imagenet_s import ImageNetS
from vkvdb.errors import BadDataset, UnsoundDataset
from vkvdb.ingestion import ingest
from vkvdb.paths import Home
from vkvdb.samples import Image
from vkvdb.store import Store

WIDTH, HEIGHT = 32, 24
CATEGORIES = [f"n{10_000_000 + n}" for n in range(1, 301)]
FIRST, LAST = CATEGORIES[0], CATEGORIES[299]


def mask(*bands: int) -> Pil.Image:
    """Bands of category numbers from left to right, of equal width: R + 256 G."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    for band, number in zip(np.array_split(np.arange(WIDTH), len(bands)), bands, strict=True):
        pixels[:, band] = (number % 256, number // 256, 0)
    return Pil.fromarray(pixels)


def make(root: Path, folder: str = "validation", size: int = 300) -> Path:
    """Two images of the first category, one of the last; the other categories' folders are empty."""
    for place in (folder, f"{folder}-segmentation"):
        for category in CATEGORIES[:size]:
            (root / place / category).mkdir(parents=True)
    rng = np.random.default_rng(0)
    last = CATEGORIES[size - 1]
    for category, stem, truth in (
        (FIRST, "ILSVRC2012_val_00000001", mask(1, 0, 1000, 2)),
        (FIRST, "ILSVRC2012_val_00000002", mask(0, 1)),
        (last, "ILSVRC2012_val_00000003", mask(size)),
    ):
        photograph = Pil.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8))
        photograph.save(root / folder / category / f"{stem}.JPEG")
        truth.save(root / f"{folder}-segmentation" / category / f"{stem}.png")
    lines = [f"{category} thing {n}, other word" for n, category in enumerate(CATEGORIES[:size], start=1)]
    (root / "LOC_synset_mapping.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize(
    ("split", "folder", "size"),
    [("300-validation", "validation", 300), ("50-validation", "validation", 50), ("50-semi", "train-semi", 50)],
)
def test_a_sound_tree(tmp_path: Path, split: str, folder: str, size: int) -> None:
    reading = ImageNetS().read(make(tmp_path / "ImageNetS", folder, size), split)
    assert reading.problems == []
    assert reading.images[0].path == f"{folder}/{FIRST}/ILSVRC2012_val_00000001.JPEG"
    one, two, three = (sample for sample in reading.samples if isinstance(sample, Image))
    assert (one.id, one.image) == (f"{FIRST}/ILSVRC2012_val_00000001", f"{FIRST}/ILSVRC2012_val_00000001")
    assert (one.group, one.category, one.cluster) == (FIRST, "thing 1", one.image)
    assert (three.group, three.category) == (CATEGORIES[size - 1], f"thing {size}")
    assert one.mask
    assert one.ignore
    # Pixels of another category are background.
    assert (masks.decode(one.mask) == (np.arange(WIDTH) < 8)).all()
    assert (masks.decode(one.ignore) == (np.arange(WIDTH) // 8 == 2)).all()
    assert two.ignore is None
    assert three.mask
    assert masks.area(three.mask) == WIDTH * HEIGHT


def test_the_real_lists(shared: Path, home: Home, tmp_path: Path) -> None:
    """The published category list, with the first image of the published names and a mask drawn for it."""
    root, lists = tmp_path / "ImageNetS50", shared / "data/imagenet_s"
    shutil.copy(lists / "categories/ImageNetS_categories_im50.txt", root.parent)
    names = (lists / "names/ImageNetS_im50_validation.txt").read_text().splitlines()
    assert len(names) == 752
    categories = (lists / "categories/ImageNetS_categories_im50.txt").read_text().split()
    for line in (names[0], names[-1]):
        image, truth = line.split()
        category = image.split("/")[0]
        for place, path in (("validation", image), ("validation-segmentation", truth)):
            (root / place / path).parent.mkdir(parents=True, exist_ok=True)
        Pil.new("RGB", (WIDTH, HEIGHT)).save(root / "validation" / image)
        mask(categories.index(category) + 1, 0).save(root / "validation-segmentation" / truth)
    (root / "words.txt").write_text("".join(f"{category}\tword of {category}\n" for category in categories))
    with pytest.raises(BadDataset, match=r"im50\.txt is not there, and .* has 2 categories, ImageNetS50 has 50"):
        ImageNetS().read(root, "50-validation")
    (tmp_path / "ImageNetS_categories_im50.txt").rename(root / "ImageNetS_categories_im50.txt")
    done = ingest("imagenet_s-50-validation", root, home, Store(home.store))
    assert (done.manifest["problems"], done.manifest["samples"]) == ([], {"image": 2})


ONE = f"validation-segmentation/{FIRST}/ILSVRC2012_val_00000001.png"
PHOTOGRAPH = f"validation/{FIRST}/ILSVRC2012_val_00000001.JPEG"


def cut(path: str) -> Callable[[Path], object]:
    return lambda root: (root / path).write_bytes((root / path).read_bytes()[:-100])


def paint(*bands: int) -> Callable[[Path], object]:
    return lambda root: mask(*bands).save(root / ONE)


def cut_mask(root: Path) -> None:
    (root / ONE).write_bytes((root / ONE).read_bytes()[:60])


def stranger(root: Path) -> None:
    (root / "validation-segmentation/n99").mkdir()


def no_words(root: Path) -> None:
    file = root / "LOC_synset_mapping.txt"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))


@pytest.mark.parametrize(
    ("change", "where", "what", "kept"),
    [
        (cut(PHOTOGRAPH), PHOTOGRAPH, "truncated", 2),
        (cut_mask, ONE, "runcated", 2),
        (paint(1, 301), ONE, "it has pixels of category 301, there are 300", 2),
        (paint(2, 1000), ONE, "it has no pixel of its own category, 1", 2),
        (
            lambda root: mask(1).resize((9, 9)).save(root / ONE),
            f"{FIRST}/ILSVRC2012_val_00000001",
            "for 9 x 9 pixels",
            2,
        ),
        (lambda root: (root / PHOTOGRAPH).unlink(), ONE, f"there is no image {FIRST}/ILSVRC2012_val_00000001", 2),
        (lambda root: (root / ONE).unlink(), PHOTOGRAPH, "it has no mask", 2),
        (lambda root: shutil.copy(root / ONE, (root / PHOTOGRAPH).with_suffix(".png")), ".png", "two images are", 3),
        (lambda root: mask(1).save((root / ONE).with_suffix(".bmp")), ".bmp", "it is no PNG", 3),
        (no_words, FIRST, f"no words are told for {FIRST}", 1),
    ],
)
def test_every_problem_is_told_and_the_rest_is_ingested(
    home: Home, tmp_path: Path, *, change: Callable[[Path], object], where: str, what: str, kept: int
) -> None:
    root = make(tmp_path / "ImageNetS300")
    change(root)
    with pytest.raises(UnsoundDataset) as caught:
        ingest("imagenet_s-300-validation", root, home, Store(home.store))
    assert where in str(caught.value)
    assert what in str(caught.value)
    done = ingest("imagenet_s-300-validation", root, home, Store(home.store), skip_bad=True)
    assert where in str(done.manifest["problems"])
    assert done.manifest["samples"] == {"image": kept}


def test_a_folder_that_is_no_category(home: Home, tmp_path: Path) -> None:
    root = make(tmp_path / "ImageNetS300")
    stranger(root)
    with pytest.raises(BadDataset, match="has 301 categories, ImageNetS300 has 300"):
        ImageNetS().read(root, "300-validation")
    (root / "ImageNetS_categories_im300.txt").write_text("\n".join(CATEGORIES))
    reading = ImageNetS().read(root, "300-validation")
    assert [(one.where, one.what) for one in reading.problems] == [
        ("validation-segmentation/n99", "there is no category n99")
    ]
    assert len(reading.samples) == 3


def test_what_is_missing_is_said_and_where_it_is_published(tmp_path: Path) -> None:
    root = make(tmp_path / "ImageNetS300")
    for path, what in (
        ("validation", r"no folder .*validation; expected .*github\.com/LUSSeg/ImageNet-S"),
        ("validation-segmentation", "no folder .*validation-segmentation; expected"),
        ("LOC_synset_mapping.txt", r"no file .*LOC_synset_mapping\.txt; expected"),
    ):
        (root / path).rename(tmp_path / "away")
        with pytest.raises(BadDataset, match=what):
            ImageNetS().read(root, "300-validation")
        (tmp_path / "away").rename(root / path)
    with pytest.raises(BadDataset, match=r"no folder .*train-semi"):
        ImageNetS().read(root, "300-semi")
