"""CLIP, DINOv2, SigLIP and pixels against transformers' own outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from vkvdb.errors import BadOption
from vkvdb.models._checkpoint import load, resolve
from vkvdb.paths import Home
from vkvdb.types import LoadOptions, Site


def picture(width: int = 100, height: int = 60) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_dinov2_layers_and_window(tiny_dinov2: Path, home: Home) -> None:
    checkpoint = resolve(str(tiny_dinov2), home)
    reader = load(checkpoint, LoadOptions())
    sites = [s.site for s in checkpoint.sites()]
    ((grid, (stack,)),) = reader.capture([picture()], sites)
    assert (grid.rows, grid.cols, grid.window) == (16, 16, (0.0, 0.0, 100.0, 60.0))
    assert stack.tokens.shape == (4, 1, 16, 16, 32)
    made = reader.image_processor(
        [picture()], size={"height": 224, "width": 224}, do_center_crop=False, return_tensors="pt"
    )
    with torch.inference_mode():
        out = reader.model(made["pixel_values"], output_hidden_states=True)
    assert torch.equal(stack.tokens[3, 0].flatten(0, 1), out.last_hidden_state[0, 1:])
    assert torch.equal(stack.tokens[0, 0].flatten(0, 1), out.hidden_states[1][0, 1:])


def test_dinov2_square(tiny_dinov2: Path, home: Home) -> None:
    reader = load(resolve(str(tiny_dinov2), home), LoadOptions(square=140))
    assert reader.capture([picture()], [Site("encoder", 0, "hidden")])[0][0].rows == 10
    with pytest.raises(BadOption, match="a patch is 14"):
        load(resolve(str(tiny_dinov2), home), LoadOptions(square=7))


def test_siglip_layers_and_text_space(tmp_path: Path, home: Home) -> None:
    checkpoint = resolve(str(tiny.siglip(tmp_path / "siglip", side=56)), home)
    reader = load(checkpoint, LoadOptions())
    sites = [s.site for s in checkpoint.sites()]
    ((grid, stacks),) = reader.capture([picture()], sites)
    tokens = {s: t for k in stacks for s, t in zip(k.sites, k.tokens, strict=True)}
    made = reader.image_processor([picture()], return_tensors="pt")
    with torch.inference_mode():
        out = reader.model.vision_model(made["pixel_values"], output_hidden_states=True)
        head = reader.model.vision_model.head
        # A head that is shown one patch alone attends to it fully: its output is that patch's place in the text space.
        alone = head(out.last_hidden_state[0][:, None])
        words = reader.tokenizer("red cat", padding="max_length", max_length=64, return_tensors="pt")
        pooled = reader.model.get_text_features(input_ids=words["input_ids"])
    assert (grid.rows, grid.cols) == (4, 4)
    assert torch.equal(tokens[Site("encoder", 2, "hidden")].flatten(0, 2), out.last_hidden_state[0])
    assert torch.equal(tokens[Site("encoder", 0, "hidden")].flatten(0, 2), out.hidden_states[1][0])
    assert torch.allclose(tokens[Site("projector", 0, "hidden")].flatten(0, 2), alone, atol=1e-5)
    pooled = getattr(pooled, "pooler_output", pooled)
    assert torch.allclose(reader.text("red cat", sites)[Site("projector", 0, "hidden")], pooled, atol=1e-6)


def test_clip_layers_and_text_space(tiny_model: Callable[[str], Path], home: Home) -> None:
    checkpoint = resolve(str(tiny_model("clip")), home)
    reader = load(checkpoint, LoadOptions())
    sites = [s.site for s in checkpoint.sites()]
    ((grid, stacks),) = reader.capture([picture()], sites)
    tokens = {s: t.flatten(0, 2) for k in stacks for s, t in zip(k.sites, k.tokens, strict=True)}
    made = reader.image_processor([picture()], return_tensors="pt")
    vision = reader.model.vision_model
    with torch.inference_mode():
        hidden = vision(made["pixel_values"], output_hidden_states=True).hidden_states
        final = vision.post_layernorm(hidden[3])
        # A layer that is given one token alone can attend to nothing else.
        alone = vision.encoder.layers[-1](hidden[-2][0, 1:, None], None)
        placed = reader.model.visual_projection(vision.post_layernorm(alone))[:, 0]
        ids = reader.tokenizer("red cat", return_tensors="pt")["input_ids"]
        pooled = reader.model.get_text_features(input_ids=ids).pooler_output
    assert (grid.rows, grid.cols, grid.window) == (24, 24, (20.0, 0.0, 80.0, 60.0))  # the central square
    assert torch.equal(tokens[Site("encoder", 0, "hidden")], hidden[1][0, 1:])
    assert torch.equal(tokens[Site("encoder", 2, "hidden")], hidden[3][0, 1:])
    assert torch.equal(tokens[Site("encoder", 3, "hidden")], final[0, 1:])
    assert torch.allclose(tokens[Site("projector", 0, "hidden")], placed, atol=1e-5)
    text = reader.text("red cat", sites)
    assert list(text) == [Site("projector", 0, "hidden")]
    assert torch.allclose(text[Site("projector", 0, "hidden")], pooled, atol=1e-6)
    assert text[Site("projector", 0, "hidden")].shape == (1, tokens[Site("projector", 0, "hidden")].shape[-1])


def test_clip_with_a_square_sees_the_whole_image(tiny_model: Callable[[str], Path], home: Home) -> None:
    """As LLaVA-NeXT's base image does; other sizes than the tower's own interpolate its positions."""
    site = Site("encoder", 1, "hidden")
    path = str(tiny_model("clip"))
    whole, small = (load(resolve(path, home), LoadOptions(square=n)) for n in (336, 112))
    ((grid, (stack,)),) = whole.capture([picture()], [site])
    assert (grid.rows, grid.window) == (24, (0.0, 0.0, 100.0, 60.0))
    own = load(resolve(path, home), LoadOptions()).capture([picture().resize((336, 336), 3)], [site])[0][1][0]
    assert torch.allclose(stack.tokens, own.tokens, atol=1e-6)
    assert small.capture([picture()], [site])[0][0].rows == 8
    with pytest.raises(BadOption, match="a patch is 14"):
        load(resolve(path, home), LoadOptions(square=7)).capture([picture()], [site])


@pytest.mark.parametrize("family", ["clip", "dinov2", "siglip"])
def test_an_encoder_takes_no_prefix_and_has_one_view(
    tiny_model: Callable[[str], Path], home: Home, family: str
) -> None:
    for options, says in ((LoadOptions(prefix="Look."), "reads no text"), (LoadOptions(view="tiles"), "the view base")):
        with pytest.raises(BadOption, match=f"{family}.* {says}"):
            load(resolve(str(tiny_model(family)), home), options)


def test_pixels_are_the_cells_own_colours(home: Home) -> None:
    array = np.zeros((192, 192, 3), dtype=np.uint8)
    array[8:16, 16:24] = (255, 0, 51)
    ((grid, (stack,)),) = load(resolve("pixels", home), LoadOptions()).capture([Image.fromarray(array)], [])
    cells = stack.tokens[0, 0].unflatten(-1, (8, 8, 3))
    assert torch.allclose(cells[1, 2], torch.tensor([1.0, -1.0, -0.6]).expand(8, 8, 3))
    assert (cells[0, 0] == -1).all()
    assert grid.centre(1, 2) == (20.0, 12.0)


def test_the_real_vit_is_read_whole(shared: Path, home: Home) -> None:
    checkpoint = resolve(str(shared / "weights" / "dinov2_small"), home)
    reader = load(checkpoint, LoadOptions())
    photo = Image.open(min((shared / "data/coco/val2017").glob("*.jpg"))).convert("RGB")
    ((_, (stack,)),) = reader.capture([photo], [Site("encoder", 12, "hidden")])
    # Trained features of neighbouring cells resemble each other more than those of distant ones.
    unit = torch.nn.functional.normalize(stack.tokens[0, 0].float(), dim=-1)
    near, far = (unit[:, :-1] * unit[:, 1:]).sum(-1).mean(), (unit[:, :8] * unit[:, 8:]).sum(-1).mean()
    assert near > far + 0.1
