"""What a question says in its variants, and what an answer means."""

from __future__ import annotations

import pytest

from vkvdb.samples import Question
from vkvdb.wording import read_option, says, worded

COLOURS = ("red", "light blue", "blue")
PLACES = ("the second image", "the third image")


def asked(text: str, options: tuple[str, ...] = (), images: int = 1) -> Question:
    shown = tuple(f"i{n}" for n in range(images))
    return Question(id="q", group="g", cluster="c", shown=shown, text=text, answer="x", options=options)


@pytest.mark.parametrize(
    ("raw", "place"),
    [
        ("(B)", 1),
        (" (b) ", 1),
        ("The answer is (C).", 2),
        ("(A) red", 0),
        ("(A) or (B)", None),
        ("(A) red (B) light blue (C) blue", None),
        ("(D)", None),
        ("B", 1),
        ("b.", 1),
        ("C) blue", 2),
        ("B: it is light", 1),
        ("A dog", None),
        ("A, B", 0),  # begins with a letter and a mark
        ("The answer is B", 1),
        ("the correct option: C", 2),
        ("Answer: A", 0),
        ("the answer is a colour", None),
        ("It is Red.", 0),
        ("light blue", 1),
        ("blue", 2),
        ("light  blue, not dark", 1),
        ("red or blue", None),
        ("light blue or blue", None),
        ("bluebird", None),
        ("colored", None),
        ("", None),
        ("I can't tell", None),
    ],
)
def test_reading_an_option(raw: str, place: int | None) -> None:
    assert read_option(raw, COLOURS) == place


def test_an_options_own_letter_is_no_letter() -> None:
    points = ("Point A", "Point B", "Point C")
    assert [read_option(raw, points) for raw in ("Point B", "(C) Point B", "Point")] == [1, 2, None]
    assert read_option("image", ("second image", "image")) == 1
    assert read_option("the second image", ("second image", "image")) == 0


@pytest.mark.parametrize(
    ("raw", "right"),
    [("It is a Teapot.", True), ("teapots", False), ("red", False), ("", None), (" .", None)],
)
def test_an_open_answer_is_compared_by_whole_words(raw: str, right: bool | None) -> None:
    assert says(raw, "teapot") is right
    assert says("the middle  right", "middle right")
    assert says("it costs $5 (or so)", "$5 (or so)")


def test_options_are_listed_as_blink_lists_them() -> None:
    first, turned = worded(asked("Which colour?", ("red", "blue")), swaps=True)
    assert first.text == "Which colour?\nSelect from the following choices.\n(A) red\n(B) blue"
    assert turned.text == "Which colour?\nSelect from the following choices.\n(A) blue\n(B) red"
    assert (turned.variant, turned.options, turned.order) == (1, ("blue", "red"), (1, 0))
    assert [turned.choice(raw) for raw in ("(A)", "(B)", "red", "?")] == [1, 0, 0, None]
    assert turned.in_order((-1.0, -2.0)) == [-2.0, -1.0]


def test_three_options_turned_map_back() -> None:
    _, turned = worded(asked("Which colour?", COLOURS), swaps=True)
    assert [turned.choice(f"({name})") for name in "ABC"] == [2, 1, 0]
    assert turned.in_order((-1.0, -2.0, -3.0)) == [-3.0, -2.0, -1.0]


def test_a_text_that_lists_its_options_stays_as_it_is() -> None:
    text = "how many ? (A) 1 (B) 10 (C) 2 please"
    first, turned = worded(asked(text, ("1", "10", "2")), swaps=True)
    assert first.text == text
    assert turned.text == "how many ? (A) 2 (B) 10 (C) 1 please"


@pytest.mark.parametrize(
    "question",
    [
        asked("What is it?"),
        asked("Which point matches REF ? (A) (B)", ("point (A)", "point (B)"), images=2),
        asked("Which box?", ("box (A)", "box (B)")),
        asked("(A) red (B) blue? (A)!", ("red", "blue")),
    ],
)
def test_where_letters_are_marks_options_are_not_turned(question: Question) -> None:
    assert [w.variant for w in worded(question, swaps=True)] == [0]


def test_images_that_are_options_change_places() -> None:
    question = asked("Which image has the style of the first image?", PLACES, images=3)
    first, _, swapped = worded(question, swaps=True)
    assert swapped.shown == ("i0", "i2", "i1")
    assert (swapped.variant, swapped.text, swapped.options) == (2, first.text, PLACES)
    # What stands second now is the dataset's third image.
    assert [swapped.choice(raw) for raw in ("(A)", "the third image")] == [1, 0]
    four = ("the first image", "the second image", "the third image", "the fourth image")
    assert worded(asked("Which is real?", four, images=4), swaps=True)[2].order == (3, 2, 1, 0)
    listed = asked("like the first image ? (A) second image (B) third image", ("second image", "third image"), images=3)
    assert [w.variant for w in worded(listed, swaps=True)] == [0, 1, 2]


@pytest.mark.parametrize(
    "question",
    [
        asked("Is the second image the end of the video?", ("yes", "no"), images=2),
        asked("Which one is like the second image?", PLACES, images=3),
        asked("Which one?", PLACES, images=2),
        asked("Which one?", ("the second image", "neither"), images=3),
        asked("Which one?", ("the second image", "second photo"), images=3),
    ],
)
def test_other_images_stay_where_they_are(question: Question) -> None:
    assert [w.variant for w in worded(question, swaps=True)] == [0, 1]


def test_without_swaps_there_is_the_dataset_alone() -> None:
    assert [w.variant for w in worded(asked("Which one?", PLACES, images=3), swaps=False)] == [0]
