"""Pascal-5i: few-shot segmentation of 20 classes in four folds, on PASCAL VOC 2012; also each image with its class.

Origin: Everingham et al. 2010, *The PASCAL Visual Object Classes Challenge*; Hariharan et al. 2011, *Semantic Contours
from Inverse Detectors* (SBD); Shaban et al. 2017, *One-Shot Learning for Semantic Segmentation* (arXiv 1709.03410), who
made the folds. The photographs stay with their owners on Flickr. Under one folder lie

- `VOCdevkit/VOC2012/` with `JPEGImages/` and `SegmentationClass/`, from VOCtrainval_11-May-2012.tar of
  http://host.robots.ox.ac.uk/pascal/VOC/voc2012/;
- `splits/pascal/val/fold0.txt` to `fold3.txt`: `data/splits` of https://github.com/juhongm999/hsnet;
- where they are at hand, `VOCdevkit/VOC2012/SegmentationClassAug/` or SBD's `benchmark_RELEASE/dataset/cls/`. An
  image's mask is looked for there and in `SegmentationClass/`, in the order Aug, VOC, SBD. The listed images are of
  VOC's own segmentation set, so that VOC alone is enough.

`Episode`: hsnet's, with five supports and seed 0 [C: data/pascal.py and common/utils.py at commit 6b1bc12 of HSNet, Min
et al. 2021]: 1,000 a fold, the lines of its list in turn as queries, each support drawn among the class's lines by
NumPy's global generator of that time, which gives the same numbers for ever. As there, a support may come twice, never
the query. Void (255) is `ignore`, of supports too. Masks keep their size (hsnet shrinks supports' to 400 pixels).

`Image`: every line of the lists, the image's class as its category.

The group is the class, the cluster the query's photograph: episodes of one query are not independent. Supports are
shared across the whole class, which no choice of clusters inside it can undo [D].
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from vkvdb import masks
from vkvdb.datasets._label_images import VOID, on_threads, read_labels, read_lines, size_told
from vkvdb.datasets._layout import need_folder
from vkvdb.errors import BadDataset
from vkvdb.samples import Episode, Image, Labelled, Mask, Sample
from vkvdb.types import ImageFile, Problem, Reading

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
FOLDS = 4
EPISODES = 1000
SUPPORTS = 5
SEED = 0

VOC = "VOCdevkit/VOC2012"
SBD = "benchmark_RELEASE/dataset/cls"


class Line(NamedTuple):
    """A line of a fold's list: an image, without `.jpg`, and the number of a class in it, from 1."""

    image: str
    label: int


Masks = dict[int, tuple[Mask, Mask | None]]


class Pascal:
    """The adapter."""

    version: ClassVar[int] = 2
    splits: ClassVar[tuple[str, ...]] = (*(f"fold{fold}" for fold in range(FOLDS)), "val")
    layout: ClassVar[str] = (
        f"{VOC}/ with JPEGImages/ and SegmentationClass/, from VOCtrainval_11-May-2012.tar of "
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/, beside splits/pascal/val/fold0.txt to fold3.txt, from "
        "data/splits of https://github.com/juhongm999/hsnet"
    )

    def read(self, root: Path, split: str) -> Reading:
        need_folder(root / VOC / "JPEGImages", self.layout)
        if not any((root / folder).is_dir() for folder in _FOLDERS):
            raise BadDataset(what=f"there is no folder {root / VOC / 'SegmentationClass'}", expected=self.layout)
        reading = Reading()
        folds = range(FOLDS) if split == "val" else [int(split.removeprefix("fold"))]
        lists = {}
        for fold in folds:
            file = root / "splits" / "pascal" / "val" / f"fold{fold}.txt"
            lists[fold] = _parse(file.name, read_lines(file, self.layout), fold, reading.problems)
        wanted: dict[str, set[int]] = defaultdict(set)
        for lines in lists.values():
            for image, label in lines:
                wanted[image].add(label)
        labelled, faults = _label(root, {image: wanted[image] for image in sorted(wanted)})
        reading.images = ordered(labelled)
        lost: Counter[str] = Counter()
        for fold, lines in lists.items():
            reading.samples += _images(lines, labelled)
            for number, query, supports in draw(lines):
                bad = {line.image for line in (query, *supports) if line not in labelled}
                lost.update(bad)
                if not bad:
                    reading.samples.append(_episode(fold, number, query, supports, labelled))
            few = [CLASSES[label - 1] for label, lines_of in _by_class(lines).items() if len(set(lines_of)) == 1]
            what = "it is listed once only, so that its query has no support"
            reading.problems += [Problem(f"class {name} of fold{fold}", what) for name in few]
        for image, what in faults.items():
            reading.problems.append(Problem(f"{image}.jpg", f"{what}; {lost[image]} episodes are left out with it"))
        return reading


def ordered(lines: Iterable[Line]) -> list[ImageFile]:
    """The images of some lines, class by class: those of an episode lie close together, so few blocks hold them."""
    first: dict[str, int] = {}
    for line in lines:
        first[line.image] = min(first.get(line.image, line.label), line.label)
    used = sorted(first, key=lambda image: (first[image], image))
    return [ImageFile(f"{image}.jpg", f"{VOC}/JPEGImages/{image}.jpg") for image in used]


def draw(lines: Sequence[Line]) -> list[tuple[int, Line, tuple[Line, ...]]]:
    """The episodes of a fold as (number, query, supports); none for a query that is the only image of its class."""
    import numpy as np

    # hsnet seeds NumPy's global generator, whose stream is frozen (NEP 19) and is not that of a new Generator.
    rng = np.random.RandomState(SEED)
    pools = _by_class(lines)
    episodes = []
    for number in range(EPISODES if lines else 0):
        query = lines[number % len(lines)]
        pool = pools[query.label]
        if set(pool) == {query}:
            continue
        supports: list[Line] = []
        while len(supports) < SUPPORTS:
            support = pool[rng.choice(len(pool), 1, replace=False)[0]]
            if support != query:
                supports.append(support)
        episodes.append((number, query, tuple(supports)))
    return episodes


def _by_class(lines: Sequence[Line]) -> dict[int, list[Line]]:
    pools: dict[int, list[Line]] = defaultdict(list)
    for line in lines:
        pools[line.label].append(line)
    return pools


def _parse(name: str, listed: list[str], fold: int, problems: list[Problem]) -> list[Line]:
    """The lines `IMAGE__CLASS` of a fold's list that are sound."""
    each = len(CLASSES) // FOLDS
    there = range(fold * each + 1, (fold + 1) * each + 1)
    lines: dict[Line, None] = {}
    for text in listed:
        image, _, label = text.partition("__")
        where = f"{name}, {text}"
        if not image or not label.isdecimal() or "/" in image:
            problems.append(Problem(where, "it is no IMAGE__CLASS"))
        elif int(label) not in there:
            problems.append(Problem(where, f"there is no class {label} in this fold, only {there[0]} to {there[-1]}"))
        elif (line := Line(image, int(label))) in lines:
            problems.append(Problem(where, "it is listed twice"))
        else:
            lines[line] = None
    return list(lines)


# --- masks ------------------------------------------------------------------------------------------------------------

_FOLDERS = {f"{VOC}/SegmentationClassAug": ".png", f"{VOC}/SegmentationClass": ".png", SBD: ".mat"}


def _label(root: Path, wanted: dict[str, set[int]]) -> tuple[dict[Line, Labelled], dict[str, str]]:
    """Every wanted class's region, and {image: what is wrong with its mask}."""

    def read(image: str) -> Masks | str:
        try:
            return _regions(root, image, wanted[image])
        except ValueError as error:
            return str(error)

    labelled: dict[Line, Labelled] = {}
    faults: dict[str, str] = {}
    for image, found in zip(wanted, on_threads(read, wanted), strict=True):
        if isinstance(found, str):
            faults[image] = found
        else:
            for label, (mask, void) in found.items():
                labelled[Line(image, label)] = Labelled(f"{image}.jpg", mask, void)
    return labelled, faults


def _regions(root: Path, image: str, wanted: set[int]) -> Masks:
    """{class: (its region, void)} of an image; ValueError where its mask is unsound."""
    import numpy as np

    files = [root / folder / f"{image}{suffix}" for folder, suffix in _FOLDERS.items()]
    file = next((path for path in files if path.is_file()), None)
    if file is None:
        raise ValueError(f"it has no mask: there is no file {root / VOC / 'SegmentationClass' / image}.png")
    labels = read_labels(file) if file.suffix == ".png" else _read_mat(file)
    height, width = labels.shape
    size = size_told(root / VOC / "JPEGImages" / f"{image}.jpg")
    if size and size != (width, height):
        raise ValueError(f"its mask is {width} x {height}, the image is {size[0]} x {size[1]}")
    there = set(np.unique(labels).tolist())
    if strange := sorted(label for label in there if label > len(CLASSES) and label != VOID):
        raise ValueError(f"its mask holds the class {strange[0]}, which there is not")
    if missing := sorted(wanted - there):
        raise ValueError(f"it is listed for {CLASSES[missing[0] - 1]}, which its mask does not hold")
    void = masks.encode(labels == VOID) if VOID in there else None
    return {label: (masks.encode(labels == label), void) for label in sorted(wanted)}


def _read_mat(path: Path) -> npt.NDArray[np.uint8]:
    """SBD's `GTcls.Segmentation` (height, width); ValueError where the file is not that. It has no void."""
    import numpy as np
    import scipy.io

    try:
        labels = scipy.io.loadmat(str(path), variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
    # What SciPy raises on damaged bytes is of many kinds, TypeError and zlib's error among them.
    except Exception as error:
        raise ValueError(f"the mask {path} can't be read: {type(error).__name__} {error}") from error
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise ValueError(f"the mask {path} is no array of labels")
    found: npt.NDArray[np.uint8] = labels
    return found


# --- samples ----------------------------------------------------------------------------------------------------------


def _images(lines: Sequence[Line], labelled: dict[Line, Labelled]) -> list[Sample]:
    samples: list[Sample] = []
    for line in lines:
        if line in labelled:
            region, name = labelled[line], CLASSES[line.label - 1]
            samples.append(
                Image(
                    id=f"{name}/{line.image}",
                    group=name,
                    cluster=region.image,
                    image=region.image,
                    category=name,
                    mask=region.mask,
                    ignore=region.ignore,
                )
            )
    return samples


def _episode(
    fold: int, number: int, query: Line, supports: tuple[Line, ...], labelled: dict[Line, Labelled]
) -> Episode:
    return Episode(
        id=f"fold{fold}/{number:03d}/{CLASSES[query.label - 1]}/{query.image}",
        group=CLASSES[query.label - 1],
        cluster=labelled[query].image,
        supports=tuple(labelled[line] for line in supports),
        query=labelled[query],
    )


DATASET = Pascal
