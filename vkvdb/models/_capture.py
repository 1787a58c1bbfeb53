"""Read image tokens' keys and values from the model's own KV cache, at almost no cost over the bare forward pass.

A `Cache` of ours is handed to the decoder. It receives each layer's keys and values once, keeps the image positions of
the wanted layers and lets the rest go: no attention is re-implemented and no module is replaced. Since attention is
causal, only the prefix up to the image's end is run, without the language-model head, and no deeper than the last
wanted layer. Tower, projector, hidden states and the rotation's cos and sin are read by forward hooks, which are
removed after each block. Under interventions, what is read is what the changed model computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from vkvdb.errors import NotFinite, NothingCaptured
from vkvdb.interventions import Intervention, TokenGroups, applied
from vkvdb.types import Site, SiteShape, Stacks, TokenGrid, TokenStack, group_sites

NO_DEEPER = (
    "a capture runs the prompt up to its image's end, and no deeper than the last layer that is read, whose keys and "
    "values come before its attention"
)


class _Deep(Exception):
    """The last wanted layer has been read: what lies deeper is not run."""


class ReadingCache(Cache):
    """Hands each layer's keys and values (batch, heads, positions, dim) to `sink`, keeps none, stops after `last`."""

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
class Gather:
    """Where an image's cells lie among the tower's tokens of a block, all its tiles one after another.

    `index` is (rows, cols) of what the projector is given; it is resampled to `size` where the decoder sees fewer
    cells.
    """

    index: torch.Tensor
    size: tuple[int, int]

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Features (tokens, dim) to (1, cells, dim), row by row."""
        picked = features[self.index.to(features.device)]
        if picked.shape[:2] != self.size:
            # As the model itself shrinks the projector's output.
            planes = picked.permute(2, 0, 1)[None].float()
            shrunk = nn.functional.interpolate(planes, self.size, mode="bilinear")[0]
            picked = shrunk.permute(1, 2, 0).to(features.dtype)
        return picked.flatten(0, 1)[None]


@dataclass(frozen=True)
class Block:
    """One forward pass: the model's inputs, and for each image its row in the batch and its grid.

    `rows[i]` is the batch row of image i, `grids[i].positions` its tokens there, and `tower[i]` its cells among the
    tower's. `settings` stand in the model's configuration while the block is run. `groups` has the token groups of each
    batch row, where there are interventions.
    """

    inputs: dict[str, Any]
    rows: tuple[int, ...]
    grids: tuple[TokenGrid, ...]
    tower: tuple[Gather, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    groups: tuple[TokenGroups, ...] = ()


def plain_rotation(out: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(cos, sin), each (batch, positions, dim), of a decoder with one-dimensional positions."""
    cos, sin = out
    return cos, sin


def mrope_rotation(section: Sequence[int]) -> Callable[[Any], tuple[torch.Tensor, torch.Tensor]]:
    """(cos, sin) of a decoder whose positions are (time, row, column).

    Its rotary module gives (batch, positions, dim), or (3, batch, positions, dim) for the layer to combine: then
    `section` says of how many of the dim / 2 frequencies each axis takes its turn, as the layer does it.
    """

    def combined(turn: torch.Tensor) -> torch.Tensor:
        if turn.dim() == 3:
            return turn
        pieces = torch.split(turn, [*section, *section], dim=-1)
        return torch.cat([piece[i % 3] for i, piece in enumerate(pieces)], dim=-1)

    def rotation(out: Any) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = out
        return combined(cos), combined(sin)

    return rotation


@dataclass(frozen=True)
class Parts:
    """The modules that are read, as a family finds them in its model, and how.

    `tower_layer` is the layer of the tower that the projector is given, `merged` how many of its tokens make one cell.
    `rotation` makes (cos, sin), each (batch, positions, dim), of what the decoder's rotary module returns.
    """

    body: nn.Module
    projector: nn.Module
    decoder: nn.Module
    tower_layer: int
    merged: int = 1
    rotation: Callable[[Any], tuple[torch.Tensor, torch.Tensor]] = plain_rotation

    @property
    def layers(self) -> nn.ModuleList:
        layers = self.decoder.layers
        assert isinstance(layers, nn.ModuleList)
        return layers

    @property
    def rotary(self) -> nn.Module:
        rotary = self.decoder.rotary_emb
        assert isinstance(rotary, nn.Module)
        return rotary


class Sink:
    """Where one block's tokens gather: for each stack a tensor (images, sites, heads, cells, dim)."""

    def __init__(self, block: Block, shapes: Sequence[SiteShape], dtype: torch.dtype) -> None:
        self.block = block
        self.groups = group_sites(shapes)
        self.place = {s.site: (g, i) for g, group in enumerate(self.groups) for i, s in enumerate(group)}
        self.filled: set[Site] = set()
        self.turned: list[tuple[torch.Tensor, torch.Tensor]] = []  # (cos, sin) of the pass
        self.positions = [torch.tensor(grid.positions) for grid in block.grids]
        self.tokens = [
            [
                torch.empty(len(group), group[0].heads, g.rows * g.cols, group[0].dim, dtype=dtype)
                for group in self.groups
            ]
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

    def keys_values(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Pick the image positions of a layer's keys and values (batch, heads, positions, dim)."""
        if site := self.wants("decoder", layer, "key"):
            self.sequence(site, keys)
        if site := self.wants("decoder", layer, "value"):
            self.sequence(site, values)
        if site := self.wants("decoder", layer, "key_unrotated"):
            cos, sin = self.turned[-1]
            self.sequence(site, unrotate(keys, cos[:, None], sin[:, None]))

    def sequence(self, site: Site, states: torch.Tensor) -> None:
        """Pick the image positions of states (batch, heads, positions, dim)."""
        for image, (row, positions) in enumerate(zip(self.block.rows, self.positions, strict=True)):
            self.put(site, image, states[row].index_select(1, positions.to(states.device)))

    def tower(self, site: Site, features: torch.Tensor, merged: int) -> None:
        """Pick the images' cells out of features (..., tokens, dim), of which `merged` in a row make a cell."""
        flat = features.reshape(-1, merged * features.shape[-1])
        for image, gather in enumerate(self.block.tower):
            self.put(site, image, gather(flat))

    def stacks(self, image: int) -> Stacks:
        grid = self.block.grids[image]
        return tuple(
            TokenStack(tuple(s.site for s in group), torch.unflatten(tokens, 2, (grid.rows, grid.cols)))
            for group, tokens in zip(self.groups, self.tokens[image], strict=True)
        )

    def read(self, name: str) -> list[tuple[TokenGrid, Stacks]]:
        """What was read of each image. Raises NothingCaptured and NotFinite, naming the model `name`."""
        if missing := sorted(set(self.place) - self.filled):
            raise NothingCaptured(model=name, site=missing[0])
        found = [(grid, self.stacks(i)) for i, grid in enumerate(self.block.grids)]
        for image, (_, stacks) in enumerate(found):
            check_finite(stacks, name, image)
        return found


def unrotate(keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Keys before rotation. `keys` (..., positions, dim), `cos` and `sin` (positions, dim) as the layer itself used
    them.

    The rotation is k' = k cos + half(k) sin with half(k) = (-k2, k1); cos and sin may carry a scale. Computed in
    float32, given back in the keys' type.
    """
    k, cos, sin = keys.float(), cos.float(), sin.float()
    first, second = k.chunk(2, dim=-1)
    back = k * cos + torch.cat((second, -first), dim=-1) * sin
    return (back / (cos * cos + sin * sin)).to(keys.dtype)


@torch.inference_mode()
def read_block(
    parts: Parts, block: Block, shapes: Sequence[SiteShape], *, name: str, interventions: Sequence[Intervention] = ()
) -> list[tuple[TokenGrid, Stacks]]:
    """Run one block, perhaps under interventions, and read `shapes` of it.

    Raises NothingCaptured and NotFinite, naming the model `name`, and what `applied` raises.
    """
    last, hidden_last = _depth(s.site for s in shapes)
    with ExitStack() as undo:
        if interventions:
            # First, since hooks are called in this order: what is read is what comes out changed.
            undo.enter_context(applied(parts.decoder, interventions, block.groups, note=NO_DEEPER))
        sink = undo.enter_context(watched(parts, block, shapes))
        if hidden_last is not None:
            _after(undo, parts.layers[hidden_last], _stop)
        with suppress(_Deep):
            parts.body(**block.inputs, past_key_values=ReadingCache(sink.keys_values, last=last), use_cache=True)
    return sink.read(name)


@contextmanager
def watched(parts: Parts, block: Block, shapes: Sequence[SiteShape]) -> Iterator[Sink]:
    """Read `shapes` in a pass over a block that is run inside; its cache hands the sink keys and values.

    The block's settings stand in the model's configuration meanwhile.
    """
    sink = Sink(block, shapes, next(parts.decoder.parameters()).dtype)
    with ExitStack() as undo:
        _after(undo, parts.rotary, lambda _m, _i, out: sink.turned.append(parts.rotation(out)))
        _watch(undo, parts, sink)
        for setting, value in block.settings.items():
            undo.callback(setattr, parts.body.config, setting, getattr(parts.body.config, setting))
            setattr(parts.body.config, setting, value)
        yield sink


def _after(undo: ExitStack, module: nn.Module, function: Callable[..., None]) -> None:
    """Call `function(module, inputs, output)` after each forward of a module, until `undo` is closed."""
    undo.callback(module.register_forward_hook(function).remove)


def _watch(undo: ExitStack, parts: Parts, sink: Sink) -> None:
    """Read the sites that do not pass through the cache: tower, projector and hidden states."""
    if tower := sink.wants("encoder", parts.tower_layer, "hidden"):
        # What the projector is given is the tower's output as this family selects it (layer, class token dropped).
        def before_projector(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            sink.tower(tower, inputs[0], parts.merged)

        undo.callback(parts.projector.register_forward_pre_hook(before_projector).remove)
    if projector := sink.wants("projector", 0, "hidden"):
        # The projector's output where it enters the decoder: in the order, and on the grid, of the sequence.
        def before_decoder(_module: nn.Module, _inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            sink.sequence(projector, named["inputs_embeds"][:, None])

        undo.callback(parts.decoder.register_forward_pre_hook(before_decoder, with_kwargs=True).remove)
    for number, layer in enumerate(parts.layers):
        if hidden := sink.wants("decoder", number, "hidden"):
            _after(undo, layer, lambda _m, _i, out, s=hidden: sink.sequence(s, _states(out)[:, None]))


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


def check_finite(stacks: Stacks, name: str, image: int) -> None:
    """Raises NotFinite at the first site of the `image`th of a block that holds no number."""
    for stack in stacks:
        # One pass over the whole stack; which site it was is only worked out when there is something to say.
        if not torch.isfinite(stack.tokens.sum(dtype=torch.float64)):
            for site, tokens in zip(stack.sites, stack.tokens, strict=True):
                if not torch.isfinite(tokens).all():
                    raise NotFinite(model=name, site=site, image=f"{image} of its block")


@torch.inference_mode()
def read_text(parts: Parts, embeddings: torch.Tensor, sites: Sequence[Site]) -> dict[Site, torch.Tensor]:
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
    with ExitStack() as undo:
        _after(undo, parts.rotary, lambda _m, _i, out: turned.append(parts.rotation(out)))
        for number, layer in enumerate(parts.layers):
            site = Site("decoder", number, "hidden")
            _after(undo, layer, lambda _m, _i, out, s=site: keep(s, _states(out)[0, -1:]))
        if hidden_last is not None:
            _after(undo, parts.layers[hidden_last], _stop)
        cache = ReadingCache(keys_values, last=last)
        with suppress(_Deep):
            parts.decoder(inputs_embeds=embeddings, past_key_values=cache, use_cache=True)
    return found


def of(tokens: Mapping[Site, torch.Tensor], shapes: Sequence[SiteShape]) -> Stacks:
    """Stack a model's tokens {site: (heads, rows, cols, dim)}; for models that hand them out one by one."""
    return tuple(
        TokenStack(tuple(s.site for s in group), torch.stack([tokens[s.site] for s in group]))
        for group in group_sites(shapes)
    )
