"""Tiny checkpoints of the real transformers classes with random weights, saved in the hub's layout.

Only widths and depths are small: image sizes, patches, crops, pinpoints, layouts of chat templates and the files that
hold them are those of the published checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
HALF = [0.5, 0.5, 0.5]
COMMON = {"do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "resample": 3}
VOCABULARY = 320

# LLaVA-OneVision's and Llama-3-LLaVA-NeXT's own templates move images in front of the text; LLaVA-1.5's does too.
_IMAGES = "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>%s' }}{% endfor %}"
_TEXTS = "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ IT }}{% endfor %}"
ONEVISION = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    + _IMAGES.replace("%s", "")
    + _TEXTS.replace("IT", "'\\n' + part['text']")
    + "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
VICUNA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    + _IMAGES.replace("%s", "\\n")
    + "{% if message['role'] != 'assistant' %}"
    + _TEXTS.replace("IT", "part['text'] + ' '")
    + "{% else %}{% generation %}"
    + _TEXTS.replace("IT", "part['text'] + ' '")
    + "{% endgeneration %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
LLAMA3 = (
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    + _IMAGES.replace("%s", "")
    + _TEXTS.replace("IT", "'\\n' + part['text'] + '<|eot_id|>'")
    + "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
QWEN = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(
    folder: Path, special: list[str], *, template: str = "", legacy: bool = False, bos: str = ""
) -> list[str]:
    """A byte-level tokenizer without merges: each byte of a text is a token. Gives all tokens in the order of their
    ids.

    `legacy` writes the template where only a processor looks for it; `bos` is put before every text, as LLaMA's do.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = ["<pad>", "<eos>", *([bos] if bos else []), *special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    assert len(tokens) <= VOCABULARY
    made = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    if bos:
        made.post_processor = processors.TemplateProcessing(f"{bos} $A", special_tokens=[(bos, tokens.index(bos))])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        eos_token="<eos>",
        **({"bos_token": bos} if bos else {}),
        additional_special_tokens=special,
    )
    if template and not legacy:
        fast.chat_template = template
    fast.save_pretrained(folder)
    if template and legacy:
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    return tokens


def _save(folder: Path, model_class: Any, config: Any, seed: int, **files: dict[str, Any]) -> Path:
    """Save a model with random weights, and its processor's settings as JSON files."""
    import torch

    torch.manual_seed(seed)
    model = model_class(config)
    # Biases and norms start at 0 and 1, which would hide mistakes in them.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    model.save_pretrained(folder)
    for name, body in files.items():
        (folder / f"{name}.json").write_text(json.dumps(body))
    return folder


def _text(kind: str, layers: int, heads: int, kv: int, hidden: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": kind,
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        **more,
    }


def _clip_vision(layers: int = 3, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 24,
        **more,
    }


def _clip_pixels(kind: str, side: int = 336, **more: Any) -> dict[str, Any]:
    """CLIP-L/14-336's processor: shortest edge to 336, centre crop."""
    return {
        **COMMON,
        "image_processor_type": kind,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "size": {"shortest_edge": side},
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        **more,
    }


def llava(folder: Path, *, side: int = 336, pads: bool = False, seed: int = 0) -> Path:
    """LLaVA-1.5: CLIP-L/14-336's square, centre crop or (`pads`) padding, as many KV heads as query heads."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    tokens = tokenizer(folder, ["<image>"], template=VICUNA, legacy=True, bos="<s>")
    config = LlavaConfig(
        vision_config=_clip_vision(image_size=side),
        text_config=_text("llama", 3, 4, 4, 64),
        image_token_index=tokens.index("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(side // 14) ** 2,
    )
    kind = {"kind": "LlavaImageProcessor", "do_pad": True} if pads else {"kind": "CLIPImageProcessor"}
    return _save(
        folder,
        LlavaForConditionalGeneration,
        config,
        seed,
        preprocessor_config=_clip_pixels(**kind, side=side, processor_class="LlavaProcessor"),
        processor_config={
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
            "patch_size": 14,
            "processor_class": "LlavaProcessor",
            "vision_feature_select_strategy": "default",
        },
    )


NEXT_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def llava_next(folder: Path, *, side: int = 336, seed: int = 0) -> Path:
    """Llama-3-LLaVA-NeXT: five pinpoints of 336-pixel tiles, grouped-query attention, a tokenizer that adds the BOS."""
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

    special = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<image>"]
    tokens = tokenizer(folder, special, template=LLAMA3, bos="<|begin_of_text|>")
    pinpoints = [[h * side // 336, w * side // 336] for h, w in NEXT_PINPOINTS]
    config = LlavaNextConfig(
        vision_config=_clip_vision(image_size=side),
        text_config=_text("llama", 3, 4, 2, 64, rope_theta=500000.0),
        image_token_index=tokens.index("<image>"),
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(side // 14) ** 2,
    )
    return _save(
        folder,
        LlavaNextForConditionalGeneration,
        config,
        seed,
        preprocessor_config=_clip_pixels(
            "LlavaNextImageProcessor",
            side,
            aspect_ratio_setting="anyres",
            do_pad=True,
            image_grid_pinpoints=pinpoints,
            processor_class="LlavaNextProcessor",
        ),
        processor_config={
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
            "patch_size": 14,
            "processor_class": "LlavaNextProcessor",
            "vision_feature_select_strategy": "default",
        },
    )


def llava_onevision(
    folder: Path,
    *,
    side: int = 384,
    patch: int = 14,
    layers: int = 3,
    heads: int = 4,
    kv: int = 2,
    hidden: int = 64,
    seed: int = 0,
) -> Path:
    """LLaVA-OneVision: 384 pixels, 14 pixel patches (6 pixels over), 36 pinpoints, at most 9 tiles' worth of cells."""
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    steps = range(side, 6 * side + 1, side)
    pinpoints = [[h, w] for h in steps for w in steps]
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": side,
        "patch_size": patch,
        "vision_use_head": False,
    }
    tokens = tokenizer(folder, ["<|im_start|>", "<|im_end|>", "<image>", "<video>"], template=ONEVISION)
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=_text("qwen2", layers, heads, kv, hidden),
        image_token_index=tokens.index("<image>"),
        video_token_index=tokens.index("<video>"),
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
    )
    return _save(
        folder,
        LlavaOnevisionForConditionalGeneration,
        config,
        seed,
        preprocessor_config={
            **COMMON,
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "do_pad": True,
            "image_grid_pinpoints": pinpoints,
            "image_mean": HALF,
            "image_std": HALF,
            "size": {"height": side, "width": side},
            "processor_class": "LlavaOnevisionProcessor",
        },
        processor_config={
            "image_token": "<image>",
            "num_image_tokens": (side // patch) ** 2,
            "processor_class": "LlavaOnevisionProcessor",
            "video_token": "<video>",
            "vision_feature_select_strategy": "full",
        },
    )


def qwen2_5_vl(folder: Path, *, seed: int = 0) -> Path:
    """Qwen2.5-VL: 14-pixel patches merged 2 x 2, windows of 112 pixels, 3,136 to 12,845,056 pixels."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    special = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokens = tokenizer(folder, special, template=QWEN, legacy=True)
    rotation = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1000000.0}
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 64,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [1],
        },
        text_config=_text("qwen2_5_vl_text", 3, 4, 2, 64, rope_parameters=rotation),
        image_token_id=tokens.index("<|image_pad|>"),
        video_token_id=tokens.index("<|video_pad|>"),
        vision_start_token_id=tokens.index("<|vision_start|>"),
        vision_end_token_id=tokens.index("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    return _save(
        folder,
        Qwen2_5_VLForConditionalGeneration,
        config,
        seed,
        preprocessor_config={
            "image_processor_type": "Qwen2VLImageProcessor",
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
            "min_pixels": 3136,
            "max_pixels": 12845056,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "processor_class": "Qwen2_5_VLProcessor",
        },
    )


def dinov2(folder: Path, *, layers: int = 3, seed: int = 0) -> Path:
    """DINOv2 with the processor's real settings: shortest edge 256, centre crop 224."""
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        image_size=518,
        patch_size=14,
        use_swiglu_ffn=False,
    )
    settings = {
        **COMMON,
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 256},
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "rescale_factor": 1 / 255,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    return _save(folder, Dinov2Model, config, seed, preprocessor_config=settings)


def siglip(folder: Path, *, side: int = 384, layers: int = 2, seed: int = 0) -> Path:
    """SigLIP with a text side: 384 pixels, 14 pixel patches, 64 positions of text."""
    from transformers import SiglipConfig, SiglipModel

    shared = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers, "num_attention_heads": 2}
    config = SiglipConfig(
        vision_config={**shared, "image_size": side, "patch_size": 14},
        text_config={**shared, "vocab_size": VOCABULARY, "max_position_embeddings": 64, "projection_size": 32},
    )
    tokenizer(folder, [])
    settings = {
        **COMMON,
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": side, "width": side},
        "image_mean": HALF,
        "image_std": HALF,
        "rescale_factor": 1 / 255,
    }
    return _save(folder, SiglipModel, config, seed, preprocessor_config=settings)


def clip(folder: Path, *, layers: int = 3, seed: int = 0) -> Path:
    """CLIP-L/14-336 with a text side of 77 positions, whose end token is what the pooling looks for."""
    from transformers import CLIPConfig, CLIPModel

    tokens = tokenizer(folder, ["<|endoftext|>"])
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        vision_config=_clip_vision(layers),
        text_config={**text, "vocab_size": VOCABULARY, "eos_token_id": tokens.index("<|endoftext|>")},
        projection_dim=24,
    )
    return _save(folder, CLIPModel, config, seed, preprocessor_config=_clip_pixels("CLIPImageProcessor"))


VLMS: dict[str, Callable[..., Path]] = {
    "llava": llava,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "qwen2_5_vl": qwen2_5_vl,
}
ENCODERS: dict[str, Callable[..., Path]] = {"clip": clip, "siglip": siglip, "dinov2": dinov2}
