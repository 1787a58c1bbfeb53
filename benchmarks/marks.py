"""How often drawn marks are found, told from one another, and taken for others: the accuracy table of `vkvdb.marks`.

    python benchmarks/marks.py [--photos FOLDER] [--n 40 --seed 0]

Marks in BLINK's look are drawn at random places and sizes, in two fonts, with red objects between them, on scenes of
the toy world (enlarged) and on the photographs of a folder, saved as JPEG and read again; and the toy's own marks.
Half the images hold REF alone, half A to D. Right: no farther than 3 px or 1 % of the longer side. Intervals: Wilson.
BLINK's own images are not among them, so its figures may differ.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vkvdb import marks
from vkvdb.toyworld.choices import choice
from vkvdb.toyworld.world import render, scene

Truth = dict[str, tuple[float, float]]


def labels_of(number: int) -> tuple[str, ...]:
    """REF for even numbers, A to D for odd ones."""
    return tuple("ABCD") if number % 2 else ("REF",)


def mark(image: Image.Image, labels: tuple[str, ...], generator: np.random.Generator) -> Truth:
    """Draws marks in BLINK's look, no two on each other; their centres."""
    pen = ImageDraw.Draw(image)
    truth: Truth = {}
    radius = float(generator.uniform(0.011, 0.022)) * max(image.size)
    radius = max(radius, 5.0)
    size = 2 * radius * float(generator.uniform(1.15, 1.45))
    bold = bool(generator.integers(2))
    taken: list[tuple[float, float]] = []
    for label in labels:
        for _ in range(300):
            x, y = (float(generator.uniform(3 * radius, side - 3 * radius)) for side in image.size)
            if all(abs(x - a) > 7 * radius or abs(y - b) > 7 * radius for a, b in taken):
                break
        else:
            raise ValueError(f"{labels} do not fit on {image.size}")
        taken.append((x, y))
        # The bounds of an ellipse are pixels that belong to it.
        x, y = round(x) + 0.5, round(y) + 0.5
        whole = round(radius)
        bounds = (x - 0.5 - whole, y - 0.5 - whole, x - 0.5 + whole, y - 0.5 + whole)
        pen.ellipse(bounds, outline=(255, 0, 0), width=max(2, round(radius / 4)))
        font = ImageFont.load_default(size)
        stroke = max(1, round(size / 24)) if bold else 0
        middle = y + (3.6 * radius if y < 5 * radius else -3.6 * radius)
        box = pen.textbbox((x, middle), label, font=font, anchor="mm", stroke_width=stroke)
        pen.rectangle((box[0] - 2, box[1] - 2, box[2] + 2, box[3] + 2), fill=(0, 0, 0))
        pen.text((x, middle), label, (255, 255, 255), font=font, anchor="mm", stroke_width=stroke)
        truth[label] = (x, y)
    return truth


def distract(image: Image.Image, generator: np.random.Generator) -> None:
    """Red discs, boxes and rings without a label."""
    pen = ImageDraw.Draw(image)
    for kind in ("disc", "box", "ring"):
        size = float(generator.uniform(0.02, 0.06)) * max(image.size)
        x, y = (float(generator.uniform(0, side - size)) for side in image.size)
        red = tuple(int(value) for value in (generator.integers(200, 256), *generator.integers(0, 60, 2)))
        bounds = (x, y, x + size, y + size)
        if kind == "box":
            pen.rectangle(bounds, fill=red)
        else:
            pen.ellipse(bounds, fill=red if kind == "disc" else None, outline=red, width=3)


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Saved and read again."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def blink_look(picture: Image.Image, number: int, seed: int) -> tuple[Image.Image, Truth]:
    """A picture with marks and distractions; the marks' centres."""
    generator = np.random.default_rng([seed, number])
    image = picture.convert("RGB")
    distract(image, generator)
    truth = mark(image, labels_of(number), generator)
    return as_jpeg(image, int(generator.integers(80, 96))), truth


def wilson(right: int, n: int) -> str:
    """A share with its 95 % interval."""
    if not n:
        return "-"
    z = 1.959964
    middle, half = right + z * z / 2, z * np.sqrt(right * (n - right) / n + z * z / 4)
    return f"{right / n:.3f} [{(middle - half) / (n + z * z):.3f}, {(middle + half) / (n + z * z):.3f}]"


def measure(name: str, n: int, made: Callable[[int], tuple[Image.Image, Truth] | None]) -> None:
    """A row of the table."""
    images = points = found = placed = named = wrong = 0
    for image, truth in (one for one in map(made, range(n)) if one is not None):
        images, points = images + 1, points + len(truth)
        seen = marks.find(image, tuple(truth))
        if seen is None:
            continue
        found += 1
        near = max(3.0, 0.01 * max(image.size))
        right = 0
        for label, at in seen.items():
            gaps = {other: float(np.hypot(at[0] - x, at[1] - y)) for other, (x, y) in truth.items()}
            nearest = min(gaps, key=lambda other: gaps[other])
            placed += gaps[nearest] <= near
            right += gaps[nearest] <= near and nearest == label
        named += right
        wrong += right < len(truth)
    counts = f"{placed} of {points} | {named} of {points}"
    print(f"| {name} | {images} | {wilson(found, images)} | {counts} | {wilson(wrong, images)} |")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--n", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    def toy(number: int) -> tuple[Image.Image, Truth] | None:
        made = choice("correspondence", given.seed + number // 2)
        if made is None:
            return None
        of = number % 2
        truth = {one.label: (one.x, one.y) for one in made.marks if one.image == of}
        return Image.fromarray(made.images[of]), truth

    def scenes(number: int) -> tuple[Image.Image, Truth]:
        picture = Image.fromarray(render(scene(given.seed + number)).image).resize((448, 448))
        return blink_look(picture, number, given.seed)

    print("| images | n | found | at the right place | label right | wrong |\n| --- | --- | --- | --- | --- | --- |")
    measure("toy world, its own marks", given.n, toy)
    measure("toy world, BLINK's look", given.n, scenes)
    if given.photos:
        photos = sorted(path for path in given.photos.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if not photos:
            parser.error(f"{given.photos} holds no .jpg, .jpeg or .png")
        measure(
            "photographs, BLINK's look",
            given.n,
            lambda number: blink_look(Image.open(photos[number % len(photos)]), number, given.seed),
        )


if __name__ == "__main__":
    main()
