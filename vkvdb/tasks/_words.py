"""Words on an image: the dot product of each image token with a text vector, at every site and head that has one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from vkvdb.metrics import Bools
from vkvdb.tasks._tokens import pieces, room, with_all_heads
from vkvdb.types import Site, TokenStack

if TYPE_CHECKING:
    from torch import Tensor


def columns(stack: TokenStack) -> int:
    """How many scores a site has: one a head, and one for all heads together where there are several."""
    heads = stack.tokens.shape[1]
    return heads + (heads > 1)


def word_maps(
    stack: TokenStack, vectors: Mapping[Site, Tensor], seen: Bools, *, lengths: bool
) -> Iterator[tuple[tuple[Site, ...], Tensor, Tensor | None]]:
    """Sites that have a text vector, piece by piece: (sites, products, centred), maps (sites, heads + 1, rows, cols).

    `products` are those of the tokens less their mean over the cells seen (rows, cols): the raw products but for a
    number that is the same in all cells, so that neither a threshold nor a ranking knows the difference. `centred`,
    where `lengths` is asked for, are the same divided by the tokens' distance from that mean. Text vectors are
    (heads, dim).
    """
    import torch

    spoken = [n for n, site in enumerate(stack.sites) if site in vectors]
    heads, rows, cols, dim = stack.tokens.shape[1:]
    where = None if seen.all() else torch.as_tensor(seen.ravel(), device=stack.tokens.device)
    for piece in pieces(len(spoken), 2 * heads * rows * cols * dim, room(stack.tokens)):
        of = spoken[piece]
        sites = tuple(stack.sites[n] for n in of)
        tokens = stack.tokens[of[0] : of[-1] + 1] if of[-1] - of[0] == len(of) - 1 else stack.tokens[of]
        x = tokens.float().flatten(2, 3)
        text = torch.stack([vectors[site] for site in sites]).to(x)
        assert text.shape == (len(of), heads, dim), (text.shape, x.shape)
        x = x - (x if where is None else x[:, :, where]).mean(2, keepdim=True)
        products = with_all_heads(torch.matmul(text[:, :, None], x.transpose(2, 3))[:, :, 0])
        centred = None
        if lengths:
            squares = with_all_heads(torch.linalg.vector_norm(x, dim=-1).square())
            centred = (products * squares.clamp_min(1e-24).rsqrt()).view(*products.shape[:2], rows, cols)
        yield sites, products.view(*products.shape[:2], rows, cols), centred


def silent(stack: TokenStack, vectors: Mapping[Site, Tensor]) -> tuple[Site, ...]:
    """The sites that have no text vector."""
    return tuple(site for site in stack.sites if site not in vectors)
