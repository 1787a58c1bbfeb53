"""The toy models: real architectures from their configuration classes, and their folders in Hugging Face layout.

Stage 1 trains a `SiglipModel`; its vision tower, without the pooling head, becomes the tower of a
`LlavaOnevisionForConditionalGeneration` (SigLIP, projector, Qwen2 decoder with grouped-query attention, tied
embeddings).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
)

from vkvdb.toyworld.language import SPECIAL_TOKENS, vocabulary
from vkvdb.toyworld.presets import Preset
from vkvdb.toyworld.world import GRID, PATCH, SIZE

PAD, UNKNOWN, TURN_START, TURN_END, IMAGE, VIDEO = range(len(SPECIAL_TOKENS))
PHRASE_LENGTH = 8
"""Tokens of a phrase of the stand-alone encoder, padded: SigLIP pools the last position."""
POSITION_SCALE = 0.5
"""Amplitude of the waves that the position embedding starts from: half as long as a trained patch embedding."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|> {{ message['role'] }} "
    "{% if message['content'] is string %}{{ message['content'] }} {% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% elif part['type'] == 'video' %}<video> "
    "{% elif part['type'] == 'text' %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endif %}<|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
"""Parts stay in the order given, so that text may stand before an image."""


def word_ids() -> dict[str, int]:
    """Token id of every word."""
    return {word: index for index, word in enumerate(vocabulary())}


def make_tokenizer(length: int = 2048, *, chat: bool = True) -> PreTrainedTokenizerFast:
    """Words separated by spaces; `length` is what `padding="max_length"` pads to."""
    inner = Tokenizer(models.WordLevel(word_ids(), unk_token="<unk>"))  # noqa: S106
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=inner,
        pad_token="<pad>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
        eos_token="<|im_end|>",  # noqa: S106
        additional_special_tokens=["<|im_start|>", "<image>", "<video>"],
        model_max_length=length,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _vision(preset: Preset, *, head: bool) -> dict[str, Any]:
    return {
        "hidden_size": preset.vision_width,
        "intermediate_size": preset.vision_mlp,
        "num_hidden_layers": preset.vision_layers,
        "num_attention_heads": preset.vision_heads,
        "image_size": SIZE,
        "patch_size": PATCH,
        "vision_use_head": head,
    }


def encoder_config(preset: Preset) -> SiglipConfig:
    """The stand-alone encoder: the tower with its pooling head, and a small text tower."""
    text = SiglipTextConfig(
        vocab_size=len(vocabulary()),
        hidden_size=preset.vision_width,
        intermediate_size=2 * preset.vision_width,
        num_hidden_layers=2,
        num_attention_heads=preset.vision_heads,
        max_position_embeddings=PHRASE_LENGTH,
        projection_size=preset.vision_width,
        pad_token_id=PAD,
        bos_token_id=TURN_START,
        eos_token_id=TURN_END,
    )
    vision = SiglipVisionConfig(**_vision(preset, head=True))
    return SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())


def model_config(preset: Preset) -> LlavaOnevisionConfig:
    """The vision-language model."""
    text = Qwen2Config(
        vocab_size=len(vocabulary()),
        hidden_size=preset.text_width,
        intermediate_size=preset.text_mlp,
        num_hidden_layers=preset.text_layers,
        num_attention_heads=preset.text_heads,
        num_key_value_heads=preset.text_kv_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.04,
        bos_token_id=None,
        eos_token_id=TURN_END,
        pad_token_id=PAD,
    )
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**_vision(preset, head=False)),
        text_config=text,
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[SIZE, SIZE]],
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        vision_aspect_ratio="anyres_max_9",
        tie_word_embeddings=True,
    )


def grid_waves(width: int) -> Tensor:
    """Where each cell lies, as sines and cosines of its column and of its row: (cells, width).

    Wavelengths from four times the grid down to under three cells, so that near cells look alike and no two look the
    same.
    """
    steps = width // 4
    angles = torch.arange(GRID)[:, None] * torch.linspace(math.pi / (2 * GRID), 0.75 * math.pi, steps)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns, rows = waves.repeat(GRID, 1), waves.repeat_interleave(GRID, dim=0)
    return POSITION_SCALE * torch.cat([columns, rows], dim=1)


def build_encoder(preset: Preset) -> SiglipModel:
    """A fresh stand-alone encoder, in float32, from the preset's seed.

    Its position embedding starts from `grid_waves`. From random numbers it stays near them: image-level phrases hardly
    ask where a thing is, and no column could be read off the tower's tokens after 256,000 images.
    """
    torch.manual_seed(preset.seed)
    encoder = SiglipModel(encoder_config(preset))
    with torch.no_grad():
        encoder.vision_model.embeddings.position_embedding.weight.copy_(grid_waves(preset.vision_width))
    return encoder


def build_model(preset: Preset, encoder: SiglipModel | None = None) -> LlavaOnevisionForConditionalGeneration:
    """A fresh vision-language model, in float32, from the preset's seed; its tower is the encoder's where one is
    given.
    """
    torch.manual_seed(preset.seed + 1)
    model = LlavaOnevisionForConditionalGeneration(model_config(preset))
    _open_projector(model.model.multi_modal_projector)
    if encoder is not None:
        tower = model.model.vision_tower
        tower_state = tower.state_dict()
        trained = encoder.vision_model.state_dict()
        tower.load_state_dict({name: trained[_without_wrapper(name, trained)] for name in tower_state})
    return model


def _open_projector(projector: Any) -> None:
    """Starts the projector where its GELU is nearly a straight line.

    As usually drawn it loses half of what the tower tells: a linear reading finds the column of 80 % of the tower's
    tokens, of 36 % of such a projector's and of 73 % of this one's, and answers alone hardly bring it back.
    """
    with torch.no_grad():
        projector.linear_1.bias.fill_(4.0)
        risen = torch.nn.functional.gelu(projector.linear_1.bias)
        projector.linear_2.bias.copy_(-projector.linear_2.weight @ risen)


def _without_wrapper(name: str, known: dict[str, Any]) -> str:
    """The tower's parameter names carry the prefix `vision_model.` in some releases of transformers and not in
    others.
    """
    return name if name in known else name.removeprefix("vision_model.")


_PIXELS = {
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "do_convert_rgb": True,
    "do_resize": True,
    "resample": 3,
    "size": {"height": SIZE, "width": SIZE},
}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_encoder(encoder: SiglipModel, folder: Path) -> None:
    """Writes the stand-alone encoder's folder; weights in float32, which every CPU computes fast."""
    folder.mkdir(parents=True, exist_ok=True)
    copy = SiglipModel(encoder.config)
    copy.load_state_dict(encoder.state_dict())
    copy.save_pretrained(folder)
    make_tokenizer(PHRASE_LENGTH, chat=False).save_pretrained(folder)
    _write_json(folder / "preprocessor_config.json", {"image_processor_type": "SiglipImageProcessor", **_PIXELS})


def load_model(folder: Path) -> LlavaOnevisionForConditionalGeneration:
    """The vision-language model of a folder, to be asked."""
    model: Any = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, local_files_only=True)
    model.eval()
    loaded: LlavaOnevisionForConditionalGeneration = model
    return loaded


def save_model(model: LlavaOnevisionForConditionalGeneration, folder: Path) -> None:
    """Writes the vision-language model's folder; weights in float32, which every CPU computes fast."""
    folder.mkdir(parents=True, exist_ok=True)
    copy = LlavaOnevisionForConditionalGeneration(model.config)
    copy.load_state_dict(model.state_dict())
    settings = {"eos_token_id": TURN_END, "pad_token_id": PAD, "do_sample": False}
    copy.generation_config = GenerationConfig.from_dict(settings)
    copy.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    processor = {
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "processor_class": "LlavaOnevisionProcessor",
        "do_pad": True,
        "image_grid_pinpoints": [[SIZE, SIZE]],
        **_PIXELS,
    }
    _write_json(folder / "preprocessor_config.json", processor)
    whole = {
        "processor_class": "LlavaOnevisionProcessor",
        "num_image_tokens": (SIZE // PATCH) ** 2,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": "anyres_max_9",
        "image_token": "<image>",
        "video_token": "<video>",
    }
    _write_json(folder / "processor_config.json", whole)
