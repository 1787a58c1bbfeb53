"""Seeded predictions and truths that official evaluators were given; what they said is in goldens/official.json.

Numpy only, so that it can be imported where an evaluator runs.
"""

from __future__ import annotations

import numpy as np

FOLD = (5, 6, 7, 8, 9)  # the classes of Pascal-5i's fold 1, from 0
CATEGORIES = ("cat", "cow", "dog")
KINDS = 4  # classes of the ImageNet-S images


def region(draw, height, width, at=None):
    """An ellipse with a ragged edge: somewhere, or where another lies, shifted."""
    row, col = np.mgrid[:height, :width] + 0.5
    y, x, a, b = at or (*draw.uniform(0.3, 0.7, 2), *draw.uniform(0.15, 0.35, 2))
    shift = draw.uniform(-0.08, 0.08, 2)
    distance = ((row / height - y - shift[0]) / a) ** 2 + ((col / width - x - shift[1]) / b) ** 2
    return distance + 0.3 * draw.standard_normal((height, width)) <= 1


def both(draw, height, width):
    """A prediction and a truth that overlap."""
    at = (*draw.uniform(0.3, 0.7, 2), *draw.uniform(0.15, 0.35, 2))
    return region(draw, height, width, at), region(draw, height, width, at)


def clips():
    """{name: (predicted, truth)}, label maps (frames, height, width) of 2 and 3 objects; void of the truth is 255."""
    draw = np.random.default_rng(1)
    found = {}
    for name, frames, objects, height, width in (("one", 7, 2, 60, 80), ("two", 5, 3, 141, 97)):
        maps = np.zeros((2, frames, height, width), np.uint8)
        for number in range(1, objects + 1):
            at = (*draw.uniform(0.2, 0.8, 2), *draw.uniform(0.15, 0.3, 2))
            for time in range(frames):
                for of in maps:
                    of[time][region(draw, height, width, at)] = number
        maps[0, 2][maps[0, 2] == 1] = 0  # lost
        maps[1, 3][maps[1, 3] == 2] = 0  # gone
        maps[:, 3][maps[:, 3] == 2] = 0
        maps[1, 1, :9, :9] = 255
        found[name] = maps[0], maps[1]
    return found


def pairs():
    """[(category, source image, target image, source points, target points, target box)], whole pixels."""
    draw = np.random.default_rng(2)
    found = []
    for category, count in zip(CATEGORIES, (4, 3, 5), strict=True):
        for n in range(count):
            width, height = draw.integers(40, 90, 2)
            points = int(draw.integers(2, 9))
            moved = draw.integers(-4, 5, 2)
            source = draw.integers((5, 5), (width - 5, height - 5), (points, 2))
            box = sorted(draw.integers(0, width, 2)), sorted(draw.integers(0, height, 2))
            target = np.clip(source + moved, 0, (width - 1, height - 1))
            found.append(
                {
                    "category": category, "name": f"{category}-{n}", "size": (int(width), int(height)),
                    "source": source.tolist(), "target": target.tolist(),
                    "box": [int(box[0][0]), int(box[1][0]), int(box[0][1]) + 20, int(box[1][1]) + 20],
                }
            )  # fmt: skip
    return found


def features(pair, dim=12, rows=8, cols=8):
    """Tokens (rows, cols, dim) of the source and of the target, alike as much as makes about half of points right."""
    draw = np.random.default_rng([3, *pair["size"], len(pair["source"])])
    source = draw.standard_normal((rows, cols, dim))
    target = source + 1.5 * draw.standard_normal((rows, cols, dim))
    return source.astype(np.float32), target.astype(np.float32)


def guesses():
    """For each of `pairs` predicted points (points, 2), any numbers."""
    draw = np.random.default_rng(4)
    return [np.array(p["target"]) + draw.normal(0, 4, (len(p["target"]), 2)) for p in pairs()]


def episodes():
    """[(class, predicted, truth, void)], masks (height, width); void lies outside the truth."""
    draw = np.random.default_rng(5)
    found = []
    for n in range(17):
        height, width = draw.integers(30, 70, 2)
        predicted, truth = both(draw, height, width)
        void = region(draw, height, width) & ~truth & (n % 3 > 0)
        found.append((FOLD[n % 5], predicted, truth, void))
    return found


def expressions():
    """[(predicted, truth)], masks."""
    draw = np.random.default_rng(6)
    return [both(draw, *draw.integers(30, 80, 2)) for _ in range(11)]


def labelled():
    """[(class from 1, predicted, truth, void)], masks of images of one class each."""
    draw = np.random.default_rng(7)
    found = []
    for n in range(13):
        height, width = draw.integers(40, 80, 2)
        predicted, truth = both(draw, height, width)
        void = region(draw, height, width) & ~truth & (n % 2 > 0)
        found.append((1 + n % KINDS, predicted, truth, void))
    return found


def outlines():
    """COCO segmentations of an image (height, width): polygons and uncompressed runs."""
    draw = np.random.default_rng(8)
    height, width = 61, 83
    found = []
    for n in range(12):
        polygons = []
        for _ in range(1 + n % 3):
            angles = np.sort(draw.uniform(0, 2 * np.pi, 3 + n))
            x, y = draw.uniform(0.2, 0.8, 2) * (width, height)
            reach = draw.uniform(3, 20, len(angles))
            corners = np.stack([x + reach * np.cos(angles), y + reach * np.sin(angles)], 1)
            polygons.append(np.clip(corners, 0, (width, height)).ravel().tolist())
        found.append(polygons)
    for _ in range(4):
        flat = region(draw, height, width).T.ravel().astype(int)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [2]])))
        found.append({"size": [height, width], "counts": np.diff(np.concatenate([[0], edges])).tolist()})
    return height, width, found
