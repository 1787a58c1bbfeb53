"""Global treatments of an image: the toy world's art styles.

Integer arithmetic throughout, as everywhere in the toy world's drawing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

STYLES = ("photo", "poster", "halftone", "pastel", "night", "mosaic")
"""The first is no treatment at all."""

_ORDERED = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]], dtype=np.int64) * 16 + 8
"""Thresholds of ordered dithering, 4 x 4."""


def apply_style(image: npt.NDArray[np.int64], style: str) -> npt.NDArray[np.int64]:
    """`image` (height, width, 3), values 0..255, treated in `style`; both sides must be multiples of four."""
    height, width, channels = image.shape
    if style == "photo":
        return image
    if style == "poster":
        return image // 80 * 80 + 40
    if style == "halftone":
        thresholds = np.tile(_ORDERED, (height // 4, width // 4))[..., None]
        return np.asarray((image + np.where(image > thresholds, 255, 0)) // 2, dtype=np.int64)
    if style == "pastel":
        return image * 2 // 5 + 145
    if style == "night":
        return np.asarray(image * 2 // 5 + np.array([0, 0, 45]), dtype=np.int64)
    if style == "mosaic":
        blocks = image.reshape(height // 4, 4, width // 4, 4, channels).sum(axis=(1, 3)) // 16
        rows: npt.NDArray[np.int64] = np.repeat(blocks, 4, axis=0)
        return np.repeat(rows, 4, axis=1)
    raise ValueError(f"unknown style {style!r}; known: {', '.join(STYLES)}")
