"""ImageNet-S: photographs of ImageNet with masks of their category; the category's name is looked for in the image.

Origin: Gao et al. 2022, *Large-scale Unsupervised Semantic Segmentation* (TPAMI 2022, arXiv 2106.03149), with 50, 300
and 919 categories. The masks are to be had at https://github.com/LUSSeg/ImageNet-S, for research use only; its scripts
pick the photographs out of ImageNet (https://image-net.org). What they make, a folder `ImageNetS50` (300, 919), is the
root. A split is SIZE-validation (`validation/` and `validation-segmentation/`) or SIZE-semi (`train-semi/` and
`train-semi-segmentation/`, ten images a category); masks of the test split are withheld.

A mask's pixel is R + 256 G: 0 is anything else, 1000 is ignored, and a category's number is its place, from 1, among
the sorted WordNet ids [C: LUSSeg/ImageNet-S]. These are the lines of `ImageNetS_categories_im50.txt` where that lies
in the root, else the folders, which then have to be all there. An `Image` has its own category's mask: pixels of
another category are background, for the image's true class is given.

The words of a category are the first synonym in `LOC_synset_mapping.txt` (of ImageNet), `synset_words.txt` or
`words.txt`, whichever of them lies in the root [D].
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from vkvdb import masks
from vkvdb.datasets._label_images import images_in, on_threads, read_colours
from vkvdb.datasets._layout import need_folder
from vkvdb.errors import BadDataset
from vkvdb.samples import Image, Mask
from vkvdb.types import ImageFile, Problem, Reading

IGNORED = 1000
SIZES = ("50", "300", "919")
_FOLDERS = {"validation": "validation", "semi": "train-semi"}
_WORDS = ("LOC_synset_mapping.txt", "synset_words.txt", "words.txt")


@dataclass(frozen=True)
class _Pair:
    """A photograph, its mask's file and its category's number."""

    name: str
    mask: Path
    number: int
    categories: int


class ImageNetS:
    """The adapter."""

    version: ClassVar[int] = 1
    splits: ClassVar[tuple[str, ...]] = tuple(f"{size}-{part}" for size in SIZES for part in _FOLDERS)
    layout: ClassVar[str] = (
        "the folder ImageNetS50 (300, 919) that the scripts of https://github.com/LUSSeg/ImageNet-S make, with "
        "validation/ and validation-segmentation/ (train-semi/ and train-semi-segmentation/), and in it ImageNet's "
        "LOC_synset_mapping.txt (or synset_words.txt, words.txt)"
    )

    def read(self, root: Path, split: str) -> Reading:
        size, _, part = split.partition("-")
        folder = _FOLDERS[part]
        images = need_folder(root / folder, self.layout)
        truths = need_folder(root / f"{folder}-segmentation", self.layout)
        categories = _categories(root, truths, int(size), self.layout)
        words = _words(root, self.layout)
        reading = Reading()
        pairs: list[_Pair] = []
        for strange in sorted({path.name for path in truths.iterdir() if path.is_dir()} - set(categories)):
            reading.problems.append(Problem(f"{truths.name}/{strange}", f"there is no category {strange}"))
        for number, category in enumerate(categories, start=1):
            if not (truths / category).is_dir():
                continue
            if category not in words:
                reading.problems.append(Problem(f"{truths.name}/{category}", f"no words are told for {category}"))
                continue
            pairs += _matched(images / category, truths / category, number, len(categories), reading)
        for pair, found in zip(pairs, on_threads(_regions, pairs), strict=True):
            if isinstance(found, str):
                reading.problems.append(Problem(f"{truths.name}/{pair.name.partition('/')[0]}/{pair.mask.name}", found))
                continue
            mask, ignore = found
            category = categories[pair.number - 1]
            reading.samples.append(
                Image(
                    id=pair.name,
                    group=category,
                    cluster=pair.name,
                    image=pair.name,
                    category=words[category],
                    mask=mask,
                    ignore=ignore,
                )
            )
        return reading


def _categories(root: Path, truths: Path, size: int, layout: str) -> list[str]:
    """The WordNet ids in the order of their numbers. Raises BadDataset unless they are `size` different ones."""
    file = root / f"ImageNetS_categories_im{size}.txt"
    if file.is_file():
        told, where = file.read_text(encoding="utf-8", errors="replace").split(), f"{file} names"
    else:
        told = sorted(path.name for path in truths.iterdir() if path.is_dir())
        where = f"{file} is not there, and {truths} has"
    if len(set(told)) != size or len(told) != size:
        raise BadDataset(what=f"{where} {len(set(told))} categories, ImageNetS{size} has {size}", expected=layout)
    return told


def _words(root: Path, layout: str) -> dict[str, str]:
    """{WordNet id: its first synonym}. Raises BadDataset where no file tells them."""
    file = next((root / name for name in _WORDS if (root / name).is_file()), None)
    if file is None:
        raise BadDataset(what=f"there is no file {root / _WORDS[0]}", expected=layout)
    split = [line.split(maxsplit=1) for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
    return {parts[0]: parts[1].partition(",")[0].strip() for parts in split if len(parts) > 1}


def _matched(images: Path, truths: Path, number: int, categories: int, reading: Reading) -> list[_Pair]:
    """The images of a category with their masks; the images go to `reading`, and what is alone as a problem."""
    by_stem: dict[str, Path] = {}
    for image in images_in(images) if images.is_dir() else []:
        if image.stem in by_stem:
            where = f"{images.parent.name}/{images.name}/{image.name}"
            reading.problems.append(Problem(where, f"two images are called {images.name}/{image.stem}"))
        else:
            by_stem[image.stem] = image
    pairs = []
    for mask in images_in(truths):
        name = f"{truths.name}/{mask.stem}"
        if mask.suffix.lower() != ".png":
            reading.problems.append(Problem(f"{truths.parent.name}/{truths.name}/{mask.name}", "it is no PNG"))
        elif mask.stem not in by_stem:
            reading.problems.append(
                Problem(f"{truths.parent.name}/{truths.name}/{mask.name}", f"there is no image {name}")
            )
        else:
            image = by_stem.pop(mask.stem)
            reading.images.append(ImageFile(name, f"{images.parent.name}/{images.name}/{image.name}"))
            pairs.append(_Pair(name, mask, number, categories))
    reading.problems += [
        Problem(f"{images.parent.name}/{images.name}/{image.name}", "it has no mask") for image in by_stem.values()
    ]
    return pairs


def _regions(pair: _Pair) -> tuple[Mask, Mask | None] | str:
    """The mask of the image's own category and what is ignored, or what is wrong."""
    import numpy as np

    try:
        numbers = read_colours(pair.mask)
    except ValueError as error:
        return str(error)
    there = set(np.unique(numbers).tolist())
    if strange := sorted(there - {*range(pair.categories + 1), IGNORED}):
        return f"it has pixels of category {strange[0]}, there are {pair.categories}"
    if pair.number not in there:
        return f"it has no pixel of its own category, {pair.number}"
    ignore = masks.encode(numbers == IGNORED) if IGNORED in there else None
    return masks.encode(numbers == pair.number), ignore


DATASET = ImageNetS
