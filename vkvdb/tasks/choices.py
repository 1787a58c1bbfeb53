"""Multiple-choice questions read from the image tokens alone, untrained: what the model's answer is held against.

Protocol. A reading picks one of a question's options from the tokens of its images, for every site and head; held
against the model's own answer it says how often the answer is in the tokens and not in the output [P: surfacing, Liu et
al. 2025, arXiv 2510.04819]. Which reading a question gets follows from its group, BLINK's subtasks [C: Fu et al. 2024,
arXiv 2404.12390]. The readings are ours [D]:

- *art style*: the image whose Gram matrix is nearest (cosine) to that of the first image;
- *visual similarity*: the image whose mean token is nearest (cosine) to that of the first;
- *semantic, visual and functional correspondence*: the marked point of the second image whose token is nearest (cosine)
  to that of the point marked in the first. A mark hides what it marks, so the cells that it touches are left out, and
  the point is read from the ring of cells around it. A question whose marks are not known has no reading.

All other questions have no training-free reading, and so no row. The tokens may be of images that were captured alone
(`vkvdb score --task choices`) or of the very prompt that was answered (`vkvdb ask --read choices`).

Metrics. `correct`: 1 where the option picked is the right one. `chosen`: the place of the option picked, from 0; -1
for a tie (images that the tokens do not tell apart), which is no choice and not correct.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from vkvdb.errors import BadOption
from vkvdb.metrics import Floats
from vkvdb.samples import Question, Sample
from vkvdb.tasks._tokens import float32, pieces, room, with_all_heads
from vkvdb.types import Capture, Needs, Scores

if TYPE_CHECKING:
    from torch import Tensor

STYLE, SIMILARITY, CORRESPONDENCE = "art_style", "visual_similarity", "correspondence"
_SAME = 1e-6  # cosines that differ by less are equal: it is what rounding makes of equal images


def reading_of(sample: Question) -> str:
    """`art_style`, `visual_similarity` or `correspondence`; empty where there is none."""
    name = sample.group.lower().replace(" ", "_").removeprefix("choice-")
    if name in (STYLE, SIMILARITY):
        # The first image is the reference, and each of the others an option.
        return name if len(sample.shown) == len(sample.options) + 1 > 2 else ""
    if name == CORRESPONDENCE or name.endswith(f"_{CORRESPONDENCE}"):
        marked = len(sample.shown) == 2 and len(sample.marks) == len(sample.options) + 1 > 2
        return CORRESPONDENCE if marked else ""
    return ""


@dataclass(frozen=True)
class Choices:
    """Options picked by nearest tokens.

    mark: the radius of a drawn mark as a share of the image's longer side, above 0 and at most 0.2.
    """

    version: ClassVar[int] = 1
    takes: ClassVar[type[Sample]] = Question
    metrics: ClassVar[tuple[str, ...]] = ("correct", "chosen")

    mark: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.mark <= 0.2:
            raise BadOption(option="-p", value=f"mark {self.mark}", why="it must be above 0 and at most 0.2")

    def needs(self, sample: Question) -> Needs:
        return Needs(sample.images() if reading_of(sample) else ())

    def score(self, sample: Question, captures: Mapping[str, Capture], texts: Mapping[str, Any]) -> Iterator[Scores]:
        reading = reading_of(sample)
        if not reading:
            return
        shown = [captures[name] for name in sample.shown]
        right = sample.options.index(sample.answer)
        cells = self._marked(sample, shown) if reading == CORRESPONDENCE else []
        for stacks in zip(*(capture.stacks for capture in shown), strict=True):
            assert all(stack.sites == stacks[0].sites for stack in stacks)
            tokens = [stack.tokens for stack in stacks]
            each = (
                4 * sum(t[0].numel() for t in tokens) + 4 * tokens[0].shape[1] * tokens[0][0, 0, :, :, 0].numel() ** 2
            )
            found = []
            for piece in pieces(len(tokens[0]), each, room(tokens[0])):
                those = [float32(t[piece]).flatten(2, 3) for t in tokens]
                if reading == CORRESPONDENCE:
                    found.append(_of_points(those, cells))
                else:
                    found.append((_of_styles if reading == STYLE else _of_means)(those))
            chosen = _chosen(np.concatenate(found))
            yield Scores("correct", stacks[0].sites, (chosen == right).astype(np.float64))
            # -1 for no choice, which must not be taken for "not defined".
            yield Scores("chosen", stacks[0].sites, chosen.astype(np.float64))

    def _marked(self, sample: Question, shown: Sequence[Capture]) -> list[Any]:
        """For each mark, the first on the first image and the others on the second, the cells (n,) of its ring."""
        on = [shown[0], *[shown[1]] * (len(sample.marks) - 1)]
        return [ring(mark, capture, self.mark) for mark, capture in zip(sample.marks, on, strict=True)]


def ring(mark: tuple[float, float], capture: Capture, radius: float) -> Any:
    """Flat indices (n,) of the cells around a mark of a radius (as a share of the longer side): those that it does not
    touch, and that come no farther from it than one cell. Where there is none (a mark in the corner of a coarse grid),
    the nearest cell that it does not touch.
    """
    grid = capture.grid
    left, top, right, bottom = grid.window
    width, height = capture.size or (right - left, bottom - top)
    reach = radius * max(width, height)
    rows, cols = np.divmod(np.arange(grid.rows * grid.cols), grid.cols)
    x, y = grid.centre(rows, cols)
    wide, high = (right - left) / grid.cols, (bottom - top) / grid.rows
    across, down = np.abs(x - mark[0]) - wide / 2, np.abs(y - mark[1]) - high / 2
    gap = np.hypot(np.maximum(across, 0.0), np.maximum(down, 0.0))  # from the mark's centre to the cell's nearest edge
    chosen = np.flatnonzero((gap >= reach) & (gap < reach + min(wide, high)))
    if not len(chosen):
        chosen = np.array([np.where(gap >= reach, gap, np.inf).argmin()])
    return chosen


def _cosines(products: Tensor, squares: Tensor, own: Tensor) -> Floats:
    found: Floats = (products * (squares * own).clamp_min(1e-24).rsqrt()).double().cpu().numpy()
    return found


def _of_means(tokens: Sequence[Tensor]) -> Floats:
    """Cosines (sites, heads + 1, options) of mean tokens; tokens of each image are (sites, heads, cells, dim)."""
    return _nearness([t.mean(2) for t in tokens])


def _of_styles(tokens: Sequence[Tensor]) -> Floats:
    """Cosines (sites, heads + 1, options) of Gram matrices over channels.

    The product of two Gram matrices is the sum of the squared products of all pairs of tokens, so none is made.
    """

    def product(a: Tensor, b: Tensor) -> Tensor:
        pairs = with_all_heads(a @ b.transpose(2, 3))
        return pairs.square().sum((-1, -2)) / (a.shape[2] * b.shape[2])

    first, *others = tokens
    own = product(first, first)
    return np.stack([_cosines(product(first, o), product(o, o), own) for o in others], -1)


def _of_points(tokens: Sequence[Tensor], cells: Sequence[Any]) -> Floats:
    """Cosines (sites, heads + 1, options) of the mean tokens of rings of cells."""
    import torch

    def mean(of: Tensor, at: Any) -> Tensor:
        return of[:, :, torch.as_tensor(at, device=of.device)].mean(2)

    return _nearness([mean(tokens[min(n, 1)], at) for n, at in enumerate(cells)])


def _nearness(vectors: Sequence[Tensor]) -> Floats:
    """Cosines (sites, heads + 1, options) of the first vectors with the others, each (sites, heads, dim)."""

    def product(a: Tensor, b: Tensor) -> Tensor:
        return with_all_heads((a * b).sum(-1))

    first, *others = vectors
    own = product(first, first)
    return np.stack([_cosines(product(first, o), product(o, o), own) for o in others], -1)


def _chosen(cosines: Floats) -> Any:
    """The option (sites, heads + 1) of the largest cosine, -1 where two are equally large."""
    two = np.sort(cosines, -1)[..., -2:]
    return np.where(two[..., 1] - two[..., 0] > _SAME, cosines.argmax(-1), -1)


TASK = Choices
