"""Tiny random decoders of real transformers classes, a batch of two prompts with an image each, and what to compare."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel, Qwen2Config, Qwen2Model
from transformers.cache_utils import DynamicCache
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

from vkvdb.interventions import TokenGroups

LAYERS, HEADS, KV, DIM, WIDTH, PROMPT = 3, 4, 2, 8, 32, 20
SHAPE = {
    "vocab_size": 60,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
IMAGES = (range(4, 12), range(2, 9))  # of the two rows of the batch
GROUPS = [TokenGroups(PROMPT, {"image": i, "object": [i[0], i[2], i[3]]}) for i in IMAGES]
FAMILIES = ("llama", "qwen2", "qwen2_5_vl")
DECODERS = tuple(product(FAMILIES, ("eager", "sdpa")))
IDS = torch.randint(0, 60, (2, PROMPT), generator=torch.Generator().manual_seed(1))
CUT_BY_HEAD = "knockout:text->image@1:h1"


def one_thread() -> Iterator[None]:
    """Tensors this small take ten times as long on several threads that have to wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def noisy(model: Any) -> Any:
    """Biases and norms start at 0 and 1, which would hide mistakes in them; the rest is so small that little shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def make(family: str, attention: str) -> Any:
    torch.manual_seed(0)
    if family == "llama":
        return noisy(LlamaModel._from_config(LlamaConfig(**SHAPE), attn_implementation=attention))
    if family == "qwen2":
        return noisy(Qwen2Model._from_config(Qwen2Config(**SHAPE), attn_implementation=attention))
    config = Qwen2_5_VLTextConfig(**SHAPE, rope_parameters=MROPE)
    return noisy(Qwen2_5_VLTextModel._from_config(config, attn_implementation=attention))


@torch.no_grad()
def run(decoder: Any, ids: torch.Tensor, **more: Any) -> dict[str, torch.Tensor]:
    """Everything worth comparing: what reaches each o_proj, what leaves each layer, keys and values, the output."""
    found: dict[str, torch.Tensor] = {}
    handles = []
    for n, layer in enumerate(decoder.layers):
        attention = layer.self_attn
        handles += [
            attention.o_proj.register_forward_pre_hook(lambda _m, i, n=n: found.update({f"heads{n}": i[0].clone()})),
            layer.register_forward_hook(lambda _m, _i, out, n=n: found.update({f"layer{n}": out.clone()})),
        ]
    try:
        cache = DynamicCache()
        found["out"] = decoder(input_ids=ids, past_key_values=cache, use_cache=True, **more).last_hidden_state
    finally:
        for handle in handles:
            handle.remove()
    for n in range(LAYERS):
        found[f"key{n}"], found[f"value{n}"] = cache.layers[n].keys, cache.layers[n].values
    return found


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def hooks(decoder: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in decoder.modules())
