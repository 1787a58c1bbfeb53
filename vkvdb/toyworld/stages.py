"""The two stages of training, one step at a time.

Stage 1: the stand-alone encoder learns which phrases are true of an image (SigLIP's sigmoid loss). Stage 2: the whole
model learns to answer. What a step sees follows from (seed, stage, step) alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import SiglipModel

from vkvdb.toyworld.data import CHOICE_IMAGES, CHOICE_SLOT, PREFIX_LENGTHS, SLOT, UInt8, encode
from vkvdb.toyworld.language import stage1_phrases
from vkvdb.toyworld.model import PAD, PHRASE_LENGTH
from vkvdb.toyworld.packing import Batch, Layout, pixels
from vkvdb.toyworld.presets import Preset
from vkvdb.toyworld.world import GRID

Data = dict[str, Tensor]
"""Training data as `data.build` gives it, uint8; on the GPU where there is one, so that a step gathers its rows
there.
"""
WARMUP = 100
DECAY_SHARE = 0.25
PREFIX_SHARE = 5
"""One batch in so many has a text before the image."""


def learning_rate(step: int, steps: int) -> float:
    """Share of the full rate at `step` of `steps`: a short rise, a long stay, a linear fall over the last quarter."""
    rise = min(1.0, (step + 1) / min(WARMUP, max(1, steps // 4)))
    fall = min(1.0, (steps - step) / max(1.0, steps * DECAY_SHARE))
    return rise * fall


def make_optimiser(groups: Iterable[tuple[nn.Module, float]], decay: float = 0.05) -> torch.optim.AdamW:
    """AdamW over modules with their shares of the learning rate; no decay of norms, biases and vectors."""
    made: list[dict[str, Any]] = []
    seen: set[int] = set()
    for module, share in groups:
        fresh = [parameter for parameter in module.parameters() if id(parameter) not in seen]
        seen |= {id(parameter) for parameter in fresh}
        for matrices in (True, False):
            chosen = [parameter for parameter in fresh if (parameter.ndim > 1) is matrices]
            made.append({"params": chosen, "weight_decay": decay if matrices else 0.0, "share": share})
    # On a GPU one fused kernel; the models are small, so launches would cost more than arithmetic.
    fused = next(parameter for group in made for parameter in group["params"]).is_cuda
    return torch.optim.AdamW(made, lr=1e-3, betas=(0.9, 0.98), eps=1e-8, fused=fused)


def update(model: nn.Module, optimiser: torch.optim.AdamW, rate: float) -> None:
    """One step down the gradients that stand in the parameters."""
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for group in optimiser.param_groups:
        group["lr"] = rate * group["share"]
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


def to_device(arrays: dict[str, UInt8], device: torch.device) -> Data:
    """Arrays as tensors: copied to a GPU, and left in their mapped files on a CPU."""
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def phrase_tokens(device: torch.device) -> Tensor:
    """Token ids of all stage-1 phrases: (phrases, 8)."""
    texts = [encode(phrase) for phrase in stage1_phrases()]
    return torch.tensor([text + [PAD] * (PHRASE_LENGTH - len(text)) for text in texts], device=device)


def phrase_logits(encoder: SiglipModel, images: Tensor, phrases: Tensor, kept: Tensor | None = None) -> Tensor:
    """How well each phrase fits each image: (images, phrases). `kept` (images, n): the patches that are shown, all if
    None.
    """
    vision = encoder.vision_model
    hidden = vision.embeddings(pixels(images))
    if kept is not None:
        hidden = hidden.gather(1, kept[..., None].expand(-1, -1, hidden.shape[-1]))
    hidden = vision.post_layernorm(vision.encoder(inputs_embeds=hidden).last_hidden_state)
    seen = functional.normalize(vision.head(hidden), dim=-1)
    said = functional.normalize(encoder.text_model(input_ids=phrases).pooler_output, dim=-1)
    return seen @ said.T * encoder.logit_scale.exp() + encoder.logit_bias


def prepare_encoder(encoder: SiglipModel) -> None:
    """Starts temperature and bias where few phrases are true: SigLIP's scale, and the bias of one in thirty."""
    with torch.no_grad():
        encoder.logit_scale.fill_(float(np.log(10.0)))
        encoder.logit_bias.fill_(-3.4)


def stage1_loss(encoder: SiglipModel, data: Data, phrases: Tensor, preset: Preset, step: int) -> Tensor:
    """Sigmoid loss of a step's images against all phrases.

    A share of the patches is left out of every image until the rate falls: cheaper, and no single patch can be relied
    on.
    """
    generator = np.random.default_rng([preset.seed, 1, step])
    count, batch = len(data["image"]), preset.stage1_batch
    device = phrases.device
    # Sorted gathering reads a mapped file in one pass; the order of rows in a batch does not matter.
    rows = torch.from_numpy(np.sort(generator.integers(0, count, batch))).to(device)
    kept = None
    if step < preset.stage1_steps * (1 - DECAY_SHARE):
        order = generator.permuted(np.tile(np.arange(GRID * GRID), (batch, 1)), axis=1)
        kept = torch.from_numpy(order[:, : int(GRID * GRID * preset.stage1_keep)]).to(device)
    logits = phrase_logits(encoder, data["image"][rows], phrases, kept)
    signs = data["phrases"][rows].float() * 2 - 1
    return -functional.logsigmoid(signs * logits).sum() / batch


def stage2_batch(scenes: Data, choices: Data, preset: Preset, step: int, device: torch.device) -> tuple[Layout, Batch]:
    """The batch of a step of stage 2."""
    generator = np.random.default_rng([preset.seed, 2, step])
    if step % preset.choice_every == preset.choice_every - 1:
        return _choice_batch(choices, preset, generator, device)
    rows = torch.from_numpy(np.sort(generator.integers(0, len(scenes["image"]), preset.stage2_batch))).to(device)
    bank = scenes["bank"].shape[1]
    drawn = generator.permuted(np.tile(np.arange(bank), (len(rows), 1)), axis=1)[:, : preset.slots]
    asked = torch.from_numpy(np.ascontiguousarray(drawn)).to(device)
    slots, starts = scenes["bank"][rows[:, None], asked], scenes["starts"][rows[:, None], asked]
    prefix = torch.zeros(len(rows), 0, dtype=torch.uint8, device=device)
    if generator.integers(PREFIX_SHARE) == 0:
        form = int(generator.integers(len(PREFIX_LENGTHS)))
        prefix = scenes["prefix"][rows, form, : PREFIX_LENGTHS[form]]
        slots[:, 0], starts[:, 0] = scenes["prefix_bank"][rows, form], scenes["prefix_starts"][rows, form]
    anyres = step >= preset.stage2_steps * preset.anyres_from and step % 4 == 0
    layout = Layout(prefix.shape[1], 1, anyres, preset.slots, SLOT)
    return layout, Batch(scenes["image"][rows][:, None], prefix, slots, starts)


def _choice_batch(
    choices: Data, preset: Preset, generator: np.random.Generator, device: torch.device
) -> tuple[Layout, Batch]:
    """BLINK-shaped questions, all of one number of images: 1, 2 or 3 in turn of the draw."""
    counts = choices["count"][:, 0].cpu().numpy()
    shown = 1 + int(generator.integers(CHOICE_IMAGES))
    fitting = np.nonzero(counts == shown)[0]
    size = max(2, preset.stage2_batch // shown)
    rows = torch.from_numpy(np.sort(fitting[generator.integers(0, len(fitting), size)])).to(device)
    layout = Layout(0, shown, False, 1, CHOICE_SLOT)
    prefix = torch.zeros(size, 0, dtype=torch.uint8, device=device)
    images = choices["images"][rows][:, :shown]
    return layout, Batch(images, prefix, choices["bank"][rows], choices["starts"][rows])
