"""Input-agnostic keys: which (layer, head)s hardly depend on the image, and what is cut to ask what they are for.

Liu et al. find keys that are nearly constant across images, in later layers [P], by their variance over images [S]; how
is ours [D]. S is measured by a calibrate job (`vkvdb.calibrating`). The cut is Otsu's on log S; the heads below it are
the group, if

- log S has two modes at all (`vkvdb.modes`): else there is no such group; and
- the cut is below a half: above it most of a key changes with the image, and the lower group is not nearly constant.

Below `FLOOR`, S is the floor: a deviation of a thousandth of the norm is less than bfloat16 can tell.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vkvdb.interventions import Knockout, canonical, parse
from vkvdb.modes import otsu, two_modes

Head = tuple[int, int]  # layer, key-value head

FLOOR = 1e-6
MOST = 0.5
LEVEL = 0.05
DRAWS = 5
TO_TEXT = ("text", "image")
"""Edges (queries, keys) that are cut to ask what answers lose."""
TO_IMAGE = ("image", "image")
"""Edges that are cut to ask what image values of later layers lose [D]: a capture ends with its image, and what text
attends to changes no image value. A token keeps the edge to itself."""
Edges = tuple[str, str]


@dataclass(frozen=True)
class Found:
    """What S says of a model's heads.

    `heads` is the group, empty where there is none (`why` says so in words). `cut` is Otsu's, NaN where all S are
    equal; `below` are the heads under it whether or not they are a group, `strict` and `loose` those under half and
    twice the cut. `p_value` is that of one mode. `jaccard` compares what lies below the cuts of the two halves.
    """

    heads: frozenset[Head]
    why: str
    cut: float
    below: frozenset[Head]
    strict: frozenset[Head]
    loose: frozenset[Head]
    p_value: float
    jaccard: float


def find(rows: Iterable[Mapping[str, Any]]) -> Found:
    """The group among rows of the table `key_variance` (`layer`, `head`, `half`, `value`) of one job, part and
    `unbiased`, all three halves.
    """
    by_half: dict[int, dict[Head, float]] = defaultdict(dict)
    for row in rows:
        by_half[row["half"]][row["layer"], row["head"]] = max(row["value"], FLOOR)
    whole = by_half[0]
    logs = np.log([*whole.values()])
    cut = math.exp(otsu(logs))
    p_value = two_modes(logs)
    below = _below(whole, cut)
    why = ""
    if not below:
        why = "all heads vary alike"
    elif p_value >= LEVEL:
        why = "log S has one mode"
    elif cut >= MOST:
        why = f"the lower group varies too much: it reaches S = {max(whole[h] for h in below):.2f}"
    one, two = (_below(s, math.exp(otsu(np.log([*s.values()])))) for s in (by_half[1], by_half[2]))
    return Found(
        heads=frozenset() if why else below,
        why=why,
        cut=cut,
        below=below,
        strict=_below(whole, cut / 2),
        loose=_below(whole, cut * 2),
        p_value=p_value,
        jaccard=len(one & two) / len(one | two) if one | two else math.nan,
    )


def _below(s: Mapping[Head, float], cut: float) -> frozenset[Head]:
    return frozenset(head for head, value in s.items() if value < cut)


def knockouts(
    heads: Collection[Head], s: Mapping[Head, float], *, draws: int = DRAWS, seed: int = 0, edges: Edges = TO_TEXT
) -> dict[str, tuple[str, ...]]:
    """{condition: interventions} that cut edges at some heads, and at those that they are compared with.

    `s` is S of every (layer, head) of the model. Conditions: `agnostic` (the heads), `random 0` ... (as many others of
    the same layers, drawn by the seed; of a layer without enough others, all of these), `dependent` (as many, of the
    largest S), `all` (every image key, of every layer and head). Heads that share a layer are one knockout.
    """
    chosen = set(heads)
    if not chosen <= s.keys():
        raise ValueError(f"no S of {sorted(chosen - s.keys())}")
    conditions = {"agnostic": chosen}
    generator = random.Random(seed)
    for number in range(draws):
        drawn: set[Head] = set()
        for layer in sorted({layer for layer, _ in chosen}):
            others = sorted(h for h in s if h[0] == layer and h not in chosen)
            wanted = sum(h[0] == layer for h in chosen)
            drawn.update(generator.sample(others, min(wanted, len(others))))
        conditions[f"random {number}"] = drawn
    largest = sorted(s.keys() - chosen, key=lambda h: (-s[h], h))
    conditions["dependent"] = set(largest[: len(chosen)])
    texts = {name: cut_of(group, edges) for name, group in conditions.items() if group}
    return {**texts, "all": (str(Knockout(*edges)),)} if texts else {}


def cut_of(heads: Collection[Head], edges: Edges = TO_TEXT) -> tuple[str, ...]:
    """The interventions that cut edges at some (layer, head)s, as a specification holds them."""
    of_layer: dict[int, list[int]] = defaultdict(list)
    for layer, head in sorted(heads):
        of_layer[layer].append(head)
    layers_of: dict[tuple[int, ...], list[int]] = defaultdict(list)  # layers that lose the same heads: one text
    for layer, those in of_layer.items():
        layers_of[tuple(those)].append(layer)
    return canonical(str(Knockout(*edges, tuple(layers), those)) for those, layers in layers_of.items())


def above_last(values: Mapping[Head, float]) -> dict[Head, float]:
    """The same without the heads of the last layer: no image value comes after its attention."""
    last = max((layer for layer, _ in values), default=0)
    return {head: value for head, value in values.items() if head[0] < last}


def heads_cut(texts: Collection[str], s: Collection[Head], edges: Edges = TO_TEXT) -> frozenset[Head]:
    """The (layer, head)s of a model, all of which `s` names, at which some interventions cut these edges."""
    cuts = [one for one in map(parse, texts) if isinstance(one, Knockout) and (one.queries, one.keys) == edges]
    return frozenset(
        (layer, head)
        for layer, head in s
        for one in cuts
        if (one.layers is None or layer in one.layers) and (one.heads is None or head in one.heads)
    )
