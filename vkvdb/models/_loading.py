"""Load a checkpoint with transformers' own classes: safetensors only, no remote code, nothing filled in by chance."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from vkvdb.errors import BadCheckpoint, BadOption
from vkvdb.models._checkpoint import Checkpoint
from vkvdb.types import LoadOptions

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def device_of(options: LoadOptions) -> str:
    """The device that was asked for; `auto` is the GPU where there is one."""
    if options.device != "auto":
        return options.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def dtype_of(checkpoint: Checkpoint, options: LoadOptions) -> torch.dtype:
    """The type that was asked for, or the checkpoint's own."""
    name = options.dtype or checkpoint.dtype
    if name not in DTYPES:
        raise BadOption(option="--dtype", value=name, why=f"there are {', '.join(DTYPES)}")
    return DTYPES[name]


def exact_arithmetic() -> None:
    """No TF32 in products, no autotuned kernels: the same specification gives the same bytes on the same card."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False


def refuse_prompts(checkpoint: Checkpoint, options: LoadOptions) -> None:
    """Raises BadOption for what a stand-alone encoder has no use for: a prefix, another view than the base, a change
    to a decoder.
    """
    if options.prefix:
        raise BadOption(
            option="--prefix", value=options.prefix, why=f"{checkpoint.family} reads no text before an image"
        )
    if options.view != "base":
        raise BadOption(option="--view", value=options.view, why=f"{checkpoint.family} has the view base")
    refuse_interventions(checkpoint.family, options.interventions)


def refuse_interventions(family: str, interventions: Sequence[str]) -> None:
    """Raises BadOption where there are any: what they change is a decoder."""
    if interventions:
        why = f"{family} has no decoder to change"
        raise BadOption(option="--intervene", value=interventions[0], why=why)


def load_weights(checkpoint: Checkpoint, options: LoadOptions, auto: Any, decoder: Callable[[Any], Any] | None) -> Any:
    """The model of a checkpoint or of its variant, on its device, in evaluation mode.

    `auto` is transformers' Auto class; `decoder` finds the decoder in the model, for `random-decoder`.
    Raises BadCheckpoint when a weight is missing: transformers would fill it with random numbers.
    """
    from transformers import AutoConfig
    from transformers.utils import logging

    exact_arithmetic()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    dtype = dtype_of(checkpoint, options)
    assert checkpoint.path is not None
    shared = {"attn_implementation": options.attention}
    if checkpoint.variant.startswith("random:"):
        assert checkpoint.seed is not None
        model = _random(checkpoint.seed, AutoConfig.from_pretrained(checkpoint.path), auto, dtype, shared)
    else:
        model, report = auto.from_pretrained(
            checkpoint.path,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **shared,
            **_placement(options),
        )
        if report["missing_keys"] or report["mismatched_keys"]:
            bad = sorted([*report["missing_keys"], *(str(k) for k in report["mismatched_keys"])])
            raise BadCheckpoint(
                name=checkpoint.name,
                why=f"{len(bad)} weights are missing or of another shape, {bad[0]} first",
                hint="the files do not fit config.json: download them again",
            )
        if checkpoint.variant.startswith("random-decoder:"):
            assert checkpoint.seed is not None
            twin = _random(checkpoint.seed, model.config, auto, dtype, shared)
            _randomise(decoder, model, twin, checkpoint.name)
    if not options.device_map:
        model = model.to(device_of(options))
    return model.eval()


def _placement(options: LoadOptions) -> dict[str, Any]:
    placed: dict[str, Any] = {"device_map": options.device_map} if options.device_map else {}
    if options.quantisation:
        try:
            import bitsandbytes  # type: ignore[import-not-found]  # noqa: F401
        except ImportError as error:
            raise BadOption(
                option="--quantisation",
                value=options.quantisation,
                why="bitsandbytes is not installed; type: pip install bitsandbytes",
            ) from error
        from transformers import BitsAndBytesConfig

        bits: Any = BitsAndBytesConfig
        placed["quantization_config"] = bits(
            load_in_4bit=options.quantisation == "4bit", load_in_8bit=options.quantisation == "8bit"
        )
    return placed


def _random(seed: int, config: Any, auto: Any, dtype: torch.dtype, shared: dict[str, Any]) -> Any:
    """A model with random weights. Drawn on the CPU, so that a seed means the same weights on every device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return auto.from_config(config, dtype=dtype, **shared)


def _randomise(decoder: Callable[[Any], Any] | None, model: Any, twin: Any, name: str) -> None:
    """Give a model the decoder of its random twin."""
    if decoder is None:
        raise BadCheckpoint(name=name, why="it has no decoder", hint="use @random:SEED")
    decoder(model).load_state_dict(decoder(twin).state_dict())


def tokenizer_of(checkpoint: Checkpoint) -> Any:
    """The checkpoint's own tokenizer, with the chat template that its processor would use.

    Raises BadCheckpoint when it has none, or no chat template.
    """
    tokenizer = plain_tokenizer_of(checkpoint)
    tokenizer.chat_template = _chat_template(checkpoint) or tokenizer.chat_template
    if not tokenizer.chat_template:
        raise BadCheckpoint(
            name=checkpoint.name, why="it has no chat template", hint="chat_template.jinja is expected in the folder"
        )
    return tokenizer


def plain_tokenizer_of(checkpoint: Checkpoint) -> Any:
    """The checkpoint's own tokenizer, for text without a chat. Raises BadCheckpoint when it has none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        why = f"its tokenizer can't be loaded ({str(error).splitlines()[0]})"
        raise BadCheckpoint(name=checkpoint.name, why=why, hint="tokenizer.json is expected in the folder") from error


def _chat_template(checkpoint: Checkpoint) -> str | None:
    """The template that only a processor reads: in its settings, or in the file before chat_template.jinja."""
    assert checkpoint.path is not None
    for name in ("processor_config.json", "chat_template.json"):
        file = checkpoint.path / name
        if file.is_file() and (template := json.loads(file.read_text(encoding="utf-8")).get("chat_template")):
            return str(template)
    return None


def image_processor_of(checkpoint: Checkpoint) -> Any:
    """The checkpoint's own image processor, always on the PIL backend: the torchvision one resizes to other pixels."""
    from transformers import AutoImageProcessor
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    auto: Any = AutoImageProcessor
    try:
        return auto.from_pretrained(checkpoint.path, backend="pil", local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        why = f"its image processor can't be loaded ({str(error).splitlines()[0]})"
        raise BadCheckpoint(name=checkpoint.name, why=why, hint="preprocessor_config.json is expected") from error
