"""Qwen2.5-VL: its own tower, merged 2 x 2, and a Qwen2 decoder with rotary positions of (time, row, column).

The image keeps its shape: it is resized to whole cells of 28 pixels, within the processor's least and most pixels, so
the grid differs from image to image. The projector is the tower's merger. The site of the tower is what the merger is
given: a cell's four patch tokens side by side (left above, right above, left below, right below), so it lies on the
grid of the tokens. Positions are made by the model's own `get_rope_index` and handed to it: left alone, it counts
positions in one dimension where a single input is missing, and keeps a state (`rope_deltas`) between calls, both
without a word.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vkvdb.errors import BadOption
from vkvdb.models._token_map import BASE, Panel, even
from vkvdb.models._vlm import Seen, Vlm

if TYPE_CHECKING:
    import PIL.Image

    from vkvdb.models._capture import Parts
    from vkvdb.models._reader import Reader

MOST_ELONGATED = 200


def resized(width: int, height: int, cell: int, least: int, most: int) -> tuple[int, int]:
    """(rows, cols) of cells that an image is resized to, as near to its shape as whole cells and limits allow."""
    if max(width, height) > MOST_ELONGATED * min(width, height):
        raise BadOption(
            option="image", value=f"{width} x {height}", why=f"longer than {MOST_ELONGATED} times its width"
        )
    rows, cols = round(height / cell), round(width / cell)
    if rows * cols * cell * cell > most:
        shrink = math.sqrt(height * width / most)
        return max(1, math.floor(height / shrink / cell)), max(1, math.floor(width / shrink / cell))
    if rows * cols * cell * cell < least:
        grow = math.sqrt(least / (height * width))
        return math.ceil(height * grow / cell), math.ceil(width * grow / cell)
    return rows, cols


class Qwen25Vl(Vlm):
    """One panel, of the image's own shape."""

    version: ClassVar[int] = 1
    processor_class: ClassVar[str] = "Qwen2_5_VLProcessor"
    opening: ClassVar[str] = "<|vision_start|>"

    @staticmethod
    def panels(
        config: Mapping[str, Any], processor: Mapping[str, Any], width: int, height: int, *, alone: bool, whole: bool
    ) -> tuple[Panel, ...]:
        cell, size = processor["patch_size"] * processor["merge_size"], processor["size"]
        rows, cols = resized(width, height, cell, size["shortest_edge"], size["longest_edge"])
        return (Panel(BASE, even(0.0, width / cols, cols), even(0.0, height / rows, rows)),)

    @staticmethod
    def tower_layer(config: Mapping[str, Any]) -> int:
        return int(config["vision_config"]["depth"]) - 1

    @staticmethod
    def tower_dim(config: Mapping[str, Any]) -> int:
        vision = config["vision_config"]
        return int(vision["hidden_size"] * vision["spatial_merge_size"] ** 2)

    @staticmethod
    def place(start: int, position: int, row: int, col: int) -> tuple[int, ...]:
        return start, start + row, start + col

    @classmethod
    def parts(cls, model: Any, config: Mapping[str, Any]) -> Parts:
        from vkvdb.models._capture import Parts, mrope_rotation

        body = model.model
        rotation = mrope_rotation(config["text_config"]["rope_parameters"]["mrope_section"])
        merged = config["vision_config"]["spatial_merge_size"] ** 2
        return Parts(body, body.visual.merger, body.language_model, cls.tower_layer(config), merged, rotation)

    @staticmethod
    def inputs(reader: Reader, prompts: Sequence[Sequence[PIL.Image.Image]], view: str, *, whole: bool) -> Seen:
        import torch
        from transformers.vision_utils import get_vision_window_index

        from vkvdb.models._capture import Gather

        made = reader.image_processor([image for prompt in prompts for image in prompt], return_tensors="pt")
        vision = reader.config["vision_config"]
        merge = vision["spatial_merge_size"]
        # The tower works, and hands its tokens to the merger, in the order of its attention windows.
        order, _ = get_vision_window_index(made["image_grid_thw"], merge, vision["window_size"], vision["patch_size"])
        back, start, gathers = torch.argsort(order), 0, []
        for _, high, wide in made["image_grid_thw"].tolist():
            size = (high // merge, wide // merge)
            gathers.append(Gather(back[start : start + size[0] * size[1]].view(size), size))
            start += size[0] * size[1]
        return Seen({name: made[name] for name in ("pixel_values", "image_grid_thw")}, tuple(gathers))

    @staticmethod
    def position_inputs(reader: Reader, inputs: dict[str, Any]) -> dict[str, Any]:
        kinds = (inputs["input_ids"] == reader.image_id).int()
        body: Any = reader.parts.body
        positions, _ = body.get_rope_index(
            input_ids=inputs["input_ids"],
            mm_token_type_ids=kinds,
            image_grid_thw=inputs["image_grid_thw"],
            attention_mask=inputs.get("attention_mask"),
        )
        return {"position_ids": positions, "mm_token_type_ids": kinds}


FAMILY = Qwen25Vl
