"""Training the toy models: what a loss sees, packing, resuming, and the folders that come out."""

import inspect
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vkvdb.toyworld import stages
from vkvdb.toyworld.data import build, choice_rows, encode, scene_rows
from vkvdb.toyworld.language import stage1_phrases, vocabulary
from vkvdb.toyworld.model import (
    IMAGE,
    PAD,
    build_encoder,
    build_model,
    grid_waves,
    make_tokenizer,
    save_encoder,
    save_model,
)
from vkvdb.toyworld.packing import HEADER, Batch, Layout, answer_logits, answer_loss, answer_mask, slot_states
from vkvdb.toyworld.presets import PRESETS
from vkvdb.toyworld.shapes import HELD_OUT_CATEGORIES, HELD_OUT_PARTS
from vkvdb.toyworld.train import Run, train
from vkvdb.toyworld.world import GRID, SIZE

TINY = PRESETS["tiny"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tensors this small lose more by waiting for a second thread than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toyworld")
    build(folder / "scenes", scene_rows, "train", TINY.scenes, 1)
    build(folder / "choices", choice_rows, "train", TINY.choices, 1)
    return folder


@pytest.fixture(scope="module")
def arrays(data):
    scenes = build(data / "scenes", scene_rows, "train", TINY.scenes, 1)
    choices = build(data / "choices", choice_rows, "train", TINY.choices, 1)
    return stages.to_device(scenes, CPU), stages.to_device(choices, CPU)


@pytest.fixture(scope="module")
def model():
    return build_model(TINY).eval()


def words_of(tokens):
    words = vocabulary()
    return [words[int(token)] for token in tokens if int(token) != PAD]


def test_training_data_holds_images_and_words_only(arrays):
    scenes, choices = arrays
    assert set(scenes) == {"image", "phrases", "bank", "starts", "prefix", "prefix_bank", "prefix_starts"}
    assert set(choices) == {"images", "count", "bank", "starts"}
    assert all(array.dtype == torch.uint8 for array in (*scenes.values(), *choices.values()))
    assert scenes["phrases"].shape[1] == len(stage1_phrases())
    assert set(scenes["phrases"].unique().tolist()) == {0, 1}
    for tokens in (scenes["bank"], scenes["prefix_bank"], scenes["prefix"], choices["bank"]):
        assert int(tokens.max()) < len(vocabulary())


def test_a_training_batch_is_images_and_words_and_its_loss_reads_nothing_else(arrays, model):
    assert Batch._fields == ("images", "prefix", "slots", "starts")
    assert list(inspect.signature(answer_loss).parameters) == ["model", "layout", "batch"]
    layouts = set()
    for step in range(24):
        layout, batch = stages.stage2_batch(*arrays, TINY, step, CPU)
        layouts.add((layout.prefix > 0, layout.images, layout.anyres))
        assert all(tensor.dtype == torch.uint8 for tensor in batch)
        assert batch.images.shape[2:] == (SIZE, SIZE, 3)
        assert batch.slots.shape[1:] == (layout.slots, layout.slot)
        # An answer is words after the assistant's header, and it ends its turn.
        for tokens, start in zip(batch.slots.flatten(0, 1), batch.starts.flatten(), strict=True):
            asked, answer = words_of(tokens[: int(start)]), words_of(tokens[int(start) :])
            assert asked[-3:] == ["<|im_end|>", "<|im_start|>", "assistant"]
            assert answer[-1] == "<|im_end|>"
            assert 2 <= len(answer) <= 9
            assert not set(asked + answer) & set(HELD_OUT_PARTS)
            if set(asked) & {"at", "locate", "read"} or asked[:1] == ["parts"]:
                assert not set(asked + answer) & set(HELD_OUT_CATEGORIES)
    assert {anyres for _, _, anyres in layouts} == {True, False}
    assert len({images for _, images, _ in layouts}) > 1
    assert any(prefix for prefix, _, _ in layouts)


def test_only_answer_words_are_in_the_loss(arrays, model):
    layout, batch = stages.stage2_batch(*arrays, TINY, 0, CPU)
    before = answer_loss(model, layout, batch)
    _, tokens, where = answer_logits(model, layout, batch)
    assert len(tokens) == int(answer_mask(batch).sum())
    assert (where[:, 2] >= batch.starts[where[:, 0], where[:, 1]]).all()
    # Another word in the padding behind the last answer changes no loss.
    slots = batch.slots.clone()
    slots[:, :, -1][slots[:, :, -1] == PAD] = len(vocabulary()) - 1
    states = slot_states(model, layout, batch._replace(slots=slots))
    row, slot, place = where.unbind(1)
    logits = model.lm_head(states[row, slot, place - 1])
    after = torch.nn.functional.cross_entropy(logits, tokens)
    assert torch.allclose(before, after)


@pytest.mark.parametrize("anyres", [False, True])
def test_packed_equals_single(arrays, model, anyres):
    _, batch = stages.stage2_batch(*arrays, TINY, 0, CPU)
    prefix = torch.tensor([encode("find the red fish")] * len(batch.images), dtype=torch.uint8)
    batch = batch._replace(prefix=prefix)
    layout = Layout(4, 1, anyres, TINY.slots, batch.slots.shape[-1])
    with torch.no_grad():
        packed = slot_states(model, layout, batch)
        for index in range(TINY.slots):
            alone = batch._replace(slots=batch.slots[:, index : index + 1], starts=batch.starts[:, index : index + 1])
            single = slot_states(model, replace(layout, slots=1), alone)
            difference = (packed[:, index : index + 1] - single).abs().max() / single.abs().max()
            assert float(difference) < 1e-5


@pytest.mark.parametrize("anyres", [False, True])
def test_packing_shows_an_image_as_the_model_class_does(arrays, model, anyres):
    _, batch = stages.stage2_batch(*arrays, TINY, 0, CPU)
    batch = Batch(*(tensor[:1] for tensor in batch))
    layout = Layout(batch.prefix.shape[1], 1, anyres, 1, batch.slots.shape[-1])
    alone = batch._replace(slots=batch.slots[:, :1], starts=batch.starts[:, :1])
    count = 2 * GRID * GRID + GRID if anyres else GRID * GRID + 1
    ids = [*HEADER, *batch.prefix[0].tolist(), *[IMAGE] * count, *alone.slots[0, 0].tolist()]
    pixel = batch.images[0, 0].permute(2, 0, 1)[None].float() / 127.5 - 1
    shown = torch.cat([pixel, pixel]) if anyres else pixel
    with torch.no_grad():
        expected = model(
            input_ids=torch.tensor([ids]),
            pixel_values=shown[None],
            image_sizes=torch.tensor([[SIZE, SIZE]]),
            batch_num_images=torch.tensor([1 if anyres else 2]),
        ).logits[0, layout.shared :]
        found = model.lm_head(slot_states(model, layout, alone))[0, 0]
    assert torch.allclose(found, expected, atol=1e-4)


def test_a_fresh_encoder_knows_where_each_cell_lies():
    waves = grid_waves(TINY.vision_width)
    assert torch.equal(build_encoder(TINY).vision_model.embeddings.position_embedding.weight, waves)
    apart = torch.cdist(waves, waves) + torch.eye(GRID * GRID) * 1e6
    nearest = apart.argmin(1)
    cell = torch.arange(GRID * GRID)
    steps = (nearest // GRID - cell // GRID).abs() + (nearest % GRID - cell % GRID).abs()
    assert apart.min() > 0.5
    assert steps.max() == 1


def test_the_tower_starts_as_the_encoder(arrays):
    encoder = build_encoder(TINY).eval()
    model = build_model(TINY, encoder).eval()
    image = stages.pixels(arrays[0]["image"][:1])
    with torch.no_grad():
        ours = model.model.vision_tower(image, output_hidden_states=True).hidden_states[-1]
        theirs = encoder.vision_model(image, output_hidden_states=True).hidden_states[-1]
    assert torch.equal(ours, theirs)


def test_stage_1_without_dropped_patches_scores_as_the_model_class_does(arrays):
    encoder = build_encoder(TINY).eval()
    stages.prepare_encoder(encoder)
    images = arrays[0]["image"][:2]
    phrases = stages.phrase_tokens(CPU)
    with torch.no_grad():
        found = stages.phrase_logits(encoder, images, phrases)
        expected = encoder(input_ids=phrases, pixel_values=stages.pixels(images)).logits_per_image
    assert torch.allclose(found, expected, atol=1e-4)


def run(out, data, **changes):
    stop = changes.pop("stop_after", None)
    train(Run(out, replace(TINY, evaluate_every=100, evaluate_scenes=2, **changes), CPU, data, 1, stop))


def weights(out):
    """Bytes of every weight file and log that a run wrote."""
    found = sorted([*out.glob("*/*.safetensors"), *out.glob("*/training_log.json")])
    assert {path.parent.name for path in found} >= {"siglip", "model", "state"}
    return {str(path.relative_to(out)): path.read_bytes() for path in found}


def test_the_same_seed_gives_the_same_bytes_stopped_or_not(data, tmp_path):
    run(tmp_path / "one", data)
    run(tmp_path / "two", data, stop_after=2)
    assert not (tmp_path / "two" / "model" / "config.json").exists()
    run(tmp_path / "two", data, stop_after=5)
    run(tmp_path / "two", data)
    assert weights(tmp_path / "one") == weights(tmp_path / "two")


def test_checkpoints_load_like_any_other(data, tmp_path):
    from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoTokenizer

    encoder = build_encoder(TINY)
    save_encoder(encoder, tmp_path / "siglip")
    save_model(build_model(TINY, encoder), tmp_path / "model")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert type(loaded).__name__ == "LlavaOnevisionForConditionalGeneration"
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    assert AutoConfig.from_pretrained(tmp_path / "model").image_grid_pinpoints == [[SIZE, SIZE]]
    assert type(AutoModel.from_pretrained(tmp_path / "siglip")).__name__ == "SiglipModel"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    parts = [{"type": "text", "text": "red fish"}, {"type": "image"}, {"type": "text", "text": "where is it ?"}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|> user red fish <image> where is it ? <|im_end|> <|im_start|> assistant "
    assert tokenizer(text)["input_ids"] == encode(text)
    phrase = AutoTokenizer.from_pretrained(tmp_path / "siglip")("red fish", padding="max_length")
    assert len(phrase["input_ids"]) == 8
    processor = json.loads((tmp_path / "model" / "preprocessor_config.json").read_text())
    assert processor["image_grid_pinpoints"] == [[SIZE, SIZE]]
    assert make_tokenizer().convert_tokens_to_ids("<image>") == IMAGE


def test_the_learning_rate_rises_stays_and_falls():
    rates = [stages.learning_rate(step, 1000) for step in range(1000)]
    assert rates[0] < 0.02
    assert rates[200] == rates[700] == 1.0
    assert 0 < rates[-1] < 0.01


@pytest.mark.slow
def test_200_steps_twice_give_the_same_bytes(data, tmp_path):
    found = []
    for name in ("one", "two"):
        out = tmp_path / name
        steps = ["--stage1-steps", "200", "--steps", "200", "--evaluate-every", "100"]
        subprocess.run(
            [sys.executable, "-m", "vkvdb.toyworld.train", "--out", out, "--data", data, "--preset", "tiny", *steps],
            check=True,
            cwd=Path(__file__).parents[1],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )
        found.append(weights(out))
    assert found[0] == found[1]
