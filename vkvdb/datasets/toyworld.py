"""The toy world: scenes drawn from a seed, with samples of every kind and perfect ground truth. Made, not downloaded.

It is the world that the shipped models were trained on (`vkvdb/toyworld`, Apache-2.0); the seeds of `test`, `val`,
`demo` and `parts` are not those of training, and those of `demo` and `parts` are among `test`'s. Categories `horse`,
`truck` and `flower` were held out of every training question that names a place: their groups tell how far a finding
carries. There are

- a **gallery**, category by category: pairs of images, each with one large thing of it. `ImagePair` matches points of
  the two things by name, `Image` is each of them with its mask, `Episode` and `ImageSet` are drawn among the first;
- **scenes** of one to four things: `Expression`, where there is something else to be told from, and (of all scenes but
  most of `demo`'s) `Question`, whose group is the kind of question;
- **clips** of eight frames;
- **choices**, BLINK-shaped `Question`s over one to three images: an option's letter is its place; marks are drawn into
  the images and told in the order in which they are drawn.

`test` is drawn three times, from seeds far apart: ids and clusters of a draw begin with `draw0-`, `draw1-` or
`draw2-`, so that a finding can be told for each. `parts`, drawn likewise, holds nothing but pairs, part by part: an
`ImagePair` for each point, whose group is the point's name. Training never named `wing` nor `chimney`. Its categories
are those that were not held out, so that all other parts were named with their places.

Images are PNG without compression, so that their bytes depend on no version of any library.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vkvdb import masks
from vkvdb.samples import Box, Clip, Episode, Expression, Image, ImagePair, ImageSet, Labelled, Question
from vkvdb.types import ImageFile, Reading

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from vkvdb.toyworld.world import Rendered

    UInt8 = npt.NDArray[np.uint8]

SUPPORTS = 5
FRAMES = 8
POINTS = 3  # a pair has at least so many
SET = 8


@dataclass(frozen=True)
class Sizes:
    """How much of everything a split has.

    `pool` images of a category are what its `episodes` are drawn among, `asked` scenes are those with questions. All of
    it is drawn `draws` times.
    """

    pairs: int
    pool: int
    episodes: int
    scenes: int
    asked: int
    clips: int
    choices: int
    draws: int = 1


SIZES = {
    "test": Sizes(pairs=10, pool=16, episodes=10, scenes=150, asked=50, clips=7, choices=20, draws=3),
    "val": Sizes(pairs=15, pool=24, episodes=10, scenes=150, asked=150, clips=10, choices=15),
    "demo": Sizes(pairs=12, pool=16, episodes=8, scenes=40, asked=8, clips=4, choices=12),
    "parts": Sizes(pairs=20, pool=0, episodes=0, scenes=0, asked=0, clips=0, choices=0, draws=3),
}
_SEEDS = {"test": "test", "val": "val", "demo": "test", "parts": "test"}
# Where in a split's hundred million seeds each kind begins; a category's or kind's own begin a million apart.
_PAIRS, _CLIPS, _CHOICES = 10_000_000, 30_000_000, 40_000_000
_APART = 1_000_000
DRAW_APART = 300_000
"""How far apart two draws of one kind begin."""


class ToyWorld:
    """The adapter: writes its images under the root that it is given."""

    version: ClassVar[int] = 3
    splits: ClassVar[tuple[str, ...]] = tuple(SIZES)
    layout: ClassVar[str] = ""

    def read(self, root: Path, split: str) -> Reading:
        reading = Reading()
        (root / "images").mkdir(parents=True)
        for draw in range(SIZES[split].draws):
            made = _Made(root, split, draw, reading)
            if split == "parts":
                made.parts()
                continue
            made.gallery()
            made.scenes()
            made.clips()
            made.choices()
        return reading


class _Made:
    """A draw of a split in the making."""

    def __init__(self, root: Path, split: str, draw: int, reading: Reading) -> None:
        self.reading = reading
        self.sizes = SIZES[split]
        self._root = root
        self._split = _SEEDS[split]
        self._draw = draw
        self._tag = f"draw{draw}-" if self.sizes.draws > 1 else ""

    def _seeds(self, start: int) -> Iterator[int]:
        from vkvdb.toyworld.world import seeds

        return iter(seeds(self._split, DRAW_APART, start + self._draw * DRAW_APART))

    def _image(self, name: str, pixels: UInt8) -> str:
        path = f"images/{name}.png"
        (self._root / path).write_bytes(png(pixels))
        self.reading.images.append(ImageFile(name, path))
        return name

    def gallery(self) -> None:
        """Pairs, and what is drawn among their images, category by category."""
        from vkvdb.toyworld.world import CATEGORIES

        for number, category in enumerate(CATEGORIES):
            seeds = self._seeds(_PAIRS + number * _APART)
            pairs = [self._pair(category, seeds) for _ in range(self.sizes.pairs)]
            self.reading.samples += [matched for matched, _ in pairs]
            labelled = [each for _, ends in pairs for each in ends]
            self.reading.samples += [
                Image(id=image, group=category, cluster=image, image=image, category=category, mask=one.mask)
                for one in labelled
                for image in [one.image]
            ]
            self._among(category, labelled[: self.sizes.pool])

    def parts(self) -> None:
        """The pairs of the categories that were not held out, a sample for each point."""
        from vkvdb.toyworld.world import CATEGORIES, HELD_OUT_CATEGORIES

        for number, category in enumerate(CATEGORIES):
            if category in HELD_OUT_CATEGORIES:
                continue
            seeds = self._seeds(_PAIRS + number * _APART)
            for _ in range(self.sizes.pairs):
                whole, _ = self._pair(category, seeds)
                self.reading.samples += [
                    replace(
                        whole,
                        id=f"{whole.id}-{name}",
                        group=name,
                        source_points=(source,),
                        target_points=(target,),
                        names=(name,),
                    )
                    for name, source, target in zip(whole.names, whole.source_points, whole.target_points, strict=True)
                ]

    def _pair(self, category: str, seeds: Iterator[int]) -> tuple[ImagePair, list[Labelled]]:
        """The next pair of a category with enough points, and its images with their things' masks."""
        from vkvdb.toyworld.world import pair, render

        while len((drawn := pair(next(seeds), [category])).names) < POINTS:
            pass
        ends = [render(drawn.source), render(drawn.target)]
        name = f"{self._tag}pair-{category}-{drawn.seed}"
        images = [self._image(f"{name}-{end}", one.image) for end, one in zip("ab", ends, strict=True)]
        boxes = [_box(one) for one in ends]
        points = [tuple((one.keypoints[0][key].x, one.keypoints[0][key].y) for key in drawn.names) for one in ends]
        matched = ImagePair(
            id=name,
            group=category,
            cluster=name,
            source=images[0],
            target=images[1],
            source_points=points[0],
            target_points=points[1],
            source_box=boxes[0],
            target_box=boxes[1],
            names=drawn.names,
        )
        return matched, [
            Labelled(image, masks.encode(one.instances == 1)) for image, one in zip(images, ends, strict=True)
        ]

    def _among(self, category: str, pool: list[Labelled]) -> None:
        """Episodes and sets among images that lie together."""
        rng = random.Random(f"{self._split}/{self._tag}{category}")
        for query in pool[: self.sizes.episodes]:
            supports = rng.sample([one for one in pool if one is not query], SUPPORTS)
            self.reading.samples.append(
                Episode(
                    id=f"{self._tag}episode-{query.image.removeprefix(self._tag)}",
                    group=category,
                    cluster=query.image,
                    supports=tuple(supports),
                    query=query,
                )
            )
        for first in range(0, len(pool), SET):
            name = f"{self._tag}set-{category}-{first // SET}"
            members = tuple(pool[first : first + SET])
            self.reading.samples.append(ImageSet(id=name, group=category, cluster=name, members=members))

    def scenes(self) -> None:
        """Scenes with an expression for each thing that is not alone, and a question of each kind."""
        import numpy as np

        from vkvdb.toyworld.language import facts, referring
        from vkvdb.toyworld.questions import KINDS, Asked, question
        from vkvdb.toyworld.world import render, scene

        seeds = self._seeds(0)
        for number in range(self.sizes.scenes):
            drawn = scene(next(seeds))
            seen = render(drawn)
            name = self._image(f"{self._tag}scene-{drawn.seed}", seen.image)
            regions = [masks.encode(seen.instances == index + 1) for index in range(len(drawn.things))]
            self.reading.samples += [
                Expression(
                    id=f"{name}-{said.target}",
                    group=drawn.things[said.target].category,
                    cluster=name,
                    image=name,
                    text=said.text,
                    mask=regions[said.target],
                    others=tuple(regions[index] for index in said.distractors),
                )
                for said in referring(drawn, seen)
                if said.distractors
            ]
            if number >= self.sizes.asked:
                continue
            asked = Asked(drawn, seen, facts(drawn, seen), held_out=False)
            generator = np.random.default_rng([drawn.seed, 4])
            found = [question(kind, asked, generator) for kind in KINDS]
            self.reading.samples += [
                Question(id=f"{name}-{q.kind}", group=q.kind, cluster=name, shown=(name,), text=q.text, answer=q.answer)
                for q in found
                if q is not None
            ]

    def clips(self) -> None:
        """Clips; what is not seen in the first frame is no object of it."""
        from vkvdb.toyworld.language import MIN_AREA
        from vkvdb.toyworld.world import clip, render

        seeds = self._seeds(_CLIPS)
        for _ in range(self.sizes.clips):
            seed = next(seeds)
            seen = [render(frame) for frame in clip(seed, FRAMES)]
            things = range(1, 1 + len(seen[0].keypoints))
            objects = [index for index in things if (seen[0].instances == index).sum() >= MIN_AREA]
            if not objects:
                continue
            name = f"{self._tag}clip-{seed}"
            self.reading.samples.append(
                Clip(
                    id=name,
                    group="clip",
                    cluster=name,
                    frames=tuple(self._image(f"{name}-{time}", one.image) for time, one in enumerate(seen)),
                    objects=tuple(tuple(masks.encode(one.instances == index) for index in objects) for one in seen),
                )
            )

    def choices(self) -> None:
        """Multiple-choice questions of each kind."""
        from vkvdb.toyworld.choices import CHOICE_KINDS, choice

        for number, kind in enumerate(CHOICE_KINDS):
            seeds = self._seeds(_CHOICES + number * _APART)
            for _ in range(self.sizes.choices):
                while (made := choice(kind, seed := next(seeds))) is None:
                    pass
                name = f"{self._tag}choice-{kind}-{seed}"
                shown = tuple(self._image(f"{name}-{place}", pixels) for place, pixels in enumerate(made.images))
                self.reading.samples.append(
                    Question(
                        id=name,
                        group=f"choice-{kind}",
                        cluster=name,
                        shown=shown,
                        text=made.text,
                        answer=made.options[made.right],
                        options=made.options,
                        marks=tuple((mark.x, mark.y) for mark in made.marks),
                    )
                )


def _box(seen: Rendered) -> Box:
    """The box of the first thing of a scene, of which something is seen."""
    from vkvdb.toyworld.world import box

    found = box(seen.instances, 0)
    assert found is not None
    left, top, right, bottom = map(float, found)
    return left, top, right, bottom


def png(pixels: UInt8) -> bytes:
    """An RGB array (height, width, 3) as a PNG whose data is stored as it is (RFC 1950, RFC 1951 section 3.2.4)."""
    height, width, _ = pixels.shape
    raw = b"".join(b"\0" + row.tobytes() for row in pixels)
    blocks = [raw[start : start + 65535] for start in range(0, len(raw), 65535)]
    data = b"\x78\x01" + b"".join(
        struct.pack("<BHH", block is blocks[-1], len(block), 0xFFFF - len(block)) + block for block in blocks
    )
    chunks: list[tuple[bytes, Any]] = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", data + struct.pack(">I", zlib.adler32(raw))),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


DATASET = ToyWorld
