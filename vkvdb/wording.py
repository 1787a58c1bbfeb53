"""What a question says, and what an answer to it means. Standard library only.

**Options.** They are called (A), (B), ... in the dataset's order. Where the question's text does not name all of these
letters itself, options are listed below it in BLINK's words ("Select from the following choices.", Fu et al. 2024,
arXiv 2404.12390 [C]), a line each [D].

**Variants** [D]: 0 is the question as in the dataset; the others are controls. Whatever a model does with letters or
places alone does not survive them. They are left out where the meaning would change:

- 1, *options in reversed order*. Not where the text names letters without the options' words behind them, or options'
  own words hold such a letter: there a letter is a mark in the image.
- 2, *images in reversed order*. Only where every option is the name of another image's place ("the second image"),
  and the rest of the text names none of these places: then those images change places, texts stay, and the right
  option is another. Of other questions it can't be known what their text means by the first image, so there is no
  variant 2 of them.

**Reading an answer** [D]: what is not plain is None, never a guess. Rules in this order; one that finds an option ends
it, one that finds several makes it unreadable.

1. Letters in brackets anywhere: `(B)`, `The answer is (B).`
2. A letter that is the whole text, or begins it with a mark behind: `B`, `b.`, `B) the third image`, `B: no`
3. A capital behind the words answer, option or choice: `The answer is B`, `Option: B`
4. An option's own words, whole words, in any case: `It is the third image.` Words inside a longer option that was found
   (`image` in `third image`) do not count.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vkvdb.samples import Question

LISTED = "Select from the following choices."
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
_PLACE = re.compile(rf"(?:the\s+)?({'|'.join(_ORDINALS)})\s+(?:image|picture|photo|photograph)", re.IGNORECASE)


@dataclass(frozen=True)
class Worded:
    """A question in one of its variants: `text` and images as they are shown, `options` the words behind each letter.

    `order[k]` is the dataset's option that the letter k stands for.
    """

    variant: int
    text: str
    shown: tuple[str, ...]
    options: tuple[str, ...]
    order: tuple[int, ...]

    @property
    def letters(self) -> tuple[str, ...]:
        """`(A)`, `(B)`, ..."""
        return tuple(map(letter, range(len(self.options))))

    def in_order(self, values: tuple[float, ...]) -> list[float]:
        """Values of the letters as values of the dataset's options."""
        return [values[self.order.index(k)] for k in range(len(values))]

    def choice(self, raw: str) -> int | None:
        """The dataset's option that an answer means; None where it can't be read."""
        found = read_option(raw, self.options)
        return None if found is None else self.order[found]


def letter(place: int) -> str:
    """The letter of an option, with its brackets."""
    return f"({chr(ord('A') + place)})"


def worded(question: Question, *, swaps: bool) -> list[Worded]:
    """The question's variants that there are; with `swaps` off, as in the dataset only."""
    options, straight = question.options, tuple(range(len(question.options)))
    listed = _listed(question)
    first = Worded(0, listed or question.text, question.shown, options, straight)
    if not (swaps and options):
        return [first]
    found = [first]
    if (turned := _turned(question)) is not None:
        found.append(Worded(1, turned, question.shown, options[::-1], straight[::-1]))
    if places := _places(question):
        ends = dict(zip(sorted(places), sorted(places, reverse=True), strict=True))
        shown = tuple(question.shown[ends.get(at, at)] for at in range(len(question.shown)))
        order = tuple(places.index(ends[place]) for place in places)
        found.append(Worded(2, first.text, shown, options, order))
    return found


def _listed(question: Question) -> str:
    """The text with its options listed below; empty where it names their letters itself, or there are none."""
    letters = [letter(k) for k in range(len(question.options))]
    if all(name in question.text for name in letters):
        return ""
    lines = [f"{name} {option}" for name, option in zip(letters, question.options, strict=True)]
    return "\n".join([question.text, LISTED, *lines])


def _spans(question: Question) -> list[tuple[int, int]] | None:
    """Where the text has each option's words behind its letter; None where it does not, or not just once."""
    spans: list[tuple[int, int]] = []
    for k, option in enumerate(question.options):
        name = re.escape(letter(k))
        found = re.search(rf"{name}\s*({re.escape(option)})(?!\w)", question.text)
        if found is None or question.text.count(letter(k)) > 1 or (spans and found.start() < spans[-1][1]):
            return None
        spans.append(found.span(1))
    return spans


def _turned(question: Question) -> str | None:
    """The text with the options in reversed order; None where letters mean more than a place in the list."""
    options = question.options
    if any(letter(k) in option for k in range(len(options)) for option in options):
        return None
    if listed := _listed(question):
        start = len(listed) - len("\n".join(f"{letter(k)} {option}" for k, option in enumerate(options)))
        lines = [f"{letter(k)} {option}" for k, option in enumerate(options[::-1])]
        return listed[:start] + "\n".join(lines)
    spans = _spans(question)
    if spans is None:
        return None
    text = question.text
    for (start, end), option in reversed(list(zip(spans, options[::-1], strict=True))):
        text = text[:start] + option + text[end:]
    return text


def _places(question: Question) -> tuple[int, ...]:
    """The place of the image that each option names, from 0; empty where these images can't change places."""
    found = [_PLACE.fullmatch(option.strip()) for option in question.options]
    places = tuple(_ORDINALS.index(one[1].lower()) for one in found if one)
    if len(places) < max(2, len(found)) or len(set(places)) < len(places) or max(places) >= len(question.shown):
        return ()
    rest = question.text
    for start, end in reversed(_spans(question) or []):
        rest = rest[:start] + rest[end:]
    named = {_ORDINALS.index(word.lower()) for word in re.findall(r"\w+", rest) if word.lower() in _ORDINALS}
    return () if named & set(places) else places


def read_option(raw: str, options: tuple[str, ...]) -> int | None:
    """The place of the option that an answer names, by the rules above; None where it names none or several."""
    last = chr(ord("A") + len(options) - 1)
    text = raw.strip()
    rules = (
        re.findall(rf"\(([A-{last}])\)", text, re.IGNORECASE),
        re.findall(rf"^([A-{last}])(?:[.):,]|\s*$)", text, re.IGNORECASE),
        re.findall(rf"(?i:\b(?:answer|option|choice)(?:\s+is)?\s*:?)\s+([A-{last}])\b", text),
    )
    for letters in rules:
        if named := {ord(found.upper()) - ord("A") for found in letters}:
            return named.pop() if len(named) == 1 else None
    found = [(m.start(), m.end(), k) for k, option in enumerate(options) for m in _words(option).finditer(text)]
    outer = {k for a, b, k in found if not any(c <= a and b <= d and d - c > b - a for c, d, _ in found)}
    return outer.pop() if len(outer) == 1 else None


def says(raw: str, answer: str) -> bool | None:
    """Whether an answer to an open question has the right words in it, whole and in any case; None: it has no word."""
    return bool(_words(answer).search(raw)) if re.search(r"\w", raw) else None


def _words(words: str) -> re.Pattern[str]:
    pieces = r"\s+".join(re.escape(word) for word in words.split())
    return re.compile(rf"(?<!\w){pieces}(?!\w)", re.IGNORECASE)
