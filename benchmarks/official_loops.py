"""The official scripts' algorithms, head by head, as `tasks.py` times them beside the tasks.

Each takes a sample and the captures by name, and goes through the first `sites` sites.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from vkvdb import boundaries, masks
from vkvdb.metrics import cell_shares
from vkvdb.samples import Clip, Episode, Expression, Image, ImagePair, ImageSet
from vkvdb.tasks.cosegmentation import Cosegmentation
from vkvdb.tasks.temporal_correspondence import TemporalCorrespondence
from vkvdb.types import Capture


def each_head(tokens: torch.Tensor) -> Iterator[torch.Tensor]:
    """Features (rows, cols, dim) of every head and of all heads concatenated."""
    yield from tokens
    yield torch.cat(list(tokens), -1)


def dift_loop(sample: ImagePair, of: dict[str, Capture], sites: int) -> list[float]:
    """eval_spair.py of DIFT, for each head of some sites."""
    stacks = [of[name].stacks[0].tokens for name in (sample.source, sample.target)]
    side = max(sample.target_box[2] - sample.target_box[0], sample.target_box[3] - sample.target_box[1])
    size = of[sample.source].size
    assert size is not None
    shares = []
    for site in range(sites):
        for heads in zip(each_head(stacks[0][site]), each_head(stacks[1][site]), strict=True):
            source, target = (
                torch.nn.functional.interpolate(h.permute(2, 0, 1)[None], (size[1], size[0]), mode="bilinear")
                for h in heads
            )
            height, width = target.shape[-2:]
            correct = 0
            for point, truth in zip(sample.source_points, sample.target_points, strict=True):
                vector = source[0, :, int(point[1]), int(point[0])].view(1, -1)
                everything = target.view(target.shape[1], -1).transpose(0, 1)
                cosines = torch.nn.functional.normalize(everything) @ torch.nn.functional.normalize(vector).t()
                row, col = np.unravel_index(cosines.view(height, width).numpy().argmax(), (height, width))
                correct += ((col - truth[0]) ** 2 + (row - truth[1]) ** 2) ** 0.5 / side <= 0.1
            shares.append(correct / len(sample.source_points))
    return shares


def linear_loop(sample: Episode, of: dict[str, Capture], sites: int) -> list[float]:
    """scikit-learn's logistic regression, for each head of some sites."""
    names = [s.image for s in sample.supports] + [sample.query.image]
    stacks = [of[name].stacks[0].tokens for name in names]
    grid = of[names[-1]].grid
    labels = np.concatenate([cell_shares(masks.decode(s.mask), grid).ravel() > 0.5 for s in sample.supports])
    truth = masks.decode(sample.query.mask)
    shares = []
    for site in range(sites):
        for *supports, query in zip(*(each_head(s[site]) for s in stacks), strict=True):
            x = np.concatenate([s.flatten(0, 1).numpy() for s in supports])
            scaler = StandardScaler().fit(x)
            model = LogisticRegression(tol=1e-6, max_iter=1000).fit(scaler.transform(x), labels)
            logits = torch.tensor(model.decision_function(scaler.transform(query.flatten(0, 1).numpy())))
            maps = logits.view(1, 1, grid.rows, grid.cols)
            chosen = torch.nn.functional.interpolate(maps, truth.shape, mode="bilinear")[0, 0].numpy() > 0
            shares.append((chosen & truth).sum() / (chosen | truth).sum())
    return shares


def otsu(values: np.ndarray[Any, Any]) -> float:
    """Otsu's threshold from a histogram of 256 bins, as image libraries have it."""
    counts, edges = np.histogram(values, 256)
    centres = (edges[1:] + edges[:-1]) / 2
    below, above = counts.cumsum(), counts[::-1].cumsum()[::-1]
    mean_below = (counts * centres).cumsum() / below
    mean_above = ((counts * centres)[::-1].cumsum() / above[::-1])[::-1]
    between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return float(centres[between.argmax()])


def words_loop(sample: Image | Expression, of: dict[str, Capture], text: torch.Tensor, sites: int) -> list[Any]:
    """A dot product, Otsu, interpolation and the measures, for each head of some sites and each reading of it."""
    capture = of[sample.image]
    assert sample.mask is not None
    truth = masks.decode(sample.mask)
    found: list[Any] = []
    for site in range(sites):
        vectors = [*text[site], text[site].flatten()]
        for tokens, vector in zip(each_head(capture.stacks[0].tokens[site]), vectors, strict=True):
            moved = tokens - tokens.mean((0, 1))
            readings = [tokens @ vector]
            if isinstance(sample, Image):
                readings.append(moved @ vector / moved.norm(dim=-1))
            for cells in readings:
                up = torch.nn.functional.interpolate(cells[None, None], truth.shape, mode="bilinear")[0, 0].numpy()
                chosen = up > otsu(cells.numpy())
                found.append((chosen & truth).sum() / (chosen | truth).sum())
                found.append(roc_auc_score(truth.ravel(), up.ravel()))
                if isinstance(sample, Image):
                    found.append(average_precision_score(truth.ravel(), up.ravel()))
                    continue
                labels, _ = ndimage.label(chosen)
                largest = np.bincount(labels.ravel())[1:].argmax() + 1
                found.append(ndimage.find_objects(labels)[largest - 1])
                found.append(truth[np.unravel_index(up.argmax(), up.shape)])
                objects = truth | np.any([masks.decode(o) for o in sample.others], 0)
                found.append(roc_auc_score(truth[objects], up[objects]))
    return found


def cluster_loop(sample: ImageSet, of: dict[str, Capture], task: Cosegmentation, sites: int) -> list[float]:
    """cosegmentation.py of Amir et al. with scikit-learn's k-means, for each head of some sites."""
    stacks = [of[member.image].stacks[0].tokens for member in sample.members]
    truths = [masks.decode(member.mask) for member in sample.members]
    grid = of[sample.members[0].image].grid
    rim = np.pad(np.zeros((grid.rows - 2, grid.cols - 2)), 1, constant_values=1).ravel()
    inside = np.concatenate([cell_shares(truth, grid).ravel() > 0.5 for truth in truths])
    found = []
    for site in range(sites):
        for each in zip(*(each_head(s[site]) for s in stacks), strict=True):
            x = torch.nn.functional.normalize(torch.cat([one.flatten(0, 1) for one in each]), dim=-1).numpy()
            some = np.random.default_rng(0).permutation(len(x))[: task.fitted]
            before = np.inf
            for k in range(1, task.most + 1):
                model = KMeans(k, n_init=task.restarts, max_iter=task.iterations, tol=0, random_state=0).fit(x[some])
                error = (model.transform(x).min(1) ** 2).mean()
                if error > task.elbow * before:
                    break
                before = error
            labels = model.predict(x)
            rims = np.tile(rim, len(truths))
            by_border = [c for c in range(k) if rims[labels == c].mean() < task.border * rim.mean()]
            by_labels = [c for c in range(k) if inside[labels == c].mean() > 0.5]
            for foreground in (by_border, by_labels):
                cells = torch.tensor(np.isin(labels, foreground)).float().view(len(truths), 1, grid.rows, grid.cols)
                for truth, one in zip(truths, cells, strict=True):
                    up = torch.nn.functional.interpolate(one[None], truth.shape, mode="bilinear")[0, 0].numpy() > 0.5
                    found.append((up & truth).sum() / max((up | truth).sum(), 1))
    return found


def dino_loop(sample: Clip, of: dict[str, Capture], task: TemporalCorrespondence, sites: int) -> list[float]:
    """eval_video_segmentation.py of DINO, for each head of some sites; J and F of each frame by itself."""
    grid = of[sample.frames[0]].grid
    truths = [masks.decode(mask) for (mask,) in sample.objects if mask is not None]
    place = torch.arange(grid.rows * grid.cols)
    row, col = place // grid.cols, place % grid.cols
    reach = max(1, round(task.neighbourhood * grid.rows / 27))
    near = ((row[:, None] - row).abs() <= reach) & ((col[:, None] - col).abs() <= reach)
    first = torch.tensor(cell_shares(truths[0], grid) > 0.5).flatten()
    size = boundaries.radius(*truths[0].shape)
    disk = np.hypot(*np.mgrid[-size : size + 1, -size : size + 1]) <= size
    found = []
    for site in range(sites):
        for frames in zip(*(each_head(of[name].stacks[0].tokens[site]) for name in sample.frames), strict=True):
            units = [torch.nn.functional.normalize(frame.flatten(0, 1)) for frame in frames]
            labels = [torch.stack([~first, first]).float()]
            for time_ in range(1, len(units) - 1):
                seen = [0, *range(max(1, time_ - task.context), time_)]
                affinity = torch.exp(units[time_] @ torch.stack([units[n] for n in seen]).transpose(1, 2) / 0.1) * near
                affinity = affinity.transpose(1, 2).flatten(0, 1)
                affinity[affinity < affinity.topk(task.topk, 0)[0][-1]] = 0
                labels.append(torch.cat([labels[n] for n in seen], 1) @ (affinity / affinity.sum(0)))
                maps = labels[-1].view(1, 2, grid.rows, grid.cols)
                wide = torch.nn.functional.interpolate(maps, truths[0].shape, mode="bilinear")[0]
                low, high = wide.amin((1, 2), keepdim=True), wide.amax((1, 2), keepdim=True)
                chosen = ((wide - low) / (high - low)).argmax(0).numpy() == 1
                found.append((chosen & truths[time_]).sum() / (chosen | truths[time_]).sum())
                mine, right = boundaries.boundary(chosen), boundaries.boundary(truths[time_])
                hits = (mine & ndimage.binary_dilation(right, disk)).sum() / max(mine.sum(), 1)
                reached = (right & ndimage.binary_dilation(mine, disk)).sum() / max(right.sum(), 1)
                found.append(2 * hits * reached / max(hits + reached, 1e-9))
    return found
