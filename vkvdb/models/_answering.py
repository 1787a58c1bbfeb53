"""Answers of a loaded vision-language checkpoint: greedy text, and the log-likelihood of each option's letter.

The same for every family. Prompts are run in batches, padded at the right; what follows a prompt is told its position
(the largest before it plus one, on every axis of the rotation), so that no state that a model keeps between calls is
relied on. A letter is what the tokenizer makes of `(A)` at the beginning of a text; where that is several tokens, its
log-likelihood is the sum of theirs, each after the ones before it.

Prompts that begin alike up to their last image share that beginning: it is run once, with its images, and its cache is
gone on from for each of them. Under interventions nothing is shared or padded: a cut edge has its place in one whole
prompt, and a padded token would be left without any edge.

Greedy means the likeliest token each time, without penalties or other settings of the checkpoint's generation. It ends
at the checkpoint's end-of-sequence tokens, which are not part of the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers.cache_utils import Cache

from vkvdb.errors import BadCheckpoint
from vkvdb.interventions import applied
from vkvdb.models._blank import GREY, Blank
from vkvdb.models._capture import Block, Sink, watched
from vkvdb.models._reader import Prompt, Reader
from vkvdb.types import Site, Stacks, TokenGrid

if TYPE_CHECKING:
    import PIL.Image

_ALONG = ("input_ids", "position_ids", "mm_token_type_ids")  # inputs of a position each, in their last dimension


@dataclass(frozen=True)
class Asked:
    """A rendered prompt with its images, the names that tell equal images, and the letters to be likely or not."""

    text: str
    images: tuple[PIL.Image.Image, ...]
    names: tuple[str, ...]
    letters: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answered:
    """What a model wrote, the log-likelihood of each letter, and what was read of each image, in their order."""

    raw: str
    likelihoods: tuple[float, ...]
    read: list[tuple[TokenGrid, Stacks]] = field(default_factory=list)


class KeepingCache(Cache):
    """Keeps each layer's keys and values (batch, heads, positions, dim); can be cut off and gone on from again.

    `sink`, where there is one, is handed those of the first pass.
    """

    def __init__(self, sink: Sink | None) -> None:
        super().__init__(layers=[])
        self._sink = sink
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if layer_idx == len(self._kept):
            self._kept.append((key_states, value_states))
            if self._sink is not None:
                self._sink.keys_values(layer_idx, key_states, value_states)
        else:
            keys, values = self._kept[layer_idx]
            self._kept[layer_idx] = torch.cat([keys, key_states], 2), torch.cat([values, value_states], 2)
        return self._kept[layer_idx]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._kept[layer_idx][0].shape[2] if layer_idx < len(self._kept) else 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.get_seq_length(layer_idx) + query_length, 0

    def cut(self, length: int) -> None:
        """Keep the first positions only."""
        self._kept = [(keys[:, :, :length], values[:, :, :length]) for keys, values in self._kept]

    def take(self, rows: torch.Tensor) -> None:
        """Go on with these rows of the batch, which may come several times."""
        self._kept = [tuple(t.index_select(0, rows.to(t.device)) for t in pair) for pair in self._kept]  # type: ignore[misc]


@dataclass
class _State:
    """A batch under way: its cache, which of its positions are no padding (rows, positions), the next position's number
    of each row (rows,), and the decoder's output at its last token (rows, width).
    """

    cache: KeepingCache
    there: torch.Tensor
    following: torch.Tensor
    last: torch.Tensor


class Answerer:
    """Asks a loaded model, `MODEL@blank` too: that one is shown grey images of the same sizes.

    `tokens` is the most that an answer has. With `reuse` off, nothing is shared.
    """

    def __init__(self, model: Any, *, tokens: int, reuse: bool = True) -> None:
        self._blank = isinstance(model, Blank)
        self.reader: Reader = cast("Reader", model.model if isinstance(model, Blank) else model)
        self._tokens = tokens
        self._reuse = reuse and not self.reader.interventions
        self._head = self.reader.model.get_output_embeddings()
        self._embed = self.reader.model.get_input_embeddings()
        own = self.reader.model.generation_config.eos_token_id
        ends = [*(own if isinstance(own, list) else [own]), self.reader.tokenizer.eos_token_id]
        self._ends = sorted({int(end) for end in ends if end is not None})
        self._letters: dict[tuple[str, ...], list[list[int]]] = {}
        self.prefills = 0
        """Prompts, or beginnings of several, that were run with their images."""

    def prompt(self, words: str, images: int) -> str:
        """A question in the model's own chat template, behind the prefix that it was loaded with."""
        return self.reader.chat.question(words, images, self.reader.options.prefix)

    @torch.inference_mode()
    def answer(
        self, asked: Sequence[Asked], sites: Sequence[Site] = (), read: Sequence[bool] | None = None
    ) -> list[Answered]:
        """Answer prompts, all of one image or all of several; at `sites`, read the images of those that `read` marks.

        Reading is part of the pass that answers. Raises NothingCaptured, NotFinite, and what interventions raise.
        """
        marks = [bool(sites)] * len(asked) if read is None else [bool(sites) and mark for mark in read]
        if self._blank:
            asked = [replace(one, images=tuple(map(_grey, one.images))) for one in asked]
        found: dict[int, Answered] = {}
        for batch in self._batches(asked):
            made = self._answer([asked[n] for n in batch], sites, [marks[n] for n in batch])
            found.update(zip(batch, made, strict=True))
        return [found[n] for n in range(len(asked))]

    # --- a batch ---

    def _batches(self, asked: Sequence[Asked]) -> list[list[int]]:
        """All at once; under interventions, prompts of one length at a time."""
        if not self.reader.interventions:
            return [list(range(len(asked)))]
        groups: dict[int, list[int]] = {}
        for n, one in enumerate(asked):
            groups.setdefault(len(self._ids(one)), []).append(n)
        return list(groups.values())

    def _ids(self, one: Asked) -> list[int]:
        alone = len(one.images) == 1
        return self.reader.chat.ids(one.text, [self.reader.map_of(i, alone=alone).count for i in one.images])

    def _answer(self, asked: Sequence[Asked], sites: Sequence[Site], read: Sequence[bool]) -> list[Answered]:
        ids = [self._ids(one) for one in asked]
        groups = self._shared(asked, ids)
        leader = {n: row for row, members in enumerate(groups) for n in members}
        block = self.reader.prompts(
            [Prompt(asked[members[0]].text, asked[members[0]].images) for members in groups],
            view=self.reader.options.view,
        )
        beginnings = [_common([ids[n] for n in members]) for members in groups]
        if alone := len(groups) == len(asked):  # nobody shares anything: whole prompts
            beginnings = [len(ids[members[0]]) for members in groups]
        self.prefills += len(groups)
        with ExitStack() as changes:
            if self.reader.interventions:
                changes.enter_context(applied(self.reader.parts.decoder, self.reader.interventions, block.groups))
            wanted = {leader[n] for n, mark in enumerate(read) if mark}
            state, images = self._prefill(block, beginnings, sites, wanted)
            if not alone:
                rows = torch.tensor([leader[n] for n in range(len(asked))], device=state.there.device)
                state.cache.take(rows)
                state.there, state.following = state.there[rows], state.following[rows]
                self._go_on(state, [ids[n][beginnings[leader[n]] :] for n in range(len(asked))])
            first = self._logs(state.last)
            likelihoods = self._likelihoods(state, first, [self._tokens_of(one.letters) for one in asked])
            texts = self._write(state, first)
        return [
            Answered(raw, numbers, images[leader[n]] if mark else [])
            for n, (raw, numbers, mark) in enumerate(zip(texts, likelihoods, read, strict=True))
        ]

    def _shared(self, asked: Sequence[Asked], ids: Sequence[list[int]]) -> list[list[int]]:
        """Prompts that begin alike up to their last image, together; each by itself without reuse."""
        groups: dict[Any, list[int]] = {}
        for n, (one, line) in enumerate(zip(asked, ids, strict=True)):
            images = len(line) - line[::-1].index(self.reader.image_id)
            groups.setdefault((one.names, *line[:images]) if self._reuse else n, []).append(n)
        return list(groups.values())

    def _prefill(
        self, block: Block, lengths: Sequence[int], sites: Sequence[Site], wanted: set[int]
    ) -> tuple[_State, dict[int, list[tuple[TokenGrid, Stacks]]]]:
        """Run the first `lengths` tokens of each row with its images; {row: what was read of each image}."""
        parts, device = self.reader.parts, block.inputs["input_ids"].device
        width, ends = max(lengths), torch.tensor(lengths, device=device)
        there = torch.arange(width, device=device) < ends[:, None]
        inputs = {k: v[..., :width] if k in _ALONG else v for k, v in block.inputs.items() if k != "attention_mask"}
        inputs |= {} if there.all() else {"attention_mask": there.long()}
        kept = [n for n, row in enumerate(block.rows) if row in wanted]
        chosen = replace(
            block,
            rows=tuple(block.rows[n] for n in kept),
            grids=tuple(block.grids[n] for n in kept),
            tower=tuple(block.tower[n] for n in kept),
        )
        shapes = [self.reader.shapes[site] for site in sites] if kept else []
        with watched(parts, chosen, shapes) as sink:
            cache = KeepingCache(sink)
            out = parts.body(**inputs, past_key_values=cache, use_cache=True).last_hidden_state
        read: dict[int, list[tuple[TokenGrid, Stacks]]] = {}
        if kept:
            for row, image in zip(chosen.rows, sink.read(self.reader.name), strict=True):
                read.setdefault(row, []).append(image)
        positions = inputs.get("position_ids")
        following = ends if positions is None else positions.masked_fill(~there, -1).amax((0, 2)) + 1
        last = out[torch.arange(len(out)), (ends - 1).to(out.device)]
        return _State(cache, there, following, last), read

    # --- what comes after ---

    def _go_on(self, state: _State, lines: Sequence[Sequence[int]]) -> torch.Tensor:
        """Run more tokens of each row, shorter ones padded at the right; the decoder's output (rows, positions, width).

        The state is that after the tokens.
        """
        device = state.there.device
        longest = max(map(len, lines))
        ids = torch.tensor([[*line, *[0] * (longest - len(line))] for line in lines], device=device)
        lengths = torch.tensor([len(line) for line in lines], device=device)
        new = torch.arange(longest, device=device)
        state.there = torch.cat([state.there, new < lengths[:, None]], 1)
        out: torch.Tensor = self.reader.parts.decoder(
            inputs_embeds=self._embed(ids),
            attention_mask=None if state.there.all() else state.there.long(),
            position_ids=state.following[:, None] + new,
            past_key_values=state.cache,
            use_cache=True,
        ).last_hidden_state
        state.following = state.following + lengths
        state.last = out[torch.arange(len(out)), (lengths - 1).to(out.device)]
        return out

    def _logs(self, states: torch.Tensor) -> torch.Tensor:
        """Log-probabilities (..., vocabulary) in float32 of the token that follows."""
        return torch.log_softmax(self._head(states).float(), -1)

    def _tokens_of(self, letters: tuple[str, ...]) -> list[list[int]]:
        """The tokens of each letter. Raises BadCheckpoint when two letters are the same to the tokenizer."""
        if letters not in self._letters:
            tokenizer = self.reader.tokenizer
            made = [list(tokenizer(one, add_special_tokens=False)["input_ids"]) for one in letters]
            if len({tuple(line) for line in made}) < len(made) or not all(made):
                why = f"its tokenizer can't tell {' '.join(letters)} apart"
                raise BadCheckpoint(name=self.reader.name, why=why, hint="it can't be asked such questions")
            self._letters[letters] = made
        return self._letters[letters]

    def _likelihoods(
        self, state: _State, first: torch.Tensor, letters: Sequence[list[list[int]]]
    ) -> list[tuple[float, ...]]:
        """The log-likelihood of each letter of each row. The state is left as it was."""
        sums = [[float(first[row, line[0]]) for line in lines] for row, lines in enumerate(letters)]
        for k in range(max(map(len, letters), default=0)):
            # All but the last token of each row's kth letter.
            lines = [row[k] if k < len(row) else [] for row in letters]
            if (longest := max(map(len, lines)) - 1) < 1:
                continue
            length = state.cache.get_seq_length()
            # What fills a line up comes after all that is looked at, and is cut off with it.
            filled = [(line[:-1] + [0] * longest)[:longest] for line in lines]
            logs = self._logs(self._go_on(replace(state), filled))
            state.cache.cut(length)
            for row, line in enumerate(lines):
                for at, token in enumerate(line[1:]):
                    sums[row][k] += float(logs[row, at, token])
        return [tuple(each) for each in sums]

    def _write(self, state: _State, first: torch.Tensor) -> list[str]:
        """Each row's text, written greedily."""
        ends = torch.tensor(self._ends, device=first.device)
        written = [first.argmax(-1)]
        over = torch.isin(written[0], ends)
        while len(written) < self._tokens and not over.all():
            self._go_on(state, written[-1][:, None].tolist())
            written.append(self._head(state.last).argmax(-1))
            over |= torch.isin(written[-1], ends)
        texts = []
        for row in torch.stack(written, 1).tolist():
            end = next((n for n, token in enumerate(row) if token in self._ends), len(row))
            texts.append(self.reader.tokenizer.decode(row[:end], clean_up_tokenization_spaces=False))
        return texts


def _common(lines: Sequence[Sequence[int]]) -> int:
    """How many tokens all lines begin with alike; at least one is left of each."""
    most = min(map(len, lines)) - 1
    return next((n for n in range(most) if len({line[n] for line in lines}) > 1), most)


def _grey(image: PIL.Image.Image) -> PIL.Image.Image:
    from PIL import Image

    return Image.new("RGB", image.size, GREY)
