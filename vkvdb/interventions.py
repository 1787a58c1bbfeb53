"""Changes to the forward pass: *knockout* of attention edges, *replace* of tokens.

    knockout:QUERIES->KEYS[@LAYERS][:hHEADS]    knockout:text->image@10-15:h0,2    knockout:last->object,rest@3-5,8
    replace:GROUP=SOURCE@PLACE                  replace:object=mean:7c1e@input     replace:image=zero@12

`parse` reads this form and `str` prints it, one text for one meaning: it stands in a specification. Without LAYERS or
HEADS all of them are meant. Heads are key-value heads; each stands for its whole group of query heads. A group is a
list of names and positions (`image,40-47`), looked up in the sequence's `TokenGroups` when the model runs.

Where it comes from. Cutting edges from token groups to the last token, and replacing an object's tokens at the
decoder's input by the mean image token of a reference set: Neo et al. [P]. Cutting text -> image in the key-value heads
of input-agnostic keys: Liu et al. [S]. All else is ours [D], above all these three:

- *A token always keeps the edge to itself*, whatever the groups: no softmax is ever empty, so none is NaN.
- `last` is the prompt's last token **and every token generated after it**: each was the last query when its turn came.
  So a cache filled step by step and the whole sequence at once are the same experiment.
- *That an edge is cut is measured, not believed.* In the first prefill and the first decoding step of every layer, its
  own attention is run once more on its own queries, keys and mask, but with values that say where they come from: what
  comes out is the attention mass on the cut edges, and it must be exactly 0 (`_mass`). An implementation that ignores
  masks, takes one for all heads, or maps heads otherwise is refused by that.

Nothing here knows transformers: a decoder is any module with `layers`, whose `self_attn` takes `attention_mask` and
`past_key_values` by name and ends in `o_proj` (Llama, Qwen2, Qwen2.5-VL). In `o_proj`'s output the heads are mixed:
nothing can be cut there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, product
from typing import Any

import torch
from torch import nn

from vkvdb.errors import BadIntervention, MaskIgnored

_TERM = r"(?:[a-z][a-z0-9_]*|\d+(?:-\d+)?)"
_TERMS = rf"{_TERM}(?:,{_TERM})*"
_NUMBERS = r"\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*"
_KNOCKOUT = re.compile(rf"knockout:({_TERMS})->({_TERMS})(?:@({_NUMBERS}))?(?::h({_NUMBERS}))?")
_REPLACE = re.compile(rf"replace:({_TERMS})=(zero|mean|[a-z]+:.+)@(input|\d+)")


@dataclass(frozen=True)
class TokenGroups:
    """Which positions of one sequence (one row of the batch, padding counted) belong to which group.

    `prompt` is the prompt's length: its tokens end at prompt - 1, generated ones follow. `named` gives positions by
    name; `image` must be there (all positions of all images: base, tiles, newlines; empty for none), others may be
    (`base`, `object`). Three names follow and go on in decoding steps: `text` is what is not `image`, `last` the
    prompt's last token and all after it, `all` everything. `given` holds what tokens are replaced by, under the
    source's full name (`mean:7c1e`): (dim,), or (n, dim) for the group's n positions in ascending order.
    """

    prompt: int
    named: Mapping[str, Sequence[int]]
    given: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def find(self, group: str, first: int, stop: int) -> torch.Tensor:
        """The group's positions from `first` to before `stop`, ascending; int64 (n,). Raises KeyError: no such name."""
        at = torch.arange(first, stop)
        inside = torch.zeros(len(at), dtype=torch.bool)
        known = {**self.named, "all": range(stop), "last": range(self.prompt - 1, stop), "text": self.named["image"]}
        for term in group.split(","):
            named = _numbers(term) if term[0].isdigit() else known[term]
            here = torch.isin(at, torch.tensor(tuple(named), dtype=torch.long))
            inside |= ~here if term == "text" else here
        return at[inside]


@dataclass(frozen=True)
class Knockout:
    """Cut the attention edges from query tokens to key tokens; None means all layers or all key-value heads."""

    queries: str
    keys: str
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None

    def __str__(self) -> str:
        layers = "" if self.layers is None else f"@{_ranges(self.layers)}"
        heads = "" if self.heads is None else f":h{_ranges(self.heads)}"
        return f"knockout:{self.queries}->{self.keys}{layers}{heads}"


@dataclass(frozen=True)
class Replace:
    """Replace the prompt's tokens of a group at the decoder's input (`layer` None) or after a layer.

    It happens in the pass that holds them, so not in decoding steps. `source` is `zero`; `mean`, the mean of this
    sequence's own image tokens at that place [D]; or KIND:NAME, found in `TokenGroups.given`: `mean:NAME` for the mean
    token of a reference set (Neo et al. [P]), `image:NAME` for another image's tokens, `tensor:DIGEST` for any tensor,
    whose digest (`tensor_name`) is checked. NAME must say which one it is: a specification knows nothing else of it.
    """

    group: str
    source: str
    layer: int | None = None

    def __str__(self) -> str:
        return f"replace:{self.group}={self.source}@{'input' if self.layer is None else self.layer}"


Intervention = Knockout | Replace


def parse(text: str) -> Intervention:
    """Read an intervention's text form. Raises BadIntervention."""
    try:
        if found := _KNOCKOUT.fullmatch(text):
            queries, keys, layers, heads = found.groups()
            chosen = (None if n is None else _numbers(n) for n in (layers, heads))
            return Knockout(_group(queries), _group(keys), *chosen)
        if found := _REPLACE.fullmatch(text):
            group, source, place = found.groups()
            return Replace(_group(group), source, None if place == "input" else int(place))
    except ValueError as problem:
        raise BadIntervention(text=text, why=problem) from None
    why = "expected knockout:QUERIES->KEYS[@LAYERS][:hHEADS] or replace:GROUP=zero|mean|KIND:NAME@input|LAYER"
    raise BadIntervention(text=text, why=why)


def canonical(texts: Iterable[str]) -> tuple[str, ...]:
    """Interventions as a specification holds them: replacements in their order, then knockouts, sorted, each once."""
    parsed = [parse(t) for t in texts]
    knockouts = sorted({str(i) for i in parsed if isinstance(i, Knockout)})
    return (*(str(i) for i in parsed if isinstance(i, Replace)), *knockouts)


def tensor_name(tensor: torch.Tensor) -> str:
    """`tensor:DIGEST`, a tensor's name as a source: 32 hex digits of the SHA-256 of its type, shape and bytes."""
    plain = tensor.detach().cpu().contiguous()
    head = f"{plain.dtype}{tuple(plain.shape)}".encode()
    return f"tensor:{hashlib.sha256(head + plain.view(torch.uint8).numpy().tobytes()).hexdigest()[:32]}"


def _numbers(text: str) -> tuple[int, ...]:
    """`3-5,8` to (3, 4, 5, 8)."""
    found: set[int] = set()
    for term in text.split(","):
        low, _, high = term.partition("-")
        if high and int(high) < int(low):
            raise ValueError(f"{term} runs backwards")
        found.update(range(int(low), int(high or low) + 1))
    return tuple(sorted(found))


def _ranges(numbers: Sequence[int]) -> str:
    """(3, 4, 5, 8) to `3-5,8`, the inverse of `_numbers`."""
    runs = [[n for _, n in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _group(text: str) -> str:
    """A group's canonical text: names sorted, then positions as ranges."""
    terms = text.split(",")
    numbers = [t for t in terms if t[0].isdigit()]
    return ",".join(sorted({*terms} - {*numbers}) + ([_ranges(_numbers(",".join(numbers)))] if numbers else []))


@contextmanager
def applied(
    decoder: nn.Module, interventions: Iterable[Intervention | str], groups: Sequence[TokenGroups], *, note: str = ""
) -> Iterator[None]:
    """Run a decoder under interventions; one entry of `groups` for each row of the batch.

    One context stands around a prefill and all of its steps. Passes may come with or without a cache, whole or in
    pieces: a token's position is its place in the pass, after what the cache held before. However the context is left,
    every hook is gone. Raises MaskIgnored, and BadIntervention for a group, layer, head or source that is not there and
    for an intervention that changed nothing by the end (a layer that was never reached, say): then `note` tells what of
    a prompt is run here at all.
    """
    chosen = [parse(i) if isinstance(i, str) else i for i in interventions]
    run = _Run(decoder, groups)
    with ExitStack() as hooks:
        run.install(chosen, hooks)
        yield
    for one in chosen:
        if one not in run.acted:
            why = "it changed nothing: none of its tokens or edges came up, or its layers were not reached"
            raise BadIntervention(text=one, why=f"{why}; {note}" if note else why)


class _Tap:
    """Stands before a cache (or none) for one call, keeping or dictating the keys and values that it gives."""

    def __init__(self, cache: Any, dictated: tuple[torch.Tensor, torch.Tensor] | None = None) -> None:
        self.cache, self.dictated = cache, dictated
        self.given = dictated

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.dictated is None:
            self.given = (keys, values) if self.cache is None else self.cache.update(keys, values, *args, **kwargs)
        return self.given

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cache, name)


class _Seen(Exception):
    """What was wanted has been read: the rest of the attention is not run."""


@dataclass(frozen=True)
class _Cut:
    """A knockout in one pass and batch row: positions of its queries and keys, and of the first key that there is."""

    knockout: Knockout
    row: int
    queries: torch.Tensor
    keys: torch.Tensor
    first: int


class _Run:
    """The interventions of one context: where they are installed, where the pass stands, what they have done."""

    def __init__(self, decoder: nn.Module, groups: Sequence[TokenGroups]) -> None:
        config: Any = decoder.config
        self.layers = [decoder.get_submodule(f"layers.{n}") for n in range(config.num_hidden_layers)]
        self.attention = str(getattr(config, "_attn_implementation", "eager"))
        self.heads = int(config.num_key_value_heads)
        self.share = int(config.num_attention_heads) // self.heads  # query heads of one key-value head
        self.groups = groups
        self.start = 0  # position of the pass's first token
        self.cuts: list[_Cut] = []  # of the layer that is being run
        self.acted: set[Intervention] = set()
        self.proved: set[tuple[int, bool]] = set()

    def _check(self, one: Intervention) -> None:
        """Refuse what can be seen before the model runs."""
        if isinstance(one, Knockout):
            groups, deepest = f"{one.queries},{one.keys}", max(one.layers or (0,))
            if (head := max(one.heads or (0,))) >= self.heads:
                raise BadIntervention(text=one, why=f"no key-value head {head}; there are: 0-{self.heads - 1}")
            if re.search("flash|flex|paged", self.attention):  # these can't; any other implementation is measured
                raise MaskIgnored(attention=self.attention, what="it takes no mask of single edges")
        else:
            groups, deepest = one.group, one.layer or 0
        if deepest >= len(self.layers):
            raise BadIntervention(text=one, why=f"there is no layer {deepest}; there are: 0-{len(self.layers) - 1}")
        names = {t for t in groups.split(",") if t[0].isalpha()} | {"image"}
        for tokens in self.groups:
            known = {*tokens.named, "all", "last", "text"}
            if missing := sorted(names - known):
                raise BadIntervention(text=one, why=f"no group {missing[0]}; there are: {', '.join(sorted(known))}")

    def install(self, chosen: Sequence[Intervention], hooks: ExitStack) -> None:
        """Hook the layers; `hooks` takes the hooks away."""
        first = self.layers[0]
        hooks.callback(first.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
        for one in chosen:
            self._check(one)
            if isinstance(one, Replace) and one.layer is not None:
                hooks.callback(self.layers[one.layer].register_forward_hook(partial(self._replace, one)).remove)
            elif isinstance(one, Replace):
                hooks.callback(first.register_forward_pre_hook(partial(self._replace, one)).remove)
        for number, layer in enumerate(self.layers):
            cuts = [k for k in chosen if isinstance(k, Knockout) and (k.layers is None or number in k.layers)]
            if cuts:
                attention = layer.get_submodule("self_attn")
                before, after = partial(self._mask, number, cuts), partial(self._measure, number)
                hooks.callback(attention.register_forward_pre_hook(before, with_kwargs=True).remove)
                hooks.callback(attention.register_forward_hook(after, with_kwargs=True).remove)

    def _begin(self, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        self.start = 0 if cache is None else int(cache.get_seq_length())
        if len(args[0]) != len(self.groups):
            raise ValueError(f"{len(self.groups)} token groups for a batch of {len(args[0])}")

    def _replace(self, one: Replace, _layer: nn.Module, args: tuple[Any, ...], out: Any = None) -> Any:
        """Replace, in what a layer is given or gives, those of the group's tokens that this pass has."""
        whole = args if out is None else out if isinstance(out, tuple) else (out,)
        states = whole[0].clone()  # (batch, positions, dim)
        for row, tokens in enumerate(self.groups):
            at = tokens.find(one.group, 0, tokens.prompt) - self.start
            here = (at >= 0) & (at < states.shape[1])
            if here.any():
                source = self._source(one, tokens, whole[0][row], len(at)).to(states).expand(len(at), -1)
                states[row, at[here].to(states.device)] = source[here.to(states.device)]
                self.acted.add(one)
        return states if isinstance(out, torch.Tensor) else (states, *whole[1:])

    def _source(self, one: Replace, tokens: TokenGroups, states: torch.Tensor, count: int) -> torch.Tensor:
        """What replaces the `count` tokens of a group, (dim,) or (count, dim); `states` (positions, dim) is the row."""
        if one.source == "zero":
            return torch.zeros_like(states[0])
        if one.source == "mean":
            image = torch.tensor(tuple(tokens.named["image"]), dtype=torch.long, device=states.device) - self.start
            if not len(image) or image.min() < 0 or image.max() >= len(states):
                raise BadIntervention(text=one, why="mean takes all image tokens in one pass")
            return states[image].float().mean(0)
        given, dim = tokens.given.get(one.source), states.shape[1]
        if given is None:
            raise BadIntervention(text=one, why=f"{one.source} was not given")
        if given.shape not in ((dim,), (count, dim)):
            raise BadIntervention(text=one, why=f"{tuple(given.shape)} was given, ({dim},) or {(count, dim)} is wanted")
        if one.source.startswith("tensor:") and one.source != tensor_name(given):
            raise BadIntervention(text=one, why="another tensor was given")
        return given

    def _mask(self, layer: int, knockouts: Sequence[Knockout], _module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Give a layer's attention a mask (batch, query heads or 1, queries, keys) with the edges cut, if there are."""
        states, given, mask = kwargs["hidden_states"], kwargs.get("past_key_values"), kwargs["attention_mask"]
        cache = given.cache if isinstance(given, _Tap) else given  # behind the tap of a context around this one
        count, device = states.shape[1], states.device
        length, first = (count, 0) if cache is None else cache.get_mask_sizes(count, layer)
        self.cuts = []
        for (row, tokens), one in product(enumerate(self.groups), knockouts):
            q = tokens.find(one.queries, self.start, self.start + count)
            k = tokens.find(one.keys, first, first + length)
            if len(q) and len(k) and q[-1] > k[0]:
                self.cuts.append(_Cut(one, row, q, k, first))
        if not self.cuts:
            return None
        at = torch.arange(self.start, self.start + count, device=device)[:, None]
        keys = torch.arange(first, first + length, device=device)
        mask = (keys <= at)[None, None] if mask is None else mask  # none: causal, which sdpa is told by a flag
        if mask.ndim != 4:
            raise MaskIgnored(attention=self.attention, what="it takes no mask of single edges")
        if mask.dtype == torch.bool:  # additive, since eager attention takes a Boolean mask for numbers, 0 and 1
            mask = torch.zeros_like(mask, dtype=states.dtype).masked_fill(~mask, -torch.inf)
        wide = any(c.knockout.heads is not None for c in self.cuts)
        mask = mask.expand(len(states), self.heads * self.share if wide else -1, -1, -1).clone()
        for cut in self.cuts:
            edges = torch.isin(at, cut.queries.to(device)) & torch.isin(keys, cut.keys.to(device)) & (at != keys)
            for head in (None,) if cut.knockout.heads is None else cut.knockout.heads:
                group = slice(None) if head is None else slice(head * self.share, (head + 1) * self.share)
                mask[cut.row, group].masked_fill_(edges, -torch.inf)
        if (layer, count == 1) not in self.proved:
            given = _Tap(cache)
        return args, {**kwargs, "attention_mask": mask, "past_key_values": given}

    def _measure(self, layer: int, module: nn.Module, args: Any, kwargs: Any, _out: Any) -> None:
        """Refuse an attention that left mass on a cut edge; measured in the first prefill and the first step."""
        self.acted.update(c.knockout for c in self.cuts)
        if not self.cuts or not isinstance(kwargs["past_key_values"], _Tap):
            return
        for one in dict.fromkeys(c.knockout for c in self.cuts):
            if self._mass(module, args, kwargs, [c for c in self.cuts if c.knockout == one]) != 0:
                raise MaskIgnored(attention=self.attention, what=f"in layer {layer} it leaves attention on {one}")
        self.proved.add((layer, kwargs["hidden_states"].shape[1] == 1))

    @torch.no_grad()
    def _mass(self, module: nn.Module, args: Any, kwargs: Any, cuts: Sequence[_Cut]) -> float:
        """0 exactly where a knockout's queries pay no attention to its keys, read through the implementation itself.

        Attention gives the sum of values, weighted by attention. So each key of the group is given a value that spells
        its position: channel 2 b + (bit b of the position) is 1, for every b; all other keys are given 0. On the
        channels of the bits that are *not* its own, a query then finds the mass of all these keys but itself. Only cut
        key-value heads are given values, and all query heads are read: one that hears a cut head gives itself away.
        """
        keys, values = kwargs["past_key_values"].given
        bits = max(int(max(c.queries[-1], c.keys[-1])).bit_length() for c in cuts)
        pairs = values.shape[-1] // 2  # as many bits at a time as a head has pairs of channels
        mass = 0.0
        for low in range(0, bits, pairs):
            bit = torch.arange(low, min(low + pairs, bits), device=values.device)[:, None]
            marks = torch.zeros_like(values)
            for cut in cuts:
                at = cut.keys.to(values.device)
                for head in range(self.heads) if cut.knockout.heads is None else cut.knockout.heads:
                    marks[cut.row, head, at - cut.first, 2 * (bit - low) + (at >> bit & 1)] = 1
            out = _heads_out(module, args, {**kwargs, "past_key_values": _Tap(None, (keys, marks))})
            out = out.view(*out.shape[:2], self.heads * self.share, -1)  # (batch, positions, query heads, dim)
            for cut in cuts:
                at = cut.queries.to(out.device)
                mass += float(out[cut.row, at - self.start, :, 2 * (bit - low) + 1 - (at >> bit & 1)].float().sum())
        return mass


def _heads_out(module: nn.Module, args: Any, kwargs: Any) -> torch.Tensor:
    """What reaches an attention's `o_proj`: (batch, positions, query heads x dim)."""
    seen: list[torch.Tensor] = []

    def read(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(inputs[0])
        raise _Seen

    # Before all other hooks, and ending the run: nobody else who listens to o_proj hears of this.
    handle = module.get_submodule("o_proj").register_forward_pre_hook(read, prepend=True)
    try:
        with suppress(_Seen):
            module.forward(*args, **kwargs)
    finally:
        handle.remove()
    return seen[0]
