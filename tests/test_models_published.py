"""The families on the configurations of the published checkpoints, which leave most to transformers' defaults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

from vkvdb.models._checkpoint import resolve
from vkvdb.paths import Home
from vkvdb.types import Site

CLIP = {
    "hidden_size": 1024,
    "image_size": 336,
    "intermediate_size": 4096,
    "model_type": "clip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "projection_dim": 768,
    "vocab_size": 32000,
}
SIGLIP = {
    "hidden_size": 1152,
    "image_size": 384,
    "intermediate_size": 4304,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 26,
    "patch_size": 14,
    "vision_use_head": False,
}
QWEN2_7B = {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_hidden_layers": 28}
ONEVISION_PINPOINTS = [[h, w] for h in range(384, 2305, 384) for w in range(384, 2305, 384)]

CONFIGS: dict[str, dict[str, Any]] = {
    "llava-1.5-7b-hf": {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": 32000,
        "model_type": "llava",
        "pad_token_id": 32001,
        "projector_hidden_act": "gelu",
        "text_config": {
            "_name_or_path": "lmsys/vicuna-7b-v1.5",
            "max_position_embeddings": 4096,
            "model_type": "llama",
            "rms_norm_eps": 1e-05,
            "torch_dtype": "float16",
            "vocab_size": 32064,
        },
        "torch_dtype": "float16",
        "vision_config": CLIP,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    },
    "llama3-llava-next-8b-hf": {
        "architectures": ["LlavaNextForConditionalGeneration"],
        "image_grid_pinpoints": tiny.NEXT_PINPOINTS,
        "image_token_index": 128256,
        "model_type": "llava_next",
        "text_config": {
            "_name_or_path": "meta-llama/Meta-Llama-3-8B-Instruct",
            "intermediate_size": 14336,
            "max_position_embeddings": 8192,
            "model_type": "llama",
            "num_key_value_heads": 8,
            "rope_theta": 500000.0,
            "torch_dtype": "bfloat16",
            "vocab_size": 128320,
        },
        "torch_dtype": "float16",
        "vision_config": CLIP,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    },
    "llava-onevision-qwen2-7b-ov-hf": {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "image_grid_pinpoints": ONEVISION_PINPOINTS,
        "image_token_index": 151646,
        "model_type": "llava_onevision",
        "text_config": {**QWEN2_7B, "model_type": "qwen2", "num_key_value_heads": 4, "vocab_size": 152128},
        "torch_dtype": "float16",
        "vision_aspect_ratio": "anyres_max_9",
        "vision_config": SIGLIP,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    },
    "Qwen2.5-VL-7B-Instruct": {  # the decoder's settings at the top, as it was published
        **QWEN2_7B,
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "image_token_id": 151655,
        "model_type": "qwen2_5_vl",
        "num_key_value_heads": 4,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "in_chans": 3,
            "out_hidden_size": 3584,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
        "vocab_size": 152064,
    },
}

# name -> (decoder layers, KV heads, their width, tower layer, tower width, positions of a 640 x 480 image)
FACTS = {
    "llava-1.5-7b-hf": (32, 32, 128, 22, 1024, 576),
    "llama3-llava-next-8b-hf": (32, 8, 128, 22, 1024, 576 + 36 * 48 + 36),
    "llava-onevision-qwen2-7b-ov-hf": (28, 4, 128, 25, 1152, 2929),
    "Qwen2.5-VL-7B-Instruct": (28, 4, 128, 31, 4 * 1280, 17 * 23),
}


@pytest.mark.parametrize("name", list(CONFIGS))
def test_sites_and_positions(name: str, tmp_path: Path, home: Home, tiny_model: Any) -> None:
    """method.md's table of the models, from their own files."""
    own = tiny_model(CONFIGS[name]["model_type"])
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[name]))
    (tmp_path / "preprocessor_config.json").write_text((own / "preprocessor_config.json").read_text())
    checkpoint = resolve(f"{tmp_path}@random:0", home)
    layers, heads, dim, tower, width, count = FACTS[name]
    shapes = {s.site: s for s in checkpoint.sites()}
    decoder = [s for s in shapes if s.stage == "decoder"]
    assert {s.layer for s in decoder} == set(range(layers))
    for part in ("key", "key_unrotated", "value"):
        assert (shapes[Site("decoder", 0, part)].heads, shapes[Site("decoder", 0, part)].dim) == (heads, dim)
    assert shapes[Site("encoder", tower, "hidden")].dim == width
    assert len(shapes) == 4 * layers + 2
    told = checkpoint.code.token_map(checkpoint.config, checkpoint.processor, 640, 480)  # type: ignore[attr-defined]
    assert told.count == count
    assert checkpoint.code.cells(checkpoint.config, checkpoint.processor, 640, 480, 280) > 0


def test_mrope_sections_are_found(tmp_path: Path, home: Home) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["Qwen2.5-VL-7B-Instruct"]))
    config = resolve(f"{tmp_path}@random:0", home).config
    assert config["text_config"]["rope_parameters"]["mrope_section"] == [16, 24, 24]
