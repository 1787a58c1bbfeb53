"""Capture of LLaVA-OneVision against the plain transformers model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vkvdb.errors import NotFinite, NothingCaptured
from vkvdb.models import _checkpoint
from vkvdb.models._capture import read_block, unrotate
from vkvdb.models._capture import plain_rotation as plain
from vkvdb.paths import Home
from vkvdb.types import LoadOptions, Site

SIZES = [(640, 480), (333, 500), (384, 384)]


def pictures(sizes: list[tuple[int, int]] = SIZES) -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def loaded(path: Path, home: Home, **options: Any) -> Any:
    return _checkpoint.load(_checkpoint.resolve(str(path), home), LoadOptions(**options))


def tokens_of(read: Any) -> list[dict[Site, torch.Tensor]]:
    return [{s: t for k in stacks for s, t in zip(k.sites, k.tokens, strict=True)} for _, stacks in read]


def worst(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest relative error over heads, as method.md section 5 means it."""
    a, b = a.float().flatten(1), b.float().flatten(1)
    return float(((a - b).norm(dim=1) / b.norm(dim=1)).max())


@pytest.mark.parametrize("prefix", ["", "describe the image"])
def test_equals_past_key_values_bit_for_bit(onevision: Path, home: Home, prefix: str) -> None:
    reader = loaded(onevision, home, prefix=prefix)
    images = pictures()
    sites = [s for s in reader.shapes if s.stage == "decoder" and s.part in ("key", "value")]
    read = reader.capture(images, sites)
    with torch.inference_mode():
        plain_run = reader.model.model(**reader.block(images).inputs, use_cache=True)
    for image, (grid, _) in enumerate(read):
        where = torch.tensor(grid.positions)
        for site, tokens in tokens_of(read)[image].items():
            layer = plain_run.past_key_values.layers[site.layer]
            whole = layer.keys if site.part == "key" else layer.values
            assert torch.equal(tokens.flatten(1, 2), whole[image][:, where]), site


def test_the_base_grid_is_what_the_whole_prompt_holds(onevision: Path, home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """With tiles and a question after it, as a person would run the model, the base image's tokens are the same."""
    reader = loaded(onevision, home)
    image = pictures([(640, 480)])[0]
    made = reader.image_processor([image], return_tensors="pt")
    # 480 x 640 on a 768 x 768 pinpoint: 40 of 54 rows are left after unpadding, each ends with a newline.
    count = 729 + 40 * 54 + 40
    question = reader.tokenizer("what is left of a cat")["input_ids"]
    ids = torch.tensor([reader.head + [reader.image_id] * count + question])
    with torch.inference_mode():
        run = reader.model.model(
            input_ids=ids, pixel_values=made["pixel_values"], image_sizes=made["image_sizes"], use_cache=True
        )
    sites = [s for s in reader.shapes if s.stage == "decoder" and s.part in ("key", "value")]
    (grid, _), = read = reader.capture([image], sites)
    deviation = 0.0
    for site, tokens in tokens_of(read)[0].items():
        layer = run.past_key_values.layers[site.layer]
        whole = (layer.keys if site.part == "key" else layer.values)[0][:, torch.tensor(grid.positions)]
        deviation = max(deviation, worst(tokens.flatten(1, 2), whole))
    with capsys.disabled():
        print(f"\nbase grid against the whole prompt with tiles and a question: {deviation:.1e} (tolerance 1e-5)")
    assert deviation <= 1e-5


def test_batched_equals_single_within_tolerance(onevision: Path, home: Home) -> None:
    reader = loaded(onevision, home)
    sites = list(reader.shapes)
    together = tokens_of(reader.capture(pictures(), sites))
    for image, alone in enumerate(pictures()):
        single = tokens_of(reader.capture([alone], sites))[0]
        assert max(worst(together[image][s], single[s]) for s in sites) <= 1e-5


def test_early_stop_equals_full_depth(onevision: Path, home: Home) -> None:
    reader = loaded(onevision, home)
    site = Site("decoder", 0, "value")
    deep = tokens_of(reader.capture(pictures(), list(reader.shapes)))
    ran: list[int] = []
    hooks = [layer.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, layer in enumerate(reader.parts.layers)]
    shallow = tokens_of(reader.capture(pictures(), [site]))
    for hook in hooks:
        hook.remove()
    assert ran == []  # stopped inside the first layer, none was finished
    assert all(torch.equal(a[site], b[site]) for a, b in zip(deep, shallow, strict=True))


def test_tower_projector_and_hidden(onevision: Path, home: Home) -> None:
    reader = loaded(onevision, home)
    images = pictures()
    read = tokens_of(reader.capture(images, list(reader.shapes)))
    with torch.inference_mode():
        tower = reader.model.model.vision_tower(reader.pixels(images)[:, 0], output_hidden_states=True)
        features = tower.hidden_states[-1]
        projected = reader.model.model.multi_modal_projector(features)
        run = reader.model.model(**reader.block(images).inputs, output_hidden_states=True)
    for image in range(len(images)):
        got = read[image]
        assert torch.equal(got[Site("encoder", 1, "hidden")].flatten(1, 2)[0], features[image])
        assert torch.equal(got[Site("projector", 0, "hidden")].flatten(1, 2)[0], projected[image])
        at = slice(len(reader.head), len(reader.head) + 729)
        assert torch.equal(got[Site("decoder", 0, "hidden")].flatten(1, 2)[0], run.hidden_states[1][image, at])
        # The feature of the projector is what stands at the image's positions when the decoder begins.
        assert torch.equal(projected[image], run.hidden_states[0][image, at])


def test_unrotated_keys_are_the_projections_own(onevision: Path, home: Home) -> None:
    reader = loaded(onevision, home, prefix="describe the image")
    images = pictures()
    kept: dict[int, torch.Tensor] = {}
    hooks = [
        layer.self_attn.k_proj.register_forward_hook(lambda _m, _i, out, n=n: kept.__setitem__(n, out))
        for n, layer in enumerate(reader.parts.layers)
    ]
    sites = [s for s in reader.shapes if s.part in ("key", "key_unrotated")]
    read = reader.capture(images, sites)
    for hook in hooks:
        hook.remove()
    for image, got in enumerate(tokens_of(read)):
        where = torch.tensor(read[image][0].positions)
        for site in sites:
            before = kept[site.layer][image].unflatten(-1, (2, -1)).transpose(0, 1)[:, where]
            error = worst(got[site].flatten(1, 2), before)
            assert error <= 1e-5 if site.part == "key_unrotated" else error > 0.1, (site, error)


def test_unrotate_inverts_a_scaled_rotation() -> None:
    draw = torch.Generator().manual_seed(0)
    keys, angle = torch.randn(2, 5, 8, generator=draw), torch.randn(5, 4, generator=draw)
    cos, sin = torch.cat([angle.cos()] * 2, -1) * 1.3, torch.cat([angle.sin()] * 2, -1) * 1.3
    half = torch.cat((-keys[..., 4:], keys[..., :4]), -1)
    assert torch.allclose(unrotate(keys * cos + half * sin, cos, sin), keys, atol=1e-6)
    assert not torch.allclose(unrotate(keys * cos + half * sin, cos, -sin), keys, atol=1e-2)


def test_the_window_ends_where_the_last_whole_patch_ends(onevision: Path, home: Home) -> None:
    reader = loaded(onevision, home)
    grid, _ = reader.capture(pictures([(640, 480)]), [Site("projector", 0, "hidden")])[0]
    assert (grid.rows, grid.cols) == (27, 27)
    assert grid.window == (0.0, 0.0, 640 * 378 / 384, 480 * 378 / 384)
    assert grid.cell(639.0, 100.0) is None


def test_the_prefix_stands_before_the_image_and_moves_it(onevision: Path, home: Home) -> None:
    without, with_prefix = loaded(onevision, home), loaded(onevision, home, prefix="describe the image")
    words = with_prefix.tokenizer("describe the image")["input_ids"]
    assert with_prefix.head == without.head + words
    site = Site("decoder", 2, "value")
    a, b = (tokens_of(r.capture(pictures(), [site]))[0][site] for r in (without, with_prefix))
    assert worst(a, b) > 1e-3


def test_the_base_tile_is_the_processors_own(onevision: Path, home: Home) -> None:
    reader = loaded(onevision, home)
    image = pictures([(640, 480)])[0]
    whole = reader.image_processor([image], return_tensors="pt")["pixel_values"]
    assert whole.shape[1] == 5
    assert torch.equal(reader.pixels([image])[0, 0], whole[0, 0])


def test_a_site_that_yields_nothing_raises(onevision: Path, home: Home) -> None:
    reader = loaded(onevision, home)
    site = Site("encoder", 0, "hidden")  # the tower is read at layer 1 only
    shape = reader.shapes[Site("encoder", 1, "hidden")]
    with pytest.raises(NothingCaptured, match=r"encoder\.0\.hidden"):
        read_block(
            reader.parts,
            reader.block(pictures()),
            [type(shape)(site, 1, shape.dim)],
            name="m",
            rotation=plain,
            tower_layer=reader.tower_layer,
        )


def test_a_key_that_is_not_finite_raises(onevision: Path, home: Home) -> None:
    reader = loaded(onevision, home)
    with torch.no_grad():
        reader.parts.layers[1].self_attn.k_proj.bias[0] = float("inf")
    with pytest.raises(NotFinite, match=r"decoder\.1\.key"):
        reader.capture(pictures(), [s for s in reader.shapes if s.part == "key"])


def test_variants(onevision: Path, home: Home) -> None:
    trained = loaded(onevision, home)
    sites = [Site("projector", 0, "hidden"), Site("decoder", 1, "value")]

    def read(name: str) -> dict[Site, torch.Tensor]:
        return tokens_of(loaded(Path(f"{onevision}{name}"), home).capture(pictures(), sites))[0]

    own = tokens_of(trained.capture(pictures(), sites))[0]
    twin, same, other = read("@random:0"), read("@random:0"), read("@random:1")
    assert all(torch.equal(twin[s], same[s]) and not torch.equal(twin[s], other[s]) for s in sites)
    decoder = read("@random-decoder:0")
    assert torch.equal(decoder[sites[0]], own[sites[0]])
    assert not torch.allclose(decoder[sites[1]], own[sites[1]], atol=1e-2)
    blank = read("@blank")
    # Every cell of a grey image looks alike to the projector but for the position embedding; no image is in it.
    again = tokens_of(loaded(Path(f"{onevision}@blank"), home).capture(pictures()[::-1], sites))[2]
    assert torch.allclose(blank[sites[0]], again[sites[0]], atol=1e-5)


def test_text_vectors_are_the_last_tokens(onevision: Path, home: Home) -> None:
    reader = loaded(onevision, home)
    sites = list(reader.shapes)
    got = reader.text("cat dog", sites)
    ids = torch.tensor([reader.tokenizer(reader.header + "cat dog")["input_ids"]])
    with torch.inference_mode():
        run = reader.model.model(input_ids=ids, use_cache=True, output_hidden_states=True)
        embedded = reader.model.get_input_embeddings()(ids)
    for n, layer in enumerate(run.past_key_values.layers):
        assert torch.equal(got[Site("decoder", n, "value")], layer.values[0, :, -1])
        assert torch.equal(got[Site("decoder", n, "key")], layer.keys[0, :, -1])
    assert torch.equal(got[Site("decoder", 1, "hidden")], run.hidden_states[2][0, -1:])
    assert torch.equal(got[Site("projector", 0, "hidden")], embedded[0, -1:])
    assert Site("encoder", 1, "hidden") not in got  # the tower has no text side
    assert not torch.allclose(got[Site("decoder", 1, "value")], reader.text("red fish", sites)[Site("decoder", 1, "value")])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_tokens_come_in_the_type_that_was_asked_for(small_onevision: Path, home: Home, dtype: str) -> None:
    reader = loaded(small_onevision, home, dtype=dtype)
    for tokens in tokens_of(reader.capture(pictures(), list(reader.shapes)))[0].values():
        assert tokens.dtype == getattr(torch, dtype)
