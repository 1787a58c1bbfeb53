"""A folder of plug-ins as a person would write them: a small dataset that is made, and tasks of one file each."""

from __future__ import annotations

from pathlib import Path

DOTS = '''"""Forty noisy pictures in pairs, each a shifted copy of the other; and a question of each."""

from __future__ import annotations

import random

from vkvdb.samples import Image, ImagePair
from vkvdb.types import ImageFile, Reading


class Dots:
    version = 1
    splits = ("test",)
    layout = ""

    def read(self, root, split):
        from PIL import Image as Pictures

        found = Reading()
        draw = random.Random(0)
        for n in range(40):
            if n % 2 == 0:
                base = Pictures.frombytes("RGB", (8, 8), draw.randbytes(192)).resize((64, 64), 2)
            path = root / "images" / f"{n:02d}.png"
            path.parent.mkdir(exist_ok=True)
            base.transform((64, 64), Pictures.Transform.AFFINE, (1, 0, 8 * (n % 2), 0, 1, 0)).save(path)
            found.images.append(ImageFile(name=path.name, path=f"images/{path.name}"))
        names = [i.name for i in found.images]
        points = tuple((8.0 * c + 12, 8.0 * r + 4) for r in range(8) for c in range(6))
        moved = tuple((x - 8, y) for x, y in points)
        for n in range(20):
            for m in (n, (n * 7 + 3) % 20):
                found.samples.append(ImagePair(
                    id=f"{n}-{m}", group="even" if n % 2 == 0 else "odd", cluster=str(n), source=names[2 * n],
                    target=names[2 * m + 1], source_points=points, target_points=moved, target_box=(0, 0, 64, 64)))
        found.samples += [Image(id=f"i{n}", group="g", cluster=str(n), image=name) for n, name in enumerate(names[:8])]
        return found


DATASET = Dots
'''

WORDS = '''"""How far each image's mean token leans to some words: a task of a test, deleted again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from vkvdb.samples import Image
from vkvdb.types import Needs, Scores


@dataclass(frozen=True)
class Words:
    version: ClassVar[int] = 1
    takes: ClassVar[type] = Image
    metrics: ClassVar[tuple[str, ...]] = ("lean",)

    words: str = "red cat"

    def needs(self, sample):
        return Needs((sample.image,), (self.words,))

    def score(self, sample, captures, texts):
        vectors = texts[self.words]
        for stack in captures[sample.image].stacks:
            sites = [s for s in stack.sites if s in vectors]
            for site in sites:
                tokens = stack.tokens[stack.sites.index(site)].float().mean((1, 2))
                value = torch.cosine_similarity(tokens, vectors[site].float(), dim=-1)
                together = torch.cosine_similarity(tokens.flatten(), vectors[site].float().flatten(), dim=0)
                yield Scores("lean", (site,), [[*value.tolist(), together.item()]])


TASK = Words
'''


def write(folder: Path) -> Path:
    """The plug-in folder, written."""
    for kind, name, text in (("datasets", "dots", DOTS), ("tasks", "words", WORDS)):
        path = folder / kind / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder
