"""Semantic correspondence: keypoints carried from one image to another by nearest neighbours of image tokens.

Protocol. For every site and head, the token at each source keypoint is compared by cosine with the target's tokens, and
the nearest neighbour is the prediction [S: Liu et al. 2025, arXiv 2510.04819]. It is right within `alpha` times the
longer side of the target's box. `readout=grid`, the default, is just that: the token of the cell that holds the
keypoint, the centre of the best cell. `readout=dift` is the protocol that the field's published figures follow [C:
eval_spair.py of DIFT, Tang et al. 2023]: both images' features upsampled bilinearly to image size, the best pixel
taken. It takes many times as long, since every pixel is a candidate, so it is for calibrating against such figures.

Where we depart. [D] Nothing is upsampled but scalars: products with upsampled features are upsampled products, and the
norm of an interpolated token follows from the products of neighbouring cells; the result is the same pixel. [D] The
grid's window, not the image, is what features cover: points outside it, of source or target, count as wrong, and pixels
outside the image (where a model pads) are no candidates. A source keypoint is read where it lies, DIFT's at its pixel's
centre, which is the same for whole pixels.

Metrics. `pck_image`: the share of a pair's right points, every pair the same weight. `pck_point`: the same share,
weighted by the pair's points. Rows beside the model's: floor.0.position predicts the same place relative to the image,
ceiling.0.truth the truth after the readout's own rounding (the centre of its cell, or of its pixel).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from vkvdb.errors import BadOption
from vkvdb.metrics import Floats, between, inside, longer_side, right_points
from vkvdb.samples import ImagePair, Sample
from vkvdb.tasks._tokens import at_once, float32, like, pieces, room, with_all_heads
from vkvdb.types import CEILING, POSITION, Capture, Needs, Panel, Scores, Site, TokenGrid

if TYPE_CHECKING:
    from torch import Tensor

READOUTS = ("grid", "dift")


@dataclass(frozen=True)
class Correspondence:
    """Keypoints carried by nearest neighbours.

    alpha: the tolerance as a share of the longer side of the target's box, above 0 and at most 1.
    readout: `grid` (best cell) or `dift` (best pixel of bilinearly upsampled features).
    """

    version: ClassVar[int] = 1
    takes: ClassVar[type[Sample]] = ImagePair
    metrics: ClassVar[tuple[str, ...]] = ("pck_image", "pck_point")

    alpha: float = 0.1
    readout: str = "grid"

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise BadOption(option="-p", value=f"alpha {self.alpha}", why="it must be above 0 and at most 1")
        if self.readout not in READOUTS:
            raise BadOption(option="-p", value=f"readout {self.readout}", why=f"there are: {', '.join(READOUTS)}")

    def title(self, sample: ImagePair) -> str:
        """What charts must say of pairs that are an image and its own warp."""
        return "self-warp (geometric), not semantic" if sample.group == "self-warp" else ""

    def needs(self, sample: ImagePair) -> Needs:
        return Needs(sample.images())

    def score(self, sample: ImagePair, captures: Mapping[str, Capture], texts: Mapping[str, Any]) -> Iterator[Scores]:
        source, target = captures[sample.source], captures[sample.target]
        points = np.array(sample.source_points, dtype=np.float64).reshape(-1, 2)
        truth = np.array(sample.target_points, dtype=np.float64).reshape(-1, 2)
        seen = inside(points, source.grid) & inside(truth, target.grid)
        side = longer_side(sample.target_box)

        def rows(sites: tuple[Site, ...], predicted: Floats) -> Iterator[Scores]:
            share = (right_points(predicted, truth, side, self.alpha) & seen).mean(-1)
            yield Scores("pck_image", sites, share)
            yield Scores("pck_point", sites, share, weight=float(len(truth)))

        readout = self._readout(source, target, points)
        for of_source, of_target in zip(source.stacks, target.stacks, strict=True):
            assert of_source.sites == of_target.sites
            yield from rows(of_source.sites, _predict(readout, of_source.tokens, of_target.tokens))
        yield from rows((POSITION,), _same_place(points, source, target)[None, None])
        yield from rows((CEILING,), readout.rounded(truth)[None, None])

    def _readout(self, source: Capture, target: Capture, points: Floats) -> _Pixels | _Cells:
        return (_Pixels if self.readout == "dift" else _Cells)(source, target, points)

    def picture(
        self, sample: ImagePair, captures: Mapping[str, Capture], texts: Mapping[str, Any]
    ) -> tuple[Panel, ...]:
        """The source's points, and beside it where they are found in the target."""
        source, target = captures[sample.source], captures[sample.target]
        points, truth = np.array(sample.source_points, np.float64), np.array(sample.target_points, np.float64)
        of_source, of_target = source.stacks[0].tokens, target.stacks[0].tokens
        found = _predict(self._readout(source, target, points), of_source, of_target)[0, 0]
        right = right_points(found, truth, longer_side(sample.target_box), self.alpha)
        right &= inside(points, source.grid) & inside(truth, target.grid)
        return (
            Panel(sample.source, "source", points=sample.source_points),
            Panel(
                sample.target,
                f"target: {right.sum()} of {len(right)} right",
                points=found.tolist(),
                right=right.tolist(),
                true_points=sample.target_points,
            ),
        )


def _predict(readout: _Pixels | _Cells, source: Tensor, target: Tensor) -> Floats:
    """Predictions (sites, heads + 1, points, 2) in pixels, for tokens (sites, heads, rows, cols, dim)."""
    each, most = target[0].numel() * readout.copies, readout.most(target)
    found = [readout.match(source[piece], target[piece]) for piece in pieces(len(target), each, most)]
    return np.concatenate(found)


class _Cells:
    """`readout=grid`: one cell against all cells."""

    copies = 1
    most = staticmethod(at_once)  # tokens are read twice, for products and for lengths

    def __init__(self, source: Capture, target: Capture, points: Floats) -> None:
        self.grid = target.grid
        self.at = _cell_of(points, source.grid)
        rows, cols = np.divmod(np.arange(self.grid.rows * self.grid.cols), self.grid.cols)
        self.centres = np.stack(self.grid.centre(rows, cols), -1)
        x0, y0, x1, y1 = _frame(target)
        x, y = self.centres[:, 0], self.centres[:, 1]
        self.outside = ~((x >= x0) & (x < x1) & (y >= y0) & (y < y1))

    def match(self, source: Tensor, target: Tensor) -> Floats:
        """Centres (sites, heads + 1, points, 2) of the cells nearest in token to those that hold the points."""
        import torch

        asked = source.flatten(2, 3)[:, :, torch.as_tensor(self.at, device=source.device)].float()
        tokens = target.float().contiguous().flatten(2, 3)
        products = with_all_heads(asked @ tokens.transpose(2, 3))
        squares = with_all_heads(torch.linalg.vector_norm(tokens, dim=-1).square_())
        # The asked token's own length is the same for all cells: it decides nothing.
        cosines = products * squares.clamp_min(1e-24).rsqrt()[:, :, None]
        cosines[..., torch.as_tensor(self.outside, device=target.device)] = -torch.inf
        best: Floats = self.centres[cosines.argmax(-1).cpu().numpy()]
        return best

    def rounded(self, truth: Floats) -> Floats:
        """The centres of the cells that hold the points."""
        rounded: Floats = self.centres[_cell_of(truth, self.grid)]
        return rounded


class _Pixels:
    """`readout=dift`: one interpolated token against those of all pixels."""

    copies = 3
    most = staticmethod(room)

    def __init__(self, source: Capture, target: Capture, points: Floats) -> None:
        from vkvdb.tasks._nearest import Pixels

        u, v = source.grid.to_grid(points[:, 0], points[:, 1])
        upper, lower, down = between(v, source.grid.rows)
        left, right, across = between(u, source.grid.cols)
        self.corners = np.stack([row * source.grid.cols + col for row in (upper, lower) for col in (left, right)])
        self.shares = np.stack([row * col for row in (1 - down, down) for col in (1 - across, across)])
        self.pixels = Pixels(target.grid, target.size)

    def match(self, source: Tensor, target: Tensor) -> Floats:
        """Centres (sites, heads + 1, points, 2) of the pixels nearest in token to the points."""
        import torch

        from vkvdb.tasks._nearest import neighbour_products

        tokens, cells = float32(target), source.flatten(2, 3)
        corners = torch.as_tensor(self.corners, device=tokens.device)
        shares = like(self.shares, tokens)[:, :, None]
        asked = torch.stack([cells[:, :, at].float() * share for at, share in zip(corners, shares, strict=True)]).sum(0)
        products = with_all_heads(asked @ tokens.flatten(2, 3).transpose(2, 3))
        squares = with_all_heads(neighbour_products(tokens))
        found = self.pixels.nearest(products.reshape(-1, len(corners[0]), *target.shape[2:4]), squares.flatten(0, 1))
        return found.reshape(*products.shape[:3], 2)

    def rounded(self, truth: Floats) -> Floats:
        """The centres of the pixels that hold the points."""
        rounded: Floats = np.floor(truth) + 0.5
        return rounded


def _cell_of(points: Floats, grid: TokenGrid) -> npt.NDArray[np.int64]:
    """Flat index (n,) of the cell that holds each point (n, 2), the nearest one for points outside."""
    u, v = grid.to_grid(points[:, 0], points[:, 1])
    row, col = np.clip(np.floor(v), 0, grid.rows - 1), np.clip(np.floor(u), 0, grid.cols - 1)
    flat: npt.NDArray[np.int64] = (row * grid.cols + col).astype(np.int64)
    return flat


def _frame(capture: Capture) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the image; of the grid's window where the image's size is not known."""
    if capture.size is None:
        return capture.grid.window
    return 0.0, 0.0, float(capture.size[0]), float(capture.size[1])


def _same_place(points: Floats, source: Capture, target: Capture) -> Floats:
    """Points (n, 2) of the source at the same place of the target, relative to the images."""
    (x0, y0, x1, y1), (u0, v0, u1, v1) = _frame(source), _frame(target)
    place: Floats = (points - [x0, y0]) / [x1 - x0, y1 - y0] * [u1 - u0, v1 - v0] + [u0, v0]
    return place


TASK = Correspondence
