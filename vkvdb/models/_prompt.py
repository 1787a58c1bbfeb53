"""Prompts in a checkpoint's own chat template, and the image's place in them, proven on token ids.

Chat templates may move images in front of the text (LLaVA's do, silently). So a prefix is put into the rendered text,
right before the first image, and its place is checked on the ids that come out.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from vkvdb.errors import BadCheckpoint, BadOption
from vkvdb.prefixes import FILLER
from vkvdb.types import Text

if TYPE_CHECKING:
    from vkvdb.models._checkpoint import Checkpoint


class Chat:
    """Renders prompts for one checkpoint, and turns them into token ids.

    `opening` is what the template writes right before an image's placeholder (Qwen's `<|vision_start|>`), or empty.
    Raises BadCheckpoint when template, tokenizer and configuration do not fit each other.
    """

    def __init__(self, tokenizer: Any, image_id: int, opening: str, name: str) -> None:
        self.tokenizer = tokenizer
        self.image_id = image_id
        self.name = name
        self.image: str = tokenizer.convert_ids_to_tokens(image_id)
        self._marked: str = opening + self.image
        self.header = self._split(self._render([{"type": "image"}]))[0]

    def beginning(self, prefix: str = "") -> str:
        """The chat header, a prefix, and one image, which ends it: what decides an image's keys and values."""
        text = self._prefixed(self.header, prefix) + self._marked
        self._prove(text, prefix, len(self.header))
        return text

    def after(self, text: Text) -> str:
        """The chat header, a text, and one image, which begins exactly `text.tokens` tokens later than without text.

        Filler is put before the words until they fit. Raises BadOption where they can't.
        """
        words = text.words
        while text.cut and words and self.length(words) > text.tokens:
            words = words.rpartition(" ")[0]
        own = self.length(words) if words else 0
        missing = text.tokens - own
        if missing >= 0:
            # A tokenizer may join words, or take several tokens for one: then points make up the rest.
            counts = sorted(range(missing + 3), key=lambda n: abs(n - missing))
            for points, count in product(range(4), counts):
                filler = " ".join([FILLER] * count) + "." * points
                padded = f"{filler} {words}" if words and count else filler + words
                if padded and self.length(padded) == text.tokens:
                    return self.beginning(padded)
        why = f"'{words}' is {own} tokens of {self.name}" if own else f"no number of '{FILLER}' is so many tokens"
        raise BadOption(option="--prefix", value=f"tokens={text.tokens}", why=why)

    def length(self, prefix: str) -> int:
        """How many tokens later the image begins than without this prefix."""
        return self._start(self.beginning(prefix)) - self._start(self.beginning())

    def _start(self, text: str) -> int:
        start: int = self._encoded(text)["input_ids"].index(self.image_id)
        return start

    def question(self, words: str, images: int = 1, prefix: str = "") -> str:
        """A whole prompt of some images and words, up to where the model is to answer."""
        content = [{"type": "image"}] * images + [{"type": "text", "text": words}]
        before, after = self._split(self._render(content, add_generation_prompt=True))
        text = self._prefixed(before, prefix) + after
        self._prove(text, prefix, len(before))
        return text

    def ids(self, text: str, counts: Sequence[int] = ()) -> list[int]:
        """Token ids; the placeholder of image i is repeated `counts[i]` times.

        Special tokens come once, not twice where the template wrote them, as the model's own processor does it.
        """
        short: list[int] = self._encoded(text)["input_ids"]
        there = short.count(self.image_id)
        if there > len(counts):
            raise BadOption(option="prompt", value=repr(text), why=f"words must not contain {self.image}")
        if there < len(counts):
            raise self._misfit(f"its tokenizer does not keep {self.image} as one token")
        left = iter(counts)
        return [i for token in short for i in ([token] * next(left) if token == self.image_id else [token])]

    def _encoded(self, text: str, **options: Any) -> Any:
        bos = self.tokenizer.bos_token
        return self.tokenizer(text, add_special_tokens=not (bos and text.startswith(bos)), **options)

    def _render(self, content: list[dict[str, str]], **options: Any) -> str:
        text = self.tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False, **options)
        return str(text)

    def _split(self, text: str) -> tuple[str, str]:
        at = text.find(self._marked)
        if at < 0:
            raise self._misfit(f"its chat template puts no {self._marked} for an image")
        return text[:at], text[at:]

    @staticmethod
    def _prefixed(before: str, prefix: str) -> str:
        return before + (f"{prefix}\n" if prefix else "")

    def _prove(self, text: str, prefix: str, start: int) -> None:
        """The prefix's characters became tokens, all of which come before the first image's."""
        if not prefix:
            return
        encoded = self._encoded(text, return_offsets_mapping=True)
        offsets, end = encoded["offset_mapping"], start + len(prefix)
        first = encoded["input_ids"].index(self.image_id)
        touching = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
        covered = sum(min(b, end) - max(a, start) for a, b in (offsets[i] for i in touching))
        if covered < len("".join(prefix.split())) or any(i >= first for i in touching):
            raise BadCheckpoint(
                name=self.name, why="the prefix does not appear before the image", hint="try another prefix"
            )

    def _misfit(self, why: str) -> BadCheckpoint:
        return BadCheckpoint(name=self.name, why=why, hint="its tokenizer and config.json do not fit")


def chat_of(checkpoint: Checkpoint) -> Chat:
    """The prompts of a vision-language checkpoint whose weights are not loaded. Raises BadCheckpoint."""
    from vkvdb.models._loading import tokenizer_of

    config: Any = checkpoint.config
    image_id = config["image_token_id"] if "image_token_id" in config else config["image_token_index"]
    code: Any = checkpoint.code
    return Chat(tokenizer_of(checkpoint), image_id, code.opening, checkpoint.name)
