"""Interventions in captures: the token groups that images give, and which interventions a capture can be asked for.

Groups are `image` (all positions of all images of a prompt), `image1`, `image2` ... (each by its number), and of all
images together `base`, `tiles` (the cells of a view) and `newline`. A capture runs a prompt up to its image's end, so
`text` is what comes before the image, `last` is not reached, and nothing after the image can be changed: what answers
hear is asked, not captured.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vkvdb.errors import BadIntervention
from vkvdb.interventions import Intervention, Knockout, Replace, TokenGroups, canonical, parse
from vkvdb.models._loading import refuse_interventions
from vkvdb.models._token_map import BASE, TokenMap
from vkvdb.types import SiteShape

if TYPE_CHECKING:
    from vkvdb.models._checkpoint import Checkpoint

# Any size will do: which groups an image has hangs on the view alone.
_SIZE = (640, 480)
MOST = 8  # images of a prompt that have a group each


def groups_of(length: int, maps: Sequence[TokenMap], starts: Sequence[int], *, ended: bool) -> TokenGroups:
    """The token groups of a prompt of `length` tokens, whose images begin at `starts`.

    Without `ended` the prompt goes on beyond what is run, so its last token is not among them.
    """
    named: dict[str, list[int]] = {"image": []}
    for number, (tokens, start) in enumerate(zip(maps, starts, strict=True), 1):
        for name, positions in tokens.groups(start).items():
            named.setdefault(name, []).extend(positions)
        named[f"image{number}"] = list(range(start, start + tokens.count))
        named["image"] += named[f"image{number}"]
    return TokenGroups(length if ended else length + 1, named)


def fitting(
    texts: Iterable[str],
    checkpoint: Checkpoint,
    shapes: Iterable[SiteShape],
    *,
    view: str = BASE,
    whole: bool = False,
) -> tuple[str, ...]:
    """Interventions as a capture's specification holds them, one text for one meaning.

    `shapes` are the sites that the job reads. With `whole`, whole prompts are run to the model's end, as `vkvdb ask`
    does it: there is a last token, text after the image, and all that the processor makes of an image. Raises
    BadIntervention for what is not there or would change nothing that is read, BadOption where the model has no
    decoder.
    """
    chosen = [parse(text) for text in canonical(texts)]
    if not chosen:
        return ()
    decoder = [s for s in checkpoint.sites() if s.site.stage == "decoder"]
    if not decoder:
        refuse_interventions(checkpoint.family, [str(one) for one in chosen])
    depth = 1 + max(s.site.layer for s in decoder)
    heads = max(s.heads for s in decoder)
    # Keys and values of a layer are made before its attention, hidden states after it.
    reach = max((s.site.layer + (s.site.part == "hidden") for s in shapes if s.site.stage == "decoder"), default=-1)
    numbered = [f"image{n}" for n in range(1, 1 + (MOST if whole else 1))]
    named = {"image", *numbered, *_groups(checkpoint, whole=whole or view != BASE)}
    fitted = []
    for one in chosen:
        plain = _shortened(one, depth, heads)
        if whole:
            _refuse_missing(plain, depth, heads, named | {"all", "text", "last"})
        else:
            _refuse(plain, depth, heads, reach, named)
        fitted.append(str(plain))
    return canonical(fitted)


def _groups(checkpoint: Checkpoint, *, whole: bool) -> set[str]:
    code = checkpoint.code
    told = code.token_map(checkpoint.config, checkpoint.processor, *_SIZE, whole=whole)  # type: ignore[attr-defined]
    return set(told.groups())


def _shortened(one: Intervention, depth: int, heads: int) -> Intervention:
    """All layers or all heads are not named one by one: the same capture must not have two ids."""
    if isinstance(one, Replace):
        return one
    layers = None if one.layers == tuple(range(depth)) else one.layers
    return replace(one, layers=layers, heads=None if one.heads == tuple(range(heads)) else one.heads)


def _refuse(one: Intervention, depth: int, heads: int, reach: int, named: set[str]) -> None:
    """Raises BadIntervention for what a capture has not, or can't show."""
    names = _names(one)
    if "last" in names:
        there = ", ".join(sorted(named | {"all", "text"}))
        raise BadIntervention(text=one, why=f"a capture ends with its image and has no last token; there are: {there}")
    _refuse_missing(one, depth, heads, named | {"all", "text"})
    if isinstance(one, Knockout) and one.queries == "text" and set(one.keys.split(",")) <= named:
        raise BadIntervention(text=one, why="in a capture all text comes before the image and never looks at it")
    first = min(one.layers or (0,)) if isinstance(one, Knockout) else -1 if one.layer is None else one.layer
    if first >= reach:
        raise BadIntervention(text=one, why="nothing that is read comes after it; read deeper: --layers")


def _refuse_missing(one: Intervention, depth: int, heads: int, named: set[str]) -> None:
    """Raises BadIntervention for a layer, head, source or group that is not there; told before a model is loaded."""
    if isinstance(one, Knockout):
        deepest = max(one.layers or (0,))
        if (head := max(one.heads or (0,))) >= heads:
            raise BadIntervention(text=one, why=f"no key-value head {head}; there are: 0-{heads - 1}")
    else:
        deepest = one.layer or 0
        if one.source not in ("zero", "mean"):
            raise BadIntervention(text=one, why="a job replaces tokens by zero or by mean")
    if deepest >= depth:
        raise BadIntervention(text=one, why=f"there is no layer {deepest}; there are: 0-{depth - 1}")
    if missing := sorted(_names(one) - named):
        raise BadIntervention(text=one, why=f"no group {missing[0]}; there are: {', '.join(sorted(named))}")


def _names(one: Intervention) -> set[str]:
    """The groups that an intervention names; positions are left out."""
    groups = f"{one.queries},{one.keys}" if isinstance(one, Knockout) else one.group
    return {term for term in groups.split(",") if term[0].isalpha()}
