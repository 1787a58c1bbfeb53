"""Every family at the size of its published 7-8 B checkpoint, with random weights: is it read right, at what cost.

    python benchmarks/full_size.py [--family llava] [--device cuda] [--dtype bfloat16] [--images 32] [--scale 0.05]

For each architecture: the checks of `vkvdb models check`, then a capture beside the bare prefill, in turns in one run.
The bare prefill is transformers' own forward of the same inputs, with its cache, and reads nothing; preparing the
inputs is left out of both. *kept* reads keys and values (`vkvdb extract`), *scored* also unrotated keys, tower and
projector (`vkvdb score`). Weights are drawn on the device, so the host's memory is not needed for them. Configurations
and processors are the published ones; the tokenizer is a stand-in with a token for each byte, so a prompt's text is
some tokens longer. `--scale` makes widths, depths and vocabulary that much smaller, for machines without a GPU, and
says so; images, patches, tiles and heads' sizes stay, and so do query heads per key-value head. The checks then look at
two small images instead of three.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# As the command line does: threads that spin while others work would be measured, not the model. Nothing is fetched.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.update(HF_HUB_OFFLINE="1")

import torch

from vkvdb.extraction import wanted_sites
from vkvdb.jobs import Extract, Score
from vkvdb.models import _checkpoint
from vkvdb.models._checks import SUPPORTED, Finding, pictures
from vkvdb.models._checks_vlm import VlmChecks
from vkvdb.paths import Home
from vkvdb.types import LoadOptions

Config = dict[str, Any]

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
COMMON = {"do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "resample": 3}
CLIP_PIXELS = {
    **COMMON,
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
    "size": {"shortest_edge": 336},
    "do_center_crop": True,
    "crop_size": {"height": 336, "width": 336},
}
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "vision_use_head": False,
}
QWEN_VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}


def text(kind: str, *sizes: int, **more: Any) -> Config:
    """A decoder's configuration: vocabulary, width, inner width, layers, query heads, key-value heads."""
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = dict(zip((*names, "num_key_value_heads"), sizes, strict=True))
    return {"model_type": kind, **config, "max_position_embeddings": 32768, "tie_word_embeddings": False, **more}


TURN = {"rope_type": "default", "rope_theta": 1e6}
MROPE = {**TURN, "mrope_section": [16, 24, 24]}
CLIP_TOWER = {"vision_config": CLIP, "vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
ONEVISION_POINTS = [[h, w] for h in range(384, 2305, 384) for w in range(384, 2305, 384)]
NEXT_POINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
LLAVA_SIDE = {"num_additional_image_tokens": 1, "patch_size": 14, "vision_feature_select_strategy": "default"}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llava": {
        "like": "llava-hf/llava-1.5-7b-hf",
        "config": {
            **CLIP_TOWER,
            "text_config": text("llama", 32064, 4096, 11008, 32, 32, 32, rms_norm_eps=1e-5),
            "image_seq_length": 576,
        },
        "pixels": {**CLIP_PIXELS, "image_processor_type": "CLIPImageProcessor"},
        "processor": LLAVA_SIDE,
    },
    "llava_next": {
        "like": "llava-hf/llama3-llava-next-8b-hf",
        "config": {
            **CLIP_TOWER,
            "text_config": text("llama", 128320, 4096, 14336, 32, 32, 8, rope_parameters={**TURN, "rope_theta": 5e5}),
            "image_grid_pinpoints": NEXT_POINTS,
            "image_seq_length": 576,
        },
        "pixels": {
            **CLIP_PIXELS,
            "image_processor_type": "LlavaNextImageProcessor",
            "do_pad": True,
            "image_grid_pinpoints": NEXT_POINTS,
        },
        "processor": LLAVA_SIDE,
    },
    "llava_onevision": {
        "like": "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        "config": {
            "vision_config": SIGLIP,
            "text_config": text("qwen2", 152128, 3584, 18944, 28, 28, 4, rope_parameters=TURN),
            "image_grid_pinpoints": ONEVISION_POINTS,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": "anyres_max_9",
        },
        "pixels": {
            **COMMON,
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "do_pad": True,
            "image_grid_pinpoints": ONEVISION_POINTS,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
            "size": {"height": 384, "width": 384},
        },
        "processor": {"num_image_tokens": 729, "vision_feature_select_strategy": "full"},
    },
    "qwen2_5_vl": {
        "like": "Qwen/Qwen2.5-VL-7B-Instruct",
        "config": {
            "vision_config": QWEN_VISION,
            "text_config": text("qwen2_5_vl_text", 152064, 3584, 18944, 28, 28, 4, rope_parameters=MROPE),
        },
        "pixels": {
            "image_processor_type": "Qwen2VLImageProcessor",
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
            "min_pixels": 3136,
            "max_pixels": 12845056,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
        },
        "processor": {},
    },
}

# --- a folder in the hub's layout, but for the weights ----------------------------------------------------------------

_WORDS = "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
_MARKS = "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ 'MARK' }}{% endif %}{% endfor %}"
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' }}" + _MARKS + _WORDS + "{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
SPECIAL = {
    "qwen2_5_vl": ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"),
    "llava_onevision": ("<image>", "<video>"),
}


def tokenizer(folder: Path, special: tuple[str, ...], mark: str) -> list[int]:
    """Save a tokenizer in which each byte is a token, and a template that writes `mark` for an image; gives the ids of
    the special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<pad>", "<eos>", *special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", additional_special_tokens=list(special)
    )
    fast.chat_template = TEMPLATE.replace("MARK", mark)
    fast.save_pretrained(folder)
    return [tokens.index(token) for token in special]


def write(folder: Path, family: str, scale: float) -> None:
    """Write everything that a checkpoint of a family has beside its weights."""
    plan = ARCHITECTURES[family]
    special = SPECIAL.get(family, ("<image>",))
    image, qwen = special[0], family == "qwen2_5_vl"
    ids = tokenizer(folder, special, f"{special[2]}{image}{special[3]}" if qwen else image)
    names = ("image", "video", "vision_start", "vision_end")
    tail = "token_id" if qwen else "token_index"
    named = {f"{name}_{tail}": token for name, token in zip(names, ids, strict=False)}
    config = {"model_type": family, "tie_word_embeddings": False, **named, **scaled(plan["config"], scale)}
    own = {"processor_class": "Qwen2_5_VLProcessor"} if qwen else {"image_token": image, **plan["processor"]}
    for name, body in (("config", config), ("preprocessor_config", plan["pixels"]), ("processor_config", own)):
        (folder / f"{name}.json").write_text(json.dumps(body), encoding="utf-8")


def scaled(config: Config, scale: float) -> Config:
    """Fewer layers, fewer heads of the same size and so less width, a smaller vocabulary; unchanged at 1."""
    if scale == 1:
        return config
    made = json.loads(json.dumps(config))
    words, vision = made["text_config"], made["vision_config"]
    share, dim = words["num_attention_heads"] // words["num_key_value_heads"], words["hidden_size"]
    dim //= words["num_attention_heads"]
    words["num_key_value_heads"] = fewer(words["num_key_value_heads"], scale)
    words["num_attention_heads"] = share * words["num_key_value_heads"]
    narrower(words, share * words["num_key_value_heads"] * dim)
    words["num_hidden_layers"] = fewer(words["num_hidden_layers"], scale, 3)
    words["vocab_size"] = fewer(words["vocab_size"], scale, 512)
    heads, depth = ("num_heads", "depth") if "depth" in vision else ("num_attention_heads", "num_hidden_layers")
    dim = vision["hidden_size"] // vision[heads]
    vision[heads] = fewer(vision[heads], scale, 2)
    narrower(vision, vision[heads] * dim)
    full, vision[depth] = vision[depth], fewer(vision[depth], scale, 3)
    if "depth" in vision:
        vision["out_hidden_size"] = words["hidden_size"]
        whole = {n * vision[depth] // full for n in vision["fullatt_block_indexes"]}
        vision["fullatt_block_indexes"] = sorted(whole)[-1:]
    return dict(made)


def fewer(count: int, scale: float, least: int = 1) -> int:
    return max(least, round(count * scale))


def narrower(config: Config, width: int) -> None:
    config["intermediate_size"] = round(config["intermediate_size"] * width / config["hidden_size"])
    config["hidden_size"] = width


# Of the checks when scaled down: fewer tiles.
SMALL = ((320, 240), (160, 250))

# --- measuring --------------------------------------------------------------------------------------------------------


def load(folder: Path, options: LoadOptions, device: str) -> tuple[Any, _checkpoint.Checkpoint]:
    """The reader of a checkpoint without weights: its random twin, drawn on the device."""
    found = _checkpoint.resolve(f"{folder}@random:0", Home(folder))
    with torch.device(device):
        return found.code.load(found, options), found


class Peak:
    """The most memory that was held at once: of the GPU, or of this process where Linux lets it be counted anew."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")

    def start(self) -> None:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        elif platform.system() == "Linux":
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def gigabytes(self) -> float:
        """Since `start`; NaN where it can't be told."""
        if self.cuda:
            return torch.cuda.max_memory_allocated() / 1e9
        if platform.system() != "Linux":
            return math.nan
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / 1e9


def in_turns(runs: dict[str, Callable[[], Any]], repeat: int, device: str) -> dict[str, tuple[float, float]]:
    """{name: (seconds of the fastest run, peak GB)}, after one round that does not count."""
    peak, found = Peak(device), dict.fromkeys(runs, (math.inf, 0.0))
    for turn in range(repeat + 1):
        for name, run in runs.items():
            peak.start()
            begin = time.perf_counter()
            run()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            seconds = time.perf_counter() - begin
            if turn:
                best, most = found[name]
                found[name] = (min(best, seconds), max(most, peak.gigabytes()))
    return found


@torch.inference_mode()
def bare(reader: Any, block: Any) -> None:
    """The same inputs through the model's own forward, all layers, its own cache; what a block sets stands."""
    config = reader.parts.body.config
    before = {name: getattr(config, name) for name in block.settings}
    for name, value in block.settings.items():
        setattr(config, name, value)
    reader.parts.body(**block.inputs, use_cache=True)
    for name, value in before.items():
        setattr(config, name, value)


def measure(family: str, options: argparse.Namespace) -> None:
    """Build, check and time one architecture; prints."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / family
        folder.mkdir()
        write(folder, family, options.scale)
        chosen = LoadOptions(dtype=options.dtype, attention=options.attention, device=options.device)
        reader, checkpoint = load(folder, chosen, options.device)
        size = sum(p.numel() for p in reader.model.parameters())
        shown = "as published" if options.scale == 1 else f"SCALED DOWN by {options.scale:g}"
        print(f"\n{family}  like {ARCHITECTURES[family]['like']}, {shown}: {size / 1e9:.3f} B parameters, random")
        findings: list[Finding] = []
        begin = time.perf_counter()
        checks = VlmChecks(reader, checkpoint)
        if options.scale < 1:
            checks.images = pictures(SMALL)
        findings.extend(checks.run())
        failed = [f for f in findings if not f.holds]
        worst = max((f for f in findings if f.tolerance), key=lambda f: f.deviation / f.tolerance)
        print(
            f"  {'SILENTLY WRONG' if failed else SUPPORTED}: {len(findings)} checks in"
            f" {time.perf_counter() - begin:.0f} s; nearest to its tolerance: {worst.check},"
            f" {worst.deviation:.1e} of {worst.tolerance:.0e}"
        )
        for found in failed:
            print(f"  {found.check} deviates by {found.deviation:.1e} (allowed {found.tolerance:.0e}) {found.where}")
        block = reader.block(pictures([(640, 480)] * options.images))
        shapes = checkpoint.sites()
        runs: dict[str, Callable[[], Any]] = {"bare prefill": lambda: bare(reader, block)}
        for name, parts in (("kept", Extract.parts), ("scored", Score.parts)):
            sites = [s.site for s in wanted_sites(shapes, None, parts) if name == "scored" or s.site.part in parts]
            runs[f"capture, {name}"] = lambda sites=sites: reader.read(block, sites)
        times = in_turns(runs, options.repeat, options.device)
        plain = times["bare prefill"][0]
        print(f"  {'':18} {'images/s':>9} {'of bare':>8} {'peak GB':>8}")
        for name, (seconds, most) in times.items():
            print(f"  {name:18} {options.images / seconds:9.2f} {plain / seconds:8.2f} {most:8.2f}")


def machine(device: str) -> str:
    """What this runs on, in words."""
    card = torch.cuda.get_device_name(device) if device.startswith("cuda") else "no GPU used"
    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return f"{platform.machine()}, {threads}, {card}; torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=list(ARCHITECTURES), help="only this one")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", help="bfloat16 on a GPU, float32 on a CPU unless told")
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--images", type=int, default=8, help="in one forward pass")
    parser.add_argument("--repeat", type=int, default=3, help="timed rounds, of which the best counts")
    parser.add_argument("--scale", type=float, default=1.0, help="1 is the published size")
    options = parser.parse_args()
    if not 0 < options.scale <= 1:
        parser.error("--scale is more than 0 and at most 1")
    options.dtype = options.dtype or ("bfloat16" if options.device.startswith("cuda") else "float32")
    print(f"{datetime.now(UTC):%Y-%m-%d}  {machine(options.device)}; {options.dtype}, {options.images} images a pass")
    for family in [options.family] if options.family else ARCHITECTURES:
        measure(family, options)
        if options.device.startswith("cuda"):
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
