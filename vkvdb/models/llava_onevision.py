"""LLaVA-OneVision: a SigLIP tower, a projector of two layers, a Qwen2 decoder; the base image's grid.

The image processor sends a *base* image, stretched to the tower's square, and then tiles. The base comes first, so its keys
and values do not depend on the tiles: a capture of the base view runs without them. Where the square is no multiple of
the patch (SigLIP 384 / 14), its last pixels right and below are never seen, and the grid's window ends before them.
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


def _vision(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """(square's side in pixels, cells a side, layer of the tower that the projector reads, from 0)."""
    vision = config["vision_config"]
    side, patch, depth = vision["image_size"], vision["patch_size"], vision["num_hidden_layers"]
    chosen = config.get("vision_feature_layer", -1)
    if not isinstance(chosen, int):
        raise BadOption(option="vision_feature_layer", value=chosen, why="only a single layer is supported")
    # hidden_states[0] is the embedding, hidden_states[i] the output of layer i - 1.
    return side, side // patch, (chosen if chosen >= 0 else depth + 1 + chosen) - 1


class LlavaOnevision:
    version: ClassVar[int] = 1
    checkpoint: ClassVar[bool] = True

    @staticmethod
    def sites(config: Mapping[str, Any]) -> tuple[SiteShape, ...]:
        text = config["text_config"]
        _, _, layer = _vision(config)
        heads = text["num_key_value_heads"]
        dim = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
        shapes = [
            SiteShape(Site("encoder", layer, "hidden"), 1, config["vision_config"]["hidden_size"]),
            SiteShape(Site("projector", 0, "hidden"), 1, text["hidden_size"]),
        ]
        for number in range(text["num_hidden_layers"]):
            shapes += [SiteShape(Site("decoder", number, p), heads, dim) for p in ("key", "key_unrotated", "value")]
            shapes.append(SiteShape(Site("decoder", number, "hidden"), 1, text["hidden_size"]))
        return tuple(shapes)

    @staticmethod
    def cells(config: Mapping[str, Any], processor: Mapping[str, Any], width: int, height: int, square: int | None) -> int:
        return int(_vision(config)[1] ** 2)

    @staticmethod
    def load(checkpoint: Checkpoint, options: LoadOptions) -> Reader:
        return Reader(checkpoint, options)


class Reader:
    """A loaded LLaVA-OneVision checkpoint."""

    def __init__(self, checkpoint: Checkpoint, options: LoadOptions) -> None:
        from transformers import AutoModelForImageTextToText

        from vkvdb.models import _loading, _prompt
        from vkvdb.models._capture import Parts

        if options.view != "base":
            raise BadOption(option="--view", value=options.view, why="llava_onevision has the view base")
        self.name = checkpoint.name
        self.options = options
        self.shapes = {s.site: s for s in checkpoint.sites()}
        self.model = _loading.load_weights(
            checkpoint, options, AutoModelForImageTextToText, lambda m: m.model.language_model
        )
        self.device = str(self.model.device)
        self.parts = Parts(self.model.model, self.model.model.multi_modal_projector, self.model.model.language_model)
        self.tokenizer = _loading.tokenizer_of(checkpoint)
        self.image_processor = _loading.image_processor_of(checkpoint)
        self.side, self.grid, self.tower_layer = _vision(checkpoint.config)
        self.patch = checkpoint.config["vision_config"]["patch_size"]
        self.image_id = self.model.config.image_token_id
        image = self.tokenizer.convert_ids_to_tokens(self.image_id)
        self.head = _prompt.ids_before_and_at(
            self.tokenizer, image=image, image_id=self.image_id, opening="", prefix=options.prefix, name=self.name
        )[:-1]
        self.header = _prompt.rendered(self.tokenizer, image, "", self.name)[0]

    def pixels(self, images: Sequence[PIL.Image.Image]) -> torch.Tensor:
        """Base images (images, 1, 3, side, side) as the checkpoint's own processor makes them, tiles left away."""
        import torch

        if self.options.square:
            images = [i.resize((self.options.square, self.options.square), 3) for i in images]
        # One pinpoint of the base's own size: the processor then makes the base and a single tile, the least it can.
        made = self.image_processor(
            list(images), image_grid_pinpoints=[[self.side, self.side]], return_tensors="pt"
        )["pixel_values"]
        return torch.as_tensor(made)[:, :1].to(self.device, self.model.dtype)

    def block(self, images: Sequence[PIL.Image.Image]) -> Any:
        """The inputs of one forward pass over the base images, all of one length, and where their tokens lie."""
        import torch

        from vkvdb.models._capture import Block

        cells = self.grid * self.grid
        count = len(images)
        # The base's cells and the newline that transformers appends to an image without tiles.
        ids = torch.tensor([self.head + [self.image_id] * (cells + 1)] * count, device=self.device)
        sizes = torch.tensor([[i.height, i.width] for i in images])
        positions = tuple(range(len(self.head), len(self.head) + cells))
        seen = self.grid * self.patch / self.side
        grids = tuple(
            TokenGrid(self.grid, self.grid, (0.0, 0.0, i.width * seen, i.height * seen), positions) for i in images
        )
        inputs = {
            "input_ids": ids,
            "pixel_values": self.pixels(images),
            "image_sizes": sizes,
            # "More than one image in a sample" is how transformers is told that there are no tiles.
            "batch_num_images": torch.tensor([max(count, 2)]),
        }
        vision = tuple(torch.arange(n * cells, (n + 1) * cells) for n in range(count))
        return Block(inputs, tuple(range(count)), grids, vision)

    def capture(self, images: Sequence[PIL.Image.Image], sites: Sequence[Site]) -> list[tuple[TokenGrid, Stacks]]:
        from vkvdb.models._capture import plain_rotation, read_block

        return read_block(
            self.parts,
            self.block(images),
            [self.shapes[s] for s in sites],
            name=self.name,
            rotation=plain_rotation,
            tower_layer=self.tower_layer,
        )

    def text(self, words: str, sites: Sequence[Site]) -> dict[Site, torch.Tensor]:
        """The chat header, no image, the words; the tower has no text side, so its site is left out."""
        import torch

        from vkvdb.models import _prompt
        from vkvdb.models._capture import plain_rotation, read_text

        ids = _prompt.encode(self.tokenizer, self.header + words)
        embeddings = self.model.get_input_embeddings()(torch.tensor([ids], device=self.device))
        return read_text(self.parts.decoder, embeddings, sites, plain_rotation)


FAMILY = LlavaOnevision
