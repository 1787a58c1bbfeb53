"""Texts before the image that differ by image: `tokens=N:TEXT`, of exactly N tokens whatever the image.

    tokens=8:                              filler alone
    tokens=8:a picture of a thing          a generic text
    tokens=8:a picture of a {category}     the image's own category
    tokens=8:a picture of a {wrong}        another category of the dataset, drawn by the image's name
    tokens=8:{random}                      words from a list that names nothing, drawn by the image's name

A prefix moves the image, and what is before an image counts as context whatever it says; so conditions are compared at
equal length [D]. N tokens is meant as what lies between the chat header and the image, the line break before the image
included: the image stands at the same position in every condition. Shorter texts have `the` put in front of them until
they fit (`vkvdb.models._prompt` does it, with the model's tokenizer, and proves it on token ids); longer ones are
refused, but for random words, of which as many are taken as fit. A prefix of any other form is plain text, the same for
all images.

An image's category is what its samples say: its class, or that of the pair, episode or set it is in. An image of
several categories, or of none, has no `{category}`; samples on such images are left out under such a prefix.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vkvdb.errors import BadOption
from vkvdb.samples import Episode, Image, ImagePair, ImageSet, Sample
from vkvdb.types import Text

FILLER = "the"
_WORDS = """
how many are where yes no left right which does way first second third and read from find you it list most similar or
to with has that same not can both please name tell me about
"""
WORDS = tuple(_WORDS.split())
_FORM = re.compile(r"tokens=(\d+):(.*)", re.DOTALL)
_FIELDS = ("category", "wrong", "random")

Categories = Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Template:
    """A prefix that differs by image."""

    tokens: int
    words: str

    @property
    def by_category(self) -> bool:
        """Whether it needs the image's category."""
        return "{category}" in self.words or "{wrong}" in self.words

    def of(self, image: str, there: Categories) -> Text | None:
        """The text before an image; None where it needs a category and the image has none, or several."""
        if self.words == "{random}":
            words = " ".join(random.Random(f"words of {image}").choices(WORDS, k=self.tokens))
            return Text(words, self.tokens, cut=True)
        if not self.by_category:
            return Text(self.words, self.tokens)
        own = there.get(image, frozenset())
        if len(own) != 1:
            return None
        (category,) = own
        others = sorted(frozenset().union(*there.values()) - own)
        if "{wrong}" in self.words and not others:
            raise BadOption(option="--prefix", value=str(self), why=f"the dataset has no category but {category}")
        wrong = random.Random(f"wrong category of {image}").choice(others) if others else ""
        return Text(self.words.replace("{category}", category).replace("{wrong}", wrong), self.tokens)

    def __str__(self) -> str:
        return f"tokens={self.tokens}:{self.words}"


def parse(prefix: str) -> Template | None:
    """A prefix that differs by image; None for plain text. Raises BadOption."""
    found = _FORM.fullmatch(prefix)
    if found is None:
        return None
    made = Template(int(found[1]), found[2])
    unknown = [name for name in re.findall(r"\{(.*?)\}", made.words) if name not in _FIELDS]
    if unknown or ("{random}" in made.words and made.words != "{random}"):
        why = "it may have {category} and {wrong} in it, or be {random}"
        raise BadOption(option="--prefix", value=prefix, why=why)
    if made.tokens < 2:
        raise BadOption(option="--prefix", value=prefix, why="at least 2 tokens are expected")
    return made


def categories(samples: Iterable[Sample]) -> dict[str, frozenset[str]]:
    """{image: its categories, as words}, as a dataset's samples have them."""
    found: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        if isinstance(sample, Image):
            name = sample.category or sample.group
        # Points that correspond by a warp are of no class.
        elif isinstance(sample, Episode | ImageSet) or (isinstance(sample, ImagePair) and sample.names):
            name = sample.group
        else:
            continue
        for image in sample.images():
            found[image].add(name.partition(",")[0].replace("_", " ").strip())
    return {image: frozenset(names) for image, names in found.items()}


def texts(prefix: str, images: Iterable[str], samples: Iterable[Sample]) -> dict[str, Text]:
    """{image: its text}; none for a plain prefix. Raises BadOption for an image that has no text."""
    template = parse(prefix)
    if template is None:
        return {}
    there = categories(samples) if template.by_category else {}
    found = {}
    for image in images:
        text = template.of(image, there)
        if text is None:
            own = ", ".join(sorted(there.get(image, ()))) or "none"
            why = f"image {image} has not one category but {own}; use a task and dataset whose images have one"
            raise BadOption(option="--prefix", value=prefix, why=why)
        found[image] = text
    return found


def fits(prefix: str, images: Iterable[str], there: Categories) -> bool:
    """Whether all of some images have a text under a prefix."""
    template = parse(prefix)
    return template is None or not template.by_category or all(len(there.get(i, ())) == 1 for i in images)
