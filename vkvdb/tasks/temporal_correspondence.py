"""Temporal correspondence: the first frame's masks carried through a video by nearest neighbours of image tokens.

Protocol. Nearest-neighbour mask propagation on DAVIS 2017 [S: Liu et al. 2025, arXiv 2510.04819], as DINO does it [C:
eval_video_segmentation.py of facebookresearch/dino, 7c446df; Caron et al. 2021, arXiv 2104.14294]. A frame's cell takes
the mean label of its `topk` nearest cells by cosine among those of the first frame and the `context` previous ones,
weighted by exp(cosine / temperature); only cells within a neighbourhood of the same place are looked at. Labels of the
first frame are those of the pixel at each cell's centre; carried ones stay soft. They are upsampled bilinearly, each
stretched to 0 to 1 over the frame, and the largest is the pixel's object. Scores are those of davis2017-evaluation [C:
ac7c43f] for the semi-supervised track: J and F of every object, meaned over frames without the first and the last; void
is background (`vkvdb.boundaries`).

Where we depart. Each frame is captured alone, as an image, not as a part of a video [D]. The neighbourhood is scaled to
the grid: 6 cells on 27 x 27, along rows and columns by themselves [D]; DINO's 12 is for its grid of 8 or 16 pixels a
cell. Labels are upsampled to the original pixels at once, over the grid's window, not first to the resized frame; what
lies beyond the window is background [D]. A label that is the same everywhere is not stretched. Where tokens at several
places are equal to the last bit, which of them take part beyond the k-th is open.

Metrics: `j`, `f` and their mean `j_and_f`. A row's value is the mean over the clip's objects and its weight how many
they are, so that objects count the same in a group's mean, as in the official one. An object is what has a mask in the
first frame and in one that is scored; a frame where it has none is left out for it. Not defined: a clip
without an object, or with fewer than three frames. Rows beside the model's: floor.0.position holds the first frame's
masks still, ceiling.0.truth sends each frame's truth down to the grid and back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from vkvdb.boundaries import ObjectTruth
from vkvdb.errors import BadOption
from vkvdb.masks import decode
from vkvdb.metrics import Bools, Floats, upsampling
from vkvdb.samples import Clip, Mask, Sample
from vkvdb.tasks._tokens import at_once, like, pieces, room, upsample
from vkvdb.types import CEILING, POSITION, Capture, Needs, Panel, Scores, Site, TokenGrid

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TemporalCorrespondence:
    """Masks carried by nearest neighbours.

    context: how many previous frames are looked at beside the first; 0 or more.
    topk: how many cells a label is the mean of; 1 or more.
    temperature: what cosines are divided by; above 0.
    neighbourhood: how far to look, in cells of a 27 x 27 grid; 0 for everywhere.
    """

    version: ClassVar[int] = 1
    takes: ClassVar[type[Sample]] = Clip
    metrics: ClassVar[tuple[str, ...]] = ("j", "f", "j_and_f")

    context: int = 7
    topk: int = 5
    temperature: float = 0.1
    neighbourhood: int = 6

    def __post_init__(self) -> None:
        for name, least in (("context", 0), ("topk", 1), ("neighbourhood", 0)):
            if (value := getattr(self, name)) < least:
                raise BadOption(option="-p", value=f"{name} {value}", why=f"it must be at least {least}")
        if not self.temperature > 0:
            raise BadOption(option="-p", value=f"temperature {self.temperature}", why="it must be above 0")

    def needs(self, sample: Clip) -> Needs:
        return Needs(sample.images())

    def score(self, sample: Clip, captures: Mapping[str, Capture], texts: Mapping[str, Any]) -> Iterator[Scores]:
        from vkvdb.tasks import _propagation

        frames = [captures[name] for name in sample.frames]
        grid = frames[0].grid
        if any((f.grid.rows, f.grid.cols, f.grid.window) != (grid.rows, grid.cols, grid.window) for f in frames):
            raise ValueError(f"the frames of clip {sample.id} are not of one size")
        clip = _Truth(sample, grid)
        reach = _propagation.reach(self.neighbourhood, grid.rows, grid.cols)
        rule = _propagation.Rule(self.context, self.topk, self.temperature, reach)
        for n, stack in enumerate(frames[0].stacks):
            assert all(f.stacks[n].sites == stack.sites for f in frames)
            columns = stack.tokens.shape[1] + (stack.tokens.shape[1] > 1)
            if not clip.defined:
                yield from _rows(stack.sites, np.full((2, len(stack.sites), columns), np.nan), 0)
                continue
            # Of each cell of the context, of the frame at hand and once more: tokens, candidates with labels, labels.
            labels = clip.count + 1
            numbers = stack.tokens[0, :, 0, 0].numel() + columns * (self.topk * (labels + 3) + labels)
            each = (self.context + 3) * grid.rows * grid.cols * numbers
            found = []
            for piece in pieces(len(stack.sites), each, room(stack.tokens)):
                tokens = (f.stacks[n].tokens[piece].float() for f in frames[:-1])
                carried = _propagation.propagate(tokens, clip.labels(0), rule)
                found.append(clip.score(carried).reshape(2, -1, columns))
            yield from _rows(stack.sites, np.concatenate(found, 1), clip.count)
        if clip.defined:
            truth = (clip.labels(time)[None, None] for time in clip.scored)
            yield from _rows((POSITION,), clip.held()[:, None, None], clip.count)
            yield from _rows((CEILING,), clip.score(truth)[..., None], clip.count)

    def picture(self, sample: Clip, captures: Mapping[str, Capture], texts: Mapping[str, Any]) -> tuple[Panel, ...]:
        """Every frame that is scored, with the objects that were carried to it, behind the first with its own."""
        from vkvdb.tasks import _propagation

        frames = [captures[name] for name in sample.frames]
        grid = frames[0].grid
        clip = _Truth(sample, grid)
        if not clip.defined:
            return (Panel(sample.frames[0], "not defined: no object that can be carried"),)
        reach = _propagation.reach(self.neighbourhood, grid.rows, grid.cols)
        rule = _propagation.Rule(self.context, self.topk, self.temperature, reach)
        tokens = (f.stacks[0].tokens.float() for f in frames[:-1])
        truths = [[None if m is None else decode(m) for m in masks] for masks in clip.objects]
        shown = [Panel(sample.frames[0], "frame 1: given", found=truths[0])]
        for time, labels in zip(clip.scored, _propagation.propagate(tokens, clip.labels(0), rule), strict=True):
            chosen = clip.chosen(labels[0, 0])
            found = [chosen == number for number in range(1, clip.count + 1)]
            shown.append(Panel(sample.frames[time], f"frame {time + 1}", found=found, truth=truths[time]))
        return tuple(shown)


class _Truth:
    """The masks of a clip's objects, and what labels on the grid are worth."""

    def __init__(self, sample: Clip, grid: TokenGrid) -> None:
        self.scored = range(1, len(sample.frames) - 1)
        seen = [n for n, mask in enumerate(sample.objects[0]) if mask is not None]
        kept = [n for n in seen if any(sample.objects[time][n] is not None for time in self.scored)]
        self.objects = [[masks[n] for n in kept] for masks in sample.objects]
        self.count, self.grid, self.defined = len(kept), grid, bool(kept)
        if not self.defined:
            return
        self.truth = [[None if m is None else ObjectTruth(decode(m)) for m in self.objects[t]] for t in self.scored]
        first = self.objects[0][0]
        assert first is not None
        self.height, self.width = first.height, first.width
        rows, cols, self.down, self.across = upsampling(grid, (self.width, self.height))
        # How much of the image lies beside the window, as torch's `pad` takes it.
        self.beside = (int(cols[0]), self.width - 1 - int(cols[-1]), int(rows[0]), self.height - 1 - int(rows[-1]))

    def labels(self, time: int) -> Tensor:
        """Which object is at the centre of each cell: (cells, objects + 1), one a row."""
        import torch

        from vkvdb.tasks import _propagation

        cells = [self._at_centres(mask) for mask in self.objects[time]]
        return _propagation.one_hot([torch.as_tensor(c) for c in cells])

    def _at_centres(self, mask: Mask | None) -> Bools:
        """Whether the mask is at each cell's centre (cells,); nothing is outside the image."""
        found = np.zeros((self.grid.rows, self.grid.cols), bool)
        if mask is None:
            return found.ravel()
        x, y = self.grid.centre(np.arange(self.grid.rows), np.arange(self.grid.cols))
        x, y = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
        seen = np.ix_((y >= 0) & (y < self.height), (x >= 0) & (x < self.width))
        down, across = y[(y >= 0) & (y < self.height)], x[(x >= 0) & (x < self.width)]
        found[seen] = decode(mask)[np.ix_(down, across)]
        return found.ravel()

    def score(self, carried: Iterator[Tensor]) -> Floats:
        """J and F (2, maps) meaned over frames and objects, for each frame's labels (..., cells, labels)."""
        return _mean(
            [self._frame(truth, labels.flatten(0, -3)) for truth, labels in zip(self.truth, carried, strict=True)]
        )

    def held(self) -> Floats:
        """J and F (2,) of the first frame's masks, held still."""
        import torch

        first = [torch.as_tensor(decode(m))[None] for m in self.objects[0] if m is not None]
        found = [
            [None if one is None else np.stack([one.j(m), one.f(m)]) for one, m in zip(truth, first, strict=True)]
            for truth in self.truth
        ]
        held: Floats = _mean(found)[:, 0]
        return held

    def _frame(self, truth: Sequence[ObjectTruth | None], labels: Tensor) -> list[Floats | None]:
        """J and F (2, maps) of every object in one frame, for labels (maps, cells, labels)."""
        import torch

        maps = labels.transpose(1, 2).reshape(len(labels), -1, self.grid.rows, self.grid.cols)
        found: list[list[Floats]] = [[] for _ in truth]
        for piece in pieces(len(maps), self.height * self.width * maps.shape[1], at_once(maps)):
            chosen = self._chosen(maps[piece])
            for number, one in enumerate(truth, 1):
                if one is not None:
                    masks = chosen == torch.full_like(chosen, number)  # in bytes, not as a number is compared
                    found[number - 1].append(np.stack([one.j(masks), one.f(masks)]))
        return [np.concatenate(parts, 1) if parts else None for parts in found]

    def chosen(self, labels: Tensor) -> npt.NDArray[np.uint8]:
        """The object (height, width) of each pixel, 0 for none, for one frame's labels (cells, labels)."""
        chosen: npt.NDArray[np.uint8] = (
            self._chosen(labels.t().reshape(1, -1, self.grid.rows, self.grid.cols))[0].cpu().numpy()
        )
        return chosen

    def _chosen(self, maps: Tensor) -> Tensor:
        """The object (maps, height, width) of each pixel, 0 for none, for labels (maps, labels, rows, cols)."""
        import torch

        flat = maps.flatten(0, 1).contiguous()
        wide = upsample(flat, like(self.down, maps), like(self.across, maps))
        wide = wide.view(*maps.shape[:2], *wide.shape[1:])
        low, high = wide.amin((2, 3), keepdim=True), wide.amax((2, 3), keepdim=True)
        varies = high > low
        wide.sub_(low * varies).div_(torch.where(varies, high - low, 1))
        largest, first, *others = wide.unbind(1)
        chosen = _larger(first, largest)
        for number, label in enumerate(others, 2):
            torch.maximum(largest, first, out=largest)
            # A later object has the larger number.
            torch.maximum(chosen, _larger(label, largest).mul_(number), out=chosen)
            first = label
        return torch.nn.functional.pad(chosen, self.beside) if any(self.beside) else chosen


def _larger(these: Tensor, others: Tensor) -> Tensor:
    """1 where these are larger than the others and 0 elsewhere, in bytes."""
    import torch

    # A comparison that writes numbers, and then bytes, is several times as fast as one that writes bytes.
    return torch.gt(these, others, out=torch.empty_like(these)).bool().view(torch.uint8)


def _mean(found: Sequence[Sequence[Floats | None]]) -> Floats:
    """The mean over objects of the mean over frames, for values of frames and objects; None takes no part."""
    of_objects = [[v for v in values if v is not None] for values in zip(*found, strict=True)]
    mean: Floats = np.mean([np.mean(values, 0) for values in of_objects], 0)
    return mean


def _rows(sites: tuple[Site, ...], values: Floats, objects: int) -> Iterator[Scores]:
    """Scores of J and F (2, sites, columns) and of their mean."""
    for metric, value in zip(TemporalCorrespondence.metrics, (*values, values.mean(0)), strict=True):
        yield Scores(metric, sites, value, weight=float(objects))


TASK = TemporalCorrespondence
