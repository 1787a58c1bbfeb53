"""LLaVA-OneVision: a SigLIP tower, a projector of two layers, a Qwen2 decoder; base image and tiles.

The processor sends a *base* image, stretched to the tower's square, and then tiles. The base comes first, so its keys
and values do not depend on the tiles: a capture of the base view runs without them. The view `tiles` is the mosaic of
all tiles; where it has more cells than nine tiles (`anyres_max_9`), the model resamples it to fewer. In a prompt of
several images each is padded to a square instead and has no tiles. Where the square is no multiple of the patch (384 /
14), the last pixels right and below are never seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vkvdb.errors import BadOption
from vkvdb.models import _anyres
from vkvdb.models._token_map import BASE, TILES, Panel, processed
from vkvdb.models._vlm import Seen, Vlm, tower_grid

if TYPE_CHECKING:
    import PIL.Image

    from vkvdb.models._reader import Reader


def _most(config: Mapping[str, Any]) -> int:
    """The 9 of `anyres_max_9`: more tiles' worth of cells than that are resampled."""
    chosen = config.get("vision_aspect_ratio", "anyres_max_9")
    most = chosen.removeprefix("anyres_max_")
    if not most.isdigit():
        raise BadOption(option="vision_aspect_ratio", value=chosen, why="only anyres_max_N is supported")
    return int(most)


class LlavaOnevision(Vlm):
    """Base and tiles of an image that is alone in its prompt, padded squares where there are several."""

    version: ClassVar[int] = 1
    processor_class: ClassVar[str] = "LlavaOnevisionProcessor"
    views: ClassVar[tuple[str, ...]] = (BASE, TILES)

    @staticmethod
    def panels(
        config: Mapping[str, Any], processor: Mapping[str, Any], width: int, height: int, *, alone: bool, whole: bool
    ) -> tuple[Panel, ...]:
        if alone:
            return _anyres.panels(config, processor, width, height, most=_most(config), whole=whole)
        side, patch, _ = tower_grid(config)
        square = processed(width, height, {"size": {"height": side, "width": side}}, patch, padded=True)
        return (Panel(BASE, square.x, square.y, "end"),)

    @staticmethod
    def inputs(reader: Reader, prompts: Sequence[Sequence[PIL.Image.Image]], view: str, *, whole: bool) -> Seen:
        if not whole or all(len(prompt) == 1 for prompt in prompts):
            return _anyres.inputs(reader, prompts, view, most=_most(reader.config), whole=whole)
        return _several(reader, prompts)


def _several(reader: Reader, prompts: Sequence[Sequence[PIL.Image.Image]]) -> Seen:
    """Prompts of several images: one square an image."""
    import torch

    from vkvdb.models._capture import Gather

    if any(len(prompt) == 1 for prompt in prompts):
        # The model takes images with tiles and without in one batch, but nothing of ours asks for that.
        raise BadOption(option="prompts", value=len(prompts), why="of one image and of several do not go in one block")
    made = reader.image_processor([list(prompt) for prompt in prompts], return_tensors="pt")
    cells = tower_grid(reader.config)[2]
    index = torch.arange(sum(len(p) for p in prompts) * cells * cells).view(-1, cells, cells)
    names = ("pixel_values", "image_sizes", "batch_num_images")
    return Seen({name: made[name] for name in names}, tuple(Gather(i, (cells, cells)) for i in index))


FAMILY = LlavaOnevision
