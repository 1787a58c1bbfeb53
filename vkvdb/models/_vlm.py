"""What the vision-language families share, and how each says in what it differs. Imports nothing heavy.

A family is a class without instances. It lays an image's tokens out (`panels`), makes the inputs of a block (`inputs`),
and finds the modules that are read (`parts`); loading, prompts and reading are the same for all
(`vkvdb.models._reader`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from vkvdb.errors import BadOption
from vkvdb.models._token_map import BASE, Panel, TokenMap
from vkvdb.types import LoadOptions, Site, SiteShape

if TYPE_CHECKING:
    import PIL.Image

    from vkvdb.models._capture import Gather, Parts
    from vkvdb.models._checkpoint import Checkpoint
    from vkvdb.models._reader import Reader


@dataclass(frozen=True)
class Seen:
    """What a family makes of a block's images, all prompts' images one after another.

    `pixels` are inputs of the model's body, `tower[i]` where image i lies in the tower's output, and `settings` what
    must stand in the model's configuration meanwhile.
    """

    pixels: dict[str, Any]
    tower: tuple[Gather, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)


class Vlm:
    """A vision-language family, LLaVA's kind unless it says otherwise: tower, projector of two layers, decoder."""

    version: ClassVar[int] = 1
    checkpoint: ClassVar[bool] = True
    views: ClassVar[tuple[str, ...]] = (BASE,)
    silent: ClassVar[Mapping[str, str]] = {"encoder": "the tower comes without its text side: score its encoder"}
    processor_class: ClassVar[str] = ""  # transformers' own
    opening: ClassVar[str] = ""  # what the chat template writes right before an image's placeholder

    # --- told from the configuration alone ---

    @classmethod
    def sites(cls, config: Mapping[str, Any]) -> tuple[SiteShape, ...]:
        text = config["text_config"]
        heads = text["num_key_value_heads"]
        dim = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
        shapes = [
            SiteShape(Site("encoder", cls.tower_layer(config), "hidden"), 1, cls.tower_dim(config)),
            SiteShape(Site("projector", 0, "hidden"), 1, text["hidden_size"]),
        ]
        for number in range(text["num_hidden_layers"]):
            shapes += [SiteShape(Site("decoder", number, p), heads, dim) for p in ("key", "key_unrotated", "value")]
            shapes.append(SiteShape(Site("decoder", number, "hidden"), 1, text["hidden_size"]))
        return tuple(shapes)

    @classmethod
    def cells(
        cls,
        config: Mapping[str, Any],
        processor: Mapping[str, Any],
        width: int,
        height: int,
        square: int | None,
        *,
        view: str = BASE,
    ) -> int:
        panel = cls.token_map(config, processor, width, height, square=square, whole=view != BASE).panel(view)
        return len(panel.x) * len(panel.y)

    @classmethod
    def token_map(
        cls,
        config: Mapping[str, Any],
        processor: Mapping[str, Any],
        width: int,
        height: int,
        *,
        square: int | None = None,
        alone: bool = True,
        whole: bool = True,
    ) -> TokenMap:
        """What each position of an image is, in the order of the sequence.

        `alone` is whether the prompt has no other image, `whole` whether the model sees all that its processor makes of
        one: a capture of the base view leaves the tiles away, which come after it.
        """
        shown = (square, square) if square else (width, height)
        panels = cls.panels(config, processor, *shown, alone=alone, whole=whole)
        return TokenMap(*shown, panels).scaled_to(width, height)

    @staticmethod
    def panels(
        config: Mapping[str, Any], processor: Mapping[str, Any], width: int, height: int, *, alone: bool, whole: bool
    ) -> tuple[Panel, ...]:
        """The panels of an image of that size."""
        raise NotImplementedError

    @staticmethod
    def tower_layer(config: Mapping[str, Any]) -> int:
        """The layer of the tower that the projector is given, from 0."""
        chosen, depth = config.get("vision_feature_layer", -1), config["vision_config"]["num_hidden_layers"]
        if not isinstance(chosen, int):
            raise BadOption(option="vision_feature_layer", value=chosen, why="only a single layer is supported")
        # hidden_states[0] is the embedding, hidden_states[i] the output of layer i - 1.
        return (chosen if chosen >= 0 else depth + 1 + chosen) - 1

    @staticmethod
    def tower_dim(config: Mapping[str, Any]) -> int:
        """The width of a cell of the tower's output."""
        return int(config["vision_config"]["hidden_size"])

    @staticmethod
    def place(start: int, position: int, row: int, col: int) -> tuple[int, ...]:
        """Where the rotation puts a cell of a prompt's first image, which begins at `start`: one number an axis.

        Used to check what the model does, never to tell it.
        """
        return (position,)

    # --- with the model at hand ---

    @classmethod
    def load(cls, checkpoint: Checkpoint, options: LoadOptions) -> Reader:
        from vkvdb.models._reader import Reader

        return Reader(cls, checkpoint, options)

    @classmethod
    def parts(cls, model: Any, config: Mapping[str, Any]) -> Parts:
        """The modules to read."""
        from vkvdb.models._capture import Parts

        body = model.model
        return Parts(body, body.multi_modal_projector, body.language_model, cls.tower_layer(config))

    @staticmethod
    def inputs(reader: Reader, prompts: Sequence[Sequence[PIL.Image.Image]], view: str, *, whole: bool) -> Seen:
        """Pixels of the images of some prompts, as the checkpoint's own processor makes them."""
        raise NotImplementedError

    @staticmethod
    def position_inputs(reader: Reader, inputs: dict[str, Any]) -> dict[str, Any]:
        """What tells the decoder its positions, beyond ids and mask; nothing where they are simply counted."""
        return {}


def tower_grid(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """(square's side in pixels, patch in pixels, cells a side) of a tower of fixed size."""
    side, patch = config["vision_config"]["image_size"], config["vision_config"]["patch_size"]
    return side, patch, side // patch
