"""State of a training run on disk: one safetensors file, replaced whole, so that a stopped run goes on where it was.

It holds the weights, the optimiser's moments, and (as JSON in the file's metadata) the step and the log. Nothing is
pickled, and no state of a random generator is kept: every draw of a step follows from the seed, the stage and the
step.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

Record = dict[str, Any]


def save_state(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, step: int, log: list[Record]) -> None:
    """Writes the state after `step` steps."""
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[f"weight/{name}"] = parameter.detach().contiguous()
        moments = optimiser.state.get(parameter, {})
        for kind in ("exp_avg", "exp_avg_sq"):
            if kind in moments:
                tensors[f"{kind}/{name}"] = moments[kind].contiguous()
    content = json.dumps({"step": step, "log": log}, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"state": content})
    os.replace(partial, path)


def load_state(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[int, list[Record]]:
    """Restores model and optimiser; returns the steps done and the log. A missing file is step 0 with an empty log."""
    if not path.exists():
        return 0, []
    with safe_open(path, framework="pt") as file:
        content = json.loads(file.metadata()["state"])
        known = set(file.keys())
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(file.get_tensor(f"weight/{name}"))
                if f"exp_avg/{name}" in known:
                    optimiser.state[parameter] = {
                        "step": torch.tensor(float(content["step"])),
                        "exp_avg": file.get_tensor(f"exp_avg/{name}").to(parameter.device),
                        "exp_avg_sq": file.get_tensor(f"exp_avg_sq/{name}").to(parameter.device),
                    }
    return int(content["step"]), list(content["log"])
