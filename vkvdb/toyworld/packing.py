"""Many questions behind one image, in one sequence.

The image tokens are the dear part of a sequence, so a training row asks a number of independent questions behind one
shared prefix (header, text before the image if any, image tokens). Each question has a slot of fixed length; a slot
sees the prefix and itself, and its positions follow the prefix directly, so that it computes what it would alone. All
shapes and the mask are the same for every batch of a layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlavaOnevisionForConditionalGeneration

from vkvdb.toyworld.model import PAD, TURN_START, word_ids
from vkvdb.toyworld.world import GRID

HEADER = (TURN_START, word_ids()["user"])
"""What stands before a user's words: token ids."""


@dataclass(frozen=True)
class Layout:
    """The shape of a packed row: words before the image, images, whether each is shown as base and tile, slots and
    their length.

    An image is its base grid and a newline (197 tokens), as in prompts of several images; with `anyres` it is the
    base grid and one identical tile with a newline after each row (406 tokens), as the ordinary processor shows a
    single image.
    """

    prefix: int
    images: int
    anyres: bool
    slots: int
    slot: int

    @property
    def shared(self) -> int:
        """Tokens before the first slot."""
        image = 2 * GRID * GRID + GRID if self.anyres else GRID * GRID + 1
        return len(HEADER) + self.prefix + self.images * image


class Batch(NamedTuple):
    """Rows of one layout, all uint8: words in and words out, nothing else.

    `images` (rows, images, 112, 112, 3); `prefix` (rows, prefix) token ids before the images; `slots` (rows, slots,
    slot) token ids; `starts` (rows, slots) the place in its slot of each answer's first token.
    """

    images: Tensor
    prefix: Tensor
    slots: Tensor
    starts: Tensor


@cache
def packing_mask(layout: Layout, device: torch.device) -> Tensor:
    """What may attend to what: bool (1, 1, tokens, tokens)."""
    shared, asked = layout.shared, layout.slots * layout.slot
    owner = torch.arange(asked, device=device) // layout.slot
    owner = torch.cat([torch.full((shared,), -1, device=device), owner])
    causal = torch.ones(shared + asked, shared + asked, dtype=torch.bool, device=device).tril()
    return (causal & ((owner[None, :] == -1) | (owner[None, :] == owner[:, None])))[None, None]


@cache
def packing_positions(layout: Layout, device: torch.device) -> Tensor:
    """Position of every token: (1, tokens)."""
    shared = torch.arange(layout.shared, device=device)
    slot = torch.arange(layout.slot, device=device) + layout.shared
    return torch.cat([shared, slot.repeat(layout.slots)])[None]


def pixels(images: Tensor) -> Tensor:
    """uint8 (..., height, width, 3) as the towers want it: (..., 3, height, width), -1 to 1."""
    return images.movedim(-1, -3).float() / 127.5 - 1


def image_tokens(model: LlavaOnevisionForConditionalGeneration, images: Tensor, *, anyres: bool) -> Tensor:
    """Decoder inputs of images (n, 112, 112, 3): (n, 197, width), or (n, 406, width) with `anyres`."""
    # The tower without its last norm: that is what LLaVA-OneVision reads (`vision_feature_layer = -1`).
    tower = model.model.vision_tower
    hidden = tower.encoder(inputs_embeds=tower.embeddings(pixels(images))).last_hidden_state
    base = model.model.multi_modal_projector(hidden)
    newline = model.model.image_newline.to(base.dtype)
    rows = len(base)
    if not anyres:
        return torch.cat([base, newline.expand(rows, 1, -1)], dim=1)
    tile = base.reshape(rows, GRID, GRID, -1)
    tile = torch.cat([tile, newline.expand(rows, GRID, 1, -1)], dim=2)
    return torch.cat([base, tile.flatten(1, 2)], dim=1)


def slot_states(model: LlavaOnevisionForConditionalGeneration, layout: Layout, batch: Batch) -> Tensor:
    """The decoder's last hidden states over the slots: (rows, slots, slot, width)."""
    rows = len(batch.images)
    embed = model.get_input_embeddings()
    shown = image_tokens(model, batch.images.flatten(0, 1), anyres=layout.anyres)
    header = torch.tensor(HEADER, device=batch.slots.device).expand(rows, -1)
    inputs = torch.cat(
        [
            embed(torch.cat([header, batch.prefix.long()], dim=1)).to(shown.dtype),
            shown.reshape(rows, -1, shown.shape[-1]),
            embed(batch.slots.flatten(1).long()).to(shown.dtype),
        ],
        dim=1,
    )
    device = inputs.device
    states = model.model.language_model(
        inputs_embeds=inputs,
        attention_mask=packing_mask(layout, device).expand(rows, -1, -1, -1),
        position_ids=packing_positions(layout, device),
        use_cache=False,
    ).last_hidden_state
    asked: Tensor = states[:, layout.shared :].reshape(rows, layout.slots, layout.slot, -1)
    return asked


def answer_mask(batch: Batch) -> Tensor:
    """Which slot tokens belong to an answer, its end of turn included: bool (rows, slots, slot)."""
    places = torch.arange(batch.slots.shape[-1], device=batch.slots.device)
    return (places >= batch.starts[..., None]) & (batch.slots != PAD)


def answer_logits(
    model: LlavaOnevisionForConditionalGeneration, layout: Layout, batch: Batch
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits before each answer token, the token, and its (row, slot, place): (n, words), (n,), (n, 3)."""
    states = slot_states(model, layout, batch)
    where = answer_mask(batch).nonzero()
    row, slot, place = where.unbind(1)
    return model.lm_head(states[row, slot, place - 1]), batch.slots[row, slot, place].long(), where


def answer_loss(model: LlavaOnevisionForConditionalGeneration, layout: Layout, batch: Batch) -> Tensor:
    """Cross-entropy over answer tokens, averaged; everything else in a row is context only."""
    logits, tokens, _ = answer_logits(model, layout, batch)
    return functional.cross_entropy(logits.float(), tokens)
