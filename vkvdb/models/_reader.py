"""A loaded vision-language checkpoint: from images and prompts to blocks, from blocks to tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForImageTextToText

from vkvdb.errors import BadCheckpoint, BadOption
from vkvdb.interventions import parse
from vkvdb.models import _loading
from vkvdb.models._capture import Block, read_block, read_text
from vkvdb.models._changes import groups_of
from vkvdb.models._prompt import Chat
from vkvdb.models._token_map import BASE, TokenMap
from vkvdb.types import LoadOptions, Site, Stacks, Text, TokenGrid

if TYPE_CHECKING:
    import PIL.Image

    from vkvdb.models._checkpoint import Checkpoint
    from vkvdb.models._vlm import Vlm

BICUBIC = 3


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt, and the images that its placeholders stand for, in order."""

    text: str
    images: tuple[PIL.Image.Image, ...]


class Reader:
    """Reads what a decoder keeps of images; the same code for every family."""

    def __init__(self, family: type[Vlm], checkpoint: Checkpoint, options: LoadOptions) -> None:
        if options.view not in family.views:
            why = f"{checkpoint.family} has {' and '.join(family.views)}"
            raise BadOption(option="--view", value=options.view, why=why)
        self.family = family
        self.name = checkpoint.name
        self.options = options
        self.interventions = [parse(text) for text in options.interventions]
        self.config = checkpoint.config
        self.processor = checkpoint.processor
        self.shapes = {s.site: s for s in checkpoint.sites()}
        self.tokenizer = _loading.tokenizer_of(checkpoint)
        self.image_processor = _loading.image_processor_of(checkpoint)
        self.model = _loading.load_weights(
            checkpoint, options, AutoModelForImageTextToText, lambda m: m.model.language_model
        )
        self.device = str(self.model.device)
        self.parts = family.parts(self.model, checkpoint.config)
        self.image_id: int = self.model.config.image_token_id
        self.chat = Chat(self.tokenizer, self.image_id, family.opening, self.name)
        self.beginning = self.chat.beginning(options.prefix)
        self.chat.ids(self.beginning, [1])  # raises now what would be raised at the first image

    # --- reading ---

    def capture(self, images: Sequence[PIL.Image.Image], sites: Sequence[Site]) -> list[tuple[TokenGrid, Stacks]]:
        """Read images one by one: chat header, prefix, image, in the view that was asked for."""
        return self.read(self.block(images), sites)

    def capture_after(
        self, texts: Sequence[Text], images: Sequence[PIL.Image.Image], sites: Sequence[Site]
    ) -> list[tuple[TokenGrid, Stacks]]:
        """Read images one by one, each after a text of its own."""
        prompts = [Prompt(self.chat.after(text), (image,)) for text, image in zip(texts, images, strict=True)]
        view = self.options.view
        return self.read(self.prompts(prompts, view=view, whole=view != BASE, ended=False), sites)

    def read(self, block: Block, sites: Sequence[Site]) -> list[tuple[TokenGrid, Stacks]]:
        """Read the images of a block."""
        shapes = [self.shapes[s] for s in sites]
        return read_block(self.parts, block, shapes, name=self.name, interventions=self.interventions)

    def text(self, words: str, sites: Sequence[Site]) -> dict[Site, torch.Tensor]:
        """The chat header, no image, the words; the tower has no text side, so its site is left out.

        Interventions are left out as well: they change what becomes of an image, and words alone stay the yardstick
        that changed tokens are held against.
        """
        ids = self.chat.ids(self.chat.header + words)
        embeddings = self.model.get_input_embeddings()(torch.tensor([ids], device=self.device))
        return read_text(self.parts, embeddings, sites)

    def key_bias(self, layer: int) -> torch.Tensor | None:
        """The bias that a decoder layer's keys begin with, before rotation, (heads, dim); None where it has none."""
        bias: Any = self.parts.layers[layer].get_submodule("self_attn.k_proj").bias
        shape = self.shapes[Site("decoder", layer, "key_unrotated")]
        return None if bias is None else bias.view(shape.heads, shape.dim)

    # --- blocks ---

    def block(self, images: Sequence[PIL.Image.Image], view: str | None = None) -> Block:
        """One forward pass over images alone in their prompts, and no further than they go."""
        view = view or self.options.view
        prompts = [Prompt(self.beginning, (i,)) for i in images]
        return self.prompts(prompts, view=view, whole=view != BASE, ended=False)

    def prompts(self, prompts: Sequence[Prompt], *, view: str = BASE, whole: bool = True, ended: bool = True) -> Block:
        """One forward pass over prompts of one to several images; the grids are those of all images, in order.

        `whole` shows the model all that its processor makes of an image, as a person would run it; without, tiles are
        left away. Shorter prompts are padded at their right, where causal attention never looks back from. `ended` is
        whether the prompts' last tokens are there, which interventions call `last`.
        """
        shown = [[self.squared(image) for image in prompt.images] for prompt in prompts]
        maps = [[self.map_of(i, alone=len(p.images) == 1, whole=whole) for i in p.images] for p in prompts]
        ids = [self.chat.ids(p.text, [m.count for m in each]) for p, each in zip(prompts, maps, strict=True)]
        seen = self.family.inputs(self, shown, view, whole=whole)
        inputs = {**self._padded(ids), **{name: self._placed(value) for name, value in seen.pixels.items()}}
        grids, rows, groups = [], [], []
        for row, (line, each) in enumerate(zip(ids, maps, strict=True)):
            starts = self._starts(line, each)
            for start, tokens in zip(starts, each, strict=True):
                grids.append(tokens.grid(view, start))
                rows.append(row)
            if self.interventions:
                groups.append(groups_of(len(line), each, starts, ended=ended))
        inputs |= self.family.position_inputs(self, inputs)
        return Block(inputs, tuple(rows), tuple(grids), seen.tower, seen.settings, tuple(groups))

    def map_of(self, image: PIL.Image.Image, *, alone: bool = True, whole: bool = True) -> TokenMap:
        """The token map of an image as this reader shows it."""
        return self.family.token_map(
            self.config, self.processor, *image.size, square=self.options.square, alone=alone, whole=whole
        )

    def squared(self, image: PIL.Image.Image) -> PIL.Image.Image:
        """The image as the processor is given it."""
        side = self.options.square
        return image.resize((side, side), BICUBIC) if side else image

    def _placed(self, value: Any) -> torch.Tensor:
        tensor = torch.as_tensor(value)
        return tensor.to(self.device, self.model.dtype if tensor.is_floating_point() else None)

    def _starts(self, ids: Sequence[int], maps: Sequence[TokenMap]) -> list[int]:
        """Where each image begins. Raises BadCheckpoint unless the map's positions are the sequence's."""
        starts, at = [], 0
        for each in maps:
            at = ids.index(self.image_id, at)
            starts.append(at)
            at += each.count
        found = [i for i, token in enumerate(ids) if token == self.image_id]
        if found != [s + k for s, each in zip(starts, maps, strict=True) for k in range(each.count)]:
            raise BadCheckpoint(
                name=self.name, why="an image's tokens are not in one piece", hint="see vkvdb models check"
            )
        return starts

    def _padded(self, ids: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        """`input_ids` (prompts, positions), and an attention mask where lengths differ."""
        longest = max(map(len, ids))
        pad = self.tokenizer.pad_token_id
        filler = pad if pad not in (None, self.image_id) else self.tokenizer.eos_token_id
        rows = torch.tensor([[*line, *[filler] * (longest - len(line))] for line in ids], device=self.device)
        if all(len(line) == longest for line in ids):
            return {"input_ids": rows}
        mask = torch.tensor([[1] * len(line) + [0] * (longest - len(line)) for line in ids], device=self.device)
        return {"input_ids": rows, "attention_mask": mask}
