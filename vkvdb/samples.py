"""What a dataset holds: the kinds of samples, and how one is written as JSON. Standard library only."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Mask:
    """A region of an image as COCO's compressed run lengths; `vkvdb.masks` encodes and decodes."""

    width: int
    height: int
    counts: str


@dataclass(frozen=True)
class Labelled:
    """An image with a region of it; pixels of `ignore` count neither as region nor as background."""

    image: str
    mask: Mask
    ignore: Mask | None = None


Point = tuple[float, float]
Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One labelled item. `group` is the class or fold that means are taken over, `cluster` what is not independent."""

    kind: ClassVar[str]
    id: str
    group: str
    cluster: str

    def images(self) -> tuple[str, ...]:
        """Names of the images that it stands on, each once, in order."""
        raise NotImplementedError


def _once(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


@dataclass(frozen=True, kw_only=True)
class Image(Sample):
    """An image of a class, with the mask of that class where the dataset has one."""

    kind: ClassVar[str] = "image"
    image: str
    category: str = ""
    mask: Mask | None = None
    ignore: Mask | None = None

    def images(self) -> tuple[str, ...]:
        return (self.image,)


@dataclass(frozen=True, kw_only=True)
class ImagePair(Sample):
    """Two images and the points (x, y) in pixels that correspond; `target_box` is what the tolerance is measured by."""

    kind: ClassVar[str] = "image_pair"
    source: str
    target: str
    source_points: tuple[Point, ...]
    target_points: tuple[Point, ...]
    target_box: Box
    source_box: Box | None = None
    names: tuple[str, ...] = ()

    def images(self) -> tuple[str, ...]:
        return _once((self.source, self.target))


@dataclass(frozen=True, kw_only=True)
class Episode(Sample):
    """Few-shot segmentation: labelled support images and a query of the same class."""

    kind: ClassVar[str] = "episode"
    supports: tuple[Labelled, ...]
    query: Labelled

    def images(self) -> tuple[str, ...]:
        return _once([*(s.image for s in self.supports), self.query.image])


@dataclass(frozen=True, kw_only=True)
class ImageSet(Sample):
    """Images of one class, to be segmented together."""

    kind: ClassVar[str] = "image_set"
    members: tuple[Labelled, ...]

    def images(self) -> tuple[str, ...]:
        return _once(m.image for m in self.members)


@dataclass(frozen=True, kw_only=True)
class Expression(Sample):
    """A phrase that refers to one region of an image; `others` are the objects that it does not mean."""

    kind: ClassVar[str] = "expression"
    image: str
    text: str
    mask: Mask
    others: tuple[Mask, ...] = ()

    def images(self) -> tuple[str, ...]:
        return (self.image,)


@dataclass(frozen=True, kw_only=True)
class Clip(Sample):
    """Frames of a video in order, and for each the mask of every object (None where it is not annotated)."""

    kind: ClassVar[str] = "clip"
    frames: tuple[str, ...]
    objects: tuple[tuple[Mask | None, ...], ...]

    def images(self) -> tuple[str, ...]:
        return _once(self.frames)


@dataclass(frozen=True, kw_only=True)
class Question(Sample):
    """A multiple-choice or open question about images; `answer` is one of `options`, or, without any, the words."""

    kind: ClassVar[str] = "question"
    shown: tuple[str, ...]
    text: str
    answer: str
    options: tuple[str, ...] = ()
    marks: tuple[Point, ...] = ()

    def images(self) -> tuple[str, ...]:
        return _once(self.shown)


SAMPLE_KINDS: dict[str, type[Sample]] = {
    k.kind: k for k in (Image, ImagePair, Episode, ImageSet, Expression, Clip, Question)
}


def sample_to_json(sample: Sample) -> dict[str, Any]:
    """A sample as plain JSON, without id, group and cluster (they are columns)."""
    body = dataclasses.asdict(sample)
    for column in ("id", "group", "cluster"):
        del body[column]
    return body


def sample_from_json(
    kind: str,
    id: str,  # noqa: A002 - what it is called in every table
    group: str,
    cluster: str,
    body: Mapping[str, Any],
) -> Sample:
    """The inverse of `sample_to_json`."""
    cls = SAMPLE_KINDS[kind]
    fields = {name: _REVIVE.get(name, _tuples)(value) for name, value in body.items()}
    return cls(id=id, group=group, cluster=cluster, **fields)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value


def _mask(value: Any) -> Mask | None:
    return None if value is None else Mask(**value)


def _labelled(value: Any) -> Labelled:
    return Labelled(value["image"], Mask(**value["mask"]), _mask(value["ignore"]))


_REVIVE: dict[str, Any] = {
    "mask": _mask,
    "ignore": _mask,
    "query": _labelled,
    "supports": lambda v: tuple(_labelled(x) for x in v),
    "members": lambda v: tuple(_labelled(x) for x in v),
    "others": lambda v: tuple(Mask(**x) for x in v),
    "objects": lambda v: tuple(tuple(_mask(m) for m in frame) for frame in v),
}
