"""Read image tokens' keys and values from the model's own KV cache, at almost no cost over the bare forward pass.

A `Cache` of ours is handed to the decoder. It receives each layer's keys and values once, keeps the image positions of the
wanted layers and lets the rest go: no attention is re-implemented and no module is replaced. Since attention is causal, only the
prefix up to the image's end is run, without the language-model head, and no deeper than the last wanted layer. Tower,
projector, hidden states and the rotation's cos and sin are read by forward hooks, which are removed after each block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from vkvdb.errors import NotFinite, NothingCaptured
from vkvdb.types import Site, SiteShape, Stacks, TokenGrid, TokenStack, group_sites


class _Deep(Exception):
    """The last wanted layer has been read: what lies deeper is not run."""


class ReadingCache(Cache):  # type: ignore[misc]
    """Hands each layer's keys and values (batch, heads, positions, dim) to `sink`, keeps nothing, and stops when told to."""

    def __init__(self, sink: Callable[[int, torch.Tensor, torch.Tensor], None], last: int | None = None) -> None:
        super().__init__(layers=[])
        self._sink = sink
        self._last = last

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self._sink(layer_idx, key_states, value_states)
        if layer_idx == self._last:
            raise _Deep
        return key_states, value_states

    # The decoder asks these two to build its mask; with nothing kept, the mask is that of a first forward pass.
    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return query_length, 0


@dataclass(frozen=True)
class Block:
    """One forward pass: the model's inputs, and for each image its row in the batch and its grid.

    `rows[i]` is the batch row of image i and `grids[i].positions` its tokens there. `vision` tells where its tokens lie in the
    tower's and projector's outputs: a slice of (tiles, tokens) flattened, one index tensor an image.
    """

    inputs: dict[str, Any]
    rows: tuple[int, ...]
    grids: tuple[TokenGrid, ...]
    vision: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Parts:
    """The modules that are read, as a family finds them in its model."""

    body: nn.Module
    projector: nn.Module
    decoder: nn.Module

    @property
    def layers(self) -> nn.ModuleList:
        layers = self.decoder.layers
        assert isinstance(layers, nn.ModuleList)
        return layers


class _Sink:
    """Where one block's tokens gather: for each stack a tensor (images, sites, heads, cells, dim)."""

    def __init__(self, block: Block, shapes: Sequence[SiteShape], dtype: torch.dtype) -> None:
        self.block = block
        self.groups = group_sites(shapes)
        self.place = {s.site: (g, i) for g, group in enumerate(self.groups) for i, s in enumerate(group)}
        self.filled: set[Site] = set()
        self.positions = [torch.tensor(grid.positions) for grid in block.grids]
        self.tokens = [
            [torch.empty(len(group), group[0].heads, g.rows * g.cols, group[0].dim, dtype=dtype) for group in self.groups]
            for g in block.grids
        ]

    def wants(self, stage: str, layer: int, part: str) -> Site | None:
        site = Site(stage, layer, part)
        return site if site in self.place else None

    def put(self, site: Site, image: int, tokens: torch.Tensor) -> None:
        """`tokens` is (heads, cells, dim), on any device."""
        group, index = self.place[site]
        self.tokens[image][group][index].copy_(tokens)
        self.filled.add(site)

    def sequence(self, site: Site, states: torch.Tensor) -> None:
        """Pick the image positions of states (batch, heads, positions, dim)."""
        for image, (row, positions) in enumerate(zip(self.block.rows, self.positions, strict=True)):
            self.put(site, image, states[row].index_select(1, positions.to(states.device)))

    def vision(self, site: Site, features: torch.Tensor) -> None:
        """Pick the images' tokens out of features (tiles, tokens, dim)."""
        flat = features.flatten(0, -2)
        for image, index in enumerate(self.block.vision):
            self.put(site, image, flat.index_select(0, index.to(flat.device))[None])

    def stacks(self, image: int) -> Stacks:
        grid = self.block.grids[image]
        return tuple(
            TokenStack(tuple(s.site for s in group), tokens.unflatten(2, (grid.rows, grid.cols)))
            for group, tokens in zip(self.groups, self.tokens[image], strict=True)
        )


def unrotate(keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Keys before rotation. `keys` (..., positions, dim), `cos` and `sin` (positions, dim) as the layer itself used them.

    The rotation is k' = k cos + half(k) sin with half(k) = (-k2, k1); cos and sin may carry a scale. Computed in float32, given
    back in the keys' type.
    """
    k, cos, sin = keys.float(), cos.float(), sin.float()
    first, second = k.chunk(2, dim=-1)
    back = k * cos + torch.cat((second, -first), dim=-1) * sin
    return (back / (cos * cos + sin * sin)).to(keys.dtype)


@torch.inference_mode()
def read_block(
    parts: Parts,
    block: Block,
    shapes: Sequence[SiteShape],
    *,
    name: str,
    rotation: Callable[[Any], tuple[torch.Tensor, torch.Tensor]],
    tower_layer: int,
) -> list[tuple[TokenGrid, Stacks]]:
    """Run one block and read `shapes` of it.

    `rotation` makes (cos, sin), each (batch, positions, dim), of what the decoder's rotary module returns.
    Raises NothingCaptured and NotFinite, naming the model `name`.
    """
    dtype = next(parts.decoder.parameters()).dtype
    sink = _Sink(block, shapes, dtype)
    last, hidden_last = _depth(s.site for s in shapes)
    turned: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keys_values(layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        if site := sink.wants("decoder", layer, "key"):
            sink.sequence(site, keys)
        if site := sink.wants("decoder", layer, "value"):
            sink.sequence(site, values)
        if site := sink.wants("decoder", layer, "key_unrotated"):
            cos, sin = turned[-1]
            sink.sequence(site, unrotate(keys, cos[:, None], sin[:, None]))

    with ExitStack() as hooks:

        def hook(module: nn.Module, function: Callable[..., None], before: bool = False) -> None:
            register = module.register_forward_pre_hook if before else module.register_forward_hook
            hooks.callback(register(function).remove)  # type: ignore[operator]

        rotary = parts.decoder.rotary_emb
        assert isinstance(rotary, nn.Module)
        hook(rotary, lambda _m, _i, out: turned.append(rotation(out)))
        if site := sink.wants("encoder", tower_layer, "hidden"):
            # What the projector is given is the tower's output as this family selects it (layer, class token dropped).
            hook(parts.projector, lambda _m, inputs, s=site: sink.vision(s, inputs[0]), before=True)
        if site := sink.wants("projector", 0, "hidden"):
            hook(parts.projector, lambda _m, _i, out, s=site: sink.vision(s, out))
        for number, layer in enumerate(parts.layers):
            if site := sink.wants("decoder", number, "hidden"):
                hook(layer, lambda _m, _i, out, s=site: sink.sequence(s, _states(out)[:, None]))
            if number == hidden_last:
                hook(layer, _stop)
        cache = ReadingCache(keys_values, last=last)
        try:
            parts.body(**block.inputs, past_key_values=cache, use_cache=True)
        except _Deep:
            pass
    return _checked(sink, block, name)


def _states(out: Any) -> torch.Tensor:
    states: torch.Tensor = out[0] if isinstance(out, tuple) else out
    return states


def _stop(*_args: Any) -> None:
    raise _Deep


def _depth(sites: Iterable[Site]) -> tuple[int | None, int | None]:
    """(layer whose keys and values end the run, layer whose output ends it); one of them None.

    Where only the vision part is wanted, the first layer's keys end it.
    """
    decoder = [s for s in sites if s.stage == "decoder"]
    cached = max((s.layer for s in decoder if s.part != "hidden"), default=-1)
    hidden = max((s.layer for s in decoder if s.part == "hidden"), default=-1)
    return (None, hidden) if hidden >= max(cached, 0) else (max(cached, 0), None)


def _checked(sink: _Sink, block: Block, name: str) -> list[tuple[TokenGrid, Stacks]]:
    missing = sorted(set(sink.place) - sink.filled)
    if missing:
        raise NothingCaptured(model=name, site=missing[0])
    read = [(grid, sink.stacks(i)) for i, grid in enumerate(block.grids)]
    for image, (_, stacks) in enumerate(read):
        check_finite(stacks, name, image)
    return read


def check_finite(stacks: Stacks, name: str, image: int) -> None:
    """Raises NotFinite at the first site of the `image`th of a block that holds no number."""
    for stack in stacks:
        # One pass over the whole stack; which site it was is only worked out when there is something to say.
        if not torch.isfinite(stack.tokens.sum(dtype=torch.float64)):
            for site, tokens in zip(stack.sites, stack.tokens, strict=True):
                if not torch.isfinite(tokens).all():
                    raise NotFinite(model=name, site=site, image=f"{image} of its block")


@torch.inference_mode()
def read_text(
    decoder: nn.Module,
    embeddings: torch.Tensor,
    sites: Sequence[Site],
    rotation: Callable[[Any], tuple[torch.Tensor, torch.Tensor]],
) -> dict[Site, torch.Tensor]:
    """{site: (heads, dim)} of the last of some token embeddings (1, positions, width), run through the decoder alone.

    The projector's site gives the words' own input embedding (the last token's), the space that it projects into.
    """
    wanted = set(sites)
    found: dict[Site, torch.Tensor] = {}
    turned: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(site: Site, vector: torch.Tensor) -> None:
        if site in wanted:
            found[site] = vector.detach().cpu().clone()

    def keys_values(layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        keep(Site("decoder", layer, "key"), keys[0, :, -1])
        keep(Site("decoder", layer, "value"), values[0, :, -1])
        cos, sin = turned[-1]
        keep(Site("decoder", layer, "key_unrotated"), unrotate(keys[0, :, -1:], cos[0, -1:], sin[0, -1:])[:, 0])

    keep(Site("projector", 0, "hidden"), embeddings[0, -1:])
    last, hidden_last = _depth(sites)
    layers, rotary = decoder.layers, decoder.rotary_emb
    assert isinstance(layers, nn.ModuleList)
    assert isinstance(rotary, nn.Module)
    with ExitStack() as hooks:
        hooks.callback(rotary.register_forward_hook(lambda _m, _i, out: turned.append(rotation(out))).remove)
        for number, layer in enumerate(layers):
            if Site("decoder", number, "hidden") in wanted:
                hooks.callback(
                    layer.register_forward_hook(
                        lambda _m, _i, out, n=number: keep(Site("decoder", n, "hidden"), _states(out)[0, -1:])
                    ).remove
                )
            if number == hidden_last:
                hooks.callback(layer.register_forward_hook(_stop).remove)
        try:
            decoder(inputs_embeds=embeddings, past_key_values=ReadingCache(keys_values, last=last), use_cache=True)
        except _Deep:
            pass
    return found


def plain_rotation(out: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(cos, sin), each (batch, positions, dim), of a decoder with one-dimensional positions."""
    cos, sin = out
    return cos, sin


def of(tokens: Mapping[Site, torch.Tensor], shapes: Sequence[SiteShape]) -> Stacks:
    """Stack a model's tokens {site: (heads, rows, cols, dim)}; for models that hand them out one by one."""
    return tuple(
        TokenStack(tuple(s.site for s in group), torch.stack([tokens[s.site] for s in group]))
        for group in group_sites(shapes)
    )
