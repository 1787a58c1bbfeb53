"""`MODEL@blank`: a grey image in place of every image. What still scores does not look at the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vkvdb.types import Model, Prefixing, Site, Stacks, Text, TokenGrid

if TYPE_CHECKING:
    import PIL.Image
    import torch

GREY = (127, 127, 127)


class Blank:
    """Wraps a model and shows it grey images of the same sizes."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.device = model.device
        # Blocks of equal sizes hold the same images, so they are run once; most datasets have few sizes or one.
        self._last: tuple[object, list[tuple[TokenGrid, Stacks]]] | None = None

    def capture(self, images: Sequence[PIL.Image.Image], sites: Sequence[Site]) -> list[tuple[TokenGrid, Stacks]]:
        from PIL import Image

        key = (tuple(i.size for i in images), tuple(sites))
        if self._last is None or self._last[0] != key:
            self._last = (key, self.model.capture([Image.new("RGB", i.size, GREY) for i in images], sites))
        return self._last[1]

    def capture_after(
        self, texts: Sequence[Text], images: Sequence[PIL.Image.Image], sites: Sequence[Site]
    ) -> list[tuple[TokenGrid, Stacks]]:
        """The texts are not blanked."""
        from PIL import Image

        assert isinstance(self.model, Prefixing)
        return self.model.capture_after(texts, [Image.new("RGB", i.size, GREY) for i in images], sites)

    def text(self, words: str, sites: Sequence[Site]) -> dict[Site, torch.Tensor]:
        """The words are not blanked."""
        return self.model.text(words, sites)

    def key_bias(self, layer: int) -> torch.Tensor | None:
        """The model's own."""
        model: Any = self.model
        bias: torch.Tensor | None = model.key_bias(layer)
        return bias
