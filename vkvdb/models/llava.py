"""LLaVA-1.5: a CLIP tower, a projector of two layers, a LLaMA decoder; one grid of the image's central square.

The checkpoint's processor resizes the shortest edge to the tower's square and crops its centre, or pads the image to a
square first (`do_pad` of LlavaImageProcessor): the grid's window follows, inside the image or beyond it. Whether a
checkpoint of the same class with another tower or decoder is read right, `vkvdb models check` says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vkvdb.models._token_map import Panel, processed
from vkvdb.models._vlm import Seen, Vlm, tower_grid

if TYPE_CHECKING:
    import PIL.Image

    from vkvdb.models._reader import Reader


class Llava(Vlm):
    """One panel, the same number of cells for every image."""

    version: ClassVar[int] = 1
    processor_class: ClassVar[str] = "LlavaProcessor"

    @staticmethod
    def panels(
        config: Mapping[str, Any], processor: Mapping[str, Any], width: int, height: int, *, alone: bool, whole: bool
    ) -> tuple[Panel, ...]:
        # Other image processors understand something else by `do_pad`.
        padded = bool(processor.get("do_pad")) and processor["image_processor_type"].startswith("LlavaImageProcessor")
        return (processed(width, height, processor, tower_grid(config)[1], padded=padded),)

    @staticmethod
    def inputs(reader: Reader, prompts: Sequence[Sequence[PIL.Image.Image]], view: str, *, whole: bool) -> Seen:
        import torch

        from vkvdb.models._capture import Gather

        images = [image for prompt in prompts for image in prompt]
        made = reader.image_processor(images, return_tensors="pt")
        cells = tower_grid(reader.config)[2]
        index = torch.arange(len(images) * cells * cells).view(-1, cells, cells)
        return Seen({"pixel_values": made["pixel_values"]}, tuple(Gather(i, (cells, cells)) for i in index))


FAMILY = Llava
