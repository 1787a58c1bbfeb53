"""DAVIS 2016 and 2017: clips in which every frame has the masks of one or several objects, at 480p.

Origin: Perazzi et al. 2016, *A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation*; Pont-Tuset
et al. 2017, *The 2017 DAVIS Challenge on Video Object Segmentation* (arXiv 1704.00675). To be had, with its terms, at
https://davischallenge.org: unpack `DAVIS-2017-trainval-480p.zip` for `2017-val` and `2017-train`, `DAVIS-data.zip` for
`2016-val` and `2016-train`, and give the folder `DAVIS` that is in it.

- 2017: a mask's palette index is an object's number. Objects are those of the first frame. Void (255) belongs to no
  object, so it is background, as the official evaluation of semi-supervised results counts it [C: davis2017-evaluation
  at commit ac7c43f: `get_all_masks`, and `evaluate`, which passes no void].
- 2016: masks are 0 and 255, one object. Frames are those of the list, in its order.
- A frame without a mask has None for every object, and is told as a problem: every frame of these splits is annotated.
  An object that is not seen in an annotated frame has an empty mask.
- The cluster is the sequence. The group is one for all: the official mean is over objects, whatever their sequence
  [C], and a group of one cluster has no variance inside to make an interval of.

A clip with one bad mask or image is left out as a whole: its score is a mean over all its frames.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import ClassVar, NamedTuple

from vkvdb import masks
from vkvdb.datasets._label_images import VOID, on_threads, read_labels, read_lines
from vkvdb.datasets._layout import need_folder
from vkvdb.samples import Clip, Mask
from vkvdb.types import ImageFile, Problem, Reading

GROUP = "clip"
IMAGES = "JPEGImages/480p"
MASKS = "Annotations/480p"

Frames = dict[str, str | None]
"""{a frame's file under IMAGES: its mask's under MASKS, None where it is not annotated}."""


class Davis:
    """The adapter."""

    version: ClassVar[int] = 1
    splits: ClassVar[tuple[str, ...]] = ("2017-val", "2017-train", "2016-val", "2016-train")
    layout: ClassVar[str] = (
        f"{IMAGES}/, {MASKS}/ and ImageSets/ with 2017/val.txt or 480p/val.txt, as the folder DAVIS is unpacked from "
        "DAVIS-2017-trainval-480p.zip (2017) or DAVIS-data.zip (2016) of https://davischallenge.org"
    )

    def read(self, root: Path, split: str) -> Reading:
        year, _, part = split.partition("-")
        listed = read_lines(root / "ImageSets" / ("480p" if year == "2016" else year) / f"{part}.txt", self.layout)
        need_folder(root / IMAGES, self.layout)
        need_folder(root / MASKS, self.layout)
        reading = Reading()
        clips = (_pairs_listed if year == "2016" else _sequences)(root, listed, reading.problems)
        for sequence, frames in sorted(clips.items()):
            try:
                reading.samples.append(_clip(root, sequence, frames, binary=year == "2016"))
            except ValueError as error:
                reading.problems.append(Problem(sequence, str(error)))
            else:
                reading.images += [ImageFile(frame, f"{IMAGES}/{frame}") for frame in frames]
        return reading


def _sequences(root: Path, listed: list[str], problems: list[Problem]) -> dict[str, Frames]:
    """The frames of the sequences that a list of 2017 names, by their folders."""
    clips: dict[str, Frames] = {}
    for sequence in listed:
        images = root / IMAGES / sequence
        if sequence in clips:
            problems.append(Problem(sequence, "it is listed twice"))
        elif "/" in sequence or sequence == "..":
            problems.append(Problem(sequence, "it is no name of a sequence"))
        elif not (frames := sorted(path.name for path in images.glob("*.jpg"))):
            what = "no frame in" if images.is_dir() else "no folder"
            problems.append(Problem(sequence, f"there is {what} {images}; published at https://davischallenge.org"))
        else:
            labels = {f"{path.stem}.jpg": path.name for path in (root / MASKS / sequence).glob("*.png")}
            if alone := sorted(labels.keys() - set(frames)):
                what = f"there is no frame {images / alone[0]}, which there is a mask of"
                problems.append(Problem(sequence, what))
                continue
            if bare := [frame for frame in frames[1:] if frame not in labels]:
                what = f"{len(bare)} frames have no mask, first {bare[0]}; they count as not annotated"
                problems.append(Problem(sequence, what))
            clips[sequence] = {
                f"{sequence}/{frame}": f"{sequence}/{labels[frame]}" if frame in labels else None for frame in frames
            }
    return clips


def _pairs_listed(_root: Path, listed: list[str], problems: list[Problem]) -> dict[str, Frames]:
    """The frames that a list of 2016 names beside their masks, sequence by sequence."""
    clips: dict[str, Frames] = {}
    for line in listed:
        paths = [PurePosixPath(text.lstrip("/")) for text in line.split()]
        folders = [str(path.parent.parent) for path in paths]
        if folders != [IMAGES, MASKS] or any(".." in path.parts for path in paths):
            problems.append(Problem(line, f"it is no frame of {IMAGES}/ beside its mask of {MASKS}/"))
            continue
        frame, mask = (f"{path.parent.name}/{path.name}" for path in paths)
        frames = clips.setdefault(paths[0].parent.name, {})
        if frame in frames:
            problems.append(Problem(frame, "it is listed twice"))
        else:
            frames[frame] = mask
    return clips


class _Seen(NamedTuple):
    """What a mask holds: {object's number: its region}, and the mask of an object that is not there."""

    objects: dict[int, Mask]
    nothing: Mask


def _clip(root: Path, sequence: str, frames: Frames, *, binary: bool) -> Clip:
    """A sequence with the masks of its objects; ValueError where one is unsound."""
    names = list(frames)
    if frames[names[0]] is None:
        raise ValueError(f"its first frame {names[0]} has no mask under {root / MASKS}")

    def read(mask: str | None) -> _Seen | None:
        return None if mask is None else _seen(root / MASKS / mask, binary=binary)

    found = list(on_threads(read, frames.values()))
    numbers = sorted(found[0].objects) if found[0] else []
    if not numbers:
        raise ValueError(f"the mask of its first frame {names[0]} holds no object")
    objects: list[tuple[Mask | None, ...]] = []
    for name, seen in zip(names, found, strict=True):
        if seen is None:
            objects.append((None,) * len(numbers))
            continue
        if strange := sorted(seen.objects.keys() - set(numbers)):
            raise ValueError(f"the mask of {name} holds the object {strange[0]}, which the first frame does not")
        objects.append(tuple(seen.objects.get(number, seen.nothing) for number in numbers))
    return Clip(id=sequence, group=GROUP, cluster=sequence, frames=tuple(names), objects=tuple(objects))


def _seen(path: Path, *, binary: bool) -> _Seen:
    import numpy as np

    labels = read_labels(path, grey=binary)
    there = set(np.unique(labels).tolist()) - {0}
    if not binary:
        there -= {VOID}
    elif strange := sorted(there - {255}):
        raise ValueError(f"the mask {path} holds {strange[0]}, where 0 and 255 are needed")
    objects = {number: masks.encode(labels == number) for number in sorted(there)}
    return _Seen(objects, masks.encode(np.zeros(labels.shape, dtype=bool)))


DATASET = Davis
