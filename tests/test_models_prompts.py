"""Prompts and inputs of the vision-language families, against what transformers' own processors make."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from reading import cached, loaded, plainly
from transformers import LlavaNextProcessor, LlavaOnevisionProcessor, LlavaProcessor, Qwen2_5_VLProcessor

from vkvdb.errors import BadCheckpoint, BadOption
from vkvdb.models._checks import pictures, relative, tokens_of
from vkvdb.models._checks_vlm import cells_of
from vkvdb.models._reader import Prompt, Reader
from vkvdb.paths import Home
from vkvdb.types import Site

FAMILIES = list(tiny.VLMS)
Load = Callable[..., Any]


def own_processor(reader: Reader) -> Any:
    """transformers' processor class; two of them need a video processor, which a subclass leaves out."""
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "Llava": (LlavaProcessor, {"patch_size": 14, "num_additional_image_tokens": 1}),
        "LlavaNext": (LlavaNextProcessor, {"patch_size": 14, "num_additional_image_tokens": 1}),
        "LlavaOnevision": (LlavaOnevisionProcessor, {"num_image_tokens": 729}),
        "Qwen25Vl": (Qwen2_5_VLProcessor, {}),
    }
    kind, settings = kinds[reader.family.__name__]
    if kind is not Qwen2_5_VLProcessor:
        strategy = "full" if kind is LlavaOnevisionProcessor else "default"
        settings = {**settings, "vision_feature_select_strategy": strategy}
    if "video_processor" in kind.get_attributes():
        attributes = classmethod(lambda _: ["image_processor", "tokenizer"])
        kind = type("WithoutVideo", (kind,), {"get_attributes": attributes})
    return kind(image_processor=reader.image_processor, tokenizer=reader.tokenizer, **settings)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_what_the_processor_makes(readers: Load, family: str, count: int) -> None:
    """One to four images of different sizes: the same ids and pixels, and tokens where the model has them."""
    reader = readers(family)
    images = pictures([(333, 250), (200, 300), (160, 160), (90, 300)])[:count]
    text = reader.chat.question("Which one is alike?", images=count)
    made = own_processor(reader)(images=[images], text=[text], return_tensors="pt")
    block = reader.prompts([Prompt(text, tuple(images))])
    for name in ("input_ids", "pixel_values", "image_sizes", "image_grid_thw", "mm_token_type_ids"):
        assert (name in made) == (name in block.inputs)
        assert name not in made or torch.equal(made[name], block.inputs[name]), name
    with torch.inference_mode():
        run = reader.parts.body(**made, use_cache=True)
        wanted = {k: v for k, v in made.items() if k not in ("input_ids", "attention_mask", "mm_token_type_ids")}
        features = reader.parts.body.get_image_features(**wanted, return_dict=True).pooler_output
    projector = Site("projector", 0, "hidden")
    for n, (grid, stacks) in enumerate(reader.read(block, [*cached(reader), projector])):
        tokens, where = tokens_of(stacks), torch.tensor(grid.positions)
        cells = [k for k, _ in cells_of(reader.map_of(images[n], alone=count == 1), "base")]
        assert relative(tokens[projector], features[n][cells][None]) <= 1e-6
        for site in cached(reader):
            layer = run.past_key_values.layers[site.layer]
            assert torch.equal(tokens[site], (layer.keys if site.part == "key" else layer.values)[0][:, where])
    starts = [grid.positions[0] for grid in block.grids]
    assert starts == sorted(starts)
    assert len(set(starts)) == count


@pytest.mark.parametrize("family", [*FAMILIES, "clip", "siglip", "dinov2"])
def test_image_processors_never_use_torchvision(readers: Load, family: str) -> None:
    """Whether it is installed or not: it resizes to other pixels."""
    assert readers(family).image_processor.backend == "pil"


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_is_at_the_right_and_masked(readers: Load, family: str) -> None:
    reader = readers(family)
    images = pictures([(333, 250), (200, 300)])
    prompts = [Prompt(reader.chat.question(w), (i,)) for w, i in zip(["Where is it?", "No"], images, strict=True)]
    inputs = reader.prompts(prompts).inputs
    mask, ids = inputs["attention_mask"], inputs["input_ids"]
    assert (mask[:, 0] == 1).all()
    assert (mask[:, :-1] >= mask[:, 1:]).all()
    assert (mask == 0).any()
    assert (ids[mask == 0] != reader.image_id).all()


def test_the_beginning_of_sequence_comes_once(readers: Load, tiny_model: Load, tmp_path: Path, home: Home) -> None:
    """LLaMA's tokenizer adds it; a template that writes it too must not double it."""
    reader = readers("llava_next")
    bos = reader.tokenizer.bos_token_id
    assert reader.chat.ids(reader.beginning, [1]).count(bos) == 1
    copy = Path(shutil.copytree(tiny_model("llava_next"), tmp_path / "copy"))
    (copy / "chat_template.jinja").write_text("{{ bos_token }}" + tiny.LLAMA3)
    writes = loaded(copy, home)
    assert writes.beginning.startswith(reader.tokenizer.bos_token)
    assert writes.chat.ids(writes.beginning, [1]) == reader.chat.ids(reader.beginning, [1])


def test_the_prompts_of_the_families(readers: Load) -> None:
    assert readers("llava").chat.question("What?", prefix="Look.") == "USER: Look.\n<image>\nWhat? ASSISTANT:"
    assert readers("llava_next").beginning == "<|start_header_id|>user<|end_header_id|>\n\n<image>"
    assert readers("llava_onevision").beginning == "<|im_start|>user <image>"
    assert readers("qwen2_5_vl").beginning.endswith("<|im_start|>user\n<|vision_start|><|image_pad|>")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_prefix_stands_before_the_image_and_moves_it(
    readers: Load, tiny_model: Load, home: Home, family: str
) -> None:
    without, reader = readers(family), loaded(tiny_model(family), home, prefix="Find the red one.")
    image = pictures([(200, 150)])
    (plain, stacks), (moved, others) = (
        without.capture(image, cached(without))[0],
        reader.capture(image, cached(reader))[0],
    )
    added = reader.tokenizer("Find the red one.\n", add_special_tokens=False)["input_ids"]
    assert moved.positions[0] == plain.positions[0] + len(added)
    ids = reader.block(image).inputs["input_ids"][0].tolist()
    opening = reader.tokenizer(reader.family.opening, add_special_tokens=False)["input_ids"]
    start = plain.positions[0] - len(opening)
    assert ids[start : start + len(added)] == added
    last = Site("decoder", 2, "value")
    assert relative(tokens_of(others)[last], tokens_of(stacks)[last]) > 1e-3
    block = reader.block(image)
    run = plainly(reader, block).past_key_values.layers[2]
    assert torch.equal(tokens_of(others)[last], run.values[0][:, torch.tensor(moved.positions)])


def test_a_prefix_that_would_vanish_is_refused(tiny_model: Load, home: Home) -> None:
    with pytest.raises(BadCheckpoint, match="does not appear before the image"):
        loaded(tiny_model("llava"), home, prefix="<image>")


def test_words_that_contain_a_placeholder_are_refused(readers: Load) -> None:
    reader = readers("llava")
    prompt = Prompt(reader.chat.question("Is <image> a word?"), tuple(pictures([(100, 100)])))
    with pytest.raises(BadOption, match="words must not contain <image>"):
        reader.prompts([prompt])


def test_a_processor_saved_in_one_file(tiny_model: Load, readers: Load, tmp_path: Path, home: Home) -> None:
    """transformers 5 writes the image processor's settings inside processor_config.json."""
    copy = Path(shutil.copytree(tiny_model("llava"), tmp_path / "copy"))
    own = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").unlink()
    whole = {**json.loads((copy / "processor_config.json").read_text()), "image_processor": own}
    (copy / "processor_config.json").write_text(json.dumps(whole))
    site = Site("projector", 0, "hidden")
    ((grid, stacks),) = loaded(copy, home).capture(pictures()[:1], [site])
    ((true, tokens),) = readers("llava").capture(pictures()[:1], [site])
    assert grid == true
    assert torch.equal(stacks[0].tokens, tokens[0].tokens)


def test_pinpoints_that_differ_are_an_error(tiny_model: Load, tmp_path: Path, home: Home) -> None:
    copy = Path(shutil.copytree(tiny_model("llava_next"), tmp_path / "copy"))
    settings = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").write_text(json.dumps({**settings, "image_grid_pinpoints": [[336, 672]]}))
    with pytest.raises(BadCheckpoint, match="different image_grid_pinpoints"):
        loaded(copy, home, view="tiles").capture(pictures()[:1], [Site("decoder", 0, "key")])
