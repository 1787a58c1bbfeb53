"""Trains the toy models: `python -m vkvdb.toyworld.train --out DIR`.

Stage 1, the stand-alone encoder on phrases; stage 2, the whole model on answers. Stops and resumes at any point: run
it again with the same `--out`. The folder holds `siglip/` and `model/` (checkpoints in Hugging Face layout, float32,
each with its `training_log.json`), snapshots of the model along the way, the state to resume from, and the data. On
one machine, the same preset gives the same bytes, resumed or not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import transformers
from torch import Tensor, nn
from transformers import LlavaOnevisionForConditionalGeneration, SiglipModel

from vkvdb.toyworld import stages
from vkvdb.toyworld.data import build, choice_rows, scene_rows
from vkvdb.toyworld.evaluate import answer_scores, choice_exams, choice_scores, exams, phrase_precision
from vkvdb.toyworld.model import build_encoder, build_model, save_encoder, save_model
from vkvdb.toyworld.packing import answer_loss
from vkvdb.toyworld.presets import PRESETS, Preset
from vkvdb.toyworld.state import Record, load_state, save_state

CHOICE_EXAMS = 2_000_000_000
"""First seed of the BLINK-shaped questions that evaluate; training's are below."""


def say(text: str) -> None:
    """A line of progress."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


@dataclass
class Run:
    """Where a training run writes, on what it computes, and when it is to stop before it is done (None: never)."""

    out: Path
    preset: Preset
    device: torch.device
    data: Path
    processes: int
    stop_after: int | None = None

    def arithmetic(self) -> AbstractContextManager[Any]:
        """bfloat16 products on a GPU; weights stay in float32."""
        return torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext()


def versions() -> dict[str, str]:
    """What the training ran on: it decides the last bits."""
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }


def write_log(run: Run, folder: Path, *, stage: str, step: int, batch: int, log: list[Record]) -> None:
    """Writes a checkpoint's `training_log.json`: what it was trained on, and its scores on the way."""
    content = {
        "stage": stage,
        "steps": step,
        "image_draws": step * batch,
        "preset": asdict(run.preset),
        "device": run.device.type,
        "versions": versions(),
        "log": log,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "training_log.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def loop(
    run: Run,
    name: str,
    model: nn.Module,
    optimiser: torch.optim.AdamW,
    *,
    steps: int,
    batch: int,
    rate: float,
    loss_of: Callable[[int], Tensor],
    evaluate: Callable[[], Record],
    save: Callable[[int, list[Record]], None],
) -> bool:
    """Runs a stage from wherever it was left; whether it is done now. `save` writes a checkpoint's folder after an
    evaluation.
    """
    state = run.out / "state" / f"{name}.safetensors"
    step, log = load_state(state, model, optimiser)
    if step == 0:
        save_state(state, model, optimiser, 0, log)
    began, first = time.monotonic(), step
    losses: list[Tensor] = []
    while step < steps:
        if run.stop_after is not None and step >= run.stop_after:
            return False
        model.train()
        with run.arithmetic():
            loss = loss_of(step)
        loss.backward()  # type: ignore[no-untyped-call]
        stages.update(model, optimiser, rate * stages.learning_rate(step, steps))
        losses = [*losses[-19:], loss.detach()]
        step += 1
        if step % 100 == 0:
            speed = (step - first) / (time.monotonic() - began)
            say(f"{name} step {step}/{steps} loss {torch.stack(losses).mean():.4f} {speed:.2f} steps/s")
        evaluates = step % run.preset.evaluate_every == 0 or step == steps
        if evaluates:
            model.eval()
            with run.arithmetic():
                log.append({"step": step, "draws": step * batch, **evaluate()})
            say(f"{name} step {step}: {json.dumps(log[-1], sort_keys=True)}")
        if evaluates or step % run.preset.checkpoint_every == 0:
            save_state(state, model, optimiser, step, log)
        if evaluates:
            save(step, log)
    return True


def train_encoder(run: Run, scenes: stages.Data) -> SiglipModel | None:
    """Stage 1; None if it was stopped before its end."""
    preset, device = run.preset, run.device
    encoder = build_encoder(preset)
    stages.prepare_encoder(encoder)
    nn.Module.to(encoder, device)
    optimiser = stages.make_optimiser([(encoder, 1.0)])
    phrases = stages.phrase_tokens(device)
    asked = exams("val", preset.evaluate_scenes)
    images = torch.from_numpy(np.stack([exam.image for exam in asked]))

    @torch.no_grad()
    def evaluate() -> Record:
        logits = [stages.phrase_logits(encoder, part.to(device), phrases).float() for part in torch.split(images, 50)]
        return {"average_precision": phrase_precision(torch.cat(logits), asked)}

    def save(step: int, log: list[Record]) -> None:
        save_encoder(encoder, run.out / "siglip")
        write_log(run, run.out / "siglip", stage="encoder", step=step, batch=preset.stage1_batch, log=log)

    done = loop(
        run,
        "encoder",
        encoder,
        optimiser,
        steps=preset.stage1_steps,
        batch=preset.stage1_batch,
        rate=preset.stage1_rate,
        loss_of=lambda step: stages.stage1_loss(encoder, scenes, phrases, preset, step),
        evaluate=evaluate,
        save=save,
    )
    return encoder if done else None


def train_model(
    run: Run, scenes: stages.Data, choices: stages.Data, encoder: SiglipModel | None
) -> LlavaOnevisionForConditionalGeneration | None:
    """Stage 2, from the encoder's tower where there is one; None if it was stopped before its end."""
    preset, device = run.preset, run.device
    model = build_model(preset, encoder)
    nn.Module.to(model, device)
    share = preset.tower_rate if encoder is not None else 1.0
    optimiser = stages.make_optimiser([(model.model.vision_tower, share), (model, 1.0)])
    asked = exams("val", preset.evaluate_scenes)
    puzzles = choice_exams(CHOICE_EXAMS, max(2, preset.evaluate_scenes // 5))

    def loss_of(step: int) -> Tensor:
        layout, batch = stages.stage2_batch(scenes, choices, preset, step, device)
        return answer_loss(model, layout, batch)

    def evaluate() -> Record:
        scores = answer_scores(model, asked, device)
        scores |= choice_scores(model, puzzles, device)
        return {"answers": {kind: score._asdict() for kind, score in scores.items()}}

    def save(step: int, log: list[Record]) -> None:
        for folder in (run.out / "model", run.out / "snapshots" / f"{step:06d}"):
            save_model(model, folder)
            write_log(run, folder, stage="model", step=step, batch=preset.stage2_batch, log=log)

    done = loop(
        run,
        "model",
        model,
        optimiser,
        steps=preset.stage2_steps,
        batch=preset.stage2_batch,
        rate=preset.stage2_rate,
        loss_of=loss_of,
        evaluate=evaluate,
        save=save,
    )
    return model if done else None


def train(run: Run) -> None:
    """Both stages, or what is left of them."""
    torch.use_deterministic_algorithms(run.device.type == "cpu")
    say(f"data: {run.preset.scenes} scenes in {run.data}")
    scene_arrays = build(run.data / "scenes", scene_rows, "train", run.preset.scenes, run.processes)
    choice_arrays = build(run.data / "choices", choice_rows, "train", run.preset.choices, run.processes)
    scenes, choices = (stages.to_device(arrays, run.device) for arrays in (scene_arrays, choice_arrays))
    encoder = None
    if run.preset.stage1_steps:
        encoder = train_encoder(run, scenes)
        if encoder is None:
            return
    train_model(run, scenes, choices, encoder)


def parse(arguments: list[str] | None = None) -> Run:
    """The command line's run; any size or length of a preset can be set by its own name."""
    parser = argparse.ArgumentParser(prog="python -m vkvdb.toyworld.train", description="Train the toy models.")
    parser.add_argument("--out", type=Path, default=Path(".toyworld"), help="folder of the run (default: %(default)s)")
    parser.add_argument("--data", type=Path, help="folder of the training data (default: OUT/data)")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="toy")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="processes that draw scenes")
    parser.add_argument("--steps", type=int, help="steps of stage 2; the same as --stage2-steps")
    parser.add_argument("--stop-after", type=int, help="stop each stage after so many steps, to be resumed")
    for field in fields(Preset):
        kind = float if field.type == "float" else int
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    preset = PRESETS[options.preset]
    given = {field.name: getattr(options, field.name) for field in fields(Preset)}
    given["stage2_steps"] = options.steps if options.steps is not None else given["stage2_steps"]
    preset = replace(preset, **{name: value for name, value in given.items() if value is not None})
    data = options.data or options.out / "data"
    return Run(options.out, preset, torch.device(options.device), data, options.processes, options.stop_after)


if __name__ == "__main__":
    train(parse())
