"""Marks are found where they were drawn, or not at all."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from vkvdb.marks import find
from vkvdb.toyworld.choices import choice


def ground() -> Image.Image:
    noise = np.random.default_rng(0).integers(60, 160, (30, 40, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize((400, 300), Image.Resampling.BICUBIC)


def draw(image: Image.Image, label: str, x: int, y: int) -> None:
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(22)
    pen.ellipse((x - 9, y - 9, x + 9, y + 9), outline=(255, 0, 0), width=3)
    box = pen.textbbox((x, y - 33), label, font=font, anchor="mm", stroke_width=1)
    pen.rectangle((box[0] - 2, box[1] - 2, box[2] + 2, box[3] + 2), fill=(0, 0, 0))
    pen.text((x, y - 33), label, (255, 255, 255), font=font, anchor="mm", stroke_width=1)


PLACES = {"A": (60, 80), "B": (200, 100), "C": (330, 240), "D": (110, 220)}


def test_the_toy_worlds_marks() -> None:
    seen = found = 0
    for seed in range(20):
        made = choice("correspondence", seed)
        for of in (0, 1) if made else ():
            assert made is not None
            truth = {mark.label: (mark.x, mark.y) for mark in made.marks if mark.image == of}
            places = find(Image.fromarray(made.images[of]), tuple(truth))
            seen += 1
            if places is not None:
                found += 1
                assert all(np.hypot(*np.subtract(places[label], truth[label])) < 1 for label in truth)
    assert seen >= 20
    assert found >= 0.95 * seen


def test_marks_in_the_look_of_blink() -> None:
    image = ground()
    for label, place in PLACES.items():
        draw(image, label, *place)
    places = find(image, tuple("ABCD"))
    assert places is not None
    assert all(np.hypot(*np.subtract(places[label], PLACES[label])) < 1.5 for label in PLACES)
    assert find(image, tuple("ABC")) is None  # one more than asked for
    reference = ground()
    draw(reference, "REF", 200, 150)
    assert find(reference, ("REF",)) == {"REF": (200.5, 150.5)}
    assert find(reference, ("A",)) is None


def test_what_is_missing_or_twice_is_not_guessed() -> None:
    image = ground()
    assert find(image, ("REF",)) is None
    for label in "ABC":
        draw(image, label, *PLACES[label])
    assert find(image, tuple("ABCD")) is None
    draw(image, "A", *PLACES["D"])
    assert find(image, tuple("ABCD")) is None
    assert find(image, tuple("ABC")) is None


def test_red_things_are_no_marks() -> None:
    image = ground()
    pen = ImageDraw.Draw(image)
    pen.ellipse((50, 50, 90, 90), fill=(255, 0, 0))
    pen.rectangle((150, 50, 190, 90), outline=(255, 0, 0), width=4)
    pen.ellipse((250, 150, 270, 170), outline=(255, 0, 0), width=3)
    assert find(image, ("REF",)) is None
    assert find(image, tuple("ABCD")) is None


def test_labels_that_are_not_known() -> None:
    with pytest.raises(ValueError, match="each once"):
        find(ground(), ("Z",))
    with pytest.raises(ValueError, match="each once"):
        find(ground(), ("A", "A"))
