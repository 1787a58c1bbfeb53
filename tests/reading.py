"""What tests of model families share: load by path, run a block plainly, the sites that a cache holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vkvdb.models import _checkpoint
from vkvdb.models._reader import Reader
from vkvdb.paths import Home
from vkvdb.types import LoadOptions, Site


def loaded(path: Path | str, home: Home, **options: Any) -> Any:
    """Resolve and load a checkpoint as a job does."""
    return _checkpoint.load(_checkpoint.resolve(str(path), home), LoadOptions(**options))


@torch.inference_mode()
def plainly(reader: Reader, block: Any) -> Any:
    """Run the model on a block as transformers would, with its own cache."""
    config = reader.parts.body.config
    before = {name: getattr(config, name) for name in block.settings}
    for name, value in block.settings.items():
        setattr(config, name, value)
    run = reader.parts.body(**block.inputs, use_cache=True, output_hidden_states=True)
    for name, value in before.items():
        setattr(config, name, value)
    return run


def cached(reader: Reader) -> list[Site]:
    """Keys and values of every layer."""
    return [s for s in reader.shapes if s.part in ("key", "value")]
