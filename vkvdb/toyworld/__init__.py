"""The toy world: synthetic scenes with perfect ground truth, and the small trained models that ship with vkvdb."""

from __future__ import annotations

from pathlib import Path

_WEIGHTS = Path(__file__).parent / "weights"


def names() -> list[str]:
    """Names of the checkpoints that ship."""
    return sorted(p.parent.name for p in _WEIGHTS.glob("*/config.json"))


def weights_dir(name: str) -> Path:
    """The folder of a checkpoint that ships, in Hugging Face layout."""
    return _WEIGHTS / name


# The stand-alone encoder that each shipped model started from: the reference beside its curves.
STANDALONE = {"toy": "toy-siglip"}
