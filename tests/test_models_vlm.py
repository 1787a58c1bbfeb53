"""Every vision-language family against the plain transformers model: what a capture reads is what the model holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from reading import cached, loaded, plainly

from vkvdb.errors import BadOption, NotFinite, NothingCaptured
from vkvdb.models._capture import mrope_rotation, read_block, unrotate
from vkvdb.models._checks import pictures, relative, tokens_of
from vkvdb.models._reader import Prompt
from vkvdb.paths import Home
from vkvdb.types import Site, SiteShape

FAMILIES = list(tiny.VLMS)
ANYRES = ["llava_next", "llava_onevision"]
VIEWS = [*((f, "base") for f in FAMILIES), *((f, "tiles") for f in ANYRES)]
Load = Callable[..., Any]


@pytest.mark.parametrize(("family", "view"), VIEWS)
def test_equals_past_key_values_bit_for_bit(readers: Load, family: str, view: str) -> None:
    reader = readers(family)
    block = reader.block(pictures([(400, 300), (200, 330)]), view)
    read = reader.read(block, cached(reader))
    run = plainly(reader, block)
    for row, (grid, stacks) in enumerate(read):
        where = torch.tensor(grid.positions)
        assert (block.inputs["input_ids"][row, where] == reader.image_id).all()
        for site, tokens in tokens_of(stacks).items():
            layer = run.past_key_values.layers[site.layer]
            whole = layer.keys if site.part == "key" else layer.values
            assert torch.equal(tokens, whole[row][:, where]), site


@pytest.mark.parametrize("family", FAMILIES)
def test_tower_projector_and_hidden(readers: Load, family: str) -> None:
    reader = readers(family)
    block = reader.block(pictures()[:2])
    read = [tokens_of(stacks) for _, stacks in reader.read(block, list(reader.shapes))]
    run = plainly(reader, block)
    tower = next(s for s in reader.shapes if s.stage == "encoder")
    for row, tokens in enumerate(read):
        where = torch.tensor(block.grids[row].positions)
        assert torch.equal(tokens[Site("projector", 0, "hidden")][0], run.hidden_states[0][row, where])
        assert torch.equal(tokens[Site("decoder", 0, "hidden")][0], run.hidden_states[1][row, where])
        with torch.inference_mode():
            pieces = tokens[tower][0].unflatten(-1, (reader.parts.merged, -1)).flatten(0, 1)
            again = reader.parts.projector(pieces)
        assert relative(again[None], tokens[Site("projector", 0, "hidden")]) <= 1e-6


def test_the_tower_of_llava_is_the_clip_that_stands_alone(readers: Load, tmp_path: Path, home: Home) -> None:
    """The free check of method.md: the same weights, read as a tower and as an encoder, give the same tokens."""
    from safetensors.torch import load_file, save_file

    reader = readers("llava")
    path = tiny.clip(tmp_path / "clip")
    weights = load_file(path / "model.safetensors")
    own = reader.model.model.vision_tower.state_dict()
    weights |= {name: own[name.removeprefix("vision_model.")].clone() for name in weights if name.startswith("vision_")}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    site = Site("encoder", 1, "hidden")  # layer -2 of 3
    for a, b in zip(reader.capture(pictures(), [site]), loaded(path, home).capture(pictures(), [site]), strict=True):
        assert a[0].window == b[0].window
        assert torch.equal(tokens_of(a[1])[site], tokens_of(b[1])[site])


@pytest.mark.parametrize("family", FAMILIES)
def test_unrotated_keys_are_the_projections_own(readers: Load, family: str) -> None:
    reader = readers(family)
    block = reader.block(pictures())
    kept: dict[int, torch.Tensor] = {}
    hooks = [
        layer.self_attn.k_proj.register_forward_hook(lambda _m, _i, out, n=n: kept.__setitem__(n, out))
        for n, layer in enumerate(reader.parts.layers)
    ]
    sites = [s for s in reader.shapes if s.part in ("key", "key_unrotated")]
    read = reader.read(block, sites)
    for hook in hooks:
        hook.remove()
    for row, (grid, stacks) in enumerate(read):
        for site, tokens in tokens_of(stacks).items():
            before = kept[site.layer][row].unflatten(-1, (tokens.shape[0], -1)).transpose(0, 1)
            error = relative(tokens, before[:, torch.tensor(grid.positions)])
            assert error <= 1e-5 if site.part == "key_unrotated" else error > 0.1, (site, error)


def test_unrotate_inverts_a_scaled_rotation() -> None:
    draw = torch.Generator().manual_seed(0)
    keys, angle = torch.randn(2, 5, 8, generator=draw), torch.randn(5, 4, generator=draw)
    cos, sin = torch.cat([angle.cos()] * 2, -1) * 1.3, torch.cat([angle.sin()] * 2, -1) * 1.3
    half = torch.cat((-keys[..., 4:], keys[..., :4]), -1)
    assert torch.allclose(unrotate(keys * cos + half * sin, cos, sin), keys, atol=1e-6)
    assert not torch.allclose(unrotate(keys * cos + half * sin, cos, -sin), keys, atol=1e-2)


def test_mrope_is_combined_as_the_layer_does() -> None:
    """(3, batch, positions, dim), the real sections: each half's frequencies turn by the axis of their section."""
    section, dim = [16, 24, 24], 128
    turn = torch.arange(3.0)[:, None, None, None].expand(3, 1, 2, dim)  # each axis marked by its number
    axis_of = [0] * 16 + [1] * 24 + [2] * 24
    cos, sin = mrope_rotation(section)((turn, turn + 10))
    assert cos.shape == (1, 2, dim)
    assert cos[0, 1].tolist() == [float(a) for a in axis_of * 2]
    assert torch.equal(sin, cos + 10)
    combined = torch.rand(1, 2, dim)
    assert mrope_rotation(section)((combined, combined))[0] is combined


def test_qwen_turns_rows_and_columns(readers: Load) -> None:
    reader = readers("qwen2_5_vl")
    block = reader.block(pictures([(300, 200), (140, 400)]))
    for row, grid in enumerate(block.grids):
        time, down, right = block.inputs["position_ids"][:, row, torch.tensor(grid.positions)].view(3, grid.rows, -1)
        start = grid.positions[0]
        assert (time == start).all()
        assert (down == start + torch.arange(grid.rows)[:, None]).all()
        assert (right == start + torch.arange(grid.cols)[None]).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_early_stop_runs_no_deeper_and_changes_nothing(readers: Load, family: str) -> None:
    reader = readers(family)
    block = reader.block(pictures()[:2])
    site = Site("decoder", 0, "value")
    deep = [tokens_of(s) for _, s in reader.read(block, list(reader.shapes))]
    ran: list[int] = []
    hooks = [layer.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, layer in enumerate(reader.parts.layers)]
    shallow = [tokens_of(s) for _, s in reader.read(block, [site])]
    for hook in hooks:
        hook.remove()
    assert ran == []  # stopped inside the first layer, none was finished
    assert all(torch.equal(a[site], b[site]) for a, b in zip(deep, shallow, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_text_vectors_are_the_last_tokens(readers: Load, family: str) -> None:
    reader = readers(family)
    sites = list(reader.shapes)
    got = reader.text("cat dog", sites)
    ids = torch.tensor([reader.chat.ids(reader.chat.header + "cat dog")])
    with torch.inference_mode():
        run = reader.model.model(input_ids=ids, use_cache=True, output_hidden_states=True)
        embedded = reader.model.get_input_embeddings()(ids)
    for n, layer in enumerate(run.past_key_values.layers):
        assert torch.equal(got[Site("decoder", n, "value")], layer.values[0, :, -1])
        assert torch.equal(got[Site("decoder", n, "key")], layer.keys[0, :, -1])
    assert torch.equal(got[Site("decoder", 1, "hidden")], run.hidden_states[2][0, -1:])
    assert torch.equal(got[Site("projector", 0, "hidden")], embedded[0, -1:])
    assert not any(s.stage == "encoder" for s in got)  # the tower has no text side
    assert relative(got[Site("decoder", 1, "value")], reader.text("red", sites)[Site("decoder", 1, "value")]) > 1e-2


def test_windows(readers: Load, tmp_path: Path, home: Home) -> None:
    """Crop, padding, unseen pixels, and a square that the person asked for."""
    image, site = pictures([(640, 480)]), [Site("projector", 0, "hidden")]
    assert readers("llava").capture(image, site)[0][0].window == (80.0, 0.0, 560.0, 480.0)
    assert loaded(tiny.llava(tmp_path / "pads", pads=True), home).capture(image, site)[0][0].window == (
        0,
        -80,
        640,
        560,
    )
    grid = readers("llava_onevision").capture(image, site)[0][0]
    assert (grid.rows, grid.cols, grid.window) == (27, 27, (0.0, 0.0, 640 * 378 / 384, 480 * 378 / 384))
    assert grid.cell(639.0, 100.0) is None
    qwen = readers("qwen2_5_vl").capture(image, site)[0][0]
    assert (qwen.rows, qwen.cols, qwen.window) == (17, 23, (0.0, 0.0, 640.0, 480.0))


@pytest.mark.parametrize("family", FAMILIES)
def test_square(tiny_model: Load, home: Home, family: str) -> None:
    """N x N pixels whatever the image's shape, read as any image of that shape; the window is the whole image."""
    reader, plain = loaded(tiny_model(family), home, square=224), loaded(tiny_model(family), home)
    image = pictures([(300, 100)])[0]
    ((grid, stacks),) = reader.capture([image], [Site("decoder", 1, "key")])
    ((other, same),) = plain.capture([image.resize((224, 224), 3)], [Site("decoder", 1, "key")])
    assert (grid.rows, grid.cols) == (other.rows, other.cols)
    assert grid.rows == grid.cols
    assert torch.equal(stacks[0].tokens, same[0].tokens)
    assert grid.window == pytest.approx([a * s for a, s in zip(other.window, (300 / 224, 100 / 224) * 2, strict=True)])
    assert family != "qwen2_5_vl" or grid.rows == 8


def test_views_that_are_not_there(tiny_model: Load, home: Home) -> None:
    for family in ("llava", "qwen2_5_vl"):
        with pytest.raises(BadOption, match=f"{family} has base"):
            loaded(tiny_model(family), home, view="tiles")
    with pytest.raises(BadOption, match="llava_next has base and tiles"):
        loaded(tiny_model("llava_next"), home, view="corners")


@pytest.mark.parametrize("family", ANYRES)
def test_the_tiles_are_read_in_the_whole_sequence(tiny_model: Load, readers: Load, home: Home, family: str) -> None:
    reader, base = loaded(tiny_model(family), home, view="tiles"), readers(family)
    image = pictures([(500, 333)])
    tower = next(s for s in reader.shapes if s.stage == "encoder")
    ((grid, _stacks),) = reader.capture(image, list(reader.shapes))
    cells = base.capture(image, [tower])[0][0]
    assert grid.positions[0] == cells.positions[-1] + 1  # the base comes first
    assert grid.positions[grid.cols] == grid.positions[grid.cols - 1] + 2  # and rows end in a newline
    assert grid.rows * grid.cols == reader.family.cells(reader.config, reader.processor, 500, 333, None, view="tiles")
    assert base.prompts([Prompt(base.beginning, tuple(image))], view="tiles").grids[0] == grid


def test_a_site_that_yields_nothing_raises(readers: Load) -> None:
    reader = readers("llava_onevision")
    site = Site("encoder", 0, "hidden")  # the tower is read at layer 1 only
    with pytest.raises(NothingCaptured, match=r"encoder\.0\.hidden"):
        read_block(reader.parts, reader.block(pictures()[:1]), [SiteShape(site, 1, 32)], name="m")


def test_a_key_that_is_not_finite_raises(small_onevision: Path, home: Home) -> None:
    reader = loaded(small_onevision, home)
    with torch.no_grad():
        reader.parts.layers[1].self_attn.k_proj.bias[0] = float("inf")
    with pytest.raises(NotFinite, match=r"decoder\.1\.key"):
        reader.capture(pictures(), [s for s in reader.shapes if s.part == "key"])


def test_variants(small_onevision: Path, home: Home) -> None:
    sites = [Site("projector", 0, "hidden"), Site("decoder", 1, "value")]

    def read(variant: str, images: Any = None) -> dict[Site, torch.Tensor]:
        ((_, stacks),) = loaded(f"{small_onevision}{variant}", home).capture(images or pictures()[:1], sites)
        return tokens_of(stacks)

    own, twin, same, other = read(""), read("@random:0"), read("@random:0"), read("@random:1")
    assert all(torch.equal(twin[s], same[s]) and not torch.equal(twin[s], other[s]) for s in sites)
    decoder = read("@random-decoder:0")
    assert torch.equal(decoder[sites[0]], own[sites[0]])
    assert not torch.allclose(decoder[sites[1]], own[sites[1]], atol=1e-2)
    # No image is in a blank image's tokens: another of the same size gives the same.
    assert torch.equal(read("@blank")[sites[1]], read("@blank", [pictures()[0].rotate(180)])[sites[1]])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_tokens_come_in_the_type_that_was_asked_for(small_onevision: Path, home: Home, dtype: str) -> None:
    reader = loaded(small_onevision, home, dtype=dtype)
    for _, stacks in reader.capture(pictures(), list(reader.shapes)):
        assert all(stack.tokens.dtype == getattr(torch, dtype) for stack in stacks)
