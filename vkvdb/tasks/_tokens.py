"""Shared by the tasks: heads concatenated, pieces of a stack that fit in memory, batched upsampling."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

# Numbers that are worked on at once, and that a piece of a stack may take with all its copies. On a CPU what is worked
# on had best stay in its cache (6 MB, 64 MB); a GPU is to be kept busy (512 MB, 2 GB).
_AT_ONCE = {"cpu": 3 << 19}, 1 << 27
_ROOM = {"cpu": 1 << 24}, 1 << 29


def at_once(tensor: Tensor) -> int:
    """How many numbers to work on at a time where a tensor is."""
    return _AT_ONCE[0].get(tensor.device.type, _AT_ONCE[1])


def room(tensor: Tensor) -> int:
    """How many numbers a piece of a stack may take, copies included, where a tensor is."""
    return _ROOM[0].get(tensor.device.type, _ROOM[1])


def pieces(count: int, each: int, most: int) -> Iterator[slice]:
    """Slices of `count` things of `each` numbers, as few as hold at most `most` numbers; at least one thing a slice."""
    step = max(1, most // max(each, 1))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def with_all_heads(per_head: Tensor) -> Tensor:
    """Sums over channels (sites, heads, ...), and behind the heads that of all heads concatenated: their sum."""
    if per_head.shape[1] == 1:
        return per_head
    import torch

    return torch.cat([per_head, per_head.sum(1, keepdim=True)], 1)


def float32(tokens: Tensor) -> Tensor:
    """A copy in float32, contiguous: what products give does not depend on how tokens lay in memory before."""
    import torch

    return tokens.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def like(array: npt.NDArray[Any], tensor: Tensor) -> Tensor:
    """A numpy array as a float32 tensor where another tensor is."""
    import torch

    return torch.as_tensor(array, dtype=torch.float32, device=tensor.device)


def upsample(maps: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Maps (n, rows, cols) by the weights (h, rows) and (w, cols): (n, h, w). Each map by itself, whatever n."""
    import torch

    n = len(maps)
    wide = torch.bmm(maps, across.t().expand(n, -1, -1))
    return torch.bmm(down.expand(n, -1, -1), wide)
