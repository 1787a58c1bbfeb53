"""CLIP, a stand-alone encoder with a text side: patch tokens after every layer, the class token dropped.

Layer n of n is the last layer's output after the final layer norm. The site of the projector is the space that text
lives in, as MaskCLIP reads it: each patch token sent through the last layer as if it attended to itself alone (value
and output projection in place of attention), then final norm and visual projection; to be compared with the projected
text embedding. Images go through the checkpoint's own processor, which crops their centre: the grid's window follows.
`--square N` stretches the whole image instead. So LLaVA-1.5's tower is CLIP as it is, and LLaVA-NeXT's base image is
CLIP with `--square 336`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vkvdb.errors import BadOption
from vkvdb.models._token_map import BASE, Panel, TokenMap, processed, stretched
from vkvdb.types import LoadOptions, Site, SiteShape, Stacks, TokenGrid

if TYPE_CHECKING:
    import PIL.Image
    import torch

    from vkvdb.models._checkpoint import Checkpoint

TEXT_SPACE = Site("projector", 0, "hidden")


def _grid(
    config: Mapping[str, Any], processor: Mapping[str, Any], width: int, height: int, square: int | None
) -> TokenGrid:
    """The grid of an image of that size; a stand-alone encoder has no sequence, so it has no positions."""
    patch = config["vision_config"]["patch_size"]
    if square is None:
        panel = processed(width, height, processor, patch)
    elif square < patch:
        raise BadOption(option="--square", value=square, why=f"a patch is {patch} pixels")
    else:
        panel = Panel(BASE, stretched(width, square, patch), stretched(height, square, patch))
    whole = TokenMap(width, height, (panel,)).grid(BASE)
    return TokenGrid(whole.rows, whole.cols, whole.window)


class Clip:
    """Every layer of the tower, and the space that text lives in."""

    version: ClassVar[int] = 1
    checkpoint: ClassVar[bool] = True
    views: ClassVar[tuple[str, ...]] = ("base",)
    silent: ClassVar[Mapping[str, str]] = {"encoder": "words lie in the space of the pooled image: see stage projector"}

    @staticmethod
    def sites(config: Mapping[str, Any]) -> tuple[SiteShape, ...]:
        vision = config["vision_config"]
        depth, dim = vision["num_hidden_layers"], vision["hidden_size"]
        layers = tuple(SiteShape(Site("encoder", n, "hidden"), 1, dim) for n in range(depth + 1))
        return (*layers, SiteShape(TEXT_SPACE, 1, config["projection_dim"]))

    @staticmethod
    def cells(
        config: Mapping[str, Any],
        processor: Mapping[str, Any],
        width: int,
        height: int,
        square: int | None,
        *,
        view: str = BASE,
    ) -> int:
        grid = _grid(config, processor, width, height, square)
        return grid.rows * grid.cols

    @staticmethod
    def load(checkpoint: Checkpoint, options: LoadOptions) -> Reader:
        return Reader(checkpoint, options)


class Reader:
    """A loaded CLIP checkpoint."""

    def __init__(self, checkpoint: Checkpoint, options: LoadOptions) -> None:
        from transformers import AutoModel

        from vkvdb.models import _loading

        _loading.refuse_prompts(checkpoint, options)
        _grid(checkpoint.config, checkpoint.processor, 1, 1, options.square)  # raises before weights are read
        self.name = checkpoint.name
        self.config = checkpoint.config
        self.processor = checkpoint.processor
        self.square = options.square
        self.shapes = {s.site: s for s in checkpoint.sites()}
        self.model = _loading.load_weights(checkpoint, options, AutoModel, None)
        self.device = str(self.model.device)
        self.image_processor = _loading.image_processor_of(checkpoint)
        self.tokenizer = _loading.plain_tokenizer_of(checkpoint)

    def pixels(self, images: Sequence[PIL.Image.Image]) -> torch.Tensor:
        """(images, 3, height, width) as the checkpoint's own processor makes them, or stretched to a square."""
        side = {"height": self.square, "width": self.square}
        own = {"size": side, "do_center_crop": False} if self.square else {}
        made: torch.Tensor = self.image_processor(list(images), return_tensors="pt", **own)["pixel_values"]
        return made.to(self.device, self.model.dtype)

    def capture(self, images: Sequence[PIL.Image.Image], sites: Sequence[Site]) -> list[tuple[TokenGrid, Stacks]]:
        import torch

        from vkvdb.models._capture import check_finite, of

        vision = self.model.vision_model
        pixels = self.pixels(images)
        resized = pixels.shape[-1] != self.config["vision_config"]["image_size"]
        with torch.inference_mode():
            hidden = vision(pixels, output_hidden_states=True, interpolate_pos_encoding=resized).hidden_states
            states = {Site("encoder", n, "hidden"): s for n, s in enumerate(hidden[1:])}
            states[Site("encoder", len(hidden) - 1, "hidden")] = vision.post_layernorm(hidden[-1])
            if TEXT_SPACE in sites:
                alone = _value_path(vision.encoder.layers[-1], hidden[-2])
                states[TEXT_SPACE] = self.model.visual_projection(vision.post_layernorm(alone))
        shapes = [self.shapes[s] for s in sites]
        read = []
        for n, image in enumerate(images):
            grid = _grid(self.config, self.processor, image.width, image.height, self.square)
            # The first token is the class token.
            tokens = {s: states[s][n, 1:].unflatten(0, (1, grid.rows, grid.cols)).cpu() for s in sites}
            stacks = of(tokens, shapes)
            check_finite(stacks, self.name, n)
            read.append((grid, stacks))
        return read

    def text(self, words: str, sites: Sequence[Site]) -> dict[Site, torch.Tensor]:
        """The projected text embedding, at the projector's site alone."""
        import torch

        if TEXT_SPACE not in sites:
            return {}
        length = self.config["text_config"]["max_position_embeddings"]
        ids = self.tokenizer(words, truncation=True, max_length=length, return_tensors="pt")
        with torch.inference_mode():
            pooled = self.model.text_model(input_ids=ids["input_ids"].to(self.device)).pooler_output
            projected: torch.Tensor = self.model.text_projection(pooled)
        return {TEXT_SPACE: projected.cpu()}


def _value_path(layer: Any, states: torch.Tensor) -> torch.Tensor:
    """What a layer would give if each token attended to itself alone: (images, tokens, dim)."""
    attention = layer.self_attn
    attended = states + attention.out_proj(attention.v_proj(layer.layer_norm1(states)))
    out: torch.Tensor = attended + layer.mlp(layer.layer_norm2(attended))
    return out


FAMILY = Clip
