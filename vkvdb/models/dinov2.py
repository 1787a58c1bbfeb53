"""DINOv2, a stand-alone encoder: patch tokens after every layer, and after the final layer norm.

The whole image is stretched to a square, `crop_size` of the checkpoint's processor unless `--square N` says otherwise:
its own centre crop serves classification and would hide a part of the image from a dense reading. Mean, deviation and
resampling are the processor's. Layer n of n is the output after the final norm, which is what others call DINOv2's
features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vkvdb.errors import BadOption
from vkvdb.types import LoadOptions, Site, SiteShape, Stacks, TokenGrid

if TYPE_CHECKING:
    import PIL.Image
    import torch

    from vkvdb.models._checkpoint import Checkpoint


def _side(config: Mapping[str, Any], processor: Mapping[str, Any], square: int | None) -> int:
    """The square's side in pixels, whole patches only."""
    crop = processor.get("crop_size") or config["image_size"]
    side = square or (crop["height"] if isinstance(crop, Mapping) else crop)
    patch = config["patch_size"]
    if side < patch:
        raise BadOption(option="--square", value=side, why=f"a patch is {patch} pixels")
    return int(side // patch * patch)


class Dinov2:
    """Every layer; no text side."""

    version: ClassVar[int] = 1
    checkpoint: ClassVar[bool] = True
    views: ClassVar[tuple[str, ...]] = ("base",)
    silent: ClassVar[Mapping[str, str]] = {"encoder": "DINOv2 has no text side"}

    @staticmethod
    def sites(config: Mapping[str, Any]) -> tuple[SiteShape, ...]:
        depth, dim = config["num_hidden_layers"], config["hidden_size"]
        return tuple(SiteShape(Site("encoder", n, "hidden"), 1, dim) for n in range(depth + 1))

    @staticmethod
    def cells(
        config: Mapping[str, Any],
        processor: Mapping[str, Any],
        width: int,
        height: int,
        square: int | None,
        *,
        view: str = "base",
    ) -> int:
        return int((_side(config, processor, square) // config["patch_size"]) ** 2)

    @staticmethod
    def load(checkpoint: Checkpoint, options: LoadOptions) -> Reader:
        return Reader(checkpoint, options)


class Reader:
    """A loaded DINOv2 checkpoint."""

    def __init__(self, checkpoint: Checkpoint, options: LoadOptions) -> None:
        from transformers import AutoModel

        from vkvdb.models import _loading

        _loading.refuse_prompts(checkpoint, options)
        self.name = checkpoint.name
        self.shapes = {s.site: s for s in checkpoint.sites()}
        self.model = _loading.load_weights(checkpoint, options, AutoModel, None)
        self.device = str(self.model.device)
        self.side = _side(checkpoint.config, checkpoint.processor, options.square)
        self.grid = self.side // checkpoint.config["patch_size"]
        self.depth = checkpoint.config["num_hidden_layers"]
        self.image_processor = _loading.image_processor_of(checkpoint)

    def capture(self, images: Sequence[PIL.Image.Image], sites: Sequence[Site]) -> list[tuple[TokenGrid, Stacks]]:
        import torch

        from vkvdb.models._capture import check_finite, of

        size = {"height": self.side, "width": self.side}
        made = self.image_processor(list(images), size=size, do_center_crop=False, return_tensors="pt")
        with torch.inference_mode():
            out = self.model(made["pixel_values"].to(self.device, self.model.dtype), output_hidden_states=True)
        states = (*out.hidden_states[1:], out.last_hidden_state)
        shapes = [self.shapes[s] for s in sites]
        read = []
        for n, image in enumerate(images):
            # Patches are the last tokens: before them the class token, and registers where a checkpoint has them.
            cells = self.grid * self.grid
            tokens = {s: states[s.layer][n, -cells:].unflatten(0, (1, self.grid, self.grid)).cpu() for s in sites}
            stacks = of(tokens, shapes)
            check_finite(stacks, self.name, n)
            window = (0.0, 0.0, float(image.width), float(image.height))
            read.append((TokenGrid(self.grid, self.grid, window), stacks))
        return read

    def text(self, words: str, sites: Sequence[Site]) -> dict[Site, torch.Tensor]:
        """Not defined: DINOv2 has no text side."""
        return {}


FAMILY = Dinov2
