"""How large the toy models are and how long they are trained."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Preset:
    """Sizes of the model and lengths of the two stages.

    The learning rate warms up, stays, and falls linearly over the last quarter of a stage. Batches are of images. A
    batch of stage 2 asks `slots` questions of each image; every `choice_every`-th batch holds BLINK-shaped questions
    instead, and, once `anyres_from` of the stage is over, every fourth batch shows its images in the processor's
    two-tile layout.
    """

    vision_width: int = 128
    vision_layers: int = 4
    vision_heads: int = 4
    vision_mlp: int = 384
    text_width: int = 128
    text_layers: int = 8
    text_heads: int = 8
    text_kv_heads: int = 4
    text_mlp: int = 352
    scenes: int = 32_000
    choices: int = 2_000
    stage1_steps: int = 4_800
    stage1_batch: int = 64
    stage1_rate: float = 1e-3
    stage1_keep: float = 0.6
    stage2_steps: int = 4_600
    stage2_batch: int = 12
    stage2_rate: float = 1e-3
    slots: int = 12
    choice_every: int = 20
    anyres_from: float = 0.7
    tower_rate: float = 0.4
    evaluate_every: int = 250
    evaluate_scenes: int = 200
    checkpoint_every: int = 100
    seed: int = 0


PRESETS: dict[str, Preset] = {
    "toy": Preset(),
    # The recipe without stage 1: what the answers alone teach.
    "answers-only": replace(Preset(), stage1_steps=0),
    # For tests: everything happens within a handful of steps.
    "tiny": Preset(
        vision_width=32,
        vision_layers=2,
        vision_heads=2,
        vision_mlp=48,
        text_width=32,
        text_layers=2,
        text_heads=4,
        text_kv_heads=2,
        text_mlp=48,
        scenes=24,
        choices=8,
        stage1_steps=4,
        stage1_batch=4,
        stage2_steps=6,
        stage2_batch=2,
        slots=3,
        choice_every=3,
        anyres_from=0.5,
        evaluate_every=4,
        evaluate_scenes=4,
        checkpoint_every=2,
    ),
}
