"""Prove for one checkpoint that what is read of it is right: `vkvdb models check`.

Every check measures how far two ways to the same numbers lie apart; method.md's rules of evidence say how far they may.
What was never run right gives an exception, and the verdict ERROR; what runs and deviates is SILENTLY WRONG, which is
worse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from vkvdb.errors import BadOption
from vkvdb.types import LoadOptions, Site, Stacks

if TYPE_CHECKING:
    from vkvdb.models._checkpoint import Checkpoint

SUPPORTED, ERROR, SILENTLY_WRONG = "SUPPORTED", "ERROR", "SILENTLY WRONG"

# Where matrix shapes change: the largest relative error of a head. Same sequence and same batch: nothing at all.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
EXACT = 0.0

SIZES = ((640, 480), (333, 500), (384, 384))

Tokens = Mapping[Site, torch.Tensor]


@dataclass(frozen=True)
class Finding:
    """The largest deviation that a check saw, and where; `layers` has the largest of each stage and layer."""

    check: str
    deviation: float
    tolerance: float
    where: str = ""
    layers: Mapping[str, float] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether the deviation is within the tolerance; what is not a number is not."""
        return self.deviation <= self.tolerance


@dataclass(frozen=True)
class Report:
    """The verdict on a checkpoint, and what it stands on. `why` is the error, or the check that failed worst."""

    verdict: str
    why: str
    findings: tuple[Finding, ...]
    device: str

    @property
    def worst(self) -> Finding | None:
        """The finding that comes nearest to its tolerance, or goes furthest beyond it."""
        return max(self.findings, key=lambda f: (not f.holds, _share(f)), default=None)


def check(checkpoint: Checkpoint, options: LoadOptions, advance: Callable[[str], None] = lambda _: None) -> Report:
    """Load a checkpoint and run every check that its family has; `advance` is told each one's name.

    Raises BadOption: an option that does not fit says nothing about the checkpoint.
    """
    findings: list[Finding] = []
    device = ""
    try:
        model: Any = checkpoint.code.load(checkpoint, options)
        device = model.device
        for finding in _checks_of(model, checkpoint, options.square):
            findings.append(finding)
            advance(finding.check)
    except BadOption:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the verdict, and it is kept
        why = f"{type(error).__name__}: {' '.join(str(error).split()) or 'no reason given'}"
        return Report(ERROR, why, tuple(findings), device)
    failed = [f for f in findings if not f.holds]
    if failed:
        why = "; ".join(
            f"{f.check} deviates by {f.deviation:.1e} (allowed {f.tolerance:.0e}) {f.where}" for f in failed
        )
        return Report(SILENTLY_WRONG, why, tuple(findings), device)
    return Report(SUPPORTED, "", tuple(findings), device)


def _checks_of(model: Any, checkpoint: Checkpoint, square: int | None) -> Iterator[Finding]:
    if hasattr(model, "parts"):
        from vkvdb.models._checks_vlm import VlmChecks

        return VlmChecks(model, checkpoint).run()
    return _encoder_checks(model, checkpoint, square) if checkpoint.path else iter(())


def _share(finding: Finding) -> float:
    if finding.tolerance:
        return finding.deviation / finding.tolerance
    return math.inf if finding.deviation else 0.0


# --- what all checks use ----------------------------------------------------------------------------------------------


def pictures(sizes: Iterable[tuple[int, int]] = SIZES) -> list[Image.Image]:
    """Seeded images, smooth in the large and rough in the small, so that no two cells look alike."""
    draw = np.random.default_rng(0)
    made = []
    for width, height in sizes:
        rough = draw.integers(0, 96, (height, width, 3))
        y, x = np.mgrid[0:height, 0:width]
        smooth = np.stack([x * 159 // width, y * 159 // height, (x + y) * 159 // (width + height)], axis=-1)
        made.append(Image.fromarray((rough + smooth).astype(np.uint8)))
    return made


def relative(found: torch.Tensor, true: torch.Tensor) -> float:
    """The largest relative error of a head, of two (heads, ..., dim); infinite where they can't be compared."""
    if found.shape != true.shape:
        return math.inf
    a, b = found.double().flatten(1).cpu(), true.double().flatten(1).cpu()
    if torch.equal(a, b):
        return 0.0
    worst = float(((a - b).norm(dim=1) / b.norm(dim=1)).max())
    return math.inf if math.isnan(worst) else worst


class Tally:
    """Gathers the deviations of one check into a finding."""

    def __init__(self, check: str, tolerance: float) -> None:
        self.check = check
        self.tolerance = tolerance
        self._worst = (0.0, "")
        self._layers: dict[str, float] = {}

    def add(self, deviation: float, where: object) -> None:
        """Note a deviation somewhere."""
        if isinstance(where, Site):
            layer = f"{where.stage}.{where.layer}"
            self._layers[layer] = max(self._layers.get(layer, 0.0), deviation)
        if deviation > self._worst[0]:
            self._worst = (deviation, str(where))

    def compare(self, found: Tokens, true: Tokens) -> None:
        """Note the deviations at all sites of `true`."""
        for site, tokens in true.items():
            self.add(relative(found[site], tokens), site)

    def finding(self) -> Finding:
        deviation, where = self._worst
        return Finding(self.check, deviation, self.tolerance, where, self._layers)


def tokens_of(stacks: Stacks) -> dict[Site, torch.Tensor]:
    """{site: (heads, cells, dim)}."""
    return {s: t.flatten(1, 2) for stack in stacks for s, t in zip(stack.sites, stack.tokens, strict=True)}


# --- encoders ---------------------------------------------------------------------------------------------------------


def _encoder_checks(model: Any, checkpoint: Checkpoint, square: int | None) -> Iterator[Finding]:
    """A stand-alone encoder: its layers' own outputs, one image or several, and the grid."""
    images = pictures()
    tolerance = TOLERANCE[model.model.dtype]
    sites = [s for s in model.shapes if s.stage == "encoder"]
    vision = getattr(model.model, "vision_model", model.model)
    layers = next(m for m in vision.modules() if isinstance(m, nn.ModuleList) and len(m) == len(sites) - 1)
    norm = vision.post_layernorm if hasattr(vision, "post_layernorm") else vision.layernorm
    outputs: list[torch.Tensor] = []
    hooks = [m.register_forward_hook(lambda _m, _i, out: outputs.append(_first(out))) for m in layers]
    try:
        together = model.capture(images, list(model.shapes))
    finally:
        for hook in hooks:
            hook.remove()
    own = Tally("layers' outputs", tolerance)
    with torch.inference_mode():
        states = [*outputs, norm(outputs[-1])]
    for n, (grid, stacks) in enumerate(together):
        # Patches are the last tokens: class token and registers come before them.
        true = {s: states[s.layer][n, -grid.rows * grid.cols :][None] for s in sites}
        own.compare(tokens_of(stacks), true)
    yield own.finding()

    batch = Tally("batch = single", tolerance)
    for n, image in enumerate(images):
        ((_, stacks),) = model.capture([image], list(model.shapes))
        batch.compare(tokens_of(together[n][1]), tokens_of(stacks))
    yield batch.finding()

    count = Tally("cells", EXACT)
    for image, (grid, _) in zip(images, together, strict=True):
        told = checkpoint.code.cells(checkpoint.config, checkpoint.processor, image.width, image.height, square)
        extra = outputs[0].shape[1] - grid.rows * grid.cols
        count.add(abs(told - grid.rows * grid.cols), f"{image.width} x {image.height}")
        count.add(float(not 0 <= extra <= _leading(checkpoint.config)), "tokens that are no patches")
    yield count.finding()


def _leading(config: Mapping[str, Any]) -> int:
    """How many tokens may come before the patches: a class token, and registers."""
    return 1 + int(config.get("num_register_tokens") or 0)


def _first(out: Any) -> torch.Tensor:
    first: torch.Tensor = out[0] if isinstance(out, tuple) else out
    return first
