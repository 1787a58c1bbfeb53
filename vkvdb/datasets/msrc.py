"""MSRC-21: photographs whose pixels are painted with 21 categories; co-segmentation is scored on it.

Origin: Shotton et al. 2006, *TextonBoost: Joint Appearance, Shape and Context Modeling for Multi-Class Object
Recognition and Segmentation* (ECCV 2006). To be had at
https://www.microsoft.com/en-us/research/project/image-understanding/ as `MSRC_ObjCategImageDatabase_v2.zip`, where its
terms are told. Two layouts are read, both with an image (BMP, PNG or JPEG) and its ground truth (BMP or PNG) of one
stem, the latter perhaps with `_GT` behind it:

- **`msrc-21`**, as published: `Images/1_1_s.bmp` and `GroundTruth/1_1_s_GT.bmp`. The ground truth is painted with the
  database's own colours, as RGB or as a palette that has them.
- **`msrc-coseg`**, the subsets by class that people make for co-segmentation: `Images/cow/1_1_s.bmp` and
  `GroundTruth/cow/1_1_s.bmp`. The folder is the class; the ground truth is painted with the database's colours, or
  white on black.

Made of it, for each class: an `Image` of every image of which the class covers at least 1 %, and one `ImageSet` of all
of these where there are two or more. Void (black) counts neither as the class nor as background, nor do horse and
mountain unless a folder is called so: the 21 categories leave these two out, for want of examples. In a white-on-black
ground truth black is background.

Departures: which images belong to a class follows from their pixels, not from lists of the field's, which differ from
paper to paper [D].
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from vkvdb import masks
from vkvdb.datasets._label_images import colour, images_in, number, on_threads, read_colours
from vkvdb.datasets._layout import need_folder
from vkvdb.errors import BadDataset
from vkvdb.samples import Image, ImageSet, Labelled
from vkvdb.types import ImageFile, Problem, Reading

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

COVERED = 0.01
COLOURS = {
    "building": (128, 0, 0),
    "grass": (0, 128, 0),
    "tree": (128, 128, 0),
    "cow": (0, 0, 128),
    "sheep": (0, 128, 128),
    "sky": (128, 128, 128),
    "aeroplane": (192, 0, 0),
    "water": (64, 128, 0),
    "face": (192, 128, 0),
    "car": (64, 0, 128),
    "bicycle": (192, 0, 128),
    "flower": (64, 128, 128),
    "sign": (192, 128, 128),
    "bird": (0, 64, 0),
    "book": (128, 64, 0),
    "chair": (0, 192, 0),
    "road": (128, 64, 128),
    "cat": (0, 192, 128),
    "dog": (128, 192, 128),
    "body": (64, 64, 0),
    "boat": (192, 64, 0),
}
LEFT_OUT = {"horse": (128, 0, 128), "mountain": (64, 0, 0)}
_VOID, _WHITE = 0, 0xFFFFFF
_NUMBERS = {name: number(painted) for name, painted in (COLOURS | LEFT_OUT).items()}
_IGNORED = [_VOID, *(_NUMBERS[name] for name in LEFT_OUT)]


@dataclass(frozen=True)
class _Photograph:
    """An image, what it is called, its ground truth, and the class that its folder says (empty without folders)."""

    name: str
    path: str
    file: Path
    truth: Path
    folder: str = ""


class Msrc:
    """The adapter."""

    version: ClassVar[int] = 1
    splits: ClassVar[tuple[str, ...]] = ("21", "coseg")
    layout: ClassVar[str] = (
        "Images/ and GroundTruth/ (for coseg, a folder for each class in both) of MSRC_ObjCategImageDatabase_v2.zip, "
        "https://www.microsoft.com/en-us/research/project/image-understanding/"
    )

    def read(self, root: Path, split: str) -> Reading:
        images = need_folder(root / "Images", self.layout)
        truths = need_folder(root / "GroundTruth", self.layout)
        reading = Reading()
        photographs: list[_Photograph] = []
        if split == "21":
            photographs += _matched(images, truths, "", reading.problems)
        else:
            for folder in sorted(path for path in images.iterdir() if path.is_dir()):
                need_folder(truths / folder.name, self.layout)
                photographs += _matched(folder, truths / folder.name, folder.name, reading.problems)
        if not photographs:
            raise BadDataset(what=f"{images} has no images with ground truth", expected=self.layout)
        members: dict[str, list[Labelled]] = {}
        for photograph, found in zip(photographs, on_threads(_labelled, photographs), strict=True):
            reading.images.append(ImageFile(photograph.name, photograph.path))
            if isinstance(found, str):
                reading.problems.append(Problem(str(photograph.truth.relative_to(root)), found))
            else:
                for category, labelled in found.items():
                    members.setdefault(category, []).append(labelled)
        for category in sorted(members):
            _add_class(reading, category, members[category])
        return reading


def _matched(images: Path, truths: Path, folder: str, problems: list[Problem]) -> list[_Photograph]:
    """The images of a folder with their ground truths; what is alone, or there twice, goes to `problems`."""
    inside = f"{folder}/" if folder else ""
    by_stem: dict[str, Path] = {}
    for truth in images_in(truths):
        stem = truth.stem.removesuffix("_GT")
        if truth.suffix.lower() in (".jpg", ".jpeg"):
            problems.append(Problem(f"GroundTruth/{inside}{truth.name}", "it is a JPEG, whose colours are not exact"))
        elif stem in by_stem:
            problems.append(Problem(f"GroundTruth/{inside}{truth.name}", f"{stem} has two ground truths"))
        else:
            by_stem[stem] = truth
    found: dict[str, _Photograph] = {}
    for image in images_in(images):
        path, name = f"Images/{inside}{image.name}", f"{inside}{image.stem}"
        if image.stem not in by_stem:
            problems.append(Problem(path, "it has no ground truth"))
        elif image.stem in found:
            problems.append(Problem(path, f"two images are called {name}"))
        else:
            found[image.stem] = _Photograph(name, path, image, by_stem[image.stem], folder)
    problems += [
        Problem(f"GroundTruth/{inside}{by_stem[stem].name}", f"there is no image {inside}{stem}")
        for stem in sorted(by_stem.keys() - found.keys())
    ]
    return list(found.values())


def _labelled(photograph: _Photograph) -> dict[str, Labelled] | str:
    """{category: the image with its region} of the classes that cover enough, or what is wrong."""
    import numpy as np

    try:
        numbers = read_colours(photograph.truth)
    except ValueError as error:
        return str(error)
    try:
        size = read_colours(photograph.file).shape
    except ValueError:
        return {}  # the ingest tells it of the image itself; its classes' sets are made without it
    if numbers.shape != size:
        return f"it is {numbers.shape[1]} x {numbers.shape[0]}, its image {size[1]} x {size[0]}"
    there = set(np.unique(numbers).tolist())
    if photograph.folder and there <= {_VOID, _WHITE}:
        found = _region(photograph.name, numbers == _WHITE, None)
        return {photograph.folder: found} if found else "it is white nowhere"
    if wrong := _unknown(there, photograph.folder):
        return wrong
    names = [photograph.folder] if photograph.folder else list(COLOURS)
    ignored = np.isin(numbers, _IGNORED)
    regions = {
        name: _region(photograph.name, own := numbers == _NUMBERS[name], ignored & ~own)
        for name in names
        if _NUMBERS[name] in there
    }
    kept = {name: region for name, region in regions.items() if region}
    return f"it has too few pixels of {photograph.folder}" if photograph.folder and not kept else kept


def _unknown(there: set[int], folder: str) -> str:
    """Where a colour or a folder is no category; empty where none is."""
    if strange := sorted(there - {_VOID, *_NUMBERS.values()}):
        return f"it has pixels of the colour {colour(strange[0])}, which is no category"
    return f"there is no category {folder}" if folder and folder not in _NUMBERS else ""


def _region(name: str, region: npt.NDArray[np.bool_], ignored: npt.NDArray[np.bool_] | None) -> Labelled | None:
    """An image with a region of it; None where the region covers too little."""
    if region.mean() < COVERED:
        return None
    ignore = masks.encode(ignored) if ignored is not None and ignored.any() else None
    return Labelled(name, masks.encode(region), ignore)


def _add_class(reading: Reading, category: str, members: list[Labelled]) -> None:
    """The samples of a class."""
    reading.samples += [
        Image(
            id=f"{category}/{one.image}",
            group=category,
            cluster=one.image,
            image=one.image,
            category=category,
            mask=one.mask,
            ignore=one.ignore,
        )
        for one in members
    ]
    if len(members) > 1:
        reading.samples.append(ImageSet(id=category, group=category, cluster=category, members=tuple(members)))


DATASET = Msrc
