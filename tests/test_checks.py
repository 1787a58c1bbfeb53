"""`vkvdb models check`: SUPPORTED for every family, and each sabotage is caught as SILENTLY WRONG."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from vkvdb.models import _capture, _reader, _token_map
from vkvdb.models._checkpoint import Checkpoint, resolve
from vkvdb.models._checks import ERROR, SILENTLY_WRONG, SUPPORTED, Finding, Report, check, pictures, relative
from vkvdb.models._prompt import Chat
from vkvdb.models.clip import Reader as ClipReader
from vkvdb.models.qwen2_5_vl import Qwen25Vl
from vkvdb.paths import Home
from vkvdb.types import LoadOptions, TokenGrid
from vkvdb_cli.main import main

Make = Callable[[str], Path]


@pytest.fixture
def checkpoint(tiny_model: Make, home: Home) -> Callable[[str], Checkpoint]:
    return lambda family: resolve(str(tiny_model(family)), home)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images, smaller ones."""
    monkeypatch.setattr("vkvdb.models._checks_vlm.pictures", lambda sizes=((320, 240), (160, 250)): pictures(sizes))
    monkeypatch.setattr("vkvdb.models._checks_vlm.COUNTED", ((97, 61),))


@pytest.fixture(scope="session")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Families with towers of 56 pixels: what a sabotage does shows on them too."""
    folder = tmp_path_factory.mktemp("small")
    return {
        name: make(folder / name, **({} if name == "qwen2_5_vl" else {"side": 56})) for name, make in tiny.VLMS.items()
    }


@pytest.fixture
def small(few: None, small_models: dict[str, Path], home: Home) -> Callable[[str], Checkpoint]:
    return lambda family: resolve(str(small_models[family]), home)


@pytest.mark.parametrize("family", [*tiny.VLMS, *tiny.ENCODERS])
def test_supported(few: None, checkpoint: Any, family: str) -> None:
    report = check(checkpoint(family), LoadOptions())
    assert (report.verdict, report.why) == (SUPPORTED, "")
    assert len(report.findings) >= (12 if family in tiny.VLMS else 3)
    for finding in report.findings:
        assert finding.deviation <= finding.tolerance <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("family", list(tiny.VLMS))
def test_supported_at_full_size(checkpoint: Any, family: str, dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = check(checkpoint(family), LoadOptions(dtype=dtype))
    worst = report.worst
    assert worst is not None
    with capsys.disabled():
        sys.stdout.write(
            f"\n{family} {dtype}: {report.verdict}, {worst.check} {worst.deviation:.1e} of {worst.tolerance:.0e}\n"
        )
    assert report.verdict == SUPPORTED, report.why


def test_every_layer_has_its_deviation(few: None, checkpoint: Any) -> None:
    found = {f.check: f for f in check(checkpoint("llava"), LoadOptions()).findings}
    for name in ("keys = k_proj, rotated", "values = v_proj", "text after = without", "early stop = full depth"):
        assert {f"decoder.{n}" for n in range(3)} <= set(found[name].layers), name


# --- sabotage ---------------------------------------------------------------------------------------------------------


def failed(checkpoint: Checkpoint) -> set[str]:
    """The checks that a sabotaged model fails; its verdict must be SILENTLY WRONG."""
    report = check(checkpoint, LoadOptions())
    assert report.verdict == SILENTLY_WRONG, report
    assert report.worst is not None
    assert not report.worst.holds
    return {f.check.partition(" (")[0] for f in report.findings if not f.holds}


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_wrong_rotation(small: Any, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """Keys turned once more on their way into the cache; then keys turned back the wrong way."""
    update = _capture.ReadingCache.update

    def turned(self: Any, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *rest: Any) -> Any:
        first, second = keys.chunk(2, dim=-1)
        update(self, torch.cat((-second, first), dim=-1), values, layer_idx, *rest)
        return keys, values

    with monkeypatch.context() as patch:
        patch.setattr(_capture.ReadingCache, "update", turned)
        found = failed(small(family))
        assert {"keys = k_proj, rotated", "unrotated keys = k_proj", "text after = without"} <= found
        assert "values = v_proj" not in found
    unrotate = _capture.unrotate
    monkeypatch.setattr(_capture, "unrotate", lambda k, cos, sin: unrotate(k, cos, -sin))
    assert failed(small(family)) == {"unrotated keys = k_proj"}


@pytest.mark.parametrize("family", list(tiny.VLMS))
def test_shifted_span(small: Any, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    grid = _token_map.TokenMap.grid

    def shifted(self: Any, view: str, start: int = 0) -> TokenGrid:
        return grid(self, view, start - 1)

    monkeypatch.setattr(_token_map.TokenMap, "grid", shifted)
    assert {"values = v_proj", "projector = get_image_features", "text after = without"} <= failed(small(family))


@pytest.mark.parametrize("family", list(tiny.VLMS))
def test_swapped_heads(small: Any, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    sequence = _capture.Sink.sequence
    monkeypatch.setattr(_capture.Sink, "sequence", lambda self, site, states: sequence(self, site, states.flip(1)))
    assert {"keys = k_proj, rotated", "values = v_proj", "text after = without"} <= failed(small(family))


@pytest.mark.parametrize("family", ["llava", "llava_next", "llava_onevision"])
def test_left_padding(small: Any, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """Padding before the prompt, masked, its tokens found where they then stand, and no word about positions."""
    prompts = _reader.Reader.prompts

    def padded(self: Any, *args: Any, **options: Any) -> Any:
        block = prompts(self, *args, **options)
        ids = block.inputs["input_ids"]
        pads = torch.zeros(len(ids), 3, dtype=ids.dtype)
        mask = torch.cat([pads, torch.ones_like(ids)], dim=1)
        grids = tuple(TokenGrid(g.rows, g.cols, g.window, tuple(p + 3 for p in g.positions)) for g in block.grids)
        inputs = {**block.inputs, "input_ids": torch.cat([pads, ids], dim=1), "attention_mask": mask}
        return _capture.Block(inputs, block.rows, grids, block.tower, block.settings)

    monkeypatch.setattr(_reader.Reader, "prompts", padded)
    assert {"keys = k_proj, rotated", "text after = without"} <= failed(small(family))


def test_qwen_without_mm_token_type_ids(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model then counts positions in one dimension, without a word."""
    monkeypatch.setattr(Qwen25Vl, "position_inputs", staticmethod(lambda reader, inputs: {}))
    found = failed(small("qwen2_5_vl"))
    assert {"keys = k_proj, rotated", "text after = without"} <= found
    assert "batch = single" not in found


def test_qwen_with_stale_rope_deltas(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given embeddings instead of ids, the model silently takes up the state that the call before left behind."""

    def stale(reader: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        body = reader.parts.body
        body.rope_deltas = torch.tensor([[-5]])
        positions = body.compute_3d_position_ids(
            input_ids=None,
            image_grid_thw=inputs["image_grid_thw"],
            video_grid_thw=None,
            inputs_embeds=body.get_input_embeddings()(inputs["input_ids"]),
            attention_mask=inputs.get("attention_mask"),
            past_key_values=None,
        )
        return {"position_ids": positions}

    monkeypatch.setattr(Qwen25Vl, "position_inputs", staticmethod(stale))
    assert {"keys = k_proj, rotated", "text after = without"} <= failed(small("qwen2_5_vl"))


def test_the_tower_in_another_order(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen's tower works in windows: its tokens are not in the order of the image."""
    gather = _capture.Gather.__call__
    monkeypatch.setattr(
        _capture.Gather,
        "__call__",
        lambda self, features: gather(
            _capture.Gather(self.index.flatten().sort()[0].view(self.size), self.size), features
        ),
    )
    assert failed(small("qwen2_5_vl")) == {"projector of the tower = projector"}


def test_a_prefix_behind_the_image(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What chat templates do to a prefix that is given to them as text."""
    monkeypatch.setattr(Chat, "beginning", lambda self, prefix="": self.header + self.image)
    assert failed(small("llava")) == {"prefix before the image"}


def test_an_encoder_that_keeps_the_class_token(checkpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    capture = ClipReader.capture

    def shifted(self: Any, images: Any, sites: Any) -> Any:
        read = capture(self, images, sites)
        for _, stacks in read:
            for stack in stacks:
                stack.tokens.copy_(stack.tokens.roll(1, dims=3))
        return read

    monkeypatch.setattr(ClipReader, "capture", shifted)
    assert failed(checkpoint("clip")) == {"layers' outputs"}


# --- errors, numbers, command line ------------------------------------------------------------------------------------


def test_what_can_not_be_run_is_an_error(checkpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("the tower\nfell")

    monkeypatch.setattr(_reader, "read_block", fail)
    report = check(checkpoint("qwen2_5_vl"), LoadOptions())
    assert (report.verdict, report.why) == (ERROR, "RuntimeError: the tower fell")
    assert report.findings  # what had been seen until then is kept


def test_relative() -> None:
    true = torch.tensor([[[3.0, 4.0]], [[0.0, 1.0]]])
    assert relative(true, true) == 0.0
    assert relative(true + torch.tensor([[[0.0, 0.0]], [[0.0, 0.5]]]), true) == pytest.approx(0.5)
    assert relative(true[:1], true) == float("inf")
    assert relative(true * float("nan"), true) == float("inf")


def test_the_worst_finding_is_the_one_that_fails() -> None:
    fine, bad = Finding("fine", 9e-6, 1e-5), Finding("bad", 1e-3, 0.0)
    assert Report(SILENTLY_WRONG, "", (fine, bad), "cpu").worst == bad
    assert Report(SUPPORTED, "", (fine, Finding("exact", 0.0, 0.0)), "cpu").worst == fine


def test_the_command_keeps_the_verdict(
    tiny_model: Make, home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tiny_model("dinov2"))
    assert main(["models", "list"]) == 0
    assert "no models yet" in capsys.readouterr().out
    assert main(["models", "check", path]) == 0
    assert "SUPPORTED  dinov2" in capsys.readouterr().out
    (file,) = (home.store / "checks").iterdir()
    kept = json.loads(file.read_text())
    assert kept["kind"] == "check"
    assert file.name.startswith(kept["model"])
    assert kept["format"] == 1
    assert kept["deviations"]["batch = single"]["tolerance"] == 1e-5
    assert kept["versions"]["torch"]
    assert main(["models", "list", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["verdict"], row["layers"], row["model"]) == ("dinov2", "SUPPORTED", 4, kept["model"])

    worse = Report(SILENTLY_WRONG, "cells deviates", (Finding("cells", float("inf"), 0.0),), "cpu")
    monkeypatch.setattr("vkvdb.models._checks.check", lambda *_: worse)
    assert main(["models", "check", path]) == 1
    assert "SILENTLY WRONG  dinov2  cells deviates" in capsys.readouterr().out
    assert main(["models", "list"]) == 0
    assert "SILENTLY WRONG" in capsys.readouterr().out  # the newest one is shown


def test_an_option_that_does_not_fit_is_no_verdict(
    tiny_model: Make, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "check", str(tiny_model("dinov2")), "--square", "7"]) == 1
    assert "a patch is 14 pixels" in capsys.readouterr().err
    assert not (home.store / "checks").exists()
