"""The picture of all keys: layers x heads, each panel the token grid of an image in the colours of three components.

As Liu et al.'s Figure 4 [P]. The components are the first three principal ones of the tokens of all images of the
picture together, so that a place has the same colour where it has the same key; input-agnostic ones look alike in every
image, and are outlined. Each component runs from its 2nd to its 98th percentile over these tokens, in red, green and
blue [D].
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vkvdb.types import Capture

if TYPE_CHECKING:
    import PIL.Image

Floats = npt.NDArray[np.float64]

PANEL = 48  # pixels of a panel's longer side, at least
_GAP, _MARGIN, _TEXT = 6, 14, 13
_INK, _OUTLINE, _PAPER = (51, 51, 51), (213, 94, 0), (255, 255, 255)


def colours(tokens: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[np.uint8]]:
    """RGB (rows, cols, 3) of each image's tokens (rows, cols, dim): their first three principal components together.

    A component that does not vary is mid-grey. Signs are such that the largest weight of a component is positive.
    """
    flat: Floats = np.concatenate([t.reshape(-1, t.shape[-1]) for t in tokens]).astype(np.float64)
    centred = flat - flat.mean(0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    main = axes[:, ::-1][:, :3]
    main = main * np.sign(main[np.abs(main).argmax(0), range(main.shape[1])])
    parts = centred @ main
    parts = np.pad(parts, ((0, 0), (0, 3 - parts.shape[1])))
    low, high = np.percentile(parts, [2, 98], axis=0)
    # What is smaller than rounding of the keys themselves is no variation.
    varies = high - low > 1e-5 * np.abs(flat).max(initial=0.0)
    scaled = np.where(varies, (parts - low) / np.where(varies, high - low, 1.0), 0.5)
    pixels = (scaled.clip(0, 1) * 255).round().astype(np.uint8)
    ends = np.cumsum([t.shape[0] * t.shape[1] for t in tokens])[:-1]
    return [p.reshape(*t.shape[:2], 3) for p, t in zip(np.split(pixels, ends), tokens, strict=True)]


def mosaic(
    captures: Sequence[Capture],
    images: Sequence[PIL.Image.Image],
    *,
    part: str = "key_unrotated",
    outlined: Collection[tuple[int, int]] = (),
    words: str = "",
) -> PIL.Image.Image:
    """The picture of some images' keys, an image's panels below the other's, layers from left to right, heads downward.

    `captures` hold the decoder's tokens of `part`; `outlined` are (layer, head)s, and `words` say of
    them what stands below. Grids may differ.
    """
    from PIL import Image, ImageDraw, ImageFont

    sites = sorted(s for s in captures[0].tokens if s.stage == "decoder" and s.part == part)
    heads = captures[0].tokens[sites[0]].shape[0]
    sizes = [_panel(c.grid.rows, c.grid.cols) for c in captures]
    wide = max(w for w, _ in sizes)
    left = _MARGIN + 2 * wide + 3 * _TEXT
    tops, height = [], _MARGIN + 2 * _TEXT
    for _, tall in sizes:
        tops.append(height)
        height += heads * (tall + _GAP) + 2 * _GAP
    width = left + len(sites) * (wide + _GAP) + _MARGIN
    font = ImageFont.load_default(_TEXT)
    told = f"{part} of every layer and KV head: three principal components as red, green and blue; {words}"
    lines = textwrap.wrap(told, max(20, (width - 2 * _MARGIN) // (_TEXT // 2)))
    paper = Image.new("RGB", (width, height + len(lines) * (_TEXT + 4) + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(paper)
    draw.text((left - _GAP, _MARGIN), "head, layer", _INK, font, anchor="ra")
    draw.multiline_text((_MARGIN, height), "\n".join(lines), _INK, font)
    for image, top, (_, tall) in zip(images, tops, sizes, strict=True):
        shown = image.copy()
        shown.thumbnail((2 * wide - _GAP, heads * (tall + _GAP)))
        paper.paste(shown, (_MARGIN, top))
        for head in range(heads):
            middle = top + head * (tall + _GAP) + tall // 2
            draw.text((left - _GAP, middle), str(head), _INK, font, anchor="rm")
    for column, site in enumerate(sites):
        x = left + column * (wide + _GAP)
        draw.text((x + wide // 2, _MARGIN), str(site.layer), _INK, font, anchor="ma")
        stacks = [capture.tokens[site].float().cpu().numpy() for capture in captures]
        for head in range(heads):
            panels = colours([stack[head] for stack in stacks])
            for panel, top, size in zip(panels, tops, sizes, strict=True):
                y = top + head * (size[1] + _GAP)
                paper.paste(Image.fromarray(panel).resize(size, Image.Resampling.NEAREST), (x, y))
                if (site.layer, head) in outlined:
                    frame = (x - 3, y - 3, x + size[0] + 2, y + size[1] + 2)
                    draw.rectangle(frame, outline=_OUTLINE, width=2)
    return paper


def _panel(rows: int, cols: int) -> tuple[int, int]:
    """(width, height) of a panel in pixels: cells are squares of whole pixels."""
    cell = max(1, -(-PANEL // max(rows, cols)))
    return cols * cell, rows * cell
