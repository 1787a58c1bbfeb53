"""LLaVA-NeXT: a CLIP tower, a projector of two layers, a LLaMA or Mistral decoder; base image and tiles.

The processor sends a *base* image, stretched to the tower's square, and then tiles. The base comes first, so its keys
and values do not depend on the tiles: a capture of the base view runs without them. The view `tiles` is the mosaic of
all tiles, its padding cut off and its newline tokens left out, read in the whole sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vkvdb.models import _anyres
from vkvdb.models._token_map import BASE, TILES, Panel
from vkvdb.models._vlm import Seen, Vlm

if TYPE_CHECKING:
    import PIL.Image

    from vkvdb.models._reader import Reader


class LlavaNext(Vlm):
    """Base and tiles for every image of a prompt, all tiles' cells kept."""

    version: ClassVar[int] = 1
    processor_class: ClassVar[str] = "LlavaNextProcessor"
    views: ClassVar[tuple[str, ...]] = (BASE, TILES)

    @staticmethod
    def panels(
        config: Mapping[str, Any], processor: Mapping[str, Any], width: int, height: int, *, alone: bool, whole: bool
    ) -> tuple[Panel, ...]:
        return _anyres.panels(config, processor, width, height, most=None, whole=whole)

    @staticmethod
    def inputs(reader: Reader, prompts: Sequence[Sequence[PIL.Image.Image]], view: str, *, whole: bool) -> Seen:
        return _anyres.inputs(reader, prompts, view, most=None, whole=whole)


FAMILY = LlavaNext
