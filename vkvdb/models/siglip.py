"""SigLIP (and SigLIP 2 of fixed resolution), a stand-alone encoder with a text side: patch tokens after every layer.

Layer n of n is the output after the final layer norm. The site of the projector is the space that text lives in: each
patch token sent alone through the image head's value path (value and output projection, then the head's residual
block), to be compared with the pooled text embedding. Images go through the checkpoint's own processor, which stretches
them to a square.
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

TEXT_SPACE = Site("projector", 0, "hidden")


def _side(config: Mapping[str, Any], square: int | None) -> int:
    side, patch = config["vision_config"]["image_size"], config["vision_config"]["patch_size"]
    if square and square < patch:
        raise BadOption(option="--square", value=square, why=f"a patch is {patch} pixels")
    return int(square or side)


class Siglip:
    """Every layer of the tower, and the space that text lives in."""

    version: ClassVar[int] = 1
    checkpoint: ClassVar[bool] = True
    views: ClassVar[tuple[str, ...]] = ("base",)
    silent: ClassVar[Mapping[str, str]] = {"encoder": "words lie in the space of the pooled image: see stage projector"}

    @staticmethod
    def sites(config: Mapping[str, Any]) -> tuple[SiteShape, ...]:
        vision = config["vision_config"]
        depth, dim = vision["num_hidden_layers"], vision["hidden_size"]
        head = [SiteShape(TEXT_SPACE, 1, dim)] if vision.get("vision_use_head", True) else []
        return (*(SiteShape(Site("encoder", n, "hidden"), 1, dim) for n in range(depth + 1)), *head)

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
        return int((_side(config, square) // config["vision_config"]["patch_size"]) ** 2)

    @staticmethod
    def load(checkpoint: Checkpoint, options: LoadOptions) -> Reader:
        return Reader(checkpoint, options)


class Reader:
    """A loaded SigLIP checkpoint."""

    def __init__(self, checkpoint: Checkpoint, options: LoadOptions) -> None:
        from transformers import AutoModel

        from vkvdb.models import _loading

        _loading.refuse_prompts(checkpoint, options)
        self.name = checkpoint.name
        self.shapes = {s.site: s for s in checkpoint.sites()}
        self.model = _loading.load_weights(checkpoint, options, AutoModel, None)
        self.device = str(self.model.device)
        self.side = _side(checkpoint.config, options.square)
        self.own_side = checkpoint.config["vision_config"]["image_size"]
        self.patch = checkpoint.config["vision_config"]["patch_size"]
        self.grid = self.side // self.patch
        self.length = checkpoint.config["text_config"]["max_position_embeddings"]
        self.image_processor = _loading.image_processor_of(checkpoint)
        self.tokenizer = _loading.plain_tokenizer_of(checkpoint)

    def capture(self, images: Sequence[PIL.Image.Image], sites: Sequence[Site]) -> list[tuple[TokenGrid, Stacks]]:
        import torch

        from vkvdb.models._capture import check_finite, of

        size = {"height": self.side, "width": self.side}
        made = self.image_processor(list(images), size=size, return_tensors="pt")["pixel_values"]
        vision = self.model.vision_model
        with torch.inference_mode():
            out = vision(
                made.to(self.device, self.model.dtype),
                output_hidden_states=True,
                interpolate_pos_encoding=self.side != self.own_side,
            )
            layers = [*out.hidden_states[1:], out.last_hidden_state]
            states = {Site("encoder", n, "hidden"): s for n, s in enumerate(layers)}
            if TEXT_SPACE in sites:
                states[TEXT_SPACE] = _value_path(vision.head, out.last_hidden_state)
        shapes = [self.shapes[s] for s in sites]
        # Pixels beyond the last whole patch are never seen.
        seen = self.grid * self.patch / self.side
        read = []
        for n, image in enumerate(images):
            tokens = {s: states[s][n].unflatten(0, (1, self.grid, self.grid)).cpu() for s in sites}
            stacks = of(tokens, shapes)
            check_finite(stacks, self.name, n)
            read.append((TokenGrid(self.grid, self.grid, (0.0, 0.0, image.width * seen, image.height * seen)), stacks))
        return read

    def text(self, words: str, sites: Sequence[Site]) -> dict[Site, torch.Tensor]:
        """The pooled text embedding, at the projector's site alone."""
        import torch

        if TEXT_SPACE not in sites:
            return {}
        # SigLIP was trained on text padded to its full length.
        ids = self.tokenizer(words, padding="max_length", max_length=self.length, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            pooled = self.model.text_model(input_ids=ids["input_ids"].to(self.device)).pooler_output
        return {TEXT_SPACE: pooled.cpu()}


def _value_path(head: torch.nn.Module, states: torch.Tensor) -> torch.Tensor:
    """What the attention-pooling head would give if it looked at one patch alone: (images, patches, dim)."""
    import torch.nn.functional as F  # noqa: N812 - its usual name

    attention: Any = head.attention
    width = states.shape[-1]
    values = F.linear(states, attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :])
    pooled = attention.out_proj(values)
    layers: Any = head
    out: torch.Tensor = pooled + layers.mlp(layers.layernorm(pooled))
    return out


FAMILY = Siglip
