"""The pixel whose interpolated token is nearest to a given one: exact, without interpolating tokens.

Bilinear upsampling is linear, so the products with upsampled tokens are the upsampled products; and the squared length
of an interpolated token is a sum over products of neighbouring cells. So a pixel's cosine is a quotient of two
upsampled maps. Each row of pixels is cut into stretches where it passes a column of cells' centres: there the product
is a + b s, and the squared length p + 2 q s + r s^2, for s from 0 to 1. The first pixels of all stretches are compared,
then the second ones, and so on, so that nothing larger than (pixel rows, stretches) is ever made of a point.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vkvdb.metrics import Floats, bilinear, pixels_seen
from vkvdb.tasks._tokens import at_once, like, pieces
from vkvdb.types import TokenGrid

_COPIES = 4  # tensors of (points, stretches, pixel rows) that are alive at a time


class Pixels:
    """The pixels of an image that a grid covers. Without a size the image ends where the grid's window does."""

    def __init__(self, grid: TokenGrid, size: tuple[int, int] | None) -> None:
        width, height = size or (None, None)
        left, top, right, bottom = grid.window
        xs, ys = pixels_seen(left, right, width) + 0.5, pixels_seen(top, bottom, height) + 0.5
        # In units of cells from the first centre. Beyond the outermost centres pixels are equal: one of them is enough.
        across, x = np.unique(np.clip(grid.to_grid(xs, 0.0)[0] - 0.5, 0, grid.cols - 1), return_index=True)
        down, y = np.unique(np.clip(grid.to_grid(0.0, ys)[1] - 0.5, 0, grid.rows - 1), return_index=True)
        self.xs, self.ys, self.down = xs[x], ys[y], bilinear(down + 0.5, grid.rows)
        # Stretch j lies between the columns left_j and right_j; its pixel k is pixels[k, j], at the share shares[k, j]
        # of the way. A stretch with fewer pixels than others repeats its last.
        column = np.minimum(across, max(grid.cols - 2, 0)).astype(np.int64)
        self.left, first, count = np.unique(column, return_index=True, return_counts=True)
        self.right = np.minimum(self.left + 1, grid.cols - 1)
        self.pixels = first + np.minimum(np.arange(count.max())[:, None], count - 1)
        self.shares = across[self.pixels] - self.left

    def nearest(self, products: Tensor, squares: Tensor) -> Floats:
        """Centres (n, points, 2) of the pixels whose tokens have the largest cosine; of equals, one.

        `products` (n, points, rows, cols) are the cells' with the tokens asked for, `squares` what `neighbour_products`
        gives. The length of the token asked for decides nothing and is left out.
        """
        rows, cols = products.shape[2:]
        shortest = _shortest(squares[:, :rows, :cols])
        each = _COPIES * len(self.ys) * len(self.left)
        best = products.new_empty(2, *products.shape[:2], dtype=torch.int64)
        for piece in pieces(len(products), each * products.shape[1], at_once(products)):
            lengths = _Lengths(self, squares[piece], shortest[piece])
            for some in pieces(products.shape[1], each * len(shortest[piece]), at_once(products)):
                best[:, piece, some] = lengths.best(products[piece, some])
        x, y = best.cpu().numpy()
        return np.stack([self.xs[x], self.ys[y]], -1)


class _Lengths:
    """The lengths of the interpolated tokens of some heads, and what is nearest by them.

    Tensors are (..., stretches, pixel rows): so both ends of all stretches are views of one product.
    """

    def __init__(self, pixels: Pixels, squares: Tensor, shortest: Tensor) -> None:
        self.down = like(pixels.down, squares).t()
        self.left, self.right = _range(pixels.left), _range(pixels.right)
        self.pixels = torch.as_tensor(pixels.pixels, device=squares.device)
        # Rows share their shares, but written out, as (slots, stretches, pixel rows), they are read faster.
        self.shares = like(pixels.shares, squares)[:, :, None].repeat(1, 1, self.down.shape[1])
        cols = (squares.shape[-1] + 1) // 2
        lines = squares.transpose(1, 2) @ like(_pairs(pixels.down), squares).t()
        at_left, at_right = lines[:, self.left], lines[:, self.right]
        between = lines[:, cols:][:, self.left] / 2 if cols > 1 else at_left
        q, r = between - at_left, at_left - 2 * between + at_right
        lengths = (r[:, None] * self.shares).add_(2 * q[:, None]).mul_(self.shares).add_(at_left[:, None])
        self.inverse = lengths.maximum(shortest[:, None]).rsqrt_()

    def best(self, products: Tensor) -> Tensor:
        """Pixel column and row (2, n, points) of the largest cosine, for products (n, points, rows, cols)."""
        count, points = products.shape[:2]
        lines = torch.bmm(products.flatten(0, 1).transpose(1, 2), self.down.expand(count * points, -1, -1))
        lines = lines.view(count, points, *lines.shape[1:])
        a = lines[:, :, self.left]
        b = lines[:, :, self.right] - a
        largest = torch.addcmul(a, b, self.shares[0]).mul_(self.inverse[:, None, 0])
        cosines = torch.empty_like(largest)
        for slot in range(1, len(self.shares)):
            torch.addcmul(a, b, self.shares[slot], out=cosines)
            torch.maximum(largest, cosines.mul_(self.inverse[:, None, slot]), out=largest)
        flat = largest.flatten(2).argmax(-1)
        stretch, row = flat // largest.shape[3], flat % largest.shape[3]
        head, point = torch.meshgrid(*(torch.arange(n, device=flat.device) for n in flat.shape), indexing="ij")
        a, b = (part[head, point, stretch, row][..., None] for part in (a, b))
        cosines = (a + b * self.shares[:, stretch, 0].movedim(0, -1)) * self.inverse[head, :, stretch, row]
        return torch.stack([self.pixels[cosines.argmax(-1), stretch], row])


def _range(indices: npt.NDArray[np.int64]) -> slice | list[int]:
    """Increasing indices as a slice where they are one, which makes no copy: where there are more pixels than cells."""
    first, last = int(indices[0]), int(indices[-1])
    return slice(first, last + 1) if last - first == len(indices) - 1 else indices.tolist()


def neighbour_products(tokens: Tensor) -> Tensor:
    """What squared lengths of interpolated tokens are made of, for (sites, heads, rows, cols, dim).

    With weights a over rows and b over columns, |f|^2 = sum of a_i a_k b_j b_l <f_ij, f_kl>, where only neighbours have
    a weight. The result (sites, heads, 2 rows - 1, 2 cols - 1) holds <f_ij, f_ij>, beside it twice the products along
    rows, below it twice those along columns, and in the corner twice those along both diagonals; `_pairs` gives the
    weights.
    """
    along = tokens @ tokens.transpose(3, 4)
    below = tokens[:, :, :-1] @ tokens[:, :, 1:].transpose(3, 4)

    def diagonal(products: Tensor, offset: int) -> Tensor:
        return products.diagonal(offset, 3, 4)

    upper = torch.cat([diagonal(along, 0), 2 * diagonal(along, 1)], 3)
    lower = torch.cat([2 * diagonal(below, 0), 2 * (diagonal(below, 1) + diagonal(below, -1))], 3)
    return torch.cat([upper, lower], 2)


def _pairs(weights: Floats) -> Floats:
    """Of bilinear weights (pixels, cells) the squares and the products of neighbours: (pixels, 2 cells - 1)."""
    return np.concatenate([weights**2, weights[:, :-1] * weights[:, 1:]], 1)


def _shortest(squares: Tensor) -> Tensor:
    """The least squared length (n, 1, 1) that is divided by, from those of the cells (n, rows, cols).

    Between opposite tokens interpolation passes through zero, where only rounding is left.
    """
    return 1e-6 * torch.where(squares > 0, squares, torch.inf).amin((1, 2), keepdim=True)
