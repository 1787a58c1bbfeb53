"""Whether a sample fits the images that it stands on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vkvdb import masks
from vkvdb.samples import Clip, Episode, Expression, Image, ImagePair, ImageSet, Labelled, Mask, Point, Question, Sample

Sizes = Mapping[str, tuple[int, int]]


def fault(sample: Sample, sizes: Sizes) -> str:
    """What is wrong with a sample, empty if nothing is; `sizes` is {name: (width, height)} of all its images."""
    return _wrong_shape(sample) or _wrong_mask(sample, sizes) or _wrong_point(sample, sizes)


def _wrong_shape(sample: Sample) -> str:
    """Where its fields do not agree with one another."""
    match sample:
        case ImagePair(source_points=source, target_points=target, target_box=(left, top, right, bottom)):
            if not source or len(source) != len(target):
                return f"it has {len(source)} source points and {len(target)} target points"
            return "" if left < right and top < bottom else f"its target box {sample.target_box} is empty"
        case Clip(frames=frames, objects=objects):
            same = len(objects) == len(frames) and len({len(frame) for frame in objects}) == 1
            return "" if same else f"it does not have the same objects in each of its {len(frames)} frames"
        case Question(options=options, answer=answer):
            return "" if not options or answer in options else f"its answer '{answer}' is none of its options"
        case Episode(supports=supports, query=query):
            among = query.image in [support.image for support in supports]
            return "its query is among its supports" if among else ""
    return ""


def _wrong_mask(sample: Sample, sizes: Sizes) -> str:
    for name, mask in _regions(sample):
        width, height = sizes[name]
        if (mask.width, mask.height) != (width, height):
            return f"a mask is for {mask.width} x {mask.height} pixels, {name} has {width} x {height}"
        try:
            masks.check(mask)
        except ValueError as error:
            return f"a mask of {name} is damaged: {error}"
    return ""


def _wrong_point(sample: Sample, sizes: Sizes) -> str:
    for name, (x, y) in _points(sample):
        width, height = sizes[name]
        if not (0 <= x <= width and 0 <= y <= height):
            return f"a point lies at ({x:g}, {y:g}), outside {name} of {width} x {height}"
    return ""


def _regions(sample: Sample) -> Iterator[tuple[str, Mask]]:
    """Every mask with its image's name."""
    match sample:
        case Image():
            yield from ((sample.image, mask) for mask in (sample.mask, sample.ignore) if mask)
        case Episode():
            for labelled in (*sample.supports, sample.query):
                yield from _labelled(labelled)
        case ImageSet():
            for labelled in sample.members:
                yield from _labelled(labelled)
        case Expression():
            yield from ((sample.image, mask) for mask in (sample.mask, *sample.others))
        case Clip():
            for name, objects in zip(sample.frames, sample.objects, strict=True):
                yield from ((name, mask) for mask in objects if mask)


def _labelled(labelled: Labelled) -> Iterator[tuple[str, Mask]]:
    yield from ((labelled.image, mask) for mask in (labelled.mask, labelled.ignore) if mask)


def _points(sample: Sample) -> Iterator[tuple[str, Point]]:
    """Every point with its image's name."""
    match sample:
        case ImagePair():
            yield from ((sample.source, point) for point in sample.source_points)
            yield from ((sample.target, point) for point in sample.target_points)
        case Question():
            if len(sample.shown) == 1:
                yield from ((sample.shown[0], mark) for mark in sample.marks)
