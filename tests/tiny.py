"""Tiny checkpoints of the real transformers classes with random weights, saved in the hub's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WORDS = "describe the image in one sentence what is left of a cat dog red blue fish user assistant".split()
SPECIAL = ["<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
IMAGE_ID = SPECIAL.index("<image>")

# The structure of LLaVA-OneVision's own template: images are moved in front of the text.
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\\n' + content['text'] }}"
    "{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def tokenizer(folder: Path, template: str = TEMPLATE) -> None:
    """A word-level tokenizer with a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {w: i for i, w in enumerate([*SPECIAL, *WORDS])}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<image>", "<video>"],
    )
    fast.chat_template = template
    fast.save_pretrained(folder)


def llava_onevision(
    folder: Path, *, side: int = 384, patch: int = 14, layers: int = 3, heads: int = 4, kv: int = 2, hidden: int = 64, seed: int = 0
) -> Path:
    """LLaVA-OneVision with the real image processor's settings: 384 pixels, 14 pixel patches, 36 pinpoints."""
    import torch
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessorPil,
    )

    steps = range(side, 6 * side + 1, side)
    pinpoints = [[h, w] for h in steps for w in steps]
    vision: dict[str, Any] = {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": side,
        "patch_size": patch,
        "vision_use_head": False,
    }
    text: dict[str, Any] = {
        "model_type": "qwen2",
        "vocab_size": 64,
        "hidden_size": hidden,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
    }
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_ID,
        video_token_index=SPECIAL.index("<video>"),
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    torch.manual_seed(seed)
    model = LlavaOnevisionForConditionalGeneration(config)
    # Biases and norms start at 0 and 1, which would hide mistakes in them.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    model.save_pretrained(folder)
    LlavaOnevisionImageProcessorPil(size={"height": side, "width": side}, image_grid_pinpoints=pinpoints).save_pretrained(folder)
    tokenizer(folder)
    return folder


def dinov2(folder: Path, *, layers: int = 3, seed: int = 0) -> Path:
    """DINOv2 with the processor's real settings: shortest edge 256, centre crop 224."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(seed)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=layers, num_attention_heads=2, image_size=518, patch_size=14, use_swiglu_ffn=False
    )
    Dinov2Model(config).save_pretrained(folder)
    settings = {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 256},
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "do_convert_rgb": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def siglip(folder: Path, *, layers: int = 2, seed: int = 0) -> Path:
    """SigLIP with a text side: 56 pixels, 14 pixel patches, 8 words."""
    import torch
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

    shared = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers, "num_attention_heads": 2}
    config = SiglipConfig(
        vision_config={**shared, "image_size": 56, "patch_size": 14},
        text_config={**shared, "vocab_size": 64, "max_position_embeddings": 8, "projection_size": 32},
    )
    torch.manual_seed(seed)
    SiglipModel(config).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 56, "width": 56}).save_pretrained(folder)
    tokenizer(folder)
    return folder
