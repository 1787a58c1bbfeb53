"""What transformers' own whole model answers, one prompt and one letter at a time: what ours are held against."""

from __future__ import annotations

from typing import Any

import torch

from vkvdb.models._answering import Asked
from vkvdb.models._reader import Prompt, Reader


def whole(reader: Reader, one: Asked) -> dict[str, Any]:
    """The model's inputs; positions are left to the model itself, which must not look at an earlier call's."""
    if hasattr(reader.parts.body, "rope_deltas"):
        reader.parts.body.rope_deltas = None
    inputs = dict(reader.prompts([Prompt(one.text, one.images)]).inputs)
    inputs.pop("position_ids", None)
    return inputs


def generated(reader: Reader, one: Asked, tokens: int, ends: list[int]) -> list[int]:
    """What transformers' `generate` writes, ends and all."""
    inputs = whole(reader, one)
    out = reader.model.generate(**inputs, do_sample=False, max_new_tokens=tokens, eos_token_id=ends, pad_token_id=0)
    written: list[int] = out[0, inputs["input_ids"].shape[1] :].tolist()
    return written


@torch.inference_mode()
def plainly_asked(reader: Reader, one: Asked, tokens: int, ends: list[int]) -> tuple[str, list[float]]:
    """transformers' own whole model, one prompt and one letter at a time; `generate` for the text."""
    likelihoods = []
    for letter in one.letters:
        inputs = whole(reader, one)
        length = inputs["input_ids"].shape[1]
        ids = reader.tokenizer(letter, add_special_tokens=False)["input_ids"]
        more = torch.tensor([ids])
        inputs["input_ids"] = torch.cat([inputs["input_ids"], more], 1)
        if "mm_token_type_ids" in inputs:
            inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(more).int()], 1)
        logs = torch.log_softmax(reader.model(**inputs).logits[0, length - 1 : -1].double(), -1)
        likelihoods.append(float(logs[torch.arange(len(ids)), more[0]].sum()))
    written = generated(reader, one, tokens, ends)
    end = next((n for n, token in enumerate(written) if token in ends), len(written))
    return reader.tokenizer.decode(written[:end], clean_up_tokenization_spaces=False), likelihoods
